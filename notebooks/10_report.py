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
# # Trajectory-Refined Distillation: all tables and figures
#
# On-policy distillation trains a student on its own rollouts y_o; Trajectory-Refined Distillation
# (`trd`) lets the teacher rewrite them first and trains on the rewrites y_r. The teacher is another
# model (OPD) or the student itself, given the reference solution (OPSD). Values are percent.
# Differences have two intervals, for *these models* (problems resampled) and for *new models*
# (other base models and trainings as well); a star needs the second, and a correction for the
# number of comparisons of its table.
#
# Here stands what the other notebooks wrote to `results/`, scale by scale, and nothing is computed
# anew; what has not been run is named. `dvc repro` makes `results/report.html` of it: one page that
# needs no network.

# %%
import re

import pandas as pd
from IPython.display import HTML, Image, Markdown, display

from trdlib import store
from trdlib.analysis import paper, show, tables
from trdlib.ops import notebooks
from trdlib.run import get_run
from trdlib.settings import load, root

settings, results = load(), root() / "results"
runs = [
    get_run(scale, mode, settings=settings)
    for scale, section in settings.scales.items()
    for mode in section.modes
]
# What `run` of params.yaml names, and what else has its table on file: another scale, run before.
is_there = {str(run): tables.paths(run)["md"].is_file() for run in runs}
shown = [run for run in runs if run.scale in settings.run.scales or is_there[str(run)]]
scales = list(dict.fromkeys(run.scale for run in shown))


def heading(level, title, anchor=""):
    display(Markdown(f'<h{level} id="{anchor or title.lower()}">{title}</h{level}>'))


def text(path, below, how="Run `dvc repro`."):
    """A Markdown file without its title and its pictures, its headings below a level."""
    if not path.is_file():
        display(Markdown(f"> {path.relative_to(results)}: {show.MISSING}. {how}"))
        return
    found = re.sub(r"\A# .*\n|^!\[.*\n?", "", path.read_text(encoding="utf-8"), flags=re.M)
    sunk = re.sub(r"^#+(?= )", lambda m: "#" * min(6, len(m[0]) + below - 1), found, flags=re.M)
    display(Markdown(sunk))


def picture(path, caption):
    if path.is_file():
        display(Image(path, alt=caption))


def link(anchor, title, inside=""):
    return f'<li><a href="#{anchor}">{title}</a>{inside and f"<ul>{inside}</ul>"}</li>'


contents = link("findings", "In short")
for scale in scales:
    modes = [run.mode for run in shown if run.scale == scale]
    inside = "".join(link(f"{scale}-{mode}", mode.upper()) for mode in modes)
    contents += link(scale, f"Scale {scale}", inside)
contents += link("quantities", "Quantities of the diagnosis")
contents += link("paper", "Against the paper") + link("audit", "Audit of the authors' raw runs")
display(HTML(f"<nav><ul>{contents}</ul></nav>"))


# %%
def findings(found):
    """A table of differences in short: for each of the decisive ones a sentence."""
    said = []
    decisive = found[found["family"] == tables.DECISIVE]
    for against, mine in decisive.groupby("against", sort=False):
        points, stars = 100 * mine["value"], mine["marked"].astype(bool)
        up, down = (stars & (points > 0)).sum(), (stars & (points < 0)).sum()
        said.append(
            f"*trd minus {against}*: {points.min():+.1f} to {points.max():+.1f} points, "
            f"{(points > 0).sum()} of {len(mine)} above zero; marked for new models: "
            f"{up} above, {down} below"
        )
    return said


heading(2, "In short", "findings")
display(Markdown(
    "Each difference that decides, over all benchmarks and temperatures of a scale: the range of "
    "the differences, and how many are *marked*, that is, would be expected of other base models "
    "and trainings too. What is not marked may be chance. Small numbers of marks are no proof of "
    "no effect: the tables say what difference they could have seen."
))  # fmt: skip
for run in shown:
    path = tables.paths(run)["differences"]
    lines = findings(pd.read_csv(path)) if path.is_file() else []
    name = f"[{run.mode.upper()}, scale {run.scale}](#{run.scale}-{run.mode})"
    if lines:
        display(Markdown(f"**{name}**\n\n" + "\n".join(f"- {line}." for line in lines)))

absent = [f"{run.scale} ({run.mode})" for run in runs if run not in shown]
display(Markdown(f"> {show.MISSING.capitalize()}: {', '.join(absent)}."))

# %%
TASKS = {  # of a scale's task: what its benchmarks ask
    "modular": "**chain**, as `5o-1p+6`: start at 5, o = 5 - 1, p = o + 6, all modulo 7, a line "
    "each. After a wrong line the next one is still a valid lesson: the mistake is *local*. "
    "**trail**, as `Route#AIqyG`: a hidden table gives each letter one of four turns, and a sum "
    "modulo 10 follows them. After a wrong turn the walker is lost, and the rest of the attempt "
    "teaches nothing: *prefix failure*. **trail_local**: the same, but the table holds on after a "
    "wrong turn. **_hard**: more steps; in trail_hard also more letters that the student does not "
    "know.",
    "tinycode": "**code**: a specification, `f(x): a add 3; b reverse; c keep odd`, to a Python "
    "function with a statement for each clause, graded by running it. A mistake is local: the "
    "next clause still says what to do. **code_hard**: more clauses.",
    "story": "Word problems: somebody has things, then twice gets or loses some, all below 20.",
}


def cost(path):
    """What each method costs, from the file that notebook 7 wrote."""
    heading(4, "Cost", f"{path.parent.name}-{path.stem}-cost")
    if not path.is_file():
        display(Markdown(f"> {path.relative_to(results)}: {show.MISSING}. Run `dvc repro`."))
        return
    display(Markdown(
        "All base seeds together, one learning rate. generated: tokens sampled for the "
        "trajectories (y_o and y_r for trd). mean length: of the trajectory, in tokens. trained: "
        "response tokens. student tokens, teacher tokens: through the models in training, prompts "
        "included. Seconds and memory are the machine's: notebook 7 shows them where it ran."
    ))  # fmt: skip
    found = pd.read_csv(path).query("run").drop(columns="run").set_index("method")
    whole = ["generated", "trained", "student_tokens", "teacher_tokens"]
    forms = {name: f"{{:,.{0 if name in whole else 1}f}}".format for name in found}
    cells = found.apply(lambda column: column.map(forms[column.name], na_action="ignore"))
    shown = cells.astype(object).fillna(show.DASH).rename(columns=lambda c: c.replace("_", " "))
    display(Markdown(shown.to_markdown(disable_numparse=True)))


for scale in scales:
    heading(2, f"Scale {scale}", scale)
    display(Markdown(TASKS.get(settings.scales[scale].task, "")))
    for run in (run for run in shown if run.scale == scale):
        paths, mode = tables.paths(run), run.mode.upper()
        heading(3, f"{mode}, scale {scale}", f"{scale}-{run.mode}")
        picture(paths["png"], f"Accuracies and paired differences, {mode}, scale {scale}")
        text(paths["md"], below=3)
        cost(paths["cost_csv"])
        heading(4, "Diagnosis", f"{scale}-{run.mode}-diagnosis")
        display(Markdown("[What the quantities are](#quantities)."))
        diagnosis = results / "diagnosis" / scale
        picture(diagnosis / f"{run.mode}.png", f"Prefix-failure signals, {mode}, scale {scale}")
        text(diagnosis / f"{run.mode}.md", below=4)
    if settings.scales[scale].map is not None:
        heading(3, "The map: when does TRD help?", f"{scale}-map")
        picture(results / "figures" / f"map_{scale}.png", "The map: what TRD gains, by knob")
        text(results / "tables" / f"map_{scale}.md", below=3, how=f"Run `make map SCALE={scale}`.")

# %%
heading(2, "Quantities of the diagnosis", "quantities")
display(
    Markdown("""
Of an attempt y_o or its rewrite y_r, by the verdict on the attempt, before any training.

- Shares of responses: *correct*; *fail_to_pass* and *pass_to_fail* (of all attempts: the rewrite
  has the other verdict); *unfinished*; *prompt_truncated*; *departed* (it has a wrong token).
- *n_tokens*: its length. *kept*: share of the attempt's tokens that stand in the rewrite, in order.
- *student_nll*, *teacher_nll*: mean negative log-likelihood of a token, in nats; *ppl_gap*: the
  first minus the second. Above 0 the teacher finds the text more likely than the student does.
- Means of a token, in nats: *forward_kl* (teacher to student), *reverse_kl* (student to teacher),
  *teacher_entropy*. *onset_mass*: the teacher's probability of words that open a correction.
- *onset_share*: of the forward KL, due to onset words. *own_share*: of the reverse KL, due to the
  token that is there.
- Where the first mistake is known: *kl_before*, *kl_at*, *kl_after* (shares of the forward KL) and
  *tokens_before* ... (shares of tokens) before, at and after the first wrong token, y_r cut at the
  same token; *own_at*, *right_at*: the teacher's probability of the wrong and of the right token
  there; *own_after*, *onset_after*: after it, of the token that is there and of onset words.
- *gradient_...*: cosine of a method's first summed gradient with that of cross-entropy on the
  reference solutions; *cut*: along y_o up to its first wrong token.
""")
)

# %%
ABOUT = """# Against the paper

Percent. *ours*: this repository, [95% interval from resampling problems]. *authors*: the authors' \
published raw files, [95% interval for new problems, by the Beta model of `8_audit`; none for \
LiveCodeBench, of which they do not say how many problems they used]; they may not be the files \
behind the paper's tables, and their aime24 columns repeat values. *paper*: what the paper prints; \
a dash where that is not known to us."""


def beside(table):
    """{title: ours, the authors' raw run and the printed value under each other, a column a
    benchmark}, for each task, mode, student and metric."""
    index, found = ["method", "subset", "run"], {}
    for (task, mode, student, metric), here in table.groupby(
        ["task", "mode", "student", "metric"], sort=False
    ):
        wide = here.set_index([*index, "benchmark"])[["ours", "authors", "paper"]]
        wide = wide.rename_axis("source", axis=1).stack().unstack("benchmark", sort=False)
        wide = wide.reset_index()
        wide.loc[wide.duplicated(index), index] = ""
        who = f"{mode.upper()}{'' if task == 'math' else f', {task}'}, {student}"
        found[f"{who}: {paper.METRICS[metric]}@16"] = wide
    return found


def against(settings):
    """results/against_paper.csv and .md."""
    table, path, parts = (
        paper.against_paper(settings),
        root() / "results/against_paper.csv",
        [ABOUT],
    )
    for title, wide in beside(table).items():
        parts += [f"## {title}", wide.to_markdown(index=False, disable_numparse=True)]
    store.write_text(path, table.to_csv(index=False, lineterminator="\n"))
    return store.write_text(path.with_suffix(".md"), "\n\n".join(parts) + "\n")


heading(2, "Against the paper", "paper")
text(against(settings), below=2)

# %%
heading(2, "Audit of the authors' raw runs", "audit")
picture(results / "figures" / "audit.png", "trd against base and token-level methods")
text(results / "tables" / "audit.md", below=2)
notebooks.write_timing("10_report")

# %% [markdown]
# ---
# Every number of ours is made of samples that lie in `runs/`. Each file of them carries its
# fingerprint: a hash of the weights (adapter included), prompts, sampling settings, random numbers
# and decoding code behind it, and of the grader. Nothing on this page names a machine or a moment:
# made again from the same samples it is the same.
