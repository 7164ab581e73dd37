"""Did it reproduce? The metrics of a run beside those that git's HEAD holds, cell by cell."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

import pandas as pd

from trdlib import store
from trdlib.settings import read_yaml, root

PLACE, WORDS = "results/metrics", read_yaml(Path(__file__).with_suffix(".yaml"))


def cells(folder: Path, scales) -> dict[tuple[str, str], dict]:
    """{(scale/mode, method temperature benchmark): what was measured} below a project's folder."""
    paths = [p for p in (folder / PLACE).glob("*/*/*.json") if p.parts[-3] in scales]
    read = [(p, *at) for p in paths for at in store.read_json(p)["benchmarks"].items()]
    return {("/".join(path.parts[-3:-1]), f"{path.stem} {temperature} {name}"): cell
            for path, temperature, cells in read for name, cell in cells.items()}  # fmt: skip


def committed(scales) -> dict[tuple[str, str], dict]:
    """`cells` of HEAD; {} without git, or where it has none."""
    git = ["git", "-C", str(root()), "archive", "--format=tar", "HEAD", PLACE]
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
            tar = subprocess.run(git, capture_output=True, check=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=tar, check=True)
        return cells(Path(folder), scales)


def judge(ours: dict | None, theirs: dict | None) -> tuple[str, float]:
    """A key of WORDS, and the difference in points, of a cell here and the committed one."""
    if not (ours and theirs):
        return "new" if ours else "missing", 0.0
    if any(ours[key] != theirs[key] for key in ("k", "seeds", "problems")):
        return "other", 0.0
    value, was = ours["avg_at_k"]["value"], theirs["avg_at_k"]
    points = 100 * (value - was["value"])
    if abs(points) <= WORDS["points"] + 1e-9:
        return "same" if ours["correct"] == theirs["correct"] else "cpu", points
    return "chance" if was["low"] <= value <= was["high"] else "outside", points


def verdict(scales) -> str:
    """One sentence on these scales, and a line for each table."""
    ours, old = cells(root(), scales), committed(scales)
    rows = [(*key, *judge(ours.get(key), old.get(key))) for key in sorted({**ours, **old})]
    found, lines = pd.DataFrame(rows, columns=["table", "cell", "kind", "points"]), []
    for name, mine in found.groupby("table"):
        said = [f"{n} {WORDS[kind]}" for kind, n in mine["kind"].value_counts().items()]
        worst = mine.loc[mine["points"].abs().idxmax()]
        said += [f"at most {worst['points']:+.2f} points, {worst['cell']}"] * bool(worst["points"])
        lines.append(f"  {name}: {'; '.join(said)}")
    outside, compared = (found["kind"] == "outside").sum(), [*WORDS][:4]
    seen = [kind for kind in compared if kind in set(found["kind"])]
    answer = f"Yes: each cell compared is {WORDS[seen[-1]]}" if seen else WORDS["unknown"]
    answer = f"Not all of it: {outside} of {len(found)} cells" if outside else answer
    return "\n".join([f"Did it reproduce? {answer}.", *lines])
