"""avg@k, pass@k, the bootstrap, paired comparisons, and the rule that marks a difference.

Metrics as in the paper (section 3): Avg@16, the mean accuracy over 16 samples, and Pass@16. What we
add: pass@k is the unbiased estimator of Chen et al. (2021); intervals resample problems, since
samples of one problem are a cluster; comparisons are paired by problem, and a difference is marked
only by a rule that is checked on a model compared with itself. Nothing here reads a file.
"""

import functools
from typing import NamedTuple

import numpy as np


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
def weights(problems: int, resamples: int, seed: int = 0) -> np.ndarray:
    """The bootstrap: how often each problem is drawn, over the number drawn; (resamples, problems).

    The mean of a resample is a row of it times the values.
    """
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
    tail = (1 - confidence) / 2
    low, high = np.quantile(weights(len(values), resamples, seed) @ values, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


class Comparison(NamedTuple):
    """A paired difference: its estimate, the p of it being zero, and its value by base seed."""

    value: float
    low: float
    high: float
    p: float
    by_seed: list[float]


def compare(ours, theirs, *, resamples: int, confidence: float) -> Comparison:
    """Ours minus theirs, paired by problem; both (seeds, problems), accuracy of each problem."""
    ours, theirs = (np.atleast_2d(np.asarray(a, dtype=float)) for a in (ours, theirs))
    if ours.shape != theirs.shape:
        shapes = f"{ours.shape} and {theirs.shape}"
        raise ValueError(f"paired: both sides need the same seeds and problems, not {shapes}")
    gap = ours - theirs
    found = bootstrap(gap, resamples=resamples, confidence=confidence)
    return Comparison(*found, p_value(gap), gap.mean(axis=1).tolist())


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
