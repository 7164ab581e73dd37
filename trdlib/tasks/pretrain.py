"""Pretraining of the tiny models: student and teacher of a base seed, from one foundation.

Our recipe. A language (modular, tinycode) has build_tokenizer, clean and is_right; its KINDS have
random_problem(rng, steps, **VARIED), write(rng, problem, habits), rewrite(rng, problem, attempt)
where that is not the clean solution, and what is shown how often (language.yaml)."""

import functools
import random
from pathlib import Path
from types import ModuleType

from trdlib import prompts, store
from trdlib.settings import Count, Positive, Section, root
from trdlib.tasks.language import draw, text_of

LOG = "pretraining.json"  # in a model's folder: its recipe, and how its training went
MAX_ROUNDS = 4  # of a stage, before it counts as not converging


class Stage(Section):  # rounds of so many steps are repeated until the thresholds hold
    steps: Count
    muon_lr: Positive
    adamw_lr: Positive


class Pretraining(Section):
    shape: dict[str, Count]
    tokens_per_step: Count
    foundation: Stage
    student: Stage
    teacher: Stage
    # stage -> kind of problem/kind of example -> [lowest, highest accuracy]
    thresholds: dict[str, dict[str, tuple[float, float]]] = {}  # noqa: RUF012 - frozen


def _context(rng: random.Random, tokenizer, language: ModuleType, name: str, problem: str):
    """-> the prompt of an example, and the attempt in it or None. name: as in thresholds."""
    of, kind = name.split("/")
    writer, asked, shown = language.KINDS[of], "solve", {"problem": problem, "attempt": None}
    if "refine" in kind:
        chosen = {habit: rng.choice(values) for habit, values in writer.ATTEMPTS.items()}
        written = writer.write(rng, problem, writer.ATTEMPT._replace(**chosen))
        asked, shown["attempt"] = "refine", text_of(written)
    if "reference" in kind:
        asked, shown["reference"] = f"{asked}_given_reference", text_of(language.clean(problem))
    return prompts.context(asked, tokenizer, style="tiny", **shown).ids, shown["attempt"]


def example(rng, tokenizer, language, of: str, mixture: dict[str, float], problem: str):
    """-> token ids of an example of the mixture, prompt included, and which are targets."""
    (kind,), writer = rng.choices([*mixture], [*mixture.values()]), language.KINDS[of]
    ids, attempt = _context(rng, tokenizer, language, f"{of}/{kind}", problem)
    if kind in writer.HABITS:
        pieces = writer.write(rng, problem, writer.HABITS[kind])
    elif hasattr(writer, "rewrite"):
        pieces = writer.rewrite(rng, problem, attempt)
    else:
        pieces = language.clean(problem)
    encoded = tokenizer([p.text for p in pieces], add_special_tokens=False)["input_ids"]
    learn = [False] * len(ids)
    for piece, tokens in zip(pieces, encoded, strict=True):
        ids += tokens
        learn += [piece.learn] * len(tokens)
    return [*ids, tokenizer.eos_token_id], [*learn, True]


def stage_batch(rng, tokenizer, language, stage: str, progress: float, tokens: int):
    """The examples of a step, `progress` (0 to 1) into the stage, each kind its share of tokens."""
    examples = []
    for of, writer in language.KINDS.items():
        lengths, mixture, count = writer.LENGTHS, writer.MIXTURES[stage], 0
        if stage == "foundation" and progress < 0.4:  # no references yet, and shorter ones first
            lengths = writer.EASY_LENGTHS if progress < 0.18 else range(1, max(lengths) + 1)
            mixture = {writer.EARLY: 1.0}
        while count < tokens / len(language.KINDS):
            how = {name: rng.choice(values) for name, values in writer.VARIED.items()}
            problem = draw(rng, writer, rng.choice(lengths), "pretrain", **how)
            examples.append(example(rng, tokenizer, language, of, mixture, problem))
            count += len(examples[-1][0])
    return examples


def build_model(tokenizer, shape: dict[str, int], seed: int):
    """A Qwen3 model with random weights. shape: sizes by their Qwen3Config names."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    how = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "bos_token_id": None}
    how |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **shape}
    how["head_dim"] = shape["hidden_size"] // shape["num_attention_heads"]
    return Qwen3ForCausalLM(Qwen3Config(**how, tie_word_embeddings=True, initializer_range=0.12))


def train_stage(task, model, tokenizer, stage: str, seed: int) -> list[float]:
    """One round of a stage -> the loss of each step. (AdamW alone needs several times as long.)"""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    made, rng, losses = task.pretraining, random.Random(f"{stage}/{seed}"), []
    schedule, of = getattr(made, stage), ([], [])  # of: matrices, the rest
    for name, weight in model.named_parameters():
        of[weight.dim() != 2 or "embed" in name].append(weight)
    fixed = {"momentum": 0.95, "weight_decay": 0.0, "adjust_lr_fn": "original"}
    muon = torch.optim.Muon(of[0], lr=schedule.muon_lr, **fixed)
    adamw = torch.optim.AdamW(of[1], lr=schedule.adamw_lr, weight_decay=0.0, betas=(0.9, 0.95))
    model.train()
    for step in range(schedule.steps):
        how = (stage, step / schedule.steps, made.tokens_per_step)
        batch = [[*map(torch.tensor, e)] for e in stage_batch(rng, tokenizer, task.module, *how)]
        ids = pad_sequence([e[0] for e in batch], True, tokenizer.pad_token_id)
        labels = pad_sequence([ids.where(learn, -100) for ids, learn in batch], True, -100)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = min(1.0, (step + 1) / 20) * (1 - 0.95 * step / schedule.steps)
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * factor
            optimizer.step()
        losses.append(loss.item())
    return losses


def accuracy(language: ModuleType, model, tokenizer, name: str, decode, batches) -> float:
    """The share of 256 validation problems, seen in no stage, that the model has right at 0.6."""
    rng, kind = random.Random(f"accuracy/{name}"), language.KINDS[name.partition("/")[0]]
    asked = [draw(rng, kind, rng.choice([4, 5]), "validation") for _ in range(256)]
    contexts = [_context(rng, tokenizer, language, name, problem)[0] for problem in asked]
    how = {"max_new_tokens": 100, "stop_ids": [tokenizer.eos_token_id], "temperature": 0.6}
    right = 0
    for indices in batches(contexts, 256):
        done = decode(model, [contexts[i] for i in indices], seeds=indices, **how)
        texts = tokenizer.batch_decode([ids for ids, _ in done], skip_special_tokens=True)
        right += sum(map(language.is_right, [asked[i] for i in indices], texts))
    return right / len(asked)


@functools.cache
def _examples(stage: str, language: ModuleType):
    """Examples of a stage as the code now makes them: early in it, on its way, and at its end."""
    rng, tokenizer = random.Random(stage), language.build_tokenizer()
    return [stage_batch(rng, tokenizer, language, stage, at, 5000) for at in (0.0, 0.3, 1.0)]


def recipe_hash(task, stage: str, seed: int) -> str:
    """Of settings and examples. (Not of the optimizer: delete models after a change there.)"""
    made, of = task.pretraining, dict.fromkeys(["foundation", stage])
    stages = [[getattr(made, s), made.thresholds.get(s), _examples(s, task.module)] for s in of]
    return store.content_hash(made.shape, made.tokens_per_step, stages, seed)


def place(task, stage: str, seed: int) -> Path:
    """The folder of a model. Foundations lie with what may be deleted."""
    foundation = f"runs/{task.run.scale}/pretraining/foundation-{seed}"
    return root() / (foundation if stage == "foundation" else task.run.model_path(stage, seed))


def is_pretrained(task, stage: str, seed: int) -> bool:
    """Is there a model of the task's recipe?"""
    log = store.read_json(place(task, stage, seed) / LOG, {})
    return log.get("fingerprint") == recipe_hash(task, stage, seed)


def save_model(folder: Path, model, tokenizer, note: str, about: dict) -> None:
    """A model that its scale makes itself; the JSON file `note` says what it was made from."""

    def write(to: Path) -> None:
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
        store.write_json(to / note, about)

    store.write_folder(folder, write)


def _make(task, stage: str, seed: int, decode, batches) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    made, language, losses = task.pretraining, task.module, []
    logging.disable_progress_bar()
    torch.set_num_threads(task.run.settings.models.threads or torch.get_num_threads())
    tokenizer, wanted = language.build_tokenizer(), made.thresholds.get(stage, {})
    if stage == "foundation":
        model = build_model(tokenizer, made.shape, seed)
    else:
        model = AutoModelForCausalLM.from_pretrained(place(task, "foundation", seed))
    for rounds in range(1, MAX_ROUNDS + 1):
        losses += train_stage(task, model, tokenizer, stage, seed * MAX_ROUNDS + rounds - 1)
        found = {n: accuracy(language, model, tokenizer, n, decode, batches) for n in wanted}
        missed = [n for n, (low, high) in wanted.items() if not low <= found[n] <= high]
        if not missed:
            log = {"rounds": rounds, "accuracy": found, "loss": [round(x, 4) for x in losses]}
            log["fingerprint"] = recipe_hash(task, stage, seed)
            return save_model(place(task, stage, seed), model, tokenizer, LOG, log)
    why = f"{missed[0]} is {found[missed[0]]:.3f}, not in {list(wanted[missed[0]])}"
    raise RuntimeError(f"seed {seed} {stage} did not converge in {rounds} rounds: {why}")


def pretrain(task, decode, batches, run_jobs) -> None:
    """Student and teacher of every base seed; those of the same recipe are kept."""
    every = [(role, seed) for role in ("teacher", "student") for seed in task.run.settings.seeds]
    then = [one for one in every if not is_pretrained(task, *one)]
    for models in dict.fromkeys(("foundation", seed) for _, seed in then), then:
        jobs = [(task, *m, decode, batches) for m in models if not is_pretrained(task, *m)]
        run_jobs(_make, jobs, workers=task.run.settings.workers, label="pretraining")
