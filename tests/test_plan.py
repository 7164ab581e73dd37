"""The plan's prices against real models, its counts against real files, the doctor's verdicts."""

import copy
import functools
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from trdlib import evaluate, generate, models, refine, rollout, stats, store
from trdlib.ops import cli, doctor, plan
from trdlib.run import get_run
from trdlib.settings import load

SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16,
         "num_key_value_heads": 2, "intermediate_size": 192, "vocab_size": 101}  # fmt: skip
NO_TOKENS = np.zeros(2)


def built(**changes):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE | changes))


@pytest.fixture
def priced(project):
    """priced(**shape, lora=...) -> (run, plan.Model, the model): of a folder with these weights."""

    def priced(lora=None, **changes):
        model = built(**changes)
        model.save_pretrained(project / "models" / "priced")
        params = yaml.safe_load((project / "params.yaml").read_text())
        section = copy.deepcopy(params["scales"]["smoke"]) | {"pretraining": None, "map": None}
        section["models"] |= {"student": "models/priced", "teacher": "models/priced"}
        section["lora"] |= lora or {}
        params["scales"]["priced"] = section
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        run = get_run("priced")
        return run, plan.model(run, "student"), model

    return priced


# ------------------------------------------------------------------------------------------ prices


def test_the_known_sizes_of_the_weight_files_follow_from_the_shapes(project):
    """`total_size` of the weights' index on the hub; that of the 1.7B holds its head twice."""
    for scale, size in (
        ("qwen3-1.7b", 4_063_479_808),
        ("qwen3-4b-instruct", 8_044_936_192),
        ("qwen3-8b", 16_381_470_720),
    ):
        found = plan.model(get_run(scale, "none", "base"), "student")
        twice = 2 * found.head if scale == "qwen3-1.7b" else 0
        assert found.parameters * found.item + twice == size, scale
        assert not found.here


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], None])
def test_weights_are_those_of_the_model_and_of_peft(priced, targets):
    lora = {"r": 3, "alpha": 3} | ({"targets": targets} if targets else {})
    run, found, model = priced(lora)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    model = models.add_lora(model, run.settings.lora, backend="transformers", seed=0)
    assert found.adapter == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.here


def test_a_model_is_here_when_all_its_files_are(priced, project):
    run, *_ = priced()
    folder = project / "models" / "priced"
    index = {"weight_map": {"a": "model.safetensors", "b": "2.safetensors"}}
    store.write_json(folder / "model.safetensors.index.json", index)
    assert not plan.model(run, "student").here
    (folder / "2.safetensors").touch()
    assert plan.model(run, "student").here


def test_the_cache_is_as_large_as_a_real_one(priced):
    import torch

    _, found, model = priced()
    cache = model(torch.ones(3, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    run = get_run("priced models.engine=vllm models.device=auto")
    how = (run.settings.rollout, 1, np.full(2, 2.0), np.full(2, 5.0), plan.ASSUMED)
    work = plan.sampling(run, "", [], found, *how)
    assert work.each.tolist() == [held / 3] * 2


@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_training_keeps_what_autograd_saves(priced, dropout):
    """Bytes a token and layer, from two depths of one float32 model, within 15 %."""
    import torch

    tokens, real, ours = 64, [], []
    for layers in (2, 4):
        run, found, model = priced({"dropout": dropout}, num_hidden_layers=layers)
        model.requires_grad_(False)
        how = {"backend": "transformers", "seed": 0}
        model = models.add_lora(model, run.settings.lora, **how).train()
        held, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor, held=held, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive: no address twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            models.hidden_states(model, input_ids=torch.ones(1, tokens, dtype=torch.long))
        real.append(sum(size for size, _ in held.values()))
        length = np.full(2, float(tokens))
        work = plan.training(run, "", [], found, None, 1, length, NO_TOKENS, NO_TOKENS)
        ours.append(work.each[1])
    assert ours[1] - ours[0] == pytest.approx(real[1] - real[0], rel=0.15)


def test_operations_are_those_that_torch_counts(priced):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    run, found, model = priced()
    model.requires_grad_(False)
    model.set_attn_implementation("eager")  # counted in full, not as its causal half
    tokens, length = 50, np.full(2, 50.0)
    ids = torch.ones(1, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        models.hidden_states(model, input_ids=ids)
    ours = 2 * found.matrices * tokens + 2 * found.attention(tokens)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)

    model = models.add_lora(model, run.settings.lora, backend="transformers", seed=0).train()
    with FlopCounterMode(display=False) as counter:
        models.hidden_states(model, input_ids=ids).sum().backward()
    work = plan.training(run, "", [], found, None, 1, length, NO_TOKENS, NO_TOKENS)
    full = work.flops[0] + 3 * found.attention(tokens)
    assert counter.get_total_flops() == pytest.approx(full, rel=0.05)


def test_by_hand():
    """Decoding 4 rows of 3 tokens in two batches: six times the weights, or six times 2 layers."""
    slow_bus = plan.Machine(1e9, 1e30, 1e-9 / 0.7, 1024)  # one byte a second
    fast = plan.Machine(1e9, 1e30, 1e30, 1024)
    ones, how = np.ones(2), {"weights": 100, "cache": 1, "paged": 0, "most": 3, "variation": 0}
    how |= {"stage": "", "outs": [], "sampled": True, "batch": 2, "together": 2, "launches": 2}
    how |= {"flops": 3 * ones, "fixed": 0, "each": ones, "prompt": 4 * ones, "new": 3 * ones}
    work = plan.Work(rows=4, **how)
    read = 2 * 3 * 100 + 2 * 2 * (4.5 + 5.5 + 6.5)  # weights; the cache in the middle of a step
    assert work.seconds(slow_bus)[0] == pytest.approx(read)
    assert work.seconds(fast) == pytest.approx([6 * 2 * 0.5e-3, 6 * 2 * 3e-3])
    slow = slow_bus._replace(compute=1e-12 / 0.4)  # an operation a second, while it reads or not
    assert work.seconds(slow)[0] == pytest.approx(read)
    assert work.seconds(slow._replace(ahead=False))[0] == pytest.approx(read + 12 + 12e-3 * 0.5)
    assert np.isnan(work._replace(fixed=plan.GIB).seconds(plan.Machine(1, 1, 1, 1))).all()
    assert [plan.between(np.array(ends)) for ends in ((1, 2), (30, 90.0), (86400, 864000))] == [
        "1-2 s", "0.5-1.5 min", "1-10 d",
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [40, 64, 65, 256, 300])
def test_batches_are_as_large_as_those_of_the_loop(project, rows):
    run = get_run("smoke rollout.batch_size=64")
    real = generate.batches([[0] * 9] * rows, 64)
    sizes = np.full(2, 9.0), np.full(2, 5.0), 0.2
    how = run, "", [], plan.model(run, "student"), run.settings.rollout
    assert plan.sampling(*how, rows, *sizes).together == pytest.approx(len(real[0]), abs=1)
    assert plan.sampling(*how, 64 * rows, *sizes, 64).together == pytest.approx(
        len(real[0]), abs=1
    )  # of a job's


def test_vllm_holds_what_its_cache_holds_and_needs_less_time(project):
    found = {}
    for engine in ("transformers", "vllm"):
        run = get_run(f"qwen3-8b models.engine={engine}", "none", "base")
        found[engine] = plan.work(run, plan.models(run))
    for own, paged in zip(*found.values(), strict=True):
        if own.sampled:
            assert (paged.seconds(plan.GPUS["H100"]) <= own.seconds(plan.GPUS["H100"])).all()
            assert 0 < paged.memory < own.memory < 80 * plan.GIB


def test_the_queue_of_vllm():
    """Where nothing is in the way: as long as the longest, and as many rounds as rows do not fit;
    a cache that is too small takes longer and holds no more than it can; every token is made."""
    free = {"cap": 8, "prompt": 10.0, "compute": 0.0, "weights": 1.0, "cache": 0.0, "launch": 0.0,
            "variation": 0.7, "ahead": True}  # fmt: skip
    same = functools.partial(plan.queue, most=5, new=5.0)
    assert same(rows=8, room=10**6, **free) == 5  # a second a step
    assert same(rows=20, room=10**6, **free) == 15  # 8, 8, 4 rows
    assert same(rows=8, room=31, **free) == 20  # room for two at 15 tokens each
    computed = free | {"weights": 0.0, "compute": 1.0}
    assert same(rows=8, room=10**6, **computed) == 40  # tokens
    assert same(rows=8, room=50, **computed) >= 40  # what went back is read anew
    read = free | {"weights": 0.0, "cache": 1.0}
    assert same(rows=1, room=10**6, **read) == sum(10 + step + 0.5 for step in range(5))
    lengths = plan.queue(rows=4000, most=10**6, new=500.0, room=10**9, **computed | {"cap": 4000})
    assert lengths == pytest.approx(4000 * 500, rel=0.03)  # drawn, as long as said


def test_what_the_design_sees():
    """Against a simulation of the protocol: two equal methods, how their difference varies."""
    how, rng = load().scales["qwen3-8b"].evaluation, np.random.default_rng(1)
    alone, varied = plan.sees(how, 229, 3)
    assert alone < 1.5 < varied < 2
    a = 2 * plan.ASSUMED["spread"] / (1 - 4 * plan.ASSUMED["spread"])
    gaps = []
    for _ in range(300):
        p = rng.beta(a, a, 229)
        counts = stats.allocate(rng.binomial(32, p), 32, 4, 2)
        ours, theirs = (rng.binomial(counts, p, (3, 229)) / counts for _ in range(2))
        gaps.append(100 * (ours - theirs).mean())
    assert 1.96 * np.std(gaps) == pytest.approx(alone, rel=0.15)
    uniform = how.model_copy(update={"base_samples": None})
    assert plan.sees(uniform, 229, 3)[0] > 1.1 * alone


# ------------------------------------------------------------- counts, against what really runs


def planned(run):
    return plan.work(run, plan.models(run))


def test_counts_are_those_of_the_files(smoke, task):
    run, sets = smoke("opsd", "trd"), task.sets()
    before = {work.stage: work for work in planned(run)}
    assert before["rollout"].new[0] == before["rollout"].new[1]  # what the settings allow
    y_o = rollout.rollout(run, task, sets["train"])
    tables = {"y_o": y_o, "y_r": refine.refine(run, task, sets["train"], y_o),
              "y_t": refine.solve(run, task, sets["train"])}  # fmt: skip
    base = smoke("none", "base")
    (samples,) = evaluate.evaluate([base], task, sets, [None])
    runs = [smoke("opsd", name) for name in ("trd", "sft", "trd_failed", "off_policy")]
    training = refine.training_sets(runs, sets["train"], {"opsd": tables})
    for one, found in zip(runs, training, strict=True):
        rows = [len(found.rows[seed]) for seed in one.settings.seeds]
        store.write_json(one.choice, {"rows_by_seed": rows})
    after = planned(run)

    def of(path):
        return next(work for work in after if path in work.outs)

    for path, table in ((run.attempts, y_o), (run.rewrites("y_r"), tables["y_r"])):
        assert of(path).rows == len(table)
        assert len(table) * of(path).new[0] == pytest.approx(table["n_tokens"].sum())
        assert of(path).new[1] >= table["n_tokens"].mean()
    assert of(run.rewrites("y_t")).rows == len(tables["y_t"])
    tested = [table for at in samples.values() for table in at.values()]
    assert of(base.metrics).rows == sum(map(len, tested))
    for one, found in zip(runs, training, strict=True):
        rows = [pair for mine in found.rows.values() for pair in mine]
        work = of(one.adapter(0))
        assert work.rows == len(rows), one.method  # its learning rate is on file
        longest = max(len(p.student_ids) + len(p.response_ids) for p in rows)
        assert longest <= sum(plan.lengths(one)[part][1] for part in ("x", "y_r"))
        theirs = max(len(p.teacher_ids) for p in rows)
        assert theirs <= plan.lengths(one)["refine"][1]
    assert {work.stage for work in after} == {
        "rollout", "references", *(f"{stage} {mode}" for stage in ("refine", "distill", "evaluate")
                                   for mode in ("opd", "opsd")),
    }  # fmt: skip


def test_the_settings_of_the_paper(project):
    run = get_run("qwen3-8b", "none", "base")
    items = planned(run)
    cell = get_run("qwen3-8b", "opsd", "trd")
    tokens = plan.lengths(cell)
    assert items[0].rows == 3 * 5120 and tokens["y_o"].tolist() == [7700, 16384]
    assert [tokens[name][1] for name in ("refine", "plain")] == [22528, 6144]
    trained = [work for work in items if not work.sampled]
    assert {work.rows for work in trained} == {3 * 40 * 128}  # 40 steps
    assert len(trained) == len(cell.methods)  # one learning rate: no validation
    references = {work.outs[0].stem: work.rows for work in items if work.stage == "references"}
    assert references == {"base": 32 * 229, "base_again": 4 * 229}  # once each
    assert not [work for work in items if cell.rewrites("y_t") in work.outs]  # no method needs it
    evaluated = [work for work in items if work.stage == "evaluate opsd"]
    assert {work.rows for work in evaluated} == {3 * 4 * 229}
    assert len(evaluated) == len(cell.methods)
    peaks = {work.stage: work.memory / plan.GIB for work in items}
    # as measured on an H100, plus 1-16 % (docs/scales.md)
    ours = planned(get_run("qwen3-8b models.engine=transformers", "none", "base"))
    assert ours[0].memory / plan.GIB == pytest.approx(64.3, abs=0.1)
    assert peaks["distill opsd"] == pytest.approx(30.6, abs=0.1)


# ------------------------------------------------------------------------------- the command lines


def test_help_needs_neither_torch_nor_the_hub():
    command = [sys.executable, "-X", "importtime", "-m", "trdlib", "doctor", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "huggingface_hub"}


def test_the_command_line(project, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "hub"))

    def planned(scale):
        monkeypatch.setattr(sys, "argv", ["trdlib", "plan", "--scale", scale])
        return cli.main(), *capsys.readouterr()

    code, said, error = planned("huge")
    assert code == 1 and said == ""
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "there is no scale 'huge': choose from " in error

    code, said, error = planned("qwen3-8b")
    assert code == 0, error
    assert "16.4 GB" in said and "to download" in said
    assert max(map(len, said.splitlines())) <= 110

    params = yaml.safe_load((project / "params.yaml").read_text())
    params["scales"]["qwen3-8b"]["models"]["student"] = f"someone/else@{'0' * 40}"
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    _, _, error = planned("qwen3-8b")
    assert "the model someone/else@0000" in error and "hf download" in error


def test_what_is_done_is_seen(smoke, task, capsys):
    rollout.rollout(smoke(), task, task.sets()["train"])
    plan.command(scale="smoke", gpus=1, price=0.0, as_json=False)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "1/1" in lines["rollout"] and "0/3" in lines["references"]
    assert lines["student"].endswith("here")


def test_the_doctors_verdicts(project, monkeypatch, capsys):
    shutil.copy(REPOSITORY / "pyproject.toml", project)
    monkeypatch.setattr(doctor, "packages", list)
    monkeypatch.setattr(doctor, "hub", lambda: "not reachable (ConnectError)")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["scales"]["big"] = params["scales"]["qwen3-8b"]
    for scale, code in (("smoke", 0), ("big", 1)):
        params["run"]["scales"] = [scale]
        (project / "params.yaml").write_text(yaml.safe_dump(params))
        assert doctor.command(of_project=False, as_json=False) == code
        said = capsys.readouterr().out
        assert "smoke: runs here" in said and "not reachable" in said
        assert "big:\n  - " in said

    settings, reach = load(), "reachable"
    monkeypatch.setattr(doctor, "find_spec", lambda name: True)
    for where, memory, hub, words in (
        ("CPU", 80, reach, "no GPU: it needs one with"),
        ("GPU", 24, reach, "a smaller batch_size"),
        ("GPU", 80, "off", "Qwen/Qwen3-8B"),
    ):
        why = doctor.verdict("big", settings, where, memory * plan.GIB, hub)
        assert any(words in fault for fault in why), (words, why)
    for name in settings.scales:  # a GPU of 80 GiB is enough for each, as params.yaml has it
        if name.startswith("qwen3"):
            assert doctor.verdict(name, settings, "GPU", 80 * plan.GIB, reach) == [], name
    monkeypatch.setattr(doctor, "find_spec", lambda name: name != "unsloth")
    why = doctor.verdict("big", settings, "GPU", 80 * plan.GIB, reach)
    assert why == ["the backend unsloth is missing: pip install -e '.[gpu]'"]
    shutil.rmtree(project / "models" / "tiny" / "0")
    (why,) = doctor.verdict("smoke", settings, "CPU", 8 * plan.GIB, reach)
    assert why.endswith("make it (python -m trdlib models --scale smoke)")


def test_the_doctor_needs_no_torch(project, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "hub", lambda: "off (HF_HUB_OFFLINE)")
    monkeypatch.setattr(doctor, "packages", lambda: ["torch missing, pinned 2.13.0"])
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
    assert doctor.command(of_project=False, as_json=False) == 1
    said = capsys.readouterr().out
    assert "torch is missing" in said and "torch missing, pinned 2.13.0; so: make setup" in said


def test_a_package_that_is_not_as_pinned_is_named(project):
    text = (REPOSITORY / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(text.replace('"pandas==', '"pandas==99.'))
    assert [fault for fault in doctor.packages() if fault.startswith("pandas")]
