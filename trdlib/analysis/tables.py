"""From metrics files to tables, and the README's headline. Notebook 7 writes the page.

A paired difference has two intervals (these models, new models) and belongs to a named family, the
table in which it stands; a star is `compare.marked` within that. What was not run is missing."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd

from trdlib import store, tasks
from trdlib.analysis import compare
from trdlib.analysis.measure import rates
from trdlib.analysis.show import DASH, MISSING, interval
from trdlib.run import Run
from trdlib.settings import REFERENCES, read_yaml, root

HEADLINE = ("base", "teacher", "reverse_kl", "forward_kl", "trd", "sft_refined", "off_policy")
BEST, BEST_ROUNDS = "best y_o method", "best y_o method with rounds"
# The families, by the titles of their tables.
DECISIVE, ROUNDS, SUBSETS = "TRD and its controls", "Fresh rollouts", "Subsets of the rows"
TO_TRD, TO_BASE = "Every other method minus trd", "Every method minus base"
ITSELF = "A model against itself"
_ENDS = ("value", "low", "high", "by_seed")
_COLUMNS = ["method", "temperature", "benchmark", "run", "k", "n", "mean_tokens", "unfinished"]
_COLUMNS += [f"{metric}_{end}" for metric in ("avg", "pass") for end in _ENDS]
_COLUMNS += ["learning_rate", "at_edge", "trajectory_accuracy", "trajectory_like_reference", "rows"]
_PAIR = ["family", "ours", "against", "theirs", "benchmark", "temperature"]
_SAID = read_yaml(Path(__file__).with_name("tables.yaml"))
_SHARES = ["share_seeds", "share_problems", "share_rest"]


def row_names(run: Run) -> list[str]:
    """The rows of a mode's tables: those of the headline, then the others."""
    names = ["base", "base_again", *(["teacher"] if run.mode == "opd" else []), *run.methods]
    return [m for m in HEADLINE if m in names] + [m for m in names if m not in HEADLINE]


def _places(run: Run) -> list[tuple[str, float]]:
    """(benchmark, temperature), the primary temperature first."""
    return [(b, t) for t in run.settings.evaluation.temperatures for b in tasks.of(run).benchmarks]


def measured(run: Run) -> dict[str, dict]:
    """The metrics file of each row, with its cells by (benchmark, temperature); {} where not run.
    If every rewrite is the reference, sft and sft_refined are one experiment: then without sft."""
    found, budgets = {}, {*map(str, run.settings.evaluation.budgets)}
    for name in row_names(run):
        path = run.with_("none" if name in REFERENCES else run.mode, name).metrics
        mine = found[name] = store.read_json(path, {})
        for benchmark, t in _places(run) if mine else ():
            cell = mine["benchmarks"].get(f"{t:g}", {}).get(benchmark)
            if not (cell and budgets <= {*cell.get("at_budget", {})}):
                old = "they are of other settings, run notebook 5_evaluate again"
                raise ValueError(f"{name}: no metrics of {benchmark} at temperature {t:g}: {old}")
            mine[benchmark, t] = cell
    if found.get("sft_refined", {}).get("training", {}).get("trajectory_like_reference") == 1:
        found.pop("sft", None)
    return found


def collect(run: Run) -> pd.DataFrame:
    """Accuracies by method, temperature and benchmark; fractions (columns: docs/results.md)."""
    records = []
    for (name, mine), place in itertools.product(measured(run).items(), _places(run)):
        record = {"method": name, "temperature": place[1], "benchmark": place[0], "run": bool(mine)}
        if mine:
            about = mine.get("training", {})
            grid, rate = about.get("grid", []), about.get("chosen")
            record |= about | mine[place] | {"learning_rate": rate}
            record["at_edge"] = rate in (min(grid), max(grid)) if len(grid) > 1 else None
            record["rows"] = np.mean(about.get("rows_by_seed", np.nan))
        records.append(record)
    table = pd.json_normalize(records, sep="_")
    return table.rename(columns=lambda c: c.replace("_at_k_", "_")).reindex(columns=_COLUMNS)


def budgets(run: Run) -> pd.DataFrame:
    """avg@k, had what is longer than a budget of tokens been cut there; of what was run."""
    budgets = sorted(run.settings.evaluation.budgets)
    rows = itertools.product(measured(run).items(), _places(run), budgets)
    records = [
        {"method": name, "temperature": t, "benchmark": benchmark, "budget": budget,
         **{end: mine[benchmark, t]["at_budget"][str(budget)][end] for end in _ENDS[:3]}}
        for (name, mine), (benchmark, t), budget in rows if mine
    ]  # fmt: skip
    return pd.DataFrame(records)


def families(run: Run) -> dict[str, list[tuple[str, str]]]:
    """{family: [(ours, against what)]}, of the rows that this mode has."""
    recipes, parents = run.settings.methods, {}  # of a variant: on all rows, in one round, once
    plain = {"subset": "all", "rounds": 1, "again": 0}
    for name, other in itertools.permutations(run.methods, 2):
        if recipes[other] == recipes[name].model_copy(update=plain):
            parents.setdefault(name, other)
    main, controls = [m for m in run.methods if m not in parents], ("sft_refined", "off_policy")
    variants = parents.items()
    found = {
        DECISIVE: [("trd", other) for other in (BEST, *controls)],
        ROUNDS: [("trd_rounds", BEST_ROUNDS), ("trd_rounds", "sft_refined_rounds"),
                 *(pair for pair in variants if recipes[pair[0]].rounds > 1)],
        TO_TRD: [(m, "trd") for m in main if m not in ("trd", *controls)],
        TO_BASE: [(m, "base") for m in main],
        SUBSETS: [pair for pair in variants if recipes[pair[0]].subset != "all"],
        ITSELF: [("base_again", "base"), *(p for p in variants if recipes[p[0]].again)],
    }  # fmt: skip
    known = {*row_names(run), BEST, BEST_ROUNDS}
    return {name: [p for p in pairs if known.issuperset(p)] for name, pairs in found.items()}


def _best(run: Run, found: dict, place: tuple[str, float], *, in_rounds: bool) -> str | None:
    """The method on all of y_o with the highest test score, which favours it, of those run."""
    plain, score = ("y_o", "all", 0, in_rounds), {}
    for name, one in ((name, run.settings.methods[name]) for name in run.methods):
        if (one.trajectory, one.subset, one.again, one.rounds > 1) == plain and found[name]:
            score[name] = found[name][place]["avg_at_k"]["value"]
    return max(score, key=score.get, default=None)


def _paired(ours: dict, theirs: dict) -> tuple[np.ndarray, ...]:
    """Their one seed (of a row that is sampled once) stands beside each of ours."""
    same = [ours[key] == theirs[key] for key in ("problems", "seeds", "k")]
    if not all(same[: 1 if theirs["seeds"] == ours["seeds"][:1] else 3]):
        raise ValueError("paired by problem: both runs need the same problems, seeds and samples")
    return np.broadcast_arrays(rates(ours), rates(theirs))


def differences(run: Run) -> pd.DataFrame:
    """Paired differences of what was run, in fractions (columns: docs/results.md). Each family is
    one for Holm; those of every method are of the primary temperature alone."""
    found, places, records = measured(run), _places(run), []
    best = {(kind, place): _best(run, found, place, in_rounds=kind == BEST_ROUNDS)
            for kind in (BEST, BEST_ROUNDS) for place in places}  # fmt: skip
    for name, pairs in families(run).items():
        pairs_of = {}
        for (ours, against), place in itertools.product(pairs, places):
            theirs = best.get((against, place), against)
            extra = name in (TO_TRD, TO_BASE) and place[1] != places[0][1]
            if found.get(ours) and found.get(theirs) and not extra:
                key = (name, ours, against, theirs, *place)
                pairs_of[key] = _paired(found[ours][place], found[theirs][place])
        compared = compare.family(list(pairs_of.values()), **run.settings.evaluation.interval)
        for key, one in zip(pairs_of, compared, strict=True):
            shares = dict(zip(_SHARES, one.pop("shares"), strict=True))
            records.append(dict(zip(_PAIR, key, strict=True)) | one | shares)
    return pd.DataFrame(records, columns=None if records else _PAIR)


def cell(row, what: str) -> str:
    """`avg` or `pass` of a row of `collect`, with its interval, in percent."""
    return interval(*(row[f"{what}_{end}"] for end in _ENDS[:3])) if row["run"] else MISSING


def gain(row, *, ends: bool = False) -> str:
    """A difference with its interval for new models, or that alone (ends), and its star."""
    how = {"signed": True, "star": row["marked"], "ends": ends}
    return interval(row["value"], row["new_low"], row["new_high"], **how)


def by_benchmark(rows: pd.DataFrame, text, index: str = "against") -> pd.DataFrame:
    """text(row) of each row, by benchmarks, in the order of the table."""
    cells = pd.Series([text(row) for row in rows.to_dict("records")], dtype=object)
    cells.index = pd.MultiIndex.from_frame(rows[[index, "benchmark"]])
    return cells.unstack(sort=False).rename_axis("method").rename_axis(columns=None).fillna(DASH)


def accuracies(table: pd.DataFrame, what: str = "avg") -> pd.DataFrame:
    """Methods by benchmarks, of one temperature, as text."""
    return by_benchmark(table, lambda row: cell(row, what), "method")


def side_by_side(found: pd.DataFrame) -> pd.DataFrame:
    """A family as text: a row per difference and benchmark, the temperatures beside each other."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in found.to_dict("records"):
        mine = rows.setdefault((f"{row['ours']} minus {row['against']}", row["benchmark"]), {})
        who = "" if row["theirs"] == row["against"] else f"{row['theirs']}: "
        at = f"T = {row['temperature']:g}: "
        mine[f"{at}these models"] = interval(*(row[end] for end in _ENDS[:3]), signed=True)
        mine[f"{at}new models"] = gain(row, ends=True)
        mine[f"{at}by base seed"] = who + _by_seed(row)
    names = pd.DataFrame(list(rows), columns=["difference", "benchmark"])
    return names.join(pd.DataFrame(list(rows.values()))).fillna(DASH)


def _by_seed(row) -> str:
    return " / ".join(f"{100 * value:+.0f}" for value in row["by_seed"])


def rule(found: pd.DataFrame) -> str:
    """What the stars of a family mean, how many there are, and what it could have seen."""
    seen = found.dropna(subset="p")
    if seen.empty:
        return _SAID["unknown"]
    words = {"seen": len(seen), "marked": seen["marked"].sum(), "shares": [*seen[_SHARES].mean()]}
    points = [*(100 * seen["mde"].quantile([0, 0.5, 1])).round(1)]
    return _SAID["rule"].format(compare=compare, points=points, **words)


def how(run: Run, table: pd.DataFrame) -> str:
    """How numbers are made, and what to know of the rewrites before rows are compared."""
    done, asked = table[table["run"]], run.settings.evaluation
    if done.empty:
        return _SAID["nothing"]
    problems = " or ".join(map(str, sorted(done["n"].astype(int).unique())))
    samples = " and ".join(f"{asked.at(t).samples} at {t:g}" for t in asked.temperatures)
    words = {"seeds": len(run.settings.seeds), "problems": problems, "samples": samples}
    text = _SAID["how"].format(confidence=asked.confidence, **words)
    if asked.base_samples:
        text += " " + _SAID["once"].format(asked.base_samples, asked.least(asked.temperatures[0]))
    on_rewrites = table["method"].isin(["trd", "sft_refined"])
    for same in table.loc[on_rewrites, "trajectory_like_reference"].dropna()[-1:]:
        text += f" {same:.2%} of the rewrites are the reference solution word for word"
        text += ": `sft_refined` is `sft`, one experiment, shown once." if same == 1 else "."
    return text


def paths(run: Run) -> dict[str, Path]:
    """Where the tables and the figures of this scale and mode go, by what they are."""
    place = f"{run.scale}/{run.mode}"
    return {what: run.results / file.format(place) for what, file in _SAID["files"].items()}


def write(run: Run, table: pd.DataFrame, found: pd.DataFrame, page: str) -> list[Path]:
    """What `collect` and `differences` found, and the page on it; one number a method for DVC."""
    target, how = paths(run), {"index": False, "lineterminator": "\n"}
    primary = table["temperature"] == run.settings.evaluation.temperatures[0]
    means = table[table["run"] & primary].groupby("method")["avg_value"].mean().mul(100).round(2)
    texts = {"md": page, "csv": table.to_csv(**how), "differences": found.to_csv(**how)}
    written = [store.write_text(target[kind], text) for kind, text in texts.items()]
    return [*written, store.write_json(target["summary"], means.to_dict())]


def headline(run: Run) -> str:
    """Accuracies of one mode at the primary temperature; what trd gains, at each of them."""
    table, found = collect(run), differences(run)
    primary, decisive = run.settings.evaluation.temperatures[0], found[found["family"] == DECISIVE]
    shown = table["method"].isin(HEADLINE) & (table["temperature"] == primary)
    grid = accuracies(table[shown])
    for (against, t), here in decisive.groupby(["against", "temperature"], sort=False):
        grid.loc[f"**trd minus {against}**, T = {t:g}"] = by_benchmark(here, gain).loc[against]
    seeds = by_benchmark(decisive[decisive["temperature"] == primary], _by_seed)
    for against in seeds.index[:2]:
        grid.loc[f"... {against}, by base seed"] = seeds.loc[against]
    words = {"mode": run.mode.upper(), "scale": run.scale, "primary": primary}
    words |= {"how": how(run, table), "rule": "" if decisive.empty else rule(decisive)}
    words |= {"page": paths(run)["md"].relative_to(root()), "grid": grid.to_markdown()}
    return _SAID["headline"].format(**words)


def update_readme(path: Path, run: Run) -> bool:
    """Put the headline table between the README's markers; True if that changed the file."""
    old, block = path.read_text(encoding="utf-8"), r"(<!-- headline -->\n).*?(<!-- /headline -->)"
    new, found = re.subn(block, lambda m: m[1] + headline(run) + m[2], old, count=1, flags=re.S)
    if not found:
        raise ValueError(f"{path.name} has no <!-- headline --> ... <!-- /headline --> block")
    if new != old:
        store.write_text(path, new)
    return new != old
