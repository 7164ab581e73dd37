"""What the authors' published result files can show: intervals, repeats, differences, power.

The files hold avg@k and pass@k of each run, no counts by problem. How different the problems are
is therefore taken from a model: their accuracies p_i follow the Beta distribution whose mean is
avg@k and under which all k samples of a problem fail with probability 1 - pass@k. Its intraclass
correlation rho = Var(p_i) / (p (1 - p)) gives two errors. `same`: the same problems are sampled
again, which is all that chance does between two rows of a benchmark. `new`: the problems are
drawn as well, which a statement about mathematics has to face. Values are fractions throughout;
nothing here contains the variation between training runs, of which the files hold one each.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

from trdlib import config

COLUMNS = ["mode", "student", "teacher", "method", "subset", "run", "benchmark", "problems"]
COLUMNS += ["samples", "avg", "passed", "source", "note"]
CODE_SIZES = {"humaneval_plus": 164, "mbpp_plus": 378}  # LiveCodeBench's is not in the files
TOKEN_LEVEL = ("forward_kl", "reverse_kl", "forward_kl_clip", "reverse_kl_topk")
CLAIMS = {  # gains in points that the paper states in its text; for the last two not against what
    ("opsd", "Qwen3-8B", "amobench"): 20.5,  # pass@16, 41.0 -> 61.5
    ("opd", "Qwen3-1.7B", "aime24"): 4.6,
    ("opd", "Qwen3-4B", "amobench"): 12.8,
}
_CELL = ["task", "student", "benchmark", "metric"]
REPEATED = 1e-3  # columns of repeats less likely than this are not taken for measurements


def runs(folder: Path | None = None) -> pd.DataFrame:
    """The published rows, math and code: COLUMNS and `task`; what was not published is NaN.

    folder: holds author_runs.csv and author_runs_code.csv; default results/published. Raises
    ValueError with the first fault: wrong columns, a share outside [0, 1], pass@k below avg@k, or
    a share that no whole number of right samples (or solved problems) gives at its decimals.
    """
    folder = folder or config.root() / "results" / "published"
    found = []
    for task, name in (("math", "author_runs.csv"), ("code", "author_runs_code.csv")):
        text = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        text = text.rename(columns=lambda c: {"avg_at_16": "avg"}.get(c, c))
        text = text.rename(columns={"pass_at_16": "passed", "pass_at_samples": "passed"})
        if task == "code" and "benchmark" in text:
            text = text.assign(subset="all", problems=text["benchmark"].map(CODE_SIZES))
        if set(text.columns) != set(COLUMNS):
            raise ValueError(f"{name}: wrong columns {sorted(set(text.columns) ^ set(COLUMNS))}")
        table = text.assign(task=task)
        for column in ("problems", "samples", "avg", "passed"):
            table[column] = pd.to_numeric(text[column].replace("", np.nan))
        for i, row in table.iterrows():
            for what, size in (("avg", row.problems * row.samples), ("passed", row.problems)):
                half_digit = 0.51 * 10.0 ** -len(text.at[i, what].partition(".")[2])
                # NaN compares as false: a benchmark of unknown size cannot be checked
                if abs(row[what] * size - np.rint(row[what] * size)) > half_digit * size:
                    raise ValueError(f"{name}, row {i}: {what} {row[what]} of {size:g} trials")
            if not 0 <= row.avg <= 1 or row.passed > 1 or row.passed < row.avg:
                raise ValueError(f"{name}, row {i}: {row.avg} and {row.passed} are not shares")
        found.append(table)
    return pd.concat(found, ignore_index=True)[["task", *COLUMNS]]


# ------------------------------------------------------------------------- error of one evaluation


def all_wrong(avg: float, rho: float, samples: int) -> float:
    """Probability that all samples of a problem fail, under Beta with this mean and correlation."""
    j, wrong = np.arange(1, samples), 1 - avg
    return float(wrong * np.prod((wrong * (1 - rho) + j * rho) / (1 - rho + j * rho)))


def correlation(avg: float, passed: float, samples: int) -> float:
    """rho in [0, 1] that explains pass@k beside avg@k; NaN where they do not determine it.

    It is 1 (each problem always or never solved) when pass@k is avg@k, and 0 (all equally hard)
    when pass@k is as high as avg@k allows or, by chance, higher.
    """
    if np.isnan(passed) or not 0 < avg < 1:
        return float("nan")
    if passed <= avg:
        return 1.0
    if passed >= 1 - (1 - avg) ** samples:
        return 0.0
    return optimize.brentq(lambda rho: all_wrong(avg, rho, samples) - (1 - passed), 0, 1)


class Trials(NamedTuple):
    """How many independent trials an evaluation is worth: error(value, trials)."""

    avg_same: float
    avg_new: float
    passed_same: float
    passed_new: float
    rho: float


@functools.cache
def trials(avg: float, passed: float, problems: float, samples: int) -> Trials:
    """Trials behind avg@k and pass@k; where rho is unknown, the fewest that any rho allows."""
    rho = correlation(avg, passed, samples)
    low, high = (0.0, 1.0) if np.isnan(rho) else (rho, rho)
    # pass@k of a problem is pi_i = 1 - (1 - p_i)^k, so E[pi_i (1 - pi_i)] = P(k fail) - P(2k fail)
    noise = all_wrong(avg, low, samples) - all_wrong(avg, low, 2 * samples)
    gain = 1.0 if np.isnan(rho) else max(1.0, passed * (1 - passed) / max(noise, 1e-12))
    return Trials(
        avg_same=problems * samples / max(1 - low, 1e-12),
        avg_new=problems * samples / (1 + (samples - 1) * high),
        passed_same=problems * gain,
        passed_new=problems,
        rho=rho,
    )


def error(value, trials):
    """Standard error of a share; arrays broadcast."""
    return np.sqrt(np.asarray(value) * (1 - np.asarray(value)) / trials)


def wilson(value, trials, confidence: float = 0.95) -> tuple:
    """(low, high) of a share; trials need not be whole. Arrays broadcast."""
    z2 = stats.norm.ppf(0.5 + confidence / 2) ** 2
    middle, scale = value + z2 / (2 * trials), 1 + z2 / trials
    half = np.sqrt(z2 * (value * (1 - value) / trials + z2 / (4 * trials**2)))
    return np.maximum((middle - half) / scale, 0), np.minimum((middle + half) / scale, 1)


def intervals(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The rows of runs(), with the Trials, and {avg,passed}_{naive,same,new}_{low,high}.

    naive: as if all samples were independent (avg), as if the problems were the trials (passed).
    """
    worth = [trials(r.avg, r.passed, r.problems, int(r.samples)) for r in table.itertuples()]
    found = table.join(pd.DataFrame(worth, index=table.index).add_prefix("trials_"))
    found = found.rename(columns={"trials_rho": "rho"})
    found["trials_avg_naive"] = table["problems"] * table["samples"]
    found["trials_passed_naive"] = table["problems"]
    for metric in ("avg", "passed"):
        for kind in ("naive", "same", "new"):
            ends = wilson(table[metric], found[f"trials_{metric}_{kind}"], confidence)
            found[f"{metric}_{kind}_low"], found[f"{metric}_{kind}_high"] = ends
    return found


def noise_range(avg: float, passed: float, samples: int, metric: str = "avg") -> tuple:
    """(least, most) noise of one problem, whatever the distribution of the p_i behind both values.

    Beta is an assumption, this is not one: a linear programme over a grid of accuracies. Noise is
    E[p_i (1 - p_i)], the variance of one sample; for metric "passed" the variance of pass@k.
    """
    p = np.unique(np.append(np.linspace(0, 1, 401), avg))
    fails = (1 - p) ** samples
    cost = p * (1 - p) if metric == "avg" else fails * (1 - fails)
    wrong = np.clip(1 - passed, (1 - avg) ** samples, 1 - avg)
    known = {"A_eq": np.stack([np.ones_like(p), p, fails]), "b_eq": [1, avg, wrong]}
    least, most = (optimize.linprog(sign * cost, **known).fun for sign in (1, -1))
    return max(float(least), 0.0), float(-most)


# ----------------------------------------------------------------------------- repeats and re-runs


def chance_equal(sd: float, among: int) -> float:
    """Probability that `among` independent counts of one model, with this sd, are all the same."""
    edges = np.arange(-np.ceil(8 * sd) - 1, np.ceil(8 * sd) + 2) + 0.5
    return float((np.diff(stats.norm.cdf(edges, scale=max(sd, 1e-9))) ** among).sum())


def repeats(table: pd.DataFrame) -> pd.DataFrame:
    """How often runs of a (student, benchmark) share avg@k to the last digit, against chance.

    Math only: the code rows are rounded. Generously, all runs are taken for one and the same model.
    Columns: runs; distinct values;
    `largest`, the runs that share the commonest; `pairs` that agree, and how many would under
    Beta (`pairs_expected`) and with the least noise that the published values allow (`pairs_most`);
    `chance`, with that least noise an upper bound on the probability that any `largest` runs agree.
    """
    records, table = [], table[table["task"] == "math"]
    for (student, benchmark), group in table.groupby(["student", "benchmark"], sort=False):
        m, sizes = len(group), group["avg"].value_counts().to_numpy()
        avg, passed, problems, samples = group[["avg", "passed", "problems", "samples"]].mean()
        count = problems * samples
        beta = count * error(avg, trials(avg, passed, problems, int(samples)).avg_same)
        least = np.sqrt(count * noise_range(avg, passed, int(samples))[0])
        alike = math.comb(m, sizes[0]) * chance_equal(least, sizes[0])
        records.append(
            {
                "student": student,
                "benchmark": benchmark,
                "runs": m,
                "distinct": len(sizes),
                "largest": sizes[0],
                "pairs": (sizes * (sizes - 1) // 2).sum(),
                "pairs_expected": math.comb(m, 2) * chance_equal(beta, 2),
                "pairs_most": math.comb(m, 2) * chance_equal(least, 2),
                "chance": min(1.0, alike),
            }
        )
    found = pd.DataFrame(records)
    return found.assign(repeated=found["chance"] * len(found) < REPEATED)


def measurements(table: pd.DataFrame) -> pd.DataFrame:
    """runs() in long form: a row for each run and metric, with `value` and its `variance`.

    The variance is that of sampling the same problems again.
    """
    worth = [trials(r.avg, r.passed, r.problems, int(r.samples)) for r in table.itertuples()]
    found = []
    for metric in ("avg", "passed"):
        sizes = np.array([getattr(w, f"{metric}_same") for w in worth], dtype=float)
        variance = error(table[metric], sizes) ** 2
        found.append(table.assign(metric=metric, value=table[metric], variance=variance))
    return pd.concat(found).dropna(subset="value")


def reevaluations(table: pd.DataFrame) -> pd.DataFrame:
    """Checkpoints evaluated twice: both values, their difference, its sd by noise, and z."""
    rows = measurements(table[table["subset"] == "all"])
    pairs = rows.groupby([*_CELL, "mode", "method"], sort=False).agg(
        evaluations=("value", "size"),
        first=("value", "first"),
        second=("value", "last"),
        sd=("variance", lambda v: np.sqrt(v.sum())),
    )
    pairs = pairs.query("evaluations == 2").drop(columns="evaluations").reset_index()
    pairs["difference"] = pairs["second"] - pairs["first"]
    return pairs.assign(z=pairs["difference"] / pairs["sd"])


def scatter(table: pd.DataFrame) -> pd.DataFrame:
    """Do the runs of a (student, benchmark) differ at all, the base included? Math only.

    `ratio` is the variance between runs over the variance by noise: near 1 there is nothing to
    explain. `p` is the probability of a larger one if there is nothing (chi-squared); it is rough,
    as the noise is an estimate, most of all for pass@k, where a few problems decide.
    """
    rows = measurements(table[table["task"] == "math"]).groupby(_CELL, sort=False)
    found = rows.agg(runs=("value", "size"), ratio=("value", "var")).reset_index()
    found["ratio"] /= rows["variance"].mean().to_numpy()
    freedom = found["runs"] - 1
    return found.assign(p=stats.chi2.sf(found["ratio"] * freedom, freedom))


# ------------------------------------------------------------------------------ claimed differences


def differences(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """trd minus base, the best and the mean token-level baseline, per benchmark and metric.

    `se` is the noise of new samples on the same problems. A checkpoint evaluated twice counts with
    its mean. The best baseline is picked by the value tested, which favours it; the mean is fair
    but includes weak ones. p is two-sided, p_holm adjusted within `against`. Both are NaN without a
    size, where nothing varies (all or none solved), and in `repeated` columns, which are not taken
    for measurements.
    """
    keys = [*_CELL, "mode"]
    of_mean = {
        "value": ("value", "mean"),
        "variance": ("variance", lambda v: v.sum(skipna=False) / len(v) ** 2),
    }
    rows = measurements(table[table["subset"] == "all"])
    cells = rows.groupby([*keys, "method"], sort=False).agg(**of_mean).reset_index()
    cells = cells.rename(columns={"method": "other"})
    token = cells[cells["other"].isin(TOKEN_LEVEL)]
    mean = token.groupby(keys, sort=False).agg(**of_mean, other=("other", "+".join))
    others = {
        "base": cells[cells["other"] == "base"].drop(columns="mode"),
        "best": token.sort_values("value").groupby(keys, sort=False).tail(1),
        "mean": mean.reset_index(),
    }
    trd = cells[cells["other"] == "trd"].drop(columns="other")
    found = []
    for against, other in others.items():
        shared = [key for key in keys if key in other]  # base has no mode
        pairs = trd.merge(other, on=shared, suffixes=("_trd", ""))
        found.append(pairs.assign(against=against, trd=pairs["value_trd"]))
    found = pd.concat(found, ignore_index=True)
    found["difference"] = found["trd"] - found["value"]
    found["se"] = np.sqrt(found["variance_trd"] + found["variance"])
    dubious = repeats(table).query("repeated")[["student", "benchmark"]].apply(tuple, axis=1)
    found["repeated"] = found[["student", "benchmark"]].apply(tuple, axis=1).isin(list(dubious))
    found = _tested(found, confidence).assign(p_holm=np.nan)
    found.loc[found["repeated"], "p"] = np.nan
    for _, family in found.dropna(subset="p").groupby("against"):
        found.loc[family.index, "p_holm"] = multipletests(family["p"], method="holm")[1]
    columns = ["trd", "against", "other", "value", "difference", "se", "low", "high", "p", "p_holm"]
    return found[[*keys, *columns, "repeated"]]


def _tested(found: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """A table with difference and se, and low, high and a two-sided p."""
    half, z = stats.norm.ppf(0.5 + confidence / 2) * found["se"], found["difference"] / found["se"]
    ends = {"low": found["difference"] - half, "high": found["difference"] + half}
    return found.assign(**ends, p=2 * stats.norm.sf(abs(z)))


def pooled(found: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """differences() averaged over the benchmarks of a student, without repeated columns."""
    usable = found[~found["repeated"] & found["se"].notna()]
    keys = ["task", "mode", "student", "metric", "against"]
    mean = usable.groupby(keys, sort=False).agg(
        benchmarks=("se", "size"),
        difference=("difference", "mean"),
        se=("se", lambda se: np.sqrt((se**2).sum()) / len(se)),
    )
    return _tested(mean.reset_index(), confidence)


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Each gain that the paper states, beside every pair of raw rows that could be behind it.

    A row for each (claim, metric, trd row, other row): the difference, whether it is the stated one
    to its decimal (`matches`), p by the Beta noise, and `p_most` by the most noise that any
    distribution of difficulties with these values allows.
    """
    found, rows = [], measurements(table[table["subset"] == "all"])
    for (mode, student, benchmark), points in CLAIMS.items():
        here = rows[(rows["student"] == student) & (rows["benchmark"] == benchmark)]
        here = here[here["mode"].isin([mode, "none"])]
        size = here["problems"] * here["samples"].where(here["metric"] == "avg", 1)
        shape = here[["avg", "passed", "samples", "metric"]].itertuples(index=False)
        here = here.assign(most=[noise_range(*row)[1] for row in shape] / size)
        pairs = here[here["method"] == "trd"].merge(
            here[here["method"] != "trd"], on="metric", suffixes=("", "_other")
        )
        pairs = pairs.assign(mode=mode, claimed=points / 100, other=pairs["method_other"])
        pairs["difference"] = pairs["value"] - pairs["value_other"]
        pairs["matches"] = (100 * pairs["difference"]).round(1) == points
        for p, v in (("p", "variance"), ("p_most", "most")):
            z = pairs["difference"] / np.sqrt(pairs[v] + pairs[f"{v}_other"])
            pairs[p] = 2 * stats.norm.sf(abs(z))
        found.append(pairs)
    columns = ["mode", "student", "benchmark", "claimed", "metric", "run", "other", "run_other"]
    columns += ["value", "value_other", "difference", "matches", "p", "p_most"]
    return pd.concat(found, ignore_index=True)[columns]


# -------------------------------------------------------------------------------------------- power


def problems_needed(gain, sd, power: float = 0.8, alpha: float = 0.05):
    """Problems per evaluation to detect a gain between two of them, two-sided; arrays broadcast.

    sd: of one problem's score in one evaluation, error(value, trials / problems): with the `same`
    trials for a comparison paired by problem, with `new` ones for two separate sets of problems.
    Pairing assumes the gain is the same on every problem; if it is not, more are needed.
    """
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return np.ceil(2 * (z * np.asarray(sd) / gain) ** 2)


def detection_power(gain, sd, problems, alpha: float = 0.05):
    """Probability that such a comparison comes out significant; arrays broadcast."""
    shift = gain / (np.asarray(sd) * np.sqrt(2 / np.asarray(problems)))
    z = stats.norm.ppf(1 - alpha / 2)
    return stats.norm.cdf(shift - z) + stats.norm.cdf(-shift - z)


# ------------------------------------------------------------------------------------------ writing


def readable(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Columns of any table above as text for people: percent, points with a sign, p, intervals.

    "interval" joins low and high of a difference, "x" joins x_low and x_high; NaN is a dash.
    """

    def text(name: str) -> pd.Series:
        if name == "interval" or f"{name}_low" in table:
            low, high = ("low", "high") if name == "interval" else (f"{name}_low", f"{name}_high")
            sign = "+" if name == "interval" else ""
            pairs = 100 * table[[low, high]]
            return pairs.apply(
                lambda p: f"[{p[low]:{sign}.1f}, {p[high]:{sign}.1f}]", axis=1
            ).where(pairs.notna().all(axis=1))
        if name == "metric":
            return table[name].map({"avg": "avg@k", "passed": "pass@k"})
        shape = {"p": "{:.2g}", "chance": "{:.1g}", "z": "{:+.1f}"}.get(name.partition("_")[0])
        scale = 1
        if name in ("avg", "passed", "trd", "value", "value_other", "first", "second", "sd"):
            shape, scale = "{:.1f}", 100
        elif name in ("difference", "claimed", "gain"):
            shape, scale = "{:+.1f}", 100
        elif name in ("rho", "ratio") or name.startswith("pairs_"):
            shape = "{:.2f}"
        return (scale * table[name]).map(shape.format, na_action="ignore") if shape else table[name]

    shown = pd.DataFrame({name: text(name) for name in columns}).astype(object)
    return shown.where(shown.notna(), "-")
