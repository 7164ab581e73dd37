"""Code tasks: what is read from a response, the benchmarks' rules, their files in the schema."""

import base64
import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import pickle
import threading
import types
import zlib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from evalplus_cases import TASKS, by_evalplus

from trdlib import sandbox, store, tasks
from trdlib.run import get_run
from trdlib.sandbox.jail import pack
from trdlib.settings import SettingsError
from trdlib.tasks import code, hub, oracles
from trdlib.tasks import sets as schema


@pytest.fixture(autouse=True, scope="module")
def protected():
    found = sandbox.protection()
    if not found.safe:
        pytest.skip(f"nothing protects this machine from programs: {found.why}")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Where no verdict is on file."""
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------------- extraction

ONE = "```python\nx = 1\n```"
RESPONSES = {
    "a block": (ONE, "x = 1"),
    "prose around it": (f"Sure!\n\n{ONE}\n\nThis sets `x`.", "x = 1"),
    "the last of several": (f"First:\n{ONE}\nBetter:\n```python\nx = 2\n```", "x = 2"),
    "the last that is Python": (f"{ONE}\nRun it:\n```bash\npython x.py\n```", "x = 1"),
    "Python before no language": (f"{ONE}\nIt prints:\n```\n1\n```", "x = 1"),
    "no language": ("```\nx = 1\n```", "x = 1"),
    "another name, a title": ("```Python3 title=x.py\nx = 1\n```", "x = 1"),
    "py": ("``` py\nx = 1\n```", "x = 1"),
    "tildes": ("~~~python\nx = 1\n~~~", "x = 1"),
    "a longer fence": ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
    "another sign inside": ("```python\n~~~\n```", "~~~"),
    "a fence with words does not close": ("```python\nx = 1\n```python\ny = 2\n```",
                                          "x = 1\n```python\ny = 2"),
    "indented, in a list": ("1. So:\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
    "less indented than its fence": ("  ```python\nx = 1\n  ```", "x = 1"),
    "blank lines stay": ("```python\nx = 1\n\n\ny = 2\n```", "x = 1\n\n\ny = 2"),
    "Windows": ("```python\r\nx = 1\r\n```\r\n", "x = 1"),
    "after thinking": (f"<think>\n```python\nx = 0\n```\n</think>\n{ONE}", "x = 1"),
    "only in thinking": (f"<think>{ONE}</think> The answer is above.", None),
    "thinking that never ends": (f"<think>Try:\n{ONE}\n", None),
    "only the end of thinking": (f"Try y.\n</think>\n{ONE}", "x = 1"),
    "unclosed": ("```python\nx = 1\n", None),
    "unclosed after a whole one": (f"{ONE}\nOr:\n```python\nx = 2\ny =", "x = 1"),
    "no block": ("x = 1", None),
    "a docstring's fence": (
        '```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1\n```',
        'def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1',
    ),
    "a fence behind a tab": ("```python\nx = 1\n\t```\n \t```\n```", "x = 1\n\t```\n \t```"),
    "three columns in": ("```python\nx = 1\n   ```", "x = 1"),
    "a docstring's fence, in a list": (
        "1. So:\n\n   ```python\n   def f():\n       '''\n       ```\n       '''\n   ```",
        "def f():\n    '''\n    ```\n    '''",
    ),
    "Windows, a docstring's fence": ("```python\r\ns = '''\r\n    ```\r\n'''\r\n```\r\n",
                                     "s = '''\n    ```\n'''"),
    "tildes in tildes": ("~~~~python\nx = 1\n~~~\ny\n~~~~", "x = 1\n~~~\ny"),
    "an info string with a backtick": ("~~~python `x`\nx = 1\n~~~", "x = 1"),
    "and between backticks": ("```python `x`\nx = 1\n```", None),
    "a version": ("```python3.11\nx = 1\n```", "x = 1"),
    "another language that begins like it": ("```pycon\n>>> x\n```", None),
    "a program in a text": ("````markdown\n```python\nx = 1\n```\n````", None),
    "inline": ("Use `x = 1` or ```x = 1```.", None),
    "empty": ("```python\n\n```", None),
    "nothing": ("", None),
    "another language alone": ("```cpp\nint x;\n```", None),
}  # fmt: skip


@pytest.mark.parametrize("name", RESPONSES)
def test_the_program_of_a_response(name):
    response, program = RESPONSES[name]
    assert code.program_of(response) == program


# ------------------------------------------------------------------------------------ EvalPlus


def table(format, files, folder, rows):
    """The set of these files of one's own, in the schema, large tests in a folder."""
    one = hub.HubSet(format=format, files=[*map(str, files)], rows=rows)
    records = functools.partial(code._records, folder=folder)
    frame, about = hub.load(one, None, records)
    return schema.check({format: frame})[format], about


def grade(pairs, **how):
    """code.grade of (response, answer), where no tests are kept in files."""
    run = types.SimpleNamespace(data=Path("nowhere"))
    return code.grade(run, [(text, {"answer": answer}) for text, answer in pairs], **how)


@pytest.fixture(scope="module")
def evalplus(tmp_path_factory):
    """task_id -> answer, for the stand-ins of both suites, from files of EvalPlus's format."""
    folder, frames = tmp_path_factory.mktemp("evalplus"), []
    (folder / "params.yaml").touch()
    for suite, suffix in (("humaneval", ".jsonl.gz"), ("mbpp", ".jsonl")):
        chosen = [t.row() for t in TASKS if t.suite == suite]
        lines = "".join(json.dumps(row) + "\n" for row in chosen).encode()
        path = folder / f"{suite}{suffix}"
        path.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
        with contextlib.chdir(folder):
            frames.append(table(suite, [path], folder, len(chosen))[0])
    frame = pd.concat(frames, ignore_index=True)
    assert frame["id"].tolist() == [t.task_id for t in TASKS]
    return dict(zip(frame["id"], zip(frame["answer"], frame["solution"], strict=True), strict=True))


def test_agreement_with_evalplus(evalplus, monkeypatch):
    """Its recorded verdict on each solution is ours, but where we differ on purpose."""
    monkeypatch.setitem(code.SECONDS, "humaneval", 1)
    pairs, expected = [], {}
    for task in TASKS:
        for number, (recorded, program) in enumerate(task.solutions):
            pairs.append((f"```python\n{program}\n```", evalplus[task.task_id][0]))
            expected[task.task_id, number] = (recorded == "pass") != (number in task.differs)
    verdicts = dict(zip(expected, grade(pairs), strict=True))
    assert len(verdicts) >= 90
    assert {k: v for k, v in verdicts.items() if v != expected[k]} == {}


def test_the_record_is_what_evalplus_says():
    pytest.importorskip("evalplus", reason="evalplus is not installed: the record stands")
    for task in TASKS:
        for recorded, program in task.solutions:
            assert by_evalplus(task, program) == recorded


def test_references_pass(evalplus):
    answers = [evalplus[task.task_id] for task in TASKS]
    assert grade([(solution, answer) for answer, solution in answers]) == [True] * len(TASKS)


def test_the_arguments_of_mbpp_have_their_types():
    for task, published, meant in [
        (2, [[1], [2]], [(1,), (2,)]),
        (63, [[[1, 2]]], [[(1, 2)]]),
        (75, [[[1]], 2], [[(1,)], 2]),
        (106, [[1], [2]], [[1], (2,)]),
        (115, [[[1], [], 3]], [[{1}, {}, {}]]),
        (124, ["1.5", "2j"], [1.5, 2j]),
        (250, [[1], 2], [(1,), 2]),
        (259, [[[1]], [[2]]], [((1,),), ((2,),)]),
        (278, [[1, [2]]], [(1, (2,))]),
        (307, [[1], 2, 3], [(1,), 2, 3]),
        (722, [{"a": [1]}, 2.0], [{"a": (1,)}, 2.0]),
        (252, ["1+2j"], [1 + 2j]),
        (580, [[1, [2]]], [(1, (2,))]),
        (3, [[1]], [[1]]),
    ]:
        (got,) = code.mbpp_arguments(f"Mbpp/{task}", [published])
        assert repr(got) == repr(meant), task


def test_a_reference_that_fails_is_said_loudly(project):
    row = TASKS[0].row() | {"canonical_solution": "    return 1 / 0\n"}
    (project / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(SettingsError, match=r"HumanEval/9000.*ZeroDivisionError"):
        table("humaneval", ["x.jsonl"], project, 1)
    (project / "x.jsonl").write_text(json.dumps({"task_id": "x"}))
    with pytest.raises(SettingsError, match=r"humaneval: .* no column 'base_input'"):
        table("humaneval", ["x.jsonl"], project, 1)


def test_a_release_is_fetched_once_and_must_be_the_pinned_one(project, monkeypatch):
    """From a server that has the release, then without it; a root stands in for both."""
    lines = "".join(json.dumps(t.row()) + "\n" for t in TASKS if t.suite == "mbpp").encode()
    packed, asked = gzip.compress(lines), []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            there = self.path.endswith("/v0.2.0/MbppPlus.jsonl.gz")
            self.send_response(200 if there else 404)
            self.end_headers()
            self.wfile.write(packed if there else b"")

        def log_message(self, *_):
            pass

    (source,), digest = hub.SOURCES["mbpp"], hashlib.sha256(packed).hexdigest()
    place = project / "data" / "downloads" / source.repo / "v0.2.0" / source.file
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(hub, "GITHUB", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(SettingsError, match=r"cannot be fetched \(HTTPError\)"):
            hub.fetch(source._replace(file="other"), None)
        with pytest.raises(SettingsError, match=r"is not evalplus/mbppplus_release v0.2.0: del"):
            hub.read(source, None)
        server.shutdown()
    assert place.read_bytes() == packed
    rows, found = hub.read(source._replace(sha256=digest), None)
    assert found == digest and len(rows) == sum(t.suite == "mbpp" for t in TASKS)
    assert [path.rpartition("/")[2] for path in asked] == ["other", "MbppPlus.jsonl.gz"]
    with pytest.raises(SettingsError, match="stand_in/evalplus/mbppplus_release/MbppPlus"):
        hub.read(source, "stand_in")


# ------------------------------------------------------------------------------- LiveCodeBench

SAME = [
    ("3", "3\n", True),
    ("3 4\n5", " 3 4 \n 5 \n\n", True),
    ("1.50", "1.5", True),
    ("1e2 007", "100 7", True),
    ("0.1", "0.10000000000000001", False),
    ("50000000000000000", "50000000000000001", False),
    ("3  4", "3 4", True),  # numbers, one by one
    ("a  b", "a b", False),
    ("3", "3\n4", False),
    ("3\n\n4", "3\n4", False),
    ("Yes", "YES", False),
    ("", "", True),
    ("nan", "nan", True),
    ("NaN 1", "nan 1", False),
    ("snan", "1", False),
    ("1 2", "1", False),
]


@pytest.mark.parametrize(("got", "want", "same"), SAME)
def test_outputs_compare_as_in_livecodebench(got, want, same):
    assert oracles.same_output(got, want) is same


def lcb(name, tests, starter="", function=None, private="zipped"):
    """A row of its published shape."""
    kind = "functional" if function else "stdin"
    tests = [{"input": i, "output": o, "testtype": kind} for i, o in tests]
    hidden = json.dumps(tests[1:])
    if private == "zipped":
        hidden = base64.b64encode(zlib.compress(pickle.dumps(hidden))).decode()
    return {
        "question_title": name, "question_content": f"Solve {name}.", "platform": "leetcode",
        "question_id": name, "contest_id": "1", "contest_date": "2025-01-01T00:00:00",
        "starter_code": starter, "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]), "private_test_cases": hidden,
        "metadata": json.dumps({"func_name": function} if function else {}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def livecodebench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lcb")
    (folder / "params.yaml").touch()
    many = [(str(i), str(i + 1)) for i in range(5)]
    starter = "class Solution:\n    def pairs(self, n: int, xs: List[int]) -> List[int]:\n        "
    calls = [("2\n[1, 2]", "[1, 2]"), ("1\n[5]", "[5]"), ("0\n[]", "[]")]
    large = [("1", "2"), ("x" * 60_000, "2")]
    first = [lcb("inc", many), lcb("pairs", calls, starter, "pairs", private="plain")]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in first))
    (folder / "test2.jsonl").write_text(json.dumps(lcb("large", large)))
    paths = [folder / "test.jsonl", folder / "test2.jsonl"]
    with contextlib.chdir(folder):
        frame, _ = table("livecodebench", paths, folder / "tests", 3)
    return frame.set_index("id"), folder / "tests"


def test_livecodebench_in_the_schema(livecodebench):
    frame, folder = livecodebench
    assert frame.index.tolist() == ["inc", "pairs", "large"]
    inc = code.tests_of(frame.loc["inc", "answer"])
    assert inc["cases"] == [[str(i), str(i + 1)] for i in range(5)]  # public and private
    assert "standard input" in frame.loc["inc", "problem"]
    assert "def pairs(self" in frame.loc["pairs", "problem"]
    large = frame.loc["large", "answer"]
    assert json.loads(large)["kind"] == "file"
    assert len(code.tests_of(large, folder)["cases"][1][0]) == 60_000
    with pytest.raises(ValueError, match="is missing: run notebook 1_prepare"):
        code.tests_of(large, folder.parent)


@pytest.mark.parametrize(
    ("name", "program", "passes"),
    [
        ("inc", "print(int(input()) + 1)", True),
        ("inc", "import sys\nfor line in sys.stdin: print(float(line) + 1)", True),
        ("inc", "print(int(input()) + 1 if int(input() or 0) < 4 else 0)", False),
        ("inc", "n = int(input())\nprint(n + 1 if n < 3 else n)", False),
        ("inc", "def main():\n    print(floor(int(input())) + 1)\nif __name__ == '__main__':\n"
                "    main()", True),
        ("inc", "print(int(open(0).read()) + 1); exit()", True),
        ("inc", "print(int(input()) + 1); 1 / 0", False),
        ("inc", "import os\nprint(int(input()) + 1, flush=True); os.kill(os.getppid(), 9)", False),
        ("large", "print(2)", True),
        ("pairs", "class Solution:\n    def pairs(self, n, xs: List[int]): return xs[:n]", True),
        ("pairs", "class Solution:\n    def pairs(self, n, xs): return tuple(xs)", True),
        ("pairs", "def pairs(n, xs): return xs", True),
        ("pairs", "class Solution:\n    def pairs(self, n, xs): return [*map(str, xs)]", False),
        ("pairs", "class Solution:\n    def pairs(self, n, xs): return xs if n else None", False),
        ("pairs", "class Solution:\n    def other(self, n, xs): return xs", False),
    ],
)  # fmt: skip
def test_livecodebench_is_graded_by_all_tests(livecodebench, name, program, passes):
    frame, folder = livecodebench
    assert code.verdict(program, frame.loc[name, "answer"], folder).passed is passes


def test_a_pickle_that_would_do_something_is_refused():
    class Evil:
        def __reduce__(self):
            return print, ("pickles can call functions",)

    for value in (Evil(), print, [Evil()]):
        packed = base64.b64encode(zlib.compress(pickle.dumps(value))).decode()
        with pytest.raises(SettingsError, match=r"builtins\.print: not plain data"):
            code.private_tests(packed)
    with pytest.raises(SettingsError, match="cannot be read"):
        code.private_tests("@@@")


# ----------------------------------------------------------------------------------------- TACO


def taco_row(inputs, outputs, fn_name=None, solutions=("print(1)",), starter="", raw=None):
    tests = {"inputs": inputs, "outputs": outputs} | ({"fn_name": fn_name} if fn_name else {})
    return {
        "question": "Solve it.", "solutions": json.dumps(list(solutions)), "starter_code": starter,
        "input_output": json.dumps(tests) if raw is None else raw, "difficulty": "EASY",
    }  # fmt: skip


def test_taco_in_the_schema_and_graded(project):
    rows = [
        taco_row(["1\n", ["2"]], ["2\n", ["3"]], solutions=["n = int(input())\nprint(n + 1)"]),
        taco_row(
            [[1, [2]], [0, []]], [[[1, 2]], [[0]]], "join", ["def join(n, xs): return [n]+xs"]
        ),
        taco_row([[[1, 2]]], [[[[1, 2]]]], "rows", starter="def rows(xs):"),
        taco_row([[{"1": 2}]], [[2]], "look"),
        taco_row([], []),
        taco_row(["1"], []),
        taco_row([], [], raw=""),
        taco_row([], [], raw="{"),
        taco_row(["1"], ["2"]) | {"question": " "},
    ]
    pd.DataFrame(rows[:3]).to_parquet("a.parquet")
    pd.DataFrame(rows[3:]).to_parquet("b.parquet")
    frame, about = table("taco", ["a.parquet", "b.parquet"], project, 9)
    assert frame["id"].tolist() == ["TACO-0", "TACO-1", "TACO-2", "TACO-3"]
    left_out = {"without_tests": 2, "broken_tests": 2, "without_question": 1, "left_out": 5}
    assert about.items() >= (left_out | {"rows": 9, "repo": None}).items()
    assert "def rows(xs):" in frame["problem"][2]
    answers = frame["answer"].tolist()
    assert grade(list(zip(frame["solution"][:2], answers[:2], strict=True))) == [True, True]
    for number, program, passes in [
        (0, "print(int(input()) + 1)", True),
        (0, "print(2)", False),
        (1, "def join(n, xs): return (n, *xs)", True),
        (1, "def join(n, xs): return xs", False),
        (2, "def rows(xs): return [tuple(xs)]", True),
        (2, "def rows(xs): return [[2, 1]]", False),
        (3, "def look(d): return d[1]", True),
        (3, "def look(d): return d['1']", False),
    ]:
        assert code.verdict(program, answers[number]).passed is passes, (number, program)


# ----------------------------------------------------------------------------------------- a run


@pytest.fixture
def coded(project):
    """A scale whose code task reads files of the published formats, and one of our own."""
    folder = Path("mine")
    folder.mkdir()
    rows = [
        taco_row(["5\n"], [f"{5 + k}\n"], solutions=[f"print(int(input()) + {k})"], starter=f"#{k}")
        for k in (1, 2, 3, 4)
    ]
    long = "7" * code.INLINE
    rows += [taco_row([long], [long], solutions=["print(input())"]), taco_row([], [])]
    pd.DataFrame(rows).to_parquet(folder / "taco.parquet")
    plus = [t for t in TASKS if t.suite == "humaneval"]
    store.write_text(folder / "plus.jsonl", "".join(json.dumps(t.row()) + "\n" for t in plus))
    tests = {"kind": "asserts", "tests": "assert f(1) == r'\\boxed{2}'"}
    own = {"problem": "Box 2.", "answer": json.dumps(tests)}
    store.write_text(folder / "own.jsonl", json.dumps(own))
    params = yaml.safe_load(Path("params.yaml").read_text())
    short = {"max_new_tokens": 40}
    params["scales"]["mine"] = {
        "task": "code", "modes": ["opsd"], "seeds": [0],
        "models": {"student": "models/tiny/0/student", "backend": "transformers",
                   "dtype": "float32", "style": "code"},
        "rollout": short, "refinement": short, "evaluation": {"sampling": short},
        "data": {
            "train": {"format": "taco", "rows": 6, "files": ["mine/taco.parquet"]},
            "validation_problems": 1, "require_solution": True,
            "benchmarks": {
                "plus": {"format": "humaneval", "rows": len(plus), "files": ["mine/plus.jsonl"]},
                "own": {"file": "mine/own.jsonl", "rows": 1},
            },
        },
    }  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return tasks.of(get_run("mine", "opsd"))


def test_a_run_from_published_files(coded):
    """Prepared, and graded by the tests of each problem."""
    sets = coded.sets()
    assert {name: len(frame) for name, frame in sets.items()} == coded.sizes() | {"train": 4}
    train = coded.notes["sources"]["train"]
    assert train["without_tests"] == train["left_out"] == 1
    assert set(coded.files()) == {"mine/taco.parquet", "mine/plus.jsonl", "mine/own.jsonl"}
    rows = [row for frame in sets.values() for row in frame.to_dict("records")]
    own = "```python\ndef f(x): return r'\\boxed{2}'\n```"
    said = [own if row["id"] == "own-0" else row["solution"] for row in rows]
    assert coded.grade(list(zip(said, rows, strict=True))) == [True] * len(rows)
    assert sum("kind" in row["answer"] and '"file"' in row["answer"] for row in rows) == 1
    assert not any(coded.grade(list(zip(said, rows[1:] + rows[:1], strict=True))))
    Path("mine/own.jsonl").write_text(json.dumps({"problem": "Box 2.", "answer": "2"}))
    with pytest.raises(SettingsError, match=r"^mine/own.jsonl, .*: an answer without"):
        coded.sets()
    Path("mine/taco.parquet").unlink()
    with pytest.raises(SettingsError, match=r"^mine/taco.parquet does not exist: put it there"):
        coded.sets()


def test_what_is_prepared_is_kept_until_something_changes(coded, monkeypatch):
    first, folder = coded.sets(), coded.run.data / "tests"
    read, taco = [], code._taco
    monkeypatch.setattr(code, "_taco", lambda *a: read.append(a) or taco(*a))
    assert all(coded.sets()[name].equals(frame) for name, frame in first.items())
    assert not read
    next(folder.iterdir()).unlink()  # what the tests of one problem lie in
    coded.sets()
    assert len(read) == 1 and list(folder.iterdir())
    table = pd.read_parquet("mine/taco.parquet")
    table.loc[0, "question"] = "Another question?"
    table.to_parquet("mine/taco.parquet")
    again = coded.sets()
    assert len(read) == 2
    asked = pd.concat([again["train"], again["validation"]])["problem"]
    assert asked.str.startswith("Another question?").sum() == 1
    table["question"] = ["Again?"] * 3 + ["A long one. " * 400] + [""] * 2
    table["starter_code"] = ""
    table.to_parquet("mine/taco.parquet")
    with pytest.raises(SettingsError, match=r"1 problems are left .*1 too long.* and 2 are wanted"):
        coded.sets()
    row = {"problem": "Long. " * 400, "answer": store.read_json("mine/own.jsonl")["answer"]}
    store.write_text("mine/own.jsonl", json.dumps(row))
    with pytest.raises(SettingsError, match=r"own: 1 .*own-0 the first, "):
        coded.sets()


# --------------------------------------------------------------------------------------- grading


def test_grade_keeps_the_order_and_runs_equal_programs_once(project, monkeypatch):
    answer = json.dumps({"kind": "asserts", "tests": "assert f(2) == 4"})
    right, wrong = "```python\ndef f(x): return 2 * x\n```", "```python\ndef f(x): return 0\n```"
    ran, real = [], code.verdict
    monkeypatch.setattr(code, "verdict", lambda *a: ran.append(a) or real(*a))
    pairs = [(right, answer), (wrong, answer), ("", answer), (f"So:\n{right}", answer)]
    for _ in range(2):
        assert grade(pairs) == [True, False, False, True]
    assert len(ran) == 2
    assert grade([(right, answer.replace("4", "5"))]) == [False]
    assert len(ran) == 3
    monkeypatch.setitem(code._WRITTEN, "preludes", {})  # another code.yaml is another grader
    assert grade(pairs) == [True, False, False, True] and len(ran) == 5


LONG = "9" * 4999


@pytest.mark.parametrize("rule", ["livecodebench", "taco"])
def test_integers_of_thousands_of_digits(rule, project):
    """Read, printed, passed and returned; from files in which they are JSON's numbers too."""
    answer = json.dumps({"kind": "stdin", "rule": rule, "cases": [[LONG, f"1{'0' * 4999}"]]})
    assert code.verdict("print(int(input()) + 1)", answer) == (True, "")
    assert not code.verdict("print(int(input()) + 2)", answer).passed
    if rule == "livecodebench":
        rows = [lcb("f", [(LONG, str(int(LONG) + 1))] * 2, "", "f"), lcb("s", [(LONG, "1")] * 2)]
        assert "50000" in code.verdict("print(10**50000)", answer).reason  # its own limit
    else:
        raw = f'{{"fn_name": "f", "inputs": [[{LONG}]], "outputs": [{int(LONG) + 1}]}}'
        lines = f'{{"inputs": [[{LONG}]], "outputs": ["1"]}}'
        rows = [taco_row([], [], raw=raw), taco_row([], [], raw=lines)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frame, about = table(rule, ["rows.jsonl"], project, 2)
    assert about.get("broken_tests", 0) == 0
    calls, script = frame["answer"]
    assert code.verdict("def f(x): return x + 1", calls) == (True, "")
    assert code.verdict(f"print(int(int(input()) == {LONG}))", script) == (True, "")


@pytest.mark.parametrize("kind", ["stdin", "calls"])
@pytest.mark.parametrize("rule", ["livecodebench", "taco"])
def test_what_fails_there_fails_here(rule, kind):
    """The list at the top of code.yaml: both put imports in front of every program."""
    program = "from __future__ import annotations\ndef f(x): return x\nprint(f(input()))"
    tests = {"kind": kind, "rule": rule, "entry": "f", "cases": [["1", "1"]]}
    if kind == "calls":
        program, tests["cases"] = program.rpartition("\n")[0], [[["1"], "1"]]
    assert "from __future__" in Path(code.__file__).with_suffix(".yaml").read_text()
    assert "SyntaxError: from __future__" in code.verdict(program, json.dumps(tests)).reason
    assert code.verdict(program.partition("\n")[2], json.dumps(tests)).passed


def test_tests_that_cannot_judge_are_refused_when_they_are_prepared(project):
    """By row, and not in the middle of grading; those that hand over their own can judge."""
    answer = json.dumps({"kind": "asserts", "tests": "class A: pass\nassert f(A())"})
    response = "```python\ndef f(x): return True\n```"
    assert grade([(response, answer), (response.replace("True", "0"), answer)]) == [True, False]
    one = hub.HubSet(file="own.jsonl", rows=2)
    for tests, why in (
        ("assert f(", "do not compile"),
        ("assert 1 == 1", "never call the program"),
    ):
        rows = [answer, {"kind": "asserts", "tests": tests}]
        lines = [json.dumps({"problem": "A?", "answer": row}) for row in rows]
        store.write_text("own.jsonl", "\n".join(lines))
        with pytest.raises(SettingsError, match=f"own.jsonl, row 1, column 'answer': .*{why}"):
            hub.load(one, None, functools.partial(code._records, folder=project))


def test_a_call_that_takes_too_long_fails_before_the_whole_limit(monkeypatch):
    monkeypatch.setitem(code.SECONDS, "taco", 0.3)
    cases = [[pack([0]), 0], [pack([1]), 1]]
    answer = json.dumps({"kind": "calls", "rule": "taco", "entry": "f", "cases": cases})
    found = code.verdict("def f(x):\n    while x: pass\n    return x", answer)
    assert not found.passed and "took too long" in found.reason


@pytest.mark.parametrize(
    "answer",
    ['{"kind": "calls", "rule": "taco", "entry": "f", "cases": []}', '{"kind": "x", "cases": [1]}',
     '{"kind": "evalplus", "groups": [[], []]}', "{}", "12", "assert f(1) == 2", "[]"],
)  # fmt: skip
def test_an_answer_without_tests_passes_nobody(answer):
    with pytest.raises(ValueError, match="without tests"):
        grade([("```python\nx = 1\n```", answer)])


@pytest.mark.parametrize(
    ("tests", "lacks"),
    [({"kind": "stdin", "cases": [["1", "2"]]}, "rule"),
     ({"kind": "calls", "rule": "taco", "cases": [[[1], 2]]}, "entry"),
     ({"kind": "stdin", "rule": "x", "cases": [["1", "2"]]}, "rule")],
)  # fmt: skip
def test_incomplete_tests_are_named(tests, lacks):
    with pytest.raises(ValueError, match=f"^tests of kind {tests['kind']} without a valid {lacks}"):
        code.tests_of(json.dumps(tests))


def test_sources_are_pinned_to_commits_or_hashes():
    for one in (source for sources in hub.SOURCES.values() for source in sources):
        assert one.sha256 or len(one.revision) == 40
