"""Prompts, token for token."""

from datetime import date

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trdlib import prompts
from trdlib.run import get_run
from trdlib.settings import Models, SettingsError
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

    class Plain:  # render() only needs these
        chat_template, added_tokens_decoder = "plain", {}

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


def test_who_changes_a_prompt_changes_no_other(tokenizer):
    how = {"style": "tiny", "problem": "Route#A"}
    first = prompts.context("solve", tokenizer, **how)
    before = [*first.ids]
    first.ids.append(0)
    assert prompts.context("solve", tokenizer, **how).ids == before


# ----------------------------------------------------------- special tokens as text, today's date

SPECIAL = ["<|im_start|>", "<|im_end|>", "<unk>", "<s>"]
CHAT = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content | trim }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer_of(kind):
    """A small tokenizer as those of the families of models are made."""
    letters = sorted({*map(chr, range(32, 127)), "\n", "\u2581"})
    if kind == "bytes":  # Qwen, Llama 3: byte-level BPE, special tokens behind the vocabulary
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {t: i for i, t in enumerate([*alphabet, "<|", "th"])}
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("<", "|"), ("t", "h")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    elif kind == "sentencepiece":  # Llama 2, Gemma: special tokens inside the vocabulary
        vocabulary = {t: i for i, t in enumerate([*SPECIAL, *letters, "th"])}
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("t", "h")], unk_token="<unk>"))
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    elif kind == "unigram":
        pieces = [(t, 0.0) for t in SPECIAL] + [(t, -2.0 - len(t)) for t in [*letters, "th"]]
        backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    added = [tokenizers.AddedToken(t, special=True, normalized=False) for t in SPECIAL]
    backend.add_special_tokens(added)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    made.chat_template = CHAT
    return made


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "unigram"])
def test_a_special_token_that_is_only_text_is_text(kind):
    tokenizer = tokenizer_of(kind)
    special = tokenizer.convert_tokens_to_ids(SPECIAL)

    def ids(text):
        return prompts.render([{"role": "user", "content": text}], tokenizer)

    plain = ids("the end")
    ask = [{"role": "user", "content": "the end"}]
    rendered = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    assert plain == tokenizer.encode(rendered, add_special_tokens=False)
    assert [i for i in plain if i in special] == [special[0], special[1], special[0]]
    for text in ("What does <|im_end|> mean?", "<|im_end|>", "a<s><unk>", "<|im_start|>user\nb"):
        found = ids(text)
        assert [i for i in found if i in special] == [special[0], special[1], special[0]], text
        # the rest of the prompt is as it was, and the text is all there
        assert found[:2] == plain[:2] and found[-3:] == plain[-3:]
        spelled = "".join(tokenizer.convert_ids_to_tokens(found)).replace("\u0120", " ")
        shown = spelled.replace("\u010a", "\n").replace("\u2581", " ")
        assert text in shown, (text, shown)


def test_what_cannot_be_text_is_counted_and_named(project):
    rows = [{**ROW, "id": "a"}, {**ROW, "id": "b", "problem": "Compute:<|im_end|>"}]
    words = r"1 of 2 prompts cannot be made; b: this tokenizer cannot read <\|im_end\|> as text"
    with pytest.raises(ValueError, match=words):
        prompts.student_prompts(get_run("smoke"), 0, rows)


def test_a_template_that_asks_for_the_date_gets_that_of_the_settings(tokenizer, project):
    original, ask = tokenizer.chat_template, [{"role": "user", "content": "Solve"}]
    try:
        tokenizer.chat_template = original + "{{ strftime_now('%Y') }}"
        usual, other = (
            prompts.render(ask, tokenizer, **how) for how in ({}, {"date": "2031-02-03"})
        )
        tokenizer.chat_template = original
        head = len(prompts.render(ask, tokenizer))
        assert tokenizer.decode(other[head:]) == "2031"
        assert tokenizer.decode(usual[head:]) == Models(student="x").date[:4] == "2026"
    finally:
        tokenizer.chat_template = original
    assert Models(student="x", date=date(2031, 2, 3)).date == "2031-02-03"  # as YAML reads it
    assert get_run("smoke models.date=2031-02-03").settings.models.date == "2031-02-03"
    with pytest.raises(SettingsError, match=r"models\.date: Invalid isoformat"):
        get_run("smoke models.date=yesterday")
