"""Two procedural tasks, their tokenizer, and the pretraining of the tiny models.

The tasks stand in for mathematics at a scale where a laptop can show the mechanism of the paper
(sections 1 and 4), switched on and off. Both are solved line by line and end in a boxed digit.

* `chain`: a left-to-right chain of + - * modulo 7. Local: after a wrong line, the next line is
  still a valid lesson. The student holds systematic false beliefs (a quarter of the facts).
* `trail`: K letters; a hidden table gives each letter one of four turns, and a running sum follows.
  Not local when the flag is `#`: after a wrong turn the walker is lost, later turns are random,
  and the rest of the rollout teaches nothing. That is prefix failure. With the flag `=` the table
  holds on. The student knows half the letters.

A problem is its text: everything else is computed from it. Problems with at least HELD_OUT_FROM
steps are dealt into splits by a hash of their text, so that pretraining, distillation, validation
and test sets are disjoint by construction.

The paper has no such scale; the recipe is ours, measured in prototypes.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from trdlib import config, data, generate, grading, models, parallel, prompts
from trdlib.config import Pretraining, PretrainStage

ONSETS = ("Wait", "Actually", "Hmm", "However")  # epistemic onset tokens of the tiny language
HELD_OUT_FROM = 3
MAX_ROUNDS = 4  # of a pretraining stage, before it counts as not converging

# ------------------------------------------------------------------------------------ tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_WORDS = ["user", "assistant", "Compute", "Route", "Solve", "Attempt", "Reference", "Rewrite"]
_WORDS += ["\\boxed", *ONSETS]
_LABELS = "opqrstuvwxyz"  # of the lines of a chain
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmn"  # of a trail
_SYMBOLS = "0123456789+-*=#{}:,\n<^>/"
_PATTERN = "|".join(map(re.escape, _WORDS)) + r"|\n|."  # of the words of a text
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_tokenizer(words: list[str], pattern: str):
    """A lossless word-level tokenizer with a chat template, as a stock fast tokenizer.

    words: the vocabulary, which starts with SPECIAL; pattern: a regex that cuts a text into words.
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*words, "<unk>"])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def build_tokenizer():
    """The tokenizer of the two tasks."""
    return word_tokenizer([*SPECIAL, *_WORDS, *_LABELS, *LETTERS, *_SYMBOLS], _PATTERN)


# ---------------------------------------------------------------------------------------- tasks


class Piece(NamedTuple):
    """A stretch of a written solution; `learn` is False where pretraining takes no loss on it."""

    text: str
    learn: bool = True


def text_of(pieces: list[Piece]) -> str:
    return "".join(p.text for p in pieces)


# chain ------------------------------------------------------------------------------------------

_MODULUS = 7
_OPS = "+-*"


def _apply(value: int, op: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[op] % _MODULUS


def _false_beliefs() -> dict[tuple[str, int, int], int]:
    rng = random.Random(4242)
    facts = [(op, a, b) for op in _OPS for a in range(_MODULUS) for b in range(_MODULUS)]
    return {
        fact: (_apply(fact[1], fact[0], fact[2]) + rng.randrange(1, _MODULUS)) % _MODULUS
        for fact in facts
        if rng.random() < 0.25
    }


FALSE_BELIEFS = _false_beliefs()  # what the student wrongly holds for (op, value, operand)


def chain_problem(rng: random.Random, steps: int) -> str:
    """`Compute:6o-6p-0`: start at 6; line o subtracts 6, line p subtracts 0."""
    terms = (f"{_LABELS[i]}{rng.choice(_OPS)}{rng.randrange(_MODULUS)}" for i in range(steps))
    return f"Compute:{rng.randrange(_MODULUS)}" + "".join(terms)


def chain_parse(problem: str) -> tuple[int, list[tuple[str, int]]]:
    body = problem.removeprefix("Compute:")
    return int(body[0]), [(op, int(d)) for op, d in re.findall(r"[a-z]([-+*])(\d)", body)]


def _chain_line(index: int, op: str, operand: int, value: int) -> str:
    return f"{_LABELS[index]}{op}{operand}={value}\n"


def chain_write(
    rng: random.Random,
    problem: str,
    *,
    slip: float = 0.0,
    correct_slip: float = 0.0,
    recheck: float = 0.0,
    believe: float = 0.0,
    first_slip: float = 1.0,
    learn_slips: bool = True,
) -> list[Piece]:
    """A written solution with the given habits; without any, the clean one.

    slip: probability of a random error on a line (times first_slip on the first); believe: of
    following a false belief where one applies; correct_slip: that an error is taken back by
    "Wait," after 0 to 2 more lines; recheck: of a redundant second look.
    """
    value, ops = chain_parse(problem)
    pieces: list[Piece] = []
    step, repair = 0, None  # repair: [lines to go, step, value] of an error that will be noticed
    while step < len(ops) or repair:
        if repair and (repair[0] <= 0 or step >= len(ops)):
            _, step, value = repair
            repair, (op, operand) = None, ops[step]
            value = _apply(value, op, operand)
            pieces.append(Piece(f"{rng.choice(ONSETS)},{_chain_line(step, op, operand, value)}"))
            step += 1
            continue
        (op, operand), before = ops[step], (step, value)
        slipped = rng.random() < slip * (1.0 if pieces else first_slip)
        result = _apply(value, op, operand)
        if slipped:
            kind = rng.choice(["value", "value", "value", "operand", "op", "skip"])
            if kind == "skip" and step + 1 < len(ops):
                step += 1
                op, operand = ops[step]
                result = _apply(value, op, operand)
            elif kind == "operand":
                operand = (operand + rng.randrange(1, _MODULUS)) % _MODULUS
                result = _apply(value, op, operand)
            elif kind == "op":
                op = rng.choice([o for o in _OPS if o != op])
                result = _apply(value, op, operand)
            else:
                result = (result + rng.randrange(1, _MODULUS)) % _MODULUS
        elif believe and (op, value, operand) in FALSE_BELIEFS and rng.random() < believe:
            result, slipped = FALSE_BELIEFS[op, value, operand], True
        line = _chain_line(step, op, operand, result)
        if slipped and not learn_slips:
            pieces += [Piece(line[:-1], False), Piece("\n")]
        else:
            pieces.append(Piece(line))
        value = result
        step += 1
        if repair:
            repair[0] -= 1
        elif slipped and rng.random() < correct_slip:
            repair = [rng.choice([0, 0, 1, 2]), *before]
        elif not slipped and rng.random() < recheck:
            again = _chain_line(step - 1, op, operand, value)
            pieces.append(Piece(f"{rng.choice(ONSETS)},{again}"))
    return [*pieces, Piece(f"\\boxed{{{value}}}")]


# trail ------------------------------------------------------------------------------------------

_ZONES, _ZONE_SIZE = 5, 8
_TURNS = {"<": 1, "^": 2, ">": 4, "/": 7}
_trail_rng = random.Random(99)
TURN_OF = {letter: _trail_rng.choice(list(_TURNS)) for letter in LETTERS}  # the hidden table
KNOWN = {c for i, c in enumerate(LETTERS) if i % _ZONE_SIZE < _ZONE_SIZE // 2}  # to the student
_SURE = 0.95  # how often the student is right on a letter it knows


def trail_problem(rng: random.Random, steps: int, *, flag: str = "#", unknown: float = 0.5) -> str:
    """`Route#AIqyG`: a flag, then one letter per step, the zone going round with the depth.

    unknown: the share of letters that the student does not know.
    """
    letters: list[str] = []
    while len(letters) < steps:
        zone, half = len(letters) % _ZONES, _ZONE_SIZE // 2
        start = zone * _ZONE_SIZE + (half if rng.random() < unknown else 0)
        letter = LETTERS[start + rng.randrange(half)]
        if letter not in letters:
            letters.append(letter)
    return f"Route{flag}{''.join(letters)}"


def trail_parse(problem: str) -> tuple[str, str]:
    """The flag and the letters."""
    body = problem.removeprefix("Route")
    return body[0], body[1:]


def _trail_step(letter: str, turn: str, total: int) -> tuple[int, list[str]]:
    total = (total + _TURNS[turn]) % 10
    return total, [letter, turn, f"{total}\n"]


def trail_clean(problem: str) -> list[Piece]:
    total, pieces = 0, []
    for letter in trail_parse(problem)[1]:
        total, line = _trail_step(letter, TURN_OF[letter], total)
        pieces.append(Piece("".join(line)))
    return [*pieces, Piece(f"\\boxed{{{total}}}")]


def trail_student(rng: random.Random, problem: str, *, look_back: float = 0.04) -> list[Piece]:
    """The student's behaviour: sure of the letters it knows, guessing the rest, with an occasional
    blind step back (probability look_back a line, at most twice)."""
    letters = trail_parse(problem)[1]
    pieces, totals, step, backs = [], [0], 0, 0
    while True:
        onset = ""
        if step and backs < 2 and rng.random() < look_back:
            step -= rng.choice([1, 1, min(2, step)])
            totals, onset, backs = totals[: step + 1], rng.choice(ONSETS) + ",", backs + 1
        if step == len(letters):
            break
        letter = letters[step]
        sure = letter in KNOWN and rng.random() < _SURE
        turn = TURN_OF[letter] if sure else rng.choice(list(_TURNS))
        total, line = _trail_step(letter, turn, totals[-1])
        pieces.append(Piece(onset + "".join(line)))
        totals.append(total)
        step += 1
    return [*pieces, Piece(f"\\boxed{{{totals[-1]}}}")]


def trail_expert(
    rng: random.Random, problem: str, *, slip: float = 0.2, notice: float = 0.35
) -> list[Piece]:
    """The expert with injected wrong turns, on which no loss is taken.

    After a wrong turn it notices with probability `notice` at each line start: an onset word, the
    first wrong step again and right, and on from there. Until it notices, a `#` trail is lost (its
    turns are random), a `=` trail goes on by the table.
    """
    flag, letters = trail_parse(problem)
    pieces, totals, step, wrong = [], [0], 0, None
    while True:
        if wrong is not None and rng.random() < notice:
            step, wrong, slip = wrong, None, slip * 0.3
            totals = totals[: step + 1]
            total, line = _trail_step(letters[step], TURN_OF[letters[step]], totals[-1])
            pieces.append(Piece(rng.choice(ONSETS) + "," + "".join(line)))
        elif step == len(letters):
            break
        else:
            letter = letters[step]
            turn, learn = TURN_OF[letter], True
            if wrong is not None and flag == "#":
                turn = rng.choice(list(_TURNS))
            elif rng.random() < slip:
                turn, learn = rng.choice([t for t in _TURNS if t != turn]), False
            if turn != TURN_OF[letter] and wrong is None:
                wrong = step
            total, line = _trail_step(letter, turn, totals[-1])
            pieces += [Piece(line[0]), Piece(line[1], learn), Piece(line[2])]
        totals.append(total)
        step += 1
    return [*pieces, Piece(f"\\boxed{{{totals[-1]}}}")]


# both -------------------------------------------------------------------------------------------


def task_of(problem: str) -> str:
    return "chain" if problem.startswith("Compute:") else "trail"


def clean(problem: str) -> list[Piece]:
    """The reference solution y*."""
    if task_of(problem) == "chain":
        return chain_write(random.Random(0), problem)
    return trail_clean(problem)


class Departure(NamedTuple):
    """Where a written solution leaves the right path, and the token that was right there."""

    index: int
    right: str


def departure(problem: str, tokens: list[str]) -> Departure | None:
    """The first wrong token of a response to the problem; None if no token is wrong.

    tokens: of the response, the end of its turn included where it is finished. Right are the lines
    of the clean solution in their order, then the end of the turn. Onset words (each with its
    comma) may open a line, and a step that was reached before may be written again. What is taken
    back later was wrong all the same; an attempt that just breaks off is not.
    """
    lines = [re.findall(_PATTERN, piece.text) for piece in clean(problem)]
    lines[-1].append(SPECIAL[2])
    reached, rest = 0, []  # lines begun; what must follow in the line at hand
    for index, token in enumerate(tokens):
        starts = [line[0] for line in lines[: reached + 1]]
        if rest:
            if token != rest[0]:
                return Departure(index, rest[0])
            rest = rest[1:]
        elif token in ONSETS:
            rest = [","]
        elif token in starts:
            number = starts.index(token)
            reached, rest = max(reached, number + 1), lines[number][1:]
        else:
            return Departure(index, starts[-1])
    return None


def first_wrong_token(problem: str, tokens: list[str]) -> int | None:
    """Index of the first wrong token (see `departure`)."""
    found = departure(problem, tokens)
    return found.index if found else None


def split_of(problem: str) -> str:
    """The split that a problem may be used in: a hash of its text decides."""
    return ("pretrain", "pretrain", "train", "test", "validation")[zlib.crc32(problem.encode()) % 5]


def draw(rng: random.Random, task: str, steps: int, split: str, **how) -> str:
    """A random problem of one length from one split. Short problems are pretrained on only."""
    if steps < HELD_OUT_FROM and split != "pretrain":
        raise ValueError(f"problems of {steps} steps are for pretraining: ask for {HELD_OUT_FROM}")
    while True:
        make = chain_problem if task == "chain" else trail_problem
        problem = make(rng, steps, **how)
        if steps < HELD_OUT_FROM or split_of(problem) == split:
            return problem


# ---------------------------------------------------------------------------------- pretraining

# kind of example -> prompt kind. The writers stand in a language's `response`.
_PROMPT_OF = {
    "solve": "solve",
    "student": "solve",
    "slips": "solve",
    "refine": "refine",
    "reference": "solve_given_reference",
    "reference_slips": "solve_given_reference",
    "refine_reference": "refine_given_reference",
}

# stage -> task -> share of each kind of example
MIXTURES = {
    "foundation": {
        "chain": {"solve": 0.5, "refine": 0.2, "reference": 0.1, "refine_reference": 0.2},
        "trail": {
            "student": 0.4,
            "reference": 0.2,
            "reference_slips": 0.2,
            "refine_reference": 0.2,
        },
    },
    "student": {
        "chain": {
            "student": 0.45,
            "refine": 0.15,
            "reference": 0.15,
            "reference_slips": 0.05,
            "refine_reference": 0.2,
        },
        "trail": {
            "student": 0.3,
            "reference": 0.2,
            "reference_slips": 0.3,
            "refine_reference": 0.2,
        },
    },
    "teacher": {
        "chain": {"solve": 0.35, "slips": 0.25, "refine": 0.4},
        "trail": {"solve": 0.45, "slips": 0.35, "refine": 0.2},
    },
}
_LENGTHS = {
    "chain": [1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8],
    "trail": [1, 2, 3, 4, 4, 5, 5, 6, 7],
}
_EASY_LENGTHS = {"chain": [1, 1, 2], "trail": [1, 1, 2, 3]}


_EARLY_KIND = {"chain": "solve", "trail": "student"}


@dataclasses.dataclass(frozen=True, eq=False)
class Language:
    """All that pretraining knows of a tiny language. This module's is MATH."""

    build_tokenizer: Callable  # () -> tokenizer
    draw: Callable  # (rng, task, steps, split, **how) -> problem
    how: Callable  # (rng, task) -> the `how` of a problem to pretrain on
    clean: Callable  # problem -> pieces of the reference solution
    attempt: Callable  # (rng, problem) -> text of a student's attempt
    response: Callable  # (rng, problem, kind of example, attempt or None) -> pieces
    is_right: Callable  # (problem, text of a response) -> bool
    departure: Callable  # (problem, tokens of a response) -> Departure or None
    of_set: Callable  # (rng, config.ProblemSet, split) -> problem
    answer: Callable  # problem -> what a response is graded by
    lengths: dict[str, list[int]]  # of each task, as often as they are drawn
    easy_lengths: dict[str, list[int]]  # at first
    early_kind: dict[str, str]  # of example, before the mixture
    mixtures: dict[str, dict[str, dict[str, float]]]


def _attempt(rng: random.Random, problem: str) -> str:
    if task_of(problem) == "trail":
        return text_of(trail_student(rng, problem))
    habits = {
        "slip": rng.choice([0.0, 0.15, 0.3, 0.5]),
        "correct_slip": rng.choice([0.0, 0.3, 0.7]),
        "recheck": 0.08,
        "first_slip": 1.5,
    }
    return text_of(chain_write(rng, problem, **habits))


def _response(rng: random.Random, problem: str, kind: str, attempt: str | None) -> list[Piece]:
    chain = task_of(problem) == "chain"
    if kind == "student":
        habits = {"slip": 0.06, "correct_slip": 0.3, "recheck": 0.08, "believe": 0.75}
        return chain_write(rng, problem, **habits) if chain else trail_student(rng, problem)
    if kind in ("slips", "reference_slips"):
        habits = {"slip": 0.2 if kind == "slips" else 0.25, "correct_slip": 0.7}
        if chain:
            return chain_write(rng, problem, **habits, learn_slips=False)
        return trail_expert(rng, problem)
    return clean(problem)


def _how(rng: random.Random, task: str) -> dict:
    return {} if task == "chain" else {"flag": rng.choice("#=")}


def _is_right(problem: str, text: str) -> bool:
    return text.endswith(clean(problem)[-1].text)


def _of_set(rng: random.Random, part: config.ProblemSet, split: str) -> str:
    how = {}
    if part.task == "trail":
        flag = "=" if rng.random() < part.local_share else "#"
        how = {"flag": flag, "unknown": part.unknown}
    return draw(rng, part.task, rng.choice(part.steps), split, **how)


def _answer(problem: str) -> str:
    return grading.boxed(clean(problem)[-1].text)


MATH = Language(
    build_tokenizer=build_tokenizer,
    draw=draw,
    how=_how,
    clean=clean,
    attempt=_attempt,
    response=_response,
    is_right=_is_right,
    departure=departure,
    of_set=_of_set,
    answer=_answer,
    lengths=_LENGTHS,
    easy_lengths=_EASY_LENGTHS,
    early_kind=_EARLY_KIND,
    mixtures=MIXTURES,
)


class Example(NamedTuple):
    ids: list[int]
    learn: list[bool]  # per token: does the loss count it as a target?


def _context(
    rng: random.Random, tokenizer, kind: str, problem: str, language: Language
) -> tuple[list[int], str | None]:
    """The prompt of an example, and the student's attempt in it if its kind has one."""
    prompt_kind = _PROMPT_OF[kind]
    attempt = language.attempt(rng, problem) if "refine" in prompt_kind else None
    prompt = prompts.context(
        prompt_kind,
        tokenizer,
        style="tiny",
        problem=problem,
        reference=text_of(language.clean(problem)) if "reference" in prompt_kind else None,
        attempt=attempt,
    )
    return prompt.ids, attempt


def example(
    rng: random.Random,
    tokenizer,
    mixture: dict[str, float],
    problem: str,
    language: Language = MATH,
) -> Example:
    """A pretraining example of a kind drawn from the mixture, prompt included."""
    kind = rng.choices(list(mixture), list(mixture.values()))[0]
    ids, attempt = _context(rng, tokenizer, kind, problem, language)
    learn = [False] * len(ids)
    pieces = language.response(rng, problem, kind, attempt)
    encoded = tokenizer([p.text for p in pieces], add_special_tokens=False)["input_ids"]
    for piece, tokens in zip(pieces, encoded, strict=True):
        ids += tokens
        learn += [piece.learn] * len(tokens)
    return Example([*ids, tokenizer.eos_token_id], [*learn, True])


def _batch(examples: list[Example], pad: int):
    """-> ids (B, T) and labels (B, T), -100 where no loss is taken; padded on the right."""
    width = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), -100)
    for row, e in enumerate(examples):
        tokens = torch.tensor(e.ids)
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = torch.where(torch.tensor(e.learn), tokens, -100)
    return ids, labels


def build_model(tokenizer, shape: dict, seed: int):
    """A Qwen3 model with random weights. shape: sizes by their Qwen3Config names."""
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


def stage_batch(
    rng: random.Random,
    tokenizer,
    stage: str,
    progress: float,
    tokens: int,
    language: Language = MATH,
) -> list[Example]:
    """The examples of one step, `progress` (0 to 1) into the stage, each task its share of tokens.

    The foundation starts on short problems, then all lengths, without references or attempts.
    """
    examples = []
    for task, lengths in language.lengths.items():
        mixture = language.mixtures[stage][task]
        if stage == "foundation" and progress < 0.4:
            easy = progress < 0.18
            lengths = language.easy_lengths[task] if easy else range(1, max(lengths) + 1)
            mixture = {language.early_kind[task]: 1.0}
        count = 0
        while count < tokens / len(language.lengths):
            how = language.how(rng, task)
            problem = language.draw(rng, task, rng.choice(lengths), "pretrain", **how)
            examples.append(example(rng, tokenizer, mixture, problem, language))
            count += len(examples[-1].ids)
    return examples


def train_stage(
    model,
    tokenizer,
    settings: Pretraining,
    stage: str,
    *,
    seed: int,
    label: str = "",
    language: Language = MATH,
) -> list[float]:
    """One round of a stage: Muon on the matrices, AdamW on the rest, linear decay to 5 %.

    Muon learns the facts several times faster than AdamW alone, and many small batches beat few
    large ones (measured). Returns the loss of each step.
    """
    schedule: PretrainStage = getattr(settings, stage)
    rng = random.Random(f"{stage}/{seed}")
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        torch.optim.Muon(
            matrices, lr=schedule.muon_lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original"
        ),
        torch.optim.AdamW(others, lr=schedule.adamw_lr, weight_decay=0.0, betas=(0.9, 0.95)),
    ]

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 20) * (1 - 0.95 * step / schedule.steps)

    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]
    losses = []
    model.train()
    for step in parallel.progress(f"{label} {stage}", range(schedule.steps)):
        progress = step / schedule.steps
        tokens = settings.tokens_per_step
        examples = stage_batch(rng, tokenizer, stage, progress, tokens, language)
        ids, labels = _batch(examples, tokenizer.pad_token_id)
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


def accuracy(
    model, tokenizer, task: str, kind: str, problems: int = 256, language: Language = MATH
) -> float:
    """How often the model answers prompts of one kind, at the temperature of the rollouts (0.6).

    Problems of 4 or 5 steps, from the validation split: seen in no stage of pretraining.
    """
    rng = random.Random(f"accuracy/{task}/{kind}")
    asked = [language.draw(rng, task, rng.choice([4, 5]), "validation") for _ in range(problems)]
    contexts = [_context(rng, tokenizer, kind, problem, language)[0] for problem in asked]
    right = 0
    for indices in generate.batches(contexts, 256):
        done = generate.decode(
            model,
            [contexts[i] for i in indices],
            max_new_tokens=100,
            stop_ids=[tokenizer.eos_token_id],
            temperature=0.6,
        )
        for i, completion in zip(indices, done, strict=True):
            text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            right += language.is_right(asked[i], text)
    return right / problems


def _stage_from(
    settings, model, tokenizer, stage: str, seed: int, label: str, language: Language
) -> dict:
    """Rounds of a stage until its thresholds hold; RuntimeError if they do not in MAX_ROUNDS."""
    losses: list[float] = []
    for number in range(MAX_ROUNDS):
        round_seed = seed * MAX_ROUNDS + number
        how = {"seed": round_seed, "label": label, "language": language}
        losses += train_stage(model, tokenizer, settings, stage, **how)
        measured, missed = {}, []
        for name, (low, high) in settings.thresholds.get(stage, {}).items():
            measured[name] = accuracy(model, tokenizer, *name.split("/"), language=language)
            if not low <= measured[name] <= high:
                missed.append(f"{name} is {measured[name]:.3f}, not in [{low}, {high}]")
        if not missed:
            return {"rounds": number + 1, "accuracy": measured, "loss": losses}
    raise RuntimeError(f"{label} {stage} did not converge in {MAX_ROUNDS} rounds: {missed[0]}")


def _write_model(model, tokenizer, log: dict, folder: Path) -> None:
    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        rounded = {**log, "loss": [round(x, 4) for x in log["loss"]]}
        data.write_json(temporary / "pretraining.json", rounded)

    data.write_folder(folder, write)


@functools.cache
def _examples(stage: str, language: Language) -> list[list[Example]]:
    """Examples of a stage as the code now makes them: early in it, on its way, and at its end."""
    rng, tokenizer = random.Random(stage), language.build_tokenizer()
    return [
        stage_batch(rng, tokenizer, stage, progress, 5000, language) for progress in (0.0, 0.3, 1.0)
    ]


def recipe_hash(settings: Pretraining, stage: str, seed: int, language: Language = MATH) -> str:
    """Hash of a model's settings, and of examples as the code now makes them.

    A change to the tasks, the mixtures, the prompts or the tokenizer changes the examples. (A
    change to the optimizer does not: pretrain again with FROM_SCRATCH=1.)
    """
    stages = ["foundation"] if stage == "foundation" else ["foundation", stage]
    return config.content_hash(
        settings.shape,
        settings.tokens_per_step,
        [
            [getattr(settings, s), settings.thresholds.get(s), _examples(s, language)]
            for s in stages
        ],
        seed,
    )


def _pretrain_stage(
    run: config.Run, language: Language, stage: str, seed: int, start: Path | None, to: Path
) -> None:
    from transformers import AutoModelForCausalLM

    settings = run.settings.pretraining
    models.prepare_process(run.settings.models)
    if is_pretrained(settings, stage, seed, to, language):
        return
    tokenizer = language.build_tokenizer()
    if start is None:
        model = build_model(tokenizer, settings.shape, seed)
    else:
        model = AutoModelForCausalLM.from_pretrained(start)
    log = _stage_from(settings, model, tokenizer, stage, seed, f"seed {seed}", language)
    log["fingerprint"] = recipe_hash(settings, stage, seed, language)
    _write_model(model, tokenizer, log, to)


def is_pretrained(
    settings: Pretraining, stage: str, seed: int, folder: Path, language: Language = MATH
) -> bool:
    """Is there a model of this recipe?"""
    log = folder / "pretraining.json"
    if not log.is_file():
        return False
    return data.read_json(log)["fingerprint"] == recipe_hash(settings, stage, seed, language)


def pretrain(run: config.Run, language: Language = MATH) -> None:
    """Student and teacher of every base seed of a procedural scale, each from its own foundation.

    Models of the same recipe are kept, so a killed call goes on with the next one. The same
    settings give the same bytes on one machine.
    """
    settings, seeds, roles = run.settings.pretraining, run.settings.seeds, ("teacher", "student")
    if settings is None:
        raise config.SettingsError(f"the scale {run.scale} has no pretraining: its models exist")
    target = {(r, s): config.root() / run.model_path(r, s) for r in roles for s in seeds}
    work = config.root() / "runs" / run.scale / "pretraining"
    work = work if run.task == "math" else work / run.task
    missing = [
        (r, s) for r, s in target if not is_pretrained(settings, r, s, target[r, s], language)
    ]
    first = [
        (run, language, "foundation", seed, None, work / f"foundation-{seed}")
        for seed in seeds
        if any(s == seed for _, s in missing)
    ]
    then = [(run, language, r, s, work / f"foundation-{s}", target[r, s]) for r, s in missing]
    for jobs in (first, then):
        parallel.run_jobs(_pretrain_stage, jobs, workers=run.settings.workers, label="pretraining")


# ------------------------------------------------------------------------------ the problem sets


def problem_sets(settings: config.Data, language: Language = MATH) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark, in the one schema; no problem occurs twice."""

    def write(rng: random.Random, part: config.ProblemSet, split: str) -> tuple[str, str, str]:
        problem = language.of_set(rng, part, split)
        return problem, language.answer(problem), text_of(language.clean(problem))

    return data.draw_sets(settings, write)


def prepare(run: config.Run, language: Language = MATH) -> dict[str, pd.DataFrame]:
    """The problem sets of a procedural scale, as the code now makes them, and its models."""
    frames = data.save_sets(problem_sets(run.settings.data, language), run.data)
    here = [
        (config.root() / run.model_path(role, seed)).is_dir()
        for role in ("student", "teacher")
        for seed in run.settings.seeds
    ]
    if not all(here):
        pretrain(run, language)
    return frames
