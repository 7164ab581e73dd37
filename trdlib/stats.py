"""avg@k and pass@k, as in the paper (section 3): pass@k by the unbiased estimator of Chen et al.
(2021). Their intervals, and those of differences, stand in analysis/compare.py."""

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
