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
# # 6 · The map: when does TRD help?
#
# One number says whether a method won; it does not say why. Here we turn the causes one at a time,
# on the task trail (follow a hidden table; one wrong turn and the walker is lost) in OPD: how local
# mistakes are, how good the rewrite is, how sharp the teacher, how good the student, how many
# prompts, how random the rollout. Each cell is a small experiment of its own, rollouts, rewrites
# and training included. At the scale tiny this takes about a quarter of an hour: `make map`. Code:
# `trdlib/analysis/map.py`.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml with a section `map`

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from trdlib import jobs, store
from trdlib.analysis.map import COMPARED, oracles, page, readable, section, survey
from trdlib.analysis.show import color, save
from trdlib.ops import notebooks
from trdlib.run import get_run
from trdlib.settings import root

run = get_run(scale, mode="opd")
table = survey(run)

# %% [markdown]
# ## The figure
#
# Red: what TRD gains over the best token-level method on the student's own attempt. Dark green:
# over training on the teacher's own solution, with no attempt in sight (`off_policy`): is the
# attempt needed at all? Light green: over cross-entropy on the same rewrites (`sft_refined`): is
# the soft teacher needed? Bands resample problems, the small ticks are the base models. Under each
# value stands the share of rewrites (for the student's strength: of the base's answers) that are
# right. All panels share the cell where every knob rests.

# %%
knobs = {k: v for k, v in section(run).knobs.items() if len(v) > 1}
columns = min(3, len(knobs))
rows = -(-len(knobs) // columns)
size = (4.0 * columns + 0.6, 3.1 * rows + 0.5)
fig, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
styles = {"to_best": ("trd", "o-"), "to_off_policy": ("off_policy", "s--")}
styles["to_sft_refined"] = ("sft_refined", "^:")
rest = table[table["knob"] == "rest"]
for axis, (knob, values) in zip(axes.flat, knobs.items(), strict=False):
    here = pd.concat([rest.assign(value=values[0]), table[table["knob"] == knob]])
    here = here.sort_values("value")
    place = range(len(here))
    axis.axhline(0, color="black", lw=0.8)
    for gap, (like, style) in styles.items():
        value, low, high = (100 * here[f"{gap}_{end}"] for end in ("value", "low", "high"))
        look = {"color": color(like), "label": COMPARED[gap][0]}
        axis.plot(place, value, style, **look, ms=5, mec="black", mew=0.5)
        axis.fill_between(place, low, high, color=color(like), alpha=0.2, lw=0)
        for x, seeds in zip(place, here[f"{gap}_by_seed"], strict=True):
            axis.plot([x] * len(seeds), 100 * np.array(seeds), "_", color=color(like), ms=7, mew=1)
    what = "base" if knob == "student_strength" else "y_r"
    right = here["avg_base" if what == "base" else "y_r_accuracy"]
    labels = [f"{v:g}\n{100 * share:.0f}" for v, share in zip(here["value"], right, strict=True)]
    axis.set_xticks(place, labels)
    axis.set_xlabel(f"{knob.replace('_', ' ')}; below: % right, {what}")
    axis.grid(axis="y", alpha=0.3)
for axis in list(axes.flat)[len(knobs) :]:
    axis.set_visible(False)
for row in axes:
    row[0].set_ylabel("points of avg@k")
axes[0][0].legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## The table

# %%
Markdown(readable(table).to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## Oracles: what exactly is it that breaks?
#
# Two things that no method can know. `cut`: the attempt ends with its first wrong token, so no
# lesson comes after a broken prefix. `no_onsets`: the words that open a correction are left out of
# both distributions, so the teacher cannot ask for a correction over and over. If a method with an
# oracle is as good as `trd`, the oracle names the damage.

# %%
oracles(run, table)

# %% [markdown]
# ## What this says, and what it does not
#
# It says which of the causes that the paper names are at work in a task that was built to have
# them, with models small enough to turn every knob: a test of the argument, not of the paper's
# numbers. It does not say where a real model sits on these axes. Real mistakes are neither all
# local nor all fatal; a real teacher's rewrite is not the one canonical solution (here it nearly
# is, so training on solutions does as well); and one learning rate serves all cells, so a knob that
# also changes how long one should train (prompts) is read with that in mind.

# %%
places = table.assign(value=table["value"].map("{:g}".format, na_action="ignore").fillna(""))
notebooks.record(
    **{f"to_best/{row.knob} {row.value}".strip(): row.to_best_value for row in places.itertuples()}
)
jobs.write_timing(f"6_map-{run.scale}", run.settings.workers)
csv = table.to_csv(index=False, lineterminator="\n")
written = [
    store.write_text(run.results / "tables" / f"map_{run.scale}.csv", csv),
    store.write_text(run.results / "tables" / f"map_{run.scale}.md", page(run, table)),
    save(run.results / "figures" / f"map_{run.scale}.png", fig),
]
print("\n".join(str(path.relative_to(root())) for path in written))
