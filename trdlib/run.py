"""A run: (scale, mode, method), its settings and its files; scales with changed settings.

A scale may carry changes, "tiny lora.r=8". Whatever a change shapes lies under a name of its own
and never replaces what the usual run made; what it does not touch (the problems, y_o) is shared.
"""

import contextlib
import functools
import operator
import re
import shlex
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import yaml

from trdlib import settings as s
from trdlib.settings import Method, Scale, Settings, SettingsError, known, root
from trdlib.store import content_hash

# What shapes each artefact: sections of a scale (see `Run._place`).
_DATA = ("task", "data")
_ATTEMPTS = (*_DATA, "models", "lengths", "examples", "rollout", "seeds")
_REWRITES = (*_ATTEMPTS, "refinement")
_ADAPTERS = (*_REWRITES, "lora", "training", "methods", "onsets")
_SHAPES_NOTHING = {"workers", "tracker", "only", "variants"}  # no result, that is

_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


class Run:
    """One cell of the pipeline; mode is "none" for the rows that are not trained (REFERENCES).

    settings: of the scale; all_settings: of the file. SettingsError if there is no such run.
    """

    def __init__(self, scale: str, mode: str | None, method: str, settings: Settings):
        try:
            if scale not in settings.scales:
                scale, settings = with_changes(settings, scale)
            self.scale, self.all_settings = scale, settings
            self.settings = settings.scales[scale]
            self.mode, self.method = mode or self.settings.modes[0], method
            self._check()
        except ValueError as error:
            raise SettingsError(str(error)) from None

    def _check(self) -> None:
        for role in ("student", "teacher"):
            name = getattr(self.settings.models, role) or "{seed}"
            made = "{seed}" in name or self.settings.packaged or (root() / name).is_dir()
            if not made and not _HUB_MODEL.fullmatch(name):
                raise ValueError(
                    f"models.{role} {name!r} is neither a folder here nor a hub model at a commit: "
                    "write owner/name@ and the 40 hex digits of the commit"
                )
        if self.mode == "none":
            known("reference row (mode none)", self.method, self.methods)
        else:
            known(f"mode of the scale {self.scale}", self.mode, self.settings.modes)
            known("method", self.method, self.settings.methods)

    def with_(self, mode: str | None = None, method: str | None = None) -> Self:
        """Another run of the same scale."""
        return Run(self.scale, mode or self.mode, method or self.method, self.all_settings)

    @property
    def recipe(self) -> Method:
        return self.settings.methods[self.method]

    @property
    def methods(self) -> tuple[str, ...]:
        """What `dvc repro` makes in this mode; variants are last."""
        if self.mode == "none":
            has_teacher = self.settings.models.teacher
            return tuple(name for name in s.REFERENCES if name != "teacher" or has_teacher)
        usual = self.settings.only or self.all_settings.run.methods
        return tuple(dict.fromkeys((*usual, *self.settings.variants.get(self.mode, ()))))

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates among which the method chooses; variants may have their own."""
        how, variant = self.settings.training, self.mode != "none" and self.recipe.is_variant
        return (variant and how.variant_learning_rates) or how.learning_rates

    def _place(self, *sections: str) -> str:
        """The name under which lies what these sections of the settings shape."""
        usual, changed, _ = self.scale.partition("~")
        if not changed:
            return usual
        return _named(usual, self.all_settings.scales[usual], self.settings, sections)

    def _place_of_training(self) -> str:
        # The choice between several learning rates depends on the samples that it is made from.
        return self._place(*_ADAPTERS, *(("evaluation",) if len(self.rates) > 1 else ()))

    @property
    def data(self) -> Path:
        return root() / "data" / self._place(*_DATA)

    @property
    def attempts(self) -> Path:
        return root() / "runs" / self._place(*_ATTEMPTS) / "y_o.parquet"

    def rewrites(self, name: Literal["y_r", "y_t"]) -> Path:
        return root() / "runs" / self._place(*_REWRITES) / "refine" / self.mode / f"{name}.parquet"

    def folder(self, seed: int) -> Path:
        """What is trained with this base seed."""
        place = root() / "runs" / self._place_of_training() / "distill"
        return place / self.mode / self.method / str(seed)

    def adapter(self, seed: int) -> Path:
        return self.folder(seed) / "adapter"

    def samples(self, seed: int, temperature: float, benchmark: str) -> Path:
        """What the trained student of this seed answered."""
        trained = () if self.mode == "none" else _ADAPTERS
        place = root() / "runs" / self._place(*_ATTEMPTS, *trained, "evaluation") / "evaluate"
        file = f"{temperature:g}/{benchmark}.parquet"
        return place / self.mode / self.method / str(seed) / file

    @property
    def results(self) -> Path:
        """Where small results go: results/, which is in git; of a changed run, its own place."""
        return _results(self.scale)

    @property
    def choice(self) -> Path:
        """The learning rates tried and the one chosen, and the adapters' hashes, for all seeds."""
        place = self._place_of_training()
        return _results(place) / "training" / place / self.mode / f"{self.method}.json"

    @property
    def metrics(self) -> Path:
        return self.results / "metrics" / self.scale / self.mode / f"{self.method}.json"

    def model_path(self, role: Literal["student", "teacher"], seed: int) -> str:
        """A local folder (relative to the project) or a hub name."""
        return getattr(self.settings.models, role).format(seed=seed)

    def model_name(self, role: Literal["student", "teacher"], seed: int) -> str:
        """Whose weights play the role: the OPSD teacher is the student's own step-0 model."""
        return self.model_path("student" if self.mode == "opsd" else role, seed)

    def teacher_prompt_limit(self, *, with_attempt: bool) -> int:
        """Room for what the teacher's context holds (the paper's 18,432 OPD, 22,528 OPSD)."""
        lengths = self.settings.lengths
        limit = lengths.prompt + (lengths.reference if self.mode == "opsd" else 0)
        return limit + (self.settings.rollout.max_new_tokens if with_attempt else 0)

    @property
    def context_length(self) -> int:
        """The longest sequence that a model of this run will see, in tokens."""
        rollout, evaluation = self.settings.rollout, self.settings.evaluation.sampling
        teacher = self.teacher_prompt_limit(with_attempt=True) + rollout.max_new_tokens
        return max(teacher, self.settings.lengths.prompt + evaluation.max_new_tokens)

    def __str__(self) -> str:
        return f"{self.scale}/{self.mode}/{self.method}"


def _results(place: str) -> Path:
    return root() / "runs" / place / "results" if "~" in place else root() / "results"


def get_run(
    scale: str = "smoke", mode: str | None = None, method: str = "trd",
    settings: Settings | None = None, *, learning_rate: float | None = None,
    seed: int | None = None, tracker: str | None = None,
) -> Run:  # fmt: skip
    """The run that a notebook's parameters name; SettingsError if there is no such run.

    scale: a name of params.yaml, with changes if there are any: "tiny lora.r=8". mode: None is the
    first of the scale's, for what does not depend on it, as problems and y_o. learning_rate (the
    only one tried), seed (the only one run) and tracker are such changes too; None: as usual.
    """
    if learning_rate is not None:
        scale += f" training.learning_rates=[{learning_rate}] training.variant_learning_rates=[]"
    scale += "" if seed is None else f" seeds=[{seed}]"
    scale += "" if tracker is None else f" tracker={tracker}"
    return Run(scale, mode, method, settings or s.load())


def get_runs(
    scale: str, mode: str, method: str, settings: Settings | None = None, **changes
) -> list[Run]:
    """The run of a mode and method, or, where one of them is "all", those that `dvc repro` trains.

    Mode none: the rows that are not trained. changes: as of `get_run`.
    """
    any_row = {"none": "base"}.get(mode) or next(iter((settings or s.load()).methods))
    first = get_run(scale, None if mode == "all" else mode, any_row, settings, **changes)
    modes = first.settings.modes if mode == "all" else (mode,)
    return [
        of_mode.with_(method=name)
        for of_mode in map(first.with_, modes)
        for name in (of_mode.methods if method == "all" else (method,))
    ]


def plain_value(text: str) -> Any:
    """What a value typed on a command line is: None, a bool, a number, a list, or the text."""
    for read in (int, float, yaml.safe_load):  # numbers first: YAML wants a point in 1.0e-6
        with contextlib.suppress(ValueError, yaml.YAMLError):
            return None if text == "None" else read(text)
    return text


def with_changes(settings: Settings, scale: str) -> tuple[str, Settings]:
    """Those settings and one more scale, and its name: `tiny lora.r=8 data.train.0.problems=64` is
    tiny with two settings changed, by their dotted names.

    The name, `tiny~3f2a9c01`, is a hash of what differs, so that its files are its own; it is the
    usual one if nothing differs that could show in a result. Raises ValueError.
    """
    scale, *changes = shlex.split(scale) or [""]
    known("scale", scale, settings.scales)
    usual = settings.scales[scale]
    raw = usual.model_dump(mode="json")
    for change in changes:
        key, equals, value = change.partition("=")
        if not (key and equals):
            raise ValueError(f"{change!r} changes nothing: write setting=value, as in lora.r=8")
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        try:
            functools.reduce(operator.getitem, parents, raw)[last] = plain_value(value)
        except (KeyError, IndexError, TypeError):
            raise SettingsError(f"{key}: there is no such setting; see params.yaml") from None
    try:
        changed = Scale.model_validate(raw)
    except pydantic.ValidationError as error:
        raise SettingsError(f"scale {scale}: {s.first_fault(error)}") from None
    if changed.pretraining != usual.pretraining:
        wants = "give params.yaml a scale of its own"
        raise SettingsError(f"pretraining cannot be changed for one run: {wants}")
    if usual.pretraining and (more := set(changed.seeds) - set(usual.seeds)):
        have = f"the scale {scale} has base models for the seeds {', '.join(map(str, usual.seeds))}"
        raise SettingsError(f"{have}, not for {min(more)}: add it to seeds in params.yaml")
    name = _named(scale, usual, changed, set(Scale.model_fields) - _SHAPES_NOTHING)
    scales = {**settings.scales, name: changed}
    return name, settings.model_copy(update={"scales": scales})


def _named(name: str, usual: Scale, changed: Scale, sections) -> str:
    """The name of a scale, with a hash of what these sections of it have changed, if anything."""
    found = {section: getattr(changed, section) for section in sections}
    different = {key: value for key, value in found.items() if value != getattr(usual, key)}
    return f"{name}~{content_hash(different)[:8]}" if different else name
