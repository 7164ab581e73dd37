"""The file of verdicts: shared by processes, whole whatever is killed, out of a program's reach."""

import signal
import subprocess
import sys
import time

import attacks
import pytest

from trdlib import sandbox
from trdlib.sandbox import Verdict, verdicts


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / ".verdicts" / "hashes"


class Judge:
    """A grader that is asked to say what the program says: "yes", or why not."""

    def __init__(self):
        self.asked = []

    def __call__(self, pairs):
        self.asked += pairs
        return [Verdict(program == "yes", program) for program, _ in pairs]


def judged(pairs, grader="g"):
    """-> the verdicts, and which pairs had to be judged for them."""
    judge = Judge()
    return verdicts.judged(judge, pairs, grader), judge.asked


def test_what_is_known_is_not_asked_again(file, monkeypatch):
    pairs = [("yes", "t"), ("no", "t"), ("yes", "t"), ("no", "u")]
    assert judged(pairs) == ([True, False, True, False], [*dict.fromkeys(pairs)])
    assert judged(pairs[::-1]) == ([False, True, False, True], [])
    # another program, other tests, another grader: another verdict
    for other in ([("yest", "")], [("ye", "st")], [("yes", "T")]):
        assert judged(other)[1] == other
    assert judged(pairs[:1], "h") == ([True], pairs[:1])
    assert judged([]) == ([], [])
    # step by step: what was found before a step failed is kept
    monkeypatch.setattr(verdicts, "STEP", 2)
    many, judge = [(str(n), "t") for n in range(5)], Judge()
    with pytest.raises(KeyboardInterrupt):
        verdicts.judged(_stops_at("4", judge), many, "g")
    assert judged(many)[1] == many[4:]


def _stops_at(program, judge):
    def stops(pairs):
        if any(one == program for one, _ in pairs):
            raise KeyboardInterrupt
        return judge(pairs)

    return stops


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("timeout: 4 s", False), ("line 3 of the tests: TimeoutError: the call took too long", False),
     ("the program ended early: killed by signal 9", False), ("exit code 1", True),
     ("the program ended early: killed by signal 11", True), ("", True)],
)  # fmt: skip
def test_what_a_clock_said_is_asked_again(file, reason, kept):
    pairs = [(reason, "t")]
    assert judged(pairs) == ([False], pairs)
    assert judged(pairs) == ([False], [] if kept else pairs)


def test_a_damaged_file_costs_what_it_lost_and_no_more(file):
    pairs = [("yes", "t"), ("no", "t")]
    judged(pairs)
    whole = file.read_bytes()
    for damage, lost in ((b"\xff\0" * 99, pairs), (whole[:-9], pairs[1:]), (whole[9:], pairs[:1])):
        file.write_bytes(damage)
        assert judged(pairs) == ([True, False], lost)
        assert judged(pairs) == ([True, False], [])


WORKER = """
import sys
from trdlib.sandbox import Verdict, verdicts
said = lambda pairs: [Verdict(int(p) % 2 == 0, "") for p, _ in pairs]
verdicts.STEP = 3
print("up", flush=True)
for start in range(0, {many}, 5):
    for again in (0, 1):
        wanted = [(str(n), "t") for n in range(start, start + 5)]
        assert verdicts.judged(said, wanted, "g") == [n % 2 == 0 for n in range(start, start + 5)]
"""


def worker(many):
    command = [sys.executable, "-c", WORKER.format(many=many)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_processes_share_it_and_one_that_is_killed_leaves_it_whole(file):
    for _ in range(2):
        one = worker(10**6)
        assert one.stdout.readline() == b"up\n"
        while not file.exists() or (size := file.stat().st_size) < 10_000:
            assert one.poll() is None
            time.sleep(0.01)
        one.send_signal(signal.SIGKILL)
        one.wait()
    others = [worker(200) for _ in range(2)]
    assert [one.wait() for one in others] == [0] * 2
    pairs = [(str(n), "t") for n in range(200)]
    assert judged(pairs) == ([n % 2 == 0 for n in range(200)], [])
    assert size


def test_no_program_reaches_it(file):
    """Not by its path, and not by a descriptor that is open when programs are started."""
    if not sandbox.protection().safe:
        pytest.skip("nothing protects this machine from programs")
    judged([("yes", "t")])
    before, opened = file.read_bytes(), open(file, "r+b")  # noqa: SIM115
    program = (
        f"import os\ndef solve(x):\n    try: open({str(file)!r}, 'r+b')\n"
        "    except OSError: pass\n    else: return x * x\n"
        f"    same = lambda fd: os.fstat(fd).st_size == {len(before)}\n"
        "    for fd in range(1024):\n        try:\n            if same(fd): return x * x\n"
        "        except OSError: pass"
    )
    with opened:
        assert "AssertionError" in sandbox.check(program, attacks.TESTS).reason
    assert file.read_bytes() == before
