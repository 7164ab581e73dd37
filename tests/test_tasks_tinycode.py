"""The procedural code task: what its programs do, who grades them, and its models."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trdlib import sandbox, tasks
from trdlib.analysis import tables
from trdlib.analysis.measure import measure
from trdlib.distill import distill
from trdlib.evaluate import evaluate
from trdlib.ops.chain import sampled
from trdlib.run import get_run
from trdlib.settings import SettingsError
from trdlib.tasks import language, sets, tinycode
from trdlib.tasks.language import Habits, text_of


@pytest.fixture(scope="module")
def tokenizer():
    return tinycode.build_tokenizer()


def run_here(program: str, xs: list[int]) -> list[int]:
    """Of our own programs only: what a model wrote is run in the sandbox."""
    names = {}
    exec(program, names)
    return names["f"](list(xs))


def draw(rng: random.Random, steps: int, split: str = "pretrain") -> str:
    return language.draw(rng, tinycode, steps, split)


problems = st.builds(
    lambda seed, steps: draw(random.Random(seed), steps), st.integers(0, 10**6), st.integers(1, 7)
)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("add 3", [7, 0, 10, 5, 5, 9]), ("subtract 2", [2, -5, 5, 0, 0, 4]),
        ("times 2", [8, -6, 14, 4, 4, 12]), ("keep over 2", [4, 7, 6]),
        ("keep under 4", [-3, 2, 2]), ("keep multiples of 3", [-3, 6]), ("take 2", [4, -3]),
        ("skip 4", [2, 6]), ("every 4", [4, 2]), ("reverse", [6, 2, 2, 7, -3, 4]),
        ("sort up", [-3, 2, 2, 4, 6, 7]), ("sort down", [7, 6, 4, 2, 2, -3]),
        ("square", [16, 9, 49, 4, 4, 36]), ("negate", [-4, 3, -7, -2, -2, -6]),
        ("absolute", [4, 3, 7, 2, 2, 6]), ("keep odd", [-3, 7]),
        ("twice", [4, -3, 7, 2, 2, 6, 4, -3, 7, 2, 2, 6]), ("drop last", [4, -3, 7, 2, 2]),
    ],
)  # fmt: skip
def test_each_clause_by_hand(clause, expected):
    problem = f"f(x): a {clause}"
    xs = [4, -3, 7, 2, 2, 6]
    assert tinycode.outputs(tinycode.parse(problem), [xs]) == [expected]
    texts = {text_of(tinycode.clean(problem, way)) for way in (0, 1)}
    assert len(texts) == 2  # two programs, both right
    assert [run_here(text, xs) for text in texts] == [expected] * 2
    assert run_here(texts.pop(), []) == []


@given(problem=problems, seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_written_programs(problem, seed):
    tokenizer, rng = tinycode.build_tokenizer(), random.Random(seed)
    right = tinycode.outputs(tinycode.parse(problem))
    assert problem == tinycode.write_problem(tinycode.parse(problem))
    assert tinycode.problem(f" {problem} ") == tinycode.solved(problem)

    def returns(pieces):
        return [run_here(text_of(pieces), xs) for xs in tinycode.INPUTS]

    assert returns(tinycode.clean(problem)) == right
    # every mistake is taken back, so the program is right
    fixed = tinycode.write(rng, problem, Habits(slip=0.5, correct_slip=1.0, recheck=0.2))
    assert returns(fixed) == right
    assert tinycode.is_right(problem, text_of(fixed))
    wild = tinycode.write(rng, problem, Habits(0.3, 1.0, 0.5, 0.4, 0.2))
    text = text_of(wild)
    if tinycode.is_right(problem, text):
        assert returns(wild) == right
    assert returns(tinycode.rewrite(rng, problem, text)) == right
    # tokens and text: nothing is lost, the pieces are cut where tokens end, every word is known
    ids = tokenizer.encode(problem + "\n" + text, add_special_tokens=False)
    assert tokenizer.decode(ids) == problem + "\n" + text
    assert tokenizer.unk_token_id not in ids
    parts = tokenizer([p.text for p in wild], add_special_tokens=False)["input_ids"]
    assert [*itertools.chain(*parts)] == tokenizer.encode(text, add_special_tokens=False)
    # and no token of a right program is wrong
    for way in (0, 1):
        spelled = tokenizer.tokenize(text_of(tinycode.clean(problem, way)) + "<|im_end|>")
        assert tinycode.first_wrong(problem, spelled) is None
        assert tinycode.first_wrong(problem, spelled[:-2]) is None
    if tinycode.first_wrong(problem, tokenizer.tokenize(text + "<|im_end|>")) is None:
        assert tinycode.is_right(problem, text)


def test_false_beliefs_are_wrong_and_systematic():
    """Each is a program that some input tells from the right one."""
    counted = [op for op, (own, _) in tinycode.WAYS.items() if "K" in own]
    clauses = len(tinycode.WAYS) + len(counted) * (len(tinycode.OPERANDS) - 1)
    assert 0.15 < len(tinycode.FALSE_BELIEFS) / clauses < 0.4
    rng = random.Random(1)
    for clause, belief in tinycode.FALSE_BELIEFS.items():
        problem = tinycode.write_problem([clause])
        program = text_of(tinycode.write(rng, problem, Habits(believe=1.0)))
        outputs = [run_here(program, xs) for xs in tinycode.INPUTS]
        assert outputs == tinycode.outputs([belief]) != tinycode.outputs([clause])


PROBLEM = "f(x): a add 3; b reverse; c keep odd"
RIGHT = (
    "def f(x):\n    a = [v + 3 for v in x]\n    b = a[::-1]\n"
    "    c = [v for v in b if v % 2 == 1]\n    return c"
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", None),
        ("[v + 3 for v in x]", "[3 + v for v in x]", None),  # the other way
        ("a[::-1]", "list(reversed(a))", None),
        ("def f(x):", "", (0, "def f(x):")),
        ("[v + 3", "[v + 4", (4, "3")),  # operand
        ("[v + 3", "[v - 3", (3, "[v + ")),  # operation
        ("a[::-1]", "sorted(a)", (10, "a")),
        ("a[::-1]", "list(reversed(x))", (11, "a")),  # not the value before
        ("    b = a[::-1]\n", "", (9, "b = ")),  # skipped
        ("return c", "return b", (22, "c")),
        ("    b =", "    # Wait\n    b =", None),  # a second look
        ("    b =", "    # Hmm\n    a = [v + 3 for v in x]\n    b =", None),
        # c is now stale
        ("    return c", "    # Hmm\n    b = a[::-1]\n    return c", (27, "c = ")),
    ],
)
def test_first_wrong_token_by_hand(tokenizer, old, new, expected):
    text = RIGHT.replace(old, new, 1) if old else RIGHT
    tokens = tokenizer.tokenize(text + "<|im_end|>")
    assert tinycode.first_wrong(PROBLEM, tokens) == expected


@pytest.mark.parametrize(
    "text",
    ["", "hello", "f(x): a jump", "f(x): b add 3", "f(x): a add", "f(x): a reverse 2",
     "f(x): " + "; ".join(f"{label} reverse" for label in "abcdefghi")],
)  # fmt: skip
def test_what_the_language_cannot_say(text):
    with pytest.raises(SettingsError, match=r"write clauses a, b, c, .* there are add, subtract"):
        tinycode.problem(text)


def test_a_rewrite_keeps_what_is_right():
    mixed = RIGHT.replace("a[::-1]", "list(reversed(a))")
    looked = mixed.replace("    b =", "    # Wait\n    a = [v + 3 for v in x]\n    b =")
    wrong = mixed.replace("v + 3", "v + 4")
    mended = mixed.replace("v + 3", "3 + v")  # in the hand of the first right statement
    for attempt, expected in ((mixed, mixed), (looked, mixed), (wrong, mended)):
        found = tinycode.rewrite(random.Random(0), PROBLEM, attempt)
        assert text_of(found) == expected


def test_programs_are_graded_by_what_they_do(project):
    answer = tinycode.solved(PROBLEM)[1]
    right = [
        RIGHT,
        RIGHT.replace("v % 2 == 1", "v % 2 != 0").replace("a[::-1]", "list(reversed(a))"),
        "def f(x):\n    return [v + 3 for v in x[::-1] if v % 2 == 0]",  # all at once
        RIGHT.replace("    b =", "    b = sorted(a)\n    # Wait\n    b ="),
    ]
    wrong = [
        RIGHT.replace("+ 3", "+ 4"), RIGHT.replace("    return c", "    return b"),
        RIGHT.replace("return c", "return tuple(c)"), RIGHT.replace("b = a[::-1]", "b = a[::-1"),
        RIGHT.replace("return c", "return d"), "",
        f"print({answer})\nimport os\nos.remove('/etc/hostname')",
        "def f(x):\n    import os\n    os._exit(0)",
        "def f(x):\n    while True:\n        x = x * 2",
        "import builtins\nbuiltins.print = lambda *a: None\n" + RIGHT,
    ]  # fmt: skip
    texts = [*wrong, *right, *wrong]
    verdicts = tinycode.grade(None, [(text, {"answer": answer}) for text in texts])
    assert verdicts == [False] * len(wrong) + [True] * len(right) + [False] * len(wrong)


def test_equal_programs_are_run_once(project, monkeypatch):
    asked, run = [], sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda text, **how: asked.append(text) or run(text, **how))
    pairs = [(RIGHT, {"answer": a}) for a in (tinycode.solved(PROBLEM)[1], "[]") * 2]
    for _ in range(2):
        assert tinycode.grade(None, pairs) == [True, False] * 2
    assert len(asked) == 1  # both at once


def test_programs_that_share_a_process_are_graded_as_alone(project, monkeypatch):
    """Whatever the others do: change names, take all memory or time, never end, break off."""
    answer = {"answer": tinycode.solved(PROBLEM)[1]}
    right = [RIGHT, RIGHT.replace("b = a[::-1]", "b = list(reversed(a))"), f"{RIGHT} # Wait"]
    wrong = [
        RIGHT.replace("+ 3", "+ 4"), "sorted = len = list = map = f = 7",
        "def list(x):\n    return x\ndef reversed(x):\n    return x\n" + RIGHT[:-1],
        "def f(x):\n    return f(x)", "def f(x):\n    return [v ** v ** v for v in x]",
        "def f(x):\n    for v in x:\n        x += x", RIGHT[:-1] + "[c", RIGHT + "[", "",
    ]  # fmt: skip
    monkeypatch.setattr(tinycode, "SECONDS", 1)
    ran, run = [], sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda text, **how: ran.append(text) or run(text, **how))
    mixed = [*wrong[:4], right[0], *wrong[4:], *right[1:]]
    verdicts = tinycode.grade(None, [(text, answer) for text in mixed])
    assert verdicts == [text in right for text in mixed]
    assert ran[0].count("def f(x)") > 9  # they did share one
    for hostile in ("x.y", "'x'", "print(x)", "import x", "_", "x\\", "exit", "ａbs", "while 1: x"):
        ran.clear()
        tinycode.grade(None, [(f"{RIGHT}\n{hostile}", answer), (hostile, answer)])
        assert len(ran) == 2, hostile  # each alone


def test_no_loss_on_injected_errors(tokenizer):
    """The teacher must not learn to make the mistakes that it learns to correct."""
    rng, seen = random.Random(3), 0
    for _ in range(60):
        problem = draw(rng, 4)
        cleans = [text_of(tinycode.clean(problem, way)) for way in (0, 1)]
        lines = {line for clean in cleans for line in clean.splitlines()}
        habits = Habits(slip=0.5, correct_slip=1.0, learn_slips=False)
        for start, right in itertools.pairwise(tinycode.write(rng, problem, habits)):
            if start.text.endswith(" = "):
                line = f"{start.text}{right.text}".rpartition("\n")[2]
                assert right.learn == (line in lines)
                seen += not right.learn
    assert seen > 20


def test_sets_are_disjoint_and_as_ordered():
    task = tasks.of(get_run("tiny-code"))
    drawn = sets.draw(task.data, tinycode)
    assert {name: len(frame) for name, frame in drawn.items()} == task.sizes()
    for name, split in (("train", "train"), ("validation", "validation"), ("code", "test")):
        assert {language.split_of(p) for p in drawn[name]["problem"]} == {split}
    for frame in drawn.values():
        for row in frame.to_dict("records"):
            clauses = tinycode.parse(row["problem"])
            ran = [run_here(row["solution"], xs) for xs in tinycode.INPUTS]
            assert str(ran) == row["answer"]
            # the tests notice a statement that is left out
            for i in range(len(clauses)):
                short = clauses[:i] + clauses[i + 1 :]
                assert str(tinycode.outputs(short)) != row["answer"]
    # pretraining sees no problem of these lengths from another split
    rng = random.Random(0)
    seen = {draw(rng, 3 + i % 3) for i in range(1000)}
    assert not seen & {p for frame in drawn.values() for p in frame["problem"]}


def test_it_runs_from_the_problems_to_the_tables(project):
    """Every step, in this process; test_pipeline.py and test_notebooks.py run the notebooks."""
    one = "smoke-code seeds=[0] training.learning_rates=[6e-3]"
    runs = [get_run(one, "none", "base"), get_run(one, "opd", "trd")]
    task = tasks.of(runs[1])
    found = task.sets()
    (trained,) = distill(runs[1:], task, found, sampled(runs[1:], task, found["train"]))
    samples = evaluate(runs, task, found, [None, trained.adapters])
    measure(runs, found, samples, [None, trained.choice])
    table = tables.collect(runs[1])
    cells = table[table["run"]][["method", "benchmark"]].drop_duplicates()
    names = ("code", "code_hard")
    assert {*cells.itertuples(index=False, name=None)} == {
        (m, n) for m in ("base", "trd") for n in names
    }
