"""Our decode loop at the real shapes, random weights: tokens/s and peak memory.

    python tests/bench_sampling.py --model Qwen/Qwen3-8B --batches 16 --prompts 2048

Each case is a batch of prompts of one length, its cache as long as the paper's budget of 16,384
new tokens, and stops after 64 tokens (`--backend unsloth`: a cache for 64). In brackets: what
`trdlib plan` expects.
"""

import argparse
import time

import torch
from bench_training import SMALL, load

from trdlib import config, costs, generate, plan

BUDGET, NEW = 16_384, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="small", choices=["small", *(n for n in costs.SHAPES if "/" in n)]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[4])
    parser.add_argument("--prompts", type=int, nargs="+", default=[64], help="a length a batch")
    parser.add_argument("--backend", default="transformers", choices=["transformers", "unsloth"])
    arguments = parser.parse_args()
    if arguments.backend == "unsloth":
        import unsloth  # noqa: F401 (before a model is made: it patches transformers)
    shape = SMALL if arguments.model == "small" else costs.SHAPES[arguments.model][0]
    cuda = torch.cuda.is_available()
    run = config.run("qwen3-8b", "math", "opsd", "trd")
    dtype = torch.bfloat16 if cuda else torch.float32
    model = load(shape, run, dtype, arguments.backend).eval()
    filters = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    machines = [
        costs.gpu(name, good=good)
        for good in (True, False)
        for name in costs.GPUS
        if name.split()[0] in plan.device_name()
    ]
    print(f"{arguments.model}, {arguments.backend}, {plan.device_name()}, {torch.__version__}")

    def decode(prompts, new: int, budget: int):
        """Seconds for `new` tokens a row: the stop token is out of reach until it is forced."""
        count = [0]
        head = model.lm_head.forward

        def forward(hidden):
            logits = head(hidden)
            count[0] += 1
            if count[0] == new:
                logits[..., 0] = 1e4
            elif count[0] < new:
                logits[..., 0] = -1e4
            return logits

        if arguments.backend == "unsloth":  # it reads the head's weights itself
            budget = new
        else:
            model.lm_head.forward = forward
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        done = generate.decode(model, prompts, max_new_tokens=budget, stop_ids=[0], **filters)
        seconds = time.perf_counter() - begun
        model.lm_head.forward = head
        assert {len(one.token_ids) for one in done} == {new}
        return seconds

    decode([[1] * 8] * 2, 4, 8)  # warm
    for batch, length in zip(arguments.batches, arguments.prompts, strict=True):
        draw = torch.Generator().manual_seed(0)
        prompts = torch.randint(1, shape.vocab, (batch, length), generator=draw).tolist()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        prefill = decode(prompts, 1, BUDGET)
        whole = decode(prompts, NEW, BUDGET)
        step = (whole - prefill) / (NEW - 1)
        line = f"batch {batch:3}, prompts of {length:6}: prefill {prefill:6.2f} s, "
        line += f"{1e3 * step:6.1f} ms a token"
        how = {"rows": batch, "prompts": 0, "prompt": length, "new": 1, "batch": batch}
        how["graphs"] = arguments.backend == "unsloth"
        expected = [1e3 * costs.sampling_seconds(shape, 2, m, **how) for m in machines]
        if expected:
            line += f" [{min(expected):.1f}-{max(expected):.1f}]"
        line += f", {batch / step:6.0f} tokens/s"
        if cuda:
            line += f", {torch.cuda.max_memory_allocated() / costs.GIB:.1f} GiB"
            if arguments.backend == "transformers":
                memory = costs.sampling_memory(shape, 2, run.settings.rollout, length, batch)
                line += f" [{memory / costs.GIB:.1f}]"
        print(line, flush=True)


if __name__ == "__main__":
    main()
