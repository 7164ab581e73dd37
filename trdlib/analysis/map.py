"""The map: when does TRD help? One knob at a time, on the procedural problems `trail`.

The causes that the paper gives (section 1) can here be turned on and off: each cell is a `Run` in
OPD with other settings, one knob, or some, turned. One learning rate serves all."""

import itertools
from collections import namedtuple
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
from pydantic import Field

from trdlib import jobs, store, tasks
from trdlib.analysis import compare
from trdlib.analysis.measure import correct_counts
from trdlib.analysis.show import interval
from trdlib.run import Run
from trdlib.settings import Count, Method, Positive, Section, SettingsError, root

BENCHMARK, MODE, BEST = "trail", "opd", "best y_o method"
# role -> the knob that changes its weights, and the value at which it does not
CHANGED = {"student": ("student_strength", 0), "teacher": ("teacher_temperature", 1)}
COMPARED = {"to_best": ("trd", BEST)}  # name of a gap -> (minuend, subtrahend)
COMPARED |= {f"to_{control}": ("trd", control) for control in ("off_policy", "sft_refined")}
# A place on the map: the knob that is turned (or "rest", or a point), its value, where each knob
# is `at`, and the methods that are trained there.
Cell = namedtuple("Cell", "knob value at run methods")
# params.yaml says what each knob does, beside its values at the scale tiny.
Knob = Literal["locality", "prompts", "rollout_temperature", "refinement_temperature",
               "teacher_temperature", "student_strength", "rounds"]  # fmt: skip


class Map(Section):
    """The section `map` of a scale."""

    knobs: dict[Knob, tuple[float, ...]]  # one at a time; the first value is where the knob rests
    points: dict[str, dict[Knob, float]] = Field({})  # several at once, under a name
    methods: tuple[str, ...]
    oracles: tuple[str, ...] = ()  # methods only for the knob `locality`
    steps: tuple[Count, ...] = Field(min_length=1)
    test_problems: Count
    learning_rate: Positive

    def faults(self) -> dict:
        missing = [knob for knob in get_args(Knob) if not self.knobs.get(knob)]
        without = {"trd", "off_policy", "sft_refined"} - set(self.methods)
        return {
            f"{', '.join(missing)}: each knob needs at least its usual value": missing,
            "the map compares trd, off_policy and sft_refined: add those methods": without,
        }


def section(run: Run) -> Map:
    """What the run's scale says of its map; SettingsError if it has none, or a wrong one."""
    scale, where = run.settings, f"scales.{run.scale}.map"
    plan = tasks.sets.section(Map, scale.map, where)
    if plan is None:
        raise SettingsError(f"{run.scale} has no map: give it a section map, as the scale tiny has")
    if scale.task != "modular":
        raise SettingsError(f"{where}: the map is of the task modular, not of {scale.task}")
    if absent := {*plan.methods, *plan.oracles} - scale.methods.keys():
        raise SettingsError(f"{where}: there is no method {min(absent)!r}, add it to `methods`")
    if len(gaps(plan, scale.methods)) < len(COMPARED) + len(plan.oracles):
        raise SettingsError(f"{where}: each oracle needs the same method on all of y_o beside it")
    return plan


def gaps(plan: Map, recipes: dict[str, Method]) -> dict[str, tuple[str, str]]:
    """COMPARED, and each oracle and the method that it is without its knowledge."""
    found = dict(COMPARED)
    for oracle, method in itertools.product(plan.oracles, plan.methods):
        plain = {"trajectory": "y_o", "skip_onsets": False}
        if recipes[method] == recipes[oracle].model_copy(update=plain):
            found[oracle] = (oracle, method)
    return found


def cells(run: Run) -> list[Cell]:
    """All places on the map of the run's scale; the first is the one where every knob rests."""
    plan = section(run)
    rest = {knob: values[0] for knob, values in plan.knobs.items()}
    turned = [("rest", None, {}), *((name, None, at) for name, at in plan.points.items())]
    turned[1:1] = [(k, v, {k: v}) for k, values in plan.knobs.items() for v in values[1:]]
    found = []
    for knob, value, at in turned:
        methods = plan.methods + (plan.oracles if knob in ("rest", "locality") else ())
        name = knob if value is None else f"{knob}-{value:g}"
        found.append(Cell(knob, value, rest | at, _run(run, name, rest | at), methods))
    return found


def _run(run: Run, name: str, at: dict[str, float]) -> Run:
    """The scale's settings with the knobs turned, under a name of its own."""
    usual, plan, name = run.settings, section(run), f"{run.scale}/map/{name}"
    part = {"kind": "trail", "steps": list(plan.steps), "options": {"local_share": at["locality"]}}
    train, test = ({**part, "problems": int(n)} for n in (at["prompts"], plan.test_problems))
    turned = {key: {"temperature": at[f"{key}_temperature"]} for key in ("rollout", "refinement")}
    turned["models"] = {role: _model(run, role, at[its]) for role, (its, _) in CHANGED.items()}
    rates = ("learning_rates", "variant_learning_rates")
    turned["training"] = dict.fromkeys(rates, (plan.learning_rate,))
    changes = {key: getattr(usual, key).model_copy(update=new) for key, new in turned.items()}
    changes["data"] = usual.data | {"train": [train], "benchmarks": {BENCHMARK: test}}
    changes["workers"] = 1  # a job is a whole cell
    if at["rounds"] > 1:
        changes["methods"] = usual.methods | {
            name: m.model_copy(update={"rounds": int(at["rounds"])})
            for name, m in usual.methods.items()
            if m.trajectory in ("y_o", "y_r") and m.subset == "all"
        }
    scales = {**run.all_settings.scales, name: usual.model_copy(update=changes)}
    return Run(name, MODE, "trd", run.all_settings.model_copy(update={"scales": scales}))


def _model(run: Run, role: str, value: float) -> str:
    if value == CHANGED[role][1]:
        return getattr(run.settings.models, role)
    return f"runs/{run.scale}/map/models/{role}-{value:g}/{{seed}}"


def _make(run: Run, seed: int, role: str, value: float) -> None:
    """Make the student or teacher that a knob asks for, if it is missing."""
    import torch

    from trdlib import models

    sources = {r: run.model_path(r, seed) for r in ("student", "teacher")}
    mark = root() / _model(run, role, value).format(seed=seed) / "made_of.json"
    code = store.code_hash(_make)
    stamp = store.content_hash([models.identity(s) for s in sources.values()], role, value, code)
    if mark.is_file() and store.read_json(mark)["fingerprint"] == stamp:
        return
    how = (run.settings.models, run.context_length)
    model, tokenizer = models.load(sources[role], *how)
    with torch.no_grad():
        if role == "teacher":  # the head is linear: scaling its input divides the logits
            model.model.norm.weight /= value
        else:
            teacher = dict(models.load(sources["teacher"], *how)[0].named_parameters())
            for name, weight in model.named_parameters():  # names a tied weight once
                weight += value * (teacher[name] - weight)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        store.write_json(temporary / "made_of.json", {"fingerprint": stamp})

    store.write_folder(mark.parent, write)


def _measure(cell: Cell) -> list[dict]:
    """A record of a cell for each temperature: {y_o,y_r,y_t}_accuracy; avg_<method> (and base) with
    _low and _high (these models); best: y_o method by test score; right: by method and problem."""
    from trdlib.analysis import signals
    from trdlib.distill import distill
    from trdlib.evaluate import evaluate
    from trdlib.refine import refine, solve
    from trdlib.rollout import rollout

    run, task = cell.run, tasks.of(cell.run)
    runs, problems = [run.with_(method=method) for method in cell.methods], task.sets()
    train = problems["train"]
    y_o = rollout(run, task, train)
    texts = {"y_o": y_o, "y_r": refine(run, task, train, y_o), "y_t": solve(run, task, train)}
    cut = signals.cut(run, task, train, y_o)
    trained = distill(runs, task, problems, {MODE: {**texts, "y_o_cut": cut}})
    adapters = [None, *(one.adapters for one in trained)]
    samples = evaluate([run.with_("none", "base"), *runs], task, problems, adapters)
    how, found, of = run.settings.evaluation.interval, [], run.settings.methods
    on_attempts = [m for m in cell.methods if of[m].trajectory == "y_o" and not of[m].skip_onsets]
    for temperature in run.settings.evaluation.temperatures:
        counts = [correct_counts(at[temperature][BENCHMARK]) for at in samples]
        right = {m: c / k for m, (c, k) in zip(("base", *cell.methods), counts, strict=True)}
        record = {"knob": cell.knob, "value": cell.value, "temperature": temperature}
        record |= {f"{name}_accuracy": float(t["correct"].mean()) for name, t in texts.items()}
        for method, each in right.items():
            names = [f"avg_{method}{end}" for end in ("", "_low", "_high")]
            record |= dict(zip(names, compare.accuracy(each, **how), strict=True))
        record["best"] = max(on_attempts, key=lambda method: record[f"avg_{method}"])
        found.append(record | {"right": right | {BEST: right[record["best"]]}})
    return found


def survey(run: Run) -> pd.DataFrame:
    """Run every cell that is not there yet; a row per cell and temperature, as `_measure`, and each
    of `gaps` with what `compare.family` gives: its cells at one temperature are one family."""
    from trdlib import generate
    from trdlib.rollout import pool

    tasks.of(run).make_models(generate.decode, jobs.run_jobs, generate.batches)
    places, temperatures = cells(run), run.settings.evaluation.temperatures
    for role, (knob, unchanged) in CHANGED.items():
        for value in {cell.at[knob] for cell in places} - {unchanged}:
            for seed in run.settings.seeds:
                _make(run, seed, role, value)
    rows = [*itertools.chain(*pool(run, _measure, [(c,) for c in places], "cells", training=True))]
    compared = gaps(section(run), run.settings.methods).items()
    for (gap, (ours, theirs)), temperature in itertools.product(compared, temperatures):
        here = [r for r in rows if r["temperature"] == temperature and ours in r["right"]]
        pairs = [(r["right"][ours], r["right"][theirs]) for r in here]
        found = compare.family(pairs, **run.settings.evaluation.interval)
        for row, one in zip(here, found, strict=True):
            row |= {f"{gap}_{key}": value for key, value in one.items()}
    return pd.DataFrame(rows).drop(columns="right")


def gap_of(row, gap: str) -> str:
    """A difference in points, with the intervals for these and for new models."""
    these, new = ([row[f"{gap}_{end}{side}"] for side in ("low", "high")] for end in ("", "new_"))
    text = interval(row[f"{gap}_value"], *these, signed=True)
    return f"{text} {interval(None, *new, signed=True, star=row[f'{gap}_marked'], ends=True)}"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The map at one temperature for people: percent and points, stars where marked."""
    shown, shares = [], {f"{name} right": f"{name}_accuracy" for name in ("y_o", "y_r", "y_t")}
    shares |= {name: f"avg_{name}" for name in ("base", "trd", "off_policy", "sft_refined")}
    for row in table.to_dict("records"):
        value = "" if pd.isna(row["value"]) else f"{row['value']:g}"
        one = {"knob": row["knob"], "value": value}
        one |= {name: f"{100 * row[column]:.1f}" for name, column in shares.items()}
        one[BEST] = f"{row['best']} {100 * row['avg_' + row['best']]:.1f}"
        shown.append(one | {" - ".join(of): gap_of(row, gap) for gap, of in COMPARED.items()})
    return pd.DataFrame(shown)


def oracles(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """What an oracle adds to its plain method, at one temperature, where it was run."""
    plan, rows = section(run), []
    plain, rest = gaps(plan, run.settings.methods), plan.knobs["locality"][0]
    here = table[table["knob"].isin(["rest", "locality"])].fillna({"value": rest})
    for oracle, row in itertools.product(plan.oracles, here.to_dict("records")):
        ends = ([row[f"avg_{m}{e}"] for e in ("", "_low", "_high")] for m in plain[oracle][::-1])
        shares = (interval(*of) for of in ends)
        rows.append((f"{row['value']:g}", oracle, *shares, gap_of(row, oracle)))
    return pd.DataFrame(rows, columns=["locality", "oracle", "without it", "with it", "difference"])
