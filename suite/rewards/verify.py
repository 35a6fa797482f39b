r"""Is it right? The one verifier behind `accuracy` and behind whatever else asks.

The gold answer is read in any style: bare, `$...$`, `\boxed{}`, or a worked solution ending in `#### 42` or a box.
Then, cheapest first: the same text; the same number in exact rational arithmetic (42.0 equals 42, 0.5 equals 1/2,
0.333 does not equal 1/3); and last, where one side holds LaTeX or an expression, math-verify.
"""

import re
import threading
from fractions import Fraction

from suite.reasoning import last_boxed

# What math-verify is never asked: a tower of powers or a wall of braces keeps sympy busy for ever.
MAX_EXPRESSION_CHARACTERS = 400
MAX_DEPTH = 30
SECONDS = 3

_WRAPPERS = [
    re.compile(r"\$\$(.*)\$\$", re.DOTALL),
    re.compile(r"\$(.*)\$", re.DOTALL),
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}", re.DOTALL),
]
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})*|\d+)?(?:\.\d*)?(?:[eE][-+]?\d{1,3})?")
_RATIO = re.compile(r"([-+]?\d+)/(\d+)")
_UNFINISHED = re.compile(r"\d\s*(?:[-+*/^=×÷·]|\\times|\\cdot|\\div)\s*[-(]?\s*\d")
_HUGE = re.compile(r"!|\d{12,}|\^\s*\{?\s*-?(?:\d{3,}|[^{}]*\^)|\*\*\s*\(?\d{3,}|\\int|\\sum|\\prod|\\lim")


def gold_answer(solution) -> str | None:
    """The final answer in a gold solution of any style; None for one that holds nothing."""
    text = str(solution if solution is not None else "").strip()
    if "####" in text:
        text = text.rpartition("####")[2].strip()
    boxed = last_boxed(text)
    return (boxed if boxed is not None else text).strip() or None


def unwrap(answer: str) -> str:
    """An answer without its dollars, its box and the full stop behind it."""
    text = answer.strip()
    for _ in range(8):
        before = text
        text = text.rstrip(".。").strip() if not re.search(r"\.\.\.$", text) else text
        boxed = last_boxed(text) if text.startswith("\\boxed{") and text.endswith("}") else None
        text = boxed.strip() if boxed is not None else text
        for wrapper in _WRAPPERS:
            match = wrapper.fullmatch(text)
            text = match.group(1).strip() if match else text
        if text == before:
            break
    return text


def as_number(answer: str) -> Fraction | None:
    """The exact value of a plain number, a ratio of whole numbers or a LaTeX fraction of them; else None."""
    if len(answer) > 100:  # no number that anybody was asked for, and int() refuses more than 4,300 digits
        return None
    text = answer.replace("\\,", "").replace("\\!", "").replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    text = text.strip().removeprefix("$").removesuffix("%").strip().replace("−", "-")
    text = _FRACTION.sub(r"\g<1>\2/\3", text) if "\\" in text else text
    ratio = _RATIO.fullmatch(text)
    if ratio and int(ratio.group(2)):
        return Fraction(int(ratio.group(1)), int(ratio.group(2)))
    if any(c.isdigit() for c in text) and _NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    return None


def is_right(answer: str | None, solution) -> bool | None:
    """Whether `answer` (None: there is none) equals the gold in `solution`; None where the gold cannot be read."""
    gold = gold_answer(solution)
    if gold is None:
        return None
    if answer is None:
        return False
    answer, gold = unwrap(answer), unwrap(gold)
    if answer == gold:
        return True
    value, gold_value = as_number(answer), as_number(gold)
    if value is not None and gold_value is not None:
        return value == gold_value
    if gold_value is not None and _UNFINISHED.search(answer):
        return False  # 47+38 is the question, not the answer
    if _looks_mathematical(gold) and _looks_mathematical(answer):
        return _same_expression(answer, gold)
    return " ".join(answer.casefold().split()) == " ".join(gold.casefold().split())


def _looks_mathematical(text: str) -> bool:
    """Short, shallow, without towers, and with a digit or a sign that mathematics uses."""
    if len(text) > MAX_EXPRESSION_CHARACTERS or _HUGE.search(text):
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest <= MAX_DEPTH and bool(re.search(r"[\d\\=^+*/]", text))


def _same_expression(answer: str, gold: str) -> bool:
    import logging

    from math_verify import parse, verify  # half a second of sympy, only where LaTeX is met
    from math_verify.errors import TimeoutException  # derives from BaseException in some releases

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # math-verify's timeouts are made of signal.alarm, which only the main thread has.
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    try:
        sides = [parse(f"${side}$", parsing_timeout=seconds, raise_on_error=False) for side in (gold, answer)]
        return all(sides) and verify(*sides, timeout_seconds=seconds, raise_on_error=False)
    except TimeoutException:
        return False


def task_score(answer: str | None, task: dict) -> float:
    """A reasoning-gym task's own score for an answer, from 0 to 1. `task` has `name`, and `entry` as JSON."""
    import json

    from reasoning_gym import get_score_answer_fn  # three seconds, only where such a row is met

    if answer is None:
        return 0.0
    entry = json.loads(task["entry"])
    score = float(get_score_answer_fn(task["name"])(answer=answer, entry=entry))
    # Most scorers give a crumb (0.01 to 0.05) for any answer at all; an answer is not accuracy.
    return score if score >= 0.1 else 0.0
