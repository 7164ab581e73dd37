"""The task `words`: word problems in plain English for small pretrained models (scales smol*).

Somebody has things; each step is an event that adds or takes away some, or groups of some (3 bags
of 4). A solution has a line for every event, in any order that stays above zero, each in one of
several phrasings, so a good rewrite is rarely the reference (in reasoning-gym 0.1.25 it always is).
How models write is here too (smol_pair.py trains them on it): three phrases are misread by the
student, who begins with what it misreads, and one of these by the teacher."""

import functools
import itertools
import os
import random
import re
from pathlib import Path
from typing import NamedTuple

from trdlib import store
from trdlib.settings import SettingsError, read_yaml
from trdlib.tasks.language import ONSETS, Departure, split_of
from trdlib.tasks.sets import ProblemSet

OPTIONS = {"words": {}}
_SAID = read_yaml(Path(__file__).with_suffix(".yaml"))
_NAMES, _FRIENDS, _THINGS = (_SAID[who].split() for who in ("names", "friends", "things"))
PHRASES, MISREAD = _SAID["phrases"], tuple(_SAID["misread"])
_WRITTEN = re.compile(r"\d+ [-+*] \d+ = -?\d+|\\boxed\{-?\d+\}")


class Event(NamedTuple):
    phrase: int  # of PHRASES
    sign: str  # of the phrase
    n: int  # so many
    k: int = 0  # in so many groups; 0: in none

    @property
    def many(self) -> int:
        return self.n * (self.k or 1)

    @property
    def change(self) -> int:
        return self.many if self.sign == "+" else -self.many


class Line(NamedTuple):  # how an event is written
    event: int  # its number, as told
    group: int  # phrasing of the product,
    line: int  # and of the sum
    misread: bool = False
    slip: int = 0  # an error of the sum
    noticed: bool = False  # an error is taken back

    @property
    def wrong(self) -> bool:
        return self.misread or self.slip != 0


class Plan(NamedTuple):  # a solution that is not yet in words
    opening: int
    lines: list[Line]
    closing: int


class Habits(NamedTuple):  # how somebody writes; probabilities are of a line
    misreads: tuple[int, ...] = ()  # phrases
    believe: float = 0.0  # of misreading one of them
    slip: float = 0.0
    notice: float = 0.0  # of taking an error back


RIGHT = Habits()


def draw(rng: random.Random, steps: int, split: str) -> tuple[str, str, str]:
    """A problem of so many events whose text belongs to the split, its answer, its reference."""
    while split_of(text := _tell(rng, steps)) != split:
        pass
    return problem(text)


def row(rng: random.Random, part: ProblemSet, split: str) -> tuple[str, str, str]:
    return draw(rng, rng.choice(part.steps), split)


def _tell(rng: random.Random, steps: int) -> str:
    start, events = rng.randrange(10, 41), []
    while len(events) < steps:
        phrase = rng.choice([i for i in range(len(PHRASES)) if i not in [e.phrase for e in events]])
        numbers = (rng.randrange(2, 16),)
        if "{k}" in PHRASES[phrase]:
            numbers = rng.randrange(2, 8), rng.randrange(2, 6)
        event = Event(phrase, PHRASES[phrase][0], *numbers)
        new = event.change not in [e.change for e in events]  # so that a sum tells which it is of
        if new and 0 <= start + sum(e.change for e in [*events, event]) < 100:
            events.append(event)
    names = {"w": rng.choice(_NAMES), "f": rng.choice(_FRIENDS), "t": rng.choice(_THINGS)}
    told = [f"{names['w']} has {start} {names['t']}"]
    for event in events:
        said = PHRASES[event.phrase][1:].format(n=event.n, k=event.k, **names)
        told.append(f"{rng.choice(_SAID['then']) if len(told) > 1 else ''}{said}")
    return ". ".join([*told, rng.choice(_SAID["ask"]).format(**names)])


def problem(text: str) -> tuple[str, str, str]:
    """A problem with what follows from its text: its answer, a reference solution."""
    _, start, events = read(text)
    answer = str(start + sum(e.change for e in events))
    return text, answer, say(text, plan(random.Random(text), text))


@functools.lru_cache(maxsize=64)
def read(text: str) -> tuple[dict[str, str], int, tuple[Event, ...]]:
    """-> names (w who, t things), the number at the start, the events; else SettingsError."""
    first, *told = text.split(". ")
    has = re.fullmatch(r"(\w+) has (\d+) (\w+)", first)
    names, events = {"w": has and has[1], "t": has and has[3]}, []
    free = {"n": r"(?P<n>\d+)", "k": r"(?P<k>\d+)", "f": "[A-Z][a-z]+"}
    for sentence in told[:-1]:
        sentence = re.sub("^(Then|Later|After that) ", "", sentence)
        for number, phrase in enumerate(PHRASES):
            if found := re.fullmatch(phrase[1:].format(**free, **names), sentence):
                numbers = {name: int(digits) for name, digits in found.groupdict().items()}
                events.append(Event(number, phrase[0], **numbers))
    if not has or not events or len(events) != len(told) - 1:
        like = _tell(random.Random(0), 2)
        raise SettingsError(f"this is no problem of the task words: write one like {like!r}")
    return names, int(has[2]), tuple(events)


def plan(rng: random.Random, text: str, habits: Habits = RIGHT) -> Plan:
    """How somebody with these habits solves the problem: what is misread comes first."""
    events = read(text)[2]
    for attempt in itertools.count():
        lines, habits = [], habits if attempt < 100 else RIGHT
        for i in rng.sample(range(len(events)), len(events)):
            misread = events[i].phrase in habits.misreads and rng.random() < habits.believe
            slip = rng.choice([-10, -2, -1, 1, 2, 10]) if rng.random() < habits.slip else 0
            ways = rng.randrange(len(_SAID["group"])), rng.randrange(len(_SAID["line"]["+"]))
            line = Line(i, *ways, misread, slip)
            lines.append(line._replace(noticed=line.wrong and rng.random() < habits.notice))
        lines.sort(key=lambda line: not line.misread)
        made = Plan(rng.randrange(len(_SAID["open"])), lines, rng.randrange(len(_SAID["close"])))
        if say(text, made):
            return made


def say(text: str, made: Plan) -> str:
    """The plan in words; "" if it goes below zero."""
    names, have, events = read(text)
    said = _SAID["open"][made.opening].format(start=have, **names)
    for line in made.lines:
        takes = [line, line._replace(misread=False, slip=0)] if line.noticed else [line]
        event = events[line.event]
        for take in takes:
            sign, many = event.sign, event.many
            if take is not line:
                said += f"{ONSETS[line.line]}, "
            if event.k:
                many, by = (event.k + event.n, "+") if take.misread else (many, "*")
                equation = f"{event.k} {by} {event.n} = {many}"
                said += _SAID["group"][line.group].format(eq=equation, **names)
            elif take.misread:
                sign = "-" if sign == "+" else "+"
            total = have + (many if sign == "+" else -many) + take.slip
            if total < 0:
                return ""
            equation = f"{have} {sign} {many} = {total}"
            said += _SAID["line"][sign][line.line].format(n=many, eq=equation)
        have = total
    return said + _SAID["close"][made.closing].format(box=f"\\boxed{{{have}}}", **names)


def grade(run, pairs) -> list[bool]:
    """Is the last box the answer?"""
    boxes = [re.findall(r"\\boxed\{(-?\d+)\}", text)[-1:] for text, _ in pairs]
    return [box == [row["answer"]] for box, (_, row) in zip(boxes, pairs, strict=True)]


def grader(run) -> str:
    return store.code_hash(grade)


def first_wrong(text: str, tokens: list[str]) -> Departure | None:
    """Where a response (its tokens as the vocabulary spells them) leaves the arithmetic that is
    right: products of groups, sums for events still to come, and the box when none is left.
    `right` is of the nearest of the ways to go on."""
    _, have, events = read(text)
    left, said = list(events), "".join(tokens).replace("\u0120", " ")
    for found in _WRITTEN.finditer(said):
        sums = [f"{have} {e.sign} {e.many} = {have + e.change}" for e in left]
        ways = sums + [f"{e.k} * {e.n} = {e.many}" for e in left if e.k]
        ways = ways or [f"\\boxed{{{have}}}"]
        if found[0] not in ways:
            same = [len(os.path.commonprefix([found[0], way])) for way in ways]  # noqa: RUF071
            best = max(range(len(ways)), key=same.__getitem__)
            at, rest = found.start() + same[best], ways[best][same[best] :]
            ends = [*itertools.accumulate(map(len, tokens))]
            index = next(i for i, end in enumerate(ends) if end > at)
            before = said[ends[index] - len(tokens[index]) : at]  # of the same token
            right = re.match(r" ?[-+*=]|.", rest)[0] if rest else " "
            return Departure(index, (before + right).replace(" ", "\u0120"))
        if found[0] in sums:
            have += left.pop(sums.index(found[0])).change
    return None
