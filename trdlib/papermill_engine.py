"""The papermill engine `trd`: it checks a notebook's parameters before it starts a kernel.

    papermill --engine trd notebooks/4_distill.ipynb out.ipynb -p learning_rate 1e-5

Apart from notebooks.py, because papermill loads it while it is loaded itself (pyproject.toml).
"""

from __future__ import annotations

import click
from papermill.engines import NBClientEngine


class CheckedEngine(NBClientEngine):
    """papermill's own engine, after `notebooks.check`."""

    @classmethod
    def execute_notebook(cls, nb, kernel_name, **how):
        from trdlib import config, notebooks

        try:
            notebooks.check(nb, nb.metadata["papermill"].get("parameters", {}))
        except config.SettingsError as error:
            raise click.ClickException(str(error)) from None
        return super().execute_notebook(nb, kernel_name, **how)
