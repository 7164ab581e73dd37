"""When an output counts as right: the rules of EvalPlus, LiveCodeBench and TACO.

This file is pasted in front of the tests that run in the sandbox's examiner, so it imports nothing
but the standard library, and numpy where EvalPlus compares floats with it. Sources:

- EvalPlus 0.3.1 (evalplus/eval/__init__.py, _special_oracle.py): equality, else closeness for
  floats, and the oracles of a few tasks. Deviation: it fails every solution of HumanEval/32
  (`find_zero`), whose passed inputs it does not count; here the polynomial decides, as it intends.
- LiveCodeBench (lcb_runner/evaluation/testing_util.py): a list may be a tuple; lines of output are
  compared without the white space around them, or number by number as exact decimals.
- TACO (metrics/testing_util.py): the value may stand in a list of one; rows may be tuples.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation

NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
AS_SETS = (
    "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
    "intersection_array", "find_dissimilar", "Diff",
)  # fmt: skip


def surface_area(edge, height):
    """MBPP 581, with the height as the distance from base to apex."""
    return round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))


def digit_distance(one, other):
    """MBPP 558, with the shorter number padded by zeros."""
    width = max(len(str(one)), len(str(other)))
    pairs = zip(str(one).zfill(width), str(other).zfill(width), strict=True)
    return sum(abs(int(a) - int(b)) for a, b in pairs)


def polynomial(coefficients, x):
    return sum(c * math.pow(x, i) for i, c in enumerate(coefficients))


def _is_floats(value) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(one, float) for one in value)
    return isinstance(value, float)


def _close(got, want, atol) -> bool:
    """numpy.allclose(got, want, rtol=1e-07, atol=atol); floats and rows of them need no numpy."""
    pairs = [(got, want)]
    if isinstance(got, list | tuple) and isinstance(want, list | tuple) and len(got) == len(want):
        pairs = list(zip(got, want, strict=True))
    if all(type(a) is type(b) is float for a, b in pairs):
        return all(
            a == b or (math.isfinite(b) and abs(a - b) <= atol + 1e-07 * abs(b)) for a, b in pairs
        )
    import numpy as np

    return bool(np.allclose(got, want, rtol=1e-07, atol=atol))


def _mbpp_matches(entry, args, got, want, atol) -> bool:
    if entry == "are_equivalent":
        return True
    if entry == "sum_div":
        return got == want or got == 0
    if entry == "surface_Area":
        return got == want or abs(got - surface_area(*args)) <= atol
    if entry == "digit_distance_nums":
        return got == want or got == digit_distance(*args)
    if entry in AS_SETS:
        return set(got) == set(want)
    if entry in NOT_NONE:
        return got == want if isinstance(got, bool) else want == (got is not None)
    return got == want


def evalplus(suite, entry, call, groups, atol) -> None:
    """Raise AssertionError at the first input on which call is wrong. groups: [[(args, want)]]."""
    for cases in groups:
        tolerance = atol  # once a float was expected it stays, as in EvalPlus
        for args, want in cases:
            got = call(*args)
            if suite == "humaneval" and entry == "find_zero":
                assert abs(polynomial(*args, got)) <= tolerance, (args, got)
                continue
            same = got == want
            if suite == "mbpp":
                same = _mbpp_matches(entry, args, got, want, tolerance)
            if tolerance == 0 and _is_floats(want):
                tolerance = 1e-6
            if not same and tolerance != 0:
                same = type(got) is type(want)
                if same and isinstance(want, list | tuple):
                    same = len(got) == len(want)
                same = same and _close(got, want, tolerance)
            assert same, (args, got, want)


def calls(rule, call, cases) -> None:
    """The same for functions of LiveCodeBench and TACO. cases: [(args, want)]."""
    for args, want in cases:
        got = call(*args)
        got = list(got) if isinstance(got, tuple) else got
        same = got == want
        if rule == "taco" and isinstance(want, list) and want and not same:
            rows = got
            if isinstance(got, list) and got and isinstance(got[0], tuple):
                rows = [list(row) for row in got]
            same = got == want[0] or rows == want[0]
        assert same, (args, got, want)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(got: str, want: str) -> bool:
    try:
        return [Decimal(one) for one in got.split()] == [Decimal(one) for one in want.split()]
    except InvalidOperation:
        return False


def same_output(got: str, want: str) -> bool:
    """Do two standard outputs agree, line by line?"""
    left, right = _lines(got), _lines(want)
    return len(left) == len(right) and all(
        a == b or _same_numbers(a, b) for a, b in zip(left, right, strict=True)
    )
