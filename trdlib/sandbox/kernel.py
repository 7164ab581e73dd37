"""What the jail is built of: namespaces, mounts, Landlock, seccomp. Linux on x86_64 and aarch64.

Numbers and structures are those of the kernel's own headers (include/uapi).
"""

import ctypes
import os
import struct

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
REMOUNT, BIND, REC, PRIVATE = 32, 0x1000, 0x4000, 0x40000

# Numbers of the system calls on (x86_64, aarch64); -1: there is none. These are allowed.
SYSCALLS = {
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
_CALLS = {  # looked at more closely, or needed by ourselves
    "clone": (56, 220), "clone3": (435, 435), "fcntl": (72, 25), "ioctl": (16, 29),
    "tgkill": (234, 131), "prlimit64": (302, 261), "pivot_root": (155, 41), "capset": (126, 91),
    "mount_setattr": (442, 442), "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip
# (column of the tables, the kernel's number for it). KeyError elsewhere: then nothing runs.
ARCHITECTURE = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[os.uname().machine]

_libc = ctypes.CDLL(None, use_errno=True)


def number(name: str) -> int:
    return (SYSCALLS.get(name) or _CALLS[name])[ARCHITECTURE[0]]


def _call(what: str, function, *args: int | bytes | None) -> int:
    """A function of the C library, whose integers are longs; OSError says what failed."""
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(name: str, *args: int | bytes) -> int:
    return _call(name, _libc.syscall, number(name), *args)


def prctl(option: int, *args: int | bytes) -> None:
    _call(f"prctl {option}", _libc.prctl, option, *(*args, 0, 0, 0, 0)[:4])


def unshare(flags: int) -> None:
    _call("unshare", _libc.unshare, flags)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    names = [None if name is None else os.fsencode(name) for name in (source, target, kind)]
    _call(f"mount {target}", _libc.mount, *names, flags, os.fsencode(options))


def bind(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    mount(source, target, None, BIND | REC)


def make_read_only(target: str) -> None:
    """The mount at target, and those below it."""
    flags = struct.pack("QQQQ", RDONLY | NOSUID | NODEV, 0, 0, 0)
    try:
        _syscall("mount_setattr", -100, os.fsencode(target), 0x8000, flags, len(flags))
    except OSError:  # kernels before 5.12; flags that are locked must be kept
        kept = os.statvfs(target).f_flag & (NOEXEC | 0x400 | 0x800 | 0x200000)
        mount("none", target, None, kept | REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def enter_root(folder: str) -> None:
    """Make folder the root, and let go of the old one."""
    os.chdir(folder)
    _syscall("pivot_root", b".", b".")
    _call("umount", _libc.umount2, b".", 2)
    os.chdir("/")


def drop_capabilities() -> None:
    _syscall("capset", struct.pack("II", 0x20080522, 0), bytes(24))


def landlock_version() -> int:
    """0: the kernel has none."""
    try:
        return _syscall("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        return 0


def landlock(readable: list[str], seen: list[str], writable: list[str]) -> None:
    """No file but below these folders; no TCP; nothing of other processes."""
    version = landlock_version()
    bits = 13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _syscall("landlock_create_ruleset", struct.pack("QQQ", 2**bits - 1, 3, 3), size, 0)
    read, see = 0b1100, 0b1000  # read files, list folders; not execute
    write = 0b0100000110111110 & (2**bits - 1)  # and make, change, remove plain files and folders
    for folders, rights in ((readable, read), (seen, see), (writable, write)):
        for folder in folders:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            _syscall("landlock_add_rule", rules, 1, struct.pack("=Qi", rights, fd), 0)
            os.close(fd)
    _syscall("landlock_restrict_self", rules, 0)
    os.close(rules)


def seccomp() -> None:
    """From here on what is on the list is allowed, the rest fails with EPERM.

    No processes (only threads), no sockets, no signals to others, no exec, no ptrace, no mounts.
    A program for the kernel's packet filter: (operation, jump if so, jump if not, operand), jumps
    counted from the next instruction; it reads struct seccomp_data in words of 32 bits.
    """
    load, equal, at_least, mask, answer = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    call, machine, arguments = 0, 4, 16  # offsets in bytes
    code = [
        (load, 0, 0, machine), (equal, 1, 0, ARCHITECTURE[1]), (answer, 0, 0, kill),
        (load, 0, 0, call), (at_least, 0, 1, 0x40000000), (answer, 0, 0, kill),  # the x32 calls
    ]  # fmt: skip
    for numbers in SYSCALLS.values():
        if (one := numbers[ARCHITECTURE[0]]) >= 0:
            code += [(equal, 0, 1, one), (answer, 0, 0, allow)]
    code += [(equal, 0, 1, number("clone3")), (answer, 0, 0, enosys)]  # glibc then takes clone

    def only(name: str, *words: tuple[int, int, tuple[int, ...]]) -> None:
        """Allow the call if each of these words of its arguments, in the bits that count, is one
        of its values. Argument n is the words 2n (low) and 2n + 1 (high)."""
        test = []
        for word, bits, values in words:
            test += [(load, 0, 0, arguments + 4 * word), (mask, 0, 0, bits)]
            test += [(equal, len(values) - n, 0, value) for n, value in enumerate(values)]
            test.append((answer, 0, 0, eperm))
        test.append((answer, 0, 0, allow))
        code.extend([(equal, 0, len(test), number(name)), *test])

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
    prctl(22, 2, program)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
