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
from pathlib import Path
from typing import Annotated, Literal, get_args

import pydantic
import yaml
from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

Task = Literal["math", "code"]
Mode = Literal["opd", "opsd"]
Trajectory = Literal["y_o", "y_r", "y_t", "y_star", "y_o_cut"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd", "cross_entropy"]
Subset = Literal["all", "failed", "passed", "failed_then_passed"]
Probability = Annotated[float, Field(gt=0, le=1)]
Knob = Literal[
    "locality", "prompts", "rollout_temperature", "refinement_temperature", "teacher_temperature",
    "student_strength",
]  # fmt: skip

REFERENCES = ("base", "base_again", "teacher")  # evaluated, not trained; their mode is "none"


class SettingsError(ValueError):
    """params.yaml, or a notebook's parameter, is wrong; the message says how to mend it."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Method(_Section):
    """A point in the space trajectory x divergence (paper section 2)."""

    trajectory: Trajectory
    divergence: Divergence
    beta: float = Field(0.5, gt=0, lt=1)  # of the generalised JSD
    clip: PositiveFloat | None = None  # per-token ceiling on the divergence
    top_k: int | None = None  # teacher's top-k support, both sides renormalised on it
    subset: Subset = "all"  # rows to train on, by the verdicts on y_o and y_r
    skip_onsets: bool = False  # onset words left out of both distributions, the rest renormalised

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


class ProblemSet(_Section):
    """One set of procedural problems."""

    task: Literal["chain", "trail", "story", "code"]
    problems: PositiveInt
    steps: tuple[PositiveInt, ...]
    local_share: float = Field(0.0, ge=0, le=1)  # trail: share of problems with the flag `=`
    unknown: float = Field(0.5, ge=0, le=1)  # trail: share of letters new to the student

    @pydantic.model_validator(mode="after")
    def _has_these_knobs(self):
        if self.task != "trail" and {"local_share", "unknown"} & self.model_fields_set:
            raise ValueError(f"local_share and unknown belong to the task trail, not {self.task}")
        return self


class Data(_Section):
    """Procedural problems (tiny.py, tinycode.py, stories.py)."""

    train: tuple[ProblemSet, ...]
    validation: tuple[ProblemSet, ...]
    benchmarks: dict[str, ProblemSet]
    seed: int = 0

    @property
    def tasks(self) -> set[str]:
        return {part.task for part in (*self.train, *self.validation, *self.benchmarks.values())}


class Columns(_Section):
    """What a published file calls the columns of our schema."""

    problem: str
    answer: str
    solution: str | None = None
    id: str | None = None  # None: the number of the row


class HubSet(_Section):
    """One file of a dataset on the hub, at one commit."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")  # a branch or a tag may move, a commit not
    file: str = Field(pattern=r"\.(parquet|jsonl|json)$")
    columns: Columns
    rows: PositiveInt  # in the file
    leave_out: dict[str, str] = {}  # column -> value: rows that are not wanted
    kept: PositiveInt | None = None  # rows after that

    @pydantic.model_validator(mode="after")
    def _counts(self):
        if bool(self.leave_out) != bool(self.kept):
            raise ValueError("leave_out and kept go together: how many rows should be left?")
        if self.kept and self.kept >= self.rows:
            raise ValueError(f"kept {self.kept} must be less than rows {self.rows}")
        return self

    @property
    def problems(self) -> int:
        """Of a benchmark: how many it asks."""
        return self.kept or self.rows


class HubData(_Section):
    """Published problems (hub.py)."""

    train: HubSet
    train_problems: PositiveInt | None = None  # drawn by a hash; None: all that are left
    validation_problems: PositiveInt  # held out of the train set, by the same hash
    benchmarks: dict[str, HubSet] = Field(min_length=1)
    require_solution: bool = False  # train problems without a reference solution are left out
    root: str | None = None  # a folder with <repo>/<file> that stands in for the hub
    seed: int = 0


def _kind_of_data(value) -> str:
    train = value.get("train") if isinstance(value, dict) else getattr(value, "train", None)
    return "hub" if isinstance(train, dict | HubSet) else "procedural"


AnyData = Annotated[
    Annotated[Data, Tag("procedural")] | Annotated[HubData, Tag("hub")],
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
    style: Literal["tiny", "math", "story"] = "math"  # of the prompts
    load_in_4bit: bool = False  # the base model in nf4 (bitsandbytes)
    threads: PositiveInt | None = None  # CPU threads per process; None: as torch thinks best
    student_thinking: bool | None = None
    teacher_thinking: bool | None = None
    engine: Literal[tuple(ENGINES)] = "transformers"  # who samples (engines.py)
    gpu_share: Probability = 0.85  # of its memory, for vllm and unsloth
    server: Server = Server()


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
                found = own.data.tasks if isinstance(own.data, Data) else set()
                if found & ({"chain", "trail"} if task == "code" else {"code"}):
                    raise ValueError(
                        f"scales.{name}: the data of the task {task} are problems of "
                        f"{sorted(found)}: a task has its own"
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
        first = error.errors()[0]
        tags = ("procedural", "hub")  # of the kinds of data: not in the file
        where = ".".join(str(part) for part in first["loc"] if part not in tags)
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = "unknown key; remove it or correct its spelling"
        elif first["type"] == "missing":
            what = "missing; add it"
        elif first["type"] != "value_error":
            what += f", not {first['input']!r}"
        raise SettingsError(f"{path.name}: {where + ': ' if where else ''}{what}") from None


class Run:
    """One cell of the matrix: (scale, task, mode, method); its settings and its files.

    mode is "none" for the rows that are not trained (REFERENCES). Paths follow the design.
    """

    def __init__(self, scale: str, task: str, mode: str, method: str, settings: Settings):
        self.scale, self.task, self.mode, self.method = scale, task, mode, method
        self.all_settings, self.matrix = settings, settings.run
        try:
            self.settings = settings.of(scale, task)
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
    def data(self) -> Path:
        return root() / "data" / self.scale / self.task

    @property
    def attempts(self) -> Path:
        return root() / "runs" / self.scale / self.task / "y_o.parquet"

    @property
    def mode_folder(self) -> Path:
        return self.attempts.parent / self.mode

    def folder(self, seed: int) -> Path:
        return self.mode_folder / self.method / str(seed)

    def adapter(self, seed: int) -> Path:
        return self.folder(seed) / "adapter"

    def samples(self, seed: int, benchmark: str) -> Path:
        """What the trained student of this seed answered."""
        folder = self.mode_folder / "eval" / self.method / str(seed)
        return folder / f"{benchmark}.parquet"

    def _result(self, what: str) -> Path:
        parts = (what, self.scale, self.task, self.mode, f"{self.method}.json")
        return (root() / "results").joinpath(*parts)

    @property
    def choice(self) -> Path:
        """The learning rates tried and the one chosen, and the adapters' hashes, for all seeds."""
        return self._result("training")

    @property
    def metrics(self) -> Path:
        return self._result("metrics")

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
    mode: str = "opd",
    method: str = "trd",
    settings: Settings | None = None,
) -> Run:
    """The run that a notebook's parameters name; SettingsError if there is no such run."""
    return Run(scale, task, mode, method, settings or load())


def runs(scale: str, task: str, mode: str, method: str) -> list[Run]:
    """The run of a method, or those of all methods that the matrix names (method "all").

    Mode none: the reference rows, the teacher only where the scale has one.
    """
    settings = load()
    if method != "all":
        return [run(scale, task, mode, method, settings)]
    first = run(scale, task, "none", "base", settings)
    names = first.matrix.methods_of(mode, task)
    if mode == "none":
        has_teacher = first.settings.models.teacher
        names = [name for name in REFERENCES if name != "teacher" or has_teacher]
    return [run(scale, task, mode, name, settings) for name in names]


def content_hash(*parts) -> str:
    """A short hash of JSON-like values and settings sections; equal input, equal hash."""
    text = json.dumps(parts, sort_keys=True, default=lambda p: p.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def code_hash(*modules) -> str:
    """Hash of what modules do: their code without comments, docstrings and layout."""
    trees = []
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                body.pop(0)
        trees.append(ast.dump(tree))
    return content_hash(trees)


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
