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

from trdlib import settings as s
from trdlib.settings import Method, Scale, Settings, SettingsError, known, root
from trdlib.store import content_hash

# What shapes each artefact: sections of a scale.
_DATA = ("task", "data")
_ATTEMPTS = (*_DATA, "models", "lengths", "rollout", "seeds")
_REWRITES = (*_ATTEMPTS, "refinement")
_ADAPTERS = (*_REWRITES, "lora", "training", "methods", "onsets")
_SHAPES_NOTHING = {"workers", "tracker", "only", "variants"}  # no result, that is


class Run:
    """One cell of the pipeline; mode is "none" for the rows that are not trained (REFERENCES).

    settings: of the scale; all_settings: of the file. results: where small files go, results/ (in
    git) or a changed run's own place. SettingsError if there is no such run.
    """

    def __init__(self, scale: str, mode: str | None, method: str, settings: Settings):
        if scale not in settings.scales:
            scale, settings = with_changes(settings, scale)
        self.scale, self.all_settings, self.settings = scale, settings, settings.scales[scale]
        self.mode, self.method = mode or self.settings.modes[0], method
        for role in ("student", "teacher"):  # a task of one's own may make its models
            name, task = getattr(self.settings.models, role) or "{seed}", self.settings.task
            made = "{seed}" in name or task.endswith(".py") or (root() / name).is_dir()
            if not (made or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name)):
                no = f"models.{role} {name!r} is neither a folder here nor a hub model at a commit"
                raise SettingsError(f"{no}: write owner/name@ and the 40 hex digits of the commit")
        if self.mode == "none":
            known("reference row (mode none)", method, self.methods)
        else:
            known(f"mode of the scale {scale}", self.mode, self.settings.modes)
            known("method", method, self.settings.methods)
        usual, runs, cell = scale.partition("~")[0], root() / "runs", Path(self.mode, method)
        place = functools.partial(_named, usual, settings.scales[usual], self.settings)
        # The choice between several learning rates depends on the samples that it is made from.
        trained = place((*_ADAPTERS, *(("evaluation",) if len(self.rates) > 1 else ())))
        sampled = place((*(_ATTEMPTS if self.mode == "none" else _ADAPTERS), "evaluation"))
        self.data = root() / "data" / place(_DATA)
        self.attempts = runs / place(_ATTEMPTS) / "y_o.parquet"
        self.rewritten = runs / place(_REWRITES) / "refine" / self.mode
        self.trained = runs / trained / "distill" / cell
        self.sampled = runs / sampled / "evaluate" / cell
        self.results = runs / scale / "results" if "~" in scale else root() / "results"
        place_of_choice = runs / trained / "results" if "~" in trained else root() / "results"
        self.choice = place_of_choice / "training" / trained / f"{cell}.json"
        self.metrics = self.results / "metrics" / scale / f"{cell}.json"

    def with_(self, mode: str | None = None, method: str | None = None) -> Self:
        return Run(self.scale, mode or self.mode, method or self.method, self.all_settings)

    @property
    def recipe(self) -> Method:
        return self.settings.methods[self.method]

    @property
    def methods(self) -> tuple[str, ...]:
        """What `dvc repro` makes in this mode; variants are last."""
        if self.mode == "none":
            return s.REFERENCES if self.settings.models.teacher else s.REFERENCES[:2]
        usual = self.settings.only or self.all_settings.run.methods
        return tuple(dict.fromkeys((*usual, *self.settings.variants.get(self.mode, ()))))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those evaluated: of rows that are not trained one, where all have the same weights."""
        once = self.mode == "none" and self.settings.evaluation.base_samples
        return self.settings.seeds[: 1 if once else None]

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates among which the method chooses; variants may have their own."""
        how, variant = self.settings.training, self.mode != "none" and self.recipe.is_variant
        return (variant and how.variant_learning_rates) or how.learning_rates

    def rewrites(self, name: Literal["y_r", "y_t"]) -> Path:
        return self.rewritten / f"{name}.parquet"

    def folder(self, seed: int) -> Path:
        return self.trained / str(seed)

    def adapter(self, seed: int) -> Path:
        return self.trained / str(seed) / "adapter"

    def samples(self, seed: int, temperature: float, benchmark: str) -> Path:
        return self.sampled / str(seed) / f"{temperature:g}" / f"{benchmark}.parquet"

    def model_path(self, role: Literal["student", "teacher"], seed: int) -> str:
        """A local folder (relative to the project) or a hub name."""
        return getattr(self.settings.models, role).format(seed=seed)

    def model_name(self, role: Literal["student", "teacher"], seed: int) -> str:
        """Whose weights play the role: the OPSD teacher is the student's own step-0 model."""
        return self.model_path("student" if self.mode == "opsd" else role, seed)

    def teacher_prompt_limit(self, *, with_attempt: bool) -> int:
        """Room for what the teacher's context holds (the paper's 18,432 OPD, 22,528 OPSD)."""
        room, attempt = self.settings.lengths, self.settings.rollout.max_new_tokens
        return room.prompt + room.reference * (self.mode == "opsd") + attempt * with_attempt

    @property
    def context_length(self) -> int:
        """The longest sequence that a model of this run will see, in tokens."""
        how, teacher = self.settings, self.teacher_prompt_limit(with_attempt=True)
        asked = how.lengths.prompt + how.evaluation.sampling.max_new_tokens
        return max(teacher + how.rollout.max_new_tokens, asked)

    def __str__(self) -> str:
        return f"{self.scale}/{self.mode}/{self.method}"


def get_run(
    scale: str = "smoke", mode: str | None = None, method: str = "trd",
    settings: Settings | None = None, *, learning_rate=None, seed=None, tracker=None,
) -> Run:  # fmt: skip
    """The run that a notebook's parameters name; SettingsError if there is no such run.

    scale: a name of params.yaml, with changes if there are any: "tiny lora.r=8"; learning_rate (the
    only one tried), seed (the only one run) and tracker are such changes too. mode: None is the
    first of the scale's, for what does not depend on it, as problems and y_o.
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
    Mode none: the rows that are not trained. changes: as of `get_run`."""
    settings = settings or s.load()
    any_row = "base" if mode == "none" else next(iter(settings.methods))
    first = get_run(scale, None if mode == "all" else mode, any_row, settings, **changes)
    of_modes = map(first.with_, first.settings.modes) if mode == "all" else [first]
    all_of = [(one, one.methods if method == "all" else (method,)) for one in of_modes]
    return [one.with_(method=name) for one, names in all_of for name in names]


def plain_value(text: str) -> Any:
    """What a value typed on a command line is: None, a bool, a number, a list, or the text."""
    with contextlib.suppress(*s.UNREADABLE):
        return None if text == "None" else s.parse_yaml(text)
    return text


def with_changes(settings: Settings, scale: str) -> tuple[str, Settings]:
    """Those settings and one more scale, and its name: `tiny lora.r=8 data.train.0.problems=64` is
    tiny with two settings changed, by their dotted names. Its name, `tiny~3f2a9c01`, is a hash of
    what differs, so that its files are its own; the usual one if nothing shows in a result."""
    try:
        scale, *changes = shlex.split(scale) or [""]
        known("scale", scale, settings.scales)
        usual, key = settings.scales[scale], ""
        raw = usual.model_dump(mode="json")
        for change in changes:
            key, equals, value = change.partition("=")
            if not (key and equals):
                raise SettingsError(f"{change!r} changes nothing: write it as in lora.r=8")
            *parents, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
            functools.reduce(operator.getitem, parents, raw)[last] = plain_value(value)
        changed = Scale.model_validate(raw)
    except (KeyError, IndexError, TypeError):
        raise SettingsError(f"{key}: there is no such setting; see params.yaml") from None
    except ValueError as error:
        raise SettingsError(f"scale {scale}: {s.first_fault(error)}") from None
    if changed.pretraining != usual.pretraining:
        raise SettingsError("pretraining cannot be changed for one run: give it a scale of its own")
    if usual.pretraining and (more := set(changed.seeds) - set(usual.seeds)):
        have = f"the scale {scale} has base models for the seeds {', '.join(map(str, usual.seeds))}"
        raise SettingsError(f"{have}, not for {min(more)}: add it to seeds in params.yaml")
    name = _named(scale, usual, changed, set(Scale.model_fields) - _SHAPES_NOTHING)
    return name, settings.model_copy(update={"scales": {**settings.scales, name: changed}})


def _named(name: str, usual: Scale, changed: Scale, sections) -> str:
    """The name of a scale, with a hash of what these sections of it have changed, if anything."""
    pairs = {key: (getattr(usual, key), getattr(changed, key)) for key in sections}
    different = {key: new for key, (old, new) in pairs.items() if old != new}
    return f"{name}~{content_hash(different)[:8]}" if different else name
