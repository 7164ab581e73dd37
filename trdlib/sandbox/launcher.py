"""The sandbox's own processes. A script, which the client (__init__.py) starts; stdlib alone.

    client ── launcher ──┬─ keeper ── program    (the model's code; hostile)
   (trusted)  builds     └─ keeper ── examiner   (the tests; contained too)
              the jail      kills at the limit

The keeper forks the process that is locked in (`lock_in`), and reports how it ended, over a socket
that this does not have. No secret is ever in the memory that a program is forked from."""

import builtins
import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path

import jail  # both lie beside this file
import kernel
from kernel import BIND, NODEV, NOEXEC, NOSUID, PRIVATE, RDONLY, REC, REMOUNT, call

ID = 65534  # who a locked process is, inside
THREADS, NAP = 64, 0.005  # seconds between two looks at a locked process
UNIQUE_ID = 0x70000000  # outside, where we are root: a user of its own for each process


def build(walls: dict) -> None:
    """Leave the host: new namespaces, and a root that holds the readable folders and /tmp."""
    user, group = os.geteuid(), os.getegid()
    flags = kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
    call("unshare", flags if user == 0 else flags | kernel.NEWUSER)
    if user != 0:
        ids = {"setgroups": "deny", "uid_map": f"{ID} {user} 1", "gid_map": f"{ID} {group} 1"}
        for name, text in ids.items():
            Path(f"/proc/self/{name}").write_text(text)
    socket.sethostname("sandbox")
    os.chdir("/")
    root = "/proc"  # a folder that is there on every system and that nothing below needs
    call("mount", "none", "/", None, REC | PRIVATE)
    call("mount", "none", root, "tmpfs", NOSUID | NODEV | NOEXEC, "size=1m,nr_inodes=256,mode=755")
    os.umask(0o022)
    for folder in walls["readable"]:
        kernel.bind(folder, root + folder)
    for at in filter(os.path.isdir, (root + folder for folder in walls["hidden"])):
        call("mount", "none", at, "tmpfs", RDONLY | NOSUID | NODEV, "size=4k,mode=755")
    for folder, again in walls["again"].items():
        kernel.bind(root + folder, root + again)
    os.makedirs(root + "/tmp", exist_ok=True)
    os.chdir(root)
    call("pivot_root", ".", ".")
    call("umount2", ".", 2)  # let go of the old one
    os.chdir("/")
    call("mount", "none", "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | NOEXEC)


def lock_in(walls: dict, seconds: float, memory: int, unique: int) -> None:
    """From here on this process can compute, read the stdlib, write to /tmp, and nothing else."""
    if walls["namespaces"]:
        options = f"size={jail.LONGEST},nr_inodes=256,mode=1777"
        call("mount", "none", "/tmp", "tmpfs", NOSUID | NODEV | NOEXEC, options)
        for folder, again in walls["again"].items():
            kernel.bind(again, folder)
        os.chdir("/tmp")
    for name, value in (
        ("CPU", max(1, math.ceil(seconds))), ("AS", memory), ("DATA", memory),
        ("STACK", min(memory, 2**26)), ("CORE", 0), ("FSIZE", jail.LONGEST), ("NOFILE", 64),
        ("MEMLOCK", 0), ("MSGQUEUE", 0), ("SIGPENDING", 64), ("RTPRIO", 0),
        *([("NPROC", THREADS)] if walls["counted"] else []),
    ):  # fmt: skip
        kind = getattr(resource, f"RLIMIT_{name}")
        value = min(value, resource.getrlimit(kind)[1] % 2**64)  # infinity is -1
        resource.setrlimit(kind, (value, value))
    call("prctl", 38, 1)  # PR_SET_NO_NEW_PRIVS
    if walls["landlock"]:
        kernel.landlock(walls["readable"], walls["path"], ["/tmp"] if walls["namespaces"] else [])
    if walls["nobody"]:  # where neither user exists we stay root, without any of its powers
        for one in (UNIQUE_ID + unique % 2**22, ID):
            with contextlib.suppress(OSError):
                os.setgroups([])
                os.setresgid(one, one, one)
                os.setresuid(one, one, one)
                break
    call("capset", (0x20080522).to_bytes(8, sys.byteorder), bytes(24))  # none is left
    call("prctl", 1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    call("prctl", 4, 0)  # PR_SET_DUMPABLE
    kernel.seccomp()


def _preload() -> None:
    """Modules that programs use, and shared libraries of numpy, which lie outside the jail."""
    for name in ("array", "ast", "bisect", "cmath", "copy", "dataclasses", "datetime", "hashlib",
                 "heapq", "random", "statistics", "string", "threading", "typing", "zlib", "bz2",
                 "lzma", "_hashlib", "unicodedata"):  # fmt: skip
        with contextlib.suppress(ImportError):
            __import__(name)
    for name in ("pthread.so.0", "dl.so.2", "rt.so.1", "util.so.1", "m.so.6", "gcc_s.so.1",
                 "stdc++.so.6"):  # fmt: skip
        with contextlib.suppress(OSError):
            ctypes.CDLL(f"lib{name}")
    gc.freeze()  # what is here already is not looked through at the end of every program


def _locked(fds: list[int], ready: int, walls: dict, ask: dict, unique: int) -> None:
    """One program or examiner. Says on ready that it is locked in, before it runs anything."""
    payload, *rest = fds
    text = os.pread(payload, os.fstat(payload).st_size, 0).decode("utf-8", "surrogatepass")
    os.setsid()
    for number, fd in enumerate(rest):  # 0 input, 1 output, 2 errors, 3 and 4 channels
        os.dup2(fd, number)
    os.closerange(len(rest), ready)
    os.closerange(ready + 1, 1024)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lock_in(walls, ask["seconds"], ask["memory_mb"] * 2**20, unique)
    sys.argv[:] = ["program"]
    sys.path[:] = walls["path"]
    builtins.exit = builtins.quit = sys.exit  # the module site, which has them, is not loaded
    os.environ.clear()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.write(ready, b".")
    os.close(ready)
    getattr(jail, ask["role"])(text)  # serve, script or examine


def _keep(status: int, fds: list[int], walls: dict, ask: dict, unique: int) -> None:
    """Start the locked process, wait, kill it at its limit or when the host hangs up, report."""
    if walls["namespaces"]:
        call("unshare", kernel.NEWPID | kernel.NEWNS)
    locked, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _locked(fds, os.dup2(ready, 100), walls, ask, unique)  # 100: out of the others' way
            os._exit(0)
        finally:
            os._exit(1)
    for fd in (ready, *fds):
        os.close(fd)
    deadline, done = time.monotonic() + ask["wall"], 0
    while not done:
        over = late = time.monotonic() > deadline
        over |= bool(select.select([status], [], [], NAP)[0])
        if not walls["counted"]:  # no rlimit counts its threads: we do
            with contextlib.suppress(OSError):
                over |= len(os.listdir(f"/proc/{child}/task")) > THREADS
        if over:
            os.kill(child, signal.SIGKILL)
        done, code, used = os.wait4(child, 0 if over else os.WNOHANG)
    code, seconds = os.waitstatus_to_exitcode(code), ask["seconds"]
    if late or (code == -9 and used.ru_utime + used.ru_stime > 0.95 * seconds):
        how = f"timeout: {seconds:g} s"
    else:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    report = {"code": code, "how": how, "locked": os.read(locked, 1) == b"."}
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(report).encode())
    os._exit(0)


def main(config: dict) -> None:
    """Build the jail, say so, fork a keeper for each request of the host until it is gone."""
    control = socket.socket(fileno=config["control"])
    walls, host, unique = config["walls"], os.getppid(), os.getpid() * 64
    below = [folder for folder in walls["readable"] if folder.startswith("/tmp/")]
    # A process's own /tmp covers these: where it finds them again.
    walls["again"] = {folder: f"/.readable/{n}" for n, folder in enumerate(below)}
    _preload()
    root = os.geteuid() == 0
    walls["landlock"] = walls["landlock"] and kernel.landlock_version() > 0
    if walls["namespaces"]:
        build(walls)
    elif walls["landlock"]:
        paths = [path for one in walls["readable"] for path in (one, *Path(one).parents)]
        root = root and all(os.stat(path).st_mode & 1 for path in paths)  # everybody reaches it
    else:
        raise OSError("the kernel has no Landlock")
    release = [int(part) for part in os.uname().release.split(".")[:2] if part.isdigit()]
    walls["nobody"] = root
    walls["counted"] = root or (walls["namespaces"] and release >= [5, 14])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control.send(json.dumps(walls).encode())
    control.settimeout(0.2)
    while os.getppid() == host:  # which may die without a word
        try:
            message, (status, *fds), _, _ = socket.recv_fds(control, 4096, 8)
        except TimeoutError:
            continue
        except ValueError:  # no message: it hung up
            return
        unique += 1
        if os.fork() == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                call("prctl", 1, signal.SIGKILL)
                control.close()
                _keep(status, fds, walls, json.loads(message), unique)
            finally:
                os._exit(1)
        for fd in (status, *fds):
            os.close(fd)
        control.send(b".")  # one request at a time: this one has been read


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
