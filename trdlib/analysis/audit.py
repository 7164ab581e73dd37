"""What the authors' published result files can show: intervals, repeats, differences, power.

The files hold avg@k and pass@k of each run, no counts by problem. How different the problems are is
taken from a model: their accuracies p_i follow the Beta distribution whose mean is avg@k and under
which all k samples of a problem fail with probability 1 - pass@k. Its intraclass correlation rho =
Var(p_i) / (p (1 - p)) gives two errors. `same`: the same problems are sampled again, which is all
that chance does between two rows of a benchmark. `new`: the problems are drawn as well, which a
statement about mathematics has to face. Values are fractions. The variation between training runs
is in nothing here: the files hold one each.
"""

import functools
import math
from collections import namedtuple

import numpy as np
import pandas as pd
from scipy import optimize
from scipy.stats import chi2, norm

from trdlib import settings, stats
from trdlib.analysis import show

CODE_SIZES = {"humaneval_plus": 164, "mbpp_plus": 378}  # LiveCodeBench's is not in the files
TOKEN_LEVEL = ("forward_kl", "reverse_kl", "forward_kl_clip", "reverse_kl_topk")
CLAIMS = (  # gains that the paper states in its text; for the last two not against what
    ("opsd", "Qwen3-8B", "amobench", 0.205),  # pass@16, 0.410 -> 0.615
    ("opd", "Qwen3-1.7B", "aime24", 0.046),
    ("opd", "Qwen3-4B", "amobench", 0.128),
)
_CELL = ["task", "student", "benchmark", "metric"]
REPEATED = 1e-3  # columns of repeats less likely than this are not taken for measurements


def runs() -> pd.DataFrame:
    """The published rows, with their task; `avg` is avg@k, `passed` pass@k, NaN not published."""
    files = {"math": "author_runs.csv", "code": "author_runs_code.csv"}
    names = {"avg_at_16": "avg", "pass_at_16": "passed", "pass_at_samples": "passed"}
    read = functools.partial(pd.read_csv, keep_default_na=False, na_values=dict.fromkeys(names, ""))
    folder = settings.root() / "results" / "published"
    tables = {task: read(folder / name).rename(columns=names) for task, name in files.items()}
    table = pd.concat(tables, names=["task"]).reset_index("task").reset_index(drop=True)
    return table.fillna({"subset": "all", "problems": table["benchmark"].map(CODE_SIZES)})


def all_wrong(avg: float, rho: float, samples: int) -> float:
    """Probability that all samples of a problem fail, under Beta with this mean and correlation."""
    j, wrong = np.arange(1, samples), 1 - avg
    return float(wrong * np.prod((wrong * (1 - rho) + j * rho) / (1 - rho + j * rho)))


def correlation(avg: float, passed: float, samples: int) -> float:
    """rho that explains pass@k beside avg@k, from 0 (all problems are equally hard) to 1 (each is
    always or never solved); NaN where they do not determine it."""
    if np.isnan(passed) or not 0 < avg < 1:
        return float("nan")
    if passed <= avg:
        return 1.0
    if passed >= 1 - (1 - avg) ** samples:
        return 0.0
    return optimize.brentq(lambda rho: all_wrong(avg, rho, samples) - (1 - passed), 0, 1)


# How many independent trials an evaluation is worth: error(value, trials).
Trials = namedtuple("Trials", "avg_same avg_new passed_same passed_new rho")


@functools.cache
def trials(avg: float, passed: float, problems: float, samples: int) -> Trials:
    """Trials behind avg@k and pass@k; where rho is unknown, the fewest that any rho allows."""
    rho = correlation(avg, passed, samples)
    low, high = (0.0, 1.0) if np.isnan(rho) else (rho, rho)
    # pass@k of a problem is pi_i = 1 - (1 - p_i)^k, so E[pi_i (1 - pi_i)] = P(k fail) - P(2k fail)
    noise = all_wrong(avg, low, samples) - all_wrong(avg, low, 2 * samples)
    gain = 1.0 if np.isnan(rho) else max(1.0, passed * (1 - passed) / max(noise, 1e-12))
    same = problems * samples / max(1 - low, 1e-12)
    new = problems * samples / (1 + (samples - 1) * high)
    return Trials(same, new, problems * gain, problems, rho)


def error(value, trials):
    """Standard error of a share; arrays broadcast."""
    return np.sqrt(np.asarray(value) * (1 - np.asarray(value)) / trials)


def wilson(value, trials, confidence: float = 0.95) -> tuple:
    """(low, high) of a share; trials need not be whole. Arrays broadcast."""
    z2 = norm.ppf(0.5 + confidence / 2) ** 2
    middle, scale = value + z2 / (2 * trials), 1 + z2 / trials
    half = np.sqrt(z2 * (value * (1 - value) / trials + z2 / (4 * trials**2)))
    return np.maximum((middle - half) / scale, 0), np.minimum((middle + half) / scale, 1)


def intervals(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """runs() with rho, trials, {avg_same,avg_new,avg_naive,passed_same,passed_new}_{low,high}."""
    worth = [trials(r.avg, r.passed, r.problems, int(r.samples)) for r in table.itertuples()]
    found = table.join(pd.DataFrame(worth, index=table.index).add_prefix("trials_"))
    found = found.rename(columns={"trials_rho": "rho"})
    found["trials_avg_naive"] = table["problems"] * table["samples"]  # as if independent
    for name in ("avg_naive", "avg_same", "avg_new", "passed_same", "passed_new"):
        ends = wilson(table[name.partition("_")[0]], found[f"trials_{name}"], confidence)
        found[f"{name}_low"], found[f"{name}_high"] = ends
    return found


def measurements(table: pd.DataFrame) -> pd.DataFrame:
    """runs() in long form: a row for each run and metric, with `value` and `variance` (`same`)."""
    worth = intervals(table)
    noise = {m: error(table[m], worth[f"trials_{m}_same"]) ** 2 for m in ("avg", "passed")}
    found = [table.assign(metric=m, value=table[m], variance=v) for m, v in noise.items()]
    return pd.concat(found).dropna(subset="value")


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


def chance_equal(sd: float, among: int) -> float:
    """Probability that `among` independent counts of one model, with this sd, are all the same."""
    edges = np.arange(-np.ceil(8 * sd) - 1, np.ceil(8 * sd) + 2) + 0.5
    return float((np.diff(norm.cdf(edges, scale=max(sd, 1e-9))) ** among).sum())


def repeats(table: pd.DataFrame) -> pd.DataFrame:
    """How often runs of a (student, benchmark) share avg@k to the last digit, against chance.

    Math only: code is rounded. Generously, all runs are taken for one model. distinct: values.
    largest: runs that share the commonest. pairs: of runs that agree; expected under Beta, and at
    most, with the least noise that the published values allow. chance: with that noise, an upper
    bound on the probability that any `largest` runs agree.
    """
    columns = ["student", "benchmark", "runs", "distinct", "largest", "pairs", "pairs_expected"]
    records, table = [], table[table["task"] == "math"]
    for cell, group in table.groupby(["student", "benchmark"], sort=False):
        m, sizes = len(group), group["avg"].value_counts().to_numpy()
        avg, passed, problems, samples = group[["avg", "passed", "problems", "samples"]].mean()
        count = problems * samples
        beta = count * error(avg, trials(avg, passed, problems, int(samples)).avg_same)
        least = np.sqrt(count * noise_range(avg, passed, int(samples))[0])
        expected, most = (math.comb(m, 2) * chance_equal(sd, 2) for sd in (beta, least))
        alike = min(1.0, math.comb(m, sizes[0]) * chance_equal(least, sizes[0]))
        pairs = (sizes * (sizes - 1) // 2).sum()
        records.append((*cell, m, len(sizes), sizes[0], pairs, expected, most, alike))
    found = pd.DataFrame(records, columns=[*columns, "pairs_most", "chance"])
    return found.assign(repeated=found["chance"] * len(found) < REPEATED)


def reevaluations(table: pd.DataFrame) -> pd.DataFrame:
    """Checkpoints evaluated twice: both values, their difference, its sd by noise, and z."""
    rows = measurements(table[table["subset"] == "all"])
    pairs = rows.groupby([*_CELL, "mode", "method"], sort=False).agg(
        evaluations=("value", "size"), first=("value", "first"), second=("value", "last"),
        sd=("variance", lambda v: np.sqrt(v.sum())),
    )  # fmt: skip
    pairs = pairs.query("evaluations == 2").reset_index()
    pairs["difference"] = pairs["second"] - pairs["first"]
    return pairs.assign(z=pairs["difference"] / pairs["sd"])


def scatter(table: pd.DataFrame) -> pd.DataFrame:
    """Do the runs of a (student, benchmark) differ at all, the base included? Math only.

    ratio: variance between runs over that by noise; 1: nothing to explain. p: of a larger one by
    noise alone (chi-squared); rough, as the noise is an estimate, most of all of pass@k.
    """
    rows = measurements(table[table["task"] == "math"]).groupby(_CELL, sort=False)
    found = rows.agg(runs=("value", "size"), ratio=("value", "var")).reset_index()
    found["ratio"] /= rows["variance"].mean().to_numpy()
    freedom = found["runs"] - 1
    return found.assign(p=chi2.sf(found["ratio"] * freedom, freedom))


def differences(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """trd minus base, the best and the mean token-level baseline, per benchmark and metric.

    A checkpoint evaluated twice counts with its mean. The best baseline is picked by the value
    tested, which favours it; the mean is fair but includes weak ones. p by `same`, p_holm adjusted
    within `against`: NaN without a size, where nothing varies, and where values are `repeated`.
    """
    keys = [*_CELL, "mode"]
    of_mean = {"value": ("value", "mean")}
    of_mean["variance"] = ("variance", lambda v: v.sum(skipna=False) / len(v) ** 2)
    rows = measurements(table[table["subset"] == "all"]).rename(columns={"method": "other"})
    cells = rows.groupby([*keys, "other"], sort=False).agg(**of_mean).reset_index()
    token = cells[cells["other"].isin(TOKEN_LEVEL)]
    mean = token.groupby(keys, sort=False).agg(**of_mean, other=("other", "+".join))
    best = token.sort_values("value").groupby(keys, sort=False).tail(1)
    base = cells[cells["other"] == "base"].drop(columns="mode")  # base has no mode
    others = {"base": base, "best": best, "mean": mean.reset_index()}
    trd = cells[cells["other"] == "trd"].drop(columns="other")
    trd = trd.rename(columns={"value": "trd", "variance": "variance_trd"})
    found = pd.concat([trd.merge(rows).assign(against=name) for name, rows in others.items()])
    found = found.merge(repeats(table)[["student", "benchmark", "repeated"]], how="left")
    found["repeated"] = found["repeated"].eq(True)  # code is not in repeats()
    found["difference"] = found["trd"] - found["value"]
    found["se"] = np.sqrt(found["variance_trd"] + found["variance"])
    found = _tested(found, confidence)
    found.loc[found["repeated"], "p"] = np.nan
    found["p_holm"] = found.groupby("against")["p"].transform(stats.holm)
    columns = ["trd", "against", "other", "value", "difference", "se", "low", "high", "p", "p_holm"]
    return found[[*keys, *columns, "repeated"]]


def _tested(found: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """A table with difference and se, and low, high and a two-sided p."""
    half, z = norm.ppf(0.5 + confidence / 2) * found["se"], found["difference"] / found["se"]
    ends = {"low": found["difference"] - half, "high": found["difference"] + half}
    return found.assign(**ends, p=2 * norm.sf(abs(z)))


def pooled(found: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """differences() averaged over the benchmarks of a student, without repeated columns."""
    usable = found[~found["repeated"] & found["se"].notna()]
    mean = usable.groupby(["task", "mode", "student", "metric", "against"], sort=False).agg(
        benchmarks=("se", "size"), difference=("difference", "mean"),
        se=("se", lambda se: np.sqrt((se**2).sum()) / len(se)),
    )  # fmt: skip
    return _tested(mean.reset_index(), confidence)


def claims(table: pd.DataFrame) -> pd.DataFrame:
    """Each gain that the paper states, beside every pair of raw rows that could be behind it.

    A row for each (claim, metric, trd row, other row). matches: the difference is the stated one to
    its decimal. p: by the Beta noise. p_most: by the most noise that these values allow.
    """
    stated = pd.DataFrame(CLAIMS, columns=["mode", "student", "benchmark", "claimed"])
    rows = measurements(table[table["subset"] == "all"])
    rows = stated.merge(rows, on=["student", "benchmark"], suffixes=("", "_run"))
    rows = rows.query("mode_run == mode or mode_run == 'none'")
    size = rows["problems"] * rows["samples"].where(rows["metric"] == "avg", 1)
    shape = rows[["avg", "passed", "samples", "metric"]].itertuples(index=False)
    rows = rows.assign(most=[noise_range(*row)[1] for row in shape] / size)
    trd, other = rows[rows["method"] == "trd"], rows[rows["method"] != "trd"]
    pairs = trd.merge(other, on=[*stated.columns, "metric"], suffixes=("", "_other"))
    pairs["difference"] = pairs["value"] - pairs["value_other"]
    pairs["matches"] = (100 * pairs["difference"]).round(1) == (100 * pairs["claimed"]).round(1)
    for p, noise in (("p", "variance"), ("p_most", "most")):
        sd = np.sqrt(pairs[noise] + pairs[f"{noise}_other"])
        pairs[p] = 2 * norm.sf(abs(pairs["difference"] / sd))
    return pairs.rename(columns={"method_other": "other"})


def problems_needed(gain, sd, power: float = 0.8, alpha: float = 0.05):
    """Problems per evaluation to detect a gain between two of them, two-sided; arrays broadcast.

    sd: of one problem's score, error(value, trials / problems): with the `same` trials if paired by
    problem (by the same gain on each, else more are needed), with `new` ones for separate problems.
    """
    z = norm.ppf(1 - alpha / 2) + norm.ppf(power)
    return np.ceil(2 * (z * np.asarray(sd) / gain) ** 2)


def detection_power(gain, sd, problems, alpha: float = 0.05):
    """Probability that such a comparison comes out significant; arrays broadcast."""
    shift, z = gain / (np.asarray(sd) * np.sqrt(2 / np.asarray(problems))), norm.ppf(1 - alpha / 2)
    return norm.cdf(shift - z) + norm.cdf(-shift - z)


_SHAPES = {  # (times, format) of the columns in readable()
    (100, ".1f"): ("avg", "passed", "trd", "value", "value_other", "first", "second", "sd"),
    (100, "+.1f"): ("difference", "claimed", "gain"),
    (1, ".2f"): ("rho", "ratio", "pairs_expected", "pairs_most"),
    (1, ".2g"): ("p", "p_holm", "p_most"),
    (1, ".1g"): ("chance",),
    (1, "+.1f"): ("z",),
}


def readable(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Columns of any table above as text for people: percent, points with a sign, p, intervals
    (of a difference "interval", from low and high; else "x", from x_low and x_high)."""

    def text(name: str) -> list:
        signed = name == "interval"
        if signed or f"{name}_low" in table:
            ends = table[["low", "high"] if signed else [f"{name}_low", f"{name}_high"]].to_numpy()
            return [show.interval(None, *pair, signed=signed, ends=True) for pair in ends]
        if name == "metric":
            return [{"avg": "avg@k", "passed": "pass@k"}[metric] for metric in table[name]]
        scale, form = next((how for how, names in _SHAPES.items() if name in names), (1, ""))
        return [f"{scale * x:{form}}" if form and pd.notna(x) else x for x in table[name]]

    shown = pd.DataFrame({name: text(name) for name in columns}).astype(object)
    return shown.where(shown.notna(), show.DASH)
