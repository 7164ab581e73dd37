"""The explorer in Jupyter: choose an attempt, or type a problem, and look.

The page is that of `explore.export`, in a frame from which no script of it reaches the notebook.
"""

import html

import ipywidgets as widgets
import pandas as pd

from trdlib.analysis import explore
from trdlib.refine import rows_of

_FRAME = (
    '<iframe title="the view" sandbox="allow-scripts" srcdoc="{}" '
    'style="width: 100%; height: 800px; border: 0; resize: vertical"></iframe>'
)


class Explorer(widgets.VBox):
    """Choose a problem set and an attempt, and look; or type a problem (`live`).

    loaded: of `explore.load`; sets: problems by name; tables: for some of them what `explore.view`
    takes, {"train": {"y_o": ..., "y_r": ...}, benchmark: {"base": ..., method: ...}}; only: the
    filter at first (where nothing passes it: all); problem: one to try at once. What is shown is
    `view`; `status` says of what, or in one sentence what is wrong.
    """

    def __init__(self, loaded, task, sets: dict, tables: dict, *, only="all", problem=""):
        self.loaded, self.task, self.sets, self.tables = loaded, task, sets, tables
        self.view, self._typed, self._draw = {}, None, 0
        wide = widgets.Layout(flex="1 1 auto", width="auto")
        ask = "type a problem: it is attempted, rewritten and scored now"
        students = ["at step 0", "after training"][: 1 + loaded.trained]
        self.of = widgets.Dropdown(description="problems", options=list(tables))
        self.only = widgets.Dropdown(description="show", options=list(explore.FILTERS), value=only)
        self.student = widgets.Dropdown(description="student", options=students)
        self.case = widgets.Dropdown(description="attempt", layout=wide)
        self.own = widgets.Text(problem, description="your own", placeholder=ask, layout=wide)
        self.own.continuous_update = False
        again = widgets.Button(description="again", tooltip="another attempt at the same problem")
        self.status, self.page = widgets.Label(), widgets.HTML()
        rows = [self.of, self.only, self.student], [self.case], [self.own, again]
        super().__init__([*map(widgets.HBox, rows), self.status, self.page])
        self.case.observe(self._chosen, "value")
        self._list()
        if not self.case.options:
            self.only.value = "all"
            self._list()
        for box in (self.of, self.only):
            box.observe(self._chosen, "value")
        self.student.observe(lambda _: self._show(), "value")  # of the same text as before
        self.own.observe(lambda _: self.try_it(), "value")
        again.on_click(lambda _: self.try_it())
        self.try_it() if problem else self._show()

    def _list(self) -> None:
        """Offer the attempts that pass the filter; the one that is shown stays, if it is one."""
        tables, before = self.tables[self.of.value], self.case.value
        cases = explore.cases(self.sets[self.of.value], tables, self.loaded.seed)
        kept = explore.FILTERS[self.only.value](cases)
        lines = {(case.id, case.sample): _line(case) for case in kept.itertuples()}
        self.case.unobserve(self._chosen, "value")  # nobody has chosen what is set here
        self.case.options = [(line, key) for key, line in lines.items()]
        self.case.value = before if before in lines else next(iter(lines), None)
        self.case.observe(self._chosen, "value")

    def _chosen(self, change) -> None:
        self._typed = None
        if change["owner"] is not self.case:
            self._list()
        self._show()

    def try_it(self) -> None:
        """Attempt, rewrite and score what is typed; the same again is another attempt."""
        self._draw = self._draw + 1 if self.own.value == self._typed else 0
        self._typed = self.own.value
        self._show()

    def _show(self) -> None:
        self.status.value, self.view = "working …", {}
        try:
            said = self._look()
        except (ValueError, OSError) as error:
            said = f"⚠ {error}"
        self.page.value = _FRAME.format(html.escape(explore.page(self.view))) if self.view else ""
        self.status.value = said

    def _look(self) -> str:
        """Make the view, and say what it is of."""
        trained, run = self.student.value == "after training", self.loaded.run
        if self._typed is not None:
            row, how = self.task.problem(self._typed), {"trained": trained, "draw": self._draw}
            self.view = explore.live(self.loaded, self.task, row, **how)
            return f"now, at temperature {run.settings.rollout.temperature:g}, draw {self._draw}"
        if self.case.value is None:
            return f"no attempt here is “{self.only.value}”"
        wanted, sample = self.case.value
        row = rows_of(self.sets[self.of.value], pd.DataFrame({"id": [wanted]}))[0]
        tables = self.tables[self.of.value]
        self.view = explore.view(self.loaded, self.task, tables, row, sample, trained=trained)
        return f"attempts ({self.only.value}): {len(self.case.options)}"


def _line(case) -> str:
    """What the list of attempts says of one of `explore.cases`."""
    marks = [{True: "✓", False: "✗"}[bool(v)] for v in (case.before, case.after) if not pd.isna(v)]
    about = [" ".join(case.problem.split())[:60], f"{case.n_tokens} tokens", case.id]
    about += [] if case.finished else ["unfinished"]
    return "→".join(marks) + "  " + "  ·  ".join(about)
