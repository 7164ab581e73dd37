"""A procedural code task in a tiny language of its own: a specification -> a Python function.

The task stands in for competitive programming (paper section 3) at a scale where a laptop can run
the whole comparison. A problem is a list of clauses, `f(x): a add 3; b reverse; c keep odd`; the
answer is a Python function with one statement per clause, each on the value of the one before:

    def f(x):
        a = [v + 3 for v in x]
        b = a[::-1]
        c = [v for v in b if v % 2 == 1]
        return c

A response is graded by running it on the lists INPUTS, never by comparing strings: every clause
can be written in two ways, and whatever computes the same is right. So references are not unique:
y* is written in another hand (the second ways) than most programs of the models (the first ways),
and a rewrite keeps the right statements of the attempt as they are.

The failure mode is that of `chain` (tiny.py): many steps, and one wrong statement spoils the value
of all that follow; only a correction mends it, an onset comment (`# Wait`) and everything from the
wrong statement on written again. It is local: after a wrong statement the next clause still says
what the next statement has to do, so the rest of the rollout is a lesson. The student holds
systematic false beliefs: for a part of the clauses it writes what another clause asks for, such as
`x[:4]` for `take 3` or `>` for `<`.

Problems are dealt into splits by a hash of their text, as in tiny.py, so that pretraining,
distillation, validation and test sets are disjoint by construction. What the library shares with
tiny.py (tokenizer, pretraining) it calls there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import sqlite3
import sys
from collections.abc import Iterable

from trdlib import config, jail, sandbox, tiny
from trdlib.tiny import Departure, Language, Piece, text_of

# -------------------------------------------------------------------------------------- language

LABELS = "abcdefgh"  # the variables of a program, in the order of the clauses
OPERANDS = range(2, 7)
_OPEN, _NEXT, _RETURN = "def f(x):", "\n    ", "return "
ONSETS = tuple(f"# {word}" for word in tiny.ONSETS)  # epistemic onset tokens: comments

# A clause -> the two ways to write it. {s}: the value before; {k}: the operand, if it has one;
# `|` parts the tokens.
WAYS = {
    "add": ("[v + |{k}| for v in |{s}|]", "[|{k}| + v for v in |{s}|]"),
    "subtract": ("[v - |{k}| for v in |{s}|]", "[-|{k}| + v for v in |{s}|]"),
    "times": ("[v * |{k}| for v in |{s}|]", "[|{k}| * v for v in |{s}|]"),
    "keep over": ("[v for v in |{s}| if v > |{k}|]", "[v for v in |{s}| if |{k}| < v|]"),
    "keep under": ("[v for v in |{s}| if v < |{k}|]", "[v for v in |{s}| if |{k}| > v|]"),
    "keep multiples of": (
        "[v for v in |{s}| if v % |{k}| == 0|]",
        "[v for v in |{s}| if not v % |{k}|]",
    ),
    "take": ("{s}|[:|{k}|]", "{s}|[0:|{k}|]"),
    "skip": ("{s}|[|{k}|:]", "{s}|[|{k}|:len(|{s}|)]"),
    "every": ("{s}|[::|{k}|]", "{s}|[0::|{k}|]"),
    "reverse": ("{s}|[::-1]", "list(reversed(|{s}|))"),
    "sort up": ("sorted(|{s}|)", "sorted(|{s}|, reverse=False)"),
    "sort down": ("sorted(|{s}|, reverse=True)", "sorted(|{s}|)|[::-1]"),
    "square": ("[v * v for v in |{s}|]", "[v ** 2 for v in |{s}|]"),
    "negate": ("[-v for v in |{s}|]", "[0 - v for v in |{s}|]"),
    "absolute": ("[abs(v) for v in |{s}|]", "list(map(abs, |{s}|))"),
    "keep odd": ("[v for v in |{s}| if v % |2| == 1|]", "[v for v in |{s}| if v % |2| != 0|]"),
    "twice": ("{s}| + |{s}", "{s}| * 2"),
    "drop last": ("{s}|[:-1]", "{s}|[:len(|{s}|) - 1]"),
}
# What a clause is taken for by one who confuses two of them.
_CONFUSED = {
    "add": "subtract",
    "subtract": "add",
    "times": "add",
    "keep over": "keep under",
    "keep under": "keep over",
    "keep multiples of": "keep over",
    "take": "skip",
    "skip": "take",
    "every": "take",
    "reverse": "sort down",
    "sort up": "sort down",
    "sort down": "sort up",
    "square": "twice",
    "negate": "absolute",
    "absolute": "negate",
    "keep odd": "absolute",
    "twice": "square",
    "drop last": "reverse",
}
# What a clause does to a list of integers: apart from the ways to write it, on purpose.
_MEANING = {
    "add": lambda xs, k: [v + k for v in xs],
    "subtract": lambda xs, k: [v - k for v in xs],
    "times": lambda xs, k: [v * k for v in xs],
    "keep over": lambda xs, k: [v for v in xs if v > k],
    "keep under": lambda xs, k: [v for v in xs if v < k],
    "keep multiples of": lambda xs, k: [v for v in xs if v % k == 0],
    "take": lambda xs, k: xs[:k],
    "skip": lambda xs, k: xs[k:],
    "every": lambda xs, k: xs[::k],
    "reverse": lambda xs, k: xs[::-1],
    "sort up": lambda xs, k: sorted(xs),
    "sort down": lambda xs, k: sorted(xs)[::-1],
    "square": lambda xs, k: [v * v for v in xs],
    "negate": lambda xs, k: [-v for v in xs],
    "absolute": lambda xs, k: [abs(v) for v in xs],
    "keep odd": lambda xs, k: [v for v in xs if v % 2],
    "twice": lambda xs, k: xs + xs,
    "drop last": lambda xs, k: xs[:-1],
}
CLAUSES = [  # (operation, operand or None)
    (op, k) for op in WAYS for k in (OPERANDS if "{k}" in WAYS[op][0] else [None])
]

Clause = tuple[str, int | None]


def _false_beliefs() -> dict[Clause, Clause]:
    rng, found = random.Random(77), {}
    for op, k in CLAUSES:
        other = _CONFUSED[op]
        taken_for = (other, rng.choice(OPERANDS) if k is None else k)
        if "{k}" not in WAYS[other][0]:
            taken_for = (other, None)
        if k is not None and rng.random() < 0.5:  # off by one
            taken_for = (op, k + rng.choice([-1, 1]))
        if rng.random() < 0.25:
            found[op, k] = taken_for
    return found


FALSE_BELIEFS = _false_beliefs()  # what the student takes a clause for

# ------------------------------------------------------------------------------------ tokenizer


def _fragments(clause: Clause, way: int, source: str) -> list[str]:
    op, k = clause
    return [part.format(s=source, k=k) for part in WAYS[op][way].split("|")]


def _words() -> list[str]:
    pieces = {p for ways in WAYS.values() for way in ways for p in way.split("|") if "{" not in p}
    phrases = [f" {op} " if "{k}" in WAYS[op][0] else f" {op}" for op in WAYS]
    words = ["user", "assistant", "f(x): ", "; ", "Solve", "Attempt", "Reference", "Rewrite", ":"]
    words += [_OPEN, _NEXT, _RETURN, *ONSETS, *phrases, *sorted(pieces - {"2"})]
    return [*words, *(f"{label} = " for label in LABELS), *"\nx", *LABELS, *"0123456789"]


_WORDS = _words()
_PATTERN = "|".join(map(re.escape, sorted(_WORDS, key=len, reverse=True))) + "|."


def build_tokenizer():
    """A lossless word-level tokenizer with a chat template, as a stock fast tokenizer."""
    return tiny.word_tokenizer([*tiny.SPECIAL, *_WORDS], _PATTERN)


# -------------------------------------------------------------------------------------- problems


def write_problem(clauses: list[Clause]) -> str:
    """`f(x): a add 3; b reverse`: the value that each clause makes has a name."""
    spelled = (op if k is None else f"{op} {k}" for op, k in clauses)
    return "f(x): " + "; ".join(
        f"{label} {phrase}" for label, phrase in zip(LABELS, spelled, strict=False)
    )


def parse(problem: str) -> list[Clause]:
    """The clauses of a problem, in order."""
    clauses = []
    for clause in problem.removeprefix("f(x): ").split("; "):
        op, _, last = clause[2:].rpartition(" ")
        clauses.append((op, int(last)) if last.isdigit() else (clause[2:], None))
    return clauses


def interpret(clauses: list[Clause], xs: list[int]) -> list[int]:
    """What the function must return."""
    for op, k in clauses:
        xs = _MEANING[op](xs, k)
    return xs


_rng = random.Random(5)
INPUTS = [[_rng.randrange(-9, 13) for _ in range(length)] for length in (7, 8, 9, 10, 12, 3)]
_LARGEST = 1000  # of a value that a test expects


def outputs(clauses: list[Clause]) -> list[list[int]]:
    return [interpret(clauses, xs) for xs in INPUTS]


def _tells(clauses: list[Clause]) -> bool:
    """Do INPUTS tell much of these clauses? Each makes a difference, and something is left."""
    right = outputs(clauses)
    if sum(len(xs) >= 2 for xs in right) < 4 or any(abs(v) > _LARGEST for xs in right for v in xs):
        return False
    return all(outputs(clauses[:i] + clauses[i + 1 :]) != right for i in range(len(clauses)))


def answer(problem: str) -> str:
    """What f must return for each of INPUTS, as Python prints it: the column `answer`."""
    return str(outputs(parse(problem)))


def draw(rng: random.Random, task: str, steps: int, split: str, *, telling: bool = False) -> str:
    """A random problem of one length from one split. Short problems are pretrained on only.

    telling: only problems where INPUTS show if a clause is left out.
    """
    if steps < tiny.HELD_OUT_FROM and split != "pretrain":
        least = tiny.HELD_OUT_FROM
        raise ValueError(f"problems of {steps} steps are for pretraining: ask for {least}")
    while True:
        clauses = [_random_clause(rng) for _ in range(steps)]
        problem = write_problem(clauses)
        if steps >= tiny.HELD_OUT_FROM and tiny.split_of(problem) != split:
            continue
        if not telling or _tells(clauses):
            return problem


def _random_clause(rng: random.Random) -> Clause:
    op = rng.choice(list(WAYS))
    return op, rng.choice(OPERANDS) if "{k}" in WAYS[op][0] else None


# -------------------------------------------------------------------------------------- programs

OWN_HAND = 0.8  # how often a model writes a program in the first ways


def clean(problem: str, way: int = 1) -> list[Piece]:
    """The reference solution y*: in the second ways, another hand than the models' own."""
    clauses = parse(problem)
    return _program(clauses, [way] * len(clauses))


def _statement(index: int, clause: Clause, way: int) -> list[Piece]:
    source = LABELS[index - 1] if index else "x"
    right = "".join(_fragments(clause, way, source))
    return [Piece(f"{_NEXT}{LABELS[index]} = "), Piece(right)]


def _program(clauses: list[Clause], ways: list[int]) -> list[Piece]:
    pieces = [Piece(_OPEN)]
    for index, (clause, way) in enumerate(zip(clauses, ways, strict=True)):
        pieces += _statement(index, clause, way)
    return [*pieces, Piece(f"{_NEXT}{_RETURN}{LABELS[len(clauses) - 1]}")]


def _hand(rng: random.Random) -> int:
    return 0 if rng.random() < OWN_HAND else 1


def _mistaken(rng: random.Random, clause: Clause) -> Clause:
    """Another clause, at random: its operand, or all of it."""
    op, k = clause
    while True:
        if k is not None and rng.random() < 0.4:
            other = op, rng.choice(OPERANDS)
        elif rng.random() < 0.3 and clause in FALSE_BELIEFS:
            other = FALSE_BELIEFS[clause]
        else:
            other = _random_clause(rng)
        if other != clause:
            return other


def write(
    rng: random.Random,
    problem: str,
    *,
    slip: float = 0.0,
    believe: float = 0.0,
    correct_slip: float = 0.0,
    recheck: float = 0.0,
    learn_slips: bool = True,
) -> list[Piece]:
    """A program with the given habits, in the models' own hand; without any, a right one.

    slip: probability of a random wrong statement; believe: of following a false belief where one
    applies; correct_slip: that a wrong statement is taken back by `# Wait` after 0 to 2 more, and
    all from it on written again; recheck: of a redundant second writing.
    """
    clauses = parse(problem)
    way, pieces = _hand(rng), [Piece(_OPEN)]
    step, repair = 0, None  # repair: [statements to go, wrong step]
    while step < len(clauses) or repair:
        if repair and (repair[0] <= 0 or step >= len(clauses)):
            step, repair = repair[1], None
            pieces.append(Piece(f"{_NEXT}{rng.choice(ONSETS)}"))
            pieces += _statement(step, clauses[step], way)
            step += 1
            continue
        clause, wrong = clauses[step], False
        if rng.random() < slip:
            clause, wrong = _mistaken(rng, clause), True
        elif believe and clause in FALSE_BELIEFS and rng.random() < believe:
            clause, wrong = FALSE_BELIEFS[clause], True
        start, right = _statement(step, clause, way)
        pieces += [start, Piece(right.text, learn_slips or not wrong)]
        if repair:
            repair[0] -= 1
        elif wrong and rng.random() < correct_slip:
            repair = [rng.choice([0, 0, 1, 2]), step]
        elif not wrong and rng.random() < recheck:
            pieces.append(Piece(f"{_NEXT}{rng.choice(ONSETS)}"))
            pieces += _statement(step, clause, way)
        step += 1
    return [*pieces, Piece(f"{_NEXT}{_RETURN}{LABELS[len(clauses) - 1]}")]


def _right_sides(clauses: list[Clause], index: int) -> list[str]:
    """The ways to write a clause of a problem."""
    return [_statement(index, clauses[index], way)[1].text for way in (0, 1)]


def rewrite(rng: random.Random, problem: str, attempt: str) -> list[Piece]:
    """The attempt, mended: its right statements as they are, the others right and in the hand of
    the first right one, no second looks."""
    clauses = parse(problem)
    last = dict(line.split(" = ", 1) for line in attempt.split(_NEXT) if " = " in line)
    kept = {}
    for index in range(len(clauses)):
        sides = _right_sides(clauses, index)
        if last.get(LABELS[index]) in sides:
            kept[index] = sides.index(last[LABELS[index]])
    way = next(iter(kept.values()), None)
    way = _hand(rng) if way is None else way
    return _program(clauses, [kept.get(index, way) for index in range(len(clauses))])


def is_right(problem: str, text: str) -> bool:
    """Does every statement that counts do what its clause says? Nothing is run: for pretraining.

    Stricter than the tests: a wrong statement that makes no difference is wrong.
    """
    clauses, good = parse(problem), {"x"}
    lines = [line for line in text.split(_NEXT) if line not in ONSETS]
    if lines[0] != _OPEN or lines[-1] != f"{_RETURN}{LABELS[len(clauses) - 1]}":
        return False
    for line in lines[1:-1]:
        label, _, right = line.partition(" = ")
        index = LABELS.find(label) if label else -1
        if not 0 <= index < len(clauses):
            return False
        source = LABELS[index - 1] if index else "x"
        if source in good and right in _right_sides(clauses, index):
            good.add(label)
        else:
            good.discard(label)
    return LABELS[len(clauses) - 1] in good


def departure(problem: str, tokens: list[str]) -> Departure | None:
    """The first wrong token of a response to the problem; None if no token is wrong.

    tokens: of the response, the end of its turn included where it is finished. Right are the
    statements of the clauses in their order, in any of their ways, then the return, then the end
    of the turn. Onset comments may stand between statements, and a step that was reached before
    may be written again, with all that follow it. What is taken back later was wrong all the same;
    an attempt that just breaks off is not. `right` is the models' own way where several are.
    """
    clauses = parse(problem)
    lines = [
        [
            [_NEXT, f"{LABELS[i]} = ", *_fragments(clause, way, LABELS[i - 1] if i else "x")]
            for way in (0, 1)
        ]
        for i, clause in enumerate(clauses)
    ]
    end = [_NEXT, _RETURN, LABELS[len(clauses) - 1], tiny.SPECIAL[2]]
    reached, open_ = 0, [(0, [_OPEN])]  # clauses written; what may follow in the line at hand
    for index, token in enumerate(tokens):
        fitting = [(n, rest[1:]) for n, rest in open_ if rest[0] == token]
        if not fitting:
            return Departure(index, open_[0][1][0])
        done = [n for n, rest in fitting if not rest]
        if not done:
            open_ = fitting
            continue
        reached = done[0]
        later = [(reached + 1, way) for way in lines[reached]] if reached < len(clauses) else []
        again = [(n + 1, way) for n in range(reached) for way in lines[n]]
        onset = [(reached, [_NEXT, word]) for word in ONSETS]
        last = [(reached, end)] if reached == len(clauses) else []
        open_ = [*later, *last, *again, *onset]
        open_ += [(n, rest) for n, rest in fitting if rest]  # a way that goes on where one ends
        if token == tiny.SPECIAL[2]:
            break
    return None


# --------------------------------------------------------------------------------------- grading

SECONDS, MEMORY = 4, 256  # of CPU time for all INPUTS (a right program takes 0.004 s), and MiB
_CALLS = f"\nprint([f(xs) for xs in {INPUTS}])\n"


@contextlib.contextmanager
def _verdicts():
    """What this code has said so far, in any process: samples of small models repeat each other."""
    code = config.code_hash(jail, sandbox, sys.modules[__name__])
    version = "".join(map(str, sys.version_info[:2]))
    path = config.root() / "runs" / "verdicts" / f"{code}-{version}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=600)) as file, file:
        file.execute("CREATE TABLE IF NOT EXISTS verdicts (pair TEXT PRIMARY KEY, passed INTEGER)")
        yield file


def grade(pairs: Iterable[tuple[str, str]], workers: int | None = None) -> list[bool]:
    """One verdict per (response, answer): the response is run in the sandbox, on all INPUTS.

    What it prints is compared here, where no program can touch it; a program that prints the right
    values by itself had to compute them. Equal pairs are run once in a project. By default one
    program at a time for each core, or one inside a job of parallel.run_jobs.
    """
    pairs = list(pairs)
    keys = {pair: hashlib.sha256(json.dumps(pair).encode()).hexdigest() for pair in pairs}
    known: dict[tuple[str, str], bool] = {}
    with _verdicts() as file:
        for pair, key in keys.items():
            if row := file.execute("SELECT passed FROM verdicts WHERE pair = ?", [key]).fetchone():
                known[pair] = bool(row[0])
    new = [pair for pair in keys if pair not in known]
    if workers is None:
        workers = 1 if multiprocessing.parent_process() is not None else os.cpu_count() or 1

    def judge(pair: tuple[str, str]) -> tuple[bool, str]:
        done = sandbox.run(pair[0] + _CALLS, seconds=SECONDS, memory_mb=MEMORY)
        return not done.reason and done.stdout == f"{pair[1]}\n".encode(), done.reason

    found = dict(zip(new, sandbox.in_pool(judge, new, workers), strict=True))
    known |= {pair: passed for pair, (passed, _) in found.items()}
    with _verdicts() as file:  # without those that may be the machine's doing
        rows = [
            (keys[pair], passed)
            for pair, (passed, reason) in found.items()
            if not reason.startswith(("timeout", "killed"))
        ]
        file.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", rows)
    return [known[pair] for pair in pairs]


# ----------------------------------------------------------------------------------- pretraining

MIXTURES = {
    "foundation": {
        "code": {"solve": 0.5, "refine": 0.2, "reference": 0.1, "refine_reference": 0.2}
    },
    "student": {
        "code": {
            "student": 0.45,
            "refine": 0.15,
            "reference": 0.15,
            "reference_slips": 0.05,
            "refine_reference": 0.2,
        }
    },
    "teacher": {"code": {"solve": 0.35, "slips": 0.25, "refine": 0.4}},
}


def _attempt(rng: random.Random, problem: str) -> str:
    habits = {
        "slip": rng.choice([0.0, 0.1, 0.2, 0.4]),
        "believe": rng.choice([0.0, 0.75]),
        "correct_slip": rng.choice([0.0, 0.3, 0.7]),
        "recheck": 0.05,
    }
    return text_of(write(rng, problem, **habits))


def _response(rng: random.Random, problem: str, kind: str, attempt: str | None) -> list[Piece]:
    if attempt is not None:
        return rewrite(rng, problem, attempt)
    if kind == "student":
        habits = {"slip": 0.05, "correct_slip": 0.3, "recheck": 0.05, "believe": 0.75}
        return write(rng, problem, **habits)
    if kind in ("slips", "reference_slips"):
        habits = {"slip": 0.2, "correct_slip": 0.7, "learn_slips": False}
        return write(rng, problem, **habits)
    return write(rng, problem)


def _how(rng: random.Random, task: str) -> dict:
    return {}


def _of_set(rng: random.Random, part: config.ProblemSet, split: str) -> str:
    return draw(rng, part.task, rng.choice(part.steps), split, telling=True)


CODE = Language(
    build_tokenizer=build_tokenizer,
    draw=draw,
    how=_how,
    clean=clean,
    attempt=_attempt,
    response=_response,
    is_right=is_right,
    departure=departure,
    of_set=_of_set,
    answer=answer,
    lengths={"code": [1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7]},
    easy_lengths={"code": [1, 1, 2]},
    early_kind={"code": "solve"},
    mixtures=MIXTURES,
)
