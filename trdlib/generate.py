"""`sample`: prompts in, sampled token ids out; one interface for every engine, resumable.

`decode` is a loop of our own around the stock `forward` of a transformers model. It differs from
`model.generate` in three ways that make small models on a CPU two to three times faster: prompts of
one length share a batch, so no padding and no mask, and samples of one prompt share its prefill;
the key-value cache is one buffer of fixed size; finished rows leave the batch.
"""

import json
import random
from pathlib import Path
from typing import NamedTuple

import torch

from trdlib import jobs, store
from trdlib.settings import Sampling


class Completion(NamedTuple):
    """One sampled response. token_ids keeps the end-of-turn token of a finished response."""

    token_ids: list[int]
    finished: bool


def fixed_cache(config, capacity: int):
    """A DynamicCache whose layers write into one buffer of `capacity` positions.

    `select` drops finished rows, and repeats the prefilled row of a prompt for its samples.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class FixedLayer(DynamicLayer):
        def __init__(self):
            super().__init__()
            self.length = 0

        def update(self, key_states, value_states, *args, **kwargs):
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                rows, heads, _, size = key_states.shape
                shape = (rows, heads, capacity, size)
                self.key_buffer = key_states.new_empty(shape)
                self.value_buffer = value_states.new_empty(shape)
            end = self.length + key_states.shape[-2]
            self.key_buffer[:, :, self.length : end] = key_states
            self.value_buffer[:, :, self.length : end] = value_states
            self.length = end
            self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
            return self.keys, self.values

        def select(self, rows):
            """Keep these rows (a mask, or indices, which may repeat a row)."""
            for name in ("key_buffer", "value_buffer"):
                chosen = getattr(self, name)[rows, :, : self.length]
                if len(chosen) > len(getattr(self, name)):
                    shape = (*chosen.shape[:2], capacity, chosen.shape[-1])
                    setattr(self, name, chosen.new_empty(shape))
                else:  # the memory is there: chosen rows move to the front
                    setattr(self, name, getattr(self, name)[: len(chosen)])
                getattr(self, name)[:, :, : self.length] = chosen
            self.keys = self.key_buffer[:, :, : self.length]
            self.values = self.value_buffer[:, :, : self.length]

    cache = DynamicCache(config=config)
    cache.layers = [FixedLayer() for _ in range(config.num_hidden_layers)]
    return cache


def warpers(temperature: float, top_p: float = 1.0, top_k: int = 0):
    """The sampling filters of transformers, in its own order: temperature, top-k, top-p."""
    import transformers as t

    chain = t.LogitsProcessorList()
    if temperature != 1.0:
        chain.append(t.TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(t.TopKLogitsWarper(top_k))
    if top_p < 1.0:
        chain.append(t.TopPLogitsWarper(top_p))
    return chain


@torch.inference_mode()
def decode(
    model,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: list[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> list[Completion]:
    """Sample one response for each prompt, all in one batch; temperature 0 is greedy.

    Prompts of different lengths are padded on the left, with mask and positions to match. The
    result depends on the whole batch (one stream of random numbers serves it), not on timing.
    On a GPU, a model that has Unsloth's forward is decoded by `model.generate`: that forward keeps
    its keys and values elsewhere, and replays its steps as CUDA graphs.
    """
    if model.device.type == "cuda" and model.forward.__module__.startswith("unsloth"):
        how = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
        return _generate(model, prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, **how)
    device = model.device
    model.eval()
    # Many samples of one prompt share its prefill: each distinct prompt goes in once.
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    row_of = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)
    longest = max(map(len, distinct))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in distinct], device=device)
    mask = positions = None
    padded = any(len(p) < longest for p in distinct)
    if padded:
        start = torch.tensor([longest - len(p) for p in distinct], device=device)[:, None]
        mask = (torch.arange(longest + max_new_tokens, device=device) >= start).long()
        positions = (torch.arange(longest, device=device) - start).clamp(min=0)

    generator = torch.Generator(device=device).manual_seed(seed)
    filters = warpers(temperature, top_p, top_k) if temperature else None
    stops = torch.tensor(stop_ids, device=device)
    cache = fixed_cache(model.config, longest + max_new_tokens)
    out = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
    length = torch.full((len(prompts),), max_new_tokens, device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    active = torch.arange(len(prompts), device=device)

    for step in range(max_new_tokens):
        seen = None if mask is None else mask[:, : longest + step]
        how = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        asked = {"input_ids": ids, "attention_mask": seen, "position_ids": positions}
        logits = model(**asked, **how).logits[:, -1].float()
        if step == 0:
            logits = logits[row_of]
            mask, positions = (None, None) if not padded else (mask[row_of], positions[row_of])
            for layer in cache.layers:
                layer.select(row_of)
        if filters is None:
            token = logits.argmax(-1)
        else:
            probabilities = filters(None, logits).softmax(-1)
            token = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        out[active, step] = token
        ends = torch.isin(token, stops) & ~finished[active]
        finished[active[ends]] = True
        length[active[ends]] = step + 1
        alive = ~finished[active]
        count = int(alive.sum())
        if count == 0:
            break
        ids = token[:, None]
        if padded:
            positions = positions[:, -1:] + 1
        # Moving the cache has a price, so finished rows leave once they are an eighth of the batch.
        if count <= len(active) * 7 / 8:
            active, ids = active[alive], ids[alive]
            mask, positions = (None, None) if not padded else (mask[alive], positions[alive])
            for layer in cache.layers:
                layer.select(alive)

    tokens = out.tolist()
    rows = zip(tokens, length.tolist(), finished.tolist(), strict=True)
    return [Completion(row[:n], end) for row, n, end in rows]


def _generate(
    model, prompts, *, max_new_tokens, stop_ids, temperature, top_p, top_k, seed
) -> list[Completion]:
    """`decode` by `model.generate`; what the model's folder says of sampling is overruled."""
    from transformers import GenerationConfig

    filters = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature else {}
    longest, usual = max(map(len, prompts)), model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=bool(temperature), eos_token_id=stop_ids, pad_token_id=stop_ids[0], **filters
    )
    kept = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    ids = torch.tensor([[stop_ids[0]] * (longest - len(p)) + list(p) for p in prompts])
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=kept.to(model.device),
                max_new_tokens=max_new_tokens,
            )
    finally:
        model.generation_config = usual
    done = []
    for row in out[:, longest:].tolist():
        end = next((i for i, token in enumerate(row) if token in stop_ids), None)
        done.append(Completion(row if end is None else row[: end + 1], end is not None))
    return done


def batches(prompts: list[list[int]], size: int) -> list[list[int]]:
    """Indices of the prompts in batches of at most `size`, prompts of one length together.

    A length with few prompts would make a tiny batch, so a batch takes in its longer neighbours
    (and is padded) until it is at least an eighth full.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    result: list[list[int]] = []
    for i in order:
        last = result[-1] if result else []
        same_length = last and len(prompts[last[-1]]) == len(prompts[i])
        if last and len(last) < size and (same_length or len(last) < size // 8):
            last.append(i)
        else:
            result.append([i])
    return result


def sample(
    complete,
    prompts: list[list[int]],
    sampling: Sampling,
    *,
    parts: Path,
    seed: int | tuple[int, ...] = 0,
    label: str = "sampling",
) -> list[list[Completion]]:
    """`sampling.samples` responses for each prompt, in the order of the prompts.

    complete(prompts, *, max_new_tokens, temperature, top_p, top_k, seed): the engine; a Completion
    for each prompt of a batch.
    Each batch is written to the folder `parts` as soon as it is there, and read if it is there
    already, so that a killed call goes on where it was, with the same result. The caller names the
    folder by a fingerprint, and removes it when it has put the result into its own file.
    """
    rows = [prompt for prompt in prompts for _ in range(sampling.samples)]
    results: list[Completion | None] = [None] * len(rows)
    todo = batches(rows, sampling.batch_size)
    for number, indices in enumerate(jobs.progress(label, todo)):
        path = parts / f"{number:05d}.json"
        if path.exists():
            done = [Completion(*pair) for pair in store.read_json(path)]
        else:
            with jobs.model_compute():
                done = complete(
                    [rows[i] for i in indices],
                    max_new_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    seed=random.Random(f"{sampling.seed}/{seed}/{number}").getrandbits(63),
                )
            store.write_text(path, json.dumps(done))
        for i, completion in zip(indices, done, strict=True):
            results[i] = completion
    k = sampling.samples
    return [results[i : i + k] for i in range(0, len(results), k)]


# What shapes samples here: their fingerprints name this code.
CODE = (fixed_cache, warpers, decode, _generate, batches, sample)
