"""Easy arithmetic word problems with reference solutions, for small pretrained models (scale smol).

Somebody has things, then twice gets or loses some; all numbers are below 20, so that what is asked
is reading and one-digit arithmetic. The problems are ours and procedural: no data set is needed.
"""

from __future__ import annotations

import random

_NAMES = ("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Max", "Eva")
_THINGS = ("apples", "marbles", "books", "stickers", "coins", "pencils", "stamps", "cards")
_GETS = ("gets", "finds", "buys", "wins")
_LOSES = ("loses", "sells", "breaks", "gives away")


def draw(rng: random.Random, steps: int) -> tuple[str, str, str]:
    """A problem of so many steps, its answer, and its reference solution, which ends in a box."""
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    have = start = rng.randrange(4, 13)
    told, solved = [], []
    for step in range(steps):
        gets = have < 3 or (have < 12 and rng.random() < 0.5)
        change = rng.randrange(2, 8) if gets else rng.randrange(2, have)
        verb, then = rng.choice(_GETS if gets else _LOSES), "Then " if step else ""
        after = have + change if gets else have - change
        told.append(f"{then}{name} {verb} {change} {thing}.")
        sign = "+" if gets else "-"
        solved.append(f"{then}{name} {verb} {change}, so {have} {sign} {change} = {after}.")
        have = after
    problem = f"{name} has {start} {thing}. {' '.join(told)} How many {thing} does {name} have now?"
    return problem, str(have), f"{' '.join(solved)} The answer is \\boxed{{{have}}}."
