# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     formats: ipynb,py:percent
#     notebook_metadata_filter: jupytext,kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 8 · Audit: what the authors' raw runs can show
#
# The authors published the result files of their runs: avg@16 and pass@16 of every model on five
# benchmarks, no counts by problem, and one training run per row. What can such files tell? How wide
# is the interval of a cell? How far apart are two evaluations of one checkpoint? Can values that
# repeat to the last digit be measurements? Which differences stand out of the noise, and how many
# problems would it take to see the others?
#
# **The files may not be the ones behind the paper's tables**, and nothing here says that TRD does
# not work. It says what these numbers can carry, and where they support a claim, it says so.
#
# The one assumption: the difficulties of the problems of a benchmark follow a Beta distribution,
# which avg@16 and pass@16 pin down (`trdlib/analysis/audit.py`). It is checked twice below, and
# where much hangs on it, an answer without it stands beside.

# %% tags=["parameters"]
confidence: float = 0.95  # of every interval
alpha: float = 0.05  # a p below this counts as a difference
power: float = 0.8  # wanted probability of seeing a difference that is there

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

from trdlib import jobs, settings, store
from trdlib.analysis import audit
from trdlib.analysis.show import save
from trdlib.ops import notebooks

METRICS = {"avg": "avg@16", "passed": "pass@16"}
runs = audit.runs()
math_runs = runs[runs["task"] == "math"]
report, findings = [], []  # for results/tables/audit.md: the tables, and a sentence on each


def show(title, table, text=""):
    """Display a table, and keep it for the report."""
    report.append(
        f"## {title}\n\n{text}\n\n{table.to_markdown(index=False, disable_numparse=True)}"
    )
    display(Markdown(report[-1]))


def named(rows, columns):
    """What was compared, the difference and its interval, for each row."""
    rows = rows.assign(against="trd minus " + rows["against"] + ":")
    text = audit.readable(rows, [*columns, "metric", "against", "difference", "interval"])
    return "; ".join(text.agg(" ".join, axis=1)) or "-"


runs.groupby(["task", "mode", "student"]).agg(
    rows=("run", "size"), benchmarks=("benchmark", "nunique"), methods=("method", "nunique")
)

# %% [markdown]
# ## One cell
#
# Three intervals of avg@16 of the base models. *naive* takes all samples for independent. *same*
# is what sampling the same problems again would do: narrower, because a problem that is always or
# never solved adds no noise. *new* is for other problems of the same kind: much wider, because 30
# problems are few. To compare two rows of a benchmark, *same* counts; to say how good a model is at
# competition mathematics, *new*. rho is the intraclass correlation: 0 if all problems are equally
# hard, 1 if each is always or never solved.

# %%
cells = audit.intervals(math_runs, confidence)
base = cells[(cells["method"] == "base") & (cells["run"] != "file b")]
columns = ["student", "benchmark", "problems", "rho"]
columns += ["avg", "avg_same", "avg_naive", "avg_new", "passed", "passed_same", "passed_new"]
show(
    "Base models with three intervals",
    audit.readable(base, columns),
    "Percent. naive: all samples independent. same: new samples of the same problems. new: new "
    "problems as well.",
)

# %% [markdown]
# ## The same checkpoint, evaluated twice
#
# That happened to two: the base Qwen3-1.7B, and trd on Qwen3-4B (OPD). Whatever differs is noise,
# so this is the first check of the model of the noise: z should scatter like a standard normal.

# %%
again = audit.reevaluations(runs)
columns = ["student", "method", "benchmark", "metric", "first", "second", "difference", "sd", "z"]
show(
    "Evaluated twice",
    audit.readable(again, columns),
    "Percent. sd: of the difference, if only the samples changed.",
)

# %% [markdown]
# ## Values that repeat
#
# In the AIME24 column, models that were trained differently share avg@16 to the last digit. Can
# that be chance? Generously we take all runs of a student for one and the same model, and give its
# 480 samples the least noise that the published values allow. The other benchmarks are the
# control: there, values should repeat about as often as chance has it. That is the second check of
# the model of the noise.

# %%
repeats = audit.repeats(runs)
columns = ["student", "benchmark", "runs", "distinct", "largest", "pairs", "pairs_expected"]
show(
    "Runs that share avg@16 to the last digit",
    audit.readable(repeats.sort_values("chance"), [*columns, "pairs_most", "chance"]),
    "distinct: values. largest: runs that share the commonest. pairs: of runs that agree; expected "
    "by the Beta model, and at most, with the least noise that the values allow. chance: an upper "
    "bound on the probability that as many runs as `largest` agree.",
)
copied, control = repeats[repeats["repeated"]], repeats[~repeats["repeated"]]
findings.append(
    f"{len(copied)} of {len(repeats)} columns (student by benchmark) repeat avg@16 more often than "
    f"independent evaluations would, even of one model and with the least noise possible (at most "
    f"{copied['chance'].max():.0e} each): {', '.join(copied['benchmark'].unique())} of "
    f"{', '.join(copied['student'])}. In the other {len(control)}, {control['pairs'].sum()} pairs "
    f"of runs agree where chance has {control['pairs_expected'].sum():.0f}."
)

# %%
order = repeats.sort_values(["benchmark", "student"])
order.assign(column=order["benchmark"] + " " + order["student"]).plot.bar(
    x="column",
    y=["pairs", "pairs_expected"],
    color=["black", "C1"],
    figsize=(9, 3.6),
    xlabel="",
    ylabel="pairs of runs with equal avg@16",
)
plt.show()

# %% [markdown]
# What do the shared values go with? For Qwen3-8B there are two, and they go with the date in the
# name of the run, not with the method:

# %%
eight = math_runs[(math_runs["student"] == "Qwen3-8B") & (math_runs["benchmark"] == "aime24")]
eight = eight.assign(
    date=eight["run"].str.extract(r"^(\d{8})", expand=False).fillna("none"),
    run=eight["method"] + " " + eight["subset"].replace("all", ""),
    avg=(100 * eight["avg"]).map("{:.4f}".format),
    passed=(100 * eight["passed"]).map("{:.4f}".format),
)
show(
    "AIME24 of Qwen3-8B by the date of the run",
    eight.groupby(["date", "avg", "passed"], as_index=False)["run"].agg(", ".join),
    "The authors' evaluation reuses a generation file that it finds, without a check of which "
    "model wrote it. That would give this picture; the files do not prove it. Either way these "
    "cells may not be measurements of the models they name: they are left out of what follows.",
)

# %% [markdown]
# ## Is there anything to explain?
#
# Before single differences, all runs of a student on a benchmark together, the base included: do
# they scatter more than one model would that is sampled again and again? A ratio of 1 is noise.

# %%
scatter = audit.scatter(runs).merge(repeats[["student", "benchmark", "repeated"]])
scatter = scatter[~scatter["repeated"]]
freedom = scatter["runs"] - 1
chi2 = (scatter["ratio"] * freedom).groupby(scatter["metric"]).sum()
freedom = freedom.groupby(scatter["metric"]).sum()
overall = pd.DataFrame({"ratio": chi2 / freedom, "p": stats.chi2.sf(chi2, freedom)}).reset_index()
show(
    "Scatter of all runs over the scatter by noise",
    audit.readable(
        pd.concat([overall.assign(student="all", benchmark="all", runs=""), scatter]),
        ["student", "benchmark", "metric", "runs", "ratio", "p"],
    ),
    "p: for a larger ratio by noise alone. A ratio below 1 means that the noise assumed here is, "
    "if anything, too large.",
)
ratio = overall.set_index("metric")["ratio"]
findings.append(
    "The variance between the runs of a student, base included, is "
    + " and ".join(f"{ratio[m]:.2f} ({name})" for m, name in METRICS.items())
    + " times that of one model sampled again and again."
)

# %% [markdown]
# ## trd against the others
#
# Three comparisons: with the base, with the best token-level baseline (picked by its score, which
# favours it), and with the mean of the baselines. The noise is that of new samples of the same
# problems. It does not contain the spread between training runs, of which there is one each: a
# difference here is one between checkpoints, not yet one between methods.

# %%
found = audit.differences(runs, confidence)
tested = found.dropna(subset="p")
ways = {"up": tested["difference"] > 1e-9, "down": tested["difference"] < -1e-9}
sure = {f"p < {alpha:g}": tested["p"] < alpha, "Holm": tested["p_holm"] < alpha}
both = {f"{way}, {rule}": ways[way] & sure[rule] for rule in sure for way in ways}
counts = pd.DataFrame({"tested": tested["p"].notna(), **ways, **both})
counts = counts.groupby("trd minus " + tested["against"], sort=False).sum()
counts.insert(3, f"p < {alpha:g} by chance", (alpha * counts["tested"]).round(1))
show(
    "How many differences exceed the noise",
    counts.rename_axis("difference").reset_index(),
    "Math and code, avg@k and pass@k, without repeated columns.",
)
findings += [
    f"{name}: of {row['tested']} differences {row['up']} are up and {row['down']} down; "
    f"{row[f'up, p < {alpha:g}']} and {row[f'down, p < {alpha:g}']} have p < {alpha:g}, where "
    f"chance gives {row[f'p < {alpha:g} by chance']} in all; {row['up, Holm']} and "
    f"{row['down, Holm']} after Holm's adjustment."
    for name, row in counts.astype(object).iterrows()
]

# %%
columns = ["mode", "student", "benchmark", "metric", "trd", "against", "other", "value"]
show(
    f"The differences with p < {alpha:g}",
    audit.readable(
        tested[tested["p"] < alpha].sort_values("p"),
        [*columns, "difference", "interval", "p", "p_holm"],
    ),
    "Percent and points. p_holm: adjusted for all tests of the same kind.",
)
smaller = tested["metric"].map(ratio.clip(upper=1) ** 0.5) * tested["se"]
p_smaller = 2 * stats.norm.sf(abs(tested["difference"]) / smaller)
holds = named(tested[tested["p_holm"] < alpha], ["mode", "student", "benchmark"])
findings += [
    f"Were the noise only as large as the scatter above, {(p_smaller < alpha).sum()} of these "
    f"{len(tested)} tests instead of {(tested['p'] < alpha).sum()} would have p < {alpha:g}.",
    f"Left after Holm's adjustment: {holds}.",
]

# %% [markdown]
# All of them in one picture. What crosses zero cannot be told from noise.

# %%
groups = list(found[found["task"] == "math"].groupby(["mode", "student"], sort=False))
benchmarks = list(math_runs["benchmark"].unique())
styles = {
    "best": {"marker": "D", "color": "black", "label": "trd minus best baseline"},
    "mean": {"marker": "s", "color": "0.5", "label": "trd minus mean baseline"},
    "base": {"marker": "o", "color": "0.5", "mfc": "white", "label": "trd minus base"},
}
fig, axes = plt.subplots(2, len(groups), figsize=(13, 6.6), sharey=True, sharex="row")
for column, ((mode, student), group) in zip(axes.T, groups, strict=True):
    column[0].set_title(f"{mode.upper()}, {student.removeprefix('Qwen3-')}", fontsize=10)
    for axis, metric in zip(column, METRICS, strict=True):
        axis.axvline(0, color="black", lw=0.8)
        axis.grid(axis="x", alpha=0.3)
        for (against, style), shift in zip(styles.items(), (-0.24, 0, 0.24), strict=True):
            rows = group[(group["metric"] == metric) & (group["against"] == against)]
            rows = rows[~rows["repeated"]]
            at = rows["benchmark"].map(benchmarks.index) + shift
            axis.hlines(at, 100 * rows["low"], 100 * rows["high"], color=style["color"], lw=1.6)
            axis.plot(100 * rows["difference"], at, ls="", ms=5, **style)
        for benchmark in group.loc[group["repeated"], "benchmark"].unique():
            axis.text(0, benchmarks.index(benchmark), "repeated value", ha="center", va="center",
                      fontsize=8, style="italic", bbox={"fc": "white", "ec": "none"})  # fmt: skip
for axis, metric in zip(axes[:, 0], METRICS, strict=True):
    axis.set_yticks(range(len(benchmarks)), benchmarks)
    axis.set_ylabel(METRICS[metric], fontsize=11)
axes[0][0].invert_yaxis()
fig.tight_layout(rect=(0, 0.07, 1, 1))
fig.legend(*axes[0][0].get_legend_handles_labels(), loc="lower right", ncols=3, frameon=False)
fig.text(0.01, 0.02, f"points, {confidence:.0%} interval for new samples of the same problems")
plt.show()
forest = fig

# %% [markdown]
# One benchmark is small; the mean over those of a student says more.

# %%
pooled = audit.pooled(found, confidence)
columns = ["task", "mode", "student", "metric", "against", "benchmarks"]
show(
    "Mean difference over the benchmarks of a student",
    audit.readable(pooled, [*columns, "difference", "interval", "p"]),
    "Points, without repeated columns, p not adjusted. For OPD with Qwen3-4B-Instruct-2507, and "
    "for code, forward_kl is the only baseline. LiveCodeBench is not in: its size is not given.",
)
clear = pooled[(pooled["low"] > 0) | (pooled["high"] < 0)]
findings.append(
    f"Means over benchmarks whose interval is clear of zero, of {len(pooled)}, not adjusted: "
    f"{named(clear, ['task', 'mode', 'student'])}."
)

# %% [markdown]
# ## What the paper's text states
#
# Three gains, beside the raw rows: every pair of trd and base, and every other pair of trd and a
# method of the same mode that gives the stated number (`matches`). Against what the last two are
# stated, and in which metric, we do not know; +4.6 is no multiple of 1/30, so it is not pass@16.
# `p_most` makes no assumption about the difficulties: it takes the most noise that any distribution
# with these values of avg@16 and pass@16 allows.

# %%
claims = audit.claims(runs)
columns = ["mode", "student", "benchmark", "claimed", "metric", "run", "value", "other"]
columns += ["run_other", "value_other", "difference", "matches", "p", "p_most"]
show(
    "Gains that the paper's text states, and the raw files",
    audit.readable(claims[claims["matches"] | (claims["other"] == "base")], columns),
    "matches: the pair gives the stated number. p by the Beta model, p_most with the most noise "
    "that the values allow.",
)

# %% [markdown]
# ## How many problems would it take?
#
# To see a gain with the wanted power, from two evaluations of 16 samples a problem. *Paired*: both
# on the same problems, with about the same gain on each. *Separate*: each on its own problems.


# %%
def sd_of(rows, metric, kind="same"):
    """Of one problem's score in one evaluation."""
    return audit.error(rows[metric], rows[f"trials_{metric}_{kind}"] / rows["problems"])


stated = claims[["student", "benchmark", "metric", "claimed"]].drop_duplicates()
needed = stated.rename(columns={"claimed": "gain"}).merge(base, on=["student", "benchmark"])
for name, kind in (("paired", "same"), ("separate", "new")):
    rows = [row for _, row in needed.iterrows()]
    sd = pd.Series([sd_of(row, row["metric"], kind) for row in rows], index=needed.index)
    wanted = audit.problems_needed(needed["gain"], sd, power, alpha)
    needed[f"needed, {name}"] = wanted.astype(int)
    if name == "paired":
        seen = audit.detection_power(needed["gain"], sd, needed["problems"], alpha)
        needed["power, paired"] = [f"{p:.0%}" for p in seen]
columns = ["student", "benchmark", "metric", "gain", "problems", "power, paired"]
show(
    "Problems needed for the stated gains",
    audit.readable(needed, [*columns, "needed, paired", "needed, separate"]),
    f"One comparison, two-sided at {alpha:g}, with {power:.0%} power; errors as of the base model.",
)

# %%
typical = base[base["benchmark"] != "aime24"]
typical_sd = {metric: np.median(sd_of(typical, metric)) for metric in METRICS}
problems = np.geomspace(10, 3000, 200)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
for axis, (metric, sd) in zip(axes, typical_sd.items(), strict=True):
    for gain in (0.05, 0.02, 0.01):
        curve = audit.detection_power(gain, sd, problems, alpha)
        axis.plot(problems, curve, label=f"+{100 * gain:g} points")
    axis.axhline(power, color="0.7", lw=0.8)
    axis.set(title=METRICS[metric], xscale="log", xlabel="problems, 16 samples each, paired")
axes[0].set_ylabel("probability of seeing the gain")
axes[1].legend()
plt.show()
for_2_points = {m: audit.problems_needed(0.02, sd, power, alpha) for m, sd in typical_sd.items()}
findings.append(
    f"To see 2 points on the same problems with {power:.0%} power takes {for_2_points['avg']:.0f} "
    f"problems in avg@16 and {for_2_points['passed']:.0f} in pass@16; these benchmarks have 30 to "
    "100."
)

# %% [markdown]
# ## In short
#
# Written to `results/tables/audit.md` with all the tables above, `results/tables/audit.csv` (one
# row per difference), and `results/figures/audit.png`.

# %%
intro = (
    "# Audit of the authors' published result files\n\nBy `notebooks/8_audit`, from "
    "`results/published`. The files may not be the ones behind the paper's tables. Noise is that "
    "of new samples of the same problems, by a Beta model of their difficulties; the spread "
    "between training runs is not in it, since there is one each.\n\n"
)
headline = intro + "\n".join(f"- {finding}" for finding in findings)
asked = (confidence, alpha, power)
usual = asked == (0.95, 0.05, 0.8)  # other answers must not replace these
results = settings.root() / (
    "results" if usual else f"runs/audit~{store.content_hash(asked)[:8]}/results"
)
text = "\n\n".join([headline, "![trd against the others](../figures/audit.png)", *report]) + "\n"
store.write_text(results / "tables" / "audit.md", text)
store.write_text(results / "tables" / "audit.csv", found.to_csv(index=False, lineterminator="\n"))
save(results / "figures" / "audit.png", forest)
Markdown(headline)

# %%
notebooks.record(
    tests=len(tested),
    below_alpha=int((tested["p"] < alpha).sum()),
    problems_to_see_2_points=float(for_2_points["avg"]),
)
jobs.write_timing("8_audit")
