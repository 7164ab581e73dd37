"""Problems in one schema, and files that are either whole or absent.

Every source ends in the columns id, source, problem, answer, solution (design: "Data flow"). Every
table is written to a temporary name and renamed, and may carry a fingerprint: a hash of all that
shaped it. `load` with another fingerprint says "not there".
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from trdlib import config

COLUMNS = ["id", "source", "problem", "answer", "solution"]
_FINGERPRINT = b"trd.fingerprint"


def write_whole(path: str | os.PathLike, write) -> Path:
    """Call write(temporary_path), then rename: nobody ever reads half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(folder: str | os.PathLike, write) -> Path:
    """Like write_whole, for a folder: call write(temporary_folder), then put it in its place."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def locked(path: str | os.PathLike):
    """While it is open, no other process of this machine has the same path locked.

    For what several runs share: who comes second waits, and finds the file. A killed process holds
    no lock. The lock files lie in runs/.locks, because DVC hashes what lies beside a path.
    """
    import filelock

    relative = Path(os.path.relpath(path, config.root()))
    lock = config.root() / "runs" / ".locks" / "-".join(relative.parts)
    lock.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(lock)


def write_text(path: str | os.PathLike, text: str) -> Path:
    return write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | os.PathLike, value) -> Path:
    """Sorted keys and a final newline: equal values give equal bytes. NaN is refused."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def save(frame: pd.DataFrame, path: str | os.PathLike, fingerprint: str = "") -> Path:
    """A parquet file with its fingerprint in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _FINGERPRINT: fingerprint.encode()}
    )
    return write_whole(path, lambda p: pq.write_table(table, p))


def load(path: str | os.PathLike, fingerprint: str | None = None) -> pd.DataFrame | None:
    """The table, or None if it is absent or carries another fingerprint than the one asked for."""
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        return None
    if fingerprint is not None and fingerprint_of(path) != fingerprint:
        return None
    return pq.read_table(path).to_pandas()


def fingerprint_of(path: str | os.PathLike) -> str:
    import pyarrow.parquet as pq

    return (pq.read_schema(path).metadata or {}).get(_FINGERPRINT, b"").decode()


def check(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame, if it is a valid problem set; ValueError with the first fault otherwise."""
    if list(frame.columns) != COLUMNS:
        raise ValueError(f"{name}: columns {list(frame.columns)}, expected {COLUMNS}")
    if frame.empty:
        raise ValueError(f"{name}: no problems")
    for column in ("id", "source", "problem", "answer"):
        bad = frame[column].map(lambda v: not isinstance(v, str) or not v.strip())
        if bad.any():
            raise ValueError(f"{name}: row {int(bad.idxmax())} has no {column}")
    for column in ("id", "problem"):
        if frame[column].duplicated().any():
            twice = frame.loc[frame[column].duplicated(), column].iloc[0]
            raise ValueError(f"{name}: {column} {twice!r} occurs twice")
    return frame


def check_disjoint(sets: dict[str, pd.DataFrame]) -> None:
    """ValueError if a problem stands in two sets."""
    owner: dict[str, str] = {}
    for name, frame in sets.items():
        for problem in frame["problem"]:
            if problem in owner:
                raise ValueError(f"{problem!r} stands in both {owner[problem]} and {name}")
            owner[problem] = name


def draw_sets(settings: config.Data, write: Callable) -> dict[str, pd.DataFrame]:
    """Procedural train, validation and benchmark sets in the one schema; no problem occurs twice.

    write(rng, part, split) -> (problem, answer, solution); split: "train", "validation" or "test".
    """
    plan = {
        "train": ("train", settings.train),
        "validation": ("validation", settings.validation),
        **{name: ("test", (one,)) for name, one in settings.benchmarks.items()},
    }
    frames, seen = {}, set()
    for name, (split, parts) in plan.items():
        rng, rows = random.Random(f"{settings.seed}/{name}"), []
        for part in parts:
            wanted, again = len(rows) + part.problems, 0
            while len(rows) < wanted:
                problem, answer, solution = write(rng, part, split)
                again = again + 1 if problem in seen else 0
                if again > 10_000:
                    raise config.SettingsError(
                        f"data: {name} wants {part.problems} problems of {part.task}, and there "
                        f"are no more than {len(rows)}: ask for fewer, or for other steps"
                    )
                if problem not in seen:
                    seen.add(problem)
                    rows.append((f"{name}-{len(rows):04d}", part.task, problem, answer, solution))
        frames[name] = check(pd.DataFrame(rows, columns=COLUMNS), name)
    check_disjoint(frames)
    return frames


def save_sets(frames: dict[str, pd.DataFrame], folder: Path) -> dict[str, pd.DataFrame]:
    """The sets, each on file with a hash of its content; what is there and the same is kept."""
    for name, frame in frames.items():
        path, stamp = folder / f"{name}.parquet", config.content_hash(frame.values.tolist())
        if load(path, stamp) is None:
            save(frame, path, stamp)
    return frames


def problems(folder: Path, name: str) -> pd.DataFrame:
    """One prepared problem set: "train", "validation", or a benchmark's name."""
    frame = load(folder / f"{name}.parquet")
    if frame is None:
        raise FileNotFoundError(f"{folder.name}/{name}.parquet is missing: run notebook 1_prepare")
    return check(frame, name)
