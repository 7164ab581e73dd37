"""The recipes of the README and of docs/, word for word: what they say to write and run runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

from trdlib import distill, store, tasks
from trdlib.divergence import DIVERGENCES
from trdlib.rollout import rollout
from trdlib.run import get_run
from trdlib.settings import SettingsError

PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
}
MARK = re.compile(r"<!-- recipe: (\w+) -->\n((?:```\w+\n.*?^```\n)+)", re.S | re.M)
RECIPES = {
    name: dict(re.findall(r"^```(\w+)\n(.*?)^```$", blocks, re.S | re.M))
    for page in PAGES.values()
    for name, blocks in MARK.findall(page)
}


def put_under(section: str, text: str) -> None:
    """Lines into params.yaml, as its first entries of a section."""
    path = Path("params.yaml")
    old = path.read_text()
    assert old.count(f"\n{section}:\n") == 1
    path.write_text(old.replace(f"\n{section}:\n", f"\n{section}:\n{text}"))


def shell(text: str) -> str:
    done = subprocess.run(["bash", "-e", "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def with_notebooks(project):
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    shutil.copytree("models/tiny/0/student", "models/mine")
    return project


def test_every_recipe_has_its_test():
    here = Path(__file__).read_text()
    assert sum(page.count("<!-- recipe:") for page in PAGES.values()) == len(RECIPES) >= 6
    for name in RECIPES:
        assert f'RECIPES["{name}"]' in here


def anchors(page: str) -> set[str]:
    """The headings of a page, as a link names them."""
    titles = re.findall(r"^#+ (.*)$", page, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere():
    """To a page of ours and a heading of it; and every page stands in the README."""
    for path, page in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", page):
            to = (path.parent / target[0]).resolve() if target[0] else path
            if to.suffix == ".md" and (to.parent.name == "docs" or to.name == "README.md"):
                assert target[1] in {"", *anchors(PAGES[to])}, f"{path.name}: {target}"
    for path in PAGES:
        assert path.name == "README.md" or f"(docs/{path.name})" in PAGES[REPOSITORY / "README.md"]


def test_the_first_rollout(project, capsys):
    exec(RECIPES["first"]["python"], {})
    run = get_run("smoke", "opd")
    y_o, y_r = store.load(run.attempts), store.load(run.rewrites("y_r"))
    asked = tasks.of(run).sets()["train"].set_index("id")["problem"]
    row = y_o[~y_o["correct"]].iloc[0]
    mine = y_r[(y_r["id"] == row["id"]) & (y_r["seed"] == row["seed"])].iloc[0]
    parts = [asked[row["id"]] + "\n" + row["text"], mine["text"], f"right now: {mine['correct']}"]
    assert capsys.readouterr().out == "\n---\n".join(parts) + "\n"


def test_your_own_method(with_notebooks):
    blocks = RECIPES["method"]
    put_under("methods", blocks["yaml"])
    shell(blocks["bash"])
    run = get_run(method="trd_jsd")
    assert (run.recipe.trajectory, run.recipe.divergence) == ("y_r", "jsd")
    assert store.read_json(run.choice)["chosen"]


def test_your_own_divergence(with_notebooks, monkeypatch):
    blocks = RECIPES["divergence"]
    store.write_text("mine/tv.py", blocks["python"])
    put_under("methods", blocks["yaml"])
    shell(blocks["bash"])
    assert Path("results/training/smoke/opd/trd_tv.json").is_file()

    def loaded():
        """The divergence and the fingerprints of two methods, as a new process finds them."""
        for known, name in ((DIVERGENCES, "mine/tv.py"), (sys.modules, "mine.tv")):
            known.pop(name, None)
        monkeypatch.setattr(sys, "path", [*sys.path])
        stamps = [distill.fingerprint(get_run(method=m), 0, []) for m in ("trd", "trd_tv")]
        return DIVERGENCES["mine/tv.py"], stamps

    function, before = loaded()
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 9, dtype=float)
    z = a.requires_grad_()
    value, gradient = function(z.log_softmax(-1), b.log_softmax(-1), 0.5)
    value.sum().backward()
    torch.testing.assert_close(z.grad, gradient)  # its gradient is that of its value
    store.write_text("mine/tv.py", blocks["python"] + "\n\ndef helper():\n    pass\n")
    _, after = loaded()
    assert after[0] == before[0] and after[1] != before[1]  # hashed: what a method uses
    assert [*tasks.of(get_run()).files()] == ["mine/tv.py"]  # DVC's stamp of the scale knows it
    store.write_text("mine/tv.py", blocks["python"].replace("def divergence", "def other"))
    with pytest.raises(SettingsError, match=r"no divergence 'mine/tv.py': choose from forward_kl"):
        get_run()


def test_your_own_model_and_data(with_notebooks):
    blocks, sets = RECIPES["mine"], tasks.of(get_run("smoke")).sets()
    for name, source, count in (("train", "train", 12), ("test", "chain", 4)):
        rows = sets[source][["problem", "answer", "solution"]][:count].to_dict("records")
        store.write_text(f"mine/{name}.jsonl", "\n".join(map(json.dumps, rows)))
    put_under("scales", blocks["yaml"])
    shell(blocks["bash"])
    run = get_run("mine", "opsd")
    assert len(store.load(run.rewrites("y_r"))) == 8  # 12 in the file, 4 held out
    assert (with_notebooks / "runs/export/mine-opsd-trd-0/adapter_model.safetensors").is_file()
    assert set(tasks.of(run).sets()["validation"]["source"]) == {"mine/train.jsonl"}


def test_your_own_task(with_notebooks):
    """It is graded by its file, and again once the file has another grader."""
    blocks = RECIPES["task"]
    store.write_text("mine/sums.py", blocks["python"])
    put_under("scales", blocks["yaml"])
    shell(blocks["bash"])
    run = get_run("sums", "opsd")
    rows = tasks.of(run).sets()["longer"].to_dict("records")
    assert all(eval(row["problem"][8:-1]) == int(row["answer"]) for row in rows)
    grade, said = tasks.of(run).grade, [row["solution"] for row in rows]
    assert grade(zip(said, rows, strict=True)) == [True] * 4
    assert grade(zip(said, rows[1:] + rows[:1], strict=True)) != [True] * 4
    before = store.load(run.attempts)
    assert len(before) == 8
    for right in (True, False):
        verdict = f"\ndef grade(pairs):\n    return [{right} for _ in pairs]\n"
        store.write_text("mine/sums.py", blocks["python"] + verdict)
        task = tasks.of(run)
        y_o = rollout(run, task, task.sets()["train"])
        assert y_o["correct"].tolist() == (y_o["finished"] & right).tolist()
        assert y_o["text"].equals(before["text"])


def test_a_sweep(with_notebooks):
    said = shell(RECIPES["sweep"]["bash"])
    assert said.count("papermill notebooks/4_distill.ipynb") == 6
    drawn = re.findall(r"papermill notebooks/5_evaluate.ipynb .*learning_rate (\S+)", said)
    assert len(drawn) == 8
    assert all(1e-3 <= float(rate) <= 3e-2 for rate in drawn)
    assert len(set(re.findall(r"-p scale '(smoke lora.r=\d+)'", said))) > 1
