"""Per-token divergences between student and teacher, straight from hidden states.

Paper sections 1 and 2. [tokens, vocabulary] is never built for a whole sequence: rows go through
the output heads in chunks, and because each gradient with respect to the student's logits is closed
and the head is frozen under LoRA, that of the hidden state is formed right there, in the forward
pass: three projections (student, teacher, gradient) instead of five, and memory that does not
depend on the number of tokens. With z the student's logits over the temperature, s = softmax(z), t
the teacher's distribution:

    forward KL    sum t (log t - log s)                      d/dz = s - t
    reverse KL    sum s (log s - log t)                      d/dz = s (g - <s, g>),
                                                             g = log s - log t
    JSD(beta)     beta KL(t||m) + (1-beta) KL(s||m),         d/dz = s (g - <s, g>),
                  m = beta t + (1-beta) s                           g = (1-beta) (log s - log m)
    skew KL       KL(t||m), m as in JSD                      the same, g = -(1-beta) t / m
    entropy-gated forward KL where H(t) > beta log V,        of the one that is taken
                  else reverse KL (V: size of the support)
    cross-entropy -log s[y]                                  d/dz = s - onehot(y)

Skew KL is DistiLLM's alpha-SKL (arXiv 2402.03898), beta its alpha, 0.1 there. The gate follows the
idea of arXiv 2603.07079; the switch and its threshold are ours. Outside the teacher's top k:
nothing (both sides renormalised), or with `tail` one bucket of the summed probability on each side,
whose logit is the logsumexp r of the rest: dr/dz = softmax(rest). As in TRL none is scaled by the
squared temperature (unlike Hinton et al.), and JSD's beta weighs the teacher.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from typing import NamedTuple

import torch

from trdlib.settings import root

CHUNK_ELEMENTS = 2**26  # logits held at a time, of either side: 256 MiB in float32
PART_ELEMENTS = 2**18  # of those at a time on a CPU, where they are many: what its cache holds
GPU_ROWS = 512  # at least so many positions at a time on a GPU: with fewer, matmuls are slower


class Head(NamedTuple):
    """From hidden states to logits, as a causal LM does it: cap tanh(scale (W h + bias) / cap).

    weight (V, H), bias (V,). A bare weight may stand for a head that has nothing else.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, product: torch.Tensor) -> torch.Tensor:
        """The logits (N, V) from W h, float32 at least."""
        z = product if product.dtype == torch.float64 else product.float()
        z = z if self.bias is None else z + self.bias
        z = z if self.scale == 1 else z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def pull_back(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to W h, from the one with respect to the logits."""
        grad = grad if self.cap is None else grad * (1 - (logits / self.cap).square())
        grad = grad if self.scale == 1 else grad * self.scale
        return grad.to(self.weight.dtype)


def as_head(head: Head | torch.Tensor) -> Head:
    return head if isinstance(head, Head) else Head(head)


def token_divergence(
    student_hidden: torch.Tensor, student_head: Head | torch.Tensor, teacher_hidden: torch.Tensor,
    teacher_head: Head | torch.Tensor, *, kind: str, temperature: float = 1.0, beta: float = 0.5,
    top_k: int | None = None, tail: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Divergence of student and teacher at each of N positions, in nats, differentiable once.

    student_hidden (N, H_S), teacher_hidden (N, H_T): last hidden states at the positions that
    predict the tokens. Heads (V, H_S), (V, H_T), or their bare weights: over the same vocabulary,
    without padded rows. kind: a name of DIVERGENCES. top_k: the teacher's k most probable tokens
    alone, both sides renormalised; with tail the others are one more token instead. Returns (N,),
    float32 (float64 for float64 input); the gradient flows to student_hidden alone. ValueError
    where these do not fit together, or the student's head wants a gradient: freeze it.
    """
    student_head, teacher_head = as_head(student_head), as_head(teacher_head)
    weights = student_head.weight, teacher_head.weight
    if kind not in DIVERGENCES:
        raise ValueError(f"no divergence {kind!r}: choose from {', '.join(DIVERGENCES)}")
    if top_k is not None and not 2 <= top_k <= len(weights[1]):
        raise ValueError(f"top_k must be between 2 and {len(weights[1])}, not {top_k}")
    if tail and top_k is None:
        raise ValueError("tail is what lies outside the teacher's top k: set top_k, or drop tail")
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie between 0 and 1, not {beta}")
    if len(student_hidden) != len(teacher_hidden) or len(weights[0]) != len(weights[1]):
        raise ValueError(
            f"student and teacher must agree on positions and vocabulary: hidden states "
            f"{tuple(student_hidden.shape)} and {tuple(teacher_hidden.shape)}, heads "
            f"{tuple(weights[0].shape)} and {tuple(weights[1].shape)}"
        )
    # On a GPU with Triton the passes over the logits become one kernel. On an H200, 8,192 positions
    # of 4,096 by 151,936 in bfloat16 take 54 ms (82 without; the matmuls alone 47) and 0.8 GiB.
    fused = top_k is None and student_hidden.is_cuda and importlib.util.find_spec("triton")
    value_and_grad = _compiled() if fused else _value_and_grad

    def beside(rows: slice):
        return _product(teacher_hidden[rows], weights[1])

    def part(student, teacher):
        how = (kind, temperature, beta, top_k, tail)
        return value_and_grad(student, student_head, teacher, teacher_head, *how)

    return _Chunked.apply(student_hidden, student_head.weight, student_head.bias, beside, part)


def _value_and_grad(
    student, student_head, teacher, teacher_head, kind, temperature, beta, top_k, tail
):
    """Of both sides' W h: the divergence (N,), and its gradient by the student's W h (N, V)."""
    student, teacher = student_head.logits(student), teacher_head.logits(teacher)
    if top_k is None:
        log_s, log_t = (_over(z, temperature).log_softmax(-1) for z in (student, teacher))
        value, grad = DIVERGENCES[kind](log_s, log_t, beta)
    else:
        tail = tail and top_k < teacher.shape[-1]  # else nothing is left for it
        support = teacher.topk(top_k, dim=-1).indices
        log_t, _ = _on_support(teacher, support, temperature, tail)
        log_s, rest = _on_support(student, support, temperature, tail)
        value, kept = DIVERGENCES[kind](log_s, log_t, beta)
        grad = rest * kept[:, -1:] if tail else torch.zeros_like(student)
        grad.scatter_(-1, support, kept[:, :top_k])
    return value, student_head.pull_back(_over(grad, temperature), student)


_compiled = functools.cache(lambda: torch.compile(_value_and_grad))


def _over(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logits if temperature == 1 else logits / temperature  # dividing by 1 costs 3 %


def _on_support(logits, support, temperature, tail):
    """Log-probabilities (N, k), or (N, k + 1) with the tail, and each token's share of the tail."""
    kept = _over(logits.gather(-1, support), temperature)
    if not tail:
        return kept.log_softmax(-1), None
    others = _over(logits, temperature).scatter(-1, support, -torch.inf)
    bucket = others.logsumexp(-1, keepdim=True)  # in logarithms: 1 - (sum of the top k) cancels
    return torch.cat([kept, bucket], -1).log_softmax(-1), others.sub_(bucket).exp_()


def token_cross_entropy(
    student_hidden: torch.Tensor, student_head: Head | torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """-log S(target) at each of N positions, in nats: hidden (N, H), head (V, H), targets (N,)."""
    head = as_head(student_head)

    def part(product, index):
        logits = head.logits(product)
        log_s = logits.log_softmax(-1)
        grad = log_s.exp()
        grad.scatter_add_(-1, index, grad.new_full(index.shape, -1.0))
        return -log_s.gather(-1, index)[:, 0], head.pull_back(grad, logits)

    wanted = targets[:, None].__getitem__  # of some rows
    return _Chunked.apply(student_hidden, head.weight, head.bias, wanted, part)


def _product(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    hidden = hidden.to(weight.dtype)
    if weight.is_cuda and weight.dtype.itemsize == 2:  # not rounded to 16 bits, at the same speed
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden @ weight.T


def _products(hidden: torch.Tensor, weight: torch.Tensor):
    most = max(GPU_ROWS if weight.is_cuda else 1, CHUNK_ELEMENTS // len(weight))
    size = math.ceil(len(hidden) / max(1, math.ceil(len(hidden) / most))) or 1  # all of one size
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        yield rows, _product(hidden[rows], weight)


def logits_in_chunks(hidden: torch.Tensor, head: Head | torch.Tensor):
    """(rows, logits) of hidden states (N, H) and head (V, H), a few rows at a time, float32 at
    least: rows is a slice of the N positions, logits (len(rows), V)."""
    head = as_head(head)
    return ((rows, head.logits(product)) for rows, product in _products(hidden, head.weight))


class _Marked(dict):
    """Those marked here; `mine/tv.py`: what that file of one's own calls `divergence`."""

    def __contains__(self, kind):
        return kind.endswith(".py") or super().__contains__(kind)

    def __missing__(self, kind):
        sys.path.append(str(root()))
        module = importlib.import_module(kind.removesuffix(".py").replace("/", "."))
        return self.setdefault(kind, module.divergence)


DIVERGENCES = _Marked()


def divergence(function):
    """Marks a function as a divergence that params.yaml may name.

    function(log_s, log_t, beta) -> (value, gradient): from log-probabilities (N, V), which it may
    overwrite, the divergence (N,) and its gradient with respect to the student's logits (N, V).
    """
    DIVERGENCES[function.__name__] = function
    return function


@divergence
def forward_kl(log_s, log_t, beta):
    t = log_t.exp()
    return log_t.sub_(log_s).mul_(t).sum(-1), log_s.exp_().sub_(t)


@divergence
def reverse_kl(log_s, log_t, beta):
    s, g = log_s.exp(), log_s - log_t
    value = (s * g).sum(-1)
    return value, s * (g - value[:, None])


@divergence
def jsd(log_s, log_t, beta):
    # In logarithms: beta t + (1 - beta) s may underflow where t or s alone does not.
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
    s, g = log_s.exp(), log_s - log_m
    to_student = (s * g).sum(-1)
    value = beta * (log_t.exp() * (log_t - log_m)).sum(-1) + (1 - beta) * to_student
    return value, (1 - beta) * s * (g - to_student[:, None])


@divergence
def skew_kl(log_s, log_t, beta):
    log_m = torch.logaddexp(log_t + math.log(beta), log_s + math.log1p(-beta))
    value = (log_t.exp() * (log_t - log_m)).sum(-1)
    s, g = log_s.exp(), (beta - 1) * (log_t - log_m).exp()
    return value, s * (g - (s * g).sum(-1, keepdim=True))


@divergence
def entropy_gated(log_s, log_t, beta):
    s, t, g = log_s.exp(), log_t.exp(), log_s - log_t
    unsure = -(t * log_t).sum(-1) > beta * math.log(t.shape[-1])
    reverse = (s * g).sum(-1)
    grad = torch.where(unsure[:, None], s - t, s * (g - reverse[:, None]))
    return torch.where(unsure, -(t * g).sum(-1), reverse), grad


class _Chunked(torch.autograd.Function):
    """Values (N,) chunk by chunk; the gradient of the hidden states is made on the way.

    part(W h, what `beside` gives for these rows) -> (value, gradient by W h). On a CPU a few rows
    at a time: they stay in its cache, and the gradient takes their place.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, beside, part):
        if any(ctx.needs_input_grad[1:3]):
            raise ValueError("the student's output head must be frozen: no gradient is formed")
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        values = hidden.new_empty(len(hidden), dtype=precise)
        grads = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows, product in _products(hidden, weight):
            other = beside(rows)
            whole = weight.is_cuda or product.numel() <= 4 * PART_ELEMENTS
            size = len(product) if whole else max(1, PART_ELEMENTS // len(weight))
            for start in range(0, len(product), size):
                here = slice(start, start + size)
                values[rows][here], grad = part(product[here], other[here])
                if whole:
                    product = grad
                else:
                    product[here] = grad
            del other, grad  # before the next ones are made: they are most of the memory
            if grads is not None:
                grads[rows] = (product @ weight).to(grads.dtype)
            del product
        ctx.save_for_backward(grads)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (grads,) = ctx.saved_tensors
        return (upstream[:, None] * grads).to(grads.dtype), None, None, None, None


_SHARED = (Head, as_head, _product, _products, _Chunked, token_cross_entropy)


def code(kind: str) -> tuple:
    """What a method with this divergence, or cross_entropy, may run of this file, for its
    fingerprint: not how many rows a chunk has, nor what compiles it, which is no mathematics."""
    if kind == "cross_entropy":
        return _SHARED
    used = DIVERGENCES[kind]  # of a file of one's own, with all that it may call there
    own = sys.modules[used.__module__] if kind.endswith(".py") else used
    return (*_SHARED, token_divergence, _value_and_grad, _on_support, _over, own)
