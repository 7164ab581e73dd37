"""Problem sets: their one schema (design: "Data flow"), and how procedural ones are drawn."""

import random
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pandas as pd
import pydantic
from pydantic import Field

from trdlib import store
from trdlib.settings import Count, Name, Natural, Section, SettingsError, first_fault, known

COLUMNS = ["id", "source", "problem", "answer", "solution"]


class ProblemSet(Section):
    """Procedural problems of one kind; validated in the context of a task's OPTIONS of each."""

    kind: str = Field("", validate_default=True)  # may be left out where the task has one only
    problems: Count
    steps: tuple[Annotated[Count, Field(le=1000)], ...] = Field(min_length=1)  # a line each
    options: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}  # noqa: RUF012 - frozen

    @pydantic.field_validator("kind")
    @classmethod
    def _exists(cls, kind: str, info) -> str:
        kind = kind or (next(iter(info.context)) if len(info.context) == 1 else kind)
        known("kind of problem", kind, info.context)
        return kind

    @pydantic.field_validator("options")
    @classmethod
    def _belong(cls, options: dict[str, float], info) -> dict[str, float]:
        for name in options:
            known("such option", name, info.context[info.data["kind"]] or ["none"])
        return options


class Data(Section):
    """The section `data` of a procedural task."""

    train: tuple[ProblemSet, ...] = Field(min_length=1)
    validation: tuple[ProblemSet, ...] = Field(min_length=1)
    benchmarks: dict[Name, ProblemSet] = Field(min_length=1)
    seed: Natural = 0

    @property
    def parts(self) -> dict[str, tuple[ProblemSet, ...]]:
        """Of what each set is made, in the order in which they are drawn."""
        benchmarks = {name: (one,) for name, one in self.benchmarks.items()}
        return {"train": self.train, "validation": self.validation} | benchmarks


def section(kind: type[Section], raw: dict[str, Any] | None, where: str, context=None):
    """The raw section as its type, None as None; SettingsError, at `where`, on its first fault."""
    try:
        return None if raw is None else kind.model_validate(raw, context=context)
    except pydantic.ValidationError as error:
        join = "." if error.errors()[0]["loc"] else ": "
        raise SettingsError(f"{where}{join}{first_fault(error)}") from None


def check(sets: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The sets, if all are valid and no problem stands twice, in two or in one; else ValueError."""
    for name, frame in sets.items():
        if [*frame] != COLUMNS or frame.empty:
            raise ValueError(f"{name}: {len(frame)} rows of {[*frame]}, not of {COLUMNS}")
        for column in COLUMNS[:4]:
            bad = frame[column].map(lambda v: not isinstance(v, str) or not v.strip())
            if bad.any():
                raise ValueError(f"{name}: row {int(bad.idxmax())} has no {column}")
    everything = pd.concat(sets)
    same = everything[everything["problem"].duplicated(keep=False)]
    if len(same):
        a, b, *_ = same[same["problem"] == same["problem"].iloc[0]].itertuples()
        where = f"as {a.id} (answer {a.answer}) and {b.id} (answer {b.answer})"
        raise ValueError(f"{a.Index[0]}: the problem {a.problem!r} stands twice, {where}")
    return sets


def draw(settings: Data, task: ModuleType) -> dict[str, pd.DataFrame]:
    """All sets, no problem twice. task: has row(rng, part, split) or draw(rng, steps), texts."""
    row = getattr(task, "row", lambda rng, part, split: task.draw(rng, rng.choice(part.steps)))
    frames, seen = {}, set()
    for name, parts in settings.parts.items():
        split = name if name in ("train", "validation") else "test"
        rng, rows = random.Random(f"{settings.seed}/{name}"), []
        for part in parts:
            wanted, again = len(rows) + part.problems, 0
            while len(rows) < wanted:
                drawn = row(rng, part, split)
                if not isinstance(drawn, tuple) or [*map(type, drawn)] != [str] * 3:
                    raise SettingsError(f"{part.kind}: draw must return three texts, not {drawn!r}")
                again = again + 1 if drawn[0] in seen else 0
                if again > 10_000:
                    wants = f"{name} wants {part.problems} problems of {part.kind}, there are no"
                    raise SettingsError(f"data: {wants} more than {len(rows)}: ask for fewer")
                if not again:
                    seen.add(drawn[0])
                    rows.append((f"{name}-{len(rows):04d}", part.kind, *drawn))
        frames[name] = pd.DataFrame(rows, columns=COLUMNS)
    return check(frames)


def save(frames: dict[str, pd.DataFrame], folder: Path) -> dict[str, pd.DataFrame]:
    """The sets, each on file with a hash of its content; what is there and the same is kept."""
    for name, frame in frames.items():
        path, stamp = folder / f"{name}.parquet", store.content_hash(frame.values.tolist())
        if store.load(path, stamp) is None:
            store.save(frame, path, stamp)
    return frames
