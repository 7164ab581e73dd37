"""From samples to metrics."""

import numpy as np
import pandas as pd
import pytest

from trdlib import evaluate, store
from trdlib.analysis import measure, tables
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
    fewer = pd.DataFrame(rows).query("id == 'a' or sample > 0")
    counts, each = measure.correct_counts(fewer)
    assert each == [3, 2] and counts.tolist() == [[2, 0], [0, 2]]


def test_the_base_once_and_the_others_by_what_it_gets_right(task, sets):
    """Its samples are of random numbers of their own; what it is unsure of is asked more often;
    accuracies are means of problems' means, pass@k is of the least, budgets cut what is longer."""
    from trdlib import stats

    weights = {role: f"models.{role}=models/tiny/0/{role}" for role in ("student", "teacher")}
    protocol = f"smoke {' '.join(weights.values())} evaluation.base_samples=8 "
    protocol += "evaluation.sampling.samples=4 evaluation.also_at={} evaluation.budgets=[25,100]"
    runs = [get_run(protocol, "none", name) for name in ("teacher", "base")]
    runs.append(get_run(protocol, "opd", "trd"))
    # of the "trained" one the adapter is none: the same model, other samples
    adapters = [None, None, {0: None, 1: None}]
    samples = evaluate.evaluate(runs, task, sets, adapters)
    choice = {"chosen": 1.0, "grid": [1.0], "trajectory_accuracy": 0.5, "rows_by_seed": [1, 1]}
    found = measure.measure(runs, sets, samples, [None, None, choice])
    for name in ("chain", "trail"):
        teacher, base, ours = (one[0.6][name] for one in samples)
        assert {*teacher["seed"], *base["seed"]} == {0} and {*ours["seed"]} == {0, 1}
        right = base.groupby("id")["correct"].sum()
        assert (base.groupby("id").size() == 8).all() and right.nunique() > 1
        wanted = stats.allocate(right, 8, 4, 2)
        for _, mine in [*ours.groupby("seed"), *teacher.groupby("seed")]:
            sizes = mine.groupby("id").size()
            assert sizes.tolist() == wanted.tolist() and sizes.sum() == 4 * len(right)
            assert mine.groupby("id")["sample"].max().tolist() == (sizes - 1).tolist()
        one = right.index[right > 0][0]
        texts = [t[(t["id"] == one) & (t["seed"] == 0)]["text"].tolist() for t in (base, ours)]
        assert texts[0][: len(texts[1])] != texts[1]
        cells = [one["benchmarks"]["0.6"][name] for one in found]
        by_hand = ours.groupby(["seed", "id"])["correct"].mean().groupby("seed").mean()
        assert cells[2]["avg_at_k_by_seed"] == pytest.approx(by_hand.tolist())
        assert [cell["k"] for cell in cells] == [4, 8, 4] and "of" not in cells[1]
        pairs = ours.groupby(["seed", "id"])["correct"].agg(["size", "sum"]).to_numpy()
        passed = np.mean([stats.pass_at_k(n, c, 2) for n, c in pairs])
        assert cells[2]["pass_at_k"]["value"] == pytest.approx(passed, abs=1e-6)
        short = ours.assign(correct=ours["correct"] & (ours["n_tokens"] <= 25))
        short = short.groupby(["seed", "id"])["correct"].mean().mean()
        budgets = cells[2]["at_budget"]
        assert budgets["25"]["value"] == pytest.approx(short, abs=1e-6)
        assert budgets["100"] == cells[2]["avg_at_k"]
    run = runs[2]
    gaps = tables.differences(run)
    gap = gaps[
        (gaps["ours"] == "trd") & (gaps["theirs"] == "base") & (gaps["benchmark"] == "chain")
    ]
    cells = [one["benchmarks"]["0.6"]["chain"]["avg_at_k"]["value"] for one in found]
    assert gap["value"].item() == pytest.approx(cells[2] - cells[1], abs=1e-5)
    shown = tables.budgets(run)
    assert len(shown) == 3 * 2 * 2 and {*shown["method"]} == {"base", "teacher", "trd"}
    assert "the base 8 times a problem" in tables.how(run, tables.collect(run))


def test_metrics_of_a_run_are_those_of_its_samples(task, sets):
    """From the generations to the JSON, recomputed by hand; the base differs from itself. There is
    room for the answers to trails only."""
    short = "smoke evaluation.sampling.max_new_tokens=27"
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
