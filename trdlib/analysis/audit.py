"""What the authors' published result files say, and how noisy that is. Notebook 8_audit asks.

They hold avg@k and pass@k of each run, no counts by problem. The accuracies p_i of the problems are
taken to follow the Beta distribution with mean avg@k under which all k samples of a problem fail
with probability 1 - pass@k. Its intraclass correlation rho = Var(p_i) / (p (1 - p)) gives two
errors. `same`: the same problems are sampled again, all that chance does between two rows of a
benchmark. `new`: the problems are drawn as well. Values are fractions. The variation between
training runs is in nothing here: the files hold one each.
"""

import functools
from collections import namedtuple

import numpy as np
import pandas as pd
from scipy import optimize
from scipy.stats import norm

from trdlib import settings

CODE_SIZES = {"humaneval_plus": 164, "mbpp_plus": 378}  # LiveCodeBench's is not in the files
CELL = ["task", "student", "benchmark", "metric"]


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
    """runs() in long form, a row for each run and metric: `value`, its variance by `same`, if all
    samples were `independent`, and the least and the most that the published values allow."""
    worth, found = intervals(table), []
    for metric, samples in (("avg", table["samples"]), ("passed", 1)):
        rows = table.assign(metric=metric, value=table[metric], size=table["problems"] * samples)
        rows["variance"] = error(rows["value"], worth[f"trials_{metric}_same"]) ** 2
        rows["independent"] = error(rows["value"], rows["size"]) ** 2
        found.append(rows.dropna(subset="value"))
    rows = pd.concat(found)
    shapes = rows[["avg", "passed", "samples", "metric"]].itertuples(index=False)
    ends = np.array([noise_range(*shape) for shape in shapes])
    rows[["least", "most"]] = ends / rows[["size"]].to_numpy()
    return rows


def noise_range(avg: float, passed: float, samples: int, metric: str = "avg") -> tuple:
    """(least, most) noise of one problem, whatever the distribution of the p_i behind both values:
    E[p_i (1 - p_i)], of one sample; for metric "passed" the variance of pass@k. NaN without pass@k.

    1, p, (1-p)^k and the noise are a Chebyshev system, so both ends lie where some problems are
    never (or always) solved and the rest equally hard.
    """
    if np.isnan(passed) or not 0 < avg < 1:
        return (np.nan, np.nan) if np.isnan(passed) else (0.0, 0.0)
    wrong = np.clip(1 - passed, (1 - avg) ** samples, 1 - avg)
    of_some = lambda p: 1 - avg / p * (1 - (1 - p) ** samples) - wrong  # noqa: E731
    some = 1.0 if of_some(1.0) <= 0 else optimize.brentq(of_some, avg, 1)
    others = 1 - (wrong / (1 - avg)) ** (1 / (samples - 1))
    p, share = np.array([some, others]), np.array([avg / some, (1 - avg) / (1 - others)])
    right = p if metric == "avg" else (1 - p) ** samples
    return tuple(sorted((share * right * (1 - right)).tolist()))
