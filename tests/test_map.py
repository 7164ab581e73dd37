"""The map: one knob at a time, gaps by hand, oracles, and nothing done twice."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from test_audit import defined

from trdlib import distill, models, settings, tasks
from trdlib.analysis import compare, explore, signals
from trdlib.analysis import map as the_map
from trdlib.refine import training_sets
from trdlib.rollout import rollout
from trdlib.run import get_run


def test_each_cell_turns_one_knob(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    cells = the_map.cells(get_run("tiny", "opd"))
    rest = cells[0].run.settings.model_dump()
    assert cells[0].run.scale == "tiny/map/rest"
    assert len({cell.run.attempts for cell in cells}) == len(cells)
    touched = {
        "locality": "data", "prompts": "data", "rollout_temperature": "rollout",
        "refinement_temperature": "refinement", "teacher_temperature": "models",
        "student_strength": "models", "rounds": "methods",
    }  # fmt: skip
    points = the_map.section(get_run("tiny", "opd")).points
    for cell in cells[1:]:
        here = cell.run.settings.model_dump()
        changed = {key for key in rest if here[key] != rest[key]}
        assert changed == {touched[knob] for knob in points.get(cell.knob, [cell.knob])}
        assert set(cell.methods) >= {"trd", "off_policy"}
        assert cell.at == cells[0].at | points.get(cell.knob, {cell.knob: cell.value})
    (fresh,) = (c for c in cells if c.knob == "rounds")
    rounds = {name: fresh.run.settings.methods[name].rounds for name in fresh.methods}
    of_attempts = {"forward_kl", "reverse_kl", "reverse_kl_topk", "trd", "sft_refined"}
    assert {name for name in rounds if rounds[name] == 4} == of_attempts
    strong = {c.run.settings.models.student for c in cells if c.knob in points}
    assert strong == {"runs/tiny/map/models/student-0.275/{seed}"}
    local = {c.value: c.run.settings.data for c in cells if c.knob == "locality"}
    for share, data in local.items():
        assert data["benchmarks"]["trail"]["options"] == {"local_share": share}
        assert data["train"][0]["options"] == {"local_share": share}
    assert set(local) == {0.5, 1.0}


def test_changed_models_are_what_their_knob_says(project):
    run = get_run("smoke")
    the_map._make(run, 0, "teacher", 2.0)
    the_map._make(run, 0, "student", 0.25)

    def load(name):
        return models.load(name, run.settings.models, run.context_length)[0]

    student, teacher = (load(run.model_path(role, 0)) for role in ("student", "teacher"))
    fuzzy, mixed = (
        load(f"runs/smoke/map/models/{name}/0") for name in ("teacher-2", "student-0.25")
    )
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(fuzzy(ids).logits, teacher(ids).logits / 2, atol=1e-5)
    for name, weight in mixed.state_dict().items():
        a, b = student.state_dict()[name], teacher.state_dict()[name]
        assert torch.allclose(weight, 0.75 * a + 0.25 * b, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "smoke has no map"),
        ({"knob": 1}, r"scales.smoke.map.knob: unknown key"),
        ({"methods": ["trd"]}, "compares trd, off_policy and sft_refined"),
        ({"knobs": {"prompts": [8]}}, "locality, rollout_temperature, .*: each knob needs"),
        ({"points": {"here": {"luck": 1}}}, "scales.smoke.map.points.here.luck"),
        ({"oracles": ["dpo"]}, "scales.smoke.map: there is no method 'dpo'"),
        ({"oracles": ["entropy_gated_cut"]}, "each oracle needs the same method on all of y_o"),
    ],
)
def test_a_wrong_map_is_one_sentence(project, change, message):
    loaded = settings.load()
    scale = loaded.scales["smoke"]
    section = None if change is None else scale.map | change
    recipes = scale.methods | {"entropy_gated_cut": settings.Method(
        trajectory="y_o_cut", divergence="entropy_gated")}  # fmt: skip
    scale = scale.model_copy(update={"map": section, "methods": recipes})
    scales = loaded.scales | {"smoke": scale}
    run = get_run("smoke", settings=loaded.model_copy(update={"scales": scales}))
    with pytest.raises(settings.SettingsError, match=message):
        the_map.cells(run)


def test_the_map_is_of_the_task_modular():
    loaded = settings.load(REPOSITORY / "params.yaml")
    other = loaded.scales["tiny-code"].model_copy(update={"map": loaded.scales["tiny"].map})
    run = get_run("x", settings=loaded.model_copy(update={"scales": {"x": other}}))
    with pytest.raises(settings.SettingsError, match=r"x\.map: the map is of the task modular"):
        the_map.section(run)


def test_survey_measures_every_cell_once(project, monkeypatch):
    known = settings.load()
    section = known.scales["smoke"].map  # the notebook has a point and another knob and oracle
    section |= {"points": {}, "oracles": ["forward_kl_cut"]}
    section["knobs"] = section["knobs"] | {"teacher_temperature": [1]}
    run = get_run("smoke", settings=known)
    how = run.settings.evaluation
    table = the_map.survey(run)
    temperatures = list(how.temperatures)
    knobs = ["rest", "rounds"]
    assert table["knob"].tolist() == [knob for knob in knobs for _ in temperatures]
    assert table["temperature"].tolist() == temperatures * len(knobs)
    cells = the_map.cells(run)
    right = {}
    for (_, row), cell in zip(
        table[table["temperature"] == temperatures[-1]].iterrows(), cells, strict=True
    ):
        for method in cell.methods:
            here = cell.run.with_(method=method)
            places = [here.samples(s, temperatures[-1], "trail") for s in run.settings.seeds]
            frames = [pd.read_parquet(place) for place in places]
            right[cell.knob, method] = np.array(
                [f.groupby("id")["correct"].mean().to_numpy() for f in frames]
            )
            mean = right[cell.knob, method].mean()
            assert row[f"avg_{method}"] == pytest.approx(mean)
            assert row[f"avg_{method}_low"] <= mean <= row[f"avg_{method}_high"]
    here = table[table["temperature"] == temperatures[-1]].set_index("knob")
    pairs = [(right[k, "trd"], right[k, "off_policy"]) for k in knobs]
    for knob, expected in zip(knobs, compare.family(pairs, **how.interval), strict=True):
        for field, value in expected.items():  # NaN where nothing varies
            found = here.loc[knob, f"to_off_policy_{field}"]
            assert found == pytest.approx(value, nan_ok=True), (knob, field)
    gap = right["rest", "forward_kl_cut"] - right["rest", "forward_kl"]
    assert here.loc["rest", "forward_kl_cut_value"] == pytest.approx(gap.mean())
    assert np.isnan(here.loc["rounds", "forward_kl_cut_value"])  # an oracle elsewhere
    y_o = pd.read_parquet(cells[0].run.attempts)
    assert here.loc["rest", "y_o_accuracy"] == y_o["correct"].mean()
    assert len(y_o) == 8 * len(run.settings.seeds)  # the knob `prompts` rests at 8
    text = defined("6_map").page(run, table)
    for temperature in temperatures:
        assert f"At temperature {temperature:g}, {how.at(temperature).samples} samples" in text
    assert text.count("forward_kl_cut") == len(temperatures)
    monkeypatch.setattr(distill, "train_adapter", None)  # a second time nothing is trained
    assert the_map.survey(run).to_csv() == table.to_csv()


def test_the_cut_attempt_ends_with_its_first_wrong_token(smoke):
    run = smoke("opd", "forward_kl_cut")
    task = tasks.of(run)
    train = task.sets()["train"]
    y_o, seen = rollout(run, task, train), 0
    runs = [smoke("opd", "forward_kl"), run]
    tables = {"opd": {"y_o": y_o, "y_o_cut": signals.cut(run, task, train, y_o)}}
    plain, cut = training_sets(runs, train, tables)
    problems = train.set_index("id")["problem"]
    for seed in run.settings.seeds:
        spell = models.load_tokenizer(run.model_path("student", seed)).convert_ids_to_tokens
        ids = y_o[y_o["seed"] == seed]["id"]
        for name, whole, part in zip(ids, plain.rows[seed], cut.rows[seed], strict=True):
            wrong = task.first_wrong(problems[name], spell(whole.response_ids))
            end = None if wrong is None else wrong.index + 1
            assert part.response_ids == whole.response_ids[:end]
            assert part.student_ids == whole.student_ids
            seen += wrong is not None
    assert seen


def test_without_onsets_both_sides_are_renormalised_on_the_rest(smoke):
    run, plain = smoke("opd", "forward_kl_no_onsets"), smoke("opd", "forward_kl")
    task = tasks.of(run)
    train = task.sets()["train"]
    tables = {"opd": {"y_o": rollout(run, task, train)}}
    rows = training_sets([run], train, tables)[0].rows[0][:3]
    distiller = distill.build(run, 0)
    found = torch.cat(explore.token_losses(distiller, rows))
    tokenizer = models.load_tokenizer(run.model_path("student", 0))
    onsets = tokenizer.convert_tokens_to_ids(list(run.settings.onsets))
    assert sorted(set(range(len(tokenizer))) - set(distiller.vocabulary.tolist())) == sorted(onsets)
    expected = []
    how = (run.settings.models, run.context_length)
    teacher = models.load(run.model_path("teacher", 0), *how)[0]
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
    usual = torch.cat(explore.token_losses(distill.build(plain, 0), rows))
    assert not torch.allclose(found, usual, atol=1e-4)
