"""params.yaml -> validated settings.

`defaults` are the paper's values (section 3); a scale overrides what it must; a method is a
trajectory, a context and a divergence. What is wrong in the file is said in one sentence, before a
model is loaded. A scale's data, and models that it makes itself, are its task's to check.
"""

import functools
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, PositiveFloat, PositiveInt

Mode = Literal["opd", "opsd"]
Probability = Annotated[float, Field(gt=0, le=1)]

REFERENCES = ("base", "base_again", "teacher")  # evaluated, not trained; their mode is "none"


class SettingsError(ValueError):
    """params.yaml, or a notebook's parameter, is wrong; the message says how to mend it."""


@functools.cache
def divergences() -> tuple[str, ...]:
    """Those that divergence.py marks, and cross_entropy, which has no teacher."""
    # Read, not imported: that would bring torch along.
    text = Path(__file__).with_name("divergence.py").read_text(encoding="utf-8")
    marked = re.findall(r"^@divergence\n(?:@.*\n)*def (\w+)", text, re.MULTILINE)
    return (*marked, "cross_entropy")


def known(what: str, name: str, names) -> None:
    """ValueError, with what there is to choose from, unless the name is among the names."""
    if name not in names:
        raise ValueError(f"there is no {what} {name!r}: choose from {', '.join(names)}")


class Section(pydantic.BaseModel):
    """A part of params.yaml: unknown keys are errors, values do not change."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Method(Section):
    """A point in the space trajectory x context x divergence (paper section 2)."""

    trajectory: Literal["y_o", "y_r", "y_t", "y_star", "y_o_cut"]
    divergence: str  # one of `divergences()`
    # What the teacher sees when it scores y_r: the prompt that made it, or (plain) x, in OPSD x and
    # y*, as in the authors' later online code. Of every other trajectory it is plain.
    context: Literal["refine", "plain"] = "refine"
    beta: float = Field(0.5, gt=0, lt=1)  # of the generalised JSD
    clip: PositiveFloat | None = None  # per-token ceiling on the divergence
    top_k: int | None = None  # teacher's top-k support, both sides renormalised on it
    # Rows to train on, by the verdicts on y_o and y_r.
    subset: Literal["all", "failed", "passed", "failed_then_passed"] = "all"
    skip_onsets: bool = False  # onset words left out of both distributions, the rest renormalised

    @pydantic.model_validator(mode="after")
    def _makes_sense(self):
        known("divergence", self.divergence, divergences())
        if self.top_k is not None and self.top_k < 2:
            raise ValueError("top_k must be at least 2: on one token every divergence is zero")
        if self.divergence == "cross_entropy" and (self.top_k or self.clip or self.skip_onsets):
            raise ValueError("cross_entropy has no teacher: drop top_k, clip and skip_onsets")
        if self.trajectory == "y_star" and self.divergence != "cross_entropy":
            raise ValueError("y_star is trained with cross_entropy: it has no teacher context")
        if self.context == "plain" and self.trajectory != "y_r":
            raise ValueError("context is of the trajectory y_r: of the others it is always plain")
        if self.subset == "failed_then_passed" and self.trajectory != "y_r":
            raise ValueError("the subset failed_then_passed is defined by y_r: use that trajectory")
        if self.subset != "all" and self.trajectory not in ("y_o", "y_r"):
            raise ValueError("a subset selects attempts: use it with the trajectories y_o and y_r")
        return self


class Sampling(Section):
    temperature: float = Field(ge=0)
    top_p: Probability = 1.0
    top_k: int = Field(0, ge=0)  # 0: off
    max_new_tokens: PositiveInt
    batch_size: PositiveInt = 64  # rows decoded together
    samples: PositiveInt = 1  # responses per prompt
    seed: int = 0


class Lengths(Section):
    """Upper bounds, in tokens. A longer prompt is an error, a longer reference is cut visibly."""

    prompt: PositiveInt
    reference: PositiveInt


class Lora(Section):
    r: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = (*(f"{p}_proj" for p in "qkvo"), "gate_proj", "up_proj", "down_proj")


class Training(Section):
    learning_rates: tuple[PositiveFloat, ...] = Field(min_length=1)  # the grid
    subset_learning_rates: tuple[PositiveFloat, ...] = ()  # of methods on a subset; (): the grid
    batch_size: PositiveInt  # rows in one optimizer step
    micro_batch_size: PositiveInt  # rows in one forward pass
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    weight_decay: float = Field(ge=0)
    warmup: float = Field(ge=0, lt=1)  # share of the steps
    min_lr_ratio: float = Field(ge=0, le=1)
    max_grad_norm: PositiveFloat
    temperature: PositiveFloat = 1.0  # of both distributions in the divergence
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: PositiveInt = 50

    @pydantic.model_validator(mode="after")
    def _divides(self):
        rows, micro = self.batch_size, self.micro_batch_size
        if rows % micro:
            raise ValueError(f"batch_size {rows} must be a multiple of micro_batch_size {micro}")
        return self


class Evaluation(Section):
    sampling: Sampling  # samples: the k of avg@k and pass@k
    validation_samples: PositiveInt  # samples per validation problem, for the learning rate
    resamples: PositiveInt  # bootstrap
    confidence: float = Field(gt=0, lt=1)

    @property
    def validation(self) -> Sampling:
        """How the validation set is sampled."""
        return self.sampling.model_copy(update={"samples": self.validation_samples})

    @property
    def interval(self) -> dict:
        """How intervals are made: the arguments of stats.bootstrap and stats.compare."""
        return {"resamples": self.resamples, "confidence": self.confidence}


class Diagnosis(Section):
    """How much of the training set the diagnosis looks at."""

    problems: PositiveInt
    gradient_problems: PositiveInt  # of each source, in a summed gradient


# engine -> packages that it needs beyond the pinned ones, and how to get them
ENGINES = {"transformers": (), "vllm": ("vllm",), "openai": ("openai",)}
ENGINE_INSTALL = {"vllm": "pip install -e '.[vllm]'", "openai": "pip install -e '.[server]'"}


class Server(Section):
    """vLLM's server (engine openai). Nothing here shapes a sample."""

    url: str = Field("http://127.0.0.1:8000/v1", pattern=r"^https?://")
    teacher_url: str | None = Field(None, pattern=r"^https?://")  # None: the same server
    key: str = Field("TRD_SERVER_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$")  # a variable's name, no key
    concurrency: PositiveInt = 64  # requests at a time
    retries: int = Field(8, ge=0)  # of a request whose failure may pass, waiting up to 8 s each
    timeout: PositiveFloat = 3600  # seconds for one answer


class Models(Section):
    """A folder of the project, {seed} the base seed of the run, or the hub's owner/name@commit."""

    student: str
    teacher: str | None = None  # only OPD needs one
    backend: Literal["transformers", "unsloth"] = "unsloth"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    style: Literal["tiny", "math", "code", "story"] = "math"  # of the prompts (prompts.yaml)
    load_in_4bit: bool = False  # the base model in nf4 (bitsandbytes)
    device: Literal["auto", "cpu"] = "auto"  # auto: the GPU if there is one
    threads: PositiveInt | None = None  # CPU threads per process; None: as torch thinks best
    student_thinking: bool | None = None
    teacher_thinking: bool | None = None
    engine: Literal[tuple(ENGINES)] = "transformers"  # who samples (engines.py)
    gpu_share: Probability = 0.85  # of its memory, for vllm
    server: Server = Server()

    @pydantic.model_validator(mode="after")
    def _cpu_can_do_it(self):
        if self.device == "cpu" and self.load_in_4bit:
            raise ValueError("models.load_in_4bit needs a GPU: leave models.device at auto")
        if self.device == "cpu" and self.engine == "vllm":
            raise ValueError("the engine vllm needs a GPU: leave models.device at auto")
        return self


class Example(Section):
    """An earlier turn of the chat, for models too small to follow instructions."""

    problem: str
    attempt: str
    reference: str


class Scale(Section):
    """Everything that a scale fixes, the defaults merged in."""

    task: str  # what is asked, and who says what is right: a name of trdlib.tasks, or a file
    modes: tuple[Mode, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: PositiveInt = 1  # processes that share the jobs of a stage (CPU scales)
    models: Models
    data: dict[str, Any]  # the task's own (checked by trdlib.tasks), as are the next two
    pretraining: dict[str, Any] | None = None
    packaged: dict[str, Any] | None = None
    lengths: Lengths
    rollout: Sampling
    refinement: Sampling
    lora: Lora
    training: Training
    evaluation: Evaluation
    methods: dict[str, Method]
    examples: tuple[Example, ...] = ()  # shown in every prompt before what is asked
    onsets: tuple[str, ...] = Field(min_length=1)  # words that open a correction
    diagnosis: Diagnosis
    only: tuple[str, ...] = ()  # the methods that are run here; (): those of `run`
    ablation: dict[Mode, tuple[str, ...]] = {}  # methods on a subset of the rows, run after them
    tracker: Literal["none", "tensorboard", "wandb"] = "none"  # of training
    map: dict[str, Any] | None = None  # of analysis/map.py

    @pydantic.model_validator(mode="after")
    def _can_do_its_modes(self):
        if self.workers > 1 and self.models.engine == "vllm":
            raise ValueError("the engine vllm fills the GPU: set workers to 1")
        if self.refinement.samples != 1:
            raise ValueError("refinement.samples must be 1: each attempt gets one rewrite")
        if "opd" in self.modes and self.models.teacher is None:
            raise ValueError("mode opd needs models.teacher: name one, or drop opd from modes")
        for name in self.only:
            known("method", name, self.methods)
        for mode, names in self.ablation.items():
            known("mode of the scale", mode, self.modes)
            for name in names:
                known("method", name, self.methods)
                if self.methods[name].subset == "all":
                    raise ValueError(f"ablation: {name} trains on all rows: give it a subset")
        return self


class Matrix(Section):
    """What `dvc repro` runs: at each scale every mode of it with every method."""

    scales: tuple[str, ...]
    methods: tuple[str, ...]


class Settings(Section):
    run: Matrix
    methods: dict[str, Method]  # as written; each scale has them with its own changes
    scales: dict[str, Scale]

    @pydantic.model_validator(mode="after")
    def _is_complete(self):
        for name in self.run.scales:
            known("scale", name, self.scales)
            for method in self.run.methods:
                known("method", method, self.scales[name].methods)
        return self


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


def root() -> Path:
    """The project's folder: the nearest one, from here upwards, with a params.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise SettingsError(f"no params.yaml in {here} or above: run this inside the repository")


def load(path: str | os.PathLike = "params.yaml") -> Settings:
    """Read and check a params.yaml. Raises SettingsError with one sentence on the first fault."""
    path = Path(path) if Path(path).exists() else root() / path
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SettingsError(f"{path.name} does not exist: name an existing file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path.name} is not valid YAML: {error}".replace("\n", " ")) from None
    if not isinstance(raw, dict) or not {"run", "defaults", "methods", "scales"} <= set(raw):
        raise SettingsError(f"{path.name} needs the sections run, defaults, methods and scales")
    defaults = {**raw.pop("defaults"), "methods": raw["methods"]}
    scales = {name: _merge(defaults, part) for name, part in raw.pop("scales").items()}
    try:
        return Settings(**raw, scales=scales)
    except pydantic.ValidationError as error:
        raise SettingsError(f"{path.name}: {first_fault(error)}") from None


def first_fault(error: pydantic.ValidationError) -> str:
    """The first error in one sentence: where it is, what is wrong, how to mend it."""
    first = error.errors()[0]
    # "<...>": tags of kinds of data, which do not stand in the file
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("<"))
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "unknown key; remove it or correct its spelling"
    elif first["type"] == "missing":
        what = "missing; add it"
    elif first["type"] != "value_error":
        what += f", not {first['input']!r}"
    return f"{where + ': ' if where else ''}{what}"
