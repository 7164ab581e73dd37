"""A pilot's findings against its own files; what plan does with them."""

import json
import sys

import numpy as np
import pytest

from trdlib import store
from trdlib.ops import cli, pilot, plan
from trdlib.run import get_run


def test_a_pilot_says_what_its_responses_are_and_plan_uses_it(project, monkeypatch, capsys):
    def said(*words):
        monkeypatch.setattr(sys, "argv", ["trdlib", *words])
        assert cli.main() == 0
        return capsys.readouterr().out

    wide = json.loads(said("plan", "--scale", "smoke", "--json"))
    assert "here" not in wide["stages"][0]
    text, run = said("pilot", "--scale", "smoke", "--rows", "6"), get_run("smoke", "opd")
    found, folder = pilot.read(run), project / "runs" / "pilot" / "smoke"
    assert [*found["parts"]] == ["y_o", "y_r opd", "y_r opsd"]
    for name, file in {"y_o": "y_o", "y_r opd": "opd", "y_r opsd": "opsd"}.items():
        table, part = store.load(folder / f"{file}.parquet"), found["parts"][name]
        assert part["rows"] == len(table) == 6
        assert part["tokens"] == pytest.approx(np.mean([len(ids) for ids in table["token_ids"]]))
        assert part["cut off"] == pytest.approx(1 - table["finished"].mean())
        assert part["right"] == pytest.approx(table["correct"].mean())
        assert part["variation"] == pytest.approx(table["n_tokens"].std(ddof=0) / part["tokens"])
        assert table["id"].max() > "train-0008"  # of the second kind, too
        assert part["seconds"] > 0 and name in text
    assert not run.attempts.exists()  # nothing of the usual run

    lengths = plan.lengths(run)
    for name, part in {"y_o": "y_o", "y_r": "y_r opd"}.items():
        assert lengths[name][0] == pytest.approx(found["parts"][part]["tokens"])
    stages = json.loads(said("plan", "--scale", "smoke", "--gpus", "2", "--json"))["stages"]
    for stage in stages:
        low, high = stage["here"]
        assert 0 < low < high <= 3.001 * low
    # its own work, planned on its own machine, takes the seconds that it took
    on, student = plan.here(run, plan.models(run)), plan.models(run)["student"]
    seconds = sum(part["seconds"] for part in found["parts"].values())
    how, works, ones = run.settings, [], np.ones(2)
    for name, part in found["parts"].items():
        sampling = how.rollout if name == "y_o" else how.refinement
        sizes = part["rows"], part["prompt"] * ones, part["tokens"] * ones, part["variation"]
        works.append(plan.sampling(run, "", [], student, sampling, *sizes))
    assert sum(w.seconds(on)[0] for w in works) * 3**0.5 == pytest.approx(seconds)

    before = (folder / "y_o.parquet").stat().st_mtime_ns
    said(
        "pilot", "--scale", "smoke", "--rows", "6"
    )  # nothing is sampled again, and the speed stays
    assert (folder / "y_o.parquet").stat().st_mtime_ns == before
    assert pilot.read(run)["parts"]["y_o"]["seconds"] == found["parts"]["y_o"]["seconds"]
    assert pilot.read(get_run("smoke modes=[opd] variants={}"))  # which shapes no response
    assert pilot.read(get_run("smoke rollout.temperature=1")) == {}


@pytest.mark.parametrize(
    ("text", "leaks", "thinks"),
    [
        ("As in the reference solution, x = 2.", True, False),
        ("My initial attempt was wrong.", True, False),
        ("The previous solution forgot a case.", True, False),
        ("<think>\nhm\n</think> The solution is 2.", False, True),
        ("hm</think>So we rewrite the first answer", True, True),
        ("The first solution set is {2}; each attempt to factor fails.", True, False),  # too many
        ("We prefer an initial guess, then attempt a solution.", False, False),
    ],
)
def test_words_that_tell(text, leaks, thinks):
    import re

    assert bool(re.search(pilot.LEAKS, text)) == leaks
    assert bool(re.search(pilot.THINKING, text)) == thinks
