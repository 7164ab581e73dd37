"""Tables say what is in the metrics files, and "not run" where there are none."""

import re
import shutil

import numpy as np
import pandas as pd
import papermill
import pytest
from conftest import REPOSITORY
from statsmodels.stats.multitest import multipletests

from trdlib import distill, evaluate, rollout, store, tasks
from trdlib.analysis import show, tables
from trdlib.run import get_run


def fake_metrics(run, rng, skill):
    """Samples by a known skill, through the real metrics."""
    sets, k, samples = tasks.of(run).sets(), run.settings.evaluation.sampling.samples, {}
    for name in tasks.of(run).benchmarks:
        rows = [
            {"seed": seed, "id": i, "sample": s, "correct": bool(rng.random() < skill),
             "n_tokens": 10, "finished": True}
            for seed in run.settings.seeds for i in sets[name]["id"] for s in range(k)
        ]  # fmt: skip
        samples[name] = pd.DataFrame(rows)
        for seed, frame in samples[name].groupby("seed"):
            store.save(frame, run.samples(seed, name), "fake")
    choice = None
    if run.mode != "none":
        choice = {"chosen": 0.002, "trajectory_accuracy": 0.5, "trajectory_like_reference": 0.25}
        store.write_json(run.choice, choice)
    evaluate.measure([run], sets, [samples], [choice])


@pytest.fixture
def filled(project):
    """The smoke scale in OPD, some rows of it measured, with an ablation."""
    rng, params = np.random.default_rng(0), (project / "params.yaml").read_text()
    assert "ablation: {opsd: [trd_failed, forward_kl_failed]}" in params
    params = params.replace("ablation: {opsd: [trd_f", "ablation: {opd: [trd_f")
    (project / "params.yaml").write_text(params)
    for mode, method, skill in (
        ("none", "base", 0.3),
        ("none", "base_again", 0.3),
        ("opd", "forward_kl", 0.5),
        ("opd", "reverse_kl", 0.7),
        ("opd", "trd", 0.9),
        ("opd", "trd_failed", 0.5),
    ):
        fake_metrics(get_run("smoke", mode, method), rng, skill)
    return get_run("smoke", "opd")


def counts(run, benchmark, *names):
    """Right samples of each problem and base seed, as the metrics files have them."""
    modes = {"base": "none", "base_again": "none"}
    files = (run.with_(modes.get(name, run.mode), name).metrics for name in names)
    return [np.array(store.read_json(f)["benchmarks"][benchmark]["correct"]) for f in files]


@pytest.mark.parametrize(
    ("text", "given", "how"),
    [
        ("95.5 [94.1, 96.8]", (0.955, 0.941, 0.968), {}),
        (r"+1.0 [-0.5, +2.5]\*", (0.01, -0.005, 0.025), {"signed": True, "star": True}),
        ("0.0123 [1.2e-05, 0.3]", (0.0123, 0.000012, 0.3), {"scale": 1, "form": ".3g"}),
        ("[-1.0, +2.0]", (None, -0.01, 0.02), {"signed": True, "ends": True}),
        ("50.0", (0.5, np.nan, np.nan), {}),
        ("-", (np.nan, np.nan, np.nan), {}),
        ("-", (None, np.nan, np.nan), {"ends": True}),
    ],
)
def test_an_interval_has_one_form(text, given, how):
    assert show.interval(*given, **how) == text


def test_values_and_differences_are_recomputed_by_hand(filled):
    table = tables.collect(filled)
    names = ("base", "forward_kl", "reverse_kl", "trd")
    right = dict(zip(names, counts(filled, "chain", *names), strict=True))
    rows = table[table["benchmark"] == "chain"].set_index("method")
    k = filled.settings.evaluation.sampling.samples
    for name, count in right.items():
        assert rows.loc[name, "avg_value"] == pytest.approx((count / k).mean())
    best = max(("forward_kl", "reverse_kl"), key=lambda n: right[n].mean())
    assert rows.loc["trd", "best"] == best
    for label, other in (("to_best", best), ("to_base", "base")):
        gap = (right["trd"] - right[other]) / k
        assert rows.loc["trd", f"{label}_value"] == pytest.approx(gap.mean())
        assert rows.loc["trd", f"{label}_by_seed"] == pytest.approx(gap.mean(axis=1))
    assert pd.isna(rows.loc[best, "to_best_value"])  # no difference to itself
    assert pd.isna(rows.loc["base", "to_base_value"])
    assert (rows["avg_low"].dropna() <= rows["avg_value"].dropna()).all()


def test_what_was_not_run_is_said_and_never_a_number(filled):
    table = tables.collect(filled)
    text = tables.markdown(filled, table)
    for method in ("teacher", "sft", "off_policy"):
        cells = re.findall(rf"^\| {method} .*$", text, re.M)
        assert cells
        assert all(show.MISSING in line or set(line[len(method) + 4 :]) <= set("| -")
                   for line in cells)  # fmt: skip
        assert table[table["method"] == method]["avg_value"].isna().all()
    shutil.rmtree("results")
    empty = tables.markdown(filled, tables.collect(filled))
    assert "Nothing has been run yet" in empty
    assert not re.search(r"\d\.\d \[", empty)


def test_files_are_written_whole_and_twice_the_same(filled):
    def written():
        table, curves = tables.collect(filled), tables.coverage(filled)
        return {path: path.read_bytes() for path in tables.write(filled, table, curves)}

    first, table, paths = written(), tables.collect(filled), tables.paths(filled)
    assert {path.name for path in first} == {
        "opd.md", "opd.csv", "opd.tex", "coverage_opd.csv", "opd.json",
    }  # fmt: skip
    assert set(first) <= set(paths.values())
    assert written() == first
    summary = store.read_json(paths["summary"])
    assert set(summary) == set(table[table["run"]]["method"])  # what was not run has no number
    mean = table[table["method"] == "trd"]["avg_value"].mean()
    assert summary["trd"] == pytest.approx(100 * mean, abs=0.005)


def test_latex_has_one_row_a_method_and_metric(filled):
    text = tables.latex(filled, tables.collect(filled))
    body = text.split("\\midrule", 1)[1]
    assert text.startswith("% opd")
    assert body.count(r"\\") == 2 * len(tables.row_names(filled))
    assert "forward\\_kl\\_clip & pass@4" in text
    assert re.search(r"\ntrd & avg@4 & \d+\.\d \{\\scriptsize \[.*\]\} ", text)
    assert not re.search(r"(?<!\\)[_%]", body)


def test_the_readme_shows_the_numbers(filled, project):
    readme = project / "README.md"
    readme.write_text("# a\n<!-- headline -->\nold\n<!-- /headline -->\nb\n")
    assert tables.update_readme(readme, filled)
    text = readme.read_text()
    assert text.startswith("# a\n<!-- headline -->\n**OPD, scale smoke**")
    assert text.endswith("<!-- /headline -->\nb\n")
    assert "old" not in text
    assert "](results/tables/smoke/opd.md)" in text
    shown = re.findall(r"^\| (\w+) ", text, re.M)
    assert shown[1:] == ["base", "teacher", "forward_kl", "reverse_kl", "trd", "sft",
                         "sft_refined", "off_policy"]  # fmt: skip
    assert "trd minus best y_o method" in text
    assert "25.0% of the rewrites are the reference solution" in text
    assert re.search(r"best y_o method, by base seed +\| \+\d+\.\d / ", text)
    assert not tables.update_readme(readme, filled)
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="headline"):
        tables.update_readme(readme, filled)


def test_runs_on_other_problems_are_not_compared(filled):
    metrics = store.read_json(filled.metrics)
    metrics["benchmarks"]["chain"]["problems"] = "others"
    store.write_json(filled.metrics, metrics)
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
    failed, whole = counts(filled, "trail", "trd_failed", "trd")
    value = subset.set_index("benchmark").loc["trail", "to_parent_value"]
    assert value == pytest.approx((failed - whole).mean() / 4)
    assert len(subset) == len(main["benchmark"].unique())
    text = tables.markdown(filled, table)
    assert "trd_failed" in text.split("subset ablation")[1]
    assert "trd_failed" not in text.split("subset ablation")[0]
    assert text.count(r"\*") > 0


def test_best_token_level_method_is_not_one_of_the_ablation(filled):
    fake_metrics(filled.with_(method="forward_kl_failed"), np.random.default_rng(1), 0.99)
    assert set(tables.collect(filled)["best"].dropna()) <= {"forward_kl", "reverse_kl"}


def test_frontier_and_coverage_say_what_the_counts_say(filled):
    found = tables.frontier(filled)
    base, trd = counts(filled, "chain", "base", "trd")
    won, lost = ((base == 0) & (trd > 0)).sum(), ((base > 0) & (trd == 0)).sum()
    assert found.loc["trd", "chain"].startswith(f"+{won} / -{lost}")
    assert found.loc["never solved by base", "chain"] == str((base == 0).sum())
    assert list(found.index[-2:]) == ["chance", "never solved by base"]
    curve = tables.coverage(filled)
    row = curve[(curve["method"] == "trd") & (curve["benchmark"] == "chain") & (curve["k"] == 1)]
    assert row["value"].item() == pytest.approx(trd.mean() / 4)
    filled.with_("none", "base_again").metrics.unlink()
    assert tables.frontier(filled).empty


def test_the_notebook_draws_the_figures_and_counts_the_cost(filled):
    """Cost by hand, from the lengths of the texts and the logs of sampling and training."""
    lengths = {filled.attempts: [3, 5], filled.rewrites("y_r"): [2, 4, 6]}
    for (path, n_tokens), seconds in zip(lengths.items(), (1.5, 2.0), strict=True):
        store.save(pd.DataFrame({"n_tokens": n_tokens}), path)
        store.write_json(rollout.cost_file(path), {"core_seconds": seconds})
    for seed in filled.settings.seeds:
        log = {"response_tokens": 12, "student_tokens": 20, "teacher_tokens": 30}
        log |= {"core_seconds": 0.5, "peak_mib": 100 + seed}
        store.write_json(distill.cost_file(filled, seed, 0.002), log)
    notebook = REPOSITORY / "notebooks" / "7_tables.ipynb"
    papermill.execute_notebook(str(notebook), "out.ipynb", progress_bar=False)
    paths, seeds = tables.paths(filled), filled.settings.seeds
    assert all(path.is_file() for path in paths.values())
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    costs = pd.read_csv(paths["cost_csv"]).set_index("method")
    assert costs.loc["trd"].to_dict() == {
        "run": True, "generated": 20, "mean_length": 4, "trained": 12 * len(seeds),
        "student_tokens": 20 * len(seeds), "teacher_tokens": 30 * len(seeds),
        "generation_seconds": 3.5, "training_seconds": 0.5 * len(seeds),
        "peak_mib": 100 + max(seeds),
    }  # fmt: skip
    assert not costs.loc["sft", "run"]
    assert costs.loc["forward_kl", "generated"] == 8
    assert np.isnan(costs.loc["forward_kl", "trained"])  # it was run, but this is not noted
    assert np.isnan(costs.loc["off_policy", "generated"])
