"""Files that are whole or absent, what they were made from, and hashes.

Every file is written to a temporary name and renamed. A table may carry a fingerprint, a hash of
all that shaped it: `load` with another fingerprint says "not there". What cannot be read, or does
not fit its hash, is moved aside (`x.damaged`), said, and not there either: it is made again.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import filelock
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trdlib.settings import root

AnyPath = str | os.PathLike
_FINGERPRINT = b"trd.fingerprint"
# As Linux, torch, safetensors and numpy say that the disk is full, or a file larger than it may be.
_FULL = "No space left|File too large|quota|unexpected pos|write failed|requested and .* written"


def _say(path: AnyPath, what: str) -> None:
    print(os.path.relpath(path, root()), what, file=sys.stderr, flush=True)


def _set_aside(path: AnyPath, why: object) -> None:
    aside, why = Path(f"{path}.damaged"), " ".join(str(why).split())[:80]
    shutil.rmtree(aside, ignore_errors=True)  # a folder; a file is replaced
    os.replace(path, aside)
    _say(path, f"is damaged ({why}): now {aside.name}, to be made again")


@contextlib.contextmanager
def _else_aside(path: AnyPath):
    """Reading a file: where it is damaged it is set aside, and what is behind this goes on."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if getattr(error, "errno", None):  # it is not there, or the disk cannot read it
            raise
        _set_aside(path, error)


@contextlib.contextmanager
def enough_disk(path: AnyPath):
    """Writing: RuntimeError, in one sentence, if the disk is full or a file may not be so large."""
    try:
        yield
    except Exception as error:
        if not re.search(_FULL, str(error)):
            raise
        why = "the disk has no room for it, or no file may be so large: make room, then try again"
        name = os.path.relpath(path, root())
        raise RuntimeError(f"{name} cannot be written: {why}") from None


def write_whole(path: AnyPath, write, *, folder: bool = False) -> Path:
    """Call write(temporary path), of a new folder if it is to be one, then rename: nobody ever
    reads half of it, and what was there stays until then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = {"dir": path.parent, "prefix": f".{path.name[:99]}.", "suffix": ".tmp"}
    with enough_disk(path), tempfile.TemporaryDirectory(**beside, ignore_cleanup_errors=True) as at:
        new = Path(at, path.name)
        if folder:
            new.mkdir()
        write(new)
        if folder and path.exists():
            path.rename(Path(at, f"{path.name}.old"))
        os.replace(new, path)
    return path


write_folder = functools.partial(write_whole, folder=True)


def locked(path: AnyPath):
    """While it is open, other processes of this machine wait here: for what several runs share.
    The lock files lie in runs/.locks: DVC hashes what lies beside a path. The dead hold none."""
    lock = root() / "runs" / ".locks" / "-".join(Path(os.path.relpath(path, root())).parts)
    lock.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(lock)


def write_text(path: AnyPath, text: str) -> Path:
    return write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: AnyPath, value) -> Path:
    """Sorted keys and a final newline: equal values give equal bytes. NaN is refused."""
    return write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: AnyPath, otherwise=None):
    """What a JSON file says; `otherwise` (None: an error) if it is absent or damaged."""
    if otherwise is None or Path(path).is_file():
        with _else_aside(path):
            return json.loads(Path(path).read_bytes())
        if otherwise is None:
            name = os.path.relpath(path, root())
            raise RuntimeError(f"{name} was damaged: run what makes it again")
    return otherwise


def save(frame: pd.DataFrame, path: AnyPath, fingerprint: str = "") -> Path:
    """A parquet file with its fingerprint in the metadata."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    about = {**table.schema.metadata, _FINGERPRINT: fingerprint.encode()}
    table = table.replace_schema_metadata(about)
    return write_whole(path, lambda p: pq.write_table(table, p, write_page_checksum=True))


def load(path: AnyPath, fingerprint: str | None = None) -> pd.DataFrame | None:
    """The table; None if it is absent, damaged, or (which is said) of another fingerprint. Of one
    with a / the part before it is enough."""
    if (found := fingerprint_of(path)) is None:
        return None
    if fingerprint not in (None, found, found.split("/")[0]):
        return is_stale(path)
    with _else_aside(path):
        return pq.read_table(path, page_checksum_verification=True).to_pandas()


def fingerprint_of(path: AnyPath) -> str | None:
    """None if the table is absent or damaged."""
    with _else_aside(path):
        if Path(path).is_file():
            return (pq.read_schema(path).metadata or {}).get(_FINGERPRINT, b"").decode()


def is_stale(path: AnyPath) -> None:
    """Say that what is there is not what is asked for, before it is made again."""
    _say(path, "was made by other settings, inputs or code: it is made again, and kept until then")


def content_hash(*parts) -> str:
    """A short hash of JSON-like values and settings sections; equal input, equal hash."""
    text = json.dumps(parts, sort_keys=True, default=lambda p: p.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_hash(*modules) -> str:
    """Hash of what modules do: their code without comments, docstrings and layout."""
    return content_hash([_bare_code(inspect.getsource(module)) for module in modules])


@functools.cache
def source_hash(source: str) -> str:
    """The same for a source text, which need not be imported."""
    return content_hash(_bare_code(source))


def _bare_code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.AST(body=[ast.Expr(value=ast.Constant()), *rest]):
                node.body = rest
    return ast.dump(tree)


@functools.cache
def _file_hash(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(folder: AnyPath) -> str:
    """Hash of the weight files in a model's or an adapter's folder: what the model is."""
    files = sorted(p for p in Path(folder).glob("*") if p.suffix in (".safetensors", ".gguf"))
    if not files:
        raise FileNotFoundError(f"no .safetensors or .gguf weights in {folder}")
    stats = [(p, p.stat()) for p in files]
    return content_hash([(p.name, _file_hash(p, s.st_size, s.st_mtime_ns)) for p, s in stats])


def check_weights(folder: AnyPath, expected: str | None) -> bool:
    """Has the folder the weights of this hash (None: any)? If there are others, it is set aside."""
    with contextlib.suppress(FileNotFoundError):
        if expected in (None, weights_hash(folder)):
            return True
        _set_aside(folder, "its weights do not fit their hash")
    return False
