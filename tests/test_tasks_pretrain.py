"""Pretraining of the tiny models: recipes, resuming, thresholds."""

import pytest

from trdlib import generate, jobs, tasks
from trdlib.run import get_run
from trdlib.settings import load
from trdlib.tasks import pretrain

MEANS = (generate.decode, jobs.run_jobs, generate.batches)


@pytest.mark.parametrize("scale", ["tiny", "tiny-code"])
def test_the_committed_models_are_of_the_recipe_that_stands_here(scale):
    task = tasks.of(get_run(scale))
    models = [(role, seed) for role in ("student", "teacher") for seed in task.run.settings.seeds]
    assert all(pretrain.is_pretrained(task, *one) for one in models)
    assert len({pretrain.recipe_hash(task, *one) for one in models}) == len(models)


def test_another_recipe_is_not_taken_for_this_one(project):
    settings = load()
    usual = settings.scales["tiny"]
    longer = {"student": usual.pretraining["student"] | {"steps": 801}}
    for pretraining, expected in ((usual.pretraining, True), (usual.pretraining | longer, False)):
        settings.scales["tiny"] = usual.model_copy(update={"pretraining": pretraining})
        task = tasks.of(get_run("tiny", settings=settings))
        assert pretrain.is_pretrained(task, "student", 0) == expected
        assert pretrain.is_pretrained(task, "teacher", 0)


def test_pretraining_gives_the_same_bytes_and_resumes(project, nursery):
    """Twice from scratch on one machine: the same bytes; what is finished is kept."""
    task = nursery(1)
    task.make_models(*MEANS)
    teacher = project / "models/nursery/1/teacher/model.safetensors"
    student = project / "models/nursery/1/student/model.safetensors"
    first, untouched = teacher.read_bytes(), student.stat().st_mtime_ns
    teacher.with_name("pretraining.json").unlink()  # as if killed before the rename
    task.make_models(*MEANS)
    assert teacher.read_bytes() == first
    assert student.stat().st_mtime_ns == untouched


def test_pretraining_that_misses_its_thresholds_says_so(nursery, monkeypatch):
    task = nursery(3, thresholds={"foundation": {"chain/solve": [0.99, 1.0]}})
    monkeypatch.setattr(pretrain, "MAX_ROUNDS", 1)
    with pytest.raises(
        RuntimeError, match="3 foundation did not converge in 1 rounds: chain/solve is"
    ):
        task.make_models(*MEANS)
