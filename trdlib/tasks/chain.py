"""`Compute:6o-6p-0`: a left-to-right chain of + - * modulo 7, solved line by line.

Start at 6; line o subtracts 6, line p subtracts 0. Local: after a wrong line, the next line is
still a valid lesson. The student holds systematic false beliefs (a quarter of the facts).
"""

import operator
import random
import re

from trdlib.tasks import language
from trdlib.tasks.language import RIGHT, Habits, Piece, text_of

LABELS = "opqrstuvwxyz"  # of the lines
_MODULUS = 7
_OPS = {"+": operator.add, "-": operator.sub, "*": operator.mul}

# Of pretraining: how long problems are, as often as they are drawn, and at first; the first kind of
# example, and the share of each after that; what varies in a problem.
LENGTHS, EASY_LENGTHS = [1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8], [1, 1, 2]
EARLY, VARIED = "solve", {}
MIXTURES = {
    "foundation": {"solve": 0.5, "refine": 0.2, "reference": 0.1, "refine_reference": 0.2},
    "student": {
        "student": 0.45,
        "refine": 0.15,
        "reference": 0.15,
        "reference_slips": 0.05,
        "refine_reference": 0.2,
    },
    "teacher": {"solve": 0.35, "slips": 0.25, "refine": 0.4},
}
_HABITS = {
    "student": Habits(slip=0.06, correct_slip=0.3, recheck=0.08, believe=0.75),
    "slips": Habits(slip=0.2, correct_slip=0.7, learn_slips=False),
    "reference_slips": Habits(slip=0.25, correct_slip=0.7, learn_slips=False),
}

_rng = random.Random(4242)
FALSE_BELIEFS = {  # what the student wrongly holds for (op, value, operand)
    (op, a, b): (_OPS[op](a, b) + _rng.randrange(1, _MODULUS)) % _MODULUS
    for op in _OPS
    for a in range(_MODULUS)
    for b in range(_MODULUS)
    if _rng.random() < 0.25
}


def random_problem(rng: random.Random, steps: int) -> str:
    terms = (f"{LABELS[i]}{rng.choice([*_OPS])}{rng.randrange(_MODULUS)}" for i in range(steps))
    return f"Compute:{rng.randrange(_MODULUS)}" + "".join(terms)


def parse(problem: str) -> tuple[int, list[tuple[str, int]]]:
    """The start, and (op, operand) of each line."""
    body = problem.removeprefix("Compute:")
    return int(body[0]), [(op, int(d)) for op, d in re.findall(r"[a-z]([-+*])(\d)", body)]


def write(rng: random.Random, problem: str, habits: Habits = RIGHT) -> list[Piece]:
    start, ops = parse(problem)

    def line(step: int, op: str, operand: int, result: int) -> tuple[str, int]:
        return f"{LABELS[step]}{op}{operand}={result % _MODULUS}", result % _MODULUS

    def right(step: int, value: int):
        op, operand = ops[step]
        return line(step, op, operand, _OPS[op](value, operand))

    def wrong(step: int, value: int):
        (op, operand), off = ops[step], 0
        kind = rng.choice(["value", "value", "value", "operand", "op", "skip"])
        if kind == "skip" and step + 1 < len(ops):
            step += 1
            op, operand = ops[step]
        elif kind == "operand":
            operand = (operand + rng.randrange(1, _MODULUS)) % _MODULUS
        elif kind == "op":
            op = rng.choice([o for o in _OPS if o != op])
        else:
            off = rng.randrange(1, _MODULUS)
        return step, *line(step, op, operand, _OPS[op](value, operand) + off)

    def believed(step: int, value: int):
        op, operand = ops[step]
        belief = FALSE_BELIEFS.get((op, value, operand))
        return belief is not None and line(step, op, operand, belief)

    def frame(step: int, word: str) -> tuple[str, str]:
        return word and f"{word},", "\n"

    steps = (len(ops), start, right, wrong, believed, frame)
    pieces, value = language.write(rng, habits, *steps)
    return [*pieces, Piece(f"\\boxed{{{value}}}")]


def clean(problem: str) -> list[Piece]:
    """The reference solution y*."""
    return write(random.Random(0), problem)


def attempt(rng: random.Random, problem: str) -> str:
    slip, correct_slip = rng.choice([0.0, 0.15, 0.3, 0.5]), rng.choice([0.0, 0.3, 0.7])
    return text_of(write(rng, problem, Habits(slip, 1.5, 0.0, correct_slip, recheck=0.08)))


def response(rng: random.Random, problem: str, kind: str, attempt: str | None) -> list[Piece]:
    """What pretraining shows as the answer to a prompt of an example of this kind."""
    return write(rng, problem, _HABITS[kind]) if kind in _HABITS else clean(problem)
