"""The README's recipes, word for word: what it tells people to write and to run does run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY

from trdlib import config, data, inputs, rollout, tiny

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def recipe(name: str) -> dict[str, str]:
    """The code blocks behind the mark of a recipe, by language."""
    found = re.search(rf"<!-- recipe: {name} -->\n((?:```\w+\n.*?^```\n)+)", README, re.S | re.M)
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", found[1], re.S | re.M))


def put_under(section: str, text: str) -> None:
    """Lines into params.yaml, as its first entries of a section."""
    path = Path("params.yaml")
    old = path.read_text()
    assert old.count(f"\n{section}:\n") == 1
    path.write_text(old.replace(f"\n{section}:\n", f"\n{section}:\n{text}"))


def shell(text: str, library: Path = REPOSITORY) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", text], env={**os.environ, "PATH": path, "PYTHONPATH": str(library)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def with_notebooks(project):
    shutil.copytree(REPOSITORY / "notebooks", project / "notebooks")
    return project


def test_every_recipe_has_its_test():
    here = Path(__file__).read_text()
    names = re.findall(r"<!-- recipe: (\w+) -->", README)
    assert len(names) >= 5
    for name in names:
        assert f'recipe("{name}")' in here


def test_the_first_rollout(project, capsys):
    exec(recipe("first")["python"], {})
    run = config.run("smoke", mode="opd")
    y_o, y_r = data.load(run.attempts), data.load(run.mode_folder / "y_r.parquet")
    asked = data.problems(run.data, "train").set_index("id")["problem"]
    row = y_o[~y_o["correct"]].iloc[0]
    mine = y_r[(y_r["id"] == row["id"]) & (y_r["seed"] == row["seed"])].iloc[0]
    parts = [asked[row["id"]] + "\n" + row["text"], mine["text"], f"right now: {mine['correct']}"]
    assert capsys.readouterr().out == "\n---\n".join(parts) + "\n"


def test_your_own_method(with_notebooks):
    blocks = recipe("method")
    put_under("methods", blocks["yaml"])
    shell(blocks["bash"])
    run = config.run(method="trd_jsd")
    assert (run.recipe.trajectory, run.recipe.divergence) == ("y_r", "jsd")
    assert data.read_json(run.choice)["adapters"]


def test_your_own_divergence(project):
    blocks = recipe("divergence")
    library = project / "library"
    shutil.copytree(REPOSITORY / "trdlib", library / "trdlib")
    with open(library / "trdlib" / "divergence.py", "a") as file:
        file.write("\n\n" + blocks["python"])
    put_under("methods", blocks["yaml"])
    check = (  # that its gradient is that of its value
        "; import torch; from trdlib import divergence as d; torch.manual_seed(0); "
        "a, b = torch.randn(2, 4, 9, dtype=float); z = a.requires_grad_(); "
        "value, gradient = d.total_variation(z.log_softmax(-1), b.log_softmax(-1), 0.5); "
        "value.sum().backward(); torch.testing.assert_close(z.grad, gradient)"
    )
    command = blocks["bash"].rstrip()
    assert command.endswith('"')
    shell(f'{command[:-1]}{check}"', library)
    assert list(project.glob("results/training/smoke/math/opd/trd_tv.json"))


def test_your_own_model_and_data(with_notebooks):
    blocks = recipe("mine")
    shutil.copytree("models/smoke/0/student", "models/mine")
    sets = tiny.problem_sets(config.run("smoke").settings.data)
    for name, source in (("train", "train"), ("test", "chain")):
        rows = sets[source][["problem", "answer", "solution"]].to_dict("records")
        path = data.write_text(f"mine/{name}.jsonl", "\n".join(map(json.dumps, rows)))
        assert path.is_file()
    put_under("scales", blocks["yaml"])
    shell(blocks["bash"])
    run = config.run("mine", mode="opsd")
    y_r = data.load(run.mode_folder / "y_r.parquet")
    assert len(y_r) == 8  # 12 in the file, 4 held out
    assert set(data.problems(run.data, "validation")["source"]) == {"mine/train.jsonl"}
    data.write_text("mine/train.jsonl", "{}")
    with pytest.raises(RuntimeError, match=r"^mine/train.jsonl has 1 rows, not 12"):
        inputs.prepare(run)


def test_your_own_task(with_notebooks):
    blocks = recipe("task")
    shutil.copytree("models/smoke/0/student", "models/mine")
    data.write_text("mine/sums.py", blocks["python"])
    put_under("scales", blocks["yaml"])
    shell(blocks["bash"])
    run = config.run("sums")
    assert len(data.load(run.attempts)) == 8
    rows = data.problems(run.data, "longer").to_dict("records")
    assert all(eval(row["problem"][8:-1]) == int(row["answer"]) for row in rows)
    said = pd.DataFrame({"text": [row["solution"] for row in rows], "finished": True})
    assert rollout.grade(said, rows, run) == [True] * 4
    assert rollout.grade(said, rows[1:] + rows[:1], run) != [True] * 4


def test_your_own_task_with_its_own_grader(project):
    """Graded by the file, and again once the file's grader has changed."""
    put_under("scales", recipe("task")["yaml"])
    shutil.copytree("models/smoke/0/student", "models/mine")
    verdict = "\ndef grade(pairs):\n    return [{} for _ in pairs]\n"
    run = config.run("sums", mode="opsd")
    for right in (True, False):
        data.write_text("mine/sums.py", recipe("task")["python"] + verdict.format(right))
        inputs._file.cache_clear()  # as in a new process
        inputs.prepare(run)
        y_o = rollout.attempts(run)
        assert y_o["correct"].tolist() == (y_o["finished"] & right).tolist()
    for source, words in (
        ("answer = 42", r"^mine/sums.py has no draw\(rng, steps\)"),
        ("def draw(rng, steps):\n    return 'x', 1, 'y'", "must return three texts"),
        ("def draw(rng, steps):\n    return 'x', '1', 'y'", "train wants 8 problems .* than 1:"),
    ):
        data.write_text("mine/sums.py", source)
        inputs._file.cache_clear()
        with pytest.raises(config.SettingsError, match=words):
            inputs.prepare(run)
    data.write_text("mine/sums.py", recipe("task")["python"] + "\ndef grade(pairs): return [True]")
    inputs._file.cache_clear()
    with pytest.raises(config.SettingsError, match=r"gave 1 verdicts for \d+ pairs"):
        rollout.attempts(run)
    Path("mine/sums.py").unlink()
    inputs._file.cache_clear()
    with pytest.raises(config.SettingsError, match=r"^the task mine/sums.py does not exist"):
        inputs.prepare(run)


def test_sweeps(with_notebooks):
    said = shell(recipe("sweep")["bash"])
    assert said.count("todo  papermill notebooks/4_distill.ipynb") == 9
    drawn = re.findall(r"todo  papermill notebooks/5_evaluate.ipynb .*learning_rate (\S+)", said)
    assert len(drawn) == 8
    assert all(1e-3 <= float(rate) <= 3e-2 for rate in drawn)
    assert len(set(re.findall(r"-p scale '(smoke lora.r=\d+)'", said))) > 1
