r"""Code tasks: the program in a response, its tests, and the published problem sets.

A problem's `answer` is JSON that says how a program is tested, one of
- `{"kind": "evalplus", "suite", "entry", "atol", "groups": [[[args, want], ...], ...]}`
- `{"kind": "calls", "rule": "livecodebench" or "taco", "entry", "cases": [[args, want], ...]}`
- `{"kind": "stdin", "rule", "cases": [[input, output], ...]}`
- `{"kind": "asserts", "tests": "assert f(1) == 2"}`
- `{"kind": "file", "name": "<hash>.json.gz"}`: one of the above in a file beside the sets, where it
  is large (LiveCodeBench's tests take gigabytes).
args and want are plain data as jail.pack writes it. `solution` is a reference program in a
```python block, "" if there is none. Programs run in sandbox.py and nowhere else; the rules by
which an output is right are those of the benchmarks, see oracles.py.

Where we differ from the benchmarks' own graders:
1. What is read: the last complete ```python block after the thinking block (else the last
   complete one without a language). EvalPlus takes the longest part of the response that parses,
   LiveCodeBench a pair of fences, whatever is in it.
2. Time is CPU time: SECONDS per call or run, so that a verdict does not depend on the load of the
   machine. EvalPlus allows max(1 s, 4 x the reference's time), LiveCodeBench 6 s, of wall time.
3. A script that exits with an error has failed (LiveCodeBench forgives `exit(1)`).
4. Results are compared as plain data (sandbox.py): a numpy number is a number.

Pinned: the releases of EvalPlus by their SHA-256, LiveCodeBench and TACO by their commits. All were
found in public code that pins them, not looked up at the source, which was out of reach. Which
releases and which rows of TACO the paper's authors used is unknown.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import json
import pickle
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from trdlib import config, data, grading, hub, jail, oracles, sandbox

SECONDS = {"humaneval": 4, "mbpp": 4, "livecodebench": 6, "taco": 4}  # CPU time of a call or run
TOTAL = 60  # and of all calls of a problem
MEMORY_MB = 4096  # as EvalPlus and LiveCodeBench
INLINE = 50_000  # characters of an answer that stays in the table


class Source(NamedTuple):
    """One published file."""

    # Of the hub; of GitHub for EvalPlus, whose releases are not on the hub in this form; None: the
    # file is one's own.
    repo: str | None
    revision: str | None  # a commit; a release
    file: str
    sha256: str | None  # None: not known to us; the commit says which file it is
    rows: int


_LCB = ("livecodebench/code_generation_lite", "0fe84c3912ea0c4d4a78037083943e8f0c4dd505")
_TACO = ("BAAI/TACO", "d593ed0a2becbbc952230bb89be09189bf1056dc")
SOURCES: dict[str, tuple[Source, ...]] = {
    "humaneval": (
        Source(
            "evalplus/humanevalplus_release", "v0.1.10", "HumanEvalPlus.jsonl.gz",
            "272720b90ac375502c8ed23cd791c2a93dfb22a911641a494da74a426c09f101", 164,
        ),
    ),
    "mbpp": (
        Source(
            "evalplus/mbppplus_release", "v0.2.0", "MbppPlus.jsonl.gz",
            "af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63", 378,
        ),
    ),
    "livecodebench": tuple(  # release_v6: all six files, 1,055 problems
        Source(*_LCB, f"test{number}.jsonl", sha256, rows)
        for number, sha256, rows in (
            ("", "2bd02b38beb48e8c46b5b9987095d999ff38cd8efc255ea5d58974317c48f63f", 400),
            ("2", "095df7c5daf15f882c51a9deb84085cff1e073495a5dbcf95015a564d485f3a3", 111),
            ("3", "28ed26cc83363ce3f1fe2d5fad9f8393077beb1907b167a31bd3b32f80801b79", 101),
            ("4", "d711138ddaebfcf5f8ec6a4283ee677298c0f5c5d374a235af92aaf0584510da", 101),
            ("5", "7f77571c2a6df0c2a72a3277650309f67e01e0008e18117e624633df53f81214", 167),
            ("6", "bb4c364f71921c4495a6ad15abe1a927350b720009f4933e2e71f8af0f6fd1f5", 175),
        )
    ),
    "taco": tuple(  # 25,443 rows in all; how many in each file is not known to us
        Source(*_TACO, f"ALL/train-{number:05}-of-00009.parquet", None, 0) for number in range(9)
    ),
}  # fmt: skip


# Releases on GitHub; the rest is on the hub.
RELEASES = {
    f"evalplus/{name}": f"https://github.com/evalplus/{name}/releases/download"
    for name in ("humanevalplus_release", "mbppplus_release")
}


# ------------------------------------------------------------------------ from response to program

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^`\n]*$")
_PYTHON = ("python", "python3", "py", "py3")


def blocks(text: str) -> list[tuple[str, str]]:
    """The complete fenced blocks, as (language in lower case, content).

    CommonMark's rules: a block ends with a fence of the same sign that is at least as long, and
    loses the indentation of its first fence.
    """
    found, opened, lines = [], None, []
    for line in text.replace("\r\n", "\n").split("\n"):
        match = _FENCE.match(line)
        if opened is None:
            if match:
                opened, lines = match, []
        elif (
            match
            and match[2][0] == opened[2][0]
            and len(match[2]) >= len(opened[2])
            and (line.strip() == match[2])
        ):
            found.append((opened[3].lower().strip("{}."), "\n".join(lines)))
            opened = None
        else:
            indent = len(opened[1])
            lines.append(line[indent:] if not line[:indent].strip() else line.lstrip())
    return found


def program_of(response: str) -> str | None:
    """The program that a response gives as its answer.

    None: there is no block, or it, or the thinking block before it, was never closed.
    """
    text = grading.after_thinking(response)
    complete = [] if text is None else blocks(text)
    for languages in (_PYTHON, ("",)):
        of_language = [code for language, code in complete if language in languages]
        if of_language:
            return of_language[-1] if of_language[-1].strip() else None
    return None


# ----------------------------------------------------------------------------------------- grading

# LiveCodeBench and TACO run every program after imports like these.
_STARS = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
PRELUDES = {
    "livecodebench": "".join(f"from {name} import *\n" for name in _STARS)
    + f"import {', '.join(n for n in _STARS if n not in ('builtins', 'typing'))}\n"
    + "sys.setrecursionlimit(50000)\n",
    "taco": "import sys, time, itertools, collections, math, fractions, random, heapq\n"
    "from itertools import accumulate, product, permutations, combinations\n"
    "from collections import Counter, OrderedDict, deque, defaultdict, ChainMap\n"
    "from functools import lru_cache\n"
    "from math import sqrt, sin, cos, tan, ceil, fabs, floor, gcd, exp, log, log2\n"
    "from typing import List, Tuple\nfrom heapq import *\n",
}
_ORACLES = Path(oracles.__file__).read_text(encoding="utf-8")


def _prelude(rule: str, program: str) -> str:
    prelude = PRELUDES[rule]
    return prelude + "import numpy as np\n" if rule == "taco" and "np." in program else prelude


def _literal(value) -> str:
    return f"json.loads({json.dumps(value)!r})"


def _on_calls(program: str, tests: dict) -> sandbox.Verdict:
    rule = tests["suite"] if tests["kind"] == "evalplus" else tests["rule"]
    entry = tests["entry"]
    if tests["kind"] == "calls":
        entry = f"Solution().{entry}" if "class Solution" in program else entry
        program = _prelude(rule, program) + program
    call = f"remote({entry!r}, seconds={SECONDS[rule]})"
    text = _ORACLES + "\n\nimport json\nfrom jail import unpack\n"
    if tests["kind"] == "evalplus":
        text += (
            f"groups = {_literal(tests['groups'])}\n"
            "groups = [[(unpack(a), unpack(w)) for a, w in group] for group in groups]\n"
            f"evalplus({rule!r}, {entry!r}, {call}, groups, {tests['atol']!r})\n"
        )
    else:
        text += f"cases = [(unpack(a), unpack(w)) for a, w in {_literal(tests['cases'])}]\n"
        text += f"calls({rule!r}, {call}, cases)\n"
    return sandbox.check(program, text, seconds=TOTAL, memory_mb=MEMORY_MB)


def _on_stdin(program: str, tests: dict) -> sandbox.Verdict:
    program = _prelude(tests["rule"], program) + program
    limits = {"seconds": SECONDS[tests["rule"]], "memory_mb": MEMORY_MB}
    for number, (text, want) in enumerate(tests["cases"], 1):
        output = sandbox.run(program, text, **limits)
        if output.reason:
            return sandbox.Verdict(False, f"test {number}: {output.reason}")
        if not oracles.same_output(output.stdout.decode("utf-8", "replace"), want):
            return sandbox.Verdict(False, f"test {number}: wrong output")
    return sandbox.Verdict(True, "")


_KEYS = {  # of each kind of tests
    "evalplus": ("suite", "entry", "atol", "groups"),
    "calls": ("rule", "entry", "cases"),
    "stdin": ("rule", "cases"),
    "asserts": ("tests",),
}


def tests_of(answer: str, folder: Path | None = None) -> dict:
    """What an answer says, read from its file if it is kept in one. ValueError if it says nothing
    that we know."""
    try:
        tests = json.loads(answer)
    except ValueError:
        tests = None
    tests = tests if isinstance(tests, dict) else {}
    if tests.get("kind") == "file":
        if folder is None:
            raise ValueError("this answer is kept in a file: say in which folder")
        try:
            with gzip.open(folder / tests["name"], "rt", encoding="utf-8") as file:
                tests = json.load(file)
        except FileNotFoundError:
            raise ValueError(f"{tests['name']} is missing: run notebook 1_prepare") from None
    cases = tests.get("cases") or tests.get("tests") or any(tests.get("groups", ()))
    if tests.get("kind") not in _KEYS or not cases:
        raise ValueError(f"an answer without tests: {answer[:80]}")
    missing = [key for key in _KEYS[tests["kind"]] if key not in tests]
    if missing or tests.get("rule", "taco") not in PRELUDES:
        raise ValueError(f"tests of kind {tests['kind']} without a valid {(*missing, 'rule')[0]}")
    return tests


def verdict(program: str, answer: str, folder: Path | None = None) -> sandbox.Verdict:
    """Does the program pass all tests of the answer?"""
    tests = tests_of(answer, folder)
    if tests["kind"] == "asserts":
        return sandbox.check(program, tests["tests"])
    return (_on_stdin if tests["kind"] == "stdin" else _on_calls)(program, tests)


def grade(
    pairs: Iterable[tuple[str, str]], workers: int | None = None, folder: Path | None = None
) -> list[bool]:
    """One verdict per (response, answer), in order. Equal programs are run once.

    workers: programs at a time, by default one per core. folder: where files of tests are.
    """
    asked = [(program_of(response), answer) for response, answer in pairs]
    distinct = list(dict.fromkeys(pair for pair in asked if pair[0] is not None))
    found = sandbox.in_pool(lambda pair: verdict(*pair, folder).passed, distinct, workers)
    verdicts = dict(zip(distinct, found, strict=True))
    return [verdicts.get(pair, False) for pair in asked]


# ------------------------------------------------------------------------------ the published sets


def read_rows(path: Path, source: Source | None = None) -> list[dict]:
    """The rows of a .jsonl, .jsonl.gz or .parquet file; it must be the source's if one is given."""
    raw = path.read_bytes()
    if source is not None and source.sha256 not in (None, hashlib.sha256(raw).hexdigest()):
        raise hub.SourceError(
            f"{path.name} is not the file of {source.repo} {source.revision}: fetch it"
        )
    try:
        if path.suffix == ".parquet":
            rows = pd.read_parquet(io.BytesIO(raw)).to_dict("records")
        else:
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, OSError, EOFError):
        raise hub.SourceError(
            f"{path.name} is not a valid {path.suffix[1:]} file: fetch it"
        ) from None
    if source is not None and source.rows and len(rows) != source.rows:
        raise hub.SourceError(f"{path.name} has {len(rows)} rows, not {source.rows}: fetch it")
    return rows


def _block(program: str) -> str:
    return f"```python\n{program.strip()}\n```" if program.strip() else ""


def _answer(tests: dict, folder: Path | None) -> str:
    """The tests as JSON, or, where they are large, in a file of the folder."""
    text = json.dumps(tests, sort_keys=True)
    if len(text) <= INLINE or folder is None:
        return text
    name = hashlib.sha256(text.encode()).hexdigest()[:16] + ".json.gz"
    if not (folder / name).is_file():
        packed = gzip.compress(text.encode(), mtime=0)
        data.write_whole(folder / name, lambda path: path.write_bytes(packed))
    return json.dumps({"kind": "file", "name": name})


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _rows_of_tuples(rows):
    return [tuple(row) for row in rows]


# MBPP+ is published as JSON, which has no tuples, sets and complex numbers: tasks -> what their
# arguments are (evalplus 0.3.1, data/mbpp.py).
_MBPP_ARGUMENTS = {
    (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726,
     740, 744, 809): lambda a: [tuple(x) for x in a],
    (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780):
        lambda a: [_rows_of_tuples(x) for x in a],
    (75, 413, 444, 753): lambda a: [_rows_of_tuples(a[0]), a[1]],
    (106, 750): lambda a: [a[0], tuple(a[1])],
    (115,): lambda a: [[set(x) if isinstance(x, list) and x else {} for x in a[0]]],
    (124,): lambda a: [float(a[0]), complex(a[1])],
    (250, 405, 446, 617, 720, 763, 808): lambda a: [tuple(a[0]), a[1]],
    (259, 401, 445): lambda a: [tuple(_rows_of_tuples(x)) for x in a],
    (278,): lambda a: [tuple(tuple(x) if isinstance(x, list) else x for x in a[0])],
    (307,): lambda a: [tuple(a[0]), a[1], a[2]],
    (722,): lambda a: [{k: tuple(v) for k, v in a[0].items()}, *a[1:]],
    (252,): lambda a: [complex(a[0])],
    (580, 615, 791): lambda a: list(_tuples(a)),
}  # fmt: skip


def mbpp_arguments(task_id: str, inputs: list) -> list:
    """The inputs of a task of MBPP+ as they are meant."""
    number = int(task_id.split("/")[-1])
    make = next((f for tasks, f in _MBPP_ARGUMENTS.items() if number in tasks), None)
    return inputs if make is None else [make(one) for one in inputs]


_DRIVER = """
import copy as _copy, json as _json, jail as _jail
_inputs = _jail.unpack(_json.loads({inputs!r}))
_opaque = lambda value: {{"t": "opaque", "v": None}}
print(_json.dumps([_jail.pack({entry}(*_copy.deepcopy(one)), _opaque) for one in _inputs]))
"""


def _expected(task: dict, inputs: list, suite: str) -> list:
    """What the reference solution returns, packed. It runs in the sandbox like any program."""
    driver = _DRIVER.format(inputs=json.dumps(jail.pack(inputs)), entry=task["entry_point"])
    program = f"{task['prompt']}{task['canonical_solution']}\n{driver}"
    output = sandbox.run(program, seconds=10 * TOTAL, memory_mb=MEMORY_MB)
    if output.reason:
        raise hub.SourceError(f"{task['task_id']}: the reference solution fails: {output.reason}")
    values = json.loads(output.stdout.split(b"\n")[-2])
    if suite == "mbpp" and task["entry_point"] in oracles.NOT_NONE:
        return [value is not None for value in values]
    return values


def evalplus(paths: list[Path], suite: str, *, folder: Path | None = None, pinned=True):
    """HumanEval+ ("humaneval") or MBPP+ ("mbpp") from EvalPlus's own file, in the schema.

    What is expected is what the reference solution returns: it runs here, once.
    """
    sources = SOURCES[suite] if pinned else [None] * len(paths)
    tasks = [row for pair in zip(paths, sources, strict=True) for row in read_rows(*pair)]

    def record(task):
        groups = []
        for inputs in (task["base_input"], task["plus_input"]):
            inputs = mbpp_arguments(task["task_id"], inputs) if suite == "mbpp" else inputs
            want = _expected(task, inputs, suite)
            groups.append([[jail.pack(i), w] for i, w in zip(inputs, want, strict=True)])
        entry = task["entry_point"]
        tests = {"kind": "evalplus", "suite": suite, "entry": entry, "atol": task["atol"]}
        problem = f"Write the Python function `{entry}`.\n\n{_block(task['prompt'])}"
        solution = _block(task["prompt"] + task["canonical_solution"])
        return (
            task["task_id"], f"evalplus/{suite}", problem,
            _answer({**tests, "groups": groups}, folder), solution,
        )  # fmt: skip

    return pd.DataFrame(sandbox.in_pool(record, tasks), columns=data.COLUMNS)


class _OnlyData(pickle.Unpickler):
    def find_class(self, module, name):
        raise hub.SourceError(f"private tests that need {module}.{name}: not plain data, refused")


def private_tests(text: str) -> list[dict]:
    """LiveCodeBench's private tests: JSON, or JSON pickled, zipped and in base64. No class or
    function is ever loaded from the pickle."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        value = _OnlyData(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load()
        return json.loads(value)
    except hub.SourceError:
        raise
    except Exception as error:
        raise hub.SourceError(f"private tests that cannot be read: {error}") from None


def livecodebench(paths: list[Path], *, folder: Path | None = None, pinned=True) -> pd.DataFrame:
    """LiveCodeBench, code generation, from the files of a release, in the schema. Public and
    private tests count, as in its own scores."""
    records = []
    sources = SOURCES["livecodebench"] if pinned else [None] * len(paths)
    for path, source in zip(paths, sources, strict=True):
        for row in read_rows(path, source):
            name = row["question_id"]
            tests = json.loads(row["public_test_cases"]) + private_tests(row["private_test_cases"])
            kinds = {test["testtype"] for test in tests}
            starter = row["starter_code"].strip()
            if kinds == {"functional"}:
                cases = [
                    [jail.pack([json.loads(x) for x in t["input"].split("\n")]),
                     jail.pack(json.loads(t["output"]))] for t in tests
                ]  # fmt: skip
                entry = json.loads(row["metadata"])["func_name"]
                answer = {"kind": "calls", "rule": "livecodebench", "entry": entry, "cases": cases}
                how = f"Complete this code:\n\n```python\n{starter}\n```"
            elif kinds == {"stdin"}:
                cases = [[test["input"], test["output"]] for test in tests]
                answer = {"kind": "stdin", "rule": "livecodebench", "cases": cases}
                how = "Read from standard input and write to standard output."
            else:
                raise hub.SourceError(f"LiveCodeBench {name}: tests of kind {sorted(kinds)}")
            problem = f"{row['question_content'].strip()}\n\n{how}"
            records.append((name, _LCB[0], problem, _answer(answer, folder), ""))
    return pd.DataFrame(records, columns=data.COLUMNS)


def _joined(text) -> str:
    return "\n".join(map(str, text)) if isinstance(text, list) else str(text)


def _int_keys(value):
    """JSON made the keys of dicts into strings: back, where all are numbers (TACO's rule)."""
    one = value[0] if isinstance(value, list) and value else value
    if isinstance(one, dict) and all(re.fullmatch(r"-?\d+", key) for key in one):
        return [{int(k): v for k, v in one.items()}]
    return value


def taco(paths: list[Path], *, folder: Path | None = None, pinned=True):
    """TACO's training problems in the schema; attrs["left_out"] counts what was left out and why.

    Left out: problems without tests or a question, and those whose tests are no JSON or do not pair
    up. The solution is the first that is published; it is not run.
    """
    records, left_out = [], {"without_tests": 0, "broken_tests": 0, "without_question": 0}
    sources = SOURCES["taco"] if pinned else [None] * len(paths)
    number = -1
    for path, source in zip(paths, sources, strict=True):
        for row in read_rows(path, source):
            number += 1
            try:
                tests = json.loads(row["input_output"] or "{}")
                solutions = json.loads(row["solutions"] or "[]")
                inputs, outputs = tests.get("inputs", []), tests.get("outputs", [])
                pairs = list(zip(inputs, outputs, strict=True))
            except (ValueError, AttributeError, TypeError):
                left_out["broken_tests"] += 1
                continue
            if not pairs:
                left_out["without_tests"] += 1
                continue
            if not row["question"].strip():
                left_out["without_question"] += 1
                continue
            starter = (row["starter_code"] or "").strip()
            if tests.get("fn_name"):
                cases = [[jail.pack(_int_keys(i)), jail.pack(_int_keys(o))] for i, o in pairs]
                answer = {"kind": "calls", "rule": "taco", "entry": tests["fn_name"]}
                how = f"Write the function `{tests['fn_name']}`."
            else:
                cases = [[_joined(i), _joined(o)] for i, o in pairs]
                answer = {"kind": "stdin", "rule": "taco"}
                how = "Read from standard input and write to standard output."
            if starter:
                how += f" Start from this code:\n\n```python\n{starter}\n```"
            records.append(
                (
                    f"TACO-{number}", _TACO[0], f"{row['question'].strip()}\n\n{how}",
                    _answer({**answer, "cases": cases}, folder),
                    _block(solutions[0]) if solutions else "",
                )
            )  # fmt: skip
    frame = pd.DataFrame(records, columns=data.COLUMNS)
    frame.attrs["left_out"] = left_out
    return frame


def _place(one: Source, root: str | None) -> Path | None:
    if root is not None or one.repo not in RELEASES:
        return hub.place(one, root)  # which needs a repo, a revision and a file
    return config.root() / "data" / "downloads" / one.repo / one.revision / one.file


def _sources(one: config.CodeSet) -> tuple[Source, ...]:
    return tuple(Source(None, None, name, None, 0) for name in one.files) or SOURCES[one.format]


def places(one: config.CodeSet, root: str | None) -> list[Path | None]:
    """Where the files of the set are, or should be, as hub.place."""
    return [_place(source, root) for source in _sources(one)]


def fetch(one: Source, root: str | None) -> Path:
    """The file at its place; what is not there is downloaded, once."""
    if root is not None or one.repo not in RELEASES:
        return hub.fetch(one, root)
    import httpx

    path = _place(one, root)
    if path.is_file():
        return path
    url = f"{RELEASES[one.repo]}/{one.revision}/{one.file}"
    try:
        got = httpx.get(url, follow_redirects=True, timeout=60).raise_for_status().content
    except httpx.HTTPError as error:
        raise hub.SourceError(
            f"{one.repo}: {one.file} cannot be fetched ({type(error).__name__}): go online once, "
            f"or set data.root to a folder with {one.repo}/{one.file}"
        ) from None
    if one.sha256 not in (None, hashlib.sha256(got).hexdigest()):
        raise hub.SourceError(f"{url} is not the file it should be: is there a proxy in between?")
    return data.write_whole(path, lambda temporary: temporary.write_bytes(got))


def _json(answer) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)


_READERS = {
    "humaneval": functools.partial(evalplus, suite="humaneval"),
    "mbpp": functools.partial(evalplus, suite="mbpp"),
    "livecodebench": livecodebench,
    "taco": taco,
}


def load(one: config.CodeSet | config.HubSet, root: str | None, folder: Path | None = None):
    """One set in the schema, and what the report says of it, as hub.load: also a file of one's own
    whose answers are tests (see above). Large tests go to folder."""
    if isinstance(one, config.HubSet):
        frame, report = hub.load(one, root, answer_of=_json)
        for row in frame.itertuples():
            try:
                tests_of(row.answer)
            except ValueError as error:
                raise hub.SourceError(f"{one.name}, {row.id}: {error}") from None
        return frame, report
    sources = _sources(one)
    paths = [fetch(source, root) for source in sources]
    try:
        frame = _READERS[one.format](paths, folder=folder, pinned=not one.files)
    except KeyError as error:
        raise hub.SourceError(
            f"{', '.join(path.name for path in paths)}: no column {error} as {one.format} has"
        ) from None
    left_out = frame.attrs.get("left_out", {})
    if len(frame) + sum(left_out.values()) != one.rows:
        raise hub.SourceError(
            f"{one.name} has {len(frame) + sum(left_out.values())} rows, not {one.rows}: correct "
            "rows in params.yaml"
        )
    report = {
        "repo": sources[0].repo,
        "revision": sources[0].revision,
        "file": ", ".join(source.file for source in sources),
        "sha256": config.content_hash([hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]),
        "rows": one.rows,
        "left_out": sum(left_out.values()),
        **left_out,
    }
    return frame, report
