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
# of the matrix. `mode = "none"` is for the reference rows: `base`, `base_again` (other random
# numbers: the noise floor) and `teacher`.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (README: Sweep)
task: str = "math"  # what is solved
mode: str = "opd"  # opd, opsd, or none for the reference rows
method: str = "trd"  # of params.yaml, or all; with mode none: base, base_again, teacher or all
learning_rate: float = None  # None: choose from the grid of params.yaml on the validation set
seed: int = None  # this base seed alone; None: those of the scale

# %%
import matplotlib.pyplot as plt
import pandas as pd

from trdlib import config, distill, evaluate, inputs, notebooks, parallel

runs = config.runs(scale, task, mode, method, learning_rate=learning_rate, seed=seed)
inputs.prepare(runs[0])
if mode != "none":
    for run in runs:
        distill.distill(run)
metrics = evaluate.measure(runs)
benchmarks, seeds = runs[0].settings.data.benchmarks, runs[0].settings.seeds

# %% [markdown]
# ## The numbers
#
# Value and interval, then the base models one by one: if they disagree by more than the interval,
# the seed matters more than the test set.

# %%
pd.DataFrame(
    [
        {
            "method": name,
            "benchmark": benchmark,
            "metric": f"{metric}@{m['k']}",
            **{k: round(100 * v, 1) for k, v in m[f"{metric}_at_k"].items()},
            "by seed": [round(100 * v, 1) for v in m[f"{metric}_at_k_by_seed"]],
            "problems": m["n"],
            "mean tokens": round(m["mean_tokens"], 1),
            "unfinished %": round(100 * m["unfinished"], 2),
        }
        for name, found in metrics.items()
        for benchmark, m in found["benchmarks"].items()
        for metric in ("avg", "pass")
    ]
).set_index(["method", "benchmark", "metric"])

# %% [markdown]
# ## Where is the accuracy?
#
# The share of problems by how many of their k samples are right, a line per base model. Two hills,
# at 0 and at k, are a model that knows or does not; a hill in the middle is one that guesses.

# %%
size = (2.6 * len(benchmarks), 1.5 * len(metrics) + 1)
fig, axes = plt.subplots(len(metrics), len(benchmarks), figsize=size, sharey=True, squeeze=False)
for i, (row, (name, found)) in enumerate(zip(axes, metrics.items(), strict=True)):
    for axis, (benchmark, m) in zip(row, found["benchmarks"].items(), strict=True):
        for base, counts in zip(m["seeds"], m["correct"], strict=True):
            share = pd.Series(counts).value_counts(normalize=True).reindex(range(m["k"] + 1))
            axis.plot(
                share.fillna(0), drawstyle="steps-mid", color=f"C{base}", label=f"seed {base}"
            )
        axis.set(title=benchmark if i == 0 else "")
        axis.set(xlabel=f"right of {m['k']}" if i == len(axes) - 1 else "")
    row[0].set_ylabel(name)
axes[0][0].legend(fontsize=7)
fig.suptitle(f"{scale}, {mode}: share of problems")
fig.tight_layout()
plt.show()

# %%
notebooks.record(
    **{
        benchmark if len(metrics) == 1 else f"{name}/{benchmark}": notebooks.counts(
            m["correct"], m["k"], m["problems"]
        )
        for name, found in metrics.items()
        for benchmark, m in found["benchmarks"].items()
    }
)
stage = f"5_evaluate-{runs[0].scale}-{task}-{mode}-{method}"
parallel.write_timing(stage, runs[0].settings.workers)
