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
# Everything is what training sees: the sampled token ids, in the contexts that are trained on.
#
# It needs no run at the scale `smoke`: attempts and rewrites take seconds there. At other scales
# let `make repro` or notebooks 2 and 3 make them first; here they are only read then. A problem of
# your own needs the models alone.

# %% tags=["parameters"]
scale: str = "smoke"  # a scale of params.yaml
mode: str = "opd"  # who teaches: opd (another model), opsd (the student, given the reference)
method: str = "trd"  # a method of params.yaml: its divergence and its training are shown
seed: int = 0  # base seed: which weights
of: str = "train"  # problem set; after training also a benchmark
only: str = "failed → passed"  # or: passed → failed, unfinished, longest, all
number: int = 0  # which of these attempts
trained: bool = False  # look at the student after training

# %%
import pandas as pd

from trdlib import store, tasks
from trdlib.analysis import explore
from trdlib.evaluate import evaluate
from trdlib.refine import refine, solve
from trdlib.rollout import rollout
from trdlib.run import get_run
from trdlib.settings import root

run = get_run(scale, mode, method)
task = tasks.of(run)
sets = task.sets()
y_o = rollout(run, task, sets["train"])
tables = {"train": {"y_o": y_o, "y_r": refine(run, task, sets["train"], y_o)}}
if run.recipe.trajectory == "y_t":
    tables["train"]["y_t"] = solve(run, task, sets["train"])

# %% [markdown]
# If the method has been trained and evaluated (notebooks 4 and 5), its answers to the benchmarks
# stand beside those before training, and the student can be looked at after training, too.

# %%
seeds, adapter = run.settings.seeds, run.adapter(seed)
first = run.settings.evaluation.temperatures[0]
if all(run.samples(base, first, name).is_file() for base in seeds for name in task.benchmarks):
    adapters = {base: run.adapter(base) for base in seeds}
    runs = [get_run(scale, "none", "base"), run]
    before, after = (found[first] for found in evaluate(runs, task, sets, [None, adapters]))
    tables |= {name: {"base": before[name], method: after[name]} for name in task.benchmarks}
loaded = explore.load(run, seed, adapter if adapter.is_dir() else None)

# %% [markdown]
# ## Any attempt
#
# The list has the attempts that `only` lets pass (all of them, if none does); `number` says which
# one is shown below it. Change these, or `trained`, in the first code cell or here, and run again.
#
# How to read the view: a dashed line under a token means that the text on the right lacks it, a
# double line that the text on the left does; ✗ is the first wrong token, where the task knows it.
# Click a token, or move with the arrow keys.

# %%
FILTERS = {
    "all": "index >= 0",
    "failed → passed": "not correct and correct_after",
    "passed → failed": "correct and not correct_after",
    "unfinished": "not (finished and finished_after)",
    "longest": "n_tokens >= 0",  # and sorted
}
# The first two tables; y_t is the teacher's own solution, not a second look at the attempt.
seen = [t[t["seed"] == seed] for name, t in tables[of].items() if name != "y_t"][:2]
every = seen[0].merge(seen[-1], on=["id", "sample"], suffixes=("", "_after"))
every = every.merge(sets[of][["id", "problem", "source"]], on="id")
kept = every.query(FILTERS[only])
kept = (kept if len(kept) else every).reset_index(drop=True)
if only == "longest":
    kept = kept.sort_values("n_tokens", ascending=False, kind="stable", ignore_index=True)
kept[["id", "sample", "source", "problem", "correct", "correct_after", "n_tokens"]].head(10)

# %%
chosen = kept.iloc[number]
row = sets[of].set_index("id", drop=False).loc[chosen["id"]].to_dict()
view = explore.view(loaded, task, tables[of], row, chosen["sample"], trained=trained)
explore.frame(view)

# %% [markdown]
# ## A problem of your own
#
# It is attempted by the student, rewritten by the teacher and scored, now. In the tiny language a
# problem is a chain, `Compute:1o*6p*3q+4` (start at 1; o = 1 * 6, p = o * 3, q = p + 4, all modulo
# 7), or a trail, `Route#BLQfl` (a letter is a turn by a hidden table). `draw=1` is another attempt.
# Where the answer is not known nothing is graded, and mode `opsd` needs a reference solution:
# `task.problem(text, answer, solution)`. Below is a problem that nobody trained on.

# %%
mine = task.problem(sets["validation"]["problem"].iloc[-1])
explore.frame(explore.live(loaded, task, mine, draw=0))

# %% [markdown]
# ## Take it with you
#
# The view as one page that opens without Jupyter and without network: mail it. And its numbers as
# a table.

# %%
page = root() / "runs" / "explore" / f"{scale}-{mode}-{method}-{seed}.html"
print(store.write_text(page, explore.page(view)).relative_to(root()))
text = view["texts"][0]
spelled = [view["vocabulary"][str(i)] for i in text["ids"]]
pd.DataFrame({"token": spelled, "token_id": text["ids"], **text["values"]}).round(3).head(12)
