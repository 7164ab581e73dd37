"""The plan's prices against real models, its counts against real files, the doctor's verdicts."""

import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY

from trdlib import config, costs, data, doctor, hub, plan, workload

LORA = config.Lora(r=4, alpha=4)
SMALL = costs.Shape(32, 2, 4, 2, 8, 64, 93, True)
MODES = ("opd", "opsd")


def model_of(shape: costs.Shape):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings")  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**dict(zip(names, shape, strict=True))))


# ---------------------------------------------------------------------------- prices (costs.py)


@pytest.mark.parametrize(
    "name", ["small", "odd", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"]
)
def test_parameters_are_those_of_the_model(name):
    import torch

    shapes = {"small": SMALL, "odd": costs.Shape(48, 3, 6, 3, 16, 80, 101, False)}
    shape = shapes[name] if name in shapes else costs.SHAPES[name][0]
    with torch.device("meta"):
        model = model_of(shape)
    assert costs.parameters(shape) == sum(p.numel() for p in model.parameters())


def test_the_known_sizes_of_the_weight_files_follow_from_the_shapes():
    for name, (shape, size) in costs.SHAPES.items():
        if "/" not in name:
            continue  # quantised
        twice = shape.vocab * shape.hidden if name.endswith("1.7B") else 0  # its tied head, again
        assert size == 2 * (costs.parameters(shape) + twice), name


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), config.Lora(r=1, alpha=1).targets])
def test_adapter_weights_are_those_of_peft(small_model, targets):
    import copy

    from trdlib import models

    lora = config.Lora(r=3, alpha=3, targets=targets)
    model = models.add_lora(copy.deepcopy(small_model), lora, backend="transformers", seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert costs.lora_parameters(shape_of(small_model), lora) == trained


def shape_of(model) -> costs.Shape:
    c = model.config
    return costs.Shape(c.hidden_size, c.num_hidden_layers, c.num_attention_heads,
                       c.num_key_value_heads, c.head_dim, c.intermediate_size, c.vocab_size,
                       c.tie_word_embeddings)  # fmt: skip


def test_the_cache_is_as_large_as_a_real_one(small_model):
    import torch

    cache = small_model(torch.ones(3, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert costs.cache_bytes(shape_of(small_model), 4) * 3 * 7 == held


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_training_keeps_what_autograd_saves(dropout):
    """Bytes a token and layer, from two depths of one float32 model, within 15 %."""
    import torch

    from trdlib import models

    lora, tokens = config.Lora(r=4, alpha=4, dropout=dropout), 64

    def saved(layers: int) -> int:
        shape = SMALL._replace(layers=layers)
        model = models.add_lora(model_of(shape).requires_grad_(False), lora,
                                backend="transformers", seed=0).train()  # fmt: skip
        held, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive: no address twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            models.hidden_states(model, input_ids=torch.ones(1, tokens, dtype=torch.long))
        return sum(size for size, _ in held.values())

    real = (saved(4) - saved(2)) / 2 / tokens
    assert costs.saved_bytes(SMALL, lora, 4) == pytest.approx(real, rel=0.15)


def test_operations_are_those_that_torch_counts():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trdlib import models

    shape, tokens = costs.Shape(64, 3, 4, 2, 16, 192, 101, False), 50
    model = model_of(shape).requires_grad_(False)
    model.set_attn_implementation("eager")  # counted in full, not as its causal half
    ids = torch.ones(1, tokens, dtype=torch.long)
    matrices, attention = costs.forward_flops(shape, tokens)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        models.hidden_states(model, input_ids=ids)
    assert counter.get_total_flops() == pytest.approx(matrices + 2 * attention, rel=0.01)

    model = models.add_lora(model, LORA, backend="transformers", seed=0).train()
    with FlopCounterMode(display=False) as counter:
        models.hidden_states(model, input_ids=ids).sum().backward()
    how = {"lengths": (tokens, 0), "response": 0, "checkpointing": False}
    ours = costs.training_flops(shape, None, LORA, **how) + 3 * attention
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.05)


def test_by_hand():
    shape = costs.Shape(hidden=10, layers=2, heads=2, kv_heads=1, head_dim=5, ffn=20, vocab=100,
                        tied=True)  # fmt: skip
    matrices = 2 * (10 * 10 + 2 * 10 * 5 + 10 * 10 + 3 * 10 * 20)
    assert costs.body(shape) == matrices
    assert costs.parameters(shape) == matrices + 2 * (20 + 10) + 10 + 1000
    assert costs.cache_bytes(shape, 2) == 2 * 2 * 5 * 2
    # decoding 4 rows of 3 tokens in two batches, all of it bandwidth: 6 steps read the weights
    machine = costs.Machine(memory=1e9, flops=1e30, bandwidth=1.0, launch=0)
    read = 6 * (matrices + 1000) * 2 + 4 * 3 * (7 + 1.5) * 40
    how = {"rows": 4, "prompts": 4, "prompt": 7, "new": 3, "batch": 2}
    assert costs.sampling_seconds(shape, 2, machine, **how) == pytest.approx(read)
    slow = machine._replace(launch=1e9)  # ... or all of it launches
    assert costs.sampling_seconds(shape, 2, slow, **how) == pytest.approx(6 * 2 * 1e9)
    teacher = costs.training_flops(shape, shape, LORA, lengths=(8, 9), response=4,
                                   checkpointing=False)  # fmt: skip
    alone = costs.training_flops(shape, None, LORA, lengths=(8, 0), response=4,
                                 checkpointing=False)  # fmt: skip
    assert teacher - alone == 2 * matrices * 9 + 2 * 2 * 10 * 81 + 2 * 100 * 10 * 4


def test_more_costs_more():
    sampling = config.Sampling(temperature=1, max_new_tokens=1000, batch_size=64)
    shape, _ = costs.SHAPES["Qwen/Qwen3-8B"]
    memory = [costs.sampling_memory(shape, 2, sampling, 500, batch) for batch in (1, 8, 64)]
    assert memory == sorted(memory) and memory[0] > 2 * costs.parameters(shape)
    batch = costs.largest_batch(memory[1], shape, 2, sampling, 500)
    assert batch == 8 and costs.largest_batch(1e9, shape, 2, sampling, 500) == 0

    how = {"own_teacher": True, "lengths": (4000, 5000), "rows": 1}
    kept, again = (
        costs.training_memory(shape, shape, 2, LORA, checkpointing=flag, **how)
        for flag in (False, True)
    )
    other = costs.training_memory(
        shape, shape, 2, LORA, checkpointing=True, **{**how, "own_teacher": False}
    )
    assert again < kept and other - again == 2 * costs.parameters(shape)
    for name in costs.GPUS:
        good, poor = (costs.gpu(name, good=flag) for flag in (True, False))
        rows = {"rows": 64, "prompts": 64, "prompt": 500, "batch": 64}
        seconds = [costs.sampling_seconds(shape, 2, good, new=n, **rows) for n in (10, 100, 1000)]
        assert seconds == sorted(seconds)
        assert costs.sampling_seconds(shape, 2, poor, new=10, **rows) > seconds[0]


# ------------------------------------------------------------- counts, against what really runs


@pytest.fixture
def pipeline(smoke, project):
    """As `smoke`, with the pipeline's own files."""
    for name in ("dvc.yaml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, project)
    return smoke


def planned(run, mode=None):
    return workload.work(run, [mode] if mode else MODES)


def test_counts_are_those_of_the_files(pipeline):
    from trdlib import distill, evaluate, refine, rollout

    run = pipeline("opsd", "trd")
    before = planned(run, "opsd")
    tables = {"rollout": [rollout.attempts(run)]}
    tables["refine opsd"] = [refine.rewrites(run), refine.teacher_solutions(run)]
    tables["evaluate opsd"] = []
    base = pipeline("none", "base")
    (samples,) = evaluate.evaluate([base])
    after = planned(run, "opsd")
    for stage, made in tables.items():
        ours = [one for one in after if one.stage == stage][: len(made)]
        for one, table in zip(ours, made, strict=True):
            assert one.rows == len(table)
            assert one.rows * one.response.expected == pytest.approx(table["n_tokens"].sum())
            assert one.rows * one.response.at_most >= table["n_tokens"].sum()
    for one in before:  # nothing was known: what is expected is what the settings allow
        response = one.response
        assert response.expected == response.at_most
    reference = next(one for one in after if one.stage == "reference")
    assert reference.rows == sum(len(table) for table in samples.values())

    for method in ("trd", "sft", "trd_failed", "off_policy"):
        cell = pipeline("opsd", method)
        rows = [pair for mine in distill.training_set(cell).rows.values() for pair in mine]
        kind = "ablate" if method == "trd_failed" else "distill"
        one = next(i for i in after if i.stage == f"{kind} opsd {method}")
        rates = 1 if method == "trd_failed" else 2
        assert one.rows == len(rows) * rates, method
        read = rates * sum(
            len(p.student_ids) + len(p.response_ids)
            + (len(p.teacher_ids) + len(p.response_ids) if p.teacher_ids else 0)
            for p in rows
        )  # fmt: skip
        assert read <= one.tokens("at_most"), method
        assert all(len(p.student_ids) <= one.prompt.at_most for p in rows)
        assert all(len(p.teacher_ids) <= one.context.at_most for p in rows)


def test_the_work_is_that_of_the_stages(pipeline):
    run = pipeline("none", "base")
    keys = [stage.key for stage in plan.stages(run, MODES)]
    assert len(set(keys)) == len(keys)
    model_stages = {
        k for k in keys if k.split()[0] not in ("settings", "models", "prepare", "tables")
    }
    assert {one.stage for one in planned(run)} == model_stages


def test_the_settings_of_the_paper(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    settings = config.load()
    run = config.Run("qwen3-8b", "math", "none", "base", settings)
    items = planned(run, "opsd")
    assert items[0].rows == 3 * 5120 and items[0].response == (7700, 16384)
    assert [one.prompt.at_most for one in items if one.stage == "refine opsd"] == [22528, 6144]
    training = [i for i in items if i.stage.startswith(("distill", "ablate"))]
    assert {one.rows for one in training} == {3 * 40 * 128}  # 40 steps, subsets too
    assert len(training) == len(settings.run.methods_of("opsd"))  # one learning rate: no validation
    evaluated = next(one for one in items if one.stage == "evaluate opsd")
    assert evaluated.rows == 3 * 16 * 229 * len(settings.run.methods_of("opsd"))


def test_a_shape_comes_from_the_models_own_file(pipeline, project, monkeypatch):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["scales"]["qwen3-8b"]["models"]["student"] = f"someone/else@{'0' * 40}"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    run = config.Run("qwen3-8b", "math", "opsd", "trd", config.load())
    monkeypatch.setattr(hub, "cached", lambda *a: None)
    with pytest.raises(config.SettingsError, match=r"shape of someone/else@0+ is not known"):
        workload.models(run)
    folder = project / "snapshot"
    model_of(SMALL).config.save_pretrained(folder)
    monkeypatch.setattr(hub, "cached", lambda *a: folder / "config.json")
    found = workload.models(run)["student"]
    assert found.shape == SMALL and found.bytes == 2 * costs.parameters(SMALL)
    assert not found.here
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    data.write_json(folder / "model.safetensors.index.json", index)
    (folder / "1.safetensors").touch()
    assert not workload.models(run)["student"].here  # half of it
    (folder / "2.safetensors").touch()
    assert workload.models(run)["student"].here


# --------------------------------------------------------------------------------- the plan


def test_what_is_done_is_seen(pipeline, project):
    from trdlib import rollout

    run = pipeline("none", "base")
    before = {stage.key: stage.there for stage in plan.stages(run, MODES)}
    assert before["models"] and before["prepare"] and not before["rollout"]
    parts = project / "runs/smoke/math/y_o.parquet.seeds/0.parquet.parts/abc"
    parts.mkdir(parents=True)
    (parts / "00000.json").write_text("[]")
    assert plan.unfinished(run) == "1 batches of responses"
    rollout.attempts(run)
    groups = plan.by_group(planned(run))
    left = plan.left(groups, plan.stages(run, MODES))
    assert left["rollout"] == 0 and left["distill opd"] == 1


def test_this_machine_is_measured_not_guessed(pipeline, project, monkeypatch):
    monkeypatch.setattr(plan, "LONG", 0.02)
    run = pipeline("none", "base")
    items, stages = planned(run), plan.stages(run, MODES)
    groups = plan.by_group(items)
    assert plan.calibrated(run.settings) is None
    assert "not measured" in plan.machine_table(groups, run.settings, {}, None, 9)
    plan.calibrate(run.settings)
    found = plan.calibrated(run.settings)
    assert found["flops"] > 1e8 and found["bandwidth"] > 1e8 and 1e-6 < found["launch"] < 1
    assert plan.calibrated(run.settings.model_copy(
        update={"models": run.settings.models.model_copy(update={"dtype": "bfloat16"})}
    )) is None  # fmt: skip
    tokens = sum(one.tokens("expected") for one in items if one.stage == "distill opd trd")
    timing = next(s.timing for s in stages if s.key == "distill opd trd")
    data.write_json(timing, {"core_seconds": tokens * 0.001, "workers": 1})
    measured = plan.timed(stages, items)
    assert measured["distill opd trd"] == pytest.approx(tokens * 0.001)
    assert {key.split()[0] for key in measured} == {"distill"}
    table = plan.machine_table(groups, run.settings, measured, found, 9)
    assert "runs/timings" in table and "calibration" in table


def command(project, *arguments):
    environment = {"PATH": "", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1",
                   "HF_HOME": str(project / "hub")}  # fmt: skip
    return subprocess.run([sys.executable, *arguments], cwd=project, env=environment,
                          capture_output=True, text=True)  # fmt: skip


def test_the_command_line(pipeline, project):
    done = command(project, "-X", "importtime", "-m", "trdlib", "doctor", "--help")
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "huggingface_hub"}

    done = command(project, "-m", "trdlib", "plan", "--scale", "huge")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: there is no scale 'huge': choose from ")
    assert done.stderr.count("\n") == 1

    done = command(project, "-m", "trdlib", "plan", "--scale", "qwen3-8b", "--gpu", "H100 SXM")
    assert done.returncode == 0, done.stderr
    assert (
        "16.4 GB" in done.stdout and "to download" in done.stdout and "size unknown" in done.stdout
    )
    assert "make repro SCALE=qwen3-8b TASKS=math" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100

    done = command(project, "-m", "trdlib", "plan", "--scale", "qwen3-8b", "--task", "code")
    assert "taco" in done.stdout and "make repro SCALE=qwen3-8b TASKS=code" in done.stdout


def test_vllm_holds_what_its_cache_holds_and_needs_less_time():
    settings = config.load()
    scale = settings.scales["qwen3-8b"]
    models = scale.models.model_copy(update={"engine": "vllm"})
    settings.scales["paged"] = scale.model_copy(update={"models": models})
    works = {
        name: workload.work(config.Run(name, "math", "none", "base", settings), ["opsd"])
        for name in ("qwen3-8b", "paged")
    }
    gpu = costs.gpu("H100 SXM", good=True)
    rollout = next(one for one in works["paged"] if one.stage == "rollout")
    rows = rollout.batch(settings.scales["paged"], gpu, "expected")
    weights, position = 2 * costs.parameters(rollout.shape), costs.cache_bytes(rollout.shape, 2)
    length = rollout.prompt.expected + rollout.response.expected
    assert weights + rows * length * position <= 0.85 * gpu.memory
    assert weights + (rows + 1) * length * position > 0.85 * gpu.memory
    for one, paged in zip(works["qwen3-8b"], works["paged"], strict=True):
        if isinstance(one, workload.Sampled):
            own, other = one.seconds(scale, gpu, "expected"), settings.scales["paged"]
            assert 0 < paged.seconds(other, gpu, "expected") < own
            assert paged.memory(other) < one.memory(scale) < 80 * costs.GIB


# --------------------------------------------------------------------------------- the doctor


def test_the_doctors_verdicts(pipeline, project, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "packages", list)
    monkeypatch.setattr(doctor, "hub", lambda: "not reachable (ConnectError)")
    monkeypatch.setattr(hub, "cached", lambda *a: None)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["run"]["scales"] = ["smoke"]
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert doctor.show() == 0
    said = capsys.readouterr().out
    assert "smoke: runs here" in said and "not reachable" in said
    assert max(map(len, said.splitlines())) <= 100

    params["scales"]["big"] = params["scales"]["qwen3-8b"]
    params["run"] |= {"scales": ["big"], "tasks": ["math"], "modes": ["opsd"]}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert doctor.show() == 1
    assert "big: does not run here as it is" in capsys.readouterr().out

    settings = config.load()
    gpu = doctor.Machine(True, 80 * costs.GIB, "reachable", True, ())
    no_gpu = gpu._replace(gpu=False)
    for machine, words in (
        (no_gpu, "no GPU: it needs one with at least"),
        (gpu._replace(memory=16 * costs.GIB), "of memory and there are 16"),
        (gpu._replace(memory=48 * costs.GIB), "set rollout.batch_size to at most"),
        (gpu._replace(hub="off"), "Qwen/Qwen3-8B is not here and the hub off"),
        (gpu._replace(unsloth=False), "the backend unsloth is missing"),
        (gpu._replace(faults=("torch missing",)), "make setup"),
    ):
        why = doctor.verdict("big", settings, machine)
        assert any(words in fault for fault in why), (words, why)
    for name in settings.scales:  # a GPU of 80 GiB is enough for each, as params.yaml has it
        if name.startswith("qwen3"):
            assert settings.run.tasks == ("math",)
            assert doctor.verdict(name, settings, gpu) == []
            both = settings.run.model_copy(update={"tasks": ("math", "code")})
            assert doctor.verdict(name, settings.model_copy(update={"run": both}), gpu) == []
    assert doctor.verdict("smoke", settings, no_gpu) == []
    assert workload.models(config.run("smoke"))["student"].here
    shutil.rmtree(project / "models" / "smoke" / "1")
    assert not workload.models(config.run("smoke"))["student"].here


def test_the_doctor_needs_no_torch(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "hub", lambda: "off (HF_HUB_OFFLINE)")
    monkeypatch.setattr(doctor, "packages", lambda: ["torch missing, pinned 2.13.0"])
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
    assert doctor.show() == 1
    said = capsys.readouterr().out
    assert "missing: make setup" in said and "torch missing, pinned 2.13.0" in said
    assert "packages are not as pinned: make setup" in said


def test_a_package_that_is_not_as_pinned_is_named(pipeline, project):
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace('"pandas==', '"pandas==99.'))
    assert [fault for fault in doctor.packages() if fault.startswith("pandas")]
