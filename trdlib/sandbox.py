"""Code that a model wrote is hostile: it runs here, or nowhere.

`check(program, tests)` runs the tests against the program; `run(program, stdin)` runs the program
as a script. What a program can do: compute, read Python's standard library (and numpy), write a few
megabytes to a /tmp of its own. It has no network, no processes but threads, no files of the
machine, no environment, and it is dead at its limits.

**The verdict cannot be forged from inside**, because program and tests never share a process. The
tests run in a second locked process, the examiner. A name that the tests do not define themselves
is asked of the program's process: a call sends its arguments there and gets *plain data* back
(numbers, strings, bytes, lists, tuples, dicts, sets, ...: exact builtin types, whatever the
program returned). So patched builtins, `__eq__`, exit codes, printed markers, tracing and frame
walking meet a process in which nothing is decided. What remains possible:

1. A program may recognise the arguments of a test and answer by heart. It sees every argument, and
   no expected value, unless the tests pass one to it.
2. A program may answer a later call early or late: it can only change its own answers.
3. Arguments are copies: a test of in-place changes or of identity fails, also for a right program.
   What cannot be sent (functions, objects) is a fault of the tests: ValueError. A result that is
   not plain data is there (`is not None`), and equals nothing.
4. An exception of the program reaches the tests as the builtin of the same name. StopIteration and
   what is no Exception does not: they would end a loop of the tests early, and silently.
5. A name that is a builtin means the builtin, whatever the program defines. In the tests,
   `remote("sum")` is the program's, `remote("Solution().f", seconds=4)` a method of a new instance;
   a call that takes longer (CPU time) raises TimeoutError, unless the program prevents it: then the
   limit for the whole program holds.
6. It may burn its time and memory limits, and learn the kernel's version, the machine's uptime,
   and in which folders Python and this module lie.

What protects, on Linux (x86_64, aarch64), for users and for root alike:
- seccomp: a short list of system calls, the rest fails. Always needed.
- namespaces: an empty file system with the standard library read-only, no network interface, no
  other process in sight; killing the first process kills all. Where they are forbidden (most
  containers), Landlock does the files: the same folders, read-only, and no /tmp; names and sizes of
  other files can then still be seen.
- rlimits on CPU time, memory, file size, open files, threads; a keeper for the wall clock (and for
  the threads, where no rlimit counts them for us).
Elsewhere nothing protects, and nothing runs, unless TRD_UNPROTECTED=1 says so.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from trdlib import jail

UNPROTECTED = "TRD_UNPROTECTED"
PACKAGES = ("numpy",)  # beside the standard library
OUTPUT = 16 * 2**20  # bytes of standard output
DIED = "the sandbox itself failed, twice: is there enough memory for its workers?"


class SandboxError(RuntimeError):
    """The sandbox itself does not work here; the message says what to do."""


class Died(SandboxError):
    """The machinery, which no program can reach, was killed; most likely for want of memory."""


class Verdict(NamedTuple):
    passed: bool
    reason: str  # why not; ASCII, parts of it are the program's words


class Output(NamedTuple):
    """Of a script: what it printed, and why it failed ("" if it did not)."""

    stdout: bytes
    reason: str
    seconds: float  # of CPU time


# ------------------------------------------------------------------------------------ the jail


def _folders() -> tuple[list[str], list[str], list[str]]:
    """(what a program may read, what of it is hidden, its sys.path)"""
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    readable, path = [stdlib], [stdlib]
    dynamic = os.path.realpath(os.path.join(sysconfig.get_config_var("DESTSHARED") or stdlib))
    if os.path.isdir(dynamic):
        path.append(dynamic)
        if not dynamic.startswith(stdlib):
            readable.append(dynamic)
    hidden = [os.path.join(stdlib, "site-packages"), os.path.join(stdlib, "dist-packages")]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            continue
        folder = os.path.dirname(os.path.realpath(spec.origin))
        site = os.path.dirname(folder)
        if site in hidden:
            hidden.remove(site)
        readable += [one for one in (folder, f"{folder}.libs") if os.path.isdir(one)]
        path.append(site)
    return readable, hidden, path


class _Jail:
    """A zygote of jail.py, which starts locked processes on request. One thread at a time."""

    def __init__(self, *, namespaces: bool, landlock: bool, protected: bool = True):
        readable, hidden, path = _folders()
        self.owner = os.getpid()
        self.jail = {
            "namespaces": namespaces, "seccomp": protected,
            "landlock": protected and landlock,
            "readable": readable, "hidden": hidden, "path": path,
        }  # fmt: skip
        self.control, theirs = socket.socketpair()
        config = json.dumps({"control": theirs.fileno(), "jail": self.jail})
        # Hash order must not depend on chance; nothing of our environment goes in.
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", jail.__file__, config],
            env={"PYTHONHASHSEED": "0"}, cwd="/", pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self.control.settimeout(60)
        try:
            hello = json.loads(self.control.recv(2**16) or b"{}")
        except OSError:
            hello = {}
        if "ready" not in hello:
            self.kill()
            with self.process.stderr as errors:
                why = hello.get("error") or errors.read().decode()[-300:] or "no answer"
            raise SandboxError(f"the sandbox did not start: {why}")
        self.process.stderr.close()

    def usable(self) -> bool:  # after a fork it belongs to the parent
        return self.owner == os.getpid() and self.process.poll() is None

    def start(self, role: str, text: str, fds: list[int], *, seconds: float, memory_mb: int):
        """A locked process with these file descriptors from 0 on; returns its keeper's socket."""
        status, theirs = socket.socketpair()
        ask = {"role": role, "seconds": seconds, "wall": 3 * seconds + 2, "memory_mb": memory_mb}
        with theirs, _file(text.encode("utf-8", "surrogatepass")) as payload:
            sent = [theirs.fileno(), payload.fileno(), *fds]
            try:
                socket.send_fds(self.control, [json.dumps(ask).encode()], sent)
                if not self.control.recv(1):
                    raise OSError
            except OSError:
                raise Died(DIED) from None
        return status

    def kill(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()


def _file(data: bytes):
    """An open file with this content and no name, which nobody can change (on Linux)."""
    if not hasattr(os, "memfd_create"):
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.write(data)
        file.seek(0)
        return file
    import fcntl

    file = os.fdopen(os.memfd_create("data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")
    file.write(data)
    file.seek(0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, 15)  # no more writing, growing, shrinking, sealing
    return file


def landlock_version() -> int:
    return jail._landlock_version() if jail._ARCHITECTURE else 0


class Protection(NamedTuple):
    """What protects on this machine."""

    safe: bool
    namespaces: bool
    landlock: bool
    why: str  # what is missing, and its cause

    def __str__(self) -> str:
        walls = [name for name in ("namespaces", "landlock") if getattr(self, name)]
        return ", ".join(["seccomp", *walls]) if self.safe else "nothing"


_protection: Protection | None = None
_lock = threading.Lock()


def protection() -> Protection:
    """Found by trying, once per process."""
    global _protection
    with _lock:
        if _protection is None:
            _protection = _try()
        return _protection


_PROBE = """
import ctypes, os, socket
def tries():
    found = []
    for name, attempt in {
        "fork": os.fork, "socket": socket.socket, "setsid": os.setsid,
        "read": lambda: open("/etc/passwd"), "list": lambda: os.listdir("/proc"),
        "write": lambda: open(os.__file__, "r+"), "signal": lambda: os.kill(os.getppid(), 0),
    }.items():
        try:
            attempt()
            found.append(name)
        except OSError:
            pass
    return found
"""


def _try() -> Protection:
    if jail._ARCHITECTURE is None:
        return Protection(False, False, False, f"no seccomp for {sys.platform} in jail.py")
    why, landlock = "", landlock_version() > 0
    for namespaces in (True, False):
        if not namespaces and not landlock:
            break
        try:
            one = _Jail(namespaces=namespaces, landlock=landlock)
        except SandboxError as error:
            why = str(error)
            continue
        verdict = _check(one, _PROBE, "assert not tries(), tries()", seconds=5, memory_mb=512)
        if verdict.passed:
            _idle.append(one)
            return Protection(True, namespaces, landlock, why)
        one.kill()
        why = f"a probe got out of the sandbox or did not run: {verdict.reason}"
    return Protection(False, False, False, why)


_idle: list[_Jail] = []


@contextlib.contextmanager
def _borrow():
    """A jail; it is lent again only if nothing went wrong with it."""
    one = None
    while one is None:
        try:
            one = _idle.pop()
        except IndexError:
            found = protection()
            if not found.safe and os.environ.get(UNPROTECTED) != "1":
                raise SandboxError(
                    f"nothing protects this machine from a model's code ({found.why}): use Linux "
                    f"with user namespaces or Landlock, or accept the risk with {UNPROTECTED}=1"
                ) from None
            if not _idle:
                one = _Jail(
                    namespaces=found.namespaces, landlock=found.landlock, protected=found.safe
                )
            continue
        if not one.usable():
            if one.owner == os.getpid():
                one.kill()
            one = None
    try:
        yield one
    except ValueError:  # the tests' fault, not the jail's
        _idle.append(one)
        raise
    except BaseException:
        one.kill()
        raise
    _idle.append(one)


@atexit.register
def _close() -> None:
    while _idle:
        one = _idle.pop()
        if one.owner == os.getpid():
            one.kill()


# --------------------------------------------------------------------------- one program


def _end(status: socket.socket, hang_up: bool) -> dict:
    """How the locked process ended. Its keeper answers once it is dead.

    One that we hang up on may not have come to run its program: its caller judges.
    """
    with status:
        if hang_up:
            with contextlib.suppress(OSError):
                status.shutdown(socket.SHUT_WR)
        try:
            end = json.loads(status.recv(4096))
        except (OSError, ValueError):
            raise Died(DIED) from None
    if not end["locked"] and not hang_up:  # it never came to run the program
        raise Died(DIED)
    return end


def _how(end: dict, seconds: float) -> str:
    """Why a process that did not finish its work ended."""
    if end["timeout"] or (end["code"] == -9 and end["cpu"] > 0.95 * seconds):
        return f"timeout: {seconds:g} s"
    if end["code"] < 0:
        return f"killed by signal {-end['code']}"
    return f"exit code {end['code']}"


def _check(one: _Jail, program: str, tests: str, **limits) -> Verdict:
    null = os.open(os.devnull, os.O_RDWR)
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    with os.fdopen(read, "rb") as file:
        try:
            with ours, theirs:
                common = [null, null, null]
                served = one.start("serve", program, [*common, theirs.fileno()], **limits)
                examined = one.start("examine", tests, [*common, ours.fileno(), write], **limits)
        finally:
            os.close(null)
            os.close(write)
        said = file.read(2**16)
    examiner = _end(examined, hang_up=False)
    programs = _end(served, hang_up=True)
    if not said:
        return Verdict(False, _how(examiner, limits["seconds"]))
    verdict = json.loads(said[4:])
    if verdict["unfit"]:
        raise ValueError(verdict["reason"])
    reason = verdict["reason"]
    if reason == "the program ended early":
        if not programs["locked"]:
            raise Died(DIED)
        how = _how(programs, limits["seconds"])
        reason = how if how.startswith("timeout") else f"{reason}: {how}"
    return Verdict(verdict["passed"] is True, reason)


def _run(one: _Jail, program: str, stdin: str, **limits) -> Output:
    read, write = os.pipe()
    notes, note = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    with os.fdopen(read, "rb") as file, os.fdopen(notes, "rb") as words:
        try:
            with _file(stdin.encode("utf-8", "surrogateescape")) as source:
                fds = [source.fileno(), write, null, note]
                status = one.start("script", program, fds, **limits)
        finally:
            for fd in (null, write, note):
                os.close(fd)
        said = file.read(OUTPUT + 1)
        end = _end(status, hang_up=len(said) > OUTPUT)
        why = words.read(200).decode("ascii", "replace")
    if len(said) > OUTPUT:
        reason = f"more than {OUTPUT} bytes of output"
    elif end["timeout"] or end["code"] != 0:
        reason = jail.clean(why) if end["code"] == 1 and why else _how(end, limits["seconds"])
    else:
        reason = ""
    return Output(said[:OUTPUT], reason, end["cpu"])


def _with_jail(work: Callable, *args, seconds: float, memory_mb: int):
    """work(jail, ...), and once more if the jail died under it."""
    if not 0 < seconds <= 3600:
        raise ValueError(f"seconds must be in (0, 3600], not {seconds}")
    if not 64 <= memory_mb <= 2**20:
        raise ValueError(f"memory_mb must be at least 64, for Python itself, not {memory_mb}")
    try:
        with _borrow() as one:
            return work(one, *args, seconds=seconds, memory_mb=memory_mb)
    except Died:
        with _borrow() as one:
            return work(one, *args, seconds=seconds, memory_mb=memory_mb)


def check(program: str, tests: str, *, seconds: float = 10, memory_mb: int = 1024) -> Verdict:
    """Does the program pass the tests? Both are Python source; the tests fail by raising.

    seconds: of CPU time, for the program (loading and all calls) and again for the tests; the wall
    clock stops both after three times that and two seconds. memory_mb: of address space, for each.
    ValueError: the tests are at fault. SandboxError: nothing protects here, see protection().
    """
    return _with_jail(_check, program, tests, seconds=seconds, memory_mb=memory_mb)


def run(program: str, stdin: str = "", *, seconds: float = 10, memory_mb: int = 1024) -> Output:
    """Run the program as a script, with limits as in check(); stdin is what it reads."""
    return _with_jail(_run, program, stdin, seconds=seconds, memory_mb=memory_mb)


def in_pool(function: Callable, items: Iterable, workers: int | None = None) -> list:
    """[function(item), ...], each in a thread; a jail serves one thread at a time.

    By default one per core, or one alone inside a job of parallel.run_jobs.
    """
    if workers is None:
        inside = multiprocessing.parent_process() is not None
        workers = 1 if inside else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def check_many(
    samples: Iterable[tuple[str, str]], *, seconds: float = 10, memory_mb: int = 1024,
    workers: int | None = None,
) -> list[Verdict]:  # fmt: skip
    """One verdict per (program, tests), in order; workers programs at a time, as in in_pool."""
    one = lambda sample: check(*sample, seconds=seconds, memory_mb=memory_mb)  # noqa: E731
    return in_pool(one, samples, workers)
