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
# # 4 · Distil: a trajectory, a context and a divergence
#
# A method is a trajectory (which text the student is trained on), a context (what the teacher sees
# when it scores that text) and a divergence (how the two are compared at every token). This
# notebook first shows what the loss looks like on one sample, token by token, then trains a LoRA
# adapter for every method and base model. The learning rate comes from one grid that all methods
# share, chosen on the validation set, so that no method wins by tuning; grid and choice are shown.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (docs/sweeps.md)
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference), all
method: str = "trd"  # a method of params.yaml, or all that `dvc repro` runs
learning_rate: float = None  # None: choose from the grid of params.yaml on the validation set
seed: int = None  # this base seed alone; None: those of the scale
tracker: str = None  # tensorboard, wandb, none; None: as params.yaml says
validate: bool = False  # measure what was trained on the validation set (a sweep does)

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from trdlib import jobs, models, store, tasks
from trdlib.analysis.explore import token_losses
from trdlib.distill import build, distill, training_sets
from trdlib.ops import notebooks
from trdlib.ops.chain import sampled, validation
from trdlib.run import get_runs

how = {"learning_rate": learning_rate, "seed": seed, "tracker": tracker}
runs = get_runs(scale, mode, method, **how)
task = tasks.of(runs[0])
sets = task.sets()
tables = sampled(runs, task, sets["train"])  # y_o, y_r, y_t of each mode
training = training_sets(runs, sets["train"], tables)
pd.DataFrame(
    {
        "run": [str(run) for run in runs],
        "right %": [100 * found.accuracy for found in training],
        "word for word y* %": [100 * found.like_reference for found in training],
        "rows": [np.mean([*map(len, found.rows.values())]) for found in training],
    }
).set_index("run").round(1)

# %% [markdown]
# ## The loss before training, token by token
#
# The sample with the largest total loss, as one method sees it (`trd`, if it is among them):
# `forward_kl` on y_o shows the teacher's surprise at every turn of a broken prefix, `trd` the
# distance to a rewrite that holds together. A bar is one token of the response; its height is what
# that token adds to the loss.

# %%
one = next((i for i, run in enumerate(runs) if run.method == "trd"), 0)
shown, first = runs[one], runs[one].settings.seeds[0]
sample = training[one].rows[first][:64]
with jobs.model_compute():
    losses = token_losses(build(shown, first), sample)
worst = max(range(len(sample)), key=lambda i: float(losses[i].sum()))
tokenizer = models.load_tokenizer(shown.model_path("student", first))


def show(values: list, label: str, axis) -> None:
    tokens = [tokenizer.decode([t]).replace("\n", "⏎") for t in sample[worst].response_ids]
    tokens = ["∎" if t == tokenizer.eos_token else t for t in tokens]
    axis.bar(range(len(values)), values, color="C3" if label == "before" else "C0")
    turn = 90 if sum(map(len, tokens)) > 100 else 0  # long tokens would cover each other
    axis.set_xticks(range(len(tokens)), tokens, fontsize=8, family="monospace", rotation=turn)
    title = f"{shown}, {label}: {sum(values):.2f} nats on {len(values)} tokens"
    axis.set(ylabel="nats", title=title)


print(tokenizer.decode(sample[worst].student_ids), tokenizer.decode(sample[worst].response_ids))
fig, axis = plt.subplots(figsize=(11, 2.4))
show(losses[worst].tolist(), "before", axis)
plt.show()

# %% [markdown]
# ## Training
#
# One adapter for each learning rate of the grid and each base model; finished ones are not trained
# again, an interrupted one goes on from its last checkpoint. All of them are jobs of one pool.

# %%
trained = distill(runs, task, sets, tables, training)
chosen = {str(run): found.choice["chosen"] for run, found in zip(runs, trained, strict=True)}
pd.Series(chosen, name="chosen learning rate").to_frame()

# %% [markdown]
# Accuracy on the validation set against the learning rate, a line per base model, black the mean,
# red the choice. Is it inside the grid, or at its edge? (A variant, on a
# subset of the rows or in rounds, has the rate that its method chose, and an empty plot.)

# %%
width = min(5, len(runs))
height = -(-len(runs) // width)
size = (max(2.5 * width, 6), 2.2 * height + 0.6)
fig, axes = plt.subplots(height, width, figsize=size, sharey=True, squeeze=False)
for axis in axes.flat[len(runs) :]:
    axis.set_axis_off()
for axis, run, found in zip(axes.flat, runs, trained, strict=False):
    scores = pd.DataFrame(found.choice["validation_by_seed"]).T
    if len(scores):
        scores.index = scores.index.astype(float)
        axis.plot(scores, "o-", lw=1, ms=4, label=[f"seed {s}" for s in scores.columns])
        axis.plot(scores.mean(axis=1), "k-", lw=2, label="mean")
        axis.set_xscale("log")
        axis.set_xticks(scores.index, [f"{rate:g}" for rate in scores.index], minor=False)
        axis.minorticks_off()
    axis.axvline(found.choice["chosen"], color="C3", ls=":")
    axis.set_title(f"{run.mode} {run.method}", fontsize=9)
handles = next((axis.get_legend_handles_labels() for axis in axes.flat if axis.lines[1:]), ([], []))
fig.legend(*handles, loc="lower right", ncols=4, fontsize=8)
fig.supylabel("validation accuracy", fontsize=9)
fig.supxlabel("learning rate", fontsize=9)
fig.tight_layout()
plt.show()

# %% [markdown]
# The training loss at the chosen rate, a line per base model. Between methods its height says
# nothing: they measure other things on other text.

# %%
fig, axes = plt.subplots(height, width, figsize=size, squeeze=False)
for axis in axes.flat[len(runs) :]:
    axis.set_axis_off()
logs = {}
for axis, run, found in zip(axes.flat, runs, trained, strict=False):
    for s, folder in found.adapters.items():
        log = logs[str(run), s] = pd.DataFrame(store.read_json(folder / "training_log.json"))
        axis.plot(log["step"], log["loss"], lw=1, color=f"C{s}", label=f"seed {s}")
    axis.set_title(f"{run.mode} {run.method}", fontsize=9)
fig.supylabel("loss (nats per token)", fontsize=9)
fig.supxlabel("optimizer step", fontsize=9)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## The same sample after training

# %%
after = build(shown, first)
folder = trained[one].adapters[first]
after.student = models.with_adapter(after.student.unload(), folder, merge=False)
fig, axis = plt.subplots(figsize=(11, 2.4))
show(token_losses(after, [sample[worst]])[0].tolist(), "after", axis)
plt.show()

# %% [markdown]
# ## What to compare a run by
#
# Recorded for sweeps: how right the trajectory is, the loss of the last steps, and with `validate`
# the accuracy of every base model on the validation set, which no training has seen. Benchmarks are
# for the end, in 5_evaluate: who chooses by them has no test set left.

# %%
recorded = {}
for run, found, data in zip(runs, trained, training, strict=True):
    name = "" if len(runs) == 1 else f"{run.mode}/{run.method}/"
    last = pd.concat([logs[str(run), s]["loss"].tail(5) for s in run.settings.seeds])
    recorded[f"{name}rate"] = found.choice["chosen"]
    recorded[f"{name}trajectory_right"] = data.accuracy
    recorded[f"{name}final_loss"] = float(last.mean())
    if validate:
        measured = validation(run, task, sets["validation"], found.adapters)
        recorded[f"{name}validation"] = measured
notebooks.record(**recorded)
notebooks.write_timing(f"4_distill-{runs[0].scale}", runs[0].settings.workers)
