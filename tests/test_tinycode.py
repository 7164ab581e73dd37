"""The procedural code task: what its programs do, who grades them, and its models."""

import itertools
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trdlib import config, data, diagnose, inputs, prompts, refine, rollout, sandbox, tiny, tinycode


@pytest.fixture(scope="module")
def tokenizer():
    return tinycode.build_tokenizer()


def run_here(program: str, xs: list[int]) -> list[int]:
    """Of our own programs only: what a model wrote is run in the sandbox."""
    names = {}
    exec(program, names)
    return names["f"](list(xs))


problems = st.builds(
    lambda seed, steps: tinycode.draw(random.Random(seed), "code", steps, "pretrain"),
    st.integers(0, 10**6),
    st.integers(1, 7),
)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("add 3", [7, 0, 10, 5, 5, 9]),
        ("subtract 2", [2, -5, 5, 0, 0, 4]),
        ("times 2", [8, -6, 14, 4, 4, 12]),
        ("keep over 2", [4, 7, 6]),
        ("keep under 4", [-3, 2, 2]),
        ("keep multiples of 3", [-3, 6]),
        ("take 2", [4, -3]),
        ("skip 4", [2, 6]),
        ("every 4", [4, 2]),
        ("reverse", [6, 2, 2, 7, -3, 4]),
        ("sort up", [-3, 2, 2, 4, 6, 7]),
        ("sort down", [7, 6, 4, 2, 2, -3]),
        ("square", [16, 9, 49, 4, 4, 36]),
        ("negate", [-4, 3, -7, -2, -2, -6]),
        ("absolute", [4, 3, 7, 2, 2, 6]),
        ("keep odd", [-3, 7]),
        ("twice", [4, -3, 7, 2, 2, 6, 4, -3, 7, 2, 2, 6]),
        ("drop last", [4, -3, 7, 2, 2]),
    ],
)
def test_each_clause_by_hand(clause, expected):
    problem = f"f(x): a {clause}"
    xs = [4, -3, 7, 2, 2, 6]
    assert tinycode.interpret(tinycode.parse(problem), xs) == expected
    texts = {tiny.text_of(tinycode.clean(problem, way)) for way in (0, 1)}
    assert len(texts) == 2  # two programs, both right
    assert [run_here(text, xs) for text in texts] == [expected] * 2
    assert run_here(texts.pop(), []) == []


@given(problem=problems, seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_written_programs(problem, seed):
    tokenizer, rng = tinycode.build_tokenizer(), random.Random(seed)
    right = tinycode.outputs(tinycode.parse(problem))
    assert problem == tinycode.write_problem(tinycode.parse(problem))

    def returns(pieces):
        return [run_here(tiny.text_of(pieces), xs) for xs in tinycode.INPUTS]

    assert returns(tinycode.clean(problem)) == right
    # every mistake is taken back, so the program is right
    fixed = tinycode.write(rng, problem, slip=0.5, correct_slip=1.0, recheck=0.2)
    assert returns(fixed) == right
    wild = tinycode.write(rng, problem, slip=0.3, believe=0.5, correct_slip=0.4, recheck=0.2)
    text = tiny.text_of(wild)
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
        clean = tiny.text_of(tinycode.clean(problem, way))
        spelled = tokenizer.tokenize(clean + "<|im_end|>")
        assert tinycode.departure(problem, spelled) is None
        assert tinycode.departure(problem, spelled[:-2]) is None
    if tinycode.departure(problem, tokenizer.tokenize(text + "<|im_end|>")) is None:
        assert tinycode.is_right(problem, text)


def test_false_beliefs_are_wrong_and_systematic():
    """Each is a program that some input tells from the right one."""
    assert 0.15 < len(tinycode.FALSE_BELIEFS) / len(tinycode.CLAUSES) < 0.4
    rng = random.Random(1)
    for clause, belief in tinycode.FALSE_BELIEFS.items():
        problem = tinycode.write_problem([clause])
        program = tiny.text_of(tinycode.write(rng, problem, believe=1.0))
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
        ("[v + 3", "[v + 4", (4, "3")),  # operand
        ("[v + 3", "[v - 3", (3, "[v + ")),  # operation
        ("a[::-1]", "sorted(a)", (10, "a")),
        ("a[::-1]", "list(reversed(x))", (11, "a")),  # not the value before
        ("    b = a[::-1]\n", "", (9, "b = ")),  # skipped
        ("return c", "return b", (22, "c")),
        ("    b =", "    # Wait\n    b =", None),  # a second look
        ("    b =", "    # Hmm\n    a = [v + 3 for v in x]\n    b =", None),
        (
            "    return c",
            "    # Hmm\n    b = a[::-1]\n    return c",
            (27, "c = "),
        ),  # c is now stale
    ],
)
def test_first_wrong_token_by_hand(tokenizer, old, new, expected):
    text = RIGHT.replace(old, new, 1) if old else RIGHT
    tokens = tokenizer.tokenize(text + "<|im_end|>")
    assert tinycode.departure(PROBLEM, tokens) == expected


def test_a_rewrite_keeps_what_is_right():
    mixed = RIGHT.replace("a[::-1]", "list(reversed(a))")
    looked = mixed.replace("    b =", "    # Wait\n    a = [v + 3 for v in x]\n    b =")
    wrong = mixed.replace("v + 3", "v + 4")
    mended = mixed.replace("v + 3", "3 + v")  # in the hand of the first right statement
    for attempt, expected in ((mixed, mixed), (looked, mixed), (wrong, mended)):
        found = tinycode.rewrite(random.Random(0), PROBLEM, attempt)
        assert tiny.text_of(found) == expected


def test_programs_are_graded_by_what_they_do():
    answer = tinycode.answer(PROBLEM)
    right = [
        RIGHT,
        RIGHT.replace("v % 2 == 1", "v % 2 != 0").replace("a[::-1]", "list(reversed(a))"),
        "def f(x):\n    return [v + 3 for v in x[::-1] if v % 2 == 0]",  # all at once
        RIGHT.replace("    b =", "    b = sorted(a)\n    # Wait\n    b ="),
    ]
    wrong = [
        RIGHT.replace("+ 3", "+ 4"),
        RIGHT.replace("    return c", "    return b"),
        RIGHT.replace("return c", "return tuple(c)"),
        RIGHT.replace("b = a[::-1]", "b = a[::-1"),
        RIGHT.replace("return c", "return d"),
        "",
        f"print({answer})\nimport os\nos.remove('/etc/hostname')",
        "def f(x):\n    import os\n    os._exit(0)",
        "def f(x):\n    while True:\n        x = x * 2",
        "import builtins\nbuiltins.print = lambda *a: None\n" + RIGHT,
    ]
    texts = [*wrong, *right, *wrong]
    verdicts = tinycode.grade([(text, answer) for text in texts])
    assert verdicts == [False] * len(wrong) + [True] * len(right) + [False] * len(wrong)


def test_equal_programs_are_run_once(project, monkeypatch):
    """Not even in another process; by other code they are run again."""
    asked, run = [], sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda text, **how: asked.append(text) or run(text, **how))
    pairs = [(RIGHT, tinycode.answer(PROBLEM)), (RIGHT, "[]"), (RIGHT, tinycode.answer(PROBLEM))]
    assert tinycode.grade(pairs) == [True, False, True]
    assert len(asked) == 2
    again = f"from trdlib import sandbox, tinycode as t; del sandbox.run; print(t.grade({pairs}))"
    done = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True)
    assert done.stdout == "[True, False, True]\n", done.stderr
    monkeypatch.setattr(config, "code_hash", lambda *modules: "other")
    assert tinycode.grade(pairs) == [True, False, True]
    assert len(asked) == 4


def test_no_loss_on_injected_errors(tokenizer):
    """The teacher must not learn to make the mistakes that it learns to correct."""
    rng, seen = random.Random(3), 0
    for _ in range(60):
        problem = tinycode.draw(rng, "code", 4, "pretrain")
        how = {"slip": 0.5, "correct_slip": 1.0, "learn_slips": False}
        lines = {
            line
            for way in (0, 1)
            for line in tiny.text_of(tinycode.clean(problem, way)).splitlines()
        }
        pieces = tinycode.write(rng, problem, **how)
        for start, right in itertools.pairwise(pieces):
            if start.text.endswith(" = "):
                assert right.learn == (f"{start.text}{right.text}".strip("\n") in lines)
                seen += not right.learn
    assert seen > 20
    made = tiny.example(rng, tokenizer, {"slips": 1.0}, problem, tinycode.CODE)
    prompt = prompts.context("solve", tokenizer, style="tiny", problem=problem).ids
    assert made.ids[: len(prompt)] == prompt
    assert not any(made.learn[: len(prompt)])
    assert made.learn[-1]


def test_sets_are_disjoint_and_as_ordered():
    plan = config.load().scales["tiny"].tasks["code"].data
    sets = tiny.problem_sets(plan, tinycode.CODE)
    data.check_disjoint(sets)
    assert {name: len(frame) for name, frame in sets.items()} == {
        "train": 256, "validation": 48, "code": 128, "code_hard": 128,
    }  # fmt: skip
    for name, split in (("train", "train"), ("validation", "validation"), ("code", "test")):
        assert {tiny.split_of(p) for p in sets[name]["problem"]} == {split}
    for frame in sets.values():
        for row in frame.to_dict("records"):
            clauses = tinycode.parse(row["problem"])
            ran = [run_here(row["solution"], xs) for xs in tinycode.INPUTS]
            assert str(ran) == row["answer"]
            # the tests notice a statement that is left out
            for i in range(len(clauses)):
                short = tinycode.write_problem(clauses[:i] + clauses[i + 1 :])
                assert tinycode.answer(short) != row["answer"]
    # pretraining sees no problem of these lengths from another split
    rng = random.Random(0)
    drawn = {tinycode.draw(rng, "code", 3 + i % 3, "pretrain") for i in range(1000)}
    assert not drawn & {p for frame in sets.values() for p in frame["problem"]}
    with pytest.raises(ValueError, match="for pretraining"):
        tinycode.draw(rng, "code", 2, "test")


def test_attempts_are_graded_rewritten_and_located(project):
    """The steps from problems to signals, at the smoke scale (the rest: test_pipeline.py)."""
    run = config.run("smoke", "code", "opsd", "trd")
    inputs.prepare(run)
    y_o, y_r = rollout.attempts(run), refine.rewrites(run)
    assert y_r["y_o_correct"].tolist() == y_o["correct"].tolist()
    rows = refine.rows_of(data.problems(run.data, "train"), y_o)
    fair = y_o.assign(text=[row["solution"] for row in rows], finished=True)
    fair.loc[::2, "finished"] = False  # an unfinished response is wrong, whatever it says
    assert rollout.grade(fair, rows, run) == fair["finished"].tolist()
    found = diagnose.responses(run)
    wrong = found[~found["correct"] & found["finished"]]
    assert len(wrong)
    assert wrong["wrong"].notna().all()
