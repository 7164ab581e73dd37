"""Our decode loop at the real shapes, random weights: tokens/s and peak memory.

    python tests/bench_sampling.py --model Qwen/Qwen3-8B --batches 16 --prompts 2048

Each case is a batch of prompts of one length, its cache as long as the paper's budget of 16,384
new tokens, and stops after 64 tokens (`--backend unsloth`: a cache for 64).
"""

import time

import torch
from bench_training import load, options

from trdlib import generate
from trdlib.ops import plan
from trdlib.run import get_run

BUDGET, NEW = 16_384, 64


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[4])
    parser.add_argument("--prompts", type=int, nargs="+", default=[64], help="a length a batch")
    asked = parser.parse_args()
    if asked.backend == "unsloth":
        import unsloth  # noqa: F401 (before a model is made: it patches transformers)
    run, cuda = get_run("qwen3-8b", "opsd", "trd"), torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    model = load(asked.model, run, dtype, asked.backend).eval()
    filters = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    print(f"{asked.model}, {asked.backend}, torch {torch.__version__}, {model.device}")

    def decode(prompts, new: int, budget: int):
        """Seconds for `new` tokens a row: the stop token is out of reach until it is forced."""
        count = [0]
        head = model.lm_head.forward

        def forward(hidden):
            logits = head(hidden)
            count[0] += 1
            if count[0] <= new:
                logits[..., 0] = 1e4 if count[0] == new else -1e4
            return logits

        if asked.backend == "unsloth":  # it reads the head's weights itself
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
    for batch, length in zip(asked.batches, asked.prompts, strict=True):
        draw = torch.Generator().manual_seed(0)
        vocabulary = model.config.vocab_size
        prompts = torch.randint(1, vocabulary, (batch, length), generator=draw).tolist()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        prefill = decode(prompts, 1, BUDGET)
        step = (decode(prompts, NEW, BUDGET) - prefill) / (NEW - 1)
        line = f"batch {batch:3}, prompts of {length:6}: prefill {prefill:6.2f} s, "
        line += f"{1e3 * step:6.1f} ms a token, {batch / step:6.0f} tokens/s"
        if cuda:
            line += f", {torch.cuda.max_memory_allocated() / plan.GIB:.1f} GiB"
        print(line, flush=True)


if __name__ == "__main__":
    main()
