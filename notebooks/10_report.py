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

from trdlib import jobs, store
from trdlib.analysis import paper, show, tables
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


contents = ""
for scale in scales:
    modes = [run.mode for run in shown if run.scale == scale]
    inside = "".join(link(f"{scale}-{mode}", mode.upper()) for mode in modes)
    contents += link(scale, f"Scale {scale}", inside)
contents += link("paper", "Against the paper") + link("audit", "Audit of the authors' raw runs")
display(HTML(f"<nav><ul>{contents}</ul></nav>"))

absent = [f"{run.scale} ({run.mode})" for run in runs if run not in shown]
display(Markdown(f"> {show.MISSING.capitalize()}: {', '.join(absent)}."))


# %%
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
    for run in (run for run in shown if run.scale == scale):
        paths, mode = tables.paths(run), run.mode.upper()
        heading(3, f"{mode}, scale {scale}", f"{scale}-{run.mode}")
        picture(paths["png"], f"Accuracies and paired differences, {mode}, scale {scale}")
        text(paths["md"], below=3)
        cost(paths["cost_csv"])
        heading(4, "Diagnosis", f"{scale}-{run.mode}-diagnosis")
        diagnosis = results / "diagnosis" / scale
        picture(diagnosis / f"{run.mode}.png", f"Prefix-failure signals, {mode}, scale {scale}")
        text(diagnosis / f"{run.mode}.md", below=4)
    if settings.scales[scale].map is not None:
        heading(3, "The map: when does TRD help?", f"{scale}-map")
        picture(results / "figures" / f"map_{scale}.png", "The map: what TRD gains, by knob")
        text(results / "tables" / f"map_{scale}.md", below=3, how=f"Run `make map SCALE={scale}`.")

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
jobs.write_timing("10_report")

# %% [markdown]
# ---
# Every number of ours is made of samples that lie in `runs/`. Each file of them carries its
# fingerprint: a hash of the weights (adapter included), prompts, sampling settings, random numbers
# and decoding code behind it, and of the grader. Nothing on this page names a machine or a moment:
# made again from the same samples it is the same.
