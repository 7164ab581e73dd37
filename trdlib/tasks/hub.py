"""Published problem sets: files at one commit of the hub, or one's own, in the one schema.

Paper section 3, at the pins of public code (hub.yaml; the authors' are unknown). Of the train set
we drop, and count, problems without an answer or a required solution, that occur twice, or in a
benchmark (in the same words: `normal`). Validation and train are drawn by a hash of their text."""

import gzip
import hashlib
import json
import numbers
import os
import re
import reprlib
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import yaml
from pyarrow.parquet import ParquetFile
from pydantic import Field

from trdlib import settings, store
from trdlib.settings import Count, Name, Scale, Section, SettingsError
from trdlib.tasks import sets as schema

sys.set_int_max_str_digits(0)  # problems have long integers
REPORT = "sources.json"  # beside the prepared sets: commits, file hashes, counts
GITHUB = "https://github.com"


class Source(NamedTuple):
    repo: str | None  # of the hub; None: a file of one's own
    revision: str | None  # a commit
    file: str
    sha256: str | None = None  # of a release on GitHub, where no commit says which file it is

    def __str__(self) -> str:
        return f"{self.repo}: {self.file}" if self.repo else self.file

    def place(self, root: str | None) -> Path:
        """Where the file is that is not in the hub's cache, or should be."""
        folder = f"{root or 'data/downloads'}/{self.repo}/{'' if root else self.revision}"
        return settings.root() / (folder if self.repo else "") / self.file


_PUBLISHED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
SOURCES = {name: tuple(Source(*one) for one in files) for name, files in _PUBLISHED.items()}


class HubSet(Section):
    """One file of the hub at one commit, or without repo of your own; or the files of a format."""

    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")  # branches and tags may move
    file: str | None = Field(None, pattern=r"\.(parquet|jsonl|json)$")
    format: Literal[tuple(SOURCES)] | None = None
    files: tuple[str, ...] = ()  # of your own in the format, instead of the published ones
    # What the file calls the columns of our schema; without id it is the row's number. A file of
    # one's own need not name its column `solution`.
    columns: dict[Literal["problem", "answer", "solution", "id"], str] = Field({})
    rows: Count  # in the file, or in all files
    ask: str = ""  # a sentence behind each problem
    leave_out: dict[str, str] = Field({})  # column -> value: rows that are not wanted
    kept: Count | None = None  # rows after that

    def faults(self) -> dict:
        own, names = self.repo or self.columns or self.leave_out, [*self.columns.values()]
        return {
            "name either a file or a format": bool(self.file) == bool(self.format),
            f"{self.format} has its own repo and columns: drop them": self.format and own,
            "columns names one column of the file twice": len({*names}) < len(names),
            "repo and revision go together": bool(self.repo) != bool(self.revision),
            "leave_out and kept go together": bool(self.leave_out) != bool(self.kept),
            f"kept {self.kept} must be less than rows {self.rows}": (self.kept or 0) >= self.rows,
        }

    @property
    def name(self) -> str:
        return self.format or self.repo or self.file

    @property
    def sources(self) -> tuple[Source, ...]:
        names = [self.file] if self.file else self.files
        return tuple(Source(self.repo, self.revision, n) for n in names) or SOURCES[self.format]

    @property
    def problems(self) -> int:
        return self.kept or self.rows  # as many as a benchmark asks


class HubData(Section):
    """The section `data` of a scale with published problems."""

    train: HubSet
    train_problems: Count | None = None  # drawn by a hash; None: all that are left
    validation_problems: Count  # held out of the train set, by the same hash
    benchmarks: dict[Name, HubSet] = Field(min_length=1)
    # Train problems without a reference solution are left out; unfiltered: they stay, and the
    # teacher of OPSD sees an empty one there, as in the authors' code.
    require_solution: bool | Literal["unfiltered"] = False
    root: str | None = None  # a folder with <repo>/<file> that stands in for the hub
    seed: int = 0

    @property
    def sets(self) -> dict[str, HubSet]:
        """What is read: the train set, of which validation is a part, and the benchmarks."""
        return {"train": self.train, **self.benchmarks}


def section(scale: Scale, name: str = "") -> HubData:
    """A scale's data, checked; SettingsError with one sentence on the first fault."""
    return schema.section(HubData, scale.data, f"scales.{name}.data" if name else "data")


def check(name: str, scale: Scale) -> None:
    """SettingsError unless the data are such a section, for the task and the modes of the scale."""
    found = section(scale, name)
    for one in found.sets.values():
        if one.format and scale.task != "code":
            raise SettingsError(f"scales.{name}: {one.format} is of the task code, not of math")
    if "opsd" in scale.modes and not found.require_solution:
        mend = "set data.require_solution (true, or unfiltered), or drop opsd from modes"
        raise SettingsError(f"scales.{name}: mode opsd shows the teacher a solution: {mend}")


def sizes(scale: Scale) -> dict[str, int]:
    """Problems of each set, as far as the settings tell: of train at most so many."""
    found = section(scale)
    train = found.train_problems or found.train.problems - found.validation_problems
    benchmarks = {name: one.problems for name, one in found.benchmarks.items()}
    return {"train": train, "validation": found.validation_problems, **benchmarks}


def files(run) -> dict[str, str]:
    found = section(run.settings)
    sources = [source for one in found.sets.values() for source in one.sources]
    own = [s.place(found.root) for s in sources if s.repo is None or found.root is not None]
    own = {os.path.relpath(path, settings.root()): path for path in own if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in own.items()}


def fetch(one: Source, root: str | None) -> Path:
    """The file: one's own, or under root, or downloaded, once, to the hub's cache or ours."""
    if (path := one.place(root)).is_file():
        return path
    if one.repo is None or root is not None:
        mend = "put it there, or correct " + ("file" if one.repo is None else "data.root")
        raise SettingsError(f"{os.path.relpath(path, settings.root())} does not exist: {mend}")
    try:
        if one.sha256:
            url = f"{GITHUB}/{one.repo}/releases/download/{one.revision}/{one.file}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                return store.write_whole(path, lambda new: new.write_bytes(answer.read()))
        from huggingface_hub import hf_hub_download as download

        with store.enough_disk(path):
            return Path(download(one.repo, one.file, repo_type="dataset", revision=one.revision))
    except Exception as error:  # of the hub, its client or the network, in many classes
        why = str(error) if isinstance(error, RuntimeError) else type(error).__name__
        mend = f"go online, correct repo, revision or file, or put {one.repo}/... in data.root"
        raise SettingsError(f"{one} cannot be fetched ({why}): {mend}") from None


def read(one: Source, root: str | None) -> tuple[list[dict], str]:
    """The rows of a file, values as they are in it, and its SHA-256."""
    path = fetch(one, root)
    raw, kind = path.read_bytes(), path.name.removesuffix(".gz").rpartition(".")[2]
    sha256 = hashlib.sha256(raw).hexdigest()
    if one.sha256 not in (None, sha256):
        raise SettingsError(f"{path} is not {one.repo} {one.revision}: delete it to fetch it again")
    try:
        if kind == "parquet":
            table = ParquetFile(path).read()
            rows = _row([(name, 0) for name in table.column_names]) and table.to_pylist()
        else:
            rows = _from_json(gzip.decompress(raw) if path.suffix == ".gz" else raw, kind)
        bad = [number for number, row in enumerate(rows) if not isinstance(row, dict)]
        if bad or not rows:
            raise ValueError(f"row {bad[0]} is no object with columns" if bad else "it is empty")
    except Exception as error:  # of gzip, JSON or parquet, in many classes
        why = " ".join(str(error).split())[:120]
        mend = "correct it, or fetch it again"
        raise SettingsError(f"{one} is not a valid {kind} file of rows ({why}): {mend}") from None
    return rows, sha256


def _from_json(raw: bytes, kind: str) -> list:
    """By hand: `datasets` makes dates of texts."""
    rows, lines = [], raw.splitlines() if kind == "jsonl" else [raw]
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(json.loads(line.decode("utf-8-sig"), object_pairs_hook=_row))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}" if kind == "jsonl" else error) from None
    if kind == "json" and not (rows and isinstance(rows[0], list)):
        raise ValueError("it is no list of rows")
    return rows[0] if kind == "json" else rows


def _row(pairs: list[tuple]) -> dict:
    """A row, or an object in one; ValueError if a column stands twice in it."""
    names = [name for name, _ in pairs]
    if len({*names}) < len(names):
        raise ValueError(f"the column {max(names, key=names.count)!r} stands twice")
    return dict(pairs)


def text(value) -> str:
    """Text, or a number as Python writes it; "" for null and NaN; ValueError for anything else."""
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        if abs(value) == float("inf"):
            raise ValueError("infinity is no answer")
        value = "" if value != value else str(value)
    if not isinstance(value, str | None):
        raise ValueError(f"a {type(value).__name__} is neither text nor a number: write it as text")
    if re.search("[\0\ud800-\udfff]", value or ""):
        raise ValueError("it holds a NUL or half a character: take it out")
    return (value or "").strip()


def records(one: HubSet, rows: Iterable[dict], answer_of: Callable) -> Iterator[tuple]:
    """The rows of a file in the schema. answer_of: the text of an answer; ValueError if none."""
    rows, columns = list(rows), {"problem": "problem", "answer": "answer", **one.columns}
    there, leave_out = set().union(*rows), one.leave_out.items()
    if not one.repo and "solution" in there - {*columns.values()}:
        columns.setdefault("solution", "solution")
    if missing := [c for c in (*columns.values(), *one.leave_out) if c not in there]:
        has = f"no column {missing[0]!r} but {', '.join(sorted(there))}"
        raise SettingsError(f"{one.sources[0]} has {has}: correct columns or leave_out")
    name = one.repo.split("/")[1] if one.repo else Path(one.file).stem
    for number, row in enumerate(rows):
        if any(("" if row.get(c) is None else str(row[c])).strip() == v for c, v in leave_out):
            continue
        found = {"id": str(number), "solution": ""}
        for of, column in columns.items():
            try:
                found[of] = (answer_of if of == "answer" else text)(row.get(column))
                if of == "id" and not found[of]:
                    raise ValueError("a row without its id: give it one, or drop columns.id")
            except ValueError as why:
                raise SettingsError(f"{one.name}, row {number}, column {column!r}: {why}") from None
        found["problem"] += f"\n\n{one.ask}" * bool(one.ask)
        yield f"{name}-{found['id']}", one.name, *(found[of] for of in schema.COLUMNS[2:])


def load(one: HubSet, root: str | None, read_rows: Callable) -> tuple[pd.DataFrame, dict]:
    """One set, its report. read_rows(set, rows, left_out: counts of why) yields the schema's."""
    files, left_out, first = [], {}, one.sources[0]  # files: (rows, hash)

    def rows():
        for source in one.sources:  # one at a time: some have gigabytes
            found, sha256 = read(source, root)
            files.append((len(found), sha256))
            yield from found

    frame = pd.DataFrame([*read_rows(one, rows(), left_out)], columns=schema.COLUMNS)
    sizes, hashes = zip(*files, strict=True)
    if len(two := frame["id"][frame["id"].duplicated()]):
        raise SettingsError(f"{one.name}: the id {two.iloc[0]!r} stands twice: correct columns.id")
    if (count := sum(sizes)) != one.rows or (one.file and len(frame) != one.problems):
        wants = f"not {one.rows} and {one.problems}: the dataset changed, correct rows or kept"
        raise SettingsError(f"{one.name} has {count} rows, of which {len(frame)} are kept, {wants}")
    about = {"repo": first.repo, "revision": first.revision, "rows": count, **left_out}
    about |= {"file": ", ".join(s.file for s in one.sources), "left_out": count - len(frame)}
    return frame, about | {"sha256": hashes[0] if one.file else store.content_hash(hashes)}


_SPACING = r"\\(?:[,;:!> ()\[\]]|(?:q?quad|left|right|displaystyle|limits|thinspace)(?![a-z]))"
_PUNCTUATION = r"[$~{}\"'`’‘“”?!;:]|(?<!\d)[.,]|[.,](?!\d)"


def normal(problem: str) -> str:
    """The text by which two problems are the same; signs that carry meaning stay (1.5, a-b)."""
    problem = re.sub(r"\\[dt]frac", r"\\frac", problem.lower())
    for pattern in (_SPACING, r"\s", _PUNCTUATION):
        problem = re.sub(pattern, "", problem)
    return problem


def problem_sets(found: HubData, read_rows: Callable, fits=None) -> tuple[dict, dict]:
    """All sets, and the report of each. read_rows: as of load; fits(problem): may it be asked?"""
    loaded = {name: load(one, found.root, read_rows) for name, one in found.sets.items()}
    benchmarks, asked = {name: loaded[name][0] for name in found.benchmarks}, set()
    for name, frame in benchmarks.items():
        if long := [row.id for row in frame.itertuples() if fits and not fits(row.problem)]:
            fault = f"{len(long)} prompts, that of {long[0]} the first, are too long"
            raise SettingsError(f"{name}: {fault}: raise lengths.prompt in params.yaml")
        asked |= {*frame["problem"].str.removesuffix(found.benchmarks[name].ask).map(normal)}
    frame, about = loaded["train"]
    frame, left = frame.assign(text=frame["problem"].map(normal)), f"of {len(frame)}"

    def drop(what: str, bad: pd.Series) -> None:
        nonlocal frame, left
        about[what], frame = int(bad.sum()), frame[~bad]
        left += f", {about[what]} {what.replace('_', ' ')}" * bool(about[what])

    drop("without_problem_or_answer", (frame["problem"] == "") | (frame["answer"] == ""))
    if found.require_solution is True:
        drop("without_solution", frame["solution"] == "")
    drop("in_a_benchmark", frame["text"].isin(asked))
    first = frame.groupby("text")[["id", "answer"]].transform("first")
    other, short = frame["answer"] != first["answer"], reprlib.repr
    pairs = zip(first[other].itertuples(), frame[other].itertuples(), strict=True)
    if two := [f"{a.id} ({short(a.answer)}), not {b.id} ({short(b.answer)})" for a, b in pairs]:
        about["twice_with_another_answer"] = "; ".join(two)
        said = f"{len(two)} problems stand twice, with different answers (see {REPORT}); used:"
        print(f"{found.train.name}: {said} {two[0]}", file=sys.stderr)
    drop("twice", frame["text"].duplicated())
    if fits:
        drop("too_long", ~frame["problem"].map(fits).astype(bool))
    held_out = found.validation_problems
    if len(frame) < (wanted := held_out + (found.train_problems or 1)):
        wants = f"{wanted} are wanted: lower train_problems or validation_problems in params.yaml"
        left = f"{len(frame)} problems are left ({left}) and {wants}"
        raise SettingsError(f"{found.train.name}: {left}")
    drawn = frame["text"].map(lambda one: store.content_hash(found.seed, one))
    order = frame.loc[drawn.sort_values(kind="stable").index, schema.COLUMNS]
    parts = {"train": order[held_out:][: found.train_problems], "validation": order[:held_out]}
    parts = {name: part.sort_index().reset_index(drop=True) for name, part in parts.items()}
    return schema.check(parts | benchmarks), {name: about for name, (_, about) in loaded.items()}


def prepare(run, made_by: list, read_rows: Callable, fits=None) -> dict[str, pd.DataFrame]:
    """All sets of a run, and REPORT: kept if settings, files and made_by are, see problem_sets."""
    found, folder = section(run.settings, run.scale), run.data
    sources = [one.sources for one in found.sets.values()]
    stamp = store.content_hash(found.model_dump(exclude={"root"}), sources, files(run), made_by)
    if store.read_json(folder / REPORT, {}).get("made_by") == stamp:
        frames = {name: store.load(folder / f"{name}.parquet") for name in sizes(run.settings)}
        if all(frame is not None for frame in frames.values()):
            answers = pd.concat(frames)["answer"]  # the large ones are in files of code.py
            large = answers[answers.str.startswith('{"kind": "file"')].map(json.loads)
            if all((folder / "tests" / one["name"]).is_file() for one in large):
                return frames
    frames, sources = problem_sets(found, read_rows, fits)
    schema.save(frames, folder)
    store.write_json(folder / REPORT, {"made_by": stamp, "sources": sources})
    return frames
