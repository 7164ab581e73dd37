"""The trained students on the benchmarks: their samples, graded. analysis/measure.py counts."""

import functools
import itertools
from pathlib import Path

import pandas as pd

from trdlib.rollout import ask, tables
from trdlib.run import Run
from trdlib.stats import allocate, avg_at_k, pass_at_k  # noqa: F401 - looked for here


def evaluate(
    runs: list[Run], task, sets: dict[str, pd.DataFrame], adapters: list[dict[int, Path] | None]
) -> list[dict[float, dict[str, pd.DataFrame]]]:
    """Sample and grade every benchmark with every base seed at every temperature of the scale:
    {temperature: {benchmark: samples}} for each run.

    The runs are of one scale. adapters: of each run by seed, None for rows that are not trained.
    """
    benchmarks = {name: sets[name] for name in sets if name not in ("train", "validation")}
    how, base, shares = runs[0].settings.evaluation, runs[0].with_("none", "base"), {}
    places = [*itertools.product(how.temperatures, benchmarks)]

    asked = functools.cache(lambda role, s, name: ask(runs[0], s, benchmarks[name], role))

    def cell(run: Run, adapter: Path | None, temperature: float, name: str, seed: int) -> tuple:
        """The arguments of `table`."""
        again = int(run.method == "base_again") if run.mode == "none" else run.recipe.again
        what = asked("teacher" if run.method == "teacher" else "student", seed, name)
        what, sampling = what._replace(adapter=adapter, stream=again), how.at(temperature)
        if how.base_samples and (run.mode, run.method) == ("none", "base"):
            # random numbers of its own: else its luck were that of those it decides on
            sampling = sampling.model_copy(update={"samples": how.base_samples})
            what = what._replace(stream=-1)
        elif how.base_samples:
            sampling = sampling.model_copy(update={"samples": 1})
            each = [row for row, n in enumerate(shares[temperature, name]) for _ in range(n)]
            rows, asks = ([of[row] for row in each] for of in (what.rows, what.prompts))
            what = what._replace(rows=rows, prompts=asks)
        return run, task, run.samples(seed, temperature, name), what, sampling

    if how.base_samples:
        first = [cell(base, None, *place, base.seeds[0]) for place in places]
        found = tables(base, first, "evaluate: base")
        for (at, name), (_, _, path, *_) in zip(places, first, strict=True):
            right, mean = found[path].groupby("id", sort=False)["correct"].sum(), how.at(at).samples
            shares[at, name] = allocate(right, how.base_samples, mean, how.least(at))
    cells = [
        cell(run, found and found[seed], *place, seed)
        for run, found in zip(runs, adapters, strict=True)
        for seed in run.seeds
        for place in places
    ]
    made = tables(runs[0], cells, "evaluate")

    def whole(run: Run, *place) -> pd.DataFrame:
        found = [made[run.samples(seed, *place)].assign(seed=seed) for seed in run.seeds]
        return pd.concat(found, ignore_index=True)

    return [
        {t: {n: whole(run, t, n) for n in benchmarks} for t in how.temperatures} for run in runs
    ]
