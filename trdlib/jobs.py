"""Run the jobs of a stage in worker processes that die with their parent, and clock the compute.

One CPU core decodes a tiny model about as fast as two do, so a stage gives each core its own job.
A process that holds a GPU runs its jobs itself, one after the other.
"""

import contextlib
import gc
import multiprocessing
import os
import resource
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from tqdm import tqdm

from trdlib import store
from trdlib.settings import root

_compute = {"seconds": 0.0, "peak": 0.0}  # of this process and its finished jobs


@contextlib.contextmanager
def model_compute(clock=time.process_time):
    """Clock the enclosed work as model compute (sampling, scoring, training), in core-seconds.

    CPU time, so that jobs side by side do not count each other; a process that waits for its GPU
    spins, which makes it wall time there. clock: another one, where other processes do the work.
    """
    started = clock()
    try:
        yield
    finally:
        _compute["seconds"] += clock() - started


def _peak_mib() -> float:
    """The most memory so far, MiB: of the GPU if torch uses one, else of the process."""
    if _holds_gpu():
        return sys.modules["torch"].cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextlib.contextmanager
def metered():
    """What the enclosed work cost: a dict, filled at its end.

    core_seconds of model compute (of a resumed call: its own share) and peak_mib, the most memory
    that one process has had until then.
    """
    cost, before = {}, _compute["seconds"]
    yield cost
    cost["core_seconds"] = round(_compute["seconds"] - before, 3)
    cost["peak_mib"] = round(max(_peak_mib(), _compute["peak"]), 1)


def write_timing(stage: str, workers: int = 1) -> None:
    """Note the model compute of a stage so far, for the closing report."""
    spent, path = _compute["seconds"], root() / "runs" / "timings" / f"{stage}.json"
    print(f"model compute: {spent:.1f} core-seconds", file=sys.stderr)
    store.write_json(path, {"core_seconds": spent, "workers": workers})


def progress(label: str, iterable=None, **how):
    """A bar on stderr for work inside a job; what takes less than five seconds shows none."""
    where = {"file": sys.stderr, "leave": False, "delay": 5, "mininterval": 2}
    return tqdm(iterable, desc=label, **where, **how)


def _start_worker() -> None:
    _compute.update(seconds=0.0, peak=0.0)
    gc.freeze()  # the Trainer collects garbage; what was inherited is none
    parent = multiprocessing.parent_process()

    def leave_with_parent():
        parent.join()
        os._exit(1)  # after a kill -9 of the parent nobody would collect this worker

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _timed(function, arguments):
    before = _compute["seconds"]
    return function(*arguments), _compute["seconds"] - before, _peak_mib()


def _holds_gpu() -> bool:
    """Does this process use CUDA? It does not survive a fork, and one job fills a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def run_jobs(function, jobs: list[tuple], *, workers: int = 1, label: str = "") -> list:
    """[function(*job) for job in jobs], in that order, with a progress bar on stderr.

    A job that raises ends the run with its error. Linux forks (imports are paid once), other
    systems spawn.
    """
    inside = multiprocessing.parent_process() is not None  # of a job: the outer bar tells enough
    bar = {"desc": label, "total": len(jobs), "file": sys.stderr, "disable": not jobs or inside}
    if workers == 1 or not jobs or _holds_gpu():
        return [function(*job) for job in tqdm(jobs, **bar)]
    results: list = [None] * len(jobs)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(_timed, function, job): i for i, job in enumerate(jobs)}
        try:
            for future in tqdm(as_completed(futures), **bar):
                results[futures[future]], seconds, peak = future.result()
                _compute["seconds"] += seconds
                _compute["peak"] = max(_compute["peak"], peak)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
