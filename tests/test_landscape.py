"""The map: one knob at a time, gaps by hand, oracles, and nothing done twice."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

from trdlib import config, distill, landscape, models, rollout, tiny


@pytest.fixture(scope="module")
def tiny_run():
    return config.run("tiny", settings=config.load(REPOSITORY / "params.yaml"))


def test_each_cell_turns_one_knob(tiny_run, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    cells = landscape.cells(tiny_run)
    rest = cells[0].run.settings.model_dump()
    assert cells[0].name == "rest"
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({cell.run.attempts for cell in cells}) == len(cells)
    touched = {
        "locality": "data", "prompts": "data", "rollout_temperature": "rollout",
        "refinement_temperature": "refinement", "teacher_temperature": "models",
        "student_strength": "models",
    }  # fmt: skip
    for cell in cells[1:]:
        here = cell.run.settings.model_dump()
        assert [key for key in rest if here[key] != rest[key]] == [touched[cell.knob]]
        assert set(cell.methods) >= {"trd", "off_policy"}
    shares = {c.value: c.run.settings.data.benchmarks["trail"].local_share for c in cells
              if c.knob == "locality"}  # fmt: skip
    assert shares == {0.5: 0.5, 1.0: 1.0}


def test_changed_models_are_what_their_knob_says(project):
    run = config.run("smoke")
    paths = {role: run.model_path(role, 0) for role in ("student", "teacher")}
    landscape._make(run, 0, "teacher", 2.0)
    landscape._make(run, 0, "student", 0.25)
    student, teacher = (models.load(paths[role], run)[0] for role in ("student", "teacher"))
    fuzzy = models.load("runs/smoke/map/models/teacher-2/0", run)[0]
    mixed = models.load("runs/smoke/map/models/student-0.25/0", run)[0]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(fuzzy(ids).logits, teacher(ids).logits / 2, atol=1e-5)
    for name, weight in mixed.state_dict().items():
        a, b = student.state_dict()[name], teacher.state_dict()[name]
        assert torch.allclose(weight, 0.75 * a + 0.25 * b, atol=1e-6)


def test_a_scale_without_a_procedural_task_has_no_map(project):
    settings = config.load()
    scale = settings.scales["smoke"].model_copy(update={"map": None})
    settings = settings.model_copy(update={"scales": {"smoke": scale}})
    with pytest.raises(config.SettingsError, match="has no map"):
        landscape.cells(config.run("smoke", settings=settings))


def test_survey_measures_every_cell_once(project, monkeypatch):
    run = config.run("smoke")
    table = landscape.survey(run)
    assert table["knob"].tolist() == ["rest", "teacher_temperature"]
    cell = landscape.cells(run)[1]
    counts = {}
    for method in ("trd", "off_policy", "forward_kl"):
        here = landscape.with_method(cell.run, method)
        frames = [pd.read_parquet(here.samples(seed, "trail")) for seed in run.settings.seeds]
        counts[method] = np.array([f["correct"].mean() for f in frames])
    row = table.iloc[1]
    assert row["to_best_value"] == pytest.approx((counts["trd"] - counts["forward_kl"]).mean())
    assert row["to_off_policy_by_seed"] == pytest.approx(counts["trd"] - counts["off_policy"])
    y_o = pd.read_parquet(cell.run.attempts)
    assert row["y_o_accuracy"] == y_o["correct"].mean()
    assert len(y_o) == 8 * len(run.settings.seeds)  # the knob `prompts` rests at 8
    monkeypatch.setattr(distill, "train", None)  # a second time nothing is trained
    assert landscape.survey(run).equals(table)
    written = landscape.write(run, table)
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in landscape.write(run, table)] == first
    assert "forward_kl_cut" in written[1].read_text()


def test_the_cut_attempt_ends_with_its_first_wrong_token(smoke):
    run = smoke("opd", "forward_kl_cut")
    plain = distill.training_set(smoke("opd", "forward_kl"))
    cut = distill.training_set(run)
    y_o, seen = rollout.attempts(run), 0
    problems = pd.read_parquet(run.data / "train.parquet").set_index("id")["problem"]
    for seed in run.settings.seeds:
        spell = models.load_tokenizer(run.model_path("student", seed)).convert_ids_to_tokens
        ids = y_o[y_o["seed"] == seed]["id"]
        for name, whole, part in zip(ids, plain.rows[seed], cut.rows[seed], strict=True):
            wrong = tiny.first_wrong_token(problems[name], spell(whole.response_ids))
            end = None if wrong is None else wrong + 1
            assert part.response_ids == whole.response_ids[:end]
            assert part.student_ids == whole.student_ids
            seen += wrong is not None
    assert seen


def test_without_onsets_both_sides_are_renormalised_on_the_rest(smoke):
    run, plain = smoke("opd", "forward_kl_no_onsets"), smoke("opd", "forward_kl")
    rows = distill.training_set(run).rows[0][:3]
    distiller = distill.build(run, 0)
    found = torch.cat(distill.token_losses(distiller, rows))
    tokenizer = models.load_tokenizer(run.model_path("student", 0))
    onsets = tokenizer.convert_tokens_to_ids(list(run.settings.onsets))
    assert sorted(set(range(len(tokenizer))) - set(distiller.vocabulary.tolist())) == sorted(onsets)
    expected = []
    teacher = models.load(run.model_path("teacher", 0), run)[0]
    for pair in rows:
        logits = []
        for model, prompt in ((distiller.student, pair.student_ids), (teacher, pair.teacher_ids)):
            ids = torch.tensor([[*prompt, *pair.response_ids]])
            with torch.no_grad():
                whole = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
            whole[:, onsets] = -torch.inf
            whole[:, len(tokenizer) :] = -torch.inf
            logits.append(whole.log_softmax(-1))
        student, target = logits
        terms = target.exp() * (target - student)
        expected.append(terms.nan_to_num(0).sum(-1))
    assert torch.allclose(found.double(), torch.cat(expected), atol=1e-5)
    usual = torch.cat(distill.token_losses(distill.build(plain, 0), rows))
    assert not torch.allclose(found, usual, atol=1e-4)
