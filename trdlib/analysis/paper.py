"""Ours beside the paper: our tables, the authors' raw files, and what the paper prints."""

from pathlib import Path

import pandas as pd

from trdlib import store
from trdlib.analysis import audit, tables
from trdlib.analysis.show import DASH, MISSING, interval
from trdlib.run import get_run
from trdlib.settings import Settings, root

SAMPLES = 16  # a problem, unless a cell says otherwise
_SUBSETS = {"all": "", "fail": "_failed", "pass": "_passed", "fail_to_pass": "_failed_then_passed"}
_ROW = ["task", "mode", "student", "method", "subset", "run", "benchmark", "metric"]
_ABOUT = """# Against the paper

Percent. *ours*: this repository, [95% interval from resampling problems]. *authors*: the authors' \
published raw files, [95% interval for new problems, by the Beta model of `8_audit`; none for \
LiveCodeBench, of which they do not say how many problems they used]; they may not be the files \
behind the paper's tables, and their aime24 columns repeat values. *paper*: what the paper prints; \
a dash where that is not known to us."""


def scale_of(student: str, task: str = "math") -> str:
    """The scale that is named for a student of the paper."""
    return student.lower().removesuffix("-2507") + ("" if task == "math" else f"-{task}")


def against_paper(settings: Settings) -> pd.DataFrame:
    """One row per published row and metric: ours, the authors' raw value, the printed value, as
    text in percent; what is not there is "not run" (ours) or a dash."""
    published, records = audit.intervals(audit.runs()), []
    printed = pd.read_csv(root() / "results" / "published" / "paper.csv")
    printed = printed.set_index(["mode", "student", "method", "benchmark", "metric"])["value"]
    cells = published.query("mode != 'none'")[_ROW[:3]].drop_duplicates()
    # math first, OPD first, students as they are published
    for task, mode, student in sorted(cells.to_numpy(), key=lambda c: (c[0] != "math", c[1])):
        ours = _ours(settings, scale_of(student, task), mode)
        here = "task == @task and student == @student and mode in ['none', @mode]"
        for row in published.query(here).itertuples():
            for metric in ("avg", "passed"):
                about = row.method, row.subset, row.run, row.benchmark, metric
                mine = ours.get((row.method + _SUBSETS[row.subset], *about[3:]), MISSING)
                ends = (getattr(row, metric + end) for end in ("", "_new_low", "_new_high"))
                theirs = interval(*ends)
                if theirs != DASH and row.samples != SAMPLES:
                    theirs += f", {row.samples} samples"
                paper = printed.get((mode, student, row.method, *about[3:]))
                paper = interval(paper if row.subset == "all" else None, None, None)
                records.append((task, mode, student, *about, mine, theirs, paper))
    return pd.DataFrame(records, columns=[*_ROW, "ours", "authors", "paper"])


def _ours(settings: Settings, scale: str, mode: str) -> dict[tuple[str, str, str], str]:
    """(method, benchmark, metric) -> the cell in the table of notebook 7, if there is one."""
    if scale not in settings.scales or mode not in settings.scales[scale].modes:
        return {}
    run = get_run(scale, mode, settings=settings)
    path, first = tables.paths(run)["csv"], run.settings.evaluation.temperatures[0]  # the paper's
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    rows = [row for row in rows if row["temperature"] == first]
    what = {"avg": "avg", "passed": "pass"}
    return {(r["method"], r["benchmark"], m): tables.cell(r, what[m]) for r in rows for m in what}


def markdown(table: pd.DataFrame) -> str:
    """Ours, the authors' raw run and the printed value under each other, a column a benchmark."""
    parts, index = [_ABOUT], ["method", "subset", "run"]
    for (task, mode, student), rows in table.groupby(_ROW[:3], sort=False):
        who = f"{mode.upper()}{'' if task == 'math' else f', {task}'}, {student}"
        for metric, here in rows.groupby("metric"):
            wide = here.set_index([*index, "benchmark"])[["ours", "authors", "paper"]]
            wide = wide.rename_axis("source", axis=1).stack().unstack("benchmark", sort=False)
            wide = wide.reset_index()
            wide.loc[wide.duplicated(index), index] = ""
            title = f"## {who}: {'avg' if metric == 'avg' else 'pass'}@16"
            parts += [title, wide.to_markdown(index=False, disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def write(settings: Settings) -> list[Path]:
    """results/against_paper.csv and .md."""
    table, path = against_paper(settings), root() / "results" / "against_paper.csv"
    store.write_text(path, table.to_csv(index=False, lineterminator="\n"))
    return [path, store.write_text(path.with_suffix(".md"), markdown(table))]
