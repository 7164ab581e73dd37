"""The pipeline as a user runs it: dvc repro, killed at any moment, and again."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import REPOSITORY

METRICS, TABLES = "results/metrics", "results/tables"
TABLES_STAGE = "tables@smoke-math-opd"


def checkout(folder: Path, task: str = "math") -> Path:
    """A copy of the repository whose pipeline is one mode and one method at the smoke scale."""
    for name in ("notebooks", "trdlib", ".dvc", "models"):
        skip = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skip)
    for name in ("dvc.yaml", "dvc.lock", ".dvcignore", ".gitignore", "params.yaml", "README.md"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "results" / "published", folder / "results" / "published")
    (folder / "runs" / "executed").mkdir(parents=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["run"] = {"scales": ["smoke"], "tasks": [task], "modes": ["opd"]}
    params["run"]["methods"] = ["trd"]
    params["run"]["ablation"] = {"tasks": ["math"], "modes": ["opd"], "methods": []}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(
        ["git", *who, "commit", "-q", "--allow-empty", "-m", "start"], cwd=folder, check=True
    )
    return folder


def environment():
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": "."}


def trdlib(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "trdlib", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=True
    ).stdout


def repro(folder: Path, *targets: str):
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *targets], cwd=folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(folder: Path, *targets: str) -> str:
    process = repro(folder, *targets)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-5000:]
    return output


def kill_when(folder: Path, pattern: str) -> None:
    """kill -9 the pipeline, with everything it started, as soon as a file of this name appears."""
    process = repro(folder, TABLES_STAGE)
    deadline = time.monotonic() + 300
    while not any(folder.glob(pattern)):
        assert process.poll() is None, f"it ended before {pattern}: {process.stdout.read()[-3000:]}"
        assert time.monotonic() < deadline, f"{pattern} never appeared"
        time.sleep(0.002)
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.wait()


def results(folder: Path) -> dict[str, bytes]:
    files = [*(folder / METRICS).rglob("*.json"), *(folder / TABLES).glob("*")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def in_smoke(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in found.items() if "smoke" in name}


@pytest.mark.xdist_group("pipeline")
def test_killed_three_times_it_ends_in_the_same_bytes(tmp_path):
    whole, cut = checkout(tmp_path / "whole"), checkout(tmp_path / "cut")
    finish(whole)
    expected = in_smoke(results(whole))
    assert {Path(name).name for name in expected} == {
        "base.json", "base_again.json", "teacher.json", "trd.json",
        "opd_math_smoke.md", "opd_math_smoke.csv", "opd_math_smoke.tex",
        "coverage_opd_math_smoke.csv", "diagnose_opd_math_smoke.md", "diagnose_opd_math_smoke.csv",
    }  # fmt: skip
    page = (whole / "results" / "report.html").read_text()
    cells = (whole / "results" / "tables" / "opd_math_smoke.md").read_text().splitlines()
    trd = next(line for line in cells if line.startswith("| trd "))
    assert all(cell.strip() in page for cell in trd.split("|")[1:-1])
    assert "up to date" in finish(whole)  # a second run does nothing, and says so
    said = trdlib(whole, "times")
    for stage in ("2_rollout-smoke-math", "4_distill-smoke-math-opd-trd"):
        assert re.search(rf"^{stage} +\d+\.\d +\d+\.\d$", said, re.M)
    assert re.search(r"\d% is not model compute", said)
    assert "nothing to do" in trdlib(whole, "times", "--since", str(time.time()))

    kill_when(cut, "runs/smoke/math/y_o.parquet.seeds/*.parts/*/*.json")
    assert not (cut / "runs/smoke/math/y_o.parquet").exists()
    kill_when(cut, "runs/smoke/math/opd/trd/1/candidates/*")
    assert not (cut / "runs/smoke/math/opd/trd/1/adapter").exists()
    kill_when(cut, "results/tables/opd_math_smoke.md")
    finish(cut, TABLES_STAGE)
    again = in_smoke(results(cut))
    assert again == {name: expected[name] for name in expected if "diagnose" not in name}


def test_code_runs_from_the_problems_to_the_tables(tmp_path):
    folder = checkout(tmp_path, "code")
    finish(folder, "tables@smoke-code-opd")
    found = in_smoke(results(folder))
    assert {Path(name).name for name in found} == {
        "base.json", "base_again.json", "teacher.json", "trd.json",
        "opd_code_smoke.md", "opd_code_smoke.csv", "opd_code_smoke.tex",
        "coverage_opd_code_smoke.csv",
    }  # fmt: skip
    table = found["results/tables/opd_code_smoke.csv"].decode().splitlines()
    cells = [line.split(",")[:3] for line in table if line.startswith("trd,")]
    assert cells == [["trd", "code", "True"], ["trd", "code_hard", "True"]]


def test_a_wrong_parameter_stops_before_any_model_loads(tmp_path):
    folder = checkout(tmp_path)
    text = (folder / "params.yaml").read_text().replace("learning_rates:", "learning_rate:")
    (folder / "params.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trdlib", "check"], cwd=folder,
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "learning_rate" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("error: params.yaml:")
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in imported
    assert not imported & {"torch", "transformers"}


def test_make_repro_asks_dvc_what_it_understands():
    """Each call of dvc in the recipe, read by DVC's own parser; its targets are names of stages."""
    from dvc.cli.parser import get_main_parser

    shown = ["make", "-n", "repro", "SCALE=tiny", "PYTHON=true"]
    said = subprocess.run(shown, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    calls = re.findall(r"\bdvc [^;&|'}]*", said.replace('"$@"', "'*@*-opd-*' audit"))
    assert len(calls) >= 4
    stages = set(yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]) | {"*"}
    for call in calls:
        asked = get_main_parser().parse_args(call.replace("'", "").replace('"', "").split()[1:])
        assert asked.wait_for_lock
        assert {target.split("@")[0] for target in asked.targets or []} <= stages
    lanes = re.findall(r"'([a-z*]+@[^']+)'", said.split("printf")[1].split("xargs")[0])
    assert {target.split("@")[0] for lane in lanes for target in lane.split()} <= stages


def test_select_runs_what_is_asked():
    def run_of(*arguments: str) -> dict:
        return yaml.safe_load(trdlib(REPOSITORY, "select", *arguments))["run"]

    usual = yaml.safe_load((REPOSITORY / "params.yaml").read_text())["run"]
    assert run_of("--scale", "tiny") == usual
    code = run_of("--scale", "qwen3-8b", "--tasks", "code", "--modes", "")
    assert (code["tasks"], code["modes"]) == (["code"], ["opsd"])
    assert code["ablation"]["tasks"] == []  # it is of math
    few = run_of("--scale", "smol")
    assert (few["tasks"], few["methods"]) == (["math"], ["forward_kl", "trd"])


def test_the_readme_shows_the_committed_tables():
    """The headline tables of the README are those of the result files."""
    from trdlib import config, tables

    settings = config.load(REPOSITORY / "params.yaml")
    text = (REPOSITORY / "README.md").read_text()
    axes = itertools.product(settings.run.scales, settings.run.tasks, settings.run.modes)
    for run in (config.run(*cell, settings=settings) for cell in axes):
        assert tables.headline(run) in text, "run: python -m trdlib readme"
