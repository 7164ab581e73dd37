"""The training batch, the loss against plain logits, and training that can be killed."""

import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import Trainer

from trdlib import distill, models, prompts, rollout, store
from trdlib.analysis import explore
from trdlib.ops.chain import sampled
from trdlib.refine import Pair, next_round, refine, solve, training_sets
from trdlib.run import get_run

ROWS = [
    Pair([31, 20, 7], [31, 20, 7, 9, 9], [77, 40, 2]),
    Pair([9], [9, 9], [12, 2]),
    Pair([5, 6], [5], [33, 44, 55, 66, 2]),
    Pair([8, 8, 8, 8], [1, 8], [3]),
]


@pytest.fixture
def project(made_project):
    return made_project


def smoke_distiller(method="trd", mode="opd", seed=0, shake=True):
    distiller = distill.build(get_run("smoke", mode, method), seed)
    if shake:  # a fresh adapter changes nothing: give it weights
        torch.manual_seed(1)
        for parameter in distiller.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return distiller


def load(name):
    return models.load(name, get_run().settings.models, get_run().context_length)


def rows_of_run(run, task, sets):
    """What the run trains on: {base seed: pairs}."""
    return training_sets([run], sets["train"], sampled([run], task, sets["train"]))[0].rows


def distilled(run, task, sets):
    return distill.distill([run], task, sets, sampled([run], task, sets["train"]))[0]


# ------------------------------------------------------------------------------ training batch


def test_collate_token_for_token():
    batch = distill.collate(ROWS[:2])
    assert batch["input_ids"].tolist() == [[31, 20, 7, 77, 40, 2], [9, 12, 2, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100] * 3 + [77, 40, 2], [-100, 12, 2] + [-100] * 3]
    assert batch["teacher_ids"].tolist() == [
        [31, 20, 7, 9, 9, 77, 40, 2], [9, 9, 12, 2, 0, 0, 0, 0]
    ]  # fmt: skip
    assert batch["teacher_labels"][1].tolist() == [-100, -100, 12, 2] + [-100] * 4


def test_pairs_are_the_sampled_tokens_in_the_generating_contexts(task, sets):
    """y_r is scored under the very prompt that generated it, on the very ids that were sampled."""
    run = get_run("smoke refinement.max_new_tokens=25", "opsd", "trd")  # some end before theirs
    y_o = rollout.rollout(run, task, sets["train"])
    y_r = refine(run, task, sets["train"], y_o)
    seen = {}
    original = rollout.table

    def spy(run, task, path, request, *how):
        seen[request.seed] = [p.ids for p in request.prompts]
        return original(run, task, path, request, *how)

    run.rewrites("y_r").unlink()
    rollout.table = spy
    try:
        again = refine(run, task, sets["train"], y_o)
    finally:
        rollout.table = original
    assert again["token_ids"].map(list).tolist() == y_r["token_ids"].map(list).tolist()
    eos = models.load_tokenizer(run.model_path("student", 0)).eos_token_id
    for seed in run.settings.seeds:
        rows = rows_of_run(run, task, sets)[seed]
        mine = y_r[y_r["seed"] == seed]
        assert [pair.teacher_ids for pair in rows] == seen[seed]
        assert [pair.response_ids for pair in rows] == mine["token_ids"].map(list).tolist()
        for pair, finished in zip(rows, mine["finished"], strict=True):
            assert (pair.response_ids[-1] == eos) == finished
        assert {*mine["finished"]} == {True, False}
    problems = sets["train"].to_dict("records")
    student = [p.ids for p in prompts.student_prompts(run, 0, problems)]
    assert [pair.student_ids for pair in rows_of_run(run, task, sets)[0]] == student
    assert len(y_o) == len(y_r)


def test_each_trajectory_brings_its_own_text_and_context(smoke, task, sets):
    tokenizer = models.load_tokenizer(smoke().model_path("student", 0))
    train = sets["train"]
    problems = train.to_dict("records")
    for mode in ("opd", "opsd"):
        vanilla = [p.ids for p in prompts.teacher_prompts(smoke(mode), 0, problems)]
        y_o = rollout.rollout(smoke(mode), task, train)
        tables = {
            "forward_kl": y_o,
            "off_policy": solve(smoke(mode), task, train),
            "trd_plain": refine(smoke(mode), task, train, y_o),  # its context is the vanilla one
        }
        for method, expected in tables.items():
            rows = rows_of_run(smoke(mode, method), task, sets)[0]
            expected = expected[expected["seed"] == 0]["token_ids"].map(list).tolist()
            assert [p.response_ids for p in rows] == expected
            assert [p.teacher_ids for p in rows] == vanilla
    for pair, row in zip(rows_of_run(smoke("opd", "sft"), task, sets)[0], problems, strict=True):
        assert tokenizer.decode(pair.response_ids) == row["solution"] + "<|im_end|>"
        assert pair.teacher_ids == []
    refined = rows_of_run(smoke("opd", "sft_refined"), task, sets)[0]
    assert all(pair.teacher_ids == [] for pair in refined)


def test_what_methods_share_is_the_same_as_alone(smoke, task, sets):
    """Contexts are rendered once for all methods of a trajectory: no method sees another's."""
    methods = ("trd", "sft_refined", "forward_kl", "trd_failed", "trd_plain", "sft", "off_policy")
    runs = [smoke(mode, method) for mode in ("opd", "opsd") for method in methods]
    together = training_sets(runs, sets["train"], sampled(runs, task, sets["train"]))
    for run, found in zip(runs, together, strict=True):
        assert found.rows == rows_of_run(run, task, sets)


def test_subsets_select_by_the_verdicts(smoke, task, sets):
    run, rng = smoke("opd", "trd"), np.random.default_rng(0)
    tables = sampled([run], task, sets["train"])["opd"]
    for table in tables.values():
        table["correct"] = rng.random(len(table)) < 0.5
    y_o, y_r = tables["y_o"], tables["y_r"]
    y_r["y_o_correct"] = y_o["correct"]
    passed, rewritten = (t[t["seed"] == 1]["correct"].to_numpy() for t in (y_o, y_r))

    def rows(subset):
        method = run.recipe.model_copy(update={"subset": subset})
        run.settings = run.settings.model_copy(update={"methods": {"trd": method}})
        return training_sets([run], sets["train"], {"opd": tables})[0].rows[1]

    everything = rows("all")
    for subset, keep in (
        ("failed", ~passed),
        ("passed", passed),
        ("failed_then_passed", ~passed & rewritten),
    ):
        assert 0 < keep.sum() < len(keep)
        assert rows(subset) == [pair for pair, k in zip(everything, keep, strict=True) if k]
    y_r["y_o_correct"] = True
    with pytest.raises(ValueError, match="'failed_then_passed' is empty for seed 0"):
        rows("failed_then_passed")


# ------------------------------------------------------------------------------------ the loss


def plain_losses(distiller, rows, teacher):
    """The forward KL of each response token from full logits, one row at a time."""
    result = []
    for pair in rows:

        def log_p(model, prompt, pair=pair):
            ids = torch.tensor([[*prompt, *pair.response_ids]])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            return logits.double().log_softmax(-1)

        s, t = log_p(distiller.student, pair.student_ids), log_p(teacher, pair.teacher_ids)
        result.append((t.exp() * (t - s)).sum(-1))
    return result


@pytest.mark.parametrize("mode", ["opd", "opsd"])
def test_the_loss_equals_plain_logits(project, mode):
    distiller = smoke_distiller(mode=mode)
    path = "teacher" if mode == "opd" else "student"
    teacher, _ = load(f"models/tiny/0/{path}")
    with torch.no_grad():
        expected = plain_losses(distiller.eval(), ROWS, teacher)
    found = explore.token_losses(distiller, ROWS, batch_size=3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    loss = distiller(**distill.collate(ROWS))["loss"]
    torch.testing.assert_close(loss.double(), torch.cat(expected).mean(), rtol=1e-4, atol=1e-5)


def test_the_clip_caps_each_token(project):
    distiller = smoke_distiller("forward_kl_clip")
    free = distiller.recipe.model_copy(update={"clip": None})
    capped = torch.cat(explore.token_losses(distiller, ROWS))
    distiller.recipe = free
    full = torch.cat(explore.token_losses(distiller, ROWS))
    assert (full > 0.1).any()
    torch.testing.assert_close(capped, full.clamp(max=0.1))


@pytest.mark.parametrize("method", ["trd", "reverse_kl_topk", "sft"])
def test_one_batch_of_eight_equals_eight_of_one(project, method, tmp_path):
    """Accumulation weighs by tokens, not by micro-batches. (Float64: AdamW enlarges rounding.)"""
    rows = (ROWS * 2)[:8]
    if method == "sft":
        rows = [pair._replace(teacher_ids=[]) for pair in rows]
    logs, after = [], []
    for micro in (8, 1):
        settings = get_run().settings.training.model_copy(
            update={"batch_size": 8, "micro_batch_size": micro, "warmup": 0.0, "epochs": 2}
        )
        distiller = smoke_distiller(method).double()
        for teacher in filter(None, distiller._teacher):
            teacher.double()
        how = {"learning_rate": 1e-3, "seed": 0, "checkpoints": tmp_path / str(micro)}
        logs.append(distill.train(distiller, rows, settings, **how))
        after.append(distiller.state_dict())
    before = smoke_distiller(method).double().state_dict()
    for name, weight in after[0].items():
        torch.testing.assert_close(weight, after[1][name], rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(before[n], w) for n, w in after[0].items())
    # AdamW forgives a wrong scale: the losses and the gradient norms do not
    for whole, single in zip(*logs, strict=True):
        assert whole["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert whole["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-3)


def test_dropout_is_off_for_the_self_teacher(project):
    run = get_run("smoke", "opsd", "trd")
    lora = run.settings.lora.model_copy(update={"dropout": 0.5})
    run.settings = run.settings.model_copy(update={"lora": lora})
    distiller = distill.build(run, 0).train()
    inputs = distill.collate(ROWS)
    base, _ = load("models/tiny/0/student")
    with models.step0(distiller.student) as teacher:
        assert not any(module.training for module in teacher.modules())
        found = models.hidden_states(teacher, input_ids=inputs["teacher_ids"])
    assert torch.equal(found, models.hidden_states(base, input_ids=inputs["teacher_ids"]))
    assert distiller.student.training


def test_as_the_authors_weigh_it(project):
    """A mean over forward passes, each the mean of its own tokens, or as usual one over all tokens:
    the first step's loss and the norm of its gradient, from full logits."""
    how = "training.batch_size=4 training.micro_batch_size=1 training.max_grad_norm=1e9"
    rows, wanted = [*ROWS[:3], ROWS[0]._replace(response_ids=[*range(40, 54)])], []
    teacher, _ = load("models/tiny/0/teacher")
    for setting in ("[micro_step_means]", "[]"):
        run = get_run(f"smoke {how} training.as_authors={setting}", "opd", "trd")
        folder = project / setting
        distill._train_round(distill._candidate(run, 0, 1e-3, rows), 0, folder, None)
        first = store.read_json(folder / "training_log.json")[0]
        distiller = distill.build(run, 0)  # before its first step
        losses = plain_losses(distiller, rows, teacher)
        means = [row.mean() for row in losses] if setting != "[]" else [torch.cat(losses).mean()]
        wanted.append(sum(means) / len(means))
        wanted[-1].backward()
        grads = [p.grad.norm() for p in distiller.student.parameters() if p.grad is not None]
        assert first["loss"] == pytest.approx(wanted[-1].item(), rel=1e-3)
        assert first["grad_norm"] == pytest.approx(torch.stack(grads).norm().item(), rel=1e-3)
    assert abs(wanted[0] / wanted[1] - 1) > 0.01  # the two can be told apart
    raw = get_run(f"smoke {how} training.as_authors=[raw_text]", "opd", "trd")
    assert distill.fingerprint(raw, 0, rows) != distill.fingerprint(run, 0, rows)


def test_as_the_authors_write_it(smoke, task, sets):
    """Raw text: problem and response, by the same tokenizer, nothing of the chat template, no end
    of turn; rollouts and rewrites stay on the template."""
    raw = get_run("smoke training.as_authors=[raw_text]", "opsd", "trd")
    usual = smoke("opsd", "trd")
    assert (raw.attempts, raw.rewrites("y_r")) == (usual.attempts, usual.rewrites("y_r"))
    tokenizer = models.load_tokenizer(raw.model_path("student", 0))
    mine, theirs = (rows_of_run(run, task, sets)[0] for run in (raw, usual))
    special, shorter = {*tokenizer.all_special_ids}, 0
    for pair, other, row in zip(mine, theirs, sets["train"].to_dict("records"), strict=True):
        asked = prompts.TEMPLATES["tiny"]["solve"].format(**row) + "\n"
        assert pair.student_ids == tokenizer.encode(asked, add_special_tokens=False)
        assert row["solution"] in tokenizer.decode(pair.teacher_ids)
        assert not special & {*pair.student_ids, *pair.teacher_ids, *pair.response_ids}
        assert pair.response_ids == [i for i in other.response_ids if i not in special]
        shorter += len(pair.response_ids) < len(other.response_ids)
    assert shorter > 0
    hidden = {**sets["train"].iloc[0].to_dict(), "problem": "<|im_end|>"}
    with pytest.raises(ValueError, match=r"cannot read <\|im_end\|> as text"):  # nor as its own end
        prompts.student_prompts(raw, 0, [hidden], raw=True)


# ------------------------------------------------------------------------------------ training


def test_a_killed_training_ends_in_the_same_adapter_bit_for_bit(project, tmp_path):
    """Dropout on, killed mid-epoch after a checkpoint; a half-written checkpoint lies about."""
    run = get_run("smoke", "opd", "trd")
    lora = run.settings.lora.model_copy(update={"dropout": 0.1})
    run.settings = run.settings.model_copy(update={"lora": lora})
    settings = run.settings.training.model_copy(update={"save_steps": 2, "batch_size": 2})
    rows = ROWS * 3  # 6 optimizer steps

    def train(folder, **how):
        distiller = distill.build(run, 0)
        how = {"learning_rate": 1e-2, "seed": 0, "checkpoints": folder, **how}
        log = distill.train(distiller, rows, settings, **how)
        return distiller.state_dict(), log

    expected, log = train(tmp_path / "whole")
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]

    class KilledError(Exception):
        pass

    original = Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KilledError
        return original(self, *args, **kwargs)

    Trainer.training_step = killed
    try:
        with pytest.raises(KilledError):
            train(tmp_path / "cut")
    finally:
        Trainer.training_step = original
    torn = tmp_path / "cut" / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    steps = []
    Trainer.training_step = lambda self, *a, **k: (
        steps.append(self.state.global_step) or original(self, *a, **k)
    )
    try:
        resumed, again = train(tmp_path / "cut")
    finally:
        Trainer.training_step = original
    assert min(steps) == 4  # from the last whole checkpoint
    assert again == log
    assert all(torch.equal(resumed[name], weight) for name, weight in expected.items())


def test_distill_chooses_on_validation_and_skips_what_is_finished(smoke, task, sets, monkeypatch):
    run = smoke("opd", "trd")
    calls = []
    original = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda *a, **k: calls.append(1) or original(*a, **k))
    choice, adapters = distilled(run, task, sets)
    seeds, grid = run.settings.seeds, run.settings.training.learning_rates
    assert len(calls) == len(seeds) * len(grid)
    assert choice["grid"] == list(grid)
    assert set(choice["validation_by_seed"]) == {str(rate) for rate in grid}
    assert adapters == {seed: run.adapter(seed) for seed in seeds}
    for seed in seeds:
        about = store.read_json(run.adapter(seed) / "run.json")
        assert about["learning_rate"] == choice["chosen"]
        assert (run.adapter(seed) / "adapter_model.safetensors").is_file()
        assert not (run.folder(seed) / "candidates").exists()
    base = store.read_json(run.adapter(0) / "adapter_config.json")["base_model_name_or_path"]
    assert not Path(base).is_absolute()
    assert distilled(run, task, sets).choice == choice
    assert len(calls) == len(seeds) * len(grid)
    # one seed is lost: it alone is trained again, with the chosen rate
    kept = (run.adapter(0) / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.adapter(1))
    calls.clear()
    assert distilled(run, task, sets).choice == choice
    assert len(calls) == 1
    assert (run.adapter(0) / "adapter_model.safetensors").read_bytes() == kept
    # another recipe is never taken for this one
    changed = run.settings.training.model_copy(update={"weight_decay": 0.5})
    run.settings = run.settings.model_copy(update={"training": changed})
    calls.clear()
    assert distilled(run, task, sets).choice["fingerprint"] != choice["fingerprint"]
    assert calls


def test_runs_of_one_pool_end_as_each_alone(smoke, task, sets):
    twice = "smoke seeds=[1] methods.trd_rounds.rounds=2"
    runs = [get_run(twice, "opsd", "sft"), get_run(twice, "opd", "trd_rounds")]
    together = distill.distill(runs, task, sets, sampled(runs, task, sets["train"]))
    for run, found in zip(runs, together, strict=True):
        run.choice.unlink()
        for seed in run.settings.seeds:
            shutil.rmtree(run.folder(seed))
        assert distilled(run, task, sets) == found


def test_a_given_learning_rate_is_taken(smoke, task, sets):
    run = get_run("smoke", "opd", "sft", learning_rate=0.003)
    choice, adapters = distilled(run, task, sets)
    assert (choice["chosen"], choice["grid"], choice["validation_by_seed"]) == (0.003, [0.003], {})
    assert store.read_json(adapters[1] / "run.json")["learning_rate"] == 0.003


def test_a_variant_trains_with_its_own_rates_and_says_how_many_rows(smoke, task, sets):
    run = smoke("opd", "forward_kl_failed")
    choice, _ = distilled(run, task, sets)
    assert choice["grid"] == list(run.settings.training.variant_learning_rates)
    assert choice["validation_by_seed"] == {}  # one rate: nothing to choose
    y_o = rollout.rollout(run, task, sets["train"])
    failed = y_o[~y_o["correct"]].groupby("seed").size()
    assert choice["rows_by_seed"] == failed.reindex(run.settings.seeds).tolist()


def test_rounds_carry_the_adapter_on_along_fresh_attempts(task, sets, monkeypatch):
    run, train_set = get_run("smoke seeds=[1]", "opd", "trd_rounds"), sets["train"]
    _, adapters = distilled(run, task, sets)
    rate, folder = run.rates[0], run.folder(1) / "rounds" / str(run.rates[0])
    everything = sampled([run], task, train_set)["opd"]["y_o"].set_index(["seed", "id"])
    asked = []
    for number in range(1, run.recipe.rounds):
        place, before = folder / str(number + 1), folder / str(number) / "adapter"
        y_o, y_r = (store.load(place / f"{name}.parquet") for name in ("y_o", "y_r"))
        assert list(y_o["id"]) == list(y_r["id"]) == list(train_set["id"][number::4])
        asked += list(y_o["id"])
        rows = next_round(run, task, 1, train_set.iloc[number::4], before, number, place)
        ids = [list(map(int, ids)) for ids in y_r["token_ids"]]
        assert [pair.response_ids for pair in rows] == ids
        shown = models.load_tokenizer(run.model_path("student", 1)).decode(rows[0].teacher_ids)
        assert y_o["text"][0] in shown
    assert set(asked) | set(train_set["id"][::4]) == set(train_set["id"])
    first = everything.loc[1].loc[asked]["text"].tolist()
    again = [t for n in (2, 3, 4) for t in store.load(folder / str(n) / "y_o.parquet")["text"]]
    assert again != first  # another student, other random numbers
    # the last round is a training from the adapter of the round before
    distiller = distill.build(run, 1, folder / "3" / "adapter")
    how = {"learning_rate": rate, "seed": distill._stream(run.recipe, 1, 3)}
    distill.train(distiller, rows, run.settings.training, checkpoints=folder / "mine", **how)
    kept = peft.load_peft_weights(str(adapters[1]), "cpu")
    mine = peft.get_peft_model_state_dict(distiller.student)
    assert all(torch.equal(mine[name], weight) for name, weight in kept.items())
    # a run that was stopped in its last round goes on with that alone
    calls, original = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda *a, **k: calls.append(1) or original(*a, **k))
    shutil.rmtree(adapters[1])
    distilled(run, task, sets)
    assert len(calls) == 1


def test_damaged_weights_are_set_aside_and_made_again(smoke, task, sets, capsys):
    run = get_run("smoke", "opd", "sft", learning_rate=0.003)
    _, adapters = distilled(run, task, sets)
    weights = adapters[0] / "adapter_model.safetensors"
    right = weights.read_bytes()
    weights.write_bytes(right[:-4] + bytes(b ^ 1 for b in right[-4:]))
    distilled(run, task, sets)
    assert weights.read_bytes() == right
    assert "adapter is damaged" in capsys.readouterr().err


def test_a_twin_has_other_random_numbers(smoke, task, sets):
    one, twin = (distilled(smoke("opd", m), task, sets) for m in ("trd", "trd_again"))
    files = [found.adapters[0] / "adapter_model.safetensors" for found in (one, twin)]
    assert files[0].read_bytes() != files[1].read_bytes()
    logs = [store.read_json(f.with_name("training_log.json"))[0]["loss"] for f in files]
    assert logs[0] != logs[1]  # other rows first


def test_pruning_ends_at_the_first_token_that_the_teacher_gives_up(project):
    distiller = smoke_distiller("reverse_kl")
    teacher = distiller._teacher[0]
    full = explore.token_losses(distiller, ROWS)
    surprise = []
    for pair in ROWS:
        ids = torch.tensor([[*pair.teacher_ids, *pair.response_ids]])
        with torch.no_grad():
            said = teacher(input_ids=ids).logits[0].double().softmax(-1)
        at = range(len(pair.teacher_ids) - 1, ids.shape[1] - 1)
        surprise.append([float(said[i, ids[0, i + 1]]) for i in at])
    below = float(np.median(np.concatenate(surprise)))
    distiller.recipe = distiller.recipe.model_copy(update={"prune_below": below})
    cut = 0
    for ours, usual, given in zip(
        explore.token_losses(distiller, ROWS, batch_size=3), full, surprise, strict=True
    ):
        end = next((i for i, p in enumerate(given) if p < below), len(given))
        torch.testing.assert_close(ours[:end], usual[:end])
        assert (ours[end:] == 0).all()
        cut += len(given) - end
    assert 0 < cut < sum(map(len, surprise))


def test_ties_go_to_the_smaller_rate():
    assert distill.best_rate({0.2: [0.5, 0.7], 0.1: [0.6, 0.6], 0.4: [0.1, 0.9]}) == 0.1
    assert distill.best_rate({0.2: [0.5, 0.8], 0.1: [0.6, 0.6]}) == 0.2
