"""What runs inside the sandbox: started by sandbox.py as a script, with nothing but the stdlib.

    sandbox.py ── launcher ── zygote ──┬─ keeper ── program    (the model's code; hostile)
     (trusted)    waits       prepares └─ keeper ── examiner   (the tests; contained too)
                              the jail   kills at the limit

The zygote builds the jail once and forks a keeper for each request; the keeper forks the process
that is locked in (`lock_in`), kills it at its limit and reports how it ended, over a socket that
the locked process does not have. No secret is ever in the memory that a program is forked from.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import fcntl
import json
import math
import os
import platform
import re
import resource
import select
import signal
import socket
import struct
import sys
import time
import types

LONGEST = 16 * 2**20  # bytes of one message between program and examiner, of one file, of /tmp
ID = 65534  # who a locked process is, inside
THREADS = 64
UNIQUE_ID = 0x70000000  # outside, where we are root: a user of its own for each process

# ---------------------------------------------------------------------- plain data, and only that


class NotPlain(TypeError):
    """A value that cannot cross the border between program and tests."""


class Opaque:
    """In the tests, a result that is not plain data: it is there, and equals nothing."""


def _refuse(value):
    raise NotPlain(f"{type(value).__name__} is not plain data")


def pack(value, other=_refuse):
    """Plain data -> JSON-able. Subclasses become their plain type; iterators become lists once.

    other(value) packs what is not plain data.
    """
    from collections import deque
    from decimal import Decimal
    from fractions import Fraction

    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        value = int.__int__(value)
        return value if abs(value) < 2**63 else {"t": "int", "v": hex(value)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [pack(item, other) for item in list.__iter__(value)]
    if isinstance(value, dict):
        return {"t": "dict", "v": [[pack(k, other), pack(v, other)] for k, v in dict.items(value)]}
    for kind in (tuple, set, frozenset, deque):
        if isinstance(value, kind):
            return {"t": kind.__name__, "v": [pack(item, other) for item in kind.__iter__(value)]}
    for kind in (bytes, bytearray):
        if isinstance(value, kind):
            return {"t": kind.__name__, "v": bytes(value).decode("latin-1")}
    if isinstance(value, complex):
        return {"t": "complex", "v": [value.real, value.imag]}
    if isinstance(value, range):
        return {"t": "range", "v": [value.start, value.stop, value.step]}
    if isinstance(value, Decimal | Fraction):
        return {"t": type(value).__name__, "v": str(value)}
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and value.ndim == 0:
        return pack(value.item(), other)
    if hasattr(value, "__next__") or isinstance(
        value, type({}.keys()) | type({}.values()) | type({}.items())
    ):
        return {"t": "iterator", "v": [pack(item, other) for item in value]}
    return other(value)


def unpack(data):
    """The inverse of pack. Whatever data says, the result is made of exact builtin types."""
    from collections import deque
    from decimal import Decimal
    from fractions import Fraction

    if isinstance(data, list):
        return [unpack(item) for item in data]
    if not isinstance(data, dict):
        return data
    kind, value = data["t"], data["v"]
    if kind == "opaque":
        return Opaque()
    if kind == "dict":
        return {unpack(k): unpack(v) for k, v in value}
    if kind == "int":
        return int(value, 16)
    if kind in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[kind](value.encode("latin-1"))
    if kind in ("complex", "range"):
        return {"complex": complex, "range": range}[kind](*value)
    if kind in ("Decimal", "Fraction"):
        return {"Decimal": Decimal, "Fraction": Fraction}[kind](value)
    make = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "iterator": iter}
    return make[kind]([unpack(item) for item in value])


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(fd: int, message) -> None:
    data = json.dumps(message).encode()
    if len(data) > LONGEST:
        raise OverflowError("the value is too large")
    _write(fd, struct.pack("!I", len(data)) + data)


def receive(fd: int):
    (size,) = struct.unpack("!I", _read(fd, 4))
    if size > LONGEST:
        raise ValueError("the message is too large")
    return json.loads(_read(fd, size))


def clean(text: str) -> str:
    """A program's words, safe to print: one short line of ASCII."""
    return re.sub(r"[^ -~]", lambda match: ascii(match[0])[1:-1], text)[:200]


def _brief(error: BaseException, *, named: bool = True) -> str:
    try:
        return clean(f"{type(error).__name__}: {error}" if named else str(error))
    except BaseException:  # its __str__ is the program's
        return "an error"


# --------------------------------------------------------------------------------- the program


def _module(name: str, program: str) -> dict:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(program, "<program>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _function(names: dict, path: str):
    """`f`, or `Solution().f`: a method of an instance made for the purpose."""
    owner, _, method = path.rpartition("().")
    return getattr(names[owner](), method) if owner else names[path]


def serve(program: str) -> None:
    """Load the program, then answer calls with plain data until the examiner is done. fd 3."""
    try:
        names = _module("program", program)
    except BaseException as error:
        return send(3, {"ended": _brief(error)})
    opaque = lambda value: {"t": "opaque", "v": None}  # noqa: E731

    def overrun(*_):
        raise TimeoutError("the call took too long")

    signal.signal(signal.SIGPROF, overrun)
    send(3, {"ready": True})
    while True:
        try:
            ask = receive(3)
        except EOFError:
            return None
        try:
            if "names" in ask:
                found = {}
                for name in ask["names"]:
                    if name in names and callable(names[name]):
                        found[name] = {"callable": True}
                    elif name in names:
                        with contextlib.suppress(NotPlain):
                            found[name] = {"value": pack(names[name])}
                send(3, {"names": found})
                continue
            function = _function(names, ask["call"])
            args, kwargs = unpack(ask["args"]), unpack(ask["kwargs"])
            signal.setitimer(signal.ITIMER_PROF, ask["seconds"] or 0)
            answer = {"value": pack(function(*args, **kwargs), opaque)}
            signal.setitimer(signal.ITIMER_PROF, 0)
        except BaseException as error:
            answer = {"raised": type(error).__name__, "message": _brief(error, named=False)}
        try:
            send(3, answer)
        except (OverflowError, RecursionError) as error:
            send(3, {"raised": "OverflowError", "message": _brief(error, named=False)})


def script(program: str) -> None:
    """Run the program as a script: standard input is fd 0, standard output fd 1."""
    text = {"encoding": "utf-8", "errors": "surrogateescape", "closefd": False}
    sys.stdin, sys.stdout = open(0, **text), open(1, "w", **text)  # noqa: SIM115
    code = 0
    try:
        _module("__main__", program)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else error.code is not None
    except BaseException as error:
        code = 1
        _write(3, _brief(error).encode())
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    os._exit(code & 255)


# -------------------------------------------------------------------------------- the examiner


class Ended(BaseException):
    """The program is gone, or answers nonsense: no `except Exception` of a test may hide that."""


class ProgramError(Exception):
    """An exception of the program that has no plain counterpart here."""


class Unfit(BaseException):
    """The tests themselves are at fault."""


# What a test may expect. Not StopIteration: it would end a loop of the tests early, and silently.
_ERRORS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, StopIteration | StopAsyncIteration | Warning | BaseExceptionGroup)
    and not issubclass(kind, UnicodeError)  # their constructors take more than a message
}


NONSENSE = "the program's answer is not plain data"


class _Talk:
    """The examiner's side of the channel.

    What went wrong once stays wrong, whatever a bare `except` of the tests makes of it.
    """

    def __init__(self):
        self.calls = 0
        self.fault: BaseException | None = None

    def stop(self, fault: BaseException):
        self.fault = self.fault or fault
        raise self.fault

    def hear(self, question=None) -> dict:
        """The program's next message, after a question if there is one."""
        if self.fault is not None:
            raise self.fault
        try:
            if question is not None:
                send(3, question)
            answer = receive(3)
            if not isinstance(answer, dict):
                raise ValueError
        except (EOFError, OSError):
            self.stop(Ended("the program ended early"))
        except OverflowError as error:
            self.stop(Ended(str(error)))
        except (ValueError, RecursionError, MemoryError):
            self.stop(Ended(NONSENSE))
        return answer

    def unpack(self, data):
        try:
            return unpack(data)
        except Exception:
            self.stop(Ended(NONSENSE))

    def _other(self, value):
        if isinstance(value, Opaque):
            self.stop(Ended(NONSENSE))
        self.stop(Unfit(f"the tests pass what cannot be sent: {type(value).__name__}"))

    def stub(self, path: str, seconds: float | None = None):
        def call(*args, **kwargs):
            question = {"call": path, "args": pack(args, self._other), "seconds": seconds}
            question["kwargs"] = pack(kwargs, self._other)
            answer = self.hear(question)
            self.calls += 1
            if "value" in answer:
                return self.unpack(answer["value"])
            raised, message = str(answer.get("raised")), str(answer.get("message"))[:200]
            raise _ERRORS.get(raised, ProgramError)(message)

        call.__name__ = path
        return call

    def names(self, wanted: list[str]) -> dict:
        """Of the names that the program has: calls to it, or plain data."""
        found, result = self.hear({"names": wanted}).get("names"), {}
        for name in wanted:
            one = found.get(name) if isinstance(found, dict) else None
            if isinstance(one, dict):
                callable_ = one.get("callable")
                result[name] = self.stub(name) if callable_ else self.unpack(one.get("value"))
        return result


def _names(code) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def examine(tests: str) -> None:
    """Run the tests; the program's names in them are calls to its process. The verdict: fd 4."""

    def verdict(passed: bool, reason: str, unfit: bool = False) -> None:
        send(4, {"passed": passed, "reason": clean(reason), "unfit": unfit})

    try:
        code = compile(tests, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return verdict(False, f"the tests do not compile: {error}", True)
    own = lambda name: hasattr(builtins, name) or name.startswith("__")  # noqa: E731
    wanted = sorted(name for name in _names(code) if not own(name))
    if not wanted:
        return verdict(False, "the tests never call the program", True)
    talk = _Talk()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    reason = ""
    try:
        first = talk.hear()
        if not first.get("ready"):
            talk.stop(Ended(str(first.get("ended"))))
        module.__dict__.update(talk.names(wanted), remote=talk.stub)
        exec(code, module.__dict__)
    except (Ended, Unfit):
        pass  # talk has it
    except BaseException as error:
        trace, line = error.__traceback__, 0
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<tests>":
                line = trace.tb_lineno
            trace = trace.tb_next
        reason = f"line {line} of the tests: {_brief(error)}"
    if talk.fault is not None:
        return verdict(False, str(talk.fault), isinstance(talk.fault, Unfit))
    if not reason and not talk.calls:
        reason = "the tests never called the program"
    return verdict(not reason, reason)


# ------------------------------------------------------------------------- the kernel's interfaces

_libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = (
    1, 2, 4, 8, 32, 0x1000, 0x4000, 0x40000,
)  # fmt: skip


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(number: int, *args) -> int:
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _check(_libc.syscall(ctypes.c_long(number), *args), f"system call {number}")


def _prctl(option: int, *args: int) -> None:
    values = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(option, *values), f"prctl {option}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encode = lambda text: None if text is None else os.fsencode(text)  # noqa: E731
    result = _libc.mount(
        encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), os.fsencode(options)
    )
    _check(result, f"mount {target}")


# Numbers of the system calls on (x86_64, aarch64); -1: there is none.
_SYSCALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "futex": (202, 98), "openat": (257, 56), "newfstatat": (262, 79), "getdents64": (217, 61),
    "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "open": (2, -1), "stat": (4, -1), "lstat": (6, -1), "statx": (332, 291), "access": (21, -1),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, -1),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "mkdir": (83, -1),
    "mkdirat": (258, 34), "rmdir": (84, -1), "unlink": (87, -1), "unlinkat": (263, 35),
    "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "ftruncate": (77, 46),
    "fsync": (74, 82), "statfs": (137, 43), "fstatfs": (138, 44), "dup": (32, 23),
    "dup2": (33, -1), "dup3": (292, 24), "pipe": (22, -1), "pipe2": (293, 59), "poll": (7, -1),
    "ppoll": (271, 73), "select": (23, -1), "pselect6": (270, 72), "mremap": (25, 216),
    "madvise": (28, 233), "sigaltstack": (131, 132), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "time": (201, -1), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165),
    "times": (100, 153), "getrlimit": (97, 163), "set_robust_list": (273, 99),
    "rseq": (334, 293), "set_tid_address": (218, 96), "restart_syscall": (219, 128),
    "umask": (95, 166), "setitimer": (38, 103), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CALLS = {  # looked at more closely, or needed by ourselves
    "clone": (56, 220), "clone3": (435, 435), "fcntl": (72, 25), "ioctl": (16, 29),
    "tgkill": (234, 131), "prlimit64": (302, 261), "pivot_root": (155, 41), "capset": (126, 91),
    "mount_setattr": (442, 442), "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip
_ARCHITECTURE = _ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" else None


def _number(name: str) -> int:
    if _ARCHITECTURE is None:
        raise OSError(f"unknown on {sys.platform} {platform.machine()}")
    return (_SYSCALLS.get(name) or _CALLS[name])[_ARCHITECTURE[0]]


def _filter() -> bytes:
    """The seccomp program: what is on the list is allowed, the rest fails with EPERM.

    No processes (only threads), no sockets, no signals to others, no exec, no ptrace, no mounts.
    """
    load, jump, at_least, mask, end = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000
    number, arch, args = 0, 4, 16  # offsets in struct seccomp_data
    eperm, enosys = error | 1, error | 38
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, arch), (jump, 1, 0, _ARCHITECTURE[1]), (end, 0, 0, kill),
        (load, 0, 0, number), (at_least, 0, 1, 0x40000000), (end, 0, 0, kill),  # the x32 calls
    ]  # fmt: skip
    for numbers in _SYSCALLS.values():
        if (one := numbers[_ARCHITECTURE[0]]) >= 0:
            code += [(jump, 0, 1, one), (end, 0, 0, allow)]

    def only(name: str, argument: int, values: tuple[int, ...], bits: int | None = None) -> None:
        """Allow the call if its argument, the bits of it that count, is one of these."""
        test = [(load, 0, 0, args + 8 * argument)]
        test += [] if bits is None else [(mask, 0, 0, bits)]
        for value in values:
            test += [(jump, 0, 1, value), (end, 0, 0, allow)]
        test.append((end, 0, 0, eperm))
        code.extend([(jump, 0, len(test), _number(name)), *test])

    namespaces = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
    only("clone", 0, (0x10000,), 0x10000 | namespaces)  # threads
    code += [(jump, 0, 1, _number("clone3")), (end, 0, 0, enosys)]  # glibc then takes clone
    only("fcntl", 1, (0, 1, 2, 3, 4, 1030))  # not F_SETOWN, which sends signals
    only("ioctl", 1, (0x5401, 0x5413, 0x5421, 0x5450, 0x5451))  # is it a terminal; close on exec
    only("tgkill", 0, (os.getpid(),))
    high = args + 8 * 2 + 4  # prlimit64: only to read, so the pointer to new limits must be null
    code += [
        (jump, 0, 6, _number("prlimit64")), (load, 0, 0, high), (jump, 0, 2, 0),
        (load, 0, 0, high - 4), (jump, 1, 0, 0), (end, 0, 0, eperm), (end, 0, 0, allow),
    ]  # fmt: skip
    code.append((end, 0, 0, eperm))
    return b"".join(struct.pack("HBBI", *one) for one in code)


def _seccomp() -> None:
    program = _filter()
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    one = Program(len(program) // 8, ctypes.addressof(buffer))
    _prctl(22, 2, ctypes.addressof(one))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _landlock_version() -> int:
    """0: the kernel has none."""
    try:
        return _syscall(_number("landlock_create_ruleset"), 0, 0, 1)
    except OSError:
        return 0


def _landlock(readable: list[str], seen: list[str], writable: list[str]) -> None:
    """No file but below these folders; no TCP; nothing of other processes."""
    version = _landlock_version()
    bits = 13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16
    attributes = struct.pack("QQQ", 2**bits - 1, 3, 3)
    size = 8 if version < 4 else 16 if version < 6 else 24
    buffer = ctypes.create_string_buffer(attributes)
    rules = _syscall(_number("landlock_create_ruleset"), buffer, size, 0)
    read, see = 0b1100, 0b1000  # read files, list folders; not execute
    write = 0b0100000110111110 & (2**bits - 1)  # and make, change, remove plain files and folders
    for folders, rights in ((readable, read), (seen, see), (writable, write)):
        for folder in folders:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd))
            _syscall(_number("landlock_add_rule"), rules, 1, rule, 0)
            os.close(fd)
    _syscall(_number("landlock_restrict_self"), rules, 0)
    os.close(rules)


def _drop_capabilities() -> None:
    header = ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0))
    _syscall(_number("capset"), header, ctypes.create_string_buffer(bytes(24)))


# ------------------------------------------------------------------------------------- the jail


def _read_only(target: str) -> None:
    try:
        set_ = struct.pack("QQQQ", _RDONLY | _NOSUID | _NODEV, 0, 0, 0)
        _syscall(_number("mount_setattr"), -100, ctypes.create_string_buffer(os.fsencode(target)),
                 0x8000, ctypes.create_string_buffer(set_), len(set_))  # fmt: skip
    except OSError:  # kernels before 5.12; flags that are locked must be kept
        kept = os.statvfs(target).f_flag & (_NOEXEC | 0x400 | 0x800 | 0x200000)
        _mount("none", target, None, kept | _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def _below_tmp(readable: list[str]) -> dict[str, str]:
    """Readable folders that a process's own /tmp covers, and where it finds them again."""
    covered = [folder for folder in readable if folder.startswith("/tmp/")]
    return {folder: f"/.readable/{number}" for number, folder in enumerate(covered)}


def build(readable: list[str], hidden: list[str]) -> None:
    """Leave the host: new namespaces, and a root that holds the readable folders and /tmp."""
    user, group = os.geteuid(), os.getegid()
    flags = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS | NEWCGROUP
    _check(_libc.unshare(flags if user == 0 else flags | NEWUSER), "unshare")
    if user != 0:
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"{ID} {user} 1"), ("gid_map", f"{ID} {group} 1"),
        ):  # fmt: skip
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    socket.sethostname("sandbox")
    os.chdir("/")
    root = "/proc"  # a folder that is there on every system and that nothing below needs
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("none", root, "tmpfs", _NOSUID | _NODEV | _NOEXEC, "size=1m,nr_inodes=256,mode=755")
    os.umask(0o022)
    for folder in readable:
        os.makedirs(root + folder, exist_ok=True)
        _mount(folder, root + folder, None, _BIND | _REC)
        _read_only(root + folder)
    for folder in hidden:
        if os.path.isdir(root + folder):
            _mount("none", root + folder, "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4k,mode=755")
    for folder, again in _below_tmp(readable).items():
        os.makedirs(root + again)
        _mount(root + folder, root + again, None, _BIND | _REC)  # as read-only as the original
    os.makedirs(root + "/tmp", exist_ok=True)
    os.chdir(root)
    dot = ctypes.create_string_buffer(b".")
    _syscall(_number("pivot_root"), dot, dot)
    _check(_libc.umount2(b".", 2), "umount")
    os.chdir("/")
    _mount("none", "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _NOEXEC)


def _limits(jail: dict, seconds: float, memory: int) -> None:
    cpu = max(1, math.ceil(seconds))
    for name, value in (
        ("CPU", cpu), ("AS", memory), ("DATA", memory), ("STACK", min(memory, 2**26)), ("CORE", 0),
        ("FSIZE", LONGEST), ("NOFILE", 64), ("NPROC", THREADS), ("MEMLOCK", 0), ("MSGQUEUE", 0),
        ("SIGPENDING", 64), ("RTPRIO", 0),
    ):  # fmt: skip
        if name == "NPROC" and not jail["counted"]:
            continue
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            with contextlib.suppress(ValueError if sys.platform != "linux" else ()):
                resource.setrlimit(kind, (value, value))


def lock_in(jail: dict, seconds: float, memory: int, unique: int) -> None:
    """From here on this process can compute, read the stdlib, write to /tmp, and nothing else."""
    linux = sys.platform == "linux"
    if jail["namespaces"]:
        options = f"size={LONGEST},nr_inodes=256,mode=1777"
        _mount("none", "/tmp", "tmpfs", _NOSUID | _NODEV | _NOEXEC, options)
        for folder, again in _below_tmp(jail["readable"]).items():
            os.makedirs(folder)
            _mount(again, folder, None, _BIND | _REC)
        os.chdir("/tmp")
    else:
        os.chdir("/")
    _limits(jail, seconds, memory)
    if linux:
        _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    if jail["landlock"]:
        _landlock(jail["readable"], jail["path"], ["/tmp"] if jail["namespaces"] else [])
    if jail["nobody"]:  # where neither user exists we stay root, without any of its powers
        for one in (UNIQUE_ID + unique % 2**22, ID):
            with contextlib.suppress(OSError):
                os.setgroups([])
                os.setresgid(one, one, one)
                os.setresuid(one, one, one)
                break
    if linux:
        if jail["seccomp"]:
            _drop_capabilities()
        _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        _prctl(4, 0)  # PR_SET_DUMPABLE
    if jail["seccomp"]:
        _seccomp()


# ------------------------------------------------------------------- launcher, zygote and keepers


def _preload() -> None:
    """Modules that programs use, and shared libraries, which lie outside the jail."""
    for name in (
        "array", "ast", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime",
        "decimal", "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json",
        "math", "operator", "random", "re", "statistics", "string", "struct", "threading", "time",
        "typing", "zlib", "bz2", "lzma", "_hashlib", "_ctypes", "unicodedata",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):
            __import__(name)
    for name in (  # for numpy
        "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libm.so.6",
        "libgcc_s.so.1", "libstdc++.so.6",
    ):  # fmt: skip
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)


def _locked(role: str, fds: list[int], ready: int, jail: dict, limits: dict, unique: int) -> None:
    """The process of one program or examiner. Says on ready that it is locked in, before it runs
    anything of theirs."""
    payload, *rest = fds
    with os.fdopen(payload, "rb") as file:
        text = file.read().decode("utf-8", "surrogatepass")
    os.setsid()
    for number, fd in enumerate(rest):  # 0 input, 1 output, 2 errors, 3 and 4 channels
        os.dup2(fd, number)
    os.closerange(len(rest), ready)
    os.closerange(ready + 1, 1024)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lock_in(jail, limits["seconds"], limits["memory_mb"] * 2**20, unique)
    sys.argv[:] = ["program"]
    sys.path[:] = jail["path"]
    builtins.exit = builtins.quit = sys.exit  # the module site, which has them, is not loaded
    os.environ.clear()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.write(ready, b".")
    os.close(ready)
    {"serve": serve, "script": script, "examine": examine}[role](text)


def _threads(process: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{process}/task"))
    return 0


def _keep(status: int, fds: list[int], jail: dict, ask: dict, unique: int) -> None:
    """Start the locked process, wait, kill it at its limit or when the host hangs up, report."""
    if jail["namespaces"]:
        _check(_libc.unshare(NEWPID | NEWNS), "unshare")
    locked, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(status)
            high = fcntl.fcntl(ready, fcntl.F_DUPFD, 100)  # out of the way of those that are kept
            _locked(ask["role"], fds, high, jail, ask, unique)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(ready)
    for fd in fds:
        os.close(fd)
    deadline, timeout = time.monotonic() + ask["wall"], False
    poll = select.poll()
    poll.register(status, select.POLLIN | select.POLLHUP)
    pidfd = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None
    watched = jail["seccomp"] and not jail["counted"]  # no rlimit counts its threads: we do
    if pidfd is not None:
        poll.register(pidfd, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        nap = 0.05 if watched else left if pidfd is not None else 0.01
        ready = poll.poll(max(0, min(left, nap)) * 1000)
        done, code, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        crowded = watched and _threads(child) > THREADS
        if left <= 0 or crowded or any(fd == status for fd, _ in ready):
            timeout = left <= 0
            os.kill(child, signal.SIGKILL)
            _, code, used = os.wait4(child, 0)
            break
    if not jail["seccomp"]:  # unprotected: what is left of its group
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
    report = {
        "code": os.waitstatus_to_exitcode(code),
        "timeout": timeout,
        "cpu": used.ru_utime + used.ru_stime,
        "locked": os.read(locked, 1) == b".",
    }
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(report).encode())
    os._exit(0)


def zygote(control: socket.socket, jail: dict, unique: int) -> None:
    """Fork a keeper for each request of the host, until it hangs up."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, _, _ = socket.recv_fds(control, 4096, 8)
        if not message:
            return
        unique += 1
        if os.fork() == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                if sys.platform == "linux":
                    _prctl(1, signal.SIGKILL)
                control.close()
                _keep(fds[0], fds[1:], jail, json.loads(message), unique)
            finally:
                os._exit(1)
        for fd in fds:
            os.close(fd)
        control.send(b".")  # one request at a time: this one has been read


def main(config: dict) -> None:
    control = socket.socket(fileno=config["control"])
    jail, linux, parent = config["jail"], sys.platform == "linux", os.getppid()
    unique = os.getpid() * 64
    try:
        _preload()
        release = [int(part) for part in platform.release().split(".")[:2] if part.isdigit()]
        root = os.geteuid() == 0
        if jail["namespaces"]:
            build(jail["readable"], jail["hidden"])
        elif jail["seccomp"] and root:  # may everybody reach the stdlib?
            folders = [f for one in jail["readable"] for f in _above(one)]
            root = all(os.stat(folder).st_mode & 1 for folder in folders)
        jail["nobody"] = root and jail["seccomp"]
        jail["counted"] = jail["nobody"] or (jail["namespaces"] and release >= [5, 14])
    except (OSError, ValueError) as error:
        control.send(json.dumps({"error": _brief(error)}).encode())
        return
    child = os.fork()
    if child == 0:
        try:
            if linux:
                _prctl(1, signal.SIGKILL)
            control.send(json.dumps({"ready": jail}).encode())
            zygote(control, jail, unique)
        finally:
            os._exit(0)
    control.close()
    while os.waitpid(child, os.WNOHANG)[0] == 0:  # the host may die without a word
        if os.getppid() != parent:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.2)


def _above(folder: str) -> list[str]:
    return [folder] if folder == "/" else [folder, *_above(os.path.dirname(folder))]


if __name__ == "__main__":
    sys.modules["jail"] = sys.modules["__main__"]
    main(json.loads(sys.argv[1]))
