"""From metrics files to tables (Markdown, CSV, LaTeX), the figure, and the README's headline.

Every cell carries its interval and its seeds; differences are paired by problem and marked by the
rule of `evaluate.marked`; the base stands twice, as the table's own noise floor. What has not been
run is shown as missing, never as a number. The best token-level baseline is picked per benchmark by
its test score, which favours the baselines.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pandas as pd

from trdlib import config, data, distill, evaluate, rollout

MISSING = "not run"
BASELINE = "best y_o method"
COLORS = {
    "base": "#9e9e9e",
    "base_again": "#9e9e9e",
    "teacher": "#000000",
    "forward_kl": "#9ecae1",
    "reverse_kl": "#4292c6",
    "forward_kl_clip": "#6baed6",
    "reverse_kl_topk": "#08519c",
    "trd": "#d62728",
    "sft": "#a1d99b",
    "sft_refined": "#41ab5d",
    "off_policy": "#006d2c",
}
_OTHER_COLOR = "#8c564b"
_README_BLOCK = re.compile(r"(<!-- headline -->\n).*?(<!-- /headline -->)", re.S)


def _difference(run: config.Run, ours: dict, theirs: dict) -> dict:
    """avg@k, ours minus theirs, paired by problem: the estimate, its p, and the value by seed."""
    same = ("problems", "seeds", "k")
    if any(ours[key] != theirs[key] for key in same):
        raise ValueError("paired by problem: both runs need the same problems, seeds and samples")
    gap = (np.array(ours["correct"]) - np.array(theirs["correct"])) / ours["k"]
    how = run.settings.evaluation
    found = evaluate.bootstrap(gap, resamples=how.resamples, confidence=how.confidence)
    by_seed = gap.mean(axis=1).tolist()
    return {**found._asdict(), "p": evaluate.p_value(gap), "by_seed": by_seed}


def row_names(run: config.Run, *, subsets: bool = False) -> list[str]:
    """The rows of a mode's table, from top to bottom; or those of its subset ablation."""
    methods = run.matrix.methods_of(run.mode, run.task)
    chosen = [m for m in methods if (_subset(run, m) != "all") == subsets]
    teacher = ["teacher"] if run.mode == "opd" else []
    return chosen if subsets else ["base", "base_again", *teacher, *chosen]


def _subset(run: config.Run, method: str) -> str:
    return "all" if method in config.REFERENCES else run.settings.methods[method].subset


def _parent(run: config.Run, method: str) -> str | None:
    """The method that does the same on all rows, if the matrix has it."""
    if _subset(run, method) == "all":
        return None
    recipe = run.settings.methods[method].model_copy(update={"subset": "all"})
    same = (m for m in run.matrix.methods if run.settings.methods[m] == recipe)
    return next(same, None)


def _metrics(run: config.Run, method: str) -> dict | None:
    mode = "none" if method in config.REFERENCES else run.mode
    path = config.Run(run.scale, run.task, mode, method, run.all_settings).metrics
    return data.read_json(path) if path.is_file() else None


def collect(run: config.Run) -> pd.DataFrame:
    """One row per (method, benchmark), in the order of the table.

    Columns: run (was it?), subset, k, n, and for avg and pass the value, low, high and by_seed; the
    paired differences of avg to `base`, the best y_o method, `sft`, `off_policy` and the parent (a
    subset's method on all rows), each with its Holm-adjusted p over all rows that have one (rows of
    the main table and of the ablation apart) and whether it is `marked`; mean_tokens, unfinished,
    learning_rate, trajectory_accuracy, rows. Fractions, NaN or None where there is nothing.
    """
    names = row_names(run) + row_names(run, subsets=True)
    metrics = {name: _metrics(run, name) for name in names}
    there = {name: m for name, m in metrics.items() if m}
    token_level = [
        name
        for name in there
        if name in run.settings.methods
        and run.settings.methods[name].trajectory == "y_o"
        and _subset(run, name) == "all"
    ]
    records = []
    for benchmark in run.settings.data.benchmarks:
        cells = {name: m["benchmarks"][benchmark] for name, m in there.items()}
        best = max(token_level, key=lambda n: cells[n]["avg_at_k"]["value"], default=None)
        for name in metrics:
            record = {"method": name, "benchmark": benchmark, "run": name in there}
            record |= {"subset": _subset(run, name), "parent": _parent(run, name)}
            if name in there:
                cell, training = cells[name], there[name].get("training", {})
                record |= {key: cell[key] for key in ("k", "n", "mean_tokens", "unfinished")}
                for metric in ("avg", "pass"):
                    for key, value in cell[f"{metric}_at_k"].items():
                        record[f"{metric}_{key}"] = value
                    record[f"{metric}_by_seed"] = cell[f"{metric}_at_k_by_seed"]
                against = {"base": "base", "best": best, "sft": "sft", "off_policy": "off_policy"}
                against["parent"] = record["parent"]
                for label, other in against.items():
                    if other in cells and other != name:
                        for key, value in _difference(run, cell, cells[other]).items():
                            record[f"to_{label}_{key}"] = value
                record["best"] = best
                record["learning_rate"] = training.get("chosen")
                for key in ("trajectory_accuracy", "trajectory_like_reference"):
                    record[key] = training.get(key)
                if "rows_by_seed" in training:
                    record["rows"] = float(np.mean(training["rows_by_seed"]))
            records.append(record)
    ends = ("value", "low", "high", "by_seed")
    differences = [f"to_{other}" for other in ("base", "best", "sft", "off_policy", "parent")]
    wanted = ["method", "benchmark", "run", "subset", "parent", "k", "n"]
    wanted += [f"{estimate}_{end}" for estimate in ("avg", "pass") for end in ends]
    wanted += [f"{d}_{end}" for d in differences for end in (*ends, "p", "adjusted", "marked")]
    wanted += ["best", "mean_tokens", "unfinished", "learning_rate", "trajectory_accuracy"]
    wanted += ["trajectory_like_reference", "rows"]
    table = pd.DataFrame(records, columns=wanted)
    main = (table["subset"] == "all").to_numpy()
    for d in differences:
        p = table[f"{d}_p"].to_numpy(dtype=float)
        adjusted = np.where(main, evaluate.holm(np.where(main, p, np.nan)), np.nan)
        adjusted = np.where(main, adjusted, evaluate.holm(np.where(main, np.nan, p)))
        ends = table[f"{d}_low"], table[f"{d}_high"]
        table[f"{d}_adjusted"] = adjusted
        table[f"{d}_marked"] = evaluate.marked(*ends, adjusted)
    return table


def coverage(run: config.Run) -> pd.DataFrame:
    """pass@k, k = 1 ... samples: one row per (method, benchmark, k) with value, low, high."""
    how = run.settings.evaluation
    records = []
    for name in row_names(run):
        metrics = _metrics(run, name)
        for benchmark in run.settings.data.benchmarks if metrics else []:
            cell = metrics["benchmarks"][benchmark]
            curve = evaluate.pass_curve(
                cell["correct"], cell["k"], resamples=how.resamples, confidence=how.confidence
            )
            for k, found in enumerate(curve, 1):
                records.append({"method": name, "benchmark": benchmark, "k": k} | found._asdict())
    return pd.DataFrame(records, columns=["method", "benchmark", "k", "value", "low", "high"])


def frontier(run: config.Run) -> pd.DataFrame:
    """`evaluate.frontier` of each method and benchmark; empty without both base evaluations."""
    base, again = _metrics(run, "base"), _metrics(run, "base_again")
    records = []
    for name in row_names(run) if base and again else []:
        metrics = _metrics(run, name)
        if name == "base" or not metrics:
            continue
        for benchmark in run.settings.data.benchmarks:
            cell = metrics["benchmarks"][benchmark]
            counts = [m["benchmarks"][benchmark]["correct"] for m in (base, again)]
            found = evaluate.frontier(*counts, cell["correct"], cell["k"])
            records.append({"method": name, "benchmark": benchmark} | found._asdict())
    return pd.DataFrame(records, columns=["method", "benchmark", *evaluate.Frontier._fields])


def null_rate(run: config.Run, simulations: int = 400) -> float | None:
    """How often the rule marks anything when the base is compared with itself; None: not run."""
    metrics = [_metrics(run, name) for name in ("base", "base_again")]
    if not all(metrics):
        return None
    counts = [{b: c["correct"] for b, c in m["benchmarks"].items()} for m in metrics]
    k = next(iter(metrics[0]["benchmarks"].values()))["k"]
    confidence = run.settings.evaluation.confidence
    return evaluate.null_check(
        *counts, k, simulations=simulations, resamples=1000, confidence=confidence
    )


def cost(run: config.Run) -> pd.DataFrame:
    """What each method costs, all base seeds together, one learning rate each; NaN: not noted.

    Columns: generated (tokens sampled for its trajectories), mean_length of the trajectory, trained
    (response tokens), student_tokens and teacher_tokens (through the models, prompts included),
    generation_seconds and training_seconds (core-seconds of model compute), peak_mib. Tokens are
    counted from files; seconds and memory are from the logs of the run that made them.
    """
    files = {"y_o": run.attempts, "y_r": run.mode_folder / "y_r.parquet"}
    files["y_t"] = run.mode_folder / "y_t.parquet"
    made = {name: data.load(path) for name, path in files.items()}
    logs = {name: rollout.cost_file(path) for name, path in files.items()}
    seconds = {n: data.read_json(p)["core_seconds"] for n, p in logs.items() if p.is_file()}
    records = []
    for name in run.matrix.methods_of(run.mode, run.task):
        one = config.Run(run.scale, run.task, run.mode, name, run.all_settings)
        record = {"method": name, "run": one.choice.is_file()}
        trajectory = one.recipe.trajectory
        needs = {"y_o": ["y_o"], "y_r": ["y_o", "y_r"], "y_t": ["y_t"], "y_star": []}[trajectory]
        if all(made[n] is not None for n in needs):
            record["generated"] = sum(int(made[n]["n_tokens"].sum()) for n in needs)
            if needs:
                record["mean_length"] = float(made[needs[-1]]["n_tokens"].mean())
        if all(n in seconds for n in needs):
            record["generation_seconds"] = sum(seconds[n] for n in needs)
        if record["run"]:
            rate = data.read_json(one.choice)["chosen"]
            paths = [distill.cost_file(one, seed, rate) for seed in one.settings.seeds]
            if all(p.is_file() for p in paths):
                found = pd.DataFrame([data.read_json(p) for p in paths])
                for key in ("student_tokens", "teacher_tokens"):
                    record[key] = int(found[key].sum())
                record["trained"] = int(found["response_tokens"].sum())
                record["training_seconds"] = float(found["core_seconds"].sum())
                record["peak_mib"] = float(found["peak_mib"].max())
        records.append(record)
    columns = ["method", "run", "generated", "mean_length", "trained", "student_tokens"]
    columns += ["teacher_tokens", "generation_seconds", "training_seconds", "peak_mib"]
    return pd.DataFrame(records, columns=columns)


# --------------------------------------------------------------------------------------- writing


def _cell(row, what: str, signed: bool = False) -> str:
    """`95.5 [94.1, 96.8]` in percent, a dash for a row's difference to itself, or MISSING."""
    if not row["run"]:
        return MISSING
    value = row[f"{what}_value"]
    if pd.isna(value):
        return "-"
    sign = "+" if signed else ""
    low, high = row[f"{what}_low"], row[f"{what}_high"]
    star = r"\*" if signed and row[f"{what}_marked"] else ""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]{star}"


def _grid(table: pd.DataFrame, cell) -> pd.DataFrame:
    """Methods by benchmarks, each cell made by cell(row), in the order of the table."""
    text = table.assign(text=[cell(row) for _, row in table.iterrows()])
    grid = text.pivot(index="method", columns="benchmark", values="text")
    return grid.loc[table["method"].unique(), table["benchmark"].unique()].rename_axis(
        index="method", columns=None
    )


def _seeds(row, what: str = "avg") -> str:
    """The values of the base seeds in percent, with their signs if they are differences."""
    values = row[f"{what}_by_seed"]
    if not row["run"]:
        return MISSING
    if isinstance(values, str):  # from the CSV
        values = ast.literal_eval(values)
    if not isinstance(values, list):
        return "-"
    sign = "+" if what.startswith("to_") else ""
    return " / ".join(f"{100 * v:{sign}.1f}" for v in values)


def _how(table: pd.DataFrame, run: config.Run) -> str:
    done = table[table["run"]]
    if done.empty:
        return "Nothing has been run yet."
    sampling = run.settings.evaluation.sampling
    problems = sorted(done["n"].astype(int).unique())
    return (
        f"Percent, mean of {len(run.settings.seeds)} base seeds, "
        f"[{run.settings.evaluation.confidence:.0%} interval from resampling "
        f"{' or '.join(map(str, problems))} problems], {int(done['k'].iloc[0])} samples a problem "
        f"at temperature {sampling.temperature:g}. "
        "An interval takes the base seeds as given: where they disagree by more, look at them."
    )


def _comparisons(table: pd.DataFrame, what: str) -> str:
    """What the stars mean, and how many there are of how many."""
    made = int(table[f"{what}_p"].notna().sum())
    return (
        "`*`: the interval excludes zero, and so does a t-test over problems at "
        f"{evaluate.MARK_LEVEL:.0%} after Holm's correction for the {made} comparisons of this "
        f"table; {int(table[f'{what}_marked'].sum())} are marked."
    )


def _ablation(run: config.Run, table: pd.DataFrame) -> list[str]:
    """The subset ablation: which rows are worth training on?"""
    subsets = table[table["subset"] != "all"]
    if subsets.empty:
        return []
    k = run.settings.evaluation.sampling.samples
    names = [m for p in subsets["parent"].dropna().unique()
             for m in (p, *subsets.loc[subsets["parent"] == p, "method"].unique())]  # fmt: skip
    both = table.set_index("method").loc[names].reset_index()
    rows = both.drop_duplicates("method").set_index("method")["rows"]
    grid = _grid(both, lambda r: _cell(r, "avg"))
    grid.insert(0, "rows", rows.map("{:.0f}".format, na_action="ignore").fillna(MISSING))
    return [
        f"## avg@{k}: subset ablation",
        "Trained on all rows, or on those whose attempt failed, passed, or failed and was mended "
        "(rows: mean over base seeds). Fewer rows also means fewer optimizer steps: a subset that "
        "does worse may only be smaller.",
        grid.to_markdown(),
        f"## avg@{k}: subset minus all rows, paired by problem",
        _comparisons(subsets, "to_parent"),
        _grid(subsets, lambda r: _cell(r, "to_parent", signed=True)).to_markdown(),
    ]


def _coverage_text(run: config.Run) -> list[str]:
    found = frontier(run)
    if found.empty:
        return []
    k = run.settings.evaluation.sampling.samples

    def cell(r) -> str:
        sure = r["gained"] > r["chance_high"] or r["lost"] > r["chance_high"]
        star = r"\*" if sure else ""
        return f"+{r['gained']} / -{r['lost']}{star}"

    grid = _grid(found, cell)
    first = found.drop_duplicates("benchmark").set_index("benchmark")
    grid.loc["chance"] = {
        b: f"+/- {r['chance_gained']:.1f} (97.5 %: {r['chance_high']:.0f})"
        for b, r in first.iterrows()
    }
    grid.loc["never solved by base"] = first["unsolved"].astype(str)
    return [
        f"## Frontier: problems won and lost in {k} samples",
        f"`+`: never solved by the base in {k} samples, but by the method; `-`: the reverse; all "
        "base seeds together. `chance`: the mean of what the base would win and lose against "
        "itself, sampled again; `*`: more than its 97.5 % point, not corrected for the number of "
        "cells.",
        grid.to_markdown(),
    ]


def markdown(run: config.Run, whole: pd.DataFrame) -> str:
    """The whole report of one mode and scale, as Markdown."""
    k = run.settings.evaluation.sampling.samples
    table, null = whole[whole["subset"] == "all"], null_rate(run)
    per_method = table.drop_duplicates("method").set_index("method")
    unfinished = table.groupby("method", sort=False)["unfinished"].mean()
    tokens = table.groupby("method", sort=False)["mean_tokens"].mean()

    def percent(value) -> str | None:
        return None if pd.isna(value) else f"{100 * value:.1f}"

    training = pd.DataFrame(
        {
            "learning rate": per_method["learning_rate"].map("{:g}".format, na_action="ignore"),
            "trajectory right %": per_method["trajectory_accuracy"].map(percent),
            "like y* %": per_method["trajectory_like_reference"].map(percent),
            "mean tokens": tokens.map("{:.1f}".format, na_action="ignore"),
            "unfinished %": unfinished.map(lambda v: f"{100 * v:.2f}", na_action="ignore"),
        }
    ).astype(object)
    training = training.where(training.notna(), "-").loc[table["method"].unique()]
    best = table.dropna(subset=["best"]).drop_duplicates("benchmark")
    names = "; ".join(f"{b}: {m}" for b, m in zip(best["benchmark"], best["best"], strict=True))
    parts = [
        f"# {run.mode.upper()}, {run.task}, scale {run.scale}",
        _how(table, run)
        + " `base_again` is the base model sampled again: its difference to `base` is noise."
        + (
            ""
            if null is None
            else f" When the base is compared with itself, dealt anew from its "
            f"stored samples, the rule behind the stars marks anything in {null:.1%} of cases."
        ),
        f"## avg@{k}",
        _grid(table, lambda r: _cell(r, "avg")).to_markdown(),
        f"## pass@{k}",
        _grid(table, lambda r: _cell(r, "pass")).to_markdown(),
        f"## avg@{k}: difference to base, paired by problem",
        _comparisons(table, "to_base"),
        _grid(table, lambda r: _cell(r, "to_base", signed=True)).to_markdown(),
        f"## avg@{k}: difference to the {BASELINE}, paired by problem",
        f"The best token-level baseline by test score ({names or MISSING}). "
        + _comparisons(table, "to_best"),
        _grid(table, lambda r: _cell(r, "to_best", signed=True)).to_markdown(),
        f"## avg@{k}: difference to the {BASELINE}, by base seed",
        _grid(table, lambda r: _seeds(r, "to_best")).to_markdown(),
        f"## avg@{k} by base seed",
        _grid(table, _seeds).to_markdown(),
        "## Training, and what the samples look like",
        "The learning rate is chosen per method on the validation set from "
        f"{', '.join(f'{r:g}' for r in run.settings.training.learning_rates)}. `trajectory right` "
        "is the accuracy of the text that the method trained on, `like y*` the share of it that is "
        "the reference solution, word for word. Tokens and unfinished are means "
        "over the benchmarks.",
        training.to_markdown(disable_numparse=True),
        *_ablation(run, whole),
        *_coverage_text(run),
    ]
    return "\n\n".join(parts) + "\n"


def latex(run: config.Run, whole: pd.DataFrame) -> str:
    """avg@k and pass@k with intervals, as a booktabs tabular."""
    table = whole[whole["subset"] == "all"]
    k = run.settings.evaluation.sampling.samples
    lines = [f"% {run.mode}, {run.task}, scale {run.scale}. {_how(table, run)}".replace("%", r"\%")]
    lines[0] = "%" + lines[0][2:]
    benchmarks = table["benchmark"].unique()
    lines += [rf"\begin{{tabular}}{{ll{'r' * len(benchmarks)}}}", r"\toprule"]
    names = [name.replace("_", r"\_") for name in benchmarks]
    lines += [" & ".join(["method", "metric", *names]) + r" \\", r"\midrule"]
    for what in ("avg", "pass"):
        for method, row in _grid(table, lambda r, w=what: _cell(r, w)).iterrows():
            cells = [re.sub(r"^(\S+) (\[.*\])$", r"\1 {\\scriptsize \2}", text) for text in row]
            name = method.replace("_", r"\_")
            lines.append(" & ".join([name, f"{what}@{k}", *cells]) + r" \\")
        lines.append(r"\midrule" if what == "avg" else r"\bottomrule")
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def figure(run: config.Run, whole: pd.DataFrame):
    """A dot with its interval for every method and benchmark, small ticks for the base seeds."""
    import matplotlib.pyplot as plt

    table = whole[whole["subset"] == "all"]
    methods, benchmarks = list(table["method"].unique()), list(table["benchmark"].unique())
    fig, axes = plt.subplots(
        1,
        len(benchmarks),
        figsize=(2.5 * len(benchmarks) + 1.2, 0.34 * len(methods) + 1.3),
        sharey=True,
        squeeze=False,
    )
    for axis, benchmark in zip(axes[0], benchmarks, strict=True):
        rows = table[table["benchmark"] == benchmark].set_index("method")
        for y, method in enumerate(methods):
            row = rows.loc[method]
            if not row["run"]:
                axis.text(50, y, MISSING, va="center", ha="center", fontsize=7, color="grey")
                continue
            color = COLORS.get(method, _OTHER_COLOR)
            value, low, high = (100 * row[f"avg_{c}"] for c in ("value", "low", "high"))
            axis.plot([low, high], [y, y], color=color, lw=3, alpha=0.45, solid_capstyle="butt")
            marker = "D" if method == "trd" else "o"
            axis.plot(value, y, marker, color=color, ms=6, mec="black", mew=0.5)
            axis.plot(
                100 * np.array(row["avg_by_seed"]),
                [y] * len(row["avg_by_seed"]),
                "|",
                color="black",
                ms=6,
                mew=0.8,
            )
        if rows.loc["base", "run"]:
            base = rows.loc["base"]
            axis.axvspan(100 * base["avg_low"], 100 * base["avg_high"], color="grey", alpha=0.15)
        axis.set(title=benchmark, xlim=(0, 100))
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(methods)), methods)
    axes[0][0].invert_yaxis()
    k = run.settings.evaluation.sampling.samples
    fig.supxlabel(f"avg@{k} (%), {run.mode.upper()}, scale {run.scale}", fontsize=10)
    fig.tight_layout()
    return fig


def coverage_figure(run: config.Run, curves: pd.DataFrame):
    """pass@k against k with bands, the share of problems not solved on a log scale."""
    import matplotlib.pyplot as plt

    benchmarks = list(run.settings.data.benchmarks)
    size = (2.5 * len(benchmarks) + 2.2, 3.2)
    fig, axes = plt.subplots(1, len(benchmarks), figsize=size, sharey=True, squeeze=False)
    floor = 0.5 / max(part.problems for part in run.settings.data.benchmarks.values())
    marks = {name: "os^vDPX*<>hp"[i % 12] for i, name in enumerate(row_names(run))}
    for axis, benchmark in zip(axes[0], benchmarks, strict=True):
        for method, rows in curves[curves["benchmark"] == benchmark].groupby("method", sort=False):
            if method == "base_again":
                continue
            color = COLORS.get(method, _OTHER_COLOR)
            missed, low, high = (1 - rows[c].to_numpy() for c in ("value", "low", "high"))
            ends = (np.maximum(high, floor), np.maximum(low, floor))
            axis.fill_between(rows["k"], *ends, color=color, alpha=0.15, lw=0)
            axis.plot(
                rows["k"], np.maximum(missed, floor), color=color, lw=1.5, label=method,
                marker=marks[method], ms=4, markevery=[0, 1, 3, 7, -1] if len(rows) > 8 else 1,
                mec="black", mew=0.4, zorder=4 if method == "trd" else 3,
            )  # fmt: skip
        axis.set(title=benchmark, xlabel="k", xscale="log", yscale="log")
        ticks = [k for k in (1, 2, 4, 8, 16) if k <= run.settings.evaluation.sampling.samples]
        axis.set_xticks(ticks, ticks, minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    low, high = axes[0][0].get_ylim()
    if high < 10 * low:  # within a decade a log axis shows hardly a number
        axes[0][0].yaxis.set_major_locator(plt.MaxNLocator(5))
        axes[0][0].yaxis.set_major_formatter("{x:g}")
    axes[0][0].set_ylabel("1 - pass@k (below: better)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.tight_layout(rect=(0, 0, 1 - 1.7 / size[0], 1))
    fig.legend(handles, labels, loc="center right", fontsize=8)
    return fig


def paths(run: config.Run) -> dict[str, Path]:
    """Where the tables and the figures of this scale, task and mode go, by what they are."""
    name, results = f"{run.mode}_{run.task}_{run.scale}", run.results
    found = {t: results / "tables" / f"{name}.{t}" for t in ("md", "csv", "tex")}
    return found | {
        "png": results / "figures" / f"{name}.png",
        "summary": results / "summary" / f"{name}.json",  # one number a method, for `dvc exp show`
        "cost_csv": results / "cost" / f"{name}.csv",  # seconds differ from run to run
        "coverage_csv": results / "tables" / f"coverage_{name}.csv",
        "coverage_png": results / "figures" / f"coverage_{name}.png",
    }


def summary(table: pd.DataFrame) -> dict[str, float]:
    """avg@k of every method that was run, in percent, mean over benchmarks: what DVC compares."""
    there = table[table["run"]]
    return there.groupby("method", sort=True)["avg_value"].mean().mul(100).round(2).to_dict()


def write(run: config.Run, table: pd.DataFrame) -> list[Path]:
    """Write md, csv, tex, a summary for DVC, coverage and cost as csv, the figures; each whole."""
    import matplotlib.pyplot as plt

    target, curves = paths(run), coverage(run)
    data.write_text(target["md"], markdown(run, table))
    data.write_text(target["csv"], table.to_csv(index=False, lineterminator="\n"))
    data.write_text(target["tex"], latex(run, table))
    data.write_json(target["summary"], summary(table))
    data.write_text(target["coverage_csv"], curves.to_csv(index=False, lineterminator="\n"))
    data.write_text(target["cost_csv"], cost(run).to_csv(index=False, lineterminator="\n"))
    drawn = {"png": figure(run, table), "coverage_png": coverage_figure(run, curves)}
    for what, fig in drawn.items():
        data.write_whole(target[what], lambda p, f=fig: f.savefig(p, dpi=130, format="png"))
        plt.close(fig)
    return list(target.values())


# ---------------------------------------------------------------------------------------- README


# What the front page shows; the whole table has every row, and every base seed.
_HEADLINE = ("base", "teacher", "forward_kl", "reverse_kl", "trd", "sft", "off_policy")


def headline(run: config.Run) -> str:
    """avg@k of one mode, and what trd gains over the best y_o method, sft and off_policy."""
    table = pd.read_csv(paths(run)["csv"])
    table = table[table["subset"] == "all"]
    k = run.settings.evaluation.sampling.samples
    grid = _grid(table[table["method"].isin(_HEADLINE)], lambda r: _cell(r, "avg"))
    trd = table[table["method"] == "trd"]
    for name, what in ((BASELINE, "to_best"), ("sft", "to_sft"), ("off_policy", "to_off_policy")):
        if len(trd):
            gap = _grid(trd, lambda r, w=what: _cell(r, w, signed=True))
            grid.loc[f"**trd minus {name}**"] = gap.loc["trd"]
            if name == BASELINE:
                seeds = _grid(trd, lambda r: _seeds(r, "to_best"))
                grid.loc[f"... {name}, by base seed"] = seeds.loc["trd"]
    same = trd["trajectory_like_reference"].dropna()
    note = f" {same.iloc[0]:.1%} of the rewrites are the reference solution word for word."
    what = run.mode.upper() if run.task == "math" else f"{run.mode.upper()}, {run.task}"
    title = f"**{what}**, avg@{k}. {_how(table, run)}{note if len(same) else ''}"
    title += (
        " `*`: marked after Holm's correction. All rows, `base_again` and the other y_o methods "
    )
    title += f"among them: [the whole table]({paths(run)['md'].relative_to(config.root())})."
    return f"{title}\n\n{grid.to_markdown()}\n"


def update_readme(path: Path, runs: list[config.Run]) -> bool:
    """Put the headline tables between the README's markers; True if that changed the file."""
    old = path.read_text(encoding="utf-8")
    if not _README_BLOCK.search(old):
        raise ValueError(f"{path.name} has no <!-- headline --> ... <!-- /headline --> block")
    text = "\n".join(headline(run) for run in runs)
    new = _README_BLOCK.sub(lambda m: f"{m[1]}{text}{m[2]}", old)
    if new != old:
        data.write_text(path, new)
    return new != old
