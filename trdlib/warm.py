"""Start papermill and its kernel by forking a process that has imported what all notebooks import.

    python -m trdlib.warm runs/warm &     # serves until the process that started it is gone
    PATH=$PWD/runs/warm:$PATH dvc repro   # finds runs/warm/papermill first

`make repro` runs five dozen notebooks of small models, and of the twelve seconds of CPU that each
takes beside its work, nine are imports. What is imported here is other people's packages only: the
code of trdlib is read by each notebook anew. Without a server that `papermill` is the usual one,
and it is the usual one that DVC's stages name.

Not for Unsloth, which has to be imported before transformers, and not for a GPU (CUDA does not
survive a fork): the Makefile starts it for small models alone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import socketserver
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

# Not matplotlib_inline.backend_inline: what it does when it is imported is for a kernel.
IMPORTED = (
    "papermill.cli", "nbclient", "ipykernel.kernelapp", "ipykernel.zmqshell", "matplotlib.figure",
    "pandas", "pyarrow.parquet", "scipy.stats", "torch", "peft",
    "transformers.trainer", "transformers.models.qwen3.modeling_qwen3",
    "transformers.generation.utils", "safetensors.torch", "math_verify", "sympy.physics.units",
    "dvclive",
)  # fmt: skip
# The process that DVC starts: it hands over its files and waits, and whoever kills it kills all.
CLIENT = """\
#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    server.connect({address!r})
except OSError:
    os.execv({papermill!r}, [{papermill!r}, *sys.argv[1:]])
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [request], [0, 1, 2])
sys.exit(int(server.recv(8) or 1))
"""


class _Kernel:
    """A process that waits for a kernel's command; to jupyter_client it is what Popen returns."""

    stdin = stdout = stderr = None

    def __init__(self):
        ours, self._wake = os.pipe()
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.close(self._wake)
            with open(ours) as pipe:
                request = pipe.read()
            if request:
                _be_a_kernel(*json.loads(request))
            os._exit(0)
        os.close(ours)

    def launch(self, cmd, env=None, cwd=None, **unused):
        parent = f"--IPKernelApp.parent_handle={os.getpid()}"  # it ends when that process does
        with open(self._wake, "w") as pipe:
            json.dump([[*cmd, parent], dict(os.environ if env is None else env), cwd], pipe)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _become(env: dict[str, str], folder: str | None) -> None:
    os.environ.clear()
    os.environ.update(env)
    if folder:
        os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import numpy
    import torch

    for seed in (random.seed, numpy.random.seed, torch.seed):
        seed()  # else all would draw the same "random" numbers


def _be_a_kernel(cmd: list[str], env: dict[str, str], cwd: str | None) -> None:
    _become(env, cwd)
    sys.argv = cmd[cmd.index("-m") + 1 :]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class _Papermill(socketserver.BaseRequestHandler):
    """In a forked process: the papermill of the request, with its files and in its folder."""

    def handle(self) -> None:
        message, files, *_ = socket.recv_fds(self.request, 2**18, 3)
        if not message:
            return
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        arguments, folder, env = json.loads(message)
        _become(env, folder)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        kernel = _Kernel()
        threading.Thread(target=self._die_with_client, args=(kernel,), daemon=True).start()
        from jupyter_client.provisioning import local_provisioner
        from papermill.cli import papermill

        local_provisioner.launch_kernel = kernel.launch
        code = 1
        try:
            papermill.main(args=arguments, prog_name="papermill")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        self.request.send(str(code).encode())
        kernel.kill()
        os._exit(code)

    def _die_with_client(self, kernel: _Kernel) -> None:
        self.request.recv(1)
        kernel.kill()
        os._exit(1)


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    socket_type = socket.SOCK_SEQPACKET
    max_children, block_on_close, parent = 64, False, os.getppid()

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.parent:
            raise SystemExit


def serve(folder: Path) -> None:
    """Import, write `papermill` into the folder, and fork one for each that calls it."""
    if sys.platform != "linux":
        return  # the usual papermill, then
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel sets it
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared is not to be touched
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that what is temporary goes
    usual, client = Path(sys.executable).with_name("papermill"), folder / "papermill"
    # A socket's path may have a hundred characters, the project's folder more.
    with tempfile.TemporaryDirectory(prefix="trd-") as short:
        address = f"{short}/socket"
        with _Server(address, _Papermill) as server:
            folder.mkdir(parents=True, exist_ok=True)
            client.write_text(
                CLIENT.format(python=sys.executable, address=address, papermill=str(usual))
            )
            client.chmod(0o755)
            server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
