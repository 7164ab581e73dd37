"""The pipeline as a user runs it: dvc repro, killed at any moment, and again."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from conftest import QUICK, REPOSITORY, copy_models, kill_all_in


def checkout(folder: Path) -> Path:
    """A copy of the repository whose pipeline is one mode and one method at the scale smoke."""
    for name in ("notebooks", "trdlib", "scripts", ".dvc"):
        skip = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skip)
    copy_models(folder)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "params.yaml", "README.md"):
        shutil.copy(REPOSITORY / name, folder)
    shutil.copytree(REPOSITORY / "results" / "published", folder / "results" / "published")
    (folder / "runs" / "executed").mkdir(parents=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["run"] = {"scales": ["smoke"], "methods": ["trd"]}
    smoke = params["scales"]["smoke"]
    smoke |= {"modes": ["opd"], "variants": {}}
    smoke["rollout"] = smoke["rollout"] | {"batch_size": 8}  # so that it can be killed half way
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "start"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def environment():
    """The library of the folder, not that of the repository."""
    return os.environ | {"PYTHONPATH": f".{os.pathsep}{QUICK}"}


def report(folder: Path, *more: str) -> str:
    command = [sys.executable, "-m", "trdlib", "report", *more]
    how = {"cwd": folder, "env": environment(), "capture_output": True, "text": True}
    return subprocess.run(command, check=True, **how).stdout


def repro(folder: Path, *targets: str):
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *targets], cwd=folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(folder: Path, *targets: str) -> str:
    process = repro(folder, *targets)
    output, _ = process.communicate(timeout=1800)  # a guard, no measure
    assert process.returncode == 0, output[-5000:]
    return output


def kill_when(folder: Path, pattern: str) -> None:
    """kill -9 the pipeline, with everything it started, as soon as a file of this name appears."""
    process = repro(folder, "tables@smoke")
    deadline = time.monotonic() + 900  # a guard, no measure
    while not any(folder.glob(pattern)):
        assert process.poll() is None, f"it ended before {pattern}: {process.stdout.read()[-3000:]}"
        assert time.monotonic() < deadline, f"{pattern} never appeared"
        time.sleep(0.01)
    process.kill()
    kill_all_in(folder)
    process.wait()


def results(folder: Path) -> dict[str, bytes]:
    """Metrics, tables and diagnosis of the scale: what must not depend on the way there."""
    found = [p for kind in ("metrics", "tables", "diagnosis")
             for p in (folder / "results" / kind).rglob("*.*") if p.suffix != ".png"]  # fmt: skip
    return {str(p.relative_to(folder / "results")): p.read_bytes() for p in found}


BY_HAND = f"""
import sys

import matplotlib.pyplot as plt

from trdlib import tasks
from trdlib.analysis import diagnose, tables
from trdlib.distill import distill
from trdlib.analysis.measure import measure
from trdlib.evaluate import evaluate
from trdlib.ops.chain import sampled
from trdlib.run import get_runs

(run,), rows = get_runs("smoke", "all", "all"), get_runs("smoke", "none", "all")
task = tasks.of(run)
sets = task.sets()
made = sampled([run], task, sets["train"])
(trained,) = distill([run], task, sets, made)
who = [*([None] * len(rows)), trained.adapters]
samples = evaluate([*rows, run], task, sets, who)
measure([*rows, run], sets, samples, [*([None] * len(rows)), trained.choice])
sys.path.insert(0, "{REPOSITORY / "tests"}")
from test_audit import defined
found = tables.collect(run), tables.differences(run)
tables.write(run, *found, defined("7_tables").markdown(run, *found))
y_o = made["opd"]["y_o"]
found = diagnose.diagnose(run, task, sets["train"], y_o, made["opd"]["y_r"])
defined("6_diagnose").write(found, plt.figure())
"""


def test_killed_three_times_it_ends_in_the_bytes_of_one_process_without_dvc(tmp_path):
    plain, cut = checkout(tmp_path / "plain"), checkout(tmp_path / "cut")
    (plain / "script.py").write_text(BY_HAND)
    command = [sys.executable, "-m", "script"]
    by_hand = subprocess.Popen(command, cwd=plain, env=environment())

    kill_when(cut, "runs/smoke/y_o.parquet.seeds/*.parts/*/*.jsonl")
    assert not (cut / "runs/smoke/y_o.parquet").exists()
    kill_when(cut, "runs/smoke/distill/opd/trd/1/candidates/*")
    assert not (cut / "runs/smoke/distill/opd/trd/1/adapter").exists()
    kill_when(cut, "results/tables/smoke/opd.md")
    targets = ("tables@smoke", "diagnose@smoke")  # the report: test_report.py
    finish(cut, *targets)
    assert by_hand.wait() == 0
    expected, found = results(plain), results(cut)
    assert set(expected) == {
        "metrics/smoke/none/base.json", "metrics/smoke/none/base_again.json",
        "metrics/smoke/none/teacher.json", "metrics/smoke/opd/trd.json", "tables/smoke/opd.md",
        "tables/smoke/opd.csv", "tables/smoke/opd_differences.csv", "diagnosis/smoke/opd.md",
        "diagnosis/smoke/opd.csv",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected

    before = {p: p.stat().st_mtime_ns for p in (cut / "runs" / "executed").iterdir()}
    finish(cut, *targets)  # a second run executes no notebook
    assert before == {p: p.stat().st_mtime_ns for p in (cut / "runs" / "executed").iterdir()}
    said = report(cut)
    for stage in ("2_rollout-smoke", "4_distill-smoke"):
        assert re.search(rf"^ *{stage} +\d+\.\d +\d+\.\d ", said, re.M), said
    assert re.search(r"\d% is not", said)
    assert "nothing to do" in report(cut, "--since", str(time.time()))


def test_make_repro_asks_dvc_what_it_understands():
    """Each call of dvc in the recipe, with and without another scale, read by DVC's own parser."""
    from dvc.cli.parser import get_main_parser

    for scale, expected in ((None, "repro"), ("smoke", "run")):
        asked = ["make", "-n", "repro", "PYTHON=true", *([f"SCALE={scale}"] if scale else [])]
        how = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": True}
        said = subprocess.run(asked, **how).stdout
        (call,) = re.findall(r"^python -m dvc (.*)$", said, re.M)
        words = call.replace("'", "").split()
        parsed = get_main_parser().parse_args(words)
        assert expected in words
        if scale:
            assert parsed.set_param == [f"run.scales=[{scale}]"]


def test_the_readme_shows_the_committed_tables():
    """The headline table of the README is that of the result files."""
    from trdlib.analysis import tables
    from trdlib.run import get_run
    from trdlib.settings import load

    run = get_run("tiny", "opd", settings=load(REPOSITORY / "params.yaml"))
    text = (REPOSITORY / "README.md").read_text()
    assert tables.headline(run) in text, "run: python -m trdlib report --update"


def test_the_committed_choices_are_those_of_these_settings(monkeypatch):
    """Else `make repro` would choose every learning rate again, for half an hour."""
    from trdlib import distill, store, tasks
    from trdlib.run import get_runs

    monkeypatch.chdir(REPOSITORY)
    for scale in ("tiny", "tiny-code"):
        runs = get_runs(scale, "all", "all")
        sets = tasks.of(runs[0]).sets()
        for run in runs:
            seeds = run.settings.seeds[: run.settings.training.choice_seeds]
            stamp = distill._choice_stamp(run, seeds, sets)
            assert store.read_json(run.choice)["fingerprint"] == stamp, str(run)


def test_the_committed_results_are_those_that_the_lock_names():
    """Each small result in git has the hash that DVC noted when it was made."""
    import hashlib

    stages = yaml.safe_load((REPOSITORY / "dvc.lock").read_text())["stages"]
    outs = {out["path"]: out for stage in stages.values() for out in stage.get("outs", ())}
    assert {f"results/tables/{scale}" for scale in ("tiny", "tiny-code")} <= set(outs)
    for path, out in outs.items():
        if not path.startswith("results/"):
            continue
        there = REPOSITORY / path
        if there.is_file():
            assert hashlib.md5(there.read_bytes()).hexdigest() == out["md5"], path
            continue
        listed = [
            {"md5": hashlib.md5(p.read_bytes()).hexdigest(), "relpath": str(p.relative_to(there))}
            for p in sorted(there.rglob("*")) if p.is_file()
        ]  # fmt: skip
        assert len(listed) == out["nfiles"], path
        text = json.dumps(sorted(listed, key=lambda e: e["relpath"]))
        assert f"{hashlib.md5(text.encode()).hexdigest()}.dir" == out["md5"], path
