"""Run the jobs of a stage: in processes here that die with their parent, or on Ray; clock them.

Two cores decode a tiny model hardly faster than one, so a stage gives each its own job. Who holds a
GPU runs its jobs itself. Where RAY_ADDRESS names a cluster, its nodes take them: they read and
write the project's folder, so all must share it."""

import contextlib
import gc
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from trdlib.settings import SettingsError, root

compute = {"seconds": 0.0}  # of this process and its finished jobs


@contextlib.contextmanager
def model_compute(clock=time.process_time):
    """Clock the enclosed work as model compute (sampling, scoring, training), in core-seconds: CPU
    time, so that jobs side by side do not count each other; who waits for a GPU spins. clock:
    another one, where other processes do the work."""
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
    compute["seconds"] = 0.0
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
    """(number of the job, what `_timed` gives), as they end. Linux forks (imports are paid once),
    other systems spawn."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(_timed, function, job): i for i, job in enumerate(jobs)}
        try:
            yield from ((futures[done], done.result()) for done in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def on_ray() -> int:
    """How many places a Ray cluster has for jobs: its GPUs, or its CPUs if it has none; 0: there is
    no RAY_ADDRESS. SettingsError, in one sentence, if there is one and no cluster answers."""
    if not (address := os.environ.get("RAY_ADDRESS")):
        return 0
    try:
        import ray

        if not ray.is_initialized():
            host, _, port = address.rpartition(":")
            if host and "/" not in host:  # ray.init would ask in vain for many minutes
                socket.create_connection((host, int(port)), 10).close()
            ray.init(log_to_driver=False, logging_level="ERROR")
    except ImportError:
        raise SettingsError("RAY_ADDRESS needs Ray: pip install -e '.[cluster]'") from None
    except (OSError, RuntimeError, ValueError) as error:
        why = f"no Ray cluster answers at RAY_ADDRESS={address} ({error})"
        raise SettingsError(f"{why}: start one with `ray start --head`, or unset it") from None
    has = ray.cluster_resources()
    return int(has.get("GPU") or has.get("CPU", 0))


def _there(folder: Path, proof: str, function, job: tuple):
    """A job on a node of the cluster. Its files are ours if it sees `proof`, made for this call."""
    if not Path(proof).is_file():
        what = f"node {socket.gethostname()} does not share the folder {folder} with us"
        raise SettingsError(f"{what}: mount it there under the same path, or leave the node out")
    os.chdir(folder)
    os.environ.pop("RAY_ADDRESS", None)  # what a job runs in parts, it runs there
    return _timed(function, job)


def _by_ray(function, jobs: list[tuple], workers: int):
    """As `_here`. A job takes a GPU (`workers` share one) where there are any, else a core. Of a
    node that dies the jobs run again, elsewhere; what they had stored is read."""
    import ray

    share = {"num_gpus": 1 / workers} if "GPU" in ray.cluster_resources() else {"num_cpus": 1}
    remote = ray.remote(max_retries=5, **share)(_there)
    (root() / "runs").mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=root() / "runs", suffix=".tmp") as proof:
        waits = {remote.remote(root(), proof.name, function, job): i for i, job in enumerate(jobs)}
        try:
            while waits:
                (done,), _ = ray.wait(list(waits))
                yield waits.pop(done), ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            for left in waits:
                ray.cancel(left, force=True)


def run_jobs(function, jobs: list[tuple], *, workers: float = 1, label: str = "") -> list:
    """[function(*job) for job in jobs], in that order, with a progress bar on stderr.

    A job that raises ends the run with its error. workers: processes here, or jobs that share a GPU
    of a Ray cluster (1/2: a job takes two).
    """
    inside = multiprocessing.parent_process() is not None  # of a job: the outer bar tells enough
    bar = {"total": len(jobs), "disable": not jobs or inside}
    ray, torch = jobs and not inside and on_ray(), sys.modules.get("torch")
    holds_gpu = torch and torch.cuda.is_initialized()  # it survives no fork; one job fills it
    if not ray and (workers <= 1 or not jobs or holds_gpu):
        return [function(*job) for job in progress(label, jobs, **bar)]
    results: list = [None] * len(jobs)
    for number, got in progress(label, (_by_ray if ray else _here)(function, jobs, workers), **bar):
        results[number], seconds = got
        compute["seconds"] += seconds
    return results
