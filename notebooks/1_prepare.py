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
# # 1 · Prepare: the problems and the models
#
# Distillation needs problems to attempt, and models to attempt them. This notebook writes the
# problem sets of a scale in one schema (`id, source, problem, answer, solution`) and looks at them.
# At the procedural scales (`tiny`, `tiny-code`, and `smoke`, which takes a few of their models) it
# also shows how the student and the teacher came about: they are pretrained from scratch by the
# pipeline, to accuracy thresholds, once for each base seed, so that a "seed" is another base model
# and not only another LoRA initialisation. At the scales of the paper (`qwen3-*`) problems and
# models come from the hub, each at one commit, and a seed is another set of rollouts and another
# LoRA initialisation of the same weights.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)

# %%
import matplotlib.pyplot as plt
import pandas as pd

from trdlib import generate, jobs, models, prompts, store, tasks
from trdlib.ops import notebooks
from trdlib.run import get_run
from trdlib.settings import root

run = get_run(scale)
task = tasks.of(run)
sets = task.sets()
task.make_models(generate.decode, jobs.run_jobs, generate.batches)

# %% [markdown]
# ## The problem sets
#
# `train` is what the student attempts, `validation` chooses learning rates, the rest are
# benchmarks. No problem stands in two sets, nor was a procedural one of three steps or more seen in
# pretraining: a hash of its text decides which split it may be used in. Published train problems
# that occur in a benchmark are removed.

# %%
pd.DataFrame(
    [
        {"set": name, "problems": len(frame), **frame["source"].value_counts().to_dict()}
        for name, frame in sets.items()
    ]
).set_index("set").fillna(0).astype(int)

# %% [markdown]
# Published problems: the file each set was made from, and how many of its rows were left out, for
# what reason. (Procedural problems have no file.)

# %%
files = task.notes.get("sources", {})
pd.DataFrame(files).T.drop(columns="sha256").fillna("") if files else "no files"

# %% [markdown]
# One problem of each source, with its reference solution.
#
# - A **chain**, `Compute:5o-1p+6`: start at 5, o = 5 - 1, p = o + 6, all modulo 7. Each line of the
#   solution is one step and its result: `o-1=4`, `p+6=3`, then the answer, `\boxed{3}`. After a
#   wrong line the next line is still a valid lesson.
# - A **trail**, `Route#ANUd`: start at 0 and walk from letter to letter. A hidden table gives each
#   letter a turn: `<` adds 1, `^` 2, `>` 4, `/` 7, modulo 10. A line is a letter, its turn and the
#   sum so far: `A/7`, `N/4`. With the flag `#`, a wrong turn gets the walker lost, and what follows
#   teaches nothing: prefix failure. With `=` the walker finds on.
# - In **code**, `f(x): a add 6; b sort up`, each clause asks for one statement of a Python
#   function, which is graded by running it; a clause can be written in two ways, and the reference
#   is in another hand than the models'.

# %%
for source, group in sets["train"].groupby("source"):
    row = group.iloc[0]
    answer = row["answer"][:80]  # of code: what the function must return in its tests
    print(f"--- {source}: {row['problem']}   answer {answer}\n{row['solution'][:2000]}\n")

# %% [markdown]
# What the student is asked, token by token. The same `render` makes this prompt for rollout,
# training and evaluation.

# %%
tokenizer = models.load_tokenizer(run.model_path("student", run.settings.seeds[0]))
prompt = prompts.student_prompts(run, run.settings.seeds[0], [sets["train"].iloc[0].to_dict()])[0]
" ".join(repr(tokenizer.decode([token])) for token in prompt.ids)

# %% [markdown]
# ## The models
#
# Published models come as they are. Of those that the pipeline pretrained, left: loss by step (a
# running mean of 25 steps). A foundation learns the tasks; student and teacher are two forks of
# it. The student is then taught false beliefs about a quarter of the arithmetic facts (in code: of
# the clauses) and half of the letters only. Right: accuracy at the temperature of the rollouts on
# unseen problems. Pretraining stops when the thresholds of `params.yaml` hold.

# %%
roles = [role for role in ("student", "teacher") if getattr(run.settings.models, role)]
places = {(role, seed): run.model_path(role, seed) for role in roles for seed in run.settings.seeds}
pd.Series(places, name="model").unstack(0)

# %%
logs = {key: root() / place / "pretraining.json" for key, place in places.items()}
logs = {key: store.read_json(path) for key, path in logs.items() if path.is_file()}
if logs:
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[1, 1.3])
    style = {"student": "-", "teacher": "--"}
    for (role, seed), log in logs.items():
        smooth = pd.Series(log["loss"]).rolling(25, min_periods=1).mean()
        left.plot(smooth, style[role], color=f"C{seed}", lw=1, label=f"{role}, seed {seed}")
    left.set(xlabel="step", ylabel="loss (nats)", yscale="log", title="pretraining")
    left.legend(fontsize=7)
    measured = pd.DataFrame(
        [
            {"what": f"{role}: {name}", "seed": seed, "accuracy": value}
            for (role, seed), log in logs.items()
            for name, value in log["accuracy"].items()
        ],
        columns=["what", "seed", "accuracy"],
    )
    for seed, group in measured.groupby("seed"):
        label = f"seed {seed}"
        right.plot(group["accuracy"], group["what"], "o", color=f"C{seed}", label=label, ms=5)
    right.set(xlim=(-0.03, 1.03), xlabel="accuracy", title="what each model can do")
    right.grid(axis="x", alpha=0.3)
    fig.tight_layout()
    plt.show()

# %%
notebooks.record(**{f"problems/{name}": len(frame) for name, frame in sets.items()})
notebooks.write_timing(f"1_prepare-{run.scale}", run.settings.workers)
