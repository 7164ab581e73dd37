"""From samples to metrics."""

import numpy as np
import pandas as pd
import pytest

from trdlib import evaluate, store
from trdlib.analysis import measure
from trdlib.run import get_run


def test_counts_by_seed_and_problem():
    rows = [
        {"seed": seed, "id": name, "sample": s, "correct": s < right}
        for seed, names in ((0, {"b": 1, "a": 2}), (7, {"a": 0, "b": 3}))
        for name, right in names.items()
        for s in range(3)
    ]
    counts, k = measure.correct_counts(pd.DataFrame(rows))
    assert k == 3
    assert counts.tolist() == [[2, 1], [0, 3]]
    with pytest.raises(ValueError, match="same number of samples"):
        measure.correct_counts(pd.DataFrame(rows[1:]))


def test_metrics_of_a_run_are_those_of_its_samples(task, sets):
    """From the generations to the JSON, recomputed by hand; the base differs from itself. There is
    room for the answers to trails only."""
    short = "smoke evaluation.sampling.max_new_tokens=25"
    runs = [get_run(short, "none", name) for name in ("base", "base_again")]

    def measured():
        samples = evaluate.evaluate(runs, task, sets, [None, None])
        return measure.measure(runs, sets, samples, [None, None])

    run, (found, again) = runs[0], measured()
    assert list(found["benchmarks"]) == ["0.6", "1"]
    names = [n for n in sets if n not in ("train", "validation")]
    assert all(list(cells) == names for cells in found["benchmarks"].values())
    assert store.read_json(run.metrics) == found
    cells = [(t, n, cell) for t, of in found["benchmarks"].items() for n, cell in of.items()]
    for temperature, name, cell in cells:
        places = [(s, float(temperature), name) for s in run.settings.seeds]
        frames, twins = ([pd.read_parquet(one.samples(*p)) for p in places] for one in runs)
        assert cell["avg_at_k_by_seed"] == [f["correct"].mean() for f in frames]
        assert cell["avg_at_k"]["value"] == pytest.approx(
            np.mean([f["correct"].mean() for f in frames]), abs=1e-6
        )
        assert cell["mean_tokens"] == pytest.approx(pd.concat(frames)["n_tokens"].mean())
        assert cell["unfinished"] == pytest.approx(1 - pd.concat(frames)["finished"].mean())
        assert not pd.concat(frames).query("correct and not finished").shape[0]
        other = again["benchmarks"][temperature][name]
        assert (cell["k"], cell["n"]) == (other["k"], other["n"])
        assert cell["k"] == run.settings.evaluation.at(float(temperature)).samples
        said = [[text for frame in of for text in frame["text"]] for of in (frames, twins)]
        assert said[0] != said[1]  # other random numbers
    assert {0.0, 1.0} <= {cell["unfinished"] for _, _, cell in cells}
    assert measured() == [found, again]
