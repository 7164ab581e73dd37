r"""Published problems whose answers are mathematics: is this answer right? Cheap exact rules first,
algebra.py for the rest. Where we differ from the authors (Math-Verify on all of it) says math.yaml.
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
from trdlib.tasks.hub import check, files, sizes  # noqa: F401 - of every published task

SECONDS = 5  # of CPU time for one answer; three times that when it is tried again, alone
LONGEST = 2_000  # characters; what is longer is no final answer, and would cost time to read
_WRITTEN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_UNITS = {name: names.split()[0] for names in _WRITTEN["units"] for name in names.split()}


def _pattern(text: str) -> re.Pattern:
    for name, part in reversed(_WRITTEN["parts"].items()):
        text = text.replace(f"<{name}>", part)
    return re.compile(text, re.DOTALL)


_REWRITE = [(_pattern(pattern), by) for pattern, by in _WRITTEN["rewrite"]]
_PATTERNS = map(_pattern, _WRITTEN["patterns"].values())
_UNIT, _CONDITION, _RELATION, _NAMED, _DIFFER, _UNREAD, _CHOICE = _PATTERNS


def after_thinking(response: str) -> str | None:
    """The text after the thinking block; None if the block was never closed."""
    _, ended, text = response.rpartition("</think>")
    return text if ended or "<think>" not in response else None


def boxed(text: str) -> str | None:
    """The content of the `\\boxed{...}` that starts last; None if it does not close, or is none."""
    _, *boxes = re.split(r"\\boxed\s*(?:\{|$)", text)
    last, depth = boxes[-1] if boxes else "", 1
    for brace in re.finditer(r"\\.|[{}]", last, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return last[: brace.start()].strip()
    return None


@functools.lru_cache(maxsize=100_000)  # many responses, few answers
def _normal(text: str) -> str:
    """The answer as it is read best: same meaning, fewer ways to write it."""
    text = text.translate(str.maketrans(_WRITTEN["signs"]))
    text = re.sub("([₀-₉]+)", r"_{\1}", re.sub("([⁰¹²³⁴-⁹⁺⁻ⁿ]+)", r"^{\1}", text))
    text = unicodedata.normalize("NFKC", text).replace("−", "-")  # （１） is (1)
    for pattern, replacement in _REWRITE:
        text = pattern.sub(replacement, text)
    return text.strip()


def _bare(text: str) -> str:
    """What equal texts have in common: no spaces but between digits, no sizes."""
    text = re.sub(r"\\(?:left|right)(?![a-z])|(?<!\d)\s+|\s+(?!\d)", "", text)
    return re.sub(r"(?<=\\[lgn]e)q(?![a-z])|(?<=\\)[dt](?=frac)", "", text)


def _integer(text: str) -> int | None:
    number = re.fullmatch(r"[{(\s]*([-+]?)\s*(\d{1,999})[})\s]*", text)
    return int(number[1] + number[2]) if number else None


def _words(text: str) -> str | None:
    """The text in lower case without commands, if it is a word or a sentence, else None."""
    plain = re.sub(r"[{}\s]+", " ", text.replace(r"\text", "")).strip(" .").lower()
    return plain if re.fullmatch(r"(?=.*[a-z]{3})[a-z][a-z ,.'-]*", plain) else None


def _by_rule(given: str, answer: str) -> bool | None:
    """The verdict if the cheap rules can give one, else None. Both sides are normal."""
    if not given or _bare(given) == _bare(answer):  # no box, or nothing in it, is wrong
        return bool(given)
    for read in _integer, _words:
        left, right = read(given), read(answer)
        sure = read is _integer or left == right or r"\text" in given + answer
        if left is not None and right is not None and sure:
            return left == right  # words without \text may be a product: abc = cab
    return False if _DIFFER.fullmatch(f"{_bare(given)}\n{_bare(answer)}") else None


def _parts(text: str) -> tuple[str, str, set[str]]:
    """A formula without what may be left out, and that: its condition, the names of its units."""
    text, condition = found.groups() if (found := _CONDITION.fullmatch(text)) else (text, "")
    words = re.findall(r"[a-z]+|\d", " ".join(m[0] for m in _UNIT.finditer(text)).lower())
    units = {_UNITS[name] for word in words for name in (word, word[:-1]) if name in _UNITS}
    return _UNIT.sub("", text), _bare(condition) if _RELATION.search(condition) else "", units


def _judge(given: str, answer: str, seconds: float) -> bool:
    """A verdict, or this process ends after so much CPU time: no handler stops huge integers."""
    from trdlib.tasks import algebra

    signal.setitimer(signal.ITIMER_PROF, seconds)
    (given, *said), (answer, *known) = _parts(given), _parts(answer)
    if any(one and other and one != other for one, other in zip(said, known, strict=True)):
        return False
    named = _NAMED.fullmatch(given), _NAMED.fullmatch(answer)
    if all(named) and len({_bare(one[2]) for one in named if one[2]}) == 1:
        given, answer = named[0][3], named[1][3]  # the name is one side's, or the same on both
    if (verdict := _by_rule(given, answer)) is not None:
        return verdict
    if _UNREAD.search(given) or _UNREAD.search(answer):
        return False
    try:
        return algebra.same(algebra.read(given), algebra.read(answer))
    except Exception:  # whatever a model wrote that breaks the reader is not an answer
        return False


def _by_algebra(questions: list[tuple[str, str]]) -> dict[tuple[str, str], bool | None]:
    """By up to four processes, or one inside a job. Who runs out of time is tried again, alone."""
    import pebble

    from trdlib.tasks import algebra  # noqa: F401 - once, for all that are forked

    verdicts, dead = dict.fromkeys(questions), (TimeoutError, pebble.ProcessExpired)
    many = 1 if multiprocessing.parent_process() else min(4, os.cpu_count() or 1)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    for workers, seconds in (many, SECONDS), (1, 3 * SECONDS):
        pool = pebble.ProcessPool(max_workers=workers, context=context)
        run = functools.partial(pool.schedule, _judge, timeout=60 * seconds)  # for one that idles
        try:
            left = [question for question, verdict in verdicts.items() if verdict is None]
            for one, found in [(one, run((*one, seconds))) for one in left]:
                verdicts[one] = None if isinstance(found.exception(), dead) else found.result()
        finally:
            pool.stop()
            pool.join()
    return verdicts


def grade(run, pairs: Iterable[tuple[str, dict]]) -> list[bool]:
    """One verdict per (response, row); a warning names what is undecided and counts as wrong."""
    asked = []
    for response, row in pairs:
        given = boxed(after_thinking(response) or "") or ""
        if re.fullmatch("[A-J]", row["answer"]) and (choice := _CHOICE.fullmatch(given)):
            given = choice[1]
        both = _normal(given if len(given) <= LONGEST else ""), _normal(row["answer"])
        # 50 % is 50, and 1/2, as the other side has it
        asked.append([tuple(re.sub(r"\\%$", end, one) for one in both) for end in ("", "/100")])
    verdicts = {one: _by_rule(*one) for readings in asked for one in readings}
    hard = [question for question, verdict in verdicts.items() if verdict is None]
    verdicts.update(_by_algebra(hard) if hard else {})
    # of the readings, one that is right is enough, and one that is undecided leaves it open
    said = [max((verdicts[one] for one in both), key=[False, None, True].index) for both in asked]
    if None in said:
        left = [both[0] for both, verdict in zip(asked, said, strict=True) if verdict is None]
        which = "; ".join(f"{given} for {answer}" for given, answer in dict.fromkeys(left))
        spent = f"undecided after {3 * SECONDS} s of CPU time, so counted as wrong"
        warnings.warn(f"{len(left)} of {len(asked)} answers {spent}: {which}", stacklevel=2)
    return [*map(bool, said)]


def grader(run=None) -> str:
    code = [Path(__file__).with_name(name).read_text("utf-8") for name in ("math.py", "algebra.py")]
    return store.content_hash(_WRITTEN, *map(store.source_hash, code))


def plain_answer(value) -> str:
    """An answer without box (AIME24 has some) and dollars: `$\\boxed{5}$` -> `5`, 42 -> `42`."""
    text = boxed(text := hub.text(value)) or text
    inner = text.strip("$").strip()
    return inner if "$" not in inner else text


def sets(run) -> dict:
    made_by = [store.code_hash(hub), grader()]
    return hub.prepare(run, made_by, lambda one, rows, _: hub.records(one, rows, plain_answer))
