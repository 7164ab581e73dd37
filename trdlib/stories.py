"""Easy arithmetic word problems with reference solutions, for small pretrained models (scale smol).

Somebody has things, then twice gets or loses some; all numbers are below 20, so that what is asked
is reading and one-digit arithmetic. The problems are ours and procedural: no data set is needed.
"""

from __future__ import annotations

import random

import pandas as pd

from trdlib import config, data

_NAMES = ("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Max", "Eva")
_THINGS = ("apples", "marbles", "books", "stickers", "coins", "pencils", "stamps", "cards")
_GETS = ("gets", "finds", "buys", "wins")
_LOSES = ("loses", "sells", "breaks", "gives away")


def story(rng: random.Random, steps: int) -> tuple[str, str, str]:
    """A problem of so many steps, its reference solution (ending in a box), and its answer."""
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
    return problem, f"{' '.join(solved)} The answer is \\boxed{{{have}}}.", str(have)


def problem_sets(settings: config.Data) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark, in the one schema; no problem occurs twice."""

    def write(rng: random.Random, part: config.ProblemSet, split: str) -> tuple[str, str, str]:
        problem, solution, answer = story(rng, rng.choice(part.steps))
        return problem, answer, solution

    return data.draw_sets(settings, write)


def prepare(run: config.Run) -> dict[str, pd.DataFrame]:
    """The problem sets, on file and returned."""
    return data.save_sets(problem_sets(run.settings.data), run.data)
