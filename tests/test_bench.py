"""The benchmark against the peers still runs, and all compute the same. Nothing is timed."""

import subprocess
import sys

from conftest import REPOSITORY


def test_every_peer_has_a_row_and_the_values_agree():
    command = [sys.executable, "tests/bench_peers.py", "--quick", "--pairs", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    rows = [(row[0].split()[1], row) for row in cells if len(row) > 1 and "CPU s" not in row[1]]
    kernels, steps = ["ours", "trl", "unsloth", "plain", "matmuls"], ["ours", "trl"]
    assert [who for who, _ in rows] == [*kernels, *steps, "ours", "generate", "vllm"]
    for who, row in rows:
        if row[1].startswith("not measured"):  # TRL before 1.16 needs a GPU; vLLM is an extra
            assert who in ("trl", "vllm"), row
        elif who != "matmuls":
            assert "agree" in row[-1], row
    assert done.stdout.count("time ^") == 2  # growth, of ours and of generate
