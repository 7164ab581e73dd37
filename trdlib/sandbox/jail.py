"""What a locked process runs: a program (`serve`, `script`) or its examiner (`examine`).

Those two talk over fd 3 in plain data and nothing else: `pack` and `unpack`, which tests and
drivers inside may use too (`from jail import unpack`). What is not plain stays in the program: the
examiner has its number. Nothing but the stdlib."""

import builtins
import contextlib
import ctypes
import functools
import importlib
import io
import json
import operator
import os
import re
import signal
import sys
import traceback
import types
from collections import deque
from collections.abc import Iterator, MappingView
from decimal import Decimal
from fractions import Fraction

LONGEST = 16 * 2**20  # bytes of one message between program and examiner, of one file, of /tmp
ENDED = "the program ended early"
NONSENSE = "the program's answer is not plain data"


def _error(above: list[str]) -> type:
    """A class of errors of the program, from its name and those of the classes above: our own."""
    base = next(_ERRORS[name] for name in [*above, "Exception"] if name in _ERRORS)
    return _ERRORS.setdefault(above[0], type(above[0], (base,), {}))


_COMMON = sys.stdlib_module_names | {"numpy"}  # a program's module of this name is our own
# Plain data that JSON has no word for: type -> (how its value is written, how that is read).
_PLAIN = {
    **{kind: (lambda value, each, kind=kind: [*map(each, kind.__iter__(value))],
              lambda items, kind=kind: kind(map(unpack, items)))
       for kind in (tuple, set, frozenset, deque)},
    dict: (lambda value, each: [[each(k), each(v)] for k, v in dict.items(value)],
           lambda pairs: {unpack(key): unpack(value) for key, value in pairs}),
    bytes: (lambda value, _: bytes(value).decode("latin-1"), lambda text: bytes(text, "latin-1")),
    bytearray: (lambda value, _: value.decode("latin-1"), lambda text: bytearray(text, "latin-1")),
    complex: (lambda value, _: [value.real, value.imag], lambda parts: complex(*parts)),
    **{kind: (lambda value, each: [*map(each, (value.start, value.stop, value.step))],
              lambda parts, kind=kind: kind(*map(unpack, parts))) for kind in (range, slice)},
    **{kind: (lambda value, _: str(value), kind) for kind in (Decimal, Fraction)},
    types.ModuleType: (lambda value, _: value.__name__, lambda name: importlib.import_module(name)
                       if name in _COMMON else types.ModuleType(name)),
    **{kind: (lambda value, each: [*map(each, value)], lambda items: iter([*map(unpack, items)]))
       for kind in (Iterator, MappingView)},
}  # fmt: skip
_TYPES = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}
_UNPACK = {kind.__name__: read for kind, (_, read) in _PLAIN.items()} | {
    "int": lambda digits: int(digits, 16), "type": _TYPES.__getitem__, "error": _error,
}  # fmt: skip


def pack(value, other=None):
    """Plain data -> JSON-able. Subclasses become their plain type; iterators become lists once.
    other(value) packs what is not plain data; without it, TypeError."""
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
    for kind, (write, _) in _PLAIN.items():
        if isinstance(value, kind):
            return {"t": kind.__name__, "v": write(value, lambda item: pack(item, other))}
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and value.ndim == 0:
        return pack(value.item(), other)
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return {"t": "type", "v": value.__name__}
    if isinstance(value, type) and issubclass(value, Exception):
        return {"t": "error", "v": [kind.__name__ for kind in value.__mro__]}
    if other is None:
        raise TypeError(f"{type(value).__name__} is not plain data")
    return other(value)


def unpack(data):
    """The inverse of pack. Whatever data says, the result is made of exact builtin types."""
    if isinstance(data, list):
        return [unpack(item) for item in data]
    return _UNPACK[data["t"]](data["v"]) if isinstance(data, dict) else data


class Channel:
    """Between program and examiner: a message is plain data, a line of JSON on fd 3."""

    def __init__(self):
        self.reader = open(3, "rb", closefd=False)  # noqa: SIM115
        self.writer = open(3, "wb", closefd=False)  # noqa: SIM115

    def send(self, message: list, other=None) -> None:
        line = json.dumps(pack(message, other)).encode() + b"\n"
        if len(line) > LONGEST:
            raise OverflowError("the value is too large")
        signal.setitimer(signal.ITIMER_PROF, 0)  # a message is whole, whatever the time
        self.writer.write(line)
        self.writer.flush()

    def receive(self):
        line = self.reader.readline(LONGEST + 1)
        if len(line) > LONGEST:
            raise ValueError("the message is too large")
        if not line.endswith(b"\n"):
            raise EOFError
        return unpack(json.loads(line))


def clean(text: str) -> str:
    """A program's words, safe to print: one short line of ASCII."""
    return re.sub(r"[^ -~]", lambda match: ascii(match[0])[1:-1], text)[:200]


def brief(error: BaseException, *, named: bool = True) -> str:
    try:
        return clean(f"{type(error).__name__}: {error}" if named else str(error))
    except BaseException:  # its __str__ is the program's
        return "an error"


# --------------------------------------------------------------------------------- the program
_DEVICES = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2, "/dev/null": 2,
            "/dev/fd/0": 0, "/dev/fd/1": 1, "/proc/self/fd/0": 0, "/proc/self/fd/1": 1}  # fmt: skip


def _open(file, *args, _real=open, **kwargs):
    """There are no devices where a program runs; those of its own three files are known by name."""
    name = os.fspath(file) if isinstance(file, str | os.PathLike) else file
    return _real(os.dup(_DEVICES[name]) if name in _DEVICES else file, *args, **kwargs)


def _module(name: str, program: str) -> dict:
    builtins.open = io.open = _open
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = sys.argv[0]
    exec(compile(program, "<program>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def serve(program: str) -> None:
    """Load the program, then answer calls until the examiner hangs up (EOFError). A call names `f`,
    or `Solution().f`: a method of an instance made for the purpose; or `.op`, a builtin or of the
    modules operator and functools. The first, of no name, asks which there are."""
    channel, lent = Channel(), {}
    _UNPACK["opaque"] = lent.__getitem__
    try:
        names = _module("program", program)
    except BaseException as error:
        channel.receive()
        return channel.send(["ended", brief(error)])

    for module in (builtins, operator, functools):
        names |= {f".{op}": done for op, done in vars(module).items()}
    names[""] = lambda wanted: {name: names[name] for name in wanted if name in names}

    def lend(value) -> dict:
        lent[id(value)] = value
        return {"t": "opaque", "v": id(value)}

    def overrun(*_):
        raise TimeoutError("the call took too long")

    signal.signal(signal.SIGPROF, overrun)
    while True:
        path, args, kwargs, seconds = channel.receive()
        owner, _, name = path.rpartition("().")
        try:
            function = getattr(names[owner](), name) if owner else names[name]
            signal.setitimer(signal.ITIMER_PROF, seconds or 0)
            channel.send(["value", function(*args, **kwargs)], lend)
        except BaseException as error:
            above = [kind.__name__ for kind in type(error).__mro__]
            channel.send(["raised", above, brief(error, named=False)])


def script(program: str) -> None:
    """Run the program as a script: standard input is fd 0, standard output fd 1. It ends as Python
    does: threads are joined, what is registered for the exit is done, files are flushed."""
    text = {"encoding": "utf-8", "errors": "surrogateescape", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **text)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", **text)  # noqa: SIM115
    code = 0
    try:
        _module("__main__", program)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else error.code is not None
    except BaseException as error:
        code = 1
        os.write(3, brief(error).encode())
        with contextlib.suppress(BaseException):  # a hook of its own may print
            sys.excepthook(type(error), error, error.__traceback__)
    ctypes.pythonapi.Py_Exit(code & 255)


# -------------------------------------------------------------------------------- the examiner
class Stop(BaseException):
    """The tests are over: no `except Exception` of theirs may hide that."""


# What a test may expect. Not StopIteration: it would end a loop of the tests early, and silently.
# Not UnicodeError and its kind: their constructors take more than a message.
_NOT = StopIteration | StopAsyncIteration | Warning | BaseExceptionGroup | UnicodeError
_ERRORS = {n: k for n, k in _TYPES.items() if issubclass(k, Exception) and not issubclass(k, _NOT)}


class Thing:
    """In the tests, an object of the program: what is done to it is done there. It equals no plain
    data and computes with none, whatever it says; two of them are compared as the program says."""

    def __init__(self, number: int | None):
        self.__dict__["number of a thing"] = number

    def __getattr__(self, name: str):
        if name.startswith("__"):  # some make libraries read memory: __array_interface__
            raise AttributeError(name)
        return Thing.remote(".getattr")(self, name)

    def __instancecheck__(self, one) -> bool:
        return isinstance(one, Thing) and Thing.remote(".isinstance")(one, self)


_PAIRS = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod")
for _op in ("call", "setattr", "iter", "len", "getitem", "setitem", "contains", "str", "repr",
            "bool", "hash", *_PAIRS):  # fmt: skip

    def _there(self, *args, _op=_op, **kwargs):
        if _op in _PAIRS and not isinstance(args[0], Thing):
            return NotImplemented
        return Thing.remote(f".{_op}")(self, *args, **kwargs)

    setattr(Thing, f"__{_op}__", _there)


class _Examiner(Channel):
    """What went wrong once stays wrong, whatever a bare `except` of the tests makes of it."""

    calls, named = 0, ()  # how often the tests called the program, what they know by name
    fault: tuple[str, bool] | None = None  # the reason, and whether the tests themselves are it

    def __init__(self):
        super().__init__()
        Thing.remote, _UNPACK["opaque"] = self.remote, functools.cache(Thing)  # one name for one

    def stop(self, reason: str, unfit: bool = False):
        self.fault = self.fault or (reason, unfit)
        raise Stop

    def remote(self, path: str, seconds: float | None = None):
        """A function of the program's process."""

        def call(*args, **kwargs):
            named = path[:1] != "." or (path == ".call" and any(args[0] is x for x in self.named))

            def other(value) -> dict:
                if isinstance(value, Thing):
                    return {"t": "opaque", "v": value.__dict__["number of a thing"]}
                # The tests bring this about, not a program by its object or a method of its text.
                method = isinstance(value, types.BuiltinMethodType)
                own = not method or isinstance(value.__self__, type | types.ModuleType)
                kind = type(value).__name__
                self.stop(f"the tests pass what cannot be sent: {kind}", unfit=named and own)

            if self.fault:
                raise Stop
            try:
                self.send([path, args, kwargs, seconds], other)
                answer = self.receive()
            except (EOFError, OSError):
                self.stop(ENDED)
            except Exception as error:
                self.stop(str(error) if isinstance(error, OverflowError) else NONSENSE)
            self.calls += path == ".call" or path[:1] != "."
            match answer:
                case ["value", value]:
                    return value
                case ["raised", [str(), *_] as above, str(message)]:
                    raise _error(above)(message[:200])
                case ["ended", str(why)]:
                    self.stop(why)
            self.stop(NONSENSE)

        return call


def compiled(tests: str) -> tuple[types.CodeType, list[str]]:
    """The tests, and the names in them that may be the program's. ValueError: they are no tests."""

    def names(code: types.CodeType) -> set[str]:
        inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
        return set(code.co_names).union(*map(names, inner))

    try:
        code = compile(tests, "<tests>", "exec", dont_inherit=True)
    except Exception as error:
        raise ValueError(f"the tests do not compile: {brief(error)}") from None
    if not (wanted := sorted(name for name in names(code) if not name.startswith("__"))):
        raise ValueError("the tests never call the program")
    return code, wanted


def examine(tests: str) -> None:
    """Run the tests; the program's names in them are calls to its process. The verdict: fd 4."""
    examiner, module = _Examiner(), types.ModuleType("__main__")
    sys.modules["__main__"] = module
    code, wanted = compiled(tests)
    try:
        said = examiner.remote("")(wanted)
        found = {name: said[name] for name in wanted if name in said}
        # A builtin is the builtin, unless the tests name nothing else that is the program's.
        hidden = {name for name in found if hasattr(builtins, name)}
        modules = {k for k, v in found.items() if isinstance(v, types.ModuleType)}
        if len(hidden) > 1 or found.keys() - hidden - modules or "remote" in wanted:
            found = {name: found[name] for name in found if name not in hidden}
        for name, value in found.items():
            if isinstance(value, type) and not issubclass(value, Exception):  # int, renamed
                found[name] = examiner.remote(".partial")(value)
        module.__dict__.update(found, remote=examiner.remote)
        examiner.calls, examiner.named = 0, list(found.values())
        exec(code, module.__dict__)
        if not examiner.calls:
            examiner.stop("the tests never called the program")
    except BaseException as error:  # of Stop, the examiner knows why
        steps = traceback.walk_tb(error.__traceback__)
        lines = [n for frame, n in steps if frame.f_code.co_filename == "<tests>"] or [0]
        examiner.fault = examiner.fault or (f"line {lines[-1]} of the tests: {brief(error)}", False)
    reason, unfit = examiner.fault or ("", False)
    os.write(4, json.dumps([examiner.fault is None, clean(reason), unfit]).encode())
