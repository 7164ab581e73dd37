"""Files on disk: what is damaged, stale, or does not fit on the disk is said, never used."""

import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from trdlib import store


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    rows = {"id": [f"p{i}" for i in range(80)], "text": ["é " * (i % 9) for i in range(80)]}
    ids = [rng.integers(0, 50, i % 20).tolist() for i in range(80)]
    return pd.DataFrame(rows | {"token_ids": ids, "correct": rng.random(80) > 0.5})


def is_aside(path, said):
    assert not path.exists() and path.with_name(f"{path.name}.damaged").exists()
    return f"{path.name} is damaged (" in said and said.count("\n") == 1


def test_a_damaged_table_is_never_used(place, frame, capsys):
    """Cut anywhere, or one byte changed anywhere: not there, set aside, said in one line."""
    path, wanted = place / "y_o.parquet", frame.to_json()
    store.save(frame, path, "a/b")
    assert store.load(path, "a/b").to_json() == wanted
    raw, rng = path.read_bytes(), random.Random(0)
    for cut in (0, 3, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:cut])
        assert store.load(path) is None and is_aside(path, capsys.readouterr().err)
    seen = 0
    for _ in range(150):
        bad, at = bytearray(raw), rng.randrange(len(raw))
        bad[at] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        found = store.load(path, "a/b")
        said = capsys.readouterr().err
        assert said.count("\n") <= 1
        seen += found is None
        assert found is None or found.to_json() == wanted, at  # a byte that carries nothing
    assert seen > 100
    path.write_text("{}")
    assert store.fingerprint_of(path) is None and is_aside(path, capsys.readouterr().err)
    assert store.load(path) is None and store.fingerprint_of(path) is None  # absent: silently
    assert not capsys.readouterr().err


def test_a_damaged_json_file(place, capsys):
    path = place / "run.json"
    for bad in (b"", b'{"a": ', b"\x00\xff", b"<<<<<<< HEAD"):
        path.write_bytes(bad)
        assert store.read_json(path, {}) == {} and is_aside(path, capsys.readouterr().err)
        path.write_bytes(bad)
        with pytest.raises(RuntimeError, match=r"^run.json was damaged: run what makes it again$"):
            store.read_json(path)
        capsys.readouterr()
    assert store.read_json(path, {}) == {} and not path.exists()
    with pytest.raises(FileNotFoundError):
        store.read_json(path)
    assert store.read_json(store.write_json(path, {"a": 1}), {}) == {"a": 1}


def test_a_folder_of_another_is_no_damage(place):
    (place / "x.parquet").mkdir()
    assert store.load(place / "x.parquet") is None
    (place / "y.json").mkdir()
    with pytest.raises(IsADirectoryError):
        store.read_json(place / "y.json")


def test_a_stale_table_is_said_and_kept(place, frame, capsys):
    path = store.save(frame, place / "y_o.parquet", "a/b")
    assert store.load(path, "other") is None and path.is_file()
    assert capsys.readouterr().err.startswith("y_o.parquet was made by other settings")


def test_weights_that_do_not_fit_their_hash(place, capsys):
    folder = place / "adapter"
    assert not store.check_weights(folder, "0" * 16)  # nothing there: nothing to say
    folder.mkdir()
    save_file({"w": np.arange(4.0)}, folder / "adapter_model.safetensors")
    stored = store.weights_hash(folder)
    assert store.check_weights(folder, stored) and store.check_weights(folder, None)
    assert not capsys.readouterr().err
    file = folder / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert not store.check_weights(folder, stored)
    assert is_aside(folder, capsys.readouterr().err)


def test_a_folder_that_cannot_be_written_leaves_the_old_one(place):
    def old(to):
        (to / "file").write_text("old")

    def breaks(to):
        (to / "file").write_text("new")
        raise KeyboardInterrupt

    store.write_folder(place / "folder", old)
    with pytest.raises(KeyboardInterrupt):
        store.write_folder(place / "folder", breaks)
    assert (place / "folder" / "file").read_text() == "old"
    store.write_folder(place / "folder", lambda to: (to / "other").touch())
    assert [p.name for p in (place / "folder").iterdir()] == ["other"]
    assert {p.name for p in place.iterdir()} == {"folder", "params.yaml"}


FULL = """
import resource, sys
import numpy, pandas, safetensors.torch, torch
from trdlib import store
big = torch.rand(60_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for name, write in {
    "torch": lambda to: torch.save(big, to),
    "old": lambda to: torch.save(big, to, _use_new_zipfile_serialization=False),
    "safe": lambda to: safetensors.torch.save_file({"a": big}, to),
    "numpy": lambda to: numpy.save(open(to, "wb"), big.numpy()),
    "text": lambda to: to.write_text("x" * 200_000),
    "table": lambda to: pandas.DataFrame(big.numpy()).to_parquet(to),
}.items():
    try:
        store.write_whole(name, write)
    except RuntimeError as error:
        print(error)
"""


def test_a_full_disk_is_one_sentence(place):
    """A limit on the size of files stands in for a full disk: the same calls fail."""
    command = [sys.executable, "-c", FULL]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["torch", "old", "safe", "numpy", "text", "table"]
    assert all("cannot be written: the disk has no room for it" in line for line in said), said
    assert [path.name for path in place.iterdir()] == ["params.yaml"]  # nothing half-written
    with pytest.raises(OSError, match="Permission"), store.enough_disk("x"):
        raise PermissionError(13, "Permission denied")
