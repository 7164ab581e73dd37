"""From metrics files to tables: Markdown, CSV, LaTeX, and the README's headline.

Differences are paired by problem and marked by `stats.marked`; the base stands twice, as the noise
floor. What has not been run is shown as missing. The best token-level baseline is picked per
benchmark by its test score, which favours it. Notebook 7 draws the figures.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from trdlib import stats, store, tasks
from trdlib.analysis import coverage as counting
from trdlib.analysis.show import DASH, MISSING, interval
from trdlib.run import Run
from trdlib.settings import REFERENCES, root

BASELINE, PAIRED = "best y_o method", "paired by problem"
_OTHERS = ("base", "best", "sft", "off_policy", "parent")  # whom a row is compared with
_ENDS = ("value", "low", "high", "by_seed")
_COLUMNS = [
    *("method", "benchmark", "run", "subset", "parent", "k", "n"),
    *(f"{metric}_{end}" for metric in ("avg", "pass") for end in _ENDS),
    *(f"to_{other}_{end}" for other in _OTHERS for end in (*_ENDS, "p", "adjusted", "marked")),
    *("best", "mean_tokens", "unfinished", "learning_rate", "trajectory_accuracy"),
    *("trajectory_like_reference", "rows"),
]  # fmt: skip


def row_names(run: Run, *, subsets: bool = False) -> list[str]:
    """The rows of a mode's table, from top to bottom; or those of its subset ablation."""
    chosen = [m for m in run.methods if (run.settings.methods[m].subset != "all") == subsets]
    teacher = ["teacher"] if run.mode == "opd" else []
    return chosen if subsets else ["base", "base_again", *teacher, *chosen]


def _metrics(run: Run, names: list[str]) -> dict[str, dict]:
    """The metrics files of those of the rows that were run, in their order."""
    paths = {n: run.with_("none" if n in REFERENCES else run.mode, n).metrics for n in names}
    return {name: store.read_json(path) for name, path in paths.items() if path.is_file()}


def _compare(ours: dict, theirs: dict, **how) -> stats.Comparison:
    """avg@k, ours minus theirs, paired by problem; how: as in `stats.compare`."""
    if any(ours[key] != theirs[key] for key in ("problems", "seeds", "k")):
        raise ValueError("paired by problem: both runs need the same problems, seeds and samples")
    return stats.compare(*(np.array(c["correct"]) / c["k"] for c in (ours, theirs)), **how)


def collect(run: Run) -> pd.DataFrame:
    """One row per (method, benchmark), in the order of the table; columns: _COLUMNS.

    run: was it? to_...: the paired difference of avg to `base`, the best y_o method, `sft`,
    `off_policy` and the parent (a subset's method on all rows); p is adjusted (Holm) over the rows
    of the main table or of the ablation. rows: mean of base seeds. Fractions, NaN or None if none.
    """
    names, recipes = row_names(run), run.settings.methods
    about = {name: {"subset": "all", "parent": None} for name in names}
    for name in row_names(run, subsets=True):
        whole = recipes[name].model_copy(update={"subset": "all"})
        parent = next((m for m in names if recipes.get(m) == whole), None)
        about[name] = {"subset": recipes[name].subset, "parent": parent}
    there = _metrics(run, list(about))
    on_y_o = [m for m in names if m in there and m in recipes and recipes[m].trajectory == "y_o"]
    records, how = [], run.settings.evaluation.interval
    for benchmark in tasks.of(run).benchmarks:
        cells = {name: metrics["benchmarks"][benchmark] for name, metrics in there.items()}
        best = max(on_y_o, key=lambda m: cells[m]["avg_at_k"]["value"], default=None)
        for name in about:
            record = {"method": name, "benchmark": benchmark, "run": name in there, **about[name]}
            if name in there:
                cell, training = cells[name], there[name].get("training", {})
                record |= cell | training | {"best": best, "learning_rate": training.get("chosen")}
                for metric in ("avg", "pass"):
                    ends = cell[f"{metric}_at_k"] | {"by_seed": cell[f"{metric}_at_k_by_seed"]}
                    record |= {f"{metric}_{end}": value for end, value in ends.items()}
                record["rows"] = np.mean(training.get("rows_by_seed", np.nan))
                for label in _OTHERS:
                    other = {"best": best, "parent": record["parent"]}.get(label, label)
                    if other in cells and other != name:
                        found = _compare(cell, cells[other], **how)._asdict()
                        record |= {f"to_{label}_{end}": value for end, value in found.items()}
            records.append(record)
    table = pd.DataFrame(records, columns=_COLUMNS)
    for to in (f"to_{other}" for other in _OTHERS):
        low, high, p = (table[f"{to}_{end}"].astype(float) for end in ("low", "high", "p"))
        adjusted = p.groupby(table["subset"] == "all").transform(stats.holm)
        table[f"{to}_adjusted"], table[f"{to}_marked"] = adjusted, stats.marked(low, high, adjusted)
    return table


def _cells(run: Run) -> dict[tuple[str, str], dict]:
    """(method, benchmark) -> what was measured, of the main rows that were run."""
    there, benchmarks = _metrics(run, row_names(run)).items(), tasks.of(run).benchmarks
    return {(name, b): metrics["benchmarks"][b] for name, metrics in there for b in benchmarks}


def coverage(run: Run) -> pd.DataFrame:
    """pass@k, k = 1 ... samples: one row per (method, benchmark, k) with value, low, high."""
    how, rows = run.settings.evaluation.interval, []
    for key, measured in _cells(run).items():
        curve = counting.pass_curve(measured["correct"], measured["k"], **how)
        rows += [(*key, k, *found) for k, found in enumerate(curve, 1)]
    return pd.DataFrame(rows, columns=["method", "benchmark", "k", "value", "low", "high"])


def frontier(run: Run) -> pd.DataFrame:
    """`coverage.frontier` as text, `+3 / -1`: methods, and what chance does, by benchmarks; empty
    without both evaluations of the base."""
    cells, grid, chance = _cells(run), {}, {}
    for (name, b), cell in cells.items():
        bases = [cells.get((base, b)) for base in ("base", "base_again")]
        if name != "base" and all(bases):
            found = counting.frontier(*(c["correct"] for c in (*bases, cell)), cell["k"])
            star = r"\*" if max(found.gained, found.lost) > found.chance_high else ""
            grid.setdefault(b, {})[name] = f"+{found.gained} / -{found.lost}{star}"
            mean = f"+/- {found.chance_gained:.1f} (97.5 %: {found.chance_high:.0f})"
            chance[b] = {"chance": mean, "never solved by base": str(found.unsolved)}
    return pd.DataFrame({b: grid[b] | chance[b] for b in grid}).rename_axis("method")


def _noise(run: Run) -> str:
    """What is said of `base_again`: how often the rule marks the base compared with itself."""
    text = "`base_again` is the base model sampled again: its difference to `base` is noise."
    there = [metrics["benchmarks"] for metrics in _metrics(run, ["base", "base_again"]).values()]
    if len(there) < 2:
        return text
    counts = [{benchmark: cell["correct"] for benchmark, cell in m.items()} for m in there]
    k, how = run.settings.evaluation.sampling.samples, run.settings.evaluation.interval
    null = counting.null_check(*counts, k, simulations=400, **how | {"resamples": 1000})
    return (
        f"{text} When the base is compared with itself, dealt anew from its stored samples, the "
        f"rule behind the stars marks anything in {null:.1%} of cases."
    )


def cell(row, what: str) -> str:
    """An interval or the base seeds' values in percent; of a difference with its sign and star."""
    signed = what.startswith("to_")
    if not row["run"]:
        return MISSING
    if what.endswith("by_seed"):
        form, values = "+.1f" if signed else ".1f", row[what]
        return " / ".join(f"{100 * v:{form}}" for v in values) if isinstance(values, list) else DASH
    ends = (row[f"{what}_{end}"] for end in _ENDS[:3])
    return interval(*ends, signed=signed, star=signed and row[f"{what}_marked"])


def _grid(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Methods by benchmarks, in the order of the table."""
    cells = [cell(row, what) for _, row in table.iterrows()]
    cells = pd.Series(cells, table.set_index(["method", "benchmark"]).index, dtype=object)
    return cells.unstack(sort=False).rename_axis(columns=None)


def _section(title: str, table: pd.DataFrame, what: str, text: str = "") -> list[str]:
    """A grid under its title; of differences, what the stars mean and how many there are."""
    if f"{what}_marked" in table:
        text += (
            "`*`: the interval excludes zero, and so does a t-test over problems at "
            f"{stats.MARK_LEVEL:.0%} after Holm's correction for the {table[f'{what}_p'].count()} "
            f"comparisons of this table; {table[f'{what}_marked'].sum()} are marked."
        )
    return [part for part in (f"## {title}", text, _grid(table, what).to_markdown()) if part]


def _how(table: pd.DataFrame, run: Run) -> str:
    done, how = table[table["run"]], run.settings.evaluation
    if done.empty:
        return "Nothing has been run yet."
    problems = sorted(done["n"].astype(int).unique())
    return (
        f"Percent, mean of {len(run.settings.seeds)} base seeds, [{how.confidence:.0%} interval "
        f"from resampling {' or '.join(map(str, problems))} problems], {int(done['k'].iloc[0])} "
        f"samples a problem at temperature {how.sampling.temperature:g}. "
        "An interval takes the base seeds as given: where they disagree by more, look at them."
    )


def _training(table: pd.DataFrame) -> str:
    """What each method trained on, and what its samples look like."""
    columns = ["learning_rate", "trajectory_accuracy", "trajectory_like_reference", "mean_tokens"]
    means = table.groupby("method", sort=False)[[*columns, "unfinished"]].mean()
    titles = ["learning rate", "trajectory right %", "like y* %", "mean tokens", "unfinished %"]
    means = (means * [1, 100, 100, 1, 100]).set_axis(titles, axis=1)
    means = means.astype(object).where(means.notna(), None)
    forms = ("", "g", ".1f", ".1f", ".1f", ".2f")
    return means.to_markdown(floatfmt=forms, missingval=DASH, colalign=["left"] * len(forms))


def _ablation(run: Run, table: pd.DataFrame) -> list[str]:
    """The subset ablation: which rows are worth training on?"""
    subsets, k = table[table["subset"] != "all"], run.settings.evaluation.sampling.samples
    if subsets.empty:
        return []
    names = [m for parent, rows in subsets.groupby("parent", sort=False)
             for m in (parent, *rows["method"].unique())]  # fmt: skip
    both = table.set_index("method").loc[names].reset_index()
    rows = both.groupby("method")["rows"].first().map("{:.0f}".format, na_action="ignore")
    grid = _grid(both, "avg")
    grid.insert(0, "rows", rows.fillna(MISSING))
    return [
        f"## avg@{k}: subset ablation",
        "Trained on all rows, or on those whose attempt failed, passed, or failed and was mended "
        "(rows: mean over base seeds). Fewer rows also means fewer optimizer steps: a subset that "
        "does worse may only be smaller.",
        grid.to_markdown(),
        *_section(f"avg@{k}: subset minus all rows, {PAIRED}", subsets, "to_parent"),
    ]


def markdown(run: Run, whole: pd.DataFrame) -> str:
    """The whole report of one mode and scale, as Markdown."""
    table, k = whole[whole["subset"] == "all"], run.settings.evaluation.sampling.samples
    best = table.dropna(subset="best").drop_duplicates("benchmark")
    names = "; ".join(map(": ".join, best[["benchmark", "best"]].to_numpy()))
    to_best = f"avg@{k}: difference to the {BASELINE}"
    picked = f"The best token-level baseline by test score ({names or MISSING}). "
    parts = [
        f"# {run.mode.upper()}, scale {run.scale}",
        f"{_how(table, run)} {_noise(run)}",
        *_section(f"avg@{k}", table, "avg"),
        *_section(f"pass@{k}", table, "pass"),
        *_section(f"avg@{k}: difference to base, {PAIRED}", table, "to_base"),
        *_section(f"{to_best}, {PAIRED}", table, "to_best", picked),
        *_section(f"{to_best}, by base seed", table, "to_best_by_seed"),
        *_section(f"avg@{k} by base seed", table, "avg_by_seed"),
        "## Training, and what the samples look like",
        "The learning rate is chosen per method on the validation set from "
        f"{', '.join(f'{r:g}' for r in run.settings.training.learning_rates)}. `trajectory right` "
        "is the accuracy of the text that the method trained on, `like y*` the share of it that is "
        "the reference solution, word for word. Tokens and unfinished are means over the "
        "benchmarks.",
        _training(table),
        *_ablation(run, whole),
    ]
    if len(grid := frontier(run)):
        parts += [
            f"## Frontier: problems won and lost in {k} samples",
            f"`+`: never solved by the base in {k} samples, but by the method; `-`: the reverse; "
            "all base seeds together. `chance`: the mean of what the base would win and lose "
            "against itself, sampled again; `*`: more than its 97.5 % point, not corrected for the "
            "number of cells.",
            grid.to_markdown(),
        ]
    return "\n\n".join(parts) + "\n"


def latex(run: Run, whole: pd.DataFrame) -> str:
    """avg@k and pass@k with intervals, as a booktabs tabular."""
    table, k = whole[whole["subset"] == "all"], run.settings.evaluation.sampling.samples
    grids = {f"{what}@{k}": _grid(table, what) for what in ("avg", "pass")}
    both = pd.concat(grids, names=["metric"]).swaplevel().reset_index()
    text = both.to_latex(index=False, escape=True, column_format="ll" + "r" * len(both.columns[2:]))
    text = re.sub(r"(?<=\d) (\[.*?\])", r" {\\scriptsize \1}", text)
    return f"% {run.mode}, scale {run.scale}. {_how(table, run)}\n{text}"


def paths(run: Run) -> dict[str, Path]:
    """Where the tables and the figures of this scale and mode go, by what they are."""
    files = {
        **{kind: f"tables/{{}}/{{}}.{kind}" for kind in ("md", "csv", "tex")},
        "summary": "summary/{}/{}.json",  # avg@k in percent, for `dvc exp show`
        "cost_csv": "cost/{}/{}.csv",  # seconds differ from run to run
        "coverage_csv": "tables/{}/coverage_{}.csv",
        "png": "figures/{}/{}.png",
        "coverage_png": "figures/{}/coverage_{}.png",
    }
    return {what: run.results / file.format(run.scale, run.mode) for what, file in files.items()}


def write(run: Run, table: pd.DataFrame, curves: pd.DataFrame) -> list[Path]:
    """What `collect` and `coverage` found as md, csv and tex, and one number a method for DVC."""
    target, how = paths(run), {"index": False, "lineterminator": "\n"}
    means = table[table["run"]].groupby("method")["avg_value"].mean().mul(100).round(2)
    texts = {"md": markdown(run, table), "csv": table.to_csv(**how), "tex": latex(run, table)}
    texts["coverage_csv"] = curves.to_csv(**how)
    written = [store.write_text(target[kind], text) for kind, text in texts.items()]
    return [*written, store.write_json(target["summary"], means.to_dict())]


def headline(run: Run) -> str:
    """avg@k of one mode, and what trd gains over the best y_o method, sft and off_policy."""
    table = collect(run).query("subset == 'all'")
    shown = ["base", "teacher", "forward_kl", "reverse_kl", "trd", "sft", "sft_refined"]
    grid = _grid(table[table["method"].isin([*shown, "off_policy"])], "avg")
    trd, k, note = table.query("method == 'trd'"), run.settings.evaluation.sampling.samples, ""
    gains = {f"**trd minus {BASELINE}**": "to_best"}
    gains[f"... {BASELINE}, by base seed"] = "to_best_by_seed"
    gains |= {f"**trd minus {name}**": f"to_{name}" for name in ("sft", "off_policy")}
    for label, what in gains.items() if len(trd) else ():
        grid.loc[label] = _grid(trd, what).loc["trd"]
    for same in trd["trajectory_like_reference"].dropna()[:1]:
        note = f" {same:.1%} of the rewrites are the reference solution word for word."
    return (
        f"**{run.mode.upper()}, scale {run.scale}**, avg@{k}. {_how(table, run)}{note} `*`: marked "
        "after Holm's correction. All rows, `base_again` and the other y_o methods among them: "
        f"[the whole table]({paths(run)['md'].relative_to(root())}).\n\n{grid.to_markdown()}\n"
    )


def update_readme(path: Path, run: Run) -> bool:
    """Put the headline table between the README's markers; True if that changed the file."""
    old, block = path.read_text(encoding="utf-8"), r"(<!-- headline -->\n).*?(<!-- /headline -->)"
    new, found = re.subn(block, lambda m: m[1] + headline(run) + m[2], old, count=1, flags=re.S)
    if not found:
        raise ValueError(f"{path.name} has no <!-- headline --> ... <!-- /headline --> block")
    if new != old:
        store.write_text(path, new)
    return new != old
