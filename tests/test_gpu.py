"""What only a GPU can show: `make test-gpu` (the other tests do not see the GPU).

The reference is float32 on the CPU, or transformers' own `generate`.
"""

import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from transformers import TrainerCallback

from trdlib import distill, engines, evaluate, generate, models, settings, tasks
from trdlib.ops.chain import sampled
from trdlib.run import Run, get_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: make test-gpu")
PROMPTS = [[31, 20, 77], [31, 20, 77], [40, 9], [12, 5, 5, 9, 30]]
ROWS = [
    distill.Pair([31, 20], [31, 20, 5], [77, 40, 2]),
    distill.Pair([9], [9, 9], [12, 7, 7, 2]),
    distill.Pair([5, 6, 7], [5], [30, 2]),
] * 8


def changed(words: str, mode: str = "opd", method: str = "trd") -> Run:
    return get_run(f"smoke {words}".strip(), mode, method)


def load(name: str, run: Run):
    return models.load(name, run.settings.models, run.context_length)


def with_models(run: Run, **update) -> Run:
    """The run with other settings of its models, its files in their usual places."""
    section = run.settings.models.model_copy(update=update)
    run.settings = run.settings.model_copy(update={"models": section})
    return run


def apart(script: str, project) -> str:
    """In a process of its own, because unsloth patches transformers."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=project
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3500:]
    return done.stdout


def test_a_gpu_computes_what_a_cpu_does(project):
    """Losses and their gradients with respect to the adapter."""
    for method in ("forward_kl", "reverse_kl", "reverse_kl_topk", "sft"):
        found = []
        for device in ("cpu", "auto"):
            run = with_models(changed("", method=method), device=device)
            distiller = distill.build(run, 0).eval()
            assert distiller.device.type == ("cpu" if device == "cpu" else "cuda")
            torch.manual_seed(0)
            for parameter in distiller.parameters():
                if parameter.requires_grad:
                    parameter.data = (0.05 * torch.randn(parameter.shape)).to(distiller.device)
            batch = {k: t.to(distiller.device) for k, t in distill.collate(ROWS[:3]).items()}
            if run.recipe.divergence == "cross_entropy":
                batch = {k: batch[k] for k in ("input_ids", "labels")}
            losses = distiller.token_losses(**batch)
            losses.sum().backward()
            grads = [p.grad.cpu() for p in distiller.parameters() if p.requires_grad]
            found.append([losses.detach().cpu(), *grads])
        for here, there in zip(*found, strict=True):
            torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


def greedy(model) -> list:
    return generate.decode(model, PROMPTS, max_new_tokens=40, stop_ids=[2], temperature=0)


def test_decoding_is_that_of_transformers(project):
    model, tokenizer = load("models/tiny/0/student", changed(""))
    assert model.device.type == "cuda"
    stops = models.stop_ids(model.generation_config, tokenizer)
    ours = generate.decode(model, PROMPTS, max_new_tokens=40, stop_ids=stops, temperature=0)
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([prompt], device="cuda")
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40,
            eos_token_id=stops, pad_token_id=0,
        )  # fmt: skip
        assert theirs[0, len(prompt) :].tolist() == completion.token_ids
    again = [
        generate.decode(model, PROMPTS, max_new_tokens=40, stop_ids=stops, seeds=seeds)
        for seeds in ([1] * len(PROMPTS), [1] * len(PROMPTS), [2] * len(PROMPTS))
    ]
    assert again[0] == again[1] != again[2]


BACKENDS = """
import torch
from pathlib import Path
from trdlib import distill, generate, models, settings
from trdlib.run import get_run
import test_gpu
dtype, tolerance = "{dtype}", {tolerance}
def of(backend):
    return test_gpu.with_models(get_run("smoke"), backend=backend, dtype=dtype)
ids = torch.tensor([[31, 20, 77, 40, 9, 12]], device="cuda")
stock, stock_greedy = torch.load("stock.pt", weights_only=False)
with torch.no_grad():
    fast, tokenizer = test_gpu.load("models/tiny/0/student", of("unsloth"))
    plain, _ = test_gpu.load("models/tiny/0/student", of("transformers"))
    assert fast.device.type == plain.device.type == "cuda"
    assert fast.dtype == plain.dtype == getattr(torch, dtype)
    hidden = [models.hidden_states(m, input_ids=ids) for m in (fast, plain)]
assert fast.forward.__module__.startswith("unsloth"), fast.forward.__module__
for found in hidden:
    torch.testing.assert_close(found, stock, rtol=tolerance, atol=tolerance)
for model in (fast, plain):
    found = test_gpu.greedy(model)
    same = sum(a == b for a, b in zip(found, stock_greedy))
    assert same == len(found) or dtype == "bfloat16" and same, (found, stock_greedy)
how = dict(max_new_tokens=40, stop_ids=[2], temperature=1.0)
drawn = [generate.decode(fast, test_gpu.PROMPTS, seeds=[seed], **how) for seed in (1, 1, 2)]
assert drawn[0] == drawn[1] != drawn[2]
print("decoded")
lora = settings.Lora(r=4, alpha=4, dropout=0.05)
training = settings.load().scales["smoke"].training.model_copy(
    update={{"epochs": 6, "bf16": dtype == "bfloat16", "gradient_checkpointing": True}})
logs = []
for backend in ("unsloth", "transformers"):
    base = fast if backend == "unsloth" else plain
    student = models.add_lora(base, lora, backend=backend, seed=0, checkpointing=True)
    teacher, _ = test_gpu.load("models/tiny/0/teacher", of(backend))
    for mine in (teacher, None):
        method = settings.Method(trajectory="y_r", divergence="forward_kl")
        one = distill.Distiller(student, mine, method, vocabulary=len(tokenizer))
        log = distill.train(one, test_gpu.ROWS, training, learning_rate=0.01, seed=0,
                            checkpoints=Path(f"{{backend}}-{{mine is None}}"))
        logs.append([entry["loss"] for entry in log])
        with torch.no_grad(), models.step0(student) as own:
            step0 = models.hidden_states(own, input_ids=ids)
        torch.testing.assert_close(step0, hidden[1], rtol=tolerance, atol=tolerance)
    student.save_pretrained(backend)
    again, _ = test_gpu.load("models/tiny/0/student", of("transformers"))
    with torch.no_grad():
        trained = models.hidden_states(student.eval(), input_ids=ids)
        merged = models.hidden_states(models.with_adapter(again, backend), input_ids=ids)
    far = (trained - hidden[1]).abs().max()
    assert far > 4 * tolerance, far
    torch.testing.assert_close(merged, trained, rtol=4 * tolerance, atol=4 * tolerance)
for log in logs[::2]:  # towards another model
    assert log[-1] < 0.9 * log[0], log
print(logs[0][0], logs[2][0])
assert abs(logs[0][0] - logs[2][0]) < 0.05 * logs[2][0], (logs[0][0], logs[2][0])
print("backends agree")
"""


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.06)])
def test_unsloth_is_the_same_model(project, dtype, tolerance):
    """Hidden states, greedy decoding, checkpointing and dropout in training, the saved adapter."""
    where = f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / 'tests')!r}]\n"
    ids = torch.tensor([[31, 20, 77, 40, 9, 12]], device="cuda")
    model, _ = load("models/tiny/0/student", with_models(changed(""), dtype=dtype))
    with torch.no_grad():
        torch.save((models.hidden_states(model, input_ids=ids), greedy(model)), "stock.pt")
    # unsloth first: it patches what is imported after it
    script = where + "import unsloth\n" + BACKENDS.format(dtype=dtype, tolerance=tolerance)
    assert "backends agree" in apart(script, project)


def test_a_resumed_training_ends_like_an_uninterrupted_one(project):
    """Close, not equal: atomics of CUDA add in any order."""

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    run, found = changed("training.epochs=2 training.save_steps=2 lora.dropout=0.05"), []
    how = {"learning_rate": 0.01, "seed": 0}
    for name in ("whole", "part"):
        where = project / name
        if name == "part":
            with pytest.raises(KeyboardInterrupt):
                distill.train(distill.build(run, 0), ROWS, run.settings.training,
                              checkpoints=where, callbacks=(Kill(),), **how)  # fmt: skip
            assert (where / "checkpoint-2" / "whole").exists()
        distiller = distill.build(run, 0)
        distill.train(distiller, ROWS, run.settings.training, checkpoints=where, **how)
        found.append({name: value.cpu() for name, value in distiller.state_dict().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("words", ["", "models.dtype=bfloat16 training.bf16=true "
                                       "training.gradient_checkpointing=true"])  # fmt: skip
@pytest.mark.parametrize("mode", ["opd", "opsd"])
def test_the_pipeline(project, words, mode):
    """Problems to metrics in this process; two jobs at a time would fork a process with CUDA."""
    run = changed(f"{words} workers=2", mode)
    task = tasks.of(run)
    sets = task.sets()
    tables = sampled([run], task, sets["train"])
    ((choice, adapters),) = distill.distill([run], task, sets, tables)
    assert choice["chosen"] in run.rates
    assert len(tables[mode]["y_r"]) == len(tables[mode]["y_o"])
    (answers,) = evaluate.evaluate([run], task, sets, [adapters])
    assert set(answers) == set(sets) - {"train", "validation"}


APART = """
from trdlib import distill, tasks
from trdlib.ops.chain import sampled
from trdlib.run import get_run
run = get_run("smoke models.device=cpu workers=2", method="sft")
task = tasks.of(run)
sets = task.sets()
trd = run.with_(method="trd")
tables = sampled([run, trd], task, sets["train"])
distill.distill([run], task, sets, tables)
assert distill.build(trd, 0).device.type == "cpu"
"""


def test_a_scale_of_the_cpu_leaves_the_gpu_alone(project):
    apart(f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}]\n" + APART, project)


def test_four_bits(project):
    """nf4: near the whole model, trains with the adapter beside it, decodes with it unmerged."""
    pytest.importorskip("bitsandbytes")
    bf16 = {"dtype": "bfloat16"}
    run = with_models(changed(""), load_in_4bit=True, **bf16)
    ids = torch.tensor([[31, 20, 77, 40, 9, 12]], device="cuda")
    with torch.no_grad():
        whole, _ = load("models/tiny/0/student", with_models(changed(""), **bf16))
        model, tokenizer = load("models/tiny/0/student", run)
        kinds = {type(module).__name__ for module in model.modules()}
        assert "Linear4bit" in kinds
        near = [models.hidden_states(m, input_ids=ids).float() for m in (whole, model)]
    assert torch.cosine_similarity(*near, dim=-1).min() > 0.8
    assert not torch.equal(*near)
    student = models.add_lora(
        model, settings.Lora(r=4, alpha=4), backend="transformers", seed=0, checkpointing=True
    )
    method = settings.Method(trajectory="y_r", divergence="forward_kl")
    teacher, _ = load("models/tiny/0/teacher", run)
    distiller = distill.Distiller(student, teacher, method, vocabulary=len(tokenizer))
    training = run.settings.training.model_copy(
        update={"epochs": 6, "bf16": True, "gradient_checkpointing": True}
    )
    log = distill.train(
        distiller, ROWS, training, learning_rate=0.01, seed=0, checkpoints=project / "ck"
    )
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    student.save_pretrained(project / "adapter")
    how = settings.Sampling(temperature=0, max_new_tokens=20)
    found = []
    for adapter in (None, project / "adapter"):
        asked = engines.Asked(PROMPTS, how, project / f"parts{len(found)}", (0,), adapter)
        found.append(engines.sample(run, "models/tiny/0/student", asked, "test"))
    assert found[0] != found[1]
    stop_ids = models.stop_ids(student.generation_config, tokenizer)
    same = generate.decode(student.eval(), PROMPTS, max_new_tokens=20, stop_ids=stop_ids,
                           temperature=0)  # fmt: skip
    assert same == found[1]
