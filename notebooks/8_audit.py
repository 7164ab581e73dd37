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
# which avg@16 and pass@16 pin down (`trdlib/analysis/audit.py`). It is checked three times below,
# and where much hangs on it, an answer without it stands beside.
#
# **One rule.** All tests of TRD against something else, of every benchmark, metric and student and
# of their means, are one family. A difference is marked if it passes Holm's correction for that
# whole family at the level of all tables of this repository (`compare.MARK_LEVEL`).

# %% tags=["parameters"]
confidence: float = 0.95  # of every interval
power: float = 0.8  # wanted probability of seeing a difference that is there

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from trdlib import settings, store
from trdlib.analysis import audit
from trdlib.analysis.compare import MARK_LEVEL
from trdlib.analysis.show import DASH, interval, save
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


FORMATS = {  # (times, format) -> the columns of tables that are shown so
    (100, ".1f"): ("avg", "passed", "trd", "value", "value_other", "first", "second", "sd", "base",
                   "opsd"),
    (100, "+.1f"): ("difference", "claimed", "gain"),
    (1, ".2f"): ("rho", "ratio", "independent", "most", "least", "pairs_expected"),
    (1, ".2g"): ("p", "p_holm", "p_most", "p_more", "p_less"),
    (1, ".1g"): ("chance",),
    (1, "+.1f"): ("z",),
}  # fmt: skip


def readable(table, columns):
    """Columns of a table as text: percent, points with a sign, p, intervals (of a difference
    "interval", from low and high; else "x", from x_low and x_high)."""

    def text(name):
        signed = name == "interval"
        if signed or f"{name}_low" in table:
            ends = table[["low", "high"] if signed else [f"{name}_low", f"{name}_high"]].to_numpy()
            return [interval(None, *pair, signed=signed, ends=True) for pair in ends]
        if name == "metric":
            return [{"avg": "avg@k", "passed": "pass@k"}[metric] for metric in table[name]]
        scale, form = next((how for how, names in FORMATS.items() if name in names), (1, ""))
        return [f"{scale * x:{form}}" if form and pd.notna(x) else x for x in table[name]]

    shown = pd.DataFrame({name: text(name) for name in columns}).astype(object)
    return shown.where(shown.notna(), DASH)


def named(rows, columns):
    """What was compared, the difference and its interval, for each row."""
    rows = rows.assign(against="trd minus " + rows["against"] + ":")
    text = readable(rows, [*columns, "metric", "against", "difference", "interval"])
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
    readable(base, columns),
    "Percent. naive: all samples independent. same: new samples of the same problems. new: new "
    "problems as well.",
)

# %% [markdown]
# ## The same checkpoint, evaluated twice
#
# That happened to two: the base Qwen3-1.7B, and trd on Qwen3-4B (OPD). Whatever differs is noise,
# so this is the first check of the model of the noise: z should scatter like a standard normal.

# %%
columns = ["student", "method", "benchmark", "metric", "first", "second", "difference", "sd", "z"]
show(
    "Evaluated twice",
    readable(audit.reevaluations(runs), columns),
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
alike = audit.repeats(runs)
columns = ["student", "benchmark", "runs", "distinct", "largest", "pairs", "pairs_expected"]
show(
    "Runs that share avg@16 to the last digit",
    readable(alike.sort_values("chance"), [*columns, "chance"]),
    "distinct: values. largest: runs that share the commonest. pairs: of runs that agree, and "
    "expected by the Beta model. chance: an upper bound on the probability that as many runs as "
    "`largest` agree, with the least noise that the values allow.",
)
copied, control = alike[alike["repeated"]], alike[~alike["repeated"]]
findings.append(
    f"{len(copied)} of {len(alike)} columns (student by benchmark) repeat avg@16 more often than "
    f"independent evaluations would, even of one model and with the least noise possible (at most "
    f"{copied['chance'].max():.0e} each): {', '.join(copied['benchmark'].unique())} of "
    f"{', '.join(copied['student'])}. In the other {len(control)}, {control['pairs'].sum()} pairs "
    f"of runs agree where chance has {control['pairs_expected'].sum():.0f}."
)

# %%
order = alike.sort_values(["benchmark", "student"])
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
# ## Is there anything to explain, or too little?
#
# Before single differences, all runs of a student on a benchmark together, the base included: do
# they scatter more than one model would that is sampled again and again? A ratio of 1 is noise. And
# do they scatter *less* than sampling can? Copied or shared generations would do that in part where
# whole columns do not repeat. Beside the ratio by the Beta model stand three without it: by the
# binomial of independent samples, and by the most and the least noise that the values allow.

# %%
spread = audit.scatter(runs)
columns = ["student", "benchmark", "metric", "runs", "ratio", "p_more", "p_less"]
show(
    "Scatter of all runs over the scatter by noise",
    readable(spread, [*columns, "independent", "most", "least"]),
    "Variance between runs over that by noise; ratio: of the Beta model. p_more, p_less: for a "
    "larger and a smaller ratio by that noise alone. independent: over the noise of independent "
    "samples. most, least: over the most and the least noise that avg@16 and pass@16 allow "
    "(a dash: next to none).",
)
whole = spread[spread["student"] == "all"].set_index("metric")
ratio, less = whole["ratio"], whole["p_less"]
findings += [
    "The variance between the runs of a student, base included, is "
    + " and ".join(f"{ratio[m]:.2f} ({name})" for m, name in METRICS.items())
    + " times that of one model sampled again and again: no spread between methods is to be seen.",
    "It is even small: as small or smaller by chance with p "
    + " and ".join(f"{less[m]:.2g} ({name})" for m, name in METRICS.items())
    + f", and {whole['independent']['avg']:.2f} times the binomial's in avg@16. Two causes fit: "
    "generations shared between runs, as in the columns that repeat; or difficulties that lie "
    "further apart than Beta has them (with the least noise that the values allow the ratio is "
    f"{whole['least']['avg']:.1f}). Counts by problem would tell; they are not published.",
]

# %% [markdown]
# ## trd against the others
#
# Three comparisons: with the base, with the best token-level baseline (picked by its score, which
# favours it), and with the mean of the baselines, where there are several; on each benchmark, and
# on the mean of a student's benchmarks, because one benchmark is small. The noise is that of new
# samples of the same problems. It does not contain the spread between training runs, of which there
# is one each: a difference here is one between checkpoints, not yet one between methods.

# %%
found = audit.differences(runs, confidence)
tested = found.dropna(subset="p")
marked, below = tested["p_holm"] < MARK_LEVEL, f"p < {MARK_LEVEL:g}"
counts = pd.DataFrame({
    "tests": tested["p"].notna(),
    "up": tested["difference"] > 1e-9,
    "down": tested["difference"] < -1e-9,
    below: tested["p"] < MARK_LEVEL,
    "marked": marked,
})  # fmt: skip
of_means = (tested["benchmark"] == "mean").map({True: " (means)", False: ""})
counts = counts.groupby("trd minus " + tested["against"] + of_means, sort=False).sum()
counts.loc["all, one family"] = counts.sum()
counts.insert(4, "by chance", (MARK_LEVEL * counts["tests"]).round(1))
show(
    "How many differences exceed the noise",
    counts.rename_axis("difference").reset_index(),
    f"Math and code, avg@k and pass@k, without repeated columns. marked: p < {MARK_LEVEL:g} after "
    f"Holm's correction for all {len(tested)} tests.",
)
row = counts.astype(object).loc["all, one family"]
findings.append(
    f"trd minus base, best and mean token-level run, benchmarks and their means: of {row['tests']} "
    f"differences {row['up']} are up and {row['down']} down; {row[below]} have {below}, where "
    f"chance gives {row['by chance']:g}; {row['marked']} are marked."
)
first = tested.sort_values("p").head(1)
which = "Marked" if marked.any() else f"None is marked at {MARK_LEVEL:.0%}; the smallest p has"
findings.append(
    f"All {len(tested)} tests are one family. {which}: "
    f"{named(tested[marked] if marked.any() else first, ['mode', 'student', 'benchmark'])}, p "
    f"{first['p'].item():.2g}, {first['p_holm'].item():.2g} after Holm's correction (the interval, "
    f"of {confidence:.0%}, is not corrected)."
)

# %%
columns = ["mode", "student", "benchmark", "metric", "trd", "against", "other", "value"]
show(
    "The ten differences with the smallest p",
    readable(tested.sort_values("p").head(10), [*columns, "difference", "interval", "p", "p_holm"]),
    "Percent and points. p_holm: corrected for the family; intervals are not.",
)

# %% [markdown]
# All of them in one picture. What crosses zero cannot be told from noise.

# %%
groups = list(found[found["task"] == "math"].groupby(["mode", "student"], sort=False))
benchmarks = [*math_runs["benchmark"].unique(), "mean"]
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
            at = np.array([benchmarks.index(name) for name in rows["benchmark"]]) + shift
            axis.hlines(at, 100 * rows["low"], 100 * rows["high"], color=style["color"], lw=1.6)
            axis.plot(100 * rows["difference"], at, ls="", ms=5, **style)
        for benchmark in group.loc[group["repeated"], "benchmark"].unique():
            axis.text(0, benchmarks.index(benchmark), "repeated value", ha="center", va="center",
                      fontsize=8, style="italic", bbox={"fc": "white", "ec": "none"})  # fmt: skip
for axis, metric in zip(axes[:, 0], METRICS, strict=True):
    axis.set_yticks(range(len(benchmarks)), [*benchmarks[:-1], "mean of these"])
    axis.set_ylabel(METRICS[metric], fontsize=11)
axes[0][0].invert_yaxis()
fig.tight_layout(rect=(0, 0.07, 1, 1))
fig.legend(*axes[0][0].get_legend_handles_labels(), loc="lower right", ncols=3, frameon=False)
fig.text(0.01, 0.02, f"points, {confidence:.0%} interval for new samples of the same problems")
plt.show()
forest = fig

# %%
means = found[found["benchmark"] == "mean"]
columns = ["task", "mode", "student", "metric", "against", "benchmarks"]
show(
    "Mean difference over the benchmarks of a student",
    readable(means, [*columns, "difference", "interval", "p", "p_holm"]),
    "Points, without repeated columns. Where forward_kl is the only baseline it is the best one. "
    "LiveCodeBench is not in: its size is not given.",
)

# %% [markdown]
# ## Beside another group's OPSD
#
# An independent run of the token-level baseline, OPSD (`JLiangHe/OPSD_exp`: avg@12, temperature 1,
# thinking on, LoRA 64, 200 steps, best checkpoints; no trd, no intervals, no pass@k). The interval
# here takes the most noise that any difficulties allow. It is context, and no part of the family.

# %%
other = pd.read_csv(settings.root() / "results" / "published" / "opsd_independent.csv")
variances = [
    audit.error(other[c], other["problems"] * other["samples"]) ** 2 for c in ("base", "opsd")
]
other = other.assign(difference=other["opsd"] - other["base"], se=np.sqrt(sum(variances)))
other = audit.with_test(other, confidence)
columns = ["student", "benchmark", "problems", "samples", "base", "opsd"]
show(
    "An independent run of OPSD, avg@12",
    readable(other, [*columns, "difference", "interval", "p"]),
    "Percent and points, interval for new samples of the same problems. Not in the family above.",
)
by_student = other.groupby("student", sort=False, as_index=False).agg(
    difference=("difference", "mean"), se=("se", lambda se: np.hypot.reduce(se) / len(se))
)
by_student = audit.with_test(by_student, confidence)
text = readable(by_student, ["student", "difference", "interval"]).agg(" ".join, axis=1)
findings.append(
    "An independent run of OPSD without rewrites (context, not in the family), opsd minus base, "
    f"mean of three benchmarks: {'; '.join(text)}. Whether the baseline itself helps is open."
)

# %% [markdown]
# ## What no number here can show
#
# Three things that the authors' code lets happen, and that these files would not tell
# ([deviations](../docs/deviations.md)). **Missing references**: rows without a reference solution
# were not filtered; most rows of the plain DeepScaleR set have none. If that set was used, most
# OPSD teachers saw an empty reference, and the OPSD rows are closer to OPD with the student as its
# own teacher. **Loss weighting**: a mean over micro-steps of token means gives a token of a short
# row more weight, and rewrites are much shorter than attempts. **Leaks**: how many rewrites speak
# of "the reference" or "the initial solution", which the student never sees.

# %%
report.append(
    "## What no number here can show\n\nRows without a reference solution were not filtered: if "
    "the plain DeepScaleR set was used, most OPSD teachers saw an empty reference. The loss was a "
    "mean of micro-step means, not of tokens. Whether rewrites speak of the reference is not "
    "reported. Each would change what the OPSD rows are an experiment on: `docs/deviations.md`."
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
claims = audit.claimed(runs)
columns = ["mode", "student", "benchmark", "claimed", "metric", "run", "value", "other"]
columns += ["run_other", "value_other", "difference", "matches", "p", "p_most"]
show(
    "Gains that the paper's text states, and the raw files",
    readable(claims[claims["matches"] | (claims["other"] == "base")], columns),
    "matches: the pair gives the stated number. p by the Beta model, p_most with the most noise "
    "that the values allow.",
)

# %% [markdown]
# ## How many problems would it take?
#
# To see a gain with the wanted power, from two evaluations of 16 samples a problem. *Paired*: both
# on the same problems, with about the same gain on each. *Separate*: each on its own problems.

# %%
stated = claims[["student", "benchmark", "metric", "claimed"]].drop_duplicates()
needed = stated.rename(columns={"claimed": "gain"}).merge(base, on=["student", "benchmark"])
for name, kind in (("paired", "same"), ("separate", "new")):
    rows = [row for _, row in needed.iterrows()]
    sd = pd.Series([audit.sd_of(row, row["metric"], kind) for row in rows], index=needed.index)
    wanted = audit.problems_needed(needed["gain"], sd, power)
    needed[f"needed, {name}"] = wanted.astype(int)
columns = ["student", "benchmark", "metric", "gain", "problems"]
show(
    "Problems needed for the stated gains",
    readable(needed, [*columns, "needed, paired", "needed, separate"]),
    f"One comparison, two-sided at {MARK_LEVEL:g}, {power:.0%} power; errors as of the base model.",
)

# %%
typical = base[base["benchmark"] != "aime24"]
typical_sd = {metric: np.median(audit.sd_of(typical, metric)) for metric in METRICS}
for_2_points = {m: audit.problems_needed(0.02, sd, power) for m, sd in typical_sd.items()}
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
asked = (confidence, power)
usual = asked == (0.95, 0.8)  # other answers must not replace these
results = settings.root() / (
    "results" if usual else f"runs/audit~{store.content_hash(asked)[:8]}/results"
)
text = "\n\n".join([headline, "![trd against the others](../figures/audit.png)", *report]) + "\n"
store.write_text(results / "tables" / "audit.md", text)
csv = found.to_csv(index=False, lineterminator="\n", float_format="%.6g")
store.write_text(results / "tables" / "audit.csv", csv)
save(results / "figures" / "audit.png", forest)
Markdown(headline)

# %%
notebooks.record(
    tests=len(tested), marked=int(marked.sum()), problems_to_see_2_points=float(for_2_points["avg"])
)
notebooks.write_timing("8_audit")
