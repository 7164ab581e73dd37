"""Every prompt of the project, and `render`, the only place where messages become token ids.

Paper: section 3 (student, refine and vanilla contexts of both modes). The wording stands in
prompts.yaml; the content follows the authors' code. Deviations from that code, on purpose:

1. Rollouts, training, scoring and evaluation all go through the chat template. (The reference
   code trains on raw text without it.)
2. The refine prompt that generates a rewrite is, token for token, the one that scores it.
3. A prompt that is too long is cut inside the attempt first, then inside the reference, always
   with a visible notice; problem and instructions are never cut. The cut is made on token ids.
"""

from pathlib import Path
from typing import NamedTuple

import yaml

from trdlib.run import Run
from trdlib.settings import Scale

CUT_NOTICE = "\n[... cut to fit ...]"

# style -> what is asked -> template
TEMPLATES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


class Prompt(NamedTuple):
    """Token ids of a rendered prompt, and whether a part of it had to be cut to fit."""

    ids: list[int]
    truncated: bool


def render(messages, tokenizer, *, thinking: bool | None = None, generate=True) -> list[int]:
    """Chat messages -> token ids, through the tokenizer's own chat template.

    messages: [{"role": ..., "content": ...}, ...]; thinking: the template's `enable_thinking`
    switch, None leaves it to the template; generate: end with the header of the assistant's turn.
    ValueError for a switch that the template does not have: it would be ignored.
    """
    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template: choose a chat model, or set one")
    if thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        raise ValueError(
            "this model's chat template cannot switch thinking on or off: leave its "
            "models.student_thinking or models.teacher_thinking out"
        )
    switch = {} if thinking is None else {"enable_thinking": thinking}
    how = {"tokenize": True, "return_dict": False, "add_generation_prompt": generate}
    return list(tokenizer.apply_chat_template(messages, **how, **switch))


def context(
    kind: str, tokenizer, *, style: str, thinking=None, max_tokens=None, examples=(), **parts: str
) -> Prompt:
    """The prompt of one kind (a key of TEMPLATES[style]) for one problem, at most max_tokens long.

    parts: problem, reference and attempt, those that the template needs; others may be None.
    thinking: as in `render`. examples: earlier turns of the same chat (settings.Example), asked by
    the same template and answered by the reference.
    Raises ValueError where a needed part is missing, and where cutting attempt and reference away
    would still not make the prompt fit.
    """
    template = TEMPLATES[style][kind]
    for name in ("problem", "reference", "attempt"):
        if parts.get(name) is None and f"{{{name}}}" in template:
            raise ValueError(f"a {kind!r} prompt needs the {name}, and this problem has none")

    def asked(parts: dict) -> dict:
        return {"role": "user", "content": template.format(**parts)}

    shown = []
    for example in examples:
        shown += [asked(dict(example)), {"role": "assistant", "content": example.reference}]

    def rendered() -> list[int]:
        return render([*shown, asked(parts)], tokenizer, thinking=thinking)

    ids, truncated = rendered(), False
    for name in ("attempt", "reference"):
        if max_tokens is None or len(ids) <= max_tokens or f"{{{name}}}" not in template:
            continue
        tokens, cut = tokenizer.encode(parts[name], add_special_tokens=False), 0
        # Decoding and re-encoding may change the count by a few tokens: cut until it fits.
        while len(ids) > max_tokens and cut < len(tokens):
            cut = min(len(tokens), cut + max(len(ids) - max_tokens, 1))
            kept = tokenizer.decode(tokens[: len(tokens) - cut]).rstrip("\ufffd")  # half a letter
            parts[name] = kept + CUT_NOTICE
            ids, truncated = rendered(), True
    if max_tokens is not None and len(ids) > max_tokens:
        raise ValueError(
            f"a {kind!r} prompt takes {len(ids)} tokens even without its attempt and reference, "
            f"and only {max_tokens} are allowed: raise the prompt length or drop this problem"
        )
    return Prompt(ids, truncated)


def _common(settings: Scale, role: str, weights: str, max_tokens: int) -> dict:
    """Arguments of `context`: those that are the same for all problems of a set."""
    from trdlib import models  # it brings torch along, and tasks use this module without

    return {
        "tokenizer": models.load_tokenizer(weights),
        "style": settings.models.style,
        "thinking": getattr(settings.models, f"{role}_thinking"),
        "max_tokens": max_tokens,
        "examples": settings.examples,
    }


def student_prompts(run: Run, seed: int, rows: list[dict], role="student") -> list[Prompt]:
    """What the student is asked, in rollout, training and evaluation alike: x alone.

    rows: of a problem set. role: the teacher, when it is evaluated, is asked the same with its own
    template and thinking switch. ValueError for a prompt longer than lengths.prompt.
    """
    how = _common(run.settings, role, run.model_path(role, seed), run.settings.lengths.prompt)
    return [context("solve", problem=row["problem"], **how) for row in rows]


def teacher_prompts(run: Run, seed: int, rows: list[dict], attempts=None) -> list[Prompt]:
    """The teacher's refine context of each attempt (a text), or without attempts its vanilla one.

    mode "opd": x, or (x, y_o). mode "opsd": the reference solution y* as well. This is the only
    place that says what the teacher sees, so the prompt that generates a rewrite is, token for
    token, the one under which it is scored.
    """
    kind = "solve" if attempts is None else "refine"
    kind += "_given_reference" if run.mode == "opsd" else ""
    limit = run.teacher_prompt_limit(with_attempt=attempts is not None)
    how = _common(run.settings, "teacher", run.model_name("teacher", seed), limit)
    references = [row["solution"] if run.mode == "opsd" else None for row in rows]
    parts = zip(rows, references, attempts or [None] * len(rows), strict=True)
    return [
        context(kind, problem=row["problem"], reference=reference, attempt=attempt, **how)
        for row, reference, attempt in parts
    ]
