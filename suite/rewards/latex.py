r"""Are two expressions equal? By math-verify, and by a few rules where it and the policy in verify.py part.

Heavy (sympy), and without an end for some inputs: only `suite.rewards.worker` imports this, under its limits.
"""

import functools
import logging
import re
from fractions import Fraction

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
    And,
    Basic,
    Expr,
    FiniteSet,
    I,
    Interval,
    MatrixBase,
    Or,
    Pow,
    Rational,
    Set,
    Symbol,
    Tuple,
    UnevaluatedExpr,
    expand_complex,
    simplify,
)
from sympy.core.function import AppliedUndef
from sympy.core.relational import Eq, Relational

from suite.rewards import lists
from suite.rewards.numbers import quantity

logging.getLogger("math_verify").setLevel(logging.ERROR)

# Units are ours (numbers, wording): math-verify's would take the b of a = b + c for one.
_NORMALIZE = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_CONFIG = (LatexExtractionConfig(normalization_config=_NORMALIZE),)
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)")  # TeX takes one digit each, math-verify the rest
_REPEATING = re.compile(r"(\d+)\.(\d*)\\(?:overline|dot|bar)\s*\{(\d+)\}")
_CELLS = re.compile(r"\s*(&|\\\\)\s*")
# What is written as in a programming language: sqrt(2), x^(1/2), 3*pi, ln(2).
_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)")
_POWER = re.compile(r"\^\s*\(([^()]*)\)")
_FUNCTION = re.compile(
    r"(?<![\\a-zA-Z{])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|infty)(?![a-zA-Z}])"
)
_IS_NAME = re.compile(
    r"(?:[A-Za-z]|[A-Z]{2,3})(?:_\{?\w+\}?)?\s*(?:\([^()]*\))?"
    r"|\\(?!(?:not|sin|cos|tan|log|ln|exp|sqrt)\b)[a-zA-Z]+(?:\s*[A-Z]{1,4})?|\([a-z, ]+\)"
)
_LETTERS = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_CUP = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
_BUILDER = re.compile(
    r"\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\|)(?P<inequality>[^=|]*(?:[<>]|\\[lg]e)[^=|]*)\\\}"
)
_UNICODE = {
    ord(a): b for a, b in {
        "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "√": r"\sqrt", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ",
        "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "ℝ": r"\mathbb{R}", "±": r"\pm ", "°": r"^\circ ",
    }.items()
}  # fmt: skip
WARM_UP = [
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"), (r"x^2-1", r"(x-1)(x+1)"), (r"y=2x+1", r"y-2x=1"), (r"\pm 2", "-2, 2"),
    (r"(-\infty,1)\cup(2,\infty)", r"x<1 \text{ or } x>2"), (r"[1,2)", r"1 \le x < 2"), (r"(-\infty,3]", r"x \leq 3"),
    (r"(1,2)", r"x>1 \text{ and } x<2"), (r"[-2,2]", r"-2 \le x \le 2"), (r"x \ge 1", r"1 \leq x"), ("x > 2", "2 < y"),
    (r"\begin{pmatrix}1&2\\3&-4\end{pmatrix}", r"\begin{pmatrix}\frac12&2\\x&0\end{pmatrix}"), ("3+4i", "4i-3"),
    (r"\begin{pmatrix}1\\0.5\\-7\end{pmatrix}", r"\begin{pmatrix}1\\\sqrt{2}\\0\end{pmatrix}"), (r"-\frac{1}{2}", "-x"),
    (r"\log_2 8", r"\frac{\ln 3}{\ln 2}"), (r"\sin^2 x+\cos^2 x", r"\tan(x)"), (r"\frac{\pi}{2}", r"\pi/2"),
    ("2^{10}", "1024+x"), ("e^{2x}", "x!"), (r"\sqrt[3]{8}", "|x|"), (r"x \in [1,2]", "x^{-1}"), ("f(x)=x^2", "x^3"),
    ("x^2+y^2=1", "x+2y=6"), (r"\frac{x+1}{y-1}", "3xy"), (r"\frac{n(n+1)}{2}", r"\frac{n^2+n}{2}"), ("a(b+c)", "ab"),
    (r"(x-2)(x^2+2x+4)", "x^3-8"), (r"\left(\frac{3}{4}\right)^{2}", r"\frac{9}{16}+y"), ("(1+i)^2", "2i"),
    (r"2\sqrt{2}+\sqrt{3}", r"\sqrt{8}-\sqrt{3}"), (r"3\pi r^2", r"\frac{4}{3}\pi r^3"), (r"\binom{5}{2}", r"x_1+x_2"),
    (r"\frac{1+\sqrt{5}}{2}", r"\frac{-1\pm\sqrt{5}}{2}"), (r"12 \cdot 10^{3}x", r"\frac{a}{b}+\frac{c}{d}"),
]  # fmt: skip


def warm_up() -> None:
    """Meet most constructs once: the parser learns its grammar as it goes, and the first of each kind is slow."""
    for pair in WARM_UP:
        same(*pair)


def same(gold: str, answer: str) -> bool:
    """Whether two LaTeX expressions, without dollars around them, are equal by the policy in verify.py."""
    gold, answer = _region_as_written(gold), _region_as_written(answer)
    if "=" in answer and lists.split(answer) is None and not re.search(r"[=<>]|\\[lg]eq?\b|\\in\b", gold):
        first, *sides = [side.strip() for side in re.split(r"(?<![<>!\\])=", answer)]
        if not _IS_NAME.fullmatch(first):
            sides = [first, *sides]  # 40+2=42 has to be true; (x+1)^2=x^2+2x+1 as well
        return all(sides) and all(_equal(sides[-1], side) for side in sides[:-1]) and _equal(gold, sides[-1])
    return _equal(gold, answer)


def _region_as_written(text: str) -> str:
    r"""`(1,2) U (3,4)` with a sign for its U, and the inequality of `\{x \mid x>2\}`."""
    builder = _BUILDER.fullmatch(text.strip())
    return builder["inequality"].strip() if builder else _CUP.sub(r"\\cup ", text)


def _equal(gold: str, answer: str) -> bool:
    if _bare(gold) == _bare(answer):
        return True
    numbers = quantity(gold), quantity(answer)
    if all(numbers) and not any(n.percent for n in numbers):
        return numbers[0].value == numbers[1].value
    in_lists = lists.same(gold, answer, same)
    if in_lists is not None:
        return in_lists
    letters, others = set(_LETTERS.findall(gold)), set(_LETTERS.findall(answer))
    if letters != others and {a.lower() for a in letters} == {a.lower() for a in others}:
        return False  # 2x and 2X, which math-verify does not tell apart
    golds, answers = _parse(gold), _parse(answer)
    if not golds or not answers:
        return False
    ours = _by_our_rules(golds[0], answers[0])
    if ours is not None:
        return ours
    if _clearly_different(golds[0], answers[0]):
        return False
    return bool(verify(list(golds), list(answers), timeout_seconds=None, allow_set_relation_comp=True))


def _bare(text: str) -> str:
    return re.sub(r"(?<=\W) | (?=\W)", "", " ".join(text.split())).replace("{bmatrix}", "{pmatrix}")


@functools.lru_cache(maxsize=2000)
def _parse(text: str) -> tuple:
    """What math-verify reads in an expression, the reading itself first. Decimals become fractions: sympy would
    compare floats by their first six places."""
    text = text.translate(_UNICODE).replace("\\langle", "(").replace("\\rangle", ")")
    text = _CELLS.sub(r"\1", text.replace("{bmatrix}", "{pmatrix}"))  # alike as text, where the parser gives up
    text = _POWER.sub(r"^{\1}", _ROOT.sub(r"\\sqrt{\1}", text.replace("**", "^")))
    text = _FUNCTION.sub(r"\\\1 ", text).replace("*", r"\cdot ")
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text.replace("\\varnothing", "\\emptyset"))
    text = _REPEATING.sub(_repeating, text)
    joined = _alternatives(text)
    if joined is not None:
        return joined
    return tuple(parse(f"${_DECIMAL.sub(_fraction, text)}$", _CONFIG, parsing_timeout=None))


def _fraction(match: re.Match) -> str:
    return rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}"


def _repeating(match: re.Match) -> str:
    before, start, again = match.groups()
    nines = 10 ** len(start) * (10 ** len(again) - 1)
    value = int(before) + Fraction(int(start or 0), 10 ** len(start)) + Fraction(int(again), nines)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _alternatives(text: str) -> tuple | None:
    """`x<1 or x>2` as a union, `x>1 and x<2` as an intersection; None for what is no such chain of inequalities."""
    for pattern, join in ((lists.OR, Or), (lists.AND, And)):
        parts = pattern.split(text)
        if len(parts) > 1:
            found = [_parse(part.strip().strip(",")) for part in parts]
            relations = [f[0] for f in found if f and _is_inequality(f[0])]
            if len(relations) == len(parts):
                return (join(*relations),)
            if join is And:
                return tuple(parse(f"${','.join(parts)}$", _CONFIG, parsing_timeout=None))
    return None


def _is_inequality(value) -> bool:
    if isinstance(value, Relational):
        return not isinstance(value, Eq)
    return type(value).__name__ in ("And", "Or") and all(_is_inequality(part) for part in _parts(value))


def _parts(value) -> tuple:
    """The relations in a chain; the parser has an And of its own, which keeps them in another place than sympy's."""
    return tuple(value._unsorted_args) if hasattr(value, "_unsorted_args") else value.args


def _by_our_rules(gold, answer) -> bool | None:
    """A verdict where ours is not math-verify's, or where it cannot give one; None to leave it to math-verify."""
    if isinstance(gold, str) or isinstance(answer, str):
        return None
    as_sets = _region(gold), _region(answer)
    if all(s is not None for s in as_sets) and (_is_inequality(gold) or _is_inequality(answer)):
        symbols = [v.free_symbols for v in (gold, answer) if _is_inequality(v)]
        if len({frozenset(s) for s in symbols}) > 1:
            return False  # x>2 and y>2
        return as_sets[0] == as_sets[1]
    if isinstance(gold, Eq) and isinstance(answer, Eq):
        return _proportional(gold, answer)
    if isinstance(gold, Eq) and isinstance(answer, Expr) and not isinstance(gold.lhs, Symbol | AppliedUndef):
        return False  # math-verify would compare with the right side alone
    if _may_be_complex(gold) and _may_be_complex(answer) and (_has_imaginary(gold) or _has_imaginary(answer)):
        try:
            difference = simplify(_with_unit(gold) - _with_unit(answer))
            return bool(difference == 0 or (difference.is_number and expand_complex(difference) == 0))
        except (TypeError, AttributeError, ValueError):
            return None
    return None


def _proportional(gold: Eq, answer: Eq) -> bool | None:
    """`2x+4y=6` and `x+2y=3`: one side less the other is the same up to a factor. None for sets and tuples."""
    sides = (gold.lhs, gold.rhs, answer.lhs, answer.rhs)
    if not all(isinstance(side, Expr) and not isinstance(side, MatrixBase) for side in sides):
        return None
    ratio = (gold.lhs - gold.rhs) / (answer.lhs - answer.rhs)
    if ratio.free_symbols and _clearly_different(ratio, _at(ratio, 2)):
        return False
    factor = simplify(ratio)
    return bool(factor.is_number and factor.is_finite and not factor.is_zero)


def _at(value: Expr, start: int) -> Expr:
    """The value at a point of odd fractions, the same for the same names."""
    symbols = sorted(value.free_symbols, key=lambda s: s.name)
    return value.subs({s: Rational(7919 + 104 * i + 1009 * start, 6007) for i, s in enumerate(symbols)})


def _may_be_complex(value) -> bool:
    return isinstance(value, Basic) and not isinstance(value, Set | Relational | MatrixBase | Tuple)


def _has_imaginary(value) -> bool:
    roots = (p for p in value.atoms(Pow) if p.exp.is_Rational and not p.exp.is_Integer)
    return value.has(I) or any(s.name == "i" for s in value.free_symbols) or any(p.base.is_negative for p in roots)


def _with_unit(value):
    """The value with the letter i as the imaginary unit, worked out. The parser takes other names for real beside
    an i and for not real elsewhere: here they are neither, and so the same."""
    return value.subs({s: I if s.name == "i" else Symbol(s.name) for s in value.free_symbols}).doit()


def _clearly_different(gold, answer) -> bool:
    """Whether two expressions, or entries of two matrices, have other values at one point: `simplify` may take a
    second to find no way from one to the other, and half of what a model says is wrong. And math-verify takes very
    small numbers for one, 2^{-97} for 2^{-98}."""
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase) and gold.shape == answer.shape:
        return any(_clearly_different(g, a) for g, a in zip(gold, answer, strict=True))
    if not isinstance(gold, Expr) or not isinstance(answer, Expr):
        return False
    if gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):  # a percent sign
        return False
    if {s.name for s in answer.free_symbols} not in ({s.name for s in gold.free_symbols}, set()):
        return False
    a, b = _at(gold, 0).evalf(20), _at(answer, 0).evalf(20)
    if not (a.is_Number and b.is_Number and a.is_finite and b.is_finite):
        return False
    if any(value.is_Float and value._prec == 1 for value in (a, b)):  # so near to 0 that no digit of it is sure
        return False
    return bool(abs(a - b) > 1e-9 * max(abs(a), abs(b)))


def _region(value) -> Set | None:
    """The part of the number line that an interval, a union or an inequality in one unknown means."""
    if isinstance(value, Set):
        return value if isinstance(value, Interval) or not isinstance(value, FiniteSet) else None
    if _is_inequality(value) and len(value.free_symbols) == 1:
        try:
            plain = And(*_parts(value)) if type(value).__name__ == "And" else value
            symbol = next(iter(value.free_symbols))
            return plain.subs(symbol, Symbol("x", real=True)).as_set()
        except (NotImplementedError, TypeError, ValueError, AttributeError):
            return None
    return None
