"""Every notebook: paired, parameterised, documented, and run from top to bottom at smoke."""

import os
import shutil
import subprocess
import sys

import jupytext
import nbformat
import papermill
import pytest
from conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def test_there_is_one_for_each_step():
    names = [path.stem for path in NOTEBOOKS]
    assert names == sorted(p.stem for p in (REPOSITORY / "notebooks").glob("*.py"))
    steps = ["prepare", "rollout", "refine", "distill", "evaluate", "diagnose", "tables", "audit"]
    assert {f"{number}_{step}" for number, step in enumerate(steps, 1)} <= {*names}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pair_agrees_and_is_clean(path):
    """The .py is what DVC tracks: it must be what papermill runs. `make notebooks` mends it."""
    notebook = nbformat.read(path, as_version=4)
    script = jupytext.read(path.with_suffix(".py"))
    cells = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]
    assert cells == [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in script.cells]
    assert all(not c.get("outputs") for c in notebook.cells), "clear the outputs before a commit"
    assert notebook.cells[0].cell_type == "markdown"
    assert len(notebook.cells[0].source) > 200, "say what we are about to see"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_known_to_papermill_and_default_to_smoke(path):
    found = papermill.inspect_notebook(str(path))
    if path.stem == "8_audit":  # reads published files: it has no scale
        assert set(found) == {"confidence", "alpha", "power"}
        assert all(about["help"] for about in found.values())
        return
    assert found["scale"]["default"] == '"smoke"'
    assert set(found) <= {"scale", "task", "mode", "method", "seed", "learning_rate"}
    assert found["scale"]["help"], "each parameter has a comment"


def test_each_runs_alone_from_jupyter(tmp_path):
    """As a user who opens it in notebooks/ and presses "run all"; the later ones find nothing
    prepared but what the ones before left."""
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    shutil.copytree(REPOSITORY / "models" / "smoke", tmp_path / "models" / "smoke")
    shutil.copytree(REPOSITORY / "results" / "published", tmp_path / "results" / "published")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    # 4 first: it must make its own attempts and rewrites
    order = ["4_distill", "1_prepare", "2_rollout", "3_refine", "5_evaluate", "6_diagnose"]
    order += ["6_map", "7_tables", "8_audit", "0_explore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=300", "-q",
         "-p", "no:cacheprovider", "-p", "no:xdist", *(f"notebooks/{n}.ipynb" for n in order)],
        cwd=tmp_path, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for name in (
        "opd_math_smoke.md", "diagnose_opd_math_smoke.csv", "map_smoke.md", "audit.md",
    ):  # fmt: skip
        assert (tmp_path / "results" / "tables" / name).is_file()
    assert (tmp_path / "runs" / "smoke" / "math" / "opd" / "trd" / "0" / "adapter").is_dir()
