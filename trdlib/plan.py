"""What will happen, before anything runs: `python -m trdlib plan --scale qwen3-8b`.

The work is that of workload.py, its prices are those of costs.py (assumptions there). Hours are a
range: expected lengths at the good end of a GPU's efficiency, lengths at most at the poor end.
"This machine" is measured: core-seconds per token of the stages that ran here (runs/timings), or
else a calibration (`--calibrate`, under a minute), whose poor end is half of what it measured.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from trdlib import config, costs, data, inputs, workload
from trdlib.costs import GIB, Machine
from trdlib.workload import Sampled, Trained

HOURS = """\
On one GPU, from expected lengths at its good efficiency to lengths at most at its poor one. bN:
only with a sampling batch_size of N. Does not fit: needs more memory than it has, at any batch;
such stages are the ? of a sum.
"""
CALIBRATION = Path("runs") / "calibration.json"
KERNEL = 10  # seconds of a notebook without its model compute: tiny, two cores
LONG = 3.0  # seconds of each of its measurements
ASSUMPTIONS = """\
Assumed (trdlib/costs.py says all): 20-40 % of a GPU's dense bf16 peak, 50-70 % of its bandwidth,
0.5-3 ms a layer and launch; LoRA backward 2 operations a weight and token; full batches whose
rows end together. Lengths: files of this scale where they are there; else at a hub scale the
paper's medians (y_o 7.7k, y_r 0.88k), y_t and evaluations as long as y_o, and 250 and 700 tokens
for a problem and a solution, which is a guess; else at most. Not counted: pretraining, the map.\
"""


class Stage(NamedTuple):
    """One instance of a stage of dvc.yaml."""

    key: str  # "distill opd trd": as in workload.py
    name: str  # "distill@tiny-math-opd-trd": as DVC calls it
    outs: list[Path]
    timing: Path | None  # where its notebook notes its model compute

    @property
    def there(self) -> bool:
        return all(path.exists() for path in self.outs)


def stages(run: config.Run, modes: Iterable[str]) -> list[Stage]:
    """Those of one scale, task and these modes, in the order of dvc.yaml."""
    modes, ablation = list(modes), run.matrix.ablation
    axes = {  # by what dvc.yaml writes for them
        "${run.scales}": [run.scale],
        "${run.tasks}": [run.task],
        "${run.modes}": modes,
        "${run.methods}": run.matrix.methods,
        "${run.ablation.tasks}": [run.task] if run.task in ablation.tasks else [],
        "${run.ablation.modes}": [mode for mode in modes if mode in ablation.modes],
        "${run.ablation.methods}": ablation.methods,
    }
    found = []
    for name, about in yaml.safe_load((config.root() / "dvc.yaml").read_text())["stages"].items():
        if "matrix" not in about:
            continue
        for values in itertools.product(*(axes[axis] for axis in about["matrix"].values())):
            items = dict(zip(about["matrix"], values, strict=True))

            def fill(text: str, items: dict[str, str] = items) -> str:
                return re.sub(r"\$\{item\.(\w+)\}", lambda found: items[found[1]], text)

            outs = [*about.get("outs", []), *about.get("metrics", [])]
            paths = [config.root() / fill(o if isinstance(o, str) else next(iter(o))) for o in outs]
            ran = re.search(r"runs/executed/(\S+)\.ipynb", fill(about["cmd"]))
            timing = config.root() / "runs" / "timings" / f"{ran[1]}.json" if ran else None
            rest = [value for axis, value in items.items() if axis not in ("scale", "task")]
            key, label = " ".join([name, *rest]), "-".join(values)
            found.append(Stage(key, f"{name}@{label}", paths, timing))
    return found


def group(key: str) -> str:
    """The line of the tables: all methods of a mode together."""
    return " ".join(key.split()[:2])


# ------------------------------------------------------------------------------- what is done


def changed(run: config.Run, all_stages: list[Stage]) -> set[str] | None:
    """The stages that `dvc status` would run again, by DVC's name; None: it was not asked.

    It takes seconds, so not if nothing is there, nor of a scale that DVC does not know now. (To
    name the stages would take it a minute.)
    """
    known = run.scale in run.matrix.scales and run.task in run.matrix.tasks
    if not known or not any(stage.there for stage in all_stages):
        return None
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    how = {"cwd": config.root(), "capture_output": True, "text": True, "timeout": 120}
    try:
        return set(json.loads(subprocess.run(command, **how).stdout))
    except (subprocess.TimeoutExpired, json.JSONDecodeError):  # another dvc holds its lock
        return None


def unfinished(run: config.Run) -> str:
    """What a killed run left behind, that the next one reads instead of making it again."""
    root = config.root() / "runs" / run.scale / run.task
    found = {
        "batches of responses": [*root.rglob("*.parts/*/*.json")],
        "base seeds of a generation": [*root.rglob("*.seeds/*.parquet")],
        "trained candidates": [*root.rglob("candidates/*/run.json")],
        "training checkpoints": [*root.rglob("checkpoint-*/whole")],
    }
    return ", ".join(f"{len(paths)} {what}" for what, paths in found.items() if paths) or "nothing"


# ------------------------------------------------------------------------------- this machine


def calibrate(scale: config.Scale) -> dict:
    """Matmul FLOP/s and copy bandwidth in the scale's dtype, and seconds that a layer takes at
    least (a decode step of a tiny model); noted in runs/calibration.json."""
    import torch

    from trdlib import generate, models, tiny

    device = models.device(scale.models)
    if scale.models.threads:
        torch.set_num_threads(scale.models.threads)

    def rate(work: float, step) -> float:
        def clock(repeats: int) -> float:
            begun = time.perf_counter()
            for _ in range(repeats):
                step()
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - begun

        clock(1)
        repeats = max(1, int(LONG / max(clock(2) / 2, 1e-5)))
        return work * repeats / clock(repeats)

    size = 8192 if device == "cuda" else 1024
    dtype = getattr(torch, scale.models.dtype)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    shape = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    small = tiny.build_model(tiny.build_tokenizer(), shape, 0).eval().to(device)
    how = {"max_new_tokens": 64, "stop_ids": []}
    found = {
        "device": device_name(device),
        "dtype": scale.models.dtype,
        "threads": torch.get_num_threads(),
        "flops": rate(2 * size**3, lambda: torch.mm(a, b)),
        "bandwidth": rate(2 * source.nbytes, lambda: target.copy_(source)),
        "launch": 1 / rate(64 * 2, lambda: generate.decode(small, [[1] * 8] * 8, **how)),
        "memory": device_memory(device),
    }
    data.write_json(config.root() / CALIBRATION, found)
    return found


def device_name(device: str = "cuda") -> str:
    """Of the GPU, if there is one and it is what is asked for, else of the CPU."""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    import psutil

    return f"CPU, {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores"


def device_memory(device: str = "cuda") -> int:
    """Bytes: of the GPU, if there is one and it is what is asked for, else of the machine."""
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    import psutil

    return psutil.virtual_memory().total


def calibrated(scale: config.Scale) -> dict | None:
    """The calibration of this device and dtype, if there is one."""
    from trdlib import models

    path, device = config.root() / CALIBRATION, models.device(scale.models)
    found = data.read_json(path) if path.is_file() else {}
    same = (found.get("dtype"), found.get("device")) == (scale.models.dtype, device_name(device))
    return found if same else None


def timed(all_stages: list[Stage], items: list[Sampled | Trained]) -> dict[str, float]:
    """Core-seconds of each stage, by key: its own, or at the median rate a token of its kind here.

    A stage that was resumed or found its work done noted less than it costs: what is below half
    of that rate is not believed.
    """
    tokens, rates, own = {}, {}, {}
    for one in items:
        tokens[one.stage] = tokens.get(one.stage, 0.0) + one.tokens("expected")
    for stage in all_stages:
        if stage.key in tokens and stage.timing and stage.timing.is_file():
            seconds = data.read_json(stage.timing)["core_seconds"]
            if seconds > 0:
                own[stage.key] = seconds
                kind = stage.key.split()[0]
                rates.setdefault(kind, []).append(seconds / tokens[stage.key])
    middle = {kind: statistics.median(found) for kind, found in rates.items()}
    kinds = {key: key.split()[0] for key in tokens}
    usual = {key: tokens[key] * middle[kind] for key, kind in kinds.items() if kind in middle}
    return {key: own[key] if own.get(key, 0) > n / 2 else n for key, n in usual.items()}


# ------------------------------------------------------------------------------------- tables


def scaled(number: float, unit: str = "") -> str:
    """1234567 -> 1.23 M"""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:.3g} T{unit}"


def between(low: float, high: float) -> str:
    """Two times, in the unit of the longer one."""
    units = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((u for u in units if high >= 1.5 * u[0]), units[-1])
    ends = [f"{t / size:.2g}" if t < 100 * size else f"{t / size:.0f}" for t in (low, high)]
    return f"{ends[0]} {unit}" if ends[0] == ends[1] else f"{ends[0]}-{ends[1]} {unit}"


def table(rows: list[dict]) -> str:
    """Aligned text, flush left."""
    width = {key: max(len(key), *(len(row.get(key, "")) for row in rows)) for key in rows[0]}
    flush = {key: lambda text, n=n: text.ljust(n) for key, n in width.items()}
    frame = pd.DataFrame(rows).to_string(index=False, justify="left", formatters=flush)
    return "".join(f"{line.rstrip()}\n" for line in frame.splitlines())


def ends(items: list, scale: config.Scale, good: Machine, poor: Machine) -> tuple | None:
    """Seconds of all items at both ends; None if one of them does not fit the machine."""
    low = [one.seconds(scale, good, "expected") for one in items]
    high = [one.seconds(scale, poor, "at_most") for one in items]
    return None if None in low else (sum(low), sum(high))


def by_group(items: list[Sampled | Trained]) -> dict[str, list[Sampled | Trained]]:
    groups: dict[str, list] = {}
    for one in items:
        groups.setdefault(group(one.stage), []).append(one)
    return groups


def work_table(groups: dict, all_stages: list[Stage], scale: config.Scale, stale) -> str:
    rows = []
    for name in dict.fromkeys(group(stage.key) for stage in all_stages):
        mine, items = [s for s in all_stages if group(s.key) == name], groups.get(name, [])
        there = [stage for stage in mine if stage.there]
        state = f"{len(there)}/{len(mine)} there"
        if there and stale is not None:
            old = sum(stage.name in stale for stage in there)
            state += f", {old} out of date" if old else ", up to date"
        sampled = [one for one in items if isinstance(one, Sampled)]
        trained = [one for one in items if isinstance(one, Trained)]
        expected, most = (
            sum(one.rows * getattr(one.response, end) for one in sampled)
            for end in ("expected", "at_most")
        )
        row = {
            "stage": name,
            "sampled": scaled(sum(one.rows for one in sampled)) if sampled else "-",
            "tokens": (
                f"{scaled(expected)}" + (f" (at most {scaled(most)})" if most > expected else "")
                if sampled else "-"
            ),
            "trained": scaled(sum(one.rows for one in trained)) if trained else "-",
            "read": scaled(sum(one.tokens("expected") for one in trained)) if trained else "-",
            "peak GiB": f"{max(one.memory(scale) for one in items) / GIB:.3g}" if items else "-",
            "done": state,
        }  # fmt: skip
        rows.append(row)
    return table(rows)


def hours_table(groups: dict, scale: config.Scale, names: Iterable[str], left: dict) -> str:
    """Per GPU and stage: the range, and the batch that fits where the whole one does not."""
    rows = {name: {"stage": name} for name in [*groups, "all", "left to do"]}
    for gpu in names:
        good, poor = (costs.gpu(gpu, good=flag) for flag in (True, False))
        total, rest, fits = [0.0, 0.0], [0.0, 0.0], True
        for name, items in groups.items():
            found = ends(items, scale, good, poor)
            if found is None:
                rows[name][gpu], fits = "does not fit", False
                continue
            asked = [(one.batch(scale, good), one.sampling.batch_size) for one in items
                     if isinstance(one, Sampled) and not workload.paged(scale)]  # fmt: skip
            cut = min((fit for fit, whole in asked if fit < whole), default=None)
            rows[name][gpu] = between(*found) + (f" (b{cut})" if cut else "")
            for i in (0, 1):
                total[i] += found[i]
                rest[i] += found[i] * left[name]
        for name, sums in (("all", total), ("left to do", rest)):
            rows[name][gpu] = between(*sums) if fits else f"{between(*sums)} +?"
    return table([*rows.values()])


def machine_table(
    groups: dict, scale: config.Scale, measured: dict, found: dict | None, notebooks: int
) -> str:
    """This machine: measured where stages have run, the calibration elsewhere."""
    rows, total = [], [0.0, 0.0]
    for name, items in groups.items():
        keys = {one.stage for one in items}
        row = {"stage": name, "wall": "not measured: --calibrate", "from": "-"}
        if keys <= measured.keys():
            both = [sum(measured[key] for key in keys) / scale.workers] * 2
            row |= {"wall": between(*both), "from": "runs/timings"}
        elif found is not None:
            good = Machine(*(found[key] for key in Machine._fields))
            poor = Machine(good.memory, good.flops / 2, good.bandwidth / 2, good.launch * 2)
            both = [t / scale.workers for t in ends(items, scale, good, poor) or ()]
            row |= {"wall": between(*both) if both else "does not fit", "from": "calibration"}
        else:
            both = []
        total = [a + b for a, b in zip(total, both, strict=True)] if both and total else None
        rows.append(row)
    kernels, what = KERNEL * notebooks, f"{KERNEL} s each: start, imports, plots"
    rows.append({"stage": f"{notebooks} kernels", "wall": between(kernels, kernels), "from": what})
    if total:
        wall = between(*(t + kernels for t in total))
        rows.append({"stage": "all", "wall": wall, "from": "one stage after the other"})
    return table(rows)


def downloads(run: config.Run) -> tuple[str, int]:
    """The table of what comes from elsewhere, and the known bytes that are not here."""
    scale, rows, missing = run.settings, [], 0
    for role, one in workload.models(run).items():
        made = scale.pretraining and "@" not in one.name
        absent = "to be pretrained" if made else "to download"
        missing += 0 if one.here or made else one.bytes
        rows.append({
            "what": role, "from": one.name.partition("@")[0],
            "size": f"{scaled(costs.parameters(one.shape))} parameters, {scaled(one.bytes, 'B')}",
            "state": "here" if one.here else absent,
        })  # fmt: skip
    if isinstance(scale.data, config.HubData):
        for name, one in scale.data.sets.items():
            here = inputs.here(one, scale.data.root)
            size = scaled(sum(p.stat().st_size for p in here), "B") if here else "size unknown"
            rows.append({
                "what": name, "from": one.name, "size": f"{one.rows} rows, {size}",
                "state": "here" if here else "to download" if one.published else "missing",
            })  # fmt: skip
    return table(rows), missing


def disk(run: config.Run, items: list[Sampled | Trained], modes: list[str]) -> int:
    """Bytes of generations and adapters: 6 a sampled token (ids and text, compressed), 4 a LoRA
    weight; twice, for DVC's copy."""
    tokens = sum(i.rows * i.response.expected for i in items if isinstance(i, Sampled))
    shape = next(one for one in items if isinstance(one, Trained)).student
    methods = sum(len(run.matrix.methods_of(mode, run.task)) for mode in modes)
    adapters = methods * len(run.settings.seeds)
    lora = costs.lora_parameters(shape, run.settings.lora)
    return int(2 * (6 * tokens + 4 * lora * adapters))


def show(scale: str, task: str = "math", gpu: str | None = None, measure: bool = False) -> None:
    """Print the plan of a scale; SettingsError for a scale, task or GPU that is not known."""
    run = config.Run(scale, task, "none", "base", config.load())
    if gpu is not None and gpu not in costs.GPUS:
        raise config.SettingsError(f"there is no GPU {gpu!r}: choose from {', '.join(costs.GPUS)}")
    section, matrix = run.settings, run.matrix
    modes = [mode for mode in matrix.modes if mode in section.modes]
    if not modes:
        raise config.SettingsError(f"run.modes has none of the scale's: {', '.join(section.modes)}")
    if measure:
        calibrate(section)
    items, found = workload.work(run, modes), stages(run, modes)
    groups, lines = by_group(items), dict.fromkeys(group(stage.key) for stage in found)
    groups = {name: groups[name] for name in lines if name in groups}
    methods = len(set().union(*(matrix.methods_of(mode, task) for mode in modes)))
    seeds = len(section.seeds)
    print(
        f"{scale}, {task}: {', '.join(modes)}; {methods} methods, {seeds} base seeds, "
        f"{len(found)} stages"
    )
    if scale not in matrix.scales or task not in matrix.tasks:
        print(f"to run it: make repro SCALE={scale} TASKS={task}")
    sources, missing = downloads(run)
    print(f"\n{sources}\n{work_table(groups, found, section, changed(run, found))}")
    print("peak: at the lengths that the settings allow; on a CPU each process holds 0.5 GiB more")
    print(f"left by a killed run, to be read again: {unfinished(run)}")
    results = scaled(disk(run, items, modes), "B")
    print(f"disk: {scaled(missing, 'B')} of weights to download, about {results} of results\n")
    print(HOURS)
    print(hours_table(groups, section, [gpu] if gpu else costs.GPUS, left(groups, found)))
    from trdlib import models

    device = models.device(section.models)
    jobs = f"{1 if device == 'cuda' else section.workers} job(s) at a time"
    print(f"This machine: {device_name(device)}, {device_memory(device) / GIB:.3g} GiB; {jobs}\n")
    notebooks = sum(stage.timing is not None for stage in found)
    how = (timed(found, items), calibrated(section), notebooks)
    print(machine_table(groups, section, *how))
    print(ASSUMPTIONS)


def left(groups: dict, all_stages: list[Stage]) -> dict[str, float]:
    """The share of each line's stages whose outputs are not there."""
    there: dict[str, list[bool]] = {name: [] for name in groups}
    for stage in all_stages:
        if group(stage.key) in there:
            there[group(stage.key)].append(stage.there)
    return {name: 1 - statistics.mean(found) for name, found in there.items()}
