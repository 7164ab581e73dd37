"""The real chat templates of Qwen3, token for token: thinking, ends of turns, what is scored.

The templates' text is that of the models' repositories, as TRL ships it to recognise them (its
chat_templates/README.md). The tokenizer around it is small: bytes, and Qwen's own added tokens.
"""

from pathlib import Path

import pandas as pd
import pytest
from test_prompts import teacher_context
from transformers import GenerationConfig

from trdlib import engines, evaluate, models, prompts, rollout, settings, tasks
from trdlib.distill import collate
from trdlib.refine import refine, rows_of, training_sets
from trdlib.run import get_run
from trdlib.tasks import math, pretrain

ADDED = {  # token -> special, as in Qwen's tokenizer_config.json: thinking stays in decoded text
    "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<think>": False,
    "</think>": False,
}  # fmt: skip
USER, TURN = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"
PROBLEM = {"id": "a", "problem": "1+1?", "solution": "One and one: \\boxed{2}", "answer": "2"}


def template(name):
    trl = pytest.importorskip("trl", reason="the templates come with trl: [test]")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def build(name):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "|"), ("t", "h"), ("Ċ", "Ċ")]
    vocabulary = {t: i for i, t in enumerate(letters + [a + b for a, b in merges])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for token, special in ADDED.items():
        added = AddedToken(token, normalized=False, special=special)
        (backend.add_special_tokens if special else backend.add_tokens)([added])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = template(name)
    return tokenizer


@pytest.fixture(scope="module")
def qwen3():
    return build("qwen3")


@pytest.fixture(scope="module")
def instruct():
    return build("qwen3_instruct_2507")


def ids_of(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


# ---------------------------------------------------------------------------------- the prompts


@pytest.mark.parametrize(("thinking", "tail"), [(None, ""), (True, ""), (False, EMPTY)])
def test_the_thinking_switch_of_qwen3(qwen3, thinking, tail):
    ask = [{"role": "user", "content": "1+1?"}]
    ids = prompts.render(ask, qwen3, thinking=thinking)
    assert qwen3.decode(ids) == f"{USER}1+1?{TURN}{tail}"
    start, end = ids_of(qwen3, "<|im_start|>", "<|im_end|>")
    assert ids[0] == start  # nothing before it: no BOS
    assert (ids.count(start), ids.count(end)) == (2, 1)
    opened, closed = ids_of(qwen3, "<think>", "</think>")
    assert (ids.count(opened), ids.count(closed)) == (len(tail) > 0,) * 2
    if tail:  # <think> \n\n </think> \n\n, and the response comes next
        assert ids[-4:] == [opened, *qwen3.encode("\n\n"), closed, *qwen3.encode("\n\n")]


def test_instruct_never_thinks(instruct):
    ask = [{"role": "user", "content": "1+1?"}]
    assert instruct.decode(prompts.render(ask, instruct)) == f"{USER}1+1?{TURN}"
    for thinking in (True, False):  # a switch that would be ignored
        with pytest.raises(ValueError, match="cannot switch thinking on or off: leave its"):
            prompts.render(ask, instruct, thinking=thinking)


def test_the_roles_have_their_own_switches(qwen3, monkeypatch):
    """Student without thinking, teacher with it, each through the code that makes the prompts."""
    run = get_run("qwen3-8b", "opsd", "trd")
    how = run.settings.models.model_copy(
        update={"student_thinking": False, "teacher_thinking": True}
    )
    run.settings = run.settings.model_copy(update={"models": how})
    monkeypatch.setattr(models, "load_tokenizer", lambda name: qwen3)
    student = qwen3.decode(prompts.student_prompts(run, 0, [PROBLEM])[0].ids)
    teacher = qwen3.decode(prompts.teacher_prompts(run, 0, [PROBLEM], ["1+1=3"])[0].ids)
    assert student.endswith(TURN + EMPTY) and "## Reference" not in student
    assert teacher.endswith(TURN) and "<think>" not in teacher
    for part in (PROBLEM["problem"], PROBLEM["solution"], "1+1=3"):
        assert part in teacher


def test_an_attempt_that_thought_is_shown_as_it_was(qwen3):
    """The template drops old thinking from assistants' turns; an attempt stands in a user's."""
    attempt = "<think>\n1+1=3?\n</think>\n\n\\boxed{3}"
    ids = teacher_context(PROBLEM, qwen3, "opd", attempt, style="math", thinking=False).ids
    assert attempt in qwen3.decode(ids)
    assert qwen3.decode(ids).endswith(TURN + EMPTY)


# ---------------------------------------------------------------------------- the ends of turns


def test_both_of_qwens_ends_stop_a_response(qwen3):
    """generation_config.json of Qwen3 has two; the tokenizer's own is the end of the turn."""
    end, text_end = ids_of(qwen3, "<|im_end|>", "<|endoftext|>")
    both = GenerationConfig(eos_token_id=[end, text_end], pad_token_id=text_end)
    assert models.stop_ids(both, qwen3) == sorted([end, text_end])
    assert models.stop_ids(GenerationConfig(eos_token_id=text_end), qwen3) == sorted(
        [end, text_end]
    )
    assert models.stop_ids(GenerationConfig(), qwen3) == [end]


@pytest.fixture
def chat(project, qwen3):
    """run(mode) at the smoke scale, with Qwen's tokenizer, template and two ends; random weights.

    Sampled hot, so that every token occurs: both ends, and thinking.
    """
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    ends = ids_of(qwen3, "<|im_end|>", "<|endoftext|>")
    for number, role in enumerate(("student", "teacher")):
        model = pretrain.build_model(qwen3, shape, seed=number)
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[1])
        for saved in (model, qwen3):
            saved.save_pretrained(project / "models" / "chat" / "0" / role)
    known = settings.load()
    section = known.scales["smoke"]
    hot = settings.Sampling(temperature=3.0, max_new_tokens=120, batch_size=8)
    changes = {"style": "math", "student_thinking": True, "teacher_thinking": False}
    changes |= {role: f"models/chat/{{seed}}/{role}" for role in ("student", "teacher")}

    def run(mode, prompt=700):
        section_ = section.model_copy(
            update={
                "models": section.models.model_copy(update=changes),
                "seeds": (0,),
                "lengths": settings.Lengths(prompt=prompt, reference=200),
                "rollout": hot,
                "refinement": hot,
            }
        )
        scales = {**known.scales, "smoke": section_}
        return get_run("smoke", mode, "trd", known.model_copy(update={"scales": scales}))

    return run


def test_what_is_generated_is_what_is_trained_on(chat, qwen3, monkeypatch):
    run, asked, original = chat("opsd"), [], engines.sample

    def spy(run, name, one, label):
        asked.append(one.prompts)
        return original(run, name, one, label)

    monkeypatch.setattr(engines, "sample", spy)
    task = tasks.of(run)
    train = task.sets()["train"]
    y_o = rollout.rollout(run, task, train)
    y_r = refine(run, task, train, y_o)
    ends = ids_of(qwen3, "<|im_end|>", "<|endoftext|>")
    for table in (y_o, y_r):
        tokens = table["token_ids"].map(list)
        assert tokens.map(lambda ids: ids[-1] in ends).tolist() == table["finished"].tolist()
        assert not tokens.map(lambda ids: bool(set(ids[:-1]) & set(ends))).any()
    last = pd.concat([y_o, y_r]).query("finished")["token_ids"].map(lambda ids: ids[-1])
    assert set(last) == set(ends) and not y_o["finished"].all()  # all three ways to end occur
    said = "".join(y_o["text"])
    assert "think>" in said and "<|im_end|>" not in said  # the grader sees the thinking

    tables = {"opsd": {"y_o": y_o, "y_r": y_r}}
    pairs = training_sets([run], train, tables)[0].rows[0]
    assert [pair.response_ids for pair in pairs] == y_r["token_ids"].map(list).tolist()
    assert [pair.student_ids for pair in pairs] == asked[0]
    assert [pair.teacher_ids for pair in pairs] == asked[1]
    for pair in pairs:
        assert qwen3.decode(pair.teacher_ids).endswith(TURN + EMPTY)  # each has its own switch
        assert qwen3.decode(pair.student_ids).endswith(TURN)
    batch = collate(pairs)
    for labels, pair in zip(batch["labels"], pairs, strict=True):
        assert labels[labels != -100].tolist() == pair.response_ids  # an end is in the target


def test_cut_prompts_are_seen_and_counted(chat, qwen3):
    run = chat("opd")
    task = tasks.of(run)
    train = task.sets()["train"]
    rows = train.to_dict("records")
    longest = max(len(p.ids) for p in prompts.teacher_prompts(run, 0, rows, [""] * len(rows)))
    run = chat("opd", prompt=longest - 20)  # and 120 for the attempt, on top
    y_o = rollout.rollout(run, task, train)
    y_r = refine(run, task, train, y_o)
    limit = run.teacher_prompt_limit(with_attempt=True)
    rows, texts = rows_of(train, y_o), y_o["text"].tolist()
    whole = prompts.teacher_prompts(chat("opd", prompt=10_000), 0, rows, texts)
    assert y_r["prompt_truncated"].tolist() == [len(p.ids) > limit for p in whole]
    assert set(y_r["prompt_truncated"]) == {True, False}
    for prompt, cut in zip(prompts.teacher_prompts(run, 0, rows, texts), y_r["prompt_truncated"],
                           strict=True):  # fmt: skip
        assert len(prompt.ids) <= limit
        assert (prompts.CUT_NOTICE in qwen3.decode(prompt.ids)) == cut


def test_an_evaluated_teacher_is_asked_in_its_own_way(chat, qwen3, monkeypatch):
    run, asked = chat("opd"), []

    def tables(run, todo, label):
        asked.extend(request for _, _, _, request, _ in todo)
        return {path: pd.DataFrame() for _, _, path, *_ in todo}

    monkeypatch.setattr(evaluate, "tables", tables)
    problems = {"chain": tasks.of(run).sets()["chain"]}
    for method, tail in (("base", TURN), ("teacher", TURN + EMPTY)):
        evaluate.evaluate([run.with_("none", method)], None, problems, [None])
        assert all(qwen3.decode(p.ids).endswith(tail) for p in asked[-1].prompts)


# -------------------------------------------------------------------------- answers, long prompts


def test_answers_are_read_after_the_thinking(qwen3):
    def graded(response):
        ids = qwen3.encode(response) + ids_of(qwen3, "<|im_end|>")
        text = qwen3.decode(ids, skip_special_tokens=True)
        return math.grade(None, [(text, {"answer": "2"})])[0]

    assert graded("<think>\n\\boxed{3}?\n</think>\n\n\\boxed{2}")
    assert not graded("<think>\n\\boxed{2}\n</think>\n\nNo idea.")
    assert not graded("<think>\nIt is \\boxed{2}")  # still thinking when the budget was spent
    assert graded("\\boxed{2}")  # thinking off: the empty block is in the prompt, not in the answer


def test_no_letter_is_cut_in_two(qwen3):
    ask = {"mode": "opd", "attempt": "∑" * 100, "style": "math"}  # three tokens each
    whole = len(teacher_context(PROBLEM, qwen3, **ask).ids)
    for room in range(whole - 60, whole - 54):
        found = teacher_context(PROBLEM, qwen3, max_tokens=room, **ask)
        assert found.truncated and len(found.ids) <= room
        assert f"∑{prompts.CUT_NOTICE}" in qwen3.decode(found.ids)
