"""Tiny languages: what `modular` and `tinycode` share.

They stand in for mathematics and for code at a scale where a laptop can show the mechanism of the
paper (sections 1 and 4). A problem is its text: everything else is computed from it. Problems with
at least HELD_OUT_FROM steps are dealt into splits by a hash of their text, so that pretraining,
distillation, validation and test sets are disjoint by construction.
"""

import random
import zlib
from types import ModuleType
from typing import NamedTuple

ONSETS = ("Wait", "Actually", "Hmm", "However")  # epistemic onset words
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = SPECIAL[2]  # of a turn
HELD_OUT_FROM = 3
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def word_tokenizer(words: list[str], pattern: str):
    """A lossless word-level tokenizer with a chat template, as a stock fast tokenizer.

    words: the vocabulary after SPECIAL; pattern: a regex that cuts a text into words.
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words, "<unk>"])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token=END,
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def split_of(problem: str) -> str:
    """The split that a problem may be used in: a hash of its text decides."""
    return ("pretrain", "pretrain", "train", "test", "validation")[zlib.crc32(problem.encode()) % 5]


def draw(rng: random.Random, kind: ModuleType, steps: int, split: str, **how) -> str:
    """A random problem of one length from one split. Short problems are pretrained on only."""
    if steps < HELD_OUT_FROM and split != "pretrain":
        raise ValueError(f"problems of {steps} steps are for pretraining: ask for {HELD_OUT_FROM}")
    while True:
        problem = kind.random_problem(rng, steps, **how)
        if steps < HELD_OUT_FROM or split_of(problem) == split:
            return problem


class Piece(NamedTuple):
    """A stretch of a written solution; `learn` is False where pretraining takes no loss on it."""

    text: str
    learn: bool = True


def text_of(pieces: list[Piece]) -> str:
    return "".join(p.text for p in pieces)


class Habits(NamedTuple):
    """How somebody writes a solution."""

    slip: float = 0.0  # probability of a random error on a line,
    first_slip: float = 1.0  # times this on the first
    believe: float = 0.0  # of following a false belief where one applies
    correct_slip: float = (
        0.0  # of an onset after 0 to 2 more lines, and all again from the error on
    )
    recheck: float = 0.0  # of an onset and a redundant second look
    learn_slips: bool = True  # does pretraining take a loss on errors?


RIGHT = Habits()


def write(rng: random.Random, habits: Habits, steps: int, state, right, wrong, believed, frame):
    """-> the pieces of a solution's lines, and the state after them.

    right(step, state) -> (line, state); wrong(step, state) -> (step, line, state), a later step if
    it skips; believed: as right, or None; frame(step, onset word or "") -> what is before, after.
    """
    pieces: list[Piece] = []
    step, repair = 0, None  # repair: [lines to go, step, state] of an error that will be noticed

    def add(line: str, word: str = "", learn: bool = True) -> None:
        before, after = frame(step, word)
        pieces.extend((Piece(before), Piece(line, learn), Piece(after)))

    while step < steps or repair:
        if repair and (repair[0] <= 0 or step >= steps):
            (_, step, state), repair = repair, None
            line, state = right(step, state)
            add(line, rng.choice(ONSETS))
            step += 1
            continue
        before, slipped = (step, state), True
        if rng.random() < habits.slip * (habits.first_slip if step == 0 else 1.0):
            step, line, state = wrong(step, state)
        elif habits.believe and believed(step, state) and rng.random() < habits.believe:
            line, state = believed(step, state)
        else:
            (line, state), slipped = right(step, state), False
        add(line, learn=habits.learn_slips or not slipped)
        if repair:
            repair[0] -= 1
        elif slipped and rng.random() < habits.correct_slip:
            repair = [rng.choice([0, 0, 1, 2]), *before]
        elif not slipped and rng.random() < habits.recheck:
            add(line, rng.choice(ONSETS))
        step += 1
    return pieces, state


class Departure(NamedTuple):
    """Where a response leaves the right path, and the token that was right there."""

    index: int
    right: str


def departure(
    tokens: list[str], lines: list[list[list[str]]], onsets: list[list[str]], *, redo: bool
) -> Departure | None:
    """The first wrong token of a response; None if no token is wrong.

    tokens: of the response, the end of its turn included where it is finished. lines: those of the
    solution in their order, each in all ways to write it, as tokens; the last one ends the turn.
    Right are these lines, one after the other. Onsets may stand between them, and a line that was
    reached before may be written again (redo: with all that follow it). What is taken back later
    was wrong all the same; an attempt that just breaks off is not. `right` is the first of the
    ways where there are several.
    """

    def may_follow(reached: int) -> list[tuple[int, list[str]]]:
        numbers = (n for n in (reached, *range(reached)) if n < len(lines))
        again = [(n + 1, way) for n in numbers for way in lines[n]]
        return again + [(reached, onset) for onset in onsets]

    reached, open_ = 0, may_follow(0)  # lines written; what may follow, and where that leads
    for index, token in enumerate(tokens):
        fitting = [(n, rest[1:]) for n, rest in open_ if rest[0] == token]
        if not fitting:
            return Departure(index, open_[0][1][0])
        if token == END:
            break
        done = [n for n, rest in fitting if not rest]
        open_ = [(n, rest) for n, rest in fitting if rest]  # a way may go on where another ends
        if done:
            reached = done[0] if redo else max(reached, done[0])
            open_ = may_follow(reached) + open_
    return None
