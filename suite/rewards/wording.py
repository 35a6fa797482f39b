r"""The words and signs around an answer: what is taken away before two answers are compared, and what is kept apart."""

import functools
import re

from suite.reasoning import last_boxed, last_tagged, spoken
from suite.rewards import units
from suite.rewards.numbers import SIGNS, plain

_WRAPPERS = (
    re.compile(r"\$\$(.*)\$\$", re.DOTALL),
    re.compile(r"\$(.*)\$", re.DOTALL),
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|fbox|underline)\{([^{}]*)\}", re.DOTALL),
    re.compile(r"\*\*(.*)\*\*", re.DOTALL),
    re.compile(r"\\boxed\s*([\w.]+)"),
)
_LEAD = re.compile(
    r"\\therefore\b\s*|\*{0,2}(?:(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|choice|option)"
    r"\s*(?:is\b|[:=])\s*:?"
    r"|(?:(?:所以|因此|故|综上),?)?(?:(?:最终|正确)?答案(?:是|为|选|:)+|答:|应?选(?:项|择)?[是为:]?\s*(?=\(?[A-J])))\*{0,2}\s*",
    re.IGNORECASE,
)
_LEAD_IN_TEXT = re.compile(r"^\\text\{([^{}]*(?:answer|choice)[^{}]*)\}", re.IGNORECASE)
_PRICED = re.compile(r"^\$([^$]+)(?<!\\)\$(\s+[A-Za-z\u4e00-\u9fff]|[\u4e00-\u9fff])")  # $18$ apples
_NAME = re.compile(
    r"(?P<name>(?:[A-Za-z]|\|?[A-Z]{2,3}\|?)(?:_\w|_\{[^{}]{1,20}\})?'?|\\[a-zA-Z]+(?:\s+[A-Z]{1,4})?|[a-zA-Z]\s*\([^()=]{1,12}\)"
    r"|\\(?:text|mathrm)\{[A-Za-z ]{2,40}\}|[A-Za-z][A-Za-z ]{2,30}|[\u4e00-\u9fff]{1,10})\s*=\s*(?P<rest>[^=<>].*)",
    re.DOTALL,
)
_VALUE_FIRST = re.compile(r"(?P<rest>[^=<>]+)=\s*(?P<name>[A-Za-z](?:_\w)?)")  # 5=x
_NO_NAME = re.compile(
    r"\b(?:not|isn?t?|isnot|never|negative|minus|opposite|wrong|incorrect)\b|不|\\(?:not|sin|cos|tan|log|ln|exp|sqrt)\b"
)
_PROSE = re.compile(r"[^\W\d_]{3,}|\bno\b", re.IGNORECASE)
_OPERATORS = re.compile(r"[\\^=+*/<>{}|()_]")
# Letters that are a product, xy or ab, and no word that another order would turn into another word.
PRODUCT = re.compile(r"-?(?:[a-zA-Z]|[a-df-hj-np-tv-z]{2}|[b-df-hj-np-tv-z]{3})")
_UNIT_BEHIND = re.compile(
    r"(?P<expression>.*\S)\s*(?:\\(?:text|mathrm|mbox)\{(?P<inside>[^{}\d]+)\}|(?<=[\d}).])\s+(?P<word>[A-Za-z]{2,}))"
    r"(?P<power>\^\{?[23]\}?)?"
)
_NEARLY = re.compile(r"\\approx\b|≈")


def gold_answer(solution) -> str | None:
    """The final answer in a gold solution of any style; None for one that cannot be read."""
    if isinstance(solution, float) and solution != solution:
        return None
    if not isinstance(solution, str | int | float) or (isinstance(solution, int) and abs(solution) > 10**100):
        return None
    text = spoken(str(solution)).strip()
    if "####" in text:
        text = text.rpartition("####")[2].strip().partition("\n")[0]
    tagged = last_tagged(text)
    text = tagged if tagged is not None else text
    boxed = last_boxed(text)
    if "\\boxed{" in text and (boxed is None or f"\\boxed{{{boxed}}}" not in text[text.rindex("\\boxed{") :]):
        return None  # cut off
    text = unwrap(boxed if boxed is not None else text)
    return text if re.search(r"[^\W_]|\\[a-z{]|[∅∞]", text) and _is_balanced(text) else None


@functools.lru_cache(maxsize=20_000)
def unwrap(answer: str) -> str:
    """An answer without what may stand around it: dollars, box, "The answer is", full stop."""
    text = answer.translate(SIGNS).strip()
    for _ in range(8):
        before = text
        text = re.sub(r"(?<![\\.])[.,;]\s*$", "", text.removesuffix("\\\\")).rstrip()
        text = text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] and text[0] in '"`' else text
        text = _inside_box(text)
        for wrapper in _WRAPPERS:
            match = wrapper.fullmatch(text)
            two_formulas = match and "$" in match[1].replace("\\$", "") and text[0] == "$"
            text = match[1].strip() if match and not two_formulas else text
        text = _LEAD_IN_TEXT.sub(r"\1", text)
        text = text[lead.end() :] if (lead := _LEAD.match(text)) else text
        text = _PRICED.sub(r"\1\2", text)
        text = text.removeprefix("=").lstrip() if not text.startswith("==") else text
        if text == before:
            break
    return text


def _inside_box(text: str) -> str:
    r"""What is in the box that spans the text; `\boxed{43}, \boxed{42}` is two answers, and stays as it is."""
    depth = 0
    for at, character in enumerate(text if text.startswith("\\boxed{") else ""):
        if character in "{}" and text[at - 1] != "\\":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[len("\\boxed{") : at].strip() if at == len(text) - 1 else text
    return text


def exact_side(text: str) -> str:
    r"""`\sqrt2 \approx 1.414` means its left side; `x \approx 1.414` has only its right one."""
    if not _NEARLY.search(text):
        return text
    left, right = _NEARLY.split(text, maxsplit=1)
    return f"{left}={right}" if re.fullmatch(r"\s*\\?[A-Za-z]{1,8}\s*", left) else left.strip()


def named(text: str) -> tuple[str, str]:
    """(`x`, `5`) of `x=5` and of `5=x`; ('', text) of what has no name beside an only equals sign."""
    match = _NAME.fullmatch(text) or _VALUE_FIRST.fullmatch(text) if text.count("=") == 1 else None
    if match is None or _NO_NAME.search(match["name"]):
        return "", text
    return match["name"], match["rest"].strip()


def normal(text: str) -> str:
    """A text without spacing, except where a space keeps two numbers or words apart; prose without case and quotes."""
    text = plain(text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").strip('"` .,')
    text = " ".join(text.split())  # before any pattern meets ten thousand spaces
    text = re.sub(r"\s*\b([apAP])\.?\s*([mM])\b\.?$", lambda m: f" {m[1]}m".lower(), text)  # 3:30 p.m.
    if _PROSE.search(text) and not _OPERATORS.search(text) and not PRODUCT.fullmatch(text.rstrip("!")):
        text = text.casefold().strip("'!")  # x and X are two names, y' is no y and x! a factorial
    return re.sub(r"(?<=[^\w\s])\s+|\s+(?=[^\w\s])", "", text)


def split_unit(text: str) -> tuple[str, str]:
    r"""(`3\sqrt2`, `cm`) of `3\sqrt2 \text{ cm}`; an expression has a unit only where that cannot be a product."""
    match = _UNIT_BEHIND.fullmatch(text) if "=" not in text else None
    if match is None or units.changes(match["inside"] or match["word"]):
        return text, ""
    unit = units.spell((match["inside"] or match["word"]) + (match["power"] or ""))
    words = unit.split()
    known = bool(words) and all(w in units.UNITS or w in ("/", "square", "cubic") for w in words)
    noun = bool(match["inside"]) and len(words) == 1 and len(words[0]) > 2
    return (match["expression"], unit) if known or noun else (text, "")


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text.replace("\\{", "").replace("\\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0
