"""A training step at the real shapes, random weights: tokens/s, peak memory, TFLOP/s.

    python tests/bench_training.py --model Qwen/Qwen3-8B --lengths 2048 8192 34816
    python tests/bench_training.py --model Qwen/Qwen3-1.7B --backend unsloth

OPSD's trd as in params.yaml: LoRA, gradient checkpointing, one row a step; the student sees
`length` tokens of which all but 512 are the response, its step-0 self 1,024 more. `--model small`
is a shape for trying the script on a CPU. In brackets: what `trdlib plan` expects.
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from trdlib import distill, models
from trdlib.ops import plan
from trdlib.run import Run, get_run
from trdlib.tasks import modular

PROMPT, MORE = 512, 1024
SHAPES = {**plan.KNOWN, "small": (64, 2, 4, 128)}


def options(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="small", choices=list(SHAPES))
    parser.add_argument("--backend", default="transformers", choices=["transformers", "unsloth"])
    return parser


def load(name: str, run: Run, dtype: torch.dtype, backend: str):
    """A model of the shape with random weights, on the GPU if there is one."""
    hidden, layers, heads, ffn = SHAPES[name]
    about = Qwen3Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=8 if heads >= 8 else 2, intermediate_size=ffn,
        head_dim=128 if heads >= 8 else 16, vocab_size=151_936 if heads >= 8 else 1000,
        tie_word_embeddings=hidden < 4096, max_position_embeddings=40_960,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(about).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    if backend == "unsloth":  # it loads from a folder
        how = run.settings.models.model_copy(update={"backend": backend, "dtype": str(dtype)[6:]})
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            modular.build_tokenizer().save_pretrained(folder)
            del model
            models.free_gpu()
            model, _ = models.load(folder, how, run.context_length)
    return model


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    if asked.backend == "unsloth":
        import unsloth  # noqa: F401 (before a model is made: it patches transformers)
    run, cuda = get_run("qwen3-8b", "opsd", "trd"), torch.cuda.is_available()
    model = load(asked.model, run, torch.bfloat16 if cuda else torch.float32, asked.backend)
    vocabulary = model.config.vocab_size
    lora = {"backend": asked.backend, "seed": 0, "checkpointing": True}
    student = models.add_lora(model, run.settings.lora, **lora)
    distiller = distill.Distiller(student, None, run.recipe, vocabulary=vocabulary).train()
    optimizer = torch.optim.AdamW(p for p in distiller.parameters() if p.requires_grad)
    shape = plan.model(run, "student") if asked.model == "Qwen/Qwen3-8B" else None
    print(f"{asked.model}, {asked.backend}, torch {torch.__version__}, {distiller.device}")
    for length in asked.lengths:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (length + MORE,), generator=draw).tolist()
        row = distill.Pair(ids[:PROMPT], ids[: PROMPT + MORE], ids[PROMPT + MORE :])
        batch = {k: t.to(distiller.device) for k, t in distill.collate([row]).items()}
        seconds = []
        for _ in range(1 + asked.steps):
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            begun = time.perf_counter()
            with torch.autocast(distiller.device.type, torch.bfloat16, enabled=cuda):
                distiller(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
        step = min(seconds[1:])
        line = f"{length:6} tokens: {step:7.2f} s a step, "
        line += f"{(2 * length + MORE) / step:8.0f} tokens/s read by both"
        if shape:
            x, context, new = (
                np.array([n, n], float) for n in (PROMPT, PROMPT + MORE, length - PROMPT)
            )
            work = plan.training(run, "", [], shape, shape, 1, x, context, new)
            line += (
                f", {work.flops[0] / step / 1e12:6.2f} TFLOP/s [{work.memory / plan.GIB:.1f} GiB]"
            )
        if cuda:
            line += f", {torch.cuda.max_memory_allocated() / plan.GIB:.1f} GiB"
        print(line, flush=True)


if __name__ == "__main__":
    main()
