"""How numbers and methods look: the one way to write an interval, looks, a figure's file."""

from pathlib import Path

import pandas as pd

from trdlib import store

MISSING = "not run"  # what could be run and was not; never a number
DASH = "-"  # where there is nothing to say: a row's difference to itself

# Colour and marker of a method in every figure. Grey is not trained, black the teacher, blue y_o,
# red a teacher's distribution along y_r, green the controls; purple oracles.
LOOKS = {
    "base": ("#9e9e9e", "o"), "base_again": ("#9e9e9e", "."), "teacher": ("#000000", "*"),
    "forward_kl": ("#6baed6", "v"), "forward_kl_clip": ("#9ecae1", "<"),
    "reverse_kl": ("#2171b5", "^"), "reverse_kl_topk": ("#08306b", ">"),
    "reverse_kl_tail": ("#41b6c4", ">"), "skew_kl": ("#41b6c4", "v"), "rft": ("#7fcdbb", "s"),
    "entropy_gated": ("#41b6c4", "^"), "y_o_pruned": ("#1d91c0", "d"),
    "best y_o method": ("#2171b5", "o"), "best y_o method with rounds": ("#2171b5", "p"),
    "trd": ("#d62728", "D"), "trd_plain": ("#ff7f0e", "D"), "trd_reverse": ("#e377c2", "D"),
    "trd_right": ("#8c2d04", "D"), "sft_refined_right": ("#74c476", "d"),
    "sft": ("#a1d99b", "s"), "sft_refined": ("#41ab5d", "P"), "off_policy": ("#006d2c", "X"),
    "seq_kd": ("#006d2c", "s"), "forward_kl_cut": ("#9e9ac8", "v"),
    "reverse_kl_cut": ("#6a51a3", "^"), "forward_kl_no_onsets": ("#bcbddc", "v"),
    "reverse_kl_no_onsets": ("#807dba", "^"),
}  # fmt: skip


def look(method: str) -> dict[str, str]:
    """color, marker and markerfacecolor of a method, for `Axes.plot`; a variant (trd_rounds) is its
    method's, hollow; brown is one that has no look."""
    own = max((m for m in LOOKS if f"{method}_".startswith(f"{m}_")), key=len, default="")
    color, marker = LOOKS.get(own, ("#8c564b", "H"))
    return {"color": color, "marker": marker, "mfc": color if own in ("", method) else "white"}


def interval(value, low, high, *, scale=100, signed=False, star=False, form=".1f", ends=False):
    """`95.5 [94.1, 96.8]`: a value with its interval, of fractions in percent, as Markdown.

    scale: what all three are multiplied by. signed: `+1.0 [-0.5, +2.5]`. star: a `*` behind it.
    form: of the numbers, `.3g` for nats. ends: the interval alone. Without a value: DASH.
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
