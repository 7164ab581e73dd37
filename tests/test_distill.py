"""The training batch, the loss against plain logits, and training that can be killed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from trdlib import config, data, distill, models, refine, rollout
from trdlib.distill import Pair

ROWS = [
    Pair([31, 20, 7], [31, 20, 7, 9, 9], [77, 40, 2]),
    Pair([9], [9, 9], [12, 2]),
    Pair([5, 6], [5], [33, 44, 55, 66, 2]),
    Pair([8, 8, 8, 8], [1, 8], [3]),
]


def smoke_distiller(method="trd", mode="opd", seed=0, shake=True):
    distiller = distill.build(config.run("smoke", "math", mode, method), seed)
    if shake:  # a fresh adapter changes nothing: give it weights
        torch.manual_seed(1)
        for parameter in distiller.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return distiller


# ------------------------------------------------------------------------------ training batch


def test_collate_token_for_token():
    batch = distill.collate(ROWS[:2])
    assert batch["input_ids"].tolist() == [[31, 20, 7, 77, 40, 2], [9, 12, 2, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100] * 3 + [77, 40, 2], [-100, 12, 2] + [-100] * 3]
    assert batch["teacher_ids"].tolist() == [
        [31, 20, 7, 9, 9, 77, 40, 2], [9, 9, 12, 2, 0, 0, 0, 0]
    ]  # fmt: skip
    assert batch["teacher_labels"][1].tolist() == [-100, -100, 12, 2] + [-100] * 4


def test_pairs_are_the_sampled_tokens_in_the_generating_contexts(smoke):
    """y_r is scored under the very prompt that generated it, on the very ids that were sampled."""
    run = smoke("opsd", "trd")
    y_o, y_r = rollout.attempts(run), refine.rewrites(run)
    seen = {}
    original = rollout.generate_table

    def spy(run, path, request, *how):
        seen[request.seed] = [p.ids for p in request.prompts]
        return original(run, path, request, *how)

    shutil.rmtree(run.mode_folder)
    rollout.generate_table = spy
    try:
        again = refine.rewrites(run)
    finally:
        rollout.generate_table = original
    assert again["token_ids"].map(list).tolist() == y_r["token_ids"].map(list).tolist()
    eos = models.load_tokenizer(run.model_path("student", 0)).eos_token_id
    for seed in run.settings.seeds:
        rows = distill.training_set(run).rows[seed]
        mine = y_r[y_r["seed"] == seed]
        assert [pair.teacher_ids for pair in rows] == seen[seed]
        assert [pair.response_ids for pair in rows] == mine["token_ids"].map(list).tolist()
        for pair, finished in zip(rows, mine["finished"], strict=True):
            assert (pair.response_ids[-1] == eos) == finished
    problems = data.problems(run.data, "train").to_dict("records")
    student = [p.ids for p in rollout.student_prompts(run, 0, problems)]
    assert [pair.student_ids for pair in distill.training_set(run).rows[0]] == student
    assert len(y_o) == len(y_r)


def test_each_trajectory_brings_its_own_text_and_context(smoke):
    tokenizer = models.load_tokenizer(smoke().model_path("student", 0))
    problems = data.problems(smoke().data, "train").to_dict("records")
    for mode in ("opd", "opsd"):
        vanilla = [p.ids for p in refine.teacher_prompts(smoke(mode), 0, problems)]
        for method, table in (
            ("forward_kl", rollout.attempts),
            ("off_policy", refine.teacher_solutions),
        ):
            run = smoke(mode, method)
            rows, expected = distill.training_set(run).rows[0], table(run)
            expected = expected[expected["seed"] == 0]["token_ids"].map(list).tolist()
            assert [p.response_ids for p in rows] == expected
            assert [p.teacher_ids for p in rows] == vanilla
    for pair, row in zip(distill.training_set(smoke("opd", "sft")).rows[0], problems, strict=True):
        assert tokenizer.decode(pair.response_ids) == row["solution"] + "<|im_end|>"
        assert pair.teacher_ids == []
    assert all(
        p.teacher_ids == [] for p in distill.training_set(smoke("opd", "sft_refined")).rows[0]
    )


def test_subsets_select_by_the_verdicts(smoke):
    run = smoke("opd", "trd")
    rng = np.random.default_rng(0)
    for make, path in (
        (rollout.attempts, run.attempts),
        (refine.rewrites, run.mode_folder / "y_r.parquet"),
    ):
        table = make(run)
        table["correct"] = rng.random(len(table)) < 0.5
        data.save(table, path, data.fingerprint_of(path))
    y_o, y_r = rollout.attempts(run), refine.rewrites(run)
    passed, rewritten = (t[t["seed"] == 1]["correct"].to_numpy() for t in (y_o, y_r))
    everything = distill.training_set(run).rows[1]
    for subset, keep in (
        ("failed", ~passed),
        ("passed", passed),
        ("failed_then_passed", ~passed & rewritten),
    ):
        method = run.recipe.model_copy(update={"subset": subset})
        run.settings = run.settings.model_copy(update={"methods": {"trd": method}})
        assert 0 < keep.sum() < len(keep)
        expected = [pair for pair, k in zip(everything, keep, strict=True) if k]
        assert distill.training_set(run).rows[1] == expected
    y_o["correct"] = True
    data.save(y_o, run.attempts, data.fingerprint_of(run.attempts))
    with pytest.raises(ValueError, match="'failed_then_passed' is empty for seed 0"):
        distill.training_set(run).rows[1]


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
    teacher, _ = models.load(f"models/smoke/0/{path}", config.run())
    with torch.no_grad():
        expected = plain_losses(distiller.eval(), ROWS, teacher)
    found = distill.token_losses(distiller, ROWS, batch_size=3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    loss = distiller(**distill.collate(ROWS))["loss"]
    torch.testing.assert_close(loss.double(), torch.cat(expected).mean(), rtol=1e-4, atol=1e-5)


def test_the_clip_caps_each_token(project):
    distiller = smoke_distiller("forward_kl_clip")
    free = distiller.recipe.model_copy(update={"clip": None})
    capped = torch.cat(distill.token_losses(distiller, ROWS))
    distiller.recipe = free
    full = torch.cat(distill.token_losses(distiller, ROWS))
    assert (full > 0.1).any()
    torch.testing.assert_close(capped, full.clamp(max=0.1))


@pytest.mark.parametrize("method", ["trd", "reverse_kl_topk", "sft"])
def test_one_batch_of_eight_equals_eight_of_one(project, method, tmp_path):
    """Accumulation weighs by tokens, not by micro-batches."""
    rows = (ROWS * 2)[:8]
    if method == "sft":
        rows = [pair._replace(teacher_ids=[]) for pair in rows]
    logs, after = [], []
    for micro in (8, 1):
        settings = config.run().settings.training.model_copy(
            update={"batch_size": 8, "micro_batch_size": micro, "warmup": 0.0, "epochs": 2}
        )
        distiller = smoke_distiller(method)
        how = {"learning_rate": 1e-3, "seed": 0, "checkpoints": tmp_path / str(micro)}
        logs.append(distill.train(distiller, rows, settings, **how))
        after.append(distiller.state_dict())
    before = smoke_distiller(method).state_dict()
    for name, weight in after[0].items():
        torch.testing.assert_close(weight, after[1][name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(before[n], w) for n, w in after[0].items())
    # AdamW forgives a wrong scale: the losses and the gradient norms do not
    for whole, single in zip(*logs, strict=True):
        assert whole["loss"] == pytest.approx(single["loss"], rel=1e-4)
        assert whole["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-3)


def test_dropout_is_off_for_the_self_teacher(project):
    run = config.run("smoke", "math", "opsd", "trd")
    lora = run.settings.lora.model_copy(update={"dropout": 0.5})
    run.settings = run.settings.model_copy(update={"lora": lora})
    distiller = distill.build(run, 0).train()
    inputs = distill.collate(ROWS)
    base, _ = models.load("models/smoke/0/student", run)
    with models.step0(distiller.student) as teacher:
        assert not any(module.training for module in teacher.modules())
        found = models.hidden_states(teacher, input_ids=inputs["teacher_ids"])
    assert torch.equal(found, models.hidden_states(base, input_ids=inputs["teacher_ids"]))
    assert distiller.student.training


# ------------------------------------------------------------------------------------ training


def test_a_killed_training_ends_in_the_same_adapter_bit_for_bit(project, tmp_path):
    """Dropout on, killed mid-epoch after a checkpoint; a half-written checkpoint lies about."""
    run = config.run("smoke", "math", "opd", "trd")
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

    from transformers import Trainer

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


def test_distill_chooses_on_validation_and_skips_what_is_finished(smoke, monkeypatch):
    run = smoke("opd", "trd")
    calls = []
    original = distill.train
    monkeypatch.setattr(distill, "train", lambda *a, **k: calls.append(1) or original(*a, **k))
    choice = distill.distill(run)
    seeds, grid = run.settings.seeds, run.settings.training.learning_rates
    assert len(calls) == len(seeds) * len(grid)
    assert choice["grid"] == list(grid)
    assert set(choice["validation_by_seed"]) == {str(rate) for rate in grid}
    for seed in seeds:
        about = data.read_json(run.adapter(seed) / "run.json")
        assert about["learning_rate"] == choice["chosen"]
        assert (run.adapter(seed) / "adapter_model.safetensors").is_file()
        assert not (run.folder(seed) / "candidates").exists()
    base = data.read_json(run.adapter(0) / "adapter_config.json")["base_model_name_or_path"]
    assert not Path(base).is_absolute()
    assert distill.distill(run) == choice
    assert len(calls) == len(seeds) * len(grid)
    # one seed is lost: it alone is trained again, with the chosen rate
    kept = (run.adapter(0) / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.adapter(1))
    calls.clear()
    assert distill.distill(run) == choice
    assert len(calls) == 1
    assert (run.adapter(0) / "adapter_model.safetensors").read_bytes() == kept
    # another recipe is never taken for this one
    changed = run.settings.training.model_copy(update={"weight_decay": 0.5})
    run.settings = run.settings.model_copy(update={"training": changed})
    calls.clear()
    assert distill.distill(run)["fingerprint"] != choice["fingerprint"]
    assert calls


def test_a_given_learning_rate_is_taken(smoke):
    run = smoke("opd", "sft")
    choice = distill.distill(run, learning_rate=0.003)
    assert (choice["chosen"], choice["grid"], choice["validation_by_seed"]) == (0.003, [0.003], {})
    assert data.read_json(run.adapter(2) / "run.json")["learning_rate"] == 0.003


def test_a_subset_trains_with_its_own_rates_and_says_how_many_rows(smoke):
    run = smoke("opd", "forward_kl_failed")
    choice = distill.distill(run)
    assert choice["grid"] == list(run.settings.training.subset_learning_rates)
    assert choice["validation_by_seed"] == {}  # one rate: nothing to choose
    y_o = rollout.attempts(run)
    failed = y_o[~y_o["correct"]].groupby("seed").size()
    assert choice["rows_by_seed"] == failed.reindex(run.settings.seeds).tolist()
    for seed in run.settings.seeds:
        assert choice["adapters"][str(seed)] == config.weights_hash(run.adapter(seed))


def test_ties_go_to_the_smaller_rate():
    assert distill.best_rate({0.2: [0.5, 0.7], 0.1: [0.6, 0.6], 0.4: [0.1, 0.9]}) == 0.1
    assert distill.best_rate({0.2: [0.5, 0.8], 0.1: [0.6, 0.6]}) == 0.2
