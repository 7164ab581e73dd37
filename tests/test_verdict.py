"""Did it reproduce? Altered numbers against what a git repository holds."""

import json
import subprocess

import numpy as np
import pytest

from trdlib.analysis import compare
from trdlib.ops import verdict

RNG = np.random.default_rng(0)
RIGHT = RNG.binomial(16, RNG.beta(2, 2, 128), (3, 128))  # of 16 samples, by seed and problem


def measured(right, k=16):
    found = compare.bootstrap(right / k, resamples=1000, confidence=0.95)
    about = {"k": k, "n": right.shape[1], "seeds": [0, 1, 2], "problems": "hash"}
    return about | {"avg_at_k": found._asdict(), "correct": right.tolist()}


def write(method="trd", mode="opd", **right):
    """A metrics file, by temperature and benchmark as `evaluate` writes it."""
    path = verdict.root() / verdict.PLACE / "smoke" / mode / f"{method}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {name: measured(counts) for name, counts in right.items()}
    path.write_text(json.dumps({"benchmarks": {"0.6": cells}, "fingerprints": {}}))
    return path


def altered(samples):
    """Some more right samples of the first seed: each moves avg@16 by 1/61.44 points."""
    right = RIGHT.copy()
    for _ in range(samples):
        right[0, right[0].argmin()] += 1
    return right


@pytest.fixture
def scales(project):
    """A repository with two cells of one method committed."""
    write(chain=RIGHT, trail=RIGHT)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "results"], ["commit", "-qm", "results"]):
        subprocess.run([*git, *command], check=True)
    return ("smoke",)


@pytest.mark.parametrize(
    ("samples", "says", "largest"),
    [
        (0, "Yes: each cell compared is the same to the last sample.", None),
        (6, "Yes: each cell compared is within 0.2 points", "+0.10 points"),
        (13, "Yes: each cell compared is within the committed interval", "+0.21 points"),
        (600, "Not all of it: 1 of 2 cells.", "+9.77 points"),
    ],
)
def test_the_worst_cell_decides(scales, samples, says, largest):
    write(chain=RIGHT, trail=altered(samples))
    first, line = verdict.verdict(scales).split("\n")
    assert says in first
    assert line.startswith("  smoke/opd: ")
    if largest is None:
        assert "points" not in line
    else:
        assert "1 the same to the last sample" in line
        assert f"{largest}, trd 0.6 trail" in line
    assert ("OUTSIDE" in line) == (samples == 600)


def test_the_same_mean_of_other_samples_is_not_the_same(scales):
    write(chain=RIGHT, trail=RIGHT[:, ::-1])
    assert "1 within 0.2 points" in verdict.verdict(scales)


def test_what_cannot_be_compared_is_counted(scales):
    path = write(chain=RIGHT, trail=RIGHT)
    found = json.loads(path.read_text())
    found["benchmarks"]["0.6"]["trail"]["k"] = 4
    found["benchmarks"]["1.0"] = {"trail": found["benchmarks"]["0.6"].pop("chain")}
    path.write_text(json.dumps(found))
    text = verdict.verdict(scales)
    assert "unknown" in text.lower()  # nothing is left that could agree
    for part in ("1 not comparable", "1 committed, and not here", "1 here, and not committed"):
        assert part in text
    path.unlink()
    assert "2 committed, and not here" in verdict.verdict(scales)


@pytest.mark.parametrize("without", ["repository", "git", "scale"])
def test_without_anything_committed_it_says_so(scales, monkeypatch, without):
    if without == "repository":  # a copy without .git
        subprocess.run(["rm", "-rf", ".git"], check=True)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(verdict.root().parent))
    elif without == "git":
        monkeypatch.setenv("PATH", "")
    else:
        scales = ("tiny",)
    assert verdict.verdict(scales).startswith("Did it reproduce? Unknown")
