r"""Is it right? The one verifier behind `accuracy` and behind whatever else asks.

**Reading.** The gold is read in any style: bare, `$...$`, `\boxed{}`, in <answer> tags, or a worked solution that ends
in `#### 42` or in a box. A gold that holds nothing, or is cut off (an open brace), is unreadable, and then there is no
verdict. Around an answer it does not matter whether there stand dollars, a box, "The answer is", a full stop, LaTeX
spacing, full-width or Chinese signs.

**Deciding**, cheapest first: the same text; numbers in exact arithmetic; choices; expressions by math-verify, in a
worker process; text without case and spacing.

Equal are
- numbers of the same exact value, however written: `1,234`, `1234.0`, `1.234e3`, `0.5`, `\frac12`, `1/2`, `2 1/2`;
- a number with and without its unit or currency: `18 apples`, `$18` and `18`; `90^\circ` and `90`; `5m` and a gold
  `5 m`, though beside a `5` it is a product; `$5 in all` and `$5`;
- `50%` and a gold `50` or `50\%`; under a gold `50\%` also `0.5` and `1/2`;
- a name and its value: `x=5`, `5=x`, `\text{Area} = 5` and `5`; what a true chain arrives at: `40+2=42` and `42`;
- a choice and its letter, `(B)`, `B.` and `B`, and the text of that choice where the gold or the row (`choices`,
  `options`) says it; letters of several choices in any order, but `FACE` is a word;
- sets, and lists without brackets, in any order; a tuple, and a list without brackets in its order; intervals and the
  inequality, union or `\{x \mid x>2\}` that means the same; equations that are rearranged or multiplied by a factor;
  matrices entry by entry; `x=1, y=2` in any order, and `(1,2)`; ratios, `3:4` and `6:8`, but times only as they stand;
- expressions that can be turned into each other: `2\sqrt2` and `\sqrt8`, `x^2-1` and `(x-1)(x+1)`; a power or a root
  and the number it comes to.

Not equal are
- a rounded value and the exact one: `0.333` and `1/3`, `3.14` and `\pi`, unless `tolerance` (relative) allows it; of
  `\sqrt2 \approx 1.414` the left side counts;
- `0.5` and a gold `50`; `50\%` and a gold `0.5`, which has no percent sign to compare with;
- two different units or names: `5 cm` and `5 m`, `x=5` and `y=5`, `x` and `X`; units are never converted;
- tuples in another order; a set and a tuple; an open and a closed interval;
- arithmetic left to do, for the question would be its own answer: `40+2` or `6 \times 7` for `42`, `6!` for `720`, and
  an integral, limit, sum, gcd, maximum, determinant or derivative that the gold does not have; a false chain `41=42`;
- an equation and its right side, where the left is no name: `x+y=3` and `3`;
- two answers: `42 or 43`, `\boxed{43}, \boxed{42}`, `(A) or (B)`; a letter before another choice's text is the letter;
- words that only contain the answer, or change it: `at least 42`, `42 wrong`, `42 tenths`, `~42`, `42...`, `42?`; and
  letters alone are words: `on` is not `no`.

What is too long, too deep or too large to be judged at all is refused, and is wrong; so is what runs out of time or
memory. Each is counted.
"""

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from suite.rewards import choices as choices_of
from suite.rewards import pool, units
from suite.rewards.numbers import Quantity, plain, quantity
from suite.rewards.wording import PRODUCT, exact_side, gold_answer, named, normal, split_unit, unwrap

# What math-verify is never asked: a tower of powers or a wall of braces keeps sympy busy for ever.
MAX_CHARACTERS = 500
MAX_DEPTH = 16
_HUGE = re.compile(
    r"\d{3,}\s*!|!\s*!|\d{60,}"  # 10000!, 9!!!, numbers too long to do arithmetic with
    r"|(?:\^|\*\*)\s*[{(]?\s*-?\d{5,}|(?:\^|\*\*)\s*[{(][^{}()]*\d{2,}\s*(?:\^|\*\*)"  # 2^{10000}, 9^{99^...}
    r"|(?:\^|\*\*)[{(][^{}()]*(?:\^|\*\*)[{(][^{}()]*(?:\^|\*\*)|\d(?:(?:\^|\*\*)\d+){2}"  # 9^{9^{9^9}}, 9^9^9
)

_SUM = re.compile(
    r"[\d)}]\s*(?:[-+*×÷·⋅∙∗•]|\\(?:times|cdot|div|ast|bullet)(?![a-z]))\s*[-+({\s]*(?:\d|\\(?:[dt]?frac|sqrt|left))"
    r"|\d\s*/\s*[({]|[\w)}]\s*!|\\[dt]?binom|\\choose|^\s*[-+]\s*[-+(]|\|"
)
_OPERATIONS = re.compile(
    r"\\(?:i*int|oint|lim|sum|prod|gcd|lcm|max|min|det|lfloor|lceil|equiv|in)(?![a-z])|\\[dt]?frac\s*\{d|vmatrix|\b(?:gcd|lcm)\b"
)
_FUNCTIONS = ("sin cos tan cot sec csc log ln exp lim max min gcd lcm mod sqrt arcsin arccos arctan sinh cosh tanh det "
              "inf infty pi and or").split()  # fmt: skip
# What else math-verify reads; it passes over commands that it does not know, and what stands before them.
_COMMANDS = set(
    """
    frac dfrac tfrac cfrac times cdot div pm mp le leq leqslant ge geq geqslant lt gt ne neq in cup cap setminus
    emptyset varnothing left right big Big text mathrm mathbf mathbb mathcal begin end binom dbinom tbinom choose circ
    degree prime overline bar dot hat vec overrightarrow angle triangle langle rangle lbrace rbrace lfloor rfloor lceil
    rceil mid vert lvert rvert int iint oint sum prod equiv pmod bmod to rightarrow partial lor land vee wedge
    operatorname limits alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho
    sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell Re Im arg
    """.split()
) | (set(_FUNCTIONS) - {"and", "or"})
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+|[a-zA-Z]{3,}")
_DATE = re.compile(r"\d{1,4}([-/.:])\d{1,2}\1\d{1,4}")
_RATIO = re.compile(r"(\d{1,6})\s*:\s*(\d{1,6})")

FAILURES = ("timeout", "crash")


class Verdict(NamedTuple):
    """`right` is None where the gold cannot be read, and a share of 1 where a task gives one. `by` says what decided:
    text, number, choice, math, task; or no answer, unreadable gold, refused, timeout, crash."""

    right: bool | float | None
    by: str


def judge(
    answers: Sequence[str | None],
    solutions: Sequence,
    *,
    tolerance: float = 0.0,
    choices: Sequence | None = None,
    seconds: float = pool.SECONDS,
) -> list[Verdict]:
    """One verdict an answer (None: there is none) against the gold in its `solution`.

    `tolerance` is relative to the gold number; `choices` holds each row's options, or None; `seconds` of CPU time is
    what one comparison may take. Safe in any thread.
    """
    verdicts: list[Verdict | None] = []
    asked: dict[tuple[str, str], list[int]] = {}
    for at, (answer, solution) in enumerate(zip(answers, solutions, strict=True)):
        verdict = _decide(answer, solution, tolerance, choices_of.options(choices[at]) if choices else {})
        if isinstance(verdict, tuple) and not isinstance(verdict, Verdict):  # a pair for the workers
            asked.setdefault(verdict, []).append(at)
            verdict = None
        verdicts.append(verdict)
    outcomes = pool.judge([("same", *pair) for pair in asked], seconds)
    for where, outcome in zip(asked.values(), outcomes, strict=True):
        for at in where:
            verdicts[at] = Verdict(outcome == "equal", outcome if outcome in FAILURES else "math")
    return verdicts


def score_tasks(answers: Sequence[str | None], tasks: Sequence[dict], seconds: float = pool.SECONDS) -> list[Verdict]:
    """The score, from 0 to 1, that each row's reasoning-gym task gives the answer. A task has `name` and `entry`."""
    jobs = []
    for answer, task in zip(answers, tasks, strict=True):
        entry = task["entry"] if isinstance(task["entry"], str) else json.dumps(task["entry"], default=str)
        jobs.append(("task", str(task["name"]), entry, answer or ""))
    return [_scored(answer, outcome) for answer, outcome in zip(answers, pool.judge(jobs, seconds), strict=True)]


def _scored(answer: str | None, outcome: str) -> Verdict:
    if outcome == "unreadable":
        return Verdict(None, "unreadable gold")
    if answer is None or outcome in FAILURES:
        return Verdict(0.0, "no answer" if answer is None else outcome)
    return Verdict(min(1.0, max(0.0, float(outcome))), "task")


def _decide(answer: str | None, solution, tolerance: float, given: dict[str, str]) -> Verdict | tuple[str, str]:
    """A verdict, or the pair (gold, answer) that only math-verify can decide."""
    gold = gold_answer(solution)
    if gold is None:
        return Verdict(None, "unreadable gold")
    if answer is None or not str(answer).strip():
        return Verdict(False, "no answer")
    if len(answer) > 20 * MAX_CHARACTERS and len(answer) > 2 * len(gold):
        return Verdict(False, "refused")
    answer = _latin_or(unwrap(str(answer)))
    gold = _latin_or(gold)
    if answer == gold:
        return Verdict(True, "text")
    chosen = _choice(answer, gold, given, tolerance)
    return chosen if chosen is not None else _compare(answer, gold, tolerance)


def _latin_or(text: str) -> str:
    """`1或2` as `1 or 2`, between values."""
    return re.sub(r"(?<=[\w)}])\s*(?:或者?|和)\s*(?=[\w\\({-])", lambda m: " and " if "和" in m[0] else " or ", text)


def _choice(answer: str, gold: str, given: dict[str, str], tolerance: float) -> Verdict | tuple[str, str] | None:
    """A verdict where the gold is a letter, or the row has options; None where this is no matter of choice."""
    several = choices_of.several(answer)
    if several and choices_of.gold_several(gold):
        return Verdict(several == choices_of.gold_several(gold), "choice")
    right, said = choices_of.gold_letter(gold), choices_of.letter(answer)
    if right is not None and said is not None:
        return Verdict(said[0] == right[0], "choice")
    if right is not None and (right[0] in given or right[1]):
        return _compare(answer, unwrap(given.get(right[0], right[1])), tolerance)
    if right is not None and len(gold) > 1:  # `(B)` is a letter; a bare one may be a variable
        return Verdict(False, "choice")
    if said is not None and said[0] in given and (len(answer) > 1 or answer.isupper()):
        return _compare(unwrap(given[said[0]]), gold, tolerance)
    return None


def _compare(answer: str, gold: str, tolerance: float) -> Verdict | tuple[str, str]:
    """Numbers, then equal text, then what math-verify has to decide."""
    if answer == gold:
        return Verdict(True, "text")
    answer, gold = exact_side(answer), exact_side(gold)
    (name, value), (gold_name, gold_value) = named(answer), named(gold)
    if gold_name and name and normal(name) != normal(gold_name):
        if quantity(value) or quantity(gold_value):
            return Verdict(False, "text")
    elif (name or gold_name) and (name or "=" not in answer) and (gold_name or "=" not in gold):
        answer, gold = unwrap(value), unwrap(gold_value)  # x=5 and 5, or x=5 and x=5
    number, gold_number = quantity(answer), quantity(gold)
    number, gold_number = number or _in_unit_of(gold_number, answer), gold_number or _in_unit_of(number, gold)
    if number and gold_number:
        return Verdict(_same_quantity(number, gold_number, tolerance), "number")
    if (number is None) == (gold_number is None) and normal(answer) == normal(gold):
        return Verdict(True, "text")  # `42...` and `4, 200` only look like numbers
    if _is_left_to_do(answer, gold, bool(gold_number)) or _base(answer) != _base(gold):
        return Verdict(False, "text")
    if ":" in answer or ":" in gold:
        return Verdict(_ratio(answer) is not None and _ratio(answer) == _ratio(gold), "number")
    (answer, unit), (gold, gold_unit) = split_unit(answer), split_unit(gold)
    if not units.same(unit, gold_unit) or not (_is_mathematical(answer) and _is_mathematical(gold)):
        return Verdict(False, "text")
    if _too_much(answer) or _too_much(gold):
        return Verdict(False, "refused")
    if number and number.percent and "%" not in gold:
        number = number._replace(percent=False)
    return _as_latex(gold, gold_number), _as_latex(answer, number)


def _in_unit_of(other: Quantity | None, text: str) -> Quantity | None:
    """`5m` as so many metres, beside another number of metres: alone it is a product."""
    apart = quantity(re.sub(r"(?<=\d)(?=[A-Za-z])", " ", text, count=1)) if other and other.unit else None
    return apart if apart and apart.unit == other.unit else None


def _is_left_to_do(answer: str, gold: str, gold_is_number: bool) -> bool:
    """Whether an answer still asks what it should say: `40+2`, `6!` or an integral, where the gold has none of it."""
    said = re.sub(r"^(?:\\left)?(?:\\\{)?\s*[A-Za-z]\s*\\in\b", "", answer)
    if not set(_OPERATIONS.findall(said)) <= set(_OPERATIONS.findall(gold)):
        return True
    return gold_is_number and "=" not in answer and _SUM.search(answer) is not None


def _ratio(text: str) -> Fraction | None:
    """`3:4`, and no time: 12:30 is not 2:5."""
    match = _RATIO.fullmatch(text)
    if match is None or not int(match[2]) or (len(match[2]) == 2 and int(match[1]) < 24 and int(match[2]) < 60):
        return None
    return Fraction(int(match[1]), int(match[2]))


def _base(text: str) -> str:
    """The base that a number is written in: 8 for 42_8, and '' for ten."""
    match = re.search(r"\d\s*_\s*\{?\s*(\d+)", text)
    return "" if match is None or match[1] == "10" else match[1]


def _as_latex(text: str, number: Quantity | None) -> str:
    """What math-verify is given: a number by its value, so that 1e5 is no product."""
    if number is None or number.percent:
        return plain(text)
    value = number.value
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _same_quantity(said: Quantity, gold: Quantity, tolerance: float) -> bool:
    if not units.same(said.unit, gold.unit) or (said.percent and gold.unit) or (gold.percent and said.unit):
        return False
    wanted = [gold.value]
    if gold.percent and not said.percent:
        wanted.append(gold.value / 100)
    return any(said.value == w or abs(said.value - w) <= Fraction(tolerance) * abs(w) for w in wanted)


def _is_mathematical(text: str) -> bool:
    """A digit or a sign that mathematics uses, no words but functions, and no LaTeX that math-verify does not read."""
    bare = re.sub(r"\\\\|\\text\{\s*(?:or|and)\s*\}", ",", text)
    for word in _COMMAND.findall(bare):
        if word.startswith(("\\begin", "\\end")):
            continue
        if word.lstrip("\\") not in _COMMANDS if word[0] == "\\" else word.casefold() not in _FUNCTIONS:
            return False
    # What stands behind a dollar, or before a box, math-verify would not see.
    if _DATE.fullmatch(text) or re.search(r"[\u4e00-\u9fff~$]|\.\.|\d['\"]|^\s*,", text):
        return False
    return bool(re.search(r"[-\d\\=^+*/<>|∞π√∪∅]|[a-z]\(|\bpi\b", text) or PRODUCT.fullmatch(text))


def _too_much(text: str) -> bool:
    """Too long, too deep or too large for anybody's answer."""
    if len(text) > MAX_CHARACTERS or _HUGE.search(text.replace(" ", "")):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
