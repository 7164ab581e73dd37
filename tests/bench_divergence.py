"""Time and memory of the forward KL at a real vocabulary: `make bench` (not a test).

Each case runs in a process of its own; memory is the peak over what the inputs take.
"""

import resource
import subprocess
import sys
import time

VOCABULARY, HIDDEN = 151_936, 1024


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def case(kind: str, tokens: int) -> None:
    import torch

    from trdlib.divergence import token_divergence

    torch.manual_seed(0)
    head = torch.randn(VOCABULARY, HIDDEN).mul_(0.02)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    teacher = torch.randn(tokens, HIDDEN)
    before, started = peak_mib(), time.perf_counter()
    if kind == "ours":
        loss = token_divergence(hidden, head, teacher, head, kind="forward_kl").sum()
    else:
        log_s = (hidden @ head.T).log_softmax(-1)
        log_t = (teacher @ head.T).log_softmax(-1)
        loss = torch.nn.functional.kl_div(log_s, log_t, log_target=True, reduction="sum")
    loss.backward()
    seconds, extra = time.perf_counter() - started, peak_mib() - before
    print(f"{kind:<12}{tokens:>7}{seconds:>9.1f} s{extra:>9.0f} MiB   "
          f"loss {loss.item():.6e}  gradient norm {hidden.grad.norm().item():.6e}")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 3:
        case(sys.argv[1], int(sys.argv[2]))
    else:
        print(f"forward KL and its gradient, V = {VOCABULARY}, H = {HIDDEN}, float32, CPU")
        for kind, tokens in (("full logits", 512), *(("ours", n) for n in (512, 1024, 2048))):
            subprocess.run([sys.executable, __file__, kind, str(tokens)], check=True)
