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
import numpy as np
from IPython.display import Markdown

from trdlib import store
from trdlib.ops import notebooks, sweep
from trdlib.settings import root

if not name:
    name, words = "example", "4_distill -p learning_rate=2e-3,8e-3 --name example"
    command = [sys.executable, "-m", "trdlib", "sweep", *words.split()]
    subprocess.run(command, cwd=root(), check=True)
done, names = sweep.read(name)
print(f"{len(done)} jobs", *done.query("error != ''")["error"], sep="\nfailed: ")
sweep.table(done).drop(columns="error")

# %% [markdown]
# ## The best point
#
# Points that differ in the seed alone are one point. The interval resamples problems and takes the
# seeds as they are. The difference to every other point (`behind`) is paired by problem, and counts
# (`separate`) only if its interval for *new models* excludes zero (base seeds vary as well, so it
# needs two of them) and its p is small after a correction for all pairs of points: the best was
# picked, so any pair could have become the comparison. Missing: other problems or seeds than the
# best, so that the two cannot be compared.

# %%
metric = metric or sweep.metrics(done)[0]
ranked = sweep.rank(done, names, metric)
differ = [n for n in names if n in ranked]
label = ranked[differ].astype(str).agg(", ".join, axis=1) if differ else ["the only point"]
best, near = ranked.iloc[0], ranked.iloc[1:].query("behind.notna() and not separate")
said = f"Best of {len(ranked)} by {metric}: {label[0]} ({', '.join(differ)}), "
said += f"{best['value']:.1%} [{best['low']:.1%}, {best['high']:.1%}]. "
said += f"It cannot be told from {len(near)} of the others."
Markdown(said)

# %%
shares = ["value", "low", "high", "behind", "behind_low", "behind_high"]
ranked.assign(**(100 * ranked[shares]).astype(float).round(1)).round(3)

# %% [markdown]
# ## The picture
#
# One number that differs: a line. Else a row for each point, from the best downwards (thirty of
# them). The bars resample problems; red is the best, grey what cannot be told from it.

# %%
value, low, high = (100 * ranked[end].to_numpy(float) for end in ("value", "low", "high"))
bars = np.array([value - low, high - value])
color = ["C3", *("0.5" if i in near.index else "C0" for i in ranked.index[1:])]
if len(differ) == 1 and all(isinstance(v, int | float) for v in ranked[differ[0]]):
    x = ranked[differ[0]].to_numpy(float)
    order = np.argsort(x)
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    axis.errorbar(x[order], value[order], bars[:, order], fmt="-", color="0.7", capsize=3)
    axis.scatter(x, value, color=color, zorder=3)
    axis.set_xscale("log" if x.min() > 0 and x.max() >= 8 * x.min() else "linear")
    axis.set_xticks(x, [f"{v:g}" for v in x], minor=False)
    axis.minorticks_off()
    axis.set(xlabel=differ[0], ylabel=f"{metric}: right (%)")
else:
    shown = range(min(30, len(ranked)))
    figure, axis = plt.subplots(figsize=(6.4, 1 + 0.28 * len(shown)))
    for i in shown:
        axis.errorbar(value[i], -i, xerr=bars[:, [i]], fmt="o", color=color[i], capsize=3)
    axis.set_yticks([-i for i in shown], [label[i] for i in shown], fontsize=8)
    axis.set(xlabel=f"{metric}: right (%)", title=", ".join(differ))
axis.grid(alpha=0.3)
figure.tight_layout()
target = root() / "runs" / "sweeps" / name / f"{metric.replace('/', '-')}.png"
store.write_whole(target, lambda path: figure.savefig(path, dpi=130, format="png"))
plt.show()

# %% [markdown]
# ## What this says, and what it does not
#
# The value of the best point is flattering: it was picked by the very problems that measure it, the
# more so the more points there are. Choose on the validation set (4_distill records it), and let
# the benchmarks (5_evaluate) judge the choice alone. Intervals know nothing of seeds that were not
# run.

# %%
notebooks.record(best=float(best["value"]), metric=metric, said=said)
notebooks.write_timing(f"9_sweep-{name}")
