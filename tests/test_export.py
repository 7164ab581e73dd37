"""An exported adapter in a vLLM that knows nothing of trdlib: the same model as in PEFT."""

import json
import os
import subprocess
import sys

import pytest
from test_project import ELSEWHERE
from test_vllm import NAME, home, pytestmark  # noqa: F401 - skips where there is no vLLM

from trdlib import distill, tasks
from trdlib.ops import export
from trdlib.run import get_run

SERVED = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    folder, base, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    llm = LLM(base or folder, dtype="float32", enable_lora=bool(base), max_lora_rank=64, seed=0,
              tokenizer=folder, max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=2**28)
    how = SamplingParams(temperature=0, max_tokens=12, logprobs=0, ignore_eos=True)
    found = []
    for with_it in (True, False):
        given = {"lora_request": LoRARequest("it", 1, folder)} if base and with_it else {}
        (out,) = llm.generate([{"prompt_token_ids": ids}], how, **given)
        ids_of, at = list(out.outputs[0].token_ids), out.outputs[0].logprobs
        found.append([ids_of, [one[i].logprob for i, one in zip(ids_of, at)]])
    assert "trdlib" not in sys.modules
    print("\\n" + json.dumps(found))
"""


def elsewhere(code: str, *words: str):
    quiet = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command, how = [sys.executable, "-c", code, *words], {"OMP_NUM_THREADS": "1", **quiet}
    done = subprocess.run(command, cwd="/", env=os.environ | how, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("merged", [False, True])
def test_vllm_samples_from_it_what_peft_does(home, tmp_path, merged):  # noqa: F811
    name = "small seeds=[0] training.max_steps=8"
    run = get_run(name, "opd", "sft", learning_rate=0.02)
    task = tasks.of(run)
    distill.distill([run], task, task.sets(), {"opd": {}})
    folder = str(export.write(run, 0, tmp_path / "away", merged=merged))
    base = "" if merged else str(home / NAME)
    (ids,), greedy, logits = elsewhere(ELSEWHERE, folder, base, "Compute:0o-1p")
    mine, plain = elsewhere(SERVED, folder, base, json.dumps(ids))
    assert mine[0] == greedy
    import torch

    first = torch.tensor(logits).log_softmax(-1)[greedy[0]]
    assert mine[1][0] == pytest.approx(float(first), abs=1e-3)
    if not merged:  # and the adapter is in it
        assert plain[0] != mine[0] or abs(plain[1][0] - mine[1][0]) > 0.01
