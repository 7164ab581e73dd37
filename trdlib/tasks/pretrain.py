"""Pretraining of the tiny models: student and teacher of a base seed, from one foundation.

The paper has no such scale; the recipe is ours, measured in prototypes. A language is a module
(modular, tinycode) with build_tokenizer and is_right; its KINDS are modules that write: they have
random_problem(rng, steps, **VARIED), clean(problem), attempt(rng, problem) and response(rng,
problem, kind of example, attempt), and say how often what is shown (chain.py).
"""

import functools
import random
from pathlib import Path
from types import ModuleType

from pydantic import PositiveFloat, PositiveInt

from trdlib import prompts, store
from trdlib.settings import Section, root
from trdlib.tasks.language import draw, text_of

MAX_ROUNDS = 4  # of a stage, before it counts as not converging


class Stage(Section):
    """One round of steps with linear decay; rounds are repeated until the thresholds hold."""

    steps: PositiveInt
    muon_lr: PositiveFloat
    adamw_lr: PositiveFloat


class Pretraining(Section):
    shape: dict[str, PositiveInt]
    tokens_per_step: PositiveInt
    foundation: Stage
    student: Stage
    teacher: Stage
    # stage -> kind of problem/kind of example -> [lowest, highest accuracy]
    thresholds: dict[str, dict[str, tuple[float, float]]] = {}  # noqa: RUF012 - frozen


Example = tuple[list[int], list[bool]]  # token ids; per token: is it a target of the loss?


def _context(rng: random.Random, tokenizer, kind: str, problem: str, writer: ModuleType):
    """-> the prompt of an example, and the student's attempt in it if its kind has one."""
    refine, given = "refine" in kind, "reference" in kind
    asked = ("refine" if refine else "solve") + ("_given_reference" if given else "")
    attempt = writer.attempt(rng, problem) if refine else None
    reference = text_of(writer.clean(problem)) if given else None
    shown = {"problem": problem, "reference": reference, "attempt": attempt}
    return prompts.context(asked, tokenizer, style="tiny", **shown).ids, attempt


def example(rng, tokenizer, mixture: dict[str, float], problem: str, writer) -> Example:
    """An example of a kind drawn from the mixture, prompt included. writer: of KINDS."""
    kind = rng.choices(list(mixture), list(mixture.values()))[0]
    ids, attempt = _context(rng, tokenizer, kind, problem, writer)
    learn = [False] * len(ids)
    pieces = writer.response(rng, problem, kind, attempt)
    encoded = tokenizer([p.text for p in pieces], add_special_tokens=False)["input_ids"]
    for piece, tokens in zip(pieces, encoded, strict=True):
        ids += tokens
        learn += [piece.learn] * len(tokens)
    return [*ids, tokenizer.eos_token_id], [*learn, True]


def stage_batch(
    rng: random.Random, tokenizer, language: ModuleType, stage: str, progress: float, tokens: int
) -> list[Example]:
    """The examples of one step, `progress` (0 to 1) into the stage, each kind its share of tokens.

    The foundation starts on short problems, then all lengths, without references or attempts.
    """
    examples = []
    for writer in language.KINDS.values():
        lengths, mixture, count = writer.LENGTHS, writer.MIXTURES[stage], 0
        if stage == "foundation" and progress < 0.4:
            lengths = writer.EASY_LENGTHS if progress < 0.18 else range(1, max(lengths) + 1)
            mixture = {writer.EARLY: 1.0}
        while count < tokens / len(language.KINDS):
            how = {name: rng.choice(values) for name, values in writer.VARIED.items()}
            problem = draw(rng, writer, rng.choice(lengths), "pretrain", **how)
            examples.append(example(rng, tokenizer, mixture, problem, writer))
            count += len(examples[-1][0])
    return examples


def build_model(tokenizer, shape: dict[str, int], seed: int):
    """A Qwen3 model with random weights. shape: sizes by their Qwen3Config names."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.12,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    return Qwen3ForCausalLM(config)


def train_stage(
    model, tokenizer, language: ModuleType, settings: Pretraining, stage: str, seed: int
) -> list[float]:
    """One round of a stage: Muon on the matrices, AdamW on the rest, linear decay to 5 %.

    Muon learns the facts several times faster than AdamW alone, and many small batches beat few
    large ones (measured). Returns the loss of each step.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    schedule: Stage = getattr(settings, stage)
    rng = random.Random(f"{stage}/{seed}")
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = {"momentum": 0.95, "weight_decay": 0.0, "adjust_lr_fn": "original"}
    optimizers = [
        torch.optim.Muon(matrices, lr=schedule.muon_lr, **muon),
        torch.optim.AdamW(others, lr=schedule.adamw_lr, weight_decay=0.0, betas=(0.9, 0.95)),
    ]

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 20) * (1 - 0.95 * step / schedule.steps)

    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
    losses = []
    model.train()
    for step in range(schedule.steps):
        how = (stage, step / schedule.steps, settings.tokens_per_step)
        made = [[*map(torch.tensor, e)] for e in stage_batch(rng, tokenizer, language, *how)]
        ids = pad_sequence([e[0] for e in made], True, tokenizer.pad_token_id)
        labels = pad_sequence([ids.where(learn, -100) for ids, learn in made], True, -100)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        losses.append(loss.item())
    return losses


def accuracy(model, tokenizer, language: ModuleType, name: str, decode, batches) -> float:
    """How often the model answers 256 prompts, at the temperature of the rollouts (0.6).

    name: kind of problem/kind of example. Problems of 4 or 5 steps, from the validation split: seen
    in no stage of pretraining.
    """
    rng, (kind, example) = random.Random(f"accuracy/{name}"), name.split("/")
    writer = language.KINDS[kind]
    asked = [draw(rng, writer, rng.choice([4, 5]), "validation") for _ in range(256)]
    contexts = [_context(rng, tokenizer, example, problem, writer)[0] for problem in asked]
    how = {"max_new_tokens": 100, "stop_ids": [tokenizer.eos_token_id], "temperature": 0.6}
    right = 0
    for indices in batches(contexts, 256):
        done = decode(model, [contexts[i] for i in indices], **how)
        for i, (token_ids, _) in zip(indices, done, strict=True):
            text = tokenizer.decode(token_ids, skip_special_tokens=True)
            right += language.is_right(asked[i], text)
    return right / len(asked)


@functools.cache
def _examples(stage: str, language: ModuleType) -> list[list[Example]]:
    """Examples of a stage as the code now makes them: early in it, on its way, and at its end."""
    rng, tokenizer = random.Random(stage), language.build_tokenizer()
    return [stage_batch(rng, tokenizer, language, stage, at, 5000) for at in (0.0, 0.3, 1.0)]


def recipe_hash(settings: Pretraining, language: ModuleType, stage: str, seed: int) -> str:
    """Hash of a model's settings, and of examples as the code now makes them.

    A change to the tasks, the mixtures, the prompts or the tokenizer changes the examples. (A
    change to the optimizer does not: delete the models to pretrain again.)
    """
    stages = [
        [getattr(settings, one), settings.thresholds.get(one), _examples(one, language)]
        for one in dict.fromkeys(["foundation", stage])
    ]
    return store.content_hash(settings.shape, settings.tokens_per_step, stages, seed)


def is_pretrained(task, stage: str, seed: int, folder: Path) -> bool:
    """Is there a model of the task's recipe?"""
    log = folder / "pretraining.json"
    recipe = recipe_hash(task.pretraining, task.module, stage, seed)
    return log.is_file() and store.read_json(log)["fingerprint"] == recipe


def _make(task, stage: str, seed: int, start: Path | None, folder: Path, decode, batches) -> None:
    """One model: rounds of its stage until the thresholds hold, or RuntimeError.

    start: where its foundation is; None: it is one, with random weights.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if is_pretrained(task, stage, seed, folder):
        return
    settings, language = task.pretraining, task.module
    logging.disable_progress_bar()
    torch.set_num_threads(task.run.settings.models.threads or torch.get_num_threads())
    tokenizer, losses = language.build_tokenizer(), []
    if start is None:
        model = build_model(tokenizer, settings.shape, seed)
    else:
        model = AutoModelForCausalLM.from_pretrained(start)
    for rounds in range(1, MAX_ROUNDS + 1):
        at = seed * MAX_ROUNDS + rounds - 1
        losses += train_stage(model, tokenizer, language, settings, stage, at)
        found, missed = {}, []
        for name, (low, high) in settings.thresholds.get(stage, {}).items():
            found[name] = accuracy(model, tokenizer, language, name, decode, batches)
            if not low <= found[name] <= high:
                missed.append(f"{name} is {found[name]:.3f}, not in [{low}, {high}]")
        if not missed:
            break
    else:
        raise RuntimeError(f"seed {seed} {stage} did not converge in {rounds} rounds: {missed[0]}")
    log = {"rounds": rounds, "accuracy": found, "loss": [round(x, 4) for x in losses]}
    log["fingerprint"] = recipe_hash(settings, language, stage, seed)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        store.write_json(temporary / "pretraining.json", log)

    store.write_folder(folder, write)


def pretrain(task, decode, batches, run_jobs) -> None:
    """Student and teacher of every base seed of the task's scale.

    Models of the same recipe are kept, so a killed call goes on with the next one. The same
    settings give the same bytes on one machine.
    """
    run, first, then = task.run, {}, []
    work = root() / "runs" / run.scale / "pretraining"
    for role in ("teacher", "student"):
        for seed in run.settings.seeds:
            folder, start = root() / run.model_path(role, seed), work / f"foundation-{seed}"
            if not is_pretrained(task, role, seed, folder):
                first[seed] = (task, "foundation", seed, None, start, decode, batches)
                then.append((task, role, seed, start, folder, decode, batches))
    for jobs in (list(first.values()), then):
        run_jobs(_make, jobs, workers=run.settings.workers, label="pretraining")
