"""What a run starts from: published problems (hub.py), or procedural ones with models (tiny.py)."""

from __future__ import annotations

import pandas as pd

from trdlib import config, data, hub, tiny


def prepare(run: config.Run) -> dict[str, pd.DataFrame]:
    """train, validation and every benchmark, on file and returned; a procedural scale's models too.

    What is there and still right is kept: every notebook starts with this.
    """
    kind = hub if isinstance(run.settings.data, config.HubData) else tiny
    with data.locked(run.data):
        return kind.prepare(run)
