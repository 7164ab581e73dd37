"""Right and wrong answers, and answers that try to hang the grader."""

import time

import pytest

from trdlib import grading
from trdlib.grading import is_correct


@pytest.mark.parametrize(
    ("response", "answer", "verdict"),
    [
        ("so \\boxed{4}", "4", True),
        ("so \\boxed{4}", "5", False),
        ("\\boxed{ 04 }", "4", True),
        ("\\boxed{1,024}", "1024", True),
        ("\\boxed{1,2}", "12", False),  # a list, not a number
        ("\\boxed{12}", "1,2", False),
        ("\\boxed{\\text{so } \\boxed{4}}", "4", True),  # the box that starts last
        ("\\boxed{ " * 20_000 + "4}", "4", True),  # in time that grows with the length alone
        ("\\boxed{+7}", "7", True),
        ("\\boxed{-7}", "7", False),
        ("\\boxed{3} no, \\boxed{4}", "4", True),  # the last box counts
        ("\\boxed{4} no, \\boxed{3}", "4", False),
        ("the answer is 4", "4", False),  # no box, no answer
        ("\\boxed{4", "4", False),  # an open box
        ("\\boxed{}", "4", False),
        ("\\boxed{4} and \\boxed{5", "4", True),  # the open one is not a box
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}", True),
        ("\\boxed{\\frac{1}{3}}", "0.3", False),
        ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}", True),
        ("\\boxed{(1, 2)}", "(1,2)", True),
        ("\\boxed{(2, 1)}", "(1,2)", False),
        ("\\boxed{x+1}", "1+x", True),
        ("<think>\\boxed{4}", "4", False),  # still thinking
        ("<think>\\boxed{5}</think> \\boxed{4}", "4", True),
        ("<think>\\boxed{4}</think> It is four.", "4", False),
        ("<think>a</think>\\boxed{5}<think>b</think>\\boxed{4}", "4", True),
        ("", "4", False),
    ],
)
def test_verdicts(response, answer, verdict):
    assert is_correct(response, answer) is verdict


def test_a_hostile_answer_costs_bounded_time(monkeypatch):
    """9^9^9^... keeps a computer algebra system busy: the helper dies, the next answer is read."""
    monkeypatch.setattr(grading, "SECONDS", 1)
    monkeypatch.setattr(grading, "_verifier", grading._Verifier())
    started = time.monotonic()
    assert is_correct("\\boxed{9^{9^{9^{9^{9}}}}}", "9^{9^{9^{9^{9}}}}+1") is False
    assert time.monotonic() - started < 30
    assert is_correct("\\boxed{\\frac{1}{2}}", "0.5")


def test_a_helper_that_dies_is_replaced(monkeypatch):
    verifier = grading._Verifier()
    monkeypatch.setattr(grading, "_verifier", verifier)
    assert is_correct("\\boxed{\\frac{1}{2}}", "0.5")
    verifier.process.kill()
    verifier.process.join()
    assert is_correct("\\boxed{\\frac{1}{2}}", "0.5")
