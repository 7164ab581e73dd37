"""pass@k, as in the paper (section 3), by the unbiased estimator of Chen et al. (2021); avg@k is a
mean. Their intervals, and those of differences, stand in analysis/compare.py."""

import math

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k draws without replacement from n samples, c of them right, hit one."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def allocate(right, of: int, mean: int, least: int) -> np.ndarray:
    """How many samples each problem gets, `mean` of them on average: n_i ~ sqrt(p (1 - p) + 0.01),
    as whole numbers, at least so many each. p: the share of `of` samples that are right, of
    *another* model: by a model's own the mean of the problems' means would be biased. So
    shared, the samples give it less variance than with equal n_i."""
    p = np.asarray(right) / of
    counts = np.full(len(p), least)
    for _ in range((mean - least) * len(p)):  # where one more lessens the variance most
        counts[np.argmax((p * (1 - p) + 0.01) / (counts * (counts + 1)))] += 1
    return counts
