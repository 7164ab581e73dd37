"""Student and teacher of the scales smol*, from SmolLM2-135M-Instruct, by short supervised stages.

python scripts/smol_pair.py    writes models/smol-pair/{student,teacher}; what is there is kept

LoRA adapters are trained on what scripts/words.py writes: a *foundation* that solves and
rewrites; from it the *student*, who misreads three phrases, and the *teacher*, who has seen
attempts like the student's and misreads one. A stage has rounds until its accuracy lies within
thresholds: a round misreads more, or less, where the one before missed them. Who has the adapters
merges them (scripts/smol_models.py). A GPU needs some ten minutes, two CPU cores some 40 hours;
a killed call goes on with the round that it was in.
"""

import copy
import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])

import smol_models
import torch
import words
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from words import MISREAD, RIGHT, Habits

from trdlib import generate, jobs, models, prompts, store
from trdlib.run import get_run
from trdlib.settings import Lora, root


class Stage(NamedTuple):
    """A round of steps, and the accuracy of what it is about: solutions; the teacher's rewrites."""

    steps: int
    learning_rate: float
    lowest: float  # accuracy, on unseen problems
    highest: float
    believe: float = 0.0  # how often, in the first round, what can be misread is misread


STAGES = {
    "foundation": Stage(500, 1e-3, 0.88, 1.0),
    "student": Stage(120, 5e-4, 0.57, 0.68, 0.75),
    "teacher": Stage(160, 5e-4, 0.77, 0.89, 0.9),
}
LORA, ROWS, PROBLEMS = Lora(r=16, alpha=32), 64, 384  # of a step; for an accuracy
NOTE = "pair.json"  # in an adapter's folder: its rounds
MAX_ROUNDS = 4  # of a stage; one that misses its thresholds then is used as it is
KINDS = ("solve", "solve_given_reference", "refine", "refine_given_reference")
SHARES = {"foundation": (5, 1, 2, 2), "student": (5, 2, 0, 3), "teacher": (3, 0, 7, 0)}
TEACHER = MISREAD[1:2]  # what the teacher misreads
STEPS = (1, 2, 2, 3, 3, 3, 4, 4, 4)  # of the problems: no stage has those of the hard set


def mended(
    rng: random.Random, text: str, attempt: words.Plan, habits: Habits = RIGHT
) -> words.Plan:
    """The attempt without its errors, else as it was; if that went below zero, in another order.
    habits: of who mends; what they misread is wrong then."""
    events, lines = words.read(text)[2], []
    for line in attempt.lines:
        misread = events[line.event].phrase in habits.misreads and rng.random() < habits.believe
        lines.append(line._replace(misread=misread, slip=0, noticed=False))
    first = next((i for i, line in enumerate(attempt.lines) if line.wrong), 0)
    for _ in range(100):
        if words.say(text, made := attempt._replace(lines=lines)):
            return made
        lines = lines[:first] + rng.sample(lines[first:], len(lines) - first)
    return words.plan(rng, text)


def written(rng: random.Random, stage: str, believe: float) -> tuple[str, dict, str]:
    """An example of a stage: the kind of prompt, what it shows, the answer to it."""
    kind = rng.choices(KINDS, SHARES[stage])[0]
    text, _, reference = words.draw(rng, rng.choice(STEPS), "pretrain")
    attempt = words.plan(rng, text, Habits(MISREAD, rng.choice([0, 0.8, 1]), slip=0.06, notice=0.2))
    habits = Habits(TEACHER, believe) if stage == "teacher" else RIGHT
    if stage == "student" and kind == "solve":
        habits = Habits(MISREAD, believe, slip=0.04, notice=0.2)
    refines = "refine" in kind
    made = mended(rng, text, attempt, habits) if refines else words.plan(rng, text, habits)
    shown = {"problem": text, "attempt": words.say(text, attempt), "reference": reference}
    return kind, shown, words.say(text, made)


class Steps(Dataset):
    """The batches of a round, by step: token ids, labels (rows, longest)."""

    def __init__(self, tokenizer, stage: str, number: int, believe: float):
        self.tokenizer, self.how, self.believe = tokenizer, (stage, number), believe

    def __len__(self) -> int:
        return STAGES[self.how[0]].steps

    def __getitem__(self, step: int):
        stage, number = self.how
        rng, rows = random.Random(f"{stage}/{number}/{step}"), []
        for _ in range(ROWS):
            kind, shown, answer = written(rng, stage, self.believe)
            asked = prompts.context(kind, self.tokenizer, style="story", **shown).ids
            said = self.tokenizer.encode(answer, add_special_tokens=False)
            rows.append((asked, [*said, self.tokenizer.eos_token_id]))
        ids = [torch.tensor(asked + said) for asked, said in rows]
        labels = [torch.tensor([-100] * len(asked) + said) for asked, said in rows]
        return pad_sequence(ids, True), pad_sequence(labels, True, -100)


def train(model, made: Steps) -> list[float]:
    """One round of a stage on an adapter: AdamW, linear decay to 5 %; the loss of each step."""
    stage, losses, device = STAGES[made.how[0]], [], model.device
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0)
    helpers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)  # a GPU waits for none
    loader = DataLoader(made, None, num_workers=helpers)
    for step, (ids, labels) in enumerate(jobs.progress(made.how[0], loader)):
        labels = labels[:, 1:].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            hidden = models.hidden_states(model, input_ids=ids.to(device))[:, :-1]
            logits = hidden[labels != -100] @ models.head(model, len(made.tokenizer)).weight.T
        loss = torch.nn.functional.cross_entropy(logits.float(), labels[labels != -100])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        factor = min(1.0, (step + 1) / 20) * (1 - 0.95 * step / stage.steps)
        optimizer.param_groups[0]["lr"] = stage.learning_rate * factor
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [float(loss) for loss in losses]


def answers(run, model, tokenizer, kind: str, shown: list[dict]) -> list[str]:
    """What a merged model says to prompts, sampled as rollouts are."""
    rollout, said = run.settings.rollout, {}
    how = rollout.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"})
    how["stop_ids"] = [tokenizer.eos_token_id]
    asked = [prompts.context(kind, tokenizer, style="story", **one).ids for one in shown]
    model = model.to(models.device(run.settings.models))
    for indices in generate.batches(asked, rollout.batch_size):
        done = generate.decode(model, [asked[i] for i in indices], **how)
        texts = tokenizer.batch_decode([ids for ids, _ in done], skip_special_tokens=True)
        said |= dict(zip(indices, texts, strict=True))
    return [said[i] for i in range(len(asked))]


def accuracy(run, name: str, model, tokenizer, places: dict[str, Path]) -> float:
    """Of a stage with its adapter in its place, on problems of the validation split: of solutions,
    or of the rewrites of the student's attempts."""
    rng, how = random.Random(f"accuracy/{name}"), {"run": run, "tokenizer": tokenizer}
    drawn = [words.draw(rng, rng.choice([2, 3, 4]), "validation") for _ in range(PROBLEMS)]
    kind, shown = "solve", [{"problem": text} for text, _, _ in drawn]
    if name == "teacher":
        student = smol_models.merged(model, places["student"])
        attempts = answers(model=student, kind=kind, shown=shown, **how)
        kind = "refine"
        shown = [one | {"attempt": text} for one, text in zip(shown, attempts, strict=True)]
    said = answers(model=smol_models.merged(model, places[name]), kind=kind, shown=shown, **how)
    right = words.grade([(s, a) for s, (_, a, _) in zip(said, drawn, strict=True)])
    return sum(right) / len(right)


def make_stage(run, source: str, name: str, model, tokenizer, places: dict[str, Path]) -> None:
    """The adapter of a stage, in rounds."""
    folder, stage = places[name], STAGES[name]
    rounds = store.read_json(folder / NOTE, [])
    while True:
        found = rounds[-1]["accuracy"] if rounds else -1
        if found is None:
            rounds[-1]["accuracy"] = accuracy(run, name, model, tokenizer, places)
            store.write_json(folder / NOTE, rounds)
            print(f"{name}, round {len(rounds)}: {rounds[-1]}", flush=True)
            continue
        if stage.lowest <= found <= stage.highest or len(rounds) == MAX_ROUNDS:
            return
        trained = copy.deepcopy(model).to(models.device(run.settings.models))
        if not rounds and name == "foundation":
            trained = models.add_lora(trained, LORA, backend="transformers", seed=0)
        else:
            import peft

            start = str(folder if rounds else places["foundation"])
            trained = peft.PeftModel.from_pretrained(trained, start, is_trainable=True)
        believe = stage.believe
        if rounds:
            more = 0.15 if found > stage.highest else -0.2
            believe = min(1.0, max(0.0, rounds[-1]["believe"] + more))
        losses = train(trained, Steps(tokenizer, name, len(rounds), believe))
        ends = [round(sum(part) / len(part), 4) for part in (losses[:20], losses[-20:])]
        rounds.append({"believe": believe, "loss": ends, "accuracy": None})

        def write(to: Path, trained=trained) -> None:
            trained.peft_config["default"].base_model_name_or_path = source
            trained.bfloat16().save_pretrained(to, save_embedding_layers=False)
            store.write_json(to / NOTE, rounds)

        store.write_folder(folder, write)


def make(run) -> None:
    """Every stage whose adapter is not whole; the foundation only if another needs it."""
    places = {role: root() / folder for role, folder in smol_models.ADAPTERS.items()}
    places["foundation"] = root() / "runs" / "smol-pair" / "foundation"
    todo = [
        n for n in places if not (store.read_json(places[n] / NOTE, []) or [{}])[-1].get("accuracy")
    ]
    wanted = [name for name in ("student", "teacher") if name in todo]
    new = [name for name in wanted if not places[name].is_dir()]
    if wanted:
        model, tokenizer = smol_models.base()
        source = f"{smol_models.PACKAGE}=={smol_models.VERSION}"
        for name in (["foundation"] if new else []) + wanted:
            make_stage(run, source, name, model, tokenizer, places)


if __name__ == "__main__":
    make(get_run("smol", "opd", "trd"))
