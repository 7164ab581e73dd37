"""Word problems: what is asked can be solved from the text, and the first wrong step is found."""

import random
import re
import sys
from pathlib import Path

import pytest

from trdlib import tasks
from trdlib.run import get_run
from trdlib.settings import SettingsError
from trdlib.tasks import language

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
import words

STUDENT = words.Habits(words.MISREAD, believe=0.75, slip=0.05, notice=0.3)


def drawn(number: int, steps=(1, 2, 3, 4, 5)):
    rng = random.Random(number)
    for _ in range(300):
        yield rng, *words.draw(rng, rng.choice(steps), "train")


def total(problem: str) -> int:
    """The answer, by rules of our own: the verb says the sign, and two numbers are a product."""
    who, have, *_ = re.match(r"(\w+) has (\d+)", problem).groups()
    have = int(have)
    for sentence in problem.split(". ")[1:-1]:
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        many = numbers[0] * (numbers[1] if len(numbers) > 1 else 1)
        gains = re.search(r"finds|buys|wins|picks up|borrows|opens|give |gives (?!\d)", sentence)
        mine = re.search(rf"give[s]? {who}\b", sentence)
        theirs = re.search(rf"{who} gives", sentence)
        have += many if (gains or mine) and not theirs else -many
    return have


def test_a_problem_can_be_solved_from_its_text_alone():
    for _, problem, answer, solution in drawn(0):
        assert total(problem) == int(answer), problem
        assert words.grade([(solution, answer)]) == [True]
        for a, sign, b, c in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", solution):
            assert eval(f"{a}{sign}{b}") == int(c)


def test_sets_are_disjoint_by_construction_and_hard_ones_are_longer(project):
    made = tasks.of(get_run("smol", "opd")).sets()
    for name, frame in made.items():
        split = name if name in ("train", "validation") else "test"
        assert {language.split_of(text) for text in frame["problem"]} == {split}
        counts = {len(words.read(text)[2]) for text in frame["problem"]}
        longest = {"words_hard": {5}, "validation": {2, 3, 4, 5}}
        assert counts == longest.get(name, {2, 3, 4})


def test_the_first_wrong_step_is_where_the_arithmetic_departs():
    seen = 0
    for rng, problem, _, solution in drawn(2):
        assert words.first_wrong(problem, [*solution, language.END]) is None
        plan = words.plan(rng, problem, STUDENT._replace(notice=0))
        text = words.say(problem, plan)
        found = words.first_wrong(problem, list(text))
        if found is None:  # two errors may hide each other: then no step of it is wrong
            assert sum(line.wrong for line in plan.lines) != 1
            continue
        seen += 1
        before = words.say(problem, plan._replace(lines=[]))
        assert text[found.index] != found.right.replace("\u0120", " "), (text, found)
        wrong = next(i for i, line in enumerate(plan.lines) if line.wrong)
        upto = words.say(problem, plan._replace(lines=plan.lines[:wrong]))
        assert found.index >= len(upto) - len(before.split("box")[0]) - 40
    assert seen > 50


@pytest.mark.parametrize(
    ("said", "at", "right"),
    [
        ("12 + 5 = 18. ", "8. ", "7"),
        ("12 - 5 = 7. ", "5 = 7", "6"),  # till then it could have been the packs
        ("17 - 6 = 11. ", "7 - 6", "2"),
        ("2 + 3 = 5 in all. 12 + 5 = 17. ", "+ 3", "*"),
        ("2 * 3 = 6 in all. 12 - 6 = 6. 6 + 5 = 11. \\boxed{12}", "2}", "1"),
        ("12 + 5 = 17. So it is \\boxed{17}", "\\boxed", "1"),  # an event is left out
        ("12 - 6 = 6. 6 + 5 = 11. \\boxed{11}", None, None),  # a product may be left out
        ("12 + 5 = 17. 17 + 5 = 22. ", "+ 5 = 22", "-"),  # an event twice
        ("5 more and then", None, None),  # an attempt that breaks off is not wrong
    ],
)
def test_where_it_departs(said, at, right):
    problem = "Tom has 12 coins. Tom finds 5 coins. Tom sells 2 packs of 3 coins."
    problem += " How many coins does Tom have now?"
    found = words.first_wrong(problem, list(said))
    assert (found and said[found.index :].startswith(at)) == (True if at else None), found
    assert found is None or found.right == right


@pytest.mark.parametrize(
    "text", ["", "Tom has 3 coins.", "What is 2 + 2?", "Tom has 3 coins. He runs. How many?"]
)
def test_what_is_no_problem_is_said(text):
    with pytest.raises(SettingsError, match="no problem of the task words: write one like"):
        words.problem(text)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [("\\boxed{7}", True), ("\\boxed{8} no, \\boxed{7}.", True),
     ("\\boxed{7} or \\boxed{8}", False), ("it is 7", False), ("\\boxed{07}", False),
     ("\\boxed{}", False), ("\\boxed{7", False)],
)  # fmt: skip
def test_the_last_box_is_the_answer(said, verdict):
    assert words.grade([(said, "7")]) == [verdict]
