"""The metrics of the tables, from an evaluation's samples. What cannot be measured raises."""

import numpy as np
import pandas as pd

from trdlib import stats, store
from trdlib.analysis import compare
from trdlib.run import Run


def correct_counts(samples: pd.DataFrame) -> tuple[np.ndarray, int | list[int]]:
    """-> right samples of each problem, (seeds, problems), of how many: a number, or one each."""
    grouped = samples.groupby(["seed", "id"], sort=True)["correct"]
    sizes = grouped.size().unstack("id")
    if (sizes != sizes.iloc[0]).any(axis=None):
        raise ValueError("a problem must have the same number of samples with every seed")
    each = sizes.iloc[0].astype(int).tolist()
    return grouped.sum().unstack("id").to_numpy(), each if len({*each}) > 1 else each[0]


def rates(cell: dict) -> np.ndarray:
    """The share of right samples of each problem, (seeds, problems), of what `_metrics` found."""
    return np.array(cell["correct"]) / cell.get("of", cell["k"])


def _metrics(samples: pd.DataFrame, problems: pd.DataFrame, run: Run, temperature: float) -> dict:
    """One benchmark, plain JSON. correct: the right samples per seed and problem (by id), with `of`
    how many where problems differ: k is then their mean, and pass@k is of the least. at_budget:
    avg@k if responses longer than so many tokens had been cut, so not right."""
    how = run.settings.evaluation

    def estimate(values: np.ndarray) -> dict:  # the last digits of an interval differ by machine
        found = compare.accuracy(values, **how.interval)._asdict()
        return {name: round(value, 6) for name, value in found.items()}

    right, each = correct_counts(samples)
    least = how.least(temperature)
    passed = np.vectorize(lambda n, c: stats.pass_at_k(int(n), int(c), least))(each, right)
    within = {b: samples["correct"] & (samples["n_tokens"] <= b) for b in how.budgets}
    within = {b: correct_counts(samples.assign(correct=ok))[0] / each for b, ok in within.items()}
    found = {"at_budget": {str(b): estimate(at) for b, at in within.items()}} if within else {}
    found |= {"of": each} if isinstance(each, list) else {}
    return found | {
        "k": round(np.mean(each)), "n": right.shape[1], "seeds": sorted(run.seeds),
        "problems": store.content_hash(problems["problem"].tolist()),
        "avg_at_k": estimate(right / each), "pass_at_k": estimate(passed),
        "avg_at_k_by_seed": (right / each).mean(axis=1).tolist(),
        "pass_at_k_by_seed": passed.mean(axis=1).tolist(),
        "mean_tokens": float(samples["n_tokens"].mean()),
        "unfinished": float((~samples["finished"]).mean()),
        "correct": right.tolist(),
    }  # fmt: skip


def measure(runs: list[Run], sets: dict, samples: list[dict], choices: list) -> list[dict]:
    """The metrics of each run, {"benchmarks": {temperature: {benchmark: ...}}}, also on file. sets:
    {benchmark: problems}; choices: distill.Trained.choice of each, None if not trained."""
    found = []
    for run, at, choice in zip(runs, samples, choices, strict=True):
        metrics = {"run": {"scale": run.scale, "mode": run.mode, "method": run.method}}
        metrics["benchmarks"] = cells = {}
        for t, tables in at.items():
            cells[f"{t:g}"] = {n: _metrics(s, sets[n], run, t) for n, s in tables.items()}
        metrics |= {"training": choice} if choice else {}
        store.write_json(run.metrics, metrics)
        found.append(metrics)
    return found


def cost(run: Run) -> pd.DataFrame:
    """Tokens of all base seeds, by methods of one round on all rows: sampled for the texts trained
    on, their mean length, trained on, through student and teacher. NaN: not noted."""
    needs = {"y_o": ["y_o"], "y_r": ["y_o", "y_r"], "y_t": ["y_t"], "y_star": []}
    paths = {"y_o": run.attempts, "y_r": run.rewrites("y_r"), "y_t": run.rewrites("y_t")}
    tables, rows = {name: store.load(path) for name, path in paths.items()}, []
    lengths = {name: [np.nan] if t is None else t["n_tokens"] for name, t in tables.items()}
    plain = [name for name in run.methods if not run.settings.methods[name].is_variant]
    for one in (run.with_(method=name) for name in plain):
        texts = [lengths[name] for name in needs[one.recipe.trajectory.removesuffix("_cut")]]
        row = {"method": one.method, "run": one.choice.is_file()}
        row["generated"] = sum(map(np.sum, texts))
        row["mean_length"] = np.mean((texts or [np.nan])[-1])
        logs = [store.read_json(one.adapter(s) / "run.json", {}) for s in run.settings.seeds]
        for name in ("trained", "student_tokens", "teacher_tokens"):
            noted = "response_tokens" if name == "trained" else name
            row[name] = sum(log.get(noted, np.nan) for log in logs)
        rows.append(row)
    return pd.DataFrame(rows)
