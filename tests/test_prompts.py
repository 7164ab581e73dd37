"""Prompts, token for token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trdlib import prompts
from trdlib.run import get_run
from trdlib.settings import Example
from trdlib.tasks import chain, modular
from trdlib.tasks.language import text_of

ROW = {"problem": "Compute:6o-4p-5q-0", "solution": "o-4=2\np-5=4\nq-0=4\n\\boxed{4}"}
ATTEMPT = "o-4=2\np-5=3\nq-0=3\n\\boxed{3}"
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def teacher_context(row, tokenizer, mode, attempt=None, **how):
    """As prompts.teacher_prompts, for one row and any tokenizer."""
    kind = "solve" if attempt is None else "refine"
    kind += "_given_reference" if mode == "opsd" else ""
    parts = {"problem": row["problem"], "reference": row["solution"], "attempt": attempt}
    return prompts.context(kind, tokenizer, **parts, **how)


def test_each_context_is_exactly_this(project, tokenizer):
    """Of a run: what the student and the teacher of either mode see, with and without y_o."""

    def teacher(mode, attempt=None):
        attempts = None if attempt is None else [attempt]
        (prompt,) = prompts.teacher_prompts(get_run("smoke", mode), 0, [ROW], attempts)
        return tokenizer.decode(prompt.ids)

    x, reference = ROW["problem"], f"Reference:\n{ROW['solution']}\n"
    tried = f"\nAttempt:\n{ATTEMPT}"
    student = tokenizer.decode(prompts.student_prompts(get_run("smoke"), 0, [ROW])[0].ids)
    assert student == f"{HEAD}{x}\nSolve{TAIL}"
    assert teacher("opd") == student
    assert teacher("opsd") == f"{HEAD}{x}\n{reference}Solve{TAIL}"
    assert teacher("opd", ATTEMPT) == f"{HEAD}{x}{tried}\nRewrite{TAIL}"
    expected = f"{HEAD}{x}\n{reference.rstrip()}{tried}\nRewrite{TAIL}"
    assert teacher("opsd", ATTEMPT) == expected


@pytest.mark.parametrize(
    ("style", "ending"), [("math", "\\boxed{}."), ("code", "one ```python block.")]
)
def test_prompts_in_words_hold_what_the_paper_says(style, ending):
    """Paper section 2: sections, instructions, the form of the answer; braces survive."""
    row = {"problem": "Find $\\frac{1}{2}$ of {x}.", "solution": "Half: \\boxed{x/2} {z}"}

    class Plain:  # render() only needs these two
        chat_template = "plain"

        def apply_chat_template(self, messages, **_):
            return [messages[0]["content"]]

    def teacher(mode, attempt=None):
        return teacher_context(row, Plain(), mode, attempt, style=style).ids[0]

    content = teacher("opsd", "{y}")
    for part in (row["problem"], row["solution"], "{y}", "Reference Solution", "correct"):
        assert part in content
    assert content.index("## Problem") < content.index("## Reference") < content.index("## Your")
    assert "Reference" not in teacher("opd", "{y}")
    student = prompts.context("solve", Plain(), problem=row["problem"], style=style).ids[0]
    assert student.startswith(row["problem"]) and student == teacher("opd")
    for one in (student, content, teacher("opd", "{y}"), teacher("opsd")):
        assert one.endswith(ending)
    assert "own way" in teacher("opsd") and row["solution"] in teacher("opsd")


def test_the_thinking_switch_reaches_the_template(tokenizer):
    original = tokenizer.chat_template
    try:
        tokenizer.chat_template = original + "{% if enable_thinking is false %}Wait{% endif %}"
        ask = [{"role": "user", "content": "Solve"}]
        plain = prompts.render(ask, tokenizer, thinking=None)
        assert prompts.render(ask, tokenizer, thinking=True) == plain
        off = prompts.render(ask, tokenizer, thinking=False)
        assert off == [*plain, tokenizer.convert_tokens_to_ids("Wait")]
        tokenizer.chat_template = None
        with pytest.raises(ValueError, match="no chat template"):
            prompts.render(ask, tokenizer)
    finally:
        tokenizer.chat_template = original


def test_without_generate_there_is_no_header(tokenizer):
    ask = [{"role": "user", "content": "Solve"}]
    closed = prompts.render(ask, tokenizer, generate=False)
    opened = prompts.render(ask, tokenizer, generate=True)
    assert opened[: len(closed)] == closed
    assert tokenizer.decode(opened[len(closed) :]) == "<|im_start|>assistant\n"


@given(room=st.integers(15, 140), steps=st.integers(3, 8), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_a_long_prompt_is_cut_in_the_attempt_then_in_the_reference(tokenizer, room, steps, seed):
    import random

    problem = chain.random_problem(random.Random(seed), steps)
    solution = text_of(modular.clean(problem))
    row = {"problem": problem, "solution": solution}
    ask = {"mode": "opsd", "attempt": solution, "style": "tiny"}
    full = teacher_context(row, tokenizer, **ask)
    try:
        cut = teacher_context(row, tokenizer, max_tokens=room, **ask)
    except ValueError as error:
        assert "even without its attempt and reference" in str(error)
        return
    assert len(cut.ids) <= room
    assert cut.truncated == (len(full.ids) > room)
    if not cut.truncated:
        assert cut.ids == full.ids
        return
    shown = tokenizer.decode(cut.ids)
    reference, attempt = shown.split("Reference:\n")[1].split("\nAttempt:\n")
    assert shown.startswith(f"{HEAD}{problem}\n")  # the problem is whole
    assert shown.endswith(f"Rewrite{TAIL}")  # and so are the instructions
    whole_reference = reference == solution
    gone = attempt.startswith(tokenizer.decode(tokenizer.encode(prompts.CUT_NOTICE)))
    assert whole_reference or gone  # the reference is touched last


def test_what_is_missing_is_named(tokenizer):
    with pytest.raises(ValueError, match="needs the reference"):
        teacher_context({"problem": "x", "solution": None}, tokenizer, "opsd", style="tiny")


def test_examples_are_earlier_turns_of_the_chat(tokenizer):
    example = Example(problem="Route#A", attempt="A<1", reference="A>4")
    found = prompts.context(
        "refine", tokenizer, style="tiny", problem="Route#B", attempt="B<1", examples=(example,)
    )
    first = f"{HEAD}Route#A\nAttempt:\nA<1\nRewrite{TAIL}A>4<|im_end|>\n"
    assert tokenizer.decode(found.ids) == f"{first}{HEAD}Route#B\nAttempt:\nB<1\nRewrite{TAIL}"
