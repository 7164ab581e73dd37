"""What student and teacher say at each token of a response, and where it goes wrong."""

import numpy as np
import pandas as pd
import torch

from trdlib import models
from trdlib.divergence import logits_in_chunks
from trdlib.refine import rows_of
from trdlib.run import Run
from trdlib.settings import SettingsError


def hidden_at(model, input_ids, labels) -> torch.Tensor:
    """Hidden states (N, H) at the positions that predict the N labelled tokens of a batch."""
    return models.hidden_states(model, input_ids=input_ids)[:, :-1][labels[:, 1:] != -100]


@torch.no_grad()
def token_signals(
    student_hidden, student_head, teacher_hidden, teacher_head, targets, *, onsets, rights
) -> dict[str, torch.Tensor]:
    """The signals (N,), in nats, from hidden states (N, H) where the tokens targets (N,) are
    predicted; onsets: ids; rights (N,): the right token, or -1. *_logp: of the target; *_mass: by
    the teacher; onset_kl: the onsets' part of the forward KL; own_kl: the target's, reverse."""
    parts = []
    students = logits_in_chunks(student_hidden, student_head)
    teachers = logits_in_chunks(teacher_hidden, teacher_head)
    for (rows, student), (_, teacher) in zip(students, teachers, strict=True):
        log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
        s, t, target, right = log_s.exp(), log_t.exp(), targets[rows, None], rights[rows, None]
        forward, reverse = t * (log_t - log_s), s * (log_s - log_t)
        parts.append({
            "forward_kl": forward.sum(-1), "reverse_kl": reverse.sum(-1),
            "student_entropy": -(s * log_s).sum(-1), "teacher_entropy": -(t * log_t).sum(-1),
            "student_logp": log_s.gather(-1, target)[:, 0],
            "teacher_logp": log_t.gather(-1, target)[:, 0],
            "onset_mass": t[:, onsets].sum(-1), "onset_kl": forward[:, onsets].sum(-1),
            "own_kl": reverse.gather(-1, target)[:, 0],
            "right_mass": t.gather(-1, right.clamp(min=0)).where(right >= 0, torch.nan)[:, 0],
        })  # fmt: skip
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def mistakes(run: Run, task, problems: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    """wrong: the index of each response's first wrong token, right: the id of the right one there;
    NaN and -1 where there is none, or the task does not know it."""
    tokenizer, found = models.load_tokenizer(run.model_path("student", run.settings.seeds[0])), []
    for row, ids in zip(rows_of(problems, responses), responses["token_ids"], strict=True):
        spelled = tokenizer.convert_ids_to_tokens(list(map(int, ids)))
        one = task.first_wrong and task.first_wrong(row["problem"], spelled)
        right = one and tokenizer.convert_tokens_to_ids(one.right)
        found.append((one.index, right) if one else (np.nan, -1))
    return pd.DataFrame(found, columns=["wrong", "right"], index=responses.index)


def up_to(token_ids, wrong) -> list[list]:
    """Texts up to and with their first wrong token; whole where there is none (NaN)."""
    ends = [None if np.isnan(index) else int(index) + 1 for index in wrong]
    return [list(ids)[:end] for ids, end in zip(token_ids, ends, strict=True)]


def cut(run: Run, task, problems: pd.DataFrame, y_o: pd.DataFrame) -> pd.DataFrame:
    """An oracle: the attempts up to and with their first wrong token (trajectory y_o_cut)."""
    if task.first_wrong is None:
        raise SettingsError(f"y_o_cut: the task {task.name} knows no first wrong token")
    wrong = mistakes(run, task, problems, y_o)["wrong"]
    return y_o.assign(token_ids=up_to(y_o["token_ids"], wrong))
