"""How numbers and methods look: the one way to write an interval, the colours, a figure's file."""

from pathlib import Path

import pandas as pd

from trdlib import store

MISSING = "not run"  # what could be run and was not; never a number
DASH = "-"  # where there is nothing to say: a row's difference to itself

# By trajectory: grey is not trained, black the teacher, blue y_o, red trd, green the controls.
COLORS = {
    "base": "#9e9e9e", "base_again": "#9e9e9e", "teacher": "#000000",
    "forward_kl": "#9ecae1", "reverse_kl": "#4292c6",
    "forward_kl_clip": "#6baed6", "reverse_kl_topk": "#08519c",
    "trd": "#d62728",
    "sft": "#a1d99b", "sft_refined": "#41ab5d", "off_policy": "#006d2c",
}  # fmt: skip


def color(method: str) -> str:
    """Of a method in every figure; brown for one that has none of its own."""
    return COLORS.get(method, "#8c564b")


def interval(value, low, high, *, scale=100, signed=False, star=False, form=".1f", ends=False):
    """`95.5 [94.1, 96.8]`: a value with its interval, of fractions in percent, as Markdown.

    scale: what all three are multiplied by. signed: for differences, `+1.0 [-0.5, +2.5]`. star: a
    `*` behind it, where a difference is marked. form: of the numbers, `.3g` for nats. ends: the
    interval alone. Without a value it is DASH; a value without ends stands alone.
    """
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
