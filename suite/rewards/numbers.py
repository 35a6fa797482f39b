r"""Plain numbers with what people write around them, read exactly: signs, thousands, fractions, percent, money, units.

`1,234.50`, `\frac{1}{2}`, `2 1/2`, `1.5 \times 10^3`, `0.\overline{3}`, `50\%`, `\$5`, `18 apples`, `90^\circ`, `３元`.
What stands between digits is arithmetic still to be done, and no number: `40+2`, `6 \times 7`.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from suite.rewards import units

MAX_CHARACTERS = 120  # no number that anybody was asked for, and int() refuses more than 4,300 digits

_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
SIGNS = {
    **_FULL_WIDTH,
    **{ord(a): b for a, b in {
        "−": "-", "–": "-", "\u3000": " ", "\u00a0": " ", "\u202f": "", "\u2009": "", "。": ".", "、": ",",
        "“": '"', "”": '"', "‘": "'", "’": "'", "￥": "¥", "￡": "£", "￠": "¢", "㎡": "m^{2}",
        "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅛": " 1/8", "⁄": "/",
        "²": "^{2}", "³": "^{3}",
    }.items()},
}  # fmt: skip
_SPACING = re.compile(r"(?<!\\)\\[,!;: ]|\\q?quad\b|~|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle\b")
_IN_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°")

_NEARLY = re.compile(r"\s*(?:~|≈|≃|∼|\\(?:approx|sim|simeq)\b)")
_DECIMAL = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_TIMES_TEN = r"(?:\s*(?:\\times|×|\\cdot|·|\*|[xX])\s*10\s*(?:\^|\*\*)\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3})))"
_FRAC = r"\\[dtc]?frac\s*(?:\{\s*([-+]?[\d,]+)\s*\}\s*\{\s*([-+]?[\d,]+)\s*\}|(\d)\s*(\d)|(\d)\s*\{\s*(\d+)\s*\})"
_NUMBER = re.compile(
    rf"(?P<mixed>([1-9]\d{{0,2}}(?:,\d{{3}})+|\d+)(?:\s*{_FRAC}|\s+(\d+)\s*/\s*(\d+)))"
    rf"|(?P<frac>{_FRAC})"
    rf"|(?P<repeating>(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{{\s*(\d+)\s*\}})"
    rf"|(?P<ratio>({_DECIMAL})\s*/\s*([-+]?(?:{_DECIMAL})))"
    rf"|(?P<decimal>({_DECIMAL})(?:[eE]([-+]?\d{{1,3}})|{_TIMES_TEN})?)"
)
_SPACED = re.compile(r"[-+]?[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?")  # 1 000 000
_BEFORE = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<money>(?:US|HK|C|A)?\$|€|£|¥|₹|USD\b|EUR\b|GBP\b|RMB\b|CNY\b|Rs\.?)?\s*(?P<second>[-+]?)\s*"
)
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})(?:s?\b|(?<=[百千万亿]))(?<![百千](?=[分米克瓦帕]))\s*")
_PERCENT = re.compile(r"\s*(?:%|percent\b|per cent\b|percentage points?\b|个?百分点)\s*")
_MONEY = {"$": "dollar", "US$": "dollar", "USD": "dollar", "€": "euro", "EUR": "euro", "£": "pound", "GBP": "pound",
          "¥": "yuan", "RMB": "yuan", "CNY": "yuan", "₹": "rupee", "Rs": "rupee", "Rs.": "rupee"}  # fmt: skip


class Quantity(NamedTuple):
    """An exact value, whether a percent sign stood behind it (it is not divided out), and its unit, or ''."""

    value: Fraction
    percent: bool = False
    unit: str = ""


def plain(text: str) -> str:
    """Full-width and typographic signs as ASCII, LaTeX spacing and text commands taken away."""
    text = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", ",", text)  # 11,\! 111
    text = _SPACING.sub(lambda m: "" if m[0] in ("\\,", "\\!") else " ", text.translate(SIGNS))
    text = text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    return _IN_TEXT.sub(r" \1 ", text)


@functools.lru_cache(maxsize=20_000)
def quantity(text: str) -> Quantity | None:
    """The number that `text` is, and nothing but a number and its unit; else None."""
    if len(text) > MAX_CHARACTERS or not any(c.isdigit() for c in text):
        return None
    if _NEARLY.match(text) or re.search(r"\.\.\.|…", text):
        return None  # about 42, or 0.3 and so on
    text = _DEGREES.sub(" degree ", plain(text)).strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = re.sub(r" (?=\d{3}(?!\d))", "", text) if _SPACED.fullmatch(text) else text
    before = _BEFORE.match(text)
    number = _NUMBER.match(text, before.end())
    if number is None or (before["sign"] and before["second"]):
        return None
    value = _value(number)
    if value is None:
        return None
    tail = text[number.end() :]
    scale = _SCALE.match(tail)
    if scale:
        value, tail = value * _SCALES[scale[1]], " " + tail[scale.end() :]
    percent = _PERCENT.match(tail)
    tail = tail[percent.end() :] if percent else tail
    unit = units.read(tail.removesuffix("$"))
    if unit is None or (percent and unit):
        return None
    money = _MONEY.get(before["money"] or "", "dollar" if "$" in (before["money"] or "") else "")
    money = money or ("dollar" if tail == "$" else "")
    unit = units.spell(f"{money} {unit}") if money and unit else unit or money
    negative = "-" in (before["sign"], before["second"])
    return Quantity(-value if negative else value, bool(percent), unit)


def _value(match: re.Match) -> Fraction | None:
    """The exact value of what `_NUMBER` found; None for a division by zero."""
    groups = [g for g in match.groups() if g is not None]
    kind = match.lastgroup
    whole, *rest = groups
    numbers = [g.replace(",", "") for g in rest]
    try:
        if kind == "mixed":
            return int(numbers[0]) + Fraction(int(numbers[1]), int(numbers[2]))
        if kind == "frac":
            return Fraction(int(numbers[0]), int(numbers[1]))
        if kind == "ratio":
            return Fraction(numbers[0]) / Fraction(numbers[1])
        if kind == "repeating":
            before, start, again = rest
            nines = 10 ** len(start) * (10 ** len(again) - 1)
            return int(before or 0) + Fraction(int(start or 0), 10 ** len(start)) + Fraction(int(again), nines)
        return Fraction(numbers[0]) * Fraction(10) ** (int(numbers[1]) if len(numbers) > 1 else 0)
    except (ZeroDivisionError, ValueError):
        return None
