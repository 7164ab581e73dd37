"""What a notebook takes (`check`), gives (`record`) and is made of (`made_of`, for DVC, sweeps)."""

import ast
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trdlib import jobs, store
from trdlib.analysis.measure import correct_counts, rates
from trdlib.ops import cluster  # noqa: F401 - from now on jobs may run there
from trdlib.run import get_runs, plain_value
from trdlib.settings import Settings, SettingsError, known, root

MIME = "application/vnd.trd.result+json"
PACKAGE = Path(__file__).parents[1]
_NAME = re.compile(r"[\w-]*(\.\w+)+\.?")  # of a module, the beginning of one, or of a file
_TYPES = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}  # exactly these


def path_of(name: str) -> Path:
    """The file in notebooks/ of this name; SettingsError if there is none."""
    there = {path.stem: path for path in sorted((root() / "notebooks").glob("*.ipynb"))}
    known("notebook", Path(name).stem, there)
    return there[Path(name).stem]


def parameters(notebook) -> dict[str, tuple[str, Any]]:
    """-> {name: (type, default)} of a notebook node, as papermill reads them."""
    from papermill.translators import PythonTranslator

    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    found = PythonTranslator.inspect(tagged[0]) if tagged else []
    return {p.name: (p.inferred_type_name, plain_value(p.default)) for p in found}


def check(notebook, given: dict[str, Any], settings: Settings | None = None) -> None:
    """SettingsError in one sentence if a parameter is unknown, of another type, or names no run."""
    takes = parameters(notebook)
    for name, value in given.items():
        known("such parameter", name, takes)
        kind, default = takes[name]
        right = _TYPES.get(kind, (type(value),))
        if type(value) not in right and (value is not None or default is not None):
            raise SettingsError(f"{name} takes a {kind}, not {value!r}")
    if "scale" in takes:
        values = {"mode": None, "method": "trd", **{n: usual for n, (_, usual) in takes.items()}}
        of_run = ("scale", "mode", "method", "learning_rate", "seed", "tracker")
        named = {name: value for name, value in (values | given).items() if name in of_run}
        get_runs(**named, settings=settings)


def record(**found) -> None:
    """Leave numbers, texts, accuracies (`counts`) in the notebook's output, at its end."""
    from IPython.display import display

    shares = {n: rates(v).mean() for n, v in found.items() if isinstance(v, dict)}
    said = "\n".join(f"{name}: {value}" for name, value in (found | shares).items())
    display({MIME: found, "text/plain": said}, raw=True)


def counts(correct, k, problems: str = "") -> dict:
    """Right samples of k (a number, or one a problem), (seeds, problems), and a hash of these."""
    rows = [[int(value) for value in row] for row in correct]
    return {"correct": rows, "k": np.asarray(k).tolist(), "problems": problems}


def measured(samples: pd.DataFrame, problems: pd.DataFrame) -> dict:
    """`counts` of a table of samples (with a column seed)."""
    return counts(*correct_counts(samples), store.content_hash(problems["problem"].tolist()))


def recorded(notebook) -> dict:
    """What an executed notebook left; {} if it left nothing."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    left = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    return left[-1] if left else {}


def write_timing(stage: str, workers: int = 1) -> None:
    """Note the model compute of a stage so far, for the closing report."""
    spent, path = jobs.compute["seconds"], root() / "runs" / "timings" / f"{stage}.json"
    print(f"model compute: {spent:.1f} core-seconds", file=sys.stderr)
    store.write_json(path, {"core_seconds": spent, "workers": workers})


def made_of(path: Path) -> dict:
    """{"cells": hash of each code cell, "trdlib": {file: hash}}, less comments, layout, outputs."""
    cells, found, code = json.loads(path.read_bytes())["cells"], [], ""
    for cell in ("".join(c["source"]) for c in cells if c["cell_type"] == "code"):
        try:
            found.append(store.source_hash(cell))
            code += f"{cell}\n"
        except SyntaxError:  # it has magics
            found.append(store.content_hash(cell))
            code += re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.M) + "\n"
    try:
        return {"cells": found, "trdlib": hashes(code)}
    except SyntaxError as error:
        raise SettingsError(f"{path.name}: {error.msg} in {(error.text or '').strip()!r}") from None


def hashes(source: str) -> dict[str, str]:
    """{"trdlib/run.py": hash}, of all files that a source needs: what imports name, the packages
    around it, and what texts name: a module, a package (f"trdlib.tasks.{name}"), a file beside."""
    found, waiting = {}, {*_named(source, None, PACKAGE)}
    while waiting:
        path = waiting.pop()
        text, code = path.read_text(encoding="utf-8"), path.suffix == ".py"
        found[path] = store.source_hash(text) if code else store.content_hash(text)
        waiting |= _named(text, path, PACKAGE) - found.keys() if code else set()
    return {path.relative_to(PACKAGE.parent).as_posix(): h for path, h in found.items()}


@functools.cache
def _named(source: str, path: Path | None, home: Path) -> set[Path]:
    """The files of trdlib (in `home`) that a source names; path: its own, if it is of trdlib."""
    package = path.relative_to(home.parent).parent.parts if path else ()
    names, found = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join(filter(None, [*above, node.module]))
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and re.fullmatch(_NAME, text := str(node.value)):
            names.append(text)
            if path:
                found.add(path.with_suffix(text) if text[0] == "." else path.with_name(text))
    for name in names:
        top, *parts = name.split(".")
        if top == home.name:
            for n in range(len(parts) + 1):
                inner = home.joinpath(*parts[:n])
                found |= {inner / "__init__.py", inner.with_suffix(".py")}
            found |= set(inner.glob("*.py")) if name.endswith(".") else set()
        elif path and top not in sys.stdlib_module_names:
            found.add(path.with_name(f"{top}.py"))
    return {one for one in found if one.is_file()}
