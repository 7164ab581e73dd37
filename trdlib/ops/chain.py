"""What several notebooks need of the steps: the first ones in a row, and accuracies to record."""

from pathlib import Path

import pandas as pd

from trdlib import store
from trdlib.analysis.signals import cut
from trdlib.ops import notebooks
from trdlib.refine import refine, solve
from trdlib.rollout import ask, rollout, table
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


def validation(run: Run, task, problems: pd.DataFrame, adapters: dict[int, Path]) -> dict:
    """`counts` of the trained students (base seed -> adapter) on the validation set."""
    tables, sampling = [], run.settings.evaluation.validation
    for seed, adapter in adapters.items():
        path = run.folder(seed) / "validation.parquet"
        with store.locked(path):
            found = table(run, task, path, ask(run, seed, problems, adapter=adapter), sampling)
        tables.append(found.assign(seed=seed))
    return notebooks.measured(pd.concat(tables), problems)
