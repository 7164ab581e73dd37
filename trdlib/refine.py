"""y_r: the teacher's rewrite of every attempt (paper section 1), and the other trajectories.

`refine` is the step that TRD adds. What the teacher sees is said in prompts.teacher_prompts.
`trajectory` says which text a method trains on: y_o, y_r, y_t, y_star, or y_o cut by an oracle;
`pairs` puts it into the contexts of student and teacher."""

from itertools import compress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from trdlib import models, prompts
from trdlib.rollout import Request, ask, table, tables_of_seeds
from trdlib.run import Run
from trdlib.settings import Method


def rows_of(problems: pd.DataFrame, table: pd.DataFrame) -> list[dict]:
    """The problem behind each row of a table of responses."""
    return problems.set_index("id", drop=False).loc[table["id"]].to_dict("records")


def refine(run: Run, task, problems: pd.DataFrame, y_o: pd.DataFrame) -> pd.DataFrame:
    """y_r for every attempt, right or wrong, of every base seed; read if it is there. problems: the
    train set. The rows and columns of y_o, plus y_o_correct and prompt_truncated."""
    requests = [_rewriting(run, s, problems, y_o[y_o["seed"] == s]) for s in run.settings.seeds]
    columns = {"sample": y_o["sample"].tolist(), "y_o_correct": y_o["correct"].tolist()}
    columns["prompt_truncated"] = [p.truncated for r in requests for p in r.prompts]
    path, sampling = run.rewrites("y_r"), run.settings.refinement
    return tables_of_seeds(run, task, path, requests, sampling, **columns)


def _rewriting(run: Run, seed: int, problems: pd.DataFrame, y_o: pd.DataFrame, **more) -> Request:
    """What asks the teacher for the rewrites of a base seed's attempts."""
    rows = rows_of(problems, y_o)
    contexts = prompts.teacher_prompts(run, seed, rows, y_o["text"].tolist())
    return Request("teacher", seed, rows, contexts, **more)


def solve(run: Run, task, problems: pd.DataFrame) -> pd.DataFrame:
    """y_t: the teacher's own solution from its vanilla context, no attempt in sight (control)."""
    rows, prompts_of = problems.to_dict("records"), prompts.teacher_prompts
    requests = [Request("teacher", s, rows, prompts_of(run, s, rows)) for s in run.settings.seeds]
    return tables_of_seeds(run, task, run.rewrites("y_t"), requests, run.settings.refinement)


def trajectory(run: Run, problems: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The text that the run's method trains on, for every base seed.

    tables: the one of the trajectory's name, and of y_r that of y_o too. Columns are added:
    y_o_correct; attempt (the text of y_o) where the teacher is to score y_r in its refine context.
    """
    name, settings = run.recipe.trajectory, run.settings
    if name == "y_star":
        students = {seed: run.model_path("student", seed) for seed in settings.seeds}
        return references(problems, students, settings.lengths.reference)
    if (found := tables.get(name)) is None:
        raise ValueError(f"{run} trains on {name}: give its table")
    if name == "y_o":
        return found.assign(y_o_correct=found["correct"])
    refined = name == "y_r" and run.recipe.context == "refine"
    return found.assign(attempt=tables["y_o"]["text"]) if refined else found


def references(problems: pd.DataFrame, students: dict[int, str], limit: int) -> pd.DataFrame:
    """The reference solutions as if they were responses: a cut one has no end token to learn."""
    found, same = [], {"id": problems["id"], "text": problems["solution"], "correct": True}
    for seed, student in students.items():
        tokenizer = models.load_tokenizer(student)
        encoded = tokenizer(problems["solution"].tolist(), add_special_tokens=False)["input_ids"]
        ids = [[*ids, tokenizer.eos_token_id][:limit] for ids in encoded]
        found.append(pd.DataFrame({**same, "seed": seed, "token_ids": ids}))
    return pd.concat(found, ignore_index=True)


class Pair(NamedTuple):
    """One training row: what the student sees, what the teacher sees, what both predict."""

    student_ids: list[int]  # prompt
    teacher_ids: list[int]  # prompt; empty where the method has no teacher
    response_ids: list[int]


def pairs(run: Run, seed: int, responses, problems, *, teacher: bool = True) -> list[Pair]:
    """A base seed's table of responses (id, token_ids) in the contexts of student and teacher.

    A column `attempt` (the y_o behind each y_r) means the teacher's refine context, not vanilla.
    """
    asked, raw = rows_of(problems, responses), "raw_text" in run.settings.training.as_authors
    student = [p.ids for p in prompts.student_prompts(run, seed, asked, raw=raw)]
    theirs = [[] for _ in asked]
    if teacher:
        attempts = responses["attempt"].tolist() if "attempt" in responses else None
        theirs = [p.ids for p in prompts.teacher_prompts(run, seed, asked, attempts, raw=raw)]
    tokens = [list(map(int, ids)) for ids in responses["token_ids"]]
    if raw:  # without the end of turn, unless it is all there is
        ends = models.load_tokenizer(run.model_path("student", seed)).all_special_ids
        tokens = [ids[:-1] if ids[-1] in ends and ids[1:] else ids for ids in tokens]
    return [Pair(*row) for row in zip(student, theirs, tokens, strict=True)]


def next_round(
    run: Run, task, seed: int, problems, adapter: Path, number: int, folder: Path
) -> list[Pair]:
    """What round `number` (the second is 1) trains on: attempts of the student as it is now, and,
    for y_r, the teacher's rewrites of them. The teacher stays what it was, in OPSD the step-0
    student. problems: this round's; adapter: of the round before; folder: for y_o and y_r."""
    settings, request = run.settings, ask(run, seed, problems, adapter=adapter, stream=number)
    tables = {"y_o": table(run, task, folder / "y_o.parquet", request, settings.rollout)}
    if run.recipe.trajectory == "y_r":
        request = _rewriting(run, seed, problems, tables["y_o"], stream=number)
        tables["y_r"] = table(run, task, folder / "y_r.parquet", request, settings.refinement)
    responses = trajectory(run, problems, tables)
    return pairs(run, seed, responses, problems, teacher=run.recipe.divergence != "cross_entropy")


class TrainingSet(NamedTuple):
    """What a method trains on, and how good its trajectory is."""

    rows: dict[int, list[Pair]]  # of each base seed
    accuracy: float  # share of right responses
    like_reference: float  # share of responses that are the reference solution, word for word


def training_sets(runs: list[Run], problems: pd.DataFrame, tables: dict) -> list[TrainingSet]:
    """For each run its trajectory in its contexts, for every base seed. problems: the train set;
    tables: {mode: {"y_o": ..., "y_r": ..., "y_t": ...}}, of which runs need their trajectories.
    ValueError if a subset leaves a seed nothing to train on."""
    found, whole = [], {}  # what methods share is rendered once
    for run in runs:
        recipe, teacher = run.recipe, run.recipe.divergence != "cross_entropy"
        key = (run.mode, recipe.trajectory, recipe.context, teacher)
        if key not in whole:
            responses = trajectory(run, problems, tables.get(run.mode, {}))
            by_seed = responses.groupby("seed")
            rows = {s: pairs(run, s, mine, problems, teacher=teacher) for s, mine in by_seed}
            whole[key] = responses, rows
        responses, rows = whole[key]
        kept, chosen = _subset(responses, recipe), {}
        for seed in run.settings.seeds:
            chosen[seed] = list(compress(rows[seed], kept[responses["seed"] == seed]))
            if not chosen[seed]:
                raise ValueError(f"{run}: the subset {recipe.subset!r} is empty for seed {seed}")
        responses = responses[kept]
        solutions = problems.set_index("id")["solution"].loc[responses["id"]]
        same = float((responses["text"].to_numpy() == solutions.to_numpy()).mean())
        found.append(TrainingSet(chosen, float(responses["correct"].mean()), same))
    return found


def _subset(responses: pd.DataFrame, recipe: Method) -> pd.Series:
    """Which rows the recipe trains on."""
    right = responses["correct"].astype(bool)
    passed = responses.get("y_o_correct", right).astype(bool)  # only of attempts and rewrites
    rows = {"all": right | True, "right": right, "passed": passed, "failed": ~passed}
    rows["failed_then_passed"] = ~passed & right
    return rows[recipe.subset]
