"""y_r: the teacher's rewrite of every attempt (paper section 1), and y_t, its own fresh solution.

`teacher_prompts` is the only place that says what the teacher sees, so the refine prompt that
generates a rewrite is, token for token, the one under which the rewrite is scored.
"""

from __future__ import annotations

import pandas as pd

from trdlib import config, data, models, prompts, rollout


def teacher_prompts(
    run: config.Run, seed: int, rows: list[dict], attempts: list[str] | None = None
) -> list[prompts.Prompt]:
    """The teacher's refine context of each attempt, or its vanilla context without attempts."""
    tokenizer = models.load_tokenizer(rollout.model_name(run, "teacher", seed))
    return [
        prompts.teacher_prompt(
            row,
            tokenizer,
            mode=run.mode,
            attempt=attempt,
            style=run.settings.models.style,
            thinking=run.settings.models.teacher_thinking,
            max_tokens=run.teacher_prompt_limit(with_attempt=attempt is not None),
        )
        for row, attempt in zip(rows, attempts or [None] * len(rows), strict=True)
    ]


def rows_of(problems: pd.DataFrame, table: pd.DataFrame) -> list[dict]:
    """The problem behind each row of a table of responses."""
    return problems.set_index("id", drop=False).loc[table["id"]].to_dict("records")


def rewrites(run: config.Run, y_o: pd.DataFrame | None = None) -> pd.DataFrame:
    """y_r for every attempt, right or wrong, of every base seed; read if it is there.

    The rows and columns of y_o, plus y_o_correct and prompt_truncated. y_o: the attempts, if they
    are at hand.
    """
    problems = data.problems(run.data, "train")
    y_o = rollout.attempts(run) if y_o is None else y_o
    requests = []
    for seed in run.settings.seeds:
        mine = y_o[y_o["seed"] == seed]
        rows = rows_of(problems, mine)
        contexts = teacher_prompts(run, seed, rows, mine["text"].tolist())
        requests.append(rollout.Request("teacher", seed, rows, contexts))
    return rollout.generate_for_seeds(
        run,
        run.mode_folder / "y_r.parquet",
        requests,
        run.settings.refinement,
        sample=y_o["sample"].tolist(),
        y_o_correct=y_o["correct"].tolist(),
        prompt_truncated=[p.truncated for r in requests for p in r.prompts],
    )


def teacher_solutions(run: config.Run) -> pd.DataFrame:
    """y_t: the teacher's own solution from its vanilla context, no attempt in sight (control)."""
    rows = data.problems(run.data, "train").to_dict("records")
    requests = [
        rollout.Request("teacher", seed, rows, teacher_prompts(run, seed, rows))
        for seed in run.settings.seeds
    ]
    path = run.mode_folder / "y_t.parquet"
    return rollout.generate_for_seeds(run, path, requests, run.settings.refinement)
