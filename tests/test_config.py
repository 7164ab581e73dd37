"""params.yaml: what is wrong is said in one sentence, before any model loads."""

import copy
import re
import tomllib

import pytest
import yaml
from conftest import REPOSITORY

from trdlib import config


@pytest.fixture
def raw():
    return yaml.safe_load((REPOSITORY / "params.yaml").read_text())


def load(raw, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    return config.load(path)


def test_the_shipped_file_is_valid():
    settings = config.load(REPOSITORY / "params.yaml")
    assert {"smoke", "tiny"} <= set(settings.scales)
    assert settings.scales["tiny"].methods["reverse_kl_topk"].top_k == 4  # a scale overrides
    assert settings.scales["tiny"].training.betas == (0.9, 0.95)  # a default stays


def test_a_task_replaces_what_it_names_and_keeps_the_rest():
    tiny = config.load(REPOSITORY / "params.yaml").scales["tiny"]
    code = tiny.tasks["code"]
    assert set(code.data.benchmarks) == {"code", "code_hard"}
    assert code.pretraining.shape == tiny.pretraining.shape
    assert not set(code.pretraining.thresholds["student"]) & set(
        tiny.pretraining.thresholds["student"]
    )
    assert code.lora == tiny.lora
    assert code.map is None


CODE_SET = {"task": "code", "problems": 1, "steps": [3]}
CHAIN_SET = {"task": "chain", "problems": 1, "steps": [3]}


def at(raw, path, value):
    raw = copy.deepcopy(raw)
    *parents, last = path.split("/")
    section = raw
    for part in parents:
        section = section[part]
    section[last] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("defaults/training/learning_rat", 1, "learning_rat: unknown key"),
        ("methods/trd/divergence", "wasserstein", "no divergence 'wasserstein': choose"),
        ("methods/reverse_kl_topk/top_k", 1, "top_k must be at least 2"),
        ("scales/tiny/methods/reverse_kl_topk", {"top_k": 1}, "top_k must be at least 2"),
        ("methods/sft/clip", 0.1, "drop top_k, clip and skip_onsets"),
        ("methods/sft/skip_onsets", True, "drop top_k, clip and skip_onsets"),
        ("scales/tiny/onsets", [], "onsets.*at least 1 item"),
        ("scales/tiny/map/knobs", {"locality": [0, 1]}, "needs at least its usual value"),
        ("scales/tiny/map/methods", ["trd"], "compares trd, off_policy and sft_refined"),
        ("methods/sft/divergence", "forward_kl", "y_star is trained with cross_entropy"),
        ("methods/off_policy/subset", "failed", "y_o and y_r"),
        ("methods/forward_kl/subset", "failed_then_passed", "defined by y_r"),
        ("scales/tiny/models/teacher", None, "opd needs models.teacher"),
        ("scales/smoke/training/micro_batch_size", 3, "multiple of micro_batch_size 3"),
        ("scales/tiny/onsets", [], "onsets.*at least 1 item"),
        ("scales/tiny/rollout/temperature", -1, "temperature.*not -1"),
        ("scales/tiny/refinement/samples", 2, "refinement.samples must be 1"),
        ("run/scales", ["huge"], "no scale 'huge': choose from .*smoke.*smol, tiny"),
        ("run/methods", ["dpo"], "no method 'dpo'"),
        ("scales/tiny/modes", ["opd"], "no mode of the scale tiny 'opsd'"),
        ("run/ablation/methods", ["trd"], "trains on all rows"),
        ("run/ablation/methods", ["trd_lost"], "no method 'trd_lost'"),
        ("run/tasks", ["poetry"], "tasks.*not 'poetry'"),
        ("scales/tiny/tasks/poetry", {}, "tasks.poetry"),
        ("scales/tiny/tasks/code/lora", {"rank": 8}, "tasks.code.lora.rank: unknown key"),
        ("scales/tiny/tasks/code/seeds", [7], "tasks.code has other seeds"),
        (
            "scales/tiny/data/validation",
            [CODE_SET],
            "problems of chain, code, trail do not mix: choose one",
        ),
        (
            "scales/tiny/tasks/code/data",
            {"train": [CHAIN_SET], "validation": [CHAIN_SET], "benchmarks": {"x": CHAIN_SET}},
            "the data of the task code are problems of chain",
        ),
        (
            "scales/tiny/tasks/code/data/train",
            [{**CODE_SET, "unknown": 0.1}],
            "task trail, not code",
        ),
    ],
)
def test_one_sentence_for_each_fault(raw, tmp_path, path, value, words):
    with pytest.raises(config.SettingsError) as error:
        load(at(raw, path, value), tmp_path)
    assert re.search(words, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_that_the_scale_lacks(raw, tmp_path):
    raw["run"]["tasks"] = ["math", "code"]
    assert load(raw, tmp_path).run.tasks == ("math", "code")
    with pytest.raises(config.SettingsError, match="the scale tiny has no task 'code'"):
        load(at(raw, "scales/tiny/tasks", {}), tmp_path)


def test_unreadable_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(config.SettingsError, match=r"no params.yaml"):
        config.load()
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(config.SettingsError, match="not valid YAML"):
        config.load()
    (tmp_path / "params.yaml").write_text("a: 1")
    with pytest.raises(config.SettingsError, match="needs the sections"):
        config.load()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": "huge"}, "no scale 'huge'"),
        ({"mode": "oracle"}, "no mode"),
        ({"method": "dpo"}, "no method 'dpo'"),
        ({"task": "poetry"}, "no task 'poetry'"),
        ({"mode": "none", "method": "trd"}, "no reference row"),
    ],
)
def test_a_notebooks_parameters_are_checked(project, arguments, words):
    with pytest.raises(config.SettingsError, match=words):
        config.run(**arguments)


def test_paths_follow_the_design(project):
    run = config.run("smoke", "math", "opsd", "trd")
    places = [run.attempts, run.adapter(1), run.metrics, run.data]
    assert [str(p.relative_to(project)) for p in places] == [
        "runs/smoke/math/y_o.parquet",
        "runs/smoke/math/opsd/trd/1/adapter",
        "results/metrics/smoke/math/opsd/trd.json",
        "data/smoke/math",
    ]


def test_the_refine_prompt_has_the_papers_room():
    """Paper section 3: 18,432 tokens for OPD, 22,528 for OPSD."""
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    lengths, response = raw["defaults"]["lengths"], raw["defaults"]["rollout"]["max_new_tokens"]
    settings = config.load(REPOSITORY / "params.yaml")
    scale = settings.scales["tiny"].model_copy(
        update={
            "lengths": config.Lengths(**lengths),
            "rollout": settings.scales["tiny"].rollout.model_copy(
                update={"max_new_tokens": response}
            ),
        }
    )
    settings = settings.model_copy(update={"scales": {"tiny": scale}})
    for mode, room in (("opd", 18_432), ("opsd", 22_528)):
        run = config.Run("tiny", "math", mode, "trd", settings)
        assert run.teacher_prompt_limit(with_attempt=True) == room


def test_hashes_tell_content_apart(tmp_path):
    assert config.content_hash({"a": 1, "b": 2}) == config.content_hash({"b": 2, "a": 1})
    assert config.content_hash([1, 2]) != config.content_hash([2, 1])
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = config.weights_hash(tmp_path)
    file.write_bytes(b"other")
    assert config.weights_hash(tmp_path) != first
    file.unlink()
    with pytest.raises(FileNotFoundError):
        config.weights_hash(tmp_path)


def test_environment_yml_has_the_pins_of_pyproject():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    expected = project["dependencies"] + project["optional-dependencies"]["test"]
    assert pip == [*expected, "-e ."]
    assert f"python={project['requires-python'].split(',')[0][2:]}" in conda["dependencies"]


def test_imports_point_down():
    """A module imports only those that stand before it in the list of the package's docstring."""
    import trdlib

    order = re.findall(r"\w+", trdlib.__doc__.split("only:")[1])
    assert {*order} == {p.stem for p in (REPOSITORY / "trdlib").glob("*.py")} - {
        "__init__",
        "__main__",
    }
    for name in order:
        source = (REPOSITORY / "trdlib" / f"{name}.py").read_text()
        found = re.findall(r"from trdlib import (\([^)]+\)|.+)|from trdlib\.(\w+) import", source)
        imported = {m for names, single in found for m in re.findall(r"\w+", names or single)}
        assert imported <= {*order[: order.index(name)]}, name
