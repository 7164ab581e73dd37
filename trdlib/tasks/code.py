"""Published programming problems: TACO to train on; HumanEval+, MBPP+ and LiveCodeBench.

code.yaml says how a problem is tested, which its `answer` holds, and where we differ from the
benchmarks' own graders. `solution` is a reference program in a ```python block, or ""."""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import pickle
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from trdlib import prompts, sandbox, store
from trdlib.sandbox import jail, verdicts
from trdlib.settings import SettingsError
from trdlib.tasks import hub, math, oracles
from trdlib.tasks.hub import check, files, sizes  # noqa: F401 - of every published task

SECONDS = {"humaneval": 4, "mbpp": 4, "livecodebench": 6, "taco": 4}  # CPU time of a call or run
TOTAL = 60  # and of all calls of a problem
MEMORY_MB = 4096  # as EvalPlus and LiveCodeBench
INLINE = 50_000  # characters of an answer that stays in the table
_WRITTEN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_KEYS, PRELUDES = _WRITTEN["kinds"], _WRITTEN["preludes"]
_BLOCK = re.compile(_WRITTEN["block"], re.MULTILINE | re.DOTALL)


def program_of(response: str) -> str | None:
    """The program of a response; None if it has no whole block, or its thinking never ends."""
    text, found = math.after_thinking(response), {}
    for match in _BLOCK.finditer((text or "").replace("\r\n", "\n")):
        language = match["language"].lower().strip("{}.")
        if match["unclosed"] is None and re.fullmatch(r"(py(thon)?[\d.]*)?", language):
            found["python" if language else ""] = match
    if not (last := found.get("python") or found.get("")):
        return None
    indent, lines = len(last["indent"]), last["content"].split("\n")[1:]
    lines = [line[indent:] if not line[:indent].strip() else line.lstrip() for line in lines]
    return "\n".join(lines) if any(map(str.strip, lines)) else None


def tests_of(answer: str, folder: Path | None = None) -> dict:
    """What an answer says, or its file in the folder; ValueError if that is nothing we know."""
    tests = json.loads(answer) if answer.strip().startswith("{") else {}
    if tests.get("kind") == "file":
        path = folder / tests["name"]
        if not path.is_file():
            raise ValueError(f"{path.name} is missing: run notebook 1_prepare")
        tests = json.loads(gzip.decompress(path.read_bytes()))
    kind, cases = tests.get("kind"), tests.get("cases") or tests.get("tests")
    if kind not in _KEYS or not (cases or any(tests.get("groups", ()))):
        raise ValueError(f"an answer without tests: {answer[:80]}")
    missing = [key for key in _KEYS[kind] if key not in tests]
    if missing or tests.get("rule", "taco") not in PRELUDES:
        raise ValueError(f"tests of kind {kind} without a valid {(*missing, 'rule')[0]}")
    if kind == "asserts":
        jail.compiled(tests["tests"])
    return tests


def verdict(program: str, answer: str, folder: Path | None = None) -> sandbox.Verdict:
    """Does the program pass all tests of the answer? folder: where files of tests are."""
    tests = tests_of(answer, folder)
    kind, entry, rule = tests["kind"], tests.get("entry"), tests.get("rule") or tests.get("suite")
    if kind == "asserts":
        return sandbox.check(program, tests["tests"])
    name = f"Solution().{entry}" if kind == "calls" and "class Solution" in program else entry
    numpy = "import numpy as np\n" if rule == "taco" and "np." in program else ""
    program = PRELUDES.get(rule, "") + numpy + program
    if kind == "stdin":  # the whole program, with the input of every case in turn
        for number, (text, want) in enumerate(tests["cases"], 1):
            output = sandbox.run(program, text, seconds=SECONDS[rule], memory_mb=MEMORY_MB)
            right = oracles.same_output(output.stdout.decode("utf-8", "replace"), want)
            if output.reason or not right:
                return sandbox.Verdict(False, f"test {number}: {output.reason or 'wrong output'}")
        return sandbox.Verdict(True, "")
    # Its function, called with the arguments of every case in turn.
    groups = json.dumps(tests.get("groups") or [tests["cases"]])
    text = (
        f"{Path(oracles.__file__).read_text(encoding='utf-8')}\nimport json\n"
        f"from jail import unpack\ngroups = unpack(json.loads({groups!r}))\n"
        f"call = remote({name!r}, seconds={SECONDS[rule]})\n"
        f"judge(call, groups, {rule!r}, {entry!r}, {tests.get('atol')!r})\n"
    )
    return sandbox.check(program, text, seconds=TOTAL, memory_mb=MEMORY_MB)


def grade(run, pairs: Iterable[tuple[str, dict]]) -> list[bool]:
    """One verdict per (response, row of the problem set), in order. Equal programs run once."""
    pairs = [(program_of(response), row["answer"]) for response, row in pairs]
    asked, folder = [one for one in pairs if one[0]], run.data / "tests"
    passed = verdicts.judged(lambda new: [verdict(*new[0], folder)], asked, grader(run), batch=1)
    passed = dict(zip(asked, passed, strict=True))
    return [passed.get(one, False) for one in pairs]


def grader(run) -> str:
    code = store.code_hash(math, jail, sandbox, oracles, sys.modules[__name__])
    return store.content_hash(_WRITTEN, code)


def _answer(tests: dict, folder: Path) -> str:
    """The tests as JSON, or, where they are large, in a file of the folder."""
    text = json.dumps(tests, sort_keys=True)
    if len(text) <= INLINE:
        return text
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json.gz"
    if not path.is_file():
        store.write_whole(path, lambda new: new.write_bytes(gzip.compress(text.encode(), mtime=0)))
    return json.dumps({"kind": "file", "name": path.name})


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# What stands for an argument in the JSON of MBPP+, which has no tuples, sets and complex numbers.
_MEANT = {
    "same": lambda x: x,
    "tuple": tuple,
    "tuples": lambda x: [*map(tuple, x)],
    "table": lambda x: tuple(map(tuple, x)),
    "mixed": lambda x: tuple(tuple(y) if isinstance(y, list) else y for y in x),
    "deep": _tuples,
    "sets": lambda x: [set(y) if isinstance(y, list) and y else {} for y in x],
    "values": lambda x: {key: tuple(value) for key, value in x.items()},
    "float": float,
    "complex": complex,
}
_MBPP = {task: kinds.split() for kinds, tasks in _WRITTEN["mbpp"].items() for task in tasks}


def mbpp_arguments(task_id: str, inputs: list) -> list:
    """The inputs of a task of MBPP+ as they are meant."""
    kinds = _MBPP.get(int(task_id.split("/")[-1]), ["same"])
    told = (zip(kinds + kinds[-1:] * len(one), one, strict=False) for one in inputs)
    return [[_MEANT[kind](value) for kind, value in one] for one in told]


_DRIVER = """
import copy as _copy, json as _json, jail as _jail
_inputs, _other = _jail.unpack(_json.loads({inputs!r})), lambda _: dict(t="opaque", v=None)
print(_json.dumps([_jail.pack({entry}(*_copy.deepcopy(one)), _other) for one in _inputs]))
"""
_STDIN = "Read from standard input and write to standard output."


def _block(program: str) -> str:
    return f"```python\n{program.strip()}\n```" if program.strip() else ""


def _evalplus(rows: Iterable[dict], suite: str, _) -> list[tuple]:
    """HumanEval+ ("humaneval") or MBPP+ ("mbpp"), from EvalPlus's file. What is expected is what
    the reference solution returns: it runs here, in the sandbox like any program, once."""

    def record(task: dict) -> tuple:
        groups, name, published = [], task["task_id"], (task["base_input"], task["plus_input"])
        entry, program = task["entry_point"], task["prompt"] + task["canonical_solution"]
        for inputs in published:
            inputs = jail.pack(mbpp_arguments(name, inputs) if suite == "mbpp" else inputs)
            driver = _DRIVER.format(inputs=json.dumps(inputs), entry=entry)
            output = sandbox.run(f"{program}\n{driver}", seconds=10 * TOTAL, memory_mb=MEMORY_MB)
            if output.reason:
                raise SettingsError(f"{name}: the reference solution fails: {output.reason}")
            wanted = json.loads(output.stdout.split(b"\n")[-2])
            if suite == "mbpp" and entry in oracles.NOT_NONE:
                wanted = [value is not None for value in wanted]
            groups.append([*map(list, zip(inputs, wanted, strict=True))])
        tests = {"kind": "evalplus", "suite": suite, "entry": entry, "atol": task["atol"]}
        question, how = f"Write the Python function `{entry}`.", _block(task["prompt"])
        return name, question, how, tests | {"groups": groups}, _block(program)

    return sandbox.in_pool(record, rows)


class _OnlyData(pickle.Unpickler):
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"they need {module}.{name}: not plain data, refused")


def private_tests(text: str) -> list[dict]:
    """LiveCodeBench's private tests: JSON, or JSON pickled (data alone), zipped and in base64."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    try:
        return json.loads(_OnlyData(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())
    except Exception as error:
        raise SettingsError(f"private tests that cannot be read: {error}") from None


def _cases(rule: str, entry: str | None, pairs: Iterable[tuple]) -> dict:
    """Tests of a function, (arguments, result), or without one of a script, (input, output)."""
    kind = {"kind": "calls", "entry": entry} if entry else {"kind": "stdin"}
    return {**kind, "rule": rule, "cases": [[jail.pack(i), jail.pack(o)] for i, o in pairs]}


def _livecodebench(rows: Iterable[dict], *_) -> Iterator[tuple]:
    """LiveCodeBench, code generation. Public and private tests count, as in its own scores."""
    for row in rows:
        tests = json.loads(row["public_test_cases"]) + private_tests(row["private_test_cases"])
        pairs, entry, how = [(test["input"], test["output"]) for test in tests], None, _STDIN
        kinds = {test["testtype"] for test in tests}
        if kinds == {"functional"}:
            pairs = [([*map(json.loads, i.split("\n"))], json.loads(o)) for i, o in pairs]
            entry = json.loads(row["metadata"])["func_name"]
            how = f"Complete this code:\n\n{_block(row['starter_code'])}"
        elif kinds != {"stdin"}:
            raise SettingsError(f"{row['question_id']}: tests of kind {sorted(kinds)}")
        tests = _cases("livecodebench", entry, pairs)
        yield row["question_id"], row["question_content"], how, tests, ""


def _meant(value, called: bool):
    """What stands for an input or output of TACO: a text of lines, or, where a function is called,
    the value, with numbers for the keys of a dict if JSON made strings of them all."""
    if not called:
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
    one = value[0] if isinstance(value, list) and value else value
    if isinstance(one, dict) and all(re.fullmatch(r"-?\d+", key) for key in one):
        return [{int(k): v for k, v in one.items()}]
    return value


def _taco(rows: Iterable[dict], _, left_out: dict[str, int]) -> Iterator[tuple]:
    """TACO's training problems. Left out: those without tests or a question, and those whose tests
    are no JSON or do not pair up. The solution is the first that is published; it is not run."""
    left_out |= {"without_tests": 0, "broken_tests": 0, "without_question": 0}
    for number, row in enumerate(rows):
        try:
            tests = json.loads(row["input_output"] or "{}")
            solutions = json.loads(row["solutions"] or "[]")
            pairs = list(zip(tests.get("inputs", []), tests.get("outputs", []), strict=True))
        except (ValueError, AttributeError, TypeError):
            left_out["broken_tests"] += 1
            continue
        if not pairs or not row["question"].strip():
            left_out["without_question" if pairs else "without_tests"] += 1
            continue
        entry = tests.get("fn_name")
        how = f"Write the function `{entry}`." if entry else _STDIN
        if starter := _block(row["starter_code"] or ""):
            how += f" Start from this code:\n\n{starter}"
        tests = _cases("taco", entry, ((_meant(x, entry) for x in pair) for pair in pairs))
        yield f"TACO-{number}", row["question"], how, tests, _block("".join(solutions[:1]))


def _records(one: hub.HubSet, rows: Iterable, left_out: dict, folder: Path) -> Iterator[tuple]:
    """The rows of any set in the schema: of a format, or of a file whose answers are tests. The
    reader of a format yields (id, question, how to answer it, tests, solution)."""

    def own(value) -> str:  # tests, as JSON or as a text of it
        answer = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        return tests_of(answer) and answer

    try:
        if one.format is None:
            return (yield from hub.records(one, rows, own))
        read = {"taco": _taco, "livecodebench": _livecodebench}.get(one.format, _evalplus)
        source = hub.SOURCES[one.format][0].repo.removesuffix("plus_release")
        for name, question, how, tests, solution in read(rows, one.format, left_out):
            yield name, source, f"{question.strip()}\n\n{how}", _answer(tests, folder), solution
    except KeyError as error:
        has = f"its files have no column {error}"
        raise SettingsError(f"{one.name}: {has}: correct format") from None


def sets(run) -> dict:
    """hub.prepare; train problems whose prompt is longer than lengths.prompt are left out."""
    seed, asked = run.settings.seeds[0], run.settings.models

    def fits(problem: str) -> bool:
        try:
            return bool(prompts.student_prompts(run, seed, [{"problem": problem}]))
        except ValueError:
            prompts.student_prompts(run, seed, [{"problem": ""}])  # any other fault is raised
            return False

    made_by = [store.code_hash(hub), grader(run), run.model_path("student", seed)]
    made_by += [run.settings.lengths.prompt, asked.style, asked.student_thinking]
    return hub.prepare(run, made_by, lambda *read: _records(*read, run.data / "tests"), fits)
