"""What no method can know: where an attempt goes wrong. For the map's trajectory y_o_cut."""

import pandas as pd

from trdlib import models
from trdlib.run import Run
from trdlib.settings import SettingsError


def cut(run: Run, task, problems: pd.DataFrame, y_o: pd.DataFrame) -> pd.DataFrame:
    """The attempts up to and with their first wrong token; SettingsError: the task knows none."""
    if task.first_wrong is None:
        raise SettingsError(
            f"the task {task.name} does not know the first wrong token of an attempt: the "
            "trajectory y_o_cut is not possible"
        )
    asked, cut = problems.set_index("id")["problem"], []
    for seed, mine in y_o.groupby("seed", sort=False):
        spell = models.load_tokenizer(run.model_path("student", seed)).convert_ids_to_tokens
        for name, ids in zip(mine["id"], map(list, mine["token_ids"]), strict=True):
            wrong = task.first_wrong(asked[name], spell(ids))
            cut.append(ids if wrong is None else ids[: wrong.index + 1])
    return y_o.assign(token_ids=cut)
