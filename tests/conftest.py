"""Fixtures: a copy of the project, small enough to break."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
QUICK = REPOSITORY / "tests" / "quick"
# Also of every process that a test starts: our library and this Python's commands, and one thread
# of torch, as two workers share the cores.
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ["PYTHONPATH"] = f"{REPOSITORY}{os.pathsep}{QUICK}"
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
LONGEST = """pipeline notebooks recipes smol_gpu tasks_math distill explore map sandbox sweep
project doctor diagnose models tasks_hub tasks_code stamps engines report settings"""
SMALL = {  # a Qwen3 model by its Qwen3Config names
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def copy_models(project: Path) -> None:
    """Those of smoke and smoke-code: of tiny and tiny-code, the seeds 0 and 1."""
    for place in ("tiny/0", "tiny/1", "tiny-code/0", "tiny-code/1"):
        shutil.copytree(REPOSITORY / "models" / place, project / "models" / place)


def kill_all_in(folder: Path) -> None:
    """kill -9 whatever works in this folder, but this process (a child of warm.py is no child of
    who started it)."""
    for one in psutil.process_iter(["cwd"]):
        works = one.info["cwd"] and Path(one.info["cwd"]).is_relative_to(folder)
        if works and one.pid != os.getpid():
            one.kill()


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="let the tests see the GPU (test_gpu.py)")


def pytest_configure(config):
    if not config.getoption("--gpu"):  # the other tests compare with what a CPU computes
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if sys.platform == "linux" and "WARM" not in os.environ:  # the workers have their parent's
        os.environ["WARM"] = f"trd-{os.getpid()}"
        command = [sys.executable, str(QUICK / "warm.py"), os.environ["WARM"]]
        config.warm = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def pytest_unconfigure(config):
    if hasattr(config, "warm"):
        config.warm.communicate()  # it ends with its stdin


def pytest_collection_modifyitems(items):
    """The files that take longest first: else one core waits for them at the end."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST.split())}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and the models of smoke and smoke-code, the working directory of
    the test."""
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    copy_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path / "models", ignore_errors=True)  # pytest keeps the rest of it


@pytest.fixture
def nursery(project):
    """nursery(*seeds, **changes of its pretraining) -> the task of a made-up scale that pretrains
    its models, too small to learn anything: the seeds have none yet."""
    from trdlib import tasks
    from trdlib.run import get_run
    from trdlib.settings import load

    stage = {"steps": 10, "muon_lr": 0.008, "adamw_lr": 0.004}
    usual = {"shape": SMALL, "tokens_per_step": 800, "foundation": stage | {"steps": 40}}
    usual |= {"student": stage, "teacher": stage | {"adamw_lr": 0.006}}

    def nursery(*seeds, **changes):
        settings = load()
        scale = settings.scales["smoke"]
        roles = {role: f"models/nursery/{{seed}}/{role}" for role in ("student", "teacher")}
        how = {"models": scale.models.model_copy(update=roles), "seeds": seeds}
        how["pretraining"] = usual | changes
        settings.scales["nursery"] = scale.model_copy(update=how)
        return tasks.of(get_run("nursery", settings=settings))

    return nursery


@pytest.fixture
def smoke(project):
    """smoke(mode, method) -> the run of the smoke scale, its problem sets on file."""
    from trdlib import tasks
    from trdlib.run import get_run

    tasks.of(get_run("smoke")).sets()
    return lambda mode="opd", method="trd": get_run("smoke", mode, method)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A project at smoke with y_o, and y_r of both modes: its folder and what is in it."""
    from trdlib import tasks
    from trdlib.ops.chain import sampled
    from trdlib.run import get_run

    folder = tmp_path_factory.mktemp("made")
    shutil.copy(REPOSITORY / "params.yaml", folder)
    copy_models(folder)
    with contextlib.chdir(folder):
        runs = [get_run("smoke", mode, "trd") for mode in ("opd", "opsd")]
        task = tasks.of(runs[0])
        sets = task.sets()
        return SimpleNamespace(folder=folder, sets=sets, tables=sampled(runs, task, sets["train"]))


@pytest.fixture
def made_project(made, tmp_path, monkeypatch):
    """A copy of that project, where a module's tests need not make it anew."""
    shutil.copytree(made.folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def task(smoke):
    """The task of the smoke scale: what `rollout`, `refine`, `evaluate` and the rest take."""
    from trdlib import tasks

    return tasks.of(smoke())


@pytest.fixture
def sets(task):
    """The problem sets of the smoke scale, by name."""
    return task.sets()


@pytest.fixture(scope="session")
def tokenizer():
    from trdlib.tasks import modular

    return modular.build_tokenizer()


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level tokenizer with the special tokens and the chat template of SmolLM2's kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from trdlib.tasks import language

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*language.SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = language.WRITTEN["tokenizer"] | {"unk_token": None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="session")
def small_model(tokenizer):
    """A Qwen3 model with random weights whose logits are far from uniform."""
    from trdlib.tasks import pretrain

    shape = SMALL | {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return pretrain.build_model(tokenizer, shape, seed=0).eval().requires_grad_(False)
