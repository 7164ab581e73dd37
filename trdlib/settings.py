"""params.yaml -> validated settings.

`defaults` are the paper's values (section 3); a scale overrides what it must. What is wrong is
said in one sentence, before a model is loaded; a scale's data and pretraining, its task checks.
"""

import functools
import math
import os
import re
import reprlib
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field
from ruamel.yaml import YAML, YAMLError

DATE = "2026-01-01"  # what chat templates that ask for today's date are told (models.date)
REFERENCES = ("base", "base_again", "teacher")  # evaluated, not trained; their mode is "none"
# These names have a meaning already: a set, all or none of them, a row, a folder of runs/ or data/.
_FOLDERS = ("downloads", "executed", "export", "pilot", "stamps", "sweeps", "timings")
RESERVED = {"train", "validation", "all", "none", *REFERENCES, *_FOLDERS}
# What divergence.py marks (read: an import would bring torch along), and cross_entropy.
_TEXT = Path(__file__).with_name("divergence.py").read_text(encoding="utf-8")
DIVERGENCES = (*re.findall(r"^@divergence\n(?:@.*\n)*def (\w+)", _TEXT, re.M), "cross_entropy")


class SettingsError(ValueError):
    """params.yaml, or a notebook's parameter, is wrong; the message says how to mend it."""


def known(what: str, name: str, names) -> None:
    """SettingsError, with what there is to choose from, unless the name is among the names."""
    if name not in names:
        raise SettingsError(f"there is no {what} {name!r}: choose from {', '.join(names)}")


def check_name(name: str) -> str:
    """The name of a scale, benchmark, method, task or sweep, if paths and commands can hold it."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,79}", name):
        rule = "at most 80 letters, digits, _ . and -, a letter first"
        raise SettingsError(f"{reprlib.repr(name)} cannot be a name: {rule}")
    if name.lower() in RESERVED or name.startswith("models-"):
        raise SettingsError(f"the name {name!r} has a meaning of its own here: choose another")
    return name


def _refuse(fault: str, holds) -> AfterValidator:
    def check(value):
        if holds(value):
            raise ValueError(fault)
        return value

    return AfterValidator(check)


# The types of values. A number is finite, and not what pydantic makes of true.
_number = BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
_warm = _refuse("0 is greedy, the others start at 0.001", lambda value: 0 < value < 0.001)
_TWICE = "the same stands here twice: drop one"
_distinct = _refuse(_TWICE, lambda v: len({*v}) < len(v))
_keys = _refuse(_TWICE, lambda v: isinstance(v, dict) and len({float(str(k)) for k in v}) < len(v))
Name = Annotated[str, AfterValidator(check_name)]
Natural = Annotated[int, _number, Field(ge=0, lt=2**32)]
Count = Annotated[int, _number, Field(ge=1, le=10**7)]
Positive = Annotated[float, _number, Field(ge=1e-12)]  # a smaller one is a slip, or becomes 0
Probability = Annotated[float, _number, Field(ge=1e-12, le=1)]
Share = Annotated[float, _number, Field(ge=0, lt=1)]
Temperature = Annotated[float, _number, Field(ge=0, le=100), _warm]
Distinct = Annotated[tuple[TypeVar("T"), ...], _distinct]
Several = Annotated[tuple[TypeVar("T"), ...], Field(min_length=1), _distinct]
Weights = Annotated[str, Field(pattern=r"^([^{}\n]|\{seed\})+$")]
Mode = Literal["opd", "opsd"]


class Section(pydantic.BaseModel):
    """A part of params.yaml: unknown keys and infinite numbers are errors, values do not change."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def faults(self) -> dict[str, Any]:
        """What may be wrong with values that are each right: a sentence -> does it hold?"""
        return {}

    def model_post_init(self, context) -> None:
        if found := [fault for fault, holds in self.faults().items() if holds]:
            raise ValueError(found[0])


class Method(Section):
    """A point in the space trajectory x context x divergence (paper section 2)."""

    trajectory: Literal["y_o", "y_r", "y_t", "y_star", "y_o_cut"]
    divergence: str  # one of DIVERGENCES, or a file of one's own, mine/tv.py
    context: Literal["refine", "plain"] = "refine"  # of y_r: the prompt that made it, or x and y*
    beta: Annotated[Share, Field(ge=1e-12)] = 0.5  # of the generalised JSD
    clip: Positive | None = None  # per-token ceiling on the divergence
    top_k: Annotated[Count, Field(ge=2)] | None = None  # teacher's support, both renormalised on it
    tail: bool = False  # with top_k: the other tokens as one more, instead of renormalising
    # Rows to train on, by the verdicts: on y_o; right: on the trajectory itself.
    subset: Literal["all", "failed", "passed", "failed_then_passed", "right"] = "all"
    skip_onsets: bool = False  # onset words left out of both distributions, the rest renormalised
    rounds: Count = 1  # rollout, refine, distil on so many parts of the epoch, one by one
    prune_below: Probability | None = None  # no loss from the first token on with less
    again: Natural = 0  # with other random numbers, to compare the method with itself

    @property
    def is_variant(self) -> bool:
        """Is it another method on fewer rows, in rounds, or once more?"""
        return self.subset != "all" or self.rounds > 1 or self.again > 0

    def faults(self) -> dict:
        own = [p.name for p in root().glob("mine/*.py") if b"def divergence(" in p.read_bytes()]
        known("divergence", self.divergence, [*DIVERGENCES, *(f"mine/{name}" for name in own)])
        hard, y_r, rows = self.divergence == "cross_entropy", self.trajectory == "y_r", self.subset
        of_all, onsets, several = rows in ("all", "right"), self.skip_onsets, self.rounds > 1
        of = self.top_k or self.clip or onsets or self.prune_below
        of_y_r = self.context == "plain" or rows == "failed_then_passed"
        tried = y_r or self.trajectory == "y_o"
        return {
            "cross_entropy has no teacher: drop top_k, clip, skip_onsets, prune_below": hard and of,
            "y_star is trained with cross_entropy": self.trajectory == "y_star" and not hard,
            "tail is of what top_k leaves out: set top_k": self.tail and not self.top_k,
            "prune_below needs every token: drop skip_onsets": self.prune_below and onsets,
            "context plain and failed_then_passed need the trajectory y_r": of_y_r and not y_r,
            "rounds and this subset need y_o or y_r": (several or not of_all) and not tried,
            "rounds need all rows: drop subset": several and rows != "all",
        }


class Sampling(Section):
    temperature: Temperature
    top_p: Probability = 1.0
    top_k: Natural = 0  # 0: off
    max_new_tokens: Count
    batch_size: Count = 64  # rows decoded together
    samples: Count = 1  # responses per prompt
    seed: Natural = 0


class Lengths(Section):
    prompt: Count
    reference: Count


class Lora(Section):
    r: Count
    alpha: Count
    dropout: Share = 0.0
    targets: Several[str] = (*(f"{p}_proj" for p in "qkvo"), "gate_proj", "up_proj", "down_proj")


class Training(Section):
    learning_rates: Several[Probability]  # the grid
    variant_learning_rates: Distinct[Probability] = ()  # of variants of a method; (): the grid
    choice_seeds: Count = 3  # the first so many base seeds choose among the rates
    batch_size: Count  # rows in one optimizer step
    micro_batch_size: Count  # rows in one forward pass
    epochs: Count = 1
    max_steps: Count | None = None
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Annotated[float, _number, Field(ge=0, le=1)]
    warmup: Share  # of the steps
    min_lr_ratio: Annotated[float, _number, Field(ge=0, le=1)]
    max_grad_norm: Positive
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0  # of both distributions
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: Count = 50
    # What their code does and ours does not: prompt and response without chat template and end of
    # turn; the loss as a mean over forward passes, each the mean of its own tokens.
    as_authors: Distinct[Literal["raw_text", "micro_step_means"]] = ()

    def faults(self) -> dict:
        rows, micro = self.batch_size, self.micro_batch_size
        return {f"batch_size {rows} must be a multiple of micro_batch_size {micro}": rows % micro}


class Evaluation(Section):
    sampling: Sampling  # samples: the k of avg@k and pass@k
    also_at: Annotated[dict[Temperature, Count], BeforeValidator(_keys.func)] = {}  # samples
    # The base once (its seeds share the weights), so often; what it gets right says which problems
    # get the samples of the other rows (stats.allocate). None: all rows and problems alike.
    base_samples: Count | None = None
    budgets: Distinct[Count] = ()  # of tokens: accuracy if what is longer had been cut there
    validation_samples: Count  # samples per validation problem, for the learning rate
    resamples: Count  # bootstrap
    confidence: Annotated[Share, Field(ge=0.01)]

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Those of the benchmarks, the primary one first."""
        return tuple(dict.fromkeys((self.sampling.temperature, *self.also_at)))

    def at(self, temperature: float) -> Sampling:
        samples = ({self.sampling.temperature: self.sampling.samples} | self.also_at)[temperature]
        return self.sampling.model_copy(update={"temperature": temperature, "samples": samples})

    def least(self, temperature: float) -> int:
        """The samples that every problem has: the k of pass@k."""
        return min(self.at(temperature).samples, 2 if self.base_samples else 10**7)

    def faults(self) -> dict:
        longest, top = max(self.budgets, default=0), self.sampling.max_new_tokens
        return {f"a budget of {longest} cuts nothing: max_new_tokens is {top}": longest > top}

    @property
    def validation(self) -> Sampling:
        return self.sampling.model_copy(update={"samples": self.validation_samples})

    @property
    def interval(self) -> dict:
        """How intervals are made: arguments of analysis/compare.py."""
        return {"resamples": self.resamples, "confidence": self.confidence}


class Diagnosis(Section):
    problems: Count  # of the training set, the first
    gradient_problems: Count  # of each source, in a summed gradient


# engine, which is the name of its package -> the extra of ours that brings it
ENGINES = {"transformers": "", "vllm": "vllm", "openai": "server"}


class Server(Section):
    url: str = Field("http://127.0.0.1:8000/v1", pattern=r"^https?://")
    teacher_url: str | None = Field(None, pattern=r"^https?://")  # None: the same server
    key: str = Field("TRD_SERVER_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$")  # a variable's name, no key
    concurrency: Count = 64  # requests at a time
    retries: Natural = 8  # of a request whose failure may pass, waiting up to 8 s each
    timeout: Positive = 3600  # seconds for one answer


class Models(Section):
    # A folder of the project, {seed} being the run's base seed, or the hub's owner/name@commit.
    student: Weights
    teacher: Weights | None = None  # only OPD needs one
    backend: Literal["transformers", "unsloth"] = "unsloth"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    style: Literal["tiny", "math", "code", "story"] = "math"  # of the prompts (prompts.yaml)
    load_in_4bit: bool = False  # the base model in nf4 (bitsandbytes)
    device: Literal["auto", "cpu"] = "auto"  # auto: the GPU if there is one
    threads: Count | None = None  # CPU threads per process; None: as torch thinks best
    student_thinking: bool | None = None
    teacher_thinking: bool | None = None
    date: Annotated[str, BeforeValidator(lambda v: str(date.fromisoformat(str(v))))] = DATE
    engine: Literal[tuple(ENGINES)] = "transformers"  # who samples (engines.py)
    gpu_share: Probability = 0.85  # of its memory, for vllm
    gpus: Count = 1  # of one engine of vllm (tensor parallelism)
    server: Server = Server()  # vLLM's, for the engine openai; it shapes no sample

    def faults(self) -> dict:
        chosen = self.device == "cpu" and (self.load_in_4bit or self.engine == "vllm")
        return {"load_in_4bit needs a GPU, vllm its own device: leave device at auto": chosen}


class Scale(Section):
    # What is asked, and who says what is right: a name of trdlib.tasks, or a file in named folders.
    task: Annotated[str, AfterValidator(lambda t: "/".join(map(check_name, t.split("/"))))]
    modes: Several[Mode]
    seeds: Several[Natural] = (0, 1, 2)
    workers: Count = 1  # processes that share the jobs of a stage (CPU scales)
    models: Models
    data: dict[str, Any]  # the task's own (checked by trdlib.tasks), as is the next
    pretraining: dict[str, Any] | None = None
    lengths: Lengths  # at most; a longer prompt is an error, a longer reference is cut visibly
    rollout: Sampling
    refinement: Sampling
    lora: Lora
    training: Training
    evaluation: Evaluation
    methods: dict[Name, Method]
    onsets: Several[str]  # words that open a correction
    diagnosis: Diagnosis
    only: Distinct[str] = ()  # the methods that are run here; (): those of `run`
    variants: dict[Mode, Distinct[str]] = {}  # more methods, run after them in this mode
    tracker: Literal["none", "tensorboard", "wandb"] = "none"  # of training
    map: dict[str, Any] | None = None  # of analysis/map.py

    def faults(self) -> dict:
        for mode in self.variants:
            known("mode of the scale", mode, self.modes)
        for name in (*self.only, *sum(self.variants.values(), ())):
            known("method", name, self.methods)
        own, once = "{seed}" in self.models.student, self.evaluation.base_samples
        return {
            "base_samples needs one base model, not one for each {seed}": own and once,
            "vllm fills a GPU: set workers to 1": self.workers > 1 and self.models.engine == "vllm",
            "refinement.samples must be 1: an attempt has one rewrite": self.refinement.samples > 1,
            "mode opd needs models.teacher": "opd" in self.modes and not self.models.teacher,
        }


class Matrix(Section):
    scales: Several[str]
    methods: Several[str]


class Settings(Section):
    run: Matrix  # what `dvc repro` runs: at each scale every mode of it with every method
    methods: dict[Name, Method]  # as written; each scale has them with its own changes
    scales: dict[Name, Scale]  # each with the defaults merged in

    def faults(self) -> dict:
        for name in self.run.scales:
            known("scale", name, self.scales)
            for method in self.run.methods:
                known("method", method, self.scales[name].methods)
        return {}


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: _merge(base.get(key), value) for key, value in over.items()}
    return over


def root() -> Path:
    """The project's folder: the nearest one, from here upwards, with a params.yaml."""
    here = Path.cwd()
    if found := [folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file()]:
        return found[0]
    raise SettingsError(f"no params.yaml in {here} or above: run this inside the repository")


def parse_yaml(text: str | bytes) -> Any:
    """What YAML says; an error that is one of UNREADABLE where it cannot be read."""
    reader, sizes = YAML(typ="safe", pure=True), {None: 0}

    def size(part) -> float:  # how many values it makes, before aliases and merges unfold
        if isinstance(part, tuple):
            return sum(map(size, part))
        if part not in sizes:
            if part.tag.endswith(":int") and len(part.value) > 18:
                raise ValueError(f"no number here may be as large as {part.value[:20]}")
            sizes[part] = math.inf  # what an alias inside of itself meets
            sizes[part] = 1 + sum(map(size, part.value)) if isinstance(part.value, list) else 1
        return sizes[part]

    if size(node := reader.compose(text)) > 1_000_000:
        raise ValueError("an alias holds itself or unfolds into millions of values")
    return node and reader.constructor.construct_document(node)


UNREADABLE = (ValueError, KeyError, RecursionError, YAMLError)
_parse = functools.lru_cache(maxsize=4)(parse_yaml)  # it is slow


def read_yaml(path: Path) -> Any:
    """What a YAML file says; SettingsError, in one sentence, where it cannot be read."""
    try:
        return _parse(path.read_bytes())
    except (OSError, *UNREADABLE) as error:
        why = " ".join(str(error).split())[:200]
        raise SettingsError(f"{path.name} cannot be read as YAML: {why}") from None


def load(path: str | os.PathLike = "params.yaml") -> Settings:
    """Read and check a params.yaml. Raises SettingsError with one sentence on the first fault."""
    path = Path(path) if Path(path).exists() else root() / path
    raw, needed = read_yaml(path), ("run", "defaults", "methods", "scales")
    if not isinstance(raw, dict) or not all(isinstance(raw.get(name), dict) for name in needed):
        raise SettingsError(f"{path.name} needs the sections {', '.join(needed)}, each a mapping")
    defaults = raw["defaults"] | {"methods": raw["methods"]}
    scales = {name: _merge(defaults, part) for name, part in raw["scales"].items()}
    given = {name: part for name, part in raw.items() if name != "defaults"}
    try:
        return Settings.model_validate(given | {"scales": scales})
    except pydantic.ValidationError as error:
        raise SettingsError(f"{path.name}: {first_fault(error)}") from None


def first_fault(error: ValueError) -> str:
    """An error, of several the first, in one sentence: where it is, what is wrong, the mend."""
    if not isinstance(error, pydantic.ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"] if p != "[key]")
    what = {
        "extra_forbidden": "unknown key; remove it or correct its spelling",
        "missing": "missing; add it",
        "value_error": first["msg"].removeprefix("Value error, "),
    }.get(first["type"], f"{first['msg']}, not {reprlib.repr(first['input'])}")
    return " ".join(f"{where + ': ' if where else ''}{what}".split())
