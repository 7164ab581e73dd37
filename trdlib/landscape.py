"""The map: when does TRD help? One knob at a time, on the procedural task `trail` (issue 3).

The paper says why token-level methods on y_o should fail (section 1: prefix failure) and that they
do at its scales; it cannot turn the causes on and off. Here each cell of the map is a small
experiment of its own, rollouts, rewrites and training included, in mode OPD, in which one thing
differs from the cell where every knob rests:

    locality                 share of problems on which a wrong turn does not spoil what follows
    prompts                  training problems, and so optimizer steps
    rollout_temperature      of y_o
    refinement_temperature   of y_r and y_t: worse text, scored by as sharp a teacher
    teacher_temperature      the teacher's logits are divided by it: fuzzy when it writes and scores
    student_strength         student + strength x (teacher - student), weight by weight

A cell is a scale of its own (`config.Run` with changed settings), so everything that makes a run
resumable and never reuses the wrong file holds here too. One learning rate serves all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from trdlib import config, data, distill, evaluate, models, parallel, refine, rollout, tiny

BENCHMARK, MODE = "trail", "opd"
GAPS = {
    "to_best": "trd - best y_o method",
    "to_off_policy": "trd - off_policy",
    "to_sft_refined": "trd - sft_refined",
}


class Cell(NamedTuple):
    """One place on the map: the knob that is turned (None: all rest) and its value."""

    knob: str | None
    value: float | None
    run: config.Run  # its method is trd; `with_method` gives the others

    @property
    def name(self) -> str:
        return "rest" if self.knob is None else f"{self.knob}-{self.value:g}"

    @property
    def methods(self) -> tuple[str, ...]:
        """What is trained here: the oracles only where the knob is locality, or all rest."""
        plan = self.run.settings.map
        return plan.methods + (plan.oracles if self.knob in (None, "locality") else ())


def cells(run: config.Run) -> list[Cell]:
    """All places on the run's scale's map; SettingsError if the scale has none."""
    plan = run.settings.map
    if plan is None or run.settings.pretraining is None:
        raise config.SettingsError(
            f"the scale {run.scale} has no map: it needs a procedural task and the section `map`"
        )
    rest = {knob: values[0] for knob, values in plan.knobs.items()}
    turned = [(knob, value) for knob, values in plan.knobs.items() for value in values[1:]]
    places = [(None, None, rest), *((k, v, rest | {k: v}) for k, v in turned)]
    return [Cell(knob, value, _run(run, knob, value, at)) for knob, value, at in places]


def _run(run: config.Run, knob: str | None, value: float | None, at: dict) -> config.Run:
    """The run of a cell: the scale's settings with the knobs turned, under a name of its own."""
    settings, plan = run.settings, run.settings.map
    name = f"{run.scale}/map/" + ("rest" if knob is None else f"{knob}-{value:g}")

    def problems(count: int) -> config.ProblemSet:
        return config.ProblemSet(
            task="trail", problems=count, steps=plan.steps, local_share=at["locality"]
        )

    def changed(section, **values):
        return section.model_copy(update=values)

    changes = {
        "workers": 1,  # a job is a whole cell
        "data": changed(
            settings.data,
            train=(problems(int(at["prompts"])),),
            benchmarks={BENCHMARK: problems(plan.test_problems)},
        ),
        "rollout": changed(settings.rollout, temperature=at["rollout_temperature"]),
        "refinement": changed(settings.refinement, temperature=at["refinement_temperature"]),
        "training": changed(settings.training, learning_rates=(plan.learning_rate,)),
        "models": changed(
            settings.models,
            student=_model(settings.models.student, run, "student", at["student_strength"], 0),
            teacher=_model(settings.models.teacher, run, "teacher", at["teacher_temperature"], 1),
        ),
    }
    scales = {**run.all_settings.scales, name: changed(settings, **changes)}
    return config.Run(name, run.task, MODE, "trd", changed(run.all_settings, scales=scales))


def _model(usual: str, run: config.Run, role: str, value: float, rest: float) -> str:
    folder = f"runs/{run.scale}/map/models/{role}-{value:g}"
    return usual if value == rest else folder + "/{seed}"


def with_method(run: config.Run, method: str) -> config.Run:
    mode = "none" if method in config.REFERENCES else run.mode
    return config.Run(run.scale, run.task, mode, method, run.all_settings)


# -------------------------------------------------------------------------------- changed models


def make_models(run: config.Run) -> None:
    """The students and teachers that the knobs ask for, where they are missing."""
    plan = run.settings.map
    for seed in run.settings.seeds:
        for strength in plan.knobs["student_strength"][1:]:
            _make(run, seed, "student", strength)
        for temperature in plan.knobs["teacher_temperature"][1:]:
            _make(run, seed, "teacher", temperature)


def _make(run: config.Run, seed: int, role: str, value: float) -> None:
    import torch

    sources = {r: run.model_path(r, seed) for r in ("student", "teacher")}
    folder = config.root() / _model("", run, role, value, rest=float("nan")).format(seed=seed)
    code = config.code_hash(sys.modules[__name__])
    stamp = config.content_hash([models.identity(s) for s in sources.values()], role, value, code)
    mark = folder / "made_of.json"
    if mark.is_file() and data.read_json(mark)["fingerprint"] == stamp:
        return
    model, tokenizer = models.load(sources[role], run)
    with torch.no_grad():
        if role == "teacher":  # the head is linear: scaling its input divides the logits
            model.model.norm.weight /= value
        else:
            teacher = dict(models.load(sources["teacher"], run)[0].named_parameters())
            for name, weight in model.named_parameters():  # names a tied weight once
                weight += value * (teacher[name] - weight)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        data.write_json(temporary / "made_of.json", {"fingerprint": stamp})

    data.write_folder(folder, write)


# --------------------------------------------------------------------------------------- the work


def _generate(cell: Cell) -> dict:
    """The cell's problems and trajectories; how good they are."""
    run = cell.run
    tiny.prepare(run)
    y_o = rollout.attempts(run)
    base = evaluate.evaluate([with_method(run, "base")])[0][BENCHMARK]
    return {
        "y_o_accuracy": float(y_o["correct"].mean()),
        "y_r_accuracy": float(refine.rewrites(run, y_o)["correct"].mean()),
        "y_t_accuracy": float(refine.teacher_solutions(run)["correct"].mean()),
        "base": evaluate.correct_counts(base)[0],
    }


def _train(cell: Cell, method: str) -> np.ndarray:
    """Train and evaluate one method in a cell; right samples, (seeds, problems)."""
    run = with_method(cell.run, method)
    distill.distill(run)
    return evaluate.correct_counts(evaluate.evaluate([run])[0][BENCHMARK])[0]


def survey(run: config.Run) -> pd.DataFrame:
    """Run every cell that is not there yet; the map, one row per cell.

    Columns: knob, value; y_o_accuracy, y_r_accuracy, y_t_accuracy; avg_<method> (also base) and,
    paired by problem, the GAPS: trd minus the best y_o method (by test score, named in `best`),
    minus off_policy, minus sft_refined; each as value, low, high, by_seed, p, adjusted (Holm over
    the map) and marked. Fractions.
    """
    places = cells(run)
    tiny.prepare(run)
    make_models(run)
    workers = run.settings.workers
    models.preload(run, training=True)
    made = parallel.run_jobs(_generate, [(c,) for c in places], workers=workers, label="texts")
    jobs = [(cell, method) for cell in places for method in cell.methods]
    counts = parallel.run_jobs(_train, jobs, workers=workers, label="methods")
    found = {(cell.name, method): c for (cell, method), c in zip(jobs, counts, strict=True)}
    records = []
    for cell, texts in zip(places, made, strict=True):
        mine = {method: found[cell.name, method] for method in cell.methods}
        records.append(_row(cell, {**texts, **mine}))
    table = pd.DataFrame(records)
    for gap in GAPS:
        table[f"{gap}_adjusted"] = evaluate.holm(table[f"{gap}_p"])
        ends = table[f"{gap}_low"], table[f"{gap}_high"]
        table[f"{gap}_marked"] = evaluate.marked(*ends, table[f"{gap}_adjusted"])
    return table


def _row(cell: Cell, found: dict) -> dict:
    how = cell.run.settings.evaluation
    k = how.sampling.samples
    record = {"knob": cell.knob or "rest", "value": cell.value}
    record |= {key: found[key] for key in found if key.endswith("accuracy")}
    for method in ("base", *cell.methods):
        record[f"avg_{method}"] = float(found[method].mean() / k)
    token_level = [m for m in cell.run.settings.map.methods
                   if cell.run.settings.methods[m].trajectory == "y_o"]  # fmt: skip
    record["best"] = max(token_level, key=lambda m: record[f"avg_{m}"])
    others = {"to_best": record["best"], "to_off_policy": "off_policy"}
    others["to_sft_refined"] = "sft_refined"
    for gap, other in others.items():
        difference = (found["trd"] - found[other]) / k
        estimate = evaluate.bootstrap(
            difference, resamples=how.resamples, confidence=how.confidence
        )
        record |= {f"{gap}_{end}": value for end, value in estimate._asdict().items()}
        record[f"{gap}_by_seed"] = difference.mean(axis=1).tolist()
        record[f"{gap}_p"] = evaluate.p_value(difference)
    return record


# ------------------------------------------------------------------------------------- the report


def figure(run: config.Run, table: pd.DataFrame):
    """A panel for each knob: what TRD gains over the best y_o method, and over its controls."""
    import matplotlib.pyplot as plt

    from trdlib.tables import COLORS

    knobs = {k: v for k, v in run.settings.map.knobs.items() if len(v) > 1}
    columns = min(3, len(knobs))
    rows = -(-len(knobs) // columns)
    size = (4.0 * columns + 0.6, 3.1 * rows + 0.5)
    fig, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    colors = (COLORS["trd"], COLORS["off_policy"], COLORS["sft_refined"])
    lines = list(zip(GAPS, GAPS.values(), colors, ("o-", "s--", "^:"), strict=True))
    rest = table[table["knob"] == "rest"]
    for axis, (knob, values) in zip(axes.flat, knobs.items(), strict=False):
        here = pd.concat([rest.assign(value=values[0]), table[table["knob"] == knob]])
        here = here.sort_values("value")
        place = range(len(here))
        axis.axhline(0, color="black", lw=0.8)
        for gap, label, color, style in lines:
            value, low, high = (100 * here[f"{gap}_{end}"] for end in ("value", "low", "high"))
            axis.plot(place, value, style, color=color, label=label, ms=5, mec="black", mew=0.5)
            axis.fill_between(place, low, high, color=color, alpha=0.2, lw=0)
            for x, seeds in zip(place, here[f"{gap}_by_seed"], strict=True):
                axis.plot([x] * len(seeds), 100 * np.array(seeds), "_", color=color, ms=7, mew=1)
        column, what = (
            ("y_r_accuracy", "y_r") if knob != "student_strength" else ("avg_base", "base")
        )
        labels = [
            f"{value:g}\n{100 * right:.0f}"
            for value, right in zip(here["value"], here[column], strict=True)
        ]
        axis.set_xticks(place, labels)
        axis.set_xlabel(f"{knob.replace('_', ' ')}; below: % right, {what}")
        axis.grid(axis="y", alpha=0.3)
    for axis in list(axes.flat)[len(knobs) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("points of avg@k")
    axes[0][0].legend(fontsize=8)
    fig.tight_layout()
    return fig


def readable(run: config.Run, table: pd.DataFrame) -> pd.DataFrame:
    """The map for people: percent and points, gaps with intervals, stars where marked."""

    def gap(row, name: str) -> str:
        star = r"\*" if row[f"{name}_marked"] else ""
        value, low, high = (100 * row[f"{name}_{end}"] for end in ("value", "low", "high"))
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]{star}"

    def percent(column: str) -> pd.Series:
        return (100 * table[column]).map("{:.1f}".format)

    shown = pd.DataFrame(
        {
            "knob": table["knob"],
            "value": table["value"].map("{:g}".format, na_action="ignore").fillna(""),
            **{f"{t} right": percent(f"{t}_accuracy") for t in ("y_o", "y_r", "y_t")},
            **{m: percent(f"avg_{m}") for m in ("base", "trd", "off_policy", "sft_refined")},
            "best y_o method": table["best"]
            + [f" {100 * row[f'avg_{row.best}']:.1f}" for _, row in table.iterrows()],
            **{label: [gap(r, g) for _, r in table.iterrows()] for g, label in GAPS.items()},
        }
    )
    return shown


def oracles(run: config.Run, table: pd.DataFrame) -> pd.DataFrame:
    """avg@k of the oracles beside their plain methods, percent, where they were run."""
    plan = run.settings.map
    names = [m for m in (*plan.methods, *plan.oracles) if m not in ("off_policy", "sft_refined")]
    here = table[table["knob"].isin(["rest", "locality"])]
    locality = here["value"].fillna(plan.knobs["locality"][0]).map("{:g}".format)
    shown = here[[f"avg_{m}" for m in names]].mul(100).round(1)
    return shown.set_axis(names, axis=1).assign(locality=locality).set_index("locality").T


def write(run: config.Run, table: pd.DataFrame) -> list[Path]:
    """results/tables/map_<scale>.{csv,md} and results/figures/map_<scale>.png, each whole."""
    import matplotlib.pyplot as plt

    results = run.results
    paths = [results / "tables" / f"map_{run.scale}.{t}" for t in ("csv", "md")]
    paths.append(results / "figures" / f"map_{run.scale}.png")
    evaluation, plan = run.settings.evaluation, run.settings.map
    how = (
        f"avg@{evaluation.sampling.samples} in percent on {plan.test_problems} problems of trail "
        f"at temperature {evaluation.sampling.temperature:g}, mean of {len(run.settings.seeds)} "
        f"base seeds; one learning rate, {plan.learning_rate:g}. Gaps: points, "
        f"[{evaluation.confidence:.0%} interval from resampling problems, base seeds as given], "
        f"`*`: marked at {evaluate.MARK_LEVEL:.0%} after Holm's correction for the {len(table)} "
        "cells of the column. The best y_o method is picked by its test score."
    )
    text = [
        f"# The map: when does TRD help? (scale {run.scale}, OPD)",
        how,
        readable(run, table).to_markdown(index=False, disable_numparse=True),
        "## Oracles",
        "avg@k. `cut`: y_o ends with its first wrong token. `no_onsets`: the onset words are left "
        "out of both distributions.",
        oracles(run, table).to_markdown(),
    ]
    data.write_text(paths[0], table.to_csv(index=False, lineterminator="\n"))
    data.write_text(paths[1], "\n\n".join(text) + "\n")
    fig = figure(run, table)
    data.write_whole(paths[2], lambda p: fig.savefig(p, dpi=130, format="png"))
    plt.close(fig)
    return paths
