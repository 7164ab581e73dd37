"""Intervals of accuracies; paired comparisons of methods, and the rule that marks a difference.

A difference has two intervals. *These models*: problems resampled, the trained models as given.
*New models*: base models and trainings are random; a star needs this, and Holm over a family."""

import functools
from collections import namedtuple

import numpy as np
import pandas as pd
from scipy import optimize, special

MARK_LEVEL = 0.05  # of a star: of 100 families without any difference at most 5 have one
POWER = 0.8  # of the smallest difference that could have been seen
Estimate = namedtuple("Estimate", "value low high")  # with the ends of its interval
# A paired difference; low, high: these models; from new_low on all but by_seed is of new ones, NaN
# with one base seed or no spread at all. p: two-sided. df: Satterthwaite's, of the variance. shares
# of that: base seeds, problems, the rest. mde: the smallest difference marked with this power.
Comparison = namedtuple("Comparison", "value low high new_low new_high p df by_seed shares mde")


@functools.lru_cache(maxsize=4)
def weights(problems: int, resamples: int, seed: int = 0) -> np.ndarray:
    """The bootstrap: (resamples, problems); a row times the values is the mean of a resample."""
    even = np.full(problems, 1 / problems)
    return np.random.default_rng(seed).multinomial(problems, even, size=resamples) / problems


def bootstrap(per_problem, *, resamples: int, confidence: float, seed: int = 0) -> Estimate:
    """Mean of (problems,) or (seeds, problems) values, or of paired differences, with a percentile
    interval from resampling problems (the seeds of one go together). Reproducible by `seed`."""
    values = np.atleast_2d(np.asarray(per_problem, dtype=float)).mean(0)
    if values.size == 0:
        raise ValueError("an interval over no problems is not defined")
    tail = (1 - confidence) / 2
    low, high = np.quantile(weights(len(values), resamples, seed) @ values, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def exact_reach(problems: int, confidence: float) -> float:
    """How far from 0 % (or 100 %) a mean may be if nothing else was seen (Clopper and Pearson, one
    trial a problem: holds however alike its samples are). 128 problems at 95 %: 0.028."""
    return 1 - ((1 - confidence) / 2) ** (1 / problems)


def accuracy(per_problem, *, resamples: int, confidence: float) -> Estimate:
    """`bootstrap` of accuracies; where all are 0 or all 1 the interval is exact (`exact_reach`)."""
    found = bootstrap(per_problem, resamples=resamples, confidence=confidence)
    reach = exact_reach(np.atleast_2d(per_problem).shape[1], confidence)
    if found.value in (0, 1):
        return Estimate(found.value, max(0, found.value - reach), min(1, found.value + reach))
    return found


def mean_squares(gap) -> np.ndarray:
    """Of a (seeds, problems) table, both at least 2: those of seeds, problems and the rest (ANOVA).
    Expected: P s + e, S p + e and e, with s, p, e the variances of seeds, problems and the rest."""
    (seeds, problems), mean = gap.shape, gap.mean()
    by_seed, by_problem = gap.mean(1, keepdims=True) - mean, gap.mean(0, keepdims=True) - mean
    parts = (by_seed, by_problem, gap - mean - by_seed - by_problem)
    sums = np.array([np.broadcast_to(part**2, gap.shape).sum() for part in parts])
    return sums / [seeds - 1, problems - 1, (seeds - 1) * (problems - 1)]


def _parts(gap) -> np.ndarray:
    """Of the variance of a gap's mean: s/S + e/SP, and p/P (0 if its estimate is negative)."""
    seeds, problems, rest = mean_squares(gap)
    return np.array([seeds, max(problems - rest, 0)]) / gap.size


def _half(gap, level: float) -> float:
    """Half the width of the interval for new models at 1 - level: each part of the variance gets
    the t quantile of its own degrees of freedom, as by Cochran and Cox. (One t of Satterthwaite
    is too sure where Holm looks: of 100 families without a gap it marks 11 to 34, this 5.)"""
    t = -special.stdtrit(np.array(gap.shape) - 1.0, level / 2)
    return float(np.sqrt((_parts(gap) * t**2).sum()))


def p_value(gap) -> float:
    """Two-sided p of a (seeds, problems) gap: the level at which the interval for new models just
    reaches zero, at least 1e-15; NaN where there is no such interval."""
    gap = np.atleast_2d(np.asarray(gap, dtype=float))
    if min(gap.shape) < 2 or _parts(gap).sum() < 1e-15:
        return float("nan")
    if _half(gap, 1e-15) <= (mean := abs(gap.mean())):
        return 1e-15
    return 10 ** optimize.brentq(lambda exponent: _half(gap, 10**exponent) - mean, -15, 0)


def compare(ours, theirs, *, resamples: int, confidence: float, family: int = 1) -> Comparison:
    """Ours minus theirs, accuracies; both (seeds, problems), else ValueError. family: how many
    share the level of a star. Without spread the interval of these models is `exact_reach`."""
    ours, theirs = (np.atleast_2d(np.asarray(a, dtype=float)) for a in (ours, theirs))
    if ours.shape != theirs.shape:
        shapes = f"{ours.shape} and {theirs.shape}"
        raise ValueError(f"paired: both sides need the same seeds and problems, not {shapes}")
    gap = ours - theirs
    value, low, high = bootstrap(gap, resamples=resamples, confidence=confidence)
    by_seed, p = gap.mean(axis=1).tolist(), p_value(gap)
    if np.ptp(gap) < 1e-12:
        reach = exact_reach(gap.shape[1], confidence)
        low, high = max(-1.0, value - reach), min(1.0, value + reach)
    if np.isnan(p):
        return Comparison(value, low, high, p, p, p, p, by_seed, [p] * 3, p)
    half, variance = _half(gap, 1 - confidence), _parts(gap).sum()
    squares, rest_of = mean_squares(gap), np.array(gap.shape) - 1
    df = variance**2 / ((squares / gap.size) ** 2 / [*rest_of, rest_of.prod()]).sum()
    components = np.maximum(squares - [squares[2], squares[2], 0], 0)
    edge = _half(gap, MARK_LEVEL / family) / np.sqrt(variance)
    mde = special.nctdtrinc(df, 1 - POWER, edge) * np.sqrt(variance)
    more = (p, float(df), by_seed, (components / components.sum()).tolist(), float(mde))
    return Comparison(value, low, high, value - half, value + half, *more)


def holm(p_values) -> np.ndarray:
    """p-values adjusted for their number (Holm's step-down); NaN where there was no comparison."""
    made = pd.Series(np.asarray(p_values, dtype=float)).dropna().sort_values()
    steps = (made * np.arange(len(made), 0, -1)).cummax().clip(upper=1)
    return steps.reindex(range(len(p_values))).to_numpy()


def marked(low, high, adjusted) -> np.ndarray:
    """The rule of a star: new_low to new_high excludes zero, and so does Holm's `adjusted` p."""
    low, high, adjusted = (np.asarray(a, dtype=float) for a in (low, high, adjusted))
    return ((low > 0) | (high < 0)) & (adjusted < MARK_LEVEL)


def family(pairs, *, resamples: int, confidence: float) -> list[dict]:
    """`compare` of every (ours, theirs), as one family: with Holm's `adjusted` p and `marked`."""
    how = {"resamples": resamples, "confidence": confidence, "family": max(len(pairs), 1)}
    table = pd.DataFrame([compare(*pair, **how) for pair in pairs], columns=Comparison._fields)
    table["adjusted"] = holm(table["p"])
    table["marked"] = marked(table["new_low"], table["new_high"], table["adjusted"])
    return table.to_dict("records")
