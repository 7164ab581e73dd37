r"""Published problems whose answers are mathematics: is this answer right?

Cheap exact rules first, Math-Verify for the rest, always in bounded time. The authors' grader is
Math-Verify on the whole response. Where we differ (case by case in tests/grading_cases.py):
1. The answer is the content of the last complete `\boxed{...}` after the thinking block, alone:
   without a box, or in a block that never ends, there is none.
2. Writing that Math-Verify cannot read: trailing periods, unicode signs, e-notation, percent,
   spaces between the digits of a number, sized brackets, degrees in a sine, sentences.
3. An inequality may stand for the reference's interval.
4. Not accepted: a set for an ordered pair, one of two metric units for the other, a number in
   another base, numbers in a row (which Math-Verify adds: `4 5` is 9).

As in Math-Verify: units are dropped, not converted; lists and sets have no order; numbers agree
if they do to six decimals; `x=5` answers 5. Two answers of AMO-Bench are functions: as its own
grader (meituan-longcat/AMO-Bench, utils.py) we compare the right-hand sides at given points.
"""

import functools
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable

from trdlib import store
from trdlib.tasks import hub
from trdlib.tasks.hub import check, files, notes, sizes  # noqa: F401 - of every published task

SECONDS = 5  # for one step of Math-Verify: reading an answer, comparing two
LONGEST = 2_000  # characters; what is longer is no final answer, and would cost time to read
POINTS: dict[str, tuple[dict[str, int], ...]] = {  # by the id of the problem
    "AMO-Bench-5": tuple({"n": n} for n in range(1, 21)),
    "AMO-Bench-37": tuple({"a": a, "b": a + 1, "c": a + 2} for a in range(2, 19)),
}

_SIGNS = {
    "−": "-", "–": "-", "∞": r"\infty ", "π": r"\pi ", "°": r"^\circ ", "∅": r"\emptyset ",
    "≤": r"\le ", "≥": r"\ge ", "×": r"\times ", "·": r"\cdot ", "∪": r"\cup ",
}  # fmt: skip
_REWRITE = [  # applied in this order, to answers and references alike
    (r"√\s*(\d+|\w)", r"\\sqrt{\1}"), (r"√", r"\\sqrt "),
    (r"\\[bB]igg?[lrm]?(?![A-Za-z])", ""),
    (r"\\lbrace(?![A-Za-z])", r"\\{"), (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])", " "),  # `\\ ` ends the row of a matrix
    (r"(?<![\d.])(\d{1,3})((?: \d{3})+)(?!\d)", lambda m: m[0].replace(" ", "")),  # 1 024
    (r"(?<!\\right)(?<=[\w})\]])\.\s*$", ""),
    (r"^\s*([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,4})\s*$", r"\1 \\times 10^{\2}"),
]  # fmt: skip
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\s*(?=\{)")
_SINE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_METRIC = re.compile(r"\d\s*\{?\s*([mcdk]?m|[mk]?g|[mc]?l)\}*(?:\s*\^\s*\{?[23]\}?)?\s*$")


def after_thinking(response: str) -> str | None:
    """The text after the thinking block; None if the block was never closed."""
    _, ended, text = response.rpartition("</think>")
    return text if ended or "<think>" not in response else None


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
    number = r"[-+]?(\d{1,3}(,\d{3}){1,32}|\d{1,99})"
    return int(plain.replace(",", "")) if re.fullmatch(number, plain) else None


def _words(text: str) -> str | None:
    """The text in lower case without commands, if it is a word or a sentence, else None."""
    plain = re.sub(r"[{}\s]+", " ", _TEXT.sub("", text)).strip(" .").lower()
    return plain if re.fullmatch(r"(?=.*[a-z]{3})[a-z][a-z ,.'-]*", plain) else None


def _by_rule(given: str | None, answer: str) -> bool | None:
    """The verdict if the cheap rules can give one, else None. Both sides are normal."""
    if not given or given == answer:  # if there is no box, or nothing in it, it is wrong
        return bool(given)
    if (left := _integer(given)) is not None and (right := _integer(answer)) is not None:
        return left == right
    if re.fullmatch(r"[-+]?\d+(\s+\d+)+", given):  # numbers in a row: Math-Verify adds them
        return False
    words = [_words(text) for text in (given, answer)]
    if all(words) and (words[0] == words[1] or _TEXT.search(given + answer)):
        return words[0] == words[1]  # without \text it may be a product: abc = cab
    bases = [re.fullmatch(r"([0-9A-Z]+)_\{?(\d+)\}?", text) for text in (given, answer)]
    if all(bases):
        return bases[0].groups() == bases[1].groups()
    units = [_METRIC.search(_TEXT.sub("", text)) for text in (given, answer)]
    if all(units) and units[0][1] != units[1][1]:
        return False
    both = re.sub(r"\\left|\\right", "", f"{given}\n{answer}")
    if re.fullmatch(r"\\\{[^(){}]*\\\}\n\([^(){}]*,[^(){}]*\)", both):
        return False  # a set has no order, a pair has
    return None


def _readings(given: str, answer: str) -> list[list[str]]:
    """What each side may mean: a percentage on one side only is the number or its hundredth."""
    sides = [re.fullmatch(r"(.*\d\}*)\s*\\?%", text, re.DOTALL) for text in (given, answer)]
    if all(sides):
        return [[side[1]] for side in sides]
    pairs = zip(sides, (given, answer), strict=True)
    return [[s[1], f"\\frac{{{s[1]}}}{{100}}"] if s else [text] for s, text in pairs]


def _judge(given: str, answer: str, problem: str | None) -> bool:
    """Math-Verify's verdict, else whether the right-hand sides agree at the POINTS of a problem.
    Math-Verify's own time-outs are signals, for the main thread of a process."""
    from math_verify import parse, verify

    def read(texts):
        boxes = [f"\\boxed{{{text}}}" for text in texts]
        return [form for box in boxes for form in parse(box, parsing_timeout=SECONDS)]

    def values(parsed):
        formula = getattr(parsed[0], "rhs", parsed[0])
        for point in POINTS[problem]:
            known = {s: point[s.name] for s in formula.free_symbols if s.name in point}
            yield complex(formula.subs(known).evalf(30))

    try:
        guess, gold = map(read, _readings(given, answer))
        if verify(gold, guess, allow_set_relation_comp=True, timeout_seconds=SECONDS):
            return True
        pairs = zip(values(guess), values(gold), strict=True)
        near = (abs(left - right) <= 1e-8 * max(1, abs(right)) for left, right in pairs)
        return problem is not None and all(near)
    except Exception:  # whatever a model wrote that breaks the parser is not an answer
        return False


def _by_math_verify(questions: list[tuple]) -> list[bool]:
    """Math-Verify's verdicts, by up to four processes, or one inside a job. One that overruns is
    killed (no signal stops an operation on huge integers); then, or if it dies, it is wrong."""
    import math_verify  # noqa: F401 - once, for all that are forked
    import pebble

    workers = 1 if multiprocessing.parent_process() else min(4, os.cpu_count() or 1, len(questions))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = pebble.ProcessPool(max_workers=workers, context=context)
    limit, dead = 3 * SECONDS + 1, (TimeoutError, pebble.ProcessExpired)  # two readings, comparison
    try:
        asked = [pool.schedule(_judge, one, timeout=limit) for one in questions]
        return [not isinstance(one.exception(), dead) and one.result() for one in asked]
    finally:
        pool.stop()
        pool.join()


def grade(run, pairs: Iterable[tuple[str, dict]]) -> list[bool]:
    """One verdict per (response, row of the problem set), in order. Equal answers are read once."""
    asked = []
    for response, row in pairs:
        given = boxed(after_thinking(response) or "")
        given = _normal(given) if given is not None and len(given) <= LONGEST else None
        asked.append((given, _normal(row["answer"]), row["id"] if row["id"] in POINTS else None))
    verdicts = {question: _by_rule(*question[:2]) for question in asked}
    hard = [question for question, verdict in verdicts.items() if verdict is None]
    verdicts.update(zip(hard, _by_math_verify(hard) if hard else [], strict=True))
    return [verdicts[question] for question in asked]


def is_correct(response: str, answer: str) -> bool:
    """Does the response's final boxed answer equal the reference answer? Takes bounded time."""
    return grade(None, [(response, {"id": "", "answer": answer})])[0]


def grader(run=None) -> str:
    return store.code_hash(sys.modules[__name__])


def plain_answer(value) -> str:
    """An answer without box (AIME24 has some) and dollars: `$\\boxed{5}$` -> `5`, 42 -> `42`."""
    text = hub.text(value)
    text = boxed(text) or text
    inner = text.strip("$").strip()
    return inner if "$" not in inner else text


def sets(run) -> dict:
    made_by = [store.code_hash(hub), grader()]
    return hub.prepare(run, made_by, lambda one, rows, _: hub.records(one, rows, plain_answer))
