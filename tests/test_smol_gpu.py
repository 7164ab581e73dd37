"""The script for a GPU (docs/smol.md), end to end on a CPU: a small random model, few problems."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from trdlib import store

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
CHANGES = (
    "lengths.prompt=4096 lengths.reference=4096 seeds=[0,1] "
    "data.train.0.problems=16 data.validation.0.problems=2 data.validation.1.problems=2 "
    "data.benchmarks.words.problems=4 data.benchmarks.words_hard.problems=2 "
    "training.choice_seeds=1 training.batch_size=8 training.learning_rates=[1e-3,3e-3] "
    "training.micro_batch_size=8 rollout.max_new_tokens=8 refinement.max_new_tokens=8 "
    "evaluation.sampling.max_new_tokens=8"
)
# The script, with a random model in the package's place.
START = """
import multiprocessing, runpy, sys, torch, transformers
sys.path.append(sys.argv[3])
import smol_models

def base():
    tokenizer = transformers.AutoTokenizer.from_pretrained(letters)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=1,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id))
    return model.bfloat16(), tokenizer

smol_models.base, letters = base, sys.argv[1]
smol_models.merged = lambda model, adapter: model
if sys.argv[-1] != "15":  # the second time no process has to import everything again
    forked = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda _: forked
sys.argv = [sys.argv[2], *sys.argv[4:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_whole_experiment_runs_and_goes_on_where_it_stopped(project, byte_tokenizer):
    byte_tokenizer.save_pretrained("letters")
    shutil.copytree(SCRIPTS.parent / "models" / "smol-pair", "models/smol-pair")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    Path("script.py").write_text(START)
    how = [sys.executable, "-m", "script", "letters", str(SCRIPTS / "smol_gpu.py"), str(SCRIPTS)]
    how += ["out", "--workers", "1", "--scale", f"smol-full {CHANGES}", "--seconds"]
    for seconds in ("15", "3000"):  # the first call stops somewhere
        done = subprocess.run([*how, seconds], capture_output=True, text=True, env=environment)
        print(done.stdout[-6000:], done.stderr[-3000:])
    assert done.returncode == 1, (done.stdout + done.stderr)[-2000:]
    # An untrained model solves nothing, so there is nothing to train these on.
    lost = {
        line.split("FAILED ")[1].split()[2] for line in done.stdout.splitlines() if "FAILED" in line
    }
    assert lost == {"trd_right", "rft"} and "jobs left: 0" in done.stdout
    found = json.loads(Path("out/metrics.json").read_text())["metrics"]
    assert len(found) == 11  # 3 primary, 2 untrained, 6 secondary
    for name, one in found.items():
        for benchmark, problems in (("words", 4), ("words_hard", 2)):
            measured = one["benchmarks"]["0.6"][benchmark]
            assert measured["seeds"] == [0, 1] and measured["n"] == problems
            assert len(measured["correct"]) == 2 and measured["k"] == 4
        if not name.startswith("none"):
            assert one["training"]["chosen"] in one["training"]["grid"] == [1e-3, 3e-3]
    assert len(store.load("out/samples.parquet")) == 11 * 2 * 6 * 4
    assert set(store.load("out/trajectories.parquet")["trajectory"]) == {"y_o", "y_r", "y_t"}
