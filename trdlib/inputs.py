"""What a run starts from: published problems (hub.py), or procedural ones with models (tiny.py)."""

from __future__ import annotations

import pandas as pd

from trdlib import config, hub, tiny, tinycode


def language(run: config.Run) -> tiny.Language:
    """The tiny language of a procedural run."""
    return tinycode.CODE if run.task == "code" else tiny.MATH


def prepare(run: config.Run) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark, on file and returned; a procedural scale's models too.

    What is there and still right is kept: every notebook starts with this.
    """
    if isinstance(run.settings.data, config.HubData):
        return hub.prepare(run)
    return tiny.prepare(run, language(run))
