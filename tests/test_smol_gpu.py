"""The script for a GPU (docs/smol.md), end to end on a CPU: a small random model, few problems."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from trdlib import store
from trdlib.tasks import language

ROOT = Path(__file__).resolve().parents[1]
CHANGES = (
    "packaged.foundation.steps=2 packaged.student.steps=1 packaged.teacher.steps=1 "
    "packaged.batch_size=4 packaged.problems=2 data.train.0.problems=32 seeds=[0,1] "
    "data.validation.0.problems=2 data.validation.1.problems=2 data.benchmarks.words.problems=4 "
    "data.benchmarks.words_hard.problems=2 training.choice_seeds=1 training.batch_size=16 "
    "training.learning_rates=[1e-3,3e-3] training.micro_batch_size=16 rollout.max_new_tokens=8 "
    "refinement.max_new_tokens=8 evaluation.sampling.max_new_tokens=8"
)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A byte-level tokenizer with SmolLM2's special tokens."""
    given = os.environ.get("REHEARSAL_TOKENIZER")
    if given:
        return Path(given)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*language.SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=language.END, pad_token=language.SPECIAL[0],
        additional_special_tokens=[language.SPECIAL[1]], chat_template=language._CHAT_TEMPLATE,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("letters")
    made.save_pretrained(folder)
    return folder


def test_the_whole_experiment_runs(project, letters):
    environment = {**os.environ, "REHEARSAL_TOKENIZER": str(letters), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.environ.get("REHEARSAL_PATH", "")  # of packages to do without
    scale = ["--scale", f"smol-full lengths.prompt=4096 lengths.reference=4096 {CHANGES}"]

    def go(*how: str) -> str:
        command = [sys.executable, str(ROOT / "scripts" / "smol_gpu.py"), *how, *scale]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        print(done.stdout[-6000:], done.stderr[-3000:])
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
        return done.stdout

    go("pair", "out", "--rehearse")
    assert {f"{role}-adapter_model.safetensors" for role in ("student", "teacher")} <= {
        path.name for path in Path("out").iterdir()
    }
    said = go("run", "out", "--workers", "1", "--seconds", "3000")
    assert "jobs left: 0" in said
    found = json.loads(Path("out/metrics.json").read_text())["metrics"]
    assert len(found) == 13  # 3 primary, 2 untrained, 8 secondary
    for name, one in found.items():
        for benchmark, problems in (("words", 4), ("words_hard", 2)):
            measured = one["benchmarks"]["0.6"][benchmark]
            assert measured["seeds"] == [0, 1] and measured["n"] == problems
            assert len(measured["correct"]) == 2 and measured["k"] == 4
        if not name.startswith("none"):
            assert one["training"]["chosen"] in one["training"]["grid"] == [1e-3, 3e-3]
    assert len(store.load("out/samples.parquet")) == 13 * 2 * 6 * 4
    assert set(store.load("out/trajectories.parquet")["trajectory"]) == {"y_o", "y_r", "y_t"}
