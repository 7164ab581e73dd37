"""Files that are whole or absent, what they were made from, and hashes.

Every file is written to a temporary name and renamed. A table may carry a fingerprint, a hash of
all that shaped it: `load` with another fingerprint says "not there".
"""

import ast
import functools
import hashlib
import inspect
import json
import os
import shutil
from pathlib import Path

import filelock
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from trdlib.settings import root

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
    parts = Path(os.path.relpath(path, root())).parts
    lock = root() / "runs" / ".locks" / "-".join(parts)
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
    table = pa.Table.from_pandas(frame, preserve_index=False)
    about = {**table.schema.metadata, _FINGERPRINT: fingerprint.encode()}
    return write_whole(path, lambda p: pq.write_table(table.replace_schema_metadata(about), p))


def load(path: str | os.PathLike, fingerprint: str | None = None) -> pd.DataFrame | None:
    """The table, or None if it is absent or carries another fingerprint than the one asked for."""
    if not Path(path).is_file() or fingerprint not in (None, fingerprint_of(path)):
        return None
    return pq.read_table(path).to_pandas()


def fingerprint_of(path: str | os.PathLike) -> str:
    return (pq.read_schema(path).metadata or {}).get(_FINGERPRINT, b"").decode()


def content_hash(*parts) -> str:
    """A short hash of JSON-like values and settings sections; equal input, equal hash."""
    text = json.dumps(parts, sort_keys=True, default=lambda p: p.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_hash(*modules) -> str:
    """Hash of what modules do: their code without comments, docstrings and layout."""
    return content_hash([_bare_code(inspect.getsource(module)) for module in modules])


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
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(folder: str | os.PathLike) -> str:
    """Hash of the weight files in a model's or an adapter's folder: what the model is."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".gguf"))
    if not files:
        raise FileNotFoundError(f"no .safetensors or .gguf weights in {folder}")
    stats = [(p, p.stat()) for p in files]
    return content_hash([(p.name, _file_hash(str(p), s.st_size, s.st_mtime_ns)) for p, s in stats])
