"""Chains and trails, checked against an evaluator of their own."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trdlib import prompts, tasks
from trdlib.run import get_run
from trdlib.settings import SettingsError
from trdlib.tasks import chain, language, modular, pretrain, sets, trail
from trdlib.tasks.language import Habits, text_of

TURN = {"<": 1, "^": 2, ">": 4, "/": 7}


def solve(problem: str) -> int:
    """An independent solver: Python's own arithmetic, and the table of turns."""
    if problem.startswith("Compute:"):
        expression = re.sub(r"[a-z]", ")", problem.removeprefix("Compute:"))
        return eval("(" * expression.count(")") + expression) % 7
    return sum(TURN[trail.TURN_OF[c]] for c in problem.removeprefix("Route")[1:]) % 10


problems = st.builds(
    lambda seed, kind, steps: language.draw(random.Random(seed), kind, steps, "pretrain"),
    st.integers(0, 10**6),
    st.sampled_from([chain, trail]),
    st.integers(1, 7),
)


def wild(rng: random.Random, problem: str, slip: float) -> str:
    if problem.startswith("Compute:"):
        return text_of(chain.write(rng, problem, Habits(slip, 1.0, 0.5, 0.5, 0.3)))
    return text_of(trail.write(rng, problem, Habits(believe=1.0, recheck=0.3)))


@given(problem=problems, seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_written_solutions(problem, seed):
    tokenizer, rng = modular.build_tokenizer(), random.Random(seed)
    clean = text_of(modular.clean(problem))
    assert modular.problem(f" {problem}\n") == (problem, str(solve(problem)), clean)
    assert clean.endswith(f"\\boxed{{{solve(problem)}}}")
    if problem.startswith("Compute:"):  # every error is corrected, so the answer is right
        fixed = text_of(chain.write(rng, problem, Habits(slip=0.5, correct_slip=1.0)))
        assert modular.is_right(problem, fixed)
    # the tokenizer loses nothing, and knows every word
    text = problem + "\n" + wild(rng, problem, 0.5)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_false_beliefs_are_wrong_and_systematic():
    assert 0.15 < len(chain.FALSE_BELIEFS) / (3 * 7 * 7) < 0.35
    for (op, a, b), wrong in chain.FALSE_BELIEFS.items():
        assert wrong != eval(f"{a}{op}{b}") % 7
    (op, a, b), wrong = next(iter(chain.FALSE_BELIEFS.items()))
    pieces = chain.write(random.Random(0), f"Compute:{a}o{op}{b}", Habits(believe=1.0))
    assert text_of(pieces) == f"o{op}{b}={wrong}\n\\boxed{{{wrong}}}"


def test_a_lost_walker_turns_at_random_a_local_one_does_not():
    """The locality knob: after a wrong turn, `#` is lost, `=` goes on by the table."""
    right = {"#": [0, 0], "=": [0, 0]}
    for flag in right:
        for seed in range(400):
            rng = random.Random(seed)
            problem = trail.random_problem(rng, 5, flag=flag)
            pieces = trail.write(rng, problem, Habits(slip=0.3))
            turns = [p for p in pieces if p.text in TURN]
            wrong = [p.text != trail.TURN_OF[c] for p, c in zip(turns, problem[-5:], strict=True)]
            if any(wrong):
                after = wrong[wrong.index(True) + 1 :]
                right[flag][0] += after.count(False)
                right[flag][1] += len(after)
    lost, local = (hits / total for hits, total in (right["#"], right["="]))
    assert 0.18 < lost < 0.32
    assert 0.6 < local < 0.8


def test_no_loss_on_injected_errors(tokenizer):
    """The teacher must not learn to make the mistakes that it learns to correct."""
    rng, seen = random.Random(3), 0
    for _ in range(60):
        problem = chain.random_problem(rng, 5)
        habits = Habits(slip=0.5, correct_slip=1.0, learn_slips=False)
        pieces = chain.write(rng, problem, habits)
        lines = "".join(p.text if p.learn else "?" * len(p.text) for p in pieces).splitlines()
        for line in lines[:-1]:
            match = re.fullmatch(r"(?:\w+,)?([o-z])([-+*])(\d)=(\d)", line)
            seen += match is None
            assert match or set(line) == {"?"}
    assert seen > 20
    ids, learn = pretrain.example(rng, tokenizer, modular, "chain", {"slips": 1.0}, problem)
    assert len(ids) == len(learn)
    prompt = prompts.context("solve", tokenizer, style="tiny", problem=problem).ids
    assert ids[: len(prompt)] == prompt
    assert not any(learn[: len(prompt)])
    assert ids[-1] == tokenizer.eos_token_id
    assert learn[-1]


def test_sets_are_disjoint_and_as_ordered():
    task = tasks.of(get_run("tiny"))
    drawn = sets.draw(task.data, modular)
    assert {name: len(frame) for name, frame in drawn.items()} == task.sizes()
    assert list(drawn) == ["train", "validation", *task.benchmarks]
    for name, split in (("train", "train"), ("validation", "validation"), ("trail", "test")):
        assert {language.split_of(p) for p in drawn[name]["problem"]} == {split}
    assert drawn["trail"]["problem"].str.startswith("Route#").all()
    assert drawn["trail_local"]["problem"].str.startswith("Route=").all()
    for frame in drawn.values():
        assert [str(solve(p)) for p in frame["problem"]] == frame["answer"].tolist()
    # hard problems are in the validation set, or an in-distribution set would pick too high a rate
    validation = drawn["validation"]
    trails = validation[validation["source"] == "trail"]["problem"]
    assert max(len(p[6:]) for p in trails) >= 6
    # pretraining sees no problem of these lengths from another split
    rng = random.Random(0)
    seen = {language.draw(rng, kind, 5, "pretrain") for kind in (chain, trail) for _ in range(500)}
    assert not seen & {p for frame in drawn.values() for p in frame["problem"]}
    with pytest.raises(ValueError, match="for pretraining: ask for 3"):
        language.draw(rng, chain, 2, "test")


# ------------------------------------------------------------------------- the first wrong token

CHAIN = "Compute:6o-6p-0q*4"
TRAIL = "Route#FOW"  # F turns ^ (2), O turns ^ (2), W turns < (1)


@pytest.mark.parametrize(
    ("problem", "text", "expected"),
    [
        (CHAIN, "o-6=0\np-0=0\nq*4=0\n\\boxed{0}<|im_end|>", None),
        (CHAIN, "o-6=0\np-0=3\nq*4=5\n\\boxed{5}<|im_end|>", (10, "0")),  # value
        (CHAIN, "o-6=0\np-0=3\nWait,p-0=0\nq*4=0\n\\boxed{0}<|im_end|>", (10, "0")),  # corrected
        (CHAIN, "o-6=0\nHmm,o-6=0\np-0=0\nq*4=0\n\\boxed{0}<|im_end|>", None),  # checked again
        (CHAIN, "o-6=0\np-0=0\nHmm,o-6=0\nq*4=0\n\\boxed{0}<|im_end|>", None),  # an earlier one
        (CHAIN, "o-6=0\nHmm,o-6=1\np-0=0\nq*4=0\n\\boxed{0}<|im_end|>", (12, "0")),
        (CHAIN, "o-6=0\nq*4=0\n\\boxed{0}<|im_end|>", (6, "p")),  # skipped
        (CHAIN, "o+6=5\n", (1, "-")),  # operation
        (CHAIN, "o-5=1\n", (2, "6")),  # operand
        (CHAIN, "o-6=0\np-0", None),  # broken off, so far right
        (CHAIN, "o-6=0\np-1", (8, "0")),  # broken off, wrong
        (CHAIN, "o-6=0\n<|im_end|>", (6, "p")),  # ended too early
        (CHAIN, "o-6=0\np-0=0\nq*4=0\n\\boxed{1}<|im_end|>", (20, "0")),  # answer
        (CHAIN, "\\boxed{0}<|im_end|>", (0, "o")),
        (CHAIN, "o-6=0\nWaito", (7, ",")),
        (CHAIN, "", None),
        (TRAIL, "F^2\nO^4\nW<5\n\\boxed{5}<|im_end|>", None),
        # turn, though the answer is right
        (TRAIL, "F^2\nO<3\nW^5\n\\boxed{5}<|im_end|>", (5, "^")),
        (TRAIL, "F^2\nO^5\n", (6, "4")),  # sum
        (TRAIL, "F/7\nO^9\nWait,F^2\nO^4\nW<5\n\\boxed{5}<|im_end|>", (1, "^")),  # corrected
        (TRAIL, "F^2\nO^4\nHowever,F^2\nO^4\nW<5\n\\boxed{5}<|im_end|>", None),  # looked back
        (TRAIL, "F^2\nA/9\n", (4, "O")),  # letter
        (TRAIL, "F^2\nO^4\nW<5\n", None),
    ],
)
def test_first_wrong_token_by_hand(tokenizer, problem, text, expected):
    assert modular.first_wrong(problem, tokenizer.tokenize(text)) == expected


@given(problem=problems, seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_one_wrong_value_is_found_where_it_is(problem, seed):
    spell, rng = modular.build_tokenizer().tokenize, random.Random(seed)
    lines = text_of(modular.clean(problem)).splitlines(keepends=True)
    clean = spell("".join(lines) + "<|im_end|>")
    assert all(modular.first_wrong(problem, clean[:n]) is None for n in range(len(clean) + 1))
    number = rng.randrange(len(lines) - 1)
    at = sum(map(len, lines[:number])) + len(lines[number]) - 2  # each character is a token
    wrong = rng.choice([d for d in "0123456789" if d != clean[at]])
    # whatever follows, and whether or not it is taken back
    for tail in (clean[at + 1 :], spell("".join(rng.sample(lines, len(lines))))):
        assert modular.first_wrong(problem, [*clean[:at], wrong, *tail]) == (at, clean[at])


@given(problem=problems, seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_no_wrong_token_means_the_right_answer(problem, seed):
    """What the noisy writers write: right to the end of the turn is right in the box."""
    text = wild(random.Random(seed), problem, 0.1)
    tokens = modular.build_tokenizer().tokenize(text + "<|im_end|>")
    if modular.first_wrong(problem, tokens) is None:
        assert modular.is_right(problem, text)


# --------------------------------------------------------------------- a problem that is typed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("What is 2+2?", r"the tiny language has no 'Whatis2\+2\?': write a chain, like"),
        ("Compute:9o-6", "write a chain"),
        ("Compute:6p-6", "write a chain"),
        ("Compute:6" + "o-6" * 13, "up to 12 steps"),
        ("Route#ABA", "different letters"),
        ("Route!AB", "write a chain"),
        ("", "write a chain"),
    ],
)
def test_what_the_language_cannot_say(text, says):
    with pytest.raises(SettingsError, match=says):
        modular.problem(text)
