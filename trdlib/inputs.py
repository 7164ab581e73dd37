"""What a run starts from: problems that are published (hub.py, coding.py) or made (tiny.py,
stories.py), the models that the project makes itself (tiny.py, packaged.py), and who says what is
right.

A new procedural task is a Python file with `draw(rng, steps) -> (problem, answer, solution)`, as
stories.py, and, where answers are not mathematics, `grade(pairs) -> verdicts`, one for each
(response, answer). params.yaml names it where it names chain: `task: mine/sums.py`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pandas as pd

from trdlib import (
    coding,
    config,
    data,
    grading,
    hub,
    jail,
    oracles,
    packaged,
    prompts,
    sandbox,
    stories,
    tiny,
    tinycode,
)

Grade = Callable[[Iterable[tuple[str, str]]], list[bool]]  # (response, answer) -> verdict


@functools.cache
def _file(name: str) -> ModuleType:
    """The file as a module, with the hash of what was imported: `trd_source`."""
    path = config.root() / name
    if not path.is_file():
        raise config.SettingsError(f"the task {name} does not exist: correct data in params.yaml")
    spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    source = path.read_text(encoding="utf-8")
    exec(compile(source, str(path), "exec"), module.__dict__)
    module.trd_source = config.source_hash(source)
    if not callable(getattr(module, "draw", None)):
        raise config.SettingsError(
            f"{name} has no draw(rng, steps) -> (problem, answer, solution): write it, as in "
            "trdlib/stories.py"
        )
    return module


def _module(section: config.AnyData) -> ModuleType | None:
    """The module of a procedural task that is one; None: published, or of the tiny languages."""
    (name, *_) = section.tasks if isinstance(section, config.Data) else ("",)
    if name == "story":
        return stories
    return _file(name) if name.endswith(".py") else None


def language(run: config.Run) -> tiny.Language:
    """The tiny language of a procedural run."""
    return tinycode.CODE if run.task == "code" else tiny.MATH


def problem_sets(section: config.Data, module: ModuleType) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark of a module's task; no problem occurs twice."""

    def write(rng: random.Random, part: config.ProblemSet, split: str) -> tuple[str, str, str]:
        drawn = module.draw(rng, rng.choice(part.steps))
        if not (isinstance(drawn, tuple) and [*map(type, drawn)] == [str] * 3):
            raise config.SettingsError(
                f"{part.task}: draw(rng, steps) must return three texts, (problem, answer, "
                f"solution), not {drawn!r}"
            )
        return drawn

    return data.draw_sets(section, write)


def prepare(run: config.Run) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark, on file and returned; a procedural scale's models too.

    What is there and still right is kept: every notebook starts with this.
    """
    section = run.settings.data
    with data.locked(run.data):
        if run.settings.models.packaged:
            packaged.unpack(run)
        if isinstance(section, config.HubData):
            return _published(run, section)
        if module := _module(section):
            frames = data.save_sets(problem_sets(section, module), run.data)
            if source := getattr(module, "trd_source", None):  # for DVC: its grader shapes verdicts
                data.write_text(run.data / "task.txt", source + "\n")
            return frames
        return tiny.prepare(run, language(run))


def _published(run: config.Run, section: config.HubData) -> dict[str, pd.DataFrame]:
    """The sets of files: made again if a setting, the code or a file of one's own has changed."""
    shaped_by = [section.model_dump(exclude={"root"}), own_files(section)]
    if run.task == "math":
        return hub.prepare(run, config.content_hash(*shaped_by, config.code_hash(hub, grading)))
    name, limit = run.model_path("student", run.settings.seeds[0]), run.settings.lengths.prompt
    asked = {"style": run.settings.models.style, "thinking": run.settings.models.student_thinking}

    @functools.cache  # only where sets are made: it brings torch along
    def tokenizer():
        from trdlib import models

        return models.load_tokenizer(name)

    def fits(problem: str) -> bool:
        prompt = prompts.student_prompt({"problem": problem}, tokenizer(), **asked)
        return len(prompt.ids) <= limit

    code = config.code_hash(hub, grading, coding, jail, oracles, sandbox)
    made_by = config.content_hash(*shaped_by, code, name, limit, asked)
    return hub.prepare(run, made_by, read=coding.load, fits=fits)


def own_files(section: config.AnyData) -> dict[str, str]:
    """The files here, not on the hub, that problems come from, each with a hash of its content."""
    if isinstance(section, config.Data):
        paths = [config.root() / name for name in section.tasks if name.endswith(".py")]
    else:
        sets = [s for s in section.sets.values() if section.root is not None or not s.published]
        paths = [path for one in sets for path in places(one, section.root)]
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()
    }


def places(one: config.HubSet | config.CodeSet, root: str | None) -> list[Path | None]:
    """Where the files of a published set are, or should be; None: not in the hub's cache."""
    if isinstance(one, config.CodeSet):
        return coding.places(one, root)
    return [hub.place(one, root)]


def here(one: config.HubSet | config.CodeSet, root: str | None) -> list[Path] | None:
    """The files of a published set; None if one of them is not on this machine."""
    paths = places(one, root)
    return paths if all(path is not None and path.is_file() for path in paths) else None


def grader(run: config.Run) -> tuple[Grade, str]:
    """Who says whether a finished response is right, and a hash of the code behind the verdict."""
    section = run.settings.data
    own = _module(section)
    if hasattr(own, "grade"):

        def checked(pairs: Iterable[tuple[str, str]]) -> list[bool]:
            asked = list(pairs)
            said = [bool(verdict) for verdict in own.grade(asked)]
            if len(said) != len(asked):
                raise config.SettingsError(
                    f"{own.__file__}: grade(pairs) gave {len(said)} verdicts for {len(asked)} pairs"
                )
            return said

        return checked, own.trd_source
    if run.task == "math":
        return grading.grade, config.code_hash(grading)
    if isinstance(section, config.Data) and section.tasks == {"code"}:
        return tinycode.grade, config.code_hash(jail, sandbox, tinycode)
    grade = functools.partial(coding.grade, folder=run.data / "tests")
    return grade, config.code_hash(grading, jail, sandbox, oracles, coding)
