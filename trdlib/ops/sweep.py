"""A sweep: one notebook, run over a grid or a random sample of its parameters (docs/sweeps.md).

runs/sweeps/<name> has sweep.json (what is swept), table.csv and each job's executed <job>.ipynb;
only what failed or has changed is run again."""

import itertools
import json
import re
import shlex
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from scipy.stats import loguniform, uniform

from trdlib import jobs, store, tasks
from trdlib.analysis import compare, measure
from trdlib.ops import notebooks
from trdlib.run import get_run, plain_value
from trdlib.settings import Scale, SettingsError, check_name, known, load, root

SEED = "seed"  # the one name whose values are repetitions of a point, not points
# A job; values: as the sweep names them; given: as the notebook takes them, settings in the scale
Job = namedtuple("Job", "name values given stamp")


def axis(text: str) -> tuple[str, Any]:
    """`a=1,2,3`, `a=0..4`, `a=log:1e-6:1e-4`, `a=uniform:0:1` -> name, list or distribution."""
    (name, _, values), listed = text.partition("="), None
    if found := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", values):
        low, high = map(int, found.groups())
        listed = list(range(low, high + 1)) if high - low < 10_000 else None
    elif found := re.fullmatch(r"(log|uniform):([^:]+):([^:]+)", values):
        (low, high), log = map(plain_value, found.groups()[1:]), found[1] == "log"
        numbers = isinstance(low, int | float) and isinstance(high, int | float)
        if numbers and low < high < np.inf and (low > 0 or not log):
            listed = loguniform(low, high) if log else uniform(low, high - low)
    elif values:  # at the commas that no bracket encloses
        listed = [plain_value(value) for value in re.split(r",(?![^\[{]*[\]}])", values)]
    if not (name and listed):
        forms = "1, 1,2,3, 0..4 (up to 10,000), or, with --sample, log:1e-6:1e-4 or uniform:0:1"
        raise SettingsError(f"-p {text}: write name=values, values being {forms}, low < high")
    return name, listed


def points(axes: dict[str, Any], sample: int | None, seed: int = 0) -> list[dict]:
    """All combinations, or a random sample (never of the seeds), in four significant digits."""
    drawn = [name for name, values in axes.items() if not isinstance(values, list)]
    if sample is None:
        if drawn:
            raise SettingsError(f"{drawn[0]} is a distribution: say --sample how often")
        return [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    rest = {n: values for n, values in axes.items() if n != SEED}
    if not drawn and sample >= np.prod([len(values) for values in rest.values()]):
        raise SettingsError(f"the grid has no more than {sample} points: drop --sample")
    rng, found, tries = np.random.default_rng(seed), [], 0
    while len(found) < sample:
        if (tries := tries + 1) > 100 * sample + 1000:
            raise SettingsError(f"{sample} different points are too many here: lower --sample")
        one = {n: float(f"{v.rvs(random_state=rng):.4g}") if n in drawn else v[rng.integers(len(v))]
               for n, v in rest.items()}  # fmt: skip
        found += [one] if one not in found else []
    return [one | {SEED: s} for one in found for s in axes[SEED]] if SEED in axes else found


def _typed(value) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def plan(notebook: Path, axes: dict[str, Any], sample: int | None, seed: int) -> list[Job]:
    """The jobs, each checked: SettingsError if one could not run."""
    node, settings = nbformat.read(notebook, as_version=4), load()
    usual = {name: default for name, (_, default) in notebooks.parameters(node).items()}
    of_scale = {n for n in axes if n not in usual and n.split(".")[0] in Scale.model_fields}
    of_scale = of_scale if "scale" in usual else set()
    code, found = notebooks.made_of(notebook), []
    several = [n for n, values in axes.items() if not isinstance(values, list) or len(values) > 1]
    for values in points(axes, sample, seed):
        given = {name: value for name, value in values.items() if name not in of_scale}
        if of_scale:
            words = shlex.join(f"{name}={_typed(values[name])}" for name in sorted(of_scale))
            given["scale"] = f"{given.get('scale', usual['scale'])} {words}"
        if "validate" in usual:  # a sweep compares: without a measurement it cannot
            given.setdefault("validate", True)
        notebooks.check(node, given, settings)
        made_of = [given, usual, code]
        if "scale" in usual:
            run = get_run((usual | given)["scale"], "none", "base", settings)
            made_of += [run.settings, tasks.of(run).files()]
        label = "_".join(f"{name}={_typed(values[name])}" for name in several) or notebook.stem
        name = re.sub(r"[^\w.=~+-]+", "-", label)[:100] + f"-{store.content_hash(values)[:6]}"
        found.append(Job(name, values, given, store.content_hash(made_of)))
    return found


def is_done(folder: Path, job: Job) -> bool:
    """Is there an executed notebook of this job, as it would be run now, that did not fail?"""
    about = store.read_json(folder / f"{job.name}.ipynb", {"metadata": {}})["metadata"]
    return about.get("trd") == {"stamp": job.stamp, "values": job.values, "error": ""}


def _execute(notebook: Path, folder: Path, job: Job) -> str:
    """Run one job; its error in one line, empty if there was none."""
    import papermill

    running, error = folder / f".{job.name}.ipynb", ""
    how = {"parameters": job.given, "progress_bar": False, "start_timeout": 300}
    try:
        papermill.execute_notebook(str(notebook), str(running), cwd=str(root()), **how)
    except Exception as problem:  # the notebook's, a dead kernel's, a full disk: the others go on
        kind = getattr(problem, "ename", type(problem).__name__)
        error = f"{kind}: {getattr(problem, 'evalue', problem)}".splitlines()[0].strip()
    node = nbformat.read(running, 4) if running.is_file() else nbformat.v4.new_notebook()
    node.metadata["trd"] = {"stamp": job.stamp, "values": job.values, "error": error}
    store.write_whole(folder / f"{job.name}.ipynb", lambda path: nbformat.write(node, path))
    running.unlink(missing_ok=True)
    return error


def read(name: str) -> tuple[pd.DataFrame, list[str]]:
    """A row for each job: parameters, what was recorded, job, seconds, error; and the names."""
    folder, rows = root() / "runs" / "sweeps" / name, []
    if not (folder / "sweep.json").is_file():
        raise FileNotFoundError(f"{name} is no sweep: run python -m trdlib sweep first")
    for path in sorted(folder.glob("[!.]*.ipynb")):
        node = nbformat.read(path, as_version=4)
        about, seconds = node.metadata["trd"], node.metadata.get("papermill", {}).get("duration")
        row = {**about["values"], **notebooks.recorded(node), "job": path.stem}
        rows.append({**row, "seconds": seconds, "error": about["error"]})
    return pd.DataFrame(rows, dtype=object), store.read_json(folder / "sweep.json")["names"]


def table(done: pd.DataFrame) -> pd.DataFrame:
    """The same with accuracies as fractions."""
    return done.map(lambda v: measure.rates(v).mean() if isinstance(v, dict) else v).infer_objects()


def metrics(done: pd.DataFrame) -> list[str]:
    """The accuracies that every finished job recorded."""
    finished = done["error"] == ""
    return [name for name in done if all(isinstance(v, dict) for v in done[name][finished])]


def rank(done, names: list[str], metric: str, *, resamples=10000, confidence=0.95) -> pd.DataFrame:
    """The points (of all seeds) from best to worst: names that differ, seeds, problems; value, low,
    high (fractions, these models); behind*: what the best is ahead, if on the same problems and
    seeds; separate: `compare.marked`, corrected for all pairs of points (never with one seed)."""
    known("accuracy that every job recorded", metric, metrics(done))
    done, how = done[done["error"] == ""], {"resamples": resamples, "confidence": confidence}
    differ = [n for n in names if n != SEED and done[n].map(str).nunique() > 1]
    found = []
    for _, mine in done.groupby([str(row) for row in done[differ].values.tolist()]):
        mine = mine.sort_values(SEED) if SEED in mine else mine
        rates = np.concatenate([measure.rates(m) for m in mine[metric]])
        asked = [m["problems"] for m in mine[metric]], list(mine.get(SEED, []))
        found.append((mine[differ].iloc[0].to_dict(), rates, asked))
    found.sort(key=lambda point: -point[1].mean())
    _, best, same = found[0]
    rows, pairs = [], len(found) * (len(found) - 1) / 2
    for values, rates, asked in found:
        row = {**values, "seeds": len(rates), "problems": rates.shape[1]}
        row |= compare.bootstrap(rates, **how)._asdict() | {"separate": False}
        if asked == same:
            gap = compare.compare(best, rates, **how)
            row |= {"behind": gap.value, "behind_low": gap.low, "behind_high": gap.high}
            row["separate"] = bool(compare.marked(gap.new_low, gap.new_high, gap.p * pairs))
        rows.append(row)
    return pd.DataFrame(rows)


def command(notebook, given: list[str], *, name, sample, seed, workers, dry_run, as_json) -> int:
    """`python -m trdlib sweep`; 1 if a job failed."""
    path, axes = notebooks.path_of(notebook), dict(axis(text) for text in given)
    if len(axes) < len(given):
        raise SettingsError("a name stands twice in -p: write its values in one list")
    todo = plan(path, axes, sample, seed)
    usual = f"{path.stem.lstrip('0123456789_')}-{store.content_hash(given, sample, seed)[:6]}"
    folder = root() / "runs" / "sweeps" / check_name(name or usual)
    name, where = folder.name, folder.relative_to(root())
    file, about = folder / "sweep.json", {"notebook": path.stem, "names": sorted(axes)}
    old = store.read_json(file) if file.is_file() else about
    if old != about:
        of = f"{old['notebook']} over {', '.join(old['names'])}"
        raise SettingsError(f"the sweep {name!r} is of {of}: choose another --name")
    left = [job for job in todo if not is_done(folder, job)]
    for job in todo:  # what a kill has left behind
        (folder / f".{job.name}.ipynb").unlink(missing_ok=True)
    head = f"sweep {name}: {len(todo)} jobs of {path.stem}, {len(todo) - len(left)} done; {where}"
    print(head, file=sys.stderr if as_json else sys.stdout)
    if dry_run:
        words = [[w for n, v in job.given.items() for w in ("-p", n, _typed(v))] for job in left]
        files = [["papermill", f"notebooks/{path.name}", f"{job.name}.ipynb"] for job in left]
        lines = [shlex.join([*some, *more]) for some, more in zip(files, words, strict=True)]
        print(json.dumps([job.given for job in left]) if as_json else "\n".join(lines))
        return 0
    store.write_json(file, about)
    arguments, workers = [(path, folder, job) for job in left], min(workers, len(left)) or 1
    errors = jobs.run_jobs(_execute, arguments, workers=workers, label=name)
    done = table(read(name)[0])
    store.write_text(folder / "table.csv", done.to_csv(index=False, float_format="%.6g"))
    page = f"notebooks/9_sweep.ipynb runs/executed/9_sweep-{name}.ipynb -p name {name}"
    failed = [f"failed: {j.name}: {e}" for j, e in zip(left, errors, strict=True) if e]
    shown = done.drop(columns=["job", "error"]).round(4).to_string(index=False)
    said = [shown, f"{where}/table.csv; the best, and a plot:", f"papermill {page}", *failed]
    print(done.to_json(orient="records") if as_json else "\n".join(said))
    return 1 if failed else 0
