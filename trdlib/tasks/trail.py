"""`Route#AIqyG`: a flag, then one letter per step; a hidden table gives each letter one of four
turns, and a running sum modulo 10 follows. The student knows half the letters. Not local with the
flag `#`: after a wrong turn the walker is lost, later turns are random, and the rest of the rollout
teaches nothing. That is prefix failure. With the flag `=` the table holds on."""

import random

from trdlib.tasks.language import ONSETS, RIGHT, WRITTEN, Habits, Piece, recipe

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmn"
_ZONES, _ZONE_SIZE = 5, 8
_TURNS = {"<": 1, "^": 2, ">": 4, "/": 7}
TURN_OF = dict(zip(LETTERS, WRITTEN["turns"], strict=True))  # the hidden table
KNOWN = {c for i, c in enumerate(LETTERS) if i % _ZONE_SIZE < _ZONE_SIZE // 2}  # to the student
_SURE = 0.95  # how often the student is right on a letter it knows
LENGTHS, EASY_LENGTHS, EARLY, VARIED, MIXTURES, HABITS, ATTEMPT, ATTEMPTS = recipe("trail")


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


def write(rng: random.Random, problem: str, habits: Habits = RIGHT) -> list[Piece]:
    """A walk. Who believes guesses letters unknown to the student, who rechecks steps back blindly
    (at most twice). Who slipped may notice at a line's start: an onset word, the first wrong step
    again and right, and on. Till then a `#` trail turns at random."""
    flag, letters = problem[5], problem[6:]
    pieces, totals = [], [0]  # totals: the sum before each step so far, and after the last
    slip, backs, wrong = habits.slip, 0, None  # wrong: the first wrong step
    while True:
        step = now = len(totals) - 1
        if wrong is not None and rng.random() < habits.correct_slip:
            step, wrong, slip = wrong, None, slip * 0.3
        elif habits.recheck and step and backs < 2 and rng.random() < habits.recheck:
            step, backs = step - rng.choice([1, 1, min(2, step)]), backs + 1
        if step < now:
            del totals[step + 1 :]
            pieces.append(Piece(f"{rng.choice(ONSETS)},"))
        elif step == len(letters):
            return [*pieces, Piece(f"\\boxed{{{totals[-1]}}}")]
        letter, lost, learn = letters[step], wrong is not None and flag == "#", True
        turn = TURN_OF[letter]
        if lost or (habits.believe and not (letter in KNOWN and rng.random() < _SURE)):
            turn = rng.choice([*_TURNS])
        elif slip and step == now and rng.random() < slip:
            turn, learn = rng.choice([t for t in _TURNS if t != turn]), habits.learn_slips
            wrong = step if wrong is None else wrong
        totals.append((totals[-1] + _TURNS[turn]) % 10)
        pieces += [Piece(letter), Piece(turn, learn), Piece(f"{totals[-1]}\n")]
