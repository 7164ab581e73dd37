"""Changed scales and sweeps: nothing overwrites the usual run; resumable; honest about the best."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY, kill_all_in

from trdlib import distill, prompts, rollout, store
from trdlib.ops import notebooks, sweep
from trdlib.run import get_run
from trdlib.settings import SettingsError, load

# --------------------------------------------------------------------------- a scale with changes


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ("data.seed=1", ""),
        ("seeds=[0]", "data"),
        ("lengths.prompt=60", "data"),
        ("rollout.temperature=1.0", "data"),
        ("refinement.top_k=3", "data attempts"),
        ("lora.r=2", "data attempts rewrites"),
        ("training.learning_rates=[1e-4]", "data attempts rewrites"),
        ("methods.trd.clip=0.1", "data attempts rewrites"),
        ("evaluation.sampling.temperature=0.5", "data attempts rewrites"),  # chooses the rate
        ("tracker=tensorboard", "data attempts rewrites folder choice samples metrics"),
        ("lora.r=16", "data attempts rewrites folder choice samples metrics"),  # as it is
    ],
)
def test_a_change_has_files_of_its_own_and_shares_the_rest(project, change, shared):
    def places(run):
        return {
            "data": run.data, "attempts": run.attempts, "rewrites": run.rewrites("y_r"),
            "folder": run.folder(0), "choice": run.choice, "samples": run.samples(0, 0.6, "chain"),
            "metrics": run.metrics,
        }  # fmt: skip

    usual, changed = places(get_run("smoke")), places(get_run(f"smoke {change}"))
    assert {name for name in usual if usual[name] == changed[name]} == set(shared.split())
    only_one = "training.learning_rates=[1e-4]"
    one, other = (get_run(f"smoke {w}") for w in (only_one, f"{only_one} {change}"))
    if change.startswith("evaluation"):  # with one rate nothing is chosen: the adapter is the same
        assert one.folder(0) == other.folder(0)
        assert one.samples(0, 0.6, "chain") != other.samples(0, 0.6, "chain")


def leaves(section, path=""):
    for key, value in section.items() if isinstance(section, dict) else enumerate(section):
        here = f"{path}{key}"
        if isinstance(value, dict | list):
            yield from leaves(value, f"{here}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield here, value


def test_whatever_changes_a_fingerprint_changes_the_place(smoke, task):
    """Every number of the settings, turned: else a changed run would replace the usual files."""
    usual, tried, settings = smoke(), 0, load()
    rows = task.sets()["train"].to_dict("records")[:1]

    def stamps(run):
        request = rollout.Request("student", 0, rows, prompts.student_prompts(run, 0, rows))
        stamp = rollout.fingerprint
        return {
            "attempts": (stamp(run, request, run.settings.rollout), run.attempts),
            "rewrites": (stamp(run, request, run.settings.refinement), run.rewrites("y_r")),
            "adapter": (distill.fingerprint(run, 0, []), run.folder(0)),
            "samples": (stamp(run, request, run.settings.evaluation.sampling),
                        run.samples(0, 0.6, "chain")),
        }  # fmt: skip

    before = stamps(usual)
    raw = usual.settings.model_dump(mode="json", exclude={"pretraining", "map", "data"})
    for path, value in leaves(raw):
        for other in (value * 2, value + 1, value / 2):
            try:
                run = get_run(f"smoke {path}={other}", settings=settings)
            except SettingsError:  # a value that the setting does not take
                continue
            tried += 1
            for name, (stamp, place) in stamps(run).items():
                if stamp != before[name][0]:
                    assert place != before[name][1], (path, other, name)
            break
    assert tried > 40


def test_a_changed_run_leaves_the_usual_one_as_it_was(smoke, task, project):
    usual, sets = smoke("opd", "trd"), task.sets()
    rollout.rollout(usual, task, sets["train"])
    before = usual.attempts.read_bytes()
    other = get_run("smoke rollout.temperature=1.5", mode="opd")
    table = rollout.rollout(other, task, sets["train"])
    assert usual.attempts.read_bytes() == before
    again = rollout.rollout(usual, task, sets["train"])
    assert list(table["text"]) != list(again["text"])

    run = get_run("smoke", "opd", "sft", learning_rate=1e-3, seed=1)
    (trained,) = distill.distill([run], task, sets, {"opd": {}})
    assert trained.choice["chosen"] == 1e-3
    assert list(trained.adapters) == [1]
    assert not (project / "results").exists()


def test_a_changed_scale_is_named_by_what_differs(project):
    one = get_run("smoke training.batch_size=2 lora.r=2")
    assert "~" in one.scale
    assert one.scale == get_run("smoke lora.r=2 training.batch_size=2.0").scale
    by_word = get_run("smoke training.learning_rates=[0.5] training.variant_learning_rates=[]")
    assert by_word.scale == get_run("smoke", learning_rate=0.5).scale
    for scale, words in (
        ("smoke lora", "'lora' changes nothing"),
        ("smoke lora.x=1", "lora.x: unknown key"),
        ("smoke lora.r=two", "lora.r: .*not 'two'"),
        ("smoke lora.r.s=2", "there is no such setting"),
        ("smoke data.train.9.problems=2", "there is no such setting"),
        ("tiny seeds=[7]", "base models for the seeds 0, .*not for 7"),
        ("tiny pretraining.student.steps=1", "cannot be changed for one run"),
        ("smok lora.r=2", "no scale 'smok'"),
    ):
        with pytest.raises(SettingsError, match=words):
            get_run(scale)


# ------------------------------------------------------------------------------------ the points


def test_values_and_ranges():
    assert sweep.axis("seed=0..3") == ("seed", [0, 1, 2, 3])
    assert sweep.axis("learning_rate=1e-6,5e-6") == ("learning_rate", [1e-6, 5e-6])
    assert sweep.axis("method=trd,sft") == ("method", ["trd", "sft"])
    assert sweep.axis("seeds=[0, 1],[2]") == ("seeds", [[0, 1], [2]])
    assert sweep.axis("clip=None,0.1") == ("clip", [None, 0.1])
    for text in (
        "seed=0..99999999",
        "seed",
        "seed=",
        "seed=3..1",
        "x=log:0:1",
        "x=uniform:2:1",
        "x=log:a:b",
    ):
        with pytest.raises(SettingsError, match=f"-p {text}"):
            sweep.axis(text)


def test_a_grid_is_whole_and_a_sample_is_drawn():
    axes = dict(map(sweep.axis, ("a=1,2,3", "b=x,y", "seed=0..1")))
    assert len({str(p) for p in sweep.points(axes, None)}) == 12
    some = sweep.points(axes, 4, seed=1)
    assert some == sweep.points(axes, 4, seed=1) != sweep.points(axes, 4, seed=2)
    assert [p["seed"] for p in some] == [0, 1] * 4  # every point has all seeds
    assert len({(p["a"], p["b"]) for p in some}) == 4
    with pytest.raises(SettingsError, match="no more than 6 points"):
        sweep.points(axes, 6)
    narrow = dict([sweep.axis("rate=uniform:1:1.01")])  # of four digits there are eleven values
    assert len(sweep.points(narrow, 8)) == 8
    with pytest.raises(SettingsError, match="different points are too many"):
        sweep.points(narrow, 50)
    for kind, middle in (("log", 1e-4), ("uniform", 0.005)):
        drawn = dict(map(sweep.axis, (f"rate={kind}:1e-6:1e-2", "r=2,4")))
        with pytest.raises(SettingsError, match="say --sample"):
            sweep.points(drawn, None)
        rates = np.array([p["rate"] for p in sweep.points(drawn, 400)])
        assert (rates >= 1e-6).all() and (rates <= 1e-2).all()
        assert 0.4 < (rates < middle).mean() < 0.6  # half of the decades, or of the width


# -------------------------------------------------------------------------------------- the best


def done(skills, rng, k=4, seeds=3, problems=None):
    """A sweep over "rate" whose points have these skills, (problems,)."""
    rows = []
    for rate, skill in skills.items():
        correct = rng.binomial(k, np.clip(skill, 0, 1), size=(seeds, len(skill)))
        asked = (problems or {}).get(rate, "same")
        found = {"correct": correct.tolist(), "k": k, "problems": asked}
        rows.append({"rate": rate, "validation": found, "error": ""})
    return pd.DataFrame(rows, dtype=object)


def test_the_best_of_equals_is_not_told_apart():
    """The same model at every point: in at most 5 of 100 sweeps is the best marked against any."""
    rng, fired = np.random.default_rng(0), 0
    for _ in range(100):
        found = done(dict.fromkeys(range(8), rng.beta(1, 1, size=64)), rng)
        ranked = sweep.rank(found, ["rate"], "validation", resamples=500)
        fired += bool(ranked["separate"].any())
    assert fired <= 5


def test_a_clear_best_is_named_and_what_is_near_it_too():
    rng, skill = np.random.default_rng(0), np.full(96, 0.5)
    skills = {1e-3: skill - 0.3, 2e-3: skill + 0.3, 4e-3: skill + 0.29}
    found = done(skills, rng)
    ranked = sweep.rank(found, ["rate"], "validation")
    assert {*ranked["rate"][:2]} == {2e-3, 4e-3}
    assert ranked["separate"].tolist() == [False, False, True]
    assert ranked["seeds"].tolist() == [3, 3, 3]
    best, last = (np.array(found["validation"][found["rate"] == rate].iloc[0]["correct"]) / 4
                  for rate in (ranked["rate"][0], 1e-3))  # fmt: skip
    assert ranked["behind"][2] == pytest.approx((best - last).mean())
    alone = sweep.rank(done(skills, rng, seeds=1), ["rate"], "validation")
    assert not alone["separate"].any()  # of new models one seed tells nothing
    others = sweep.rank(done(skills, rng, problems={1e-3: "others"}), ["rate"], "validation")
    assert others["behind"].isna().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="no accuracy that every job recorded 'loss'"):
        sweep.rank(found, ["rate"], "loss")


# -------------------------------------------------------------------------------------- the work

TOY = """
# %% tags=["parameters"]
rate: float = 1.0  # how right it is, in tenths
again: bool = False  # no use

# %%
from trdlib.ops import notebooks

if rate > 10:
    raise ValueError("more than right\\nand a second line")
measured = {"correct": [[int(rate)] * 5], "k": 10, "problems": "five"}
notebooks.record(validation=measured, loss=rate / 2)
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
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, deadline = project / "runs" / "sweeps" / "s", time.monotonic() + 120
    while not (finished := list(folder.glob("rate=3*.ipynb"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    kill_all_in(project)
    process.wait()
    first = finished[0].stat().st_mtime_ns

    how = {"name": "s", "sample": None, "seed": 0, "workers": 1, "dry_run": False}
    how["as_json"] = False
    assert sweep.command("toy", given, **how) == 1
    said = capsys.readouterr().out
    assert "3 jobs of toy, 1 done" in said
    assert "failed: rate=13-" in said
    assert said.count("ValueError: more than right") == 1
    assert "second line" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("papermill ")]
    _, source, _, _, name, value = shlex.split(line)  # which that notebook takes
    notebooks.check(nbformat.read(REPOSITORY / source, as_version=4), {name: value})
    assert (name, value) == ("name", "s")
    assert finished[0].stat().st_mtime_ns == first  # what was done was not done again
    table = pd.read_csv(folder / "table.csv").sort_values("rate")
    assert table["validation"].fillna(-1).tolist() == [0.3, 0.7, -1]
    assert table["loss"].fillna(-1).tolist() == [1.5, 3.5, -1]
    assert table["error"].fillna("").tolist() == ["", "", "ValueError: more than right"]
    assert not [*folder.glob(".*.ipynb")]
    ranked = sweep.rank(*sweep.read("s"), "validation")
    assert ranked["rate"].tolist() == [7, 3]

    node, axes = nbformat.read(toy, as_version=4), dict(map(sweep.axis, given))
    done = [sweep.is_done(folder, job) for job in sweep.plan(toy, axes, None, 0)]
    assert done == [True, True, False]
    node.cells.append(nbformat.v4.new_markdown_cell("words"))
    nbformat.write(node, toy)
    assert [sweep.is_done(folder, job) for job in sweep.plan(toy, axes, None, 0)] == done
    node.cells[-2].source += "\nprint()"
    nbformat.write(node, toy)  # other code: every job runs again
    assert not any(sweep.is_done(folder, job) for job in sweep.plan(toy, axes, None, 0))

    with pytest.raises(SettingsError, match="is of toy over rate: choose another --name"):
        sweep.command("toy", ["again=True"], **how)
    for notebook, wrong, words in (
        ("toys", ["rate=3"], "no notebook 'toys': choose from toy"),
        ("toy", ["rat=3"], "no such parameter 'rat': choose from rate"),
        ("toy", ["rate=high"], "rate takes a float"),
        ("toy", ["rate=1", "rate=2"], "stands twice"),
        ("toy", ["lora.r=2"], "no such parameter 'lora.r'"),
    ):
        with pytest.raises(SettingsError, match=words):
            sweep.command(notebook, wrong, **how | {"name": None})


def test_settings_go_into_the_scale(project, capsys):
    axes = dict(map(sweep.axis, ("lora.r=2,4", "scale=smoke", "rollout.top_k=3", "seed=0..1")))
    jobs = sweep.plan(REPOSITORY / "notebooks" / "4_distill.ipynb", axes, None, 0)
    assert [job.given["scale"] for job in jobs] == [
        f"smoke lora.r={r} rollout.top_k=3" for r in (2, 2, 4, 4)
    ]
    assert all(job.given["validate"] for job in jobs)
    assert len({job.stamp for job in jobs}) == len({job.name for job in jobs}) == 4


def test_a_file_of_ones_own_is_part_of_a_job(project):
    """That of the scale that is swept: when it changes, what was done is done again."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    part = {"problems": 4, "steps": [2]}
    params["scales"]["smoke-code"] |= {
        "task": "mine/own.py", "pretraining": None,
        "data": {"train": [part], "validation": [part], "benchmarks": {"own": part}},
    }  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(params))
    notebook, stamps = REPOSITORY / "notebooks" / "2_rollout.ipynb", []
    for source in ("def draw(rng, steps): return 1", "def draw(rng, steps): return 2"):
        store.write_text("mine/own.py", source)
        scales = [["smoke-code"], ["smoke"]]
        plans = [sweep.plan(notebook, {"scale": scale}, None, 0) for scale in scales]
        stamps.append([job.stamp for jobs in plans for job in jobs])
    (own, usual), (other, same) = stamps
    assert own != other and usual == same


def test_what_a_notebook_records_is_read_from_its_output():
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("") for _ in range(2)])
    assert notebooks.recorded(node) == {}
    found = {"a": {"correct": [[1, 2]], "k": 2, "problems": "p"}, "b": 1.5}
    output = nbformat.v4.new_output("display_data", {notebooks.MIME: found})
    node.cells[0].outputs.append(output)
    assert notebooks.recorded(node) == found
