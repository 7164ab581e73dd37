"""The Task object: ours and a file of one's own are alike, whatever is wrong is said."""

import pickle
import subprocess
import sys

import pandas as pd
import pytest

from trdlib import store, tasks
from trdlib.run import get_run
from trdlib.settings import SettingsError, load
from trdlib.tasks import math, sets

SUMS = """
from trdlib.tasks.language import Departure

def draw(rng, steps):
    terms = [rng.randrange(1, 50) for _ in range(steps)]
    problem, answer = "What is " + " + ".join(map(str, terms)) + "?", str(sum(terms))
    return problem, answer, f"The answer is \\\\boxed{{{answer}}}."
"""


def of_scale(name="smoke", mode=None, method="trd", **changes) -> tasks.Task:
    """The task of a scale with these changes."""
    settings = load()
    settings.scales[name] = settings.scales[name].model_copy(update=changes)
    return tasks.of(get_run(name, mode, method, settings))


@pytest.fixture
def sums(project):
    """sums(more source) -> the task of a file of one's own."""
    part = {"problems": 8, "steps": [2, 3]}
    data = {"train": [part], "validation": [part], "benchmarks": {"longer": part}}

    def make(more: str = "", source: str = SUMS, **how) -> tasks.Task:
        store.write_text("mine/sums.py", source + more)
        return of_scale(task="mine/sums.py", pretraining=None, data=data, **how)

    return make


def test_settings_and_sets_need_no_torch(project):
    check = (
        "import sys; from trdlib import settings, tasks; from trdlib.run import get_run; "
        "[tasks.check(name, scale) for name, scale in settings.load().scales.items()]; "
        "tasks.of(get_run('smoke')).sets(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_sets_are_kept_while_they_are_right(smoke):
    task = tasks.of(smoke())
    paths = {name: task.run.data / f"{name}.parquet" for name in task.sizes()}
    before = {name: path.stat().st_mtime_ns for name, path in paths.items()}
    sets.check({"train": store.load(paths["train"])})
    store.save(store.load(paths["chain"]).iloc[1:], paths["chain"], "of others")
    for name, frame in task.sets().items():
        assert store.load(paths[name]).equals(frame)
        assert (paths[name].stat().st_mtime_ns == before[name]) == (name != "chain")
    assert task.benchmarks == ("chain", "trail")
    assert task.files() == task.notes == {}


def test_a_task_travels_to_other_processes(smoke, sums):
    for task in (tasks.of(smoke()), sums("def grade(pairs): return [True for _ in pairs]")):
        again = pickle.loads(pickle.dumps(task))
        assert again.sizes() == task.sizes() and again.grader == task.grader
        assert again.grade([("", {"id": "", "answer": "1"})]) == task.grade(
            [("", {"id": "", "answer": "1"})]
        )


def test_a_file_of_ones_own(sums):
    task = sums("def first_wrong(problem, tokens): return Departure(0, 'W') if tokens else None")
    frames = task.sets()
    assert {name: len(frame) for name, frame in frames.items()} == task.sizes()
    row = frames["longer"].to_dict("records")[0]
    assert row["source"] == "mine/sums.py" and eval(row["problem"][8:-1]) == int(row["answer"])
    assert task.grade([(row["solution"], row), ("\\boxed{no}", row)]) == [True, False]
    assert task.grader == math.grader()
    assert task.first_wrong("", ["w"]).right == "W"
    (name, before), = task.files().items()  # fmt: skip
    assert name == "mine/sums.py" and sums("\n").files()[name] != before


def test_a_grader_of_ones_own(sums):
    """It gets answers, and its code stands behind the verdict."""
    task = sums("def grade(pairs): return [text == answer for text, answer in pairs]")
    pairs = [("7", {"id": "a", "answer": "7"}), ("7", {"id": "b", "answer": "8"})]
    assert task.grade(iter(pairs)) == [True, False]
    other = sums("def grade(pairs): return [1 for _ in pairs]")
    assert other.grade(pairs) == [True, True]
    assert len({task.grader, other.grader, math.grader()}) == 3
    with pytest.raises(SettingsError, match=r"mine/sums.py: grade\(pairs\) gave 1 verdicts for 2"):
        sums("def grade(pairs): return [True]").grade(pairs)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("answer = 42", r"^mine/sums.py has no draw\(rng, steps\)"),
        ("def draw(rng, steps):\n    return 'x', 1, 'y'", "must return three texts"),
        ("def draw(rng, steps):\n    return 'x', '1', 'y'", "train wants 8 problems .* than 1:"),
    ],
)
def test_what_is_wrong_with_a_file_of_ones_own(sums, source, words):
    with pytest.raises(SettingsError, match=words):
        sums(source=source).sets()


def part(**changes):
    usual = {"kind": "trail", "problems": 4, "steps": [4]}
    one = {key: value for key, value in {**usual, **changes}.items() if value is not None}
    return {"data": {"train": [one], "validation": [one], "benchmarks": {"trail": one}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "poetry"}, "^scales.smoke: there is no task 'poetry': choose from modular, "),
        (
            {"task": "mine/none.py"},
            "^scales.smoke: there is no task 'mine/none.py': .* that exists",
        ),
        ({"data": {}}, r"^scales.smoke.data.train: missing; add it"),
        (part(kind="story"), r"data.train.0.kind: there is no kind of problem 'story': .* trail"),
        (part(kind=None), r"data.train.0.kind: .* choose from chain, trail"),
        (part(options={"flag": 1}), r"data.train.0.options: .*'flag'.* local_share, unknown"),
        (part(options={"unknown": 2}), r"data.train.0.options.unknown: .* not 2"),
        (part(kind="chain", options={"unknown": 1}), r"no such option 'unknown'"),
        (part(steps=[]), r"data.train.0.steps"),
        (part(steps=[10**6]), r"data.train.0.steps.0: .* 1000"),
        (part(problems=True), r"data.train.0.problems: .* not 'True'"),
        (part(problems=10**12), r"data.train.0.problems: .* less than or equal to 10000000"),
        ({"data": part()["data"] | {"validation": []}}, r"data.validation: .* at least 1 item"),
        (part(task="trail"), r"data.train.0.task: unknown key"),
        ({"pretraining": {"shape": {}}}, r"^scales.smoke.pretraining.tokens_per_step: missing"),
        (
            {"task": "math", "pretraining": {"shape": {}}, **part(kind=None)},
            r"pretraining: math has no language",
        ),
    ],
)
def test_what_is_wrong_in_params_yaml(project, changes, words):
    with pytest.raises(SettingsError, match=words):
        of_scale(**changes)
    with pytest.raises(SettingsError, match=words):
        tasks.check("smoke", load().scales["smoke"].model_copy(update=changes))


def test_only_who_knows_the_first_wrong_step_can_cut_there(sums):
    methods = load().scales["smoke"].methods
    cut = next(name for name, method in methods.items() if method.trajectory == "y_o_cut")
    for name in ("smoke", "smoke-code"):
        assert of_scale(name, method=cut).first_wrong
    with pytest.raises(SettingsError, match=r"task mine/sums.py does not know the first wrong"):
        sums(method=cut)


def test_a_typed_problem(project, sums):
    for name, text in (("smoke", "Compute:6o-6"), ("smoke-code", "f(x): a add 3")):
        row = of_scale(name, "opsd").problem(f" {text}\n")
        assert list(row) == sets.COLUMNS and row["problem"] == text
        assert of_scale(name).grade([(row["solution"], row)]) == [True]
    with pytest.raises(SettingsError, match="write a chain"):
        of_scale().problem("1 + 1")
    row = sums().problem(" What is 1 + 1? ")
    assert (row["problem"], row["answer"], row["solution"]) == ("What is 1 + 1?", "", "")
    given = sums(mode="opsd").problem("What is 1 + 1?", "2", "It is 2.")
    assert (given["answer"], given["solution"]) == ("2", "It is 2.")
    with pytest.raises(SettingsError, match="mode opsd the teacher needs a solution"):
        sums(mode="opsd").problem("What is 1 + 1?")
    with pytest.raises(SettingsError, match="there is no problem"):
        sums().problem(" ")


def test_a_set_has_the_one_schema():
    frame = pd.DataFrame([("a-0", "a", "p", "1", ""), ("a-1", "a", "q", "2", "")])
    frame.columns = sets.COLUMNS
    assert sets.check({"a": frame})["a"] is frame
    for bad, words in (
        (frame.drop(columns="id"), "a: 2 rows of .* not of"),
        (frame.iloc[:0], "a: 0 rows"),
        (frame.assign(answer=["1", " "]), "a: row 1 has no answer"),
    ):
        with pytest.raises(ValueError, match=words):
            sets.check({"a": bad})
    for bad in ({"a": frame, "b": frame.iloc[1:]}, {"b": frame.assign(problem="q")}):
        with pytest.raises(ValueError, match=r"the problem 'q' stands twice, as .* and .*"):
            sets.check(bad)
