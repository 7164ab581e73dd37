"""The papermill engine `trd` (papermill --engine trd ...) checks a notebook's parameters before it
starts a kernel. A file of its own, as papermill loads it while it is loaded itself."""

import click
from papermill.engines import NBClientEngine


class CheckedEngine(NBClientEngine):
    """papermill's own engine, after `notebooks.check`."""

    @classmethod
    def execute_notebook(cls, nb, kernel_name, **how):
        from trdlib.ops import notebooks
        from trdlib.settings import SettingsError

        try:
            notebooks.check(nb, nb.metadata["papermill"].get("parameters", {}))
        except SettingsError as error:
            raise click.ClickException(str(error)) from None
        return super().execute_notebook(nb, kernel_name, **how)
