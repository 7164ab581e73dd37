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
# # 0 · Explore: look inside a trajectory
#
# A table says how often; this notebook shows how. Choose an attempt y_o and see it beside its
# rewrite y_r, each token shaded by the method's divergence, by what teacher and student thought of
# it, or by their entropy; under the cursor stand the candidates of both at that position.
# Everything is what training sees: the sampled token ids, in the prompts that are trained on.
#
# It needs no run at the scale `smoke`. At other scales it reads what `make repro` has left; where
# nothing is there it says what to run. A problem of your own needs the models alone.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml
task: str = "math"  # math or code
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference)
method: str = "trd"  # a method of params.yaml: its divergence is shown
seed: int = 0  # base seed: which weights

# %%
from IPython.display import display

from trdlib import config, explore, inputs, widget

run = config.run(scale, task, mode, method)
inputs.prepare(run)

# %% [markdown]
# ## Any attempt of any run
#
# The first row chooses the run, the second an attempt: from failed to passed, from passed to
# failed, the longest, those of highest KL, the unfinished. Choose another method, mode, seed or
# scale and the problem stays (a scale that does not train on it attempts it on the spot). Under
# *problems* stand the benchmarks too: there the answers before and after training are side by
# side, as far as they have been evaluated. *student* switches between the weights of step 0 and
# those after training.
#
# How to read it: a dashed line under a token means that the text on the right lacks it, a double
# line that the text on the left does; ✗ is the first wrong token, where the task knows it. Click a
# token, or move with the arrow keys.

# %%
explorer = widget.Explorer(run, seed, only="failed → passed")
display(explorer)

# %% [markdown]
# ## A problem of your own
#
# It is attempted by the student, rewritten by the teacher and scored, now. In the tiny language a
# problem is a chain, `Compute:1o*6p*3q+4` (modulo 7), or a trail, `Route#BLQfl`. Type it in the
# field *your own*; the same problem again is another attempt. Where the answer is not known,
# nothing is graded; mode `opsd` needs a reference solution: `explore.live(..., solution=...)`.

# %%
problem = {"math": "Route#BLQfl", "code": "f(x): a add 3; b reverse; c square"}[task]
problem = problem if run.settings.models.style == "tiny" else "What is 17 times 23?"
own = widget.Explorer(run, seed, problem=problem)
display(own)

# %% [markdown]
# ## Take it with you
#
# The view as one page that opens without Jupyter and without network: mail it. And its numbers as
# a table.

# %%
shown = explorer.view or own.view
page = config.root() / "runs" / "explore" / f"{scale}-{mode}-{method}-{seed}.html"
print(explore.export(shown, page).relative_to(config.root()))
explore.tokens(shown, shown["texts"][0]["name"]).round(3).head(12)
