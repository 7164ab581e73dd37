"""Published problem sets, on small files of the published shapes: nothing here needs the hub.

The files have the names, formats, columns and (for the benchmarks) row counts of the real ones; the
train set is smaller. The hub itself is stood in for by a server that speaks its protocol.
"""

import http.server
import json
import shutil
import threading
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY

from trdlib import store, tasks
from trdlib.run import get_run
from trdlib.settings import SettingsError, load
from trdlib.tasks import hub, math
from trdlib.tasks import sets as schema

TRAIN = 40  # rows of the stand-in for DeepScaleR
QWEN = ("qwen3-1.7b", "qwen3-4b", "qwen3-4b-instruct", "qwen3-8b")


@pytest.fixture(scope="module")
def shipped():
    return hub.section(load(REPOSITORY / "params.yaml").scales["qwen3-1.7b"])


def published(settings):
    """name -> rows as they are published."""

    def train(i, problem=None, answer=None, solution=None):
        return {
            "problem": problem or f"Find the {i}-th train number $n_{{{i}}}$.",
            "answer": f"\\frac{{{i}}}{{7}}" if answer is None else answer,
            "solution": f"It is {i}/7." if solution is None else solution,
        }

    rows = [train(i) for i in range(TRAIN)]
    rows[3] = train(3, "  find THE 1-st aime24 \\, value of $x+1.5$ ")  # as aime24, written freely
    rows[4] = train(4, "Find the 2-th  prompt of \\left( a \\right) amo!")  # as amobench
    rows[5] = train(5, "Find the 6-th train number $ n_6 $")  # as row 6
    rows[7] = train(7, answer=" ")
    rows[8] = train(8, solution="")
    rows[9] = train(9, solution="  ")
    types = ["description"] * 11 + ["number"] * 34 + ["set"] * 3 + ["variable"] * 2
    return {
        "train": rows,
        "aime24": [
            {
                "id": i,
                "problem": f"Find the {i}-st AIME24 value of \\(x+1.5\\).",
                "solution": f"\\boxed{{{200 + i}}}",
                "url": f"https://example.org/{i}",
            }
            for i in range(30)
        ],
        "aime25": [
            {"problem": f"AIME25 {i}?", "answer": f"{i:03d}", "id": str(i)} for i in range(30)
        ],
        "hmmt25": [{"problem": f"HMMT {i}?", "answer": f"$\\frac{{{i}}}{{3}}$"} for i in range(30)],
        "beyondaime": [{"problem": f"Beyond {i}?", "answer": 10**9 + i} for i in range(100)],
        "amobench": [
            {
                "question_id": i + 1,
                "prompt": f"Find the {i}-th prompt of (a) AMO.",
                "solution": f"Since {i}.",
                "answer": f"$\\boxed{{y=n^{{{i}}}}}$",
                "answer_type": types[(i * 7) % 50],
            }
            for i in range(50)
        ],
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def write_all(root, settings, rows):
    for name, one in {"train": settings.train, **settings.benchmarks}.items():
        write(root / one.repo / one.file, rows[name])


@pytest.fixture
def settings(shipped, tmp_path, monkeypatch):
    """The shipped data section, its files in the folder `stand_in` of the project."""
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    section = params["scales"]["qwen3-1.7b"]["data"]
    section["train"]["rows"] = TRAIN
    section.update(root="stand_in", train_problems=20, validation_problems=5)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    write_all(tmp_path / "stand_in", shipped, published(shipped))
    return hub.section(load().scales["qwen3-1.7b"])


def changed(settings, name, **update):
    if name == "train":
        return settings.model_copy(update={"train": settings.train.model_copy(update=update)})
    one = settings.benchmarks[name].model_copy(update=update)
    return settings.model_copy(update={"benchmarks": {**settings.benchmarks, name: one}})


def problem_sets(settings):
    read = lambda one, rows, _: hub.records(one, rows, math.plain_answer)  # noqa: E731
    return hub.problem_sets(settings, read)


# ---------------------------------------------------------------------------------- what comes out


def test_benchmarks_row_for_row(settings):
    sets, rows = problem_sets(settings)[0], published(settings)
    assert list(sets) == ["train", "validation", *settings.benchmarks]
    expected = {
        "aime24": ("math-ai/aime24", lambda row: str(200 + row["id"])),
        "aime25": ("math-ai/aime25", lambda row: row["answer"]),
        "hmmt25": ("PraMamba/HMMT-202502", lambda row: row["answer"].strip("$")),
        "beyondaime": ("ByteDance-Seed/BeyondAIME", lambda row: str(row["answer"])),
    }
    for name, (repo, answer) in expected.items():
        short = repo.split("/")[1]
        wanted = [
            [f"{short}-{i}", repo, row["problem"], answer(row), ""]
            for i, row in enumerate(rows[name])
        ]
        assert sets[name].values.tolist() == wanted
        assert list(sets[name].columns) == schema.COLUMNS


def test_the_benchmarks_of_the_successors(settings, tmp_path):
    """By stand-ins of the published shapes: integers, LaTeX, choices within the problem, ids with
    slashes; what asks for a letter is asked behind each problem, and hides no train problem."""
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    small = {"root": "stand_in", "train_problems": 20, "validation_problems": 5}
    data = params["scales"]["qwen3-8b-later"]["data"]
    data |= small | {"train": params["scales"]["qwen3-1.7b"]["data"]["train"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    later, choices = hub.section(load().scales["qwen3-8b-later"]), "(A) 1 (B) 2 (C) 3 (D) 4"
    twin = published(settings)["train"][20]["problem"]  # it stands in the train set
    rows = {
        "train": published(settings)["train"],
        "aime26": [{"problem_idx": i + 1, "problem": f"A {i}?", "answer": i} for i in range(30)],
        "hmmt26": [
            {"problem_idx": i, "problem": f"H {i}?", "answer": f"\\sqrt{{{i}}}"} for i in range(33)
        ],
        "gpqa_diamond": [
            {"question": f"G {i}? {choices}" if i else twin, "answer": "ABCD"[i % 4]}
            for i in range(198)
        ],
        "math500": [
            {"problem": f"M {i}?", "answer": str(i), "solution": "", "unique_id": f"test/{i}.json"}
            for i in range(500)
        ],
    }  # fmt: skip
    write_all(tmp_path / "stand_in", later, rows)
    run = get_run("qwen3-8b-later", "none", "base")
    sets, task = tasks.of(run).sets(), tasks.of(run)
    sizes = {"aime26": 30, "hmmt26": 33, "gpqa_diamond": 198, "math500": 500}
    assert {name: len(sets[name]) for name in later.benchmarks} == sizes
    ask = later.benchmarks["gpqa_diamond"].ask
    assert sets["gpqa_diamond"]["problem"].iloc[1] == f"G 1? {choices}\n\n{ask}"
    for name in later.benchmarks:
        wanted, got = rows[name][5], sets[name].iloc[5].to_dict()
        assert got["answer"] == str(wanted["answer"])
        said = {text: rf"So \boxed{{{text}}}" for text in (got["answer"], rows[name][6]["answer"])}
        assert task.grade([(text, got) for text in said.values()]) == [True, False], name
    assert sets["math500"]["id"].iloc[5] == "MATH-500-test/5.json"
    assert twin not in {*sets["train"]["problem"], *sets["validation"]["problem"]}


def test_amobench_is_the_39_without_descriptions(settings):
    got = problem_sets(settings)[0]["amobench"]
    kept = [r for r in published(settings)["amobench"] if r["answer_type"] != "description"]
    assert len(got) == 39
    assert sum(r["answer_type"] == "variable" for r in kept) == 2
    assert got["id"].tolist() == [f"AMO-Bench-{r['question_id']}" for r in kept]
    assert got["problem"].tolist() == [r["prompt"] for r in kept]
    assert got["answer"].tolist() == [f"y=n^{{{r['question_id'] - 1}}}" for r in kept]
    assert got["solution"].tolist() == [r["solution"] for r in kept]


def test_train_and_validation_are_what_is_left_and_it_is_counted(settings):
    everything = settings.model_copy(update={"train_problems": None})
    sets, found = problem_sets(everything)
    counts = {k: v for k, v in found["train"].items() if isinstance(v, int)}
    assert counts == {
        "rows": TRAIN, "left_out": 0, "without_problem_or_answer": 1, "without_solution": 2,
        "in_a_benchmark": 2, "twice": 1,
    }  # fmt: skip
    rows = published(settings)["train"]
    used = pd.concat([sets["train"], sets["validation"]]).sort_values("id", key=number)
    left = [i for i in range(TRAIN) if i not in (3, 4, 6, 7, 8, 9)]  # of 5 and 6 the first stays
    assert used["id"].tolist() == [f"DeepScaleR-Preview-Dataset-{i}" for i in left]
    assert used["problem"].tolist() == [rows[i]["problem"] for i in left]
    assert used["answer"].tolist() == [rows[i]["answer"] for i in left]
    assert used["solution"].tolist() == [rows[i]["solution"] for i in left]
    assert len(sets["validation"]) == 5
    for word in (False, "unfiltered"):
        optional, _ = problem_sets(everything.model_copy(update={"require_solution": word}))
        assert len(optional["train"]) == len(sets["train"]) + 2
        parts = pd.concat([optional["train"], optional["validation"]])
        assert (parts["solution"] == "").sum() == 2


def number(ids):
    return ids.str.rsplit("-", n=1).str[1].astype(int)


def test_the_draw_depends_on_the_texts_and_the_seed_only(settings, tmp_path):
    first, _ = problem_sets(settings)
    assert len(first["train"]) == 20
    rows = published(settings)
    one = settings.train
    kept = [r for r in reversed(rows["train"]) if r["problem"] != rows["train"][5]["problem"]]
    write(tmp_path / "stand_in" / one.repo / one.file, kept)
    again, _ = problem_sets(changed(settings, "train", rows=len(kept)))
    spelled = {hub.normal(p) for p in first["validation"]["problem"]}
    assert {hub.normal(p) for p in again["validation"]["problem"]} == spelled
    other, _ = problem_sets(changed(settings, "train", rows=len(kept)).model_copy(
        update={"seed": 1}))  # fmt: skip
    assert {hub.normal(p) for p in other["validation"]["problem"]} != spelled


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find  $x$.", "find x"),
        ("$a\\,+\\;b\\quad$", "\\(a + b\\)"),
        ("\\left(1, 2\\right)", "(1,2)"),
        ("Let $f$: what is \\dfrac{1}{2}?", "let f what is \\frac12"),
        ("It\u2019s ``five\u2019\u2019\n", "it's 'five'"),
    ],
)
def test_same_problem(one, other):
    assert hub.normal(one) == hub.normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a+b", "a-b"), ("1.5", "15"), ("(1,2)", "(12)"), ("\\leftarrow a", "\\rightarrow a"),
     ("n^2", "n2"), ("x<2", "x>2")],
)  # fmt: skip
def test_other_problem(one, other):
    assert hub.normal(one) != hub.normal(other)


@pytest.mark.parametrize(
    ("value", "answer"),
    [(42, "42"), ("\\boxed{204}", "204"), ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
     (" $50$ ", "50"), ("007", "007"), ("$a$ or $b$", "$a$ or $b$"), (None, ""),
     ("$\\boxed{\\{1, 2\\}}$", "\\{1, 2\\}")],
)  # fmt: skip
def test_plain_answer(value, answer):
    assert math.plain_answer(value) == answer


# ----------------------------------------------------------------------------- what may be wrong


def says(words, settings):
    with pytest.raises(SettingsError) as error:
        problem_sets(settings)
    message = str(error.value)
    assert words in message, message
    assert "\n" not in message
    assert ": " in message, "it says how to mend it"
    assert len(message) < 300


def test_a_wrong_column_names_what_is_there(settings):
    columns = {"problem": "question"}
    words = "test.jsonl has no column 'question' but answer, id, problem: correct columns"
    says(words, changed(settings, "aime25", columns=columns))
    says(
        "has no column 'kind' but answer, answer_type",
        changed(settings, "amobench", leave_out={"kind": "description"}),
    )


def test_a_changed_number_of_rows_that_are_kept(settings, tmp_path):
    one, rows = settings.benchmarks["amobench"], published(settings)["amobench"]
    next(r for r in rows if r["answer_type"] == "number")["answer_type"] = "description"
    write(tmp_path / "stand_in" / one.repo / one.file, rows)
    says("AMO-Bench has 50 rows, of which 38 are kept, not 50 and 39: the dataset", settings)


def test_broken_and_missing_files(settings, tmp_path):
    one = settings.benchmarks["aime24"]
    path = tmp_path / "stand_in" / one.repo / one.file
    path.write_bytes(b"<html>")
    says("math-ai/aime24: test-00000-of-00001.parquet is not a valid parquet file", settings)
    path.unlink()
    says(
        "stand_in/math-ai/aime24/test-00000-of-00001.parquet does not exist: put it there", settings
    )
    why = "of 40, 1 without problem or answer, 2 without solution, 2 in a benchmark, 1 twice"
    says(f"34 problems are left ({why}) and 5125 are wanted: lower train", settings_with_aime24(
        settings, path, train_problems=5120))  # fmt: skip


def settings_with_aime24(settings, path, **update):
    write(path, published(settings)["aime24"])
    return settings.model_copy(update=update)


def test_an_empty_answer_of_a_benchmark_is_an_error(settings, tmp_path):
    one, rows = settings.benchmarks["hmmt25"], published(settings)["hmmt25"]
    rows[7]["answer"] = None
    write(tmp_path / "stand_in" / one.repo / one.file, rows)
    with pytest.raises(ValueError, match="hmmt25: row 7 has no answer"):
        problem_sets(settings)


# ------------------------------------------------------------------- values and files of one's own

ROW = {"problem": "p", "answer": "5", "solution": "s"}


def own(path, content, **how):
    """[(problem, answer, solution), ...] of a file of one's own."""
    if isinstance(content, pd.DataFrame):
        content.to_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    one = hub.HubSet(file=path.name, rows=1, **how)
    rows, _ = hub.read(one.sources[0], None)
    return [tuple(found[2:]) for found in hub.records(one, rows, math.plain_answer)]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine(content, kind) -> as `own`, in a project."""
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return lambda content, kind="jsonl", **how: own(tmp_path / f"own.{kind}", content, **how)


def test_a_solution_is_read_where_its_column_has_its_name(mine):
    content = json.dumps(ROW | {"steps": "t"})
    assert mine(content) == [("p", "5", "s")]
    assert mine(content, columns={"solution": "steps"}) == [("p", "5", "t")]
    assert mine(content, columns={"answer": "solution"}) == [("p", "s", "")]  # it is the answer


LONG = "1" + "0" * 6000


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("5", "5"), ("1e-05", "1e-05"), ("0.50", "0.5"), ('" 5 "', "5"), (LONG, LONG),
        ("null", ""), ("NaN", ""), ('""', ""), ('"  "', ""),
        ("true", "a bool is neither text nor a number"), ("[1]", "a list is neither"),
        ('{"a": 1}', "a dict is neither"), ('[{"role": "user"}]', "a list is neither"),
        ("Infinity", "infinity is no answer"), ("-Infinity", "infinity is no answer"),
        ('"\\ud800"', "half a character"), ('"a\\u0000b"', "holds a NUL"),
    ],
)  # fmt: skip
def test_a_value_is_text_or_a_number_or_missing(mine, value, read):
    """The rule of docs/scales.md, for every column; row and column are named otherwise."""
    for column in ("answer", "problem", "solution"):
        line = json.dumps({**ROW, column: "@"}).replace('"@"', value)
        content, how = json.dumps(ROW) + "\n" + line, {"columns": {"solution": "solution"}}
        if " " not in read:
            found = mine(content, **how)[1]
            assert found == tuple(read if name == column else ROW[name] for name in ROW)
        else:
            with pytest.raises(SettingsError) as error:
                mine(content, **how)
            assert f"own.jsonl, row 1, column '{column}': " in str(error.value)
            assert read in str(error.value) and "\n" not in str(error.value)


def test_values_of_parquet_and_of_numpy(mine):
    import datetime
    import decimal

    import numpy as np

    def answer(value):
        return mine(pd.DataFrame({"problem": ["p"], "answer": [value]}), "parquet")[0][1]

    assert answer(1e-05) == "1e-05" and answer(7) == "7" and answer(float("nan")) == ""
    assert answer(decimal.Decimal("1.50")) == "1.50"
    for value in (True, b"5", [1], {"a": 1}, datetime.date(2026, 1, 2), pd.Timestamp("2026-01-02")):
        with pytest.raises(SettingsError, match=r"row 0, column 'answer': a \w+ is neither text"):
            answer(value)
    nested = pd.DataFrame({"problem": ["p"], "answer": ["5"], "more": [{"a": [1]}]})
    assert mine(nested, "parquet") == [("p", "5", "")]
    assert [hub.text(v) for v in (np.int64(5), np.float64(0.5), np.str_("x"))] == ["5", "0.5", "x"]
    for value in (np.bool_(True), np.array([1]), pd.NaT, pd.NA):
        with pytest.raises(ValueError, match="is neither text nor a number"):
            hub.text(value)


def test_files_as_people_have_them(mine):
    """A byte order mark, any ends of lines, blank lines, signs that end a line elsewhere."""
    line = json.dumps(ROW)
    for content in (
        b"\xef\xbb\xbf" + line.encode() + b"\n" + line.encode(), f"{line}\r\n{line}\r\n",
        f"{line}\r{line}", f"\n{line}\n\n  \n{line}\n\n",
    ):  # fmt: skip
        assert mine(content) == [("p", "5", "s")] * 2
    assert mine(json.dumps([ROW, ROW]), "json") == [("p", "5", "s")] * 2
    assert mine('{"problem": "a\u2028b", "answer": "5"}') == [("a\u2028b", "5", "")]


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (json.dumps(ROW).encode("utf-16"), "jsonl", "line 1: 'utf-8' codec"),
        (json.dumps(ROW).encode("utf-16-le"), "jsonl", "line 1: "),
        ('{"problem": "\u00e4", "answer": "5"}'.encode("latin-1"), "jsonl", "'utf-8' codec"),
        (bytes(range(256)), "jsonl", "line 1: "), ("", "jsonl", "it is empty"),
        (json.dumps(ROW) + "\n" + json.dumps(ROW) + ",", "jsonl", "line 2: Extra data"),
        (json.dumps(ROW)[:-1] + ",}", "jsonl", "line 1: "), ("[1]", "jsonl", "row 0 is no object"),
        ("{}", "json", "no list of rows"), ("[]", "json", "it is empty"), ("[" * 9999, "json", ""),
        (json.dumps([ROW, 5]), "json", "row 1 is no object"), (b"PAR1", "parquet", "4 bytes"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(mine, content, kind, words):
    with pytest.raises(SettingsError) as error:
        mine(content, kind)
    message = str(error.value)
    assert (
        message.startswith(f"own.{kind} is not a valid {kind} file of rows (") and words in message
    )
    assert "correct it, or fetch it again" in message and "\n" not in message


TWICE = '{"problem": "p", "answer": "5", "answer": "6"}'


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (f"{json.dumps(ROW)}\n{TWICE}", "jsonl", "line 2: the column 'answer' stands twice"),
        (f"[{json.dumps(ROW)}, {TWICE}]", "json", "(the column 'answer' stands twice)"),
        ('{"problem": {"a": 1, "b": [{"c": 1, "c": 1}]}}', "jsonl", "line 1: the column 'c'"),
    ],
)
def test_a_column_that_stands_twice_is_refused(mine, content, kind, words):
    """Python's reader takes the last one."""
    with pytest.raises(SettingsError, match=rf"^own.{kind} is not a valid .*{words}"):
        mine(content, kind)


def test_a_column_that_stands_twice_in_a_table(mine, tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table([["p"], ["5"], ["6"]], names=["problem", "answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SettingsError, match=r"\(the column 'answer' stands twice\): correct it"):
        mine((tmp_path / "a.parquet").read_bytes(), "parquet")


def test_ids_and_columns(mine, tmp_path):
    how = {"columns": {"id": "name"}}
    named, without = json.dumps({**ROW, "name": "x"}), json.dumps(ROW)
    for row in (without, json.dumps({**ROW, "name": None})):
        with pytest.raises(SettingsError, match="row 1, column 'name': a row without its id"):
            mine(f"{named}\n{row}", **how)
    one = hub.HubSet(file="own.jsonl", rows=2, **how)
    (tmp_path / "own.jsonl").write_text(f"{named}\n{named}")
    read = lambda one, rows, _: hub.records(one, rows, math.plain_answer)  # noqa: E731
    with pytest.raises(SettingsError, match=r"the id 'own-x' stands twice: correct columns\.id"):
        hub.load(one, None, read)
    with pytest.raises(ValueError, match="names one column of the file twice"):
        hub.HubSet(file="own.jsonl", rows=1, columns={"problem": "text", "answer": "text"})


def test_the_same_problem_with_another_answer_is_named(settings, tmp_path, capsys):
    one, rows = settings.train, published(settings)["train"]
    rows[6]["answer"] = rows[5]["answer"]  # twice, but of one mind
    rows[11] = {**rows[10], "answer": "8"}
    write(tmp_path / "stand_in" / one.repo / one.file, rows)
    sets, found = problem_sets(settings)
    name = "DeepScaleR-Preview-Dataset"
    said = rf"{name}-10 ('\\frac{{10}}{{7}}'), not {name}-11 ('8')"
    assert found["train"]["twice_with_another_answer"] == said
    assert said in capsys.readouterr().err and found["train"]["twice"] == 2
    assert f"{name}-11" not in {*sets["train"]["id"], *sets["validation"]["id"]}


# ---------------------------------------------------------------------------------------- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves files as the hub does: <type>/<repo>/resolve/<commit>/<file>, errors in a header."""

    folder, commits, gets, breaks_off = None, {}, [], False

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.gets.append(self.path)
        self.answer(send=True)

    def answer(self, *, send):
        repo, _, rest = self.path.removeprefix("/datasets/").partition("/resolve/")
        commit, _, file = rest.partition("/")
        path = self.folder / repo / file
        code = (
            "RepoNotFound" if repo not in self.commits
            else "RevisionNotFound" if self.commits[repo] != commit
            else "EntryNotFound" if not path.is_file()
            else None
        )  # fmt: skip
        content = b"" if code else path.read_bytes()
        self.send_response(404 if code else 200)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hash(content):x}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if send and not self.breaks_off:
            self.wfile.write(content)


@pytest.fixture
def server(settings, tmp_path, monkeypatch):
    """A hub with our files; huggingface_hub is told its address and given an empty cache."""
    from huggingface_hub import constants

    Hub.folder, Hub.gets = tmp_path / "stand_in", []
    Hub.commits = {o.repo: o.revision for o in (settings.train, *settings.benchmarks.values())}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield settings.model_copy(update={"root": None})
        running.shutdown()


def test_from_the_hub_as_from_a_folder(server, settings):
    local, remote = problem_sets(settings)[0], problem_sets(server)[0]
    assert all(local[name].equals(remote[name]) for name in local)
    assert sum("/resolve/" in path for path in Hub.gets) == 6
    assert all(f"/resolve/{commit}/" in " ".join(Hub.gets) for commit in Hub.commits.values())


def test_a_commit_in_the_cache_needs_no_hub(server, monkeypatch):
    from huggingface_hub import constants

    problem_sets(server)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(problem_sets(server)[0]["aime24"]) == 30


def test_what_the_hub_does_not_have(server):
    for why, update in (
        ("RepositoryNotFoundError", {"repo": "nobody/nothing"}),
        ("RevisionNotFoundError", {"revision": "0" * 40}),
        ("RemoteEntryNotFoundError", {"file": "other.jsonl"}),
    ):
        words = f"cannot be fetched ({why}): go online, correct repo, revision or file"
        says(words, changed(server, "aime25", **update))


def test_an_unreachable_hub(server, monkeypatch):
    from huggingface_hub import constants

    words = "agentica-org/DeepScaleR-Preview-Dataset: deepscaler.json cannot be fetched"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    says(words, server)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between its attempts
    monkeypatch.setattr(Hub, "breaks_off", True)
    says(words, server)
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"  # nobody listens there
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    says(words, server)


# ---------------------------------------------------------------------------------------- prepare


def task():
    return tasks.of(get_run("qwen3-1.7b"))


def test_sets_are_on_file_and_kept(settings):
    of, run = task(), task().run
    sets = of.sets()
    assert {name: len(frame) for name, frame in sets.items()} == of.sizes()
    for name, frame in sets.items():
        assert store.load(run.data / f"{name}.parquet").equals(frame)
    sources = of.notes["sources"]
    assert set(sources) == {"train", *settings.benchmarks}
    for name, one in settings.sets.items():
        assert sources[name]["revision"] == one.revision
    assert sources["amobench"]["left_out"] == 11
    assert {Path(name).is_file() for name in of.files()} == {True} and len(of.files()) == 6
    files = sorted(run.data.iterdir())
    before = [p.stat().st_mtime_ns for p in files]
    assert all(of.sets()[name].equals(frame) for name, frame in sets.items())
    assert [p.stat().st_mtime_ns for p in files] == before


def test_prepared_sets_need_no_source_unless_the_settings_change(server, tmp_path):
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    section = params["scales"]["qwen3-1.7b"]["data"]
    section["root"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    first = task().sets()
    Hub.commits = {}
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    again = task().sets()
    assert all(first[name].equals(again[name]) for name in first)
    section["seed"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError, match="RepositoryNotFoundError"):
        task().sets()


def test_other_content_of_a_file_makes_the_sets_again(settings, tmp_path):
    one = settings.benchmarks["aime25"]
    assert task().sets()["aime25"]["answer"][0] == "000"
    rows = published(settings)["aime25"]
    rows[0]["answer"] = "999"
    write(tmp_path / "stand_in" / one.repo / one.file, rows)
    assert task().sets()["aime25"]["answer"][0] == "999"


def test_values_stay_as_the_file_has_them(project):
    """What `datasets` and pandas would change: dates, long integers, integers among floats."""
    rows = [{"problem": f"{v}?", "answer": v} for v in ("2024-01-31", 10**30, 5, 2.5, "007", None)]
    for name in ("a.json", "a.jsonl"):
        write(project / name, rows)
        assert hub.read(hub.Source(None, None, name), None)[0] == rows
    nested = [{"problem": "?", "answer": [{"a": [1, None]}, {"a": []}]}]
    write(project / "a.parquet", nested)
    assert hub.read(hub.Source(None, None, "a.parquet"), None)[0] == nested


# ----------------------------------------------------------------------------------- params.yaml


@pytest.fixture(scope="module")
def scales():
    return load(REPOSITORY / "params.yaml").scales


@pytest.mark.parametrize("name", QWEN)
def test_the_recipe_is_the_papers(scales, name):
    """Paper section 3."""
    scale = scales[name]
    training = scale.training
    assert training.learning_rates == (5e-6,)
    assert (training.batch_size, training.max_steps, training.epochs) == (128, 40, 1)
    assert (training.betas, training.weight_decay) == ((0.9, 0.95), 0.005)
    assert (training.warmup, training.min_lr_ratio, training.max_grad_norm) == (0.1, 0.1, 1.0)
    assert training.bf16
    assert (scale.lora.r, scale.lora.alpha, scale.lora.dropout) == (64, 128, 0.05)
    for sampling in (scale.rollout, scale.refinement):
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 20)
        assert (sampling.samples, sampling.max_new_tokens) == (1, 16_384)
    evaluated = scale.evaluation.sampling
    assert (evaluated.temperature, evaluated.top_p, evaluated.top_k) == (0.6, 0.95, 0)
    assert evaluated.max_new_tokens == 38_912
    assert evaluated.samples == 4  # the paper's 16 are cut for one GPU (docs/scales.md)
    assert (scale.lengths.prompt, scale.lengths.reference) == (2048, 4096)
    assert scale.methods["forward_kl_clip"].clip == 0.1
    assert scale.methods["reverse_kl_topk"].top_k == 32
    data = hub.section(scale)
    counts = {name: one.problems for name, one in data.benchmarks.items()}
    assert counts == {
        "aime24": 30, "aime25": 30, "hmmt25": 30, "beyondaime": 100, "amobench": 39,
    }  # fmt: skip
    assert scale.data == scales["qwen3-1.7b"].data
    assert data.train_problems == training.batch_size * training.max_steps


def test_models_and_modes_are_the_papers(scales):
    def repo(name: str | None) -> str | None:
        if name is None:
            return None
        repo, commit = name.split("@")
        assert len(commit) == 40
        return repo

    chosen = {name: scales[name].models for name in QWEN}
    found = {n: (scales[n].modes, repo(m.student), repo(m.teacher)) for n, m in chosen.items()}
    assert found == {
        "qwen3-1.7b": (("opd", "opsd"), "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B"),
        "qwen3-4b": (("opd",), "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"),
        "qwen3-4b-instruct": (("opd", "opsd"), "Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-8B"),
        "qwen3-8b": (("opsd",), "Qwen/Qwen3-8B", None),
    }


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train/revision", "main", "train.revision: .*not 'main'"),
        ("train/repo", "DeepScaleR", "train.repo: .*not 'DeepScaleR'"),
        ("train/file", "train.csv", "train.file: .*not 'train.csv'"),
        ("train/rows", 0, "train.rows: .*not 0"),
        ("train/columns/problem", None, "train.columns.problem: .*not None"),
        ("train/columns/question", "q", "train.columns.question.*not 'question'"),
        ("train/split", "train", "train.split: unknown key"),
        ("train/format", "x", "train.format: .*not 'x'"),
        ("train/format", "taco", "train: name either a file or a format"),
        ("train", {"rows": 1}, "train: name either a file or a format"),
        ("train", {"rows": 1, "format": "taco"}, "taco is of the task code, not of math"),
        ("train", {"rows": 1, "format": "taco", "leave_out": {"a": "b"}}, "has its own repo"),
        ("benchmarks/amobench/kept", None, "leave_out and kept go together"),
        ("benchmarks/amobench/kept", 50, "kept 50 must be less than rows 50"),
        ("benchmarks", {}, "benchmarks: .*at least 1"),
        ("require_solution", False, "or unfiltered., or drop opsd"),
    ],
)
def test_one_sentence_for_each_fault_of_the_settings(tmp_path, path, value, words):
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    *parents, last = path.split("/")
    section = params["scales"]["qwen3-1.7b"]["data"]
    for part in parents:
        section = section[part]
    section[last] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SettingsError, match=words) as error:
        tasks.check("qwen3-1.7b", load(tmp_path / "params.yaml").scales["qwen3-1.7b"])
    assert "scales.qwen3-1.7b" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_first_notebook_shows_published_problems(settings, tmp_path, monkeypatch, capsys):
    """Notebook 1 at a hub scale; a smoke model, in the folder of that name, stands in for Qwen3."""
    shutil.copytree(REPOSITORY / "models" / "tiny" / "0" / "student", tmp_path / "Qwen/Qwen3-1.7B")
    monkeypatch.setenv("MPLBACKEND", "agg")
    script = (REPOSITORY / "notebooks" / "1_prepare.py").read_text()
    assert script.count('scale: str = "smoke"') == 1
    seen = {}
    exec(script.replace('scale: str = "smoke"', 'scale = "qwen3-1.7b"'), seen)
    assert set(seen["files"]) == {"train", *settings.benchmarks}
    assert "agentica-org/DeepScaleR-Preview-Dataset: Find the" in capsys.readouterr().out
