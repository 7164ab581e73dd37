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
# # 7 · Tables: what the pipeline found
#
# From the metrics files of one scale: for each mode the table (Markdown, CSV, LaTeX), the subset
# ablation, coverage and frontier, cost, and the figures. Every cell has an interval; differences
# are paired by problem and marked only by a rule that a model compared with itself almost never
# sets off; the base model stands twice, so the table shows its own noise floor. What has not been
# run is shown as missing.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference), all

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from trdlib import distill, jobs, rollout, store, tasks
from trdlib.analysis import show, tables
from trdlib.ops import notebooks
from trdlib.run import get_runs
from trdlib.settings import root

runs = get_runs(scale, mode, "trd")  # one for each mode
written, found, curves = [], {}, {}
for run in runs:
    found[run.mode], curves[run.mode] = tables.collect(run), tables.coverage(run)
    written += tables.write(run, found[run.mode], curves[run.mode])
    display(Markdown(tables.paths(run)["md"].read_text(encoding="utf-8")))

# %% [markdown]
# ## All methods at a glance
#
# A dot is the mean over base models with its interval, the small ticks are the base models. The
# grey band is the base model's interval. Colours tell the trajectory: blue are the token-level
# methods on y_o, red is trd, green are the controls.


# %%
def glance(run, table):
    """avg@k of every method, a panel for each benchmark."""
    methods, benchmarks = list(table["method"].unique()), list(table["benchmark"].unique())
    size = (2.5 * len(benchmarks) + 1.2, 0.34 * len(methods) + 1.3)
    fig, axes = plt.subplots(1, len(benchmarks), figsize=size, sharey=True, squeeze=False)
    for axis, benchmark in zip(axes[0], benchmarks, strict=True):
        rows = table[table["benchmark"] == benchmark].set_index("method")
        for y, (method, row) in enumerate(rows.iterrows()):
            if not row["run"]:
                axis.text(50, y, show.MISSING, va="center", ha="center", fontsize=7, color="grey")
                continue
            color, marker = show.color(method), "D" if method == "trd" else "o"
            value, low, high = (100 * row[f"avg_{end}"] for end in ("value", "low", "high"))
            seeds = 100 * np.array(row["avg_by_seed"])
            axis.plot([low, high], [y, y], color=color, lw=3, alpha=0.45, solid_capstyle="butt")
            axis.plot(value, y, marker, color=color, ms=6, mec="black", mew=0.5)
            axis.plot(seeds, [y] * len(seeds), "|", color="black", ms=6, mew=0.8)
            if method == "base":
                axis.axvspan(low, high, color="grey", alpha=0.15)
        axis.set(title=benchmark, xlim=(0, 100))
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(methods)), methods)
    axes[0][0].invert_yaxis()
    k = run.settings.evaluation.sampling.samples
    fig.supxlabel(f"avg@{k} (%), {run.mode.upper()}, scale {run.scale}", fontsize=10)
    fig.tight_layout()
    return fig


for run in runs:
    fig = glance(run, found[run.mode].query("subset == 'all'"))
    display(fig)
    written.append(show.save(tables.paths(run)["png"], fig))

# %% [markdown]
# ## Coverage
#
# The share of problems not solved in k samples: a line that falls faster than the base's sharpens
# or repairs; one that ends above it has lost problems. Shares below half a problem of the largest
# benchmark are drawn at the lower edge.


# %%
def coverage(run, curves):
    """1 - pass@k against k with bands, on a log scale."""
    task, k = tasks.of(run), run.settings.evaluation.sampling.samples
    size = (2.5 * len(task.benchmarks) + 2.2, 3.2)
    fig, axes = plt.subplots(1, len(task.benchmarks), figsize=size, sharey=True, squeeze=False)
    floor = 0.5 / max(task.sizes()[benchmark] for benchmark in task.benchmarks)
    marks = {name: "os^vDPX*<>hp"[i % 12] for i, name in enumerate(tables.row_names(run))}
    for axis, benchmark in zip(axes[0], task.benchmarks, strict=True):
        for method, rows in curves[curves["benchmark"] == benchmark].groupby("method", sort=False):
            if method == "base_again":
                continue
            color = show.color(method)
            missed, *ends = (np.maximum(1 - rows[c], floor) for c in ("value", "high", "low"))
            axis.fill_between(rows["k"], *ends, color=color, alpha=0.15, lw=0)
            axis.plot(
                rows["k"], missed, color=color, lw=1.5, label=method, marker=marks[method], ms=4,
                markevery=[0, 1, 3, 7, -1] if len(rows) > 8 else 1, mec="black", mew=0.4,
                zorder=4 if method == "trd" else 3,
            )  # fmt: skip
        axis.set(title=benchmark, xlabel="k", xscale="log", yscale="log")
        ticks = [tick for tick in (1, 2, 4, 8, 16) if tick <= k]
        axis.set_xticks(ticks, ticks, minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    low, high = axes[0][0].get_ylim()
    if high < 10 * low:  # within a decade a log axis shows hardly a number
        axes[0][0].yaxis.set_major_locator(plt.MaxNLocator(5))
        axes[0][0].yaxis.set_major_formatter("{x:g}")
    axes[0][0].set_ylabel("1 - pass@k (below: better)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.tight_layout(rect=(0, 0, 1 - 1.7 / size[0], 1))
    fig.legend(handles, labels, loc="center right", fontsize=8)
    return fig


for run in runs:
    fig = coverage(run, curves[run.mode])
    display(fig)
    written.append(show.save(tables.paths(run)["coverage_png"], fig))

# %% [markdown]
# ## Cost
#
# What has to be generated, scored and trained on, all base seeds together, with one learning
# rate. TRD pays for a rewrite of every attempt; where the rewrites are shorter than the attempts,
# training is cheaper. Columns: generated (tokens sampled for the trajectories, y_o and y_r for
# trd), mean_length of the trajectory, trained (response tokens), student_tokens and teacher_tokens
# (through the models, prompts included), core-seconds of model compute, and MiB of one process.
# Tokens are counted from files; seconds and memory are from the logs of the run that made them.
# What is not noted is missing.


# %%
def noted(logs, key):
    """What each log says of it; NaN where there is no log."""
    return [store.read_json(log)[key] if log.is_file() else np.nan for log in logs]


def cost(run):
    """A row for each method."""
    needs = {"y_o": ["y_o"], "y_r": ["y_o", "y_r"], "y_t": ["y_t"], "y_star": []}
    files = {"y_o": run.attempts, "y_r": run.rewrites("y_r"), "y_t": run.rewrites("y_t")}
    made = {name: store.load(path) for name, path in files.items()}
    lengths = {name: [np.nan] if t is None else t["n_tokens"] for name, t in made.items()}
    rows = []
    for one in (run.with_(method=name) for name in run.methods):
        texts, was_run = needs[one.recipe.trajectory], one.choice.is_file()
        rate = store.read_json(one.choice)["chosen"] if was_run else np.nan  # of it there is no log
        sampling = [rollout.cost_file(files[text]) for text in texts]
        training = [distill.cost_file(one, seed, rate) for seed in run.settings.seeds]
        rows.append(
            {
                "method": one.method,
                "run": was_run,
                "generated": sum(np.sum(lengths[text]) for text in texts),
                "mean_length": np.mean(lengths[texts[-1]]) if texts else np.nan,
                "trained": sum(noted(training, "response_tokens")),
                "student_tokens": sum(noted(training, "student_tokens")),
                "teacher_tokens": sum(noted(training, "teacher_tokens")),
                "generation_seconds": sum(noted(sampling, "core_seconds")),
                "training_seconds": sum(noted(training, "core_seconds")),
                "peak_mib": max(noted(training, "peak_mib")),
            }
        )
    return pd.DataFrame(rows)


for run in runs:
    costs, path = cost(run), tables.paths(run)["cost_csv"]
    written.append(store.write_text(path, costs.to_csv(index=False, lineterminator="\n")))
    display(Markdown(f"**{run.mode.upper()}**"))
    display(costs.set_index("method").drop(columns="run").round(1))

# %%
measured = pd.concat(found, names=["mode"]).reset_index("mode").query("run")
names = measured["method"] + "/" + measured["benchmark"]
if len(found) > 1:
    names = measured["mode"] + "/" + names
notebooks.record(**dict(zip(names, measured["avg_value"], strict=True)))
jobs.write_timing(f"7_tables-{runs[0].scale}", runs[0].settings.workers)
print("\n".join(str(path.relative_to(root())) for path in written))
