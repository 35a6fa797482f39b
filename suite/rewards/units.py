"""Units: what may stand behind a number without changing it, in one spelling. No unit is converted into another."""

import functools
import re

# Words behind a number that make it another number, a hedge, or two answers.
_CHANGES = re.compile(
    r"\b(?:and|or|nor|xor|not|no|but|except|without|versus|vs|else|alternatively|instead|plus|minus|times a|"
    r"(?<!left )over|half|halves|quarters?|divided|multiplied|factorial|choose|remainder|mod|base|"
    r"(?<![a-z] )(?:squared|cubed)|"
    r"more|less|least|most|below|above|under|beyond|to|is|are|was|equals?|if|maybe|perhaps|possibly|probably|"
    r"approximately|approx|roughly|about|around|nearly|almost|unknown|wrong|incorrect|false|bc|bce|th|st|nd|rd|"
    r"percent|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|"
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|"
    r"\w+teen|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|(?:hundred|thousand|million|billion)ths?|"
    r"sin|cos|tan|log|ln|exp|pi|sqrt)\b"
    r"|[或和与又加减乘除半约多十百千万亿打成折的以左不余几]|分之|次方|平方(?![米厘分千公毫])|立方(?![米厘分千公毫])"
)
_UNIT_WORDS = re.compile(r"[A-Za-zµΩ\u4e00-\u9fff\"'][A-Za-zµΩ\u4e00-\u9fff\"' ./^{}()\d-]{0,60}")
SYNONYMS = {
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
    "千瓦": "kw", "watt": "w", "joule": "j", "newton": "n", "volt": "v", "ampere": "a", "amp": "a", "pascal": "pa",
    "hertz": "hz", "radian": "rad", "units": "unit",
    "cny": "yuan", "eur": "euro", "gbp": "pound", "cents": "cent", "years": "year", "weeks": "week", "days": "day",
    "months": "month",
}  # fmt: skip
# Short words that are units and not products of variables; letters that are units where a space stands before them.
_SHORT = "kw kwh hz pa kpa mol rad ha cc am pm ms ns nm dm gb mb kb tb".split()
UNITS = {*_SHORT, *(word for spelled in SYNONYMS.values() for word in spelled.split())} - {"/"}
_LETTERS = "mgshlLNJVWKACF"
_MEGA = re.compile(r"\bM(?=(?:g|W|B|b|J|V|L|l|Pa|Hz|eV)\b)")  # a million times what the small m makes a thousandth
_SQUARE = re.compile(r"(?<![A-Za-z])([A-Za-z]+)\s*(?:\^\s*\{?2\}?|\s(?i:squared)\b)")
_CUBIC = re.compile(r"(?<![A-Za-z])([A-Za-z]+)\s*(?:\^\s*\{?3\}?|\s(?i:cubed)\b)")
MONEY = ("dollar", "euro", "pound", "yuan", "rupee", "cent")
_SMALL_WORDS = ("of", "the", "a", "an", "old", "us", "each")


def read(tail: str) -> str | None:
    """The unit in what follows a number; '' for nothing, None for what makes it no number, or another one."""
    glued = tail[:1].isalpha() and tail[:1].isascii()
    tail = re.sub(r"\b([ap])\.\s*m\b\.?", r"\1m", tail.strip())
    tail = tail.removesuffix(".").strip().strip("()")
    if re.fullmatch(r"/\s*[A-Za-z]{3,}|/\s*[\u4e00-\u9fff]+", tail):  # $18/day
        return spell(tail)
    if not tail:
        return ""
    if not _UNIT_WORDS.fullmatch(tail) or re.search(r"(?<!\^)(?<!\^\{)\d", tail) or changes(tail):
        return None
    spelled = spell(tail)
    words = spelled.split()
    if not words or len(words) > 6:
        return None
    first = re.match(r"[^\W\d_]*", tail)[0]
    if len(first) == 1 and first.isascii() and (glued or first not in _LETTERS):
        return None  # 5m and 5 x are products
    if glued and len(first) < 4 and SYNONYMS.get(first.casefold(), first.casefold()) not in UNITS:
        return None  # 5ab, too
    return spelled


def changes(words: str) -> bool:
    """Whether words behind a number make it another number, a hedge, or no answer at all."""
    known = [part for part in re.split(r"\s*/\s*", words.strip()) if part not in SYNONYMS]
    return any(_CHANGES.search(part.casefold()) for part in known)


@functools.lru_cache(maxsize=20_000)
def spell(text: str) -> str:
    """One spelling for `cm^2`, `sq. cm`, `square centimeters` and `平方厘米`."""
    text = _SQUARE.sub(r"square \1", _MEGA.sub("mega", text))
    text = _CUBIC.sub(r"cubic \1", text)
    text = re.sub(r"\s*/\s*", " / ", re.sub(r"\b([ap])\.\s*m\b\.?", r"\1m", text.casefold()).replace(".", " "))
    words = []
    for word in re.findall(r"[^\W\d_]+|/", text):
        word = SYNONYMS.get(word, word)
        if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            word = SYNONYMS.get(word[:-1], word[:-1])
        words.append(word)
    return " ".join(w for w in words if w not in _SMALL_WORDS or len(words) == 1)


def same(a: str, b: str) -> bool:
    """Whether two units may stand for one. A missing one is forgiven; a `red apple` is an `apple`, but a `light year`
    is no `year`, and a `km / h` no `km`."""
    if not a or not b or a == b:
        return True
    first, second = a.split(), b.split()
    if "/" in (first[0], second[0]):  # 5 per hour, of $5 per hour
        return a.partition("/")[2] == b.partition("/")[2]
    if first[0] == second[0] and first[0] in MONEY and 1 in (len(first), len(second)) and "/" not in first + second:
        return True  # $18, and $18 in all
    if {"/", "square", "cubic"} & set(first + second) or first[-1] != second[-1] or first[-1] in UNITS:
        return False
    return set(first) <= set(second) or set(second) <= set(first)
