"""Our loop and a server keep one contract; servers fail in every way, and are seen through.

A stand-in speaks vLLM's dialect around a real model (stand_ins.py); vLLM itself: test_vllm.py.
"""

import random
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from stand_ins import Server, Weights

from trdlib import distill, engines, evaluate, generate, models, prompts, rollout, settings, store
from trdlib.run import get_run
from trdlib.settings import Sampling
from trdlib.tasks import chain

NAME = "models/tiny/0/student"
WILD = 10.0  # a temperature at which this model, which is sure of itself, says something else


@pytest.fixture(scope="session")
def weights():
    return Weights(REPOSITORY / NAME)


@pytest.fixture(scope="session")
def vllm_server(weights):
    server = Server(weights, NAME)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(vllm_server):
    vllm_server.be_well()
    return vllm_server


def run_with(engine, url=None, **server):
    """The smoke run, sampled by another engine."""
    known = settings.load()
    section = known.scales["smoke"]
    server = {"url": url, "retries": 3, "concurrency": 4, **server} if url else server
    how = section.models.model_copy(update={"engine": engine, "server": settings.Server(**server)})
    section = section.model_copy(update={"models": how})
    known = known.model_copy(update={"scales": {**known.scales, "smoke": section}})
    return get_run("smoke", "opd", "trd", known)


@pytest.fixture(autouse=True)
def closed():
    yield
    engines.close()


def respond(run, prompts, adapter=None, parts=None, **how):
    """The responses of the run's engine, one after the other; greedy if nothing else is said."""
    sampling = Sampling(**{"temperature": 0, "max_new_tokens": 20} | how)
    parts = Path(parts or tempfile.mkdtemp(dir="."))
    asked = engines.Asked(prompts, sampling, parts, (0,), adapter)
    return engines.sample(run, NAME, asked, "test")


@pytest.fixture(params=["transformers", "openai"])
def ours(request, project):
    """A run with either engine."""
    url = request.getfixturevalue("server").url if request.param == "openai" else None
    return run_with(request.param, url)


@pytest.fixture
def asked(tokenizer):
    problems = [chain.random_problem(random.Random(i), 3 + i % 2) for i in range(4)]
    how = {"tokenizer": tokenizer, "style": "tiny"}
    return [prompts.context("solve", problem=problem, **how).ids for problem in problems]


def reference(weights, prompt, budget, stop_ids):
    done = weights.models[None].generate(
        torch.tensor([prompt]), max_new_tokens=budget, do_sample=False, eos_token_id=stop_ids,
        pad_token_id=0,
    )  # fmt: skip
    return done[0, len(prompt) :].tolist()


# ---------------------------------------------------------------------------------- the contract


def test_greedy_is_the_models_own(ours, asked, weights):
    for prompt, completion in zip(asked, respond(ours, asked), strict=True):
        assert completion.token_ids == reference(weights, prompt, 20, [2])
        assert not completion.finished  # the budget was too short
        assert len(completion.token_ids) == 20


def test_stop_tokens_end_a_response_and_stay_in_it(ours, asked, weights, monkeypatch):
    stop = 80  # "*": two of the four greedy answers get there
    monkeypatch.setattr(models, "stop_ids", lambda *a: [2, stop])
    expected = [reference(weights, prompt, 20, [2, stop]) for prompt in asked]
    assert {ids[-1] == stop for ids in expected} == {True, False}
    for completion, ids in zip(respond(ours, asked), expected, strict=True):
        assert completion.finished == (ids[-1] == stop)
        assert completion.token_ids == ids


def test_seeds_and_samples(ours, asked):
    how = {"temperature": WILD, "max_new_tokens": 8, "samples": 6}
    first = respond(ours, asked[:1], seed=1, **how)
    assert len({tuple(c.token_ids) for c in first}) == 6  # each row has its own random numbers
    assert respond(ours, asked[:1], seed=1, **how) == first
    assert respond(ours, asked[:1], seed=2, **how) != first


def test_filters_are_applied(ours, asked, weights):
    for filters in ({"top_k": 1}, {"top_p": 1e-6}):
        how = {"temperature": WILD, "max_new_tokens": 6, "samples": 3, **filters}
        done = {tuple(c.token_ids) for c in respond(ours, asked[:1], **how)}
        assert done == {tuple(reference(weights, asked[0], 6, [2]))}


# ------------------------------------------------------------------------------------- the queue


def test_an_interrupted_queue_goes_on(project, server, asked, monkeypatch):
    run, keep, calls = run_with("openai", server.url, concurrency=1), engines._keep, []
    how = {"temperature": WILD, "max_new_tokens": 6, "samples": 2}
    whole = respond(run, asked, **how)
    lengths = [len(request["prompt"]) for _, request, _ in server.seen]
    assert lengths == sorted(lengths, reverse=True)  # the longest expected first
    server.be_well()

    def interrupted(*response):
        calls.append(response)
        if len(calls) == 4:
            raise KeyboardInterrupt
        keep(*response)

    monkeypatch.setattr(engines, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        respond(run, asked, parts="parts", **how)
    (kept,) = Path("parts").iterdir()
    with kept.open("a") as file:
        file.write("\n[0, [1, 2")  # a line that a kill cut off
    assert respond(run, asked, parts="parts", **how) == whole
    assert len(server.seen) <= 4 + 2 + 5  # three were kept, one or two were on their way
    server.be_well()
    assert respond(run, asked, parts="parts", **how) == whole and not server.seen


def test_an_interrupted_loop_goes_on_by_whole_batches(project, asked, monkeypatch):
    """Of three tables: two share their batches, one is sampled at another temperature."""
    run, decode, calls = run_with("transformers"), generate.decode, []
    usual = Sampling(temperature=1.0, max_new_tokens=6, samples=3, batch_size=4)
    hot = usual.model_copy(update={"temperature": WILD})
    rows = ("a", asked[:1], usual, 0), ("b", asked[1:], usual, 1), ("c", asked[:1], hot, 0)

    def tables(folder):
        wanted = [engines.Asked(x, how, Path(folder) / n, (seed,)) for n, x, how, seed in rows]
        engines.fill(run, NAME, wanted, "test")
        return [engines._kept(one.parts) for one in wanted]

    def recorded(model, prompts, **more):
        calls.append((prompts, more["seeds"]))
        if len(calls) == interrupted:
            raise KeyboardInterrupt
        return decode(model, prompts, **more)

    interrupted = 0
    monkeypatch.setattr(generate, "decode", recorded)
    whole, batches = tables("whole"), calls.copy()
    assert [len(table) for table in whole] == [3, 9, 3] and len(batches) == 4
    calls, interrupted = [], 3
    with pytest.raises(KeyboardInterrupt):
        tables("parts")
    (kept,) = Path("parts/b").iterdir()
    kept.write_text(kept.read_text()[:-4])  # a kill cut off the last row of the second batch
    calls, interrupted = [], 0
    assert tables("parts") == whole  # though the first table lacks nothing any more
    assert calls == batches[1:]  # the first was whole
    calls = []
    assert tables("parts") == whole and not calls


def test_a_stage_is_one_queue(smoke, task, sets, server, adapter, monkeypatch):
    """Every run, benchmark, problem and sample, each with its adapter; by our loop in jobs."""
    queues, fill = [], engines.fill
    monkeypatch.setattr(engines, "fill", lambda *how: (queues.append(how[2]), fill(*how)))
    found = {}
    for engine in ("transformers", "openai"):
        known = run_with(engine, server.url).all_settings
        section = known.scales["smoke"]
        how = {"temperature": 0, "samples": 2, "max_new_tokens": 20}
        how = section.evaluation.sampling.model_copy(update=how)
        how = section.evaluation.model_copy(update={"sampling": how, "also_at": {}})
        scale = section.model_copy(update={"seeds": (0,), "evaluation": how})
        known = known.model_copy(update={"scales": {"smoke": scale}})
        runs = [get_run("smoke", "none", "base", known), get_run("smoke", "opd", "trd", known)]
        at = evaluate.evaluate(runs, task, sets, [None, {0: adapter}])
        found[engine] = [
            table.assign(token_ids=table["token_ids"].map(list)).to_dict("list")
            for temperatures in at for tables in temperatures.values() for table in tables.values()
        ]  # fmt: skip
    assert found["openai"] == found["transformers"]
    first = max(queues, key=len)
    assert len(first) == len(found["openai"])  # runs x temperatures x benchmarks
    assert {one.adapter for one in first} == {None, adapter}
    names = [request["model"] for path, request, _ in server.seen if path.endswith("completions")]
    assert len(set(names)) == 2


# ------------------------------------------------------------------------------------ the server


def test_a_file_sampled_by_a_server_is_the_one_sampled_here(smoke, task, sets, server, monkeypatch):
    """Rollout from end to end: the same columns and greedy tokens; no weights are loaded here."""
    greedy = Sampling(temperature=0, max_new_tokens=20, batch_size=8)

    def attempts(run):
        run.settings = run.settings.model_copy(update={"rollout": greedy, "seeds": (0,)})
        table = rollout.rollout(run, task, sets["train"])
        return table.assign(token_ids=table["token_ids"].map(list)).to_dict("list")

    ours = attempts(smoke())
    stamp = store.fingerprint_of(smoke().attempts)
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("loaded weights"))
    theirs = attempts(run_with("openai", server.url))
    assert store.fingerprint_of(smoke().attempts) != stamp
    assert theirs == ours
    written = smoke().attempts.stat().st_mtime_ns
    server.faults = [500] * 100
    again = attempts(run_with("openai", server.url.replace("127.0.0.1", "localhost"), key="OTHER"))
    assert again == theirs
    assert smoke().attempts.stat().st_mtime_ns == written  # neither address nor key shape samples


def sampled(url, asked, **how):
    run = run_with("openai", url, **how)
    return respond(run, asked, temperature=WILD, max_new_tokens=8, seed=5)


def test_failures_that_pass_change_nothing(project, server, asked):
    expected = sampled(server.url, asked)
    server.be_well()
    server.faults = [500, 429, "drop", 503]
    assert sampled(server.url, asked) == expected
    assert server.faults == []
    server.be_well()
    server.faults = ["slow"]  # the answer that comes last belongs to the first prompt
    assert sampled(server.url, asked) == expected
    assert server.served_two.is_set()


def test_what_the_model_folder_says_of_sampling_is_overruled(project, server, asked):
    expected = sampled(server.url, asked)
    server.defaults = {"top_k": 1, "repetition_penalty": 5.0, "min_p": 0.5, "temperature": 0.1}
    assert sampled(server.url, asked) == expected


def test_failures_that_stay_are_one_sentence(project, server, asked):
    for status, tries in ((500, 2), (403, 1)):  # what cannot pass is not tried again
        server.be_well()
        server.faults = [status] * 100
        with pytest.raises(RuntimeError, match=rf"refused: .*injected {status}"):
            sampled(server.url, asked, retries=1, concurrency=1)
        prompts = [request["prompt"] for path, request, _ in server.seen]
        first, *_, last = sorted(asked, key=len, reverse=True)
        assert prompts.count(first) == tries
        assert last not in prompts  # those that wait are given up


def test_a_dead_server_is_named(project, asked):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        RuntimeError, match=rf"no answer from the server {url} in 1 tries .*: start the server"
    ):
        sampled(url, asked, retries=0)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"name": "someone/else"}, r"does not serve models/tiny/0/student \(it names someone/else"),
        ({"prefix": [1]}, "saw other prompt tokens .*cut them, or added"),
        ({"drops_stops": True}, "neither end with their first stop token nor fill the budget"),
        ({"max_model_len": 30}, "has room for 30 tokens and .* --max-model-len"),
        ({"gives_ids": False}, "returns text without token ids"),
    ],
)
def test_a_server_that_does_something_else_is_refused(
    project, server, asked, fault, says, monkeypatch
):
    for name, value in fault.items():
        monkeypatch.setattr(server, name, value)
    monkeypatch.setattr(models, "stop_ids", lambda *a: [2, 81])
    with pytest.raises((RuntimeError, settings.SettingsError), match=says):
        respond(run_with("openai", server.url), asked)


def test_a_context_that_is_shorter_than_it_says_is_noticed(project, server, asked):
    run = run_with("openai", server.url)
    respond(run, asked)
    server.max_model_len = max(map(len, asked)) + 5
    with pytest.raises(RuntimeError, match=r"returned . tokens that neither end"):
        respond(run, asked)


def test_the_key_comes_from_the_environment(project, server, asked, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "s3cret")
    sampled(server.url, asked, key="SOME_KEY")
    assert {key for _, _, key in server.seen} == {"Bearer s3cret"}
    run = run_with("openai", server.url, key="SOME_KEY")
    text = str(engines.identity(run.settings.models))
    assert "s3cret" not in text and "SOME_KEY" not in text and server.url not in text


# ------------------------------------------------------------------------------------- adapters


def loaded():
    run = get_run("smoke")
    return models.load(NAME, run.settings.models, run.context_length)[0]


@pytest.fixture
def adapter(project):
    student = loaded()
    lora = settings.Lora(r=4, alpha=8)
    student = models.add_lora(student, lora, backend="transformers", seed=0)
    torch.manual_seed(1)
    for parameter in student.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    student.save_pretrained(project / "adapter")
    return project / "adapter"


def test_an_adapter_is_swapped_in_and_out(ours, asked, adapter):
    plain = respond(ours, asked, max_new_tokens=10)
    other = shutil.copytree(adapter, adapter.with_name("other"))
    flipped = {
        name: -weight if "lora_B" in name else weight
        for name, weight in load_file(other / "adapter_model.safetensors").items()
    }
    save_file(flipped, other / "adapter_model.safetensors")
    found = [plain]
    for folder in (adapter, other):
        merged = models.with_adapter(loaded(), folder)
        found.append(generate.decode(merged, asked, max_new_tokens=10, stop_ids=[2], temperature=0))
    assert found[0] != found[1] != found[2] != found[0]
    for folder, expected in zip((adapter, other, None), (*found[1:], plain), strict=True):
        assert respond(ours, asked, folder, max_new_tokens=10) == expected


def test_an_engine_stays_open_until_another_or_close(project, server, asked, adapter, monkeypatch):
    run = run_with("openai", server.url)
    found = []
    for _ in range(2):
        respond(run, asked, adapter)
        found += engines._open.values()
    assert len(found) == 2 and found[0] is found[1]
    assert server.adapters == [f"trd-{store.weights_hash(adapter)}"]
    assert sum(path.endswith("load_lora_adapter") for path, _, _ in server.seen) == 1
    monkeypatch.setattr(server, "name", "models/tiny/1/student")
    how = Sampling(temperature=0, max_new_tokens=2), Path("other"), (0,)
    engines.fill(run, server.name, [engines.Asked(asked, *how)], "test")
    (other,) = engines._open.values()
    assert other is not found[0]
    engines.close()
    assert not engines._open


def test_an_adapter_that_does_nothing_is_noticed(project, server, asked, adapter):
    run = run_with("openai", server.url)
    server.apply_adapters = False
    with pytest.raises(RuntimeError, match="changes nothing"):
        respond(run, asked, adapter)
    server.be_well()
    server.allow_adapters = False
    says = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank 4 "
    with pytest.raises(RuntimeError, match=says):
        respond(run, asked, adapter)


# ----------------------------------------------------------------------------- before it begins


def test_what_is_missing_is_said_before_anything_loads(smoke, task, sets, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("loaded a model"))
    for engine, extra in (("openai", "server"), ("vllm", "vllm")):
        monkeypatch.setitem(sys.modules, engine, None)  # as if it were not installed
        with pytest.raises(settings.SettingsError, match=rf"package {engine}: .*\[{extra}\]"):
            rollout.rollout(run_with(engine), task, sets["train"])


def test_four_bits_need_a_gpu_and_bitsandbytes(smoke, task, sets, monkeypatch):
    run = smoke()
    how = run.settings.models
    plain = engines.identity(how)
    four = how.model_copy(update={"load_in_4bit": True})
    assert engines.identity(four) != plain
    assert store.content_hash(four) != store.content_hash(how)  # in a training's fingerprint
    run.settings = run.settings.model_copy(update={"models": four})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(settings.SettingsError, match="load_in_4bit needs a GPU"):
        rollout.rollout(run, task, sets["train"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(settings.SettingsError, match="load_in_4bit needs bitsandbytes"):
        models.load(NAME, four, run.context_length)


def test_only_what_shapes_samples_is_in_the_fingerprint(project):
    ours, theirs = run_with("transformers"), run_with("openai", "http://a/v1")
    assert engines.identity(ours.settings.models) != engines.identity(theirs.settings.models)
    assert engines.identity(run_with("openai", "http://b/v1").settings.models) == engines.identity(
        theirs.settings.models
    )
    assert distill.fingerprint(ours, 0, []) == distill.fingerprint(theirs, 0, [])
    code = engines.identity(ours.settings.models)[-2]  # of the decode loop alone
    assert code == store.code_hash(engines.Asked, *generate.CODE, engines.Loop)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": {"engine": "vllm"}, "workers": 2}, "set workers to 1"),
        ({"models": {"engine": "sglang"}}, "models.engine"),
        ({"models": {"engine": "vllm", "device": "cpu"}, "workers": 1}, "leave device at auto"),
        ({"models": {"load_in_4bit": True, "device": "cpu"}}, "leave device at auto"),
        ({"models": {"server": {"key": "sk-1234"}}}, "models.server.key"),
        ({"models": {"server": {"url": "localhost:8000"}}}, "models.server.url"),
    ],
)
def test_settings_are_checked(project, change, says):
    import yaml

    params = yaml.safe_load((project / "params.yaml").read_text())
    smoke = params["scales"]["smoke"]
    smoke["models"] = {**smoke["models"], **change.pop("models")}
    smoke |= change
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(settings.SettingsError, match=says):
        settings.load()
