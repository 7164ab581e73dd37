"""Jobs in worker processes: order, errors, and no worker without a parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from trdlib import jobs as pool


def slow_square(x):
    time.sleep(0.3 if x == 0 else 0.0)
    return x * x


def work(seconds):
    until = time.process_time() + seconds
    with pool.model_compute():
        while time.process_time() < until:
            pass


def fail(x):
    if x == 2:
        raise ValueError(f"job {x} broke")
    return x


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers, capfd):
    jobs = [(i,) for i in range(5)]
    assert pool.run_jobs(slow_square, jobs, workers=workers) == [0, 1, 4, 9, 16]
    assert pool.run_jobs(slow_square, [], workers=workers) == []
    assert not capfd.readouterr().err  # soon done: no bar, which an executed notebook would keep


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_breaks_ends_the_run(workers):
    with pytest.raises(ValueError, match="job 2 broke"):
        pool.run_jobs(fail, [(i,) for i in range(4)], workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_compute_of_the_jobs_is_clocked(workers):
    before = pool.compute["seconds"]
    pool.run_jobs(work, [(0.2,), (0.2,)], workers=workers)
    clocked = pool.compute["seconds"] - before
    assert 0.39 < clocked < 0.79  # both jobs, each once


PARENT = """
import os, sys, time
from trdlib import jobs as pool
def job(i):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)
pool.run_jobs(job, [(0,), (1,)], workers=2)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_die_with_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(alive(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not any(alive(pid) for pid in workers):
            return
        time.sleep(0.1)
    pytest.fail("a worker outlived its parent")
