"""Nonsense in, a sentence or a valid run out, no third outcome: `make fuzz`. Not in CI.

hypothesis mutates params.yaml (values, keys, whole sections, its bytes), the parameters of
notebooks, and the rows and bytes of data files. A case is refused in one sentence before a model is
loaded, or it runs: problem sets are made, a row of prompts, one step of training, three tokens.
What takes more than 20 s of CPU time counts as a hang. Every fault is listed with its input.
"""

import argparse
import collections
import copy
import functools
import io
import itertools
import json
import operator
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
SCALES, LIMIT = ("smoke", "smoke-code", "mine"), 20
NASTY = [
    None, True, False, [], {}, "", " ", "all", "none", "train", "../../x", "x;touch PWNED",
    "{seed}",
    "{role}", "a b", "é", "\ud800", "１２", "nan", "1e400", 0, -1, 1, 2, 7, 0.5, 1e-308, 1e308,
    10**12, 10**6000, float("inf"), float("nan"), [True], [0, 0], [None], [[]], {"a": 1}, {1: 2},
    {None: None}, "models/tiny/0/student", "opsd", "cross_entropy", "y_star", "lm_head",
]  # fmt: skip
MINE = """
  mine:
    task: math
    modes: [opsd]
    seeds: [0]
    models: {student: models/tiny/0/student, backend: transformers, dtype: float32, style: math}
    data:
      train: {file: mine/train.jsonl, rows: 6, columns: {solution: solution}}
      validation_problems: 2
      require_solution: true
      benchmarks: {test: {file: mine/test.jsonl, rows: 3}}
    rollout: {max_new_tokens: 8}
    refinement: {max_new_tokens: 8}
    evaluation: {sampling: {max_new_tokens: 8}}
"""


def yaml(value) -> str:
    out = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.width = False, 10**6
    writer.dump(value, out)
    return out.getvalue()


def whole() -> dict:
    """params.yaml, as far as the scales here need it, without anchors."""
    raw = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    raw["scales"] |= YAML(typ="safe", pure=True).load(MINE)
    raw["scales"] = {name: copy.deepcopy(raw["scales"][name]) for name in SCALES}
    raw["run"]["scales"] = ["smoke"]
    return copy.deepcopy(raw)


def rows(count: int) -> list[dict]:
    asked = [{"id": f"p{i}", "problem": f"{i}o-1p+6", "answer": str(i)} for i in range(count)]
    return [row | {"solution": f"\\boxed{{{row['answer']}}}"} for row in asked]


def places(node, path=()):
    """The path to every node."""
    yield path
    if isinstance(node, dict | list):
        for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield from places(child, (*path, key))


VALUES = st.sampled_from(NASTY) | st.integers() | st.floats() | st.text(max_size=6)


@st.composite
def mutated(draw, tree, changes=2):
    """The tree with one or two nodes replaced, removed, renamed, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, changes))):
        path = draw(st.sampled_from([p for p in places(tree) if p]))
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["set", "set", "set", "drop", "rename", "double", "move"])):
            case "set":
                parent[path[-1]] = copy.deepcopy(draw(VALUES))
            case "drop":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[draw(VALUES.filter(lambda v: v.__hash__))] = parent.pop(path[-1])
            case "double" if isinstance(parent, list):
                parent.append(parent[path[-1]])
            case _:
                other = draw(st.sampled_from([p for p in places(tree) if p]))
                parent[path[-1]] = copy.deepcopy(functools.reduce(operator.getitem, other, tree))
    return tree


@st.composite
def damaged(draw, text: bytes):
    """The bytes with a piece cut out, doubled, overwritten or appended, or in another encoding."""
    at, size = draw(st.integers(0, max(len(text) - 1, 0))), draw(st.integers(1, 40))
    head, piece, rest = text[:at], text[at : at + size], text[at + size :]
    junk = [
        b"\x00", b"\xff\xfe", b"{", b"]", b": ", b"\n\t", b"&a [*a]", b"*b", b"<<: ", b"'", b"- ",
    ]  # fmt: skip
    junk += [b"\xed\xa0\x80", b'"', b"!!x "]
    ways = [head, head + rest, head + piece * 3 + rest, head + draw(st.sampled_from(junk)) + rest]
    ways += [b"\xef\xbb\xbf" + text, text.decode(errors="replace").encode("utf-16"), b""]
    return draw(st.sampled_from(ways))


@st.composite
def cases(draw):
    """-> (kind, files: path -> bytes, scale, mode, method, a description)."""
    kind = draw(st.sampled_from(["values", "values", "bytes", "parameters", "rows", "data bytes"]))
    base, data, scale, mode, method = BASE, rows(6), draw(st.sampled_from(SCALES)), None, "trd"
    files = {"mine/test.jsonl": lines(rows(3))}
    if kind == "values":  # of the scale that is run, mostly
        base = copy.deepcopy(BASE)
        if draw(st.integers(0, 3)):
            base["scales"][scale] = draw(mutated(base["scales"][scale]))
        else:
            base = draw(mutated(base))
    text = BASE_TEXT if base is BASE else yaml_or_none(base)
    if kind == "bytes":
        text = draw(damaged(BASE_TEXT))
    if kind == "parameters":
        keys = [".".join(map(str, p)) for p in places(BASE["scales"][scale]) if p]
        change = f"{draw(st.sampled_from(keys))}={draw(VALUES)}"
        scale = draw(st.sampled_from([f"{scale} {change}", scale, change, str(draw(VALUES))]))
        mode = draw(st.sampled_from([None, "opd", "opsd", "none", "all"]) | st.text(max_size=4))
        method = draw(st.sampled_from([*BASE["methods"], "base", "all"]) | st.text(max_size=4))
    if kind == "rows":
        scale, data = "mine", draw(mutated(data, 3))
    files["mine/train.jsonl"] = lines(data)
    if kind == "data bytes":
        scale, files["mine/train.jsonl"] = "mine", draw(damaged(files["mine/train.jsonl"]))
    return kind, files | {"params.yaml": text}, scale, mode, method


def lines(data) -> bytes:
    data = data if isinstance(data, list) else [data]
    return "".join(json.dumps(row) + "\n" for row in data).encode(errors="surrogatepass")


def yaml_or_none(value) -> bytes | None:
    try:
        return yaml(value).encode(errors="surrogatepass")
    except Exception:  # what cannot be written down as YAML cannot be fed
        return None


class Hang(BaseException):
    pass


def alarm(*_):
    raise Hang(f"more than {LIMIT} s of CPU time")


def execute(scale, mode, method) -> str:
    """Refused, or run a little; anything else is raised."""
    from trdlib import distill, generate, prompts, tasks
    from trdlib.refine import Pair
    from trdlib.run import get_run
    from trdlib.settings import SettingsError, load

    loaded = []
    try:
        found = load()
        for name, one in found.scales.items():
            tasks.check(name, one)
        run = get_run(scale, mode, method, found)
        task = tasks.of(run)
        sets = task.sets()
        asked = sets["train"].to_dict("records")[:2]
        seed_ = run.settings.seeds[0]
        students = prompts.student_prompts(run, seed_, asked)
        if run.mode == "none":
            return "ran"
        teachers = prompts.teacher_prompts(run, seed_, asked, ["However, 1"] * len(asked))
        loaded.append("a model")
        distiller = distill.build(run, seed_)
        pairs = [Pair(x.ids, t.ids, [3, 4, 5]) for x, t in zip(students, teachers, strict=True)]
        how = run.settings.training.model_copy(update={"max_steps": 1})
        where = Path("checkpoints")
        distill.train(distiller, pairs, how, learning_rate=run.rates[0], seed=0, checkpoints=where)
        sampling = run.settings.rollout.model_dump(include={"temperature", "top_p", "top_k"})
        asked = [x.ids for x in students]
        generate.decode(distiller.student, asked, max_new_tokens=3, stop_ids=[1], **sampling)
        return "ran"
    except (SettingsError, FileNotFoundError, RuntimeError) as error:  # as ops/cli.py shows it
        text = str(error)
        if loaded and not isinstance(error, SettingsError):
            raise
        if "\n" in text.strip() or not 15 <= len(text) <= 900:
            raise AssertionError(f"no sentence: {text[:300]!r}") from error
        return "refused"


BASE = whole()
BASE_TEXT = yaml(BASE).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="trd-fuzz-"))
    os.symlink(ROOT / "models", folder / "models")
    os.chdir(folder)
    signal.signal(signal.SIGPROF, alarm)
    outcomes, faults, started = collections.Counter(), {}, time.monotonic()
    number = itertools.count(1)

    @seed(asked.seed)
    @settings(max_examples=asked.cases, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(cases())
    def one(case):
        kind, files, scale, mode, method = case
        if files["params.yaml"] is None:
            return
        for junk in ("data", "runs", "results", "checkpoints", "mine"):
            shutil.rmtree(junk, ignore_errors=True)
        for name, content in files.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(content)
        before = {*os.listdir("."), *os.listdir("..")}
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        try:
            outcome = execute(scale, mode, method)
        except (Exception, Hang) as error:
            last = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(f.filename).name}:{f.name}" for f in last if "trdlib" in f.filename]
            key = f"{type(error).__name__} in {(ours or ['?'])[-1]}: {str(error)[:120]}"
            outcome = "FAULT"
            if key not in faults:
                faults[key] = f"{kind}; {scale!r} {mode!r} {method!r}"
                keep = Path(f"fault-{len(faults)}")
                keep.mkdir()
                for name in files:
                    shutil.copy(name, keep)
                print(f"\n{key}\n    {faults[key]}, files in {folder / keep}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        new = {*os.listdir("."), *os.listdir("..")} - before
        if strange := {n for n in new if "PWNED" in n or n == "x"}:
            print(f"WROTE OUTSIDE: {strange}", flush=True)
            outcome = "FAULT"
        outcomes[kind, outcome] += 1
        print(f"\r{next(number)} cases", end="", file=sys.stderr)

    one()
    print(f"\n{sum(outcomes.values())} cases in {time.monotonic() - started:.0f} s")
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"  {kind}: {outcome} {count}")
    print(f"{len(faults)} different faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
