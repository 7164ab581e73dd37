"""Coverage (pass@k for each k), problems won and lost, and how often `stats.marked` is wrong, all
from counts: right samples of k, (seeds, problems)."""

from typing import NamedTuple

import numpy as np

from trdlib.stats import Estimate, bootstrap, compare, holm, marked, pass_at_k


def pass_curve(counts, k: int, **how) -> list[Estimate]:
    """pass@1 ... pass@k with intervals; how: resamples and confidence, as in `stats.bootstrap`."""
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
    """Problems won and lost in coverage: counts of two evaluations of the base, one of the method.

    Chance: of c right samples in the base's 2k, none falls into the first k with probability
    1 - pass@k; such a problem is won by the second k.
    """
    base, again, method = (np.asarray(c) for c in (base, again, method))
    both = (base + again).ravel().tolist()
    chance = np.array([1 - pass_at_k(2 * k, c, k) if c else 0.0 for c in both])
    drawn = np.random.default_rng(0).random((simulations, chance.size)) < chance
    won, lost = (base == 0) & (method > 0), (base > 0) & (method == 0)
    counts = (int(found.sum()) for found in (base == 0, won, lost))
    return Frontier(*counts, float(chance.sum()), float(np.quantile(drawn.sum(axis=1), 0.975)))


def reevaluations(counts, again, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two simulated evaluations, k samples each, of the one model that made both counts: the 2k
    samples of each problem are dealt again without replacement, as they are exchangeable."""
    pool = np.asarray(counts) + np.asarray(again)
    first = rng.hypergeometric(pool, 2 * k - pool, k)
    return first, pool - first


def null_check(counts: dict, again: dict, k: int, *, simulations: int, **how) -> float:
    """How often `marked` fires at least once when a model is compared with itself.

    counts, again: {benchmark: counts} of two evaluations of one model; one simulation compares all
    benchmarks, as one family. how: resamples and confidence, as in `stats.compare`.
    """
    rng, fired = np.random.default_rng(0), 0
    for _ in range(simulations):
        pairs = [reevaluations(counts[name], again[name], k, rng) for name in counts]
        found = [compare(first / k, second / k, **how) for first, second in pairs]
        low, high, p = ([getattr(f, end) for f in found] for end in ("low", "high", "p"))
        fired += bool(marked(low, high, holm(p)).any())
    return fired / simulations
