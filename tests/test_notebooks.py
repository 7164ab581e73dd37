"""Every notebook: paired, parameterised, documented, and run from top to bottom at smoke."""

import os
import shutil
import subprocess
import sys

import click
import jupytext
import nbformat
import papermill
import pytest
from conftest import REPOSITORY, copy_models
from jupyter_client.kernelspec import NoSuchKernel

from trdlib.ops import notebooks
from trdlib.ops.papermill_engine import CheckedEngine
from trdlib.settings import SettingsError

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def test_there_is_one_for_each_step():
    names = [path.stem for path in NOTEBOOKS]
    assert names == sorted(p.stem for p in (REPOSITORY / "notebooks").glob("*.py"))
    assert {*names} == {
        "0_explore", "1_prepare", "2_rollout", "3_refine", "4_distill", "5_evaluate", "6_diagnose",
        "6_map", "7_tables", "8_audit", "9_sweep", "10_report",
    }  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pair_agrees_and_is_clean(path):
    """The .py is what people edit: it must be what papermill runs. `jupytext --sync` mends it."""
    notebook = nbformat.read(path, as_version=4)
    script = jupytext.read(path.with_suffix(".py"))
    cells = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]
    assert cells == [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in script.cells]
    assert all(not c.get("outputs") for c in notebook.cells), "clear the outputs before a commit"
    assert notebook.cells[0].cell_type == "markdown"
    assert len(notebook.cells[0].source) > 200, "say what we are about to see"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_typed_and_documented_and_default_to_smoke(path):
    """As `papermill --help-notebook` shows them: none lost to its parser, each with its comment."""
    found = papermill.inspect_notebook(str(path))
    cells = [c for c in jupytext.read(path).cells if "parameters" in c.metadata.get("tags", [])]
    lines = [line for cell in cells for line in cell.source.splitlines() if line[0] != "#"]
    assert [line.split(":")[0] for line in lines] == list(found)
    for name, about in found.items():
        assert about["inferred_type_name"] in ("str", "int", "float", "bool"), name
        assert about["help"], f"{name} has no comment"
    if "scale" in found:
        assert found["scale"]["default"] == '"smoke"'


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("4_distill", {"learning_rat": 1e-5}, "no such parameter 'learning_rat'"),
        ("4_distill", {"learning_rate": "fast"}, "learning_rate takes a float, not 'fast'"),
        ("4_distill", {"seed": True}, "seed takes a int, not True"),
        ("4_distill", {"method": None}, "method takes a str, not None"),
        ("4_distill", {"mode": "oracle"}, "no mode of the scale smoke 'oracle'"),
        ("4_distill", {"mode": "all", "method": "dpo"}, "no method 'dpo'"),
        ("4_distill", {"scale": "smoke lora.rank=2"}, "lora.rank: unknown key"),
        ("4_distill", {"tracker": "paper"}, "tracker: .*not 'paper'"),
        ("5_evaluate", {"mode": "none", "method": "trd"}, "no reference row"),
        ("8_audit", {"power": "small"}, "power takes a float, not 'small'"),
    ],
)
def test_wrong_parameters_are_refused(project, name, given, words):
    node = nbformat.read(REPOSITORY / "notebooks" / f"{name}.ipynb", as_version=4)
    with pytest.raises(SettingsError, match=words):
        notebooks.check(node, given)
    right = {"power": 0.9} if name == "8_audit" else {"scale": "smoke lora.r=2", "mode": "all"}
    notebooks.check(node, right)
    notebooks.check(node, {})


def test_the_engine_refuses_before_a_kernel_starts(project, monkeypatch):
    """`papermill --engine trd`: without an installation, which registers it, by hand."""
    engines = papermill.engines.papermill_engines
    assert engines._engines.get("trd", CheckedEngine).__name__ == "CheckedEngine"
    monkeypatch.setitem(engines._engines, "trd", CheckedEngine)
    source = str(REPOSITORY / "notebooks" / "4_distill.ipynb")
    how = {"engine_name": "trd", "kernel_name": "no_such_kernel", "progress_bar": False}
    with pytest.raises(click.ClickException, match="no such parameter 'learning_rat'"):
        papermill.execute_notebook(source, "out.ipynb", {"learning_rat": 1e-5}, **how)
    assert not (project / "out.ipynb").exists()
    with pytest.raises(NoSuchKernel):  # what is right gets as far as the kernel
        papermill.execute_notebook(source, "out.ipynb", {"learning_rate": 1e-5}, **how)


def test_each_runs_alone(tmp_path):
    """Where a user opens it and presses "run all"; the later ones find nothing prepared but what
    the ones before left."""
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    copy_models(tmp_path)
    shutil.copytree(REPOSITORY / "results" / "published", tmp_path / "results" / "published")
    params = (REPOSITORY / "params.yaml").read_text()
    for much, less in (  # test_map.py has the others
        ("rounds: [1, 2]", "rounds: [1]"),
        ("oracles: [forward_kl_cut, forward_kl_no_onsets]", "oracles: [forward_kl_no_onsets]"),
        ("seeds: [0, 1]\n", "seeds: [0]\n"),  # test_pipeline.py has both
    ):
        assert params.count(much) == 1
        params = params.replace(much, less)
    (tmp_path / "params.yaml").write_text(params)
    # 4 first: it must make its own attempts and rewrites
    order = ["4_distill", "1_prepare", "2_rollout", "3_refine", "5_evaluate", "6_diagnose"]
    order += ["7_tables", "0_explore", "10_report", "6_map", "8_audit", "9_sweep"]
    assert {*order} == {path.stem for path in NOTEBOOKS}
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=300", "-xq",
         "-p", "no:cacheprovider", "-p", "no:xdist", *(f"notebooks/{n}.ipynb" for n in order)],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for name in (
        "results/tables/smoke/opd.md", "results/diagnosis/smoke/opd.csv",
        "results/tables/map_smoke.md", "results/tables/audit.md", "results/against_paper.md",
        "runs/smoke/distill/opd/trd/0/adapter/adapter_model.safetensors",
        "runs/sweeps/example/validation.png",
    ):  # fmt: skip
        assert (tmp_path / name).is_file(), name
