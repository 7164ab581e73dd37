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
# control the teacher also writes solutions of its own, without an attempt (y_t).
#
# **The accuracy of y_r decides everything that follows.** A teacher that rewrites badly turns the
# result around, so look at it before you believe any table.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (README: Sweep)
task: str = "math"  # what is solved
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference)
seed: int = None  # this base seed alone; None: those of the scale

# %%
import difflib

import matplotlib.pyplot as plt
import pandas as pd

from trdlib import config, evaluate, inputs, notebooks, parallel, refine, rollout

run = config.run(scale, task, mode, seed=seed)
problems = inputs.prepare(run)["train"]
y_o, y_r, y_t = rollout.attempts(run), refine.rewrites(run), refine.teacher_solutions(run)
for table in (y_o, y_r, y_t):
    table["source"] = [row["source"] for row in refine.rows_of(problems, table)]

# %% [markdown]
# ## From failed to passed, and the other way
#
# Rows: was the attempt right? Columns: is the rewrite? Shares of all attempts, all base models.

# %%
transitions = pd.crosstab(
    [y_r["source"], y_r["y_o_correct"].map({True: "y_o passed", False: "y_o failed"})],
    y_r["correct"].map({True: "y_r passed", False: "y_r failed"}),
    normalize="all",
)
transitions.round(3)

# %%
bars = pd.DataFrame(
    {
        name: table.groupby("source")["correct"].mean()
        for name, table in (("y_o", y_o), ("y_t", y_t), ("y_r", y_r))
    }
)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
bars.plot.bar(ax=left, rot=0, ylim=(0, 1.05), color=["C7", "C9", "C3"], width=0.7)
left.set(xlabel="", ylabel="share that is right", title=f"accuracy of the trajectories ({mode})")
for (name, table), color in zip((("y_o", y_o), ("y_r", y_r)), ("C7", "C3"), strict=True):
    right.hist(
        table["n_tokens"],
        bins=range(0, int(y_o["n_tokens"].max()) + 4, 2),
        histtype="step",
        lw=1.5,
        color=color,
        label=name,
    )
right.set(xlabel="tokens", ylabel="responses", title="length")
right.legend()
fig.tight_layout()
plt.show()

# %% [markdown]
# ## One sample on its way: x → y_o → y_r
#
# What the teacher was given, and what it made of it. `-` lines are the student's, `+` the
# teacher's; the rest survived.

# %%
failed = y_r[~y_r["y_o_correct"]]
for _, rewrite in failed.groupby("source").head(1).iterrows():
    row = refine.rows_of(problems, pd.DataFrame([rewrite]))[0]
    same = (y_o["id"] == rewrite["id"]) & (y_o["seed"] == rewrite["seed"])
    attempt = y_o[same & (y_o["sample"] == rewrite["sample"])].iloc[0]
    answer = row["answer"][:80]
    print(f"--- {row['problem']}   answer {answer}, y_r is right: {rewrite['correct']}")
    lines = (attempt["text"].splitlines(), rewrite["text"].splitlines())
    print("\n".join(line for line in difflib.ndiff(*lines) if not line.startswith("?")), "\n")

# %% [markdown]
# A refine prompt that does not fit is cut inside the attempt, then inside the reference, with a
# notice that the model sees. How many were:

# %%
print(f"{int(y_r['prompt_truncated'].sum())} of {len(y_r)} refine prompts were cut")

# %%
found = {"y_r": y_r, "y_o": y_o, "y_t": y_t}
notebooks.record(**{name: evaluate.measured(table, problems) for name, table in found.items()})
parallel.write_timing(f"3_refine-{run.scale}-{task}-{mode}", run.settings.workers)
