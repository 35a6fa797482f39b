r"""Something for a wrong answer, too: right, else the gold answer was said, else well-formed, else nothing.

"Said" means outside the thinking and as a whole. A number is compared by value: gold 42 is said by 42, 42.0, +42 and
84/2, by `42元` and `\boxed{42}`, and not by 142, 42.5, 1,42 (no number), -42, 42/7, x42 or 42km; in 50-42 the sign is a
subtraction, so there it is. Other answers are looked for as words whatever their case, but a single letter (a choice)
must have its own: `a` is an article. Beside a Chinese, Japanese or Korean character every place is an edge of a word.
"""

import functools
import itertools
import math
import re

from suite import reasoning
from suite.rewards.accuracy import accuracy_reward
from suite.rewards.language import CJK
from suite.rewards.numbers import plain, quantity
from suite.rewards.wording import gold_answer, unwrap

_LETTER = rf"[^\W{CJK}]"  # a letter, digit or underscore that may continue a word
_PLAIN = r"\d++(?:[.,]\d++)*+(?:[eE][-+]?\d{1,3}+)?+"
# Possessive, so that a number is taken whole or not at all, and no digit is read twice.
_NUMBER = re.compile(
    rf"(?:(?<!{_LETTER})(?<![)\]}}])[-+])?(?<!{_LETTER})(?<!\d[,/])(?<!\.)(?:{_PLAIN}|\.\d++)(?:/{_PLAIN})*+(?!{_LETTER})"
)
_FRACTION = re.compile(r"(-?)\\[dtc]?frac\{(-?\d{1,50})\}\{(\d{1,50})\}")


def partial_reward(
    completions,
    solution,
    prompts=None,
    *,
    right: float = 1.0,
    contains: float = 0.5,
    well_formed: float = 0.01,
    none: float = 0.0,
    think_opened: bool = False,
    **columns,
) -> list[float | None]:
    """The value of the highest tier each completion reaches; None where `accuracy`, the judge of `right`, gives None.

    The tiers are in the order of the knobs. `think_opened` says that prompts end in <think>. Raises `ValueError` for
    tiers out of order.
    """
    tiers = {"right": right, "contains": contains, "well_formed": well_formed, "none": none}
    if not (all(map(math.isfinite, tiers.values())) and right >= contains >= well_formed >= none):
        listed = ", ".join(f"partial.{name}: {value}" for name, value in tiers.items())
        raise ValueError(f"{listed} must be finite and fall in this order: {' >= '.join(tiers)}.")
    columns.pop("log_extra", None)  # accuracy's own: TRL would append its columns twice
    verdicts = accuracy_reward(completions, solution, prompts=prompts, think_opened=think_opened, **columns)
    texts = reasoning.texts(completions, prompts, think_opened)
    rewards = []
    for verdict, text, row_solution in zip(verdicts, texts, solution, strict=True):
        if verdict is None or verdict >= 1.0:
            rewards.append(None if verdict is None else right)
        elif says(reasoning.spoken(text), gold_answer(row_solution)):
            rewards.append(contains)
        else:
            rewards.append(well_formed if reasoning.is_well_formed(text) else none)
    return rewards


def says(text: str, gold: str | None) -> bool:
    """Whether `gold` stands in `text` as a whole number or word, as the head of this file has it."""
    gold = _keyboard(unwrap(gold or "")).strip()
    if not gold:
        return False
    text, number = _keyboard(text), quantity(gold)
    if number is not None:
        found = (quantity(match[0]) for match in _NUMBER.finditer(text))
        return any(f is not None and f.value == number.value for f in found)
    return _words(gold).search(" ".join(text.split())) is not None


def _keyboard(text: str) -> str:
    """Typographic signs, LaTeX spacing and fractions of whole numbers as one types them."""
    return _FRACTION.sub(r" \1\2/\3", plain(text))


@functools.lru_cache(maxsize=1000)
def _words(gold: str) -> re.Pattern:
    """`gold` where no word goes on before or behind it, with or without spaces about its signs: (3,4) or (3, 4)."""
    before = rf"(?<!{_LETTER})" if re.match(_LETTER, gold) else ""
    behind = rf"(?!{_LETTER})" if re.match(_LETTER, gold[-1]) else ""
    if gold[0].isdigit():
        before += r"(?<!\d[.,])(?<!-)"
    if gold[-1].isdigit():
        behind += r"(?![.,]\d)"
    flags = 0 if len(gold) == 1 else re.IGNORECASE
    parts = re.findall(r"\w+|[^\w\s]", gold)
    middle = re.escape(parts[0])
    for last, part in itertools.pairwise(parts):
        both_words = re.match(r"\w", last) and re.match(r"\w", part)
        middle += (" " if both_words else " ?") + re.escape(part)
    return re.compile(before + middle + behind, flags)
