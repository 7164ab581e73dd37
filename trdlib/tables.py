"""From metrics files to tables (Markdown, CSV, LaTeX), the figure, and the README's headline.

Every cell carries its interval and its seeds; differences are paired by problem; the base stands
twice, as the table's own noise floor. What has not been run is shown as missing, never as a
number. The best token-level baseline is picked per benchmark by its test score, which favours the
baselines.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pandas as pd

from trdlib import config, data, evaluate

MISSING = "not run"
BASELINE = "best y_o method"
_COLORS = {
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
_README_BLOCK = re.compile(r"(<!-- headline -->\n).*?(<!-- /headline -->)", re.S)


def _difference(run: config.Run, ours: dict, theirs: dict) -> dict:
    """avg@k, ours minus theirs, paired by problem: the estimate, and the value by base seed."""
    same = ("problems", "seeds", "k")
    if any(ours[key] != theirs[key] for key in same):
        raise ValueError("paired by problem: both runs need the same problems, seeds and samples")
    gap = (np.array(ours["correct"]) - np.array(theirs["correct"])) / ours["k"]
    how = run.settings.evaluation
    found = evaluate.bootstrap(gap, resamples=how.resamples, confidence=how.confidence)
    return {**found._asdict(), "by_seed": gap.mean(axis=1).tolist()}


def row_names(run: config.Run) -> list[str]:
    """The rows of a mode's table, from top to bottom."""
    teacher = ["teacher"] if run.mode == "opd" else []
    return ["base", "base_again", *teacher, *run.matrix.methods]


def _metrics(run: config.Run, method: str) -> dict | None:
    mode = "none" if method in config.REFERENCES else run.mode
    path = config.Run(run.scale, run.task, mode, method, run.all_settings).metrics
    return data.read_json(path) if path.is_file() else None


def collect(run: config.Run) -> pd.DataFrame:
    """One row per (method, benchmark), in the order of the table.

    Columns: run (was it?), k, n, and for avg and pass the value, low, high and by_seed; the paired
    differences of avg to `base` and to the best y_o method; mean_tokens, unfinished,
    learning_rate, trajectory_accuracy. Fractions, NaN or None where there is nothing.
    """
    metrics = {name: _metrics(run, name) for name in row_names(run)}
    there = {name: m for name, m in metrics.items() if m}
    token_level = [
        name
        for name in there
        if name in run.settings.methods and run.settings.methods[name].trajectory == "y_o"
    ]
    records = []
    for benchmark in run.settings.data.benchmarks:
        cells = {name: m["benchmarks"][benchmark] for name, m in there.items()}
        best = max(token_level, key=lambda n: cells[n]["avg_at_k"]["value"], default=None)
        for name in metrics:
            record = {"method": name, "benchmark": benchmark, "run": name in there}
            if name in there:
                cell, training = cells[name], there[name].get("training", {})
                record |= {key: cell[key] for key in ("k", "n", "mean_tokens", "unfinished")}
                for metric in ("avg", "pass"):
                    for key, value in cell[f"{metric}_at_k"].items():
                        record[f"{metric}_{key}"] = value
                    record[f"{metric}_by_seed"] = cell[f"{metric}_at_k_by_seed"]
                against = {"base": "base", "best": best, "sft": "sft", "off_policy": "off_policy"}
                for label, other in against.items():
                    if other in cells and other != name:
                        for key, value in _difference(run, cell, cells[other]).items():
                            record[f"to_{label}_{key}"] = value
                record["best"] = best
                record["learning_rate"] = training.get("chosen")
                for key in ("trajectory_accuracy", "trajectory_like_reference"):
                    record[key] = training.get(key)
            records.append(record)
    ends = ("value", "low", "high", "by_seed")
    estimates = ("avg", "pass", "to_base", "to_best", "to_sft", "to_off_policy")
    wanted = ["method", "benchmark", "run", "k", "n"]
    wanted += [f"{estimate}_{end}" for estimate in estimates for end in ends]
    wanted += ["best", "mean_tokens", "unfinished", "learning_rate", "trajectory_accuracy"]
    wanted += ["trajectory_like_reference"]
    return pd.DataFrame(records, columns=wanted)


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
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


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


def markdown(run: config.Run, table: pd.DataFrame) -> str:
    """The whole report of one mode and scale, as Markdown."""
    k = run.settings.evaluation.sampling.samples
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
        + " `base_again` is the base model sampled again: its difference to `base` is noise.",
        f"## avg@{k}",
        _grid(table, lambda r: _cell(r, "avg")).to_markdown(),
        f"## pass@{k}",
        _grid(table, lambda r: _cell(r, "pass")).to_markdown(),
        f"## avg@{k}: difference to base, paired by problem",
        _grid(table, lambda r: _cell(r, "to_base", signed=True)).to_markdown(),
        f"## avg@{k}: difference to the {BASELINE}, paired by problem",
        f"The best token-level baseline by test score ({names or MISSING}). Intervals are for one "
        "comparison; with many cells some will exclude zero by chance.",
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
    ]
    return "\n\n".join(parts) + "\n"


def latex(run: config.Run, table: pd.DataFrame) -> str:
    """avg@k and pass@k with intervals, as a booktabs tabular."""
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


def figure(run: config.Run, table: pd.DataFrame):
    """A dot with its interval for every method and benchmark, small ticks for the base seeds."""
    import matplotlib.pyplot as plt

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
            color = _COLORS.get(method, "#8c564b")
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


def paths(run: config.Run) -> dict[str, Path]:
    """Where the tables and the figure of this scale, task and mode go, by file type."""
    name, results = f"{run.mode}_{run.task}_{run.scale}", config.root() / "results"
    folder = {"png": results / "figures"}
    return {
        t: folder.get(t, results / "tables") / f"{name}.{t}" for t in ("md", "csv", "tex", "png")
    }


def write(run: config.Run, table: pd.DataFrame) -> list[Path]:
    """Write the table as md, csv and tex, and the figure as png; each whole or not at all."""
    import matplotlib.pyplot as plt

    target = paths(run)
    data.write_text(target["md"], markdown(run, table))
    data.write_text(target["csv"], table.to_csv(index=False, lineterminator="\n"))
    data.write_text(target["tex"], latex(run, table))
    fig = figure(run, table)
    data.write_whole(target["png"], lambda p: fig.savefig(p, dpi=130, format="png"))
    plt.close(fig)
    return list(target.values())


# ---------------------------------------------------------------------------------------- README


def headline(run: config.Run) -> str:
    """avg@k of one mode, and what trd gains over the best y_o method, sft and off_policy."""
    table = pd.read_csv(paths(run)["csv"])
    k = run.settings.evaluation.sampling.samples
    grid = _grid(table, lambda r: _cell(r, "avg"))
    trd = table[table["method"] == "trd"]
    for name, what in ((BASELINE, "to_best"), ("sft", "to_sft"), ("off_policy", "to_off_policy")):
        if len(trd):
            gap = _grid(trd, lambda r, w=what: _cell(r, w, signed=True))
            grid.loc[f"**trd minus {name}**"] = gap.loc["trd"]
            grid.loc["... by base seed"] = _grid(trd, lambda r, w=what: _seeds(r, w)).loc["trd"]
            grid = grid.rename(index={"... by base seed": f"... {name}, by base seed"})
    same = trd["trajectory_like_reference"].dropna()
    note = f" {same.iloc[0]:.1%} of the rewrites are the reference solution word for word."
    title = f"**{run.mode.upper()}**, avg@{k}. {_how(table, run)}{note if len(same) else ''}"
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
