"""The statistics, against brute force, scipy and simulated truth."""

import gc
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

from trdlib import stats
from trdlib.analysis import compare
from trdlib.analysis.compare import bootstrap
from trdlib.evaluate import avg_at_k, pass_at_k

HOW = {"resamples": 4000, "confidence": 0.95}


@given(n=st.integers(1, 9), data=st.data())
def test_pass_at_k_equals_counting_all_draws(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert math.isclose(pass_at_k(n, c, k), sum(map(any, draws)) / len(draws), abs_tol=1e-12)


@pytest.mark.parametrize("bad", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_nonsense(bad):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(*bad)


def test_samples_go_where_they_tell_most():
    """Simulated, by a base of 32 samples a problem: the mean over problems of a better model stays
    unbiased, and equal shares need 1.3 times the samples for the same variance."""
    rng, mean, draws = np.random.default_rng(0), 4, 400
    chance = np.concatenate([rng.beta(0.3, 0.3, 150), np.zeros(30), np.ones(49)])  # 229 problems
    better = np.clip(chance + rng.normal(0.02, 0.02, len(chance)), 0, 1)  # of what is measured
    found, spread = np.empty(draws), np.empty(draws)
    for i in range(draws):
        counts = stats.allocate(rng.binomial(32, chance), 32, mean, 2)
        assert counts.sum() == mean * len(chance) and counts.min() >= 2
        found[i] = (rng.binomial(counts, better) / counts).mean()
        spread[i] = (better * (1 - better) / counts).sum()
    assert abs(found.mean() - better.mean()) < 4 * found.std() / draws**0.5
    assert (better * (1 - better) / mean).sum() > 1.3 * spread.mean()


def test_shares_are_those_of_the_formula():
    """n_i ~ sqrt(p (1 - p) + 0.01), up to a whole number, where the least is out of the way."""
    right = np.array([0, 16, 32, 8, 1, 31])
    p, counts = right / 32, stats.allocate(right, 32, 1000, 2)
    share = np.sqrt(p * (1 - p) + 0.01)
    assert abs(counts - 6000 * share / share.sum()).max() < 1


def test_no_samples_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match="not defined"):
        avg_at_k([])
    with pytest.raises(ValueError, match="not defined"):
        bootstrap([], **HOW)


def test_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(1)
    values = rng.beta(0.5, 0.5, 128)
    ours = bootstrap(values, resamples=20_000, confidence=0.9)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method="percentile", rng=2
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.high, abs=0.003)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_bootstrap_properties(values, seed):
    found = bootstrap(values, resamples=500, confidence=0.95, seed=seed)
    assert found == bootstrap(values, resamples=500, confidence=0.95, seed=seed)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    constant = bootstrap([0.25] * len(values), resamples=500, confidence=0.95)
    assert constant == pytest.approx((0.25, 0.25, 0.25))


def test_seeds_of_a_problem_stay_together():
    """Three seeds that agree carry no more information about the problems than one."""
    values = np.random.default_rng(5).random(50)
    assert bootstrap([values] * 3, **HOW) == pytest.approx(bootstrap(values, **HOW))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(deadline=None)
def test_holm_agrees_with_statsmodels(p_values):
    gc.freeze()  # statsmodels collects garbage at each call: a quarter of a second each
    found = compare.holm([p_values[0], float("nan"), *p_values[1:]])
    assert np.isnan(found[1])
    assert np.allclose(np.delete(found, 1), multipletests(p_values, method="holm")[1])


def test_holm_of_nothing():
    assert np.isnan(compare.holm([float("nan")] * 2)).all()


def crossed(rng, seeds, problems, of_seed, of_problem, rest, mean=0.0):
    """Gaps by the model: variances of a seed's effect, of a problem's, and of the rest."""
    gap = mean + of_seed**0.5 * rng.standard_normal((seeds, 1))
    gap = gap + of_problem**0.5 * rng.standard_normal((1, problems))
    return gap + rest**0.5 * rng.standard_normal((seeds, problems))


def components(gap):
    """Variances of seeds, problems and rest from the mean squares; not clamped."""
    of_seeds, of_problems, rest = compare.mean_squares(gap)
    return (of_seeds - rest) / gap.shape[1], (of_problems - rest) / gap.shape[0], rest


def test_mean_squares_are_those_of_statsmodels():
    gap = crossed(np.random.default_rng(0), 4, 15, 0.3, 0.6, 1.0)
    rows = [(s, p, gap[s, p]) for s in range(4) for p in range(15)]
    frame = pd.DataFrame(rows, columns=["seed", "problem", "gap"])
    anova = anova_lm(ols("gap ~ C(seed) + C(problem)", frame).fit())
    assert compare.mean_squares(gap) == pytest.approx(anova["mean_sq"].to_numpy(), rel=1e-9)


def test_components_are_those_of_a_mixed_model():
    """With all components positive, balanced REML is the ANOVA estimate."""
    gap = crossed(np.random.default_rng(1), 6, 20, 0.5, 0.7, 1.0)
    rows = [(s, p, gap[s, p]) for s in range(6) for p in range(20)]
    frame = pd.DataFrame(rows, columns=["seed", "problem", "gap"])
    terms = {"seed": "0 + C(seed)", "problem": "0 + C(problem)"}
    model = MixedLM.from_formula("gap ~ 1", frame, groups=np.ones(120), vc_formula=terms)
    fit = model.fit(reml=True)
    found = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True))
    expected = found["seed"], found["problem"], fit.scale
    assert components(gap) == pytest.approx(expected, rel=2e-3)
    # and so is the standard error behind the interval
    by_hand = expected[0] / 6 + expected[1] / 20 + expected[2] / 120
    assert compare._parts(gap).sum() == pytest.approx(by_hand, rel=2e-3)
    assert fit.bse_fe.iloc[0] ** 2 == pytest.approx(by_hand, rel=2e-3)


def test_a_comparison_is_paired_and_says_what_it_is_made_of():
    rng = np.random.default_rng(12)
    gap = crossed(rng, 6, 40, 0.01, 0.02, 0.05, mean=0.1)
    theirs = rng.random((6, 40))
    found = compare.compare(theirs + gap, theirs, **HOW)
    assert found[:3] == pytest.approx(bootstrap(gap, **HOW))
    assert found.by_seed == pytest.approx(gap.mean(axis=1))
    # by hand, with scipy's t: the interval, Satterthwaite's df, the shares
    (a, b, e), size = compare.mean_squares(gap), gap.size
    t = scipy_stats.t.ppf(0.975, [5, 39])
    half = math.sqrt((a * t[0] ** 2 + (b - e) * t[1] ** 2) / size)
    assert (found.new_low, found.new_high) == pytest.approx(
        (gap.mean() - half, gap.mean() + half), rel=1e-9
    )
    df = (a + b - e) ** 2 / (a**2 / 5 + b**2 / 39 + e**2 / (5 * 39))
    assert found.df == pytest.approx(df)
    assert found.shares == pytest.approx(np.array([a - e, b - e, e]) / (a + b - e))
    with pytest.raises(ValueError, match="same seeds and problems"):
        compare.compare(theirs, theirs[:, :39], **HOW)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_p_is_the_level_at_which_the_interval_reaches_zero(confidence):
    gap = crossed(np.random.default_rng(3), 5, 30, 0.1, 0.2, 1.0)
    how = {"resamples": 100, "confidence": confidence}
    found = compare.compare(gap, np.zeros_like(gap), **how)
    half = found.new_high - found.value
    on_the_edge = compare.p_value(gap - found.value + half)
    assert on_the_edge == pytest.approx(1 - confidence, rel=1e-6)
    assert compare.p_value(-gap) == pytest.approx(found.p)
    assert compare.p_value(gap - gap.mean()) == pytest.approx(1)


def test_one_seed_or_no_spread_says_nothing_of_new_models():
    rng = np.random.default_rng(4)
    one = compare.compare(rng.random((1, 40)) + 1, rng.random((1, 40)), **HOW)
    assert one.low > 0
    assert np.isnan([one.new_low, one.new_high, one.p, one.df, one.mde, *one.shares]).all()
    same = compare.compare(np.ones((3, 40)), np.ones((3, 40)), **HOW)
    reach = scipy_stats.binomtest(0, 40).proportion_ci(0.95).high  # exact: Clopper and Pearson
    assert same[:3] == pytest.approx((0, -reach, reach))
    apart = compare.compare(np.ones((3, 40)), np.zeros((3, 40)), **HOW)
    assert apart[:3] == pytest.approx((1, 1 - reach, 1))
    for found in (one, same, apart):
        assert not compare.marked(found.new_low, found.new_high, compare.holm([found.p])).any()


@pytest.mark.parametrize("value", [0, 1])
def test_an_accuracy_of_0_or_100_percent_has_an_exact_interval(value):
    found = compare.accuracy(np.full((3, 128), value), **HOW)
    exact = scipy_stats.binomtest(128 * value, 128).proportion_ci(0.95)
    assert found == pytest.approx((value, exact.low, exact.high))
    inside = np.abs(value - np.eye(1, 128))
    assert compare.accuracy(inside, **HOW) == bootstrap(inside, **HOW)


SIZES = [(6, 128), (3, 128), (3, 30), (2, 48)]
VARIANCES = [  # of seeds, problems, rest: none, some, or nearly all of it between seeds
    (0, 0, 1), (0, 0.2, 1), (0.01, 0.2, 1), (0.1, 0.2, 1), (1, 0.2, 1), (0.05, 3, 1), (1, 0, 0.01),
]  # fmt: skip


def covered(rng, seeds, problems, variances, trials, level):
    """How often the interval for new models at 1 - level has the truth in it."""
    gaps = [crossed(rng, seeds, problems, *variances) for _ in range(trials)]
    return np.mean([abs(gap.mean()) <= compare._half(gap, level) for gap in gaps])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variances", VARIANCES)
def test_new_models_are_covered_as_often_as_it_says(size, variances):
    rng, trials = np.random.default_rng(sum(size)), 1500
    noise = 2.6 * math.sqrt(0.05 * 0.95 / trials)
    highest = 0.97 if size[0] == 6 else 0.98 if size[0] == 3 else 0.99
    assert 0.95 - noise <= covered(rng, *size, variances, trials, 0.05) <= highest + noise


def test_problems_alone_would_be_too_sure():
    """What the interval of *these models* says of new ones: the test above can fail."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(200):
        found = bootstrap(crossed(rng, 6, 128, 0.03, 0.2, 1), resamples=200, confidence=0.95)
        hits += found.low <= 0 <= found.high
    assert hits / 200 < 0.85


def samples(rng, skill, k=4):
    """Accuracies of (seeds, problems) cells from k samples each."""
    return rng.binomial(k, np.clip(skill, 0, 1)) / k


def test_a_family_without_a_difference_has_a_star_in_at_most_one_of_twenty():
    """Twins, as in the tables: one recipe trained twice, so each training moves as it likes."""
    rng, families, stars, eager = np.random.default_rng(6), 100, 0, 0
    how = {"resamples": 50, "confidence": 0.95}
    for _ in range(families):
        pairs = []
        for _ in range(12):
            skill = rng.beta(2, 1, (1, 128)) + rng.normal(0, 0.05, (6, 128))
            trained = [samples(rng, skill + rng.normal(0, 0.04, (6, 1))) for _ in range(2)]
            pairs.append(trained)
        found = compare.family(pairs, **how)
        stars += any(one["marked"] for one in found)
        eager += any(one["low"] > 0 or one["high"] < 0 for one in found)
    assert stars / families <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / families)
    assert eager / families > 0.8  # what intervals of these models, not corrected, would do


def test_a_family_shares_the_level_and_marks_a_real_difference():
    rng = np.random.default_rng(8)
    theirs = [samples(rng, rng.beta(2, 1, (6, 128))) for _ in range(10)]
    pairs = [(t + (0.15 + rng.normal(0, 0.02, (6, 1))) * (i == 0), t + rng.normal(0, 0.1, t.shape))
             for i, t in enumerate(theirs)]  # fmt: skip
    found = compare.family(pairs, **HOW)
    assert [one["marked"] for one in found] == [True] + [False] * 9
    assert [one["adjusted"] for one in found] == pytest.approx(
        multipletests([one["p"] for one in found], method="holm")[1]
    )
    alone = compare.compare(*pairs[0], **HOW)
    assert found[0]["mde"] > alone.mde
    # the interval alone, or the test alone, is not enough; nor is one that does not exist
    nan = float("nan")
    ends = [-0.1, 0.1, nan, 0.1], [0.2, 0.2, nan, 0.2]
    assert not compare.marked(*ends, [0.001, 0.2, 0.001, nan]).any()
    assert compare.family([], **HOW) == []


def test_the_smallest_difference_is_seen_four_times_of_five():
    rng, variances = np.random.default_rng(9), (0.004, 0.02, 0.3)
    how = {"resamples": 2, "confidence": 0.95, "family": 5}
    nulls = [crossed(rng, 6, 60, *variances) for _ in range(400)]
    zeros = np.zeros_like(nulls[0])
    smallest = np.median([compare.compare(gap, zeros, **how).mde for gap in nulls])
    seen = [compare.p_value(gap + smallest) < compare.MARK_LEVEL / 5 for gap in nulls]
    assert np.mean(seen) == pytest.approx(compare.POWER, abs=0.08)
