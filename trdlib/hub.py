"""Published problem sets, each one file at one commit of the hub, in the one schema.

Paper section 3: DeepScaleR to train on; AIME24, AIME25, HMMT Feb 2025, BeyondAIME and the 39
problems of AMO-Bench whose answer is not a description. What is done to them, and counted:

1. Every file must have the columns and the number of rows that params.yaml says.
2. An answer that is boxed, or wrapped in `$`, is unwrapped. (AIME24 publishes its answers as boxed
   solutions.) Problems are left as they are published: those of AMO-Bench end with an instruction
   of their own on how to write the answer.
3. Of the train set we drop problems without an answer, without a solution where one is required,
   problems that occur twice, and problems that occur in a benchmark. Two problems are the same if
   their texts agree but for case, white space, LaTeX spacing and delimiters, and punctuation; a
   reworded problem is not found.
4. Validation and train problems are drawn by a hash of their text.

The commits in params.yaml are those that public code pins for these files. They were not looked up
on the hub itself, which was out of reach when this was written. Unknown is which commits the
paper's authors used, which rows of DeepScaleR they trained on, and what they do with its many rows
without a solution.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pandas as pd

from trdlib import config, data, grading
from trdlib.config import HubData, HubSet

REPORT = "sources.json"  # beside the prepared sets: commits, file hashes, counts


class SourceError(RuntimeError):
    """A source is out of reach or is not what params.yaml says; the message says how to mend it."""


# ------------------------------------------------------------------------------------- one file


def cached(repo: str, file: str, revision: str, repo_type: str = "model") -> Path | None:
    """The file in the hub's cache, if it is there; nothing is asked of the network."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file, revision=revision, repo_type=repo_type)
    return Path(path) if isinstance(path, str) else None


def place(one: HubSet, root: str | None) -> Path | None:
    """Where the file is, or should be: under root (relative to the project) if there is one, else
    in the hub's cache (None: it is not). A file of one's own (no repo) is relative to the project.
    """
    if one.repo is None:
        return config.root() / one.file
    if root is not None:
        return config.root() / root / one.repo / one.file
    return cached(one.repo, one.file, one.revision, "dataset")


def fetch(one: HubSet, root: str | None) -> Path:
    """The file at its place; what the hub's cache lacks is downloaded."""
    if one.repo is None or root is not None:
        path = place(one, root)
        if not path.is_file():
            name = path.relative_to(config.root())
            how = "correct file" if one.repo is None else "set data.root to null to use the hub"
            raise SourceError(f"{name} does not exist: put it there, or {how}")
        return path
    import httpx
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(hf_hub_download(one.repo, one.file, repo_type="dataset", revision=one.revision))
    except errors.GatedRepoError:
        raise SourceError(
            f"{one.repo} is gated: accept its terms on the hub and log in, or set data.root"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"{one.repo} is not on the hub, or is private: correct repo in params.yaml, or log in"
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceError(
            f"{one.repo} has no commit {one.revision}: correct revision in params.yaml"
        ) from None
    except errors.RemoteEntryNotFoundError:
        raise SourceError(
            f"{one.repo} has no file {one.file} at its commit {one.revision[:8]}: correct file in "
            "params.yaml"
        ) from None
    except (OSError, httpx.HTTPError) as error:  # offline, no connection, an error of the server
        why = type(error.__cause__ or error).__name__
        raise SourceError(
            f"{one.repo}: the hub cannot be reached ({why}): go online once, or set data.root to a "
            f"folder with {one.repo}/{one.file}"
        ) from None


def read_rows(one: HubSet, path: Path) -> list[dict]:
    """The file's rows, with the number of rows and the columns that the settings say."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            rows = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, pa.ArrowException):
        raise SourceError(
            f"{one.where} is not a valid {path.suffix[1:]} file: fetch it again"
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SourceError(f"{one.where} is not a list of rows: correct file")
    if len(rows) != one.rows:
        raise SourceError(
            f"{one.where} has {len(rows)} rows, not {one.rows}: the dataset changed, "
            "correct revision or rows in params.yaml"
        )
    there = set.union(*(set(row) for row in rows))
    for column in [*filter(None, one.columns.model_dump().values()), *one.leave_out]:
        if column not in there:
            raise SourceError(
                f"{one.where} has no column {column!r} but {', '.join(sorted(there))}: "
                "correct columns or leave_out in params.yaml"
            )
    return rows


def _text(value) -> str:
    return "" if value is None else str(value).strip()


def plain_answer(value) -> str:
    """An answer without its box and its dollars: `$\\boxed{5}$` -> `5`, 42 -> `42`."""
    text = _text(value)
    text = grading.boxed(text) or text
    inner = text.strip("$").strip()
    return inner if "$" not in inner else text


def load(
    one: HubSet, root: str | None, folder: Path | None = None, *, answer_of=plain_answer
) -> tuple[pd.DataFrame, dict]:
    """One set in the schema, and what the report says of it. An id ends in the row's own id or
    number. (folder: for sets that keep more than a table, see coding.load.)"""
    path = fetch(one, root)
    rows, columns = read_rows(one, path), one.columns
    name = one.repo.split("/")[1] if one.repo else path.stem
    records = [
        (
            f"{name}-{number if columns.id is None else _text(row[columns.id])}",
            one.name,
            _text(row.get(columns.problem)),
            answer_of(row.get(columns.answer)),
            _text(row.get(columns.solution)),
        )
        for number, row in enumerate(rows)
        if not any(_text(row.get(column)) == value for column, value in one.leave_out.items())
    ]
    if len(records) != one.problems:
        raise SourceError(
            f"{one.name}: {len(records)} rows are left without {one.leave_out}, not "
            f"{one.problems}: the dataset changed, correct leave_out or kept in params.yaml"
        )
    report = {
        "repo": one.repo,
        "revision": one.revision,
        "file": one.file,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": len(rows),
        "left_out": len(rows) - len(records),
    }
    return pd.DataFrame(records, columns=data.COLUMNS), report


# ------------------------------------------------------------------------------------ the sets

_SPACING = re.compile(
    r"\\(?:[,;:!> ()\[\]]|(?:q?quad|left|right|displaystyle|limits|thinspace)(?![a-z]))"
)
_PUNCTUATION = re.compile(r"[$~{}\"'`’‘“”?!;:]|(?<!\d)[.,]|[.,](?!\d)")


def normal(problem: str) -> str:
    """The text by which two problems are the same; signs that carry meaning stay (1.5, a-b)."""
    text = re.sub(r"\\[dt]frac", r"\\frac", problem.lower())
    return _PUNCTUATION.sub("", re.sub(r"\s", "", _SPACING.sub("", text)))


def _train(
    settings: HubData, frame: pd.DataFrame, benchmarks: list[pd.DataFrame], report: dict, fits
):
    """-> (train, validation), without what does not belong there; the counts go into report."""
    asked = {normal(problem) for one in benchmarks for problem in one["problem"]}

    def drop(what: str, bad: pd.Series) -> None:
        nonlocal frame
        report[what] = int(bad.sum())
        frame = frame[~bad]

    drop("without_problem_or_answer", (frame["problem"] == "") | (frame["answer"] == ""))
    if settings.require_solution:
        drop("without_solution", frame["solution"] == "")
    drop("in_a_benchmark", frame["problem"].map(normal).isin(asked))
    drop("twice", frame["problem"].map(normal).duplicated())
    if fits:
        drop("too_long", ~frame["problem"].map(fits).astype(bool))
    wanted = settings.validation_problems + (settings.train_problems or 1)
    if len(frame) < wanted:
        raise SourceError(
            f"{settings.train.name}: {len(frame)} problems are left and {wanted} are wanted: lower "
            "train_problems or validation_problems in params.yaml"
        )
    drawn = frame["problem"].map(lambda p: config.content_hash(settings.seed, normal(p)))
    order = drawn.sort_values(kind="stable").index
    held_out, rest = order[: settings.validation_problems], order[settings.validation_problems :]
    parts = [frame.loc[i.sort_values()] for i in (rest[: settings.train_problems], held_out)]
    return [part.reset_index(drop=True) for part in parts]


def problem_sets(
    settings: HubData, read=load, folder: Path | None = None, fits=None
) -> tuple[dict[str, pd.DataFrame], dict]:
    """train, validation and every benchmark, in the one schema, and what the report says of their
    sources; SourceError says what is wrong. read: as load. fits(problem): may it be asked?"""
    loaded = {name: read(one, settings.root, folder) for name, one in settings.sets.items()}
    (everything, about), *others = loaded.values()
    benchmarks = [frame for frame, _ in others]
    for name, frame in zip(settings.benchmarks, benchmarks, strict=True):
        long = [row.id for row in frame.itertuples() if fits and not fits(row.problem)]
        if long:
            raise SourceError(
                f"{name}: {len(long)} problems, {long[0]} the first, have a longer prompt than "
                "lengths.prompt allows: raise it in params.yaml"
            )
    train, validation = _train(settings, everything, benchmarks, about, fits)
    frames = {"train": train, "validation": validation}
    frames |= dict(zip(settings.benchmarks, benchmarks, strict=True))
    for name, frame in frames.items():
        data.check(frame, name)
    data.check_disjoint(frames)
    return frames, {name: report for name, (_, report) in loaded.items()}


def _whole(frame: pd.DataFrame, folder: Path) -> bool:
    """Are the files there in which large tests are kept? (coding.py)"""
    kept = [json.loads(a)["name"] for a in frame["answer"] if a.startswith('{"kind": "file"')]
    return all((folder / "tests" / name).is_file() for name in kept)


def _check_unchanged(old: dict, new: dict, where: str) -> None:
    for name, about in new.items():
        before, key = old.get(name, {}), ("repo", "revision", "file")
        same_commit = about["repo"] and all(before.get(k) == about[k] for k in key)
        if same_commit and before["sha256"] != about["sha256"]:
            raise SourceError(
                f"{about['repo']}: {about['file']} is not the file that {where} was made from, "
                f"though its commit is the same: restore it, or delete {where} to accept it"
            )


def prepare(run: config.Run, made_by: str, read=load, fits=None) -> dict[str, pd.DataFrame]:
    """The problem sets of a hub scale: read if they were made by the same, else made.

    made_by: a hash of all that shapes them. Beside the sets lies REPORT. Raises SourceError, also
    if a file's content changed under the same commit. read, fits: as in problem_sets.
    """
    settings, folder = run.settings.data, run.data
    path = folder / REPORT
    old = data.read_json(path) if path.is_file() else {"sources": {}}
    if old.get("made_by") == made_by:
        names = ("train", "validation", *settings.benchmarks)
        frames = {name: data.load(folder / f"{name}.parquet") for name in names}
        if all(frame is not None and _whole(frame, folder) for frame in frames.values()):
            return frames
    frames, sources = problem_sets(settings, read, folder / "tests", fits)
    _check_unchanged(old["sources"], sources, f"data/{run.scale}/{run.task}")
    for name, frame in frames.items():
        about = sources.get(name, sources["train"])
        stamp = config.content_hash(frame.values.tolist(), about["revision"], about["sha256"])
        if data.load(folder / f"{name}.parquet", stamp) is None:
            data.save(frame, folder / f"{name}.parquet", stamp)
    report = {"made_by": made_by, "sources": sources}
    if report != old:
        data.write_json(path, report)
    return frames
