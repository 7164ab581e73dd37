"""Values and gradients against float64 autograd on full logits, and against TRL."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trdlib import divergence
from trdlib.divergence import token_cross_entropy, token_divergence

KINDS = ["forward_kl", "reverse_kl", "jsd"]


def problem(n=7, vocabulary=23, student=5, teacher=6, seed=0, dtype=torch.float64, scale=2.0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return scale * torch.randn(*shape, generator=g, dtype=dtype)

    return draw(n, student), draw(vocabulary, student), draw(n, teacher), draw(vocabulary, teacher)


def reference(hs, ws, ht, wt, kind, temperature=1.0, beta=0.5, top_k=None):
    """The textbook formula on full logits, differentiated by autograd."""
    zs, zt = hs @ ws.T, ht @ wt.T
    if top_k:
        support = zt.topk(top_k).indices
        zs, zt = zs.gather(-1, support), zt.gather(-1, support)
    s, t = (zs / temperature).softmax(-1), (zt / temperature).softmax(-1)

    def kl(p, q):
        return (p * (p.log() - q.log())).sum(-1)

    if kind == "forward_kl":
        return kl(t, s)
    if kind == "reverse_kl":
        return kl(s, t)
    m = beta * t + (1 - beta) * s
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [None, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_value_and_gradient_equal_autograd(kind, top_k, temperature, beta):
    hs, ws, ht, wt = problem()
    weights = torch.linspace(-1, 2, len(hs), dtype=hs.dtype)  # an upstream gradient that varies
    ours, theirs = hs.clone().requires_grad_(), hs.clone().requires_grad_()
    options = {"temperature": temperature, "beta": beta, "top_k": top_k}
    value = token_divergence(ours, ws, ht, wt, kind=kind, **options)
    expected = reference(theirs, ws, ht, wt, kind, **options)
    torch.testing.assert_close(value, expected)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("kind", list(divergence.DIVERGENCES))  # whatever is marked as one
def test_gradcheck(kind):
    hs, ws, ht, wt = problem(n=3, vocabulary=8)
    assert torch.autograd.gradcheck(
        lambda h: token_divergence(h, ws, ht, wt, kind=kind), hs.requires_grad_()
    )


def test_agrees_with_trl():
    """TRL's generalized_jsd_loss: beta 0 is the forward KL, 1 the reverse, between them JSD."""
    from trl.experimental.gkd import GKDTrainer

    hs, ws, ht, wt = problem(dtype=torch.float32)
    for kind, beta in (("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.3)):
        ours, theirs = hs.clone().requires_grad_(), hs.clone().requires_grad_()
        value = token_divergence(
            ours, ws, ht, wt, kind=kind, temperature=1.5, beta=beta if kind == "jsd" else 0.5
        ).sum()
        expected = GKDTrainer.generalized_jsd_loss(
            (theirs @ ws.T)[None], (ht @ wt.T)[None], beta=beta, temperature=1.5, reduction="sum"
        )
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
        value.backward()
        expected.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_cross_entropy_equals_torch():
    hs, ws, *_ = problem()
    targets = torch.arange(len(hs)) * 3
    ours, theirs = hs.clone().requires_grad_(), hs.clone().requires_grad_()
    value = token_cross_entropy(ours, ws, targets)
    expected = torch.nn.functional.cross_entropy(theirs @ ws.T, targets, reduction="none")
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    top_k=st.sampled_from([None, 2, 7]),
    scale=st.floats(0.01, 30),
)
@settings(max_examples=60, deadline=None)
def test_properties(seed, kind, top_k, scale):
    hs, ws, ht, wt = problem(seed=seed, scale=scale)
    value = token_divergence(hs, ws, ht, wt, kind=kind, top_k=top_k)
    assert torch.isfinite(value).all()
    assert (value > -1e-9).all()
    # zero, with zero gradient, for identical distributions
    same = hs.clone().requires_grad_()
    zero = token_divergence(same, ws, hs, ws, kind=kind, top_k=top_k)
    zero.sum().backward()
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-9)
    torch.testing.assert_close(same.grad, torch.zeros_like(same), rtol=0, atol=1e-8)
    # the names of the tokens do not matter
    order = torch.randperm(len(ws), generator=torch.Generator().manual_seed(seed))
    permuted = token_divergence(hs, ws[order], ht, wt[order], kind=kind, top_k=top_k)
    torch.testing.assert_close(permuted, value)


@pytest.mark.parametrize("kind", KINDS)
def test_underflow_gives_no_nan(kind):
    ws = wt = torch.eye(4)
    hs = torch.tensor([[400.0, 0, 0, 0]], requires_grad=True)
    value = token_divergence(hs, ws, torch.tensor([[0.0, 400, 0, 0]]), wt, kind=kind)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(hs.grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_matter(kind, monkeypatch):
    hs, ws, ht, wt = problem(n=11)
    whole, parts = hs.clone().requires_grad_(), hs.clone().requires_grad_()
    token_divergence(whole, ws, ht, wt, kind=kind).sum().backward()
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 3 * len(ws))
    token_divergence(parts, ws, ht, wt, kind=kind).sum().backward()
    torch.testing.assert_close(whole.grad, parts.grad)


def test_clip_has_no_gradient_above_the_ceiling():
    hs, ws, ht, wt = problem()
    hs.requires_grad_()
    value = token_divergence(hs, ws, ht, wt, kind="forward_kl")
    ceiling = float(value.detach().median())
    value.clamp(max=ceiling).sum().backward()
    above = value.detach() > ceiling
    assert (hs.grad[above] == 0).all()
    assert (hs.grad[~above].abs().sum(-1) > 0).all()


def test_bfloat16_keeps_the_dtype_of_the_gradient():
    hs, ws, ht, wt = (x.bfloat16() for x in problem(scale=0.5))
    hs.requires_grad_()
    value = token_divergence(hs, ws, ht, wt, kind="forward_kl")
    value.sum().backward()
    assert value.dtype == torch.float32
    assert hs.grad.dtype == torch.bfloat16
    exact = reference(*(x.detach().double() for x in (hs, ws, ht, wt)), kind="forward_kl")
    torch.testing.assert_close(value.double(), exact, rtol=0.05, atol=0.05)


def test_bad_input_is_named():
    hs, ws, ht, wt = problem()
    for options, word in (
        ({"kind": "nope"}, "choose from"),
        ({"kind": "jsd", "beta": 1.0}, "beta"),
        ({"kind": "forward_kl", "top_k": 1}, "top_k"),
        ({"kind": "forward_kl", "top_k": 99}, "top_k"),
    ):
        with pytest.raises(ValueError, match=word):
            token_divergence(hs, ws, ht, wt, **options)
    with pytest.raises(ValueError, match="agree on positions"):
        token_divergence(hs[:-1], ws, ht, wt, kind="forward_kl")
    with pytest.raises(ValueError, match="frozen"):
        token_divergence(hs, ws.requires_grad_(), ht, wt, kind="forward_kl")
