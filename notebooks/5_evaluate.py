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
# # 5 · Evaluate: avg@k and pass@k, with their uncertainty
#
# Each benchmark problem is solved k times by each trained base model. avg@k is the mean accuracy,
# pass@k the chance that at least one of k is right (unbiased estimator). The intervals resample
# problems, because samples of one problem are a cluster. `method = "all"` evaluates every method
# that `dvc repro` runs. Every benchmark is sampled at each temperature of the scale, the paper's
# 0.6 first: a higher one rewards sharp models more. `mode = "none"` is for the rows that are not
# trained: `base`, `base_again` (other random numbers: the noise floor) and `teacher`;
# `mode = "all"` has them too.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)
mode: str = "opd"  # opd, opsd, none for the rows that are not trained, or all
method: str = "trd"  # of params.yaml, or all; with mode none: base, base_again, teacher or all
learning_rate: float = None  # None: choose from the grid of params.yaml on the validation set
seed: int = None  # this base seed alone; None: those of the scale

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from trdlib import tasks
from trdlib.analysis.measure import measure
from trdlib.distill import distill
from trdlib.evaluate import evaluate
from trdlib.ops import notebooks
from trdlib.ops.chain import sampled
from trdlib.run import get_runs

how = {"learning_rate": learning_rate, "seed": seed}
runs = get_runs(scale, mode, method, **how) if mode != "none" else []
task = tasks.of(runs[0] if runs else get_runs(scale, "none", "base", **how)[0])
sets = task.sets()
trained = distill(runs, task, sets, sampled(runs, task, sets["train"])) if runs else []
adapters = [found.adapters for found in trained]
choices = [found.choice for found in trained]
if mode in ("none", "all"):
    untrained = get_runs(scale, "none", method if mode == "none" else "all", **how)
    runs = [*untrained, *runs]
    adapters, choices = ([None] * len(untrained) + found for found in (adapters, choices))
samples = evaluate(runs, task, sets, adapters)
metrics = measure(runs, sets, samples, choices)
asked = runs[0].settings.evaluation
temperatures = list(metrics[0]["benchmarks"])  # the primary one first
benchmarks = list(metrics[0]["benchmarks"][temperatures[0]])

# %% [markdown]
# ## The numbers
#
# Value and interval, then the base models one by one: if they disagree by more than the interval,
# the seed matters more than the test set.

# %%
pd.DataFrame(
    [
        {
            "mode": run.mode,
            "method": run.method,
            "temperature": temperature,
            "benchmark": benchmark,
            "metric": metric,
            "k": m["k"] if metric == "avg" else asked.least(float(temperature)),
            **{k: round(100 * v, 1) for k, v in m[f"{metric}_at_k"].items()},
            "by seed": [round(100 * v, 1) for v in m[f"{metric}_at_k_by_seed"]],
            "problems": m["n"],
            "mean tokens": round(m["mean_tokens"], 1),
            "unfinished %": round(100 * m["unfinished"], 2),
        }
        for run, found in zip(runs, metrics, strict=True)
        for temperature in temperatures
        for benchmark, m in found["benchmarks"][temperature].items()
        for metric in ("avg", "pass")
    ]
).set_index(["mode", "method", "temperature", "benchmark", "metric"])

# %% [markdown]
# ## Where is the accuracy?
#
# The share of problems by how many of their k samples are right, a row per base model, the methods
# apart, at the first temperature. Dark at 0 and at k is a model that knows or does not; dark in the
# middle is one that guesses.

# %%
for one in dict.fromkeys(run.mode for run in runs):
    rows = [(run, found) for run, found in zip(runs, metrics, strict=True) if run.mode == one]
    first = [found["benchmarks"][temperatures[0]][benchmarks[0]] for _, found in rows]
    ends = np.cumsum([0, *(len(m["seeds"]) for m in first)])
    size = (2.0 * len(benchmarks) + 2, 0.12 * ends[-1] + 1.5)
    fig, axes = plt.subplots(1, len(benchmarks), figsize=size, sharey=True, squeeze=False)
    for axis, benchmark in zip(axes[0], benchmarks, strict=True):
        measured = [found["benchmarks"][temperatures[0]][benchmark] for _, found in rows]
        k = round(measured[0]["k"])
        shares = [
            np.bincount(
                np.round(k * np.divide(right, m.get("of", m["k"]))).astype(int), minlength=k + 1
            )
            / m["n"]
            for m in measured
            for right in m["correct"]
        ]
        image = axis.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="Blues")
        axis.set(title=benchmark, xlabel=f"right of {k}", xticks=range(k + 1))
        axis.hlines(ends[1:-1] - 0.5, -0.5, k + 0.5, color="grey", linewidth=0.8)
    axes[0][0].set_yticks((ends[1:] + ends[:-1] - 1) / 2, [run.method for run, _ in rows])
    fig.suptitle(f"{runs[0].scale}, {one}: share of problems")
    fig.tight_layout()
    fig.colorbar(image, ax=axes)
    plt.show()

# %%
notebooks.record(
    **{
        benchmark if len(runs) == 1 else f"{run.mode}/{run.method}/{benchmark}": notebooks.counts(
            m["correct"], m.get("of", m["k"]), m["problems"]
        )
        for run, found in zip(runs, metrics, strict=True)
        for benchmark, m in found["benchmarks"][temperatures[0]].items()
    }
)
notebooks.write_timing(f"5_evaluate-{runs[0].scale}", runs[0].settings.workers)
