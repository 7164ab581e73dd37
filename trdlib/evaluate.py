"""The trained students on the benchmarks: their samples, graded. analysis/measure.py counts."""

import functools
import itertools
from pathlib import Path

import pandas as pd

from trdlib.prompts import student_prompts
from trdlib.rollout import Request, pool, table
from trdlib.run import Run
from trdlib.stats import allocate, avg_at_k, pass_at_k  # noqa: F401 - looked for here


def evaluate(
    runs: list[Run], task, sets: dict[str, pd.DataFrame], adapters: list[dict[int, Path] | None]
) -> list[dict[float, dict[str, pd.DataFrame]]]:
    """Sample and grade every benchmark with every base seed at every temperature of the scale:
    {temperature: {benchmark: samples}} for each run.

    The runs are of one scale; adapters: of each run by seed, None for rows that are not trained.
    All samples of all runs are jobs of one pool; with evaluation.base_samples the base's come
    first, and rows that are not trained have one seed. The tables have the columns of a generation
    file plus `seed`. What is there is read.
    """
    benchmarks = {name: sets[name] for name in sets if name not in ("train", "validation")}
    how, base, shares = runs[0].settings.evaluation, runs[0].with_("none", "base"), {}
    places = [*itertools.product(how.temperatures, benchmarks)]

    @functools.cache
    def asked(role: str, seed: int, name: str) -> tuple[list[dict], list]:
        rows = benchmarks[name].to_dict("records")
        return rows, student_prompts(runs[0], seed, rows, role)

    def cell(run: Run, adapter: Path | None, temperature: float, name: str, seed: int) -> tuple:
        """The arguments of `table`."""
        role = "teacher" if run.method == "teacher" else "student"
        again = int(run.method == "base_again") if run.mode == "none" else run.recipe.again
        both, sampling = asked(role, seed, name), how.at(temperature)
        if how.base_samples and (run.mode, run.method) == ("none", "base"):
            again = -1  # random numbers of its own: else its luck were that of those it decides on
            sampling = sampling.model_copy(update={"samples": how.base_samples})
        elif how.base_samples:
            mine, sampling = shares[temperature, name], sampling.model_copy(update={"samples": 1})
            both = [[one for one, n in zip(of, mine, strict=True) for _ in range(n)] for of in both]
        request = Request(role, seed, *both, adapter, stream=again)
        return run, task, run.samples(seed, temperature, name), request, sampling

    if how.base_samples:
        first = [cell(base, None, *place, base.seeds[0]) for place in places]
        for place, found in zip(places, pool(base, table, first, "evaluate: base"), strict=True):
            right, (at, _) = found.groupby("id", sort=False)["correct"].sum(), place
            shares[place] = allocate(right, how.base_samples, how.at(at).samples, how.least(at))
    cells = [cell(run, found and found[seed], *place, seed)
             for run, found in zip(runs, adapters, strict=True)
             for place in places for seed in run.seeds]  # fmt: skip
    tables = iter(pool(runs[0], table, cells, "evaluate"))

    def whole(run: Run) -> pd.DataFrame:
        return pd.concat([next(tables).assign(seed=s) for s in run.seeds], ignore_index=True)

    return [{t: {n: whole(run) for n in benchmarks} for t in how.temperatures} for run in runs]
