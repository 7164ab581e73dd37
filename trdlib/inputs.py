"""What a run starts from: problems that are published (hub.py) or made (tiny.py, stories.py), and
the models that the project makes itself (tiny.py, packaged.py)."""

from __future__ import annotations

import pandas as pd

from trdlib import config, data, hub, packaged, stories, tiny, tinycode


def language(run: config.Run) -> tiny.Language:
    """The tiny language of a procedural run."""
    return tinycode.CODE if run.task == "code" else tiny.MATH


def prepare(run: config.Run) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark, on file and returned; a procedural scale's models too.

    What is there and still right is kept: every notebook starts with this.
    """
    section = run.settings.data
    with data.locked(run.data):
        if run.settings.models.packaged:
            packaged.unpack(run)
        if isinstance(section, config.HubData):
            return hub.prepare(run)
        if section.tasks == {"story"}:
            return stories.prepare(run)
        return tiny.prepare(run, language(run))
