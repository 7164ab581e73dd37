"""The task `modular`: chains and trails (chain.py, trail.py), solved to a boxed digit."""

import functools
import random
import re

from trdlib.settings import SettingsError
from trdlib.tasks import chain, language, trail
from trdlib.tasks.language import ONSETS, Departure, Piece, text_of
from trdlib.tasks.sets import ProblemSet

KINDS = {"chain": chain, "trail": trail}
# Of a problem set: the share of trails with the flag `=`, and of letters new to the student.
OPTIONS = {"chain": {}, "trail": {"local_share": 0.0, "unknown": 0.5}}
build_tokenizer = functools.partial(language.word_tokenizer, "modular")


def clean(problem: str) -> list[Piece]:
    """The reference solution y*."""
    return (trail if problem.startswith("Route") else chain).write(random.Random(0), problem)


def is_right(problem: str, text: str) -> bool:
    return text.endswith(clean(problem)[-1].text)


def first_wrong(problem: str, tokens: list[str]) -> Departure | None:
    """Where a response leaves the clean solution; an onset word, with its comma, may open lines."""
    lines, words = text_of(clean(problem)).splitlines(keepends=True), language.pattern("modular")
    spelled = [[re.findall(words, line)] for line in lines]
    spelled[-1][0].append(language.END)
    return language.departure(tokens, spelled, [[word, ","] for word in ONSETS], redo=False)


def row(rng: random.Random, part: ProblemSet, split: str) -> tuple[str, str, str]:
    """A problem of a set, its answer and its solution."""
    how = OPTIONS[part.kind] | part.options
    if part.kind == "trail":
        how["flag"] = "=" if rng.random() < how.pop("local_share") else "#"
    return problem(language.draw(rng, KINDS[part.kind], rng.choice(part.steps), split, **how))


def problem(text: str) -> tuple[str, str, str]:
    """A problem, its answer and its solution; SettingsError if the language has no such problem."""
    text = "".join(text.split())
    ordered = chain.LABELS.startswith("".join(re.findall("[a-z]", text[8:])))
    a_chain = ordered and re.fullmatch(r"Compute:[0-6](?:[o-z][-+*][0-6])+", text)
    if not a_chain and not re.fullmatch(r"Route[#=](?:([A-Za-n])(?!.*\1))+", text):
        how = "write a chain, like Compute:1o*6p*3q+4 (up to 12 steps o, p, q, ... and digits to 6)"
        how += ", or a trail, like Route#BLQfl (# or =, then different letters out of A-Z and a-n)"
        raise SettingsError(f"the tiny language has no {text[:40]!r}: {how}")
    pieces = clean(text)
    return text, re.search(r"\d", pieces[-1].text)[0], text_of(pieces)
