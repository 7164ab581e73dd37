r"""Two answers as mathematics: read whole or not at all, and compared exactly. Math-Verify's
grammar and comparison of sets; but nothing is rounded, formulas are equal if they are at points of
both signs, and `10^{10^9}` is a letter of its own."""

import random
import re

import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, _Latex2Sympy, normalize_latex
from math_verify import grader

BITS = 1 << 20  # of the longest number that is worked out
_SPELLING = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")


class _Reader(_Latex2Sympy):
    """The grammar, less what it works out, rounds or adds on the way."""

    def parse_number(self, text):
        return sympy.Rational(text.replace(",", ""))

    def convert_atom_expr(self, atom_expr):
        value = super().convert_atom_expr(atom_expr)
        return sympy.I if value == sympy.Symbol("i", real=True) else value

    def convert_postfix(self, postfix):
        value = super().convert_postfix(postfix)
        if isinstance(value, sympy.Rational) and not re.match(r"\d|\\frac", postfix.getText()):
            return sympy.UnevaluatedExpr(value)  # else 2(3) is 2 + 3, as in 2\frac{1}{2}
        if not isinstance(value, sympy.Pow | sympy.factorial):
            return value
        base, power = value.args[0].doit(), value.args[-1].doit()
        size = max(abs(base.p), base.q).bit_length() if base.is_Rational else 1
        if not power.is_Rational or base in (0, 1, -1) or size * abs(power) <= BITS:
            return value
        return sympy.Symbol(f"{value.func} of {hash((base, power))}", positive=True)


def read(text: str):
    """What a text says; the grammar's own exceptions if that cannot be read."""
    return _Reader(is_real=True).parse(normalize_latex(text, _SPELLING))


def _is_zero(number) -> bool:
    """Of what is no fraction, 300 digits decide."""
    if number.is_Rational:
        return number == 0
    return all(p == 0 or p._prec == 1 for p in number.evalf(15, maxn=300).as_real_imag())


def equal(left, right, *_) -> bool:
    """The same number, or formulas that are one function where both are real?"""
    if isinstance(left, sympy.MatrixBase) and isinstance(right, sympy.MatrixBase):
        return left.shape == right.shape and all(map(equal, left.flat(), right.flat()))
    left, right = left.doit(), right.doit()
    if left == right or sympy.Tuple(left, right).has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        return left == right and not left.has(sympy.nan, sympy.zoo)
    letters = sorted(left.free_symbols | right.free_symbols, key=str)
    try:
        return _agree(left, right, letters) if letters else _is_zero(left - right)
    except Exception:  # no number at a point, as in a sum of n terms
        return sympy.simplify(left - right) == 0


def _agree(left, right, letters) -> bool:
    agreed, chance = 0, random.Random(7)
    for _ in range(24):
        size, point = chance.choice([3, 60]), {}  # between 0 and 1, and beyond
        for letter in letters:
            sign = 1 if letter.is_positive else chance.choice([1, 1, -1])
            point[letter] = sign * sympy.Rational(chance.randint(1, size), chance.randint(3, 9))
        here, there = left.subs(point), right.subs(point)
        if (here - there).has(sympy.nan, sympy.zoo) or abs(there.evalf(3)) > 1e60:
            continue  # so far out 300 digits say nothing of the difference
        if _is_zero(here - there):
            agreed += 1
        elif (left + right).has(sympy.I) or here.evalf(15).is_real or there.evalf(15).is_real:
            return False
    return agreed >= 3


def _multiples(one, other, *_) -> bool:
    """Is one relation a number times the other, or, turned, a number below 0 times it?"""
    left, right = (grader.unwrap_fcs(relation.lhs - relation.rhs) for relation in (one, other))
    letters = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {letter: sympy.Rational(1009 + k, 997) for k, letter in enumerate(letters)}
    here = left.subs(point)
    factor = here / right.subs(point)
    kind = type(other) if factor > 0 else grader.INVERSE_RELATIONS[type(other)]
    # a constant is none: 1 = 0, 2 = 0
    return type(one) is kind and equal(left, factor * right) and not equal(left, here)


def same(given, answer) -> bool:
    """Do two readings say the same?"""
    if isinstance(given, sympy.Expr) and isinstance(answer, sympy.Expr):
        names = isinstance(given, sympy.Symbol) or isinstance(answer, sympy.Symbol)
        return equal(given, answer) or bool(names and grader.sympy_compare_symbols(answer, given))
    grader.sympy_numeric_eq = equal
    grader.sympy_symbolic_eq, grader.sympy_solve_and_compare = (lambda *_: False), _multiples
    return bool(grader.sympy_expr_eq(answer, given, 6, 15, allow_set_relation_comp=True))
