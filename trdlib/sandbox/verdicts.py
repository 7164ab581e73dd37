"""Verdicts on programs, in one file for all processes of the project: equal programs run once.

A line is the hash of a program, its tests, their grader and the verdict: a torn or damaged line is
none, and no lock is needed. Deleting the file costs time alone; no program can reach it."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable

from trdlib import sandbox
from trdlib.settings import root

STEP = 1024  # verdicts found until they are put on file
# Reasons that another run may not give: those of clocks, and of a machine that is out of memory.
_PASSING = re.compile("time|killed by signal 9", re.IGNORECASE)


def judged(judge: Callable, asked: list[tuple], grader: str, batch: int = STEP) -> list[bool]:
    """Does each pair (program, tests) pass? judge(up to `batch` pairs), in threads, gives Verdicts
    on those that are not on file. grader: the hash of what else a verdict depends on."""

    def line(one: tuple[str, str], passed: bool) -> bytes:
        return hashlib.sha256(json.dumps([grader, *one, passed]).encode()).hexdigest().encode()

    path, once = root() / "runs" / ".verdicts" / "hashes", dict.fromkeys(asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = set(path.read_bytes().split()) if path.is_file() else ()
    known = {one: said for one in once for said in (True, False) if line(one, said) in lines}
    new = [one for one in once if one not in known]
    for start in range(0, len(new), STEP):
        part = new[start : start + STEP]
        batches = [part[i : i + batch] for i in range(0, len(part), batch)]
        said = itertools.chain.from_iterable(sandbox.in_pool(judge, batches))
        found = dict(zip(part, said, strict=True))
        known |= {one: verdict.passed for one, verdict in found.items()}
        found = {one: v.passed for one, v in found.items() if not _PASSING.search(v.reason)}
        with path.open("ab", buffering=0) as file:
            file.write(b"\n".join([b"", *itertools.starmap(line, found.items()), b""]))
    return [known[one] for one in asked]
