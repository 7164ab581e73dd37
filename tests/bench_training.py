"""A training step at the real shapes, random weights: tokens/s, peak memory, share of the peak.

    python tests/bench_training.py --model Qwen/Qwen3-8B --lengths 2048 8192 34816
    python tests/bench_training.py --model Qwen/Qwen3-1.7B --backend unsloth

OPSD's trd as in params.yaml: LoRA, gradient checkpointing, one row a step; the student sees
`length` tokens of which all but 512 are the response, its step-0 self 1,024 more. `--model small`
is a shape for trying the script on a CPU. In brackets: what `trdlib plan` expects.
"""

import argparse
import tempfile
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from trdlib import config, costs, distill, models, plan, tiny

PROMPT, MORE = 512, 1024
SMALL = costs.Shape(64, 2, 4, 2, 16, 128, 1000, True)


def random_model(shape: costs.Shape, dtype: torch.dtype):
    about = Qwen3Config(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, intermediate_size=shape.ffn,
        vocab_size=shape.vocab, tie_word_embeddings=shape.tied, max_position_embeddings=40960,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(about).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return model


def load(shape: costs.Shape, run: config.Run, dtype: torch.dtype, backend: str):
    model = random_model(shape, dtype)
    if backend == "unsloth":  # it loads from a folder
        how = run.settings.models.model_copy(update={"backend": backend, "dtype": str(dtype)[6:]})
        run.settings = run.settings.model_copy(update={"models": how})
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tiny.build_tokenizer().save_pretrained(folder)
            del model
            torch.cuda.empty_cache()
            model, _ = models.load(folder, run)
    return model


def build(shape: costs.Shape, run: config.Run, dtype: torch.dtype, backend: str):
    model, lora = load(shape, run, dtype, backend), run.settings.lora
    student = models.add_lora(model, lora, backend=backend, seed=0, checkpointing=True)
    recipe = run.settings.methods["trd"]
    return distill.Distiller(student, None, recipe, vocabulary=shape.vocab).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="small", choices=["small", *(n for n in costs.SHAPES if "/" in n)]
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--backend", default="transformers", choices=["transformers", "unsloth"])
    arguments = parser.parse_args()
    if arguments.backend == "unsloth":
        import unsloth  # noqa: F401 (before a model is made: it patches transformers)
    run = config.run("qwen3-8b", "math", "opsd", "trd")
    settings = run.settings
    shape = SMALL if arguments.model == "small" else costs.SHAPES[arguments.model][0]
    cuda = torch.cuda.is_available()
    distiller = build(shape, run, torch.bfloat16 if cuda else torch.float32, arguments.backend)
    optimizer = torch.optim.AdamW(p for p in distiller.parameters() if p.requires_grad)
    peak = next(
        (g[1] for name, g in costs.GPUS.items() if name.split()[0] in plan.device_name()), 0
    )
    print(f"{arguments.model}, {arguments.backend}, {plan.device_name()}, {torch.__version__}")
    for length in arguments.lengths:
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(shape.vocab, (length + MORE,), generator=draw).tolist()
        row = distill.Pair(ids[:PROMPT], ids[: PROMPT + MORE], ids[PROMPT + MORE :])
        batch = {k: t.to(distiller.device) for k, t in distill.collate([row]).items()}
        seconds = []
        for _ in range(1 + arguments.steps):
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
        flops = costs.training_flops(
            shape, shape, settings.lora, lengths=(length, length + MORE), response=length - PROMPT,
            checkpointing=True,
        )  # fmt: skip
        on_gpu = ""
        if cuda:
            expected = costs.training_memory(
                shape, shape, 2, settings.lora, own_teacher=True, lengths=(length, length + MORE),
                rows=1, checkpointing=True,
            )  # fmt: skip
            on_gpu = f", {torch.cuda.max_memory_allocated() / costs.GIB:.1f} GiB"
            on_gpu += f" [{expected / costs.GIB:.1f}]"
            on_gpu += f", {flops / step / peak / 1e12:.0%} of the bf16 peak" if peak else ""
        print(
            f"{length:6} tokens: {step:7.2f} s a step, {(2 * length + MORE) / step:8.0f} tokens/s "
            f"read by both, {flops / step / 1e12:6.2f} TFLOP/s{on_gpu}"
        )


if __name__ == "__main__":
    main()
