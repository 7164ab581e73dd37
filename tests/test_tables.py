"""Tables say what is in the metrics files, and "not run" where there are none."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from trdlib import config, data, distill, tables, tiny


def fake_metrics(run, rng, skill):
    """Counts by a known skill, through the real summary."""
    from trdlib import evaluate

    k = run.settings.evaluation.sampling.samples
    samples = {}
    for name, part in run.settings.data.benchmarks.items():
        rows = [
            {"seed": seed, "id": f"{i:02d}", "sample": s, "correct": bool(rng.random() < skill),
             "n_tokens": 10, "finished": True}
            for seed in run.settings.seeds for i in range(part.problems) for s in range(k)
        ]  # fmt: skip
        samples[name] = pd.DataFrame(rows)
    if run.mode != "none":
        choice = {"chosen": 0.002, "trajectory_accuracy": 0.5, "trajectory_like_reference": 0.25}
        data.write_json(run.choice, choice)
    data.write_json(run.metrics, evaluate.summary(run, samples))


@pytest.fixture
def filled(project):
    rng = np.random.default_rng(0)
    params = (project / "params.yaml").read_text()
    assert "    modes: [opsd]\n    methods: [trd_failed" in params
    params = params.replace(
        "    modes: [opsd]\n    methods: [trd_f", "    modes: [opd]\n    methods: [trd_f"
    )
    (project / "params.yaml").write_text(params)
    tiny.prepare(config.run("smoke"))
    for mode, method, skill in (
        ("none", "base", 0.3),
        ("none", "base_again", 0.3),
        ("opd", "forward_kl", 0.5),
        ("opd", "reverse_kl", 0.7),
        ("opd", "trd", 0.9),
        ("opd", "trd_failed", 0.5),
    ):
        fake_metrics(config.run("smoke", "math", mode, method), rng, skill)
    return config.run("smoke", "math", "opd")


def test_values_and_differences_are_recomputed_by_hand(filled):
    table = tables.collect(filled)
    counts = {
        name: np.array(
            data.read_json(config.run("smoke", "math", mode, name).metrics)["benchmarks"]["chain"][
                "correct"
            ]
        )
        for mode, name in (("none", "base"), ("opd", "forward_kl"), ("opd", "reverse_kl"),
                           ("opd", "trd"))
    }  # fmt: skip
    rows = table[table["benchmark"] == "chain"].set_index("method")
    k = filled.settings.evaluation.sampling.samples
    for name, count in counts.items():
        assert rows.loc[name, "avg_value"] == pytest.approx((count / k).mean())
    best = max(("forward_kl", "reverse_kl"), key=lambda n: counts[n].mean())
    assert rows.loc["trd", "best"] == best
    assert rows.loc["trd", "to_best_value"] == pytest.approx(
        ((counts["trd"] - counts[best]) / k).mean()
    )
    assert rows.loc["trd", "to_base_value"] == pytest.approx(
        ((counts["trd"] - counts["base"]) / k).mean()
    )
    assert pd.isna(rows.loc[best, "to_best_value"])  # no difference to itself
    assert pd.isna(rows.loc["base", "to_base_value"])
    assert (rows["avg_low"].dropna() <= rows["avg_value"].dropna()).all()


def test_what_was_not_run_is_said_and_never_a_number(filled):
    table = tables.collect(filled)
    text = tables.markdown(filled, table)
    for method in ("teacher", "sft", "off_policy"):
        cells = re.findall(rf"^\| {method} .*$", text, re.M)
        assert cells
        assert all(tables.MISSING in line or set(line[len(method) + 4 :]) <= set("| -")
                   for line in cells)  # fmt: skip
        assert table[table["method"] == method]["avg_value"].isna().all()
    shutil.rmtree("results")
    empty = tables.markdown(filled, tables.collect(filled))
    assert "Nothing has been run yet" in empty
    assert not re.search(r"\d\.\d \[", empty)
    tables.write(filled, tables.collect(filled))  # the figure too


def test_files_are_written_whole_and_twice_the_same(filled):
    table = tables.collect(filled)
    first = {p: p.read_bytes() for p in tables.write(filled, table)}
    assert {p.suffix for p in first} == {".md", ".csv", ".tex", ".png", ".json"}
    assert len(first) == len(tables.paths(filled))
    assert {p: p.read_bytes() for p in tables.write(filled, tables.collect(filled))} == first
    assert first[tables.paths(filled)["png"]].startswith(b"\x89PNG")
    summary = data.read_json(tables.paths(filled)["summary"])
    assert set(summary) == set(table[table["run"]]["method"])  # what was not run has no number
    assert summary["trd"] == pytest.approx(
        100 * table[table["method"] == "trd"]["avg_value"].mean(), abs=0.005
    )


def test_latex_has_one_row_a_method_and_metric(filled):
    text = tables.latex(filled, tables.collect(filled))
    body = text.split("\\midrule", 1)[1]
    assert text.startswith("% opd")
    assert body.count(r"\\") == 2 * len(tables.row_names(filled))
    assert "forward\\_kl\\_clip" in text
    assert not re.search(r"(?<!\\)[_%]", body)


def test_the_readme_shows_the_files(filled, project):
    tables.write(filled, tables.collect(filled))
    readme = project / "README.md"
    readme.write_text("# a\n<!-- headline -->\nold\n<!-- /headline -->\nb\n")
    assert tables.update_readme(readme, [filled])
    text = readme.read_text()
    assert text.startswith("# a\n<!-- headline -->\n**OPD**")
    assert text.endswith("<!-- /headline -->\nb\n")
    assert "old" not in text
    assert "trd minus best y_o method" in text
    assert "25.0% of the rewrites are the reference solution" in text
    assert re.search(r"best y_o method, by base seed +\| \+\d+\.\d / ", text)
    assert not tables.update_readme(readme, [filled])
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="headline"):
        tables.update_readme(readme, [filled])


def test_runs_on_other_problems_are_not_compared(filled):
    run = config.run("smoke", "math", "opd", "trd")
    metrics = data.read_json(run.metrics)
    metrics["benchmarks"]["chain"]["problems"] = "others"
    data.write_json(run.metrics, metrics)
    with pytest.raises(ValueError, match="same problems"):
        tables.collect(filled)


def test_differences_are_marked_by_the_rule_within_their_family(filled):
    """Stars by hand: Holm over the main rows; the ablation is a family of its own."""
    table = tables.collect(filled)
    main = table[table["subset"] == "all"]
    for label in ("to_base", "to_best"):
        made = main[main[f"{label}_p"].notna()]
        adjusted = multipletests(made[f"{label}_p"], method="holm")[1]
        assert np.allclose(made[f"{label}_adjusted"], adjusted)
        by_hand = (adjusted < 0.01) & ((made[f"{label}_low"] > 0) | (made[f"{label}_high"] < 0))
        assert (made[f"{label}_marked"] == by_hand).all()
        assert not main[main[f"{label}_p"].isna()][f"{label}_marked"].any()
    subset = table[table["method"] == "trd_failed"]
    assert (subset["parent"] == "trd").all()
    counts = {
        name: np.array(
            data.read_json(config.run("smoke", "math", "opd", name).metrics)["benchmarks"]["trail"][
                "correct"
            ]
        )
        for name in ("trd", "trd_failed")
    }
    gap = (counts["trd_failed"] - counts["trd"]).mean() / 4
    value = subset.set_index("benchmark").loc["trail", "to_parent_value"]
    assert value == pytest.approx(gap)
    assert len(subset) == len(main["benchmark"].unique())
    text = tables.markdown(filled, table)
    assert "trd_failed" in text.split("subset ablation")[1]
    assert "trd_failed" not in text.split("subset ablation")[0]
    assert text.count(r"\*") > 0


def test_best_token_level_method_is_not_one_of_the_ablation(filled):
    fake_metrics(
        config.run("smoke", "math", "opd", "forward_kl_failed"), np.random.default_rng(1), 0.99
    )
    assert set(tables.collect(filled)["best"].dropna()) <= {"forward_kl", "reverse_kl"}


def test_frontier_and_coverage_say_what_the_counts_say(filled):
    found = tables.frontier(filled).set_index(["method", "benchmark"])
    base, trd = (
        np.array(
            data.read_json(config.run("smoke", "math", mode, name).metrics)["benchmarks"]["chain"][
                "correct"
            ]
        )
        for mode, name in (("none", "base"), ("opd", "trd"))
    )
    assert found.loc[("trd", "chain"), "gained"] == ((base == 0) & (trd > 0)).sum()
    assert found.loc[("trd", "chain"), "unsolved"] == (base == 0).sum()
    curve = tables.coverage(filled)
    row = curve[(curve["method"] == "trd") & (curve["benchmark"] == "chain") & (curve["k"] == 1)]
    assert row["value"].item() == pytest.approx(trd.mean() / 4)
    shutil.rmtree(config.run("smoke", "math", "none", "base_again").metrics.parent)
    assert tables.frontier(filled).empty


def test_cost_counts_the_tokens_of_the_files(smoke):
    """By hand, from the generation files and the training set of a run."""
    run = smoke("opd", "trd")
    training = distill.training_set(run)
    distill.distill(run, learning_rate=0.003, training=training)
    row = tables.cost(run).set_index("method").loc["trd"]
    y_o = pd.read_parquet(run.attempts)["n_tokens"]
    y_r = pd.read_parquet(run.mode_folder / "y_r.parquet")["n_tokens"]
    assert row["generated"] == y_o.sum() + y_r.sum()
    assert row["mean_length"] == pytest.approx(y_r.mean())
    assert row["trained"] == y_r.sum()
    pairs = [pair for rows in training.rows.values() for pair in rows]
    assert row["teacher_tokens"] == sum(len(p.teacher_ids) + len(p.response_ids) for p in pairs)
    assert row["training_seconds"] > 0
    assert row["generation_seconds"] > 0
    assert row["peak_mib"] > 100
    other = tables.cost(run).set_index("method").loc["forward_kl"]
    assert not other["run"]
    assert np.isnan(other["trained"])
