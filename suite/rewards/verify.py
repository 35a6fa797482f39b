r"""Is it right? The one verifier behind `accuracy` and behind whatever else asks.

**Reading.** The gold is read in any style: bare, `$...$`, `\boxed{}`, in <answer> tags, or a worked solution that ends
in `#### 42` or in a box. A gold that holds nothing, or is cut off (an open brace), is unreadable, and then there is no
verdict. Around an answer it does not matter whether there stand dollars, a box, "The answer is", a full stop, LaTeX
spacing, full-width or Chinese signs.

**Deciding**, cheapest first: the same text; numbers in exact arithmetic; choices; expressions by math-verify, in a
worker process; text without case and spacing.

Equal are
- numbers of the same exact value, however written: `1,234`, `1234.0`, `1.234e3`, `0.5`, `\frac12`, `1/2`, `2 1/2`;
- a number with and without its unit or currency: `18 apples`, `$18` and `18`; `90^\circ` and `90`;
- `50%` and a gold `50` or `50\%`; under a gold `50\%` also `0.5` and `1/2`;
- a name and its value: `x=5` and `5`; what a true chain arrives at: `40+2=42` and `42`;
- a choice and its letter, `(B)`, `B.` and `B`, and the text of that choice where the row has `choices` or `options`;
- sets, and lists without brackets, in any order; a tuple, and a list without brackets in its order; intervals and the
  inequality or union that means the same; equations that are rearranged or multiplied by a factor; matrices entry by
  entry;
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
- two answers: `42 or 43`; a letter before another choice's text counts as the letter;
- words that only contain the answer: `at least 42`, `42?`; and letters alone are words: `on` is not `no`.

What is too long, too deep or too large to be judged at all is refused, and is wrong; so is what runs out of time or
memory. Each is counted.
"""

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from suite.rewards import pool
from suite.rewards.numbers import Quantity, plain, quantity, same_unit
from suite.rewards.wording import exact_side, gold_answer, named, normal, split_unit, unwrap

# What math-verify is never asked: a tower of powers or a wall of braces keeps sympy busy for ever.
MAX_CHARACTERS = 500
MAX_DEPTH = 16
_HUGE = re.compile(
    r"\d{3,}\s*!|!\s*!|\d{60,}"  # 10000!, 9!!!, numbers too long to do arithmetic with
    r"|(?:\^|\*\*)\s*[{(]?\s*-?\d{4,}|(?:\^|\*\*)\s*[{(][^{}()]*\d{2,}\s*(?:\^|\*\*)"  # 2^{10000}, 9^{99^...}
    r"|(?:\^|\*\*)[{(][^{}()]*(?:\^|\*\*)[{(][^{}()]*(?:\^|\*\*)|\d(?:(?:\^|\*\*)\d+){2}"  # 9^{9^{9^9}}, 9^9^9
)

_SUM = re.compile(r"[\d)}]\s*(?:[-+*×÷]|\\times|\\cdot|\\div)\s*[-+({]*\s*\d")
_OPERATIONS = (
    "\\int",
    "\\iint",
    "\\oint",
    "\\lim",
    "\\sum",
    "\\prod",
    "\\gcd",
    "\\lcm",
    "\\max",
    "\\min",
    "\\det",
    "\\frac{d",
)
_LETTER = re.compile(
    r"(?:option|choice)?\s*(?:(?:\(\s*([A-J])\s*\)|\[\s*([A-J])\s*\])(?:\s*[.:：、]?\s+(?P<behind>.*))?"
    r"|([A-J])(?:\s*[.:：、)]\s*(?P<said>.*))?)",
    re.DOTALL | re.IGNORECASE,
)
_FUNCTIONS = ("sin cos tan cot sec csc log ln exp lim max min gcd lcm mod sqrt arcsin arccos arctan sinh cosh tanh det "
              "inf infty pi and or").split()  # fmt: skip
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-zA-Z*]+\}|\\[a-zA-Z]+|[a-zA-Z]{3,}")
_DATE = re.compile(r"\d{1,4}([-/.:])\d{1,2}\1\d{1,4}")
# Letters that are a product, xy or ab, and no word that another order would turn into another word.
_PRODUCT = re.compile(r"-?(?:[a-zA-Z]|[a-df-hj-np-tv-z]{2}|[b-df-hj-np-tv-z]{3})")


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
        verdict = _decide(answer, solution, tolerance, options(choices[at]) if choices else {})
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


def options(choices) -> dict[str, str]:
    """Letter -> text, from a list, a mapping, or a mapping of `label` and `text` lists."""
    if isinstance(choices, dict) and isinstance(choices.get("text"), list) and isinstance(choices.get("label"), list):
        choices = dict(zip(choices["label"], choices["text"], strict=False))
    if isinstance(choices, dict):
        return {str(letter).upper(): str(text) for letter, text in choices.items()}
    found = list(choices) if isinstance(choices, list | tuple) else []
    return {
        letter: re.sub(rf"^\(?{letter}[.:)]\s*", "", str(text))
        for letter, text in zip("ABCDEFGHIJ", found, strict=False)
    }


def _decide(answer: str | None, solution, tolerance: float, given: dict[str, str]) -> Verdict | tuple[str, str]:
    """A verdict, or the pair (gold, answer) that only math-verify can decide."""
    gold = gold_answer(solution)
    if gold is None:
        return Verdict(None, "unreadable gold")
    if answer is None or not answer.strip():
        return Verdict(False, "no answer")
    if len(answer) > 20 * MAX_CHARACTERS and len(answer) > 2 * len(gold):
        return Verdict(False, "refused")
    answer = unwrap(answer)
    if answer == gold:
        return Verdict(True, "text")
    chosen = _choice(answer, gold, given, tolerance)
    return chosen if chosen is not None else _compare(answer, gold, tolerance)


def _choice(answer: str, gold: str, given: dict[str, str], tolerance: float) -> Verdict | tuple[str, str] | None:
    """A verdict where the gold is a letter, or the row has options; None where this is no matter of choice."""
    right = _letter(gold) if len(gold) > 1 or gold.isupper() else None  # x may be a name, and so may a
    said = _letter(answer)
    if right is not None and said is not None:
        return Verdict(said == right, "choice")
    if right in given:
        return _compare(answer, unwrap(given[right]), tolerance)
    if right is not None and len(gold) > 1:  # `(B)` is a letter; a bare one may be a variable
        return Verdict(False, "choice")
    if said in given and (len(answer) > 1 or answer.isupper()):
        return _compare(unwrap(given[said]), gold, tolerance)
    return None


def _letter(text: str) -> str | None:
    """The choice that a text names: `B`, `(b)`, `B.`, `Option B`, `B) because ...`; None for two of them, or none."""
    match = _LETTER.fullmatch(text)
    if match is None or re.search(r"[([]?\b[A-J][)\].]", match["said"] or match["behind"] or ""):
        return None
    bracketed, bare = match[1] or match[2], match[4]
    return (bracketed or bare).upper()


def _compare(answer: str, gold: str, tolerance: float) -> Verdict | tuple[str, str]:
    """Numbers, then equal text, then what math-verify has to decide."""
    if answer == gold:
        return Verdict(True, "text")
    answer, gold = exact_side(answer), exact_side(gold)
    (name, value), (gold_name, gold_value) = named(answer), named(gold)
    if gold_name and name and normal(name) != normal(gold_name):
        return Verdict(False, "text")
    if (name or gold_name) and (name or "=" not in answer) and (gold_name or "=" not in gold):
        answer, gold = unwrap(value), unwrap(gold_value)  # x=5 and 5, or x=5 and x=5
    number, gold_number = quantity(answer), quantity(gold)
    if number and gold_number:
        return Verdict(_same_quantity(number, gold_number, tolerance), "number")
    if normal(answer) == normal(gold):
        return Verdict(True, "text")
    if _is_left_to_do(answer, gold, bool(gold_number)) or _base(answer) != _base(gold):
        return Verdict(False, "text")
    (answer, unit), (gold, gold_unit) = split_unit(answer), split_unit(gold)
    if not same_unit(unit, gold_unit) or not (_is_mathematical(answer) and _is_mathematical(gold)):
        return Verdict(False, "text")
    if _too_much(answer) or _too_much(gold):
        return Verdict(False, "refused")
    return _as_latex(gold, gold_number), _as_latex(answer, number)


def _is_left_to_do(answer: str, gold: str, gold_is_number: bool) -> bool:
    """Whether an answer still asks what it should say: `40+2`, `6!` or an integral, where the gold has none of it."""
    if any(command in answer and command not in gold for command in _OPERATIONS):
        return True
    return (
        gold_is_number and "=" not in answer and bool(_SUM.search(answer) or re.search(r"[\w)}]\s*!|\\binom", answer))
    )


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
    if not same_unit(said.unit, gold.unit) or (said.percent and gold.unit) or (gold.percent and said.unit):
        return False
    wanted = [gold.value]
    if gold.percent and not said.percent:
        wanted.append(gold.value / 100)
    return any(said.value == w or abs(said.value - w) <= Fraction(tolerance) * abs(w) for w in wanted)


def _is_mathematical(text: str) -> bool:
    """A digit or a sign that mathematics uses, and no words but functions and LaTeX commands."""
    bare = re.sub(r"\\text\{\s*(?:or|and)\s*\}", ",", text)
    if any(word[0] != "\\" and word.casefold() not in _FUNCTIONS for word in _COMMAND.findall(bare)):
        return False
    if "\\boxed" in text or "$" in text.replace("\\$", ""):  # 18 behind something: math-verify would see only the 18
        return False
    if _DATE.fullmatch(text) or re.search(r"[\u4e00-\u9fff]", text):
        return False
    return bool(re.search(r"[\d\\=^+*/<>|∞π√∪∅]|[a-z]\(", text) or _PRODUCT.fullmatch(text))


def _too_much(text: str) -> bool:
    """Too long, too deep or too large for anybody's answer."""
    if len(text) > MAX_CHARACTERS or _HUGE.search(text.replace(" ", "")):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
