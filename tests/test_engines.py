"""Every engine keeps one contract; servers fail in every way, and are seen through.

What needs a GPU is skipped here. vLLM's dialect and its offline interface are spoken by stand-ins
(stand_ins.py) around a real model.
"""

import functools
import random
import shutil
import socket
import sys
import threading

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from stand_ins import Server, Weights, offline

from trdlib import distill, engines, generate, models, prompts, rollout, settings, store
from trdlib.run import get_run
from trdlib.settings import Sampling
from trdlib.tasks import chain

NAME = "models/smoke/0/student"
GREEDY = {"temperature": 0, "top_p": 1.0, "top_k": 0}
KINDS = ("transformers", "openai", "vllm stand-in", "vllm")


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


@pytest.fixture(params=KINDS)
def engine(request, project, monkeypatch):
    kind = request.param
    if kind == "vllm stand-in":
        module = offline(request.getfixturevalue("weights"))
        for name, part in (("vllm", module), ("vllm.lora", module.lora)):
            monkeypatch.setitem(sys.modules, name, part)
        monkeypatch.setitem(sys.modules, "vllm.lora.request", module.lora.request)
        run = run_with("vllm")
        made = engines.Vllm(run.settings, run.context_length, NAME)
        yield made
        assert not hasattr(made, "llm") or (made.close() or not hasattr(made, "llm"))
        return
    url = None
    if kind == "openai":
        url = request.getfixturevalue("server").url
    run = run_with(kind, url)
    try:
        engines.check(run.settings.models)
    except settings.SettingsError as error:
        pytest.skip(str(error))
    with engines.opened(run, NAME) as made:
        yield made


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


def test_greedy_is_the_models_own(engine, asked, weights):
    done = engine.complete(asked, max_new_tokens=20, seed=0, **GREEDY)
    for prompt, completion in zip(asked, done, strict=True):
        assert completion.token_ids == reference(weights, prompt, 20, [2])
        assert not completion.finished  # the budget was too short
        assert len(completion.token_ids) == 20


def test_stop_tokens_end_a_response_and_stay_in_it(engine, asked, weights):
    stop = 81  # "=": greedy answers get there
    engine.stop_ids = [2, stop]
    done = engine.complete(asked, max_new_tokens=20, seed=0, **GREEDY)
    expected = [reference(weights, prompt, 20, [2, stop]) for prompt in asked]
    assert {ids[-1] == stop for ids in expected} == {True, False}
    for completion, ids in zip(done, expected, strict=True):
        assert completion.finished == (ids[-1] == stop)
        assert completion.token_ids == ids


def test_seeds_and_samples(engine, asked):
    sampled = functools.partial(
        engine.complete, [asked[0]] * 6, max_new_tokens=8, temperature=1.0, top_p=1.0, top_k=0
    )
    first = sampled(seed=1)
    assert len({tuple(c.token_ids) for c in first}) == 6  # each row has its own random numbers
    assert sampled(seed=1) == first
    assert sampled(seed=2) != first


def test_filters_are_applied(engine, asked, weights):
    done = engine.complete([asked[0]] * 3, max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=1,
                           seed=3)  # fmt: skip
    assert {tuple(c.token_ids) for c in done} == {tuple(reference(weights, asked[0], 6, [2]))}
    done = engine.complete([asked[0]] * 3, max_new_tokens=6, temperature=1.0, top_p=1e-6, top_k=0,
                           seed=3)  # fmt: skip
    assert {tuple(c.token_ids) for c in done} == {tuple(reference(weights, asked[0], 6, [2]))}


def test_a_killed_call_goes_on(engine, asked, tmp_path):
    sampling = Sampling(temperature=1.0, max_new_tokens=6, samples=2, batch_size=2)
    whole = generate.sample(engine.complete, asked, sampling, parts=tmp_path / "a")
    assert [len(group) for group in whole] == [2] * 4
    calls = []

    def killed(prompts, **how):
        calls.append(prompts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return engine.complete(prompts, **how)

    with pytest.raises(KeyboardInterrupt):
        generate.sample(killed, asked, sampling, parts=tmp_path / "b")
    again = generate.sample(killed, asked, sampling, parts=tmp_path / "b")
    assert again == whole
    assert len(calls) == 3 + 2  # four batches: two were kept, one was interrupted


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
    with engines.opened(run_with("openai", url, **how), NAME) as engine:
        return engine.complete(asked, max_new_tokens=8, temperature=1.0, top_p=1.0, top_k=0, seed=5)


def test_failures_that_pass_change_nothing(project, server, asked):
    expected = sampled(server.url, asked)
    server.be_well()
    server.faults = [None, 500, 429, "drop", 503]  # the first is the probe
    assert sampled(server.url, asked) == expected
    assert server.faults == []
    server.be_well()
    server.faults = [None, "slow"]  # the answer that comes last belongs to the first prompt
    assert sampled(server.url, asked) == expected
    assert server.served_two.is_set()


def test_what_the_model_folder_says_of_sampling_is_overruled(project, server, asked):
    expected = sampled(server.url, asked)
    server.defaults = {"top_k": 1, "repetition_penalty": 5.0, "min_p": 0.5, "temperature": 0.1}
    assert sampled(server.url, asked) == expected


def test_failures_that_stay_are_one_sentence(project, server, asked):
    for status, tries in ((500, 2), (403, 1)):  # what cannot pass is not tried again
        server.be_well()
        server.faults = [None, *[status] * 100]  # the first is the probe
        with pytest.raises(RuntimeError, match=rf"refused: .*injected {status}"):
            sampled(server.url, asked, retries=1, concurrency=1)
        for thread in threading.enumerate():  # the next row may be on its way
            if thread.name.startswith("ThreadPoolExecutor"):
                thread.join()
        prompts = [request["prompt"] for path, request, _ in server.seen]
        assert prompts.count(asked[0]) == tries
        assert asked[3] not in prompts  # those that wait are given up


def test_a_dead_server_is_named(project, asked):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(
        RuntimeError, match=rf"no answer from {url} in 1 tries .*: start the server"
    ):
        sampled(url, asked, retries=0)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            {"name": "someone/else"},
            r"does not serve models/smoke/0/student \(it names someone/else",
        ),
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
    run = run_with("openai", server.url)
    with pytest.raises((RuntimeError, settings.SettingsError), match=says):  # noqa: SIM117
        with engines.opened(run, NAME) as engine:
            engine.stop_ids = [2, 81]
            engine.complete(asked, max_new_tokens=20, seed=0, **GREEDY)


def test_a_context_that_is_shorter_than_it_says_is_noticed(project, server, asked):
    with engines.opened(run_with("openai", server.url), NAME) as engine:
        server.max_model_len = max(map(len, asked)) + 5
        with pytest.raises(RuntimeError, match=r"returned . tokens that neither end"):
            engine.complete(asked, max_new_tokens=20, seed=0, **GREEDY)


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


def test_an_adapter_is_swapped_in_and_out(engine, asked, adapter):
    plain = engine.complete(asked, max_new_tokens=10, seed=0, **GREEDY)
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
    engine.use(adapter)
    assert engine.complete(asked, max_new_tokens=10, seed=0, **GREEDY) == found[1]
    if engine.swaps:
        engine.use(other)
        assert engine.complete(asked, max_new_tokens=10, seed=0, **GREEDY) == found[2]
        engine.use(None)
        assert engine.complete(asked, max_new_tokens=10, seed=0, **GREEDY) == plain


def test_an_engine_stays_open_for_its_model_until_another_or_close(project, server, asked, adapter):
    run = run_with("openai", server.url)
    with engines.opened(run, NAME, adapter) as first:
        pass
    with engines.opened(run, NAME, adapter) as second:
        assert second is first
    assert server.adapters == [f"trd-{store.weights_hash(adapter)}"]
    assert sum(path.endswith("load_lora_adapter") for path, _, _ in server.seen) == 1
    server.name = "models/smoke/1/student"
    try:
        with engines.opened(run, server.name) as other:
            assert other is not first and server.adapters == []
    finally:
        server.name = NAME
    engines.close()
    with engines.opened(run, NAME, adapter):
        pass
    engines.close()
    assert server.adapters == []


def test_an_adapter_that_does_nothing_is_noticed(project, server, adapter):
    run = run_with("openai", server.url)
    server.apply_adapters = False
    with pytest.raises(RuntimeError, match="changes nothing"):  # noqa: SIM117
        with engines.opened(run, NAME, adapter):
            pass
    server.be_well()
    server.allow_adapters = False
    says = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank 4 "
    with pytest.raises(RuntimeError, match=says):  # noqa: SIM117
        with engines.opened(run, NAME, adapter):
            pass


# ----------------------------------------------------------------------------- before it begins


def test_what_is_missing_is_said_before_anything_loads(smoke, task, sets, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("loaded a model"))
    monkeypatch.setitem(settings.ENGINES, "openai", ("no_such_package",))
    with pytest.raises(
        settings.SettingsError, match=r"needs the package no_such_package.*\[server\]"
    ):
        rollout.rollout(run_with("openai"), task, sets["train"])
    monkeypatch.setitem(settings.ENGINES, "vllm", ())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(settings.SettingsError, match="vllm needs a GPU and there is none"):
        engines.check(run_with("vllm").settings.models)


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
    code = engines.identity(ours.settings.models)[-1]
    assert code == store.code_hash(*generate.CODE)  # of the decode loop alone


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": {"engine": "vllm"}, "workers": 2}, "set workers to 1"),
        ({"models": {"engine": "sglang"}}, "models.engine"),
        ({"models": {"engine": "vllm", "device": "cpu"}, "workers": 1}, "models.device"),
        ({"models": {"load_in_4bit": True, "device": "cpu"}}, "models.device"),
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
