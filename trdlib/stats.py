"""avg@k and pass@k, as in the paper (section 3), the second by the unbiased estimator of Chen et
al. (2021). Their intervals, and those of differences, stand in analysis/compare.py."""

import math

import numpy as np


def avg_at_k(correct) -> float:
    """Mean accuracy; correct: booleans, any shape, at least one."""
    correct = np.asarray(correct, dtype=float)
    if correct.size == 0:
        raise ValueError("avg@k of no samples is not defined")
    return float(correct.mean())


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k draws without replacement from n samples, c of them right, hit one.
    ValueError unless 0 <= c <= n and 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def allocate(right, of: int, mean: int, least: int) -> np.ndarray:
    """How many samples each problem gets, `mean` of them on average: n_i ~ sqrt(p (1 - p) + 0.01),
    as whole numbers, at least so many each. p: the share of `of` samples that are right, of
    *another* model: by a model's own the mean of the problems' means would be biased. Shared so,
    the samples give it less variance than with equal n_i."""
    p = np.asarray(right) / of
    counts = np.full(len(p), least)
    for _ in range((mean - least) * len(p)):  # where one more lessens the variance most
        counts[np.argmax((p * (1 - p) + 0.01) / (counts * (counts + 1)))] += 1
    return counts
