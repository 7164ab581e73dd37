"""`Compute:6o-6p-0`: a left-to-right chain of + - * modulo 7, solved line by line (start at 6; line
o subtracts 6, line p 0). Local: after a wrong line, the next line is still a valid lesson. The
student holds systematic false beliefs (a quarter of the facts)."""

import operator
import random
import re

from trdlib.tasks import language
from trdlib.tasks.language import RIGHT, WRITTEN, Habits, Piece, recipe

LABELS = "opqrstuvwxyz"  # of the lines
_MODULUS, _OPS = 7, {"+": operator.add, "-": operator.sub, "*": operator.mul}
LENGTHS, EASY_LENGTHS, EARLY, VARIED, MIXTURES, HABITS, ATTEMPT, ATTEMPTS = recipe("chain")
_HELD = WRITTEN["chain_beliefs"].split()  # what the student wrongly holds for (op, value, operand)
FALSE_BELIEFS = {(op, int(a), int(b)): int(result) for a, op, b, _, result in _HELD}


def random_problem(rng: random.Random, steps: int) -> str:
    terms = (f"{LABELS[i]}{rng.choice([*_OPS])}{rng.randrange(_MODULUS)}" for i in range(steps))
    return f"Compute:{rng.randrange(_MODULUS)}" + "".join(terms)


def write(rng: random.Random, problem: str, habits: Habits = RIGHT) -> list[Piece]:
    lines = [(op, int(b), 0) for op, b in re.findall(r"[a-z]([-+*])(\d)", problem)]

    # a line: op, operand, by how much the result is wrong
    def say(step: int, line: tuple[str, int, int], value: int):
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

    def believed(line: tuple[str, int, int], value: int):
        op, operand, _ = line
        held = FALSE_BELIEFS.get((op, value, operand))
        return None if held is None else (op, operand, held - _OPS[op](value, operand))

    how = (lines, int(problem[8]), say, mistaken, believed, "{},")
    pieces, value = language.write(rng, habits, *how)
    return [*pieces, Piece(f"\\boxed{{{value}}}")]
