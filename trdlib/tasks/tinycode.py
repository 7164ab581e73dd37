"""The task `tinycode`: a specification -> a Python function, in a tiny language of its own.

It stands in for competitive programming (paper section 3): `f(x): a add 3; b reverse` asks for a
function of `a = [v + 3 for v in x]` and `b = a[::-1]`. Whatever computes the same on INPUTS is
right: y* is in another hand (language.yaml) than most programs of the models. A wrong statement
spoils what follows, until an onset comment (`# Wait`), but the next clause is a lesson still."""

import functools
import itertools
import random
import re
import sys

from trdlib import sandbox, store
from trdlib.sandbox import Verdict, jail, verdicts
from trdlib.settings import SettingsError
from trdlib.tasks import language
from trdlib.tasks.language import END, RIGHT, Departure, Habits, Piece, text_of
from trdlib.tasks.sets import ProblemSet

LABELS = "abcdefgh"  # the variables of a program, in the order of the clauses
OPERANDS = range(2, 7)
ONSETS = tuple(f"# {word}" for word in language.ONSETS)  # epistemic onset tokens: comments
_OPEN, _NEXT, _RETURN = "def f(x):", "\n    ", "return "
_OWN_HAND = 0.8  # how often a model writes a program in the first ways
SECONDS, MEMORY = 4, 256  # of CPU time for all INPUTS (a right program takes 0.0001 s), and MiB
BATCH = 64  # programs of harmless words that share a process
KINDS, OPTIONS = {"code": sys.modules[__name__]}, {"code": {}}
LENGTHS, EASY_LENGTHS, EARLY, VARIED, MIXTURES, HABITS, ATTEMPT, ATTEMPTS = language.recipe("code")
_ROWS = language.WRITTEN["clauses"].items()
WAYS = {op: [re.findall("[SK]|[^SK|]+", way) for way in ways] for op, ways in _ROWS}
_COUNTED = {op for op, (own, _) in WAYS.items() if "K" in own}  # those with an operand
# What a clause does to a list of integers S: what its first way says, in Python's own words.
_MEANING = {op: eval(f"lambda S, K: {''.join(own)}") for op, (own, _) in WAYS.items()}
INPUTS = language.WRITTEN["inputs"]
build_tokenizer = functools.partial(language.word_tokenizer, "code")
Clause = tuple[str, int | None]  # operation, operand
# What shares a process: no dot, no quote, and no names but the language's own, so that no program
# reaches another, or stops what runs it otherwise than by taking too much.
_NAME, _OTHER = re.compile(r"[^\W\d]\w*"), re.compile(r"[^\w\s\[\]():,+*%<>=!#-]")
_NAMES = {*_NAME.findall(" ".join(language.WRITTEN["words"]["code"]))}
_MANY = """
for program in {}:
    try:
        exec(program, {{}})
    except Exception:
        pass
    print(end="\\0")
"""


def write_problem(clauses: list[Clause]) -> str:
    """`f(x): a add 3; b reverse`: the value that each clause makes has a name."""
    spelled = (op if k is None else f"{op} {k}" for op, k in clauses)
    return "f(x): " + "; ".join(map(" ".join, zip(LABELS, spelled, strict=False)))


def parse(problem: str) -> list[Clause]:
    found = re.findall(r"\w (\D+?)(?: (\d+))?(?:; |$)", problem.removeprefix("f(x): "))
    return [(op, int(k) if k else None) for op, k in found]


FALSE_BELIEFS = dict(map(parse, language.WRITTEN["code_beliefs"]))  # of the student


def random_problem(rng: random.Random, steps: int) -> str:
    ops = (rng.choice(list(WAYS)) for _ in range(steps))
    return write_problem([(op, rng.choice(OPERANDS) if op in _COUNTED else None) for op in ops])


def outputs(clauses: list[Clause], inputs: list[list[int]] = INPUTS) -> list[list[int]]:
    """What the function must return for each of the inputs."""
    for op, k in clauses:
        inputs = [_MEANING[op](x, k) for x in inputs]
    return inputs


def solved(problem: str) -> tuple[str, str, str]:
    """With its answer (what f must return for each of INPUTS, as Python prints it) and y*."""
    return problem, str(outputs(parse(problem))), text_of(clean(problem))


def row(rng: random.Random, part: ProblemSet, split: str) -> tuple[str, str, str]:
    """A problem of a set that INPUTS test: each clause counts, some is left, nothing is large."""
    steps = rng.choice(part.steps)
    while True:
        clauses = parse(problem := language.draw(rng, KINDS["code"], steps, split))
        right = outputs(clauses)
        if sum(len(xs) >= 2 for xs in right) < 4 or any(abs(v) > 1000 for xs in right for v in xs):
            continue
        if all(outputs(clauses[:i] + clauses[i + 1 :]) != right for i in range(len(clauses))):
            return solved(problem)


def problem(text: str) -> tuple[str, str, str]:
    """A problem that a person typed, its answer and its solution; SettingsError if it is none."""
    clauses = parse(text := " ".join(text.split()))
    known = all(op in WAYS and (op in _COUNTED) == (k is not None) for op, k in clauses)
    if not known or len(clauses) > len(LABELS) or write_problem(clauses) != text:
        how = f"write clauses a, b, c, ..., as in f(x): a add 3; there are {', '.join(WAYS)}"
        raise SettingsError(f"the tiny language has no {text[:40]!r}: {how}")
    return solved(text)


def _statement(step: int, clause: Clause, way: int) -> list[str]:
    values = {"S": f"x{LABELS}"[step], "K": str(clause[1])}
    return [_NEXT, f"{LABELS[step]} = ", *(values.get(one, one) for one in WAYS[clause[0]][way])]


def _program(clauses: list[Clause], lines: list[Piece]) -> list[Piece]:
    return [Piece(_OPEN), *lines, Piece(f"{_NEXT}{_RETURN}{LABELS[len(clauses) - 1]}")]


def _in_ways(clauses: list[Clause], ways: list[int]) -> list[Piece]:
    lines = [Piece("".join(_statement(i, clauses[i], way))) for i, way in enumerate(ways)]
    return _program(clauses, lines)


def clean(problem: str, way: int = 1) -> list[Piece]:
    """The reference solution y*: in the second ways, another hand than the models' own."""
    return _in_ways(clauses := parse(problem), [way] * len(clauses))


def write(rng: random.Random, problem: str, habits: Habits = RIGHT) -> list[Piece]:
    """A program in the models' own hand."""
    clauses, way = parse(problem), int(rng.random() >= _OWN_HAND)

    def say(step: int, clause: Clause, state):
        start, label, *side = _statement(step, clause, way)
        return (start + label, "".join(side), ""), state

    def mistaken(step: int):
        other = clause = clauses[step]
        while other == clause:
            if clause[1] is not None and rng.random() < 0.4:
                other = clause[0], rng.choice(OPERANDS)
            elif rng.random() < 0.3 and clause in FALSE_BELIEFS:
                other = FALSE_BELIEFS[clause]
            else:
                (other,) = parse(random_problem(rng, 1))
        return step, other

    how = (say, mistaken, lambda clause, state: FALSE_BELIEFS.get(clause), f"{_NEXT}# {{}}")
    return _program(clauses, language.write(rng, habits, clauses, None, *how)[0])


def _kept(clauses: list[Clause], text: str) -> dict[int, int]:
    """The right statements of a program, {step: way}, in the order in which they were last set."""
    lines, every = text.split(_NEXT), itertools.product(enumerate(clauses), (0, 1))
    right = {"".join(_statement(*one, way)[1:]): (one[0], way) for one, way in every}
    last = {line.partition(" = ")[0]: number for number, line in enumerate(lines)}
    return dict(right[lines[n]] for n in sorted(last.values()) if lines[n] in right)


def rewrite(rng: random.Random, problem: str, attempt: str) -> list[Piece]:
    """The attempt: right statements as they are, others in the hand of the first right one."""
    kept = _kept(clauses := parse(problem), attempt)
    way = kept[min(kept)] if kept else int(rng.random() >= _OWN_HAND)
    return _in_ways(clauses, [kept.get(i, way) for i in range(len(clauses))])


def is_right(problem: str, text: str) -> bool:
    """Does every statement do what its clause says, in order? Nothing is run: for pretraining."""
    start, end = _program(clauses := parse(problem), [])
    framed = text.startswith(start.text) and text.endswith(end.text)
    return framed and [*_kept(clauses, text)] == [*range(len(clauses))]


def first_wrong(problem: str, tokens: list[str]) -> Departure | None:
    """Where the tokens of a response leave the right programs, in any of their ways."""
    clauses = parse(problem)
    lines = [[_statement(i, clause, way) for way in (0, 1)] for i, clause in enumerate(clauses)]
    lines.append([[_NEXT, _RETURN, LABELS[len(clauses) - 1], END]])
    onsets = [[_NEXT, word] for word in ONSETS]
    return language.departure(tokens, lines, onsets, redo=True, opening=[_OPEN])


def _verdicts(pairs: list[tuple[str, str]]) -> list[Verdict]:
    """Of (program, answer): each program prints what f returns for INPUTS, and that is compared
    here, out of its reach. Harmless programs share a process, unless one takes too much."""
    programs = [f"{text}\nprint([f(xs) for xs in {INPUTS}])\n" for text, _ in pairs]
    alone, texts = len(pairs) == 1, " ".join(text for text, _ in pairs)
    if alone or not (_OTHER.search(texts) or set(_NAME.findall(texts)) - _NAMES):
        whole = programs[0] if alone else _MANY.format(programs)
        done = sandbox.run(whole, seconds=SECONDS, memory_mb=MEMORY)
        printed = [done.stdout] if alone else done.stdout.split(b"\0")[:-1]
        if alone or (not done.reason and len(printed) == len(pairs)):
            found = zip(printed, (f"{want}\n".encode() for _, want in pairs), strict=True)
            return [Verdict(got == want and not done.reason, done.reason) for got, want in found]
    half = len(pairs) // 2
    return _verdicts(pairs[:half]) + _verdicts(pairs[half:])


def grade(run, pairs: list[tuple[str, dict]]) -> list[bool]:
    """One verdict per (response, row): the response is run in the sandbox, on all INPUTS."""
    asked = [(text, row["answer"]) for text, row in pairs]
    return verdicts.judged(_verdicts, asked, grader(), BATCH)


def grader(run=None) -> str:
    return store.content_hash(INPUTS, store.code_hash(jail, sandbox, sys.modules[__name__]))
