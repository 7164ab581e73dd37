"""What a notebook takes and what it gives: its parameters, checked, and what it found, for others.

Parameters stand in the cell tagged `parameters`, each with a type and a comment, which is where
`papermill --help-notebook` reads them. Plain papermill only warns of an unknown name, and lets the
notebook fail on a wrong value; its engine `trd` (papermill_engine.py) and a sweep ask `check`
first, before a kernel starts.

What a notebook found it leaves in its own output (`record`), so that an executed notebook says
which parameters gave which numbers, and nothing else has to be kept with it.
"""

from __future__ import annotations

import ast
import difflib
import re
from pathlib import Path
from typing import Any

from trdlib import config

MIME = "application/vnd.trd.result+json"
_TYPES = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}


def path_of(name: str) -> Path:
    """The notebook of this name or path; SettingsError if there is none."""
    folder = config.root() / "notebooks"
    for path in (Path(name), folder / name, folder / f"{name}.ipynb"):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    there = ", ".join(sorted(p.stem for p in folder.glob("*.ipynb")))
    raise config.SettingsError(f"there is no notebook {name!r}: choose from {there}")


def parameters(notebook) -> dict[str, tuple[str, Any]]:
    """-> {name: (type, default)} of a notebook node, as papermill reads them."""
    from papermill.translators import PythonTranslator

    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    found = PythonTranslator.inspect(tagged[0]) if tagged else []
    return {p.name: (p.inferred_type_name, _literal(p.default)) for p in found}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # an expression: nobody here needs its value


def check(notebook, given: dict[str, Any], settings: config.Settings | None = None) -> None:
    """SettingsError in one sentence if a parameter is unknown, of another type, or names no run."""
    known = parameters(notebook)
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise config.SettingsError(f"the notebook has no parameter {name!r}: {hint}")
        kind, default = known[name]
        right = isinstance(value, _TYPES.get(kind, (object,)))
        if isinstance(value, bool) and kind in ("int", "float"):
            right = False
        if not (right or (value is None and default is None)):
            raise config.SettingsError(f"{name} takes a {kind}, not {value!r}")
    if "scale" in known:
        values = {name: default for name, (_, default) in known.items()} | given
        usual = {"task": "math", "mode": None, "method": "trd"}
        takes = {"scale", *usual, "learning_rate", "seed", "tracker"}
        config.runs(**usual | {k: v for k, v in values.items() if k in takes}, settings=settings)


# --------------------------------------------------------------------------------- what it found


def counts(correct, k: int, problems: str = "") -> dict:
    """A measured accuracy as `record` wants it, so that it can be resampled and compared.

    correct: right samples of k, (seeds, problems); problems: a hash of the problems, so that only
    what was measured on the same ones is compared problem by problem.
    """
    rows = [[int(value) for value in row] for row in correct]
    return {"correct": rows, "k": int(k), "problems": problems}


def record(**found) -> None:
    """Leave what the notebook found in its output: numbers, texts, and accuracies by `counts`.

    A notebook calls it once, at its end.
    """
    from IPython.display import display

    def short(value) -> str:
        if not isinstance(value, dict):
            return f"{value:g}" if isinstance(value, float) else str(value)
        size = len(value["correct"]) * len(value["correct"][0]) * value["k"]
        return f"{sum(map(sum, value['correct'])) / size:.1%}"

    lines = [f"{name}: {short(value)}" for name, value in found.items()]
    display({MIME: found, "text/plain": "\n".join(lines)}, raw=True)


def recorded(path: Path) -> dict | None:
    """What an executed notebook left; None if it left nothing."""
    import nbformat  # two seconds, of which every kernel would take its part

    for cell in reversed(nbformat.read(path, as_version=4).cells):
        for output in cell.get("outputs", []):
            if MIME in output.get("data", {}):
                return output["data"][MIME]
    return None


# ------------------------------------------------------------------------------- what it is made of


def code_hash(notebook) -> str:
    """Hash of a notebook's code and of every module of trdlib that it uses, directly or not."""
    here, seen = Path(__file__).parent, {}
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    waiting = list(code)
    while waiting:
        for names in re.findall(r"^\s*from (?:trdlib) import ([\w, ]+)", waiting.pop(), re.M):
            for name in re.findall(r"\w+", names):
                if name not in seen:
                    source = (here / f"{name}.py").read_text(encoding="utf-8")
                    seen[name] = config.source_hash(source)
                    waiting.append(source)
    return config.content_hash(code, seen)
