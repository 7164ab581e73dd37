"""What this machine can run, what is missing, and how to get it: `python -m trdlib doctor`."""

import importlib.metadata
import json
import platform
import shutil
import tomllib
from importlib.util import find_spec

import httpx
from huggingface_hub import constants

from trdlib import sandbox
from trdlib.ops import pilot, plan, project
from trdlib.run import Run
from trdlib.settings import ENGINES, Settings, SettingsError, load, root


def packages() -> list[str]:
    """What differs from the pins of pyproject.toml."""
    project, faults = tomllib.loads((root() / "pyproject.toml").read_text())["project"], []
    for pin in project["dependencies"] + project["optional-dependencies"]["test"]:
        name, _, wanted = pin.partition("==")
        found = next((d.version for d in importlib.metadata.distributions(name=name)), "missing")
        if found.split("+")[0] != wanted:  # a local label is a build of the same version
            faults.append(f"{name} {found}, pinned {wanted}")
    return faults


def hub() -> str:
    """Is the hub reachable? Asked once, unless it is switched off."""
    if constants.HF_HUB_OFFLINE:
        return "off (HF_HUB_OFFLINE)"
    try:
        httpx.head(constants.ENDPOINT, timeout=3)
        return "reachable"
    except (httpx.HTTPError, OSError) as error:
        return f"not reachable ({type(error).__name__})"


def verdict(scale: str, settings: Settings, where: str, memory: int, reach: str) -> list[str]:
    """Why the scale does not run here as it is, and the mend; empty: it runs."""
    run, faults, unit = Run(scale, "none", "base", settings), [], plan.GIB
    how, there = run.settings.models, (run.data / "train.parquet").is_file()
    if how.backend == "unsloth" and not find_spec("unsloth"):
        faults.append("the backend unsloth is missing: pip install -e '.[gpu]'")
    if not find_spec(how.engine):
        extra = ENGINES[how.engine]
        faults.append(f"the engine {how.engine} is missing: pip install -e '.[{extra}]'")
    try:
        found = plan.models(run)
    except (SettingsError, ImportError) as error:
        return [*faults, str(error)]
    absent = [run.model_path(role, 0).partition("@")[0] for role in found if not found[role].here]
    absent += ["its problems"] if "@" in how.student and not there else []
    if absent and reach != "reachable":
        faults.append(f"not here are {', '.join(absent)}, and the hub is {reach}: go online once")
    need, stage = max((work.memory / plan.HEADROOM, work.stage) for work in plan.work(run, found))
    if not where.startswith("GPU") and found["student"].parameters > 1e9:
        faults.append(f"no GPU: it needs one with {need / unit:.0f} GiB (see plan)")
    elif need > memory:
        there = f"there are {memory / unit:.0f}: take a larger GPU, or a smaller batch_size"
        faults.append(f"{stage} needs {need / unit:.0f} GiB, {there}")
    return faults


def command(*, of_project: bool, as_json: bool) -> int:
    """Print what is here, or what an accident left of the project; 1 if anything is wrong."""
    settings = load()
    if of_project:
        found = {"wrong": project.wrong(settings), "locks": project.holders()}
        said = [f"{path}: {why}" for path, why in found["wrong"].items()] or ["nothing is wrong"]
        said += [f"open lock {one}" for one in found["locks"]]
        print(json.dumps(found) if as_json else "\n".join(said))
        return 1 if found["wrong"] else 0
    (where, memory), reach, guard = pilot.device(), hub(), sandbox.protection()
    free, faults, found = shutil.disk_usage(root()).free / plan.GIB, packages(), {}
    about = {
        "Python": f"{platform.python_version()}; {where}; {memory / plan.GIB:.1f} GiB",
        "disk": f"{free:.0f} GiB free", "hub": reach,
        "git": "here" if any((folder / ".git").exists() for folder in (root(), *root().parents))
        else "none here (a copy without .git): for dvc `git init`, or dvc config core.no_scm true",
        "sandbox": f"{guard}{'' if guard.safe else ' (no code tasks here: they need Linux)'}",
        **{f"engine {name}": "here" if find_spec(name) else f"missing: pip install -e '.[{extra}]'"
           for name, extra in ENGINES.items() if extra},
        "packages": "; ".join(faults) + "; so: make setup" if faults else "as pinned",
    }  # fmt: skip
    for name in settings.scales:
        try:
            found[name] = verdict(name, settings, where, memory, reach)
        except Exception as error:  # whatever is wrong with one, the others are judged
            named = "" if isinstance(error, SettingsError) else f"{type(error).__name__}: "
            found[name] = [" ".join(f"{named}{error}".split())]
    said = [f"{name}: {value}" for name, value in about.items()]
    said += ["\n  - ".join([f"{name}:", *why]) if why else f"{name}: runs here"
             for name, why in found.items()]  # fmt: skip
    print(json.dumps({"machine": about, "scales": found}) if as_json else "\n".join(said))
    return 1 if faults or any(found[name] for name in settings.run.scales) else 0
