"""A sweep: one notebook, run over a grid or a random sample of its parameters (papermill).

    python -m trdlib sweep 4_distill -p scale=tiny -p learning_rate=2e-3,6e-3 -p seed=0..2

A name is a parameter of the notebook or, dotted, a setting of params.yaml (`lora.r=4,8`). What a
changed setting touches lies apart from the usual run, what it does not touch is shared with it
(`config.Run`). A sweep is a folder, runs/sweeps/<name>:

    sweep.json                 the notebook and the names that are swept
    <job>.ipynb                an executed notebook for each job; what it found stands in it
    <job>.failed.ipynb         of a job that failed: it is tried again by the next call
    table.csv                  one row per job: its parameters, what it found, or its error

A job whose notebook, code and settings are as they were is not run again; a killed one starts again
and finds what it had made. The best point is named with what its problems and seeds can tell.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
import pandas as pd

from trdlib import config, data, inputs, notebooks, parallel

SEED = "seed"  # the one name whose values are repetitions of a point, not points
_LISTS = re.compile(r",(?![^\[{]*[\]}])")  # a comma outside of brackets


class Drawn(NamedTuple):
    """A distribution, for a random sample: `log:1e-6:1e-4` or `uniform:0:1`."""

    kind: str
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """A value of four significant digits, so that it can be read and typed again."""
        if self.kind == "uniform":
            value = rng.uniform(self.low, self.high)
        else:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return float(f"{value:.4g}")


class Job(NamedTuple):
    """One run of the notebook."""

    name: str  # of its file
    values: dict[str, Any]  # as the sweep names them
    given: dict[str, Any]  # as the notebook takes them: settings are part of the scale
    stamp: str  # hash of these, of the settings and of the code


class Done(NamedTuple):
    """What became of a job."""

    name: str
    values: dict[str, Any]
    found: dict  # what the notebook recorded
    seconds: float
    error: str  # one line; empty if it succeeded


# ------------------------------------------------------------------------------------- the plan


def axis(text: str) -> tuple[str, list | Drawn]:
    """`name=1,2,3`, `name=0..4`, `name=log:1e-6:1e-4` -> the name, and its values."""
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise config.SettingsError(f"-p {text}: write name=value, name=1,2,3 or name=0..4")
    if found := re.fullmatch(r"(-?\d+)\.\.(-?\d+)", values):
        low, high = int(found[1]), int(found[2])
        if low > high:
            raise config.SettingsError(f"-p {text}: the range is empty, write {high}..{low}")
        return name, list(range(low, high + 1))
    if found := re.fullmatch(r"(log|uniform):([^:]+):([^:]+)", values):
        try:
            low, high = float(found[2]), float(found[3])
        except ValueError:
            raise config.SettingsError(f"-p {text}: the bounds must be numbers") from None
        if not low < high or (found[1] == "log" and low <= 0):
            raise config.SettingsError(f"-p {text}: needs low < high, and for log low > 0")
        return name, Drawn(found[1], low, high)
    return name, [config.plain_value(value) for value in _LISTS.split(values)]


def points(axes: dict[str, list | Drawn], sample: int | None, seed: int = 0) -> list[dict]:
    """All combinations of the values, or a random sample of them; the seeds are never sampled."""
    drawn = [name for name, values in axes.items() if isinstance(values, Drawn)]
    if sample is None:
        if drawn:
            raise config.SettingsError(f"{drawn[0]} is a distribution: say --sample how often")
        return [dict(zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    seeds = axes.get(SEED, [None])
    rest = {name: values for name, values in axes.items() if name != SEED}
    rng, found = np.random.default_rng(seed), []
    if not drawn:
        grid = points(rest, None)
        if sample >= len(grid):
            raise config.SettingsError(f"the grid has only {len(grid)} points: drop --sample")
        found = [grid[i] for i in sorted(rng.choice(len(grid), sample, replace=False))]
    while len(found) < sample:
        one = {
            name: v.draw(rng) if isinstance(v, Drawn) else v[rng.integers(len(v))]
            for name, v in rest.items()
        }
        if one not in found:
            found.append(one)
    return [one | ({} if s is None else {SEED: s}) for one in found for s in seeds]


def _typed(value) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def plan(notebook: Path, axes: dict[str, list | Drawn], sample: int | None, seed: int) -> list[Job]:
    """The jobs, each checked: SettingsError if one could not run."""
    node, settings = nbformat.read(notebook, as_version=4), config.load()
    known, code = notebooks.parameters(node), notebooks.code_hash(node)
    of_scale = {name for name in axes if name not in known
                and name.split(".")[0] in config.Scale.model_fields}  # fmt: skip
    if of_scale and "scale" not in known:
        raise config.SettingsError(f"{notebook.stem} has no scale: {min(of_scale)} is not its own")
    several = [n for n, values in axes.items() if isinstance(values, Drawn) or len(values) > 1]
    jobs = []
    for values in points(axes, sample, seed):
        given = {name: value for name, value in values.items() if name not in of_scale}
        words = [f"{name}={_typed(values[name])}" for name in sorted(of_scale)]
        if words:
            given["scale"] = f"{given.get('scale', known['scale'][1])} {shlex.join(words)}"
        if "validate" in known:  # a sweep compares: without a measurement it cannot
            given.setdefault("validate", True)
        notebooks.check(node, given, settings)
        usual = {name: default for name, (_, default) in known.items()}
        asked = usual | given
        run = [str(asked["scale"]), asked.get("task", "math")] if "scale" in asked else None
        used = config.run(*run, settings=settings).settings if run else None
        own = inputs.own_files(used.data) if used else None
        stamp = config.content_hash(given, usual, code, used, own)
        label = "_".join(f"{name}={_typed(values[name])}" for name in several) or notebook.stem
        label = re.sub(r"[^\w.=~+-]+", "-", label)[:100]
        jobs.append(Job(f"{label}-{config.content_hash(values)[:6]}", values, given, stamp))
    return jobs


def open_folder(name: str, notebook: Path, axes) -> Path:
    """runs/sweeps/<name>, which must be of the same notebook and names; values may be added."""
    folder = config.root() / "runs" / "sweeps" / name
    about = {"notebook": notebook.stem, "names": sorted(axes)}
    path = folder / "sweep.json"
    if path.is_file() and data.read_json(path) != about:
        old = data.read_json(path)
        raise config.SettingsError(
            f"the sweep {name!r} is of {old['notebook']} over {', '.join(old['names'])}: choose "
            "another --name"
        )
    data.write_json(path, about)
    return folder


def is_done(folder: Path, job: Job) -> bool:
    """Is there an executed notebook of this job, as it would be run now?"""
    path = folder / f"{job.name}.ipynb"
    about = nbformat.read(path, as_version=4).metadata.get("trd", {}) if path.is_file() else {}
    return about.get("stamp") == job.stamp


# ------------------------------------------------------------------------------------- the work


def gpus() -> list[str]:
    """The GPUs that a job may have, by the names that CUDA_VISIBLE_DEVICES takes."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name]
    with contextlib.suppress(FileNotFoundError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        return [str(i) for i, line in enumerate(l for l in listed.splitlines() if "UUID" in l)]  # noqa: E741
    return []


@contextlib.contextmanager
def _one_of(names: list[str]):
    """The first GPU that no other job, of any sweep, holds; none if there are none."""
    if not names:
        yield
        return
    with contextlib.ExitStack() as stack:
        for name in itertools.cycle(names):
            lock = data.locked(config.root() / "runs" / "gpu" / name)
            with contextlib.suppress(TimeoutError):  # filelock's Timeout is one
                stack.enter_context(lock.acquire(timeout=0.2))
                break
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = name
        try:
            yield
        finally:
            del os.environ["CUDA_VISIBLE_DEVICES"]
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _execute(notebook: Path, folder: Path, job: Job, names: list[str]) -> str:
    """Run one job; its error in one line, empty if there was none."""
    import papermill

    running = folder / f".{job.name}.ipynb"
    finished, failed = folder / f"{job.name}.ipynb", folder / f"{job.name}.failed.ipynb"
    error = ""
    how = {"progress_bar": False, "start_timeout": 300, "cwd": str(config.root())}
    with _one_of(names):
        try:
            papermill.execute_notebook(str(notebook), str(running), job.given, **how)
        except papermill.PapermillExecutionError as problem:
            error = f"{problem.ename}: {problem.evalue}"
        except Exception as problem:  # a dead kernel, a full disk: the other jobs go on
            error = f"{type(problem).__name__}: {problem}"
    error = (error.strip().splitlines() or [""])[0]
    there = running.is_file()  # not if papermill itself failed
    node = nbformat.read(running, as_version=4) if there else nbformat.v4.new_notebook()
    node.metadata["trd"] = {"stamp": job.stamp, "values": job.values, "error": error}
    data.write_whole(failed if error else finished, lambda path: nbformat.write(node, path))
    running.unlink(missing_ok=True)
    (finished if error else failed).unlink(missing_ok=True)
    return error


def run(notebook: Path, folder: Path, jobs: list[Job], workers: int, names: list[str]) -> list[str]:
    """Run the jobs that are not done, one a worker, each with a GPU of its own if there are any.

    Writes the table; returns the errors, one line for each job that failed.
    """
    waiting = [(notebook, folder, job, names) for job in jobs if not is_done(folder, job)]
    workers = max(1, min(workers, len(waiting)))
    found = parallel.run_jobs(_execute, waiting, workers=workers, label=folder.name)
    data.write_text(folder / "table.csv", table(read(folder)).to_csv(index=False))
    failures = zip(waiting, found, strict=True)
    return [f"{job.name}: {error}" for (_, _, job, _), error in failures if error]


# ---------------------------------------------------------------------------------- what is there


def read(folder: Path) -> list[Done]:
    """What became of the jobs of a sweep so far, by name."""
    if not (folder / "sweep.json").is_file():
        raise FileNotFoundError(f"{folder.name} is no sweep: run python -m trdlib sweep first")
    done = []
    for path in sorted(folder.glob("[!.]*.ipynb")):
        about = nbformat.read(path, as_version=4).metadata
        if "trd" in about:
            mine, seconds = about["trd"], about.get("papermill", {}).get("duration") or math.nan
            found = {} if mine["error"] else notebooks.recorded(path) or {}
            name = path.name.removesuffix(".ipynb").removesuffix(".failed")
            done.append(Done(name, dict(mine["values"]), found, seconds, mine["error"]))
    return done


def _accuracy(found: dict) -> float:
    return float(np.mean(found["correct"]) / found["k"])


def table(done: list[Done]) -> pd.DataFrame:
    """Tidy, one row per job: its parameters, what it found (accuracies as fractions), its error."""
    rows = []
    for one in done:
        flat = {n: _accuracy(v) if isinstance(v, dict) else v for n, v in one.found.items()}
        values = {n: _typed(v) if isinstance(v, list | dict) else v for n, v in one.values.items()}
        about = {"job": one.name, "seconds": one.seconds, "error": one.error}
        rows.append({**values, **flat, **about})
    return pd.DataFrame(rows)


class Point(NamedTuple):
    """A place in the space of parameters, all its seeds together."""

    values: dict[str, Any]  # of the names that differ within the sweep
    rates: np.ndarray  # share of right samples, (seeds, problems)
    problems: str  # which these are
    seeds: tuple  # by job where the seed was swept

    @property
    def label(self) -> str:
        return ", ".join(f"{n} {v:g}" if isinstance(v, float) else f"{n} {v}"
                         for n, v in self.values.items()) or "the only point"  # fmt: skip


def metrics(done: list[Done]) -> list[str]:
    """The accuracies that every finished job recorded, in its order."""
    finished = [one.found for one in done if not one.error]
    first = finished[0] if finished else {}
    return [n for n in first if isinstance(first[n], dict) and all(n in f for f in finished)]


def collect(done: list[Done], metric: str) -> list[Point]:
    """The points of the jobs that finished; jobs that differ in the seed alone are one point."""
    finished = [one for one in done if not one.error]
    if metric not in metrics(done):
        there = ", ".join(metrics(done)) or "none"
        raise config.SettingsError(f"no accuracy {metric!r} was recorded by every job: {there}")
    differ = [
        name for name in (finished[0].values if finished else {})
        if name != SEED and len({_typed(one.values[name]) for one in finished}) > 1
    ]  # fmt: skip
    groups: dict[str, list[Done]] = {}
    for one in finished:
        key = json.dumps([one.values[name] for name in differ])
        groups.setdefault(key, []).append(one)
    found = []
    for jobs in groups.values():
        jobs = sorted(jobs, key=lambda one: str(one.values.get(SEED)))
        measured = [one.found[metric] for one in jobs]
        asked = {m["problems"] for m in measured}
        if len(asked) > 1:
            raise config.SettingsError("the seeds of one point were asked different problems")
        rates = np.concatenate([np.array(m["correct"]) / m["k"] for m in measured])
        values = {name: jobs[0].values[name] for name in differ}
        seeds = tuple(one.values.get(SEED) for one in jobs)
        found.append(Point(values, rates, asked.pop(), seeds))
    return found


def rank(found: list[Point], *, resamples: int = 10000, confidence: float = 0.95) -> pd.DataFrame:
    """The points from best to worst, and whether the best can be told from each other one.

    Columns: the point's values; value, low, high (fractions; problems are resampled, the seeds
    taken as given); behind, behind_low, behind_high: what the best is ahead, paired by problem;
    separate: that difference is marked by the rule of the tables (interval, and t-test, here
    corrected for all pairs of points, since the best was picked); chance: in how many resamples
    this point is the best. Points on other problems or seeds than the best are not compared
    (missing). The best of many is picked by the very numbers shown: its value is flattering, the
    more so the more points there are.
    """
    from trdlib import evaluate

    how = {"resamples": resamples, "confidence": confidence}
    order = sorted(found, key=lambda p: -p.rates.mean())
    best, rows, alike = order[0], [], []
    for point in order:
        row = {**point.values, "seeds": len(point.rates), "problems": point.rates.shape[1]}
        row |= evaluate.bootstrap(point.rates, **how)._asdict()
        same = (point.problems, point.seeds) == (best.problems, best.seeds)
        same = same and point.rates.shape == best.rates.shape
        if same:
            alike.append(len(rows))
            gap = best.rates - point.rates
            ahead = evaluate.bootstrap(gap, **how)
            row |= {"behind": ahead.value, "behind_low": ahead.low, "behind_high": ahead.high}
            row["p"] = math.nan if point is best else evaluate.p_value(gap)
        rows.append(row)
    ranked = pd.DataFrame(rows)
    # The best was picked: any pair could have become the comparison, so all pairs are paid for.
    pairs = len(order) * (len(order) - 1) / 2
    ranked["adjusted"] = (ranked["p"] * pairs).clip(upper=1).fillna(1)
    ends = ranked["behind_low"].fillna(0), ranked["behind_high"].fillna(0)
    ranked["separate"] = evaluate.marked(*ends, ranked["adjusted"])
    means = np.array([order[i].rates.mean(axis=0) for i in alike])
    rng = np.random.default_rng(0)
    picks = rng.multinomial(means.shape[1], [1 / means.shape[1]] * means.shape[1], resamples)
    drawn = means @ picks.T
    wins = np.isclose(drawn, drawn.max(axis=0))  # equals share the place
    ranked["chance"] = math.nan
    ranked.loc[alike, "chance"] = (wins / wins.sum(axis=0)).mean(axis=1)
    return ranked.drop(columns=["p", "adjusted"])


def verdict(found: list[Point], ranked: pd.DataFrame, metric: str) -> str:
    """The best point, its uncertainty, and from what it cannot be told, in words."""
    order = sorted(found, key=lambda p: -p.rates.mean())
    top = ranked.iloc[0]
    seeds = [f"{100 * v:.1f}" for v in order[0].rates.mean(axis=1)]
    text = (
        f"Best of {len(found)} by {metric}: {order[0].label}, {100 * top['value']:.1f} % "
        f"[{100 * top['low']:.1f}, {100 * top['high']:.1f}] on {top['problems']:.0f} problems; by "
        f"seed {' / '.join(seeds)}. It is the best in {top['chance']:.0%} of resamples."
    )
    if len(found) == 1:
        return text
    rest = ranked.iloc[1:]
    compared = rest["behind"].notna()
    near = rest[compared & ~rest["separate"]]
    if compared.sum() < len(rest):
        text += f" {(~compared).sum()} points have other problems or seeds: not compared."
    if near.empty:
        return text + (" It can be told from every other point." if compared.any() else "")
    following = near.index[0]
    gap = [100 * near.loc[following, name] for name in ("behind", "behind_low", "behind_high")]
    return text + (
        f" It cannot be told from {len(near)} other{'s' if len(near) > 1 else ''}, the next being "
        f"{order[following].label} ({gap[0]:.1f} points behind [{gap[1]:.1f}, {gap[2]:.1f}])."
    )


# ------------------------------------------------------------------------------------ the figures


def _places(values: list) -> tuple[np.ndarray, list, bool]:
    """-> where on an axis the values lie, the ticks there, and whether the axis is logarithmic."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        places = np.array(values, dtype=float)
        several = len(set(values)) > 1
        log = bool(several and places.min() > 0 and places.max() / places.min() >= 8)
        return places, sorted(set(values)), log
    names = list(dict.fromkeys(map(str, values)))
    return np.array([names.index(str(v)) for v in values], dtype=float), names, False


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def figure(found: list[Point], ranked: pd.DataFrame, metric: str):
    """One name that differs: lines with bands; two: a heat map; more: parallel coordinates."""
    names = list(found[0].values)
    draw = {1: _lines, 2: _map}.get(len(names), _parallel)
    order = sorted(found, key=lambda p: -p.rates.mean())
    fig = draw(order, ranked, names, metric)
    fig.tight_layout()
    return fig


def _lines(order: list[Point], ranked: pd.DataFrame, names: list[str], metric: str):
    import matplotlib.pyplot as plt

    name = names[0]
    values = [p.values[name] for p in order]
    places, ticks, log = _places(values)
    fig, axis = plt.subplots(figsize=(6.4, 3.8))
    at = np.argsort(places, kind="stable")
    x, y = places[at], 100 * ranked["value"].to_numpy()[at]
    seeds = [100 * order[i].rates.mean(axis=1) for i in at]
    named = isinstance(ticks[0], str)  # of names there is no in-between
    if not named:
        ends = [m.min() for m in seeds], [m.max() for m in seeds]
        axis.fill_between(x, *ends, color="C0", alpha=0.18, lw=0, label="lowest to highest seed")
    low, high = (100 * ranked[end].to_numpy()[at] for end in ("low", "high"))
    bars = [y - low, high - y]
    label = "mean, problems resampled"
    axis.errorbar(x, y, bars, fmt="o" if named else "o-", color="C0", capsize=3, ms=5, label=label)
    for place, mine in zip(x, seeds, strict=True):
        axis.plot([place] * len(mine), mine, "_", color="black", ms=8, mew=1)
    axis.plot(places[0], 100 * ranked["value"].iloc[0], "D", color="C3", ms=8, mec="black",
              label="best", zorder=4)  # fmt: skip
    if log:
        axis.set_xscale("log")
    where = range(len(ticks)) if named else ticks
    axis.set_xticks(list(where), [_short(t) for t in ticks], minor=False)
    axis.minorticks_off()
    axis.set(xlabel=name, ylabel=f"{metric}: right (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return fig


def _map(order: list[Point], ranked: pd.DataFrame, names: list[str], metric: str):
    import matplotlib.pyplot as plt

    columns, rows = ([p.values[name] for p in order] for name in names)
    shown = 100 * ranked["value"].to_numpy()
    grid = {(_short(c), _short(r)) for c, r in zip(columns, rows, strict=True)}
    (x, xs, xlog), (y, ys, ylog) = _places(columns), _places(rows)
    if len(grid) < len(xs) * len(ys):  # a sample, no grid
        fig, axis = plt.subplots(figsize=(6.2, 4.4))
        dots = axis.scatter(x, y, c=shown, s=110, cmap="viridis", edgecolor="black", lw=0.6)
        axis.scatter(x[:1], y[:1], s=330, facecolor="none", edgecolor="C3", lw=2)
        axis.set(xscale="log" if xlog else "linear", yscale="log" if ylog else "linear")
        for ticks, put in ((xs, axis.set_xticks), (ys, axis.set_yticks)):
            if isinstance(ticks[0], str):
                put(range(len(ticks)), ticks)
            elif len(ticks) <= 6:
                put(ticks, [_short(t) for t in ticks], minor=False)
                put([], minor=True)
        axis.set_title("circle: the best", fontsize=9)
        axis.grid(alpha=0.3)
    else:
        fig, axis = plt.subplots(figsize=(1.25 * len(xs) + 2.4, 0.75 * len(ys) + 1.6))
        cells = np.full((len(ys), len(xs)), np.nan)
        for c, r, value in zip(columns, rows, shown, strict=True):
            cells[[*map(_short, ys)].index(_short(r)), [*map(_short, xs)].index(_short(c))] = value
        dots = axis.imshow(cells, cmap="viridis", aspect="auto", origin="lower")
        middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
        stays = ranked["separate"].to_numpy()
        for i, (c, r) in enumerate(zip(columns, rows, strict=True)):
            at = [*map(_short, xs)].index(_short(c)), [*map(_short, ys)].index(_short(r))
            half = 50 * (ranked["high"].iloc[i] - ranked["low"].iloc[i])
            text = f"{shown[i]:.1f}\n±{half:.1f}" + ("" if stays[i] or i == 0 else " ≈")
            axis.text(*at, text, ha="center", va="center", fontsize=8,
                      color="black" if shown[i] > middle else "white")  # fmt: skip
            if i == 0:
                axis.add_patch(plt.Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, fill=False,
                                             edgecolor="C3", lw=3))  # fmt: skip
        axis.set_xticks(range(len(xs)), [_short(v) for v in xs])
        axis.set_yticks(range(len(ys)), [_short(v) for v in ys])
    axis.set(xlabel=names[0], ylabel=names[1])
    fig.colorbar(dots, label=f"{metric}: right (%)")
    return fig


def _parallel(order: list[Point], ranked: pd.DataFrame, names: list[str], metric: str):
    import matplotlib.pyplot as plt

    shown = 100 * ranked["value"].to_numpy()
    fig, axis = plt.subplots(figsize=(1.9 * (len(names) + 1) + 1, 4.0))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    heights, small = [], {"va": "center", "fontsize": 8, "bbox": box, "zorder": 5}
    for column, name in enumerate(names):
        places, ticks, log = _places([p.values[name] for p in order])
        scale = np.log(places) if log else places
        spread = np.ptp(scale) or 1.0
        heights.append((scale - scale.min()) / spread)
        known = dict(zip(map(str, (p.values[name] for p in order)), heights[-1], strict=True))
        if len(ticks) > 6 and not isinstance(ticks[0], str):
            ticks = [ticks[round(i * (len(ticks) - 1) / 4)] for i in range(5)]
        for tick in ticks:
            axis.text(column - 0.03, known[str(tick)], _short(tick), ha="right", **small)
        axis.axvline(column, color="black", lw=0.8)
    last = len(names)
    spread = np.ptp(shown) or 1.0
    heights.append((shown - shown.min()) / spread)
    axis.axvline(last, color="black", lw=0.8)
    for height in np.linspace(0, 1, 5):
        axis.text(last + 0.03, height, f"{shown.min() + height * spread:.1f}", **small)
    color = plt.get_cmap("viridis")
    for i in reversed(range(len(order))):  # the best on top
        line = [column[i] for column in heights]
        how = {"color": "C3", "lw": 3} if i == 0 else {"color": color(heights[-1][i]), "lw": 1.3}
        axis.plot(range(last + 1), line, alpha=0.9, **how)
    axis.set_xticks(range(last + 1), [*names, f"{metric}\nright (%)"])
    axis.set(yticks=[], xlim=(-0.4, last + 0.4))
    axis.spines[:].set_visible(False)
    axis.set_title("a line is a point; red: the best", fontsize=9)
    return fig


# -------------------------------------------------------------------------------- the command line


def command(
    notebook: str,
    given: list[str],
    *,
    name: str | None,
    sample: int | None,
    seed: int,
    workers: int | None,
    dry_run: bool,
) -> int:
    """`python -m trdlib sweep`; 1 if a job failed."""
    path = notebooks.path_of(notebook)
    axes = dict(axis(text) for text in given)
    if len(axes) < len(given):
        raise config.SettingsError("a name stands twice in -p: write its values in one list")
    jobs = plan(path, axes, sample, seed)
    name = name or f"{path.stem}-{config.content_hash(given, sample, seed)[:6]}"
    devices = gpus()
    if workers is None:
        scale = str(jobs[0].given.get("scale", "smoke"))
        each = config.run(scale).settings.workers
        workers = len(devices) or max(1, (os.cpu_count() or 1) // each)
    if devices and workers > len(devices):
        raise config.SettingsError(f"--jobs {workers}: each needs a GPU; there are {len(devices)}")
    folder = config.root() / "runs" / "sweeps" / name
    todo = sum(not is_done(folder, job) for job in jobs)
    where = f"{len(devices)} GPU(s)" if devices else "CPU"
    print(f"sweep {name}: {len(jobs)} jobs of {path.stem}, {len(jobs) - todo} done; {workers} at a "
          f"time on {where}; {folder.relative_to(config.root())}")  # fmt: skip
    if dry_run:
        for job in jobs:
            shown = " ".join(f"-p {n} {shlex.quote(_typed(v))}" for n, v in job.given.items())
            print(f"{'done' if is_done(folder, job) else 'todo'}  papermill notebooks/{path.name} "
                  f"{job.name}.ipynb {shown}")  # fmt: skip
        return 0
    errors = run(path, open_folder(name, path, axes), jobs, workers, devices)
    done = read(folder)
    for metric in metrics(done):
        found = collect(done, metric)
        print(verdict(found, rank(found), metric))
    print(f"{folder.relative_to(config.root())}/table.csv; to plot: -p sweep {name} in 9_sweep")
    for error in errors:
        print(f"failed: {error}")
    return 1 if errors else 0
