"""How the pair of the scales smol was made (scripts/smol_pair.py), with a small random model."""

import random
import runpy
import sys
from pathlib import Path

import pytest
import torch
import transformers

from trdlib import store
from trdlib.run import get_run
from trdlib.settings import load, root

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "smol_pair.py"
sys.path.append(str(SCRIPT.parent))
import smol_models
import words


@pytest.fixture
def script(project, byte_tokenizer, monkeypatch):
    """The script's names, and the run whose pair it makes: of few steps, of a small model."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(
        vocab_size=len(byte_tokenizer), num_attention_heads=4, num_key_value_heads=2, **shape,
        tie_word_embeddings=True, eos_token_id=byte_tokenizer.eos_token_id,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).bfloat16()
    monkeypatch.setattr(smol_models, "base", lambda: (model, byte_tokenizer))
    found = runpy.run_path(str(SCRIPT))
    inside = found["make"].__globals__
    for name, stage in inside["STAGES"].items():
        inside["STAGES"][name] = stage._replace(steps=2, lowest=0.0, highest=1.0)
    inside.update(ROWS=2, PROBLEMS=2)
    settings = load()
    scale = settings.scales["smol"]
    few = scale.rollout.model_copy(update={"max_new_tokens": 8})
    settings.scales["smol"] = scale.model_copy(update={"rollout": few})
    return inside, get_run("smol", "opd", "trd", settings)


def place(run, role: str) -> Path:
    return root() / smol_models.ADAPTERS[role]


def test_a_pair_is_made_once(script):
    inside, run = script
    inside["make"](run)
    base, _ = smol_models.base()
    merged = {role: smol_models.merged(base, place(run, role)) for role in ("student", "teacher")}
    states = [*(m.state_dict() for m in merged.values()), base.state_dict()]
    names = [name for name in states[0] if "q_proj" in name]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert all(not torch.equal(states[one][name], states[other][name]) for name in names)
    inside["train"] = None  # nothing is left to do
    inside["make"](run)


def test_rounds_steer_what_is_misread_and_a_killed_call_goes_on(script):
    """Too many right: misread more. Too few: less. Each round starts where the last one ended."""
    inside, run = script
    made, found = [], iter([0.9, 0.1, 0.5])
    inside["train"] = lambda model, steps: made.append((*steps.how, steps.believe)) or [1.0, 0.5]
    inside["accuracy"] = lambda run, name, *_: next(found) if name == "student" else 1.0
    between = {"lowest": 0.4, "highest": 0.6, "believe": 0.7}
    inside["STAGES"]["student"] = inside["STAGES"]["student"]._replace(**between)
    inside["make"](run)
    rounds = [m[1:] for m in made if m[0] == "student"]
    assert rounds == [(0, 0.7), (1, pytest.approx(0.85)), (2, pytest.approx(0.65))]
    note = place(run, "student") / inside["NOTE"]
    kept = store.read_json(note, [])
    assert [one["accuracy"] for one in kept] == [0.9, 0.1, 0.5]
    store.write_json(note, [kept[0] | {"accuracy": None}])  # as if killed while it was measured
    made.clear()
    found = iter([0.9, 0.5])
    inside["make"](run)
    assert [m[:2] for m in made] == [("student", 1)]


def test_examples_are_what_the_stages_need(script):
    """The student misreads in what it solves; the teacher sees attempts that misread, and mends."""
    inside, rng = script[0], random.Random(0)
    for stage in inside["STAGES"]:
        right = {kind: [] for kind in inside["KINDS"]}
        for _ in range(400):
            kind, shown, answer = inside["written"](rng, stage, 1.0)
            right[kind] += words.grade([(answer, words.problem(shown["problem"])[1])])
            assert words.split_of(shown["problem"]) == "pretrain"
            assert len(words.read(shown["problem"])[2]) <= 4
        shares = {kind: sum(v) / len(v) for kind, v in right.items() if v}
        if stage == "foundation":
            assert set(shares.values()) == {1.0}
        if stage == "student":
            assert 0.4 < shares.pop("solve") < 0.75 and set(shares.values()) == {1.0}
        if stage == "teacher":
            assert shares.keys() == {"solve", "refine"} and 0.75 < shares["refine"] < 0.95


def test_misreading_is_wrong_early_and_mending_keeps_the_rest(script):
    student = words.Habits(words.MISREAD, believe=0.75, slip=0.05, notice=0.3)
    rng, like, wrong, early = random.Random(1), 0, 0, []
    for _ in range(300):
        problem, answer, solution = words.draw(rng, rng.choice([2, 3, 4]), "train")
        plan = words.plan(rng, problem, student)
        attempt = words.say(problem, plan)
        rewrite = words.say(problem, script[0]["mended"](rng, problem, plan))
        assert words.grade([(rewrite, answer)]) == [True]
        like += rewrite == solution
        if not any(line.wrong for line in plan.lines):
            assert attempt == rewrite
        else:
            wrong += 1
            lines = [line.wrong for line in plan.lines]
            early.append(lines.index(True) / len(lines))
    assert 50 < wrong < 150 and sum(early) / len(early) < 0.25
    assert like < 0.2 * 300  # the solution is not unique


def test_the_committed_pair_says_how_it_was_made():
    here = SCRIPT.parents[1]
    for folder in smol_models.ADAPTERS.values():
        rounds = store.read_json(here / folder / "pair.json", [])
        assert 0.5 < rounds[-1]["accuracy"] < 0.9
        assert (here / folder / "adapter_model.safetensors").is_file()
