"""The report holds what the files hold, stands alone, and never invents a number."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import REPOSITORY
from test_audit import defined
from test_tables import fake_metrics

from trdlib.analysis import paper, show, tables
from trdlib.run import get_run
from trdlib.settings import load


@pytest.fixture
def published(project):
    shutil.copytree(REPOSITORY / "results" / "published", project / "results" / "published")
    return project


def page() -> BeautifulSoup:
    """The report, made as dvc.yaml makes it."""
    shutil.copytree(REPOSITORY / "notebooks" / "report", "notebooks/report")
    Path("runs/executed").mkdir(parents=True)
    notebook, executed = (
        REPOSITORY / "notebooks" / "10_report.ipynb",
        "runs/executed/10_report.ipynb",
    )
    papermill.execute_notebook(str(notebook), executed, progress_bar=False)
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["report"]
    (command,) = (line for line in stage["cmd"] if "nbconvert" in line)
    _, *words = shlex.split(command)  # this python
    subprocess.run([sys.executable, *words], check=True)
    return BeautifulSoup(Path("results/report.html").read_text(), "html.parser")


def test_the_page_stands_alone_and_shows_the_tables(published):
    rng, run = np.random.default_rng(0), get_run("smoke", "opd")
    for mode, method, skill in (
        ("none", "base", 0.3), ("none", "base_again", 0.3), ("opd", "trd", 0.9),
        ("opd", "forward_kl", 0.5),
    ):  # fmt: skip
        fake_metrics(run.with_(mode, method), rng, skill)
    table = tables.collect(run)
    found = tables.differences(run)
    tables.write(run, table, found, defined("7_tables").markdown(run, table, found))
    show.save(tables.paths(run)["png"], plt.figure(figsize=(1, 1)))
    found = page()
    # Nothing from elsewhere: no script, no style sheet, no address but in the page itself.
    assert not found.find_all(["script", "link", "iframe"])
    assert not re.search(r"@import|url\(|\bhttps?://", str(found))
    pictures = [image["src"] for image in found.find_all("img")]
    assert pictures
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    ids = [tag["id"] for tag in found.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = [tag["href"] for tag in found.find_all("a")]
    assert {"#smoke-opd", "#paper", "#audit"} <= set(links) <= {f"#{name}" for name in ids}
    # The cells are those of the table; what is not there is named.
    row = table.set_index(["method", "benchmark"]).loc[("trd", "chain")].iloc[0]
    cell = show.interval(row["avg_value"], row["avg_low"], row["avg_high"])
    assert cell in found.get_text()
    missing = [quote.get_text().strip() for quote in found.find_all("blockquote")]
    assert "qwen3-8b (opsd)" in missing[0]
    assert "smoke (opd)" not in missing[0]
    for file in ("tables/tiny/opd.md", "diagnosis/smoke/opd.md", "tables/audit.md"):
        assert any(said.startswith(f"{file}: not run.") for said in missing)
    ours = [row for row in found.find_all("tr") if "ours" in [td.get_text() for td in row]]
    assert len(ours) > 50
    assert all(td.get_text() in (show.MISSING, show.DASH, "") for row in ours
               for td in row.find_all("td")[4:])  # fmt: skip


def test_ours_stands_beside_the_authors_where_the_scale_has_run(published):
    """A scale with the student's name: its table's cells, by method and benchmark."""
    settings = load()
    smoke = settings.scales["smoke"]
    data = {**smoke.data, "benchmarks": {"amobench": smoke.data["benchmarks"]["chain"]}}
    scales = {**settings.scales, "qwen3-8b": smoke.model_copy(update={"data": data})}
    settings = settings.model_copy(update={"scales": scales})
    run = get_run("qwen3-8b", "opsd", "trd", settings)
    fake_metrics(run, np.random.default_rng(2), 0.6)
    table = tables.collect(run)
    tables.write(run, table, tables.differences(run), "")
    found = paper.against_paper(settings)
    students = found[["student", "task"]].drop_duplicates().itertuples(index=False)
    assert {paper.scale_of(*student) for student in students} <= set(settings.scales)
    mine = found[(found["student"] == "Qwen3-8B") & (found["mode"] == "opsd")]
    trd = mine[(mine["method"] == "trd") & (mine["subset"] == "all")]
    trd = trd.set_index(["benchmark", "metric"])
    row = table.set_index(["method", "benchmark"]).loc[("trd", "amobench")].iloc[0]
    ours = show.interval(row["avg_value"], row["avg_low"], row["avg_high"])
    assert trd.loc[("amobench", "avg"), "ours"] == ours
    assert trd.loc[("amobench", "passed"), "paper"] == "61.5"
    assert trd.loc[("amobench", "passed"), "authors"].startswith("61.5 [")
    assert trd.loc[("aime25", "avg"), "ours"] == show.MISSING
    assert trd.loc[("aime25", "avg"), "paper"] == show.DASH
    code = found[(found["task"] == "code") & (found["metric"] == "avg")]
    code = code.set_index(["mode", "student", "method", "benchmark"])["authors"]
    assert code["opd", "Qwen3-1.7B", "base", "livecodebench_v6"] == "32.3"  # of unknown size
    assert re.fullmatch(
        r"62\.0 \[5\d\.\d, 6\d\.\d\], 4 samples", code["opd", "Qwen3-1.7B", "trd", "humaneval_plus"]
    )
    failed = mine[(mine["method"] == "trd") & (mine["subset"] == "fail")]
    assert set(failed["ours"]) == {show.MISSING}
    pages = defined("10_report").beside(found)
    assert "OPD, code, Qwen3-1.7B: avg@16" in pages
    ours = pages["OPSD, Qwen3-8B: pass@16"].query("method == 'trd' and subset == 'all'")
    assert (
        ours["amobench"]
        .item()
        .startswith(show.interval(row["pass_value"], row["pass_low"], row["pass_high"]))
    )


def test_what_stands_at_the_top_is_counted_from_the_table():
    """By hand: three marked differences against one method, two above zero, one below."""
    rows = [("sft", 0.1, True), ("sft", -0.2, True), ("sft", 0.05, True), ("base", 0.3, False)]
    table = pd.DataFrame(rows, columns=["against", "value", "marked"])
    table["family"] = tables.DECISIVE
    table = pd.concat([table, table.assign(family=tables.ROUNDS, value=9.0)])
    assert defined("10_report").findings(table) == [
        "*trd minus sft*: -20.0 to +10.0 points, 2 of 3 above zero; marked for new models: 2 above,"
        " 1 below",
        "*trd minus base*: +30.0 to +30.0 points, 1 of 1 above zero; marked for new models: 0 above"
        ", 0 below",
    ]
