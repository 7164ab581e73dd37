"""The registered experiment of docs/smol.md on one GPU, in minutes: several processes share it.

python scripts/smol_gpu.py OUT
   --seconds 450    after which it stops, with what is whole by then
   --workers 5      processes on the GPU
   --scale "..."    a scale of params.yaml, with changes

It works off one list of jobs, the most important first: the choice of the primary methods' rates;
seed by seed these methods; the rows that are not trained; the secondary methods. A job starts when
what it needs is there. Every 45 s OUT/metrics.json is written: the metrics of all seeds that are
whole, as in results/metrics. All files are the pipeline's own, so a second call goes on where the
first one stopped. (`make repro SCALE=smol-full` does the same with one process, to its end.)

Where SMOL_BASE names a folder, the base is read from there: the bytes of the GGUF file, cut into
its tensors (base.raw, index.json), with config.json and the tokenizer's files. transformers takes
minutes to parse that file.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])

import smol_models

PRIMARY = [("opd", "trd"), ("opd", "reverse_kl"), ("opd", "sft_refined")]
UNTRAINED = [("none", "base"), ("none", "teacher")]
SECONDARY = [("opd", "forward_kl"), ("opd", "trd_right"), ("opd", "rft"), ("opsd", "trd"),
             ("opsd", "reverse_kl"), ("opsd", "sft_refined"), ("opd", "off_policy"),
             ("opd", "reverse_kl_rounds")]  # fmt: skip
START = time.time()


def say(*what) -> None:
    print(f"[{time.time() - START:6.1f}]", *what, flush=True)


def unpacked_base():
    """What smol_models.base makes, from the folder SMOL_BASE."""
    import torch
    import transformers

    folder = Path(os.environ["SMOL_BASE"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config, found = transformers.AutoConfig.from_pretrained(folder), {}
    raw = bytearray((folder / "base.raw").read_bytes())
    for part in json.loads((folder / "index.json").read_text()):
        shape, heads = part["shape"], None
        if part["type"] == "F32":
            weight = torch.frombuffer(raw, dtype=torch.float32, count=shape[0], offset=part["at"])
        else:
            count = part["bytes"]
            blocks = torch.frombuffer(raw, dtype=torch.uint8, count=count, offset=part["at"])
            if part["type"] == "Q4_1":  # a scale, a minimum, 16 low and 16 high halves of bytes
                blocks = blocks.view(-1, 20)
                ends = blocks[:, :4].contiguous().view(torch.float16).float()
                numbers = torch.cat([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1).float()
                weight = ends[:, :1] * numbers + ends[:, 1:]
            else:  # Q8_0: a scale, 32 signed bytes
                blocks = blocks.view(-1, 34)
                scale = blocks[:, :2].contiguous().view(torch.float16).float()
                weight = scale * blocks[:, 2:].contiguous().view(torch.int8).float()
            weight = weight.reshape(shape)
        if "q_proj" in part["name"]:
            heads = config.num_attention_heads
        if "k_proj" in part["name"]:
            heads = config.num_key_value_heads
        if heads:  # llama.cpp's rotary order
            weight = weight.view(heads, -1, 2, shape[1]).transpose(1, 2).reshape(shape)
        found[part["name"]] = weight.bfloat16().clone()
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    missing, unexpected = model.load_state_dict(found, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.generation_config.eos_token_id = config.eos_token_id = tokenizer.eos_token_id
    return model.eval(), tokenizer


# ------------------------------------------------------- jobs, each in a process that stays


_tasks: dict = {}


def _of(scale: str, mode: str, method: str, seed: int, **how):
    """-> (the run of one base seed, its task, its problem sets)."""
    from trdlib import tasks
    from trdlib.run import get_run

    run = get_run(scale, mode, method, seed=seed, **how)
    if scale not in _tasks:
        task = tasks.of(run)
        _tasks[scale] = task, task.sets()
    return run, *_tasks[scale]


def attempts(scale: str, mode: str, seed: int, y_t: bool = False) -> dict:
    """y_o and y_r of a seed, or y_t; how many are right."""
    tables = _tables(scale, mode, seed, y_t)
    return {name: round(float(table["correct"].mean()), 4) for name, table in tables.items()}


@functools.lru_cache(maxsize=8)
def _tables(scale: str, mode: str, seed: int, y_t: bool) -> dict:
    from trdlib import refine, rollout

    run, task, sets = _of(scale, mode, "trd", seed)
    if y_t:
        return {"y_t": refine.solve(run, task, sets["train"])}
    y_o = rollout.rollout(run, task, sets["train"])
    return {"y_o": y_o, "y_r": refine.refine(run, task, sets["train"], y_o)}


def _trained(scale: str, mode: str, method: str, seed: int, rate: float):
    """-> (run, task, problem sets, what distillation left of the run)."""
    from trdlib import distill

    run, task, sets = _of(scale, mode, method, seed, learning_rate=rate)
    tables = _tables(scale, mode, seed, False)
    if run.recipe.trajectory == "y_t":
        tables = tables | _tables(scale, mode, seed, True)
    (found,) = distill.distill([run], task, sets, {mode: tables})
    return run, task, sets, found


def attempt_rate(scale: str, mode: str, method: str, seed: int, rate: float) -> float:
    """The validation accuracy of a learning rate."""
    from trdlib import rollout

    run, task, sets, found = _trained(scale, mode, method, seed, rate)
    path = run.folder(seed) / "validation.parquet"
    asked = rollout.ask(run, seed, sets["validation"], adapter=found.adapters[seed])
    table = rollout.table(run, task, path, asked, run.settings.evaluation.validation)
    return float(table["correct"].mean())


def test(scale: str, mode: str, method: str, seed: int, rate: float | None) -> dict:
    """Train at a rate (None: nothing to train) and sample the benchmarks; accuracies."""
    samples, choice = _tested(scale, mode, method, seed, rate)
    right = {name: round(float(table["correct"].mean()), 4) for name, table in samples.items()}
    keep = ("trajectory_accuracy", "trajectory_like_reference", "rows_by_seed")
    return right | {name: choice[name] for name in keep if name in choice}


def _tested(scale: str, mode: str, method: str, seed: int, rate: float | None):
    """-> (samples by benchmark, how it was trained)."""
    from trdlib import evaluate

    if rate is None:
        (run, task, sets), adapters, choice = _of(scale, mode, method, seed), None, {}
    else:
        run, task, sets, found = _trained(scale, mode, method, seed, rate)
        choice, adapters = found
    (samples,) = evaluate.evaluate([run], task, sets, [adapters])
    return samples[run.settings.evaluation.sampling.temperature], choice


# -------------------------------------------------------------------------------- the list


def plan(first, primary: list, secondary: list) -> list[tuple]:
    """(name, what it needs, function, arguments), the most important first. A name ("choose", mode,
    method) is no job: it is done when its tries are."""
    jobs, settings = {}, first.settings
    trying = settings.seeds[: settings.training.choice_seeds]

    def add(name, needs, function, *arguments):
        jobs.setdefault(name, (name, needs, function, arguments))

    def drawn(mode: str, method: str, seed: int):
        """The names of what a method trains on."""
        add(("y_o", "opd", seed), [], attempts, "opd", seed)
        if mode == "opsd":
            add(("y_o", "opsd", seed), [("y_o", "opd", seed)], attempts, "opsd", seed)
        if settings.methods[method].trajectory == "y_t":
            add(("y_t", mode, seed), [], attempts, mode, seed, True)
            return [("y_o", mode, seed), ("y_t", mode, seed)]
        return [("y_o", mode, seed)]

    def methods(wanted: list) -> None:
        for mode, method in wanted:
            tries = []
            for seed in trying:
                for rate in first.with_(mode=mode, method=method).rates:
                    name = ("try", mode, method, seed, rate)
                    add(name, drawn(mode, method, seed), attempt_rate, mode, method, seed, rate)
                    tries.append(name)
            add(("choose", mode, method), tries, None)
        for seed in settings.seeds:
            for mode, method in wanted:
                needs = [*drawn(mode, method, seed), ("choose", mode, method)]
                add(("test", mode, method, seed), needs, test, mode, method, seed)

    for seed in trying:
        drawn("opd", "trd", seed)
    methods(primary)
    for seed in settings.seeds:
        for mode, method in UNTRAINED:
            add(("test", mode, method, seed), [], test, mode, method, seed)
    for one in secondary:
        methods([one])
    return list(jobs.values())


def gather(scale: str, out: Path, done: dict, chosen: dict, *, last: bool = False) -> None:
    """OUT/metrics.json of all that is whole; at last what was sampled too (of the tests, verdicts,
    and the texts of the first seed)."""
    import pandas as pd

    from trdlib import store, tasks
    from trdlib.analysis import measure
    from trdlib.run import get_run

    first = get_run(scale, "none", "base")
    at, sets = first.settings.evaluation.sampling.temperature, tasks.of(first).sets()
    found, tables = {}, []
    for mode, method in dict.fromkeys(name[1:3] for name in done if name[0] == "test"):
        seeds = [s for s in first.settings.seeds if ("test", mode, method, s) in done]
        tested, rate = {}, chosen.get((mode, method))
        for seed in seeds:
            how = {} if rate is None else {"learning_rate": rate}
            run = get_run(scale, mode, method, seed=seed, **how)
            for name in sets.keys() - {"train", "validation"}:
                table = store.load(run.samples(seed, at, name)).assign(seed=seed)
                tested.setdefault(name, []).append(table)
        tested = {name: pd.concat(each, ignore_index=True) for name, each in tested.items()}
        choice = {}
        if rate is not None:
            each = [done["test", mode, method, s] for s in seeds]
            tries = {n: score for n, score in done.items() if n[:3] == ("try", mode, method)}
            by_rate = {}
            for name, score in tries.items():
                by_rate.setdefault(str(name[4]), []).append(score)
            choice = {"grid": sorted(map(float, by_rate)), "chosen": rate}
            choice["validation_by_seed"] = by_rate
            choice["rows_by_seed"] = [rows for one in each for rows in one["rows_by_seed"]]
            for name in ("trajectory_accuracy", "trajectory_like_reference"):
                choice[name] = sum(one[name] for one in each) / len(each)
        text = json.dumps(seeds).replace(" ", "")
        some = get_run(f"{scale} seeds={text}", mode, method)  # all of them: the scale's own name
        (metrics,) = measure.measure([some], sets, [{at: tested}], [choice])
        found[f"{mode}/{method}"] = metrics
        for name, table in tested.items():
            about = {"mode": mode, "method": method, "benchmark": name}
            about["text"] = table["text"].where(table["seed"] == first.settings.seeds[0])
            tables.append(table.drop(columns="token_ids").assign(**about))
    about = {"/".join(map(str, name)): value for name, value in done.items() if name[0] != "choose"}
    store.write_json(out / "metrics.json", {"metrics": found, "jobs": about, "device": _device()})
    if not last:
        return
    if tables:
        store.save(pd.concat(tables, ignore_index=True), out / "samples.parquet")
    texts = []
    for kind, mode, seed in (name for name in done if name[0] in ("y_o", "y_t")):
        run = get_run(scale, mode, "trd", seed=seed)
        paths = {"y_o": run.attempts, "y_r": run.rewrites("y_r")}
        for name, path in ({"y_t": run.rewrites("y_t")} if kind == "y_t" else paths).items():
            table = store.load(path).drop(columns="text")
            texts.append(table.assign(mode=mode, trajectory=name))
    if texts:
        store.save(pd.concat(texts, ignore_index=True), out / "trajectories.parquet")


def _device() -> str:
    found = os.popen("nvidia-smi --query-gpu=name,driver_version --format=csv,noheader").read()
    return found.strip() or "CPU"


def run(scale: str, out: Path, seconds: float, workers: int) -> None:
    from trdlib import distill, tasks
    from trdlib.run import get_run

    if "SMOL_BASE" in os.environ:
        smol_models.base = unpacked_base
    first = get_run(scale, "none", "base")
    task = tasks.of(first)
    task.sets()  # on file before the workers start, as are the models
    task.make_models(None, None, None)
    say("models", _device())
    jobs, done, running, chosen, last = plan(first, PRIMARY, SECONDARY), {}, {}, {}, time.time()
    how = {"max_workers": workers, "mp_context": multiprocessing.get_context("spawn")}
    pool, lost = ProcessPoolExecutor(**how), set()
    while time.time() - START < seconds and (jobs or running):
        for job in list(jobs):
            name, needs, function, arguments = job
            choosing = name[0] == "choose"
            if len(running) >= workers:
                break
            if lost.intersection(needs) and not (choosing and set(needs) - lost):
                jobs.remove(job)
                lost.add(name)
                continue
            if not all(need in done or (choosing and need in lost) for need in needs):
                continue
            jobs.remove(job)
            if choosing:
                scores = {}
                for need in set(needs) - lost:
                    scores.setdefault(need[4], []).append(done[need])
                chosen[name[1:]] = distill.best_rate(scores)
                done[name] = None
                say(*name, scores, "->", chosen[name[1:]])
                continue
            if name[0] == "test":
                arguments = (*arguments, chosen.get(name[1:3]))
            running[pool.submit(function, scale, *arguments)] = name, time.time()
        if not running:
            continue
        finished, _ = wait(running, timeout=2, return_when=FIRST_COMPLETED)
        for future in finished:
            name, began = running.pop(future)
            try:
                done[name] = future.result()
                say(*name, f"({time.time() - began:.1f} s)", done[name])
            except Exception as error:  # the other cells go on without it
                lost.add(name)
                say("FAILED", *name, repr(error)[:600])
                if isinstance(error, BrokenExecutor):
                    pool = ProcessPoolExecutor(**how)
        if time.time() - last > 45 and done:
            gather(scale, out, done, chosen)
            last = time.time()
    for process in list(pool._processes.values()):
        process.terminate()
    gather(scale, out, done, chosen, last=True)
    say("jobs left:", len(jobs) + len(running), "running:", [n for n, _ in running.values()])
    say("lost:", len(lost))
    os._exit(1 if lost else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--scale", default="smol-full")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    run(given.scale, given.out, given.seconds, given.workers)
