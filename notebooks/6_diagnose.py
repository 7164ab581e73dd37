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
# # 6 · Diagnose: what the teacher says after a mistake
#
# Why should a rewritten trajectory teach better? The paper's answer is *prefix failure*. Once y_o
# has taken a wrong step, the teacher wavers between going on and turning back. The prefix never
# turns back, so the teacher proposes the same correction again and again, and none of it unfolds.
# This notebook looks at that mixture before any training: the step-0 student and the teacher, on
# the very tokens and contexts that training would use (y_o under the teacher's vanilla context,
# y_r under its refine context). Bands and brackets are 95 % intervals from resampling problems.
# With `mode = "all"` each figure comes once for each mode: the attempts are the same, another
# teacher rewrites and judges them.
#
# **Colour is the trajectory** (blue y_o, red y_r), **line style the verdict on the attempt**
# (solid failed, dashed passed).

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given y*), or all
seed: int = None  # this base seed alone; None: those of the scale

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from trdlib import store, tasks
from trdlib.analysis import show
from trdlib.analysis.diagnose import counted, diagnose, transitions
from trdlib.analysis.show import interval
from trdlib.ops import notebooks
from trdlib.refine import refine
from trdlib.rollout import rollout
from trdlib.run import get_runs
from trdlib.settings import root

runs = get_runs(scale, mode, "trd", seed=seed)  # one for each mode
task = tasks.of(runs[0])
problems = task.sets()["train"]
y_o = rollout(runs[0], task, problems)
found = [diagnose(run, task, problems, y_o, refine(run, task, problems, y_o)) for run in runs]
sources = sorted(found[0].responses["source"].unique())
known = found[0].responses["start"].notna().any()  # do we know where the first mistake is?

# %% [markdown]
# What the figures share: a row or column of axes for each kind of problem, and the four groups.

# %%
# as the methods that train on them
COLOR = {"y_o": show.look("reverse_kl")["color"], "y_r": show.look("trd")["color"]}
GROUPS = {
    ("y_o", "failed"): "y_o, failed",
    ("y_o", "passed"): "y_o, passed",
    ("y_r", "failed"): "y_r of a failed y_o",
    ("y_r", "passed"): "y_r of a passed y_o",
}
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def where(table, **cell):
    """The rows of a table with these values."""
    return table[(table[list(cell)] == pd.Series(cell)).all(axis=1)]


def groups(one, *but):
    """(trajectory, verdict) of which there are responses."""
    there = one.responses.groupby(["trajectory", "verdict"]).groups
    return [group for group in GROUPS if group in there and group not in but]


def absent(one, axis, source):
    """Say which verdict no attempt has, where its curves would be."""
    verdicts = where(one.responses, source=source, trajectory="y_o")["verdict"]
    for verdict in {"failed", "passed"} - set(verdicts):
        note = f"y_o, {verdict}: none of {len(verdicts)}"
        how = {"transform": axis.transAxes, "va": "top", "ha": "right", "color": "grey"}
        axis.text(0.99, 0.99, note, fontsize=8, **how)


def look(trajectory, verdict):
    """Colour and line style, and a width that tells them apart in grey."""
    style = {"color": COLOR[trajectory], "ls": "-" if verdict == "failed" else "--"}
    return {**style, "lw": 1.9 if trajectory == "y_o" else 1.2}


def panels(columns, width=3.4, height=2.3, rows=None, **how):
    size = (width * columns, height * (rows or len(sources)) + 0.5)
    return plt.subplots(rows or len(sources), columns, figsize=size, squeeze=False, **how)


def finish(one, fig, axis):
    """One legend above all axes; the mode above the first of them."""
    height = 1 - 0.25 / fig.get_figheight()
    handles = axis.get_legend_handles_labels()
    fig.legend(*handles, loc="upper center", ncols=4, frameon=False, columnspacing=1.2)
    axis.set_title(f"{one.run.mode.upper()}, scale {one.run.scale}", loc="left", fontsize=9)
    fig.tight_layout(rect=(0, 0, 1, height))
    return fig


def curve(one, axis, along, source, quantity, which, factor=1.0, **other):
    """A curve with its band for each group."""
    for trajectory, verdict in which:
        cell = {"axis": along, "source": source, "quantity": quantity}
        line = where(one.curves, **cell, trajectory=trajectory, verdict=verdict).sort_values("x")
        label = GROUPS[trajectory, verdict]
        how = {**look(trajectory, verdict), "label": label, **other}
        axis.plot(line["x"], factor * line["value"], **how)
        band = factor * line["low"], factor * line["high"]
        axis.fill_between(line["x"], *band, color=how["color"], alpha=0.2, lw=0)
    axis.set_ylim(bottom=0)


def cumulative(one, axis, source, column, which):
    """The cumulative share of responses of each group."""
    for trajectory, verdict in which:
        cell = {"source": source, "trajectory": trajectory, "verdict": verdict}
        values = where(one.responses, **cell)[column]
        if len(values):
            axis.ecdf(values, label=GROUPS[trajectory, verdict], **look(trajectory, verdict))


def number(one, source, trajectory, verdict, quantity):
    """Value and interval of one number; NaN if there is none."""
    cell = {"source": source, "trajectory": trajectory, "verdict": verdict, "quantity": quantity}
    rows = where(one.numbers, **cell)
    return rows.iloc[0] if len(rows) else pd.Series(np.nan, ["value", "low", "high"])


def dot(axis, y, cell, color, filled=True):
    """A value with its interval."""
    axis.plot(cell[["low", "high"]], [y, y], lw=3, alpha=0.5, color=color)
    axis.plot(cell["value"], y, "o", mec=color, mfc=color if filled else "white")


# %% [markdown]
# ## From failed to passed
#
# How good are the trajectories? Counts of attempts: the row is the verdict on y_o, the column the
# verdict on its rewrite; the two that change sides with their share of all attempts and its
# interval. The paper reports 16.0 % fail to pass and 0.4 % pass to fail for its own data. The more
# often a rewrite is right, the more there is to learn from it.


# %%
for one in found:
    counts = transitions(one.responses)
    texts = counted(counts)
    fig, axes = panels(len(sources), 4.4, 2.3, rows=1)
    for axis, source in zip(axes[0], sources, strict=True):
        table = counts.loc[source]
        of = table.to_numpy().sum()
        axis.imshow(table, cmap="Greys", vmin=0, vmax=1.6 * of, aspect="auto")
        for (y, x), text in np.ndenumerate(texts.loc[source].to_numpy()):
            kind = {(0, 1): "fail_to_pass", (1, 0): "pass_to_fail"}.get((y, x))
            cell = number(one, source, "y_r", "all", kind)
            share = f"\n{interval(*cell[['value', 'low', 'high']])} %" if kind else ""
            axis.text(x, y, text + share, ha="center", va="center", fontsize=8)
        axis.set_xticks([0, 1], ["failed", "passed"])
        axis.set_yticks([0, 1], ["failed", "passed"])
        axis.set(xlabel="y_r", ylabel="y_o", title=f"{source} ({one.run.mode})")
    fig.tight_layout()
    plt.show()

# %% [markdown]
# ## Length, and what survives of the attempt
#
# Cumulative shares of these responses (of the means the last table has intervals). Left: tokens.
# Right: the share of the attempt's tokens that stand in its rewrite, in the same order; near 1 the
# rewrite is an edit, near 0 a new solution. In the paper rewrites are a ninth as long as attempts;
# the tiny solutions leave nothing to shorten.

# %%
for one in found:
    fig, axes = panels(2, height=2.1)
    for (left, right), source in zip(axes, sources, strict=True):
        cumulative(one, left, source, "n_tokens", groups(one))
        cumulative(one, right, source, "kept", [g for g in groups(one) if g[0] == "y_r"])
        left.set_ylabel(f"{source}\nshare of responses")
        absent(one, left, source)
        right.set_xlim(0, 1.02)
    axes[-1][0].set_xlabel("tokens")
    axes[-1][1].set_xlabel("share of y_o's tokens kept in y_r")
    finish(one, fig, axes[0][0])
    plt.show()

# %% [markdown]
# ## Along the response
#
# The divergences between teacher and student, and the teacher's mass on onset words (the paper's
# signature: 6 to 8 per mille on y_o, under 2 on y_r), along the relative position of the token. A
# failed attempt gets worse as it goes on, if the mistake spoils what follows. This view needs no
# knowledge of where the mistake is, so it works at every scale.


# %%
def along(one):
    fig, axes = panels(3, sharex=True)
    for (left, middle, right), source in zip(axes, sources, strict=True):
        curve(one, left, "relative", source, "forward_kl", groups(one))
        curve(one, middle, "relative", source, "reverse_kl", groups(one))
        curve(one, right, "relative", source, "onset_mass", groups(one), factor=1000)
        left.set_ylabel(f"{source}\nforward KL (nats)")
        absent(one, left, source)
        middle.set_ylabel("reverse KL (nats)")
        right.set_ylabel("onset mass (per mille)")
    for axis in axes[-1]:
        axis.set_xlabel("relative position in the response")
    return finish(one, fig, axes[0][0])


figures = [along(one) for one in found]
plt.show()

# %% [markdown]
# ## Around the first mistake
#
# In the procedural tasks we know which token is the first wrong one (x = 0). Left: the forward KL
# of attempts with a mistake, and of the rewrites of the failed ones at the same tokens; passed are
# those that took their mistake back, or were right by chance. Middle: the teacher's mass on onset
# words; the rewrite needs none. Right: the two modes of the teacher on the failed attempt, the
# token that is there against the pivot (at x = 0 the token that would have been right, later an
# onset word). Lines have a fixed form, so peaks recur once a line: they are its decisions. That the
# tiny teacher turns back at all was put into it by pretraining (`expert` of
# `trdlib/tasks/trail.py`): the figure shows what the mixture does to the signals, not that large
# models have it.


# %%
def around(one):
    shown = groups(one, ("y_r", "passed"))
    fig, axes = panels(3, sharex=True)
    for (left, middle, right), source in zip(axes, sources, strict=True):
        curve(one, left, "after", source, "forward_kl", shown)
        curve(one, middle, "after", source, "onset_mass", shown, factor=1000)
        failed = [("y_o", "failed")]
        curve(one, right, "after", source, "own_mass", failed, label="y_o's own token")
        dark = {"color": "#252525", "lw": 1.2, "marker": "o", "ms": 3}
        curve(one, right, "after", source, "pivot_mass", failed, label="pivot", **dark)
        left.set_ylabel(f"{source}\nforward KL (nats)")
        absent(one, left, source)
        middle.set_ylabel("onset mass (per mille)")
        right.set_ylabel("teacher's probability")
        for axis in (left, middle, right):
            axis.axvline(0, color="grey", lw=0.8, ls=":")
    for axis in axes[-1]:
        axis.set_xlabel("tokens after the first wrong one")
    axes[0][2].legend(frameon=False, loc="center right")
    return finish(one, fig, axes[0][0])


if known:
    figures = [around(one) for one in found]
    plt.show()

# %% [markdown]
# ## How much of the loss lies after the mistake?
#
# Shares of the forward KL before, at and after the first wrong token, over all attempts that have
# one, beside the same shares of tokens; the number in a bar is the share after it, with its
# interval. For y_r the cut is at the same token, where nothing is
# wrong any more. If the KL after the mistake is no larger than its share of tokens, the mistake
# does not raise the loss: then the question is what the loss asks for there, not how large it is.

# %%
PLACES = {"before": "#d9d9d9", "at": "#969696", "after": "#252525"}
BARS = [(name, what) for name in ("y_o", "y_r") for what in ("kl", "tokens")]
for one in found if known else []:
    fig, axes = panels(len(sources), 4, 1.6, rows=1, sharey=True)
    for axis, source in zip(axes[0], sources, strict=True):
        for y, (name, what) in enumerate(BARS):
            cells = [number(one, source, name, "all", f"{what}_{p}") for p in PLACES]
            values = [cell["value"] for cell in cells]
            left = np.cumsum([0, *values[:2]])
            axis.barh([y] * 3, values, left=left, color=PLACES.values(), ec="white")
            after = interval(*cells[2][["value", "low", "high"]], form=".0f") + " %"
            axis.text(0.98, y, after, ha="right", va="center", color="white", fontsize=8)
        axis.set_yticks(range(len(BARS)), [f"{n}, {w.replace('kl', 'KL')}" for n, w in BARS])
        axis.set(xlim=(0, 1), ylim=(len(BARS) - 0.5, -0.5), xlabel="share", title=source)
        for place, shade in PLACES.items():
            axis.bar(0, 0, color=shade, label=f"{place} the mistake")
    finish(one, fig, axes[0][0])
    plt.show()

# %% [markdown]
# ## Is it the onset, is it the wrong token?
#
# The paper says what dominates after a mistake: the onset of the correction in the forward KL, the
# wrong continuation in the reverse KL. So: which share of the forward KL is due to the onset words,
# and which share of the reverse KL to the token that is there? (A single token's part of a KL can
# be negative: where the teacher finds it less likely, in the forward KL.)

# %%
for one in found:
    fig, axes = panels(2, 3.8, 1.3, sharex="col")
    for row, source in zip(axes, sources, strict=True):
        for axis, quantity in zip(row, ("onset_share", "own_share"), strict=True):
            for y, group in enumerate(groups(one)):
                cell = number(one, source, *group, quantity)
                dot(axis, y, cell, COLOR[group[0]], filled=group[1] == "failed")
            axis.axvline(0, color="grey", lw=0.8, ls=":")
            names = [GROUPS[group] for group in groups(one)]
            axis.set_yticks(range(len(names)), names if axis is row[0] else [])
            axis.set(ylim=(len(names) - 0.5, -0.5), title=f"{source} ({one.run.mode})")
            axis.locator_params(axis="x", nbins=4)
    axes[-1][0].set_xlabel("of the forward KL: the onset words' share")
    axes[-1][1].set_xlabel("of the reverse KL: the token's own share")
    fig.tight_layout()
    plt.show()

# %% [markdown]
# ## Does the teacher like the text better than the student does?
#
# The perplexity gap of a response: the student's mean negative log-likelihood minus the teacher's,
# in nats per token. Above 0 the teacher finds the text more likely: there is something to learn
# towards it. Below 0 the text is the student's own kind of mistake, and the teacher can only talk
# it out of it. Cumulative shares of responses.

# %%
for one in found:
    fig, axes = panels(len(sources), 4, rows=1)
    for axis, source in zip(axes[0], sources, strict=True):
        cumulative(one, axis, source, "ppl_gap", groups(one))
        axis.axvline(0, color="grey", lw=0.8, ls=":")
        axis.set(title=source, xlabel="perplexity gap (nats per token)")
        absent(one, axis, source)
    axes[0][0].set_ylabel("share of responses")
    finish(one, fig, axes[0][0])
    plt.show()

# %% [markdown]
# ## Where does the first step point?
#
# The cosine between a method's summed gradient at step 0 and the gradient of plain cross-entropy on
# the reference solutions: 1 points where the solutions point. A dot is the mean of the base models,
# the bar the 95 % interval (t over base models) for new ones. "cut" is the forward KL on y_o up to
# and including its first wrong token (an oracle): if it does better than the whole of y_o, it is
# the rest of the attempt that misleads.
# Only for the procedural scales, where it takes seconds.

# %%
COSINES = {
    ("y_o", "gradient_forward_kl"): "forward KL on y_o",
    ("y_o", "gradient_reverse_kl"): "reverse KL on y_o",
    ("y_o", "gradient_forward_kl_cut"): "forward KL on y_o, cut",
    ("y_r", "gradient_forward_kl"): "forward KL on y_r (trd)",
}
for one in found if runs[0].settings.pretraining else []:
    fig, axes = panels(len(sources), 4.2, 1.4, rows=1, sharey=True)
    for axis, source in zip(axes[0], sources, strict=True):
        for y, (trajectory, quantity) in enumerate(COSINES):
            dot(axis, y, number(one, source, trajectory, "all", quantity), COLOR[trajectory])
        axis.set_yticks(range(len(COSINES)), COSINES.values())
        axis.set(title=f"{source} ({one.run.mode})", ylim=(3.5, -0.5))
        axis.set(xlabel="cosine with the reference's gradient")
        axis.set_xlim(min(0, axis.get_xlim()[0]), 1.04)
        axis.grid(axis="x", alpha=0.3)
    fig.tight_layout()
    plt.show()

# %% [markdown]
# ## All numbers
#
# As they go into the results: quantity by trajectory and verdict on the attempt.


# %%
def markdown(found):
    """The numbers as Markdown: a table per source, a column per trajectory and verdict."""
    run, numbers = found.run, found.numbers
    values = numbers[["value", "low", "high"]].itertuples(index=False)
    text = [interval(*of, scale=1, form=".3g") for of in values]
    link, groups = {"y_o": " ", "y_r": " of "}, numbers[["trajectory", "verdict"]].to_numpy()
    column = [t if v == "all" else t + link[t] + v for t, v in groups]
    parts = [
        f"# Prefix-failure signals: {run.mode.upper()}, scale {run.scale}",
        f"Step 0, {len(run.settings.seeds)} base seeds, [{run.settings.evaluation.confidence:.0%} "
        "interval from resampling problems, for these models; for gradient_*, by t over the base "
        "seeds, for new models]. What "
        "each quantity is: `summary` in trdlib/analysis/diagnose.py. Onset words, a list of ours "
        f"(the paper's is unknown): {', '.join(run.settings.onsets)}.",
        "## Attempts by the verdicts on y_o and y_r",
        counted(transitions(found.responses)).reset_index().to_markdown(index=False),
    ]
    for source, mine in numbers.assign(text=text, column=column).groupby("source", sort=True):
        grid = mine.pivot(index="quantity", columns="column", values="text")
        grid = grid.loc[mine["quantity"].unique(), mine["column"].unique()].fillna(show.DASH)
        parts += [f"## {source}", grid.rename_axis(columns=None).to_markdown()]
    return "\n\n".join(parts) + "\n"


def write(found, figure):
    """Numbers and curves as one tidy csv, the numbers as md, the figure as png."""
    place = found.run.results / "diagnosis" / found.run.scale
    csv, md, png = (place / f"{found.run.mode}.{end}" for end in ("csv", "md", "png"))
    table = pd.concat([found.numbers.assign(axis="none"), found.curves], ignore_index=True)
    order = ["axis", "source", "trajectory", "verdict", "quantity", "x"]
    order += ["value", "low", "high", "problems"]
    store.write_text(csv, table[order].to_csv(index=False, float_format="%.6g"))
    return [csv, store.write_text(md, markdown(found)), show.save(png, figure)]


written = []
for one, figure in zip(found, figures, strict=True):
    written += write(one, figure)
    display(Markdown(markdown(one)))

# %%
numbers = pd.concat([one.numbers.assign(mode=one.run.mode) for one in found])
numbers = numbers[(numbers["verdict"] == "all") & numbers["value"].notna()]
key = ["mode"] * (len(found) > 1) + ["source", "trajectory", "quantity"]
values = numbers.set_index(key)["value"]
notebooks.record(**{"/".join(name): float(value) for name, value in values.items()})
notebooks.write_timing(f"6_diagnose-{runs[0].scale}", runs[0].settings.workers)
print("\n".join(str(path.relative_to(root())) for path in written))
