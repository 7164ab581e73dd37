"""When an output counts as right: the rules of EvalPlus, LiveCodeBench and TACO.

Pasted in front of the tests in the sandbox: standard library, and EvalPlus's numpy. EvalPlus 0.3.1
(eval/__init__.py, _special_oracle.py; it fails every solution of HumanEval/32, `find_zero`: here
the polynomial decides); LiveCodeBench (evaluation/testing_util.py): a list may be a tuple, output
is stripped, or exact decimals; TACO (metrics/testing_util.py): a list of one, or of tuples."""

import math
from decimal import Decimal, InvalidOperation

NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")
AS_SETS = ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly",
           "larg_nnum", "intersection_array", "find_dissimilar", "Diff")  # fmt: skip


def _matches(got, want, rule, entry, args, atol) -> bool:
    """Is it what was wanted, floats apart that are close?"""
    got = list(got) if rule in ("livecodebench", "taco") and isinstance(got, tuple) else got
    if rule == "taco" and got != want and isinstance(want, list) and want:
        tuples = isinstance(got, list) and bool(got) and isinstance(got[0], tuple)
        return got == want[0] or (tuples and [list(row) for row in got] == want[0])
    if rule == "mbpp" and entry in AS_SETS:
        return set(got) == set(want)
    if rule == "mbpp" and entry in NOT_NONE and not isinstance(got, bool):
        return want == (got is not None)
    if rule != "mbpp" or got == want:
        return got == want
    if entry == "surface_Area":  # MBPP 581, also with the height as the distance from base to apex
        edge, height = args
        other = round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))
        return abs(got - other) <= atol
    if entry == "digit_distance_nums":  # MBPP 558, also with the shorter number padded by zeros
        width = max(len(str(one)) for one in args)
        digits = zip(*(str(one).zfill(width) for one in args), strict=True)
        return got == sum(abs(int(a) - int(b)) for a, b in digits)
    return entry == "are_equivalent" or (entry == "sum_div" and got == 0)


def judge(call, groups, rule, entry, atol) -> None:
    """AssertionError at the first wrong input. groups: [[(args, want)]]; atol: None is exact."""
    for cases in groups:
        tolerance = atol  # once a float was expected it stays, as in EvalPlus
        for args, want in cases:
            got = call(*args)
            if rule == "humaneval" and entry == "find_zero":
                value = sum(c * math.pow(got, i) for i, c in enumerate(args[0]))
                assert abs(value) <= tolerance, (args, got)
                continue
            same = _matches(got, want, rule, entry, args, tolerance)
            row = isinstance(want, list | tuple)
            if tolerance == 0 and all(isinstance(x, float) for x in (row and want) or [want]):
                tolerance = 1e-6
            if not same and tolerance and type(got) is type(want):
                import numpy as np

                same = not row or len(got) == len(want)
                same = same and bool(np.allclose(got, want, rtol=1e-07, atol=tolerance))
            assert same, (args, got, want)


def same_output(got: str, want: str) -> bool:
    """Do two standard outputs agree, line by line?"""
    left, right = ([line.strip() for line in text.strip().split("\n")] for text in (got, want))
    try:
        lines = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
        return all([*map(Decimal, a.split())] == [*map(Decimal, b.split())] for a, b in lines)
    except (InvalidOperation, ValueError):  # words, or more lines
        return False
