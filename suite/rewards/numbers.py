r"""Plain numbers with what people write around them, read exactly: signs, thousands, fractions, percent, money, units.

`1,234.50`, `\frac{1}{2}`, `2 1/2`, `1.5 \times 10^3`, `0.\overline{3}`, `50\%`, `\$5`, `18 apples`, `90^\circ`, `３元`.
What stands between digits is arithmetic still to be done, and no number: `40+2`, `6 \times 7`.
"""

import functools
import re
from fractions import Fraction
from typing import NamedTuple

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
_BEFORE = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<money>(?:US|HK|C|A)?\$|€|£|¥|₹|USD\b|EUR\b|GBP\b|RMB\b|CNY\b|Rs\.?)?\s*(?P<second>[-+]?)\s*"
)
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})(?:s?\b|(?<=[百千万亿]))(?<![百千](?=[分米克瓦帕]))\s*")
_PERCENT = re.compile(r"\s*(?:%|percent\b|per cent\b|percentage points?\b|个?百分点)\s*")
_WORDS = re.compile(r"[A-Za-zµΩ\u4e00-\u9fff\"'][A-Za-zµΩ\u4e00-\u9fff\"' ./^{}()\d-]{0,60}")
# Words after a number that make it another number, or none.
_NO_UNIT = re.compile(
    r"\b(?:and|or|not|plus|minus|times|over|half|halves|quarters?|thirds?|divided|multiplied|factorial|more|less|but|to|"
    r"squared|cubed|is|are|was|equals?|if|mod|th|st|nd|rd|sin|cos|tan|log|ln|exp|pi|sqrt|base)\b|[或和与又加减乘除半约多]"
)
_MONEY = {"$": "dollar", "US$": "dollar", "USD": "dollar", "€": "euro", "EUR": "euro", "£": "pound", "GBP": "pound",
          "¥": "yuan", "RMB": "yuan", "CNY": "yuan", "₹": "rupee", "Rs": "rupee", "Rs.": "rupee"}  # fmt: skip
_SYNONYMS = {
    "millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "milligram": "mg", "gram": "g", "kilogram": "kg", "kilo": "kg", "lb": "pound", "lbs": "pound",
    "ounce": "oz", "milliliter": "ml", "millilitre": "ml", "liter": "l", "litre": "l", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "hrs": "h", "percentage": "percent", "degree": "deg", "celsius": "c",
    "fahrenheit": "f", "sq": "square", "per": "/", "kph": "km / h", "kmh": "km / h", "mph": "mi / h",
    "元": "yuan", "人民币": "yuan", "块": "yuan", "美元": "dollar", "欧元": "euro", "米": "m", "厘米": "cm",
    "千米": "km", "公里": "km", "毫米": "mm", "克": "g", "千克": "kg", "公斤": "kg", "升": "l", "毫升": "ml",
    "秒": "s", "分钟": "min", "小时": "h", "时": "h", "度": "deg",
    "平方米": "square m", "平方厘米": "square cm", "平方千米": "square km",
    "立方米": "cubic m", "立方厘米": "cubic cm", "bucks": "dollar", "buck": "dollar", "usd": "dollar", "rmb": "yuan",
    "cny": "yuan", "eur": "euro", "gbp": "pound",
}  # fmt: skip
# Short words that are units and not products of variables; letters that are units where a space stands before them.
UNITS = {*_SYNONYMS.values(), "kw", "kwh", "hz", "pa", "kpa", "mol", "rad", "ha", "cc", "am", "pm", "ms", "ns", "nm",
         "dm", "gb", "mb", "kb", "tb"}  # fmt: skip
_LETTERS = "mgshlLNJVWKACF"


class Quantity(NamedTuple):
    """An exact value, whether a percent sign stood behind it (it is not divided out), and its unit, or ''."""

    value: Fraction
    percent: bool = False
    unit: str = ""


def plain(text: str) -> str:
    """Full-width and typographic signs as ASCII, LaTeX spacing and text commands taken away."""
    text = _SPACING.sub(lambda m: "" if m[0] in ("\\,", "\\!") else " ", text.translate(SIGNS))
    text = text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "$")
    return _IN_TEXT.sub(r" \1 ", text)


@functools.lru_cache(maxsize=20_000)
def quantity(text: str) -> Quantity | None:
    """The number that `text` is, and nothing but a number and its unit; else None."""
    if len(text) > MAX_CHARACTERS or not any(c.isdigit() for c in text):
        return None
    text = _DEGREES.sub(" degree ", plain(text)).strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
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
    unit = _unit(tail.removesuffix("$"))
    if unit is None or (percent and unit):
        return None
    money = _MONEY.get(before["money"] or "", "dollar" if "$" in (before["money"] or "") else "")
    negative = "-" in (before["sign"], before["second"])
    return Quantity(-value if negative else value, bool(percent), unit or money or ("dollar" if tail == "$" else ""))


def same_unit(a: str, b: str) -> bool:
    """Whether two units may stand for one: a missing one is forgiven, `red apple` is an `apple`, `km / h` no `km`."""
    if not a or not b or a == b:
        return True
    first, second = set(a.split()), set(b.split())
    rates = "/" in first | second
    return not rates and not {"square", "cubic"} & (first ^ second) and (first <= second or second <= first)


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


def _unit(tail: str) -> str | None:
    """The unit in what follows a number, in one spelling; '' for nothing, None for what makes it no number."""
    glued = tail[:1].isalpha() and tail[:1].isascii()
    tail = tail.strip().rstrip(".").strip().strip("()")
    if not tail:
        return ""
    if not _WORDS.fullmatch(tail) or _NO_UNIT.search(tail.casefold()) or re.search(r"(?<!\^)(?<!\^\{)\d", tail):
        return None
    spelled = spell_unit(tail)
    words = spelled.split()
    if len(words) > 6:
        return None
    first = re.match(r"[^\W\d_]*", tail)[0]
    if len(first) == 1 and first.isascii() and (glued or first not in _LETTERS):
        return None  # 5m and 5 x are products
    if glued and len(first) < 4 and _SYNONYMS.get(first.casefold(), first.casefold()) not in UNITS:
        return None  # 5ab, too
    return spelled


@functools.lru_cache(maxsize=20_000)
def spell_unit(text: str) -> str:
    """One spelling for `cm^2`, `sq. cm`, `square centimeters` and `平方厘米`; no unit is converted into another."""
    text = re.sub(r"([A-Za-z]+)\s*\^\s*\{?2\}?", r"square \1", text)
    text = re.sub(r"([A-Za-z]+)\s*\^\s*\{?3\}?", r"cubic \1", text)
    text = re.sub(r"\s*/\s*", " / ", text.casefold().replace(".", " "))
    words = []
    for word in re.findall(r"[^\W\d_]+|/", text):
        word = _SYNONYMS.get(word, word)
        if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            word = _SYNONYMS.get(word[:-1], word[:-1])
        words.append(word)
    return " ".join(w for w in words if w not in ("of", "the", "a", "an") or len(words) == 1)
