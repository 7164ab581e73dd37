"""Changed scales and sweeps: nothing overwrites the usual run; resumable; honest about the best."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from conftest import REPOSITORY

from trdlib import config, data, distill, notebooks, rollout, sweep

# --------------------------------------------------------------------------- a scale with changes


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ("data.seed=1", ""),
        ("seeds=[0]", "data"),
        ("lengths.prompt=60", "data"),
        ("rollout.temperature=1.0", "data"),
        ("refinement.top_k=3", "data attempts"),
        ("lora.r=2", "data attempts mode_folder"),
        ("training.learning_rates=[1e-4]", "data attempts mode_folder"),
        ("methods.trd.clip=0.1", "data attempts mode_folder"),
        ("evaluation.sampling.temperature=0.5", "data attempts mode_folder"),  # chooses the rate
        ("tracker=none", "data attempts mode_folder folder choice samples metrics"),
        ("lora.r=4", "data attempts mode_folder folder choice samples metrics"),  # as it is
    ],
)
def test_a_change_has_files_of_its_own_and_shares_the_rest(project, change, shared):
    def places(run):
        return {
            "data": run.data, "attempts": run.attempts, "mode_folder": run.mode_folder,
            "folder": run.folder(0), "choice": run.choice, "samples": run.samples(0, "chain"),
            "metrics": run.metrics,
        }  # fmt: skip

    usual, changed = places(config.run("smoke")), places(config.run(f"smoke {change}"))
    assert {name for name in usual if usual[name] == changed[name]} == set(shared.split())
    only_one = "training.learning_rates=[1e-4]"
    one, other = (config.run(f"smoke {w}") for w in (only_one, f"{only_one} {change}"))
    if change.startswith("evaluation"):  # with one rate nothing is chosen: the adapter is the same
        assert one.folder(0) == other.folder(0)
        assert one.samples(0, "chain") != other.samples(0, "chain")


def leaves(section, path=""):
    for key, value in section.items() if isinstance(section, dict) else enumerate(section):
        here = f"{path}{key}"
        if isinstance(value, dict | list):
            yield from leaves(value, f"{here}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield here, value


def test_whatever_changes_a_fingerprint_changes_the_place(smoke):
    """Every number of the settings, turned: else a changed run would replace the usual files."""
    usual, tried, settings = smoke(), 0, config.load()
    rows = data.problems(usual.data, "train").to_dict("records")[:1]

    def stamps(run):
        request = rollout.Request("student", 0, rows, rollout.student_prompts(run, 0, rows))
        stamp = rollout.fingerprint
        return {
            "attempts": (stamp(run, request, run.settings.rollout), run.attempts),
            "rewrites": (stamp(run, request, run.settings.refinement), run.mode_folder),
            "adapter": (distill.fingerprint(run, 0, []), run.folder(0)),
            "samples": (stamp(run, request, run.settings.evaluation.sampling),
                        run.samples(0, "chain")),
        }  # fmt: skip

    before = stamps(usual)
    raw = usual.settings.model_dump(mode="json", exclude={"pretraining", "map", "data"})
    for path, value in leaves(raw):
        for other in (value * 2, value + 1, value / 2):
            try:
                run = config.run(f"smoke {path}={other}", settings=settings)
            except config.SettingsError:  # a value that the setting does not take
                continue
            tried += 1
            for name, (stamp, place) in stamps(run).items():
                if stamp != before[name][0]:
                    assert place != before[name][1], (path, other, name)
            break
    assert tried > 40


def test_a_changed_run_leaves_the_usual_one_as_it_was(smoke, project):
    usual = smoke("opd", "trd")
    rollout.attempts(usual)
    before = usual.attempts.read_bytes()
    other = config.run("smoke rollout.temperature=1.5", mode="opd")
    table = rollout.attempts(other)
    assert usual.attempts.read_bytes() == before
    assert list(table["text"]) != list(rollout.attempts(usual)["text"])

    run = config.run("smoke", "math", "opd", "sft", learning_rate=1e-3, seed=1, tracker="dvclive")
    choice = distill.distill(run)
    assert choice["chosen"] == 1e-3
    assert list(choice["adapters"]) == ["1"]
    assert not (project / "results").exists()
    logged = pd.read_csv(
        run.folder(1) / "dvclive" / "0.001" / "plots" / "metrics" / "loss.tsv", sep="\t"
    )
    log = data.read_json(run.adapter(1) / "training_log.json")
    assert logged["loss"].tolist() == pytest.approx([entry["loss"] for entry in log])
    quiet = config.run("smoke", "math", "opd", "sft", learning_rate=1e-3, seed=1, tracker="none")
    assert distill.distill(quiet) == choice  # the tracker is no part of the fingerprint


def test_a_changed_scale_is_named_by_what_differs(project):
    one = config.run("smoke training.batch_size=2 lora.r=2")
    assert one.is_changed
    assert one.scale == config.run("smoke lora.r=2 training.batch_size=2.0").scale
    by_word = config.run("smoke training.learning_rates=[0.5] training.subset_learning_rates=[]")
    assert by_word.scale == config.run("smoke", learning_rate=0.5).scale
    for scale, words in (
        ("smoke lora", "'lora' changes nothing"),
        ("smoke lora.x=1", "lora.x: unknown key"),
        ("smoke lora.r=two", "lora.r: .*not 'two'"),
        ("smoke lora.r.s=2", "there is no such setting"),
        ("smoke data.train.9.problems=2", "there is no such setting"),
        ("smoke seeds=[7]", "base models for the seeds 0, 1, 2, not for 7"),
        ("smoke pretraining.student.steps=1", "cannot be changed for one run"),
        ("smok lora.r=2", "no scale 'smok'"),
    ):
        with pytest.raises(config.SettingsError, match=words):
            config.run(scale)


# ------------------------------------------------------------------------------------ the points


def test_values_and_ranges():
    assert sweep.axis("seed=0..3") == ("seed", [0, 1, 2, 3])
    assert sweep.axis("learning_rate=1e-6,5e-6") == ("learning_rate", [1e-6, 5e-6])
    assert sweep.axis("method=trd,sft") == ("method", ["trd", "sft"])
    assert sweep.axis("seeds=[0, 1],[2]") == ("seeds", [[0, 1], [2]])
    assert sweep.axis("clip=None,0.1") == ("clip", [None, 0.1])
    assert sweep.axis("x=log:1e-6:1e-4") == ("x", sweep.Drawn("log", 1e-6, 1e-4))
    for text in ("seed", "seed=", "seed=3..1", "x=log:0:1", "x=uniform:2:1", "x=log:a:b"):
        with pytest.raises(config.SettingsError, match=f"-p {text}"):
            sweep.axis(text)


def test_a_grid_is_whole_and_a_sample_is_drawn():
    axes = dict(map(sweep.axis, ("a=1,2,3", "b=x,y", "seed=0..1")))
    assert len({str(p) for p in sweep.points(axes, None)}) == 12
    some = sweep.points(axes, 4, seed=1)
    assert some == sweep.points(axes, 4, seed=1) != sweep.points(axes, 4, seed=2)
    assert [p["seed"] for p in some] == [0, 1] * 4  # every point has all seeds
    assert len({(p["a"], p["b"]) for p in some}) == 4
    with pytest.raises(config.SettingsError, match="only 6 points"):
        sweep.points(axes, 6)
    drawn = dict(map(sweep.axis, ("rate=log:1e-6:1e-2", "r=2,4")))
    with pytest.raises(config.SettingsError, match="say --sample"):
        sweep.points(drawn, None)
    rates = np.array([p["rate"] for p in sweep.points(drawn, 400)])
    assert (rates >= 1e-6).all() and (rates <= 1e-2).all()
    below = (rates < 1e-4).mean()  # half of the decades
    assert 0.4 < below < 0.6


# -------------------------------------------------------------------------------------- the best


def point(values, skill, rng, k=4, seeds=(0, 1, 2)):
    draws = rng.binomial(k, skill, size=(len(seeds), len(skill))) / k
    return sweep.Point(values, draws, "same", seeds)


def test_the_best_of_equals_is_not_told_apart():
    """The same model at every point: in at most 5 of 100 sweeps is the best marked against any."""
    rng, fired = np.random.default_rng(0), 0
    for _ in range(100):
        skill = rng.beta(1, 1, size=64)
        found = [point({"a": i}, skill, rng) for i in range(8)]
        fired += bool(sweep.rank(found, resamples=500)["separate"].any())
    assert fired <= 5


def test_a_clear_best_is_named_and_what_is_near_it_too():
    rng, skill = np.random.default_rng(0), np.full(96, 0.5)
    found = [point({"rate": rate}, skill + gain, rng)
             for rate, gain in ((1e-3, -0.3), (2e-3, 0.3), (4e-3, 0.29))]  # fmt: skip
    ranked = sweep.rank(found)
    first, second = ranked["rate"].iloc[:2]
    assert {first, second} == {2e-3, 4e-3}
    assert ranked["separate"].tolist() == [False, False, True]
    assert ranked["chance"].sum() == pytest.approx(1)
    text = sweep.verdict(found, ranked, "validation")
    assert f"rate {first:g}, {100 * ranked['value'].iloc[0]:.1f} %" in text
    assert f"cannot be told from 1 other, the next being rate {second:g}" in text
    alone = sweep.verdict(found[:2], sweep.rank(found[:2]), "validation")
    assert "It can be told from every other point." in alone
    found[0] = found[0]._replace(problems="others")
    assert sweep.rank(found)["behind"].isna().sum() == 1
    assert "1 points have other problems" in sweep.verdict(found, sweep.rank(found), "validation")


def test_figures_show_the_values():
    rng, skill = np.random.default_rng(0), np.full(16, 0.5)
    grid = [point({"a": a, "b": b}, skill, rng) for a in (1, 2) for b in ("x", "y")]
    ranked = sweep.rank(grid, resamples=100)
    texts = [t.get_text() for t in sweep.figure(grid, ranked, "validation").axes[0].texts]
    assert sorted(t.split("\n")[0] for t in texts) == sorted(
        f"{100 * p.rates.mean():.1f}" for p in grid
    )
    for some in (
        grid[:3],  # no grid any more
        [point({"a": a}, skill, rng) for a in (1e-6, 1e-4)],
        [point({"a": a, "b": "x", "c": a}, skill, rng) for a in (1, 2, 3)],
        [point({}, skill, rng)],
    ):
        assert sweep.figure(some, sweep.rank(some, resamples=100), "validation").axes


# -------------------------------------------------------------------------------------- the work

TOY = """
# %% tags=["parameters"]
rate: float = 1.0  # how right it is, in tenths
again: bool = False  # no use

# %%
from trdlib import notebooks

if rate > 10:
    raise ValueError("more than right\\nand a second line")
notebooks.record(validation=notebooks.counts([[int(rate)] * 5], 10, "five"), loss=rate / 2)
"""


@pytest.fixture
def toy(project):
    (project / "notebooks").mkdir()
    path = project / "notebooks" / "toy.ipynb"
    jupytext.write(jupytext.reads(TOY, "py:percent"), path)
    node = nbformat.read(path, as_version=4)
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(node, path)
    return path


def test_killed_it_goes_on_and_what_failed_is_said(toy, project, capsys):
    given = ["rate=3,7,13"]
    command = [sys.executable, "-m", "trdlib", "sweep", "toy", "-p", *given, "--name", "s"]
    process = subprocess.Popen([*command, "--jobs", "1"], env={**os.environ, "PYTHONPATH": str(
        REPOSITORY)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    folder, deadline = project / "runs" / "sweeps" / "s", time.monotonic() + 120
    while not (finished := list(folder.glob("rate=3*.ipynb"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for member in [process, *psutil.Process(process.pid).children(recursive=True)]:
        member.kill()
    process.wait()
    first = finished[0].stat().st_mtime_ns

    how = {"name": "s", "sample": None, "seed": 0, "workers": 1, "dry_run": False}
    assert sweep.command("toy", given, **how) == 1
    said = capsys.readouterr().out
    assert "3 jobs of toy, 1 done" in said
    assert "failed: rate=13-" in said
    assert said.count("ValueError: more than right") == 1
    assert "second line" not in said
    assert "Best of 2 by validation: rate 7, 70.0 %" in said
    assert finished[0].stat().st_mtime_ns == first  # what was done was not done again
    table = pd.read_csv(folder / "table.csv").sort_values("rate")
    assert table["validation"].fillna(-1).tolist() == [0.3, 0.7, -1]
    assert table["loss"].fillna(-1).tolist() == [1.5, 3.5, -1]
    assert table["error"].fillna("").tolist() == ["", "", "ValueError: more than right"]
    assert not [*folder.glob(".*.ipynb")]

    node, axes = nbformat.read(toy, as_version=4), dict(map(sweep.axis, given))
    done = [sweep.is_done(folder, job) for job in sweep.plan(toy, axes, None, 0)]
    assert done == [True, True, False]
    node.cells.append(nbformat.v4.new_markdown_cell("words"))
    nbformat.write(node, toy)
    assert [sweep.is_done(folder, job) for job in sweep.plan(toy, axes, None, 0)] == done
    node.cells[-2].source += "\nprint()"
    nbformat.write(node, toy)  # other code: every job runs again
    assert not any(sweep.is_done(folder, job) for job in sweep.plan(toy, axes, None, 0))

    with pytest.raises(config.SettingsError, match="is of toy over rate: choose another --name"):
        sweep.command("toy", ["again=True"], **how)
    for wrong, words in (
        (["rat=3"], "no parameter 'rat': did you mean rate"),
        (["rate=high"], "rate takes a float"),
        (["rate=1", "rate=2"], "stands twice"),
        (["lora.r=2"], "toy has no scale"),
    ):
        with pytest.raises(config.SettingsError, match=words):
            sweep.command("toy", wrong, **how | {"name": None})


def test_settings_go_into_the_scale(project):
    axes = dict(map(sweep.axis, ("lora.r=2,4", "scale=smoke", "rollout.top_k=3", "seed=0..1")))
    jobs = sweep.plan(REPOSITORY / "notebooks" / "4_distill.ipynb", axes, None, 0)
    assert [job.given["scale"] for job in jobs] == [
        f"smoke lora.r={r} rollout.top_k=3" for r in (2, 2, 4, 4)
    ]
    assert all(job.given["validate"] for job in jobs)
    assert len({job.stamp for job in jobs}) == len({job.name for job in jobs}) == 4


def test_a_file_of_ones_own_is_part_of_a_job(project):
    """That of the task that is swept: when it changes, what was done is done again."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    part = {"task": "mine/own.py", "problems": 4, "steps": [2]}
    section = {"train": [part], "validation": [part], "benchmarks": {"own": part}}
    params["scales"]["smoke"]["tasks"]["code"]["data"] = section
    Path("params.yaml").write_text(yaml.safe_dump(params))
    notebook, stamps = REPOSITORY / "notebooks" / "2_rollout.ipynb", []
    for source in ("one = 1", "two = 2"):
        data.write_text("mine/own.py", source)
        plans = [sweep.plan(notebook, {"task": [task]}, None, 0) for task in ("code", "math")]
        stamps.append([job.stamp for jobs in plans for job in jobs])
    (code, math), (other, same) = stamps
    assert code != other and math == same


def test_each_job_has_a_gpu_of_its_own(project, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-ab")
    names = sweep.gpus()
    with sweep._one_of(names):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
        with sweep._one_of(names):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-ab"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-ab"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.gpus() == []


def test_what_a_notebook_records_is_read_from_its_output(project):
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("")])
    counts = notebooks.counts(np.array([[1, 2]]), np.int64(2), "p")
    output = nbformat.v4.new_output("display_data", {notebooks.MIME: {"a": counts, "b": 1.5}})
    node.cells[0].outputs.append(output)
    nbformat.write(node, "done.ipynb")
    assert notebooks.recorded(project / "done.ipynb") == {
        "a": {"correct": [[1, 2]], "k": 2, "problems": "p"}, "b": 1.5,
    }  # fmt: skip
