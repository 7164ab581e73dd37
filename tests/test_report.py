"""The report holds what the files hold, stands alone, and never invents a number."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import REPOSITORY
from test_tables import fake_metrics

from trdlib import config, report, tables, tiny


@pytest.fixture
def published(project):
    shutil.copytree(REPOSITORY / "results" / "published", project / "results" / "published")
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("scales: [tiny]", "scales: [smoke]"))
    return project


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.sources, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in ("meta", "img", "br", "hr", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text):
    parser = Links()
    parser.feed(text)
    assert not parser.open
    return parser


def test_without_any_run_every_scale_is_not_run(published):
    text = report.build(config.load())
    parse(text)
    assert text.count('class="missing"') >= 5
    ours = re.findall(r"<td[^>]*>ours</td>(.*?)</tr>", text, re.S)
    assert len(ours) > 50
    for row in ours:
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        assert set(cells) <= {tables.MISSING}


def test_the_page_stands_alone_and_shows_the_tables(published):
    rng = np.random.default_rng(0)
    tiny.prepare(config.run("smoke"))
    for mode, method, skill in (
        ("none", "base", 0.3), ("none", "base_again", 0.3), ("opd", "trd", 0.9),
        ("opd", "forward_kl", 0.5),
    ):  # fmt: skip
        fake_metrics(config.run("smoke", "math", mode, method), rng, skill)
    run = config.run("smoke", "math", "opd")
    table = tables.collect(run)
    tables.write(run, table)
    paths = report.write(config.load())
    text = paths[-1].read_text()
    page = parse(text)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} == set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    cell = tables._cell(table.set_index(["method", "benchmark"]).loc[("trd", "chain")], "avg")
    assert cell in text
    assert re.search(r'<tr class="trd">\s*<td[^>]*>trd</td>', text)


def test_ours_stands_beside_the_authors_where_the_scale_has_run(published):
    """A scale with the student's name: its table's cells, by method and benchmark."""
    settings = config.load()
    smoke = settings.scales["smoke"]
    one = smoke.data.benchmarks["chain"]
    data = smoke.data.model_copy(update={"benchmarks": {"amobench": one}})
    scale = smoke.model_copy(update={"data": data})
    scales = {**settings.scales, "qwen3-8b": scale}
    settings = settings.model_copy(update={"scales": scales})
    run = config.run("qwen3-8b", "math", "opsd", settings=settings)
    tiny.prepare(run)
    fake_metrics(
        config.run("qwen3-8b", "math", "opsd", "trd", settings), np.random.default_rng(2), 0.6
    )
    table = tables.collect(run)
    tables.write(run, table)
    found = report.against_paper(settings)
    mine = found[(found["student"] == "Qwen3-8B") & (found["mode"] == "opsd")]
    assert {report.scale_of(s) for s in found["student"]} == {
        "qwen3-1.7b", "qwen3-4b", "qwen3-4b-instruct", "qwen3-8b",
    }  # fmt: skip
    trd = mine[(mine["method"] == "trd") & (mine["subset"] == "all")].set_index(
        ["benchmark", "metric"]
    )
    expected = table.set_index(["method", "benchmark"]).loc[("trd", "amobench")]
    assert trd.loc[("amobench", "avg"), "ours"] == tables._cell(expected, "avg")
    assert trd.loc[("amobench", "passed"), "paper"] == "61.5"
    assert trd.loc[("amobench", "passed"), "authors"].startswith("61.5 [")
    assert trd.loc[("aime25", "avg"), "ours"] == tables.MISSING
    assert trd.loc[("aime25", "avg"), "paper"] == report.DASH
    code = found[(found["task"] == "code") & (found["metric"] == "avg")]
    code = code.set_index(["mode", "student", "method", "benchmark"])["authors"]
    assert code["opd", "Qwen3-1.7B", "base", "livecodebench_v6"] == "32.3"  # of unknown size
    assert re.fullmatch(
        r"62\.0 \[5\d\.\d, 6\d\.\d\], 4 samples", code["opd", "Qwen3-1.7B", "trd", "humaneval_plus"]
    )
    assert "## OPD, code, Qwen3-1.7B: avg@16" in report.against_paper_markdown(found)
    failed = mine[(mine["method"] == "trd") & (mine["subset"] == "fail")]
    assert set(failed["ours"]) == {tables.MISSING}
    assert "61.5" in report.against_paper_markdown(found)
