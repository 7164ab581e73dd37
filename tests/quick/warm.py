"""A process that has imported what takes seconds, for the processes that tests start: who asks
(sitecustomize.py) gets a child of it, with its files, arguments and environment, that runs what it
was to run. Only libraries are imported: ours is that of who asks. It ends with its stdin."""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys

LIBRARIES = """datasets ipykernel.ipkernel ipykernel.kernelapp matplotlib.pyplot pydantic
matplotlib_inline.backend_inline pandas.plotting._matplotlib peft ruamel.yaml scipy.stats tabulate
transformers.models.qwen3.modeling_qwen3 transformers.trainer"""


def shaping(environment: dict) -> dict:
    """What libraries read while they are imported."""
    names = ("CUDA_", "HF_", "OMP_", "TOKENIZERS_", "TRANSFORMERS_")
    return {name: value for name, value in environment.items() if name.startswith(names)}


SHAPING = shaping(os.environ)
os.environ["JPY_PARENT_PID"] = str(os.getpid())  # read at import: else a kernel says how to stop it


def watch(asked: socket.socket, child: int) -> None:
    """Pass its signals on, kill it if who asked is gone, and say how it ended."""
    done, said = os.pidfd_open(child), b"-"
    while said and done not in select.select([done, asked], [], [])[0]:
        said = asked.recv(1)
        os.kill(child, said[0] if said else signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if said:
        asked.send(status.to_bytes(4))
    os._exit(0)


def become(asked: socket.socket) -> dict:
    """Returns in the child alone: what it is to run."""
    size, files, *_ = socket.recv_fds(asked, 4, 3)
    about = json.loads(asked.recv(int.from_bytes(size), socket.MSG_WAITALL))
    if about["python"] != sys.executable or shaping(about["env"]) != SHAPING:
        asked.send(b"n")
        os._exit(0)
    asked.send(b"y")
    if child := os.fork():
        watch(asked, child)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 64)
    os.chdir(about["cwd"])
    os.environ.clear()
    os.environ.update(about["env"])
    sys.path[:] = about["path"]
    sys.argv[:] = about["argv"]
    return about


def reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(place: str) -> dict:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + place)  # a name, no file
    listener.listen(64)
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    while 0 not in select.select([0, listener], [], [])[0]:
        for name in LIBRARIES.split():  # the first time
            importlib.import_module(name)
        gc.freeze()
        asked, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return become(asked)
        asked.close()
    os._exit(0)


if __name__ == "__main__":
    about = serve(sys.argv[1])
    runpy.run_module(about["module"], run_name="__main__", alter_sys=True)
