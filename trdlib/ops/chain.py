"""What several notebooks need of the steps: the first ones in a row, and accuracies to record."""

from pathlib import Path

import pandas as pd

from trdlib import store
from trdlib.analysis.measure import correct_counts
from trdlib.analysis.signals import cut
from trdlib.refine import refine, solve
from trdlib.rollout import answers, rollout
from trdlib.run import Run


def sampled(runs: list[Run], task, problems: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """{mode: {"y_o": ..., "y_r": ..., "y_t": ...}}: what the runs (of one scale) train on."""
    needed = {run.recipe.trajectory for run in runs}
    y_o = rollout(runs[0], task, problems) if needed - {"y_t", "y_star"} else None
    tables = {}
    for run in {run.mode: run for run in runs}.values():
        found = tables[run.mode] = {"y_o": y_o}
        if "y_r" in needed:
            found["y_r"] = refine(run, task, problems, y_o)
        if "y_t" in needed:
            found["y_t"] = solve(run, task, problems)
        if "y_o_cut" in needed:
            found["y_o_cut"] = cut(run, task, problems, y_o)
    return tables


def counts(correct, k: int, problems: str = "") -> dict:
    """A measured accuracy, to be resampled and compared: right samples of k, (seeds, problems), and
    a hash of the problems, so that only what was measured on the same ones is compared."""
    rows = [[int(value) for value in row] for row in correct]
    return {"correct": rows, "k": int(k), "problems": problems}


def measured(samples: pd.DataFrame, problems: pd.DataFrame) -> dict:
    """`counts` of a table of samples (with a column seed)."""
    return counts(*correct_counts(samples), store.content_hash(problems["problem"].tolist()))


def validation(run: Run, task, problems: pd.DataFrame, adapters: dict[int, Path]) -> dict:
    """`counts` of the trained students (base seed -> adapter) on the validation set."""
    tables, sampling = [], run.settings.evaluation.validation
    for seed, adapter in adapters.items():
        path = run.folder(seed) / "validation.parquet"
        with store.locked(path):
            found = answers(run, task, problems, path, sampling, seed=seed, adapter=adapter)
        tables.append(found.assign(seed=seed))
    return measured(pd.concat(tables), problems)
