"""avg@k and pass@k with intervals, paired comparisons, and the evaluation of one run.

Metrics as in the paper (section 3): Avg@16, the mean accuracy over 16 samples, and Pass@16. What
we add: pass@k is the unbiased estimator of Chen et al. (2021); intervals resample problems, since
samples of one problem are a cluster; comparisons are paired by problem, and a difference is marked
only by a rule that is checked on a model compared with itself. An evaluation that cannot be made
raises: there is no default of zero.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pandas as pd

from trdlib import config, data, engines, models, notebooks, parallel, rollout


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


def p_value(per_problem) -> float:
    """Two-sided p of the mean over problems being zero (Student's t over problems).

    per_problem: as in `bootstrap`, paired differences. No spread at all: 1 if all are zero, else 0.
    """
    values = np.atleast_2d(np.asarray(per_problem, dtype=float)).mean(0)
    if np.ptp(values) < 1e-12:
        return float(abs(values.mean()) < 1e-12)
    from scipy import stats

    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p_values) -> np.ndarray:
    """p-values adjusted for their number (Holm's step-down); NaN where there was no comparison."""
    p_values = np.asarray(p_values, dtype=float)
    adjusted, made = np.full(p_values.shape, np.nan), ~np.isnan(p_values)
    found = p_values[made]
    order = np.argsort(found)
    steps = np.maximum.accumulate((found.size - np.arange(found.size)) * found[order])
    adjusted[np.flatnonzero(made)[order]] = np.minimum(steps, 1)
    return adjusted


# Of 100 families of comparisons of a model with itself, how many may be marked. At 5 % the t-test
# marks 5.0 to 5.3 of 100 in simulation: too near the line that we promise to keep (5 in 100).
MARK_LEVEL = 0.01


def marked(low, high, adjusted) -> np.ndarray:
    """The rule that marks a difference: its interval excludes zero, and so does Holm's test."""
    low, high, adjusted = (np.asarray(a, dtype=float) for a in (low, high, adjusted))
    return ((low > 0) | (high < 0)) & (adjusted < MARK_LEVEL)


def reevaluations(counts, again, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two simulated evaluations, k samples each, of the one model that made both counts.

    counts, again: right samples of k, any one shape. The 2k samples of each problem are dealt
    again without replacement, so there is no model of the samples but that they are exchangeable.
    """
    pool = np.asarray(counts) + np.asarray(again)
    first = rng.hypergeometric(pool, 2 * k - pool, k)
    return first, pool - first


def null_check(
    counts: dict, again: dict, k: int, *, simulations: int, resamples: int, confidence: float
) -> float:
    """How often `marked` fires at least once when a model is compared with itself.

    counts, again: {benchmark: (seeds, problems)} of two evaluations of one model; one simulation
    compares all benchmarks, as one family.
    """
    rng, fired = np.random.default_rng(0), 0
    for _ in range(simulations):
        gaps = []
        for name in counts:
            first, second = reevaluations(counts[name], again[name], k, rng)
            gaps.append((first - second) / k)
        found = [bootstrap(gap, resamples=resamples, confidence=confidence) for gap in gaps]
        adjusted = holm([p_value(gap) for gap in gaps])
        rule = marked([f.low for f in found], [f.high for f in found], adjusted)
        fired += bool(rule.any())
    return fired / simulations


def pass_curve(counts, k: int, **how) -> list[Estimate]:
    """pass@1 ... pass@k with intervals; counts: right samples of k, (seeds, problems)."""
    counts = np.asarray(counts)
    table = np.array([[pass_at_k(k, c, j) for c in range(k + 1)] for j in range(1, k + 1)])
    return [bootstrap(row[counts], **how) for row in table]


class Frontier(NamedTuple):
    """Problems (of all base seeds) across the border between never and at least once solved."""

    unsolved: int  # by the base, in k samples
    gained: int  # of these, solved by the method
    lost: int  # solved by the base, never by the method
    chance_gained: float  # expected if the method were the base, sampled again; as many are lost
    chance_high: float  # exceeded in 2.5 % of such evaluations


def frontier(base, again, method, k: int, simulations: int = 2000) -> Frontier:
    """Problems won and lost in coverage; counts of right samples of k, (seeds, problems).

    Chance: of c right samples in the base's 2k, none falls into the first k with probability
    1 - pass@k; such a problem is won by the second k.
    """
    base, again, method = (np.asarray(c) for c in (base, again, method))
    pool = (base + again).ravel()
    chance = np.array([1 - pass_at_k(2 * k, int(c), k) if c else 0.0 for c in pool])
    drawn = np.random.default_rng(0).random((simulations, chance.size)) < chance
    return Frontier(
        int((base == 0).sum()),
        int(((base == 0) & (method > 0)).sum()),
        int(((base > 0) & (method == 0)).sum()),
        float(chance.sum()),
        float(np.quantile(drawn.sum(axis=1), 0.975)),
    )


def _evaluate(run: config.Run, seed: int, name: str) -> pd.DataFrame:
    rows = data.problems(run.data, name).to_dict("records")
    role = "teacher" if run.method == "teacher" else "student"
    request = rollout.Request(
        role=role,
        seed=seed,
        rows=rows,
        prompts=rollout.student_prompts(run, seed, rows, role),
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
    with engines.kept():
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


def measured(samples: pd.DataFrame, problems: pd.DataFrame) -> dict:
    """The accuracy of a table of samples (with a column seed), as a notebook records it."""
    asked = config.content_hash(problems["problem"].tolist())
    return notebooks.counts(*correct_counts(samples), asked)


def validation(run: config.Run) -> dict:
    """How right the trained students are on the validation set, as a notebook records it.

    evaluation.validation_samples samples a problem; the adapters must be there (distill.distill).
    """
    sampling, problems = run.settings.evaluation.validation, data.problems(run.data, "validation")
    rows, tables = problems.to_dict("records"), []
    for seed in run.settings.seeds:
        prompts = rollout.student_prompts(run, seed, rows)
        request = rollout.Request("student", seed, rows, prompts, run.adapter(seed))
        path = run.folder(seed) / "validation.parquet"
        with data.locked(path):
            table = rollout.generate_table(run, path, request, sampling)
        tables.append(table.assign(seed=seed))
    return measured(pd.concat(tables), problems)


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
        found[run.method]["fingerprints"] = {
            name: {str(s): data.fingerprint_of(run.samples(s, name)) for s in run.settings.seeds}
            for name in samples
        }
        data.write_json(run.metrics, found[run.method])
    return found
