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
# From the metrics files of one scale: for each mode the table (Markdown, CSV), the figure
# and the cost. Every cell has an interval. Differences are paired by problem and have two: *these
# models* (problems resampled) and *new models* (base models and trainings random too); a star
# needs the second. The base stands twice, and the last family of a table compares methods with
# themselves: what differs there is noise. What has not been run is shown as missing.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference), all

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from trdlib import store
from trdlib.analysis import measure, show, tables
from trdlib.ops import notebooks
from trdlib.run import get_runs
from trdlib.settings import root

runs = get_runs(scale, mode, "trd")  # one for each mode


def itself(run, found):
    """How often the rules see a difference where none is: the family of twins."""
    mine = found[(found["family"] == tables.ITSELF) & found["p"].notna()]
    ends = (("new_low", "new_high"), ("low", "high"))
    new, these = (((mine[low] > 0) | (mine[high] < 0)).sum() for low, high in ends)
    expected = (1 - run.settings.evaluation.confidence) * len(mine)
    return (
        "The same method, trained and sampled once more with other random numbers (`base_again`: "
        f"only sampled): between the methods no difference is real. Of {len(mine)} comparisons "
        f"{mine['marked'].sum()} are marked, and {new} intervals for new models exclude zero (by "
        f"chance: {expected:.1f}). Of those for these models {these} do: two trainings of one "
        "method are two models. "
    )


def family(run, name, found):
    """A family under its title; nothing if none of it was run."""
    mine = found[found["family"] == name]
    if mine.empty:
        return []
    said, shown = "", tables.side_by_side(mine).set_index("difference")
    if name in (tables.TO_TRD, tables.TO_BASE):
        said = f"Temperature {mine['temperature'].iloc[0]:g}, [interval for new models]. "
        shown = tables.by_benchmark(mine, tables.gain, "ours")
    elif name == tables.SUBSETS:
        said = "A subset has fewer rows, so fewer steps: one that does worse may only be smaller. "
    elif name == tables.ITSELF:
        said = itself(run, found)
    return [f"## {name}", said + tables.rule(mine), shown.to_markdown()]


def grids(run, table, what, rows=""):
    """The accuracies of each temperature under their title."""
    parts = []
    how = run.settings.evaluation
    for temperature, here in table.groupby("temperature", sort=False):
        k = how.at(temperature).samples if what == "avg" else how.least(temperature)
        parts += [f"## {what}@{k} at temperature {temperature:g}{rows}"]
        parts += [tables.accuracies(here, what).to_markdown()]
    return parts


def budgets(found):
    """Accuracies against the token budget, a grid for each temperature."""
    parts = []
    for temperature, here in found.groupby("temperature", sort=False) if len(found) else ():
        named = here.assign(at=here["method"] + " in " + here["budget"].map("{:,}".format))
        shown = tables.by_benchmark(
            named, lambda row: show.interval(row["value"], row["low"], row["high"]), "at"
        )
        parts += [f"## Accuracy against token budget, temperature {temperature:g}"]
        parts += ["The same samples: what is longer than the budget counts as cut, so not right."]
        parts += [shown.to_markdown()]
    return parts


def training(run, table):
    """What each method trained on, and what its samples look like: means, a Markdown table."""
    forms = {"learning_rate": "g", "at_edge": "g", "rows": ".0f", "trajectory_accuracy": ".1%"}
    forms |= {"trajectory_like_reference": ".1%", "mean_tokens": ".1f", "unfinished": ".2%"}
    primary = table[table["temperature"] == run.settings.evaluation.temperatures[0]]
    means = primary.astype(dict.fromkeys(forms, float)).groupby("method", sort=False)[[*forms]]
    shown = means.mean().astype(object).rename(columns=lambda name: name.replace("_", " "))
    shown = shown.where(shown.notna(), None)
    return shown.to_markdown(floatfmt=("", *forms.values()), missingval=show.DASH)


def markdown(run, table, found):
    """The whole page of one mode and scale, as Markdown."""
    first = table["method"].isin(tables.HEADLINE)
    lowest = table.groupby(["temperature", "benchmark"])["pass_value"].transform("min")
    others = (tables.ROUNDS, tables.TO_TRD, tables.TO_BASE, tables.SUBSETS, tables.ITSELF)
    parts = [
        f"# {run.mode.upper()}, scale {run.scale}",
        tables.how(run, table),
        *grids(run, table[first], "avg"),
        *family(run, tables.DECISIVE, found),
        *grids(run, table[~first], "avg", ", other rows"),
        *(part for name in others for part in family(run, name, found)),
        *grids(run, table[lowest < 1], "pass"),  # where not everything is at 100 %
        *budgets(tables.budgets(run)),
        "## Training, and what the samples look like",
        "The learning rate is chosen per method on the validation set (at edge: 1 if it is the "
        "lowest or highest that was tried). Rows: mean of base seeds. Trajectory: the text that "
        "the method trained on, its accuracy, and the share of it that is the reference word for "
        "word. Tokens and unfinished: means over the benchmarks.",
        training(run, table),
    ]
    return "\n\n".join(parts) + "\n"


written, found, gaps = [], {}, {}
for run in runs:
    found[run.mode], gaps[run.mode] = tables.collect(run), tables.differences(run)
    page = markdown(run, found[run.mode], gaps[run.mode])
    written += tables.write(run, found[run.mode], gaps[run.mode], page)
    display(Markdown(page))

# %% [markdown]
# ## All methods at a glance
#
# Above the accuracies, below the differences that decide, a panel for each benchmark. Thick: the
# interval for these models; thin: for new models; ticks: the base seeds. A method has one colour
# and marker in all figures (blue: on y_o; red: a teacher's distribution along y_r; green:
# controls; hollow: a variant); a difference has those of what is subtracted.


# %%
def draw(axis, y, row, of, names, thin=()):
    """A value, its intervals and base seeds; names: the columns of value, low, high and seeds."""
    first, style = row["first"], show.look(row[of])
    y += -0.16 if first else 0.2
    value, low, high, seeds = (100 * np.array(row[name]) for name in names)
    axis.plot(seeds, [y] * len(seeds), "|", color="0.5", ms=5, mew=0.7, zorder=1)
    axis.plot([100 * row[name] for name in thin], [y] * len(thin), color=style["color"], lw=1)
    axis.plot([low, high], [y, y], color=style["color"], lw=6, alpha=0.4, solid_capstyle="butt")
    axis.plot(value, y, ls="", mec=style["color"], ms=6 if first else 4, zorder=3, **style)
    return y, value, low, high


def accuracies(axis, rows):
    """avg@k of every method, one benchmark."""
    methods = list(rows["method"].unique())
    for _, row in rows.iterrows():
        y = methods.index(row["method"])
        if not row["run"]:
            axis.text(50, y, show.MISSING, va="center", ha="center", fontsize=7, color="grey")
            continue
        names = ("avg_value", "avg_low", "avg_high", "avg_by_seed")
        y, value, low, high = draw(axis, y, row, "method", names)
        n = int(row["k"] * row["n"]) * len(row["avg_by_seed"])
        if value == 100:
            axis.text(low - 3, y, f"none of {n} wrong", va="center", ha="right", fontsize=6)
        elif value == 0:
            axis.text(high + 3, y, f"none of {n} right", va="center", ha="left", fontsize=6)
    axis.set(title=rows["benchmark"].iloc[0], xlim=(-3, 103), xlabel="avg@k, %")
    axis.set_yticks(range(len(methods)), methods)
    axis.set_ylim(len(methods) - 0.4, -0.6)


def differences(axis, rows):
    """Paired differences with both intervals, one benchmark."""
    pairs = list(dict.fromkeys(zip(rows["ours"], rows["against"], strict=True)))
    for _, row in rows.iterrows():
        names = ("value", "low", "high", "by_seed")
        y = pairs.index((row["ours"], row["against"]))
        y, *_ = draw(axis, y, row, "against", names, ("new_low", "new_high"))
        if row["marked"]:
            axis.text(1, y, "*", va="center", ha="right", transform=axis.get_yaxis_transform())
    axis.axvline(0, color="grey", lw=0.8, ls=":")
    labels = [f"{ours} minus\n{other}" for ours, other in pairs]
    axis.set_yticks(range(len(pairs)), labels, fontsize=8)
    axis.set_ylim(len(pairs) - 0.4, -0.6)
    axis.set_xlabel("points")
    if not pairs:
        axis.set_xticks([])
        how = {"ha": "center", "va": "center", "fontsize": 7, "color": "grey"}
        axis.text(0.5, 0.5, "no two methods to compare", transform=axis.transAxes, **how)


def figure(run, table, gaps):
    """Accuracies and the differences that decide, every benchmark."""
    temperatures, benchmarks = run.settings.evaluation.temperatures, table["benchmark"].unique()
    gaps = gaps[gaps["family"].isin([tables.DECISIVE, tables.ROUNDS])]
    table, gaps = (t.assign(first=t["temperature"] == temperatures[0]) for t in (table, gaps))
    rows, pairs = table["method"].nunique(), len(gaps[["ours", "against"]].drop_duplicates())
    heights = [0.34 * rows + 0.6, 0.46 * max(pairs, 1) + 0.6]
    size = (2.5 * len(benchmarks) + 2, sum(heights) + 1.2)
    fig, axes = plt.subplots(
        2, len(benchmarks), figsize=size, sharex="row", sharey="row", squeeze=False,
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for (above, below), benchmark in zip(axes.T, benchmarks, strict=True):
        accuracies(above, table[table["benchmark"] == benchmark])
        differences(below, gaps[gaps["benchmark"] == benchmark])
        above.grid(axis="x", alpha=0.3)
        below.grid(axis="x", alpha=0.3)
    dot = {"marker": "o", "ls": ""}
    shown = {
        "interval, these models": {"lw": 6, "alpha": 0.4},
        "interval, new models": {"lw": 1},
        "a base seed": {"marker": "|", "ls": ""},
        **{f"temperature {t:g}": dot | {"ms": 4 if i else 6} for i, t in enumerate(temperatures)},
        "marked": {"marker": "$*$", "ls": ""},
    }
    handles = [plt.Line2D([], [], color="black", label=name, **how) for name, how in shown.items()]
    columns = min(len(handles), 1 + len(benchmarks))
    fig.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)
    fig.suptitle(f"{run.mode.upper()}, scale {run.scale}", fontsize=10)
    return fig


for run in runs:
    fig = figure(run, found[run.mode], gaps[run.mode])
    display(fig)
    written.append(show.save(tables.paths(run)["png"], fig))

# %% [markdown]
# Where the settings name token budgets: the accuracy of the same samples, had what is longer been
# cut there. A method whose line starts higher says the same in fewer tokens.

# %%
for run in runs:
    cut, primary = tables.budgets(run), run.settings.evaluation.temperatures[0]
    if cut.empty:
        continue
    how = {"index": False, "lineterminator": "\n"}
    written.append(store.write_text(tables.paths(run)["budgets_csv"], cut.to_csv(**how)))
    cut = cut[cut["temperature"] == primary]
    names = cut["benchmark"].unique()
    fig, axes = plt.subplots(
        1, len(names), figsize=(2.6 * len(names) + 1, 3), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        for method, rows in cut[cut["benchmark"] == name].groupby("method", sort=False):
            x, style = rows["budget"], show.look(method)
            axis.fill_between(
                x, 100 * rows["low"], 100 * rows["high"], color=style["color"], alpha=0.1
            )
            axis.plot(x, 100 * rows["value"], label=method, ms=4, **style)
        axis.set(title=name, xlabel="budget, tokens", xscale="log")
        axis.set_xticks(x, [f"{budget:,}" for budget in x], fontsize=7, rotation=30)
        axis.minorticks_off()
    axes[0][0].set_ylabel("avg@k, %")
    axes[0][0].legend(fontsize=7)
    fig.suptitle(f"{run.mode.upper()}, scale {run.scale}, temperature {primary:g}", fontsize=10)
    fig.tight_layout()
    display(fig)
    written.append(show.save(tables.paths(run)["budgets_png"], fig))

# %% [markdown]
# ## Cost
#
# What has to be generated, scored and trained on, all base seeds together, with one learning
# rate; the methods of one round, on all rows. TRD pays for a rewrite of every attempt; where the
# rewrites are shorter than the attempts, training is cheaper. Columns: generated (tokens sampled
# for the trajectories, y_o and y_r for trd), mean_length of the trajectory, trained (response
# tokens), student_tokens and teacher_tokens (through the models, prompts included). What is not
# noted is missing.

# %%
for run in runs:
    costs, path = measure.cost(run), tables.paths(run)["cost_csv"]
    written.append(store.write_text(path, costs.to_csv(index=False, lineterminator="\n")))
    display(Markdown(f"**{run.mode.upper()}**"))
    display(costs.set_index("method").drop(columns="run").round(1))

# %%
measured = pd.concat(found, names=["mode"]).reset_index("mode").query("run")
names = measured["method"] + "/" + measured["benchmark"]
names += "/" + measured["temperature"].map("{:g}".format)
if len(found) > 1:
    names = measured["mode"] + "/" + names
notebooks.record(**dict(zip(names, measured["avg_value"], strict=True)))
notebooks.write_timing(f"7_tables-{runs[0].scale}", runs[0].settings.workers)
print("\n".join(str(path.relative_to(root())) for path in written))
