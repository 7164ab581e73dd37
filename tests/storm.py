"""A storm of kills: `make storm`. Not in CI; half an hour.

The pipeline at the scale smoke, then a sweep, are killed (-9, with all they started) at random
moments, until so many kills are spent; what they leave is gone on with every time. In the end every
file of data/, runs/ and results/ must be, byte for byte, what an undisturbed run leaves, but for
what notes time: executed notebooks, timings, costs, locks, logs.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from test_pipeline import checkout, environment

COMMANDS = (
    [sys.executable, "-m", "trdlib", "lock"],  # what `make repro` does first
    [sys.executable, "-m", "dvc", "repro"],
    [sys.executable, "-m", "trdlib", "sweep", "4_distill", "-p", "learning_rate=2e-3,6e-3",
     "-p", "seed=0..1", "--name", "storm"],
)  # fmt: skip
OF_TIME = re.compile(
    r"runs/(executed|timings|\.locks|\.verdicts|verdicts)|cost|\.log$|runs/sweeps/.*\.ipynb"
    r"|\.damaged|report\.html|\.png$"
)


def run(folder: Path, moment=None) -> str | None:
    """All commands; None if they ended well, else what was killed. moment() -> seconds until."""
    for command in COMMANDS:
        log = (folder / "storm.log").open("ab")
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
        try:
            code = process.wait(moment and moment())
        except subprocess.TimeoutExpired:
            for member in [process, *psutil.Process(process.pid).children(recursive=True)]:
                member.kill()
            process.wait()
            return " ".join(command[2:4])
        if code:
            raise SystemExit(f"{command[2:]} ended with {code}: see {log.name}")
    return None


def files(folder: Path) -> dict[str, bytes]:
    found = [p for kind in ("data", "runs", "results") for p in (folder / kind).rglob("*")]
    names = {str(p.relative_to(folder)): p for p in found if p.is_file()}
    return {name: p.read_bytes() for name, p in names.items() if not OF_TIME.search(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args()
    rng, place = random.Random(asked.seed), Path(tempfile.mkdtemp(prefix="trd-storm-"))
    calm, started = checkout(place / "calm"), time.monotonic()
    assert run(calm) is None
    took, expected = time.monotonic() - started, files(calm)
    print(f"undisturbed: {took:.0f} s, {len(expected)} files", flush=True)
    kills, passes, hit = 0, 0, {}
    while kills < asked.kills:
        passes += 1
        folder = checkout(place / f"storm-{passes}")
        # of a pass about eight are killed: moments of a fifth of what an undisturbed run takes
        while what := run(folder, lambda: rng.expovariate(5 / took) + 0.5):
            kills, hit[what] = kills + 1, hit.get(what, 0) + 1
            stage = sorted(
                (folder / "runs" / "executed").glob("*"), key=lambda p: p.stat().st_mtime
            )
            print(
                f"kill {kills}: {what}, at {stage[-1].stem if stage else 'the start'}", flush=True
            )
            if kills >= asked.kills:
                assert run(folder) is None
                break
        found = files(folder)
        differ = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        if differ:
            raise SystemExit(f"{len(differ)} files differ, {differ[:20]}: see {folder}")
        said = (folder / "storm.log").read_text(errors="replace").count("Traceback")
        print(
            f"pass {passes}: all {len(found)} files equal; {said} tracebacks in its log", flush=True
        )
    print(f"{kills} kills in {passes} passes ({hit}): every output equal")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
