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
# prompts, how random the rollout, how fresh. Two cells turn several knobs, to where the paper's
# trajectories are: y_o right in 66 %, y_r in 81 %, once by noisy rewrites of a sharp teacher, once
# by a fuzzy teacher. Each cell is a small experiment of its own, rollouts, rewrites and training
# included. At the scale tiny this takes the better part of an hour on two cores: `make map`. Code:
# `trdlib/analysis/map.py`.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml with a section `map`

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from trdlib import store
from trdlib.analysis import compare
from trdlib.analysis.map import COMPARED, oracles, readable, section, survey
from trdlib.analysis.show import look, save
from trdlib.ops import notebooks
from trdlib.run import get_run
from trdlib.settings import root

run = get_run(scale, mode="opd")
plan, temperatures = section(run), run.settings.evaluation.temperatures
whole = survey(run)
table = whole[whole["temperature"] == temperatures[0]]

# %% [markdown]
# ## The figure
#
# What TRD gains, in points, at the first temperature of evaluation. Blue: over the best token-level
# method on the student's own attempt. Dark green: over training on the teacher's own solution, with
# no attempt in sight (`off_policy`): is the attempt needed at all? Light green: over cross-entropy
# on the same rewrites (`sft_refined`): is the soft teacher needed? Bands are 95 % intervals for
# *these models* (problems resampled), whiskers for *new models* (other base models and trainings as
# well): what a whisker leaves open these few base models cannot tell. Under each value stands the
# share of rewrites (for the student's strength: of the base's answers; for the last panel: of y_o
# and of y_r) that are right. Every panel has its own axis; the grey stripe is the cell where all
# knobs rest, the same in each.

# %%
styles = {"to_best": ("best y_o method", "-"), "to_off_policy": ("off_policy", "--")}
styles["to_sft_refined"] = ("sft_refined", ":")
rest = table[table["knob"] == "rest"]
knobs = {k: v for k, v in plan.knobs.items() if len(v) > 1}
panels = {
    k: pd.concat([rest.assign(value=v[0]), table[table["knob"] == k]]) for k, v in knobs.items()
}
panels = {knob: here.sort_values("value") for knob, here in panels.items()}
if plan.points:
    panels["point"] = pd.concat([rest, table[table["knob"].isin(plan.points)]])
columns = min(4, len(panels))
rows = -(-len(panels) // columns)
size = (3.6 * columns + 0.4, 3.0 * rows + 0.6)
fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
for axis, (knob, here) in zip(axes.flat, panels.items(), strict=False):
    place = pd.RangeIndex(len(here)).to_numpy()
    (at_rest,) = place[(here["knob"] == "rest").to_numpy()]
    axis.axvspan(at_rest - 0.25, at_rest + 0.25, color="0.92", lw=0, label="all knobs rest")
    axis.axhline(0, color="black", lw=0.8)
    for gap, (like, line) in styles.items():
        ends = ("value", "low", "high", "new_low", "new_high")
        value, low, high, new_low, new_high = (
            100 * here[f"{gap}_{end}"].to_numpy() for end in ends
        )
        style, color = (
            {"ls": line, "label": " - ".join(COMPARED[gap]), **look(like)},
            look(like)["color"],
        )
        if knob == "point":  # these cells are no curve
            style["ls"] = ""
            axis.vlines(place, low, high, color=color, lw=5, alpha=0.3)
        else:
            axis.fill_between(place, low, high, color=color, alpha=0.25, lw=0)
        axis.plot(place, value, **style, ms=6, mec="black", mew=0.5)
        axis.vlines(place, new_low, new_high, color=color, lw=1)
    y_o, y_r, base = (100 * here[c] for c in ("y_o_accuracy", "y_r_accuracy", "avg_base"))
    if knob == "point":
        names = ["rest" if k == "rest" else k.replace("paper_", "") for k in here["knob"]]
        below, what = [f"{a:.0f}, {b:.0f}" for a, b in zip(y_o, y_r, strict=True)], "y_o, y_r"
    else:
        names, what = here["value"].map("{:g}".format), "y_r"
        below = y_r.map("{:.0f}".format)
        if knob == "student_strength":
            below, what = base.map("{:.0f}".format), "base"
    axis.set_xticks(place, [f"{n}\n{share}" for n, share in zip(names, below, strict=True)])
    title = "where the paper is" if knob == "point" else knob.replace("_", " ")
    axis.set_xlabel(f"{title}; below: % right, {what}")
    axis.set_xlim(-0.4, len(here) - 0.6)
    axis.grid(axis="y", alpha=0.3)
for axis in list(axes.flat)[len(panels) :]:
    axis.set_visible(False)
for row in axes:
    row[0].set_ylabel(f"points of avg@k, T = {temperatures[0]:g}")
fig.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncols=4, frameon=False)
fig.text(0.01, 0.01, "band: 95 % interval for these models; whisker: for new models", fontsize=8)
fig.tight_layout(rect=(0, 0.02, 1, 1 - 0.3 / size[1]))
plt.show()

# %% [markdown]
# ## The table
#
# At the first temperature; the others are in `results/tables/map_<scale>.md`. `*`: marked for new
# models, after Holm's correction for all cells of the column.

# %%
Markdown(readable(table).to_markdown(index=False, disable_numparse=True))

# %% [markdown]
# ## Oracles: what exactly is it that breaks?
#
# Two things that no method can know. `cut`: the attempt ends with its first wrong token, so no
# lesson comes after a broken prefix. `no_onsets`: the words that open a correction are left out of
# both distributions, so the teacher cannot ask for a correction over and over. What an oracle adds
# to its method is what the thing that it removes had cost, with both intervals, as above.

# %%
oracles(run, table)

# %% [markdown]
# ## What this says, and what it does not
#
# It says which of the causes that the paper names are at work in a task that was built to have
# them, with models small enough to turn every knob: a test of the argument, not of the paper's
# numbers. What it says of *these* base models it says of few; only what a whisker keeps clear of
# zero is about others made the same way. It does not say where a real model sits on these axes: the
# last panel has the paper's shares of right answers, not its mistakes. Real mistakes are neither
# all local nor all fatal; a real teacher's rewrite is not the one canonical solution (here it
# nearly is, so training on solutions does as well); and one learning rate serves all cells, so a
# knob that also changes how long one should train (prompts, rounds) is read with that in mind.


# %%
def page(run, table):
    """The map and its oracles as Markdown, with how they were measured."""
    how, plan = run.settings.evaluation, section(run)
    parts = [
        f"# The map: when does TRD help? (scale {run.scale}, OPD)",
        f"avg@k in percent on {plan.test_problems} problems of trail, mean of "
        f"{len(run.settings.seeds)} base models; one learning rate, {plan.learning_rate:g}. Gaps: "
        f"points, [{how.confidence:.0%} interval for these models: problems resampled] [for new "
        "models: other base models and trainings as well]. `*`: marked for new models at "
        f"{compare.MARK_LEVEL:.0%}, after Holm's correction for all cells of the column at one "
        "temperature. The best y_o method is picked by its test score, which favours it.",
    ]
    for temperature, here in table.groupby("temperature", sort=False):
        parts += [
            f"## At temperature {temperature:g}, {how.at(temperature).samples} samples a problem",
            readable(here).to_markdown(index=False, disable_numparse=True),
            f"## Oracles, at temperature {temperature:g}",
            "`cut`: y_o ends with its first wrong token. `no_onsets`: the onset words are left out "
            "of both distributions. Accuracies with the interval for these models.",
            oracles(run, here).to_markdown(index=False, disable_numparse=True),
        ]
    return "\n\n".join(parts) + "\n"


places = table.assign(value=table["value"].map("{:g}".format, na_action="ignore").fillna(""))
notebooks.record(
    **{f"to_best/{row.knob} {row.value}".strip(): row.to_best_value for row in places.itertuples()}
)
notebooks.write_timing(f"6_map-{run.scale}", run.settings.workers)
csv = whole.to_csv(index=False, lineterminator="\n", float_format="%.6g")
written = [
    store.write_text(run.results / "tables" / f"map_{run.scale}.csv", csv),
    store.write_text(run.results / "tables" / f"map_{run.scale}.md", page(run, whole)),
    save(run.results / "figures" / f"map_{run.scale}.png", fig),
]
print("\n".join(str(path.relative_to(root())) for path in written))
