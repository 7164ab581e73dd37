"""Every prompt of the project, and `render`, the only place where messages become token ids.

Paper: section 3 (student, refine and vanilla contexts of both modes). The wording stands in
prompts.yaml; the content follows the authors' code. Deviations from that code, on purpose:

1. Rollouts, training, scoring, evaluation: all go through the chat template, not on raw text.
2. The refine prompt that generates a rewrite is, token for token, the one that scores it.
3. A prompt that is too long is cut inside the attempt first, then inside the reference, always
   with a visible notice; problem and instructions are never cut. The cut is made on token ids.
4. What only looks like a special token (`<|im_end|>` in a problem) is read as text.
"""

import functools
import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import yaml
from tokenizers import Tokenizer

from trdlib.run import Run
from trdlib.settings import DATE

CUT_NOTICE = "\n[... cut to fit ...]"
# style -> what is asked -> template
TEMPLATES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
# No text has these characters: around a token that the template wrote; in one that is only text.
_WRITTEN, _TEXT = "\ufdd0", "\ufdd1"


class Prompt(NamedTuple):
    """Token ids of a rendered prompt, and whether a part of it had to be cut to fit."""

    ids: list[int]
    truncated: bool


@functools.lru_cache(maxsize=8)
def _special(tokenizer) -> dict[str, int]:
    """How its special tokens are spelled, the longest first, and their ids."""
    found = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return {token: found[token] for token in sorted(found, key=len, reverse=True)}


@functools.lru_cache(maxsize=8)
def _respelled(tokenizer) -> Tokenizer:
    """The tokenizer, with special tokens that are spelled with _WRITTEN around them."""
    quoted = [re.escape(json.dumps(t, ensure_ascii=False)[1:-1]) for t in _special(tokenizer)]
    state, new = tokenizer.backend_tokenizer.to_str(), rf'"{_WRITTEN}\1{_WRITTEN}"'
    return Tokenizer.from_str(re.sub(f'"({"|".join(quoted)})"', new, state))


def _as_text(messages, tokenizer, template) -> list[int]:
    """Token ids of messages that hold special tokens as text; template: messages -> text."""
    ids, special = _special(tokenizer), re.compile("|".join(map(re.escape, _special(tokenizer))))
    texts = [special.sub(lambda token: _TEXT.join(token[0]), m["content"]) for m in messages]
    hidden = [{**m, "content": text} for m, text in zip(messages, texts, strict=True)]
    text, written = special.subn(rf"{_WRITTEN}\g<0>{_WRITTEN}", template(hidden))
    if hasattr(tokenizer, "backend_tokenizer"):
        text = text.replace(_TEXT, "")
        found = _respelled(tokenizer).encode(text, add_special_tokens=False).ids
        if sum(i in ids.values() for i in found) == written:
            return found
    held = sorted({token for m in messages for token in special.findall(m["content"])})
    raise ValueError(f"this tokenizer cannot read {', '.join(held)} as text: take it out")


def render(messages, tokenizer, *, thinking: bool | None = None, date: str = DATE) -> list[int]:
    """Chat messages -> token ids, through the tokenizer's own chat template.

    thinking: the template's `enable_thinking`, None leaves it to the template; date: of today
    (year-month-day), for a template that asks. ValueError where there is no template, or no switch.
    """
    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template: choose a chat model, or set one")
    today = datetime.fromisoformat(date).strftime  # not the clock's: it changes prompts
    how = {"add_generation_prompt": True, "strftime_now": today}
    if thinking is not None:
        how["enable_thinking"] = thinking
        if "enable_thinking" not in str(tokenizer.chat_template):
            fault = "this chat template cannot switch thinking on or off: leave its"
            raise ValueError(f"{fault} models.student_thinking or models.teacher_thinking out")
    template = functools.partial(tokenizer.apply_chat_template, **how)
    if any(token in m["content"] for m in messages for token in _special(tokenizer)):
        return _as_text(messages, tokenizer, functools.partial(template, tokenize=False))
    return list(template(messages, tokenize=True, return_dict=False))


def context(
    kind: str, tokenizer, *, style: str, max_tokens: float = math.inf, thinking=None,
    date=DATE, raw=False, **parts: str | None,
) -> Prompt:  # fmt: skip
    """The prompt of one kind (a key of TEMPLATES[style]) for one problem, at most max_tokens long.

    parts: problem, reference and attempt; those that the template does not need may be None. raw:
    without chat template, a line. ValueError where a part is missing, or cutting does not suffice.
    """
    template = TEMPLATES[style][kind]
    needed = [part for part in ("problem", "attempt", "reference") if f"{{{part}}}" in template]
    if missing := [part for part in needed if parts.get(part) is None]:
        raise ValueError(f"a {kind!r} prompt needs the {missing[0]}, and this problem has none")

    def rendered() -> list[int]:
        turns = [{"role": "user", "content": template.format(**parts)}]
        if raw:
            return _as_text(turns, tokenizer, lambda of: f"{of[0]['content']}\n")
        return render(turns, tokenizer, thinking=thinking, date=date)

    ids, truncated = rendered(), False
    for name in needed[1:]:
        if len(ids) <= max_tokens:
            break
        tokens, cut = tokenizer.encode(parts[name], add_special_tokens=False), 0
        # Decoding and re-encoding may change the count by a few tokens: cut until it fits.
        while len(ids) > max_tokens and cut < len(tokens):
            cut = min(len(tokens), cut + len(ids) - max_tokens)
            kept = tokenizer.decode(tokens[: len(tokens) - cut]).rstrip("\ufffd")  # half a letter
            parts[name] = kept + CUT_NOTICE
            ids, truncated = rendered(), True
    if len(ids) > max_tokens:
        raise ValueError(
            f"a {kind!r} prompt takes {len(ids)} tokens even without its attempt and reference, "
            f"and only {max_tokens} are allowed: raise the prompt length or drop this problem"
        )
    return Prompt(ids, truncated)


# Every step asks again, and rendering was half a minute of each: those of a run are remembered.
_remembered = functools.lru_cache(2**15)(context)
_first: dict[tuple, object] = {}


@functools.lru_cache(maxsize=32)
def _alike(tokenizer):
    """The first tokenizer that renders as this one: the base models of a scale have the same."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer
    state = tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template)
    return _first.setdefault((*state, str(tokenizer.special_tokens_map)), tokenizer)


def student_prompts(run: Run, seed: int, rows: list[dict], role="student", **how) -> list[Prompt]:
    """What the student is asked, in rollout, training and evaluation alike: x alone.

    role: an evaluated teacher is asked the same by its own template and thinking switch. how: `raw`
    of context. ValueError, with how many, for prompts longer than lengths.prompt.
    """
    limit = run.settings.lengths.prompt
    return _prompts(run, role, run.model_path(role, seed), "solve", limit, rows, **how)


def teacher_prompts(run: Run, seed: int, rows: list[dict], attempts=None, **how) -> list[Prompt]:
    """The teacher's refine context of each attempt (a text), or without attempts its vanilla one.

    mode "opd": x, or (x, y_o). mode "opsd": the reference solution y* as well.
    """
    kind = "solve" if attempts is None else "refine"
    kind += "_given_reference" if run.mode == "opsd" else ""
    limit = run.teacher_prompt_limit(with_attempt=attempts is not None)
    weights = run.model_name("teacher", seed)
    return _prompts(run, "teacher", weights, kind, limit, rows, attempts, **how)


def _prompts(run: Run, role: str, weights: str, kind: str, limit: int, rows, attempts=None, **how):
    from trdlib import models  # it brings torch along, and tasks use this module without

    of, found, faults = run.settings.models, [], []
    how = {"style": of.style, "date": of.date, "raw": False} | how
    how["thinking"] = getattr(of, f"{role}_thinking")
    how["tokenizer"] = _alike(models.load_tokenizer(weights))
    for row, attempt in zip(rows, attempts or [None] * len(rows), strict=True):
        parts = {"problem": row["problem"], "attempt": attempt, "reference": row.get("solution")}
        try:
            found.append(_remembered(kind, **parts, **how, max_tokens=limit))
        except ValueError as error:
            faults.append(f"{row.get('id', 'one')}: {error}")
    if faults:
        raise ValueError(f"{len(faults)} of {len(rows)} prompts cannot be made; {faults[0]}")
    return found
