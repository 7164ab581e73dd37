"""Ours beside the paper: our tables, the authors' raw files, and what the paper prints."""

import itertools

import pandas as pd

from trdlib.analysis import audit, tables
from trdlib.analysis.show import DASH, MISSING, interval
from trdlib.run import get_run
from trdlib.settings import Settings, root

METRICS = {"avg": "avg", "passed": "pass"}  # of the published files -> of our tables
SAMPLES = 16  # a problem, unless a cell says otherwise
_SUBSETS = {"all": "", "fail": "_failed", "pass": "_passed", "fail_to_pass": "_failed_then_passed"}
_ROW = ["task", "mode", "student", "method", "subset", "run", "benchmark", "metric"]


def scale_of(student: str, task: str = "math") -> str:
    """The scale that is named for a student of the paper."""
    return student.lower().removesuffix("-2507") + ("" if task == "math" else f"-{task}")


def against_paper(settings: Settings) -> pd.DataFrame:
    """By published row and metric: ours, the authors' raw value, the printed one; text, percent."""
    published, records = audit.intervals(audit.runs()), []
    printed = pd.read_csv(root() / "results" / "published" / "paper.csv")
    printed = printed.set_index(["mode", "student", "method", "benchmark", "metric"])["value"]
    cells = published.query("mode != 'none'")[_ROW[:3]].drop_duplicates()
    # math first, OPD first, students as they are published
    for task, mode, student in sorted(cells.to_numpy(), key=lambda c: (c[0] != "math", c[1])):
        ours = _ours(settings, scale_of(student, task), mode)
        here = published.query("task == @task and student == @student and mode in ['none', @mode]")
        for row, metric in itertools.product(here.to_dict("records"), METRICS):
            key = row["benchmark"], metric
            mine = ours.get((row["method"] + _SUBSETS[row["subset"]], *key), MISSING)
            theirs = interval(*(row[metric + end] for end in ("", "_new_low", "_new_high")))
            if theirs != DASH and row["samples"] != SAMPLES:
                theirs += f", {row['samples']} samples"
            paper = printed.get((mode, student, row["method"], *key))
            paper = interval(paper if row["subset"] == "all" else None, None, None)
            row |= {"mode": mode, "metric": metric}
            records.append(row | {"ours": mine, "authors": theirs, "paper": paper})
    return pd.DataFrame(records)[[*_ROW, "ours", "authors", "paper"]]


def _ours(settings: Settings, scale: str, mode: str) -> dict[tuple[str, str, str], str]:
    """(method, benchmark, metric) -> the cell in the table of notebook 7, if there is one."""
    if scale not in settings.scales or mode not in settings.scales[scale].modes:
        return {}
    run = get_run(scale, mode, settings=settings)
    path, first = tables.paths(run)["csv"], run.settings.evaluation.temperatures[0]  # the paper's
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    return {(r["method"], r["benchmark"], metric): tables.cell(r, what) for r in rows
            if r["temperature"] == first for metric, what in METRICS.items()}  # fmt: skip
