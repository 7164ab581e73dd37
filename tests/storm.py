"""A storm of kills: `make storm ARGS="--place FOLDER"`, which goes on there if it is cut off itself
(end first what it had started). Not in CI; half an hour.

The pipeline at the scale smoke, then a sweep, run once undisturbed. In another copy every stage is
killed (-9, with all it started) at random moments of its time, and gone on with, until so many
kills are spent. Then each file of data/, models/, runs/ and results/ must be, byte for byte, what
the undisturbed run left, but for what notes time: executed notebooks, timings, costs, locks, logs.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
from test_pipeline import checkout, environment

COMMANDS = {
    "lock": ["trdlib", "lock"],  # what `make repro` does first
    "repro": ["dvc", "repro"],
    "sweep": ["trdlib", "sweep", "4_distill", "-p", "learning_rate=2e-3,6e-3", "--name", "storm"],
}
OF_TIME = re.compile(
    r"runs/(executed|timings|\.locks|\.verdicts|verdicts)|cost|\.log$|runs/sweeps/.*\.ipynb"
    r"|\.damaged|report\.html|\.png$|\.tmp(/|$)"
)


def spent(process: psutil.Process) -> tuple[float, list[psutil.Process]]:
    """CPU seconds of a process and all it started; these. Seconds of a busy machine say little."""
    family, total = [process], 0.0
    with contextlib.suppress(psutil.Error):
        family += process.children(recursive=True)
    for one in family:
        with contextlib.suppress(psutil.Error):
            total += sum(one.cpu_times()[:4])
    return total, family


def run(folder: Path, targets: dict[str, float], clock=None) -> str | None:
    """All commands; None if they ended well, else the stage that was killed: the first of `targets`
    that took so many CPU seconds. clock: {stage: CPU seconds} to be filled."""
    for name, command in COMMANDS.items():
        log = folder / "storm.log"
        seen, stage, since = log.stat().st_size if log.exists() else 0, name, 0.0
        with log.open("ab") as to:
            command = [sys.executable, "-um", *command]
            process = psutil.Popen(command, cwd=folder, env=environment(), stdout=to, stderr=to)
        while process.poll() is None:
            time.sleep(0.1)
            now, family = spent(process)
            lines = log.read_bytes()[seen:].decode(errors="replace")
            if (said := re.findall(r"^Running stage '(.*)'", lines, re.M)) and said[-1] != stage:
                stage, since = said[-1], now
            if clock is not None:
                clock[stage] = max(clock.get(stage, 0), now - since)
            if stage in targets and now - since > targets[stage]:
                for member in family:
                    with contextlib.suppress(psutil.Error):
                        member.kill()
                process.wait()
                return stage
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}: see {log}")
    return None


def files(folder: Path) -> dict[str, str]:
    """{file: hash} of the outputs; a sweep's table without its seconds."""
    found = [
        p for kind in ("data", "models", "runs", "results") for p in (folder / kind).rglob("*")
    ]
    names = {str(p.relative_to(folder)): p for p in found if p.is_file()}
    return {
        name: hashlib.sha256(
            pd.read_csv(p).drop(columns="seconds").to_csv().encode()
            if name.endswith("storm/table.csv") else p.read_bytes()
        ).hexdigest()
        for name, p in names.items() if not OF_TIME.search(name)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--place", type=Path, help="where to work, or to go on")
    asked = parser.parse_args()
    place = asked.place or Path(tempfile.mkdtemp(prefix="trd-storm-"))
    note = place / "storm.json"
    if not note.exists():
        clock: dict[str, float] = {}
        place.mkdir(exist_ok=True)
        calm = checkout(place / "calm")
        assert run(calm, {}, clock) is None
        note.write_text(json.dumps({"clock": clock, "files": files(calm), "kills": []}))
    known = json.loads(note.read_text())
    clock, expected, kills = known["clock"], known["files"], known["kills"]
    print(f"undisturbed: {sum(clock.values()):.0f} CPU s, {len(expected)} files", clock, flush=True)
    for passed in itertools.count():
        folder = place / f"storm-{passed}"
        if folder.exists() and passed < known.get("passes", 0):
            continue
        if not folder.exists():
            checkout(folder)
        rng = random.Random(f"{asked.seed} {passed} {len(kills)}")
        left = asked.kills - len(kills)
        todo = sorted(list(clock)[i % len(clock)] for i in range(left))
        stages = list(clock)
        for stage in sorted(todo, key=stages.index):  # or, where it has ended, of a later one
            moment, later = rng.random(), stages[stages.index(stage) :]
            if hit := run(folder, {one: moment * clock[one] for one in later}):
                kills.append(hit)
                note.write_text(json.dumps(known))
                print(f"kill {len(kills)}: {hit}", flush=True)
        assert run(folder, {}) is None
        found = files(folder)
        differ = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        if differ:
            raise SystemExit(f"{len(differ)} files differ, {differ[:20]}: see {folder}")
        said = (folder / "storm.log").read_text(errors="replace").count("Traceback")
        print(
            f"pass {passed}: all {len(found)} files equal; {said} tracebacks in its log", flush=True
        )
        known["passes"] = passed + 1
        note.write_text(json.dumps(known))
        if len(kills) >= asked.kills:
            break
    count = {stage: kills.count(stage) for stage in clock}
    print(f"{len(kills)} kills ({count}), seed {asked.seed}: every output equal")


if __name__ == "__main__":
    main()
