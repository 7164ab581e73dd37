"""How many trivial programs the sandbox grades in a second: `python tests/bench_sandbox.py`.

Serially and in the pool; the CPU time of the sandbox's processes is the system's, and what else
runs on the machine counts against it.
"""

import os
import time

from trdlib import sandbox

PROGRAM, TESTS = "def add(a, b): return a + b", "assert add(1, 2) == 3"
SAMPLES = 300


def rate(workers: int) -> float:
    started = time.perf_counter()
    samples = [(PROGRAM, TESTS)] * SAMPLES
    verdicts = sandbox.in_pool(lambda one: sandbox.check(*one), samples, workers)
    assert all(verdict.passed for verdict in verdicts)
    return SAMPLES / (time.perf_counter() - started)


if __name__ == "__main__":
    started = time.perf_counter()
    print(f"{sandbox.protection()}; found in {time.perf_counter() - started:.2f} s")
    for workers in sorted({1, os.cpu_count() or 1}):
        print(f"{workers} worker(s): {rate(workers):.0f} samples/s (load {os.getloadavg()[0]:.1f})")
