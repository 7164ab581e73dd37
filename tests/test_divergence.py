"""Values and gradients against float64 autograd on full logits, and against TRL."""

import ast
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trdlib import distill, divergence
from trdlib.divergence import Head, token_cross_entropy, token_divergence
from trdlib.run import get_run

KINDS = list(divergence.DIVERGENCES)  # whatever is marked as one


def problem(n=7, vocabulary=23, student=5, teacher=6, seed=0, dtype=torch.float64, scale=2.0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return scale * torch.randn(*shape, generator=g, dtype=dtype)

    return draw(n, student), draw(vocabulary, student), draw(n, teacher), draw(vocabulary, teacher)


def reference(hs, ws, ht, wt, kind, temperature=1.0, beta=0.5, top_k=None, tail=False):
    """The textbook formula on full logits, differentiated by autograd. ws, wt: weights, or
    functions that make logits of hidden states."""
    zs, zt = (w(h) if callable(w) else h @ w.T for h, w in ((hs, ws), (ht, wt)))
    s, t = (zs / temperature).softmax(-1), (zt / temperature).softmax(-1)
    if top_k:
        support = zt.topk(top_k).indices
        kept = [p.gather(-1, support) for p in (s, t)]
        if tail:
            others = (p.scatter(-1, support, 0).sum(-1, keepdim=True) for p in (s, t))
            s, t = (torch.cat(both, -1) for both in zip(kept, others, strict=True))
        else:
            s, t = (p / p.sum(-1, keepdim=True) for p in kept)

    def kl(p, q):
        return (p * (p.log() - q.log())).sum(-1)

    m = beta * t + (1 - beta) * s
    return {
        "forward_kl": lambda: kl(t, s),
        "reverse_kl": lambda: kl(s, t),
        "jsd": lambda: beta * kl(t, m) + (1 - beta) * kl(s, m),
        "skew_kl": lambda: kl(t, m),
        "entropy_gated": lambda: torch.where(
            -(t * t.log()).sum(-1) > beta * math.log(t.shape[-1]), kl(t, s), kl(s, t)
        ),
    }[kind]()


def check(kind, ours, theirs, data=None, **options):
    """ours, theirs: student's and teacher's heads, for us and for the reference."""
    hs, _, ht, _ = data or problem()
    weights = torch.linspace(-1, 2, len(hs), dtype=hs.dtype)  # an upstream gradient that varies
    mine, other = hs.clone().requires_grad_(), hs.clone().requires_grad_()
    value = token_divergence(mine, ours[0], ht, ours[1], kind=kind, **options)
    expected = reference(other, theirs[0], ht, theirs[1], kind, **options)
    torch.testing.assert_close(value, expected)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)
    return value.detach()


SUPPORTS = [{}, {"top_k": 2}, {"top_k": 5}, {"top_k": 5, "tail": True}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_value_and_gradient_equal_autograd(kind, support, temperature, beta):
    _, ws, _, wt = problem()
    options = {"temperature": temperature, "beta": beta, **support}
    check(kind, (ws, wt), (ws, wt), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("cap", [None, 4.0])
def test_bias_scale_and_cap_of_a_head(kind, support, scale, cap):
    hs, ws, _, wt = data = problem()
    (bias, *_), heads, real = problem(n=3, student=len(ws), seed=1), [], []

    def logits(weight, bias, scale, cap):
        def full(hidden):
            z = (hidden @ weight.T + bias) * scale
            return z if cap is None else cap * torch.tanh(z / cap)

        return full

    for weight, shift, cap_ in ((ws, bias[0], cap), (wt, bias[1], 9.0)):
        heads.append(Head(weight, shift, scale, cap_))
        real.append(logits(weight, shift, scale, cap_))
    check(kind, heads, real, data, temperature=0.7, beta=0.3, **support)
    targets = torch.arange(len(hs)) * 3
    mine, other = hs.clone().requires_grad_(), hs.clone().requires_grad_()
    value = token_cross_entropy(mine, heads[0], targets)
    expected = torch.nn.functional.cross_entropy(real[0](other), targets, reduction="none")
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, other.grad)
    found = torch.cat([z for _, z in divergence.logits_in_chunks(hs, heads[0])])
    torch.testing.assert_close(found, real[0](hs))


def distributions(p, q):
    """Hidden states and a head whose softmaxes are q (student) and p (teacher)."""
    head = torch.eye(len(p), dtype=torch.float64)
    student, teacher = (torch.tensor([x], dtype=torch.float64).log() for x in (q, p))
    return student.requires_grad_(), head, teacher, head


def test_the_tail_is_seen():
    """Renormalised on the top k this pair is equal; with the rest as one token, far apart."""
    given = distributions([0.49, 0.49, 0.01, 0.01], [0.01, 0.01, 0.18, 0.80])
    how = {"kind": "forward_kl", "top_k": 2}
    torch.testing.assert_close(token_divergence(*given, **how).item(), 0.0)
    expected = 0.98 * math.log(49) + 0.02 * math.log(0.02 / 0.98)
    found = token_divergence(*given, tail=True, **how)
    assert found.item() == pytest.approx(expected)
    found.sum().backward()
    expected = [0.01 - 0.49, 0.01 - 0.49, 0.96 * 0.18 / 0.98, 0.96 * 0.80 / 0.98]
    assert given[0].grad[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tail_of_one_token_or_of_none_is_the_whole(kind):
    hs, ws, ht, wt = problem(vocabulary=9)
    whole = check(kind, (ws, wt), (ws, wt), (hs, ws, ht, wt))
    for top_k in (8, 9):  # the ninth token alone in the bucket; nothing in it
        mine, other = hs.clone().requires_grad_(), hs.clone().requires_grad_()
        found = token_divergence(mine, ws, ht, wt, kind=kind, top_k=top_k, tail=True)
        torch.testing.assert_close(found.detach(), whole)
        found.sum().backward()
        token_divergence(other, ws, ht, wt, kind=kind).sum().backward()
        torch.testing.assert_close(mine.grad, other.grad)


def test_the_gate_opens_where_the_teacher_is_unsure():
    sure, unsure = [0.97, 0.01, 0.01, 0.01], [0.3, 0.3, 0.2, 0.2]
    student = [0.4, 0.3, 0.2, 0.1]
    for teacher, kind in ((sure, "reverse_kl"), (unsure, "forward_kl")):
        given = distributions(teacher, student)
        found = token_divergence(*given, kind="entropy_gated", beta=0.5)
        assert found.item() == pytest.approx(token_divergence(*given, kind=kind).item())


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
    support=st.sampled_from([{}, {"top_k": 2}, {"top_k": 7}, {"top_k": 7, "tail": True}]),
    scale=st.floats(0.01, 30),
)
@settings(max_examples=60, deadline=None)
def test_properties(seed, kind, support, scale):
    hs, ws, ht, wt = problem(seed=seed, scale=scale)
    value = token_divergence(hs, ws, ht, wt, kind=kind, **support)
    assert torch.isfinite(value).all()
    assert (value > -1e-9).all()
    # zero, with zero gradient, for identical distributions
    same = hs.clone().requires_grad_()
    zero = token_divergence(same, ws, hs, ws, kind=kind, **support)
    zero.sum().backward()
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=1e-9)
    torch.testing.assert_close(same.grad, torch.zeros_like(same), rtol=0, atol=1e-8)
    # the names of the tokens do not matter
    order = torch.randperm(len(ws), generator=torch.Generator().manual_seed(seed))
    permuted = token_divergence(hs, ws[order], ht, wt[order], kind=kind, **support)
    torch.testing.assert_close(permuted, value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("cap", [None, 500.0])
def test_underflow_gives_no_nan(kind, tail, cap):
    """Student and teacher sure of other tokens; with tail, nothing left over on either side."""
    ws = Head(torch.eye(4), cap=cap)
    hs = torch.tensor([[400.0, 0, 0, 0], [400.0, 400, -400, -400]], requires_grad=True)
    ht = torch.tensor([[0.0, 400, 0, 0], [400.0, 400, -400, -400]])
    support = {"top_k": 2, "tail": True} if tail else {}
    value = token_divergence(hs, ws, ht, ws, kind=kind, **support)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(hs.grad).all()
    assert value[1] == 0 and (hs.grad[1] == 0).all()


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
        ({"kind": "forward_kl", "tail": True}, "set top_k, or drop tail"),
    ):
        with pytest.raises(ValueError, match=word):
            token_divergence(hs, ws, ht, wt, **options)
    with pytest.raises(ValueError, match="agree on positions"):
        token_divergence(hs[:-1], ws, ht, wt, kind="forward_kl")
    with pytest.raises(ValueError, match="frozen"):
        token_divergence(hs, ws.requires_grad_(), ht, wt, kind="forward_kl")
    bias = torch.zeros(len(wt), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="frozen"):
        token_divergence(hs, Head(ws.detach(), bias), ht, wt, kind="forward_kl")


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_gpu_runs_can_be_compiled_whole(kind):
    """Traced in one graph; the graph itself is run as it is: no compiler is needed here."""
    hs, ws, ht, wt = (x.bfloat16() for x in problem(scale=0.5))
    head = Head(ws, ws[:, 0].clone(), 0.5, 4.0)
    given = (hs @ ws.T, head, ht @ wt.T, Head(wt), kind, 0.7, 0.3, None, False)
    compiled = torch.compile(divergence._value_and_grad, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), divergence._value_and_grad(*given))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pytest --gpu, on a machine with one")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", [{}, {"top_k": 5, "tail": True}], ids=str)
def test_a_gpu_agrees(kind, support):
    """bfloat16 inputs, logits in float32: the compiled kernel, of full and of cut chunks."""
    for n in (divergence.GPU_ROWS * 2 + 7, 3):
        data = [x.bfloat16() for x in problem(n=n, vocabulary=40_000, scale=0.5)]
        hs, ws, ht, wt = (x.double() for x in data)
        hs.requires_grad_()
        expected = reference(hs, ws, ht, wt, kind, temperature=0.7, **support)
        expected.sum().backward()
        mine, weight, theirs, other_weight = (x.cuda() for x in data)
        mine.requires_grad_()
        given = mine, Head(weight), theirs, other_weight
        found = token_divergence(*given, kind=kind, temperature=0.7, **support)
        found.sum().backward()
        torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-3, atol=1e-4)
        apart = (mine.grad.double().cpu() - hs.grad).norm() / hs.grad.norm()
        assert apart < 0.02


def other(log_s, log_t, beta):
    return log_s.sum(-1), log_t


def test_a_fingerprint_names_what_the_method_runs_and_no_more(project, monkeypatch):
    kinds = (*KINDS, "cross_entropy")
    runs = {kind: get_run(f"smoke methods.trd.divergence={kind}", "opd", "trd") for kind in kinds}

    def stamps():
        return {kind: distill.fingerprint(run, 0, []) for kind, run in runs.items()}

    before = stamps()
    assert len(set(before.values())) == len(before)

    monkeypatch.setitem(divergence.DIVERGENCES, "other", other)
    assert stamps() == before
    monkeypatch.setitem(divergence.DIVERGENCES, "jsd", other)
    assert {kind for kind, stamp in stamps().items() if stamp != before[kind]} == {"jsd"}
    monkeypatch.undo()
    monkeypatch.setattr(divergence, "_SHARED", (*divergence._SHARED, other))
    assert not set(stamps().values()) & set(before.values())


@pytest.mark.parametrize("kind", [*KINDS, "cross_entropy"])
def test_what_is_hashed_calls_nothing_here_that_is_not(kind):
    named = {one.__name__ for one in divergence.code(kind)}
    here = {name for name, one in vars(divergence).items()
            if getattr(one, "__module__", "") == divergence.__name__}  # fmt: skip
    used = {
        node.id
        for one in divergence.code(kind)
        for node in ast.walk(ast.parse(inspect.getsource(one)))
        if isinstance(node, ast.Name)
    }
    # the mark, what bears it; how it is run on a GPU
    assert (used & here) - named <= {"divergence", "DIVERGENCES", "_compiled"}
