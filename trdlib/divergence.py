"""Per-token divergences between student and teacher, straight from hidden states.

Paper sections 1 and 2: forward KL(T||S), reverse KL(S||T), generalised JSD; teacher top-k; the
cross-entropy of the SFT rows. [tokens, vocabulary] is never built for a whole sequence: the rows
go through the output heads in chunks, and because each gradient with respect to the student's
logits is closed-form and the head is frozen under LoRA, the gradient of the hidden state is formed
right there, in the forward pass: three projections (student, teacher, gradient) instead of the five
that recomputing the logits would take, and memory that does not depend on the number of tokens.

With z the student's logits over the temperature tau, s = softmax(z), t the teacher's distribution:

    forward KL    sum t (log t - log s)                      d/dz = s - t
    reverse KL    sum s (log s - log t)                      d/dz = s (g - <s, g>),
                                                             g = log s - log t
    JSD(beta)     beta KL(t||m) + (1-beta) KL(s||m),         d/dz = s (g - <s, g>),
                  m = beta t + (1-beta) s                           g = (1-beta) (log s - log m)
    cross-entropy -log s[y]                                  d/dz = s - onehot(y)

Deviations from the literature: none is scaled by tau squared (as in TRL, unlike in Hinton et al.);
JSD follows TRL's convention, in which beta weighs the teacher.
"""

from __future__ import annotations

import math

import torch

CHUNK_ELEMENTS = 2**24  # logits held at a time: 64 MiB in float32


def token_divergence(
    student_hidden: torch.Tensor,
    student_head: torch.Tensor,
    teacher_hidden: torch.Tensor,
    teacher_head: torch.Tensor,
    *,
    kind: str,
    temperature: float = 1.0,
    beta: float = 0.5,
    top_k: int | None = None,
) -> torch.Tensor:
    """Divergence of student and teacher at each of N positions, in nats, differentiable once.

    student_hidden (N, H_S), teacher_hidden (N, H_T): last hidden states at the positions that
    predict the tokens. student_head (V, H_S), teacher_head (V, H_T): output head weights over the
    same vocabulary, without padded rows. kind: a name of DIVERGENCES. top_k: keep the teacher's k
    most probable tokens and renormalise both sides on them. Returns (N,) in float32 (float64 for
    float64 input); the gradient flows to student_hidden alone.
    Raises ValueError on an unknown kind, top_k < 2, beta outside (0, 1), shapes that do not agree,
    or a student head that wants a gradient (there is none for it: freeze it).
    """
    if kind not in DIVERGENCES:
        raise ValueError(f"no divergence {kind!r}: choose from {', '.join(DIVERGENCES)}")
    if top_k is not None and not 2 <= top_k <= len(teacher_head):
        raise ValueError(f"top_k must be between 2 and {len(teacher_head)}, not {top_k}")
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie between 0 and 1, not {beta}")
    if len(student_hidden) != len(teacher_hidden) or len(student_head) != len(teacher_head):
        raise ValueError(
            f"student and teacher must agree on positions and vocabulary: hidden states "
            f"{tuple(student_hidden.shape)} and {tuple(teacher_hidden.shape)}, heads "
            f"{tuple(student_head.shape)} and {tuple(teacher_head.shape)}"
        )

    def block(rows: slice):
        with torch.no_grad():
            teacher = _logits(teacher_hidden[rows], teacher_head)
        support = None if top_k is None else teacher.topk(top_k, dim=-1).indices
        if support is not None:
            teacher = teacher.gather(-1, support)
        log_t = (teacher / temperature).log_softmax(-1)

        def value_and_grad(student: torch.Tensor):
            chosen = student if support is None else student.gather(-1, support)
            log_s = (chosen / temperature).log_softmax(-1)
            value, grad = DIVERGENCES[kind](log_s, log_t, beta)
            if support is not None:
                grad = torch.zeros_like(student).scatter_(-1, support, grad)
            return value, grad.div_(temperature)

        return value_and_grad

    return _Chunked.apply(student_hidden, student_head, block)


def token_cross_entropy(
    student_hidden: torch.Tensor, student_head: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """-log S(target) at each of N positions, in nats: hidden (N, H), head (V, H), targets (N,)."""

    def block(rows: slice):
        index = targets[rows, None]

        def value_and_grad(student: torch.Tensor):
            log_s = student.log_softmax(-1)
            grad = log_s.exp()
            grad.scatter_add_(-1, index, grad.new_full(index.shape, -1.0))
            return -log_s.gather(-1, index)[:, 0], grad

        return value_and_grad

    return _Chunked.apply(student_hidden, student_head, block)


def _logits(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    logits = hidden.to(head.dtype) @ head.T
    return logits if logits.dtype == torch.float64 else logits.float()


def logits_in_chunks(hidden: torch.Tensor, head: torch.Tensor):
    """(rows, logits) of hidden states (N, H) and head (V, H), a few rows at a time, float32 at
    least: rows is a slice of the N positions, logits (len(rows), V)."""
    size = max(1, CHUNK_ELEMENTS // len(head))
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        yield rows, _logits(hidden[rows], head)


DIVERGENCES = {}


def divergence(function):
    """Marks a function as a divergence that params.yaml may name.

    function(log_s, log_t, beta) -> (value, gradient): log-probabilities of student and teacher,
    (N, V); the divergence, (N,), and its gradient with respect to the student's logits, (N, V).
    A test compares the gradient of every marked function with autograd's.
    """
    DIVERGENCES[function.__name__] = function
    return function


@divergence
def forward_kl(log_s, log_t, beta):
    t = log_t.exp()
    return (t * (log_t - log_s)).sum(-1), log_s.exp() - t


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


class _Chunked(torch.autograd.Function):
    """Values (N,) chunk by chunk; the gradient of the hidden states is made on the way."""

    @staticmethod
    def forward(ctx, hidden, head, block):
        if ctx.needs_input_grad[1]:
            raise ValueError("the student's output head must be frozen: no gradient is formed")
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        values = hidden.new_empty(len(hidden), dtype=precise)
        grads = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows, logits in logits_in_chunks(hidden, head):
            value, grad = block(rows)(logits)
            values[rows] = value
            if grads is not None:
                grads[rows] = (grad.to(head.dtype) @ head).to(grads.dtype)
        ctx.save_for_backward(grads)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (grads,) = ctx.saved_tensors
        return (upstream[:, None] * grads).to(grads.dtype), None, None
