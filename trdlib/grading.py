r"""Is this answer right? Cheap exact rules first, Math-Verify for the rest, always in bounded time.

A response is read after its thinking block; an unfinished block has no answer. The answer is the
content of the last complete `\boxed{...}`.

The authors' grader is Math-Verify on the whole response. Where we differ (tests/test_grading.py
holds the list, case by case, and checks it):
1. What is read: no complete box, no answer; no box counts before the thinking is over; of several
   boxes the last one counts, alone.
2. Writing that Math-Verify cannot read: trailing periods, unicode signs, e-notation, percent,
   spaces between the digits of a number, sized brackets, degrees in a sine, sentences.
3. An inequality may stand for the reference's interval.
4. Not accepted: a set for an ordered pair, one of two metric units for the other, a number in
   another base, numbers in a row (which Math-Verify adds: `4 5` is 9).

As in Math-Verify: units are dropped, not converted; lists and sets have no order; numbers agree
if they do to six decimals; `x=5` answers 5.

Two answers of AMO-Bench are functions. Its own grader (meituan-longcat/AMO-Bench, utils.py)
compares the right-hand sides at given points. So do we: AMO_POINTS.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import wait

SECONDS = 5  # for one step of Math-Verify: reading an answer, comparing two
LONGEST = 2_000  # characters; what is longer is no final answer, and would cost time to read

Points = tuple[dict[str, int], ...]
AMO_POINTS: dict[int, Points] = {  # by AMO-Bench's question_id
    5: tuple({"n": n} for n in range(1, 21)),
    37: tuple({"a": a, "b": a + 1, "c": a + 2} for a in range(2, 19)),
}


def points_of(problem: str) -> Points:
    """Where the function that answers this problem (by its id) is compared; () for all others."""
    name, _, number = problem.rpartition("-")
    return AMO_POINTS.get(int(number), ()) if name == "AMO-Bench" else ()


_SIGNS = {
    **{"−": "-", "–": "-", "∞": r"\infty ", "π": r"\pi ", "°": r"^\circ ", "∅": r"\emptyset "},
    **{"≤": r"\le ", "≥": r"\ge ", "×": r"\times ", "·": r"\cdot ", "∪": r"\cup "},
}
_REWRITE = [  # applied in this order, to answers and references alike
    (r"√\s*(\d+|\w)", r"\\sqrt{\1}"),
    (r"√", r"\\sqrt "),
    (r"\\[bB]igg?[lrm]?(?![A-Za-z])", ""),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])", " "),  # `\\ ` ends the row of a matrix
    (r"(?<![\d.])(\d{1,3})((?: \d{3})+)(?!\d)", lambda m: m[0].replace(" ", "")),  # 1 024
    (r"(?<!\\right)(?<=[\w})\]])\.\s*$", ""),
    (r"^\s*([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,4})\s*$", r"\1 \\times 10^{\2}"),
]
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\s*(?=\{)")
_SINE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_METRIC = re.compile(r"\d\s*\{?\s*([mcdk]?m|[mk]?g|[mc]?l)\}*(?:\s*\^\s*\{?[23]\}?)?\s*$")


def after_thinking(response: str) -> str | None:
    """The text after the thinking block; None if the block was never closed."""
    if "</think>" in response:
        return response.rsplit("</think>", 1)[1]
    return None if "<think>" in response else response


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` (braces balanced), or None."""
    found, last = None, -1
    opened: list[int | None] = []  # for each open brace: where the content of its box starts
    for match in re.finditer(r"(\\boxed\s*)?\{|\}", text):
        if match[0] != "}":
            opened.append(match.end() if match[1] else None)
        elif opened and (start := opened.pop()) is not None and start > last:
            found, last = text[start : match.start()].strip(), start
    return found


@functools.lru_cache(maxsize=100_000)  # many responses, few answers
def _normal(text: str) -> str:
    """The answer as Math-Verify reads it best: same meaning, fewer ways to write it."""
    for sign, latex in _SIGNS.items():
        text = text.replace(sign, latex)
    for pattern, replacement in _REWRITE:
        text = re.sub(pattern, replacement, text)
    if _SINE.search(text):  # Math-Verify drops the degree sign and takes the sine of radians
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    return text.strip()


def _integer(text: str) -> int | None:
    plain = text.strip().strip("$").strip()
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", plain):
        plain = plain.replace(",", "")
    return int(plain) if re.fullmatch(r"[-+]?\d{1,99}", plain) else None


def _words(text: str) -> str | None:
    """The text in lower case without commands, if it is a word or a sentence, else None."""
    plain = re.sub(r"[{}\s]+", " ", _TEXT.sub("", text)).strip(" .").lower()
    return plain if re.fullmatch(r"(?=.*[a-z]{3})[a-z][a-z ,.'-]*", plain) else None


def _by_rule(given: str | None, answer: str) -> bool | None:
    """The verdict if the cheap rules can give one, else None. Both sides are normal."""
    if not given:  # there is no box, or nothing in it
        return False
    if given == answer:
        return True
    if (left := _integer(given)) is not None and (right := _integer(answer)) is not None:
        return left == right
    if re.fullmatch(r"[-+]?\d+(\s+\d+)+", given):  # numbers in a row: Math-Verify adds them
        return False
    if (left := _words(given)) and (right := _words(answer)):
        if left == right:
            return True
        if _TEXT.search(given + answer):  # else it may be a product: abc = cab
            return False
    bases = [re.fullmatch(r"([0-9A-Z]+)_\{?(\d+)\}?", text) for text in (given, answer)]
    if all(bases):
        return bases[0].groups() == bases[1].groups()
    units = [_METRIC.search(_TEXT.sub("", text)) for text in (given, answer)]
    if all(units) and units[0][1] != units[1][1]:
        return False
    if re.fullmatch(r"\\\{[^(){}]*\\\}", re.sub(r"\\left|\\right", "", given)) and re.fullmatch(
        r"\([^(){}]*,[^(){}]*\)", re.sub(r"\\left|\\right", "", answer)
    ):
        return False  # a set has no order, a pair has
    return None


def _readings(given: str, answer: str) -> tuple[list[str], list[str]]:
    """What each side may mean: a percentage on one side only is the number or its hundredth."""
    sides = [re.fullmatch(r"(.*\d\}*)\s*\\?%", text, re.DOTALL) for text in (given, answer)]
    plain = [side[1] if side else text for side, text in zip(sides, (given, answer), strict=True)]
    one = (sides[0] is None) != (sides[1] is None)
    return tuple(
        [text, f"\\frac{{{text}}}{{100}}"] if one and side else [text]
        for side, text in zip(sides, plain, strict=True)
    )


def _same_values(guess: list, gold: list, points: Points) -> bool:
    """Do the right-hand sides take the same values at all points?"""

    def values(parsed):
        formula = getattr(parsed[0], "rhs", parsed[0])
        for point in points:
            known = {s: point[s.name] for s in formula.free_symbols if s.name in point}
            yield complex(formula.subs(known).evalf(30))

    pairs = zip(values(guess), values(gold), strict=True)
    return all(abs(left - right) <= 1e-8 * max(1, abs(right)) for left, right in pairs)


def _judge(given: str, answer: str, points: Points) -> bool:
    from math_verify import parse, verify

    def read(texts):
        return [
            form for text in texts for form in parse(f"\\boxed{{{text}}}", parsing_timeout=SECONDS)
        ]

    guess, gold = map(read, _readings(given, answer))
    if verify(gold, guess, allow_set_relation_comp=True, timeout_seconds=SECONDS):
        return True
    return bool(points) and _same_values(guess, gold, points)


def _serve(connection, parents_end) -> None:
    # Math-Verify's own time-outs are signals of the main thread: here we are on one.
    parents_end.close()  # or a parent that was killed would never be noticed
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            connection.send(_judge(*question))
        except Exception:  # whatever a model wrote that breaks the parser is not an answer
            connection.send(False)


class _Helper:
    """A process for Math-Verify that answers one question at a time; it is killed if it overruns.

    Math-Verify's signals cannot stop one long operation on huge integers, a kill can.
    """

    def __init__(self):
        self.owner = os.getpid()
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.connection), daemon=True)
        self.process.start()
        theirs.close()

    def usable(self) -> bool:  # after a fork, a helper belongs to the parent
        return self.owner == os.getpid() and self.process.is_alive()

    def ask(self, question: tuple) -> None:
        self.deadline = time.monotonic() + 3 * SECONDS + 1  # two readings, a comparison
        self.connection.send(question)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


_idle: list[_Helper] = []


def _by_helpers(questions: list[tuple], workers: int) -> list[bool]:
    """Math-Verify's verdicts, in order. A question that kills or stalls its helper gets False."""
    verdicts = [False] * len(questions)
    todo, busy = list(range(len(questions)))[::-1], {}
    while todo or busy:
        while todo and len(busy) < workers:
            helper = _idle.pop() if _idle else _Helper()
            if helper.usable():
                number = todo.pop()
                busy[helper.connection] = helper, number
                with contextlib.suppress(OSError):  # it just died: seen below
                    helper.ask(questions[number])
        first = min(helper.deadline for helper, _ in busy.values())
        ready = wait(list(busy), max(0, first - time.monotonic()))
        for connection in list(busy):
            helper, number = busy[connection]
            try:
                if connection in ready:
                    verdicts[number] = connection.recv()
                elif time.monotonic() < helper.deadline:
                    continue
                else:
                    raise TimeoutError
                _idle.append(helper)
            except (EOFError, OSError):  # TimeoutError is one
                helper.kill()
            del busy[connection]
    return verdicts


def grade(
    pairs: Iterable[tuple[str, str]], workers: int | None = None, points: Points = ()
) -> list[bool]:
    """One verdict per (response, reference answer); see is_correct. Equal answers are read once.

    By default up to four helper processes, or one inside a job of parallel.run_jobs.
    """
    if workers is None:
        inside = multiprocessing.parent_process() is not None
        workers = 1 if inside else min(4, os.cpu_count() or 1)
    asked = []
    for response, answer in pairs:
        text = after_thinking(response)
        given = None if text is None else boxed(text)
        if given is not None:
            given = _normal(given) if len(given) <= LONGEST else None
        asked.append((given, _normal(answer)))
    verdicts = {pair: _by_rule(*pair) for pair in asked}
    hard = [pair for pair, verdict in verdicts.items() if verdict is None]
    questions = [(*pair, points) for pair in hard]
    verdicts.update(zip(hard, _by_helpers(questions, workers), strict=True))
    return [verdicts[pair] for pair in asked]


def is_correct(response: str, answer: str, points: Points = ()) -> bool:
    """Does the response's final boxed answer equal the reference answer? Takes bounded time.

    With points, functions are equal if their values at all points are.
    """
    return grade([(response, answer)], points=points)[0]
