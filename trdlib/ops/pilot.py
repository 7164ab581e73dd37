"""A pilot before the bill, for `plan`: the method's own steps on a few problems of a scale."""

import contextlib
import shlex
from pathlib import Path

import pandas as pd
import psutil

from trdlib import jobs, store, tasks
from trdlib.run import Run, get_run
from trdlib.settings import SettingsError, root

THINKING = r"</?think"
LEAKS = (r"(?i)\breference\b|\brewrit|\b(?:initial|previous|original|earlier|first|given)"
         r" (?:solution|attempt|answer|response)")  # fmt: skip


def device() -> tuple[str, int]:
    """What computes here ("GPU ...", if there is one), and its memory in bytes."""
    version = "is missing"
    with contextlib.suppress(ImportError):
        import torch

        version = torch.__version__
        if torch.cuda.is_available():
            about = torch.cuda.get_device_properties(0)
            return f"GPU {about.name}; torch {version}", about.total_memory
    return f"CPU, {psutil.cpu_count()} cores; torch {version}", psutil.virtual_memory().total


def _stamp(run: Run) -> str:
    names = {"task", "data", "models", "lengths", "rollout", "refinement"}
    how = {"include": names, "exclude": {"models": {"server"}}}
    return store.content_hash("lengths", run.settings.model_dump(mode="json", **how))


def read(run: Run) -> dict:
    """What a pilot of these settings found (`measure`); {} if there was none."""
    for name in (run.scale, run.scale.partition("~")[0]):
        found = store.read_json(root() / "runs" / "pilot" / name / "pilot.json", {})
        if found.get("settings") == _stamp(run):
            return found
    return {}


def _sampled(run: Run, request, sampling, path: Path) -> tuple[list[str], dict]:
    """Responses, and what they are like; seconds: None if a kill has interrupted the sampling."""
    import torch

    from trdlib import rollout

    known, sampling = not Path(f"{path}.parts").exists(), sampling.model_copy(update={"samples": 1})
    before = jobs.compute["seconds"]
    table = rollout.table(run, tasks.of(run), path, request, sampling)
    text, seconds = table["text"], jobs.compute["seconds"] - before
    if run.settings.models.engine == "transformers" and not torch.cuda.is_available():
        seconds /= torch.get_num_threads()
    means = pd.DataFrame({
        "prompt": [len(prompt.ids) for prompt in request.prompts], "tokens": table["n_tokens"],
        "cut off": ~table["finished"], "thinking": text.str.contains(THINKING),
        "leaks": text.str.contains(LEAKS), "right": table["correct"],
    }).mean()  # fmt: skip
    about = {"rows": len(table), "longest": int(table["n_tokens"].max()), **means}
    about["variation"] = table["n_tokens"].std(ddof=0) / means["tokens"]
    return text.tolist(), about | {"seconds": (seconds or None) if known else None}


def measure(run: Run, rows: int) -> dict:
    """{"device": ..., "parts": {"y_o", or "y_r" of a mode: `_sampled`}}, on file too, and kept. Of
    problems from the whole set, which may hold several kinds one after the other."""
    from trdlib import prompts
    from trdlib.rollout import Request

    seed, how, (place, memory) = run.settings.seeds[0], run.settings, device()
    train = tasks.of(run).sets()["train"].to_dict("records")
    rows = min(rows, len(train))
    every = [len(train) * i // rows for i in range(rows)]
    if (found := read(run)).get("rows") == rows:
        return found
    folder, parts = root() / "runs" / "pilot" / run.scale, {}
    problems = [train[i] for i in every]
    request = Request("student", seed, problems, prompts.student_prompts(run, seed, problems))
    # before it counts: the first tokens of a process take longer
    first = request._replace(rows=problems[:1], prompts=request.prompts[:1])
    short = how.rollout.model_copy(update={"max_new_tokens": 8})
    _sampled(run, first, short, folder / "first.parquet")
    y_o, parts["y_o"] = _sampled(run, request, how.rollout, folder / "y_o.parquet")
    for mode in how.modes:
        of = run.with_(mode, next(iter(how.methods)))
        told = prompts.teacher_prompts(of, seed, problems, y_o)
        request = Request("teacher", seed, problems, told)
        _, parts[f"y_r {mode}"] = _sampled(of, request, how.refinement, folder / f"{mode}.parquet")
    found = {"settings": _stamp(run), "rows": len(problems), "device": place, "memory": memory}
    found["variation"] = parts["y_o"]["variation"]
    return store.read_json(store.write_json(folder / "pilot.json", found | {"parts": parts}))


def command(*, scale: str, rows: int) -> None:
    """`python -m trdlib pilot`."""
    if rows < 1:
        raise SettingsError(f"--rows {rows}: at least one")
    found = measure(get_run(scale, "none", "base"), rows)
    table = pd.DataFrame(found["parts"]).T.astype(float)
    table["tokens/s"] = table["rows"] * table["tokens"] / table.pop("seconds")
    table["variation"] = table["variation"].map("{:.2f}".format)
    for name in ("cut off", "thinking", "leaks", "right"):
        table[name] = (100 * table[name]).map("{:.0f} %".format)
    print(found["device"], table.to_string(float_format="{:.0f}".format), sep="\n")
    print("leaks: they speak of a reference or an earlier solution. Shares are known within "
          f"{98 / found['rows'] ** 0.5:.0f} points.")  # fmt: skip
    print(f"python -m trdlib plan --scale {shlex.quote(scale)}")
