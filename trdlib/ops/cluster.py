"""The jobs of a stage on a Ray cluster, where RAY_ADDRESS names one: docs/cluster.md.

Its nodes read and write the project's folder, so all must share it."""

import os
import socket
import sys
import tempfile
from pathlib import Path

from trdlib import jobs
from trdlib.settings import SettingsError, root


def places() -> int:
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
    return jobs._timed(function, job)


def run(function, todo: list[tuple], workers: int):
    """As jobs._here. A job takes a GPU (`workers` share one) where there are any, else a core. Of a
    node that dies the jobs run again, elsewhere; what they had stored is read."""
    import ray

    share = {"num_gpus": 1 / workers} if "GPU" in ray.cluster_resources() else {"num_cpus": 1}
    remote = ray.remote(max_retries=5, **share)(_there)
    (root() / "runs").mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=root() / "runs", suffix=".tmp") as proof:
        waits = {remote.remote(root(), proof.name, function, job): i for i, job in enumerate(todo)}
        try:
            while waits:
                (done,), _ = ray.wait(list(waits))
                yield waits.pop(done), ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            for left in waits:
                ray.cancel(left, force=True)


jobs.cluster = sys.modules[__name__]
