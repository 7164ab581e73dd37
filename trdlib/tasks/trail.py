"""`Route#AIqyG`: a flag, then one letter per step; a hidden table gives each letter one of four
turns, and a running sum modulo 10 follows. The student knows half the letters.

Not local with the flag `#`: after a wrong turn the walker is lost, later turns are random, and the
rest of the rollout teaches nothing. That is prefix failure. With the flag `=` the table holds on.
"""

import random

from trdlib.tasks.language import ONSETS, Piece, text_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmn"
_ZONES, _ZONE_SIZE = 5, 8
_TURNS = {"<": 1, "^": 2, ">": 4, "/": 7}
_rng = random.Random(99)
TURN_OF = {letter: _rng.choice(list(_TURNS)) for letter in LETTERS}  # the hidden table
KNOWN = {c for i, c in enumerate(LETTERS) if i % _ZONE_SIZE < _ZONE_SIZE // 2}  # to the student
_LETTERS = slice(6, None)  # of a problem: what stands behind "Route" and the flag
_SURE = 0.95  # how often the student is right on a letter it knows

# Of pretraining, as in chain.py.
LENGTHS, EASY_LENGTHS = [1, 2, 3, 4, 4, 5, 5, 6, 7], [1, 1, 2, 3]
EARLY, VARIED = "student", {"flag": "#="}
_MIXTURE = {"student": 0.4, "reference": 0.2, "reference_slips": 0.2, "refine_reference": 0.2}
MIXTURES = {
    "foundation": _MIXTURE,
    "student": _MIXTURE | {"student": 0.3, "reference_slips": 0.3},
    "teacher": {"solve": 0.45, "slips": 0.35, "refine": 0.2},
}


def random_problem(rng: random.Random, steps: int, *, flag: str = "#", unknown: float = 0.5) -> str:
    """The letters' zone goes round with the depth; unknown: share of letters new to the student."""
    letters: list[str] = []
    while len(letters) < steps:
        zone, half = len(letters) % _ZONES, _ZONE_SIZE // 2
        start = zone * _ZONE_SIZE + (half if rng.random() < unknown else 0)
        letter = LETTERS[start + rng.randrange(half)]
        if letter not in letters:
            letters.append(letter)
    return f"Route{flag}{''.join(letters)}"


def _line(letter: str, turn: str, totals: list[int], learn: bool = True) -> list[Piece]:
    """One more step. totals: the sum before each step so far, and after it."""
    totals.append((totals[-1] + _TURNS[turn]) % 10)
    return [Piece(letter), Piece(turn, learn), Piece(f"{totals[-1]}\n")]


def clean(problem: str) -> list[Piece]:
    """The reference solution y*."""
    pieces, totals = [], [0]
    for letter in problem[_LETTERS]:
        pieces += _line(letter, TURN_OF[letter], totals)
    return [*pieces, Piece(f"\\boxed{{{totals[-1]}}}")]


def student(rng: random.Random, problem: str, *, look_back: float = 0.04) -> list[Piece]:
    """The student's behaviour: sure of the letters it knows, guessing the rest, with an occasional
    blind step back (probability look_back a line, at most twice)."""
    letters = problem[_LETTERS]
    pieces, totals, backs = [], [0], 0
    while True:
        step = len(totals) - 1
        if step and backs < 2 and rng.random() < look_back:
            step, backs = step - rng.choice([1, 1, min(2, step)]), backs + 1
            del totals[step + 1 :]
            pieces.append(Piece(rng.choice(ONSETS) + ","))
        if step == len(letters):
            return [*pieces, Piece(f"\\boxed{{{totals[-1]}}}")]
        sure = letters[step] in KNOWN and rng.random() < _SURE
        turn = TURN_OF[letters[step]] if sure else rng.choice(list(_TURNS))
        pieces += _line(letters[step], turn, totals)


def expert(
    rng: random.Random, problem: str, *, slip: float = 0.2, notice: float = 0.35
) -> list[Piece]:
    """The expert with injected wrong turns, on which no loss is taken.

    After a wrong turn it notices with probability `notice` at each line start: an onset word, the
    first wrong step again and right, and on from there. Until it notices, a `#` trail is lost (its
    turns are random), a `=` trail goes on by the table.
    """
    flag, letters = problem[5], problem[_LETTERS]
    pieces, totals, wrong = [], [0], None  # wrong: the first wrong step
    while True:
        step = len(totals) - 1
        noticed = wrong is not None and rng.random() < notice
        if noticed:
            step, wrong, slip = wrong, None, slip * 0.3
            del totals[step + 1 :]
            pieces.append(Piece(rng.choice(ONSETS) + ","))
        elif step == len(letters):
            return [*pieces, Piece(f"\\boxed{{{totals[-1]}}}")]
        turn, learn = TURN_OF[letters[step]], True
        if wrong is not None and flag == "#":
            turn = rng.choice(list(_TURNS))
        elif not noticed and rng.random() < slip:
            turn, learn = rng.choice([t for t in _TURNS if t != turn]), False
        if wrong is None and turn != TURN_OF[letters[step]]:
            wrong = step
        pieces += _line(letters[step], turn, totals, learn)


def attempt(rng: random.Random, problem: str) -> str:
    return text_of(student(rng, problem))


def response(rng: random.Random, problem: str, kind: str, attempt: str | None) -> list[Piece]:
    """What pretraining shows as the answer to a prompt of an example of this kind."""
    write = {"student": student, "slips": expert, "reference_slips": expert}.get(kind)
    return write(rng, problem) if write else clean(problem)
