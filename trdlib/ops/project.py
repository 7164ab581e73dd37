"""What an accident left of a project: `doctor --project` says it, `lock` mends dvc.lock."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import yaml

from trdlib import store
from trdlib.settings import Settings, read_yaml, root

RWLOCK = ".dvc/tmp/rwlock"  # who reads and writes what right now; DVC writes it in place
SAID = read_yaml(Path(__file__).with_suffix(".yaml"))


def wrong(settings: Settings) -> dict[str, str]:
    """{file or folder: what is wrong with it , and what the next repro does}."""
    found, places = {}, [root() / name for name in ("data", "models", "results", "runs")]
    for path in sorted(path for place in places for path in place.rglob("*")):
        name, end = path.relative_to(root()), path.suffix
        if SAID["left"].keys() & {part.suffix for part in name.parents} or ".locks" in name.parts:
            continue
        if end in SAID["left"]:
            found[str(name)] = SAID["left"][end]
        elif end in (".parquet", ".json", ".ipynb") and (why := _fault(path)):
            found[str(name)] = SAID.get(name.parts[0], SAID["again"]).format(why=why)
    dvc = {"dvc.lock": _lock(settings), RWLOCK: _cut_rwlock() and SAID["lock"]["cut"]}
    return found | {name: why.format(**SAID["lock"]) for name, why in dvc.items() if why}


def _fault(path: Path) -> str | None:
    """Why this file, or the adapter that it tells of, is not what it was."""
    try:
        if path.suffix == ".parquet":
            pq.read_table(path, page_checksum_verification=True)
            return None
        about, adapter = json.loads(path.read_bytes()), path.name == "run.json"
        wrong = adapter and store.weights_hash(path.parent) != about["weights"]
        return "the weights beside it do not fit their hash" if wrong else None
    except (OSError, ValueError, KeyError) as error:  # pyarrow's are among these
        return f"cannot be read ({' '.join(str(error).split())[:60]})"


def _lock(settings: Settings) -> str | None:
    """What is wrong with dvc.lock."""
    path, lacking = root() / "dvc.lock", []
    if not path.is_file():
        return SAID["lock"]["absent"]
    if (stages := _stages(path.read_bytes())) is None:
        return SAID["lock"]["cut"]
    for name, stage in yaml.safe_load((root() / "dvc.yaml").read_bytes())["stages"].items():
        outs = [out if isinstance(out, str) else next(iter(out)) for out in stage["outs"]]
        for scale in settings.run.scales if "matrix" in stage else [""]:
            there = [(root() / out.replace("${item.scale}", scale)).exists() for out in outs]
            full = f"{name}@{scale}" if scale else name
            lacking += [full] if all(there) and full not in stages else []
    return SAID["lock"]["lacks"].replace("{stages}", ", ".join(lacking)) if lacking else None


def _stages(raw: bytes) -> dict | None:
    """The stages in a dvc.lock; None if it is cut off, as by a kill: DVC writes it in place."""
    with contextlib.suppress(yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        stages = yaml.safe_load(raw)["stages"]
        if all(stage["cmd"] and stage["outs"] for stage in stages.values()) and raw[-1:] == b"\n":
            return stages


def _cut_rwlock() -> bool:
    return (root() / RWLOCK).is_file() and bool(_fault(root() / RWLOCK))


def lock() -> None:
    """Mend what a kill has cut off of what DVC writes in place. dvc.lock is moved aside (.damaged),
    and git's, if whole, put in its place; RWLOCK, if nobody has a lock open, is deleted."""
    path, found = root() / "dvc.lock", b""
    if _cut_rwlock() and not holders():
        (root() / RWLOCK).unlink()
        print(f"{RWLOCK} was cut off: deleted, DVC makes it anew", file=sys.stderr)
    if not path.is_file() or _stages(path.read_bytes()) is not None:
        return
    os.replace(path, f"{path}.damaged")
    with contextlib.suppress(FileNotFoundError):  # no git
        git = ["git", "-C", str(root()), "show", "HEAD:./dvc.lock"]
        found = subprocess.run(git, capture_output=True).stdout
    if there := _stages(found):
        store.write_whole(path, lambda new: new.write_bytes(found))
    said = SAID["lock"]["from_git" if there else "from_nowhere"]
    print("dvc.lock was cut off:", said.format(**SAID["lock"]), file=sys.stderr)


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
