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


def alive(processes):
    """Those that run: not gone, not zombies, whichever of them end while we look."""
    found = []
    for one in processes:
        with contextlib.suppress(psutil.Error):
            found += [one] if one.status() != psutil.STATUS_ZOMBIE else []
    return found


def descendants():
    """Processes of ours that are not a launcher."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            launcher = sandbox.LAUNCHER in child.cmdline()
            found += child.children(recursive=True) if launcher else [child]
    return alive(found)


def settled(what):
    """It is no longer so; two minutes are for a machine that has much else to do."""
    for _ in range(1200):
        if not what():
            return True
        time.sleep(0.1)
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


LIAR = """
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return hash(9)
    def __bool__(self): return True
    def __float__(self): return 9.0
    __lt__ = __gt__ = __le__ = __ge__ = __eq__
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __mul__ = __mod__ = __abs__ = __sub__
    __array_interface__ = {"data": (id(9) + 24, False), "shape": (), "typestr": "<i4", "version": 3}
def solve(x): return Liar()
def all(x): return True
"""


@pytest.mark.parametrize(
    "test",
    ["got == 9", "9 == got", "not got != 9", "got < 10", "abs(got - 9) < 1e-6", "9 - got == 0",
     "got in (9, 10)", "[got] == [9]", "{got} == {9}", "{9: 1}[got]", "isinstance(got, int)",
     "math.isclose(got, 9.0)", "np.allclose(got, 9)", "np.array_equal(got, 9)", "int(got) == 9",
     "got % 7 == 2", "all([got == 9])", "got is 9", "type(got) is int", "np.asarray(got) == 9"],
)  # fmt: skip
def test_an_object_of_the_program_equals_nothing_that_is_expected(test):
    tests = f"import math\nimport numpy as np\ngot = solve(3)\nassert {test}\n"
    assert not sandbox.check(LIAR, tests).passed
    honest = LIAR.replace("return Liar()", "return x * x")
    assert sandbox.check(honest, tests).passed


@pytest.mark.parametrize(
    "tests", ["assert all([sum([1, 2]) == 3])", "assert sorted(sum([1, 2])) == 3"]
)
def test_a_name_of_a_builtin_is_the_programs_only_where_it_is_the_only_one(tests):
    """Else a program could have its own idea of what the tests do with its results."""
    program = "def sum(x): return 3\ndef all(x): return True\ndef sorted(x): return x"
    assert sandbox.check(program, "assert sum([1, 2]) == 3").passed
    assert not sandbox.check(program.replace("3", "4"), tests).passed
    assert not sandbox.check(program, "def f(): return 1\nassert sum([1, 2]) == 4").passed


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
def sum(a, b): return a * b
>>
assert sum(10, 15) == 150
----
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
def f(pairs): return sum(pair.b - pair.a for pair in pairs)
>>
assert f([Pair(5, 24), Pair(b=25, a=15)]) == 29
----
class Node:
    def __init__(self, data): self.data, self.left, self.right = data, None, None
def height(node): return 1 + max(height(node.left), height(node.right)) if node else 0
>>
root = Node(1)
root.left = Node(2)
root.left.right = Node([3])
assert height(root) == 3 and root.left.right.data == [3] and root.right is None
assert root.left is root.left and hasattr(root, 'data') and not hasattr(root, 'other')
----
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
    def __hash__(self): return self.x
    def __lt__(self, other): return self.x < other.x
    def __add__(self, other): return Point(self.x + other.x)
def f(x): return Point(x)
>>
assert f(3) == Point(3) != Point(4) and f(3) != 3 and isinstance(f(3), Point)
assert {f(3), Point(3)} == {Point(3)} and sorted([f(2), f(1)]) == [f(1), f(2)]
assert f(1) + f(2) == f(3) and not isinstance(3, Point)
----
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __contains__(self, x): return x in self.items
    def __getitem__(self, i): return self.items[i]
    def __setitem__(self, i, x): self.items[i] = x
    def __repr__(self): return f'Stack({self.items})'
>>
s = Stack()
assert not s
s.push((1, 2))
s.push(3)
s[1] = 4
assert len(s) == 2 and 4 in s and s[0] == (1, 2) and list(s) == [(1, 2), 4] and s
assert str(s) == 'Stack([(1, 2), 4])' and (s.pop(), s.pop()) == (4, (1, 2))
try:
    s.pop()
    assert False
except IndexError as error:
    assert str(error) == 'pop from empty list'
----
class NotEnough(ValueError): pass
def f(x): raise NotEnough(x)
>>
for kind in (NotEnough, ValueError):
    try:
        f('more')
        assert False
    except kind as error:
        assert str(error) == 'more'
----
from enum import Enum
class Color(Enum):
    RED, BLUE = 1, 2
def f(x): return Color(x)
>>
assert f(1) == Color.RED and f(1) is Color.RED and f(2) is not Color.RED and f(2).name == 'BLUE'
----
def f(items, kind): return [x for x in items if type(x) is not kind]
def g(x): return type(x)
>>
assert f((4, 'a', 7.7), int) == ['a', 7.7] and g('') is str and g(1) == int
----
import sys, math, numpy as np
def f(x): return sys.getsizeof(x)
>>
assert f(('A', 1)) == sys.getsizeof(('A', 1)) and math.isclose(f(1), f(1)) and np.all(f(1) > 0)
----
def f(n): return lambda x: x + n
>>
assert f(3)(4) == 7
----
to_int = int
>>
assert to_int('7') == 7
----
import os
def f(x):
    with open(os.devnull, 'w') as null: print(x, file=null)
    return open('/dev/null').read()
>>
assert f(1) == ''
----
def f(x): return int(x) + 1
>>
assert f('9' * 5000) == 10**5000
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


@pytest.mark.parametrize(
    ("program", "tests"),
    [("def f(x): x.append(1)", "x = []\nf(x)\nassert x == [1]"),
     ("class A: pass\ndef f(): return A()", "assert type(f()) is A"),
     ("class A:\n    def __mul__(self, n): return n\ndef f(): return A()", "assert f() * 2 == 2"),
     ("class A:\n    def do(self, g): return g(1)", "assert A().do(lambda x: x) == 1")],
)  # fmt: skip
def test_right_programs_that_tests_cannot_judge(program, tests):
    """The third and fourth point of the list in docs/sandbox.md: no longer so, no longer there."""
    assert not sandbox.check(program, tests).passed


def test_a_script_reads_and_prints():
    out = sandbox.run(
        "import sys\nn = int(input())\nprint(sum(map(int, sys.stdin)), n)", "2\n3\n4\n"
    )
    assert (out.stdout, out.reason) == (b"7 2\n", "")
    assert (
        sandbox.run("if __name__ == '__main__':\n    print(open(0).read())", "é").stdout
        == "é\n".encode()
    )
    assert sandbox.run("print(__file__)\nexit()").reason == ""
    assert sandbox.run("print(1)\nexit(3)")[:2] == (b"1\n", "exit code 3")
    assert sandbox.run("1 / 0").reason == "ZeroDivisionError: division by zero"
    flood = sandbox.run("while True: print('x' * 10**5)", seconds=60)
    assert len(flood.stdout) == sandbox.OUTPUT and "of output" in flood.reason
    assert sandbox.run("while True: pass", seconds=0.5).reason == "timeout: 0.5 s"


@pytest.mark.parametrize(
    ("script", "printed", "reason"),
    [
        ("import threading, time\ndef late():\n    time.sleep(0.1)\n    print(2)\n"
         "threading.Thread(target=late).start()\nprint(1)", "1\n2\n", ""),
        ("import threading, time\nthreading.Thread(target=lambda: time.sleep(99) or print(2), "
         "daemon=True).start()\nprint(1)", "1\n", ""),
        ("import atexit\natexit.register(print, 2)\natexit.register(print, 3)\nprint(1)",
         "1\n3\n2\n", ""),
        ("import atexit\natexit.register(print, 2)\nprint(1)\n1 / 0", "1\n2\n",
         "ZeroDivisionError: division by zero"),
        ("import atexit, os\natexit.register(os._exit, 3)\nprint(1)", "", "exit code 3"),
        ("import os\nprint(1)\nos._exit(0)", "", ""),
        ("import sys\nprint(1)\nsys.exit()\nprint(2)", "1\n", ""),
        ("import sys\nprint(1)\nsys.exit('why')", "1\n", "exit code 1"),
        ("import os\nfile = os.fdopen(1, 'w')\nfile.write('1')", "1", ""),
        ("import io, sys\nsys.stdout = io.TextIOWrapper(open(1, 'wb'))\nprint(1)", "1\n", ""),
        ("import sys\nsys.stdout = None\nsys.__stdout__.write('1')", "1", ""),
        ("import sys\nsys.excepthook = lambda *error: print(2)\nprint(1)\n1 / 0", "1\n2\n",
         "ZeroDivisionError: division by zero"),
        ("class Last:\n    def __del__(self): print(2)\nlast = Last()\nprint(1)", "1\n2\n", ""),
        ("print(1)\ninput()\ninput()", "1\n", "EOFError: EOF when reading a line"),
        ("import sys\nprint(1)\nsys.stdin.read()\nprint(repr(sys.stdin.readline()))",
         "1\n''\n", ""),
        ("print(open('/dev/stdin').read())", "in\n", ""),
        ("from pathlib import Path\nprint(Path('/dev/fd/0').read_text())", "in\n", ""),
        ("import sys\nsys.stdin = open('/dev/stdin')\nprint(input())", "in\n", ""),
        ("import fileinput\nfor line in fileinput.input(): print(line)", "in\n", ""),
        ("with open('/dev/stdout', 'w') as out: print(1, file=out)\nprint(2)", "1\n2\n", ""),
        ("open('/dev/stdin2')", "", "FileNotFoundError"),
        ("print(10**4999 // 10**4998)\nprint(len(str(10**4999)))\nprint(int('1' * 5000) % 7)",
         "10\n5000\n4\n", ""),
    ],
)  # fmt: skip
def test_a_script_ends_as_in_python(script, printed, reason):
    """And as here: each is also run by a Python of its own."""
    out = sandbox.run(script, "in")
    assert out.stdout.decode() == printed and out.reason.startswith(reason)
    how = {"input": b"in", "capture_output": True, "env": {}}
    real = subprocess.run([sys.executable, "-X", "int_max_str_digits=0", "-c", script], **how)
    assert real.stdout == out.stdout and bool(real.returncode) == bool(out.reason)


@pytest.mark.parametrize(
    "right",
    ["import asyncio\nasync def f(): return 1\nassert asyncio.run(f())",
     "import zoneinfo\nzoneinfo.ZoneInfo('Europe/Berlin')",
     "import resource as r\nr.setrlimit(r.RLIMIT_STACK, r.getrlimit(r.RLIMIT_STACK))",
     "import inspect\ndef f(): pass\nassert inspect.getsource(f)"],
)  # fmt: skip
def test_right_programs_that_fail_here(right):
    """The list in docs/sandbox.md."""
    assert sandbox.run(right).reason not in ("", "SyntaxError")


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
    ("tests", "message"), [("assert f(", "do not compile"), ("", "never call the program")]
)
def test_a_fault_of_the_tests_is_not_the_programs(tests, message):
    with pytest.raises(ValueError, match=message):
        sandbox.check("def f(x): return 1", tests)
    assert sandbox.check(*RIGHT).passed


OWN = """
def f(g, x): return g(x)
>>
assert f(lambda x: x + 1, 2) == 3
----
def f(g, x): return [g(one) for one in x]
>>
assert f(len, ['a', 'bb']) == [1, 2] and f(str.upper, ['a']) == ['A']
----
def f(node): return node.value + (f(node.next) if node.next else 0)
>>
class Node:
    def __init__(self, value, next=None): self.value, self.next = value, next
assert f(Node(1, Node(2))) == 3
----
def f(x): return str(x)
>>
try: int('a')
except ValueError as error: assert f(error).startswith('invalid')
----
import sys
def f(g, x): return sys.stdin.read() + g(x)
>>
import functools
assert f(functools.partial(str.replace, 'abc', 'b'), '') == 'ac'
"""


@pytest.mark.parametrize("pair", OWN.strip().split("\n----\n"))
def test_tests_that_hand_over_what_is_their_own_judge_too(pair):
    """In one process with the program: no exit, no print and no silence of it counts."""
    program, tests = pair.split("\n>>\n")
    assert sandbox.check(program, tests, seconds=5) == (True, "")
    wrong = program.rpartition("return")[0] + "return 0"
    assert not sandbox.check(wrong, tests, seconds=5).passed
    for forged in (
        "import os\ndef f(*x): os._exit(0)",
        "def f(*x): raise SystemExit",
        "import os, sys\nos._exit(0) if 'Node' in dir() else None\ndef f(*x):\n"
        "    print(True, 'passed', *dir(), *open(0), *sys.argv, flush=True)\n    os._exit(0)",
        "import atexit, builtins\nbuiltins.print = lambda *x, **y: None\n"
        "atexit.register(print, 'passed')\ndef f(*x): return 0",
    ):
        assert not sandbox.check(forged, tests, seconds=5).passed


@pytest.mark.parametrize(
    "tests",
    ["assert f(3)[:2] == [1, 2]", "x = f(3)\nx.sort(key=lambda x: -x)\nassert x == [3, 2, 1]",
     "assert f(g(1).count) == 9", "assert f(3)(print) == 9"],
)  # fmt: skip
def test_no_program_chooses_to_be_judged_in_its_own_process(tests):
    """By an object where data were expected, or data where an object was."""
    liar = "class Liar(list): pass\nclass Always:\n    def __eq__(self, other): return True\n"
    liar += "    __getitem__ = __getattr__ = __call__ = lambda self, *x, **y: self\n"
    for g in ("Always()", "''", "[]"):
        found = sandbox.check(f"{liar}def f(x): return Always()\ndef g(x): return {g}", tests)
        assert not found.passed, found


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

    looked_at = {kernel.NUMBERS[n] for n in ("clone", "fcntl", "ioctl", "tgkill", "prlimit64")}
    others = sorted(set(range(1024)) - {*kernel.ALLOWED.values()} - looked_at - {335, 336})
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
    assert settled(lambda: alive(left))


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
        with contextlib.suppress(psutil.Error):
            one.kill()
    thread.join()
    assert verdicts == [(True, "")]


def test_a_python_below_tmp_is_readable_and_stays_as_it_is(level, monkeypatch):
    """As where the project, and with it numpy, was cloned to a folder of /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder, "there.py").write_text("value = 41")
        for one in (folder, f"{folder}/there.py"):
            os.chmod(one, 0o777)  # the user who runs it may write there: the jail must not let it
        found = sandbox._folders()
        more = found | {name: [*found[name], folder] for name in ("readable", "path")}
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
