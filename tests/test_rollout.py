"""Generation files: whose they are, when they are reused, and who grades them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from trdlib import generate, models, rollout, store
from trdlib.refine import refine, rows_of
from trdlib.run import get_run
from trdlib.tasks import math


def test_the_columns_are_those_of_the_design(task, sets):
    run = get_run("smoke rollout.max_new_tokens=25", "opsd", "trd")  # too few for longer chains
    y_o = rollout.rollout(run, task, sets["train"])
    y_r = refine(run, task, sets["train"], y_o)
    columns = ["id", "sample", "token_ids", "text", "finished", "correct", "n_tokens"]
    assert list(y_o.columns) == [*columns, "seed"]
    assert list(y_r.columns) == [*columns, "seed", "y_o_correct", "prompt_truncated"]
    assert y_r["y_o_correct"].tolist() == y_o["correct"].tolist()
    assert (y_o["n_tokens"] == y_o["token_ids"].map(len)).all()
    tokenizer = models.load_tokenizer(run.model_path("student", 0))
    ends = y_o["token_ids"].map(lambda ids: ids[-1] == tokenizer.eos_token_id)
    assert (ends == y_o["finished"]).all() and {*ends} == {True, False}
    assert not (y_o["correct"] & ~y_o["finished"]).any()
    for _, row in y_o.head(5).iterrows():
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["text"]


def test_other_rules_grade_again_without_sampling_again(smoke, task, sets, monkeypatch):
    run, problems = smoke("opd", "trd"), sets["train"]
    y_r = refine(run, task, problems, rollout.rollout(run, task, problems))
    for path in (run.attempts, run.rewrites("y_r")):
        table = store.load(path)
        generation = store.fingerprint_of(path).split("/")[0]
        wrong = table.assign(correct=~table["correct"])
        store.save(wrong, path, f"{generation}/graded by somebody else")
    monkeypatch.setattr(generate, "decode", lambda *a, **k: pytest.fail("sampled again"))
    again = refine(run, task, problems, rollout.rollout(run, task, problems))
    assert again["correct"].tolist() == y_r["correct"].tolist()
    assert again["y_o_correct"].tolist() == y_r["y_o_correct"].tolist()
    assert store.load(run.attempts)["correct"].tolist() == y_r["y_o_correct"].tolist()


def test_an_unfinished_response_is_wrong_whatever_it_says(smoke, task, sets):
    y_o = rollout.rollout(smoke(), task, sets["train"])
    rows = rows_of(sets["train"], y_o)
    y_o["text"] = [row["solution"] for row in rows]
    y_o["finished"] = np.arange(len(y_o)) % 2 == 0
    assert rollout.grade(task, y_o, rows) == y_o["finished"].tolist()
    assert all(math.grade(None, [(row["solution"], row) for row in rows]))


def test_a_file_without_a_fingerprint_is_not_reused(smoke, task, sets):
    run = smoke()
    y_o = rollout.rollout(run, task, sets["train"])
    table = pq.read_table(run.attempts)
    pq.write_table(table.replace_schema_metadata({}), run.attempts)
    assert rollout.rollout(run, task, sets["train"])["text"].tolist() == y_o["text"].tolist()
    assert store.fingerprint_of(run.attempts)


def test_a_generation_of_another_model_is_not_reused(smoke, task, sets):
    run = smoke("opd", "trd")
    first = rollout.rollout(run, task, sets["train"])
    written = run.attempts.stat().st_mtime_ns
    rollout.rollout(run, task, sets["train"])
    assert run.attempts.stat().st_mtime_ns == written
    for seed in run.settings.seeds:  # swap student and teacher: other weights, same names
        folder = Path("models/tiny") / str(seed)
        (folder / "student").rename(folder / "x")
        (folder / "teacher").rename(folder / "student")
        (folder / "x").rename(folder / "teacher")
    second = rollout.rollout(run, task, sets["train"])
    assert run.attempts.stat().st_mtime_ns != written
    assert first["text"].tolist() != second["text"].tolist()
