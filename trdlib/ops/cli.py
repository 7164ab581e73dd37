"""`python -m trdlib COMMAND`: what is not a notebook."""

import argparse
import importlib
import sys
import time
from datetime import datetime
from pathlib import Path

from trdlib import store, tasks
from trdlib.ops import notebooks
from trdlib.run import Run, get_run, get_runs
from trdlib.settings import Settings, SettingsError, load, read_yaml, root


def models(scale: str) -> None:
    """Make the models that lie in models/<scale>; of others, note in used.json which they are."""
    run = get_run(scale, "none", "base")
    used = borrowed(run)
    for name in (name for name, found in used.items() if not found):
        make = f"make them: python -m trdlib models --scale {name.removeprefix('models/').split('/')[0]}"
        raise SettingsError(f"the scale {run.scale} uses {name}, which is not there: {make}")
    if used:
        store.write_json(root() / "models" / run.scale / "used.json", used)
    else:
        from trdlib import generate, jobs

        tasks.of(run).make_models(generate.decode, jobs.run_jobs, generate.batches)


def borrowed(run: Run) -> dict[str, str | None]:
    """The models of a scale that do not lie in models/<scale>: {folder: hash of its weights, None
    if it is not there}, {name on the hub: itself}; as models.identity, which needs torch."""
    roles, found = [r for r in ("student", "teacher") if getattr(run.settings.models, r)], {}
    for name in (run.model_path(role, seed) for seed in run.settings.seeds for role in roles):
        if not name.startswith(f"models/{run.scale}/"):
            there = (root() / name).is_dir()
            found[name] = store.weights_hash(root() / name) if there else None
            found[name] = name if "@" in name else found[name]
    return found


def check() -> Settings:
    """Is params.yaml valid? No model is loaded."""
    settings = load()
    for name, scale in settings.scales.items():
        tasks.check(name, scale)
    print(f"params.yaml is valid: scales {', '.join(settings.scales)}")
    return settings


def stamp(scales: list[str]) -> None:
    """Write to runs/stamps what of code and settings shapes each stage, for DVC: <notebook>.json,
    <scale>.json, and models-<scale>.json of the models that it makes; what is unchanged is kept."""
    settings = check()
    paths = sorted((root() / "notebooks").glob("*.ipynb"))
    found = {path.stem: notebooks.made_of(path) for path in paths}
    code = {"trdlib": notebooks.hashes("from trdlib import generate, jobs, tasks")}
    makes = dict.fromkeys(("task", "seeds", "pretraining", "packaged"), True)
    makes |= {"models": {"student", "teacher", "style"}}
    for name in dict.fromkeys([*settings.run.scales, *scales]):
        run = get_run(name, "none", "base", settings)
        about = code | run.settings.model_dump(mode="json", include=makes)
        used = borrowed(run)
        found |= {
            run.scale: shaped_by(run),
            f"models-{run.scale}": about | ({"used": used} if used else {}),
        }
    for name, value in found.items():
        path = root() / "runs" / "stamps" / f"{name}.json"
        if store.read_json(path, {}) != value:
            store.write_json(path, value)


def shaped_by(run: Run) -> dict:
    """What of params.yaml, and of files of one's own, shapes the results of a scale, plain JSON."""
    other = ("workers", "tracker", "map", "only", "variants", "methods", "pretraining", "packaged")
    kept = {"mode": "json", "exclude": {**dict.fromkeys(other, True), "models": {"server"}}}
    cells = get_runs(run.scale, "all", "all", run.all_settings)
    methods = [[cell.mode, cell.method, cell.recipe.model_dump(mode="json")] for cell in cells]
    found = {"settings": run.settings.model_dump(**kept), "methods": methods}
    return found | {"files": tasks.of(run).files()}


def report(since: float, update: bool) -> None:
    """Print the headline tables, how long each stage took, and whether it reproduced."""
    from trdlib.analysis import tables
    from trdlib.ops import verdict

    settings = load()
    runs = [get_run(name, mode, settings=settings) for name in settings.run.scales
            for mode in settings.scales[name].modes]  # fmt: skip
    print("\n".join(tables.headline(run) for run in runs))
    if update and tables.update_readme(root() / "README.md", runs[0]):
        print("README.md: headline table brought up to date")
    times(since)
    print(f"\n{verdict.verdict(settings.run.scales)}")


def times(since: float) -> None:
    """How long each stage executed since a moment took, and how much was not model compute."""
    import pandas as pd

    rows, compute = [], "model compute (core-seconds)"
    for path in sorted((root() / "runs" / "executed").glob("*.ipynb")):
        about = store.read_json(path, {"metadata": {}})["metadata"].get("papermill", {})
        clock = store.read_json(root() / "runs" / "timings" / f"{path.stem}.json", {})
        done = about.get("end_time") and not about.get("exception") and clock
        if done and datetime.fromisoformat(about["start_time"]).timestamp() >= since:
            rows.append([path.stem, about["duration"], clock["core_seconds"], clock["workers"]])
    if not rows:
        print("nothing to do: every stage is up to date")
        return
    table = pd.DataFrame(rows, columns=["stage", "seconds", compute, "cores"])
    wall = time.time() - since if since else table["seconds"].sum()
    cores, used = table["cores"].max(), table[compute].sum()
    shown = table.sort_values("seconds").to_string(index=False, float_format="{:.1f}".format)
    print(f"\n{shown}\n{wall:.0f} s on {cores} core(s), {used:.0f} core-seconds of model compute: "
          f"{1 - used / (wall * cores):.0%} is not (kernels, imports, DVC)")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """What cli.yaml says."""
    rest = "What the pipeline calls: models, stamp, report."
    found = argparse.ArgumentParser(prog="trdlib", description=__doc__, epilog=rest)
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, about in read_yaml(Path(__file__).with_suffix(".yaml")).items():
        listed = {} if about.get("hidden") else {"help": about["help"]}
        mine = commands.add_parser(name, description=about["help"], **listed)
        mine.register("type", "int", int)
        mine.register("type", "float", float)
        for option, how in about.get("options", {}).items():
            mine.add_argument(option, **how)
    return found


def main() -> int:
    arguments = vars(parser().parse_args())
    name = arguments.pop("command")
    try:
        if name in globals():
            done = globals()[name](**arguments)
        else:
            done = importlib.import_module(f"trdlib.ops.{name}").command(**arguments)
        return done if isinstance(done, int) else 0
    except (SettingsError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
