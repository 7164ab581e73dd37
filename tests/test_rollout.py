"""Generation files: whose they are, when they are reused, and who grades them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from trdlib import data, generate, grading, models, refine, rollout


def test_the_columns_are_those_of_the_design(smoke):
    run = smoke("opsd", "trd")
    y_o, y_r = rollout.attempts(run), refine.rewrites(run)
    columns = ["id", "sample", "token_ids", "text", "finished", "correct", "n_tokens"]
    assert list(y_o.columns) == [*columns, "seed"]
    assert list(y_r.columns) == [*columns, "seed", "y_o_correct", "prompt_truncated"]
    assert y_r["y_o_correct"].tolist() == y_o["correct"].tolist()
    assert (y_o["n_tokens"] == y_o["token_ids"].map(len)).all()
    tokenizer = models.load_tokenizer(run.model_path("student", 0))
    ends = y_o["token_ids"].map(lambda ids: ids[-1] == tokenizer.eos_token_id)
    assert (ends == y_o["finished"]).all()
    assert not (y_o["correct"] & ~y_o["finished"]).any()
    for _, row in y_o.head(5).iterrows():
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["text"]


def test_other_rules_grade_again_without_sampling_again(smoke, monkeypatch):
    run = smoke("opd", "trd")
    y_r = refine.rewrites(run)
    for path in (run.attempts, run.mode_folder / "y_r.parquet"):
        table = data.load(path)
        generation = data.fingerprint_of(path).split("/")[0]
        wrong = table.assign(correct=~table["correct"])
        data.save(wrong, path, f"{generation}/graded by somebody else")
    monkeypatch.setattr(generate, "decode", lambda *a, **k: pytest.fail("sampled again"))
    again = refine.rewrites(run)
    assert again["correct"].tolist() == y_r["correct"].tolist()
    assert again["y_o_correct"].tolist() == y_r["y_o_correct"].tolist()
    assert data.load(run.attempts)["correct"].tolist() == y_r["y_o_correct"].tolist()


def test_an_unfinished_response_is_wrong_whatever_it_says(smoke):
    run = smoke()
    y_o = rollout.attempts(run)
    rows = refine.rows_of(data.problems(run.data, "train"), y_o)
    y_o["text"] = [row["solution"] for row in rows]
    y_o["finished"] = np.arange(len(y_o)) % 2 == 0
    assert rollout.grade(y_o, rows, run) == y_o["finished"].tolist()
    assert all(grading.is_correct(row["solution"], row["answer"]) for row in rows)


def test_a_file_without_a_fingerprint_is_not_reused(smoke):
    run = smoke()
    y_o = rollout.attempts(run)
    table = pq.read_table(run.attempts)
    pq.write_table(table.replace_schema_metadata({}), run.attempts)
    assert rollout.attempts(run)["text"].tolist() == y_o["text"].tolist()
    assert data.fingerprint_of(run.attempts)


def test_a_generation_of_another_model_is_not_reused(smoke):
    run = smoke("opd", "trd")
    first = rollout.attempts(run)
    written = run.attempts.stat().st_mtime_ns
    rollout.attempts(run)
    assert run.attempts.stat().st_mtime_ns == written
    for seed in run.settings.seeds:  # swap student and teacher: other weights, same names
        folder = Path("models/smoke") / str(seed)
        (folder / "student").rename(folder / "x")
        (folder / "teacher").rename(folder / "student")
        (folder / "x").rename(folder / "teacher")
    second = rollout.attempts(run)
    assert run.attempts.stat().st_mtime_ns != written
    assert first["text"].tolist() != second["text"].tolist()


def test_a_function_of_amo_bench_is_graded_at_its_points(smoke):
    """Problem 5: equal values count, whatever the form; other problems get no points."""
    answer = r"$a_n=\frac{n(n+1)}{2}$"
    forms = [r"\boxed{b_n=\lceil n(n+1)/2-0.5\rceil}", r"\boxed{\frac{n^2-n}{2}}", "no box"]
    table = pd.DataFrame({"text": forms, "finished": [True, True, True]})
    for name, verdicts in (("AMO-Bench-5", [True, False, False]), ("train-5", [False] * 3)):
        assert rollout.grade(table, [{"id": name, "answer": answer}] * 3, smoke()) == verdicts
