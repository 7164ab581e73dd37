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
# # 9 · Sweep: many runs, and what can be told apart
#
# A sweep is one notebook, run over a grid or a random sample of its parameters and of the settings
# in params.yaml. This notebook reads one (`name`, a folder of runs/sweeps), plots it, and names the
# best point with its uncertainty. The best of many is partly the luckiest: look first whether it
# can be told from the next. Without a name it makes a small sweep at the scale smoke (two learning
# rates, under a minute), whose numbers mean nothing.

# %% tags=["parameters"]
name: str = ""  # of a sweep, a folder of runs/sweeps; empty: a small one is made
metric: str = ""  # an accuracy that its jobs recorded; empty: the first

# %%
import subprocess
import sys

import matplotlib.pyplot as plt
from IPython.display import Markdown

from trdlib import config, data, notebooks, parallel, sweep

if not name:
    name, words = "example", "4_distill -p learning_rate=2e-3,8e-3 --name example"
    subprocess.run(
        [sys.executable, "-m", "trdlib", "sweep", *words.split()], cwd=config.root(), check=True
    )
folder = config.root() / "runs" / "sweeps" / name
done = sweep.read(folder)
failed = [f"{one.name}: {one.error}" for one in done if one.error]
print(f"{len(done)} jobs, {len(failed)} failed", *failed, sep="\n")
sweep.table(done).drop(columns="error").round(4)

# %% [markdown]
# ## The best point
#
# Points that differ in the seed alone are one point. The interval resamples problems and takes the
# seeds as they are; the difference to every other point is paired by problem, and counts only if
# its interval excludes zero and a t-test over problems still sees it at 1 % after a correction for
# all pairs of points: the best was picked, so any pair could have become the comparison.

# %%
metric = metric or sweep.metrics(done)[0]
points = sweep.collect(done, metric)
ranked = sweep.rank(points)
said = sweep.verdict(points, ranked, metric)
Markdown(said)

# %% [markdown]
# ## The picture
#
# One name that differs: a line, its bars from resampling problems, the band from the lowest to the
# highest seed. Two: a heat map, ± half an interval, ≈ where the best cannot be told from the cell
# (no grid: a dot for each point). More: a line for each point through its values. Red: the best.

# %%
figure = sweep.figure(points, ranked, metric)
data.write_whole(folder / f"{metric}.png", lambda p: figure.savefig(p, dpi=130, format="png"))
plt.show()

# %% [markdown]
# ## All points
#
# `behind` is what the best is ahead, in points, with its interval; `chance` how often the point is
# the best when problems are resampled. Missing: other problems or seeds than the best, so that the
# two cannot be compared.

# %%
percent = ["value", "low", "high", "behind", "behind_low", "behind_high"]
ranked.assign(**(100 * ranked[percent]).round(1)).round(3)

# %% [markdown]
# ## What this says, and what it does not
#
# The value of the best point is flattering: it was picked by the very problems that measure it, the
# more so the more points there are. Choose on the validation set (4_distill records it), and let
# the benchmarks (5_evaluate) judge the choice alone. Intervals know nothing of seeds that were not
# run.

# %%
notebooks.record(best=ranked["value"].iloc[0], metric=metric, said=said)
parallel.write_timing(f"9_sweep-{name}")
