"""Every prompt of the project, and `render`, the only place where messages become token ids.

Paper: section 3 (student, refine and vanilla contexts of both modes). The wording is ours; the
content follows the authors' code. Deviations from that code, on purpose:

1. Rollouts, training, scoring and evaluation all go through the chat template. (The reference
   code trains on raw text without it.)
2. The refine prompt that generates a rewrite is, token for token, the one that scores it.
3. A prompt that is too long is cut inside the attempt first, then inside the reference, always
   with a visible notice; problem and instructions are never cut. The cut is made on token ids.
"""

from __future__ import annotations

from typing import NamedTuple

CUT_NOTICE = "\n[... cut to fit ...]"

_BOXED = "Reason step by step and put the final answer in \\boxed{{}}."
_PROGRAM = "Reason step by step, then give the complete program in one ```python block."


def _in_words(ending: str) -> dict[str, str]:
    return {
        "solve": "{problem}\n\n" + ending,
        "solve_given_reference": (
            "## Problem\n{problem}\n\n## Reference Solution\n{reference}\n\n## Instructions\n"
            "The reference solution above is correct. Understand it, then solve the problem in "
            "your own way, without mentioning the reference. " + ending
        ),
        "refine": (
            "## Problem\n{problem}\n\n## Your Initial Solution\n{attempt}\n\n## Instructions\n"
            "Rewrite your initial solution. Keep its structure and line of reasoning, keep every "
            "step that is correct, and find and fix the errors. Output only the rewritten "
            "solution, without comments on the changes. " + ending
        ),
        "refine_given_reference": (
            "## Problem\n{problem}\n\n## Reference Solution\n{reference}\n\n"
            "## Your Initial Solution\n{attempt}\n\n## Instructions\n"
            "Rewrite your initial solution so that it agrees with the reference solution. Keep "
            "the useful parts of your structure and style, keep every step that is correct, and "
            "fix the errors. Output only the rewritten solution, without mentioning the "
            "reference or the changes. " + ending
        ),
    }


# style -> what is asked -> template. "tiny" is the terse language of the procedural tasks, whose
# tokenizer has no words for more; "math" and "code" are for pretrained models; "story" for those
# too small to follow instructions, which are shown EXAMPLES instead.
TEMPLATES = {
    "tiny": {
        "solve": "{problem}\nSolve",
        "solve_given_reference": "{problem}\nReference:\n{reference}\nSolve",
        "refine": "{problem}\nAttempt:\n{attempt}\nRewrite",
        "refine_given_reference": (
            "{problem}\nReference:\n{reference}\nAttempt:\n{attempt}\nRewrite"
        ),
    },
    "math": _in_words(_BOXED),
    "code": _in_words(_PROGRAM),
    "story": {
        "solve": "{problem}",
        "solve_given_reference": "{problem}\n\nSolution: {reference}",
        "refine": "{problem}\n\nAttempt: {attempt}",
        "refine_given_reference": "{problem}\n\nAttempt: {attempt}\n\nSolution: {reference}",
    },
}

# style -> earlier turns of the same chat: asked by the same template, answered by the reference.
EXAMPLES = {
    "story": (
        {
            "problem": (
                "Kim has 7 shells. Kim finds 5 shells. Then Kim loses 3 shells. How many shells "
                "does Kim have now?"
            ),
            "attempt": (
                "Kim finds 5, so 7 - 5 = 2. Then Kim loses 3, so 2 + 3 = 5. The answer is "
                "\\boxed{5}."
            ),
            "reference": (
                "Kim finds 5, so 7 + 5 = 12. Then Kim loses 3, so 12 - 3 = 9. The answer is "
                "\\boxed{9}."
            ),
        },
        {
            "problem": (
                "Leo has 11 keys. Leo sells 6 keys. Then Leo gets 4 keys. How many keys does Leo "
                "have now?"
            ),
            "attempt": (
                "Leo sells 6, so 11 - 6 = 5. Then Leo gets 4, so 5 + 4 = 8. The answer is "
                "\\boxed{8}."
            ),
            "reference": (
                "Leo sells 6, so 11 - 6 = 5. Then Leo gets 4, so 5 + 4 = 9. The answer is "
                "\\boxed{9}."
            ),
        },
    )
}


class Prompt(NamedTuple):
    """Token ids of a rendered prompt, and whether a part of it had to be cut to fit."""

    ids: list[int]
    truncated: bool


def render(
    messages, tokenizer, *, thinking: bool | None = None, generate: bool = True
) -> list[int]:
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
    return list(
        tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=generate, **switch
        )
    )


def context(
    kind: str,
    tokenizer,
    *,
    style: str,
    problem: str,
    reference: str | None = None,
    attempt: str | None = None,
    thinking: bool | None = None,
    max_tokens: int | None = None,
) -> Prompt:
    """The prompt of one kind (a key of TEMPLATES[style]) for one problem, at most max_tokens long.

    Raises ValueError where a needed part is missing, and where cutting attempt and reference away
    would still not make the prompt fit.
    """
    template = TEMPLATES[style][kind]
    parts = {"problem": problem, "reference": reference, "attempt": attempt}
    missing = [name for name, text in parts.items() if text is None and f"{{{name}}}" in template]
    if missing:
        raise ValueError(f"a {kind!r} prompt needs the {missing[0]}, and this problem has none")

    shown = [
        {"role": role, "content": text}
        for example in EXAMPLES.get(style, ())
        for role, text in (
            ("user", template.format(**example)),
            ("assistant", example["reference"]),
        )
    ]

    def rendered() -> list[int]:
        asked = {"role": "user", "content": template.format(**parts)}
        return render([*shown, asked], tokenizer, thinking=thinking)

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


def student_prompt(row: dict, tokenizer, **how) -> Prompt:
    """What the student sees, in training and in evaluation: the problem x alone."""
    return context("solve", tokenizer, problem=row["problem"], **how)


def teacher_prompt(row: dict, tokenizer, *, mode: str, attempt: str | None = None, **how) -> Prompt:
    """What the teacher sees: its vanilla context without an attempt, its refine context with one.

    mode "opd": x, or (x, y_o). mode "opsd": the reference solution y* as well.
    """
    kind = "solve" if attempt is None else "refine"
    kind += "_given_reference" if mode == "opsd" else ""
    reference = row["solution"] if mode == "opsd" else None
    return context(
        kind, tokenizer, problem=row["problem"], reference=reference, attempt=attempt, **how
    )
