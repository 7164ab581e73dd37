"""Tables say what is in the metrics files, and "not run" where there are none."""

import contextlib
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from statsmodels.stats.multitest import multipletests
from test_audit import defined

from trdlib import store, tasks
from trdlib.analysis import compare, measure, show, tables
from trdlib.run import get_run
from trdlib.settings import load


def fake_metrics(run, rng, skill, like=0.25):
    """Samples by a known skill, through the real metrics; like: share of y_r that is y*."""
    sets, how, samples = tasks.of(run).sets(), run.settings.evaluation, {}
    for temperature in how.temperatures:
        samples[temperature] = {}
        for name in tasks.of(run).benchmarks:
            rows = [
                {"seed": seed, "id": i, "sample": s, "correct": bool(rng.random() < skill),
                 "n_tokens": 10, "finished": True}
                for seed in run.settings.seeds for i in sets[name]["id"]
                for s in range(how.at(temperature).samples)
            ]  # fmt: skip
            samples[temperature][name] = pd.DataFrame(rows)
    choice = None
    if run.mode != "none":
        choice = {"chosen": 0.002, "grid": [0.002, 0.008], "trajectory_accuracy": 0.5}
        choice |= {"trajectory_like_reference": like, "rows_by_seed": [12, 11]}
        store.write_json(run.choice, choice)
    measure.measure([run], sets, [samples], [choice])


page = defined("7_tables")
PARAMS = REPOSITORY / "params.yaml"
MEASURED = (
    ("none", "base", 0.3), ("none", "base_again", 0.3), ("opd", "forward_kl", 0.5),
    ("opd", "reverse_kl", 0.7), ("opd", "trd", 0.9), ("opd", "sft_refined", 0.8),
    ("opd", "trd_failed", 0.5), ("opd", "trd_rounds", 0.95), ("opd", "sft_refined_rounds", 0.9),
    ("opd", "reverse_kl_rounds", 0.6), ("opd", "trd_again", 0.9),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project: the smoke scale in OPD, some of its rows measured, with variants."""
    folder, raw = tmp_path_factory.mktemp("made"), yaml.safe_load(PARAMS.read_text())
    smoke = raw["scales"]["smoke"]
    smoke["variants"] = {"opd": [name for _, name, _ in MEASURED[6:]]}
    smoke["evaluation"]["also_at"] = {"1.0": 2}
    smoke["evaluation"]["sampling"]["samples"] = 4
    smoke["evaluation"]["budgets"] = [5, 100]  # what is made up has 10 tokens
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    rng = np.random.default_rng(0)
    with contextlib.chdir(folder):
        settings = load()
        for mode, method, skill in MEASURED:
            fake_metrics(get_run("smoke", mode, method, settings), rng, skill)
    return folder


@pytest.fixture
def filled(made, tmp_path, monkeypatch):
    """The run of a copy of it, the working directory of the test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return get_run("smoke", "opd")


def right(run, place, *names):
    """Accuracies of each base seed and problem, as the metrics files have them."""
    modes = {"base": "none", "base_again": "none"}
    files = [run.with_(modes.get(name, run.mode), name).metrics for name in names]
    cells = [store.read_json(f)["benchmarks"][f"{place[1]:g}"][place[0]] for f in files]
    return [np.array(cell["correct"]) / cell["k"] for cell in cells]


PLACES = [("chain", 0.6), ("trail", 0.6), ("chain", 1.0), ("trail", 1.0)]


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


def test_accuracies_are_those_of_the_files(filled):
    table = tables.collect(filled)
    rows = table.set_index(["method", "benchmark", "temperature"])
    for place in PLACES:
        for name in ("base", "trd", "trd_failed"):
            (found,) = right(filled, place, name)
            row = rows.loc[(name, *place)]
            assert row["avg_value"] == pytest.approx(found.mean())
            assert row["avg_by_seed"] == pytest.approx(found.mean(axis=1))
            assert row["pass_value"] == pytest.approx((found > 0).mean())
            assert row["avg_low"] <= row["avg_value"] <= row["avg_high"]
            assert (row["k"], row["n"]) == (4 if place[1] == 0.6 else 2, 8)
    trd = table.query("method == 'trd'").iloc[0]
    assert (trd["rows"], trd["learning_rate"], trd["at_edge"]) == (11.5, 0.002, True)


def test_differences_are_recomputed_by_hand(filled):
    """Each against what its name says; stars by hand: statsmodels' Holm over each family."""
    found = tables.differences(filled)
    keys = ["family", "ours", "against", "benchmark", "temperature"]
    rows = found.set_index(keys)
    assert rows.index.is_unique
    for place in PLACES:
        token = dict(zip(names := ("forward_kl", "reverse_kl"), right(filled, place, *names),
                         strict=True))  # fmt: skip
        best = max(token, key=lambda name: token[name].mean())
        for family, ours, against, theirs in (
            (tables.DECISIVE, "trd", tables.BEST, best),
            (tables.DECISIVE, "trd", "sft_refined", "sft_refined"),
            (tables.ROUNDS, "trd_rounds", tables.BEST_ROUNDS, "reverse_kl_rounds"),
            (tables.ROUNDS, "trd_rounds", "sft_refined_rounds", "sft_refined_rounds"),
            (tables.ROUNDS, "reverse_kl_rounds", "reverse_kl", "reverse_kl"),
            (tables.SUBSETS, "trd_failed", "trd", "trd"),
            (tables.ITSELF, "trd_again", "trd", "trd"),
            (tables.ITSELF, "base_again", "base", "base"),
        ):
            row = rows.loc[(family, ours, against, *place)]
            one, other = right(filled, place, ours, theirs)
            assert row["theirs"] == theirs
            assert row["value"] == pytest.approx((one - other).mean())
            assert row["by_seed"] == pytest.approx((one - other).mean(axis=1))
            alone = compare.compare(one, other, **filled.settings.evaluation.interval)
            for end in ("low", "high", "new_low", "new_high", "p", "df"):
                assert row[end] == pytest.approx(getattr(alone, end), nan_ok=True)
    for _, mine in found.groupby("family"):
        made = mine[mine["p"].notna()]
        adjusted = multipletests(made["p"].astype(float), method="holm")[1]
        assert np.allclose(made["adjusted"].astype(float), adjusted)
        outside = (made["new_low"] > 0) | (made["new_high"] < 0)
        assert (made["marked"] == (outside & (adjusted < 0.05))).all()
        assert not mine[mine["p"].isna()]["marked"].any()
    every = found[found["family"].isin([tables.TO_TRD, tables.TO_BASE])]
    assert set(every["temperature"]) == {0.6}
    assert set(every.query("against == 'trd'")["ours"]) == {"forward_kl", "reverse_kl"}


def test_the_text_says_what_the_rows_say(filled):
    table, found = tables.collect(filled), tables.differences(filled)
    text = page.markdown(filled, table, found)
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles.index(tables.DECISIVE) == 2  # after the accuracies at both temperatures
    assert [t for t in titles if t in tables.families(filled)] == list(tables.families(filled))
    row = found[(found["ours"] == "trd") & (found["against"] == "sft_refined")].iloc[0]
    these = show.interval(row["value"], row["low"], row["high"], signed=True)
    line = next(x for x in text.splitlines() if x.startswith("| trd minus sft_refined"))
    cells = [c.strip() for c in line.split("|")[1:-1]]
    how = {"signed": True, "star": row["marked"], "ends": True}
    new = show.interval(None, row["new_low"], row["new_high"], **how)
    assert cells[1:4] == [row["benchmark"], these, new]
    assert len(cells) == 2 + 3 * 2  # the temperatures side by side
    mine = found[found["family"] == tables.DECISIVE]
    assert f"correction for the {mine['p'].count()} comparisons of this table" in text
    assert f"(marked: {mine['marked'].sum()})" in text
    shares = mine[["share_seeds", "share_problems", "share_rest"]].astype(float).mean()
    assert f"{shares.iloc[0]:.0%} base seeds, {shares.iloc[1]:.0%} problems" in text
    assert "25.00% of the rewrites are the reference" in text
    assert "one experiment" not in text


def test_a_model_against_itself_counts_what_differs(filled):
    """Planted: of four intervals for new models one excludes zero, of the others three."""
    found = tables.differences(filled)
    rows = found.index[found["family"] == tables.ITSELF]
    found.loc[rows, ["low", "high", "new_low", "new_high", "p"]] = [-0.1, 0.1, -0.2, 0.2, 0.5]
    found.loc[rows, "marked"] = False
    found.loc[rows[:3], "low"] = 0.01
    found.loc[rows[3], ["new_high", "marked"]] = [-0.01, True]
    said = page.itself(filled, found)
    assert f"Of {len(rows)} comparisons 1 are marked, and 1 intervals for new models" in said
    assert "Of those for these models 3 do" in said
    assert f"(by chance: {0.05 * len(rows):.1f})" in said


def test_what_was_not_run_is_said_and_never_a_number(filled):
    table, found = tables.collect(filled), tables.differences(filled)
    text = page.markdown(filled, table, found)
    for method in ("teacher", "off_policy"):
        cells = re.findall(rf"^\| {method} .*$", text, re.M)
        assert cells
        assert all(show.MISSING in line or set(line[len(method) + 4 :]) <= set("| -")
                   for line in cells)  # fmt: skip
        assert table[table["method"] == method]["avg_value"].isna().all()
        assert method not in set(found["ours"]) | set(found["theirs"])
    shutil.rmtree("results")
    table, found = tables.collect(filled), tables.differences(filled)
    assert found.empty
    tables.write(filled, table, found, page.markdown(filled, table, found))
    empty = tables.paths(filled)["md"].read_text()
    assert "Nothing has been run yet" in empty
    assert not re.search(r"\d\.\d \[", empty + tables.headline(filled))


def test_one_base_seed_gives_no_stars(project):
    run = get_run("smoke seeds=[0]", "opd")
    rng = np.random.default_rng(0)
    for method, skill in (("forward_kl", 0.0), ("trd", 1.0)):
        fake_metrics(run.with_(method=method), rng, skill)
    found = tables.differences(run)
    assert (abs(found["value"]) == 1).all()
    assert not found["marked"].any()
    text = page.markdown(run, tables.collect(run), found)
    assert "Of new models nothing is known" in text
    assert "nan" not in text


def test_files_are_written_whole_and_twice_the_same(filled):
    def written():
        made = filled, tables.collect(filled), tables.differences(filled)
        return {p: p.read_bytes() for p in tables.write(*made, page.markdown(*made))}

    first, table, paths = written(), tables.collect(filled), tables.paths(filled)
    assert {path.name for path in first} == {
        "opd.md", "opd.csv", "opd_differences.csv", "opd.json",
    }  # fmt: skip
    assert set(first) <= set(paths.values())
    assert written() == first
    summary = store.read_json(paths["summary"])
    assert set(summary) == set(table[table["run"]]["method"])  # what was not run has no number
    mean = table[(table["method"] == "trd") & (table["temperature"] == 0.6)]["avg_value"].mean()
    assert summary["trd"] == pytest.approx(100 * mean, abs=0.005)


def test_the_columns_of_the_csv_files_are_explained(filled):
    """docs/results.md has a line for each column of both files, and none for another."""
    tables.write(filled, tables.collect(filled), tables.differences(filled), "")
    docs = (REPOSITORY / "docs" / "results.md").read_text()
    section = docs.split("### Columns of the CSV files")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.M)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    files = (tables.paths(filled)[kind] for kind in ("csv", "differences"))
    assert explained - {"budget"} == {name for file in files for name in pd.read_csv(file)}


def test_the_readme_shows_the_numbers(filled, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# a\n<!-- headline -->\nold\n<!-- /headline -->\nb\n")
    assert tables.update_readme(readme, filled)
    text = readme.read_text()
    assert text.startswith("# a\n<!-- headline -->\n**OPD, scale smoke**")
    assert text.endswith("<!-- /headline -->\nb\n")
    assert "old" not in text
    assert "](results/tables/smoke/opd.md)" in text
    shown = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert shown[1:] == [
        *tables.HEADLINE,
        "**trd minus best y_o method**, T = 0.6", "**trd minus best y_o method**, T = 1",
        "**trd minus sft_refined**, T = 0.6", "**trd minus sft_refined**, T = 1",
        "... best y_o method, by base seed", "... sft_refined, by base seed",
    ]  # fmt: skip
    row = tables.differences(filled).iloc[0]
    gain = show.interval(row["value"], row["new_low"], row["new_high"], signed=True,
                         star=row["marked"])  # fmt: skip
    assert gain in text
    assert not tables.update_readme(readme, filled)
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="headline"):
        tables.update_readme(readme, filled)


def test_runs_on_other_problems_are_not_compared(filled):
    metrics = store.read_json(filled.metrics)
    metrics["benchmarks"]["0.6"]["chain"]["problems"] = "others"
    store.write_json(filled.metrics, metrics)
    with pytest.raises(ValueError, match="same problems"):
        tables.differences(filled)


def test_metrics_of_other_temperatures_are_refused(filled):
    metrics = store.read_json(filled.metrics)
    del metrics["benchmarks"]["1"]
    store.write_json(filled.metrics, metrics)
    with pytest.raises(
        ValueError, match=r"trd: no metrics of chain at temperature 1: .* 5_evaluate"
    ):
        tables.collect(filled)


def test_sft_on_the_same_rows_is_shown_once(filled, tmp_path):
    """Where every rewrite is the reference; not where one is not."""
    raw = yaml.safe_load((tmp_path / "params.yaml").read_text())
    raw["run"]["methods"].append("sft")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    run, rng = get_run("smoke", "opd"), np.random.default_rng(1)
    fake_metrics(run.with_(method="sft"), rng, 0.8, like=1)
    assert "sft" in set(tables.collect(run)["method"])
    fake_metrics(run.with_(method="sft_refined"), rng, 0.8, like=1)
    table, found = tables.collect(run), tables.differences(run)
    assert "sft" not in set(table["method"]) | set(found["ours"]) | set(found["theirs"])
    assert "`sft_refined` is `sft`, one experiment, shown once" in page.markdown(run, table, found)


def test_best_token_level_method_is_no_variant(filled):
    """Neither a subset, nor a twin, nor (but among rounds) one in rounds."""
    rng = np.random.default_rng(1)
    fake_metrics(filled.with_(method="reverse_kl_rounds"), rng, 1.0)
    fake_metrics(filled.with_(method="trd_failed"), rng, 1.0)
    found = tables.differences(filled)
    best = found[found["against"] == tables.BEST]["theirs"]
    assert set(best) <= {"forward_kl", "reverse_kl"}


def test_every_method_has_a_look_of_its_own():
    settings = load()
    names = [m for m in settings.methods if not settings.methods[m].is_variant]
    looks = {name: tuple(show.look(name).values()) for name in ("base", "teacher", *names)}
    assert len(set(looks.values())) == len(looks)
    assert show.look("mine")["color"] not in {color for color, *_ in looks.values()}
    hollow = show.look("trd_rounds")
    assert hollow == show.look("trd") | {"mfc": "white"}


def test_the_notebook_draws_the_figures_and_counts_the_cost(filled):
    """Cost by hand, from the lengths of the texts and what each adapter's run.json says."""
    lengths = {filled.attempts: [3, 5], filled.rewrites("y_r"): [2, 4, 6]}
    for path, n_tokens in lengths.items():
        store.save(pd.DataFrame({"n_tokens": n_tokens}), path)
    for seed in filled.settings.seeds:
        log = {"response_tokens": 12, "student_tokens": 20, "teacher_tokens": 30}
        store.write_json(filled.adapter(seed) / "run.json", log)
    plt.switch_backend("agg")
    exec((REPOSITORY / "notebooks" / "7_tables.py").read_text(), {"display": lambda shown: None})
    plt.close("all")
    paths, seeds = tables.paths(filled), filled.settings.seeds
    assert all(path.is_file() for path in paths.values())
    assert all(paths[f"{n}png"].read_bytes().startswith(b"\x89PNG") for n in ("", "budgets_"))
    cut = pd.read_csv(paths["budgets_csv"]).set_index(["method", "benchmark", "temperature"])
    cell = store.read_json(filled.metrics)["benchmarks"]["0.6"]["trail"]["avg_at_k"]
    assert cut.loc["trd", "trail", 0.6]["value"].tolist() == [0, cell["value"]]
    assert "\n| trd in 5 " in paths["md"].read_text()
    costs = pd.read_csv(paths["cost_csv"]).set_index("method")
    assert costs.loc["trd"].to_dict() == {
        "run": True, "generated": 20, "mean_length": 4, "trained": 12 * len(seeds),
        "student_tokens": 20 * len(seeds), "teacher_tokens": 30 * len(seeds),
    }  # fmt: skip
    assert not costs.loc["off_policy", "run"]
    assert costs.loc["forward_kl", "generated"] == 8
    assert np.isnan(costs.loc["forward_kl", "trained"])  # it was run, but this is not noted
    assert np.isnan(costs.loc["off_policy", "generated"])
    assert not {"trd_failed", "trd_rounds"} & set(costs.index)
