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
# # 4 · Distil: a trajectory and a divergence
#
# A method is a trajectory (which text the student is trained on) and a divergence (how it is
# compared with the teacher at every token). This notebook first shows what the loss looks like on
# one sample, token by token, then trains a LoRA adapter for every base model. The learning rate
# comes from one grid that all methods share, chosen on the validation set, so that no method wins
# by tuning; grid and choice are shown.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml, changed settings behind it (README: Sweep)
task: str = "math"  # what is solved
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference)
method: str = "trd"  # a method of params.yaml
learning_rate: float = None  # None: choose from the grid of params.yaml on the validation set
seed: int = None  # this base seed alone; None: those of the scale
tracker: str = None  # dvclive, tensorboard, wandb, none; None: as params.yaml says
validate: bool = False  # measure what was trained on the validation set (a sweep does)

# %%
import matplotlib.pyplot as plt
import pandas as pd

from trdlib import config, data, distill, evaluate, inputs, models, notebooks, parallel

how = {"learning_rate": learning_rate, "seed": seed, "tracker": tracker}
run = config.run(scale, task, mode, method, **how)
inputs.prepare(run)
first = run.settings.seeds[0]
training = distill.training_set(run)
print(f"{run} | {run.recipe}")
print(f"right: {training.accuracy:.1%}, word for word y*: {training.like_reference:.1%}")

# %% [markdown]
# ## The loss before training, token by token
#
# The sample with the largest total loss, as this method sees it: `forward_kl` on y_o shows the
# teacher's surprise at every turn of a broken prefix, `trd` the distance to a rewrite that holds
# together. A bar is one token of the response; its height is what that token adds to the loss.

# %%
sample = training.rows[first][:64]
with parallel.model_compute():
    losses = distill.token_losses(distill.build(run, first), sample)
worst = max(range(len(sample)), key=lambda i: float(losses[i].sum()))
tokenizer = models.load_tokenizer(run.model_path("student", first))


def show(values: list, label: str, axis) -> None:
    tokens = [tokenizer.decode([t]).replace("\n", "⏎") for t in sample[worst].response_ids]
    tokens = ["∎" if t == tokenizer.eos_token else t for t in tokens]
    axis.bar(range(len(values)), values, color="C3" if label == "before" else "C0")
    turn = 90 if sum(map(len, tokens)) > 100 else 0  # long tokens would cover each other
    axis.set_xticks(range(len(tokens)), tokens, fontsize=8, family="monospace", rotation=turn)
    axis.set(ylabel="nats", title=f"{label}: {sum(values):.2f} nats on {len(values)} tokens")


print(tokenizer.decode(sample[worst].student_ids), tokenizer.decode(sample[worst].response_ids))
fig, axis = plt.subplots(figsize=(11, 2.4))
show(losses[worst].tolist(), "before", axis)
plt.show()

# %% [markdown]
# ## Training
#
# One adapter for each learning rate of the grid and each base model; finished ones are not trained
# again, an interrupted one goes on from its last checkpoint.

# %%
choice = distill.distill(run, training=training)
print("chosen learning rate:", choice["chosen"])

# %% [markdown]
# Left: accuracy on the validation set against the learning rate, a line per base model. Is the
# choice inside the grid, or at its edge? Right: the training loss of the chosen rate.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2))
scores = pd.DataFrame(choice["validation_by_seed"], index=run.settings.seeds).T
if len(scores):
    scores.index = scores.index.astype(float)
    left.plot(scores, "o-", lw=1, ms=4, label=[f"seed {s}" for s in scores.columns])
    left.plot(scores.mean(axis=1), "k-", lw=2, label="mean")
    left.legend(fontsize=8)
    left.set_xscale("log")
    left.set_xticks(scores.index, [f"{rate:g}" for rate in scores.index], minor=False)
    left.minorticks_off()
left.axvline(choice["chosen"], color="C3", ls=":")
left.set(xlabel="learning rate", ylabel="validation accuracy", title=str(run))
for s in run.settings.seeds:
    log = pd.DataFrame(data.read_json(run.adapter(s) / "training_log.json"))
    right.plot(log["step"], log["loss"], lw=1, color=f"C{s}", label=f"seed {s}")
right.set(xlabel="optimizer step", ylabel="loss (nats per token)", title="training loss")
right.legend(fontsize=8)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## The same sample after training

# %%
after = distill.build(run, first)
after.student = models.with_adapter(after.student.unload(), run.adapter(first), merge=False)
fig, axis = plt.subplots(figsize=(11, 2.4))
show(distill.token_losses(after, [sample[worst]])[0].tolist(), "after", axis)
plt.show()

# %% [markdown]
# ## What to compare this run by
#
# Recorded for sweeps: how right its trajectory is, the loss of the last steps, and with `validate`
# the accuracy of every base model on the validation set, which no training has seen. Benchmarks are
# for the end, in 5_evaluate: who chooses by them has no test set left.

# %%
logs = [data.read_json(run.adapter(s) / "training_log.json") for s in run.settings.seeds]
last = [entry["loss"] for log in logs for entry in log[-5:]]
measured = {"validation": evaluate.validation(run)} if validate else {}
notebooks.record(
    **measured,
    rate=choice["chosen"],
    trajectory_right=training.accuracy,
    final_loss=sum(last) / len(last),
)
parallel.write_timing(f"4_distill-{run.scale}-{task}-{mode}-{method}", run.settings.workers)
