"""Distillation: the training batch, the module whose forward is the loss, and one training run.

`Distiller(student, teacher)` is a plain module; the stock `transformers.Trainer` trains it. The
student sees [x, y], the teacher [its own context, y]; both sides' hidden states are taken at the
positions that predict y (paper section 1), and

    loss = sum over response tokens of the divergence / response tokens in the optimizer step,

which is the same whatever the micro-batch. Deviations from the authors' code, on purpose: the
sampled token ids are trained on (never decoded and re-encoded text), with the chat template around
them, and the end-of-turn token of a finished response is a target.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from trdlib import config, data, divergence, models, parallel, refine, rollout, tiny
from trdlib.divergence import token_cross_entropy, token_divergence


class Pair(NamedTuple):
    """One training row: what the student sees, what the teacher sees, what both predict."""

    student_ids: list[int]  # prompt
    teacher_ids: list[int]  # prompt; empty where the method has no teacher
    response_ids: list[int]


# ------------------------------------------------------------------------------ training batch


class TrainingSet(NamedTuple):
    """What a method trains on, and how good its trajectory is."""

    rows: dict[int, list[Pair]]  # of each base seed
    accuracy: float  # share of right responses
    like_reference: float  # share of responses that are the reference solution, word for word


def training_set(run: config.Run) -> TrainingSet:
    """The method's trajectory in its contexts, for every base seed.

    Raises ValueError if the subset leaves a seed nothing to train on.
    """
    recipe, problems = run.recipe, data.problems(run.data, "train")
    y_o = rollout.attempts(run) if recipe.trajectory in ("y_o", "y_r", "y_o_cut") else None
    table = {
        "y_o": lambda: y_o.assign(y_o_correct=y_o["correct"]),
        "y_o_cut": lambda: _cut_after_departure(run, y_o, problems),
        "y_r": lambda: refine.rewrites(run, y_o).assign(attempt=y_o["text"]),
        "y_t": lambda: refine.teacher_solutions(run),
        "y_star": lambda: _references(run, problems),
    }[recipe.trajectory]()
    if recipe.subset != "all":
        passed = table["y_o_correct"]
        kept = {
            "passed": passed,
            "failed": ~passed,
            "failed_then_passed": ~passed & table["correct"],
        }
        table = table[kept[recipe.subset]]
    rows = {}
    for seed in run.settings.seeds:
        mine = table[table["seed"] == seed]
        if mine.empty:
            raise ValueError(f"{run}: the subset {recipe.subset!r} is empty for seed {seed}")
        asked = refine.rows_of(problems, mine)
        student = [p.ids for p in rollout.student_prompts(run, seed, asked)]
        teacher = [[] for _ in asked]
        if recipe.divergence != "cross_entropy":
            attempts = mine["attempt"].tolist() if recipe.trajectory == "y_r" else None
            teacher = [p.ids for p in refine.teacher_prompts(run, seed, asked, attempts)]
        responses = [list(map(int, ids)) for ids in mine["token_ids"]]
        rows[seed] = [Pair(*row) for row in zip(student, teacher, responses, strict=True)]
    solutions = [row["solution"] for row in refine.rows_of(problems, table)]
    same = float((table["text"] == solutions).mean())
    return TrainingSet(rows, float(table["correct"].mean()), same)


def _cut_after_departure(
    run: config.Run, y_o: pd.DataFrame, problems: pd.DataFrame
) -> pd.DataFrame:
    """The attempts up to and with their first wrong token, which only a procedural task knows."""
    asked, cut = problems.set_index("id")["problem"], []
    for seed, mine in y_o.groupby("seed", sort=False):
        tokenizer = models.load_tokenizer(run.model_path("student", seed))
        for row in mine.itertuples():
            ids = list(row.token_ids)
            wrong = tiny.first_wrong_token(asked[row.id], tokenizer.convert_ids_to_tokens(ids))
            cut.append(ids if wrong is None else ids[: wrong + 1])
    return y_o.assign(token_ids=cut)


def _references(run: config.Run, problems: pd.DataFrame) -> pd.DataFrame:
    """The reference solutions as if they were responses: a cut one has no end token to learn."""
    limit, tables = run.settings.lengths.reference, []
    for seed in run.settings.seeds:
        tokenizer = models.load_tokenizer(run.model_path("student", seed))
        encoded = tokenizer(problems["solution"].tolist(), add_special_tokens=False)["input_ids"]
        whole = [[*ids, tokenizer.eos_token_id] for ids in encoded]
        tables.append(
            pd.DataFrame(
                {
                    "id": problems["id"],
                    "token_ids": [ids[:limit] for ids in whole],
                    "text": problems["solution"],
                    "correct": True,
                    "seed": seed,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def collate(batch: list[Pair], pad: int = 0) -> dict[str, torch.Tensor]:
    """-> input_ids, labels (B, T_S); with a teacher also teacher_ids, teacher_labels (B, T_T).

    Labels are the response tokens, -100 elsewhere. Padding is on the right, where causal attention
    makes a mask unnecessary.
    """

    def pack(prompts: list[list[int]]):
        width = max(len(p) + len(b.response_ids) for p, b in zip(prompts, batch, strict=True))
        ids = torch.full((len(batch), width), pad)
        labels = torch.full((len(batch), width), -100)
        for row, (prompt, pair) in enumerate(zip(prompts, batch, strict=True)):
            end = len(prompt) + len(pair.response_ids)
            ids[row, :end] = torch.tensor([*prompt, *pair.response_ids])
            labels[row, len(prompt) : end] = torch.tensor(pair.response_ids)
        return ids, labels

    ids, labels = pack([b.student_ids for b in batch])
    inputs = {"input_ids": ids, "labels": labels}
    if batch[0].teacher_ids:
        inputs["teacher_ids"], inputs["teacher_labels"] = pack([b.teacher_ids for b in batch])
    return inputs


# ---------------------------------------------------------------------------------- the module


class Distiller(torch.nn.Module):
    """forward(batch of `collate`) -> {"loss": ...}.

    student: a PEFT model. teacher: a frozen model, or None for the student's own step-0 weights
    (adapter off). vocabulary: number of real tokens (padded head rows beyond it are left out), or
    the ids of the tokens that the divergence is over.
    """

    accepts_loss_kwargs = True  # tells the Trainer to pass num_items_in_batch

    def __init__(
        self, student, teacher, recipe: config.Method, *, vocabulary, temperature: float = 1.0
    ):
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # in a tuple: not a submodule, so neither saved nor trained
        self.recipe, self.vocabulary, self.temperature = recipe, vocabulary, temperature

    @property
    def device(self) -> torch.device:
        return self.student.device

    def token_losses(self, input_ids, labels, teacher_ids=None, teacher_labels=None):
        """The method's loss at every response token of the batch, (N,), row by row."""
        targets = labels[:, 1:] != -100
        hidden = models.hidden_states(self.student, input_ids=input_ids)[:, :-1][targets]
        student_head = models.head(self.student, self.vocabulary)
        if self.recipe.divergence == "cross_entropy":
            return token_cross_entropy(hidden, student_head, labels[:, 1:][targets])
        teacher = self._teacher[0]
        own = models.step0(self.student) if teacher is None else contextlib.nullcontext(teacher)
        with torch.no_grad(), own as teacher:
            teacher_hidden = models.hidden_states(teacher, input_ids=teacher_ids)[:, :-1]
        losses = token_divergence(
            hidden,
            student_head,
            teacher_hidden[teacher_labels[:, 1:] != -100],
            models.head(teacher, self.vocabulary),
            kind=self.recipe.divergence,
            temperature=self.temperature,
            beta=self.recipe.beta,
            top_k=self.recipe.top_k,
        )
        return losses if self.recipe.clip is None else losses.clamp(max=self.recipe.clip)

    def forward(self, input_ids, labels, num_items_in_batch=None, **teacher_inputs):
        losses = self.token_losses(input_ids, labels, **teacher_inputs)
        count = len(losses) if num_items_in_batch is None else num_items_in_batch
        return {"loss": losses.sum() / count}

    # A checkpoint holds what is trained: the adapter.
    def state_dict(self, *args, **kwargs):
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in trained}

    def load_state_dict(self, state_dict, strict=True, assign=False):
        missing = self.state_dict().keys() - state_dict.keys()
        if missing:
            raise ValueError(f"the checkpoint lacks {len(missing)} adapter weights")
        unexpected = super().load_state_dict(state_dict, strict=False, assign=assign)[1]
        return torch.nn.modules.module._IncompatibleKeys([], unexpected)


def build(run: config.Run, seed: int) -> Distiller:
    """The run's distiller, as it is before the first step."""
    settings, recipe = run.settings, run.recipe
    checkpointing = settings.training.gradient_checkpointing
    student, tokenizer = models.load(run.model_path("student", seed), run)
    teacher = None
    if run.mode == "opd" and recipe.divergence != "cross_entropy":
        teacher, teachers = models.load(run.model_path("teacher", seed), run)
        models.check_same_vocabulary(tokenizer, teachers)
    student = models.add_lora(
        student,
        settings.lora,
        backend=settings.models.backend,
        seed=seed,
        checkpointing=checkpointing,
    )
    vocabulary = len(tokenizer)
    if recipe.skip_onsets:
        onsets = models.onset_ids(tokenizer, settings.onsets)
        kept = [i for i in range(len(tokenizer)) if i not in onsets]
        vocabulary = torch.tensor(kept, device=student.device)
    return Distiller(
        student, teacher, recipe, vocabulary=vocabulary, temperature=settings.training.temperature
    )


@torch.no_grad()
def token_losses(distiller: Distiller, rows: list[Pair], batch_size: int = 1) -> list[torch.Tensor]:
    """The loss at every response token of every row, for looking at: one (n_tokens,) per row."""
    distiller.eval()
    result = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = {name: tensor.to(distiller.device) for name, tensor in collate(batch).items()}
        flat = distiller.token_losses(**inputs).cpu()
        result += list(flat.split([len(pair.response_ids) for pair in batch]))
    return result


# ------------------------------------------------------------------------------------ training


def train(
    distiller: Distiller,
    rows: list[Pair],
    settings: config.Training,
    *,
    learning_rate: float,
    seed: int,
    checkpoints: Path,
    trackers: tuple = (),
) -> list[dict]:
    """Train with the stock Trainer; go on from the last whole checkpoint. Returns the loss log.

    trackers: callbacks of the Trainer that watch (see `tracking`).
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Progress(TrainerCallback):
        """A bar on stderr, and a mark on each checkpoint that was written to its end."""

        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = parallel.progress(
                "training", total=state.max_steps, initial=state.global_step
            )

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update()

        def on_save(self, args, state, control, **kwargs):
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "whole").touch()

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=learning_rate,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_lr_ratio},
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        logging_steps=1,
        save_steps=settings.save_steps,
        save_total_limit=2,
        seed=seed,
        use_cpu=distiller.device.type == "cpu",
        dataloader_pin_memory=distiller.device.type != "cpu",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=distiller,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Progress(), *trackers],
    )
    trainer.remove_callback(PrinterCallback)
    whole = sorted(
        (p.parent for p in checkpoints.glob("checkpoint-*/whole")),
        key=lambda p: int(p.name.rsplit("-", 1)[1]),
    )
    with parallel.model_compute():
        trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    wanted = ("step", "loss", "grad_norm", "learning_rate")
    return [
        {key: entry[key] for key in wanted}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def tracking(run: config.Run, seed: int, learning_rate: float) -> tuple:
    """The Trainer's own callback for the run's tracker, its files beside the adapter.

    It watches and changes nothing, so it is no part of a fingerprint. DVCLive writes files only: no
    experiment, no report, nothing in git. W&B takes its key, mode and project from
    its environment. Raises RuntimeError if the tracker's package is missing.
    """
    folder = run.folder(seed) / run.settings.tracker / str(learning_rate)
    if run.settings.tracker == "none":
        return ()
    from transformers import integrations

    if run.settings.tracker == "dvclive":
        import dvclive

        class Files(dvclive.Live):
            def post_data_to_studio(self):  # at each step it would read its params.yaml again
                pass

        silent = {"save_dvc_exp": False, "report": None, "monitor_system": False}
        live = Files(str(folder), dvcyaml=None, **silent)
        return (integrations.DVCLiveCallback(live),)
    if run.settings.tracker == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RuntimeError("tracker tensorboard: pip install tensorboard") from None
        return (integrations.TensorBoardCallback(SummaryWriter(str(folder))),)
    try:
        import wandb
    except ImportError:
        raise RuntimeError("tracker wandb: pip install wandb") from None
    where = config.root() / "runs" / "wandb"
    where.mkdir(parents=True, exist_ok=True)
    wandb.finish()  # of the training before, in the same process
    name = f"{run} seed {seed} rate {learning_rate:g}"
    wandb.init(project=os.environ.get("WANDB_PROJECT", "trd"), name=name, dir=str(where))
    return (integrations.WandbCallback(),)


def fingerprint(run: config.Run, seed: int, rows: list[Pair]) -> str:
    """Hash of all that shapes a training run, but for the learning rate."""
    training = run.settings.training.model_dump(
        mode="json", exclude={"learning_rates", "subset_learning_rates", "save_steps"}
    )
    weights = [
        models.identity(rollout.model_name(run, role, seed)) for role in ("student", "teacher")
    ]
    code = config.code_hash(divergence, models, sys.modules[__name__])
    loaded = run.settings.models.model_dump(exclude={"engine", "gpu_share", "server"})
    how = (run.mode, run.recipe, training, run.settings.lora, loaded, code, seed)
    return config.content_hash(weights, rows, *how)


def train_adapter(
    run: config.Run, seed: int, learning_rate: float, rows: list[Pair], folder: Path
) -> None:
    """Train one adapter into `folder` (weights, training_log.json, run.json), if it is not there.

    Whole or absent: it is written beside its place and renamed.
    """
    stamp = config.content_hash(fingerprint(run, seed, rows), learning_rate)
    if is_adapter(folder, stamp):
        return
    distiller = build(run, seed)
    checkpoints = folder.with_name(f"{folder.name}.checkpoints")
    with parallel.metered() as cost:
        log = train(
            distiller,
            rows,
            run.settings.training,
            learning_rate=learning_rate,
            seed=seed,
            checkpoints=checkpoints / stamp,
            trackers=tracking(run, seed, learning_rate),
        )
    about = {
        "run": str(run),
        "seed": seed,
        "learning_rate": learning_rate,
        "rows": len(rows),
        "response_tokens": sum(len(pair.response_ids) for pair in rows),
        "fingerprint": stamp,
    }

    def write(temporary: Path) -> None:
        student = distiller.student
        base, _, commit = run.model_path("student", seed).partition("@")
        student.peft_config["default"].base_model_name_or_path = base
        student.peft_config["default"].revision = commit or None
        student.save_pretrained(temporary)
        data.write_json(temporary / "training_log.json", log)
        data.write_json(temporary / "run.json", about)

    cost |= {
        "student_tokens": sum(len(p.student_ids) + len(p.response_ids) for p in rows),
        "teacher_tokens": sum(
            len(p.teacher_ids) + len(p.response_ids) for p in rows if p.teacher_ids
        ),
    }
    data.write_json(cost_file(run, seed, learning_rate), about | cost)
    data.write_folder(folder, write)
    shutil.rmtree(checkpoints, ignore_errors=True)


def cost_file(run: config.Run, seed: int, learning_rate: float) -> Path:
    """Where the cost of a training run is noted: beside the adapter, since it differs."""
    return run.folder(seed) / "cost" / f"{learning_rate}.json"


def is_adapter(folder: Path, stamp: str) -> bool:
    """Is there a finished adapter with this fingerprint?"""
    path = folder / "run.json"
    return path.is_file() and data.read_json(path)["fingerprint"] == stamp


class _Candidate(NamedTuple):
    """One training run of the grid."""

    run: config.Run
    seed: int
    rate: float
    rows: list[Pair]

    @property
    def folder(self) -> Path:
        return self.run.folder(self.seed) / "candidates" / str(self.rate)


def _try(candidate: _Candidate, sampling: config.Sampling | None) -> float | None:
    """Train the candidate; its mean accuracy on the validation set, if that is to be sampled."""
    run, seed, rate, rows = candidate
    train_adapter(run, seed, rate, rows, candidate.folder)
    if sampling is None:
        return None
    problems = data.problems(run.data, "validation").to_dict("records")
    prompts = rollout.student_prompts(run, seed, problems)
    request = rollout.Request("student", seed, problems, prompts, candidate.folder)
    path = candidate.folder.with_name(f"{rate}.validation.parquet")
    return float(rollout.generate_table(run, path, request, sampling)["correct"].mean())


def best_rate(scores: dict[float, list[float]]) -> float:
    """The learning rate with the best mean over seeds; of equals the smallest."""
    return min(scores, key=lambda rate: (-sum(scores[rate]) / len(scores[rate]), rate))


def distill(
    run: config.Run, learning_rate: float | None = None, training: TrainingSet | None = None
) -> dict:
    """Train the run's method for every base seed; one adapter each, in its place.

    The learning rate is the one of the shared grid (training.learning_rates; subsets may have one
    of their own) that does best on the validation set, averaged over seeds, unless one is given.
    Finished work is not done again.
    Returns what is in the file `run.choice`: the grid, the accuracies by seed, the choice, and
    the hashes of the adapters.
    """
    with data.locked(run.choice):
        return _distill(run, learning_rate, training or training_set(run))


def _distill(run: config.Run, learning_rate: float | None, training: TrainingSet) -> dict:
    stamps = {s: fingerprint(run, s, training.rows[s]) for s in run.settings.seeds}
    choice = _choose(run, learning_rate, training, stamps)
    _install(run, choice["chosen"], training, stamps)
    choice["adapters"] = {str(s): config.weights_hash(run.adapter(s)) for s in stamps}
    data.write_json(run.choice, choice)  # last: it says that the adapters are in their places
    for seed in stamps:
        shutil.rmtree(run.folder(seed) / "candidates", ignore_errors=True)
    return choice


def _choose(
    run: config.Run, learning_rate: float | None, training: TrainingSet, stamps: dict[int, str]
) -> dict:
    """The choice on file if it is of this training set and grid, else by training the grid."""
    rates = run.rates if learning_rate is None else (learning_rate,)
    validate = len(rates) > 1
    problems = data.problems(run.data, "validation")["problem"].tolist() if validate else None
    sampling = run.settings.evaluation.validation
    stamp = config.content_hash(list(stamps.values()), rates, problems, validate and sampling)
    choice = data.read_json(run.choice) if run.choice.is_file() else {}
    if choice.get("fingerprint") == stamp:
        return choice
    candidates = [_Candidate(run, s, rate, training.rows[s]) for rate in rates for s in stamps]
    found = _run(run, candidates, sampling if validate else None)
    scores = {rate: found[i * len(stamps) :][: len(stamps)] for i, rate in enumerate(rates)}
    return {
        "grid": list(rates),
        "validation_by_seed": {str(rate): s for rate, s in scores.items()} if validate else {},
        "chosen": best_rate(scores) if validate else rates[0],
        "trajectory_accuracy": training.accuracy,
        "trajectory_like_reference": training.like_reference,
        "rows_by_seed": [len(training.rows[seed]) for seed in stamps],
        "fingerprint": stamp,
    }


def _install(run: config.Run, rate: float, training: TrainingSet, stamps: dict[int, str]) -> None:
    """Put the adapters of the chosen rate in their places, trained again where they are lost."""
    missing = [
        _Candidate(run, seed, rate, training.rows[seed])
        for seed, stamp in stamps.items()
        if not is_adapter(run.adapter(seed), config.content_hash(stamp, rate))
    ]
    lost = [
        c for c in missing if not is_adapter(c.folder, config.content_hash(stamps[c.seed], rate))
    ]
    _run(run, lost, None)
    for candidate in missing:
        data.write_folder(
            run.adapter(candidate.seed),
            lambda p, f=candidate.folder: shutil.copytree(f, p, dirs_exist_ok=True),
        )


def _run(
    run: config.Run, candidates: list[_Candidate], sampling: config.Sampling | None
) -> list[float | None]:
    if candidates:
        models.preload(run, training=True)
    jobs = [(candidate, sampling) for candidate in candidates]
    return parallel.run_jobs(_try, jobs, workers=run.settings.workers, label=str(run))
