r"""The words and signs around an answer: what is taken away before two answers are compared, and what is kept apart."""

import functools
import re

from suite.reasoning import last_boxed, last_tagged, spoken
from suite.rewards.numbers import SIGNS, UNITS, plain, spell_unit

_WRAPPERS = (
    re.compile(r"\$\$(.*)\$\$", re.DOTALL),
    re.compile(r"\$(.*)\$", re.DOTALL),
    re.compile(r"\\\((.*)\\\)", re.DOTALL),
    re.compile(r"\\\[(.*)\\\]", re.DOTALL),
    re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|fbox)\{([^{}]*)\}", re.DOTALL),
    re.compile(r"\*\*(.*)\*\*", re.DOTALL),
)
_LEAD = re.compile(
    r"\*{0,2}(?:(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|choice|option)"
    r"\s*(?:is\b|[:=])\s*:?|(?:最终)?答案(?:是|为|:)+|答:)\*{0,2}\s*",
    re.IGNORECASE,
)
_LEAD_IN_TEXT = re.compile(r"^\\text\{([^{}]*(?:answer|choice)[^{}]*)\}", re.IGNORECASE)
_PRICED = re.compile(r"^\$([^$]+)(?<!\\)\$(\s+[A-Za-z\u4e00-\u9fff]|[\u4e00-\u9fff])")  # $18$ apples
_NAME = re.compile(
    r"(?P<name>[A-Za-z]{1,3}(?:_\{?\w{1,3}\}?)?'?|\\[a-zA-Z]+(?:\s+[A-Z]{1,4})?|[a-zA-Z]\s*\([^()=]{1,12}\)"
    r"|[A-Za-z][A-Za-z ]{2,30}|[\u4e00-\u9fff]{1,10})?\s*=\s*(?P<rest>[^=<>].*)",
    re.DOTALL,
)
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
        text = text.rstrip(".。;；").rstrip() if not text.endswith("...") else text
        boxed = last_boxed(text) if text.startswith("\\boxed{") else None
        text = boxed.strip() if boxed is not None and len(boxed) + len("\\boxed{}") == len(text) else text
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


def exact_side(text: str) -> str:
    r"""`\sqrt2 \approx 1.414` means its left side; `x \approx 1.414` has only its right one."""
    if not _NEARLY.search(text):
        return text
    left, right = _NEARLY.split(text, maxsplit=1)
    return f"{left}={right}" if re.fullmatch(r"\s*\\?[A-Za-z]{1,8}\s*", left) else left.strip()


def named(text: str) -> tuple[str, str]:
    """(`x`, `5`) of `x=5`; ('', text) of what has no name before an only equals sign."""
    match = _NAME.fullmatch(text) if text.count("=") == 1 else None
    return (match["name"] or "", match["rest"]) if match else ("", text)


def normal(text: str) -> str:
    """A text without case, quotes and spacing, except where a space keeps two numbers or words apart."""
    text = plain(text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").strip("\"'` .,")
    text = text.casefold() if len(text) > 1 else text  # x and X are two names
    text = text.rstrip("!") if re.fullmatch(r"[^\d\\(){}]{3,}", text) else text  # x! is a factorial
    return re.sub(r"(?<=[^\w\s])\s+|\s+(?=[^\w\s])", "", " ".join(text.split()))


def split_unit(text: str) -> tuple[str, str]:
    r"""(`3\sqrt2`, `cm`) of `3\sqrt2 \text{ cm}`; an expression has a unit only where that cannot be a product."""
    match = _UNIT_BEHIND.fullmatch(text) if "=" not in text else None
    if match is None:
        return text, ""
    unit = spell_unit((match["inside"] or match["word"]) + (match["power"] or ""))
    words = unit.split()
    known = bool(words) and all(w in UNITS or w in ("/", "square", "cubic") for w in words)
    named = bool(match["inside"]) and len(words) == 1 and len(words[0]) > 1 and words[0] not in ("or", "and")
    return (match["expression"], unit) if known or named else (text, "")


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text.replace("\\{", "").replace("\\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0
