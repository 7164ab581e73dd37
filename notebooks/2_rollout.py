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
# # 2 · Rollout: the student's own attempts, y_o
#
# On-policy distillation trains the student where it really goes: on its own rollouts. This notebook
# samples one attempt at every training problem with every base model, grades it, and keeps the
# sampled token ids. We are about to see how often the student fails, and what a failure looks like:
# one early mistake, and a confident walk on from there.
#
# A **chain**, `Compute:5o-1p+6`, says: start at 5, o = 5 - 1, p = o + 6, all modulo 7; its solution
# is `o-1=4`, `p+6=3`, `\boxed{3}`. A **trail**, `Route#ANUd`, is a walk from 0: a hidden table
# gives each letter a turn (`<` adds 1, `^` 2, `>` 4, `/` 7, modulo 10), and `A/7` is a letter, its
# turn and the sum so far. Notebook 1 has more.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)
seed: int = None  # this base seed alone; None: those of the scale

# %%
import matplotlib.pyplot as plt

from trdlib import tasks
from trdlib.ops import notebooks
from trdlib.refine import rows_of
from trdlib.rollout import rollout
from trdlib.run import get_run

run = get_run(scale, seed=seed)
task = tasks.of(run)
problems = task.sets()["train"]
y_o = rollout(run, task, problems)
y_o["source"] = [row["source"] for row in rows_of(problems, y_o)]
y_o.head()

# %% [markdown]
# ## How often is the student right?
#
# The accuracy of the attempts decides how much there is to refine. Each dot is a base model.

# %%
accuracy = y_o.groupby(["source", "seed"])["correct"].mean().unstack("seed")
lengths = y_o.groupby(["source", "correct"])["n_tokens"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
for base in accuracy.columns:
    left.plot(accuracy[base], accuracy.index, "o", color=f"C{base}", label=f"seed {base}")
left.set(xlim=(-0.03, 1.03), xlabel="share of attempts that are right", title="y_o")
left.margins(y=0.5)
left.legend(fontsize=8)
for (source, correct), group in lengths:
    right.hist(
        group,
        bins=range(0, int(y_o["n_tokens"].max()) + 4, 2),
        histtype="step",
        ls="-" if correct else ":",
        lw=1.5,
        color="C0" if source == "chain" else "C1",
        label=f"{source}, {'right' if correct else 'wrong'}",
    )
right.set(xlabel="tokens", ylabel="attempts", title="length of y_o")
right.legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## A failed attempt beside the reference
#
# Find the first line that differs. Everything below it was written from a broken prefix, and this
# is the text on which a token-level method asks its teacher for advice. (In code, a line may differ
# and still do the same: look for the first that does something else.)

# %%
for source, group in y_o[~y_o["correct"]].groupby("source"):
    attempt = group.iloc[0]
    row = rows_of(problems, group.head(1))[0]
    print(f"--- {source}: {row['problem']}   answer {row['answer'][:80]}")
    ours, theirs = attempt["text"].splitlines(), row["solution"].splitlines()
    width = max(20, *(len(line) + 2 for line in [*ours, *theirs]))
    for i in range(max(len(ours), len(theirs))):
        line, reference = (lines[i] if i < len(lines) else "" for lines in (ours, theirs))
        print(f"{line:<{width}}{reference:<{width}}{'' if line == reference else '<- differs'}")
    print()

# %%
notebooks.record(y_o=notebooks.measured(y_o, problems), tokens=float(y_o["n_tokens"].mean()))
notebooks.write_timing(f"2_rollout-{run.scale}", run.settings.workers)
