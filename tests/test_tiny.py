"""The procedural tasks, checked against an evaluator of their own, and their pretraining."""

import random
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trdlib import config, data, prompts, tiny

TURN = {"<": 1, "^": 2, ">": 4, "/": 7}


def solve(problem: str) -> int:
    """An independent solver: Python's own arithmetic, and the table of turns."""
    if problem.startswith("Compute:"):
        expression = re.sub(r"[a-z]", ")", problem.removeprefix("Compute:"))
        return eval("(" * expression.count(")") + expression) % 7
    return sum(TURN[tiny.TURN_OF[c]] for c in problem.removeprefix("Route")[1:]) % 10


problems = st.builds(
    lambda seed, task, steps: tiny.draw(random.Random(seed), task, steps, "pretrain"),
    st.integers(0, 10**6),
    st.sampled_from(["chain", "trail"]),
    st.integers(1, 7),
)


@given(problem=problems, seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_written_solutions(problem, seed):
    tokenizer = tiny.build_tokenizer()
    clean = tiny.text_of(tiny.clean(problem))
    assert clean.endswith(f"\\boxed{{{solve(problem)}}}")
    rng = random.Random(seed)
    chain = tiny.task_of(problem) == "chain"
    # every error is corrected, so the answer is right
    if chain:
        fixed = tiny.text_of(tiny.chain_write(rng, problem, slip=0.5, correct_slip=1.0))
        assert fixed.endswith(f"\\boxed{{{solve(problem)}}}")
    else:
        fixed = tiny.text_of(tiny.trail_expert(rng, problem, slip=0.0))
        assert fixed == clean
    # the tokenizer loses nothing, and knows every word
    wild = tiny.text_of(
        tiny.chain_write(rng, problem, slip=0.5, correct_slip=0.5, recheck=0.3, believe=0.8)
        if chain
        else tiny.trail_student(rng, problem, look_back=0.4)
    )
    ids = tokenizer.encode(problem + "\n" + wild, add_special_tokens=False)
    assert tokenizer.decode(ids) == problem + "\n" + wild
    assert tokenizer.unk_token_id not in ids


def test_false_beliefs_are_wrong_and_systematic():
    assert 0.15 < len(tiny.FALSE_BELIEFS) / (3 * 7 * 7) < 0.35
    for (op, a, b), wrong in tiny.FALSE_BELIEFS.items():
        assert wrong != eval(f"{a}{op}{b}") % 7
    (op, a, b), wrong = next(iter(tiny.FALSE_BELIEFS.items()))
    line = tiny.chain_write(random.Random(0), f"Compute:{a}o{op}{b}", believe=1.0)[0].text
    assert line == f"o{op}{b}={wrong}\n"


def test_a_lost_walker_turns_at_random_a_local_one_does_not():
    """The locality knob: after a wrong turn, `#` is lost, `=` goes on by the table."""
    right = {"#": [0, 0], "=": [0, 0]}
    for flag in right:
        for seed in range(400):
            rng = random.Random(seed)
            problem = tiny.trail_problem(rng, 5, flag=flag)
            pieces = tiny.trail_expert(rng, problem, slip=0.3, notice=0.0)
            turns = [p for p in pieces if p.text in TURN]
            wrong = [p.text != tiny.TURN_OF[c] for p, c in zip(turns, problem[-5:], strict=True)]
            if any(wrong):
                after = wrong[wrong.index(True) + 1 :]
                right[flag][0] += after.count(False)
                right[flag][1] += len(after)
    lost, local = (hits / total for hits, total in (right["#"], right["="]))
    assert 0.18 < lost < 0.32
    assert 0.6 < local < 0.8


def test_no_loss_on_injected_errors(tokenizer):
    """The teacher must not learn to make the mistakes that it learns to correct."""
    rng = random.Random(3)
    seen = 0
    for _ in range(60):
        problem = tiny.chain_problem(rng, 5)
        pieces = tiny.chain_write(rng, problem, slip=0.5, correct_slip=1.0, learn_slips=False)
        lines = "".join(p.text if p.learn else "?" * len(p.text) for p in pieces).splitlines()
        for line in lines[:-1]:
            match = re.fullmatch(r"(?:\w+,)?([o-z])([-+*])(\d)=(\d)", line)
            seen += match is None
            assert match or set(line) == {"?"}
    assert seen > 20
    made = tiny.example(rng, tokenizer, {"slips": 1.0}, problem)
    assert len(made.ids) == len(made.learn)
    prompt = prompts.context("solve", tokenizer, style="tiny", problem=problem).ids
    assert made.ids[: len(prompt)] == prompt
    assert not any(made.learn[: len(prompt)])
    assert made.ids[-1] == tokenizer.eos_token_id
    assert made.learn[-1]


def test_sets_are_disjoint_and_as_ordered():
    settings = config.load().scales["tiny"].data
    sets = tiny.problem_sets(settings)
    data.check_disjoint(sets)
    assert set(sets) == {"train", "validation", *settings.benchmarks}
    assert all(len(sets[name]) >= 128 for name in settings.benchmarks)
    for name, split in (("train", "train"), ("validation", "validation"), ("trail", "test")):
        assert {tiny.split_of(p) for p in sets[name]["problem"]} == {split}
    assert sets["trail"]["problem"].str.startswith("Route#").all()
    assert sets["trail_local"]["problem"].str.startswith("Route=").all()
    for frame in sets.values():
        assert [str(solve(p)) for p in frame["problem"]] == frame["answer"].tolist()
    # hard problems are in the validation set, or an in-distribution set would pick too high a rate
    lengths = sets["validation"]["problem"].map(lambda p: len(tiny.trail_parse(p)[1]))
    assert (lengths[sets["validation"]["source"] == "trail"] >= 6).any()
    # pretraining sees no problem of these lengths from another split
    rng = random.Random(0)
    drawn = {tiny.draw(rng, task, 5, "pretrain") for task in ("chain", "trail") for _ in range(500)}
    assert not drawn & {p for frame in sets.values() for p in frame["problem"]}


def test_pretraining_gives_the_same_bytes_and_resumes(project):
    """Twice from scratch on one machine: the same bytes; what is finished is kept."""
    run = config.run("smoke")
    run.settings = run.settings.model_copy(update={"seeds": (1,)})
    shutil.rmtree("models/smoke/1")
    tiny.pretrain(run)
    again = project / run.model_path("teacher", 1) / "model.safetensors"
    first = again.read_bytes()
    student = project / run.model_path("student", 1) / "model.safetensors"
    untouched = student.stat().st_mtime_ns
    again.parent.joinpath("pretraining.json").unlink()  # as if killed before the rename
    tiny.pretrain(run)
    assert again.read_bytes() == first
    assert student.stat().st_mtime_ns == untouched


def test_another_recipe_is_not_taken_for_this_one(project):
    run = config.run("smoke")
    recipe = run.settings.pretraining
    folder = project / run.model_path("student", 0)
    assert tiny.is_pretrained(recipe, "student", 0, folder)
    assert not tiny.is_pretrained(recipe, "student", 1, folder)
    longer = recipe.model_copy(
        update={"student": recipe.student.model_copy(update={"steps": recipe.student.steps + 1})}
    )
    assert not tiny.is_pretrained(longer, "student", 0, folder)


def test_pretraining_that_misses_its_thresholds_says_so(project, monkeypatch):
    run = config.run("smoke")
    recipe = run.settings.pretraining.model_copy(
        update={"thresholds": {"foundation": {"chain/solve": (0.99, 1.0)}}}
    )
    run.settings = run.settings.model_copy(update={"pretraining": recipe, "seeds": (0,)})
    monkeypatch.setattr(tiny, "MAX_ROUNDS", 1)
    with pytest.raises(RuntimeError, match=r"did not converge in 1 rounds: chain/solve is"):
        tiny.pretrain(run)
