"""Run the jobs of a stage in processes that die with their parent (on Ray: ops/cluster.py); clock
them. Two cores decode a tiny model hardly faster than one, so a stage gives each its own job. Who
holds a GPU runs its jobs itself."""

import contextlib
import gc
import multiprocessing
import os
import sys
import threading
import time
import types
from concurrent.futures import ProcessPoolExecutor, as_completed

from tqdm import tqdm

compute = {"seconds": 0.0}  # of this process and its finished jobs
cluster = types.SimpleNamespace(places=lambda: 0)  # ops/cluster.py, once it is imported


@contextlib.contextmanager
def model_compute(clock=time.process_time):
    """Clock the enclosed work as model compute, in core-seconds: CPU time, so that jobs count none
    but their own; who waits for a GPU spins. clock: another, where other processes do the work."""
    started = clock()
    try:
        yield
    finally:
        compute["seconds"] += clock() - started


def progress(label: str, iterable=None, **how):
    """A bar on stderr, after five seconds. An executed notebook keeps each state of it, as a line:
    there it moves twice a minute. (In a live one Jupyter's server has named the session.)"""
    often = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    how |= {"leave": False, "delay": 5, "mininterval": 2 if often else 30, "maxinterval": 60}
    return tqdm(iterable, desc=label, file=sys.stderr, **how)


def _start_worker() -> None:
    gc.freeze()  # the Trainer collects garbage; what was inherited is none
    parent = multiprocessing.parent_process()

    def leave_with_parent():
        parent.join()
        os._exit(1)  # after a kill -9 of the parent nobody would collect this worker

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _timed(function, job):
    before = compute["seconds"]
    return function(*job), compute["seconds"] - before


def _here(function, jobs: list[tuple], workers: int):
    """(number of the job, what `_timed` gives), as they end. A fork pays for no import again."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(_timed, function, job): i for i, job in enumerate(jobs)}
        try:
            yield from ((futures[done], done.result()) for done in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def run_jobs(function, jobs: list[tuple], *, workers: float = 1, label: str = "") -> list:
    """[function(*job) for job in jobs], with a progress bar; a job that raises ends them with its
    error. workers: processes here, or jobs that share a GPU of a cluster (1/2: a job takes two)."""
    inside = multiprocessing.parent_process() is not None  # of a job: the outer bar tells enough
    bar = {"total": len(jobs), "disable": not jobs or inside}
    torch, away = sys.modules.get("torch"), jobs and not inside and cluster.places()
    holds_gpu = torch and torch.cuda.is_initialized()  # it survives no fork; one job fills it
    if not away and (workers <= 1 or not jobs or holds_gpu):
        return [function(*job) for job in progress(label, jobs, **bar)]
    made = (cluster.run if away else _here)(function, jobs, workers)
    found = dict(progress(label, made, **bar))
    compute["seconds"] += sum(seconds for _, seconds in found.values())
    return [found[number][0] for number in range(len(jobs))]
