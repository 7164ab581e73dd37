"""What a run starts from: problems that are published (hub.py, coding.py) or made (tiny.py,
stories.py), the models that the project makes itself (tiny.py, packaged.py), and who says what is
right.

A new procedural task is a Python file with `draw(rng, steps) -> (problem, answer, solution)`, as
stories.py, and, where answers are not mathematics, `grade(pairs) -> verdicts`, one for each
(response, answer). params.yaml names it where it names chain: `task: mine/sums.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import random
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
    sandbox,
    stories,
    tiny,
    tinycode,
)

Grade = Callable[[Iterable[tuple[str, str]]], list[bool]]  # (response, answer) -> verdict


@functools.cache
def _file(name: str) -> ModuleType:
    path = config.root() / name
    if not path.is_file():
        raise config.SettingsError(f"the task {name} does not exist: correct data in params.yaml")
    spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
        return module.draw(rng, rng.choice(part.steps))

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
            return hub.prepare(run, coding.load if run.task == "code" else hub.load)
        if module := _module(section):
            return data.save_sets(problem_sets(section, module), run.data)
        return tiny.prepare(run, language(run))


def places(one: config.HubSet | config.CodeSet, root: str | None) -> list[Path | None]:
    """Where the files of a published set are, or should be; None: not in the hub's cache."""
    if isinstance(one, config.CodeSet):
        return coding.places(one, root)
    return [hub.place(one, root)]


def grader(run: config.Run) -> tuple[Grade, str]:
    """Who says whether a finished response is right, and a hash of the code behind the verdict."""
    section = run.settings.data
    own = _module(section)
    if hasattr(own, "grade"):
        return own.grade, config.code_hash(own)
    if run.task == "math":
        return grading.grade, config.code_hash(grading)
    if isinstance(section, config.HubData):
        grade = functools.partial(coding.grade, folder=run.data / "tests")
        return grade, config.code_hash(jail, sandbox, oracles, coding)
    return tinycode.grade, config.code_hash(jail, sandbox, tinycode)
