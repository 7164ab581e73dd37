"""Word problems in plain English for small pretrained models: the task of the scales smol*.

Somebody has things; each step of a problem is an event that adds or takes away some, or groups of
some (3 bags of 4). A solution has a line for every event, in any order that stays above zero, each
in one of several phrasings, so a good rewrite is rarely the reference. The boxed answer is graded;
the first wrong step follows from the arithmetic that is written down.

How models write is here too (smol_pair.py trains them on it): three phrases are misread by the
student, who begins with what it misreads, and one of these by the teacher. A problem is its text,
`read` gives back the numbers; sets are disjoint by a hash of the text (language.split_of).

reasoning-gym (0.1.25) has nothing of the kind: gsm_symbolic gives one fixed solution to each of
its templates and no choice of the steps, leg_counting has one phrasing.
"""

import functools
import itertools
import os
import random
import re
import sys
from typing import NamedTuple

from trdlib.settings import SettingsError, root
from trdlib.tasks.language import ONSETS, Departure, split_of

_NAMES = ("Tom", "Anna", "Ben", "Lily", "Sam", "Mia", "Max", "Eva", "Leo", "Nora")
_FRIENDS = ("Jack", "Rosa", "Paul", "Ida", "Finn", "Zoe")
_THINGS = ("apples", "marbles", "books", "stickers", "coins", "pencils", "stamps", "cards")
# w: who, t: things, f: a friend, n: so many, k: in so many groups
PHRASES = [
    *("+{w} finds {n} {t}", "+{w} buys {n} {t}", "+{w} wins {n} {t}", "+{f} gives {w} {n} {t}"),
    *("+{w} picks up {n} {t}", "+{w} borrows {n} {t} from {f}", "-{w} loses {n} {t}"),
    *("-{w} sells {n} {t}", "-{w} throws {n} {t} away", "-{w} gives {f} {n} {t}"),
    *("-{w} uses up {n} {t}", "-{w} lends {f} {n} {t}", "+{w} buys {k} bags of {n} {t}"),
    *("+{k} friends give {w} {n} {t} each", "+{w} opens {k} boxes with {n} {t} in each"),
    *("-{w} gives {k} friends {n} {t} each", "-{w} fills {k} jars with {n} {t} each for {f}"),
    "-{w} sells {k} packs of {n} {t}",
]
MISREAD = (5, 11, 17)  # by the student: a loan's sign; packs, as if added to what is in them
_THEN = ("", "Then ", "Later ", "After that ")
_ASK = (
    "How many {t} does {w} have now?",
    "How many {t} does {w} have in the end?",
    "What is the number of {t} that {w} has now?",
)
_OPEN = ("", "{w} starts with {start}. ", "Start with {start}. ")
_GROUP = ("That is {eq} {t}. ", "First {eq}. ", "{eq} in all. ")
_LINE = {
    "+": ("Add {n}: {eq}. ", "{n} more make {eq}. ", "With {n} more it is {eq}. "),
    "-": ("Take away {n}: {eq}. ", "{n} fewer leave {eq}. ", "Without {n} it is {eq}. "),
}
_CLOSE = ("The answer is {box}.", "{w} has {box} {t}.", "So it is {box}.")
_SLIPS = (-10, -2, -1, 1, 2, 10)
_WRITTEN = re.compile(r"\d+ [-+*] \d+ = -?\d+|\\boxed\{-?\d+\}")


class Event(NamedTuple):
    phrase: int  # of PHRASES
    n: int  # so many
    k: int = 0  # in so many groups; 0: in none

    @property
    def sign(self) -> str:
        return PHRASES[self.phrase][0]

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


def row(rng: random.Random, part, split: str) -> tuple[str, str, str]:
    """A problem of a set (trdlib/tasks/sets.py)."""
    return draw(rng, rng.choice(part.steps), split)


def _tell(rng: random.Random, steps: int) -> str:
    start, events = rng.randrange(10, 41), []
    while len(events) < steps:
        phrase = rng.choice([i for i in range(len(PHRASES)) if i not in [e.phrase for e in events]])
        numbers = (rng.randrange(2, 16),)
        if "{k}" in PHRASES[phrase]:
            numbers = rng.randrange(2, 8), rng.randrange(2, 6)
        event = Event(phrase, *numbers)
        new = event.change not in [e.change for e in events]  # so that a sum tells which it is of
        if new and 0 <= start + sum(e.change for e in [*events, event]) < 100:
            events.append(event)
    names = {"w": rng.choice(_NAMES), "f": rng.choice(_FRIENDS), "t": rng.choice(_THINGS)}
    told = [f"{names['w']} has {start} {names['t']}"]
    for event in events:
        said = PHRASES[event.phrase][1:].format(n=event.n, k=event.k, **names)
        told.append(f"{rng.choice(_THEN) if len(told) > 1 else ''}{said}")
    return ". ".join([*told, rng.choice(_ASK).format(**names)])


def problem(text: str) -> tuple[str, str, str]:
    """A problem with what follows from its text: its answer, a reference solution."""
    _, start, events = read(text)
    solution = say(text, plan(random.Random(text), text))
    return text, str(start + sum(e.change for e in events)), solution


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
                events.append(Event(number, **{k: int(v) for k, v in found.groupdict().items()}))
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
            slip = rng.choice(_SLIPS) if rng.random() < habits.slip else 0
            ways = rng.randrange(len(_GROUP)), rng.randrange(len(_LINE["+"]))
            line = Line(i, *ways, misread, slip)
            lines.append(line._replace(noticed=line.wrong and rng.random() < habits.notice))
        lines.sort(key=lambda line: not line.misread)
        made = Plan(rng.randrange(len(_OPEN)), lines, rng.randrange(len(_CLOSE)))
        if say(text, made):
            return made


def say(text: str, made: Plan) -> str:
    """The plan in words; "" if it goes below zero."""
    names, have, events = read(text)
    said = _OPEN[made.opening].format(start=have, **names)
    for line in made.lines:
        takes = [line, line._replace(misread=False, slip=0)] if line.noticed else [line]
        for take in takes:
            event = events[line.event]
            sign, many = event.sign, event.many
            if len(takes) > 1 and not take.wrong:
                said += f"{ONSETS[line.line]}, "
            if event.k:
                many, by = (event.k + event.n, "+") if take.misread else (many, "*")
                equation = f"{event.k} {by} {event.n} = {many}"
                said += _GROUP[line.group].format(eq=equation, **names)
            elif take.misread:
                sign = "-" if sign == "+" else "+"
            total = have + (many if sign == "+" else -many) + take.slip
            if total < 0:
                return ""
            equation = f"{have} {sign} {many} = {total}"
            said += _LINE[sign][line.line].format(n=many, eq=equation)
        have = total
    return said + _CLOSE[made.closing].format(box=f"\\boxed{{{have}}}", **names)


def make_models(run) -> None:
    """Student and teacher, unless they are there."""
    sys.path.append(str(root() / "scripts"))
    import smol_models

    smol_models.unpack(run)


def grade(pairs: list[tuple[str, str]]) -> list[bool]:
    """Is the last box of each response the answer?"""
    boxes = [re.findall(r"\\boxed\{(-?\d+)\}", text)[-1:] for text, _ in pairs]
    return [box == [answer] for box, (_, answer) in zip(boxes, pairs, strict=True)]


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
