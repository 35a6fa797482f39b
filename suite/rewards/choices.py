"""Letters that stand for a row's options: reading them in an answer and in a gold."""

import re

from suite.rewards.numbers import plain

_LETTER = re.compile(
    r"(?:(?:option|choice)\s*)?(?:[(\[]\s*(?P<bracketed>[A-Ja-j])\s*[)\]](?:\s*[.:]?\s+(?P<behind>.*))?"
    r"|(?P<bare>[A-Ja-j])(?:\s*[.:)]\s*(?P<said>.*))?)",
    re.DOTALL | re.IGNORECASE,
)
# A second choice, or a first one that is taken back: (A) or (B); A. is wrong, it is D; a) 5, b) 7.
_ANOTHER = re.compile(
    r"(?i:^\W*(?:or|and|is|not|no|maybe|perhaps|wrong|incorrect|或|和|错|不))|(?<![A-Za-z])[B-HJ](?![A-Za-z])"
    r"|(?<![A-Za-z])[(\[]?[A-Ja-j][)\].:](?![A-Za-z])"
)
_SEVERAL = re.compile(r"[A-J](?:\s*(?:(?:,|&|and|和|;)\s*)?[A-J])+")


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


def letter(text: str) -> tuple[str, str] | None:
    """(`B`, what stands behind it) of `B`, `(b)`, `B.`, `Option B` or `B) because ...`; None for two, or none."""
    match = _LETTER.fullmatch(plain(text).strip())
    if match is None:
        return None
    behind = (match["said"] or match["behind"] or "").strip()
    if _ANOTHER.search(behind) or re.fullmatch(r"[A-J]", behind):
        return None
    return (match["bracketed"] or match["bare"]).upper(), behind


def gold_letter(text: str) -> tuple[str, str] | None:
    """The same of a gold, whose letter is a capital: `a) 3` is a part of a question, and x a name."""
    found = letter(text)
    return found if found and re.search(r"[A-J]", plain(text)[:16]) and "=" not in found[1] else None


def several(text: str) -> frozenset[str] | None:
    """The letters of `A, C` or `AC`; None for anything else, as letters that repeat."""
    text = plain(text).strip()
    letters = re.findall(r"[A-J]", text) if _SEVERAL.fullmatch(text) else []
    return frozenset(letters) if letters and len(set(letters)) == len(letters) else None


def gold_several(text: str) -> frozenset[str] | None:
    """The same of a gold, whose letters stand in order where nothing is between them: FACE is a word."""
    glued = plain(text).strip()
    return several(text) if not glued.isalpha() or list(glued) == sorted(glued) else None
