"""`Compute:6o-6p-0`: a left-to-right chain of + - * modulo 7, solved line by line.

Start at 6; line o subtracts 6, line p subtracts 0. Local: after a wrong line, the next line is
still a valid lesson. The student holds systematic false beliefs (a quarter of the facts).
"""

import itertools
import operator
import random
import re

from trdlib.tasks import language
from trdlib.tasks.language import RIGHT, Habits, Piece

LABELS = "opqrstuvwxyz"  # of the lines
_MODULUS = 7
_OPS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
Line = tuple[str, int, int]  # op, operand, by how much the result is wrong

# Of pretraining: how long problems are, as often as they are drawn, and at first; the first kind of
# example, and the share of each after that; what varies in a problem.
LENGTHS, EASY_LENGTHS = [1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8], [1, 1, 2]
EARLY, VARIED = "solve", {}
MIXTURES = {
    "foundation": {"solve": 0.5, "refine": 0.2, "reference": 0.1, "refine_reference": 0.2},
    "student": {"student": 0.45, "refine": 0.15, "reference": 0.15}
    | {"reference_slips": 0.05, "refine_reference": 0.2},
    "teacher": {"solve": 0.35, "slips": 0.25, "refine": 0.4},
}
# Who writes which kind of example (the rest is clean), and attempts: what varies in their habits.
HABITS = {
    "student": Habits(slip=0.06, correct_slip=0.3, recheck=0.08, believe=0.75),
    "slips": Habits(slip=0.2, correct_slip=0.7, learn_slips=False),
    "reference_slips": Habits(slip=0.25, correct_slip=0.7, learn_slips=False),
}
ATTEMPT = Habits(first_slip=1.5, recheck=0.08)
ATTEMPTS = {"slip": [0.0, 0.15, 0.3, 0.5], "correct_slip": [0.0, 0.3, 0.7]}

_rng = random.Random(4242)
FALSE_BELIEFS = {  # what the student wrongly holds for (op, value, operand)
    (op, a, b): (_OPS[op](a, b) + _rng.randrange(1, _MODULUS)) % _MODULUS
    for op, a, b in itertools.product(_OPS, range(_MODULUS), range(_MODULUS))
    if _rng.random() < 0.25
}


def random_problem(rng: random.Random, steps: int) -> str:
    terms = (f"{LABELS[i]}{rng.choice([*_OPS])}{rng.randrange(_MODULUS)}" for i in range(steps))
    return f"Compute:{rng.randrange(_MODULUS)}" + "".join(terms)


def write(rng: random.Random, problem: str, habits: Habits = RIGHT) -> list[Piece]:
    lines = [(op, int(b), 0) for op, b in re.findall(r"[a-z]([-+*])(\d)", problem)]

    def say(step: int, line: Line, value: int):
        op, operand, off = line
        result = (_OPS[op](value, operand) + off) % _MODULUS
        return ("", f"{LABELS[step]}{op}{operand}={result}", "\n"), result

    def mistaken(step: int):
        op, operand, _ = lines[step]
        kind = rng.choice(["value", "value", "value", "operand", "op", "skip"])
        if kind == "skip" and step + 1 < len(lines):
            return step + 1, lines[step + 1]
        if kind == "operand":
            return step, (op, (operand + rng.randrange(1, _MODULUS)) % _MODULUS, 0)
        if kind == "op":
            return step, (rng.choice([o for o in _OPS if o != op]), operand, 0)
        return step, (op, operand, rng.randrange(1, _MODULUS))

    def believed(line: Line, value: int):
        op, operand, _ = line
        held = FALSE_BELIEFS.get((op, value, operand))
        return None if held is None else (op, operand, held - _OPS[op](value, operand))

    how = (lines, int(problem[8]), say, mistaken, believed, "{},")
    pieces, value = language.write(rng, habits, *how)
    return [*pieces, Piece(f"\\boxed{{{value}}}")]
