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
# # 3 · Refine: the teacher rewrites the attempt, y_r
#
# This is the step that TRD adds: before anything is distilled, the teacher rewrites each attempt,
# right or wrong. In mode `opd` the teacher is another model and sees the problem and the attempt;
# in mode `opsd` it is the student's own step-0 self, and sees the reference solution as well. As a
# control, where a method needs it, the teacher also writes solutions of its own, without an attempt
# (y_t).
#
# **The accuracy of y_r decides everything that follows.** A teacher that rewrites badly turns the
# result around, so look at it before you believe any table.
#
# A **chain**, `Compute:5o-1p+6`, says: start at 5, o = 5 - 1, p = o + 6, all modulo 7; its solution
# is `o-1=4`, `p+6=3`, `\boxed{3}`. A **trail**, `Route#ANUd`, is a walk from 0: a hidden table
# gives each letter a turn (`<` adds 1, `^` 2, `>` 4, `/` 7, modulo 10), and `A/7` is a letter, its
# turn and the sum so far.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference), all
seed: int = None  # this base seed alone; None: those of the scale

# %%
import difflib

import matplotlib.pyplot as plt
import pandas as pd

from trdlib import tasks
from trdlib.ops import notebooks
from trdlib.refine import refine, rows_of, solve
from trdlib.rollout import rollout
from trdlib.run import get_runs

runs = get_runs(scale, mode, "trd", seed=seed)  # one for each mode
task = tasks.of(runs[0])
problems = task.sets()["train"]
y_o = rollout(runs[0], task, problems)
tables = {}
for run in runs:
    tables[run.mode] = {"y_o": y_o, "y_r": refine(run, task, problems, y_o)}
    if any(run.settings.methods[name].trajectory == "y_t" for name in run.methods):
        tables[run.mode]["y_t"] = solve(run, task, problems)
    for table in tables[run.mode].values():
        table["source"] = [row["source"] for row in rows_of(problems, table)]

# %% [markdown]
# ## From failed to passed, and the other way
#
# Rows: was the attempt right? Columns: is the rewrite? Shares of all attempts, all base models.

# %%
both = pd.concat([found["y_r"].assign(mode=name) for name, found in tables.items()])
transitions = pd.crosstab(
    [
        both["mode"],
        both["source"],
        both["y_o_correct"].map({True: "y_o passed", False: "y_o failed"}),
    ],
    both["correct"].map({True: "y_r passed", False: "y_r failed"}),
)
(transitions / len(y_o)).round(3)

# %%
fig, axes = plt.subplots(len(tables), 2, figsize=(10, 3.2 * len(tables)), squeeze=False)
for (left, right), (name, found) in zip(axes, tables.items(), strict=True):
    bars = pd.DataFrame(
        {what: table.groupby("source")["correct"].mean() for what, table in found.items()}
    )
    colors = {"y_o": "C7", "y_r": "C3", "y_t": "C9"}
    bars.plot.bar(ax=left, rot=0, ylim=(0, 1.3), color=colors, width=0.7)
    left.set(
        xlabel="", ylabel="share that is right", title=f"accuracy of the trajectories ({name})"
    )
    left.set_yticks([0, 0.25, 0.5, 0.75, 1])
    left.legend(loc="upper center", fontsize=8, ncols=3, frameon=False)
    for what, color, kind in (("y_o", "C7", "stepfilled"), ("y_r", "C3", "step")):
        lengths, bins = found[what]["n_tokens"], range(0, int(y_o["n_tokens"].max()) + 4, 2)
        right.hist(lengths, bins=bins, histtype=kind, lw=1.5, color=color, label=what)
    right.set(xlabel="tokens", ylabel="responses", title=f"length ({name})")
    right.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# ## One sample on its way: x → y_o → y_r
#
# What the teacher was given, and what it made of it. `-` lines are the student's, `+` the
# teacher's; the rest survived.

# %%
attempts = y_o.set_index(["id", "seed", "sample"])["text"]
failed = both[~both["y_o_correct"]].groupby(["mode", "source"]).head(1)
for rewrite, row in zip(failed.itertuples(), rows_of(problems, failed), strict=True):
    answer = row["answer"][:80]
    print(
        f"--- {rewrite.mode}: {row['problem']}   answer {answer}, y_r is right: {rewrite.correct}"
    )
    attempt = attempts[rewrite.id, rewrite.seed, rewrite.sample]
    lines = (attempt.splitlines(), rewrite.text.splitlines())
    print("\n".join(line for line in difflib.ndiff(*lines) if not line.startswith("?")), "\n")

# %% [markdown]
# A refine prompt that does not fit is cut inside the attempt, then inside the reference, with a
# notice that the model sees. How many were:

# %%
for name, found in tables.items():
    cut = found["y_r"]["prompt_truncated"]
    print(f"{name}: {int(cut.sum())} of {len(cut)} refine prompts were cut")

# %%
notebooks.record(
    **{
        what if len(tables) == 1 else f"{name}/{what}": notebooks.measured(table, problems)
        for name, found in tables.items()
        for what, table in found.items()
    }
)
notebooks.write_timing(f"3_refine-{runs[0].scale}", runs[0].settings.workers)
