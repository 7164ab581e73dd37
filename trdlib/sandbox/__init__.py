"""Code that a model wrote is hostile: it runs here, or nowhere.

`check(program, tests)` runs the tests against the program; `run(program, stdin)` runs the program
as a script. **The verdict cannot be forged from inside**: program and tests do not share a process
(but for tests that cannot be run otherwise), and only plain data passes between the two; more in
docs/sandbox.md. This is the client; launcher.py starts, with kernel.py, processes of jail.py."""

import contextlib
import functools
import importlib.util
import json
import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from trdlib.sandbox import jail

LAUNCHER = os.path.join(os.path.dirname(__file__), "launcher.py")
OUTPUT = 16 * 2**20  # bytes of standard output
NULL = open(os.devnull, "r+b", buffering=0)  # noqa: SIM115


class SandboxError(RuntimeError):
    """The sandbox itself does not work here; the message says what to do."""


class Died(SandboxError):
    """The machinery, which no program can reach, was killed; most likely for want of memory."""

    def __str__(self) -> str:
        return "the sandbox itself failed, twice: is there enough memory for its workers?"


class Verdict(NamedTuple):
    passed: bool
    reason: str  # why not; ASCII, parts of it are the program's words


class Output(NamedTuple):
    stdout: bytes  # what the script printed
    reason: str  # why it failed ("" if it did not)


def _folders() -> dict[str, list[str]]:
    """What a program may read, what of it is hidden, its sys.path."""
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    dynamic = os.path.realpath(sysconfig.get_config_var("DESTSHARED") or stdlib)
    path = [stdlib, dynamic] if os.path.isdir(dynamic) else [stdlib]
    readable = [one for one in path if one == stdlib or not one.startswith(stdlib)]
    hidden = [os.path.join(stdlib, "site-packages"), os.path.join(stdlib, "dist-packages")]
    if (numpy := importlib.util.find_spec("numpy")) and numpy.origin:
        folder = os.path.dirname(os.path.realpath(numpy.origin))
        path.append(os.path.dirname(folder))
        hidden = [one for one in hidden if one not in path]
        readable += [one for one in (folder, f"{folder}.libs") if os.path.isdir(one)]
    return {"readable": readable, "hidden": hidden, "path": path}


class _Jail:
    """A launcher, which starts locked processes on request. One thread at a time."""

    def __init__(self, *, namespaces: bool, landlock: bool = True):
        walls = {"namespaces": namespaces, "landlock": landlock, **_folders()}
        self.control, theirs = socket.socketpair()
        self.control.settimeout(60)
        config = json.dumps({"control": theirs.fileno(), "walls": walls})
        # Hash order must not depend on chance; nothing of our environment goes in.
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-sSB", "-Xutf8", "-Xint_max_str_digits=0", LAUNCHER, config],
                env={"PYTHONHASHSEED": "0"}, cwd="/", pass_fds=[theirs.fileno()],
                stdin=NULL, stdout=NULL, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        with self.process.stderr as errors:
            try:
                self.walls = json.loads(_heard(self.control))
            except Died:
                self.kill()
                why = errors.read().decode().splitlines() or ["no answer"]
                raise SandboxError(f"the sandbox did not start: {why[-1]}") from None

    def start(self, role: str, text: str, files: list, *, seconds: float, memory_mb: int):
        """A locked process with these open files from 0 on; returns its keeper's socket."""
        status, theirs = socket.socketpair()
        ask = {"role": role, "seconds": seconds, "wall": 3 * seconds + 2, "memory_mb": memory_mb}
        with theirs, _file(text.encode("utf-8", "surrogatepass")) as payload:
            fds = [file.fileno() for file in (theirs, payload, *files)]
            with contextlib.suppress(OSError):
                socket.send_fds(self.control, [json.dumps(ask).encode()], fds)
            _heard(self.control)
        return status

    def kill(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()


def _heard(machinery: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        if said := machinery.recv(2**16):
            return said
    raise Died


def _file(data: bytes):
    """An open file with this content and no name, which can only be read."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return open(file.name, "rb")


class Protection(NamedTuple):
    safe: bool
    namespaces: bool
    landlock: bool
    why: str  # what is missing, and its cause

    def __str__(self) -> str:
        walls = [name for name in ("namespaces", "landlock") if getattr(self, name)]
        return ", ".join(["seccomp", *walls]) if self.safe else "nothing"


_PROBE = """
import contextlib, os, socket
def tries():
    found = []
    for name, attempt in {
        "fork": os.fork, "socket": socket.socket, "setsid": os.setsid,
        "read": lambda: open("/etc/passwd"), "list": lambda: os.listdir("/proc"),
        "write": lambda: open(os.__file__, "r+"), "signal": lambda: os.kill(os.getppid(), 0),
    }.items():
        with contextlib.suppress(OSError):
            attempt()
            found.append(name)
    return found
"""


@functools.cache
def protection() -> Protection:
    """Found by trying, once per process."""
    why = f"this is {sys.platform}"
    for namespaces in (True, False) if sys.platform == "linux" else ():
        try:
            one = _Jail(namespaces=namespaces)
        except SandboxError as error:
            why = str(error)
            continue
        verdict = _check(one, _PROBE, "assert not tries(), tries()", seconds=5, memory_mb=512)
        if verdict.passed:
            _idle.append(one)
            return Protection(True, namespaces, one.walls["landlock"], "" if namespaces else why)
        one.kill()
        why = f"a probe got out of the sandbox or did not run: {verdict.reason}"
    return Protection(False, False, False, why)


_idle: list[_Jail] = []
os.register_at_fork(after_in_child=_idle.clear)  # they belong to the parent


def _take() -> _Jail:
    """A jail that is free, or a new one."""
    found = protection()
    if not found.safe:
        what = f"nothing protects this machine from a model's code ({found.why})"
        raise SandboxError(f"{what}: use Linux with user namespaces or Landlock")
    with contextlib.suppress(IndexError):  # none is left, or another thread was faster
        while (one := _idle.pop()).process.poll() is not None:
            one.kill()
        return one
    return _Jail(namespaces=found.namespaces, landlock=found.landlock)


def _with_jail(work: Callable, *args, seconds: float, memory_mb: int):
    """work(jail, ...), twice if the jail died. One with which anything went wrong is not kept."""
    if not 0 < seconds <= 3600:
        raise ValueError(f"seconds must be in (0, 3600], not {seconds}")
    if not 64 <= memory_mb <= 2**20:
        raise ValueError(f"memory_mb must be at least 64, for Python itself, not {memory_mb}")
    for last in (False, True):
        one = _take()
        try:
            result = work(one, *args, seconds=seconds, memory_mb=memory_mb)
            _idle.append(one)
            return result
        except BaseException as error:
            one.kill()
            if last or not isinstance(error, Died):
                raise


def _end(status: socket.socket, hang_up: bool = False) -> dict:
    """How the process ended. If we hang up it may never have run its program: the caller judges."""
    with status:
        if hang_up:
            with contextlib.suppress(OSError):
                status.shutdown(socket.SHUT_WR)
        end = json.loads(_heard(status))
    if not end["locked"] and not hang_up:  # it never came to run the program
        raise Died
    return end


def _check(one: _Jail, program: str, tests: str, **limits) -> Verdict | None:
    """None: these tests need the program in their own process."""
    said, say = map(open, os.pipe(), ("rb", "wb"))
    ours, theirs = socket.socketpair()
    with said:
        with say, ours, theirs:
            served = one.start("serve", program, [NULL, NULL, NULL, theirs], **limits)
            examined = one.start("examine", tests, [NULL, NULL, NULL, ours, say], **limits)
        words = said.read(2**16)
    examiner, program = _end(examined), _end(served, hang_up=True)
    if not words:
        return Verdict(False, examiner["how"])
    passed, reason, unfit = json.loads(words)
    if reason == jail.ENDED:
        if not program["locked"]:
            raise Died
        how = program["how"]
        reason = how if how.startswith("timeout") else f"{reason}: {how}"
    return None if unfit else Verdict(passed is True, reason)


def _run(one: _Jail, program: str, stdin: str, **limits) -> Output:
    printed, out = map(open, os.pipe(), ("rb", "wb"))
    notes, note = map(open, os.pipe(), ("rb", "wb"))
    with printed, notes:
        with out, note, _file(stdin.encode("utf-8", "surrogateescape")) as source:
            status = one.start("script", program, [source, out, NULL, note], **limits)
        stdout = printed.read(OUTPUT + 1)
        end = _end(status, hang_up=len(stdout) > OUTPUT)
        why = notes.read(200).decode("ascii", "replace")
    reason = end["how"] if end["code"] else ""
    if len(stdout) > OUTPUT:
        reason = f"more than {OUTPUT} bytes of output"
    elif end["code"] == 1 and why:
        reason = jail.clean(why)
    return Output(stdout[:OUTPUT], reason)


_WHOLE = """
from jail import _module
def judge(program, tests, word):
    exec(compile(tests, "<tests>", "exec"), _module("program", program))
    return word
print("", judge{}, sep="\\n")
"""


def check(program: str, tests: str, *, seconds: float = 10, memory_mb: int = 1024) -> Verdict:
    """Does the program pass the tests? Both are Python source; the tests fail by raising. Those
    that hand a function or an object of their own to the program are run once more, in its process:
    it has passed if a word is printed that it was not told. seconds: of CPU time, for the program
    and again for the tests; the wall clock stops both after three times that and two seconds.
    memory_mb: of address space. ValueError: no tests. SandboxError: see protection()."""
    jail.compiled(tests)
    limits = {"seconds": seconds, "memory_mb": memory_mb}
    if verdict := _with_jail(_check, program, tests, **limits):
        return verdict
    word = secrets.token_hex()
    printed, reason = run(_WHOLE.format((program, tests, word)), **limits)
    passed = not reason and word.encode() in printed.splitlines()
    return Verdict(passed, reason or ("" if passed else jail.ENDED))


def run(program: str, stdin: str = "", *, seconds: float = 10, memory_mb: int = 1024) -> Output:
    """Run the program as a script, with limits as in check(); stdin is what it reads."""
    return _with_jail(_run, program, stdin, seconds=seconds, memory_mb=memory_mb)


def in_pool(function: Callable, items: Iterable, workers: int | None = None) -> list:
    """[function(item), ...], each in a thread; by default one per core."""
    # inside a job of jobs.run_jobs: one alone
    alone = 1 if multiprocessing.parent_process() else os.cpu_count()
    with ThreadPoolExecutor(workers or alone) as pool:
        return list(pool.map(function, items))
