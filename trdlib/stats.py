"""avg@k and pass@k, as in the paper (section 3), each with its interval.

pass@k is the unbiased estimator of Chen et al. (2021). Differences between methods, and the rule
that marks one, stand in analysis/compare.py. Nothing here reads a file.
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


def allocate(right, of: int, mean: int, least: int) -> np.ndarray:
    """How many samples each problem gets, `mean` of them on average: n_i ~ sqrt(p (1 - p) + 0.01),
    as whole numbers, at least so many each. p: the share of `of` samples of *another* model that
    are right. The mean of the problems' means stays unbiased, and varies less than with equal n_i;
    by a model's own samples it would be biased.
    """
    p = np.asarray(right) / of
    counts = np.full(len(p), least)
    for _ in range((mean - least) * len(p)):  # where one more lessens the variance most
        counts[np.argmax((p * (1 - p) + 0.01) / (counts * (counts + 1)))] += 1
    return counts


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


def exact_reach(problems: int, confidence: float) -> float:
    """How far from 0 % (or 100 %) a mean may be if nothing else was seen (Clopper and Pearson).

    One trial a problem, which holds however alike its samples are. 128 problems at 95 %: 0.028.
    """
    return 1 - ((1 - confidence) / 2) ** (1 / problems)


def accuracy(per_problem, *, resamples: int, confidence: float) -> Estimate:
    """`bootstrap` of accuracies; where all are 0 or all 1 the interval is exact (`exact_reach`)."""
    found = bootstrap(per_problem, resamples=resamples, confidence=confidence)
    reach = exact_reach(np.atleast_2d(per_problem).shape[1], confidence)
    if found.value in (0, 1):
        return Estimate(found.value, max(0, found.value - reach), min(1, found.value + reach))
    return found
