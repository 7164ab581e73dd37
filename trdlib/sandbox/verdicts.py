"""Verdicts on programs, in one file for all processes of the project: equal programs run once.

SQLite keeps it whole, whoever is killed. Deleting it costs time alone; no program can reach it.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable

from trdlib.settings import root

STEP = 1024  # verdicts found until they are put on file
# Reasons that another run may not give: those of clocks, and of a machine that is out of memory.
_PASSING = re.compile("time|killed by signal 9", re.IGNORECASE)


def _ask(query: str, rows: list[tuple]) -> list[tuple]:
    """What the file answers for each row, in one transaction; nothing if it cannot be used."""
    folder = root() / "runs" / ".verdicts"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(folder / "file", timeout=60)) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS v (key BLOB PRIMARY KEY, passed INTEGER)")
            return [found for row in rows for found in file.execute(query, row)]
    except sqlite3.DatabaseError as error:
        damaged = not isinstance(error, sqlite3.OperationalError)
        how = "moved aside, and made again" if damaged else "programs are run without it"
        print(f"{folder}: {error}: {how}", file=sys.stderr)
        with contextlib.suppress(OSError):  # another process may be faster
            if damaged:
                shutil.rmtree(f"{folder}.damaged", ignore_errors=True)
                os.replace(folder, f"{folder}.damaged")
        return []


def judged(judge: Callable, asked: list[tuple[str, str]], grader: str) -> list[bool]:
    """Does each pair (program, tests) pass? judge(pairs) gives Verdicts on those that are not on
    file, each once. grader: the hash of what else a verdict depends on."""
    keys = {one: hashlib.sha256(json.dumps([grader, *one]).encode()).digest() for one in asked}
    known = dict(_ask("SELECT * FROM v WHERE key = ?", [(key,) for key in keys.values()]))
    new = [one for one in keys if keys[one] not in known]
    for start in range(0, len(new), STEP):
        part = new[start : start + STEP]
        found = [(keys[one], v) for one, v in zip(part, judge(part), strict=True)]
        known |= {key: v.passed for key, v in found}
        lasting = [(key, v.passed) for key, v in found if v.passed or not _PASSING.search(v.reason)]
        _ask("INSERT OR IGNORE INTO v VALUES (?, ?)", lasting)
    return [bool(known[keys[one]]) for one in asked]
