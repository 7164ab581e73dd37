"""Look inside trajectories: one problem at a time, token by token, under student and teacher.

What training sees, made visible: the sampled token ids (never re-encoded text), the prompts of
`rollout` and `refine`, the loss of `distill.Distiller`. `view` and `live` return a view, plain JSON
(numbers in nats); `export` writes one as a page that needs no network. The page is explore.html,
which `widget.Explorer` shows in Jupyter.

Paper: section 1 (what the teacher says after a mistake), section 4 (trajectory analysis). The
method's divergence is at the training temperature, all other numbers are at temperature 1.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import hashlib
import html
import itertools
import json
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from trdlib import (
    config,
    data,
    distill,
    divergence,
    generate,
    inputs,
    models,
    parallel,
    prompts,
    refine,
    rollout,
    tiny,
    tinycode,
)

TOP = 8  # candidates of student and teacher that are shown at each position
ON_THE_SPOT = 64  # attempts that are sampled here if they are missing; more is a stage of its own
KL_TOKENS = 50_000  # responses are ordered by their divergence up to this many tokens

# --------------------------------------------------------------------------------- what there is


class Missing(FileNotFoundError):
    """What is to be looked at has not been made; the message says what to run."""


def _is_current(path: Path, run: config.Run, requests, sampling: config.Sampling) -> bool:
    """Is there a file of this generation, of exactly these models, prompts and settings?"""
    if not path.is_file():
        return False
    if isinstance(run.settings.data, config.HubData):
        return True  # to render every prompt again would take minutes: notebooks 2 and 3 do it
    stamp = config.content_hash([rollout.fingerprint(run, r, sampling) for r in requests])
    return data.fingerprint_of(path).split("/")[0] == stamp


_read: dict[str, dict[str, pd.DataFrame]] = {}  # what was read last


def trajectories(run: config.Run) -> dict[str, pd.DataFrame]:
    """y_o and y_r of the training problems, and y_t where it is on file; all base seeds.

    A handful of attempts (the scale smoke) is sampled if it is missing. Raises Missing otherwise,
    also where a file is of other models, prompts or settings than the present ones. What was read
    last is kept while its files stay as they are.
    """
    names = ("y_o", "y_r", "y_t")
    paths = [run.attempts, *(run.mode_folder / f"{name}.parquet" for name in names[1:])]

    def stamp() -> str:
        times = [path.stat().st_mtime_ns if path.is_file() else None for path in paths]
        return config.content_hash(str(run.mode_folder), times, run.settings)

    if stamp() not in _read:
        tables = _trajectories(run)
        _read.clear()
        _read[stamp()] = tables
    return _read[stamp()]


def _trajectories(run: config.Run) -> dict[str, pd.DataFrame]:
    problems, seeds = data.problems(run.data, "train"), run.settings.seeds
    rows = problems.to_dict("records")
    few = len(rows) * run.settings.rollout.samples * len(seeds) <= ON_THE_SPOT

    def requests(role: str, y_o: pd.DataFrame | None = None):
        for seed in seeds:
            mine = None if y_o is None else y_o[y_o["seed"] == seed]
            asked = rows if mine is None else refine.rows_of(problems, mine)
            texts = None if mine is None else mine["text"].tolist()
            own = role == "student"
            contexts = (
                rollout.student_prompts(run, seed, asked)
                if own
                else refine.teacher_prompts(run, seed, asked, texts)
            )
            yield rollout.Request(role, seed, asked, contexts)

    def need(there: bool, what: str) -> None:
        if not there:
            raise Missing(
                f"the {what} of the scale {run.scale} are missing, or of other models or settings: "
                f"run `make repro SCALE={run.scale}`, or notebooks 2_rollout and 3_refine with "
                f'scale = "{run.scale}", mode = "{run.mode}" (a problem of your own needs neither)'
            )

    path, how = run.mode_folder, run.settings
    need(
        few or _is_current(run.attempts, run, requests("student"), how.rollout),
        "student's attempts",
    )
    y_o = rollout.attempts(run)
    need(
        few or _is_current(path / "y_r.parquet", run, requests("teacher", y_o), how.refinement),
        "teacher's rewrites",
    )
    tables = {"y_o": y_o, "y_r": refine.rewrites(run, y_o)}
    if _is_current(path / "y_t.parquet", run, requests("teacher"), how.refinement):
        tables["y_t"] = refine.teacher_solutions(run)
    return tables


def answers(run: config.Run, seed: int, benchmark: str) -> dict[str, pd.DataFrame]:
    """What was answered in evaluation: {"base": ..., method: ...}, as far as it is on file.

    Raises Missing where neither is.
    """
    rows = data.problems(run.data, benchmark).to_dict("records")
    base = config.run(run.scale, run.task, "none", "base", run.all_settings)
    found, sampling = {}, run.settings.evaluation.sampling
    for one, adapter in ((base, None), (run, run.adapter(seed))):
        if adapter and not adapter.is_dir():
            continue
        asked = rollout.student_prompts(run, seed, rows)
        request = rollout.Request("student", seed, rows, asked, adapter)
        path = one.samples(seed, benchmark)
        if path.is_file() and data.fingerprint_of(path).startswith(
            f"{rollout.fingerprint(one, request, sampling)}/"
        ):
            found[one.method] = data.load(path)
    if not found:
        raise Missing(
            f"nobody has answered {benchmark} for {run} yet: run `make repro SCALE={run.scale}`, "
            f"or notebook 5_evaluate with these parameters"
        )
    return found


FILTERS = ("all", "failed → passed", "passed → failed", "longest", "highest KL", "unfinished")


def cases(problems: pd.DataFrame, tables: dict[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """One row per attempt of the base seed, in the order of the file.

    -> id, sample, problem, source, before and after (verdicts on the first two tables; NA where
    there is one only), n_tokens (of the longer one), finished (all of them).
    """
    # y_t is the teacher's own solution, not a second look at the attempt: it has rows of its own
    mine = [t for name, t in tables.items() if name != "y_t"][:2]
    mine = [t[t["seed"] == seed] if "seed" in t else t for t in mine]
    keyed = [t.set_index(["id", "sample"]) for t in mine]
    found = pd.DataFrame(
        {
            "before": keyed[0]["correct"].astype("boolean"),
            "after": keyed[1]["correct"].astype("boolean") if len(keyed) > 1 else pd.NA,
            "n_tokens": pd.concat([k["n_tokens"] for k in keyed], axis=1).max(axis=1),
            "finished": pd.concat([k["finished"] for k in keyed], axis=1).all(axis=1),
        }
    )
    found = found.loc[keyed[0].index].reset_index()
    return found.merge(problems[["id", "problem", "source"]], on="id", how="left")


def select(cases: pd.DataFrame, which: str) -> pd.DataFrame:
    """The cases that a filter keeps, in its order. "highest KL" needs the column kl.

    Raises ValueError for a filter that there is not.
    """
    before, after = cases["before"].fillna(False), cases["after"].fillna(False)
    both = cases["before"].notna() & cases["after"].notna()
    if which == "all":
        return cases
    if which == "failed → passed":
        return cases[both & ~before & after]
    if which == "passed → failed":
        return cases[both & before & ~after]
    if which == "unfinished":
        return cases[~cases["finished"]]
    if which == "longest":
        return cases.sort_values("n_tokens", ascending=False, kind="stable")
    if which == "highest KL":
        return cases.dropna(subset=["kl"]).sort_values("kl", ascending=False, kind="stable")
    raise ValueError(f"there is no filter {which!r}: choose from {', '.join(FILTERS)}")


# ------------------------------------------------------------------------------- models and scores


class Loaded(NamedTuple):
    """Student (with its adapter, if it has been trained) and teacher of one run and base seed."""

    run: config.Run
    seed: int
    distiller: distill.Distiller
    teacher: torch.nn.Module | None  # None: the student's own step-0 weights
    tokenizer: object
    trained: bool  # is there an adapter?


def has_adapter(run: config.Run, seed: int) -> bool:
    """Has the run's student of this base seed been trained?"""
    return (run.adapter(seed) / "run.json").is_file()


_held: dict[str, Loaded] = {}  # the models that were loaded last: two of a real scale fill a GPU


def load(run: config.Run, seed: int) -> Loaded:
    """Both models, the student with the run's adapter where there is one; the last pair is kept."""
    about = run.adapter(seed) / "run.json"
    trained = has_adapter(run, seed) and data.read_json(about)["fingerprint"]
    key = config.content_hash(str(config.root()), str(run), seed, trained, run.settings, run.recipe)
    if key not in _held:
        _held.clear()
        _held[key] = _load(run, seed)
    return _held[key]


def _load(run: config.Run, seed: int) -> Loaded:
    distiller = distill.build(run, seed)
    trained = has_adapter(run, seed)
    if trained:
        base = distiller.student.unload()
        distiller.student = models.with_adapter(base, run.adapter(seed), merge=False)
    teacher = distiller._teacher[0]
    if run.mode == "opd" and teacher is None:  # cross-entropy trains without one
        teacher, _ = models.load(run.model_path("teacher", seed), run)
    distiller.eval()
    tokenizer = models.load_tokenizer(run.model_path("student", seed))
    return Loaded(run, seed, distiller, teacher, tokenizer, trained)


def _student(loaded: Loaded, trained: bool):
    """A context in which the student is the one after training, or that of step 0."""
    student = loaded.distiller.student
    return contextlib.nullcontext(student) if trained else models.step0(student)


@torch.no_grad()
def candidates(hidden, head, targets, *, watch=(), k: int = TOP) -> dict[str, torch.Tensor]:
    """What one model says at N positions; logits are formed chunk by chunk.

    hidden (N, H): at the positions that predict the tokens targets (N,). head (V, H). watch: token
    ids. -> logp of the target, entropy, mass on the watched tokens (N,) in nats and probability;
    ids and p (N, k): the most probable tokens.
    """
    parts, size = [], max(1, divergence.CHUNK_ELEMENTS // len(head))
    k, watch = min(k, len(head)), list(watch)
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        logits = hidden[rows].to(head.dtype) @ head.T
        logp = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        top, p = logp.topk(k, dim=-1), logp.exp()
        parts.append(
            {
                "logp": logp.gather(-1, targets[rows, None])[:, 0],
                "entropy": -(p * logp).sum(-1),
                "mass": p[:, watch].sum(-1),
                "ids": top.indices,
                "p": top.values.exp(),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _digits(values: torch.Tensor) -> list[float]:
    """Five digits are enough to look at, and keep a page of 16,000 tokens at a few megabytes."""
    return [float(f"{x:.5g}") for x in values.float().tolist()]


@torch.no_grad()
def score(loaded: Loaded, pair: distill.Pair, *, trained: bool = False) -> dict:
    """Every response token of the pair under student and teacher.

    -> values: {name: [n floats]}: divergence (the method's), forward_kl, reverse_kl, student_logp,
    teacher_logp, student_entropy, teacher_entropy, onset_mass (the teacher's); top: {"student" or
    "teacher": {"ids": n lists, "p": n lists}}. Of a pair without teacher_ids the student's alone.
    """
    distiller, device = loaded.distiller, loaded.distiller.device
    inputs = {name: t.to(device) for name, t in distill.collate([pair]).items()}
    targets = torch.tensor(pair.response_ids, device=device)
    size = len(loaded.tokenizer)
    watch = models.onset_ids(loaded.tokenizer, loaded.run.settings.onsets)

    def hidden_at(model, role: str):
        ids, labels = ("input_ids", "labels") if role == "student" else (
            "teacher_ids", "teacher_labels")  # fmt: skip
        at = inputs[labels][0, 1:] != -100
        return models.hidden_states(model, input_ids=inputs[ids])[0, :-1][at]

    with _student(loaded, trained) as student:
        hidden, head = hidden_at(student, "student"), models.head(student, size)
    said = {"student": candidates(hidden, head, targets)}
    values = {}
    if pair.teacher_ids:
        own = loaded.teacher is None
        with (
            models.step0(distiller.student) if own else contextlib.nullcontext(loaded.teacher) as t
        ):
            teachers, teachers_head = hidden_at(t, "teacher"), models.head(t, size)
        said["teacher"] = candidates(teachers, teachers_head, targets, watch=watch)
        values["onset_mass"] = said["teacher"]["mass"]
        for kind in ("forward_kl", "reverse_kl"):
            both = (hidden, head, teachers, teachers_head)
            values[kind] = divergence.token_divergence(*both, kind=kind)
    if pair.teacher_ids or distiller.recipe.divergence == "cross_entropy":
        with _student(loaded, trained):
            values["divergence"] = distill.token_losses(distiller, [pair])[0]
    for role, found in said.items():
        values |= {f"{role}_logp": found["logp"], f"{role}_entropy": found["entropy"]}
    return {
        "values": {n: _digits(v) for n, v in values.items()},
        "top": {
            role: {"ids": found["ids"].tolist(), "p": [_digits(row) for row in found["p"]]}
            for role, found in said.items()
        },
    }


def with_kl(
    loaded: Loaded, cases: pd.DataFrame, tables: dict[str, pd.DataFrame], problems, *, trained=False
) -> pd.DataFrame:
    """The cases with kl: the mean divergence of a token, as the method has it.

    Of y_r if the method trains on it, else of the first table's texts; NaN behind the first
    KL_TOKENS tokens of them.
    """
    first = next(iter(tables))
    name = "y_r" if "y_r" in tables and loaded.run.recipe.trajectory == "y_r" else first
    mine = {n: t[t["seed"] == loaded.seed] if "seed" in t else t for n, t in tables.items()}
    table = mine[name][mine[name]["n_tokens"].cumsum() <= KL_TOKENS]
    asked = refine.rows_of(problems, table)
    attempts = mine["y_o"]["text"].tolist()[: len(table)] if name == "y_r" else None
    student = rollout.student_prompts(loaded.run, loaded.seed, asked)
    teacher = refine.teacher_prompts(loaded.run, loaded.seed, asked, attempts)
    responses = [list(map(int, ids)) for ids in table["token_ids"]]
    pairs = [
        distill.Pair(s.ids, t.ids, r) for s, t, r in zip(student, teacher, responses, strict=True)
    ]
    size = loaded.run.settings.training.micro_batch_size
    with _student(loaded, trained), parallel.model_compute():
        found = distill.token_losses(loaded.distiller, pairs, size)
    means = pd.Series(
        [float(x.mean()) for x in found], index=cases.index[: len(found)], dtype=float
    )
    return cases.assign(kl=means)


def matches(a: list[int], b: list[int], breaks: set[int] = frozenset()) -> list[list[int]]:
    """Runs of tokens that two texts share, in order: [[start in a, start in b, length], ...].

    Whole lines first (a token of `breaks` ends one), then tokens between them: the tokens of two
    long texts at once would take minutes.
    """

    def blocks(x, y):
        return difflib.SequenceMatcher(None, x, y, autojunk=False).get_opcodes()

    def lines(ids):
        ends = [i + 1 for i, token in enumerate(ids) if token in breaks and i + 1 < len(ids)]
        edges = [0, *ends, len(ids)]
        return [tuple(ids[s:e]) for s, e in itertools.pairwise(edges)], edges

    (in_a, at_a), (in_b, at_b) = lines(a), lines(b)
    found: list[list[int]] = []

    def add(start_a: int, start_b: int, length: int) -> None:
        last = found[-1] if found else [0, 0, 0]
        if length and last[0] + last[2] == start_a and last[1] + last[2] == start_b:
            start_a, start_b, length = last[0], last[1], last[2] + length
            found[-1:] = []
        if length:
            found.append([start_a, start_b, length])

    for tag, i1, i2, j1, j2 in blocks(in_a, in_b):
        (s_a, e_a), (s_b, e_b) = (at_a[i1], at_a[i2]), (at_b[j1], at_b[j2])
        if tag == "equal":
            add(s_a, s_b, e_a - s_a)
        elif tag == "replace":
            for inner, k1, k2, l1, _ in blocks(a[s_a:e_a], b[s_b:e_b]):
                if inner == "equal":
                    add(s_a + k1, s_b + l1, k2 - k1)
    return found


# ------------------------------------------------------------------------------------------- views


class Written(NamedTuple):
    """One text about a problem, and in which contexts it is looked at."""

    name: str
    label: str
    token_ids: list[int]
    correct: bool | None = None  # None: nobody knows the answer
    finished: bool = True
    attempt: str | None = None  # the y_o that the teacher sees beside it
    trained: bool = False  # looked at by the student after training


LABELS = {
    "y_o": "y_o, the student's attempt",
    "y_r": "y_r, the teacher's rewrite of it",
    "y_t": "y_t, the teacher's own solution",
    "y_star": "y*, the reference solution",
    "base": "answer at step 0",
}


def _spell(tokenizer, token: int) -> str:
    """What a token looks like; bytes that are no text of their own by their name."""
    text = tokenizer.decode([token])
    return text if "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def _reference(loaded: Loaded, row: dict) -> Written:
    """y* as a target of training (as distill makes it): a cut one has no end."""
    ids = loaded.tokenizer.encode(row["solution"], add_special_tokens=False)
    ids, limit = [*ids, loaded.tokenizer.eos_token_id], loaded.run.settings.lengths.reference
    return Written("y_star", LABELS["y_star"], ids[:limit], True, len(ids) <= limit)


def _view(loaded: Loaded, row: dict, texts: list[Written], notes: list[str]) -> dict:
    """Score the texts and put everything that the page shows into plain JSON."""
    run, seed, tokenizer = loaded.run, loaded.seed, loaded.tokenizer
    student = rollout.student_prompts(run, seed, [row])[0]
    notes, shown = list(notes), []
    no_teacher = run.mode == "opsd" and not row["solution"]
    if no_teacher:
        notes.append("no reference solution: in mode opsd there is nothing to teach with")
    for text in texts:
        teacher = prompts.Prompt([], False)
        if not no_teacher:
            attempts = None if text.attempt is None else [text.attempt]
            teacher = refine.teacher_prompts(run, seed, [row], attempts)[0]
        if teacher.truncated:
            notes.append(f"the teacher's context of {text.name} was cut to fit")
        pair = distill.Pair(student.ids, teacher.ids, text.token_ids)
        about = {
            "name": text.name,
            "label": text.label,
            "ids": text.token_ids,
            "correct": text.correct,
            "finished": text.finished,
            "student": "after training" if text.trained else "at step 0",
            "student_sees": tokenizer.decode(student.ids),
            "teacher_sees": tokenizer.decode(teacher.ids),
            "wrong": None,
            **score(loaded, pair, trained=text.trained),
        }
        if run.settings.models.style == "tiny":
            spelled = tokenizer.convert_ids_to_tokens(text.token_ids)
            found = inputs.language(run).departure(row["problem"], spelled)
            if found:
                about |= {
                    "wrong": found.index,
                    "right": tokenizer.convert_tokens_to_ids(found.right),
                }
        shown.append(about)
    used = {i for t in shown for i in t["ids"]} | {t["right"] for t in shown if "right" in t}
    used |= {i for t in shown for top in t["top"].values() for row_ in top["ids"] for i in row_}
    vocabulary = {str(i): _spell(tokenizer, i) for i in sorted(used)}
    breaks = {int(i) for i, text in vocabulary.items() if "\n" in text}
    pairs = [(a, b) for i, a in enumerate(shown) for b in shown[i + 1 :]]
    recipe = run.recipe
    return {
        "run": {"scale": run.scale, "task": run.task, "mode": run.mode, "method": run.method}
        | {"seed": seed, "divergence": recipe.divergence, "trajectory": recipe.trajectory}
        | {"clip": recipe.clip, "top_k": recipe.top_k},
        "problem": {k: row[k] or "" for k in ("id", "source", "problem", "answer", "solution")},
        "notes": notes,
        "vocabulary": vocabulary,
        "end": tokenizer.eos_token_id,
        "texts": shown,
        "matches": {
            f"{a['name']}/{b['name']}": matches(a["ids"], b["ids"], breaks) for a, b in pairs
        },
    }


def tokens(view: dict, name: str) -> pd.DataFrame:
    """The numbers of one text of a view as a table: one row per token."""
    text = next(t for t in view["texts"] if t["name"] == name)
    spelled = [view["vocabulary"][str(i)] for i in text["ids"]]
    return pd.DataFrame({"token": spelled, "token_id": text["ids"], **text["values"]})


def view(
    loaded: Loaded,
    tables: dict[str, pd.DataFrame],
    row: dict,
    sample: int = 0,
    *,
    trained: bool = False,
) -> dict:
    """One problem with all its texts, scored. row: of the problem set; tables: of `trajectories`
    or `answers`. trained: trajectories under the student after training.

    Raises ValueError if no table has this sample of the problem.
    """
    if trained and not loaded.trained:
        raise Missing(f"{loaded.run} has not been trained: run notebook 4_distill, or `make repro`")
    texts, attempt = [], None
    for name, table in tables.items():
        mine = table[(table["id"] == row["id"]) & (table["sample"] == sample)]
        mine = mine[mine["seed"] == loaded.seed] if "seed" in mine else mine
        if mine.empty:
            continue
        one = mine.iloc[0]
        attempt = one["text"] if name == "y_o" else attempt
        own = name not in LABELS  # the answer of a method
        texts.append(
            Written(
                name,
                LABELS.get(name, f"answer after {name}"),
                [int(i) for i in one["token_ids"]],
                bool(one["correct"]),
                bool(one["finished"]),
                attempt if name == "y_r" else None,
                own or (trained and name != "base"),
            )
        )
    if not texts:
        raise ValueError(f"there is no sample {sample} of {row['id']} for seed {loaded.seed}")
    if row["solution"]:
        texts.append(_reference(loaded, row)._replace(trained=trained))
    return _view(loaded, row, texts, [])


# ------------------------------------------------------------------------- a problem of one's own


def tiny_problem(text: str, task: str = "math") -> str:
    """The problem in the words of the tiny language; ValueError says why it is none."""
    if task == "code":
        return _code_problem(" ".join(text.split()))
    text = "".join(text.split())
    if re.fullmatch(r"Compute:[0-6]([a-z][-+*][0-6])+", text):
        start, steps = tiny.chain_parse(text)
        labels = tiny._LABELS[: len(steps)]
        body = "".join(f"{c}{op}{d}" for c, (op, d) in zip(labels, steps, strict=False))
        if len(steps) > len(labels):
            raise ValueError(f"a chain has at most {len(labels)} steps, and this one {len(steps)}")
        if text != f"Compute:{start}{body}":
            raise ValueError(f"steps are called o, p, q, ...: write Compute:{start}{body}")
        return text
    if re.fullmatch(r"Route[#=][A-Za-n]+", text):
        letters = tiny.trail_parse(text)[1]
        twice = [c for c in letters if letters.count(c) > 1]
        if twice:
            raise ValueError(f"a trail visits each letter once, and {twice[0]} stands here twice")
        return text
    raise ValueError(
        f"the tiny language has no {text[:40]!r}: write a chain, like Compute:1o*6p*3q+4 (a start, "
        "then steps o, p, q, ... with +, - or * and a digit from 0 to 6), or a trail, like "
        "Route#BLQfl (# or =, then different letters out of A-Z and a-n)"
    )


def _code_problem(text: str) -> str:
    clauses = tinycode.parse(text)
    known = all(
        op in tinycode.WAYS and ("{k}" in tinycode.WAYS[op][0]) == (k is not None)
        for op, k in clauses
    )
    if not known or len(clauses) > len(tinycode.LABELS) or tinycode.write_problem(clauses) != text:
        example = tinycode.write_problem([("add", 3), ("reverse", None)])
        raise ValueError(
            f"the tiny language has no {text[:40]!r}: write clauses a, b, c, ..., as in {example}; "
            f"there are {', '.join(tinycode.WAYS)}"
        )
    return text


def _unusual(problem: str) -> list[str]:
    """What a trail has that no model has seen."""
    if tiny.task_of(problem) == "chain":
        return []
    zones = [tiny.LETTERS.index(c) // tiny._ZONE_SIZE for c in tiny.trail_parse(problem)[1]]
    if all(zone == i % tiny._ZONES for i, zone in enumerate(zones)):
        return []
    return [
        "the letters of the trails that the models know come from A-H, I-P, Q-X, Y-f, g-n in turn"
    ]


def live(
    loaded: Loaded,
    problem: str,
    *,
    answer: str | None = None,
    solution: str | None = None,
    trained: bool = False,
    draw: int = 0,
) -> dict:
    """The view of a problem that is attempted, rewritten and scored now, with these models.

    In the tiny language answer and solution follow from the problem; elsewhere both may be unknown
    (mode opsd needs the solution). trained: the attempt is by the student after training. draw:
    other random numbers. Raises ValueError for a problem that cannot be asked.
    """
    run, notes = loaded.run, []
    if trained and not loaded.trained:
        raise Missing(f"{run} has not been trained: run notebook 4_distill, or `make repro`")
    if run.settings.models.style == "tiny":
        language = inputs.language(run)
        problem = tiny_problem(problem, run.task)
        solution = tiny.text_of(language.clean(problem))
        answer = language.answer(problem)
        if tiny.split_of(problem) == "pretrain":
            notes.append("a hash deals this problem to pretraining: the models may have seen it")
        notes += _unusual(problem) if run.task == "math" else []
    if not problem.strip():
        raise ValueError("there is no problem: type one")
    if run.mode == "opsd" and not solution:
        raise ValueError("in mode opsd the teacher needs a solution: give one, or choose mode opd")
    row = {"id": f"live-{draw}", "source": "live", "problem": problem}
    row |= {"answer": answer, "solution": solution}

    def write(model, prompt: prompts.Prompt, sampling: config.Sampling):
        with parallel.model_compute():
            done = generate.decode(
                model,
                [prompt.ids],
                max_new_tokens=sampling.max_new_tokens,
                stop_ids=models.stop_ids(model.generation_config, loaded.tokenizer),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=draw,
            )[0]
        text = loaded.tokenizer.decode(done.token_ids, skip_special_tokens=True)
        said = pd.DataFrame({"text": [text], "finished": [done.finished]})
        right = None if answer is None else rollout.grade(said, [row], run)[0]
        return done, text, right

    asked = rollout.student_prompts(run, loaded.seed, [row])[0]
    with _student(loaded, trained) as student:
        attempt, said, right = write(student, asked, run.settings.rollout)
    texts = [
        Written("y_o", LABELS["y_o"], attempt.token_ids, right, attempt.finished, None, trained)
    ]
    context = refine.teacher_prompts(run, loaded.seed, [row], [said])[0]
    own = models.step0(loaded.distiller.student)
    with own if loaded.teacher is None else contextlib.nullcontext(loaded.teacher) as teacher:
        rewrite, _, right = write(teacher, context, run.settings.refinement)
    texts.append(
        Written("y_r", LABELS["y_r"], rewrite.token_ids, right, rewrite.finished, said, trained)
    )
    if solution:
        texts.append(_reference(loaded, row)._replace(trained=trained))
    return _view(loaded, row, texts, notes)


# -------------------------------------------------------------------------------- page and widget


def asset() -> dict[str, str]:
    """explore.html, taken apart: the whole page, its style and its script."""
    page = Path(__file__).with_name("explore.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)
    script = re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL).group(1)
    return {"page": page, "style": style, "script": script}


def export(view: dict, path: str | Path) -> Path:
    """Write one view as a page of its own: it opens from disk or a mail, and needs no network.

    Model output stands in it as data only: as JSON without "<", and put on the page as text. A
    content security policy lets no other script than the page's own run.
    """
    if not view:
        raise ValueError("there is no view to write: choose an attempt, or try a problem, first")
    parts_of = asset()
    about = view["run"]
    title = f"{view['problem']['id']} · {about['scale']} {about['mode']} {about['method']}"
    plain = "\n\n".join(
        f"{t['label']}\n{''.join(view['vocabulary'][str(i)] for i in t['ids'])}"
        for t in view["texts"]
    )
    digest = base64.b64encode(hashlib.sha256(parts_of["script"].encode()).digest()).decode()
    value = json.dumps(view, allow_nan=False, separators=(",", ":"))
    parts = {
        "{{title}}": html.escape(title),
        "{{policy}}": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'",
        "{{view}}": value.replace("<", "\\u003c"),
        "{{plain}}": html.escape(f"{view['problem']['problem']}\n\n{plain}"),
    }
    page = re.sub("|".join(map(re.escape, parts)), lambda m: parts[m.group()], parts_of["page"])
    return data.write_text(path, page)
