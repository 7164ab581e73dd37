"""Distillation: the training batch, the module whose forward is the loss, training, the choice.

The student sees [x, y], the teacher [its own context, y]; both sides' hidden states are taken at
the positions that predict y (paper section 1), and, whatever the micro-batch,

    loss = sum over response tokens of the divergence / response tokens in the optimizer step.

Deviations from the authors' code, on purpose: (1) the sampled token ids are trained on, never
re-encoded text, in the chat template, and the end of turn of a finished response is a target; (2)
all methods choose their learning rate from one grid, on one validation set; (3) rounds
(Method.rounds) are online distillation at the cost of one epoch: each takes its part of it.
"""

import contextlib
import functools
import math
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from trdlib import divergence, engines, jobs, models, prompts, store
from trdlib.divergence import token_cross_entropy, token_divergence
from trdlib.refine import Pair, TrainingSet, next_round, training_sets
from trdlib.rollout import ask, pool, table
from trdlib.run import Run
from trdlib.settings import Method, Training


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


class Distiller(torch.nn.Module):
    """forward(batch of `collate`) -> {"loss": ...}.

    student: a PEFT model. teacher: a frozen model, or None for the student's own step-0 weights
    (adapter off). vocabulary: number of real tokens (padded head rows beyond it are left out), or
    the ids of the tokens that the divergence is over.
    """

    accepts_loss_kwargs = True  # tells the Trainer to pass num_items_in_batch

    def __init__(self, student, teacher, recipe: Method, *, vocabulary, temperature: float = 1.0):
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
        teacher_hidden = teacher_hidden[teacher_labels[:, 1:] != -100]
        teacher_head = models.head(teacher, self.vocabulary)
        how = self.recipe.model_dump(include={"beta", "top_k", "tail"})
        how |= {"kind": self.recipe.divergence, "temperature": self.temperature}
        losses = token_divergence(hidden, student_head, teacher_hidden, teacher_head, **how)
        if self.recipe.prune_below:
            surprise = token_cross_entropy(teacher_hidden, teacher_head, labels[:, 1:][targets])
            given_up = surprise > -math.log(self.recipe.prune_below)
            rows = given_up.split(targets.sum(1).tolist())
            losses = losses * torch.cat([row.cumsum(0) == 0 for row in rows])
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
        if missing := self.state_dict().keys() - state_dict.keys():
            raise ValueError(f"the checkpoint lacks {len(missing)} adapter weights")
        return super().load_state_dict(super().state_dict() | state_dict, strict, assign)


def build(run: Run, seed: int, adapter: Path | None = None) -> Distiller:
    """The run's distiller before its first step: a fresh adapter, or that of the round before."""
    settings, recipe = run.settings, run.recipe
    how = settings.models, run.context_length
    student, tokenizer = models.load(run.model_path("student", seed), *how)
    teacher = None
    if run.mode == "opd" and recipe.divergence != "cross_entropy":
        teacher, teachers = models.load(run.model_path("teacher", seed), *how)
        models.check_same_vocabulary(tokenizer, teachers)
    lora = {"backend": settings.models.backend, "seed": _stream(recipe, seed)}
    lora["checkpointing"] = settings.training.gradient_checkpointing
    student = models.add_lora(student, settings.lora, **lora)
    if adapter:
        import peft

        peft.set_peft_model_state_dict(student, peft.load_peft_weights(str(adapter), "cpu"))
    vocabulary = len(tokenizer)
    if recipe.skip_onsets:
        onsets = models.onset_ids(tokenizer, settings.onsets)
        kept = [i for i in range(len(tokenizer)) if i not in onsets]
        vocabulary = torch.tensor(kept, device=student.device)
    temperature = settings.training.temperature
    return Distiller(student, teacher, recipe, vocabulary=vocabulary, temperature=temperature)


def _stream(recipe: Method, seed: int, number: int = 0) -> int:
    """The seed of LoRA's initialisation and of the rows' order, in a round of a method's twin."""
    return seed + 1000 * recipe.again + 100 * number


def train(
    distiller: Distiller, rows: list[Pair], settings: Training, *, learning_rate: float, seed: int,
    checkpoints: Path, tracker: str = "none", name: str = "", callbacks: tuple = (),
) -> list[dict]:  # fmt: skip
    """Train with the stock Trainer; go on from the last whole checkpoint. Returns the loss log.

    tracker: the Trainer's `report_to`, which watches under this name and changes nothing.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Progress(TrainerCallback):
        """A bar on stderr, and a mark on each checkpoint that was written to its end."""

        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = jobs.progress("training", total=state.max_steps, initial=state.global_step)

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update()

        def on_save(self, args, state, control, **kwargs):
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "whole").touch()

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    arguments = TrainingArguments(
        output_dir=str(checkpoints), per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        num_train_epochs=settings.epochs, max_steps=settings.max_steps or -1,
        learning_rate=learning_rate, adam_beta1=settings.betas[0], adam_beta2=settings.betas[1],
        weight_decay=settings.weight_decay, warmup_steps=settings.warmup,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_lr_ratio},
        max_grad_norm=settings.max_grad_norm, bf16=settings.bf16, logging_steps=1,
        save_steps=settings.save_steps, save_total_limit=2, seed=seed,
        use_cpu=distiller.device.type == "cpu",
        dataloader_pin_memory=distiller.device.type != "cpu", remove_unused_columns=False,
        report_to=tracker, run_name=name, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=distiller, args=arguments, train_dataset=rows, data_collator=collate,
        callbacks=[Progress(), *callbacks],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    whole = [path.parent for path in checkpoints.glob("checkpoint-*/whole")]
    last = max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
    with jobs.model_compute(), store.enough_disk(checkpoints):
        trainer.train(resume_from_checkpoint=last and str(last))
    wanted, log = ("step", "loss", "grad_norm", "learning_rate"), trainer.state.log_history
    return [{key: entry[key] for key in wanted} for entry in log if "loss" in entry]


def _shapes(run: Run) -> tuple:
    """What shapes a training run besides weights, rows, seed and learning rate."""
    settings, recipe = run.settings, run.recipe
    others = {"learning_rates", "variant_learning_rates", "choice_seeds", "save_steps"}
    others |= {"as_authors"} if not settings.training.as_authors else set()  # it came later
    training = settings.training.model_dump(mode="json", exclude=others)
    used = *divergence.code(recipe.divergence), *models.CODE
    code = store.code_hash(*used, collate, Distiller, build, train)
    loaded = settings.models.model_dump(exclude={"engine", "gpu_share", "gpus", "server", "date"})
    return run.mode, recipe, training, settings.lora, loaded, code


def _sampled(run: Run) -> tuple:
    """What shapes attempts and rewrites besides weights and prompts."""
    return engines.identity(run.settings.models), run.settings.rollout, run.settings.refinement


def fingerprint(run: Run, seed: int, rows: list[Pair]) -> str:
    """Hash of all that shapes a training run, but for the learning rate."""
    weights = [models.identity(run.model_name(role, seed)) for role in ("student", "teacher")]
    later = _sampled(run) if run.recipe.rounds > 1 else ()
    return store.content_hash(weights, rows, *_shapes(run), seed, *later)


class Candidate(NamedTuple):
    """One training run of the grid."""

    run: Run
    seed: int
    rate: float
    rows: list[Pair]
    stamp: str  # of the adapter

    @property
    def folder(self) -> Path:
        return self.run.folder(self.seed) / "candidates" / str(self.rate)


def _candidate(run: Run, seed: int, rate: float, rows: list[Pair]) -> Candidate:
    return Candidate(run, seed, rate, rows, store.content_hash(fingerprint(run, seed, rows), rate))


def _is_in(folder: Path, stamp: str) -> bool:
    """Is this finished adapter in the folder, its weights undamaged?"""
    about = store.read_json(folder / "run.json", {})
    return about.get("fingerprint") == stamp and store.check_weights(folder, about.get("weights"))


def train_adapter(candidate: Candidate, task, problems: pd.DataFrame) -> None:
    """Train an adapter into the candidate's folder if it is not there.

    problems: the train set, of which a later round (Method.rounds) samples its part anew. Each
    round is a training of its own, with its own warm-up, that starts with the adapter before.
    """
    run, seed, rate, rows, stamp = candidate
    if _is_in(candidate.folder, stamp):
        return
    rounds, adapter = run.recipe.rounds, None
    for number in range(rounds):
        place = run.folder(seed) / "rounds" / str(rate) / str(number + 1)
        folder = candidate.folder if number == rounds - 1 else place / "adapter"
        part = rows
        if number:
            asked = problems.iloc[number::rounds]
            part = next_round(run, task, seed, asked, adapter, number, place)
        elif rounds > 1:  # attempts of the step-0 student: those that all methods share
            of_one = len(rows) // len(problems)
            part = [pair for i, pair in enumerate(rows) if (i // of_one) % rounds == 0]
        _train_round(candidate._replace(rows=part), number, folder, adapter)
        adapter = folder


def _train_round(candidate: Candidate, number: int, folder: Path, before: Path | None) -> None:
    """Train one round into the folder, on the candidate's rows, from the adapter before."""
    run, seed, rate, rows, stamp = candidate
    if _is_in(folder, stamp):
        return
    engines.close()
    distiller, tracker = build(run, seed, before), run.settings.tracker
    # else the Trainer takes the mean of what its forward passes return
    distiller.accepts_loss_kwargs = "micro_step_means" not in run.settings.training.as_authors
    checkpoints = candidate.folder.with_name(f"{rate}.checkpoints")
    if tracker == "tensorboard":  # else its files would go with the checkpoints
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.folder(seed) / tracker / str(rate))
    log = train(
        distiller, rows, run.settings.training, learning_rate=rate,
        seed=_stream(run.recipe, seed, number), checkpoints=checkpoints / f"{stamp}.{number}",
        tracker=tracker, name=f"{run} seed {seed} rate {rate:g}",
    )  # fmt: skip
    about = {"run": str(run), "seed": seed, "learning_rate": rate, "fingerprint": stamp}
    about |= {"rows": len(rows), "response_tokens": sum(len(pair.response_ids) for pair in rows)}
    for who in ("student", "teacher"):  # through the models, prompts included
        seen = [(getattr(pair, f"{who}_ids"), pair.response_ids) for pair in rows]
        about[f"{who}_tokens"] = sum(len(x) + len(y) for x, y in seen if x)
    base, _, commit = run.model_path("student", seed).partition("@")
    lora = distiller.student.peft_config["default"]
    lora.base_model_name_or_path, lora.revision = base, commit or None
    lora.target_modules = sorted(lora.target_modules)  # a set has its order by chance

    def write(temporary: Path) -> None:
        distiller.student.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # a blank card with this machine's paths
        store.write_json(temporary / "training_log.json", log)
        about["weights"] = store.weights_hash(temporary)
        store.write_json(temporary / "run.json", about)

    store.write_folder(folder, write)
    shutil.rmtree(checkpoints, ignore_errors=True)


class Trained(NamedTuple):
    choice: dict  # as in the file `run.choice`: grid, accuracies by seed, choice
    adapters: dict[int, Path]  # of each base seed


def best_rate(scores: dict[float, list[float]]) -> float:
    """The learning rate with the best mean over seeds; of equals the smallest."""
    return min(scores, key=lambda rate: (-sum(scores[rate]) / len(scores[rate]), rate))


def distill(
    runs: list[Run], task, sets: dict, tables: dict, training: list[TrainingSet] | None = None
) -> list[Trained]:
    """Train the runs (of one scale) for every base seed; one adapter each, in its place.

    tables: as in `training_sets`, whose result may be given as `training`. The learning rate is the
    one of `Run.rates` that does best on the validation set, averaged over the first
    training.choice_seeds base seeds. Finished work is not done again.
    """
    training = training or training_sets(runs, sets["train"], tables)
    seeds = runs[0].settings.seeds
    with contextlib.ExitStack() as locks:
        for path in sorted({run.choice for run in runs}):
            locks.enter_context(store.locked(path))
        choices = _choose(runs, task, sets, training)
        found = list(zip(runs, choices, training, strict=True))
        wanted = [_candidate(r, s, c["chosen"], of.rows[s]) for r, c, of in found for s in seeds]
        missing = [c for c in wanted if not _is_in(c.run.adapter(c.seed), c.stamp)]
        todo = [(c, task, sets["train"]) for c in missing]
        pool(runs[0], train_adapter, todo, "distill", training=True)
        for c in missing:
            copy = functools.partial(shutil.copytree, c.folder, dirs_exist_ok=True)
            store.write_folder(c.run.adapter(c.seed), copy)
        for run, choice, _ in found:
            store.write_json(run.choice, choice)  # last: it says that the adapters are there
            for seed in seeds:
                shutil.rmtree(run.folder(seed) / "candidates", ignore_errors=True)
    return [Trained(c, {seed: r.adapter(seed) for seed in seeds}) for r, c, _ in found]


def _choice_stamp(run: Run, seeds: tuple[int, ...], sets: dict[str, pd.DataFrame]) -> str:
    """Hash of all that shapes the choice of a rate and is the same on every machine: what was
    sampled is not, in its last bits, and a choice that is in git stands on another CPU too."""
    roles, settings = ("student", "teacher"), run.settings
    weights = [models.identity(run.model_name(role, s)) for s in seeds for role in roles]
    asked = [sets[name].to_json(orient="values") for name in ("train", "validation")]
    wording = [prompts.TEMPLATES[settings.models.style], settings.lengths]
    how = (run.rates, settings.evaluation.validation, *_sampled(run), *_shapes(run))
    return store.content_hash(seeds, weights, asked, wording, *how)


def _choose(runs: list[Run], task, sets: dict, training: list[TrainingSet]) -> list[dict]:
    """For each run the choice on file if it was made from the same settings, else a new one."""
    choices, todo = [], []
    for run, found in zip(runs, training, strict=True):
        rates, seeds = list(run.rates), run.settings.seeds[: run.settings.training.choice_seeds]
        stamp, choice = _choice_stamp(run, seeds, sets), store.read_json(run.choice, {})
        if choice.get("fingerprint") != stamp:
            if choice:
                store.is_stale(run.choice)
            choice = {"grid": rates, "chosen": rates[0], "fingerprint": stamp}
            choice["validation_by_seed"] = scores = {}
            grid = [(rate, seed) for rate in rates for seed in seeds if len(rates) > 1]
            todo += [(scores, _candidate(run, s, r, found.rows[s]), task, sets) for r, s in grid]
        counts = [len(rows) for rows in found.rows.values()]
        choice |= {"trajectory_accuracy": found.accuracy, "rows_by_seed": counts}
        choices.append(choice | {"trajectory_like_reference": found.like_reference})
    tried = pool(runs[0], _try, [job[1:] for job in todo], "distill", training=True)
    for (scores, candidate, *_), score in zip(todo, tried, strict=True):
        scores.setdefault(str(candidate.rate), []).append(score)
    for choice in choices:
        if scores := choice["validation_by_seed"]:
            choice["chosen"] = best_rate({float(rate): mine for rate, mine in scores.items()})
    return choices


def _try(candidate: Candidate, task, sets: dict) -> float:
    """Train the candidate; its mean accuracy on the validation set."""
    train_adapter(candidate, task, sets["train"])
    path = candidate.folder.with_name(f"{candidate.rate}.validation.parquet")
    run, seed, problems = candidate.run, candidate.seed, sets["validation"]
    asked = ask(run, seed, problems, adapter=candidate.folder)
    found = table(run, task, path, asked, run.settings.evaluation.validation)
    return float(found["correct"].mean())
