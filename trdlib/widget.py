"""The explorer in Jupyter: choose a run and an attempt, or type a problem, and look.

Everything that is shown is made in `explore`; the page is explore.html, as in `explore.export`. It
sends what was chosen as a message, and gets a menu, a view and a status back.
"""

from __future__ import annotations

import anywidget
import pandas as pd
import traitlets

from trdlib import config, data, explore, inputs, refine


class Explorer(anywidget.AnyWidget):
    """Choose a run and a problem, and look; or type a problem (`live`).

    The page sends what is chosen as a message and gets `menu` and `view` back, or in `status` one
    sentence that says what is wrong.
    """

    _esm = explore.asset()["script"]
    _css = explore.asset()["style"]
    view = traitlets.Dict().tag(sync=True)
    menu = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)

    def __init__(
        self, run: config.Run, seed: int | None = None, *, only: str = "all", problem: str = ""
    ):
        """only: the filter at first (where nothing passes it: all). problem: one to try at once."""
        super().__init__()
        self._settings, self._answered = run.all_settings, 0
        self._state = {"scale": run.scale, "task": run.task, "mode": run.mode, "method": run.method}
        self._state |= {"seed": run.settings.seeds[0] if seed is None else seed, "of": "train"}
        self._state |= {"only": only, "case": "", "trained": False}
        self._state |= {"draw": 0, "typed": None}
        self.on_msg(lambda _, asked, __: self.answer(asked))
        self.answer({"problem": problem} if problem else {})
        if not self.view and self.menu.get("cases") == []:
            self.answer({"only": "all"})

    def answer(self, asked: dict) -> None:
        """Do what the page asks: other choices, by name, or {"problem": text} to try a problem."""
        self._answered += 1
        try:
            text = self._show(dict(asked))
            self.status = {"text": text, "answered": self._answered}
        except (ValueError, OSError) as error:  # OSError: nothing on file, no model, no hub
            self.status = {"error": str(error), "answered": self._answered}

    def _show(self, asked: dict) -> str:
        state, typed = self._state, asked.pop("problem", None)
        if typed is not None and typed == state["typed"]:
            state["draw"] += 1  # the same problem again is another attempt
        moved = {key for key in asked if asked[key] != state[key]}
        before = self.view.get("problem", {}).get("problem")
        state |= asked
        if typed is None and not moved & {"case", "only", "of"}:
            typed = state["typed"]  # a problem of one's own stays, too
        state["typed"] = None
        run = self._run(moved)
        seed, trained = state["seed"], state["trained"]
        try:
            problems, tables = self._tables(run, seed)
        except FileNotFoundError:
            if typed is None:
                self.view, state["case"] = {}, ""
                self._offer(run, [])
                raise
            every = kept = chosen = None
        else:
            every = explore.cases(problems, tables, seed)
            every["key"] = every["id"] + "/" + every["sample"].astype(str)
            if "scale" in moved and before and typed is None:
                same = every["key"][every["problem"] == before]
                typed = before if same.empty and run.settings.models.style == "tiny" else None
                state["case"] = "" if same.empty else same.iloc[0]
            if state["only"] == "highest KL":
                every = explore.with_kl(
                    explore.load(run, seed), every, tables, problems, trained=trained
                )
            kept = explore.select(every, state["only"])
            chosen = every[every["key"] == state["case"]]
            if len(kept) and (chosen.empty or "only" in moved):
                chosen = kept.head(1)
            state["case"] = "" if typed is not None or chosen.empty else chosen["key"].iloc[0]
        state["typed"] = typed
        self._offer(run, [] if kept is None else self._lines(kept))
        if typed is not None:
            state["typed"] = None  # until it has turned out to be a problem
            self.view = explore.live(
                explore.load(run, seed), typed, trained=trained, draw=state["draw"]
            )
            state["typed"] = typed
            how = f"at temperature {run.settings.rollout.temperature:g}, draw {state['draw']}"
            return f"attempted and rewritten now, {how}"
        nothing = f"no attempt here is “{state['only']}”"
        if chosen.empty:
            self.view = {}
            return nothing
        row, sample = refine.rows_of(problems, chosen)[0], int(chosen["sample"].iloc[0])
        self.view = explore.view(explore.load(run, seed), tables, row, sample, trained=trained)
        about = f"{len(kept)} of {len(every)} attempts" if len(kept) else nothing
        if state["only"] == "highest KL":
            about += f", ordered by mean divergence of the first {int(every['kl'].count())}"
        return about

    def _run(self, moved: set[str]) -> config.Run:
        """The chosen run; what the scale does not have gives way to what it has."""
        state = self._state
        scale = self._settings.scales[state["scale"]]
        scale = scale.tasks.get(state["task"], scale)
        if state["mode"] not in scale.modes:
            state["mode"] = scale.modes[0]
        if state["seed"] not in scale.seeds:
            state["seed"] = scale.seeds[0]
        if "scale" in moved:
            state["of"] = "train"
        axes = (state[key] for key in ("scale", "task", "mode", "method"))
        run = config.run(*axes, self._settings)
        state["trained"] &= explore.has_adapter(run, state["seed"])
        if not isinstance(scale.data, config.HubData):
            inputs.prepare(run)
        return run

    def _offer(self, run: config.Run, listed: list[dict]) -> None:
        """What can be chosen now."""
        scale = run.settings
        self.menu = {
            "state": dict(self._state),
            "scale": self._scales(run),
            "mode": list(scale.modes),
            "method": list(scale.methods),
            "seed": list(scale.seeds),
            "of": ["train", *scale.data.benchmarks],
            "only": list(explore.FILTERS),
            "adapter": explore.has_adapter(run, self._state["seed"]),
            "cases": listed,
            "live": scale.models.style == "tiny" or run.mode == "opd",
        }

    def _scales(self, run: config.Run) -> list[str]:
        """The scales whose models lie here, and the present one."""

        def here(name: str, scale: config.Scale) -> bool:
            where = scale.models.student.format(seed=scale.seeds[0])
            return name == run.scale or (config.root() / where).is_dir()

        return [name for name, scale in self._settings.scales.items() if here(name, scale)]

    def _tables(self, run: config.Run, seed: int):
        problems = data.problems(run.data, self._state["of"])
        if self._state["of"] != "train":
            return problems, explore.answers(run, seed, self._state["of"])
        return problems, explore.trajectories(run)

    @staticmethod
    def _lines(cases: pd.DataFrame) -> list[dict]:
        """What the list of attempts says of each."""
        mark = {True: "✓", False: "✗"}
        return [
            {
                "key": c.key,
                "text": "→".join(mark[bool(v)] for v in (c.before, c.after) if not pd.isna(v))
                + f"  {' '.join(c.problem.split())[:60]}  ·  {c.n_tokens} tokens"
                + (f"  ·  {c.kl:.3g} nats a token" if "kl" in cases else "")
                + ("" if c.finished else "  ·  unfinished"),
            }
            for c in cases.itertuples()
        ]
