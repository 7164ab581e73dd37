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
# and training included. At the scale tiny this takes about a quarter of an hour: `make map`.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml with a section `map`

# %%
import matplotlib.pyplot as plt
from IPython.display import Markdown

from trdlib import config, landscape, notebooks, parallel

run = config.run(scale, mode="opd")
table = landscape.survey(run)
written = landscape.write(run, table)

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
landscape.figure(run, table)
plt.show()

# %% [markdown]
# ## The table

# %%
Markdown(landscape.readable(run, table).to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## Oracles: what exactly is it that breaks?
#
# Two things that no method can know. `cut`: the attempt ends with its first wrong token, so no
# lesson comes after a broken prefix. `no_onsets`: the words that open a correction are left out of
# both distributions, so the teacher cannot ask for a correction over and over. If a method with an
# oracle is as good as `trd`, the oracle names the damage.

# %%
landscape.oracles(run, table)

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
parallel.write_timing(f"6_map-{run.scale}", run.settings.workers)
print("\n".join(str(path.relative_to(config.root())) for path in written))
