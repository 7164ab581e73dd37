"""Tiny languages, shared by `modular` and `tinycode`, which stand in for mathematics and for code
(paper, sections 1 and 4). Problems of HELD_OUT_FROM steps and more are dealt into splits by a hash
of their text, so all sets are disjoint."""

import random
import re
import zlib
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import yaml

ONSETS = ("Wait", "Actually", "Hmm", "However")  # epistemic onset words
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END, HELD_OUT_FROM = SPECIAL[2], 3  # of a turn; see above
WRITTEN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def pattern(kind: str) -> str:
    """A regex that cuts a text into the words of a language."""
    return "|".join(map(re.escape, sorted(WRITTEN["words"][kind], key=len, reverse=True))) + "|."


def word_tokenizer(kind: str):
    """A stock fast tokenizer for the words of a language, lossless, with a chat template."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WRITTEN["words"][kind], "<unk>"])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern(kind)), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **WRITTEN["tokenizer"])


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


class Piece(NamedTuple):  # a stretch of a written solution
    text: str
    learn: bool = True  # does pretraining take a loss on it?


def text_of(pieces: list[Piece]) -> str:
    return "".join(p.text for p in pieces)


class Habits(NamedTuple):  # how somebody writes a solution
    slip: float = 0.0  # probability of a random error on a line,
    first_slip: float = 1.0  # times this on the first
    believe: float = 0.0  # of following a false belief where one applies
    correct_slip: float = 0.0  # of an onset a few lines after an error, and all again from there on
    recheck: float = 0.0  # of an onset and a redundant second look
    learn_slips: bool = True  # does pretraining take a loss on errors?


RIGHT = Habits()


def recipe(kind: str) -> tuple:
    """How a kind of problem is pretrained: the values of language.yaml, in their order."""
    *values, habits, attempt, attempts = WRITTEN["recipes"][kind].values()
    return *values, {who: Habits(**h) for who, h in habits.items()}, Habits(**attempt), attempts


def write(rng: random.Random, habits: Habits, todo: list, state, say, mistaken, believed, onset):
    """-> the pieces of a solution's lines, and the state after them. todo: what each line must do;
    say(step, what, state) -> ((before, line, after), state) does it; mistaken(step) -> (step,
    what), a later step if it skips; believed(what, state) -> what it is taken for, or None."""
    pieces, step, repair = [], 0, None  # repair: [lines to go, step, state] of an error noticed
    while step < len(todo) or repair:
        noticed = repair and (repair[0] <= 0 or step >= len(todo))
        if noticed:
            (_, step, state), repair = repair, None
            pieces.append(Piece(onset.format(rng.choice(ONSETS))))
        before, what, slipped = (step, state), todo[step], False
        held = believed(what, state) if habits.believe and not noticed else None
        if not noticed and rng.random() < habits.slip * (habits.first_slip if step == 0 else 1.0):
            (step, what), slipped = mistaken(step), True
        elif held and rng.random() < habits.believe:
            what, slipped = held, True
        (start, line, end), state = say(step, what, state)
        said = [Piece(start), Piece(line, habits.learn_slips or not slipped), Piece(end)]
        pieces += said
        if repair:
            repair[0] -= 1
        elif slipped and rng.random() < habits.correct_slip:
            repair = [rng.choice([0, 0, 1, 2]), *before]
        elif not (slipped or noticed) and rng.random() < habits.recheck:
            pieces += [Piece(onset.format(rng.choice(ONSETS))), *said]
        step += 1
    return pieces, state


class Departure(NamedTuple):
    index: int  # of the token where a response leaves the right path
    right: str  # the token that was right there


def departure(tokens, lines, onsets, *, redo: bool, opening=None) -> Departure | None:
    """The first wrong token of a response, taken back or not, or None. lines: of the solution after
    the opening, each in all ways to write it; the last ends the turn. Onsets may stand between, and
    what was reached come again (redo: with all that follow it)."""

    def may_follow(reached: int) -> list[tuple[int, list[str]]]:
        numbers = (n for n in (reached, *range(reached)) if n < len(lines))
        again = [(n + 1, way) for n in numbers for way in lines[n]]
        return again + [(reached, onset) for onset in onsets]

    reached = 0  # lines written
    open_ = [(0, opening)] if opening else may_follow(0)  # what may follow, and where that leads
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
