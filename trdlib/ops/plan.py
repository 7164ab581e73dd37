"""What will happen, before anything runs; plan.yaml says how that is reckoned.

Pairs are [expected, at most]; hours: expected at a GPU's good end to most at its poor end. Not
counted: pretraining, the diagnosis, the map."""

import functools
import heapq
import json
import shlex
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter
from scipy import special

from trdlib import store, tasks
from trdlib.ops import pilot
from trdlib.run import Run, get_run, get_runs
from trdlib.settings import Evaluation, Sampling, SettingsError, read_yaml, root
from trdlib.stats import allocate

GIB = 2**30
# What computes. GiB, TFLOP/s, GB/s; rows: at a time in vLLM; ahead: it launches while it computes
# and reads; factor: seconds that a pilot took, of those at the good end.
Machine = namedtuple("Machine", "memory compute bandwidth rows ahead factor", defaults=[True, None])
ASSUMED = read_yaml(Path(__file__).with_name("plan.yaml"))
GPUS = {name: Machine(*numbers) for name, numbers in ASSUMED["gpus"].items()}
HEADROOM = ASSUMED["headroom"]
_COUNT, _BYTES = EngFormatter(places=1), EngFormatter("B", places=1)


_SHAPE = "config parameters matrices adapter queries keys item head here"


class Model(namedtuple("Model", _SHAPE)):
    """What of a model costs something. matrices: weights each token meets; adapter, head: those
    of LoRA, of the output; queries, keys: heads x their size; item: bytes of a number."""

    def attention(self, length) -> np.ndarray:
        """Operations of a sequence of `length` tokens, forward; without it 2 a matrix weight."""
        return 2 * self.config.num_hidden_layers * self.queries * length**2

    @property
    def working(self) -> int:  # transient bytes a token while one layer runs without a graph
        config, width = self.config, self.queries + 2 * self.keys
        return self.item * (4 * config.hidden_size + 2 * width + 3 * config.intermediate_size)


def model(run: Run, role: str) -> Model:
    """From the model's config.json, or plan.yaml; SettingsError if it is not here."""
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

    scale, name = run.settings, run.model_path(role, run.settings.seeds[0])
    (repo, _, commit), folder = name.partition("@"), root() / name
    try:
        if commit:
            folder = Path(snapshot_download(repo, revision=commit, local_files_only=True))
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError):
        shape = ASSUMED["known"].get(repo.removesuffix("-Instruct-2507"))
        if shape is None:
            how = f"make it (python -m trdlib models --scale {run.scale.partition('~')[0]})"
            how = f"hf download {repo} config.json --revision {commit}" if commit else how
            raise SettingsError(f"the model {name} is not here: {how}") from None
        config = Qwen3Config(**shape)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    layer, layers = built.model.layers[0].named_modules(), config.num_hidden_layers
    linear = {n.rpartition(".")[2]: m.weight for n, m in layer if hasattr(m, "in_features")}
    lora = scale.lora.r * sum(sum(linear[name].shape) for name in scale.lora.targets)
    index = folder / "model.safetensors.index.json"
    files = store.read_json(index)["weight_map"].values() if index.is_file() else []
    return Model(
        config, sum(p.numel() for p in built.parameters()),
        layers * sum(weight.numel() for weight in linear.values()), layers * lora,
        len(linear["q_proj"]), len(linear["k_proj"]), 4 if scale.models.dtype == "float32" else 2,
        config.hidden_size * config.vocab_size,
        all((folder / file).is_file() for file in files or ["model.safetensors"]),
    )  # fmt: skip


def models(run: Run) -> dict[str, Model]:
    """The scale's models by role."""
    there = run.settings.models.model_dump(include={"student", "teacher"}, exclude_none=True)
    return {role: model(run, role) for role in there}


_ASKED = "stage outs sampled rows flops launches fixed each batch together paged weights cache"


class Work(namedtuple("Work", f"{_ASKED} prompt new most variation")):
    """What a stage, or a part of it, asks of a model. sampled: or trained. flops: of a row; new,
    most: how often it goes through the layers (tokens of a response), and at most; variation: of
    that; launches: each time. In bytes fixed (whatever the batch is) and each (of every row).
    batch: rows at a time, at most, together: usually; paged: vLLM's share of the memory, where as
    many go together as fit; weights: bytes that a step reads, cache: of a token; prompt: tokens."""

    @property
    def memory(self) -> float:  # peak bytes; of vLLM, which fills the GPU, of one row
        return self.fixed + self.each[1] * (1 if self.paged else self.batch)

    def part(self, share: float = 1, *, expected: bool = False) -> "Work":
        """So much of it; expected: at the expected lengths, not those at most."""
        pairs = {n: getattr(self, n)[:1].repeat(2) for n in ("flops", "prompt", "new") if expected}
        return self._replace(rows=self.rows * share, **pairs)

    def seconds(self, on: Machine) -> np.ndarray:
        """[at the good end, at the poor end]; NaN if it does not fit."""
        if self.memory > on.memory * GIB * HEADROOM:
            return np.full(2, np.nan)
        compute = self.flops / self.new / (on.compute * 1e12 * np.array(ASSUMED["compute"]))
        byte = 1 / (on.bandwidth * 1e9 * np.array(ASSUMED["bandwidth"]))
        rows, room, cap = max(1, min(self.together, round(self.rows))), 2**62, self.together
        if self.paged:
            room, cap = (on.memory * GIB * self.paged - self.fixed) // self.cache, on.rows
        launch, prompt = self.launches * np.array(ASSUMED["launch"]), self.prompt.astype(int)
        sizes = prompt, self.new, compute, self.weights * byte, self.cache * byte, launch
        how = rows, self.most, self.variation, room, cap, on.ahead
        ends = [queue(*how, *map(float, each)) for each in zip(*sizes, strict=True)]
        ends = np.array(ends) * self.rows / rows
        apart = ASSUMED["uncertain"] ** np.array([-0.5, 0.5])
        return ends if on.factor is None else ends[0] * on.factor * apart


@functools.lru_cache
def queue(rows, most, variation, room, cap, ahead, prompt, new, compute, weights, cache, launch):
    """Seconds for so many rows, asked of vLLM at once, or one batch: a step gives each running row
    a token, and takes the longest of computing, reading (the weights, the cache of all they hold)
    and launching, or where that is not `ahead` their sum. A row starts when its prompt fits into
    the `room` tokens of the cache, at most `cap` run; where it is full the youngest goes back, and
    is later read anew. new: mean length."""
    wide, together = np.log(1 + variation**2), max if ahead else sum
    drawn = new * np.random.default_rng(0).lognormal(-wide / 2, wide**0.5, rows)
    lengths = np.full(rows, new) if new >= most else drawn.clip(1, most)
    todo = [(int(prompt), max(1, int(length))) for length in lengths]
    # ends: when which row ends, known when it starts; rows: (tokens at its start, start, end)
    ends, rows, started, now, held, spent = [], {}, 0, 0, 0, 0.0
    while todo or rows:
        while todo and len(rows) < cap and held + todo[-1][0] + len(rows) < room:
            has, left = todo.pop()
            key = started = started + 1
            rows[key] = has, now, now + left
            heapq.heappush(ends, (now + left, key))
            held, spent = held + has, spent + compute * (has - prompt)  # prompts are in `compute`
        while ends[0][1] not in rows:  # it went back
            heapq.heappop(ends)
        many = len(rows)
        steps = max(1, min(ends[0][0] - now, (room - held) // many))
        read = weights + cache * (held + steps * many / 2)
        spent += steps * together((many * compute, read, launch))
        now, held = now + steps, held + steps * many
        while ends and (ends[0][0] <= now or ends[0][1] not in rows):
            if one := rows.pop(heapq.heappop(ends)[1], None):
                held -= one[0] + one[2] - one[1]
        if held + len(rows) > room and len(rows) > 1:
            has, began, end = rows.popitem()[1]  # a dict knows who came last
            held -= has + now - began
            todo.append((has + now - began, end - now))
    return spent


def sampling(run: Run, stage, outs, who: Model, how: Sampling, rows, prompt, new, vary, jobs=1):
    """`rows` responses in so many jobs, `how.samples` from each prompt; prompt, new: lengths; vary:
    standard deviation over mean of the responses' lengths."""
    engine, layers, weights = run.settings.models, who.config.num_hidden_layers, who.matrices
    flops = (2 * weights * prompt + who.attention(prompt)) / how.samples
    flops, weights = flops + new * 2 * (weights + who.head), weights + who.head
    cache, paged = 2 * layers * who.keys * who.item, engine.engine != "transformers"
    each = cache * (prompt + new)
    if not paged:  # one buffer, and a layer's for all heads; the prefill, or filters of the logits
        each = (cache + 2 * who.queries * who.item) * (prompt + how.max_new_tokens)
        prefill = prompt / how.samples * (who.working + prompt)
        each = each + np.maximum(prefill, 32 * who.config.vocab_size)
    launches = layers * (0.1 if paged or engine.backend == "unsloth" else 1)  # graphs of CUDA
    batches = np.ceil(rows / jobs / how.batch_size)  # as in generate.batches: even ones
    together = round(rows if paged else rows / jobs / batches)
    return Work(
        stage, outs, True, rows, flops, launches, who.parameters * who.item, each,
        min(rows, how.batch_size), together, paged * engine.gpu_share, weights * who.item, cache,
        prompt, new, how.max_new_tokens, vary,
    )  # fmt: skip


def training(run: Run, stage, outs, student: Model, teacher: Model | None, rows, x, context, new):
    """`rows` rows through student and teacher (None: cross-entropy), forward and backward."""
    how, lora, config, item = run.settings.training, run.settings.lora, student.config, student.item
    layers, h, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    q, kv, again = student.queries, student.keys, how.gradient_checkpointing
    mine, theirs = x + new, context + new
    flops = 2 * mine * ((2 + again) * student.matrices + (3 + again) * student.adapter)
    flops = flops + (3 + again) * student.attention(mine) + 4 * student.head * new
    saved = item * (2 * h + 2 * q + 2 * kv + 4 * f + 7 * lora.r) + 4 * (2 * h + q + kv)
    saved += (item + 1) * (5 * h + q + f) * (lora.dropout > 0)
    kept = layers * (h * item if again else saved) + (3 * item + 4) * h
    backward = mine * (saved * again + item * (h + 3 * f))
    fixed = student.parameters * item + 16 * student.adapter
    if teacher:
        scored = 2 * (teacher.matrices * theirs + teacher.head * new)
        flops = flops + scored + teacher.attention(theirs)
        fixed += 0 if run.mode == "opsd" else teacher.parameters * item
        backward = np.maximum(backward, theirs * teacher.working)
    fixed += 6 * 4 * min(2**24, how.micro_batch_size * mine[1] * config.vocab_size)  # logits
    passes, size = 2 * (3 + again) + bool(teacher), how.micro_batch_size  # an adapter's too
    return Work(stage, outs, False, rows, flops, layers, fixed, mine * kept + backward, size, size,
                0, 0, 0, np.zeros(2), np.full(2, passes), passes, 0)  # fmt: skip


def lengths(run: Run) -> dict[str, np.ndarray]:
    """Tokens of x, y_star, y_o, y_r, y_t, an evaluation's response (eval), and of the contexts."""
    scale, write = run.settings, run.settings.refinement.max_new_tokens
    most: dict[str, Any] = {
        "x": scale.lengths.prompt, "y_star": scale.lengths.reference, "y_r": write, "y_t": write,
        "y_o": scale.rollout.max_new_tokens, "eval": scale.evaluation.sampling.max_new_tokens,
        "plain": run.teacher_prompt_limit(with_attempt=False),
        "refine": run.teacher_prompt_limit(with_attempt=True),
    }  # fmt: skip
    found = most | (ASSUMED["published"] if scale.task in ("math", "code") else {})
    if seen := pilot.read(run).get("parts"):
        y_o, y_r = seen["y_o"], seen.get(f"y_r {run.mode}", seen["y_o"])
        found |= {"x": y_o["prompt"], "y_o": y_o["tokens"], "y_r": y_r["tokens"]}
        if opsd := seen.get("y_r opsd"):  # its prompt is x, y_star and y_o
            found["y_star"] = opsd["prompt"] - y_o["prompt"] - y_o["tokens"]
    for name, path in {"y_o": run.attempts, "y_r": run.rewrites("y_r")}.items():
        if (table := store.load(path)) is not None:
            found[name] = table["n_tokens"].mean()
    plain = found["x"] + (found["y_star"] if run.mode == "opsd" else 0)
    found.update(y_t=found["y_o"], eval=found["y_o"], plain=plain, refine=plain + found["y_o"])
    return {name: np.array([min(found[name], top), top], float) for name, top in most.items()}


def work(run: Run, by_role: dict[str, Model]) -> list[Work]:
    """All that these models do in `dvc repro` for the scale of the run."""
    scale, sizes, seeds = run.settings, dict(tasks.of(run).sizes()), len(run.settings.seeds)
    student, evaluation, tokens, todo = by_role["student"], scale.evaluation, lengths(run), []
    tried = min(seeds, scale.training.choice_seeds)  # base seeds that choose among the rates
    train, held_out = sizes.pop("train") * seeds, sizes.pop("validation") * tried
    attempts = train * scale.rollout.samples
    draws = sum(evaluation.at(temperature).samples for temperature in evaluation.temperatures)
    asked, once = sum(sizes.values()) * draws, evaluation.base_samples
    tests = len(evaluation.temperatures) * seeds  # an adapter's tables share batches
    vary = pilot.read(run).get("variation", ASSUMED["variation"])

    def sample(stage, outs, who: Model, how, rows, prompt="x", new="eval", jobs=seeds) -> None:
        sizes = rows, tokens[prompt], tokens[new], vary, jobs
        todo.append(sampling(run, stage, outs, who, how, *sizes))

    sample("rollout", [run.attempts], student, scale.rollout, attempts, new="y_o")
    for cell in get_runs(run.scale, "none", "all", run.all_settings):
        rows, who = asked * len(cell.seeds), by_role.get(cell.method, student)
        if once and cell.method == "base":
            rows = sum(sizes.values()) * once * len(evaluation.temperatures)
        sample("references", [cell.metrics], who, evaluation.sampling, rows, jobs=tests)
    for mode in scale.modes:
        cells = get_runs(run.scale, mode, "all", run.all_settings)
        tokens, other = lengths(cells[0]), student if mode == "opsd" else by_role["teacher"]
        written = [("y_r", attempts, "refine")]  # always: it is what the pipeline is about
        if any(cell.recipe.trajectory == "y_t" for cell in cells):
            written += [("y_t", train, "plain")]
        for y, rows, told in written:
            sample(f"refine {mode}", [cells[0].rewrites(y)], other, scale.refinement, rows, told, y)
        for cell in cells:
            recipe, name = cell.recipe, cell.recipe.trajectory.removesuffix("_cut")
            rows = (attempts if name in ("y_o", "y_r") else train) * scale.training.epochs
            if scale.training.max_steps:
                rows = scale.training.max_steps * scale.training.batch_size * seeds
            elif cell.choice.is_file():  # it knows how many a subset left
                rows = sum(store.read_json(cell.choice)["rows_by_seed"]) * scale.training.epochs
            tries = 0 if cell.choice.is_file() else len(cell.rates) - 1  # a rate on file is taken
            rows = rows * (1 + tries * tried / seeds)
            outs, stage = [cell.adapter(seed) for seed in scale.seeds], f"distill {mode}"
            who = other if recipe.divergence != "cross_entropy" else None
            context = tokens["refine" if name == "y_r" and recipe.context == "refine" else "plain"]
            how = (rows, tokens["x"], context, tokens[name])
            todo.append(training(cell, stage, outs, student, who, *how))
            new = attempts * (1 - 1 / recipe.rounds)  # the later rounds sample their part anew
            if new:
                sample(stage, [], student, scale.rollout, new, new="y_o")
            if new and name == "y_r":
                sample(stage, [], other, scale.refinement, new, "refine", "y_r")
            if tries:
                rows = held_out * evaluation.validation_samples * len(cell.rates)
                sample(stage, [], student, evaluation.validation, rows)
            how = f"evaluate {mode}", [cell.metrics], student, evaluation.sampling, asked * seeds
            sample(*how, jobs=tests)
    return todo


def between(ends: np.ndarray) -> str:
    """Two times, in the unit of the longer one."""
    if np.isnan(ends).any():
        return "no"
    units = {"y": 365 * 86400, "d": 86400, "h": 3600, "min": 60, "s": 1}
    unit = next((name for name, size in units.items() if ends[1] >= 1.5 * size), "s")
    low, high = (f"{t:.2g}" if t < 99 else f"{t:.0f}" for t in ends / units[unit])
    return f"{low} {unit}" if low == high else f"{low}-{high} {unit}"


def here(run: Run, by_role: dict[str, Model]) -> Machine | None:
    """The machine of the scale's pilot, as fast as it was there; None if there was none."""
    found, ours, theirs = pilot.read(run), 0.0, 0.0
    place, ones = found.get("device", ""), np.ones(2)
    usual = GPUS["A100"] if place.startswith("GPU") else Machine(*ASSUMED["cpu"])
    like = next((gpu for name, gpu in GPUS.items() if name in place), usual)
    like = like._replace(memory=found.get("memory", 0) / GIB)
    for name, part in found.get("parts", {}).items():
        if part["seconds"]:
            who = by_role["teacher" if name == "y_r opd" else "student"]
            how = run.settings.rollout if name == "y_o" else run.settings.refinement
            sizes = part["rows"], part["prompt"] * ones, part["tokens"] * ones, part["variation"]
            ours += sampling(run, "", [], who, how, *sizes).seconds(like)[0]
            theirs += part["seconds"]
    return like._replace(factor=theirs / ours) if ours else None


def row(name: str, works: list[Work], machines: dict[str, tuple[Machine, int]]) -> dict:
    """A line of the plan, in numbers; of samples each machine of a kind takes its share."""
    outs = [path.exists() for one in works for path in one.outs]
    trained = sum(len(one.outs) for one in works if not one.sampled)
    found = {
        "stage": name, "sampled": sum(one.rows for one in works if one.sampled),
        "tokens": sum((one.rows * one.new for one in works if one.sampled), np.zeros(2)),
        "trained": sum(one.rows for one in works if not one.sampled),
        "GiB": max(one.memory for one in works) / GIB, "done": f"{sum(outs)}/{len(outs)}",
    }  # fmt: skip
    for label, (on, many) in machines.items():
        shares = np.ceil(trained / many) / max(trained, 1), 1 / many
        found[label] = sum(one.part(shares[one.sampled]).seconds(on) for one in works)
    return found


def sees(how: Evaluation, tests: int, seeds: int) -> list[float]:
    """Half the 95 % interval of a difference between two methods, for these models, in points: by
    the samples alone, and where the difference varies from problem to problem."""
    a = 2 * ASSUMED["spread"] / (1 - 4 * ASSUMED["spread"])  # then p (1 - p) is that, on average
    p, k = special.betaincinv(a, a, (np.arange(tests) + 0.5) / tests), how.sampling.samples
    if asked := how.base_samples:
        right = np.random.default_rng(0).binomial(asked, p)
        k = allocate(right, asked, k, how.least(how.sampling.temperature))
    noise = 2 * np.mean(p * (1 - p) / k) / seeds
    return [196 * ((noise + gap**2) / tests) ** 0.5 for gap in (0, ASSUMED["gap"])]


def command(*, scale: str, gpus: int, price: float, as_json: bool) -> None:
    """Print the plan of a scale; SettingsError if there is none."""
    if gpus < 1 or not 0 <= price < np.inf:
        raise SettingsError("--gpus takes a count from 1 on, --price what one costs an hour")
    run = get_run(scale, "none", "base")
    found, how, sizes = models(run), run.settings, tasks.of(run).sizes()
    todo, pilots = work(run, found), here(run, found)
    expected = [one.part(expected=True) for one in todo]
    machines = {name: (gpu, gpus) for name, gpu in GPUS.items()}
    if pilots:
        on_gpu, todo = pilot.read(run)["device"].startswith("GPU"), expected
        machines = {"here": (pilots, gpus if on_gpu else how.workers)} | machines
    parts = {name: [one for one in todo if one.stage == name] for name in (w.stage for w in todo)}
    parts |= {"all": todo, "all, as expected": expected}
    rows = [row(name, works, machines) for name, works in parts.items()]
    tests = sum(sizes.values()) - sizes["train"] - sizes["validation"]
    half = sees(how.evaluation, tests, len(how.seeds))
    results = 6 * sum(one.rows * one.new[0] for one in todo if one.sampled)
    results += 4 * found["student"].adapter * sum(len(one.outs) for one in todo if not one.sampled)
    rent = {name: rows[-1][name] / 3600 * gpus * price for name in GPUS}
    if as_json:
        plain = {"stages": rows, "rent": rent, "points": half[0], "bytes on disk": 2 * results}
        print(json.dumps(plain, default=lambda v: np.where(np.isnan(v), None, v).tolist()))
        return
    for role, one in found.items():
        name, there = run.model_path(role, how.seeds[0]), "here" if one.here else "to download"
        size = f"{_COUNT(one.parameters)} parameters, {_BYTES(one.parameters * one.item)}"
        print(f"{role} {name}: {size}, {there}")
    forms = {"sampled": _COUNT, "trained": _COUNT, "GiB": "{:.3g}".format,
             "tokens": lambda ends: "-".join(dict.fromkeys(map(_COUNT, ends))),
             **dict.fromkeys(machines, between)}  # fmt: skip
    print("", pd.DataFrame(rows).to_string(index=False, formatters=forms), "", sep="\n")
    if price:
        print("rent, expected:", *(f" {name} {a:.3g}-{b:.3g}" for name, (a, b) in rent.items()))
    print(ASSUMED["sees"].format(tests, *half, *np.multiply(half, 1 + 0.842 / 1.96)))
    print(f"about {_BYTES(2 * results)} of results on disk (DVC keeps a copy)")
    print(ASSUMED["legend"])
    if not pilots:
        print("for closer ends: python -m trdlib pilot --scale", shlex.quote(scale))
