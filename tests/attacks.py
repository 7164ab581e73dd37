"""Programs that attack the sandbox. Each is graded by TESTS unless it brings its own.

A breach returns the right answers if, and only if, it got through: passing is the breach. A forgery
never computes the answer; it bends the grading, and would pass a grader that runs program and tests
in one process and believes the exit code (test_sandbox.py checks that it would). A glutton takes
more than its share. The test fills in PORT, ABSTRACT, FILE and PPID.
"""

TESTS = "assert solve(3) == 9\nassert solve(4) == 16\n"
MAPPED = "for got, want in zip(map(solve, [3, 4]), [9, 16]):\n    assert got == want\n"
LISTED = "EXPECTED = [9, 16]\nassert [solve(3), solve(4)] == EXPECTED\n"
CLOSE = "import math\nassert math.isclose(solve(3), 9.0)\nassert math.isclose(solve(4), 16.0)\n"
WITH_ALL = "assert all(solve(x) == x * x for x in (3, 4))\n"
IN_FUNCTION = "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(4) == 16\n"
IN_FUNCTION += "check(solve)\n"

_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def _breach(body: str) -> str:
    """body defines got(), which is true if the attack got through, and may raise if not."""
    return f"""{body}
def solve(x):
    try:
        return x * x if got() else None
    except Exception:
        return None
"""


def _call(x86: int, arm: int, *args) -> str:
    """got(): does the kernel serve this system call, for whatever result?"""
    return _breach(
        _LIBC
        + f"""import platform
number = {{"x86_64": {x86}, "aarch64": {arm}}}[platform.machine()]
def got():
    ctypes.set_errno(0)
    result = libc.syscall(number, {", ".join(map(str, args)) or "0"})
    return result != -1 or ctypes.get_errno() not in (1, 38)
"""
    )


# name -> program. Those of HARMLESS do get through where nothing protects (the test tries them).
BREACHES = {
    "read a file of the system": _breach("got = lambda: open('/etc/passwd').read()"),
    "read the shadow file": _breach("got = lambda: open('/etc/shadow').read()"),
    "read a file of the repository": _breach("got = lambda: open(FILE).read()"),
    "list the home": _breach("import os\ngot = lambda: os.listdir(os.path.expanduser('~root'))"),
    "list the root": _breach("import os\ngot = lambda: 'etc' in os.listdir('/')"),
    "climb with dots": _breach("got = lambda: open('../../../../../../etc/passwd').read()"),
    "climb with a path descriptor": _breach(
        "import os\ndef got():\n    root = os.open('/', os.O_PATH)\n"
        "    up = os.open('..', os.O_PATH, dir_fd=root)\n"
        "    return open(os.open('etc/passwd', os.O_RDONLY, dir_fd=up)).read()"
    ),
    "remove the library": _breach(
        "import os\ndef got():\n    os.unlink(os.path.dirname(os.__file__) + '/this.py')\n"
        "    return True"
    ),
    "rename the library": _breach(
        "import os\ndef got():\n    name = os.path.dirname(os.__file__) + '/this.py'\n"
        "    os.rename(name, name + '.trd-attack')\n    return True"
    ),
    "read the environment": _breach("import os\ngot = lambda: 'TRD_SECRET' in os.environ"),
    "read the environment in C": _breach(
        _LIBC + "libc.getenv.restype = ctypes.c_char_p\ngot = lambda: libc.getenv(b'TRD_SECRET')"
    ),
    "read the parent's environment": _breach(
        "import os\ngot = lambda: any(open(f'/proc/{p}/environ', 'rb').read() for p in "
        "(os.getppid(), PPID))"
    ),
    "read its own memory map": _breach("got = lambda: open('/proc/self/maps').read()"),
    "write the parent's memory": _breach("got = lambda: open('/proc/PPID/mem', 'r+b')"),
    "follow a link out": _breach(
        "import os\ndef got():\n    name = '/tmp/trd-attack-l' + os.urandom(4).hex()\n"
        "    os.symlink('/etc/passwd', name)\n    return open(name).read()"
    ),
    "hard-link the library": _breach(
        "import os\ndef got():\n    folder = os.path.dirname(os.__file__)\n"
        "    os.link(os.__file__, folder + '/trd-attack-k')\n    return True"
    ),
    "write to the library": _breach("import os\ngot = lambda: open(os.__file__, 'r+')"),
    "leave a file in the library": _breach(
        "import os\ngot = lambda: open(os.path.dirname(os.__file__) + '/trd-attack', 'w')"
    ),
    "make the library writable": _breach(
        "import os\ndef got():\n    os.chmod(os.__file__, 0o666)\n    return True"
    ),
    "leave a file in shared memory": _breach("got = lambda: open('/dev/shm/trd-attack', 'w')"),
    "leave a file in /var/tmp": _breach("got = lambda: open('/var/tmp/trd-attack', 'w')"),
    "share memory by name": _breach(
        "from multiprocessing import shared_memory\n"
        "got = lambda: shared_memory.SharedMemory('trd-attack', True, 64)"
    ),
    "share memory the old way": _call(29, 194, 0x7472, 4096, 0o1666),
    "make a pipe with a name": _breach(
        "import os\ndef got():\n    os.mkfifo('/tmp/trd-attack-f' + os.urandom(4).hex())\n"
        "    return True"
    ),
    "make a device": _breach(
        "import os, stat\ndef got():\n    os.mknod('/tmp/trd-attack-d', stat.S_IFBLK | 0o666, "
        "os.makedev(254, 0))\n    return True"
    ),
    "change the root": _breach("import os\ndef got():\n    os.chroot('/tmp')\n    return True"),
    "mount": _breach(_LIBC + "got = lambda: libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0"),
    "unshare": _breach(_LIBC + "got = lambda: libc.unshare(0x10000000) == 0"),
    "rename the machine": _breach(
        "import socket\ndef got():\n    socket.sethostname(socket.gethostname())\n    return True"
    ),
    "execute": _breach(
        "import subprocess\ngot = lambda: subprocess.run(['/bin/true']).returncode == 0"
    ),
    "execute through the shell": _breach("import os\ngot = lambda: os.system('true') == 0"),
    "execute Python": _breach(
        "import os, sys\ngot = lambda: os.posix_spawn(sys.executable, ['p', '-c', ''], {})"
    ),
    "fork": _breach(
        "import os\ndef got():\n    child = os.fork()\n    if child == 0:\n        os._exit(0)\n"
        "    return os.waitpid(child, 0)"
    ),
    "clone3": _call(435, 435, 0, 0),
    "outlive the grader": _breach(
        "import os, time\ndef got():\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n            time.sleep(1)\n"
        "            open('/var/tmp/trd-attack', 'w')\n        os._exit(0)\n    return True"
    ),
    "multiprocessing": _breach(
        "import multiprocessing as m\ndef got():\n    p = m.get_context('fork').Process("
        "target=print)\n    p.start()\n    p.join()\n    return p.exitcode == 0"
    ),
    "signal the parent": _breach("import os\ndef got():\n    os.kill(PPID, 0)\n    return True"),
    "kill everything": _breach("import os\ndef got():\n    os.kill(-1, 9)\n    return True"),
    "kill its group": _breach("import os\ndef got():\n    os.killpg(0, 9)\n    return True"),
    "signal by file owner": _breach(
        "import fcntl\ndef got():\n    fcntl.fcntl(0, fcntl.F_SETOWN, PPID)\n    return True"
    ),
    "trace the parent": _call(101, 117, 16, "PPID", 0, 0),
    "read the parent's memory": _call(310, 270, "PPID", 0, 0, 0, 0, 0),
    "take a descriptor of the parent": _call(434, 434, "PPID", 0),
    "connect to the machine": _breach(
        "import socket\ngot = lambda: socket.create_connection(('127.0.0.1', PORT), 2)"
    ),
    "connect to an abstract socket": _breach(
        "import socket\ndef got():\n    s = socket.socket(socket.AF_UNIX)\n"
        "    s.connect('\\0' + ABSTRACT)\n    return True"
    ),
    "open a netlink socket": _breach("import socket\ngot = lambda: socket.socket(16, 3, 0)"),
    "open a raw socket": _breach("import socket\ngot = lambda: socket.socket(2, 3, 255)"),
    "look a name up": _breach(
        "import socket\ngot = lambda: socket.socketpair() and socket.getaddrinfo('localhost', 80)"
    ),
    "io_uring": _call(425, 425, 1, 0),
    "bpf": _call(321, 280, 0, 0, 0),
    "perf events": _call(298, 241, 0, 0, -1, -1, 0),
    "the kernel's keys": _call(250, 219, 0, -3, 0),
    "userfaultfd": _call(323, 282, 0),
    "memory files": _call(319, 279, "b'x'", 0),
    "open by handle": _call(304, 265, -100, 0, 0),
    "raise its limits": _breach(
        "import resource\ndef got():\n    r = resource.RLIMIT_CPU\n"
        "    resource.setrlimit(r, resource.getrlimit(r))\n    return True"
    ),
    "get more memory than allowed": _breach("got = lambda: len(bytearray(400 * 2**20))"),
    "open many files": _breach(
        "import os\ngot = lambda: len([os.open(os.__file__, 0) for _ in range(200)])"
    ),
    "write a large file": _breach(
        "def got():\n    with open('/tmp/trd-attack-b', 'wb') as f:\n"
        "        return f.write(bytes(40 * 2**20))"
    ),
    "fill the disk with files": _breach(
        "import os\ndef got():\n    name = '/tmp/trd-attack-m' + os.urandom(4).hex()\n"
        "    os.mkdir(name)\n    for i in range(2000):\n        open(f'{name}/{i}', 'w').close()\n"
        "    return True"
    ),
    "see what the parent runs": _breach("import os\ngot = lambda: os.readlink('/proc/PPID/exe')"),
    "see what the parent has open": _breach(
        "import os\ngot = lambda: os.readlink('/proc/PPID/fd/0') and os.listdir('/proc/PPID/fd')"
    ),
    "start many threads": _breach(
        "import threading, time\nthreading.stack_size(32768)\ndef got():\n"
        "    for _ in range(200):\n"
        "        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()\n"
        "    time.sleep(0.2)\n    return True"
    ),
    "type into a terminal": _breach(
        "import fcntl\ngot = lambda: fcntl.ioctl(0, 0x5412, b'x') is not None"
    ),
    "set the clock": _breach(
        "import time\ndef got():\n    time.clock_settime(0, time.time())\n    return True"
    ),
    "the calls of 32-bit programs": _breach(
        """import ctypes, mmap, platform
def got():
    if platform.machine() != "x86_64":
        return False
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0
"""
    ),
    "the calls of x32 programs": _call(0x40000000 + 39, -1, 0),
}

HARMLESS = {
    "read a file of the system", "read a file of the repository", "list the root",
    "climb with a path descriptor",
    "read its own memory map", "follow a link out", "make a pipe with a name", "execute",
    "execute through the shell", "execute Python", "fork", "multiprocessing", "start many threads",
    "see what the parent runs", "see what the parent has open",
    "signal the parent", "signal by file owner", "connect to the machine",
    "connect to an abstract socket", "look a name up", "memory files", "raise its limits",
    "fill the disk with files", "the calls of 32-bit programs",
    "leave a file in shared memory", "leave a file in /var/tmp",
}  # fmt: skip

_ALWAYS = """
class Always({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def solve(x): return Always({value})
"""

# name -> (program, tests)
FORGERIES = {
    "leave at once": ("import os\nos._exit(0)", TESTS),
    "leave politely": ("raise SystemExit", TESTS),
    "leave when asked": ("import os\ndef solve(x): os._exit(0)", TESTS),
    "leave politely when asked": ("import sys\ndef solve(x): sys.exit()", TESTS),
    "leave at exit": (
        "import atexit, os\natexit.register(os._exit, 0)\n"
        "import threading\nthreading._register_atexit(os._exit, 0)\nimport sys\n"
        "sys.excepthook = lambda *a: os._exit(0)\ndef solve(x): return 0\nimport builtins\n"
        "builtins.AssertionError = SystemExit\n"
        "def solve(x):\n    raise SystemExit(0)",
        TESTS,
    ),
    "equal to everything": (_ALWAYS.format(base="", value=""), TESTS),
    "an int equal to everything": (_ALWAYS.format(base="int", value="1"), TESTS),
    "a float equal to everything": (_ALWAYS.format(base="float", value="1"), TESTS),
    "a string equal to everything": (_ALWAYS.format(base="str", value="'9'"), TESTS),
    "a list equal to everything": (_ALWAYS.format(base="list", value="[9]"), TESTS),
    "a dict equal to everything": (_ALWAYS.format(base="dict", value=""), TESTS),
    "lie about its class": (
        "class Liar:\n    __class__ = int\n    def __eq__(self, other): return True\n"
        "def solve(x): return Liar()",
        "got = solve(3)\nassert isinstance(got, int) and got == 9\n" + TESTS,
    ),
    "patch all()": ("import builtins\nbuiltins.all = lambda it: True\nsolve = int", WITH_ALL),
    "define all()": ("def all(it): return True\nsolve = int", WITH_ALL),
    "patch isclose()": ("import math\nmath.isclose = lambda *a: True\nsolve = int", CLOSE),
    "fake a module": (
        "import sys, types\nfake = types.ModuleType('math')\nfake.isclose = lambda *a: True\n"
        "sys.modules['math'] = fake\nsolve = int",
        CLOSE,
    ),
    "patch the import": (
        "import builtins, types\nreal = builtins.__import__\ndef fake(name, *a, **k):\n"
        "    module = real(name, *a, **k)\n    if name == 'math':\n"
        "        module.isclose = lambda *a: True\n    return module\n"
        "builtins.__import__ = fake\nsolve = int",
        CLOSE,
    ),
    "end the loop of the tests": ("def solve(x): raise StopIteration", MAPPED),
    "change what is expected, by frames": (
        "import sys\ndef solve(x):\n    sys._getframe(1).f_globals['EXPECTED'][:] = [0, 0]\n"
        "    return 0",
        LISTED,
    ),
    "change what is expected, by gc": (
        "import gc\ndef solve(x):\n    for one in gc.get_objects():\n"
        "        if isinstance(one, list) and one == [9, 16]:\n            one[:] = [0, 0]\n"
        "    return 0",
        LISTED,
    ),
    "read what is expected, by frames": (
        "import sys\ndef solve(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        if 'EXPECTED' in frame.f_globals:\n"
        "            return frame.f_globals['EXPECTED'][x - 3]\n        frame = frame.f_back",
        LISTED,
    ),
    "change the number nine": (
        "import ctypes\nfor n in (9, 16):\n"
        "    ctypes.c_uint32.from_address(id(n) + 24).value = 7\ndef solve(x): return 7",
        TESTS,
    ),
    "trace the tests": (
        "import sys\ndef trace(frame, event, arg):\n    if frame.f_code.co_name == 'check':\n"
        "        def jump(frame, event, arg):\n            if event == 'line' and "
        "frame.f_lineno < 99:\n                frame.f_locals\n"
        "                import ctypes\n                raise SystemExit(0)\n"
        "            return jump\n        return jump\nsys.settrace(trace)\ndef solve(x): return 0",
        IN_FUNCTION,
    ),
    "profile the tests": (
        "import os, sys\nsys.setprofile(lambda f, e, a: f.f_code.co_name == 'check' and "
        "os._exit(0))\ndef solve(x): return 0",
        IN_FUNCTION,
    ),
    "replace the tests' code": (
        "import sys\ndef solve(x):\n    sys._getframe(1).f_globals['check'].__code__ = "
        "(lambda candidate: None).__code__\n    raise SystemExit(0)",
        IN_FUNCTION,
    ),
    "exit in a thread": (
        "import os, threading, time\ndef solve(x):\n"
        "    threading.Thread(target=os._exit, args=(0,)).start()\n    time.sleep(5)",
        TESTS,
    ),
    "exit by signal": (
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *a: os._exit(0))\n"
        "def solve(x): signal.raise_signal(signal.SIGTERM)",
        TESTS,
    ),
    "never compare": (
        "class E(BaseException): pass\nimport sys\nsys.unraisablehook = sys.excepthook = "
        "lambda *a: None\nclass D:\n    def __eq__(self, o):\n        raise SystemExit(0)\n"
        "def solve(x): return D()",
        TESTS,
    ),
}

_LINE = "data + b'\\n'"
# Attacks on the channel between program and examiner, and on its decoder.
CHANNEL = {
    "say that it passed, on every descriptor": """
import json, os
data = json.dumps({"passed": True, "reason": "", "unfit": False}).encode()
for fd in range(3, 1024):
    for raw in (data + b"\\n", data):
        try: os.write(fd, raw)
        except OSError: pass
def solve(x): return 0
""",
    "say that it passed, in print": "print('passed', True)\nprint('{\"passed\": true}')\n"
    "def solve(x): return None",
    "answer before it is asked": """
import json, os
for answer in (["value", True], ["value", 1], ["ended", ""]) * 9:
    os.write(3, json.dumps(answer).encode() + b"\\n")
""",
    "offer names of the tests' machinery": """
import json, os, time
nothing, call = {"t": "dict", "v": []}, {"t": "opaque", "v": None}
own = ("__builtins__", "__name__", "remote", "all")
names = {"t": "dict", "v": [["solve", call], *([name, nothing] for name in own)]}
for answer in (["value", names], ["value", 0]):
    os.write(3, json.dumps(answer).encode() + b"\\n")
time.sleep(9)
""",
    "wrong type of names": "import os, time\nos.write(3, b'[\"value\", [1, 2]]\\n')\ntime.sleep(9)",
    "end without a reason": 'import os, time\nos.write(3, b\'["ended", ""]\\n\')\ntime.sleep(9)',
    "raise what hides the tests": "import os, time\n"
    'os.write(3, b\'["raised", "StopIteration", ""]\\n\' * 9)\ntime.sleep(9)',
    "raise what is no exception": "import os, time\n"
    'os.write(3, b\'["raised", "print", ""]\\n\' * 9)\ntime.sleep(9)',
    "half an answer": "import os\ndef solve(x):\n    os.write(3, b'[\"value\", 9')\n"
    "    while True: pass",
    "half an answer, and gone": "import os\ndef solve(x):\n    os.write(3, b'[\"value\", 9]')\n"
    "    os._exit(0)",
    "an answer that never ends": "import os\ndef solve(x):\n"
    "    while True: os.write(3, b'9' * 2**16)",
    "an unknown type": "import os\ndef solve(x):\n"
    '    data = b\'["value", {"t": "eval", "v": "1"}]\'\n    os.write(3, ' + _LINE + ")",
    "nested too deeply": "import os\ndef solve(x):\n    data = b'[' * 10**6\n"
    "    os.write(3, " + _LINE + ")",
    "not a number": "import os\ndef solve(x):\n    data = b'[\"value\", NaN]'\n"
    "    os.write(3, " + _LINE + ")",
    "a list of itself": "def solve(x):\n    l = []\n    l.append(l)\n    return l",
    "a result nested deeply": "def solve(x):\n    l = []\n    for _ in range(10**5): l = [l]\n"
    "    return l",
    "a result that never ends": "import itertools\ndef solve(x): return itertools.count()",
    "a result too large": "def solve(x): return 'x' * (20 * 2**20)",
    "a number too large": "def solve(x): return 1 << 2 * 10**8",
    "a result that multiplies": "def solve(x):\n    l = [0]\n    for _ in range(60): l = [l, l]\n"
    "    return l",
    "close the channel": "import os\ndef solve(x): os.closerange(0, 99)",
    "read the questions itself": "import os\ndef solve(x):\n    while os.read(3, 1): pass",
    "an answer of the wrong shape": "import os, time\n"
    "for data in (b'{}', b'[]', b'\"value\"', b'[\"value\"]', b'9', b'null'):\n"
    "    os.write(3, " + _LINE + ")\ntime.sleep(9)",
    "an exception with a bad face": "class E(Exception):\n    def __str__(self): raise SystemExit\n"
    "def solve(x): raise E",
    "an exception that is no exception": "def solve(x): raise KeyboardInterrupt",
    "an assertion of its own": "def solve(x): raise AssertionError",
}

GLUTTONS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading, time\ndef solve(x):\n    while True:\n"
    "        threading.Thread(target=time.sleep, args=(99,)).start()",
    "memory bomb": "def solve(x):\n    l = []\n    while True: l.append(bytearray(2**20))",
    "memory bomb that goes on": "l = []\nwhile True:\n    try: l.append(bytearray(2**20))\n"
    "    except MemoryError: pass",
    "disk bomb": "def solve(x):\n    n = 0\n    while True:\n        n += 1\n"
    "        with open(f'/tmp/trd-attack-{n}', 'wb') as f: f.write(bytes(2**20))",
    "endless output": "while True: print('x' * 10**6)",
    "endless loop": "def solve(x):\n    while True: pass",
    "deaf loop": "import signal\nfor n in range(1, 65):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "sleep": "import time\ndef solve(x): time.sleep(10**6)",
    "wait for input": "def solve(x): return input() or x * x",
    "deep recursion": "def solve(x): return solve(x) + 1",
    "deeper recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef solve(x): "
    "return max(solve(x), 1, key=lambda y: solve(y))",
    "crash": "import ctypes\ndef solve(x): ctypes.string_at(0)",
    "abort": "import os\ndef solve(x): os.abort()",
    "regex bomb": "import re\ndef solve(x): return re.match(r'(a+)+$', 'a' * 64 + 'b')",
    "zip bomb": "import zlib\ndef solve(x):\n    c = zlib.compressobj(9)\n"
    "    d = b''.join(c.compress(bytes(2**20)) for _ in range(400)) + c.flush()\n"
    "    return len(zlib.decompress(d))",
    "power bomb": "def solve(x): return 9 ** 9 ** 9",
    "thread that stays": "import threading\ndef forever():\n    while True: pass\n"
    "threading.Thread(target=forever).start()\ndef solve(x): return 0",
    "an import that never ends": "import sys\nclass F:\n    def find_spec(self, *a):\n"
    "        while True: pass\nsys.meta_path.insert(0, F())\nimport nothing",
    "no program at all": "this is not Python",
    "a null byte": "x = 1\0",
    "nothing": "",
}
