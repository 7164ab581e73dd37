"""What the authors' published result files say, and how noisy that is. Notebook 8_audit asks.

They hold avg@k and pass@k (fractions) of single training runs. The accuracies p_i of the problems
are taken to follow the Beta that gives both. Its correlation rho = Var(p_i) / (p (1 - p)) gives two
errors: `same`, of these problems sampled again, and `new`, of others drawn."""

import functools
import math
from collections import namedtuple

import numpy as np
import pandas as pd
from scipy import optimize
from scipy.stats import chi2, norm

from trdlib import settings
from trdlib.analysis.compare import MARK_LEVEL, holm

CODE_SIZES = {"humaneval_plus": 164, "mbpp_plus": 378}  # LiveCodeBench's is not in the files
CELL = ["task", "student", "benchmark", "metric"]
TOKEN_LEVEL = ("forward_kl", "reverse_kl", "forward_kl_clip", "reverse_kl_topk")
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
    """rho, from 0 (all are equally hard) to 1; NaN where both values do not determine it."""
    if np.isnan(passed) or not 0 < avg < 1:
        return float("nan")
    if passed <= avg:
        return 1.0
    if passed >= 1 - (1 - avg) ** samples:
        return 0.0
    return optimize.brentq(lambda rho: all_wrong(avg, rho, samples) - (1 - passed), 0, 1)


Trials = namedtuple("Trials", "avg_same avg_new passed_same passed_new rho")


@functools.cache
def trials(avg: float, passed: float, problems: float, samples: int) -> Trials:
    """How many independent trials avg@k and pass@k are worth; the fewest, if rho is unknown."""
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
    """runs() by metric: `value`, its `variance` (by `same`), that of independent samples, and the
    least and the most that the published values allow."""
    worth, found = intervals(table), []
    for metric, samples in (("avg", table["samples"]), ("passed", 1)):
        rows = table.assign(metric=metric, value=table[metric], size=table["problems"] * samples)
        rows["variance"] = error(rows["value"], worth[f"trials_{metric}_same"]) ** 2
        rows["independent"] = error(rows["value"], rows["size"]) ** 2
        found.append(rows.dropna(subset="value"))
    rows = pd.concat(found)
    ends = [noise_range(*one) for one in rows[["avg", "passed", "samples", "metric"]].to_numpy()]
    rows[["least", "most"]] = np.array(ends) / rows[["size"]].to_numpy()
    return rows


def noise_range(avg: float, passed: float, samples: int, metric: str = "avg") -> tuple:
    """(least, most) noise of one problem, E[p_i (1 - p_i)] or that of pass@k, whatever the
    distribution of the p_i; NaN without pass@k. 1, p, (1-p)^k and the noise are a Chebyshev system:
    the ends lie where some problems are never (or always) solved and the rest equally hard."""
    if np.isnan(passed) or not 0 < avg < 1:
        return (np.nan, np.nan) if np.isnan(passed) else (0.0, 0.0)
    wrong = np.clip(1 - passed, (1 - avg) ** samples, 1 - avg)
    of_some = lambda p: 1 - avg / p * (1 - (1 - p) ** samples) - wrong  # noqa: E731
    some = 1.0 if of_some(1.0) <= 0 else optimize.brentq(of_some, avg, 1)
    others = 1 - (wrong / (1 - avg)) ** (1 / (samples - 1))
    p, share = np.array([some, others]), np.array([avg / some, (1 - avg) / (1 - others)])
    right = p if metric == "avg" else (1 - p) ** samples
    return tuple(sorted((share * right * (1 - right)).tolist()))


def reevaluations(table: pd.DataFrame) -> pd.DataFrame:
    """Checkpoints evaluated twice: both values, their difference, its sd by noise, and z."""
    rows = measurements(table[table["subset"] == "all"])
    pairs = rows.groupby([*CELL, "mode", "method"], sort=False).agg(
        evaluations=("value", "size"), first=("value", "first"), second=("value", "last"),
        sd=("variance", lambda v: np.sqrt(v.sum())),
    ).query("evaluations == 2").reset_index()  # fmt: skip
    pairs["difference"] = pairs["second"] - pairs["first"]
    return pairs.assign(z=pairs["difference"] / pairs["sd"])


def chance_equal(sd: float, among: int) -> float:
    """Probability that `among` independent counts of one model, with this sd, are all the same."""
    edges = np.arange(-np.ceil(8 * sd) - 1, np.ceil(8 * sd) + 2) + 0.5
    return float((np.diff(norm.cdf(edges, scale=max(sd, 1e-9))) ** among).sum())


def repeats(table: pd.DataFrame) -> pd.DataFrame:
    """How often runs of a (student, benchmark) share avg@k to the last digit (math only).
    pairs: that agree, and expected by Beta of one model. chance: at most the probability that any
    `largest` runs agree, with the least noise that the values allow."""
    records, maths = [], table[table["task"] == "math"]
    for (student, benchmark), group in maths.groupby(["student", "benchmark"], sort=False):
        m, sizes = len(group), group["avg"].value_counts().to_numpy()
        avg, passed, problems, samples = group[["avg", "passed", "problems", "samples"]].mean()
        count, samples = problems * samples, int(samples)
        beta = count * error(avg, trials(avg, passed, problems, samples).avg_same)
        least = np.sqrt(count * noise_range(avg, passed, samples)[0])
        records.append({
            "student": student, "benchmark": benchmark, "runs": m, "distinct": len(sizes),
            "largest": sizes[0], "pairs": (sizes * (sizes - 1) // 2).sum(),
            "pairs_expected": math.comb(m, 2) * chance_equal(beta, 2),
            "chance": min(1.0, math.comb(m, sizes[0]) * chance_equal(least, sizes[0])),
        })  # fmt: skip
    found = pd.DataFrame(records)
    return found.assign(repeated=found["chance"] * len(found) < REPEATED)


def scatter(table: pd.DataFrame) -> pd.DataFrame:
    """Do the runs of a (student, benchmark) differ? Math, without columns that repeat; first over
    all. ratio: variance between runs over that by noise; p_more, p_less: of a larger and a smaller
    one (chi-squared; rough); independent, most, least: the ratio with other noise."""
    rows = measurements(table[table["task"] == "math"])
    rows = rows.merge(repeats(table).query("not repeated")[["student", "benchmark"]])
    cells, noises = rows.groupby(CELL, sort=False), ["variance", "independent", "most", "least"]
    found = cells.agg(runs=("value", "size")).assign(freedom=lambda t: t["runs"] - 1)
    spread = cells["value"].var() * found["freedom"]
    found = found.join((1 / cells[noises].mean()).mul(spread, axis=0)).reset_index()
    whole = found.groupby("metric", as_index=False)[["runs", "freedom", *noises]].sum()
    found = pd.concat([whole.assign(student="all", benchmark="all"), found], ignore_index=True)
    found["p_more"] = chi2.sf(found["variance"], found["freedom"])
    found["p_less"] = chi2.cdf(found["variance"], found["freedom"])
    found[noises] = found[noises].div(found["freedom"], axis=0)
    found["least"] = found["least"].where(found["least"] < 100)  # where it is next to none
    return found.rename(columns={"variance": "ratio"})


def with_test(found: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """A table with difference and se, and low, high and a two-sided p."""
    half = norm.ppf(0.5 + confidence / 2) * found["se"]
    ends = {"low": found["difference"] - half, "high": found["difference"] + half}
    return found.assign(**ends, p=2 * norm.sf(abs(found["difference"] / found["se"])))


def differences(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """trd minus base, the best (picked by the value tested, which favours it) and the mean
    token-level baseline, by benchmark and for a student's mean. p by `same`: NaN without a size,
    where nothing varies, where values are `repeated` (no mean has them). p_holm: one family."""
    keys, of_mean = [*CELL, "mode"], {"value": ("value", "mean")}
    of_mean["variance"] = ("variance", lambda v: v.sum(skipna=False) / len(v) ** 2)
    rows = measurements(table[table["subset"] == "all"]).rename(columns={"method": "other"})
    cells = rows.groupby([*keys, "other"], sort=False).agg(**of_mean).reset_index()
    token = cells[cells["other"].isin(TOKEN_LEVEL)]
    mean = token.groupby(keys, sort=False).agg(**of_mean, other=("other", "+".join))
    mean = mean[mean["other"].str.contains("+", regex=False)]  # of one baseline: it is the best
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
    usable = found[~found["repeated"] & found["se"].notna()]
    means = usable.groupby(["task", "mode", "student", "metric", "against"], sort=False).agg(
        benchmarks=("se", "size"), difference=("difference", "mean"),
        se=("se", lambda se: np.hypot.reduce(se) / len(se)),
    ).reset_index().assign(benchmark="mean", repeated=False)  # fmt: skip
    found = with_test(pd.concat([found.assign(benchmarks=1), means], ignore_index=True), confidence)
    found.loc[found["repeated"], "p"] = np.nan
    found["p_holm"] = holm(found["p"])
    columns = ["trd", "against", "other", "value", "difference", "se", "low", "high", "p", "p_holm"]
    return found[[*keys, "benchmarks", *columns, "repeated"]]


def claimed(table: pd.DataFrame) -> pd.DataFrame:
    """Claims beside every pair of raw rows that could be behind; matches: to the stated decimal."""
    stated = pd.read_csv(settings.root() / "results" / "published" / "claims.csv")
    rows = measurements(table[table["subset"] == "all"])
    rows = stated.merge(rows, on=["student", "benchmark"], suffixes=("", "_run"))
    rows = rows.query("mode_run == mode or mode_run == 'none'")
    trd, other = rows[rows["method"] == "trd"], rows[rows["method"] != "trd"]
    pairs = trd.merge(other, on=[*stated.columns, "metric"], suffixes=("", "_other"))
    pairs["difference"] = pairs["value"] - pairs["value_other"]
    pairs["matches"] = (100 * pairs["difference"]).round(1) == (100 * pairs["claimed"]).round(1)
    for p, noise in (("p", "variance"), ("p_most", "most")):
        sd = np.sqrt(pairs[noise] + pairs[f"{noise}_other"])
        pairs[p] = 2 * norm.sf(abs(pairs["difference"] / sd))
    return pairs.rename(columns={"method_other": "other"})


def sd_of(rows, metric: str, kind: str = "same"):
    """Of one problem's score in one evaluation; rows: one or more of `intervals`."""
    return error(rows[metric], rows[f"trials_{metric}_{kind}"] / rows["problems"])


def problems_needed(gain, sd, power: float = 0.8, level: float = MARK_LEVEL):
    """To detect a gain between two evaluations, two-sided, with this sd of one problem's score."""
    z = norm.ppf(1 - level / 2) + norm.ppf(power)
    return np.ceil(2 * (z * np.asarray(sd) / gain) ** 2)
