"""`python -m trdlib COMMAND`: what is not a notebook."""

import argparse
import importlib
import os
import sys
import time
from datetime import datetime
from pathlib import Path

from trdlib import store, tasks
from trdlib.analysis import map as the_map
from trdlib.ops import notebooks
from trdlib.ops.project import lock  # noqa: F401 - a command
from trdlib.run import Run, get_run, get_runs
from trdlib.settings import SettingsError, load, read_yaml, root


def models(scale: str) -> None:
    """Make the models that lie in models/<scale>; of others, note in used.json which they are."""
    run = get_run(scale, "none", "base")
    used = borrowed(run)
    if gone := next((name for name, found in used.items() if not found), None):
        make = f"make them: python -m trdlib models --scale {gone.split('/')[1]}"
        raise SettingsError(f"the scale {run.scale} uses {gone}, which is not there: {make}")
    if used:
        store.write_json(root() / "models" / run.scale / "used.json", used)
    else:
        from trdlib import generate, jobs

        tasks.of(run).make_models(generate.decode, jobs.run_jobs, generate.batches)


def borrowed(run: Run) -> dict[str, str | None]:
    """Models of other places: {folder: hash of its weights, None if absent; hub name: itself}."""
    names = [run.model_path(role, seed) for seed in run.settings.seeds
             for role in ("student", "teacher") if getattr(run.settings.models, role)]  # fmt: skip
    others = {name: root() / name for name in names if not name.startswith(f"models/{run.scale}/")}
    own = {name: store.weights_hash(path) for name, path in others.items() if path.is_dir()}
    return {name: name if "@" in name else None for name in others} | own


def check() -> None:
    """Is params.yaml valid? No model is loaded."""
    settings = load()
    for name, scale in settings.scales.items():
        tasks.check(name, scale)
        if scale.map:
            the_map.section(get_run(name, "none", "base", settings))
    print(f"params.yaml is valid: scales {', '.join(settings.scales)}")


def stamp(scales: list[str]) -> None:
    """Write runs/stamps for DVC: the code of each notebook; what of params.yaml and files
    shapes the results of <scale>, and models-<scale>."""
    check()
    settings, paths = load(), sorted((root() / "notebooks").glob("*.ipynb"))
    found = {path.stem: notebooks.made_of(path) for path in paths}
    code = {"trdlib": notebooks.hashes("from trdlib import generate, jobs, tasks")}
    makes = dict.fromkeys(("task", "seeds", "pretraining"), True)
    makes |= {"models": {"student", "teacher", "style"}}
    other = ("workers", "tracker", "map", "only", "variants", "methods", "pretraining")
    other = {**dict.fromkeys(other, True), "models": {"server"}}
    for name in dict.fromkeys([*settings.run.scales, *scales]):
        run = get_run(name, "none", "base", settings)
        cells = get_runs(run.scale, "all", "all", run.all_settings)
        methods = [[cell.mode, cell.method, cell.recipe.model_dump(mode="json")] for cell in cells]
        about = {"settings": run.settings.model_dump(mode="json", exclude=other)}
        files = {"files": tasks.of(run).files()}
        found[run.scale] = about | {"methods": methods} | files
        used = {"used": theirs} if (theirs := borrowed(run)) else {}
        makers = run.settings.model_dump(mode="json", include=makes)
        own = files if run.settings.task.endswith(".py") else {}  # which may make them
        found[f"models-{run.scale}"] = code | makers | used | own
    for name, value in found.items():
        path = root() / "runs" / "stamps" / f"{name}.json"
        if store.read_json(path, {}) != value:
            store.write_json(path, value)


def report(since: float, update: bool) -> None:
    """Print the headline tables, how long each stage took since then, and whether it reproduced."""
    import pandas as pd

    from trdlib.analysis import tables
    from trdlib.ops import verdict

    settings, rows, compute = load(), [], "model compute (core-seconds)"
    runs = [get_run(name, mode, settings=settings) for name in settings.run.scales
            for mode in settings.scales[name].modes]  # fmt: skip
    print("\n".join(tables.headline(run) for run in runs))
    if update and tables.update_readme(root() / "README.md", runs[0]):
        print("README.md: headline table brought up to date")
    for path in sorted((root() / "runs" / "executed").glob("*.ipynb")):
        about = store.read_json(path, {"metadata": {}})["metadata"].get("papermill", {})
        clock = store.read_json(root() / "runs" / "timings" / f"{path.stem}.json", {})
        done = about.get("end_time") and not about.get("exception") and clock
        if done and datetime.fromisoformat(about["start_time"]).timestamp() >= since:
            rows.append([path.stem, about["duration"], clock["core_seconds"], clock["workers"]])
    took = pd.DataFrame(rows, columns=["stage", "seconds", compute, "cores"])
    if rows:
        wall = time.time() - since if since else took["seconds"].sum()
        cores, used = took["cores"].max(), took[compute].sum()
        shown = took.sort_values("seconds").to_string(index=False, float_format="{:.1f}".format)
        share = f"{1 - used / (wall * cores):.0%} is not (kernels, imports, DVC)"
        print(f"\n{shown}\n{wall:.0f} s on {cores} core(s); {compute}: {used:.0f}, {share}")
    else:
        print("nothing to do: every stage is up to date")
    print(f"\n{verdict.verdict(settings.run.scales)}")


def main() -> int:
    """The command line as cli.yaml has it; the exit status."""
    rest = "What the pipeline calls: models, stamp, report, lock."
    parser = argparse.ArgumentParser(prog="trdlib", description=__doc__, epilog=rest)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in read_yaml(Path(__file__).with_suffix(".yaml")).items():
        listed = {} if about.get("hidden") else {"help": about["help"]}
        mine = commands.add_parser(name, description=about["help"], **listed)
        mine.register("type", "int", int)
        mine.register("type", "float", float)
        for option, how in about.get("options", {}).items():
            mine.add_argument(option, **how)
    arguments = vars(parser.parse_args())
    name = arguments.pop("command")
    try:
        mine = globals().get(name) or importlib.import_module(f"trdlib.ops.{name}").command
        return mine(**arguments) or 0
    except (SettingsError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def program() -> None:
    """`main` as a program: it exits, without a word where nobody reads on, as behind `| head`."""
    try:
        try:
            status = main()
        finally:  # after `--help` too
            sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        status = 141  # as of a program that the signal has ended
    sys.exit(status)
