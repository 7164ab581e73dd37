"""The audit's statistics, against scipy, brute force and simulated truth."""

import ast
import math
from types import SimpleNamespace

import jupytext
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from trdlib.analysis import audit

SHAPES = [(1.2, 0.4), (0.4, 0.5), (0.25, 1.6)]  # Beta: AIME24-, HMMT- and AMO-like difficulties


def defined(notebook):
    """What the code of a notebook imports, names in capitals and defines; nothing else is run."""
    cells = jupytext.read(REPOSITORY / "notebooks" / f"{notebook}.py").cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    kept = [
        node
        for node in ast.parse(code).body
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)
        or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "a").isupper())
    ]
    found = {"display": lambda shown: None}
    exec(compile(ast.Module(kept, []), notebook, "exec"), found)  # fmt: skip
    return SimpleNamespace(**found)


page = defined("8_audit")


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        return audit.runs()


def rho_of(a, b):
    return 1 / (a + b + 1)


def passed_of(a, b, k=16):
    return 1 - stats.betabinom.pmf(0, k, a, b)


def evaluate(rng, p, k=16):
    """avg@k and pass@k of evaluations of problems with accuracies p: (..., problems) -> (...)."""
    counts = rng.binomial(k, p)
    return counts.mean(-1) / k, (counts > 0).mean(-1)


def published(rows):
    """A table like runs() from (mode, method, avg, passed) of one student and benchmark."""
    frame = pd.DataFrame(rows, columns=["mode", "method", "avg", "passed"])
    return frame.assign(task="math", student="S", benchmark="B", subset="all", run="", problems=30,
                        samples=16)  # fmt: skip


# ---------------------------------------------------------------------------------------- the files


def test_the_published_files_are_read(table):
    assert len(table) == 206
    assert table.groupby("benchmark")["problems"].first().to_dict() == pytest.approx(
        {"aime24": 30, "aime25": 30, "hmmt25": 30, "beyondaime": 100, "amobench": 39,
         "humaneval_plus": 164, "mbpp_plus": 378, "livecodebench_v6": math.nan}, nan_ok=True
    )  # fmt: skip
    trd = table.query("student == 'Qwen3-8B' and benchmark == 'amobench' and subset == 'all'")
    passed = trd.set_index("method")["passed"]
    assert (round(39 * passed["base"]), round(39 * passed["trd"])) == (16, 24)


def test_the_published_values_are_shares_of_whole_numbers(table):
    """Of right samples and of solved problems, to their decimals; pass@16 is not below avg@16."""
    assert table["avg"].between(0, 1).all()
    known = table.dropna(subset="passed")
    assert (known["passed"].between(0, 1) & (known["passed"] >= known["avg"])).all()
    maths = table.query("task == 'math'")  # the shares of code are rounded to three decimals
    for share, size in (
        ("avg", maths["problems"] * maths["samples"]),
        ("passed", maths["problems"]),
    ):
        right = maths[share] * size
        assert (abs(right - right.round()) <= 0.51e-6 * size).all()


# -------------------------------------------------------------------------- error of one evaluation


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_all_wrong_is_the_beta_binomial_and_correlation_inverts_it(a, b):
    mean = a / (a + b)
    for k in (1, 4, 16, 32):
        assert audit.all_wrong(mean, rho_of(a, b), k) == pytest.approx(
            stats.betabinom.pmf(0, k, a, b), rel=1e-9
        )
    assert audit.correlation(mean, passed_of(a, b), 16) == pytest.approx(rho_of(a, b), abs=1e-9)


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_trials_give_the_variances_of_the_model(a, b):
    """same: E Var(score | p), new: Var(score), by numerical integration over the Beta."""
    n, k, mean, passed = 30, 16, a / (a + b), passed_of(a, b)

    def expect(f):
        # in u = p^a, v = (1 - p)^b neither end is singular
        lower = integrate.quad(lambda u: f(u ** (1 / a)) * (1 - u ** (1 / a)) ** (b - 1) / a,
                               0, 0.5**a)[0]  # fmt: skip
        upper = integrate.quad(lambda v: f(1 - v ** (1 / b)) * (1 - v ** (1 / b)) ** (a - 1) / b,
                               0, 0.5**b)[0]  # fmt: skip
        return (lower + upper) * math.gamma(a + b) / math.gamma(a) / math.gamma(b)

    found = audit.trials(mean, passed, n, k)
    within = expect(lambda p: p * (1 - p)) / k
    between = expect(lambda p: p * p) - mean**2
    assert audit.error(mean, found.avg_same) ** 2 == pytest.approx(within / n, rel=1e-5)
    assert audit.error(mean, found.avg_new) ** 2 == pytest.approx((within + between) / n, rel=1e-5)
    noise = expect(lambda p: (1 - p) ** k * (1 - (1 - p) ** k))
    assert audit.error(passed, found.passed_same) ** 2 == pytest.approx(noise / n, rel=1e-5)
    assert found.passed_new == n


def test_degenerate_cells():
    always_or_never = audit.trials(0.5, 0.5, 30, 16)
    assert always_or_never.rho == 1
    assert audit.error(0.5, always_or_never.avg_same) < 1e-6  # no noise at all
    assert always_or_never.avg_new == pytest.approx(30)
    for passed in (1.0, 1 - 0.5**16):  # all equally hard: every sample is a trial
        assert audit.trials(0.5, passed, 30, 16).avg_same == 480
        assert audit.trials(0.5, passed, 30, 16).avg_new == 480
    unknown = audit.trials(0.5, math.nan, 30, 16)
    assert (unknown.avg_same, unknown.avg_new) == (480, 30)  # the fewest of each
    for avg in (0.0, 1.0):
        nothing = audit.trials(avg, avg, 30, 16)
        assert math.isnan(nothing.rho)
        low, high = audit.wilson(avg, nothing.avg_new)
        assert 0 < high - low < 0.2
    assert math.isnan(audit.error(0.3, audit.trials(0.3, 0.5, math.nan, 16).avg_same))


@given(
    wrong=st.integers(0, 40), n=st.integers(1, 40), confidence=st.sampled_from([0.8, 0.95, 0.99])
)
@settings(max_examples=60, deadline=None)
def test_wilson_agrees_with_scipy(wrong, n, confidence):
    count = max(n - wrong, 0)
    exact = stats.binomtest(count, n).proportion_ci(confidence, method="wilson")
    assert audit.wilson(count / n, n, confidence) == pytest.approx(tuple(exact), abs=1e-9)


def test_intervals_of_the_published_rows(table):
    found = audit.intervals(table)
    row = found.query("student == 'Qwen3-8B' and method == 'base' and benchmark == 'amobench'")
    row = row.iloc[0]
    naive = stats.binomtest(99, 624).proportion_ci(method="wilson")
    assert (row["avg_naive_low"], row["avg_naive_high"]) == pytest.approx(tuple(naive), abs=1e-6)
    passed = stats.binomtest(16, 39).proportion_ci(method="wilson")
    assert (row["passed_new_low"], row["passed_new_high"]) == pytest.approx(tuple(passed), abs=1e-6)
    known = found.dropna(subset=["rho", "problems"])
    kinds = ("avg_same", "avg_naive", "avg_new", "passed_same", "passed_new")
    width = {kind: known[f"{kind}_high"] - known[f"{kind}_low"] for kind in kinds}
    assert (width["avg_same"] < width["avg_naive"]).all()
    assert (width["avg_naive"] <= width["avg_new"]).all()
    assert (width["passed_same"] < width["passed_new"]).all()


@pytest.mark.parametrize(("a", "b"), SHAPES)
@pytest.mark.parametrize("metric", ["avg", "passed"])
def test_noise_estimated_from_avg_and_pass_alone_is_right(a, b, metric):
    """Two evaluations of the same problems, from the truth: z is standard, 5 % means 5 %."""
    rng, sims, n = np.random.default_rng(1), 1000, 39
    p = rng.beta(a, b, (sims, n))
    (avg_1, passed_1), (avg_2, passed_2) = evaluate(rng, p), evaluate(rng, p)
    z = np.zeros(sims)
    for i in range(sims):
        one = audit.trials(avg_1[i], passed_1[i], n, 16)
        two = audit.trials(avg_2[i], passed_2[i], n, 16)
        values = (avg_1[i], avg_2[i]) if metric == "avg" else (passed_1[i], passed_2[i])
        sizes = [getattr(t, f"{metric}_same") for t in (one, two)]
        if values[0] != values[1]:  # 0 / 0 where both evaluations solve everything
            z[i] = (values[1] - values[0]) / np.hypot(*audit.error(values, sizes))
    assert abs(z.mean()) < 0.1
    assert 0.9 < z.std() < 1.1
    assert np.mean(abs(z) > 1.96) <= 0.062


def test_intervals_for_new_problems_cover_and_naive_ones_do_not():
    rng, hits, naive, sims = np.random.default_rng(2), 0, 0, 800
    for avg, passed in zip(*evaluate(rng, rng.beta(0.4, 0.5, (sims, 30))), strict=True):
        low, high = audit.wilson(avg, audit.trials(avg, passed, 30, 16).avg_new)
        hits += low <= 0.4 / 0.9 <= high
        low, high = audit.wilson(avg, 480)
        naive += low <= 0.4 / 0.9 <= high
    assert 0.92 <= hits / sims <= 0.98
    assert naive / sims < 0.6


@pytest.mark.parametrize("metric", ["avg", "passed"])
def test_noise_range_contains_every_distribution(metric):
    """The noise that the two moments allow: a linear programme over a grid of accuracies finds the
    same ends."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        avg, rho = rng.uniform(0.05, 0.95), rng.uniform(0.1, 0.9)
        passed = 1 - audit.all_wrong(avg, rho, 16)
        p = np.linspace(0, 1, 2001)
        fails = (1 - p) ** 16
        cost = p * (1 - p) if metric == "avg" else fails * (1 - fails)
        known = {"A_eq": np.stack([np.ones_like(p), p, fails]), "b_eq": [1, avg, 1 - passed]}
        ends = [sign * optimize.linprog(sign * cost, **known).fun for sign in (1, -1)]
        assert audit.noise_range(avg, passed, 16, metric) == pytest.approx(ends, abs=1e-4)


# ----------------------------------------------------------------------------- repeats and re-runs


@pytest.mark.parametrize("among", [2, 3])
def test_chance_of_equal_counts(among):
    """Exact by convolution of the problems' binomials."""
    rng = np.random.default_rng(4)
    p = rng.beta(1.2, 0.4, 30)
    pmf = np.ones(1)
    for accuracy in p:
        pmf = np.convolve(pmf, stats.binom.pmf(np.arange(17), 16, accuracy))
    found = audit.chance_equal(math.sqrt(16 * (p * (1 - p)).sum()), among)
    assert found == pytest.approx((pmf**among).sum(), rel=0.02)


def test_chance_of_equal_counts_without_noise():
    assert audit.chance_equal(0.0, 8) == pytest.approx(1)
    assert audit.chance_equal(5.0, 1) == pytest.approx(1)


def simulated(rng, runs=8, name="S"):
    """Rows of one model, evaluated again and again on the same 30 problems."""
    avg, passed = evaluate(rng, np.tile(rng.beta(0.4, 0.5, 30), (runs, 1)))
    rows = [("opd", f"m{i}", avg[i], passed[i]) for i in range(runs)]
    return published(rows).assign(student=name)


def test_repeats_do_not_accuse_honest_evaluations_and_do_find_copies():
    rng, chances, pairs, expected = np.random.default_rng(5), [], 0, 0.0
    for _ in range(100):
        honest = audit.repeats(simulated(rng)).iloc[0]
        chances.append(honest["chance"])
        pairs, expected = pairs + honest["pairs"], expected + honest["pairs_expected"]
    assert not any(c < audit.REPEATED for c in chances)
    assert np.mean(np.array(chances) < 0.05) <= 0.05  # an upper bound is never too small
    assert 0.75 < pairs / expected < 1.3
    copied = simulated(rng)
    copied.loc[:, ["avg", "passed"]] = copied.loc[0, ["avg", "passed"]].to_numpy()
    found = audit.repeats(copied).iloc[0]
    assert (found["distinct"], found["largest"], found["pairs"]) == (1, 8, 28)
    assert found["repeated"]


def test_repeats_in_the_published_files(table):
    found = audit.repeats(table).set_index(["student", "benchmark"])
    assert found.loc[("Qwen3-4B", "aime24"), ["runs", "distinct"]].tolist() == [7, 1]
    assert found.loc[("Qwen3-8B", "aime24"), ["runs", "largest"]].tolist() == [15, 11]
    repeated = found[found["repeated"]]
    assert set(repeated.index.get_level_values("benchmark")) == {"aime24"}
    control = found[found.index.get_level_values("benchmark") != "aime24"]
    assert 0.7 < control["pairs"].sum() / control["pairs_expected"].sum() < 1.6


def test_reevaluations_are_the_checkpoints_evaluated_twice(table):
    found = audit.reevaluations(table)
    assert len(found) == 20
    assert set(zip(found["student"], found["method"], strict=True)) == {
        ("Qwen3-1.7B", "base"), ("Qwen3-4B", "trd")}  # fmt: skip
    amo = found.query("student == 'Qwen3-4B' and benchmark == 'amobench' and metric == 'passed'")
    assert amo["difference"].item() == pytest.approx(3 / 39, abs=1e-5)
    rows = table.query("student == 'Qwen3-4B' and method == 'trd' and benchmark == 'amobench'")
    sizes = [audit.trials(r.avg, r.passed, 39, 16).passed_same for r in rows.itertuples()]
    assert amo["sd"].item() == pytest.approx(np.hypot(*audit.error(rows["passed"], sizes)))


def test_scatter_is_one_for_runs_of_one_model_and_more_for_others():
    rng = np.random.default_rng(6)
    rows = pd.concat([simulated(rng, name=str(i)) for i in range(100)], ignore_index=True)
    same = audit.scatter(rows)
    cells = same[same["student"] != "all"]
    for metric, found in cells.groupby("metric"):
        assert 0.85 < found["ratio"].mean() < 1.15
        assert (found["p_more"] < 0.05).mean() < {"avg": 0.1, "passed": 0.2}[metric]
        assert (found["p_more"] + found["p_less"]).to_numpy() == pytest.approx(1)
        whole = same.query("student == 'all' and metric == @metric").iloc[0]
        assert whole["runs"] == 800
        assert whole["ratio"] == pytest.approx(found["ratio"].mean())  # all have as many runs
    assert (cells["most"] <= cells["ratio"]).all()
    assert not (cells["least"] < cells["ratio"]).any()  # NaN where there is next to no noise
    assert (cells["independent"] < cells["ratio"]).all()
    avg = rows["avg"].to_numpy().reshape(100, 8)
    binomial = (avg * (1 - avg)).mean(axis=1) / 480
    by_hand = cells.query("metric == 'avg'")["independent"].to_numpy()
    assert by_hand == pytest.approx(avg.var(axis=1, ddof=1) / binomial)
    rows.loc[rows.index % 2 == 0, "avg"] += 0.06  # every other run is a better model
    apart = audit.scatter(rows).query("metric == 'avg' and student != 'all'")
    assert (apart["p_more"] < 0.05).mean() > 0.7


def test_shared_generations_scatter_too_little():
    """Three quarters of the samples are the same in all runs: the whole sees it, repeats do not."""
    rng, rows = np.random.default_rng(8), []
    for name in range(12):
        p = rng.beta(0.4, 0.5, 30)
        counts = rng.binomial(12, p) + rng.binomial(4, p, (8, 30))
        shares = zip(counts.mean(1) / 16, (counts > 0).mean(1), strict=True)
        one = published([("opd", f"m{i}", *share) for i, share in enumerate(shares)])
        rows.append(one.assign(student=str(name)))
    rows = pd.concat(rows, ignore_index=True)
    assert not audit.repeats(rows)["repeated"].any()
    whole = audit.scatter(rows).query("student == 'all' and metric == 'avg'")
    assert whole["p_less"].item() < 1e-4


# ------------------------------------------------------------------------------ claimed differences


def test_differences_by_hand():
    """Two evaluations of trd count with their mean; the mean baseline has a smaller error."""
    rows = published(
        [
            ("none", "base", 0.40, 0.70),
            ("opd", "trd", 0.50, 0.80),
            ("opd", "trd", 0.52, 0.76),
            ("opd", "forward_kl", 0.46, 0.80),
            ("opd", "reverse_kl", 0.44, 0.70),
            ("opsd", "forward_kl", 0.90, 0.95),  # another mode: no baseline of this one
        ]
    )
    found = audit.differences(rows).query("metric == 'avg' and benchmark == 'B'")
    found = found.set_index("against")
    assert found["difference"].to_dict() == pytest.approx(
        {"base": 0.11, "best": 0.05, "mean": 0.06}
    )
    assert found["other"].to_dict() == {
        "base": "base", "best": "forward_kl", "mean": "forward_kl+reverse_kl"}  # fmt: skip
    var = {(a, q): a * (1 - a) / audit.trials(a, q, 30, 16).avg_same
           for a, q in rows[["avg", "passed"]].itertuples(index=False)}  # fmt: skip
    trd = (var[0.50, 0.80] + var[0.52, 0.76]) / 4
    for against, other in {
        "base": var[0.40, 0.70],
        "best": var[0.46, 0.80],
        "mean": (var[0.46, 0.80] + var[0.44, 0.70]) / 4,
    }.items():
        row = found.loc[against]
        assert row["se"] == pytest.approx(math.sqrt(trd + other))
        test = stats.norm(row["difference"], row["se"])
        assert (row["low"], row["high"]) == pytest.approx(test.interval(0.95))
        assert row["p"] == pytest.approx(2 * min(test.cdf(0), test.sf(0)))


def test_all_tests_are_one_family(table):
    """Those of single benchmarks and of their means; a lone baseline is not counted twice."""
    found = audit.differences(table)
    tested = found.dropna(subset="p").sort_values("p")
    steps = (len(tested) - np.arange(3)) * tested["p"].head(3).to_numpy()  # Holm, by hand
    expected = np.minimum(np.maximum.accumulate(steps), 1)
    assert tested["p_holm"].head(3).to_numpy() == pytest.approx(expected)
    assert found.loc[found["repeated"], ["p", "p_holm"]].isna().all().all()
    sizes = found.groupby([found["benchmark"] == "mean", "against"]).size().to_dict()
    assert sizes == {(False, "base"): 53, (False, "best"): 62, (False, "mean"): 40,
                     (True, "base"): 11, (True, "best"): 14, (True, "mean"): 8}  # fmt: skip
    assert len(tested) == 161
    names = found.query("against == 'mean'")["other"].dropna()
    assert names.str.contains("+", regex=False).all()


def test_means_are_over_the_benchmarks_without_the_repeated(table):
    found = audit.differences(table)
    here = "mode == 'opsd' and student == 'Qwen3-8B' and metric == 'passed' and against == 'base'"
    mine = found.query(f"{here} and task == 'math'")
    row = mine.query("benchmark == 'mean'").iloc[0]
    assert row["benchmarks"] == 4
    cells = mine.query("benchmark not in ['aime24', 'mean']")
    assert row["difference"] == pytest.approx(cells["difference"].mean())
    assert row["se"] == pytest.approx(math.sqrt((cells["se"] ** 2).sum()) / 4)
    assert row["p"] == pytest.approx(2 * stats.norm.sf(abs(row["difference"]) / row["se"]))


def test_claims_beside_the_raw_rows(table):
    found = audit.claimed(table)
    matches = found[found["matches"]].set_index("student")
    assert matches["other"].to_dict() == {"Qwen3-8B": "base", "Qwen3-4B": "forward_kl"}
    assert matches["metric"].eq("passed").all()
    assert "re-evaluated" in matches.loc["Qwen3-4B", "run"]
    assert (found["p"] <= found["p_most"] + 1e-9).all()
    differences = audit.differences(table).query(
        "mode == 'opsd' and student == 'Qwen3-8B' and benchmark == 'amobench'"
        " and metric == 'passed' and against == 'base'"
    )
    assert matches.loc["Qwen3-8B", "p"] == pytest.approx(differences["p"].item())


# -------------------------------------------------------------------------------------------- power


@pytest.mark.parametrize("gain", [0.02, 0.046, 0.128, 0.205])
@pytest.mark.parametrize("level", [0.01, 0.05])
def test_problems_needed_are_the_fewest_that_give_the_power(gain, level):
    def power(n):
        shift, z = gain / (0.27 * math.sqrt(2 / n)), stats.norm.ppf(1 - level / 2)
        return stats.norm.cdf(shift - z) + stats.norm.cdf(-shift - z)

    n = audit.problems_needed(gain, 0.27, power=0.8, level=level)
    assert power(n) >= 0.8 - 1e-6
    assert power(n - 1) < 0.8 + 1e-3  # a wrong sign counts as seen too


# ------------------------------------------------------------------------------------------ writing


def test_readable_tables(table):
    cells = audit.intervals(table).query("student == 'Qwen3-8B' and method == 'base'")
    shown = page.readable(cells, ["benchmark", "avg", "avg_naive", "rho"]).iloc[-1].tolist()
    assert shown == ["amobench", "15.9", "[13.2, 18.9]", "0.53"]
    gaps = pd.DataFrame({"difference": [0.1, -0.02], "low": [0.05, np.nan], "high": [0.15, np.nan],
                         "p": [0.00012, np.nan], "metric": ["avg", "passed"]})  # fmt: skip
    shown = page.readable(gaps, ["metric", "difference", "interval", "p"])
    assert shown.to_numpy().tolist() == [["avg@k", "+10.0", "[+5.0, +15.0]", "0.00012"],
                                         ["pass@k", "-2.0", "-", "-"]]  # fmt: skip
