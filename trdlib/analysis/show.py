"""How numbers and methods look: the one way to write an interval, looks, a figure's file."""

from pathlib import Path

import pandas as pd

from trdlib import store
from trdlib.settings import read_yaml

MISSING = "not run"  # what could be run and was not; never a number
DASH = "-"  # where there is nothing to say: a row's difference to itself
LOOKS = read_yaml(Path(__file__).with_name("looks.yaml"))  # method -> colour, marker


def look(method: str) -> dict[str, str]:
    """For `Axes.plot`; a variant (trd_rounds) is its method's, hollow; brown: it has no look."""
    own = max((m for m in LOOKS if f"{method}_".startswith(f"{m}_")), key=len, default="")
    color, marker = LOOKS.get(own, ("#8c564b", "H"))
    return {"color": color, "marker": marker, "mfc": color if own in ("", method) else "white"}


def interval(value, low, high, *, scale=100, signed=False, star=False, form=".1f", ends=False):
    """`95.5 [94.1, 96.8]`, fractions times `scale`, Markdown; signed: `+1.0 [-0.5, +2.5]`; form:
    of numbers, `.3g` for nats; ends: the interval alone. Without a value: DASH."""
    if pd.isna(low if ends else value):
        return DASH
    form, star = ("+" if signed else "") + form, r"\*" if star else ""
    parts = [] if ends else [f"{scale * value:{form}}"]
    if not pd.isna(low):
        parts.append(f"[{scale * low:{form}}, {scale * high:{form}}]")
    return " ".join(parts) + star


def save(path: Path, figure) -> Path:
    """The figure as a png, whole or not at all. It is closed: a notebook shows it before."""
    import matplotlib.pyplot as plt

    store.write_whole(path, lambda p: figure.savefig(p, dpi=130, format="png"))
    plt.close(figure)
    return path
