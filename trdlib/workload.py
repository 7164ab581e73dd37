"""What a scale asks of its models in `dvc repro`: rows, tokens, and which model reads them.

The stages are those of dvc.yaml, the rows those of the library: base seeds, methods, subsets,
learning-rate grids with their validation. A length is expected where files of this scale tell it,
for a hub scale else from the paper's medians (section 4: 7.7k tokens for y_o, 0.88k for y_r); y_t
and an evaluation are taken as long as y_o where nothing tells. At most is what the settings allow.
Pretraining of procedural models and the map (`make map`) are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from trdlib import config, costs, data, hub
from trdlib.costs import Machine, Shape

PAPER = {"y_o": 7700, "y_r": 880}  # median tokens
OURS = {"x": 250, "y_star": 700}  # tokens of a problem and a solution: a guess, and said to be one


class Length(NamedTuple):
    """Tokens a row."""

    expected: float
    at_most: int


class Sampled(NamedTuple):
    """Rows that a model samples."""

    stage: str  # "refine opd", "distill opd trd": as in dvc.yaml, without scale and task
    shape: Shape
    sampling: config.Sampling
    rows: int
    prompt: Length
    response: Length

    def seconds(self, scale: config.Scale, machine: Machine, end: str) -> float | None:
        """At an end ("expected", "at_most"); None if not even one row fits."""
        batch = self.batch(scale, machine, end)
        return batch and costs.sampling_seconds(
            self.shape, item(scale), machine, rows=self.rows, batch=batch,
            prompts=self.rows // self.sampling.samples, prompt=getattr(self.prompt, end),
            new=getattr(self.response, end), paged=paged(scale),
            graphs=paged(scale) or scale.models.backend == "unsloth",
        )  # fmt: skip

    def batch(self, scale: config.Scale, machine: Machine, end: str = "at_most") -> int | None:
        """Rows at a time that fit; None: not even one."""
        if paged(scale):
            length, memory = self.tokens(end) / self.rows, machine.memory * scale.models.gpu_share
            return min(self.rows, costs.paged_rows(memory, self.shape, item(scale), length)) or None
        how = (self.shape, item(scale), self.sampling, self.prompt.at_most)
        return costs.largest_batch(machine.memory * costs.HEADROOM, *how) or None

    def memory(self, scale: config.Scale, batch: int | None = None) -> int:
        """Peak bytes, at the batch size of the settings or another one; of vLLM, which fills the
        GPU, what it needs for one row."""
        if paged(scale):
            cache = self.tokens("at_most") / self.rows * costs.cache_bytes(self.shape, item(scale))
            return int(costs.parameters(self.shape) * item(scale) + cache)
        how = (self.shape, item(scale), self.sampling, self.prompt.at_most)
        return costs.sampling_memory(*how, batch or min(self.rows, self.sampling.batch_size))

    def tokens(self, end: str) -> float:
        return self.rows * (getattr(self.prompt, end) + getattr(self.response, end))


class Trained(NamedTuple):
    """Rows that go through student and teacher at once; gradient False: forward alone."""

    stage: str
    student: Shape
    teacher: Shape | None
    own_teacher: bool  # the student with its adapter off
    rows: int
    prompt: Length  # the student's
    context: Length  # the teacher's
    response: Length
    at_once: int
    checkpointing: bool
    gradient: bool = True

    def lengths(self, end: str) -> tuple[float, float]:
        response = getattr(self.response, end)
        return getattr(self.prompt, end) + response, getattr(self.context, end) + response

    def seconds(self, scale: config.Scale, machine: Machine, end: str) -> float | None:
        if self.memory(scale) > machine.memory * costs.HEADROOM:
            return None
        return costs.training_seconds(
            self.student, self.teacher, scale.lora, machine, rows=self.rows,
            at_once=self.at_once, lengths=self.lengths(end), response=getattr(self.response, end),
            checkpointing=self.checkpointing, gradient=self.gradient,
        )  # fmt: skip

    def memory(self, scale: config.Scale) -> int:
        """Peak bytes."""
        return costs.training_memory(
            self.student, self.teacher, item(scale), scale.lora, own_teacher=self.own_teacher,
            lengths=self.lengths("at_most"), rows=self.at_once,
            checkpointing=self.checkpointing, gradient=self.gradient,
        )  # fmt: skip

    def tokens(self, end: str) -> float:
        return self.rows * sum(self.lengths(end)[: 2 if self.teacher else 1])


def paged(scale: config.Scale) -> bool:
    """Does vLLM sample, in this process or behind a server (on the same GPU)?"""
    return scale.models.engine != "transformers"


def item(scale: config.Scale) -> int:
    return 4 if scale.models.dtype == "float32" else 2


# ------------------------------------------------------------------------------------- the models


class Model(NamedTuple):
    name: str
    shape: Shape
    bytes: int  # of its weight files
    here: bool


def model(run: config.Run, role: str) -> Model:
    """Shape from config.json (folder or cache), else from the table; SettingsError if unknown."""
    name, scale = run.model_path(role, run.settings.seeds[0]), run.settings
    folder = config.root() / name
    repo, _, commit = name.partition("@")
    found = folder / "config.json" if "@" not in name else hub.cached(repo, "config.json", commit)
    packaged = scale.models.packaged
    known, size = costs.SHAPES.get(packaged.package if packaged else repo, (None, 0))
    if found is not None and found.is_file():
        about = data.read_json(found)
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings")  # fmt: skip
        about.setdefault("head_dim", about["hidden_size"] // about["num_attention_heads"])
        known = Shape(*(about[key] for key in keys))
        size = size if size and "@" in name else costs.parameters(known) * item(scale)
        seeds = {run.model_path(role, seed) for seed in scale.seeds}
        folders = [found.parent] if "@" in name else [config.root() / one for one in seeds]
        return Model(name, known, size, all(map(whole, folders)))
    if scale.pretraining and known is None:
        from trdlib import tiny

        s = scale.pretraining.shape
        known = Shape(s["hidden_size"], s["num_hidden_layers"], s["num_attention_heads"],
                      s["num_key_value_heads"], s["hidden_size"] // s["num_attention_heads"],
                      s["intermediate_size"], len(tiny.build_tokenizer()), True)  # fmt: skip
        size = costs.parameters(known) * item(scale)
    if known is None:
        raise config.SettingsError(
            f"the shape of {name} is not known: fetch its config.json once (hf download {repo} "
            f"config.json --revision {commit})"
        )
    return Model(name, known, size, False)


def whole(folder: Path) -> bool:
    """Are all weight files of a model here?"""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    return all(
        (folder / file).is_file() for file in set(data.read_json(index)["weight_map"].values())
    )


def models(run: config.Run) -> dict[str, Model]:
    """The scale's models by role."""
    roles = ["student", *(["teacher"] if run.settings.models.teacher else [])]
    return {role: model(run, role) for role in roles}


# --------------------------------------------------------------------------------------- the work


def _mean(path: Path) -> float | None:
    table = pd.read_parquet(path, columns=["n_tokens"]) if path.is_file() else None
    return None if table is None else float(table["n_tokens"].mean())


def lengths(run: config.Run) -> dict[str, Length]:
    """Of x, y_star, y_o, y_r, y_t and an evaluation's response (eval)."""
    scale = run.settings
    most = {
        "x": scale.lengths.prompt,
        "y_star": scale.lengths.reference,
        "y_o": scale.rollout.max_new_tokens,
        "y_r": scale.refinement.max_new_tokens,
        "y_t": scale.refinement.max_new_tokens,
        "eval": scale.evaluation.sampling.max_new_tokens,
    }
    known = {**OURS, **PAPER} if isinstance(scale.data, config.HubData) else {}
    files = {"y_o": run.attempts}
    files |= {name: run.mode_folder / f"{name}.parquet" for name in ("y_r", "y_t")}
    known |= {name: mean for name, path in files.items() if (mean := _mean(path)) is not None}
    metrics = config.root() / "results" / "metrics" / run.scale / run.task / run.mode
    found = [data.read_json(path)["benchmarks"] for path in metrics.glob("*.json")]
    told = [one["mean_tokens"] for benchmarks in found for one in benchmarks.values()]
    if told:
        known["eval"] = statistics.mean(told)
    for name in ("y_t", "eval"):
        if "y_o" in known:
            known.setdefault(name, known["y_o"])
    return {name: Length(min(known.get(name, top), top), top) for name, top in most.items()}


def train_problems(run: config.Run) -> int:
    """As prepared; before that, as the settings say (a hub set may lose some to its checks)."""
    import pyarrow.parquet as pq

    path, section = run.data / "train.parquet", run.settings.data
    if path.is_file():
        return pq.read_metadata(path).num_rows
    if isinstance(section, config.HubData):
        return section.train_problems or section.train.problems - section.validation_problems
    return sum(one.problems for one in section.train)


def trained_rows(run: config.Run, attempts: int) -> int:
    """Rows of all base seeds that one learning rate of the method puts through the trainer."""
    training, seeds = run.settings.training, len(run.settings.seeds)
    if training.max_steps:
        return training.max_steps * training.batch_size * seeds
    path = run.mode_folder / "y_r.parquet"
    if run.recipe.subset != "all" and path.is_file():
        verdicts = pd.read_parquet(path, columns=["correct", "y_o_correct"])
        passed = verdicts["y_o_correct"]
        kept = {"passed": passed, "failed": ~passed,
                "failed_then_passed": ~passed & verdicts["correct"]}  # fmt: skip
        attempts = int(kept[run.recipe.subset].sum())
    return attempts * training.epochs


class Contexts(NamedTuple):
    """Lengths of the prompts: the student's, and the teacher's without and with an attempt."""

    x: Length
    vanilla: Length
    refine: Length


def contexts(run: config.Run, length: dict[str, Length]) -> Contexts:
    limits = [run.teacher_prompt_limit(with_attempt=flag) for flag in (False, True)]
    expected = length["x"].expected + (length["y_star"].expected if run.mode == "opsd" else 0)
    vanilla = Length(min(expected, limits[0]), limits[0])
    refine = Length(min(expected + length["y_o"].expected, limits[1]), limits[1])
    return Contexts(length["x"], vanilla, refine)


def held_out(section: config.AnyData) -> int:
    """Validation problems."""
    if isinstance(section, config.HubData):
        return section.validation_problems
    return sum(one.problems for one in section.validation)


def distilled(run: config.Run, student: Shape, teacher: Shape) -> list[Sampled | Trained]:
    """What one method asks for: training at each rate of its grid, and the choice between them."""
    scale, recipe, length = run.settings, run.recipe, lengths(run)
    grid, seeds = run.rates, len(scale.seeds)
    stage = f"{'distill' if recipe.subset == 'all' else 'ablate'} {run.mode}"
    sees, trajectory = contexts(run, length), recipe.trajectory.removesuffix("_cut")
    rows = train_problems(run) * seeds
    rows *= scale.rollout.samples if trajectory in ("y_o", "y_r") else 1
    todo: list[Sampled | Trained] = [
        Trained(
            f"{stage} {run.method}", student,
            teacher if recipe.divergence != "cross_entropy" else None, run.mode == "opsd",
            trained_rows(run, rows) * len(grid), sees.x,
            sees.refine if trajectory == "y_r" else sees.vanilla, length[trajectory],
            scale.training.micro_batch_size, scale.training.gradient_checkpointing,
        )
    ]  # fmt: skip
    if len(grid) > 1:
        sampling = scale.evaluation.validation
        rows = held_out(scale.data) * sampling.samples * seeds * len(grid)
        how = (sampling, rows, sees.x, length["eval"])
        todo.append(Sampled(f"{stage} {run.method}", student, *how))
    return todo


def diagnosed(run: config.Run, student: Shape, teacher: Shape) -> list[Trained]:
    """What the diagnosis of a mode reads: scores of y_o and y_r, and gradients on some of them."""
    scale, length, stage = run.settings, lengths(run), f"diagnose {run.mode}"
    seeds, train = len(scale.seeds) * scale.rollout.samples, train_problems(run)
    procedural = isinstance(scale.data, config.Data)
    tasks = len({one.task for one in scale.data.train}) if procedural else 1
    some = scale.diagnosis
    rows = min(train, some.problems) * seeds
    some = min(train, some.gradient_problems * tasks) * seeds
    sees, todo = contexts(run, length), []
    for name, context, sums in (("y_o", sees.vanilla, 3), ("y_r", sees.refine, 1)):
        both, read = (student, teacher, run.mode == "opsd"), (sees.x, context, length[name])
        micro = scale.training.micro_batch_size
        todo.append(Trained(stage, *both, rows, *read, micro, False, gradient=False))
        saving = scale.training.gradient_checkpointing
        todo.append(Trained(stage, *both, some * sums, *read, micro, saving))
    return todo


def work(run: config.Run, modes: Iterable[str]) -> list[Sampled | Trained]:
    """All that models do in `dvc repro` for this scale and these modes, stage by stage."""
    scale, settings = run.settings, run.all_settings
    shapes = {role: one.shape for role, one in models(run).items()}
    student, seeds = shapes["student"], len(scale.seeds)
    train, evaluation = train_problems(run), scale.evaluation.sampling
    attempts = train * seeds * scale.rollout.samples
    problems = sum(one.problems for one in scale.data.benchmarks.values())
    asked, length = problems * seeds * evaluation.samples, lengths(run)
    todo: list[Sampled | Trained] = [
        Sampled("rollout", student, scale.rollout, attempts, length["x"], length["y_o"])
    ]
    for name in config.REFERENCES:
        if who := shapes.get("teacher" if name == "teacher" else "student"):
            todo.append(Sampled("reference", who, evaluation, asked, length["x"], length["eval"]))
    for mode in modes:
        methods = run.matrix.methods_of(mode, run.task)
        cells = [config.Run(run.scale, run.task, mode, m, settings) for m in methods]
        length, teacher = lengths(cells[0]), student if mode == "opsd" else shapes["teacher"]
        sees, stage = contexts(cells[0], length), f"refine {mode}"
        how = (stage, teacher, scale.refinement)
        todo.append(Sampled(*how, attempts, sees.refine, length["y_r"]))
        todo.append(Sampled(*how, train * seeds, sees.vanilla, length["y_t"]))
        for cell in cells:
            todo += distilled(cell, student, teacher)
        how = (evaluation, asked * len(cells), sees.x, length["eval"])
        todo.append(Sampled(f"evaluate {mode}", student, *how))
        todo += diagnosed(cells[0], student, teacher)
    return todo
