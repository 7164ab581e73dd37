"""Pretraining of the tiny models: recipes, resuming, thresholds."""

import shutil

import pytest

from trdlib import generate, jobs, tasks
from trdlib.run import get_run
from trdlib.settings import load
from trdlib.tasks import pretrain

MEANS = (generate.decode, jobs.run_jobs, generate.batches)


def with_seeds(*seeds, **pretraining):
    """The task of the scale smoke with these base seeds and changes to its pretraining."""
    settings = load()
    usual = settings.scales["smoke"]
    changes = {"seeds": seeds, "pretraining": usual.pretraining | pretraining}
    settings.scales["smoke"] = usual.model_copy(update=changes)
    return tasks.of(get_run("smoke", settings=settings))


@pytest.mark.parametrize("scale", ["tiny", "tiny-code", "smoke", "smoke-code"])
def test_the_committed_models_are_of_the_recipe_that_stands_here(scale):
    task = tasks.of(get_run(scale))
    assert task.has_models
    models = [(role, seed) for role in ("student", "teacher") for seed in task.run.settings.seeds]
    assert all(pretrain.is_pretrained(task, *one) for one in models)
    assert len({pretrain.recipe_hash(task, *one) for one in models}) == len(models)


def test_another_recipe_is_not_taken_for_this_one(project):
    longer = load().scales["smoke"].pretraining["student"] | {"steps": 11}
    assert pretrain.is_pretrained(with_seeds(0), "student", 0)
    assert not pretrain.is_pretrained(with_seeds(0, student=longer), "student", 0)


def test_pretraining_gives_the_same_bytes_and_resumes(project):
    """Twice from scratch on one machine: the same bytes; what is finished is kept."""
    task = with_seeds(1)
    shutil.rmtree("models/smoke/1")
    assert not task.has_models
    task.make_models(*MEANS)
    teacher = project / "models/smoke/1/teacher/model.safetensors"
    student = project / "models/smoke/1/student/model.safetensors"
    first, untouched = teacher.read_bytes(), student.stat().st_mtime_ns
    teacher.with_name("pretraining.json").unlink()  # as if killed before the rename
    task.make_models(*MEANS)
    assert teacher.read_bytes() == first
    assert student.stat().st_mtime_ns == untouched
    assert task.has_models


def test_pretraining_that_misses_its_thresholds_says_so(project, monkeypatch):
    task = with_seeds(3, thresholds={"foundation": {"chain/solve": [0.99, 1.0]}})
    monkeypatch.setattr(pretrain, "MAX_ROUNDS", 1)
    with pytest.raises(
        RuntimeError, match="3 foundation did not converge in 1 rounds: chain/solve is"
    ):
        task.make_models(*MEANS)
