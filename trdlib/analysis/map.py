"""The map: when does TRD help? One knob at a time, on the procedural problems `trail`.

The paper says why token-level methods on y_o should fail (section 1: prefix failure); it cannot
turn the causes on and off. Here each cell is a small experiment of its own in mode OPD, a scale of
its own (a `Run` with other settings, as resumable as any), in which one thing differs from the cell
where every knob rests. One learning rate serves all. Notebook 6_map draws the figure.
"""

import sys
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import pandas as pd
import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from trdlib import generate, jobs, models, stats, store, tasks
from trdlib.analysis import show, signals
from trdlib.distill import distill
from trdlib.evaluate import correct_counts, evaluate
from trdlib.refine import refine, solve
from trdlib.rollout import pool, rollout
from trdlib.run import Run
from trdlib.settings import Section, SettingsError, root

BENCHMARK, MODE = "trail", "opd"
# role -> the knob that changes its weights, and the value at which it does not
CHANGED = {"student": ("student_strength", 0), "teacher": ("teacher_temperature", 1)}
COMPARED = {  # name of a gap -> (its label, the method that is subtracted from trd)
    "to_best": ("trd - best y_o method", None),
    "to_off_policy": ("trd - off_policy", "off_policy"),
    "to_sft_refined": ("trd - sft_refined", "sft_refined"),
}
Knob = Literal[
    "locality",  # share of problems on which a wrong turn does not spoil what follows
    "prompts",  # training problems, and so optimizer steps
    "rollout_temperature",  # of y_o
    "refinement_temperature",  # of y_r and y_t: worse text, scored by as sharp a teacher
    "teacher_temperature",  # divides the teacher's logits: fuzzy when it writes and when it scores
    "student_strength",  # student + strength x (teacher - student), weight by weight
]


class Map(Section):
    """The section `map` of a scale: one knob at a time is turned away from where all rest."""

    knobs: dict[Knob, tuple[float, ...]]  # the first value is where the knob rests
    methods: tuple[str, ...]
    oracles: tuple[str, ...] = ()  # methods only for the knob `locality`
    steps: tuple[PositiveInt, ...] = Field(min_length=1)
    test_problems: PositiveInt
    learning_rate: PositiveFloat

    @model_validator(mode="after")
    def _is_complete(self):
        if missing := [knob for knob in get_args(Knob) if not self.knobs.get(knob)]:
            raise ValueError(f"{', '.join(missing)}: each knob needs at least its usual value")
        if not {"trd", "off_policy", "sft_refined"} <= set(self.methods):
            raise ValueError("the map compares trd, off_policy and sft_refined: add those methods")
        return self


def section(run: Run) -> Map:
    """What the run's scale says of its map; SettingsError if it has none, or a wrong one."""
    if run.settings.map is None or run.settings.task != "modular":
        raise SettingsError(f"{run.scale} has no map: it needs the task modular and a section map")
    return tasks.sets.section(Map, run.settings.map, f"scales.{run.scale}.map")


class Cell(NamedTuple):
    """One place on the map: the knob that is turned (None: all rest) and its value."""

    knob: str | None
    value: float | None
    run: Run  # its method is trd
    methods: tuple[str, ...]  # what is trained here


def cells(run: Run) -> list[Cell]:
    """All places on the map of the run's scale; the first is the one where every knob rests."""
    plan, found = section(run), []
    turned = [(knob, value) for knob, values in plan.knobs.items() for value in values[1:]]
    for knob, value in [(None, None), *turned]:
        methods = plan.methods + (plan.oracles if knob in (None, "locality") else ())
        found.append(Cell(knob, value, _run(run, knob, value), methods))
    return found


def _run(run: Run, knob: str | None, value: float | None) -> Run:
    """The run of a cell: the scale's settings with the knobs turned, under a name of its own."""
    usual, plan = run.settings, section(run)
    at = {name: values[0] for name, values in plan.knobs.items()} | {knob: value}
    name = f"{run.scale}/map/" + ("rest" if knob is None else f"{knob}-{value:g}")
    part = {"kind": "trail", "steps": list(plan.steps), "options": {"local_share": at["locality"]}}
    train, test = ({**part, "problems": int(n)} for n in (at["prompts"], plan.test_problems))
    turned = {key: {"temperature": at[f"{key}_temperature"]} for key in ("rollout", "refinement")}
    turned["models"] = {role: _model(run, role, at[its]) for role, (its, _) in CHANGED.items()}
    turned["training"] = {"learning_rates": (plan.learning_rate,)}
    changes = {key: getattr(usual, key).model_copy(update=new) for key, new in turned.items()}
    changes["data"] = usual.data | {"train": [train], "benchmarks": {BENCHMARK: test}}
    changes["workers"] = 1  # a job is a whole cell
    scales = {**run.all_settings.scales, name: usual.model_copy(update=changes)}
    return Run(name, MODE, "trd", run.all_settings.model_copy(update={"scales": scales}))


def _model(run: Run, role: str, value: float) -> str:
    if value == CHANGED[role][1]:
        return getattr(run.settings.models, role)
    return f"runs/{run.scale}/map/models/{role}-{value:g}/{{seed}}"


def _make(run: Run, seed: int, role: str, value: float) -> None:
    """The student or teacher that a knob asks for, if it is missing."""
    sources = {r: run.model_path(r, seed) for r in ("student", "teacher")}
    mark = root() / _model(run, role, value).format(seed=seed) / "made_of.json"
    code = store.code_hash(sys.modules[__name__])
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


def _measure(cell: Cell) -> dict:
    """The whole experiment of a cell: its row of the map, without what needs the other cells."""
    run, runs = cell.run, [cell.run.with_(method=method) for method in cell.methods]
    task = tasks.of(run)
    problems = task.sets()
    train = problems["train"]
    y_o = rollout(run, task, train)
    texts = {"y_o": y_o, "y_r": refine(run, task, train, y_o), "y_t": solve(run, task, train)}
    cut = signals.cut(run, task, train, y_o)
    trained = distill(runs, task, problems, {MODE: {**texts, "y_o_cut": cut}})
    adapters = [None, *(one.adapters for one in trained)]
    samples = evaluate([run.with_("none", "base"), *runs], task, problems, adapters)
    counts = [correct_counts(found[BENCHMARK]) for found in samples]
    right = {m: c / k for m, (c, k) in zip(("base", *cell.methods), counts, strict=True)}
    record = {"knob": cell.knob or "rest", "value": cell.value}
    record |= {f"{name}_accuracy": float(table["correct"].mean()) for name, table in texts.items()}
    record |= {f"avg_{method}": float(each.mean()) for method, each in right.items()}
    on_attempts = [m for m in section(run).methods if run.settings.methods[m].trajectory == "y_o"]
    record["best"] = max(on_attempts, key=lambda method: record[f"avg_{method}"])
    how, ends = run.settings.evaluation.interval, ("value", "low", "high", "by_seed", "p")
    for gap, (_, other) in COMPARED.items():
        found = stats.compare(right["trd"], right[other or record["best"]], **how)
        record |= {f"{gap}_{end}": getattr(found, end) for end in ends}
    return record


def survey(run: Run) -> pd.DataFrame:
    """Run every cell that is not there yet; the map, one row per cell. Fractions.

    Columns: knob, value; {y_o,y_r,y_t}_accuracy; avg_<method> (also base); best (y_o method by test
    score); each gap of COMPARED as value, low, high, by_seed, p, adjusted (Holm) and marked.
    """
    tasks.of(run).make_models(generate.decode, jobs.run_jobs, generate.batches)
    for role, (knob, unchanged) in CHANGED.items():
        for value in set(section(run).knobs[knob]) - {unchanged}:
            for seed in run.settings.seeds:
                _make(run, seed, role, value)
    table = pd.DataFrame(pool(run, _measure, [(c,) for c in cells(run)], "cells", training=True))
    for gap in COMPARED:
        adjusted = table[f"{gap}_adjusted"] = stats.holm(table[f"{gap}_p"])
        table[f"{gap}_marked"] = stats.marked(table[f"{gap}_low"], table[f"{gap}_high"], adjusted)
    return table


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The map for people: percent and points, gaps with intervals, stars where marked."""
    values = table["value"].map("{:g}".format, na_action="ignore").fillna("")
    shown = pd.DataFrame({"knob": table["knob"], "value": values})
    shares = {f"{name} right": f"{name}_accuracy" for name in ("y_o", "y_r", "y_t")}
    shares |= {name: f"avg_{name}" for name in ("base", "trd", "off_policy", "sft_refined")}
    for label, column in shares.items():
        shown[label] = table[column].mul(100).map("{:.1f}".format)
    best = [f"{row.best} {100 * row[f'avg_{row.best}']:.1f}" for _, row in table.iterrows()]
    shown["best y_o method"] = best
    for gap, (label, _) in COMPARED.items():
        rows = table[[f"{gap}_{end}" for end in ("value", "low", "high", "marked")]].to_numpy()
        shown[label] = [show.interval(*ends, signed=True, star=mark) for *ends, mark in rows]
    return shown


def oracles(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """avg@k of the oracles beside their plain methods, percent, where they were run."""
    plan = section(run)
    names = [m for m in (*plan.methods, *plan.oracles) if m not in ("off_policy", "sft_refined")]
    here = table[table["knob"].isin(["rest", "locality"])]
    locality = here["value"].fillna(plan.knobs["locality"][0]).map("{:g}".format)
    shown = here[[f"avg_{m}" for m in names]].mul(100).round(1)
    return shown.set_axis(names, axis=1).assign(locality=locality).set_index("locality").T


def page(run: Run, table: pd.DataFrame) -> str:
    """The map and its oracles as Markdown, with how they were measured."""
    how, plan = run.settings.evaluation, section(run)
    parts = [
        f"# The map: when does TRD help? (scale {run.scale}, OPD)",
        f"avg@{how.sampling.samples} in percent on {plan.test_problems} problems of trail "
        f"at temperature {how.sampling.temperature:g}, mean of {len(run.settings.seeds)} "
        f"base seeds; one learning rate, {plan.learning_rate:g}. Gaps: points, "
        f"[{how.confidence:.0%} interval from resampling problems, base seeds as given], "
        f"`*`: marked at {stats.MARK_LEVEL:.0%} after Holm's correction for the {len(table)} "
        "cells of the column. The best y_o method is picked by its test score.",
        readable(table).to_markdown(index=False, disable_numparse=True),
        "## Oracles",
        "avg@k. `cut`: y_o ends with its first wrong token. `no_onsets`: the onset words are left "
        "out of both distributions.",
        oracles(run, table).to_markdown(),
    ]
    return "\n\n".join(parts) + "\n"
