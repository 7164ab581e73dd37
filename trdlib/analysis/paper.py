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


def scale_of(student: str, task: str = "math") -> str:
    """The scale that is named for a student of the paper."""
    return student.lower().removesuffix("-2507") + ("" if task == "math" else f"-{task}")


def against_paper(settings: Settings) -> pd.DataFrame:
    """One row per published row and metric: ours, the authors' raw value, the printed value.

    The three are text in percent, ours and authors with the interval that resamples problems
    (theirs by the Beta model of audit.py). Ours is "not run" where there is none, the paper's a
    dash where it is not known.
    """
    published = audit.intervals(audit.runs())
    printed = pd.read_csv(root() / "results" / "published" / "paper.csv")
    printed = printed.set_index(["mode", "student", "method", "benchmark", "metric"])["value"]
    trained = published[published["mode"] != "none"]
    cells = dict.fromkeys(zip(trained["task"], trained["mode"], trained["student"], strict=True))
    columns, records = ["task", "mode", "student", "method", "subset", "run", "benchmark"], []
    # math first, OPD first, students as they are published
    for task, mode, student in sorted(cells, key=lambda cell: (cell[0] != "math", cell[1])):
        ours = _our_table(settings, scale_of(student, task), mode)
        rows = published[published["mode"].isin(["none", mode]) & (published["task"] == task)]
        for row in rows[rows["student"] == student].itertuples():
            about = (task, mode, student, row.method, row.subset, row.run, row.benchmark)
            for metric, column in (("avg", "avg"), ("passed", "pass")):
                values = (_ours(ours, row, column), _theirs(row, metric))
                paper = printed.get((mode, student, row.method, row.benchmark, metric))
                paper = interval(paper if row.subset == "all" else None, None, None)
                records.append((*about, metric, *values, paper))
    return pd.DataFrame(records, columns=[*columns, "metric", "ours", "authors", "paper"])


def _theirs(row, metric: str) -> str:
    """What was not published is a dash; a benchmark of unknown size has no interval."""
    names = (metric, f"{metric}_new_low", f"{metric}_new_high")
    cell = interval(*(getattr(row, name) for name in names))
    return cell if cell == DASH or row.samples == SAMPLES else f"{cell}, {row.samples} samples"


def _our_table(settings: Settings, scale: str, mode: str) -> pd.DataFrame | None:
    """The table that notebook 7 wrote for the scale, if it did."""
    if scale not in settings.scales or mode not in settings.scales[scale].modes:
        return None
    path = tables.paths(get_run(scale, mode, settings=settings))["csv"]
    return pd.read_csv(path).set_index(["method", "benchmark"]) if path.is_file() else None


def _ours(ours: pd.DataFrame | None, row, metric: str) -> str:
    key = (row.method + _SUBSETS[row.subset], row.benchmark)
    if ours is None or key not in ours.index or not ours.loc[key, "run"]:
        return MISSING
    return interval(*(ours.loc[key, f"{metric}_{end}"] for end in ("value", "low", "high")))


def markdown(table: pd.DataFrame) -> str:
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
    index = ["method", "subset", "run"]
    for (task, mode, student), rows in table.groupby(["task", "mode", "student"], sort=False):
        for metric, title in (("avg", "avg@16"), ("passed", "pass@16")):
            here = rows[rows["metric"] == metric]
            wide = here.set_index([*index, "benchmark"])[["ours", "authors", "paper"]]
            wide = wide.rename_axis("source", axis=1).stack().unstack("benchmark", sort=False)
            wide = wide.reset_index()
            wide.loc[wide.duplicated(index), index] = ""
            parts += [
                f"## {mode.upper()}{'' if task == 'math' else f', {task}'}, {student}: {title}",
                wide.to_markdown(index=False, disable_numparse=True),
            ]
    return "\n\n".join(parts) + "\n"


def write(settings: Settings) -> list[Path]:
    """results/against_paper.csv and .md."""
    table, path = against_paper(settings), root() / "results" / "against_paper.csv"
    return [
        store.write_text(path, table.to_csv(index=False, lineterminator="\n")),
        store.write_text(path.with_suffix(".md"), markdown(table)),
    ]
