"""What an accident left of a project, and what the next `dvc repro` does about it; changes nothing.

`python -m trdlib doctor --project`.
"""

import contextlib
import json
import re
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml

from trdlib import store
from trdlib.settings import Settings, root

AGAIN = "the next repro moves it aside (.damaged) and makes it again"
MODELS = "git checkout it, or delete its folder: the next repro makes what the scale makes itself"
KNOWN = "finished work is known by its fingerprints and not done again"
LEFT = {  # what a kill leaves, by the ends of names
    ".tmp": "half-written, and nobody reads it: delete it; what it was to be is made again",
    ".parts": "responses of a table that is not finished: the next repro goes on behind them",
    ".seeds": "base seeds of a table that is not finished: the next repro goes on behind them",
    ".checkpoints": "a training that is not finished: the next repro goes on behind them",
    ".damaged": "set aside earlier, and made again where it was needed: delete it",
}


def wrong(settings: Settings) -> dict[str, str]:
    """{file or folder: what is wrong with it, and what the next repro does}."""
    found = {}
    for place in ("data", "models", "results", "runs"):
        for path in sorted((root() / place).rglob("*")):
            name, end = path.relative_to(root()), path.suffix
            writer = re.search(r"\.(\d+)\.(new|old)\.tmp$", path.name)
            if LEFT.keys() & {part.suffix for part in name.parents} or ".locks" in path.parts:
                continue
            if end in LEFT and not (writer and psutil.pid_exists(int(writer[1]))):
                found[str(name)] = LEFT[end]
            elif end in (".parquet", ".json", ".ipynb") and (why := _fault(path)):
                found[str(name)] = f"{why}: {MODELS if place == 'models' else AGAIN}"
    why = _lock(settings)
    return found | ({"dvc.lock": why} if why else {})


def _fault(path: Path) -> str | None:
    """Why this file, or the adapter that it tells of, is not what it was."""
    try:
        if path.suffix == ".parquet":
            pq.read_table(path, page_checksum_verification=True)
        else:
            about = json.loads(path.read_bytes())
            if path.name == "run.json" and store.weights_hash(path.parent) != about["weights"]:
                return "the weights beside it do not fit their hash"
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are among these
        return f"cannot be read ({' '.join(str(error).split())[:60]})"
    return None


def _lock(settings: Settings) -> str | None:
    """What is wrong with dvc.lock, which DVC writes in place, so that a kill cuts it off."""
    path, lacking = root() / "dvc.lock", []
    try:
        stages = yaml.safe_load(path.read_bytes())["stages"]
        assert all({"cmd", "outs"} <= stage.keys() for stage in stages.values())
    except FileNotFoundError:
        return f"it is not there: the next repro runs every stage; {KNOWN}"
    except (AssertionError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        return f"it is cut off, so repro stops there: git checkout dvc.lock, or delete it; {KNOWN}"
    for name, stage in yaml.safe_load((root() / "dvc.yaml").read_bytes())["stages"].items():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]
        for scale in settings.run.scales if "matrix" in stage else [""]:
            there = [(root() / out.replace("${item.scale}", scale)).exists() for out in outs]
            full = f"{name}@{scale}" if scale else name
            lacking += [full] if all(there) and full not in stages else []
    files = f"it lacks {', '.join(lacking)}, whose files are there: they run again; {KNOWN}"
    return files if lacking else None


def holders() -> list[str]:
    """Who has a lock of ours or of DVC open: holds it, or waits for it. The dead hold none."""
    locks, found = {str(path) for path in (root() / "runs" / ".locks").glob("*")}, []
    locks |= {str(root() / ".dvc" / "tmp" / name) for name in ("lock", "rwlock.lock")}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone, or another user's
            who = f"{process.pid}, {' '.join(process.cmdline())[:60]}"
            opened = {file.path for file in process.open_files()}
            found += [f"{Path(path).name}: {who}" for path in sorted(locks & opened)]
    return found
