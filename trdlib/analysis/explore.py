"""Look inside trajectories: one problem at a time, token by token, under student and teacher.

What training sees: the sampled token ids, in the contexts that are trained on. `view` and `live`
return a view, plain JSON (nats); `page` makes HTML of it. The divergence is the training loss, at
its temperature; all else is at temperature 1."""

import base64
import contextlib
import difflib
import hashlib
import html
import itertools
import json
import re
from collections import namedtuple
from pathlib import Path

import jinja2
import pandas as pd
import torch

from trdlib import distill, generate, jobs, models, prompts
from trdlib.analysis.signals import hidden_at, mistakes, token_signals
from trdlib.divergence import logits_in_chunks
from trdlib.refine import Pair, pairs, references
from trdlib.rollout import grade
from trdlib.run import Run
from trdlib.settings import Sampling, SettingsError, read_yaml

TOP = 8  # candidates of student and teacher that are shown at each position
SHOWN = ("divergence", "forward_kl", "reverse_kl", "student_logp", "teacher_logp")
SHOWN += ("student_entropy", "teacher_entropy", "onset_mass")
LABELS = read_yaml(Path(__file__).with_name("explore.yaml"))
# Models of one run and base seed. teacher: None if it is the student at step 0; trained: by adapter
Loaded = namedtuple("Loaded", "run seed distiller teacher tokenizer trained")


@torch.no_grad()
def token_losses(distiller, rows: list[Pair], batch_size: int = 1) -> list[torch.Tensor]:
    """The loss at every response token of every row, for looking at: one (n_tokens,) per row."""
    distiller.eval()
    batches, found = (rows[i : i + batch_size] for i in range(0, len(rows), batch_size)), []
    for batch in batches:
        inputs = {name: t.to(distiller.device) for name, t in distill.collate(batch).items()}
        found += distiller.token_losses(**inputs).cpu().split([len(p.response_ids) for p in batch])
    return found


def load(run: Run, seed: int, adapter: Path | None = None) -> Loaded:
    """adapter: what was trained (`distill`), for a look at the student after it."""
    distiller = distill.build(run, seed)
    if adapter:
        distiller.student = models.with_adapter(distiller.student.unload(), adapter, merge=False)
    teacher = distiller._teacher[0]
    if run.mode == "opd" and teacher is None:  # cross-entropy trains without one
        name = run.model_path("teacher", seed)
        teacher, _ = models.load(name, run.settings.models, run.context_length)
    tokenizer = models.load_tokenizer(run.model_path("student", seed))
    return Loaded(run, seed, distiller.eval(), teacher, tokenizer, adapter is not None)


def _model(loaded: Loaded, role: str, trained: bool = False):
    """A context with the teacher, or with the student: after training, or as it was at step 0."""
    if trained and not loaded.trained:
        raise SettingsError(f"{loaded.run} has not been trained: run notebook 4_distill")
    student = loaded.distiller.student
    model = {"student": student if trained else None, "teacher": loaded.teacher}[role]
    return contextlib.nullcontext(model) if model else models.step0(student)


def _digits(values: torch.Tensor) -> list[float]:
    """Five digits are enough to look at, and keep a page of 16,000 tokens at a few megabytes."""
    return [float(f"{x:.5g}") for x in values.float().tolist()]


@torch.no_grad()
def score(loaded: Loaded, pair: Pair, *, trained: bool = False) -> dict:
    """The pair's n response tokens under both models: values, {name of SHOWN: [n]}, and the most
    probable tokens, top, {"student", "teacher": {"ids": n lists, "p": n lists}}."""
    said, top, device, size = [], {}, loaded.distiller.device, len(loaded.tokenizer)
    batch = {name: tensor.to(device) for name, tensor in distill.collate([pair]).items()}
    targets = torch.tensor(pair.response_ids, device=device)
    sides = {"student": ("input_ids", "labels"), "teacher": ("teacher_ids", "teacher_labels")}
    for role, (ids, labels) in sides.items():
        with _model(loaded, role, trained) as model:
            hidden, head = hidden_at(model, batch[ids], batch[labels]), models.head(model, size)
        said += [hidden, head]
        best = [z.softmax(-1).topk(min(TOP, size)) for _, z in logits_in_chunks(hidden, head)]
        p, ids = (torch.cat(of) for of in zip(*best, strict=True))
        top[role] = {"ids": ids.tolist(), "p": [_digits(row) for row in p]}
    onsets = models.onset_ids(loaded.tokenizer, loaded.run.settings.onsets)
    values = token_signals(*said, targets, onsets=onsets, rights=torch.full_like(targets, -1))
    with _model(loaded, "student", trained):
        values["divergence"] = token_losses(loaded.distiller, [pair])[0]
    return {"values": {name: _digits(values[name]) for name in SHOWN}, "top": top}


def matches(a: list[int], b: list[int], breaks: set[int] = frozenset()) -> list[list[int]]:
    """Tokens that two texts share, in order: [[start in a, start in b, length], ...]. Whole lines
    first (a token of `breaks` ends one), then tokens: all at once would take minutes."""

    def lines(ids):
        edges = [0, *(i + 1 for i, token in enumerate(ids[:-1]) if token in breaks), len(ids)]
        return [tuple(ids[s:e]) for s, e in itertools.pairwise(edges)], edges

    (in_a, at_a), (in_b, at_b) = lines(a), lines(b)
    found, whole = [[0, 0, 0]], difflib.SequenceMatcher(None, in_a, in_b, autojunk=False)
    for tag, i1, i2, j1, j2 in whole.get_opcodes():
        (s_a, e_a), (s_b, e_b) = (at_a[i1], at_a[i2]), (at_b[j1], at_b[j2])
        within = difflib.SequenceMatcher(None, a[s_a:e_a], b[s_b:e_b], autojunk=False)
        runs = [(0, 0, e_a - s_a)] if tag == "equal" else within.get_matching_blocks()
        for i, j, n in runs:
            if [s_a + i, s_b + j] == [start + found[-1][2] for start in found[-1][:2]]:
                found[-1][2] += n
            else:
                found.append([s_a + i, s_b + j, n])
    return [run for run in found if run[2]]


def view(
    loaded: Loaded, task, tables: dict, row: dict, sample: int = 0, *, trained: bool = False
) -> dict:
    """One problem with all its texts, scored, for the page. tables: {"y_o": ...}, or answers,
    {"base": ..., method: ...}; trained: under the student after training (answers of the method
    always are, of base never). ValueError: no such sample, SettingsError: nothing teaches it."""
    run, recipe, tokenizer = loaded.run, loaded.run.recipe, loaded.tokenizer
    if run.mode == "opsd" and not row["solution"]:
        why = "has no reference solution, and in mode opsd nothing else teaches"
        raise SettingsError(f"{row['id']} {why}: look at it in mode opd")
    key = (row["id"], sample, loaded.seed)
    found = {name: table.set_index(["id", "sample", "seed"]) for name, table in tables.items()}
    found = {name: t.loc[key].to_dict() for name, t in found.items() if key in t.index}
    if not found:
        raise ValueError(f"there is no sample {sample} of {row['id']} for seed {loaded.seed}")
    if row["solution"]:  # as a target of training: a cut one has no end
        student, limit = run.model_path("student", loaded.seed), run.settings.lengths.reference
        y_star = references(pd.DataFrame([row]), {loaded.seed: student}, limit).iloc[0].to_dict()
        found["y_star"] = y_star | {"finished": y_star["token_ids"][-1] == tokenizer.eos_token_id}
    if "y_r" in found and "y_o" in found and recipe.context == "refine":
        found["y_r"]["attempt"] = found["y_o"]["text"]
    shown = [_shown(loaded, task, row, name, one, trained) for name, one in found.items()]
    used = {i for t in shown for i in (*t["ids"], t.get("right", tokenizer.eos_token_id))}
    used |= {i for t in shown for top in t["top"].values() for ids in top["ids"] for i in ids}
    spelled = {i: tokenizer.decode([i]) for i in sorted(used)}
    pieces = [i for i, text in spelled.items() if "\ufffd" in text]  # bytes, by their name
    spelled |= {i: str(tokenizer.convert_ids_to_tokens(i)) for i in pieces}
    breaks = {i for i, text in spelled.items() if "\n" in text}
    about = {"scale": run.scale, "mode": run.mode, "method": run.method, "seed": loaded.seed}
    about |= recipe.model_dump(include={"divergence", "trajectory", "clip", "top_k"})
    two = itertools.combinations([(t["name"], t["ids"]) for t in shown], 2)
    return {
        "run": about,
        "problem": {k: row[k] or "" for k in ("id", "source", "problem", "answer", "solution")},
        "vocabulary": {str(i): text for i, text in spelled.items()},
        "end": tokenizer.eos_token_id,
        "texts": shown,
        "matches": {f"{a}/{b}": matches(in_a, in_b, breaks) for (a, in_a), (b, in_b) in two},
    }


def _shown(loaded: Loaded, task, row: dict, name: str, response: dict, trained: bool) -> dict:
    """One text. response: token_ids, correct, finished; attempt of a y_r."""
    tokenizer, table = loaded.tokenizer, pd.DataFrame([{**response, "id": row["id"]}])
    (pair,) = pairs(loaded.run, loaded.seed, table, pd.DataFrame([row]))
    trained = name not in LABELS or (trained and name != "base")
    about = {
        "name": name, "label": LABELS.get(name, f"answer after {name}"), "ids": pair.response_ids,
        "correct": None if response["correct"] is None else bool(response["correct"]),
        "finished": bool(response["finished"]),
        "student": "after training" if trained else "at step 0",
        "student_sees": tokenizer.decode(pair.student_ids),
        "teacher_sees": tokenizer.decode(pair.teacher_ids),
        **score(loaded, pair, trained=trained),
    }  # fmt: skip
    wrong, right = mistakes(loaded.run, task, pd.DataFrame([row]), table).iloc[0]
    return about | ({"wrong": int(wrong), "right": int(right)} if right >= 0 else {"wrong": None})


def live(loaded: Loaded, task, row: dict, *, trained: bool = False, draw: int = 0) -> dict:
    """The view of a problem (of a set, or `task.problem(text)`) that is attempted, by the student
    at step 0 or `trained`, rewritten and scored now. draw: other random numbers."""
    run, seed = loaded.run, loaded.seed

    def write(role: str, prompt: prompts.Prompt, sampling: Sampling) -> pd.DataFrame:
        how = sampling.model_dump(include={"max_new_tokens", "temperature", "top_p", "top_k"})
        with _model(loaded, role, trained) as model, jobs.model_compute():
            stop = models.stop_ids(model.generation_config, loaded.tokenizer)
            (done,) = generate.decode(model, [prompt.ids], stop_ids=stop, seeds=[draw], **how)
        text = loaded.tokenizer.decode(done.token_ids, skip_special_tokens=True)
        about = {"id": row["id"], "sample": 0, "seed": seed, "text": text}
        said = pd.DataFrame([about | done._asdict()])
        return said.assign(correct=grade(task, said, [row]) if row["answer"] else None)

    y_o = write("student", prompts.student_prompts(run, seed, [row])[0], run.settings.rollout)
    asked = prompts.teacher_prompts(run, seed, [row], y_o["text"].tolist())[0]
    y_r = write("teacher", asked, run.settings.refinement)
    return view(loaded, task, {"y_o": y_o, "y_r": y_r}, row, trained=trained)


def page(view: dict) -> str:
    """HTML of its own. Model output is data only: a policy lets only its script run."""
    source = Path(__file__).with_name("explore.html").read_text(encoding="utf-8")
    script = re.search(r'<script type="module">(.*?)</script>', source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    spell, plain = view["vocabulary"], [view["problem"]["problem"]]
    plain += [f"{t['label']}\n{''.join(spell[str(i)] for i in t['ids'])}" for t in view["texts"]]
    template = jinja2.Environment(autoescape=True, keep_trailing_newline=True).from_string(source)
    value = json.dumps(view, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return template.render(**view, digest=digest, plain="\n\n".join(plain), view=value)


def frame(view: dict):
    """The page in a frame of a notebook; it begins with a line break, or IPython would warn."""
    from IPython.display import HTML

    how = 'sandbox="allow-scripts" style="width: 100%; height: 960px; border: 0; resize: vertical"'
    return HTML(f'\n<iframe title="the view" {how} srcdoc="{html.escape(page(view))}"></iframe>')
