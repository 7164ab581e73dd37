"""avg@k and pass@k with intervals, paired comparisons, and the evaluation of one run.

Metrics as in the paper (section 3): Avg@16, the mean accuracy over 16 samples, and Pass@16. What
we add: pass@k is the unbiased estimator of Chen et al. (2021); intervals resample problems, since
samples of one problem are a cluster; comparisons are paired by problem. An evaluation that cannot
be made raises: there is no default of zero.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pandas as pd

from trdlib import config, data, models, parallel, rollout


def avg_at_k(correct) -> float:
    """Mean accuracy; correct: booleans, any shape, at least one."""
    correct = np.asarray(correct, dtype=float)
    if correct.size == 0:
        raise ValueError("avg@k of no samples is not defined")
    return float(correct.mean())


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k draws without replacement from n samples, c of them right, hit one.

    1 - C(n-c, k) / C(n, k), as a product, so that nothing overflows. Raises ValueError unless
    0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


class Estimate(NamedTuple):
    """A value with the ends of its confidence interval."""

    value: float
    low: float
    high: float


@functools.lru_cache(maxsize=4)
def _resamplings(problems: int, resamples: int, seed: int) -> np.ndarray:
    """Weights (resamples, problems): how often each problem is drawn, over the number drawn."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples)
    return counts / problems


def bootstrap(per_problem, *, resamples: int, confidence: float, seed: int = 0) -> Estimate:
    """Mean over problems with a percentile interval from resampling problems.

    per_problem: (problems,) values, or (seeds, problems): the seeds of a problem go together.
    For a paired comparison pass the differences. Exactly reproducible for a given seed.
    """
    values = np.atleast_2d(np.asarray(per_problem, dtype=float)).mean(0)
    if values.size == 0:
        raise ValueError("an interval over no problems is not defined")
    means = _resamplings(len(values), resamples, seed) @ values
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def _evaluate(run: config.Run, seed: int, name: str) -> pd.DataFrame:
    rows = data.problems(run.data, name).to_dict("records")
    request = rollout.Request(
        role="teacher" if run.method == "teacher" else "student",
        seed=seed,
        rows=rows,
        prompts=rollout.student_prompts(run, seed, rows),
        adapter=None if run.mode == "none" else run.adapter(seed),
        stream=1 if run.method == "base_again" else 0,
    )
    sampling = run.settings.evaluation.sampling
    return rollout.generate_table(run, run.samples(seed, name), request, sampling)


def evaluate(runs: list[config.Run]) -> list[dict[str, pd.DataFrame]]:
    """Sample and grade every benchmark with every base seed: {benchmark: samples} for each run.

    The runs are of one scale. The tables have the columns of a generation file plus `seed`. What
    is there is read.
    """
    settings = runs[0].settings
    cells = [(run, seed, name) for run in runs for name in settings.data.benchmarks
             for seed in settings.seeds]  # fmt: skip
    models.preload(runs[0])
    tables = parallel.run_jobs(_evaluate, cells, workers=settings.workers, label="evaluate")
    found: list[dict[str, list]] = [{} for _ in runs]
    for (run, seed, name), table in zip(cells, tables, strict=True):
        found[runs.index(run)].setdefault(name, []).append(table.assign(seed=seed))
    return [{name: pd.concat(f, ignore_index=True) for name, f in of.items()} for of in found]


def correct_counts(samples: pd.DataFrame) -> tuple[np.ndarray, int]:
    """-> how many samples of each problem are right, (seeds, problems), and the samples each."""
    grouped = samples.groupby(["seed", "id"], sort=True)["correct"]
    sizes = grouped.size()
    if sizes.nunique() != 1:
        raise ValueError("every problem must have the same number of samples")
    return grouped.sum().unstack("id").to_numpy(), int(sizes.iloc[0])


def summary(run: config.Run, samples: dict[str, pd.DataFrame]) -> dict:
    """The metrics of a run, plain JSON: per benchmark avg@k, pass@k, n, k, intervals, lengths.

    `correct` keeps the right samples per seed and problem (problems sorted by id), from which
    tables and comparisons are made without the generations.
    """
    how = {
        "resamples": run.settings.evaluation.resamples,
        "confidence": run.settings.evaluation.confidence,
    }
    benchmarks = {}
    for name, frame in samples.items():
        counts, k = correct_counts(frame)
        passed = np.vectorize(lambda c: pass_at_k(k, int(c), k))(counts)  # noqa: B023
        benchmarks[name] = {
            "k": k,
            "n": counts.shape[1],
            "seeds": sorted(run.settings.seeds),
            "problems": config.content_hash(data.problems(run.data, name)["problem"].tolist()),
            "avg_at_k": bootstrap(counts / k, **how)._asdict(),
            "pass_at_k": bootstrap(passed, **how)._asdict(),
            "avg_at_k_by_seed": [avg_at_k(row / k) for row in counts],
            "pass_at_k_by_seed": [float(row.mean()) for row in passed],
            "mean_tokens": float(frame["n_tokens"].mean()),
            "unfinished": float((~frame["finished"]).mean()),
            "correct": counts.tolist(),
        }
    result = {
        "run": {"scale": run.scale, "task": run.task, "mode": run.mode, "method": run.method},
        "benchmarks": benchmarks,
    }
    if run.mode != "none":
        result["training"] = data.read_json(run.choice)
    return result


def measure(runs: list[config.Run]) -> dict[str, dict]:
    """Evaluate the runs of one mode, write their metrics files; {method: what is in its file}."""
    found = {}
    for run, samples in zip(runs, evaluate(runs), strict=True):
        found[run.method] = summary(run, samples)
        data.write_json(run.metrics, found[run.method])
    return found
