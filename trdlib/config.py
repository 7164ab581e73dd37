"""params.yaml -> validated settings; the key of a run and its paths; content hashes.

One file holds every knob. `defaults` are the paper's values (section 3); a scale overrides what it
must; a method is a trajectory and a divergence (design: "the one idea"). Whatever is wrong in the
file is said in one sentence, before any model is loaded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import yaml
from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

Task = Literal["math", "code"]
Mode = Literal["opd", "opsd"]
Trajectory = Literal["y_o", "y_r", "y_t", "y_star", "y_o_cut"]
Subset = Literal["all", "failed", "passed", "failed_then_passed"]
Probability = Annotated[float, Field(gt=0, le=1)]
Knob = Literal[
    "locality", "prompts", "rollout_temperature", "refinement_temperature", "teacher_temperature",
    "student_strength",
]  # fmt: skip

# Of what shapes each artefact: the sections of a scale, so that a run with a changed setting shares
# with the usual run all that the setting does not touch (see `Run`).
_DATA = ("data",)
_ATTEMPTS = ("data", "models", "lengths", "rollout", "seeds")
_REWRITES = (*_ATTEMPTS, "refinement")
_ADAPTERS = (*_REWRITES, "lora", "training", "methods", "onsets")

REFERENCES = ("base", "base_again", "teacher")  # evaluated, not trained; their mode is "none"


class SettingsError(ValueError):
    """params.yaml, or a notebook's parameter, is wrong; the message says how to mend it."""


@functools.cache
def divergences() -> tuple[str, ...]:
    """The functions of divergence.py that bear its mark, and cross_entropy, which has no teacher.

    The module is read, not imported: it would bring torch along.
    """
    tree = ast.parse(Path(__file__).with_name("divergence.py").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    marks = {f.name: [ast.unparse(mark) for mark in f.decorator_list] for f in functions}
    return (*(name for name, found in marks.items() if "divergence" in found), "cross_entropy")


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Method(_Section):
    """A point in the space trajectory x divergence (paper section 2)."""

    trajectory: Trajectory
    divergence: str  # a name of DIVERGENCES (divergence.py), or cross_entropy
    beta: float = Field(0.5, gt=0, lt=1)  # of the generalised JSD
    clip: PositiveFloat | None = None  # per-token ceiling on the divergence
    top_k: int | None = None  # teacher's top-k support, both sides renormalised on it
    subset: Subset = "all"  # rows to train on, by the verdicts on y_o and y_r
    skip_onsets: bool = False  # onset words left out of both distributions, the rest renormalised

    @pydantic.field_validator("divergence")
    @classmethod
    def _exists(cls, name: str) -> str:
        _known("divergence", name, divergences())
        return name

    @pydantic.model_validator(mode="after")
    def _makes_sense(self):
        if self.top_k is not None and self.top_k < 2:
            raise ValueError("top_k must be at least 2: on one token every divergence is zero")
        if self.divergence == "cross_entropy" and (self.top_k or self.clip or self.skip_onsets):
            raise ValueError("cross_entropy has no teacher: drop top_k, clip and skip_onsets")
        if self.trajectory == "y_star" and self.divergence != "cross_entropy":
            raise ValueError("y_star is trained with cross_entropy: it has no teacher context")
        if self.subset == "failed_then_passed" and self.trajectory != "y_r":
            raise ValueError("the subset failed_then_passed is defined by y_r: use that trajectory")
        if self.subset != "all" and self.trajectory not in ("y_o", "y_r"):
            raise ValueError("a subset selects attempts: use it with the trajectories y_o and y_r")
        return self


class Sampling(_Section):
    temperature: float = Field(ge=0)
    top_p: Probability = 1.0
    top_k: int = Field(0, ge=0)  # 0: off
    max_new_tokens: PositiveInt
    batch_size: PositiveInt = 64  # rows decoded together
    samples: PositiveInt = 1  # responses per prompt
    seed: int = 0


class Lengths(_Section):
    """Upper bounds, in tokens. A longer prompt is an error, a longer reference is cut visibly."""

    prompt: PositiveInt
    reference: PositiveInt


class Lora(_Section):
    r: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class Training(_Section):
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
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self


class Evaluation(_Section):
    sampling: Sampling  # samples: the k of avg@k and pass@k
    validation_samples: PositiveInt  # samples per validation problem, for the learning rate
    resamples: PositiveInt  # bootstrap
    confidence: float = Field(gt=0, lt=1)

    @property
    def validation(self) -> Sampling:
        """How the validation set is sampled."""
        return self.sampling.model_copy(update={"samples": self.validation_samples})


class ProblemSet(_Section):
    """One set of procedural problems."""

    # One of ours, or a Python file of the project: its draw(rng, steps) makes them (inputs.py).
    task: str = Field(pattern=r"^(chain|trail|story|code|[\w/.-]+\.py)$")
    problems: PositiveInt
    steps: tuple[PositiveInt, ...]
    local_share: float = Field(0.0, ge=0, le=1)  # trail: share of problems with the flag `=`
    unknown: float = Field(0.5, ge=0, le=1)  # trail: share of letters new to the student

    @pydantic.model_validator(mode="after")
    def _has_these_knobs(self):
        if self.task != "trail" and (self.local_share, self.unknown) != (0.0, 0.5):
            raise ValueError(f"local_share and unknown belong to the task trail, not {self.task}")
        return self


class Data(_Section):
    """Procedural problems (tiny.py, tinycode.py, stories.py, or a file of your own)."""

    train: tuple[ProblemSet, ...]
    validation: tuple[ProblemSet, ...]
    benchmarks: dict[str, ProblemSet]
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _of_one_kind(self):
        if len(self.tasks) > 1 and not self.tasks <= {"chain", "trail"}:
            raise ValueError(f"problems of {', '.join(sorted(self.tasks))} do not mix: choose one")
        return self

    @property
    def tasks(self) -> set[str]:
        return {part.task for part in (*self.train, *self.validation, *self.benchmarks.values())}


class Columns(_Section):
    """What a file calls the columns of our schema."""

    problem: str = "problem"
    answer: str = "answer"
    solution: str | None = None
    id: str | None = None  # None: the number of the row


class HubSet(_Section):
    """One file of a dataset on the hub, at one commit; without repo a file of your own."""

    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$")
    # A branch or a tag may move, a commit not.
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    file: str = Field(pattern=r"\.(parquet|jsonl|json)$")
    columns: Columns = Columns()
    rows: PositiveInt  # in the file
    leave_out: dict[str, str] = {}  # column -> value: rows that are not wanted
    kept: PositiveInt | None = None  # rows after that

    @pydantic.model_validator(mode="after")
    def _counts(self):
        if bool(self.repo) != bool(self.revision):
            raise ValueError("repo and revision go together: a file of the hub has both")
        if bool(self.leave_out) != bool(self.kept):
            raise ValueError("leave_out and kept go together: how many rows should be left?")
        if self.kept and self.kept >= self.rows:
            raise ValueError(f"kept {self.kept} must be less than rows {self.rows}")
        return self

    @property
    def published(self) -> bool:
        return self.repo is not None

    @property
    def name(self) -> str:
        return self.repo or self.file

    @property
    def where(self) -> str:
        return f"{self.repo}: {self.file}" if self.repo else self.file

    @property
    def problems(self) -> int:
        """Of a benchmark: how many it asks."""
        return self.kept or self.rows


class CodeSet(_Section):
    """A published set of programming problems: coding.py knows its files, their pins, its rules."""

    format: Literal["humaneval", "mbpp", "livecodebench", "taco"]
    rows: PositiveInt  # in all of its files
    files: tuple[str, ...] = ()  # of your own in this format, instead of the published ones

    @property
    def published(self) -> bool:
        return not self.files

    @property
    def name(self) -> str:
        return self.format

    @property
    def problems(self) -> int:
        return self.rows


def _kind_of_set(value) -> str:
    coded = isinstance(value, CodeSet) or (isinstance(value, dict) and "format" in value)
    return "<code>" if coded else "<file>"


AnySet = Annotated[
    Annotated[HubSet, Tag("<file>")] | Annotated[CodeSet, Tag("<code>")],
    Discriminator(_kind_of_set),
]


class HubData(_Section):
    """Published problems (hub.py, coding.py)."""

    train: AnySet
    train_problems: PositiveInt | None = None  # drawn by a hash; None: all that are left
    validation_problems: PositiveInt  # held out of the train set, by the same hash
    benchmarks: dict[str, AnySet] = Field(min_length=1)
    require_solution: bool = False  # train problems without a reference solution are left out
    root: str | None = None  # a folder with <repo>/<file> that stands in for the hub
    seed: int = 0

    @property
    def sets(self) -> dict[str, HubSet | CodeSet]:
        """What is read: the train set, of which validation is a part, and the benchmarks."""
        return {"train": self.train, **self.benchmarks}

    @property
    def tasks(self) -> set[str]:
        """As far as the sets tell: a file of one's own may be of any task."""
        return {"code" for one in self.sets.values() if isinstance(one, CodeSet)}


def _kind_of_data(value) -> str:
    train = value.get("train") if isinstance(value, dict) else getattr(value, "train", None)
    return "<hub>" if isinstance(train, dict | HubSet | CodeSet) else "<procedural>"


AnyData = Annotated[
    Annotated[Data, Tag("<procedural>")] | Annotated[HubData, Tag("<hub>")],
    Discriminator(_kind_of_data),
]


class PretrainStage(_Section):
    """One round of steps with linear decay; rounds are repeated until the thresholds hold."""

    steps: PositiveInt
    muon_lr: PositiveFloat
    adamw_lr: PositiveFloat


class Pretraining(_Section):
    shape: dict[str, PositiveInt]
    tokens_per_step: PositiveInt
    foundation: PretrainStage
    student: PretrainStage
    teacher: PretrainStage
    thresholds: dict[str, dict[str, tuple[float, float]]] = {}  # stage -> task/kind -> range


class Packaged(_Section):
    """Weights that come inside a Python package, as a GGUF file (packaged.py)."""

    package: str  # as pip calls it
    version: str
    file: str = Field(pattern=r"^\w+/.+\.gguf$")  # module/path


class Diagnosis(_Section):
    """How much of the training set the diagnosis looks at."""

    problems: PositiveInt
    gradient_problems: PositiveInt  # of each source, in a summed gradient


# engine -> packages that it needs beyond the pinned ones, and how to get them
ENGINES = {
    "transformers": (),
    "unsloth": ("unsloth", "vllm"),
    "vllm": ("vllm",),
    "openai": ("openai",),
}
ENGINE_INSTALL = {
    "unsloth": "pip install -e '.[gpu,vllm]'",
    "vllm": "pip install -e '.[vllm]'",
    "openai": "pip install -e '.[server]'",
}


class Server(_Section):
    """An OpenAI-compatible server (engine openai). Nothing here shapes a sample."""

    url: str = Field("http://127.0.0.1:8000/v1", pattern=r"^https?://")
    teacher_url: str | None = Field(None, pattern=r"^https?://")  # None: the same server
    key: str = Field("TRD_SERVER_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$")  # a variable's name, no key
    concurrency: PositiveInt = 64  # requests at a time
    retries: int = Field(8, ge=0)  # of a request whose failure may pass, waiting up to 8 s each
    timeout: PositiveFloat = 3600  # seconds for one answer


class Models(_Section):
    """Where weights come from: a folder of the project, `{seed}` being the base seed of the run, or
    the hub, `owner/name@commit`."""

    student: str
    teacher: str | None = None  # only OPD needs one
    packaged: Packaged | None = None  # what the student's folder is unpacked from
    backend: Literal["transformers", "unsloth"] = "unsloth"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    style: Literal["tiny", "math", "code", "story"] = "math"  # of the prompts
    load_in_4bit: bool = False  # the base model in nf4 (bitsandbytes)
    device: Literal["auto", "cpu"] = "auto"  # auto: the GPU if there is one
    threads: PositiveInt | None = None  # CPU threads per process; None: as torch thinks best
    student_thinking: bool | None = None
    teacher_thinking: bool | None = None
    engine: Literal[tuple(ENGINES)] = "transformers"  # who samples (engines.py)
    gpu_share: Probability = 0.85  # of its memory, for vllm and unsloth
    server: Server = Server()

    @pydantic.model_validator(mode="after")
    def _cpu_can_do_it(self):
        if self.device == "cpu" and self.load_in_4bit:
            raise ValueError("models.load_in_4bit needs a GPU: leave models.device at auto")
        if self.device == "cpu" and self.engine in ("vllm", "unsloth"):
            raise ValueError(f"the engine {self.engine} needs a GPU: leave models.device at auto")
        return self


class Map(_Section):
    """The map (landscape.py): one knob at a time is turned away from where all are at first."""

    knobs: dict[Knob, tuple[float, ...]]  # the first value is the knob's usual one
    methods: tuple[str, ...]
    oracles: tuple[str, ...] = ()  # methods only for the knob `locality`
    steps: tuple[PositiveInt, ...]
    test_problems: PositiveInt
    learning_rate: PositiveFloat

    @pydantic.model_validator(mode="after")
    def _is_complete(self):
        missing = set(get_args(Knob)) - set(self.knobs)
        if missing or not all(self.knobs.values()):
            names = ", ".join(sorted(missing)) or "every knob"
            raise ValueError(f"{names} needs at least its usual value")
        if not {"trd", "off_policy", "sft_refined"} <= set(self.methods):
            raise ValueError("the map compares trd, off_policy and sft_refined: add those methods")
        return self


_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")


class Scale(_Section):
    """Everything that a scale fixes, the defaults merged in: for math; `tasks` has the others."""

    modes: tuple[Mode, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    workers: PositiveInt = 1  # processes that share the jobs of a stage (CPU scales)
    models: Models
    data: AnyData
    lengths: Lengths
    rollout: Sampling
    refinement: Sampling
    lora: Lora
    training: Training
    evaluation: Evaluation
    methods: dict[str, Method]
    onsets: tuple[str, ...] = Field(min_length=1)  # words that open a correction (diagnose.py)
    diagnosis: Diagnosis
    only: tuple[str, ...] = ()  # methods that `make repro SCALE=` runs; (): those of `run`
    tracker: Literal["dvclive", "tensorboard", "wandb", "none"] = "dvclive"  # of training
    pretraining: Pretraining | None = None
    map: Map | None = None
    tasks: dict[Literal["code"], Scale] = {}  # in the file: only what differs from math

    @pydantic.model_validator(mode="after")
    def _can_do_its_modes(self):
        if self.workers > 1 and self.models.engine in ("vllm", "unsloth"):
            raise ValueError(f"the engine {self.models.engine} fills the GPU: set workers to 1")
        if self.refinement.samples != 1:
            raise ValueError("refinement.samples must be 1: each attempt gets one rewrite")
        if "opd" in self.modes and self.models.teacher is None:
            raise ValueError("mode opd needs models.teacher: name one, or drop opd from modes")
        for name, other in self.tasks.items():
            if other.seeds != self.seeds:
                raise ValueError(f"tasks.{name} has other seeds: a scale has the same in all tasks")
        published = isinstance(self.data, HubData)
        if published and "opsd" in self.modes and not self.data.require_solution:
            raise ValueError(
                "mode opsd shows the teacher a reference solution: set data.require_solution, or "
                "drop opsd from modes"
            )
        return self


class Ablation(_Section):
    """Methods on a subset of the rows, and the tasks and modes in which they are run."""

    tasks: tuple[Task, ...] = ("math",)
    modes: tuple[Mode, ...] = ()
    methods: tuple[str, ...] = ()


class Matrix(_Section):
    """What `dvc repro` runs."""

    scales: tuple[str, ...]
    tasks: tuple[Task, ...]
    modes: tuple[Mode, ...]
    methods: tuple[str, ...]
    ablation: Ablation = Ablation()

    def methods_of(self, mode: str, task: str = "math") -> tuple[str, ...]:
        """All methods that are run in the mode, the ablation's last."""
        ablated = mode in self.ablation.modes and task in self.ablation.tasks
        return self.methods + (self.ablation.methods if ablated else ())


class Settings(_Section):
    run: Matrix
    methods: dict[str, Method]  # as written; each scale has them with its own changes
    scales: dict[str, Scale]

    @pydantic.model_validator(mode="after")
    def _is_complete(self):
        for name, scale in self.scales.items():
            for task, own in {"math": scale, **scale.tasks}.items():
                found = own.data.tasks
                if found & ({"chain", "trail", "story"} if task == "code" else {"code"}):
                    raise ValueError(
                        f"scales.{name}: the data of the task {task} are problems of "
                        f"{', '.join(sorted(found))}: a task has its own"
                    )
        for name in self.run.scales:
            _known("scale", name, self.scales)
            for method in self.run.methods + self.run.ablation.methods:
                _known("method", method, self.scales[name].methods)
            for method in self.run.ablation.methods:
                if self.scales[name].methods[method].subset == "all":
                    raise ValueError(f"run.ablation: {method} trains on all rows: give it a subset")
            for task in self.run.tasks:
                scale = self.of(name, task)
                for mode in self.run.modes:
                    _known(f"mode of the scale {name}", mode, scale.modes)
        return self

    def of(self, scale: str, task: str) -> Scale:
        """A scale's settings for a task."""
        _known("scale", scale, self.scales)
        _known("task", task, get_args(Task))
        found = self.scales[scale] if task == "math" else self.scales[scale].tasks.get(task)
        if found is None:
            raise ValueError(
                f"the scale {scale} has no task {task!r}: add it under its `tasks`, or leave it out"
            )
        return found


def _known(what: str, name: str, names) -> None:
    if name not in names:
        raise ValueError(f"there is no {what} {name!r}: choose from {', '.join(names)}")


def _merge(base: dict, over: dict) -> dict:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merge(result[key], value) if both else value
    return result


def _with_tasks(scale: dict) -> dict:
    """The scale's section with its tasks whole: each key of a section that a task names replaces
    the scale's (`data.benchmarks` all of its benchmarks)."""
    tasks, whole = scale.get("tasks") or {}, {}
    scale = {key: value for key, value in scale.items() if key != "tasks"}
    for task, changes in tasks.items() if isinstance(tasks, dict) else ():
        whole[task] = {**scale, "map": None}  # the map is of math
        for key, value in (changes or {}).items():
            both = isinstance(value, dict) and isinstance(scale.get(key), dict)
            whole[task][key] = {**scale[key], **value} if both else value
    return {**scale, "tasks": whole}


def root() -> Path:
    """The project's folder: the nearest one, from here upwards, with a params.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise SettingsError(f"no params.yaml in {here} or above: run this inside the repository")


def load(path: str | os.PathLike = "params.yaml") -> Settings:
    """Read and check a params.yaml. Raises SettingsError with one sentence on the first fault."""
    path = Path(path)
    if not path.is_absolute() and not path.exists():
        path = root() / path
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SettingsError(f"{path.name} does not exist: name an existing file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path.name} is not valid YAML: {error}".replace("\n", " ")) from None
    if not isinstance(raw, dict) or not {"run", "defaults", "methods", "scales"} <= set(raw):
        raise SettingsError(f"{path.name} needs the sections run, defaults, methods and scales")
    defaults = {**raw.pop("defaults"), "methods": raw["methods"]}
    scales = raw.pop("scales")
    scales = {name: _with_tasks(_merge(defaults, part)) for name, part in scales.items()}
    try:
        return Settings(**raw, scales=scales)
    except pydantic.ValidationError as error:
        raise SettingsError(f"{path.name}: {_first_fault(error)}") from None


def _first_fault(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    tags = ("<procedural>", "<hub>", "<file>", "<code>")  # of the kinds of data: not in the file
    where = ".".join(str(part) for part in first["loc"] if part not in tags)
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "unknown key; remove it or correct its spelling"
    elif first["type"] == "missing":
        what = "missing; add it"
    elif first["type"] != "value_error":
        what += f", not {first['input']!r}"
    return f"{where + ': ' if where else ''}{what}"


# ------------------------------------------------------------------------- a scale with changes


def plain_value(text: str) -> Any:
    """What a value typed on a command line is: None, a bool, a number, a list, or the text."""
    if text == "None":
        return None
    for kind in (int, float):  # first: YAML wants a point in 1.0e-6
        try:
            return kind(text)
        except ValueError:
            pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def split_scale(scale: str) -> tuple[str, dict[str, Any]]:
    """`tiny lora.r=8 data.seed=1` -> ("tiny", {"lora.r": 8, "data.seed": 1})."""
    name, *words = shlex.split(scale) or [""]
    changes = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ValueError(f"{word!r} changes nothing: write setting=value, as in lora.r=8")
        changes[key] = plain_value(value)
    return name, changes


def with_changes(
    settings: Settings, scale: str, task: str, changes: dict[str, Any]
) -> tuple[str, Settings]:
    """The settings with one more scale: `scale` with some of its settings for the task changed.

    changes: values by dotted name, {"lora.r": 8, "data.train.0.problems": 64}. Returns the new
    scale's name too: `tiny~3f2a9c01`, a hash of what differs, so that its files are its own; or the
    usual name if nothing differs that could show in a result. Raises SettingsError.
    """
    usual = settings.of(scale, task).model_copy(update={"tasks": {}})
    raw = usual.model_dump(mode="json")
    for key, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
        section = raw
        try:
            for part in parents:
                section = section[part]
            if isinstance(section, list):
                section[last]
            section[last] = value
        except (KeyError, IndexError, TypeError):
            raise SettingsError(f"{key}: there is no such setting; see params.yaml") from None
    if raw["pretraining"] != usual.model_dump(mode="json")["pretraining"]:
        raise SettingsError(
            "pretraining makes the models of a scale, it cannot be changed for one run: give "
            "params.yaml a scale of its own"
        )
    try:
        changed = Scale.model_validate(raw)
    except pydantic.ValidationError as error:
        raise SettingsError(f"scale {scale}: {_first_fault(error)}") from None
    more = set(changed.seeds) - set(usual.seeds)
    if more and usual.pretraining:
        raise SettingsError(
            f"the scale {scale} has base models for the seeds {', '.join(map(str, usual.seeds))}, "
            f"not for {min(more)}: add it to seeds in params.yaml to pretrain one"
        )
    different = _difference(
        changed, usual, set(Scale.model_fields) - {"workers", "tracker", "tasks"}
    )
    name = f"{scale}~{content_hash(different)[:8]}" if different else scale
    tasks = settings.scales[scale].tasks
    if task == "math":
        changed = changed.model_copy(update={"tasks": tasks})
    else:
        of_tasks = {"tasks": {**tasks, task: changed}}
        changed = settings.scales[scale].model_copy(update=of_tasks)
    scales = {**settings.scales, name: changed}
    return name, settings.model_copy(update={"scales": scales})


def _difference(one: Scale, other: Scale, sections) -> dict[str, Any]:
    found = {name: getattr(one, name) for name in sorted(sections)}
    return {name: value for name, value in found.items() if value != getattr(other, name)}


class Run:
    """One cell of the matrix: (scale, task, mode, method); its settings and its files.

    mode is "none" for the rows that are not trained (REFERENCES). Paths follow the design.

    A scale may carry changes, "tiny lora.r=8": such a run is a scale of its own. Whatever a change
    shapes lies under a name of its own and never replaces what the usual run made; whatever it does
    not touch (here the problems, y_o and y_r) is shared.
    """

    def __init__(self, scale: str, task: str, mode: str | None, method: str, settings: Settings):
        self.task, self.method = task, method
        try:
            if scale not in settings.scales:
                scale, changes = split_scale(scale)
                scale, settings = with_changes(settings, scale, task, changes)
            self.scale, self.all_settings, self.matrix = scale, settings, settings.run
            self.settings = settings.of(scale, task)
            self.mode = mode = mode or self.settings.modes[0]
            if self.settings.only:
                few = {"methods": self.settings.only, "ablation": Ablation()}
                self.matrix = self.matrix.model_copy(update=few)
            for role in ("student", "teacher"):
                name = getattr(self.settings.models, role)
                made = "{seed}" in (name or "") or self.settings.models.packaged
                local = name is None or made or (root() / name).is_dir()
                if not local and not _HUB_MODEL.fullmatch(name):
                    raise ValueError(
                        f"models.{role} {name!r} is neither a folder here nor a hub model at a "
                        "commit: write owner/name@ and the 40 hex digits of the commit"
                    )
            if mode == "none":
                _known("reference row (mode none)", method, REFERENCES)
                if method == "teacher" and self.settings.models.teacher is None:
                    raise ValueError(f"the scale {scale} has no teacher: leave this row out")
            else:
                _known(f"mode of the scale {scale}", mode, self.settings.modes)
                _known("method", method, self.settings.methods)
                known = self.settings.pretraining is not None and task == "math"
                if self.recipe.trajectory == "y_o_cut" and not known:
                    what = f"the scale {scale}" if task == "math" else f"the task {task}"
                    raise ValueError(
                        f"{what} has no procedural task that knows the first wrong step: the "
                        "trajectory y_o_cut is not possible"
                    )
        except ValueError as error:
            raise SettingsError(str(error)) from None

    @property
    def recipe(self) -> Method:
        return self.settings.methods[self.method]

    @property
    def is_changed(self) -> bool:
        """Does a setting differ from the scale's usual ones?"""
        return "~" in self.scale

    def _place(self, *sections: str) -> str:
        """The name under which lies what these sections of the settings shape."""
        usual, is_changed, _ = self.scale.partition("~")
        if not is_changed:
            return self.scale
        different = _difference(self.settings, self.all_settings.of(usual, self.task), sections)
        return f"{usual}~{content_hash(different)[:8]}" if different else usual

    @property
    def _of_training(self) -> str:
        # The choice between several learning rates depends on the samples that it is made from.
        chooses = ("evaluation",) if len(self.rates) > 1 else ()
        return self._place(*_ADAPTERS, *chooses)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates among which the method chooses; subsets may have their own."""
        training = self.settings.training
        if self.mode != "none" and self.recipe.subset != "all" and training.subset_learning_rates:
            return training.subset_learning_rates
        return training.learning_rates

    @property
    def data(self) -> Path:
        return root() / "data" / self._place(*_DATA) / self.task

    @property
    def attempts(self) -> Path:
        return root() / "runs" / self._place(*_ATTEMPTS) / self.task / "y_o.parquet"

    @property
    def mode_folder(self) -> Path:
        """Where y_r and y_t lie."""
        return root() / "runs" / self._place(*_REWRITES) / self.task / self.mode

    def folder(self, seed: int) -> Path:
        return root() / "runs" / self._of_training / self.task / self.mode / self.method / str(seed)

    def adapter(self, seed: int) -> Path:
        return self.folder(seed) / "adapter"

    def samples(self, seed: int, benchmark: str) -> Path:
        """What the trained student of this seed answered."""
        trained = () if self.mode == "none" else _ADAPTERS
        place = self._place(*_ATTEMPTS, *trained, "evaluation")
        folder = root() / "runs" / place / self.task / self.mode / "eval" / self.method
        return folder / str(seed) / f"{benchmark}.parquet"

    @property
    def results(self) -> Path:
        """Where small results go: results/, which is in git; of a changed run, its own place."""
        return root() / "runs" / self.scale / "results" if self.is_changed else root() / "results"

    def _result(self, what: str, place: str) -> Path:
        results = root() / "runs" / place / "results" if "~" in place else root() / "results"
        return results.joinpath(what, place, self.task, self.mode, f"{self.method}.json")

    @property
    def choice(self) -> Path:
        """The learning rates tried and the one chosen, and the adapters' hashes, for all seeds."""
        return self._result("training", self._of_training)

    @property
    def metrics(self) -> Path:
        return self._result("metrics", self.scale)

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

    def model_path(self, role: Literal["student", "teacher"], seed: int) -> str:
        """A local folder (relative to the project) or a hub name."""
        template = getattr(self.settings.models, role)
        return template.format(seed=seed)

    def __str__(self) -> str:
        return f"{self.scale}/{self.task}/{self.mode}/{self.method}"


def run(
    scale: str = "smoke",
    task: str = "math",
    mode: str | None = None,
    method: str = "trd",
    settings: Settings | None = None,
    *,
    learning_rate: float | None = None,
    seed: int | None = None,
    tracker: str | None = None,
) -> Run:
    """The run that a notebook's parameters name; SettingsError if there is no such run.

    scale: a name of params.yaml, with changes if there are any: "tiny lora.r=8". mode: None is the
    first of the scale's, for what does not depend on it, as problems and y_o. learning_rate (the
    only one tried), seed (the only one run) and tracker are such changes too; None: as usual.
    """
    words = []
    if learning_rate is not None:
        words += [f"training.learning_rates=[{learning_rate}]", "training.subset_learning_rates=[]"]
    if seed is not None:
        words.append(f"seeds=[{seed}]")
    if tracker is not None:
        words.append(f"tracker={tracker}")
    scale = f"{scale} {shlex.join(words)}" if words else scale
    return Run(scale, task, mode, method, settings or load())


def runs(
    scale: str, task: str, mode: str, method: str, settings: Settings | None = None, **changes
) -> list[Run]:
    """The run of a method, or those of all methods that the matrix names (method "all").

    Mode none: the reference rows, the teacher only where the scale has one. changes: as of `run`.
    """
    settings = settings or load()
    if method != "all":
        return [run(scale, task, mode, method, settings, **changes)]
    any_method = "base" if mode == "none" else settings.run.methods[0]
    first = run(scale, task, mode, any_method, settings, **changes)
    names = first.matrix.methods_of(mode, task)
    if mode == "none":
        has_teacher = first.settings.models.teacher
        names = [name for name in REFERENCES if name != "teacher" or has_teacher]
    return [Run(first.scale, task, mode, name, first.all_settings) for name in names]


def content_hash(*parts) -> str:
    """A short hash of JSON-like values and settings sections; equal input, equal hash."""
    text = json.dumps(parts, sort_keys=True, default=lambda p: p.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_hash(*modules) -> str:
    """Hash of what modules do: their code without comments, docstrings and layout."""
    return content_hash([_bare_code(inspect.getsource(module)) for module in modules])


def source_hash(source: str) -> str:
    """The same for a source text, which need not be imported."""
    return content_hash(_bare_code(source))


def _bare_code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            body.pop(0)
    return ast.dump(tree)


@functools.cache
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(folder: str | os.PathLike) -> str:
    """Hash of the weight files in a model's or an adapter's folder: what the model is."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".gguf"))
    if not files:
        raise FileNotFoundError(f"no .safetensors or .gguf weights in {folder}")
    stats = [(p, p.stat()) for p in files]
    return content_hash([(p.name, _file_hash(str(p), s.st_size, s.st_mtime_ns)) for p, s in stats])
