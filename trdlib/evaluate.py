"""The trained students on the benchmarks: their samples, graded. analysis/measure.py counts."""

import functools
import itertools
from pathlib import Path

import pandas as pd

from trdlib.rollout import ask, pool, table
from trdlib.run import Run
from trdlib.stats import avg_at_k, pass_at_k  # noqa: F401 - looked for here


def evaluate(
    runs: list[Run], task, sets: dict[str, pd.DataFrame], adapters: list[dict[int, Path] | None]
) -> list[dict[float, dict[str, pd.DataFrame]]]:
    """Sample and grade every benchmark with every base seed at every temperature of the scale:
    {temperature: {benchmark: samples}} for each run.

    The runs are of one scale, all their samples jobs of one pool; adapters: of each run by seed,
    None for rows that are not trained. Tables are generation files plus `seed`, read if there.
    """
    benchmarks = {name: sets[name] for name in sets if name not in ("train", "validation")}
    seeds, temperatures = runs[0].settings.seeds, runs[0].settings.evaluation.temperatures

    asked = functools.cache(lambda role, s, name: ask(runs[0], s, benchmarks[name], role))
    cells = {}  # the arguments of `table`; those of one adapter in a row: it is loaded once
    for run, found in zip(runs, adapters, strict=True):
        role = "teacher" if run.method == "teacher" else "student"
        again = int(run.method == "base_again") if run.mode == "none" else run.recipe.again
        for seed, temperature, name in itertools.product(seeds, temperatures, benchmarks):
            path, how = run.samples(seed, temperature, name), run.settings.evaluation
            what = asked(role, seed, name)._replace(adapter=found and found[seed], stream=again)
            cells[path] = (run, task, path, what, how.at(temperature))
    tables = dict(zip(cells, pool(runs[0], table, [*cells.values()], "evaluate"), strict=True))

    def whole(run: Run, *at) -> pd.DataFrame:
        found = [tables[run.samples(seed, *at)].assign(seed=seed) for seed in seeds]
        return pd.concat(found, ignore_index=True)

    return [{t: {b: whole(run, t, b) for b in benchmarks} for t in temperatures} for run in runs]
