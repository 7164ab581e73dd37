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
# From the metrics files of one scale and mode: the table (Markdown, CSV, LaTeX), the subset
# ablation, coverage and frontier, cost, and the figures. Every cell has an interval; differences
# are paired by problem and marked only by a rule that a model compared with itself almost never
# sets off; the base model stands twice, so the table shows its own noise floor. What has not been
# run is shown as missing.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (README: Sweep)
task: str = "math"  # what is solved
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference)

# %%
import matplotlib.pyplot as plt
from IPython.display import Markdown

from trdlib import config, notebooks, parallel, tables

run = config.run(scale, task, mode)
table = tables.collect(run)
written = tables.write(run, table)
Markdown(tables.markdown(run, table))

# %% [markdown]
# ## All methods at a glance
#
# A dot is the mean over base models with its interval, the small ticks are the base models. The
# grey band is the base model's interval. Colours tell the trajectory: blue are the token-level
# methods on y_o, red is trd, green are the controls.

# %%
tables.figure(run, table)
plt.show()

# %% [markdown]
# ## Coverage
#
# The share of problems not solved in k samples: a line that falls faster than the base's sharpens
# or repairs; one that ends above it has lost problems. Shares below one problem in 256 are drawn at
# the lower edge.

# %%
tables.coverage_figure(run, tables.coverage(run))
plt.show()

# %% [markdown]
# ## Cost
#
# What has to be generated, scored and trained on, all base seeds together, with one learning
# rate. TRD pays for a rewrite of every attempt; where the rewrites are shorter than the attempts,
# training is cheaper. Core-seconds and memory are from the logs of this machine's run.

# %%
costs = tables.cost(run).set_index("method")
costs.drop(columns="run").round(1)

# %%
there = table[table["run"]]
notebooks.record(
    **{f"{row.method}/{row.benchmark}": float(row.avg_value) for row in there.itertuples()}
)
parallel.write_timing(f"7_tables-{run.scale}-{task}-{mode}", run.settings.workers)
print("\n".join(str(path.relative_to(config.root())) for path in written))
