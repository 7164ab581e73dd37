"""What a notebook takes, what it gives, and what it is made of.

Plain papermill only warns of an unknown parameter, and lets the notebook fail on a wrong value; its
engine `trd` (papermill_engine.py) and a sweep ask `check` before a kernel starts. What a notebook
found it leaves in its own output (`record`). What it is made of (`made_of`) is its code and all
that it uses of trdlib: DVC's stages and the jobs of a sweep are done again when that changes.
"""

import ast
import difflib
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from trdlib import store
from trdlib.run import get_runs
from trdlib.settings import Settings, SettingsError, root

MIME = "application/vnd.trd.result+json"
PACKAGE = Path(__file__).parents[1]
_NAME = re.compile(r"[\w-]*(\.\w+)+\.?")  # of a module, the beginning of one, or of a file
_TYPES = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}  # exactly these


def path_of(name: str) -> Path:
    """The file in notebooks/ of this name; SettingsError if there is none."""
    there = {path.stem: path for path in sorted((root() / "notebooks").glob("*.ipynb"))}
    if Path(name).stem not in there:
        raise SettingsError(f"there is no notebook {name!r}: choose from {', '.join(there)}")
    return there[Path(name).stem]


def parameters(notebook) -> dict[str, tuple[str, Any]]:
    """-> {name: (type, default)} of a notebook node, as papermill reads them."""
    from papermill.translators import PythonTranslator

    def literal(text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text  # an expression: nobody here needs its value

    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    found = PythonTranslator.inspect(tagged[0]) if tagged else []
    return {p.name: (p.inferred_type_name, literal(p.default)) for p in found}


def check(notebook, given: dict[str, Any], settings: Settings | None = None) -> None:
    """SettingsError in one sentence if a parameter is unknown, of another type, or names no run."""
    known = parameters(notebook)
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise SettingsError(f"the notebook has no parameter {name!r}: {hint}")
        kind, default = known[name]
        right = type(value) in _TYPES.get(kind, (type(value),))
        if not (right or (value is None and default is None)):
            raise SettingsError(f"{name} takes a {kind}, not {value!r}")
    if "scale" in known:
        values = {name: default for name, (_, default) in known.items()} | given
        usual = {"mode": None, "method": "trd"}
        takes = {"scale", *usual, "learning_rate", "seed", "tracker"}
        get_runs(**usual | {k: v for k, v in values.items() if k in takes}, settings=settings)


def record(**found) -> None:
    """Leave what the notebook found in its output, once, at its end: numbers, texts, and accuracies
    as `chain.counts` makes them, so that they can be resampled and compared."""
    from IPython.display import display

    shares = {n: np.mean(v["correct"]) / v["k"] for n, v in found.items() if isinstance(v, dict)}
    lines = [f"{name}: {value}" for name, value in (found | shares).items()]
    display({MIME: found, "text/plain": "\n".join(lines)}, raw=True)


def recorded(notebook) -> dict:
    """What an executed notebook left; {} if it left nothing."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    left = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
    return left[-1] if left else {}


def made_of(path: Path) -> dict:
    """{"cells": hash of each code cell, "trdlib": {file: hash}}, of what a notebook's code uses;
    comments, docstrings, layout and outputs are no part of it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [_code("".join(c["source"])) for c in cells if c["cell_type"] == "code"]
    try:
        used = hashes("\n".join(python for _, python in code))
    except SyntaxError as error:
        raise SettingsError(f"{path.name}: {error.msg} in {(error.text or '').strip()!r}") from None
    return {"cells": [of_cell for of_cell, _ in code], "trdlib": used}


def _code(cell: str) -> tuple[str, str]:
    """(hash, the Python in it) of a cell."""
    try:
        return store.source_hash(cell), cell
    except SyntaxError:  # it has magics
        return store.content_hash(cell), re.sub(r"^(\s*)[%!].*$", r"\1pass", cell, flags=re.M)


def code_hash(path: Path) -> str:
    """Hash of a notebook's code and of every file of trdlib that it uses, directly or not."""
    return store.content_hash(made_of(path))


def hashes(source: str) -> dict[str, str]:
    """{"trdlib/run.py": hash of what is in it}, of the files that a source needs, directly or not.

    Those that an import names, however it is written, the packages around them, and what a text
    names: a module ("trdlib.tasks.math"), all of a package (f"trdlib.tasks.{name}"), or a file
    beside the one that names it ("page.html", with_suffix(".yaml"); a script, and what it imports).
    """
    found, waiting = {}, _named(source, None)
    while waiting:
        path = waiting.pop()
        about = path.stat()
        found[path], names = _file(path, about.st_mtime_ns, about.st_size)
        waiting |= names - found.keys()
    return {path.relative_to(PACKAGE.parent).as_posix(): h for path, h in found.items()}


@functools.cache
def _file(path: Path, mtime_ns: int, size: int) -> tuple[str, frozenset[Path]]:
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return store.content_hash(source), frozenset()
    return store.source_hash(source), frozenset(_named(source, path))


def _named(source: str, path: Path | None) -> set[Path]:
    """The files of trdlib that a source names; path: its own, if it is of trdlib."""
    package = path.relative_to(PACKAGE.parent).parent.parts if path else ()
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
        if top == PACKAGE.name:
            for n in range(len(parts) + 1):
                inner = PACKAGE.joinpath(*parts[:n])
                found |= {inner / "__init__.py", inner.with_suffix(".py")}
            found |= set(inner.glob("*.py")) if name.endswith(".") else set()
        elif path and top not in sys.stdlib_module_names:
            found.add(path.with_name(f"{top}.py"))
    return {one for one in found if one.is_file()}
