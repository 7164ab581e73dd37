"""What the jail is built of: namespaces, mounts, Landlock, seccomp. Linux on x86_64 and aarch64.
Numbers and structures are those of the kernel's own headers (include/uapi)."""

import ctypes
import json
import os
import struct

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
REMOUNT, BIND, REC, PRIVATE = 32, 0x1000, 0x4000, 0x40000

# (column of the tables, the kernel's number for it). KeyError elsewhere: then nothing runs.
_COLUMN, _MACHINE = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[os.uname().machine]
# Numbers of the system calls, -1 where there is none: those allowed, and all that we know by name.
with open(os.path.join(os.path.dirname(__file__), "syscalls.json"), "rb") as _file:
    _TABLES = [{k: v[_COLUMN] for k, v in one.items()} for one in json.load(_file).values()]
ALLOWED, NUMBERS = _TABLES[0], _TABLES[0] | _TABLES[1]

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: int | bytes | str | None) -> int:
    """A system call, whose integers are longs and whose texts are paths. OSError says which."""
    given = (NUMBERS[name], *args, 0, 0, 0, 0)
    words = [os.fsencode(a) if isinstance(a, str) else a for a in given]
    result = _libc.syscall(*(ctypes.c_long(w) if isinstance(w, int) else w for w in words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def bind(source: str, target: str) -> None:
    """The source is at target too, read-only, with all mounts below it."""
    os.makedirs(target, exist_ok=True)
    call("mount", source, target, None, BIND | REC)
    flags = struct.pack("QQQQ", RDONLY | NOSUID | NODEV, 0, 0, 0)
    try:
        call("mount_setattr", -100, target, 0x8000, flags, len(flags))
    except OSError:  # kernels before 5.12; flags that are locked must be kept
        kept = os.statvfs(target).f_flag & (NOEXEC | 0x400 | 0x800 | 0x200000)
        call("mount", "none", target, None, kept | REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def landlock_version() -> int:
    """0: the kernel has none."""
    try:
        return call("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        return 0


def landlock(readable: list[str], seen: list[str], writable: list[str]) -> None:
    """No file but below these folders; no TCP; nothing of other processes."""
    version = landlock_version()
    bits = 13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = call("landlock_create_ruleset", struct.pack("QQQ", 2**bits - 1, 3, 3), size, 0)
    read, see = 0b1100, 0b1000  # read files, list folders; not execute
    write = 0b0100000110111110 & (2**bits - 1)  # and make, change, remove plain files and folders
    for folders, rights in ((readable, read), (seen, see), (writable, write)):
        for folder in folders:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            call("landlock_add_rule", rules, 1, struct.pack("=Qi", rights, fd), 0)
            os.close(fd)
    call("landlock_restrict_self", rules, 0)
    os.close(rules)


def seccomp() -> None:
    """From here on what is on the list is allowed, the rest fails with EPERM: no processes (only
    threads), no sockets, no signals to others, no exec, no ptrace, no mounts. A program for the
    kernel's packet filter: (operation, jump if so, jump if not, operand), jumps counted from the
    next instruction; it reads struct seccomp_data in words of 32 bits."""
    load, equal, at_least, mask, answer = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    which, machine, arguments = 0, 4, 16  # offsets in bytes
    code = [
        (load, 0, 0, machine), (equal, 1, 0, _MACHINE), (answer, 0, 0, kill),
        (load, 0, 0, which), (at_least, 0, 1, 0x40000000), (answer, 0, 0, kill),  # the x32 calls
    ]  # fmt: skip
    for number in ALLOWED.values():
        code += [(equal, 0, 1, number), (answer, 0, 0, allow)] if number >= 0 else []
    code += [(equal, 0, 1, NUMBERS["clone3"]), (answer, 0, 0, enosys)]  # glibc then takes clone

    def only(name: str, *words: tuple[int, int, tuple[int, ...]]) -> None:
        """Allow the call if each of these words of its arguments, in the bits that count, is one
        of its values. Argument n is the words 2n (low) and 2n + 1 (high)."""
        test = []
        for word, bits, values in words:
            test += [(load, 0, 0, arguments + 4 * word), (mask, 0, 0, bits)]
            test += [(equal, len(values) - n, 0, value) for n, value in enumerate(values)]
            test.append((answer, 0, 0, eperm))
        code.extend([(equal, 0, len(test) + 1, NUMBERS[name]), *test, (answer, 0, 0, allow)])

    every = 2**32 - 1
    namespaces = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
    only("clone", (0, 0x10000 | namespaces, (0x10000,)))  # threads
    only("fcntl", (2, every, (0, 1, 2, 3, 4, 1030)))  # not F_SETOWN, which sends signals
    only("ioctl", (2, every, (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)))  # a terminal? close on exec
    only("tgkill", (0, every, (os.getpid(),)))
    only("prlimit64", (4, every, (0,)), (5, every, (0,)))  # no pointer to new limits: to read them
    code.append((answer, 0, 0, eperm))
    buffer = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
    program = struct.pack("@HP", len(code), ctypes.addressof(buffer))  # struct sock_fprog
    call("prctl", 22, 2, program)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
