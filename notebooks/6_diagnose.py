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
#
# **Colour is the trajectory** (blue y_o, red y_r), **line style the verdict on the attempt**
# (solid failed, dashed passed).

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (README: Sweep)
task: str = "math"  # what is solved
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference)
seed: int = None  # this base seed alone; None: those of the scale

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from trdlib import config, diagnose, inputs, notebooks, parallel

run = config.run(scale, task, mode, seed=seed)
inputs.prepare(run)
responses = diagnose.responses(run)
tokens = diagnose.scores(run, responses)
scored = diagnose.perplexities(responses, tokens)
lines = diagnose.curves(run, responses, tokens)
numbers = diagnose.summary(run, responses, tokens)
sources = sorted(responses["source"].unique())
known = bool(responses["start"].notna().any())  # do we know where the first mistake is?

COLOR = {"y_o": "#4292c6", "y_r": "#d62728"}
STYLE = {"failed": "-", "passed": "--"}
NAME = {
    ("y_o", "failed"): "y_o, failed",
    ("y_o", "passed"): "y_o, passed",
    ("y_r", "failed"): "y_r of a failed y_o",
    ("y_r", "passed"): "y_r of a passed y_o",
}
parts = [
    key for key in NAME if len(responses.query("trajectory == @key[0] and verdict == @key[1]"))
]
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def panels(columns: int, height: float = 2.3, width: float = 3.4, **how):
    """A row of axes for each source."""
    size = (width * columns, height * len(sources) + 0.5)
    return plt.subplots(len(sources), columns, figsize=size, squeeze=False, **how)


def look(trajectory, verdict) -> dict:
    width = 1.9 if trajectory == "y_o" else 1.2  # tells them apart in grey
    style = {"color": COLOR[trajectory], "ls": STYLE[verdict], "lw": width}
    return {**style, "label": NAME[trajectory, verdict]}


def draw(axis, source, quantity, along, which, factor=1.0, **other):
    """A curve with its band for each (trajectory, verdict)."""
    for trajectory, verdict in which:
        cell = {"axis": along, "source": source, "quantity": quantity}
        cell |= {"trajectory": trajectory, "verdict": verdict}
        curve = lines[(lines[list(cell)] == pd.Series(cell)).all(axis=1)].sort_values("x")
        how = {**look(trajectory, verdict), **other}
        axis.plot(curve["x"], factor * curve["value"], **how)
        band = (factor * curve["low"], factor * curve["high"])
        axis.fill_between(curve["x"], *band, color=how["color"], alpha=0.2, lw=0)


def cumulative(axis, source, column, which):
    """The cumulative share of responses for each (trajectory, verdict)."""
    for trajectory, verdict in which:
        cell = {"source": source, "trajectory": trajectory, "verdict": verdict}
        values = scored.loc[(scored[list(cell)] == pd.Series(cell)).all(axis=1), column]
        if len(values):
            axis.ecdf(values, **look(trajectory, verdict))


def legend(fig, axis):
    """One legend above all axes."""
    handles = axis.get_legend_handles_labels()
    height = 1 - 0.25 / fig.get_figheight()
    fig.legend(*handles, loc="upper center", ncols=4, frameon=False, columnspacing=1.2)
    fig.tight_layout(rect=(0, 0, 1, height))


def number(source, trajectory, verdict, quantity) -> pd.Series:
    """Value and interval of one number; NaN if there is none."""
    cell = {"source": source, "trajectory": trajectory, "verdict": verdict, "quantity": quantity}
    found = numbers[(numbers[list(cell)] == pd.Series(cell)).all(axis=1)]
    return found.iloc[0] if len(found) else pd.Series(np.nan, ["value", "low", "high"])


# %% [markdown]
# ## From failed to passed
#
# How good are the trajectories? Counts of attempts: the row is the verdict on y_o, the column the
# verdict on its rewrite. The paper reports 16.0 % fail to pass and 0.4 % pass to fail for its own
# data. The more often a rewrite is right, the more there is to learn from it.

# %%
counts = diagnose.transitions(responses)
fig, axes = plt.subplots(1, len(sources), figsize=(3.2 * len(sources), 2.6), squeeze=False)
for axis, source in zip(axes[0], sources, strict=True):
    table = counts.loc[source]
    axis.imshow(table, cmap="Greys", vmin=0, vmax=1.6 * table.to_numpy().sum())
    for (y, x), count in np.ndenumerate(table.to_numpy()):
        share = count / table.to_numpy().sum()
        axis.text(x, y, f"{count}\n{share:.1%}", ha="center", va="center")
    axis.set_xticks([0, 1], ["failed", "passed"])
    axis.set_yticks([0, 1], ["failed", "passed"])
    axis.set(xlabel="y_r", ylabel="y_o", title=f"{source} ({mode})")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Length, and what survives of the attempt
#
# Cumulative shares of responses. Left: tokens. Right: the share of the attempt's tokens that stand
# in its rewrite, in the same order; near 1 the rewrite is an edit, near 0 a new solution. In the
# paper rewrites are a ninth as long as attempts; the tiny solutions leave nothing to shorten.

# %%
fig, axes = panels(2, height=2.1)
for (left, right), source in zip(axes, sources, strict=True):
    cumulative(left, source, "n_tokens", parts)
    cumulative(right, source, "kept", [key for key in parts if key[0] == "y_r"])
    left.set_ylabel(f"{source}\nshare of responses")
    right.set_xlim(0, 1.02)
axes[-1][0].set_xlabel("tokens")
axes[-1][1].set_xlabel("share of y_o's tokens kept in y_r")
legend(fig, axes[0][0])
plt.show()

# %% [markdown]
# ## Along the response
#
# The divergences between teacher and student, and the teacher's mass on onset words (the paper's
# signature: 6 to 8 per mille on y_o, under 2 on y_r), along the relative position of the token. A
# failed attempt gets worse as it goes on, if the mistake spoils what follows. This view needs no
# knowledge of where the mistake is, so it works at every scale.

# %%
fig, axes = panels(3, sharex=True)
for row, source in zip(axes, sources, strict=True):
    draw(row[0], source, "forward_kl", "relative", parts)
    draw(row[1], source, "reverse_kl", "relative", parts)
    draw(row[2], source, "onset_mass", "relative", parts, factor=1000)
    row[0].set_ylabel(f"{source}\nforward KL (nats)")
    row[1].set_ylabel("reverse KL (nats)")
    row[2].set_ylabel("onset mass (per mille)")
    for axis in row:
        axis.set_ylim(bottom=0)
for axis in axes[-1]:
    axis.set_xlabel("relative position in the response")
legend(fig, axes[0][0])
along = fig
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
# tiny teacher turns back at all was put into it by pretraining (`tiny.trail_expert`, `notice`): the
# figure shows what the mixture does to the signals, not that large models have it.

# %%
if known:
    shown = [key for key in parts if key != ("y_r", "passed")]
    fig, axes = panels(3, sharex=True)
    for (left, middle, right), source in zip(axes, sources, strict=True):
        draw(left, source, "forward_kl", "after", shown)
        draw(middle, source, "onset_mass", "after", shown, factor=1000)
        one = (source, "own_mass", "after", [("y_o", "failed")])
        draw(right, *one, label="y_o's own token")
        other = (source, "pivot_mass", "after", [("y_o", "failed")])
        draw(right, *other, label="pivot", color="#252525", lw=1.2, marker="o", ms=3)
        left.set_ylabel(f"{source}\nforward KL (nats)")
        middle.set_ylabel("onset mass (per mille)")
        right.set_ylabel("teacher's probability")
        for axis in (left, middle, right):
            axis.axvline(0, color="grey", lw=0.8, ls=":")
            axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("tokens after the first wrong one")
    axes[0][0].set_title(f"{mode.upper()}, scale {scale}", loc="left", fontsize=9)
    axes[0][2].legend(frameon=False, loc="center right")
    legend(fig, axes[0][0])
    along = fig
    plt.show()

# %% [markdown]
# ## How much of the loss lies after the mistake?
#
# Shares of the forward KL before, at and after the first wrong token, over all attempts that have
# one, beside the same shares of tokens. For y_r the cut is at the same token, where nothing is
# wrong any more. If the KL after the mistake is no larger than its share of tokens, the mistake
# does not raise the loss: then the question is what the loss asks for there, not how large it is.

# %%
if known:
    places, shades = ["before", "at", "after"], ["#d9d9d9", "#969696", "#252525"]
    size = (4 * len(sources), 2.1)
    fig, axes = plt.subplots(1, len(sources), figsize=size, sharey=True, squeeze=False)
    bars = [(name, what) for name in ("y_o", "y_r") for what in ("kl", "tokens")]
    for axis, source in zip(axes[0], sources, strict=True):
        for y, (name, what) in enumerate(bars):
            values = [number(source, name, "all", f"{what}_{p}")["value"] for p in places]
            axis.barh([y] * 3, values, left=np.cumsum([0, *values[:2]]), color=shades, ec="white")
            axis.text(0.98, y, f"{values[2]:.0%}", ha="right", va="center", color="white")
        axis.set_yticks(range(len(bars)), [f"{n}, {w.replace('kl', 'KL')}" for n, w in bars])
        axis.set(xlim=(0, 1), ylim=(len(bars) - 0.5, -0.5), xlabel="share", title=source)
        axis.bar(0, 0, color=shades[0], label="before the mistake")
        axis.bar(0, 0, color=shades[1], label="at it")
        axis.bar(0, 0, color=shades[2], label="after it")
    legend(fig, axes[0][0])
    plt.show()

# %% [markdown]
# ## Is it the onset, is it the wrong token?
#
# The paper says what dominates after a mistake: the onset of the correction in the forward KL, the
# wrong continuation in the reverse KL. So: which share of the forward KL is due to the onset words,
# and which share of the reverse KL to the token that is there? (A single token's part of a KL can
# be negative: where the teacher finds it less likely, in the forward KL.)

# %%
fig, axes = panels(2, height=1.3, width=3.8, sharex="col")
for row, source in zip(axes, sources, strict=True):
    for axis, quantity in zip(row, ("onset_share", "own_share"), strict=True):
        for y, key in enumerate(parts):
            cell = number(source, *key, quantity)
            how = {"color": COLOR[key[0]], "ls": STYLE[key[1]]}
            axis.plot(cell[["low", "high"]], [y, y], lw=3, alpha=0.5, color=how["color"])
            fill = how["color"] if key[1] == "failed" else "white"
            axis.plot(cell["value"], y, "o", mec=how["color"], mfc=fill)
        axis.axvline(0, color="grey", lw=0.8, ls=":")
        axis.set_yticks(range(len(parts)), [NAME[key] for key in parts] if axis is row[0] else [])
        axis.set(ylim=(len(parts) - 0.5, -0.5), title=source)
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
fig, axes = plt.subplots(1, len(sources), figsize=(4 * len(sources), 2.8), squeeze=False)
for axis, source in zip(axes[0], sources, strict=True):
    cumulative(axis, source, "ppl_gap", parts)
    axis.axvline(0, color="grey", lw=0.8, ls=":")
    axis.set(title=source, xlabel="perplexity gap (nats per token)")
axes[0][0].set_ylabel("share of responses")
legend(fig, axes[0][0])
plt.show()

# %% [markdown]
# ## Where does the first step point?
#
# The cosine between a method's summed gradient at step 0 and the gradient of plain cross-entropy on
# the reference solutions: 1 points where the solutions point. A dot is the mean of the base models,
# the bar their range. "cut" is the forward KL on y_o up to and including its first wrong token (an
# oracle): if it does better than the whole of y_o, it is the rest of the attempt that misleads.
# Only for the procedural scales, where it takes seconds.

# %%
if run.settings.pretraining:
    cosines = diagnose.reference_cosines(run, responses)
    numbers = pd.concat([numbers, cosines], ignore_index=True)
    labels = {
        ("y_o", "gradient_forward_kl"): "forward KL on y_o",
        ("y_o", "gradient_reverse_kl"): "reverse KL on y_o",
        ("y_o", "gradient_forward_kl_cut"): "forward KL on y_o, cut",
        ("y_r", "gradient_forward_kl"): "forward KL on y_r (trd)",
    }
    size = (4.2 * len(sources), 1.9)
    fig, axes = plt.subplots(1, len(sources), figsize=size, sharey=True, squeeze=False)
    for axis, source in zip(axes[0], sources, strict=True):
        for y, (trajectory, quantity) in enumerate(labels):
            cell = number(source, trajectory, "all", quantity)
            axis.plot(cell[["low", "high"]], [y, y], color=COLOR[trajectory], lw=3, alpha=0.5)
            axis.plot(cell["value"], y, "o", color=COLOR[trajectory])
        axis.set_yticks(range(len(labels)), labels.values())
        axis.set(title=source, xlabel="cosine with the reference's gradient", ylim=(3.5, -0.5))
        axis.set_xlim(min(0, axis.get_xlim()[0]), 1.04)
        axis.grid(axis="x", alpha=0.3)
    fig.tight_layout()
    plt.show()

# %% [markdown]
# ## All numbers
#
# As they go into the results: quantity by trajectory and verdict on the attempt.

# %%
written = diagnose.write(run, responses, numbers, lines, along)
Markdown(diagnose.markdown(run, responses, numbers))

# %%
key = ["source", "trajectory", "quantity"]
of_all = numbers[(numbers["verdict"] == "all") & numbers["value"].notna()].set_index(key)["value"]
notebooks.record(**{"/".join(name): float(value) for name, value in of_all.items()})
parallel.write_timing(f"6_diagnose-{run.scale}-{task}-{mode}", run.settings.workers)
print("\n".join(str(path.relative_to(config.root())) for path in written))
