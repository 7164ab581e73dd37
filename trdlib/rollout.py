"""y_o: the student's own attempts at the training problems (paper section 1), graded.

Also the one way in which prompts become a graded table of sampled token ids, `generate_table`:
rollout, refinement and evaluation all use it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from trdlib import config, data, engines, generate, grading, inputs, models, parallel, prompts


class Request(NamedTuple):
    """What to generate: by whom, for which problems, from which prompts (one per row)."""

    role: Literal["student", "teacher"]
    seed: int  # base seed: which weights, and which random numbers
    rows: list[dict]  # of the problem set
    prompts: list[prompts.Prompt]
    adapter: Path | None = None  # a trained one, merged into the student
    stream: int = 0  # another stream of random numbers: the same model, sampled again


def model_name(run: config.Run, role: str, seed: int) -> str:
    """Whose weights play the role: the OPSD teacher is the student's own step-0 model."""
    return run.model_path("student" if run.mode == "opsd" else role, seed)


def student_prompts(
    run: config.Run, seed: int, rows: list[dict], role: Literal["student", "teacher"] = "student"
) -> list[prompts.Prompt]:
    """What the student is asked, in rollout, training and evaluation alike: x alone.

    The teacher, when it is evaluated, is asked the same with its own template and thinking switch.
    """
    tokenizer, models_ = models.load_tokenizer(run.model_path(role, seed)), run.settings.models
    how = {"style": models_.style, "thinking": getattr(models_, f"{role}_thinking")}
    limit = run.settings.lengths.prompt
    return [prompts.student_prompt(row, tokenizer, max_tokens=limit, **how) for row in rows]


def fingerprint(run: config.Run, request: Request, sampling: config.Sampling) -> str:
    """Hash of all that shapes a generation: weights, adapter, prompts, sampling, random numbers."""
    return config.content_hash(
        models.identity(model_name(run, request.role, request.seed)),
        config.weights_hash(request.adapter) if request.adapter else None,
        [p.ids for p in request.prompts],
        engines.identity(run.settings.models),
        sampling,
        [request.seed, request.stream],
    )


def _verdicts_hash(run: config.Run, rows: list[dict], *more) -> str:
    """Hash of what shapes the column `correct`: the grader, the problems' ids and answers."""
    code = inputs.grader(run)[1]
    return config.content_hash(code, [(row["id"], row["answer"]) for row in rows], more)


def grade(table: pd.DataFrame, rows: list[dict], run: config.Run) -> list[bool]:
    """One verdict per row of the table; an unfinished response is wrong, whatever it says."""
    asked = [
        (text, row)
        for text, row, done in zip(table["text"], rows, table["finished"], strict=True)
        if done
    ]
    verdicts = inputs.grader(run)[0]([(text, row["answer"]) for text, row in asked])
    for i, (text, row) in enumerate(asked):
        if run.task == "math" and (points := grading.points_of(row["id"])):
            verdicts[i] = grading.is_correct(text, row["answer"], points)
    found = iter(verdicts)
    return [bool(done and next(found)) for done in table["finished"]]


def _reuse(path: Path, stamps: tuple[str, str], rows: list[dict], run: config.Run, **columns):
    """The table of this generation, or None. Graded by other rules, it is graded again."""
    if not path.is_file() or data.fingerprint_of(path).split("/")[0] != stamps[0]:
        return None
    table = data.load(path)
    if data.fingerprint_of(path) != "/".join(stamps):
        table = table.assign(correct=grade(table, rows, run), **columns)
        data.save(table, path, "/".join(stamps))
    return table


def generate_table(
    run: config.Run,
    path: Path,
    request: Request,
    sampling: config.Sampling,
    trained_on: bool = False,
) -> pd.DataFrame:
    """Sample, grade, store and return; a file with the same fingerprint is read instead.

    One row per (problem, sample): id, sample, token_ids, text, finished, correct, n_tokens.
    trained_on: an engine that cannot give the sampled token ids is refused.
    """
    rows = [row for row in request.rows for _ in range(sampling.samples)]
    stamps = fingerprint(run, request, sampling), _verdicts_hash(run, rows)
    table = _reuse(path, stamps, rows, run)
    if table is not None:
        return table
    parts = path.with_name(f"{path.name}.parts")
    name = model_name(run, request.role, request.seed)
    with engines.opened(run, name, request.adapter, exact=trained_on) as engine:
        tokenizer = engine.tokenizer
        groups = generate.sample(
            engine.complete,
            [p.ids for p in request.prompts],
            sampling,
            parts=parts / stamps[0],
            seed=(request.seed, request.stream),
            label=f"{request.seed}/{path.stem}",
        )
    done = [completion for group in groups for completion in group]
    table = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "sample": [number for group in groups for number in range(len(group))],
            "token_ids": [c.token_ids for c in done],
            "text": tokenizer.batch_decode([c.token_ids for c in done], skip_special_tokens=True),
            "finished": [c.finished for c in done],
            "correct": False,
            "n_tokens": [len(c.token_ids) for c in done],
        }
    )
    table["correct"] = grade(table, rows, run)
    data.save(table, path, "/".join(stamps))
    shutil.rmtree(parts, ignore_errors=True)
    return table


def cost_file(path: Path) -> Path:
    """Where the cost of a generation file is noted: beside it, since it differs between runs."""
    return path.with_suffix(".cost.json")


def generate_for_seeds(
    run: config.Run, path: Path, requests: list[Request], sampling: config.Sampling, **columns: list
) -> pd.DataFrame:
    """One file for all base seeds, with a column `seed` and more columns (one value a row)."""
    with data.locked(path):
        return _generate_for_seeds(run, path, requests, sampling, **columns)


def _generate_for_seeds(
    run: config.Run, path: Path, requests: list[Request], sampling: config.Sampling, **columns: list
) -> pd.DataFrame:
    rows = [row for r in requests for row in r.rows for _ in range(sampling.samples)]
    generation = config.content_hash([fingerprint(run, r, sampling) for r in requests])
    stamps = generation, _verdicts_hash(run, rows, columns)
    table = _reuse(path, stamps, rows, run, **columns)
    if table is not None:
        return table
    folder = path.with_name(f"{path.name}.seeds")
    jobs = [(run, folder / f"{r.seed}.parquet", r, sampling, True) for r in requests]
    workers = run.settings.workers
    models.preload(run)
    with parallel.metered() as cost, engines.kept():
        tables = parallel.run_jobs(generate_table, jobs, workers=workers, label=path.stem)
    frames = [t.assign(seed=r.seed) for r, t in zip(requests, tables, strict=True)]
    table = pd.concat(frames, ignore_index=True).assign(**columns)
    data.write_json(cost_file(path), cost)
    data.save(table, path, "/".join(stamps))
    shutil.rmtree(folder, ignore_errors=True)
    return table


def attempts(run: config.Run) -> pd.DataFrame:
    """y_o of every base seed of the run's scale: read if it is there, sampled if not."""
    rows = data.problems(run.data, "train").to_dict("records")
    requests = [
        Request("student", seed, rows, student_prompts(run, seed, rows))
        for seed in run.settings.seeds
    ]
    return generate_for_seeds(run, run.attempts, requests, run.settings.rollout)
