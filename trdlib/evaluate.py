"""The trained students on the benchmarks: samples, and the metrics that tables are made from.

The metrics are those of stats.py. An evaluation that cannot be made raises: none defaults to zero.
"""

import functools
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from trdlib import stats, store
from trdlib.prompts import student_prompts
from trdlib.rollout import Request, pool, table
from trdlib.run import Run
from trdlib.stats import avg_at_k, pass_at_k


def evaluate(
    runs: list[Run], task, sets: dict[str, pd.DataFrame], adapters: list[dict[int, Path] | None]
) -> list[dict[float, dict[str, pd.DataFrame]]]:
    """Sample and grade every benchmark with every base seed at every temperature of the scale:
    {temperature: {benchmark: samples}} for each run.

    The runs are of one scale; adapters: of each run by seed, None for rows that are not trained.
    All samples of all runs are jobs of one pool. The tables have the columns of a generation file
    plus `seed`. What is there is read.
    """
    benchmarks = {name: sets[name] for name in sets if name not in ("train", "validation")}
    seeds, temperatures = runs[0].settings.seeds, runs[0].settings.evaluation.temperatures

    @functools.cache
    def asked(role: str, seed: int, name: str) -> tuple[list[dict], list]:
        rows = benchmarks[name].to_dict("records")
        return rows, student_prompts(runs[0], seed, rows, role)

    cells = []  # the arguments of `table`
    for run, found in zip(runs, adapters, strict=True):
        role = "teacher" if run.method == "teacher" else "student"
        again = int(run.method == "base_again") if run.mode == "none" else run.recipe.again
        for temperature, name, seed in itertools.product(temperatures, benchmarks, seeds):
            adapter = found and found[seed]
            request = Request(role, seed, *asked(role, seed, name), adapter, stream=again)
            path, how = run.samples(seed, temperature, name), run.settings.evaluation
            cells.append((run, task, path, request, how.at(temperature)))
    tables = iter(pool(runs[0], table, cells, "evaluate"))

    def whole() -> pd.DataFrame:
        return pd.concat([next(tables).assign(seed=seed) for seed in seeds], ignore_index=True)

    return [{t: {name: whole() for name in benchmarks} for t in temperatures} for _ in runs]


def correct_counts(samples: pd.DataFrame) -> tuple[np.ndarray, int]:
    """-> how many samples of each problem are right, (seeds, problems), and the samples each."""
    grouped = samples.groupby(["seed", "id"], sort=True)["correct"]
    sizes = grouped.size()
    if sizes.nunique() != 1:
        raise ValueError("every problem must have the same number of samples")
    return grouped.sum().unstack("id").to_numpy(), int(sizes.iloc[0])


def _metrics(samples: pd.DataFrame, problems: pd.DataFrame, run: Run) -> dict:
    """One benchmark: avg@k, pass@k, n, k, intervals, lengths. Plain JSON.

    `correct` keeps the right samples per seed and problem (problems sorted by id), from which
    tables and comparisons are made without the generations.
    """

    def estimate(values: np.ndarray) -> dict:  # the last digits of an interval differ by machine
        found = stats.accuracy(values, **run.settings.evaluation.interval)._asdict()
        return {name: round(value, 6) for name, value in found.items()}

    right, k = correct_counts(samples)
    passed = np.vectorize(lambda c: pass_at_k(k, int(c), k))(right)
    return {
        "k": k,
        "n": right.shape[1],
        "seeds": sorted(run.settings.seeds),
        "problems": store.content_hash(problems["problem"].tolist()),
        "avg_at_k": estimate(right / k),
        "pass_at_k": estimate(passed),
        "avg_at_k_by_seed": [avg_at_k(row / k) for row in right],
        "pass_at_k_by_seed": [float(row.mean()) for row in passed],
        "mean_tokens": float(samples["n_tokens"].mean()),
        "unfinished": float((~samples["finished"]).mean()),
        "correct": right.tolist(),
    }


def measure(
    runs: list[Run], sets: dict[str, pd.DataFrame], samples: list[dict], choices: list[dict | None]
) -> list[dict]:
    """The metrics of each run from its samples (see `evaluate`), written to its metrics file:
    {"benchmarks": {temperature: {benchmark: ...}}}.

    choices: how each was trained (distill.Trained.choice), None for the rows that are not.
    """
    found = []
    for run, at, choice in zip(runs, samples, choices, strict=True):
        metrics = {"run": {"scale": run.scale, "mode": run.mode, "method": run.method}}
        metrics["benchmarks"] = {
            f"{temperature:g}": {name: _metrics(t, sets[name], run) for name, t in tables.items()}
            for temperature, tables in at.items()
        }
        metrics |= {"training": choice} if choice else {}
        store.write_json(run.metrics, metrics)
        found.append(metrics)
    return found
