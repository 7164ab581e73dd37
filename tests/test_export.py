"""An exported adapter in a vLLM that knows nothing of trdlib, as its card says: the same model."""

import json
import os
import re
import subprocess
import time
import urllib.request

import pytest
import torch
from test_project import elsewhere
from test_vllm import NAME, home, pytestmark  # noqa: F401 - skips where there is no vLLM

from trdlib import distill, tasks
from trdlib.ops import export
from trdlib.run import get_run

URL = "http://127.0.0.1:8231"


def answers(name: str, ids: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens of the model of this name and their log-probabilities, from the server."""
    asked = {"model": name, "prompt": ids, "max_tokens": 12, "temperature": 0, "logprobs": 0}
    asked |= {"ignore_eos": True, "return_token_ids": True}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/v1/completions", json.dumps(asked).encode(), head)
    with urllib.request.urlopen(request, timeout=600) as answer:
        (one,) = json.load(answer)["choices"]
    return one["token_ids"], one["logprobs"]["token_logprobs"]


@pytest.mark.parametrize("merged", [False, True])
def test_the_card_s_command_serves_the_model_that_peft_has(home, tmp_path, merged):  # noqa: F811
    run = get_run("small seeds=[0] training.max_steps=8", "opd", "sft", learning_rate=0.02)
    task = tasks.of(run)
    distill.distill([run], task, task.sets(), {"opd": {}})
    folder = export.write(run, 0, tmp_path / "away", merged=merged)
    (one,) = elsewhere("Compute:0o-1p", folder, "" if merged else home / NAME)
    (ids,), greedy, logits = one
    (said,) = re.findall(
        r"^```bash\n(python .*?)^```$", (folder / "README.md").read_text(), re.S | re.M
    )
    said = said.strip().replace("FOLDER", str(folder))
    said += " --dtype float32 --max-model-len 256 --enforce-eager --kv-cache-memory-bytes 268435456"
    quiet = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with open(tmp_path / "log", "w") as log:
        how = {"cwd": home, "env": os.environ | quiet | {"OMP_NUM_THREADS": "1"}, "stderr": log}
        server = subprocess.Popen(f"exec {said} --host 127.0.0.1 --port {URL[-4:]}", shell=True,
                                  stdout=log, **how)  # fmt: skip
    try:
        for _ in range(900):  # a guard, no measure
            assert server.poll() is None, (tmp_path / "log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{URL}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        mine = answers("trd", ids)
        plain = mine if merged else answers(NAME, ids)
    finally:
        server.kill()
        server.wait()
    assert mine[0] == greedy
    first = torch.tensor(logits).log_softmax(-1)[greedy[0]]
    assert mine[1][0] == pytest.approx(float(first), abs=1e-3)
    assert merged or abs(plain[1][0] - mine[1][0]) > 0.01  # the adapter is in it
