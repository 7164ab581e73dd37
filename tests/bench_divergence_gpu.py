"""Time, memory and accuracy of the divergences on a GPU, beside others' kernels: not a test.

    python tests/bench_divergence_gpu.py [--wheels FOLDER] [--small]

Needs torch and triton alone. FOLDER: wheels of trl and unsloth_zoo, whose kernels are read from
them, without what else those packages import. --small: a try on a CPU. Each line is printed as it
comes; a variant that fails says so and the next one follows; what does not fit in SECONDS is named.
"""

import argparse
import importlib.util
import statistics
import sys
import time
import traceback
import types
import zipfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from trdlib import divergence

STARTED = time.perf_counter()
PARSER = argparse.ArgumentParser()
PARSER.add_argument("--wheels", type=Path, default=Path(".whl"))
PARSER.add_argument("--small", action="store_true")
ARGUMENTS = PARSER.parse_args()
GPU = torch.cuda.is_available() and not ARGUMENTS.small
SECONDS = 90 if GPU else 600
N, H, V = (8192, 4096, 151_936) if GPU else (160, 16, 300)
SLICE = 128  # positions whose values and gradients are compared with float32
DEVICE = "cuda" if GPU else "cpu"


def say(*words) -> None:
    print(*words, flush=True)


def inputs():
    """Student and teacher that mostly agree: logits of a spread of 3, a forward KL of about 0.5."""
    torch.manual_seed(0)

    def draw(*shape, scale=1.0):
        return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16).mul_(scale)

    student, head = draw(N, H), draw(V, H, scale=3 * H**-0.5)
    return student, head, student + draw(N, H, scale=0.3), head + draw(V, H, scale=0.3 * H**-0.5)


HS, WS, HT, WT = inputs()


def reference(beta):
    """Values and gradients of the slice, in float32 by autograd."""
    torch.backends.cuda.matmul.allow_tf32 = False
    hidden = HS[:SLICE].float().requires_grad_()
    log_s = (hidden @ WS.float().T).log_softmax(-1)
    log_t = (HT[:SLICE].float() @ WT.float().T).log_softmax(-1)
    s, t = log_s.exp(), log_t.exp()
    if beta == 0:
        value = (t * (log_t - log_s)).sum(-1)
    elif beta == 1:
        value = (s * (log_s - log_t)).sum(-1)
    else:
        log_m = (beta * t + (1 - beta) * s).log()
        value = beta * (t * (log_t - log_m)).sum(-1) + (1 - beta) * (s * (log_s - log_m)).sum(-1)
    value.sum().backward()
    return value.detach(), hidden.grad


def timed(name: str, function, beta=None) -> None:
    """function() -> values (N,), their sum, or None; the gradient of hidden or None."""
    if time.perf_counter() - STARTED > SECONDS:
        return say(f"{name:<34} left out: {SECONDS} s are over")
    try:
        before = torch.cuda.memory_allocated() if GPU else 0
        started = time.perf_counter()
        value, grad = function()
        first = time.perf_counter() - started
        words = ""
        if beta is not None:
            expected, slope = reference(beta)
            if value.ndim:
                apart = (value[:SLICE].float() - expected).abs()
                relative = (apart / expected.abs().clamp(min=1e-3)).max()
                words += f"  value {apart.max():.1e} abs {relative:.1e} rel"
            else:
                words += f"  sum {value.item():.6e}"
            apart = grad[:SLICE].float() - slope
            words += f"  gradient {apart.abs().max():.1e} abs {apart.norm() / slope.norm():.1e} rel"
        del value, grad
        for _ in range(2):
            function()
        times, peak = [], 0
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(10):
            if GPU:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                function()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                started = time.perf_counter()
                function()
                times.append(1e3 * (time.perf_counter() - started))
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if GPU else 0
        say(f"{name:<34}{statistics.median(times):8.1f} ms{peak:6.2f} GiB  "
            f"first {first:5.1f} s{words}")  # fmt: skip
    except Exception as error:
        say(f"{name:<34} FAILED {type(error).__name__}: {str(error)[:300]}")
        traceback.print_exc(limit=-3)
    finally:
        if GPU:
            torch.cuda.empty_cache()


def with_grad(function):
    """function(hidden) -> values: with the gradient of their sum."""

    def run():
        hidden = HS.detach().requires_grad_()
        value = function(hidden)
        value.sum().backward()
        return value.detach(), hidden.grad

    return run


def ours(kind, **options):
    return with_grad(
        lambda hidden: divergence.token_divergence(hidden, WS, HT, WT, kind=kind, **options)
    )


def rows_of(rows, kind, **options):
    def run():
        kept = divergence.GPU_ROWS, divergence.CHUNK_ELEMENTS
        divergence.GPU_ROWS, divergence.CHUNK_ELEMENTS = rows, rows * V
        try:
            return ours(kind, **options)()
        finally:
            divergence.GPU_ROWS, divergence.CHUNK_ELEMENTS = kept

    return run


def matmuls(rows, product=divergence._product):
    def run():
        for start in range(0, N, rows):
            part = slice(start, start + rows)
            student = product(HS[part], WS)
            product(HT[part], WT)
            student.to(WS.dtype) @ WS
        return None, None

    return run


# ------------------------------------------------------------------------- the kernels of others


def module(name: str, wheel: str, path: str):
    """A module of a wheel, alone: source and name, without the package around it."""
    (file,) = ARGUMENTS.wheels.glob(f"{wheel}-*.whl")
    source = zipfile.ZipFile(file).read(path).decode()
    target = Path("/tmp/bench_kernels") / (name.replace(".", "_") + ".py")  # Triton reads sources
    target.parent.mkdir(exist_ok=True)
    target.write_text(source)
    spec = importlib.util.spec_from_file_location(name, target)
    sys.modules[name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def stub(name: str, **members) -> None:
    sys.modules[name] = found = types.ModuleType(name)
    found.__path__ = []
    found.__dict__.update(members)


def trl():
    from contextlib import nullcontext

    if importlib.util.find_spec("transformers") is None:
        stub("transformers")
        stub("transformers.utils", is_triton_available=lambda: GPU)
    stub("trl")
    stub("trl.kernels")
    stub("trl.trainer")
    stub("trl.trainer.utils", maybe_gather_lm_head_ctx=lambda *_: nullcontext())
    module("trl.kernels.chunked_logprob", "trl", "trl/kernels/chunked_logprob.py")
    found = module("trl.kernels.chunked_divergence", "trl", "trl/kernels/chunked_divergence.py")
    apply = found.ChunkedDivergenceFunction.apply
    for beta in (0.0, 1.0, 0.5):
        yield (
            f"TRL 1.16, beta {beta}",
            beta,
            with_grad(lambda hidden, beta=beta: apply(hidden, WS, None, HT, WT, None, beta)[0]),
        )


def unsloth():
    path = "unsloth_zoo/fused_losses/fused_linear.py"
    jsd = module("fused_linear", "unsloth_zoo", path).fused_linear_jsd
    for beta in (0.0, 1.0, 0.5):
        yield (
            f"Unsloth 2026.10.9, beta {beta}",
            beta,
            with_grad(
                lambda hidden, beta=beta: jsd(hidden, WS, HT, WT, beta=beta, num_items_in_batch=1)
            ),
        )


def others(source) -> None:
    try:
        for name, beta, function in source():
            timed(name, function, beta)
    except Exception as error:
        say(f"{source.__name__:<34} NOT THERE {type(error).__name__}: {str(error)[:300]}")


if __name__ == "__main__":
    say(f"N {N} H {H} V {V} bfloat16, torch {torch.__version__}, "
        f"{torch.cuda.get_device_name() if GPU else 'CPU'}")  # fmt: skip
    fused = GPU and importlib.util.find_spec("triton") is not None
    say("value and gradient; peak beyond the inputs; first: seconds of the first call, compilation")
    bare = lambda hidden, weight: hidden @ weight.T  # noqa: E731
    for rows in (512, 1024, 110) if GPU else (512,):
        timed(f"matmuls alone, {rows} rows", matmuls(rows, bare))
    timed("matmuls, float32 logits, cast", matmuls(512))
    timed(f"forward_kl, as it is ({'compiled' if fused else 'eager'})", ours("forward_kl"), 0)
    others(trl)
    others(unsloth)
    timed("reverse_kl, as it is", ours("reverse_kl"), 1)
    timed("jsd, as it is", ours("jsd"), 0.5)
    for kind in ("skew_kl", "entropy_gated"):
        timed(f"{kind}, as it is", ours(kind))
    for options in ({"top_k": 100}, {"top_k": 100, "tail": True}):
        timed(f"forward_kl, {options}", ours("forward_kl", **options))
    targets = torch.arange(N, device=DEVICE) % V
    entropy = lambda hidden: divergence.token_cross_entropy(hidden, WS, targets)  # noqa: E731
    timed("cross_entropy", with_grad(entropy))
    if fused:
        timed("forward_kl, as it is, 1024 rows", rows_of(1024, "forward_kl"), 0)
    head = divergence.Head(WS, WS[:, 0].clone(), 0.5, 30.0)
    capped = lambda h: divergence.token_divergence(h, head, HT, WT, kind="forward_kl")  # noqa: E731
    timed("forward_kl, bias, scale and cap", with_grad(capped))
    say(f"done after {time.perf_counter() - STARTED:.0f} s")
