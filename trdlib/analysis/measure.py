"""The metrics that tables are made from (stats.py), counted in the samples of an evaluation.
What cannot be measured raises: no metric defaults to zero."""

import numpy as np
import pandas as pd

from trdlib import stats, store
from trdlib.run import Run


def correct_counts(samples: pd.DataFrame) -> tuple[np.ndarray, int | list[int]]:
    """-> how many samples of each problem are right, (seeds, problems), and the samples each: a
    number, or with evaluation.base_samples one for each problem."""
    grouped = samples.groupby(["seed", "id"], sort=True)["correct"]
    sizes = grouped.size().unstack("id")
    if (sizes != sizes.iloc[0]).any(axis=None):
        raise ValueError("a problem must have the same number of samples with every seed")
    each = sizes.iloc[0].astype(int).tolist()
    return grouped.sum().unstack("id").to_numpy(), each if len({*each}) > 1 else each[0]


def rates(cell: dict) -> np.ndarray:
    """The share of right samples of each problem, (seeds, problems), of what `_metrics` found."""
    return np.array(cell["correct"]) / cell.get("of", cell["k"])


def _metrics(samples: pd.DataFrame, problems: pd.DataFrame, run: Run, temperature: float) -> dict:
    """One benchmark: avg@k, pass@k, n, k, intervals, lengths; plain JSON. correct: the right
    samples per seed and problem (sorted by id), all that tables and comparisons need, with `of`
    where problems differ in their samples: k is then their mean, pass@k is of the least.
    at_budget: avg@k if responses longer than so many tokens had been cut, so not right."""
    how = run.settings.evaluation

    def estimate(values: np.ndarray) -> dict:  # the last digits of an interval differ by machine
        found = stats.accuracy(values, **how.interval)._asdict()
        return {name: round(value, 6) for name, value in found.items()}

    right, each = correct_counts(samples)
    passed = np.vectorize(lambda n, c: stats.pass_at_k(int(n), int(c), how.least(temperature)))(
        each, right
    )
    within = {b: samples["correct"] & (samples["n_tokens"] <= b) for b in how.budgets}
    within = {b: correct_counts(samples.assign(correct=ok))[0] / each for b, ok in within.items()}
    found = {"at_budget": {str(b): estimate(at) for b, at in within.items()}} if within else {}
    if isinstance(each, list):
        found["of"] = each
    return found | {
        "k": round(np.mean(each)),
        "n": right.shape[1],
        "seeds": sorted(run.seeds),
        "problems": store.content_hash(problems["problem"].tolist()),
        "avg_at_k": estimate(right / each),
        "pass_at_k": estimate(passed),
        "avg_at_k_by_seed": [stats.avg_at_k(row / each) for row in right],
        "pass_at_k_by_seed": [float(row.mean()) for row in passed],
        "mean_tokens": float(samples["n_tokens"].mean()),
        "unfinished": float((~samples["finished"]).mean()),
        "correct": right.tolist(),
    }


def measure(runs: list[Run], sets: dict, samples: list[dict], choices: list) -> list[dict]:
    """The metrics of each run from its samples (see `evaluate`), written to its metrics file:
    {"benchmarks": {temperature: {benchmark: ...}}}. sets: {benchmark: problems}; choices: how each
    was trained (distill.Trained.choice), None for the rows that are not."""
    found = []
    for run, at, choice in zip(runs, samples, choices, strict=True):
        metrics = {"run": {"scale": run.scale, "mode": run.mode, "method": run.method}}
        metrics["benchmarks"] = {
            f"{heat:g}": {name: _metrics(t, sets[name], run, heat) for name, t in tables.items()}
            for heat, tables in at.items()
        }
        metrics |= {"training": choice} if choice else {}
        store.write_json(run.metrics, metrics)
        found.append(metrics)
    return found
