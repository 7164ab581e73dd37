"""What is asked, who says what is right, and what is known of a mistake: one Task for each run.

A scale's `task` is one of TASKS, a module of this folder (math and code: published problems), or a
Python file of your own (scripts/words.py is one), with `draw(rng, steps) -> (problem, answer,
solution)` and, as it likes, `grade(pairs) -> verdicts` on (response, answer), else answers are
mathematics; `first_wrong(problem, tokens)` and `problem(text)` as in modular.py; `make_models(run)`
if its scales' models are made, too.
"""

import functools
import hashlib
import importlib
import sys
from collections.abc import Iterable
from types import ModuleType

import pandas as pd

from trdlib import store
from trdlib.settings import Scale, SettingsError, root
from trdlib.tasks import hub, math, pretrain, sets

TASKS = ("modular", "tinycode", "math", "code")


@functools.cache
def _own(name: str, source: str) -> ModuleType:
    module = sys.modules[name] = ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
    if not callable(getattr(module, "draw", None)):
        raise SettingsError(f"{name} has no draw(rng, steps): see scripts/words.py")
    module.OPTIONS, code = {name: {}}, store.source_hash(source)
    if own := getattr(module, "grade", None):
        module.grade = lambda run, pairs: [*map(bool, own([(t, r["answer"]) for t, r in pairs]))]
        module.grader = lambda run: code
    return module


def check(name: str, scale: Scale) -> tuple:
    """The module of a scale's task; data (None: published), pretraining; or a fault."""
    where, own = f"scales.{name}", root() / scale.task
    if scale.task in TASKS:
        module = importlib.import_module(f"trdlib.tasks.{scale.task}")
    elif own.suffix == ".py" and own.is_file():
        module = _own(scale.task, own.read_text(encoding="utf-8"))
    else:
        names = f"choose from {', '.join(TASKS)}, or name a Python file that exists"
        raise SettingsError(f"{where}: there is no task {scale.task!r}: {names}")
    if scale.pretraining and not hasattr(module, "KINDS"):
        raise SettingsError(f"{where}.pretraining: {scale.task} has no language to pretrain on")
    procedural = functools.partial(sets.section, sets.Data, scale.data, f"{where}.data")
    data = module.check(name, scale) if hasattr(module, "sets") else procedural(module.OPTIONS)
    made = sets.section(pretrain.Pretraining, scale.pretraining, f"{where}.pretraining")
    return module, data, made


class Task:
    """The task of a run: its problem sets, its grader, and what else is known of it."""

    def __init__(self, run):
        self.run, self.name = run, run.settings.task
        self.module, self.data, self.pretraining = check(run.scale, run.settings)
        # (problem, tokens of a response) -> a Departure or None; None here: nobody can tell
        self.first_wrong = getattr(self.module, "first_wrong", None)
        if run.mode != "none" and run.recipe.trajectory == "y_o_cut" and not self.first_wrong:
            raise SettingsError(f"task {self.name} does not know the first wrong step: no y_o_cut")

    def __reduce__(self):
        return of, (self.run,)

    def sizes(self) -> dict[str, int]:
        """How many problems each set has, from the settings alone."""
        if not self.data:
            return self.module.sizes(self.run.settings)
        return {name: sum(p.problems for p in of) for name, of in self.data.parts.items()}

    @property
    def benchmarks(self) -> tuple[str, ...]:
        return tuple(name for name in self.sizes() if name not in ("train", "validation"))

    def sets(self) -> dict[str, pd.DataFrame]:
        """train, validation and every benchmark, on file and returned; what is right is kept."""
        with store.locked(self.run.data):
            if not self.data:
                return self.module.sets(self.run)
            return sets.save(sets.draw(self.data, self.module), self.run.data)

    def problem(self, text: str, answer: str = "", solution: str = "") -> dict[str, str]:
        """The row of a problem that a person typed; SettingsError says why it cannot be asked."""
        solve = getattr(self.module, "problem", lambda text: (text.strip(), answer, solution))
        row = dict(zip(sets.COLUMNS, ("typed", "typed", *solve(text)), strict=True))
        if not row["problem"]:
            raise SettingsError("there is no problem: type one")
        if self.run.mode == "opsd" and not row["solution"]:
            raise SettingsError("in mode opsd the teacher needs a solution: give one, or take opd")
        return row

    def files(self) -> dict[str, str]:
        """The files of one's own: problems, their task, divergences; each with its SHA-256."""
        used = [self.name, *(method.divergence for method in self.run.settings.methods.values())]
        own = {name: hashlib.sha256((root() / name).read_bytes()).hexdigest()
               for name in used if name.endswith(".py")}  # fmt: skip
        return own if self.data else own | self.module.files(self.run)

    @property
    def notes(self) -> dict:
        """Of published sets: where they are from, what was left out and why."""
        return store.read_json(self.run.data / hub.REPORT, {})

    def grade(self, pairs: Iterable[tuple[str, dict]]) -> list[bool]:
        """One verdict per (text of a finished response, row of the problem set)."""
        pairs = list(pairs)
        said = getattr(self.module, "grade", math.grade)(self.run, pairs)
        if len(said) != len(pairs):
            said = f"grade(pairs) gave {len(said)} verdicts for {len(pairs)} pairs"
            raise SettingsError(f"{self.name}: {said}")
        return said

    @property
    def grader(self) -> str:
        """Hash of the code behind a verdict."""
        return getattr(self.module, "grader", math.grader)(self.run)

    def make_models(self, decode, run_jobs, batches) -> None:
        """Make what the scale makes itself; what is there and right is kept."""
        with store.locked(root() / "models" / self.run.scale):
            if self.pretraining:
                pretrain.pretrain(self, decode, batches, run_jobs)
            if make := getattr(self.module, "make_models", None):
                make(self.run)


of = Task  # of(run): the task of a run, its settings checked
