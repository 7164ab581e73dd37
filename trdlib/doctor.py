"""What this machine can run, what is missing, and how to get it: `python -m trdlib doctor`.

Nothing heavy is loaded: packages are looked up, not imported (but for torch, which alone knows the
GPU), and the network is asked once, with a timeout of three seconds. Whether a scale runs is the
verdict of plan.py's memory at the smallest batch, its models and its data.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tomllib
from typing import NamedTuple

from trdlib import config, costs, inputs, plan, sandbox, workload
from trdlib.costs import GIB
from trdlib.packaged import find

EVALUATION = "evaluation.sampling"
SECTIONS = {"rollout": "rollout", "refine": "refinement"}  # of params.yaml, by stage
CPU_WEIGHTS = 10**9  # bytes of weights above which a CPU would take months


class Machine(NamedTuple):
    """What the verdict on a scale depends on."""

    gpu: bool
    memory: int  # bytes: of the GPU, else of the machine
    hub: str  # "reachable", "off (HF_HUB_OFFLINE)", "not reachable"
    unsloth: bool
    faults: tuple[str, ...]  # packages that are not as pinned
    engines: tuple[str, ...] = tuple(config.ENGINES)  # that can sample here


def packages() -> list[str]:
    """What differs from the pins of pyproject.toml, the extra [gpu] aside."""
    project = tomllib.loads((config.root() / "pyproject.toml").read_text())["project"]
    faults = []
    for pin in project["dependencies"] + project["optional-dependencies"]["test"]:
        name, _, wanted = pin.partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found.split("+")[0] != wanted:  # a local label is a build of the same version
            faults.append(f"{name} {found}, pinned {wanted}")
    return faults


def hub() -> str:
    """Is the hub reachable? Asked once, unless it is switched off."""
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "off (HF_HUB_OFFLINE)"
    try:
        httpx.head(constants.ENDPOINT, timeout=3)
    except (httpx.HTTPError, OSError) as error:
        return f"not reachable ({type(error).__name__})"
    return "reachable"


def _cache_type() -> str:
    """How DVC puts a result into its cache, and whether that doubles the disk it takes."""
    parser = configparser.ConfigParser()
    parser.read(config.root() / ".dvc" / name for name in ("config", "config.local"))
    return parser.get("cache", "type", fallback="reflink, else copy (the default)")


def _torch() -> tuple[str, str]:
    """(build, device)."""
    try:
        import torch
    except ImportError:
        return "missing: make setup", "unknown without torch"
    build = f"{torch.__version__} ({'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU'})"
    if not torch.cuda.is_available():
        return build, "no GPU" + (" (or a driver that is too old)" if torch.version.cuda else "")
    major, minor = torch.cuda.get_device_capability()
    bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    memory = plan.device_memory() / GIB
    return build, f"{plan.device_name()}, {memory:.3g} GiB, capability {major}.{minor}, {bf16}"


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _gpu_only(engine: str) -> str:
    return ", on a GPU" if engine in ("vllm", "unsloth") else ""


def engines(gpu: bool) -> tuple[str, ...]:
    """Those of models.engine that can sample here (openai: if a server is reachable)."""
    there = [name for name, needs in config.ENGINES.items() if all(map(_has, needs))]
    return tuple(name for name in there if gpu or not _gpu_only(name))


def verdict(scale: str, settings: config.Settings, machine: Machine) -> list[str]:
    """Why the scale does not run here as it is, and what to do about it; empty: it runs."""
    run = config.Run(scale, "math", "none", "base", settings)
    section, faults = run.settings, []
    tasks = ["math", *(task for task in settings.run.tasks if task in section.tasks)]
    if machine.faults:
        faults.append("packages are not as pinned: make setup")
    if section.models.backend == "unsloth" and not machine.unsloth:
        faults.append("the backend unsloth is missing: pip install -e '.[gpu]'")
    engine = section.models.engine
    if engine not in machine.engines:
        how = config.ENGINE_INSTALL[engine]
        faults.append(f"the engine {engine} does not run here: {how}{_gpu_only(engine)}")
    online = machine.hub == "reachable"
    try:
        models = workload.models(run).values()
    except config.SettingsError as error:  # a shape that nobody knows
        return [*faults, str(error)]
    absent = [one.name.partition("@")[0] for one in models if "@" in one.name and not one.here]
    packaged = section.models.packaged
    if packaged and not all(one.here for one in models):
        try:
            find(packaged)
        except config.SettingsError:
            faults.append(f"{packaged.package} is missing: make repro SCALE={scale} installs it")
    if not online:
        faults += [
            f"{name} is not here and the hub {machine.hub}: go online once" for name in absent
        ]
    if not online:
        needed = [settings.of(scale, task).data for task in tasks]
        needed = [one for one in needed if isinstance(one, config.HubData) and one.root is None]
        sets = [s for one in needed for s in one.sets.values() if s.published]
        absent = sum(inputs.here(one, None) is None for one in sets)
        if absent:
            faults.append(f"{absent} data sets not here: go online, or set data.root")
    runs = [config.Run(scale, task, "none", "base", settings) for task in tasks]
    items = [item for one in runs for item in workload.work(one, section.modes)]
    roof = costs.Machine(machine.memory, 1, 1, 0)  # its memory is what counts here
    need = {}
    for one in items:
        how = {"batch": 1} if isinstance(one, workload.Sampled) else {}
        name = plan.group(one.stage)
        need[name] = max(need.get(name, 0), one.memory(section, **how) / costs.HEADROOM)
    biggest = max(memory for memory, *_ in costs.GPUS.values()) * GIB
    never = {name: size for name, size in need.items() if size > biggest}
    least = max((size for size in need.values() if size <= biggest), default=0)
    small: dict[str, int] = {}
    for one in items:
        if isinstance(one, workload.Sampled) and not workload.paged(section):
            batch, name = one.batch(section, roof), SECTIONS.get(one.stage.split()[0], EVALUATION)
            if batch is not None and batch < min(one.rows, one.sampling.batch_size):
                small[name] = min(small.get(name, batch), batch)
    if not machine.gpu and any(one.bytes > CPU_WEIGHTS for one in models):
        faults.append(f"no GPU: it needs one with at least {least / GIB:.0f} GiB (see plan)")
    elif least > machine.memory:
        faults.append(
            f"it needs {least / GIB:.0f} GiB of memory and there are {machine.memory / GIB:.0f}: "
            "a larger GPU, or shorter lengths"
        )
    else:
        faults += [f"set {name}.batch_size to at most {n}: memory" for name, n in small.items()]
    for name, size in never.items():
        faults.append(f"{name} needs {size / GIB:.0f} GiB, more than any GPU of the plan has")
    return faults


def _row(check: str, found: str, advice: str = "") -> dict:
    return {"check": check, "found": found, "advice": advice}


def show() -> int:
    """Print what is here; 0 if every scale of run.scales can run, else 1."""
    import psutil
    from huggingface_hub import get_token

    settings, faults, reach = config.load(), packages(), hub()
    build, device = _torch()
    gpu = not device.startswith(("no GPU", "unknown"))
    memory = plan.device_memory() if build[0].isdigit() else psutil.virtual_memory().total
    able = engines(gpu)
    machine = Machine(gpu, memory, reach, _has("unsloth"), tuple(faults), able)
    python, free = platform.python_version(), shutil.disk_usage(config.root()).free
    total, available = (getattr(psutil.virtual_memory(), k) / GIB for k in ("total", "available"))
    rows = [
        _row("Python", python, "" if python.startswith("3.11.") else "3.11 is what was tested"),
        _row("torch", build),
        _row("device", device),
        _row("CPU", f"{os.cpu_count()} cores"),
        _row("RAM", f"{available:.1f} of {total:.1f} GiB free"),
        _row("disk", f"{free / GIB:.0f} GiB free"),
        _row("packages", "as pinned" if not faults else f"{len(faults)} not as pinned",
             "make setup" if faults else ""),
        _row("unsloth", "here" if machine.unsloth else "missing",
             "" if machine.unsloth else "pip install -e '.[gpu]' (for the scales that use it)"),
        *(_row(f"engine {name}", "here" if name in able else "missing",
               "" if name in able else config.ENGINE_INSTALL[name] + _gpu_only(name))
          for name in config.ENGINE_INSTALL),
        *(_row(tool, "here" if shutil.which(tool) else "missing",
               "" if shutil.which(tool) else f"install {tool}") for tool in ("git", "make", "dvc")),
        _row("DVC cache", _cache_type()),
        _row("hub", reach, "" if reach == "reachable" else "only scales with everything here run"),
        _row("hub token", "yes" if get_token() else "no", "only gated data would need one"),
    ]  # fmt: skip
    guard = sandbox.protection()
    no_code = "no code tasks here: Linux with user namespaces or Landlock has them"
    rows.append(_row("sandbox", str(guard), "" if guard.safe else no_code))
    for name in ("tiny", "smoke"):
        if name in settings.scales:
            tasks = ("math", *settings.scales[name].tasks)
            runs = [config.Run(name, task, "none", "base", settings) for task in tasks]
            here = all(one.here for run in runs for one in workload.models(run).values())
            advice = "" if here else "git checkout models, or FROM_SCRATCH=1"
            rows.append(_row(f"models of {name}", "here" if here else "missing", advice))
    print(plan.table(rows), end="")
    for fault in faults:
        print(f"  {fault}")
    print()
    found = {name: verdict(name, settings, machine) for name in settings.scales}
    for name, why in found.items():
        print(f"{name}: {'does not run here as it is' if why else 'runs here'}")
        for fault in why:
            print(f"  - {fault}")
    return 1 if any(found[name] for name in settings.run.scales) else 0
