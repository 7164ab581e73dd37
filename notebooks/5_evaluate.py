# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags
#     formats: ipynb,py:percent
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
# problems, because samples of one problem are a cluster. `mode = "none"` with `method` `base`,
# `base_again` (other random numbers: the noise floor) or `teacher` gives the reference rows.

# %% tags=["parameters"]
scale = "smoke"  # a scale of params.yaml
task = "math"
mode = "opd"  # opd, opsd, or none for the reference rows
method = "trd"  # a method of params.yaml; with mode none: base, base_again or teacher

# %%
import matplotlib.pyplot as plt
import pandas as pd

from trdlib import config, distill, evaluate, parallel, tiny

run = config.run(scale, task, mode, method)
tiny.prepare(run)
if mode != "none":
    distill.distill(run)
metrics = evaluate.measure(run)["benchmarks"]

# %% [markdown]
# ## The numbers
#
# Value and interval, then the base models one by one: if they disagree by more than the interval,
# the seed matters more than the test set.

# %%
pd.DataFrame(
    [
        {
            "benchmark": name,
            "metric": f"{metric}@{m['k']}",
            **{k: round(100 * v, 1) for k, v in m[f"{metric}_at_k"].items()},
            "by seed": [round(100 * v, 1) for v in m[f"{metric}_at_k_by_seed"]],
            "problems": m["n"],
            "mean tokens": round(m["mean_tokens"], 1),
            "unfinished %": round(100 * m["unfinished"], 2),
        }
        for name, m in metrics.items()
        for metric in ("avg", "pass")
    ]
).set_index(["benchmark", "metric"])

# %% [markdown]
# ## Where is the accuracy?
#
# The share of problems by how many of their k samples are right. Two hills, at 0 and at k, are a
# model that knows or does not; a hill in the middle is one that guesses.

# %%
fig, axes = plt.subplots(1, len(metrics), figsize=(2.6 * len(metrics), 2.4), sharey=True)
for axis, (name, m) in zip(axes, metrics.items(), strict=True):
    for seed, counts in zip(m["seeds"], m["correct"], strict=True):
        share = pd.Series(counts).value_counts(normalize=True).reindex(range(m["k"] + 1))
        axis.plot(share.fillna(0), drawstyle="steps-mid", color=f"C{seed}", label=f"seed {seed}")
    axis.set(xlabel=f"right of {m['k']}", title=name)
axes[0].set_ylabel("share of problems")
axes[0].legend(fontsize=7)
fig.suptitle(str(run), y=1.08)
plt.show()

# %%
parallel.write_timing(f"5_evaluate-{scale}-{task}-{mode}-{method}", run.settings.workers)
