"""results/report.html: all tables and figures of all scales on one page that needs no network.

It only gathers what the notebooks wrote to results/; what is missing is named as not run. Beside
it, the tables against the paper: ours, the authors' raw files, and what the paper prints.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

from trdlib import audit, config, data, tables

DASH, SAMPLES = "-", 16  # samples a problem, unless a cell says otherwise
_STYLE = """
:root { color-scheme: light; --line: #d8d8d8; --dim: #555; }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; }
nav { padding: 1rem; border-bottom: 1px solid var(--line); font-size: 14px; }
nav ol { margin: 0; padding-left: 1.2rem; }
nav ol ol { font-size: 13px; }
a { color: #08519c; }
main { padding: 1rem; max-width: 76rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 2px solid #111; }
h3 { margin-top: 2rem; }
h4, h5 { margin: 1.4rem 0 .4rem; }
p, li { max-width: 65rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  text-align: left; }
thead th { border-bottom: 1.5px solid #111; }
tr.trd td { font-weight: 600; background: #fbeeee; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption, .dim { color: var(--dim); font-size: 13px; }
.missing { padding: .4rem .8rem; border-left: 4px solid #9e9e9e; background: #f4f4f4; }
summary { cursor: pointer; }
@media (min-width: 1100px) {
  body { display: grid; grid-template-columns: 17rem minmax(0, 1fr); }
  nav { position: sticky; top: 0; height: 100vh; overflow-y: auto; border-bottom: 0;
    border-right: 1px solid var(--line); }
  main { padding: 1rem 2rem; }
}
@media (max-width: 700px) { figure { overflow-x: auto; } img { max-width: none; height: 15rem; } }
@media print { nav { display: none; } body { display: block; } }
"""


# ------------------------------------------------------------------------------ against the paper


def scale_of(student: str) -> str:
    """The scale that is named for a student of the paper."""
    return student.lower().removesuffix("-2507")


def against_paper(settings: config.Settings) -> pd.DataFrame:
    """One row per published row and metric: ours, the authors' raw value, the printed value.

    Columns: task, mode, student, method, subset, run, benchmark, metric and, as text in percent,
    ours and authors with the interval that resamples problems (theirs by the Beta model of
    audit.py) and paper. Ours is "not run" where there is none, the paper's a dash where it is not
    known.
    """
    published = audit.intervals(audit.runs())
    printed = pd.read_csv(config.root() / "results" / "published" / "paper.csv")
    printed = printed.set_index(["mode", "student", "method", "benchmark", "metric"])["value"]
    records = []
    trained = published[published["mode"] != "none"]
    cells = dict.fromkeys(zip(trained["task"], trained["mode"], trained["student"], strict=True))
    # math first, OPD first, students as they are published
    for task, mode, student in sorted(cells, key=lambda cell: (cell[0] != "math", cell[1])):
        ours = _our_table(settings, task, mode, student)
        rows = published[published["mode"].isin(["none", mode]) & (published["task"] == task)]
        for row in rows[rows["student"] == student].itertuples():
            for metric in ("avg", "passed"):
                low, high = (getattr(row, f"{metric}_new_{end}") for end in ("low", "high"))
                key = (mode, student, row.method, row.benchmark, metric)
                known = row.subset == "all" and key in printed.index
                records.append(
                    {
                        "task": task,
                        "mode": mode,
                        "student": student,
                        "method": row.method,
                        "subset": row.subset,
                        "run": row.run,
                        "benchmark": row.benchmark,
                        "metric": metric,
                        "ours": _our_cell(ours, row, metric),
                        "authors": _theirs(getattr(row, metric), low, high, row.samples),
                        "paper": f"{100 * printed[key]:.1f}" if known else DASH,
                    }
                )
    return pd.DataFrame(records)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _theirs(value: float, low: float, high: float, samples: int) -> str:
    """What was not published is a dash; a benchmark of unknown size has no interval."""
    if np.isnan(value):
        return DASH
    cell = f"{100 * value:.1f}" if np.isnan(low) else _percent(value, low, high)
    return cell if samples == SAMPLES else f"{cell}, {samples} samples"


def _our_table(
    settings: config.Settings, task: str, mode: str, student: str
) -> pd.DataFrame | None:
    """The table that notebook 7 wrote for the student's scale, if it did."""
    scale = scale_of(student)
    if scale not in settings.scales or mode not in settings.scales[scale].modes:
        return None
    path = tables.paths(config.run(scale, task, mode, settings=settings))["csv"]
    return pd.read_csv(path).set_index(["method", "benchmark"]) if path.is_file() else None


def _our_cell(ours: pd.DataFrame | None, row, metric: str) -> str:
    names = {"fail": "_failed", "pass": "_passed", "fail_to_pass": "_failed_then_passed"}
    key = (row.method + names.get(row.subset, ""), row.benchmark)
    if ours is None or key not in ours.index or not ours.loc[key, "run"]:
        return tables.MISSING
    column = {"avg": "avg", "passed": "pass"}[metric]
    return _percent(*(ours.loc[key, f"{column}_{end}"] for end in ("value", "low", "high")))


def against_paper_markdown(table: pd.DataFrame) -> str:
    """Ours, the authors' raw run and the printed value under each other, a column a benchmark."""
    parts = [
        "# Against the paper",
        "Percent. *ours*: this repository, [95% interval from resampling problems]. "
        "*authors*: the authors' published raw files, [95% interval for new problems, by the Beta "
        "model of `8_audit`; none for LiveCodeBench, of which they do not say how many problems "
        "they used]; they may not be the files behind the paper's tables, and their "
        "aime24 columns repeat values. *paper*: what the paper prints; a dash where that is not "
        "known to us.",
    ]
    for (task, mode, student), rows in table.groupby(["task", "mode", "student"], sort=False):
        for metric, title in (("avg", "avg@16"), ("passed", "pass@16")):
            here = rows[rows["metric"] == metric]
            long = here.melt(
                id_vars=["method", "subset", "run", "benchmark"],
                value_vars=["ours", "authors", "paper"],
                var_name="source",
            )
            index = ["method", "subset", "run", "source"]
            wide = long.pivot(index=index, columns="benchmark", values="value")
            order = long[index].drop_duplicates()
            place = {key: i for i, key in enumerate(here[index[:3]].drop_duplicates().itertuples(
                index=False, name=None))}  # fmt: skip
            sources = ["ours", "authors", "paper"]
            keys = sorted(
                order.itertuples(index=False, name=None),
                key=lambda key: (place[key[:3]], sources.index(key[3])),
            )
            wide = wide.loc[keys, list(here["benchmark"].unique())].reset_index()
            again = wide.duplicated(index[:3])
            wide.loc[again, index[:3]] = ""
            parts += [
                f"## {mode.upper()}{'' if task == 'math' else f', {task}'}, {student}: {title}",
                wide.to_markdown(index=False, disable_numparse=True),
            ]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------- the page


class _Page:
    """Collects the parts of the page and its table of contents."""

    def __init__(self):
        self.parts: list[str] = []
        self.contents: list[tuple[int, str, str]] = []

    def heading(self, level: int, title: str) -> None:
        anchor = re.sub(r"[^a-z0-9]+", "-", f"{len(self.contents)}-{title.lower()}").strip("-")
        self.contents.append((level, title, anchor))
        self.parts.append(f'<h{level} id="{anchor}">{html.escape(title)}</h{level}>')

    def markdown(self, text: str, *, below: int) -> None:
        """Markdown without its first heading; the others sink below the given level."""
        text = re.sub(r"\A# .*\n", "", text)
        text = re.sub(
            r"^(#+) ", lambda m: "#" * min(6, len(m[1]) + below - 1) + " ", text, flags=re.M
        )
        text = re.sub(r"^!\[.*\n?", "", text, flags=re.M)  # figures are put in by name
        self.parts.append(_html_of(text))

    def missing(self, what: str, how: str) -> None:
        self.parts.append(
            f'<p class="missing">{html.escape(what)}: not run. {html.escape(how)}</p>'
        )

    def file(self, path: Path, *, below: int, what: str, how: str) -> None:
        if path.is_file():
            self.markdown(path.read_text(encoding="utf-8"), below=below)
        else:
            self.missing(what, how)

    def figure(self, path: Path, caption: str) -> None:
        if path.is_file():
            picture = base64.b64encode(path.read_bytes()).decode()
            self.parts.append(
                f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )

    def table(self, frame: pd.DataFrame) -> None:
        self.parts.append(_html_of(frame.to_markdown(index=False, disable_numparse=True)))

    def render(self, title: str) -> str:
        links, depth = [], 2
        for level, text, anchor in self.contents:
            links.append("<ol>" * max(0, level - depth) + "</ol>" * max(0, depth - level))
            links.append(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>')
            depth = level
        links.append("</ol>" * (depth - 2))
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>"
            f"<nav aria-label='Contents'><ol>{''.join(links)}</ol></nav>\n<main>"
            f"<h1>{html.escape(title)}</h1>\n" + "\n".join(self.parts) + "\n</main></body></html>\n"
        )


def _html_of(text: str) -> str:
    from markdown_it import MarkdownIt

    found = MarkdownIt("commonmark").enable("table").render(text)
    found = found.replace("<table>", '<div class="scroll"><table>')
    found = found.replace("</table>", "</table></div>")
    return re.sub(r"<tr>(\s*<td[^>]*>trd</td>)", r'<tr class="trd">\1', found)


def _commit(root: Path) -> str:
    """The commit that the page was made at; the page itself may be committed after it."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown (no git here)"


def _cost(page: _Page, path: Path) -> None:
    page.heading(4, "Cost")
    if not path.is_file():
        return page.missing("cost", "It is written by the stage tables.")
    found = pd.read_csv(path)
    found = found[found["run"]].drop(columns="run")
    shown = found.map(lambda v: v if isinstance(v, str) else DASH if pd.isna(v) else f"{v:,.1f}")
    for name in ("generated", "trained", "student_tokens", "teacher_tokens", "peak_mib"):
        shown[name] = found[name].map(lambda v: DASH if pd.isna(v) else f"{v:,.0f}")
    page.parts.append(
        '<p class="dim">All base seeds together, one learning rate. generated: tokens sampled for '
        "the trajectories (y_o and y_r for trd). mean length: of the trajectory, in tokens. "
        "trained: response tokens. student tokens, teacher tokens: through the models in training, "
        "prompts included. Core-seconds of model compute and MiB of one process are measurements "
        "of the machine that made this page.</p>"
    )
    page.table(shown.rename(columns=lambda c: c.replace("_", " ")))


def _provenance(page: _Page, runs: list[config.Run]) -> None:
    page.heading(2, "Provenance")
    page.parts.append(
        "<p>Every number of ours is made of samples that lie in <code>runs/</code>. A file's "
        "fingerprint is a hash of the weights (adapter included), prompts, sampling settings, "
        "random numbers and decoding code behind it, then, after the slash, of the grader. "
        "Adapters are named by the hash of their weights.</p>"
    )
    records = []
    for scale in dict.fromkeys(run.scale for run in runs):
        for path in sorted((config.root() / "results" / "metrics" / scale).rglob("*.json")):
            metrics = data.read_json(path)
            about, adapters = metrics["run"], metrics.get("training", {}).get("adapters", {})
            for benchmark, stamps in metrics.get("fingerprints", {}).items():
                for seed, stamp in stamps.items():
                    record = {"run": "/".join(about.values()), "benchmark": benchmark}
                    record |= {"seed": seed, "adapter": adapters.get(seed, DASH)}
                    records.append(record | {"samples": stamp})
    order = ["run", "benchmark", "seed", "adapter", "samples"]
    if records:
        page.parts.append(f"<details><summary>{len(records)} sample files</summary>")
        page.table(pd.DataFrame(records)[order])
        page.parts.append("</details>")
    else:
        page.missing("evaluation", "Run dvc repro.")


def _shown(settings: config.Settings) -> list[config.Run]:
    """What run.* names, and what else has its table on file: another scale, run before."""
    shown = []
    for scale, section in settings.scales.items():
        for task in ("math", *section.tasks):
            for mode in section.modes:
                run, asked = config.run(scale, task, mode, settings=settings), settings.run
                named = scale in asked.scales and task in asked.tasks and mode in asked.modes
                if named or tables.paths(run)["md"].is_file():
                    shown.append(run)
    return shown


def build(settings: config.Settings) -> str:
    """The page as HTML."""
    page, results = _Page(), config.root() / "results"
    page.parts.append(
        "<p>On-policy distillation trains a student on its own rollouts y_o; Trajectory-Refined "
        "Distillation (<code>trd</code>) lets the teacher rewrite them first and trains on the "
        "rewrites y_r. The teacher is another model (OPD) or the student itself, given the "
        "reference solution (OPSD). Values are percent with an interval from resampling problems; "
        "a star marks a difference only after correction for the number of comparisons.</p>"
        f'<p class="dim">Made at commit {_commit(config.root())}.</p>'
    )
    runs = _shown(settings)
    for scale, of_scale in itertools.groupby(runs, key=lambda run: run.scale):
        page.heading(2, f"Scale {scale}")
        for run in of_scale:
            paths, name = tables.paths(run), f"{run.mode}_{run.task}_{scale}"
            page.heading(3, f"{run.mode.upper()}, {run.task}")
            page.figure(paths["png"], f"avg@k of every method, {run.mode.upper()}, scale {scale}")
            page.file(paths["md"], below=4, what=name, how="Run dvc repro.")
            page.figure(paths["coverage_png"], "Coverage: share not solved in k samples")
            _cost(page, paths["cost_csv"])
            page.heading(4, "Diagnosis")
            page.figure(results / "figures" / f"diagnose_{name}.png", "Prefix-failure signals")
            path = results / "tables" / f"diagnose_{name}.md"
            page.file(path, below=5, what="diagnosis", how="Run dvc repro.")
        if settings.scales[scale].map is None:
            continue
        page.heading(3, "The map: when does TRD help?")
        page.figure(results / "figures" / f"map_{scale}.png", "The map, OPD, task trail")
        path = results / "tables" / f"map_{scale}.md"
        page.file(path, below=4, what="the map", how=f"Run make map SCALE={scale}.")
    page.heading(2, "Against the paper")
    page.markdown(against_paper_markdown(against_paper(settings)), below=3)
    page.heading(2, "Audit of the authors' raw runs")
    page.figure(results / "figures" / "audit.png", "trd against base and token-level methods")
    page.file(results / "tables" / "audit.md", below=3, what="audit", how="Run dvc repro.")
    _provenance(page, runs)
    return page.render("Trajectory-Refined Distillation: all tables and figures")


def write(settings: config.Settings) -> list[Path]:
    """results/report.html and results/against_paper.{md,csv}."""
    results = config.root() / "results"
    table = against_paper(settings)
    return [
        data.write_text(
            results / "against_paper.csv", table.to_csv(index=False, lineterminator="\n")
        ),
        data.write_text(results / "against_paper.md", against_paper_markdown(table)),
        data.write_text(results / "report.html", build(settings)),
    ]
