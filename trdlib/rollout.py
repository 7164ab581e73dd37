"""y_o: the student's own attempts at the training problems (paper section 1), graded.

Also the one way in which prompts become a graded table of sampled token ids, `table`, which the
steps behind this one use too: refine.py, distill.py (validation) and evaluate.py."""

import importlib
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from trdlib import engines, jobs, models, prompts, store
from trdlib.generate import Completion
from trdlib.run import Run
from trdlib.settings import Sampling


class Request(NamedTuple):
    """What to generate: by whom, for which problems, from which prompts (one per row)."""

    role: Literal["student", "teacher"]
    seed: int  # base seed: which weights, and which random numbers
    rows: list[dict]  # of the problem set
    prompts: list[prompts.Prompt]
    adapter: Path | None = None  # a trained one, merged into the student
    stream: int = 0  # another stream of random numbers: the same model, sampled again


def ask(run: Run, seed: int, problems: pd.DataFrame, role="student", **more) -> Request:
    """Answers to x alone, for any problem set. more: adapter and stream, as in Request."""
    rows = problems.to_dict("records")
    return Request(role, seed, rows, prompts.student_prompts(run, seed, rows, role), **more)


def fingerprint(run: Run, request: Request, sampling: Sampling) -> str:
    """Hash of all that shapes a generation: weights, adapter, prompts, sampling, random numbers."""
    weights = models.identity(run.model_name(request.role, request.seed))
    adapter, who = request.adapter, [request.seed, request.stream]
    made = weights, adapter and store.weights_hash(adapter), [p.ids for p in request.prompts]
    return store.content_hash(*made, engines.identity(run.settings.models), sampling, who)


def grade(task, table: pd.DataFrame, rows: list[dict]) -> list[bool]:
    """One verdict per row of the table; an unfinished response is wrong, whatever it says."""
    pairs = zip(table["text"], rows, table["finished"], strict=True)
    found = iter(task.grade([(text, row) for text, row, finished in pairs if finished]))
    return [bool(finished and next(found)) for finished in table["finished"]]


def _reuse(path: Path, generation: str, rows: list[dict], task, **columns: list):
    """-> (the table of this generation or None, its stamp). The stamp names what shapes the column
    `correct` too: graded by other rules, or of other answers, a table is graded again."""
    verdicts = task.grader, [(row["id"], row["answer"]) for row in rows], [columns] * bool(columns)
    found, stamp = store.fingerprint_of(path), f"{generation}/{store.content_hash(*verdicts)}"
    table = store.load(path, generation)
    if table is not None and found != stamp:
        table = table.assign(correct=grade(task, table, rows), **columns)
        store.save(table, path, stamp)
    return table, stamp


def _asked(run: Run, path: Path, request: Request, sampling: Sampling) -> engines.Asked:
    """What the table at this path asks of an engine; its fingerprint names the parts."""
    parts = path.with_name(f"{path.name}.parts") / fingerprint(run, request, sampling)
    ids = [p.ids for p in request.prompts]
    return engines.Asked(ids, sampling, parts, (request.seed, request.stream), request.adapter)


def table(run: Run, task, path: Path, request: Request, sampling: Sampling) -> pd.DataFrame:
    """Sample, grade, store and return; a file with the same fingerprint is read instead.

    One row per (problem, sample): id, sample, token_ids, text, finished, correct, n_tokens. Of the
    task (trdlib/tasks) only `grade` and `grader` are used.
    """
    rows = [row for row in request.rows for _ in range(sampling.samples)]
    asked = _asked(run, path, request, sampling)
    found, stamp = _reuse(path, asked.parts.name, rows, task)
    if found is not None:
        return found
    name = run.model_name(request.role, request.seed)
    done = engines.sample(run, name, asked, f"{request.seed}/{path.stem}")
    found = pd.DataFrame(done, columns=Completion._fields)
    found.insert(0, "id", [row["id"] for row in rows])
    found.insert(1, "sample", found.groupby("id").cumcount())  # some are asked more often
    text = models.load_tokenizer(name).batch_decode
    found.insert(3, "text", text(found["token_ids"].tolist(), skip_special_tokens=True))
    found["correct"] = grade(task, found, rows)
    found["n_tokens"] = found["token_ids"].map(len)
    store.save(found, path, stamp)
    shutil.rmtree(asked.parts.parent, ignore_errors=True)
    return found


def tables_of_seeds(
    run: Run, task, path: Path, requests: list[Request], sampling: Sampling, **columns: list
) -> pd.DataFrame:
    """`table` for all base seeds in one file, with `seed` and more columns (one value a row)."""
    rows = [row for r in requests for row in r.rows for _ in range(sampling.samples)]
    with store.locked(path):
        generation = store.content_hash([fingerprint(run, r, sampling) for r in requests])
        found, stamp = _reuse(path, generation, rows, task, **columns)
        if found is not None:
            return found
        folder = path.with_name(f"{path.name}.seeds")
        todo = [(run, task, folder / f"{r.seed}.parquet", r, sampling) for r in requests]
        made = tables(run, todo, path.stem)
        frames = [made[at].assign(seed=r.seed) for _, _, at, r, _ in todo]
        found = pd.concat(frames, ignore_index=True).assign(**columns)
        store.save(found, path, stamp)
        shutil.rmtree(folder, ignore_errors=True)
        return found


def _fill(todo: list[tuple], label: str, mine: int = 0, of: int = 1) -> None:
    """Sample what these tables (the arguments of `table`) lack, or an engine's share of it."""
    lacking: dict[str, list] = {}
    for run, _, path, request, sampling in todo:
        asked = _asked(run, path, request, sampling)
        if (store.fingerprint_of(path) or "").split("/")[0] != asked.parts.name:
            lacking.setdefault(run.model_name(request.role, request.seed), []).append(asked)
    for name, asked in lacking.items():
        engines.fill(todo[0][0], name, asked, label, mine, of)


def _tables(todo: list[tuple], label: str) -> dict[Path, pd.DataFrame]:
    _fill(todo, label)
    return {one[2]: table(*one) for one in todo}


def tables(run: Run, todo: list[tuple], label: str) -> dict[Path, pd.DataFrame]:
    """`table` of each of these arguments, by path, in jobs of one pool: a job has all those of a
    model and adapter, which share batches; an engine that has a queue takes all in one, before."""
    how, groups = run.settings.models, {}
    for one in todo:
        of, _, _, request, _ = one
        key = of.model_name(request.role, request.seed), request.adapter
        groups.setdefault(key, []).append(one)
    if todo and how.engine != "transformers":
        places = jobs.cluster.places() // how.gpus or 1  # an engine for each, with its share
        shares = [(todo, label, mine, places) for mine in range(places)]
        jobs.run_jobs(_fill, shares, workers=1 / how.gpus, label=f"{label}: engines")
    made = pool(run, _tables, [(group, label) for group in groups.values()], label)
    return {path: found for group in made for path, found in group.items()}


def pool(run: Run, function, todo: list[tuple], label: str, *, training: bool = False) -> list:
    """`jobs.run_jobs` with the workers of the run's scale. Before they are forked, the imports and
    a first load are made, once instead of in each worker."""
    settings, how = run.settings, run.settings.models
    if todo and settings.workers > 1 and (training or how.engine == "transformers"):
        importlib.import_module("transformers.trainer" if training else "peft")  # brings peft too
        models.load(run.model_path("student", settings.seeds[0]), how, run.context_length)
    return jobs.run_jobs(function, todo, workers=settings.workers, label=label)


def rollout(run: Run, task, problems: pd.DataFrame) -> pd.DataFrame:
    """y_o of every base seed, with the columns of `table` and seed. problems: the train set."""
    requests = [ask(run, seed, problems) for seed in run.settings.seeds]
    return tables_of_seeds(run, task, run.attempts, requests, run.settings.rollout)
