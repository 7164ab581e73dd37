r"""Published problems whose answers are mathematics: is this answer right?

Cheap exact rules first, algebra.py for the rest. The authors' grader is Math-Verify on the whole
response. Where we differ (case by case in tests/grading_cases.py):
1. The answer is the content of the `\boxed{...}` that starts last after the thinking block, alone:
   without a box, or in a block or box that never ends, there is none.
2. Writing that Math-Verify cannot read (math.yaml): Unicode, plain text, percent, sized brackets,
   degrees in a sine, sentences, a condition after a formula, which one side may leave out.
3. An inequality may stand for the reference's interval.
4. Not accepted: a set for an ordered pair, one of two units for the other, a number in another
   base, numbers in a row (which Math-Verify adds: `4 5` is 9). Of an answer that it reads in part
   (`3+4\mathrm{i}` as 7) only equal text counts.
5. Numbers are exact, decimals too: Math-Verify rounds to six places, and `1/2004!` to 0.

As in Math-Verify: units are dropped, not converted; lists and sets have no order; `x=5` answers 5.
Two answers of AMO-Bench are functions: as its own grader (meituan-longcat/AMO-Bench, utils.py) we
compare the right-hand sides at given points.
"""

import functools
import multiprocessing
import os
import re
import signal
import sys
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path

import yaml

from trdlib import store
from trdlib.tasks import hub
from trdlib.tasks.hub import check, files, notes, sizes  # noqa: F401 - of every published task

SECONDS = 5  # of CPU time for one answer; three times that when it is tried again, alone
LONGEST = 2_000  # characters; what is longer is no final answer, and would cost time to read
POINTS: dict[str, tuple[dict[str, int], ...]] = {  # by the id of the problem
    "AMO-Bench-5": tuple({"n": n} for n in range(1, 21)),
    "AMO-Bench-37": tuple({"a": a, "b": a + 1, "c": a + 2} for a in range(2, 19)),
}

_WRITTEN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_UNITS = {name: names.split()[0] for names in _WRITTEN["units"] for name in names.split()}


def _pattern(text: str) -> re.Pattern:
    for name, part in _WRITTEN["parts"].items():
        text = text.replace(f"<{name}>", part)
    return re.compile(text, re.DOTALL)


_REWRITE = [(_pattern(pattern), by) for pattern, by in _WRITTEN["rewrite"]]
_UNIT, _CONDITION, _RELATION, _UNREAD = map(_pattern, _WRITTEN["patterns"].values())


def after_thinking(response: str) -> str | None:
    """The text after the thinking block; None if the block was never closed."""
    _, ended, text = response.rpartition("</think>")
    return text if ended or "<think>" not in response else None


def boxed(text: str) -> str | None:
    """The content of the `\\boxed{...}` that starts last (braces balanced, `\\{` is none); None
    if there is none or it does not close."""
    found, last = None, -1
    opened: list[int] = []  # for each open brace: where its content starts
    for match in re.finditer(r"\\+boxed\s*(?:\{|$)|\\.|[{}]", text, re.DOTALL):
        if "boxed" in match[0] or match[0] == "{":
            opened.append(match.end())
            found, last = (found, last) if match[0] == "{" else (None, match.end())
        elif match[0] == "}" and opened and opened.pop() == last:
            found = text[last : match.start()].strip()
    return found


@functools.lru_cache(maxsize=100_000)  # many responses, few answers
def _normal(text: str) -> str:
    """The answer as it is read best: same meaning, fewer ways to write it."""
    for sign, latex in _WRITTEN["signs"].items():
        text = text.replace(sign, latex)
    fold = functools.partial(unicodedata.normalize, "NFKC")  # （１） is (1), but x² is not x2
    text = re.sub("[⁰¹²³⁴-⁹⁺⁻ⁿ]+", lambda m: f"^{{{fold(m[0])}}}".replace("−", "-"), text)
    text = fold(re.sub("[₀-₉]+", lambda m: f"_{{{fold(m[0])}}}", text))
    for pattern, replacement in _REWRITE:
        text = pattern.sub(replacement, text)
    return text.strip()


def _bare(text: str) -> str:
    """What equal texts have in common: no spaces but between digits, no sizes."""
    text = re.sub(r"\\(?:left|right)(?![a-z])|(?<!\d)\s+|\s+(?!\d)", "", text)
    return re.sub(r"(?<=\\[lgn]e)q(?![a-z])|(?<=\\)[dt](?=frac)", "", text)


def _integer(text: str) -> int | None:
    number = re.fullmatch(r"[{(\s]*([-+]?\s*\d{1,999})[})\s]*", text)
    return int(number[1].replace(" ", "")) if number else None


def _words(text: str) -> str | None:
    """The text in lower case without commands, if it is a word or a sentence, else None."""
    plain = re.sub(r"[{}\s]+", " ", text.replace(r"\text", "")).strip(" .").lower()
    return plain if re.fullmatch(r"(?=.*[a-z]{3})[a-z][a-z ,.'-]*", plain) else None


def _by_rule(given: str | None, answer: str) -> bool | None:
    """The verdict if the cheap rules can give one, else None. Both sides are normal."""
    if not given or _bare(given) == _bare(answer):  # no box, or nothing in it, is wrong
        return bool(given)
    if (left := _integer(given)) is not None and (right := _integer(answer)) is not None:
        return left == right
    words = [_words(text) for text in (given, answer)]
    if all(words) and (words[0] == words[1] or r"\text" in given + answer):
        return words[0] == words[1]  # without \text it may be a product: abc = cab
    bases = [re.fullmatch(r"\(?([0-9A-Z]+)\)?_\{?(\d+)\}?", text) for text in (given, answer)]
    if all(bases):
        return bases[0].groups() == bases[1].groups()
    both = re.sub(r"\\left|\\right", "", f"{given}\n{answer}")
    if re.fullmatch(r"\\\{[^(){}]*\\\}\n\([^(){}]*,[^(){}]*\)", both):
        return False  # a set has no order, a pair has
    return None


def _parts(text: str) -> tuple[str, str, set[str]]:
    """A formula without what may be left out, and that: its condition, the names of its units."""
    found = _CONDITION.fullmatch(text)
    text, condition = found.groups() if found else (text, "")
    words = re.findall(r"[a-z]+|\d", " ".join(m[0] for m in _UNIT.finditer(text)).lower())
    names = [name for word in words for name in {word, word[:-1]} if name in _UNITS]
    return _UNIT.sub("", text), condition, {_UNITS[name] for name in names}


def _readings(given: str, answer: str) -> list[list[str]]:
    """What each side may mean: a percentage on one side only is the number or its hundredth."""
    sides = [re.fullmatch(r"(.*=)?(.*[\d})])\s*\\?%", text, re.DOTALL) for text in (given, answer)]
    if all(sides):
        return [[side[2]] for side in sides]
    pairs = zip(sides, (given, answer), strict=True)
    return [[s[2], f"\\frac{{{s[2]}}}{{100}}"] if s else [text] for s, text in pairs]


def _judge(given: str, answer: str, problem: str | None) -> bool:
    """Algebra's verdict, else whether the right-hand sides agree at the POINTS of a problem."""
    from trdlib.tasks import algebra

    (given, when, units), (answer, only, others) = _parts(given), _parts(answer)
    conflict = all(map(_RELATION.search, (when, only))) and _bare(when) != _bare(only)
    if conflict or (units and others and units != others):
        return False
    if _bare(given) == _bare(answer) or _UNREAD.search(given) or _UNREAD.search(answer):
        return _bare(given) == _bare(answer)

    def values(formula):
        formula = getattr(formula, "rhs", formula)
        for point in POINTS[problem]:
            known = {s: point[s.name] for s in formula.free_symbols if s.name in point}
            yield complex(formula.subs(known).evalf(30))

    try:
        lefts, rights = _readings(given, answer)
        for left, right in ((left, right) for left in lefts for right in rights):
            if algebra.same(guess := algebra.read(left), gold := algebra.read(right)):
                return True
        pairs = zip(values(guess), values(gold), strict=True) if problem else [(0, 1)]
        return all(abs(left - right) <= 1e-8 * max(1, abs(right)) for left, right in pairs)
    except Exception:  # whatever a model wrote that breaks the reader is not an answer
        return False


def _in_time(question: tuple, seconds: float) -> bool:
    """A verdict, or this process ends after so much CPU time: no signal handler stops an operation
    on huge integers, and time on the wall depends on who else is running."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return _judge(*question)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _by_algebra(questions: list[tuple]) -> dict[tuple, bool | None]:
    """The verdicts, by up to four processes, or one inside a job. Whoever runs out of time or dies
    is tried once more, alone; None if it does so again."""
    import pebble

    from trdlib.tasks import algebra  # noqa: F401 - once, for all that are forked

    verdicts, dead = dict.fromkeys(questions), (TimeoutError, pebble.ProcessExpired)
    many = 1 if multiprocessing.parent_process() else min(4, os.cpu_count() or 1)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    for workers, seconds in (many, SECONDS), (1, 3 * SECONDS):
        pool = pebble.ProcessPool(max_workers=workers, context=context)
        run = functools.partial(pool.schedule, _in_time, timeout=60 * seconds)  # for one that idles
        try:
            left = [question for question, verdict in verdicts.items() if verdict is None]
            for one, found in [(one, run((one, seconds))) for one in left]:
                verdicts[one] = None if isinstance(found.exception(), dead) else found.result()
        finally:
            pool.stop()
            pool.join()
    return verdicts


def grade(run, pairs: Iterable[tuple[str, dict]]) -> list[bool]:
    """One verdict per (response, row of the problem set), in order. Equal answers are read once.
    A warning names what could not be decided, and so counts as wrong."""
    asked = []
    for response, row in pairs:
        given = boxed(after_thinking(response) or "")
        given = _normal(given) if given is not None and len(given) <= LONGEST else None
        asked.append((given, _normal(row["answer"]), row["id"] if row["id"] in POINTS else None))
    verdicts = {question: _by_rule(*question[:2]) for question in asked}
    hard = [question for question, verdict in verdicts.items() if verdict is None]
    verdicts.update(_by_algebra(hard) if hard else {})
    undecided = [question for question in asked if verdicts[question] is None]
    if undecided:
        which = "; ".join(f"{given} for {answer}" for given, answer, _ in dict.fromkeys(undecided))
        spent = f"undecided after {3 * SECONDS} s of CPU time, so counted as wrong"
        warnings.warn(f"{len(undecided)} of {len(asked)} answers {spent}: {which}", stacklevel=2)
    return [bool(verdicts[question]) for question in asked]


def is_correct(response: str, answer: str) -> bool:
    """Does the response's final boxed answer equal the reference answer? Takes bounded time."""
    return grade(None, [(response, {"id": "", "answer": answer})])[0]


def grader(run=None) -> str:
    code = [Path(__file__).with_name(name).read_text("utf-8") for name in ("math.py", "algebra.py")]
    return store.content_hash(_WRITTEN, *map(store.source_hash, code))


def plain_answer(value) -> str:
    """An answer without box (AIME24 has some) and dollars: `$\\boxed{5}$` -> `5`, 42 -> `42`."""
    text = hub.text(value)
    text = boxed(text) or text
    inner = text.strip("$").strip()
    return inner if "$" not in inner else text


def sets(run) -> dict:
    made_by = [store.code_hash(hub), grader()]
    return hub.prepare(run, made_by, lambda one, rows, _: hub.records(one, rows, plain_answer))
