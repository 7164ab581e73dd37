"""`decode`: prompts in, sampled token ids out, by a model in this process.

Our loop around the stock `forward` of a transformers model is faster than `model.generate` on a
CPU: samples of one prompt share its prefill; the key-value cache is a buffer, read where it is;
finished rows leave the batch; a row has random numbers of its own, so any may share a batch.
"""

import math
from typing import NamedTuple

import torch


class Completion(NamedTuple):
    """One sampled response. token_ids keeps the end-of-turn token of a finished response."""

    token_ids: list[int]
    finished: bool


def fixed_cache(rows: int, capacity: int):
    """A cache of which each layer writes into two buffers of so many rows and positions."""
    from transformers.cache_utils import Cache, DynamicLayer

    class FixedLayer(DynamicLayer):
        buffers = ()

        def update(self, key_states, value_states, *args, **kwargs):
            states, start = (key_states, value_states), self.get_seq_length()
            count, heads, new, _ = key_states.shape
            if not self.buffers:
                self.lazy_initialization(*states)
                self.buffers = [s.new_empty(rows, heads, capacity, s.shape[3]) for s in states]
            for buffer, state in zip(self.buffers, states, strict=True):
                buffer[:count, :, start : start + new] = state
            self.keys, self.values = (b[:count, :, : start + new] for b in self.buffers)
            return self.keys, self.values

        def batch_select_indices(self, indices):  # which may repeat a row; or a mask
            chosen = self.keys[indices], self.values[indices]
            self.keys = self.keys[:, :, :0]  # the length is 0: they go to the front
            self.update(*chosen)

    return Cache(layer_class_to_replicate=FixedLayer)


def _attention(module, query, key, value, mask, *, scaling=None, position_bias=None, **how):
    """transformers' "sdpa", faster at one new token: the query heads that share keys and values
    are rows of one matrix. (Under a mask it would copy keys and values for each of them.)"""
    rows, heads, new, size = query.shape
    plain = scaling and position_bias is None and (mask is None or mask.dtype == torch.bool)
    if new > 1 or not plain:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        how |= {"scaling": scaling, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, mask, **how)
    scores = (query * scaling).reshape(rows, key.shape[1], -1, size) @ key.transpose(2, 3)
    if mask is not None:  # True where a token is seen
        scores.masked_fill_(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).view(rows, 1, heads, -1), None


def _attend(model) -> None:
    """Let a model on a CPU use `_attention`; Unsloth has its own."""
    import transformers as t
    from transformers.masking_utils import sdpa_mask

    stock = not model.forward.__module__.startswith("unsloth")
    if stock and model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        t.AttentionInterface.register("trd", _attention)
        t.AttentionMaskInterface.register("trd", sdpa_mask)
        model.set_attn_implementation("trd")


def warpers(temperature: float, top_p: float = 1.0, top_k: int = 0):
    """The sampling filters of transformers, in its own order: temperature, top-k, top-p."""
    import transformers as t

    chain = [t.TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    chain += [t.TopKLogitsWarper(top_k)] if top_k else []
    chain += [t.TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    return t.LogitsProcessorList(chain)


@torch.inference_mode()
def decode(
    model, prompts: list[list[int]], *, max_new_tokens: int, stop_ids: list[int],
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seeds: list[int] | None = None,
) -> list[Completion]:  # fmt: skip
    """Sample one response for each prompt, all in one batch; temperature 0 is greedy.

    seeds: of each row's random numbers; None: 0, 1, 2 ... On a GPU, Unsloth's forward is left to
    `model.generate`, which replays its steps as CUDA graphs: there the first seed is that of all.
    """
    filters = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature else {}
    graphs = model.device.type == "cuda" and model.forward.__module__.startswith("unsloth")
    run, seeds = _generate if graphs else _loop, seeds or list(range(len(prompts)))
    found = run(model.eval(), prompts, max_new_tokens, stop_ids, filters, seeds).tolist()
    ends = [next((i for i, t in enumerate(row, 1) if t in stop_ids), None) for row in found]
    return [Completion(row[:end], end is not None) for row, end in zip(found, ends, strict=True)]


def _padded(prompts, device) -> tuple[torch.Tensor, torch.Tensor]:
    """-> the prompts, padded on the left (B, T); where each begins (B, 1)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    return ids, torch.tensor([[longest - len(p)] for p in prompts], device=device)


def _draws(seeds: list[int], count: int, device) -> torch.Tensor:
    """Uniform random numbers (B, count), below 1 by a float32's precision at least."""
    stream = torch.Generator()
    rows = [torch.rand(count, generator=stream.manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def _loop(model, prompts, max_new_tokens, stop_ids, filters: dict, seeds) -> torch.Tensor:
    """-> the tokens (B, max_new_tokens); what is behind the first stop token of a row is none."""
    _attend(model)
    device, rows = model.device, len(prompts)
    # Many samples of one prompt share its prefill: each distinct prompt goes in once.
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    chosen = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)
    ids, start = _padded(distinct, device)
    longest, padded = ids.shape[1], bool(start.any())
    warp, stops = warpers(**filters) if filters else None, torch.tensor(stop_ids, device=device)
    draws = _draws(seeds, max_new_tokens, device) if filters else None
    cache = fixed_cache(rows, longest + max_new_tokens)
    out = torch.zeros(rows, max_new_tokens, dtype=torch.long, device=device)
    active = torch.arange(rows, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)

    for step in range(max_new_tokens):
        how = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        if padded:
            at = torch.arange(longest + step, device=device)
            how["attention_mask"] = (at >= start).long()
            how["position_ids"] = (at[-ids.shape[1] :] - start).clamp(min=0)
        logits = model(input_ids=ids, **how).logits[:, -1].float()
        if step == 0:
            logits, start = logits[chosen], start[chosen]
            cache.batch_select_indices(chosen)
        if warp is None:
            token = logits.argmax(-1)
        else:
            # The inverse of the distribution function, in doubles: no token of probability 0.
            below = warp(None, logits).softmax(-1).double().cumsum(-1)
            drawn = draws[active, step, None] * below[:, -1:]
            token = torch.searchsorted(below, drawn, right=True)[:, 0]
        out[active, step] = token
        alive &= ~torch.isin(token, stops)
        count, ids = int(alive.sum()), token[:, None]
        if count == 0:
            break
        # Moving the cache has a price, so finished rows leave once they are an eighth of the batch.
        if count <= len(active) * 7 / 8:
            cache.batch_select_indices(alive)
            ids, start, active, alive = (one[alive] for one in (ids, start, active, alive))
    return out


def _generate(model, prompts, max_new_tokens, stop_ids, filters: dict, seeds) -> torch.Tensor:
    """The same by `model.generate`; what the model's folder says of sampling is overruled."""
    from transformers import GenerationConfig

    how = {"do_sample": bool(filters), "eos_token_id": stop_ids, "pad_token_id": stop_ids[0]}
    usual, (ids, start) = model.generation_config, _padded(prompts, model.device)
    kept = (torch.arange(ids.shape[1], device=model.device) >= start).long()
    model.generation_config = GenerationConfig(**how, **filters)
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seeds[0])
            out = model.generate(input_ids=ids, attention_mask=kept, max_new_tokens=max_new_tokens)
    finally:
        model.generation_config = usual
    return out[:, ids.shape[1] :]


def batches(prompts: list[list[int]], size: int) -> list[list[int]]:
    """Indices of the prompts in even batches of at most `size`, those of like lengths together."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    even = math.ceil(len(order) / math.ceil(len(order) / size)) if order else size
    return [order[start : start + even] for start in range(0, len(order), even)]


# What shapes samples here: their fingerprints name this code.
CODE = (
    fixed_cache, _attention, _attend, warpers, decode, _padded, _draws, _loop, _generate, batches
)  # fmt: skip
