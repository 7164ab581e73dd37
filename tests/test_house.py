"""The house keeps its shape: which room may look into which, and how large each is."""

import ast
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "trdlib"
# room -> the modules and rooms that its files may import; the method: the files of trdlib itself
MAY = {
    "tasks": {"tasks", "sandbox", "settings", "store", "prompts"},
    "sandbox": {"sandbox", "settings"},
    "analysis": {"analysis", "tasks", "sandbox", "the method"},
    "ops": {"ops", "analysis", "tasks", "sandbox", "the method"},
}
ROOMS = set(MAY)


def imported(source: str, package: str) -> set[str]:
    """What a source imports of trdlib, as names below it: {"tasks.math", "settings"}, wherever."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("trdlib.") for a in node.names if a.name != "trdlib"
                      and a.name.startswith("trdlib.")}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module or ""] if node.level else [node.module]).strip(".")
            if base == "trdlib":
                found |= {alias.name for alias in node.names}
            elif base.startswith("trdlib."):
                found.add(base.removeprefix("trdlib."))
    return found


def files():
    return sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_arrows(path):
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0] if len(relative.parts) > 1 else "the method"
    package = ".".join(["trdlib", *relative.parts[:-1]])
    seen = imported(path.read_text(encoding="utf-8"), package)
    if room == "the method":
        looks = {name for name in seen if name.split(".")[0] in ROOMS}
        looks -= {"ops.cli", "ops"} if path.name == "__main__.py" else set()
        assert not looks, f"{relative} looks into {looks}"
        return
    for name in seen:
        top = name.split(".")[0]
        method = "the method" in MAY[room] and top not in ROOMS
        assert method or top in MAY[room], f"{relative} imports {name}"


def test_an_arrow_is_seen_however_it_is_written():
    source = "def f():\n    from trdlib import (\n        jobs as j,\n        tasks,\n    )\n"
    source += "    import trdlib.sandbox.jail as x\n    from trdlib.ops.plan import show\n"
    assert imported(source, "trdlib") == {"jobs", "tasks", "sandbox.jail", "ops.plan"}
    assert imported("from . import jobs\nfrom .tasks import math\n", "trdlib") == {"jobs", "tasks"}
    assert imported("from ..ops import plan\n", "trdlib.tasks") == {"ops"}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_budgets_are_kept():
    method = list(PACKAGE.glob("*.py"))
    sizes = {path.relative_to(PACKAGE): lines(path) for path in files()}
    assert len(method) <= 16
    assert sum(map(lines, method)) <= 3000
    assert max(map(lines, method)) <= 450
    assert sum(sizes.values()) <= 9000
    assert max(sizes.values()) <= 600
    assert lines(REPOSITORY / "README.md") <= 220
    assert lines(REPOSITORY / "dvc.yaml") <= 130
    assert lines(REPOSITORY / "Makefile") <= 50


def test_a_default_repro_starts_few_kernels():
    """A stage is one notebook for one scale."""
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    scales = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["run"]["scales"]
    kernels = 0
    for stage in stages.values():
        runs = str(stage["cmd"]).count("notebooks/")
        kernels += runs * (len(scales) if "matrix" in stage else 1)
        assert set(stage.get("matrix", {})) <= {"scale"}
    assert 0 < kernels <= 20
