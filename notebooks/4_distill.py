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
scale = "smoke"  # a scale of params.yaml
task = "math"
mode = "opd"  # who teaches: opd (another model) or opsd (the student itself, given the reference)
method = "trd"  # a method of params.yaml
learning_rate = None  # None: choose from the grid of params.yaml on the validation set

# %%
import matplotlib.pyplot as plt
import pandas as pd

from trdlib import config, data, distill, inputs, models, parallel

run = config.run(scale, task, mode, method)
inputs.prepare(run)
seed = run.settings.seeds[0]
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
sample = training.rows[seed][:64]
with parallel.model_compute():
    losses = distill.token_losses(distill.build(run, seed), sample)
worst = max(range(len(sample)), key=lambda i: float(losses[i].sum()))
tokenizer = models.load_tokenizer(run.model_path("student", seed))


def show(values: list, label: str, axis) -> None:
    tokens = [tokenizer.decode([t]).replace("\n", "⏎") for t in sample[worst].response_ids]
    tokens = ["∎" if t == tokenizer.eos_token else t for t in tokens]
    axis.bar(range(len(values)), values, color="C3" if label == "before" else "C0")
    axis.set_xticks(range(len(tokens)), tokens, fontsize=8, family="monospace")
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
choice = distill.distill(run, learning_rate, training)
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
after = distill.build(run, seed)
after.student = models.with_adapter(after.student.unload(), run.adapter(seed), merge=False)
fig, axis = plt.subplots(figsize=(11, 2.4))
show(distill.token_losses(after, [sample[worst]])[0].tolist(), "after", axis)
plt.show()

# %%
parallel.write_timing(f"4_distill-{scale}-{task}-{mode}-{method}", run.settings.workers)
