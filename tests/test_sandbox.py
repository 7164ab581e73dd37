"""The sandbox under attack: every program of attacks.py fails, and the machine is as before."""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import attacks
import psutil
import pytest
from conftest import REPOSITORY

from trdlib import sandbox

RIGHT = ("def solve(x): return x * x", attacks.TESTS)
WRONG = ("def solve(x): return x + 6", attacks.TESTS)
SHORT = {"seconds": 0.3, "memory_mb": 256}
LEVELS = ("namespaces and landlock", "namespaces", "landlock")


def forget():
    while sandbox._idle:
        sandbox._idle.pop().kill()


@pytest.fixture(autouse=True)
def protected(request):
    found = sandbox.protection()
    assert "probe" not in found.why  # it started, and something got out
    if not found.safe and "refuses" not in request.node.name:
        pytest.skip(f"nothing protects this machine from programs: {found.why}")


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """Each way in which a machine may protect, where this one can."""
    found = sandbox.protection()
    walls = request.param.split(" and ")
    if not all(getattr(found, wall) for wall in walls):
        pytest.skip(f"this machine has no {request.param}: {found.why or platform.platform()}")
    forget()
    only = {wall: wall in walls for wall in ("namespaces", "landlock")}
    monkeypatch.setattr(sandbox, "protection", lambda: found._replace(**only))
    yield request.param
    forget()


@pytest.fixture
def unprotected(monkeypatch, tmp_path):
    """Programs run as ever, but nothing locks them in."""
    forget()
    path = tmp_path / "launcher.py"
    folder = os.path.dirname(sandbox.LAUNCHER)
    path.write_text(
        f"import json, sys\nsys.path.insert(0, {folder!r})\ndel sys.modules['__main__']\n"
        "import launcher\nlauncher.build = launcher.lock_in = lambda *_: None\n"
        "launcher.THREADS = 9999\nconfig = json.loads(sys.argv[1])\n"
        "config['walls']['namespaces'] = False\nlauncher.main(config)\n"
    )
    monkeypatch.setattr(sandbox, "LAUNCHER", str(path))
    monkeypatch.setattr(sandbox, "_idle", [])
    yield
    forget()


@pytest.fixture
def targets(monkeypatch):
    """What breaches aim at: a server, a socket, a secret, a file of ours."""
    monkeypatch.setenv("TRD_SECRET", "x")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as own:
        abstract = f"trd-socket-{os.getpid()}"
        own.bind("\0" + abstract)
        own.listen()
        yield {
            "PORT": server.getsockname()[1],
            "ABSTRACT": abstract,
            "FILE": str(REPOSITORY / "params.yaml"),
            "PPID": os.getpid(),
        }


MARK = f"trd-attack-{os.getpid()}-"  # other sessions may run these tests on this machine


def marked(program):
    return program.replace("trd-attack", MARK)


def breaches(targets):
    for name, program in attacks.BREACHES.items():
        for key, value in targets.items():
            program = program.replace(key, repr(value))
        yield name, (marked(program), attacks.TESTS)


def traces():
    """What an attack could leave on the machine."""
    library = os.path.dirname(os.__file__)
    folders = ("/tmp", "/var/tmp", "/dev/shm", library, os.getcwd())
    files = {str(p) for f in folders if os.path.isdir(f) for p in Path(f).glob(f"*{MARK}*")}
    files |= {str(p) for p in Path.cwd().glob("core*")} | {
        str(p) for p in Path(library).glob("this*")
    }
    shm = Path("/proc/sysvipc/shm")
    keys = [line.split()[0] for line in shm.read_text().splitlines()] if shm.exists() else []
    return files, keys.count(str(0x7472)), socket.gethostname()


def descendants():
    """Processes of ours that are not a launcher."""
    found = []
    for child in psutil.Process().children():
        launcher = sandbox.LAUNCHER in child.cmdline()
        found += child.children(recursive=True) if launcher else [child]
    return [one for one in found if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def settled(what):
    for _ in range(100):
        if not what():
            return True
        time.sleep(0.05)
    return False


def test_no_attack_passes_and_the_machine_is_as_before(level, targets):
    attack = dict(breaches(targets))
    if level == LEVELS[0]:  # what differs between the levels are files and processes
        others = {**attacks.CHANNEL, **attacks.GLUTTONS}
        attack |= attacks.FORGERIES
        attack |= {name: (marked(program), attacks.TESTS) for name, program in others.items()}
    before, library = traces(), os.stat(os.__file__)
    known = {one.pid for one in descendants()}  # helpers of earlier tests in this process
    samples = [sample for one in attack.values() for sample in (one, RIGHT)]
    limits = lambda sample: {} if sample is RIGHT else SHORT  # noqa: E731
    verdicts = sandbox.in_pool(lambda one: sandbox.check(*one, **limits(one)), samples, workers=8)
    assert [name for name, v in zip(attack, verdicts[::2], strict=True) if v.passed] == []
    # and the next sample is graded as it should be
    assert [name for name, v in zip(attack, verdicts[1::2], strict=True) if not v.passed] == []
    assert not sandbox.check(*WRONG).passed
    assert settled(lambda: {one.pid for one in descendants()} - known)
    assert traces() == before
    now = os.stat(os.__file__)
    assert (now.st_mode, now.st_nlink, now.st_mtime_ns) == (
        library.st_mode, library.st_nlink, library.st_mtime_ns,
    )  # fmt: skip


def test_breaches_do_get_through_where_nothing_protects(unprotected, targets):
    """Else the attacks would be badly aimed, and the test above would say nothing."""
    attack = {n: one for n, one in breaches(targets) if n in attacks.HARMLESS}
    if platform.machine() != "x86_64":
        del attack["the calls of 32-bit programs"]
    verdicts = sandbox.in_pool(lambda one: sandbox.check(*one, seconds=5), attack.values())
    for folder in ("/dev/shm", "/var/tmp", "/tmp"):
        for left in Path(folder).glob(f"{MARK}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    missed = {name: v.reason for name, v in zip(attack, verdicts, strict=True) if not v.passed}
    assert missed == {}


def test_forgeries_do_fool_a_grader_in_one_process():
    forged = attacks.FORGERIES
    outputs = sandbox.in_pool(lambda one: sandbox.run(f"{one[0]}\n{one[1]}"), forged.values())
    caught = {name: o.reason for name, o in zip(forged, outputs, strict=True) if o.reason}
    assert caught == {}
    honest = sandbox.run(f"{WRONG[0]}\n{attacks.TESTS}")
    assert "AssertionError" in honest.reason


# ---------------------------------------------------------------------------- what is right passes

KINDS = [
    "None", "True", "0", "-7", "2**200", "-(10**30)", "0.1", "-0.0", "1e308", "float('inf')",
    "''", "'a\\ud800\\x00é'", "b'\\x00\\xff'", "bytearray(b'x')", "1 + 2j", "[]", "[1, [2, [3]]]",
    "()", "(1,)", "{}", "{1: 'a', (1, 2): [None]}", "{'t': 'dict', 'v': []}", "{1, 2}",
    "frozenset({1})", "range(1, 9, 2)", "deque([1, 2])", "Decimal('1.10')", "Fraction(1, 3)",
    "[True, 1, 1.0]",
]  # fmt: skip
HEAD = "from collections import *\nfrom decimal import *\nfrom fractions import *\n"


def test_plain_data_crosses_the_border_both_ways_unchanged():
    program = HEAD + f"VALUES = [{', '.join(KINDS)}]\ndef same(x): return x\n"
    program += "def value(i): return VALUES[i]"
    tests = HEAD + f"for i, v in enumerate([{', '.join(KINDS)}]):\n"
    tests += "    for got in (value(i), same(v), same(x=v)):\n"
    tests += "        assert repr(got) == repr(v) and type(got) is type(v), (got, v)"
    assert sandbox.check(program, tests) == (True, "")


RIGHT_PROGRAMS = """
from collections import Counter
def f(s): return Counter(s)
>>
assert f('aab') == {'a': 2, 'b': 1}
----
from enum import IntEnum
class E(IntEnum):
    A = 3
def f(): return E.A
>>
assert f() == 3
----
from typing import *
P = NamedTuple('P', [('x', int)])
def f(): return P(1)
>>
assert f() == (1,)
----
def f(n):
    yield from range(n)
>>
assert list(f(3)) == [0, 1, 2]
----
def f(x): return map(str, x)
>>
assert list(f([1])) == ['1']
----
def f(x): return x.keys()
>>
assert sorted(f({2: 0, 1: 0})) == [1, 2]
----
N = 4
def f(): return N
>>
assert f() == N
----
from dataclasses import dataclass
@dataclass
class P:
    x: int
def f(): return P(2).x
>>
assert f() == 2
----
def f(x): raise KeyError(x)
>>
try:
    f(1)
    assert False
except KeyError:
    pass
----
class Solution:
    def f(self, x): return x + 1
>>
assert remote('Solution().f')(1) == 2
----
def sum(x): return 7
>>
assert remote('sum')([1]) == 7 and sum([1]) == 1
----
def f(n): return 0 if n == 0 else 1 + f(n - 1)
import sys
sys.setrecursionlimit(10**6)
>>
assert f(20000) == 20000
----
import threading
def f():
    out = []
    t = threading.Thread(target=out.append, args=(1,))
    t.start()
    t.join()
    return out
>>
assert f() == [1]
----
import hashlib
def f(s): return hashlib.md5(s.encode()).hexdigest()
>>
assert f('') == 'd41d8cd98f00b204e9800998ecf8427e'
----
import numpy as np
def f(): return np.ones(3).sum()
>>
assert f() == 3
----
import os
def f():
    with open('x', 'w') as file: file.write('y')
    return open('x').read()
>>
assert f() == 'y'
----
print('x' * 10**6)
import sys
sys.stderr.write('y' * 10**6)
def f(): return 1
>>
assert f() == 1
----
def f(): return 'x' * 10**7
>>
assert len(f()) == 10**7
----
def f(x): return x
>>
def check(candidate):
    for i in range(200):
        assert candidate(i) == i
check(f)
"""


@pytest.mark.parametrize("pair", RIGHT_PROGRAMS.strip().split("\n----\n"))
def test_right_programs_pass(pair):
    assert sandbox.check(*pair.split("\n>>\n"), seconds=5) == (True, "")


def test_a_script_reads_and_prints():
    out = sandbox.run(
        "import sys\nn = int(input())\nprint(sum(map(int, sys.stdin)), n)", "2\n3\n4\n"
    )
    assert (out.stdout, out.reason) == (b"7 2\n", "")
    assert (
        sandbox.run("if __name__ == '__main__':\n    print(open(0).read())", "é").stdout
        == "é\n".encode()
    )
    assert sandbox.run("print(1)\nexit()").reason == ""
    assert sandbox.run("print(1)\nexit(3)")[:2] == (b"1\n", "exit code 3")
    assert sandbox.run("1 / 0").reason == "ZeroDivisionError: division by zero"
    flood = sandbox.run("while True: print('x' * 10**5)", seconds=60)
    assert len(flood.stdout) == sandbox.OUTPUT and "of output" in flood.reason
    assert sandbox.run("while True: pass", seconds=0.5).reason == "timeout: 0.5 s"


def test_reasons_say_what_happened():
    def why(program, tests="assert f() == 1", **limits):
        return sandbox.check(program, tests, **limits).reason

    assert why("def f(): return 2") == "line 1 of the tests: AssertionError: "
    assert "NameError" in why("x = 1")
    assert "SyntaxError" in why("def f(:")
    assert why("def f():\n    while True: pass", seconds=0.5) == "timeout: 0.5 s"
    assert "MemoryError" in why("def f(): return bytearray(2**30)", memory_mb=256)
    assert why("import os\ndef f(): os._exit(5)") == "the program ended early: exit code 5"
    assert "\x1b" not in why("def f(): raise ValueError('\x1b[2J')")


def test_tests_that_end_before_the_program_has_begun_are_judged_all_the_same():
    """Side by side, so that some examiners overtake the programs that they never call."""

    def check(_):
        with pytest.raises(ValueError, match="never call the program"):
            sandbox.check("def f(x): return 1", "assert 1 + 1 == 2")

    sandbox.in_pool(check, list(range(160)), workers=8)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("assert f(", "do not compile"),
        ("", "never call the program"),
        ("assert 1 + 1 == 2", "never call the program"),
        ("f(lambda x: x)", "cannot be sent: function"),
    ],
)
def test_a_fault_of_the_tests_is_not_the_programs(tests, message):
    with pytest.raises(ValueError, match=message):
        sandbox.check("def f(x): return 1", tests)
    assert sandbox.check(*RIGHT).passed


def test_a_program_cannot_blame_the_tests():
    """Neither by handing them nothing to do, nor something that they cannot hand back."""
    assert not sandbox.check("DATA = []", "for x in DATA:\n    assert f(x)").passed
    hand_back = "def f(x): return '\\ud800' * (2 * 10**6)"
    assert not sandbox.check(hand_back, "assert f(f(1)) == 1").passed


def test_tests_that_catch_everything_do_not_hide_a_dead_program():
    tests = "for x in range(3):\n    try:\n        f(x)\n    except:\n        pass"
    assert sandbox.check("def f(x): raise KeyError", tests).passed
    for program in (
        "import os\ndef f(x): os._exit(0)",
        "import os\ndef f(x): os.write(3, b'x' * 9 + b'\\n')",
    ):
        assert not sandbox.check(program, tests, seconds=1).passed
    with pytest.raises(ValueError, match="cannot be sent"):
        sandbox.check("def f(x): return 1", tests.replace("f(x)", "f(print)"))


def test_nothing_of_one_program_reaches_the_next(level):
    leave = "import builtins, math, os, sys\nbuiltins.x = math.x = sys.x = os.environ['x'] = '1'\n"
    leave += "try: open('/tmp/x', 'w').write('1')\nexcept OSError: pass\ndef f(): return 1"
    look = "import builtins, math, os, sys\ndef f(): return [hasattr(builtins, 'x'), "
    look += "hasattr(math, 'x'), hasattr(sys, 'x'), 'x' in os.environ, os.path.exists('/tmp/x')]"
    assert sandbox.check(leave, "assert f() == 1").passed
    assert sandbox.check(look, "assert f() == [False] * 5, f()") == (True, "")


def test_a_program_cannot_write_to_the_terminal_by_its_reason():
    raw = "import json, os\ndata = json.dumps(['ended', '\\x1b[2J\\n']).encode()\n"
    raw += "os.write(3, data + b'\\n')\nimport time\ntime.sleep(9)"
    assert sandbox.check(raw, "assert f()", seconds=0.3).reason == "\\x1b[2J\\n"
    out = sandbox.run("import os\nos.write(3, b'\\x1b[2J')\nos._exit(1)")
    assert out.reason == "\\x1b[2J"


def test_a_program_that_could_not_be_locked_in_is_no_failed_program(monkeypatch):
    """Something broke before it ran: that is said, and not held against it."""
    dumps = sandbox.json.dumps

    def broken(ask):
        return dumps({**ask, "seconds": "nonsense"} if "role" in ask else ask)

    monkeypatch.setattr(sandbox.json, "dumps", broken)
    with pytest.raises(sandbox.SandboxError, match="failed, twice"):
        sandbox.check(*RIGHT)


def test_limits_that_make_no_sense():
    with pytest.raises(ValueError, match="seconds"):
        sandbox.check(*RIGHT, seconds=0)
    with pytest.raises(ValueError, match="memory_mb"):
        sandbox.check(*RIGHT, memory_mb=1)


# ------------------------------------------------------------------------------ what it rests on


def test_every_other_system_call_fails(level):
    """All numbers that a kernel may know, one by one; of `clone3` it is said that it is not there.

    Left out: uretprobe and uprobe of x86, which the kernel keeps from seccomp (SIGILL elsewhere).
    """
    from trdlib.sandbox import kernel  # where it runs, this can be imported

    column = kernel.ARCHITECTURE[0]
    allowed = {numbers[column] for numbers in kernel.SYSCALLS.values()}
    looked_at = {kernel.number(n) for n in ("clone", "fcntl", "ioctl", "tgkill", "prlimit64")}
    others = sorted(set(range(1024)) - allowed - looked_at - {335, 336})
    program = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ndef error(number):\n"
    program += "    ctypes.set_errno(0)\n    libc.syscall(number, 0, 0, 0, 0, 0, 0)\n"
    program += (
        "    return ctypes.get_errno()\ndef errors(numbers): return list(map(error, numbers))"
    )
    tests = f"found = dict(zip({others}, errors({others})))\nassert found.pop(435) == 38\n"
    tests += "odd = {n: e for n, e in found.items() if e != 1}\nassert not odd, odd"
    assert sandbox.check(program, tests, seconds=5) == (True, "")


def test_it_refuses_to_run_where_nothing_protects(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    found = sandbox.protection.__wrapped__()
    monkeypatch.setattr(sandbox, "protection", lambda: found)
    with pytest.raises(sandbox.SandboxError, match=r"nothing protects.*this is darwin.*use Linux"):
        sandbox.check(*RIGHT)


def test_a_probe_that_gets_out_is_no_protection(unprotected):
    """What protects is found by trying, not by asking for versions."""
    found = sandbox.protection.__wrapped__()
    assert not found.safe and "got out" in found.why and "socket" in found.why


def test_what_starts_a_program_holds_no_secret(targets):
    """The launcher, from which programs are forked: no environment, no open file of ours."""
    sandbox.check(*RIGHT)
    launcher = psutil.Process(sandbox._idle[-1].process.pid)
    assert launcher.environ() == {"PYTHONHASHSEED": "0"}
    program = "import os\ndef f(): return [i for i in range(1024) if not error(i)]\ndef error(i):\n"
    program += "    try: os.fstat(i)\n    except OSError: return True"
    assert sandbox.check(program, "assert f() == [0, 1, 2, 3], f()") == (True, "")


def test_all_dies_with_the_host():
    code = "from trdlib import sandbox\nprint('up', flush=True)\n"
    code += "sandbox.check('while True: pass', 'assert f()', seconds=3000)"
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert host.stdout.readline() == "up\n"
    family = lambda: psutil.Process(host.pid).children(recursive=True)  # noqa: E731
    assert settled(lambda: len(family()) < 5)  # launcher, two keepers, two locked
    left = family()
    host.kill()
    host.wait()
    assert settled(lambda: any(one.is_running() for one in left))


def test_a_jail_that_is_killed_is_replaced():
    sandbox.check(*RIGHT)
    psutil.Process(sandbox._idle[-1].process.pid).kill()
    assert sandbox.check(*RIGHT).passed
    slow = ("import time\ntime.sleep(1)\n" + RIGHT[0], RIGHT[1])
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(sandbox.check(*slow)))
    thread.start()
    assert settled(lambda: not descendants())
    for one in psutil.Process().children():
        one.kill()
    thread.join()
    assert verdicts == [(True, "")]


def test_a_python_below_tmp_is_readable_and_stays_as_it_is(level, monkeypatch):
    """As where the project, and with it numpy, was cloned to a folder of /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        Path(folder, "there.py").write_text("value = 41")
        readable, hidden, path = sandbox._folders()
        more = ([*readable, folder], hidden, [*path, folder])
        monkeypatch.setattr(sandbox, "_folders", lambda: more)
        reads = "import there\ndef f(): return there.value + 1"
        assert sandbox.check(reads, "assert f() == 42") == (True, "")
        for spoil in (
            f"open({folder!r} + '/there.py', 'w')",
            f"open({folder!r} + '/new', 'w')",
            f"__import__('os').remove({folder!r} + '/there.py')",
            f"__import__('os').rename({folder!r}, '/tmp/elsewhere')",
        ):
            program = f"def f():\n    try: {spoil}\n    except OSError: return 'refused'"
            assert sandbox.check(program, "assert f() == 'refused'") == (True, "")
        assert os.listdir(folder) == ["there.py"]
        assert Path(folder, "there.py").read_text() == "value = 41"


def test_after_a_fork_each_process_has_its_own_jail():
    assert sandbox.check(*RIGHT).passed
    child = os.fork()
    if child == 0:
        os._exit(0 if sandbox.check(*RIGHT).passed and not sandbox.check(*WRONG).passed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sandbox.check(*RIGHT).passed


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="runs as root only")
def test_it_works_for_an_unprivileged_user_too(tmp_path_factory):
    other = {"user": 65534, "group": 65534, "extra_groups": []}

    def runs(python):
        with contextlib.suppress(OSError):
            return subprocess.run([python, "-c", ""], **other).returncode == 0

    python = next(filter(runs, (sys.executable, "/usr/bin/python3.11", "/usr/bin/python3")), None)
    if python is None:
        pytest.skip("no Python that another user may run")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(Path(sandbox.__file__).parent, Path(folder) / "trdlib" / "sandbox")
        code = f"from trdlib import sandbox\nassert sandbox.check(*{RIGHT!r}).passed\n"
        code += f"assert not sandbox.check(*{WRONG!r}).passed\n"
        code += "print(sandbox.protection())"
        how = {"cwd": folder, "capture_output": True, "text": True, **other}
        out = subprocess.run([python, "-c", code], **how)
    assert out.returncode == 0, out.stderr
    assert "seccomp" in out.stdout
