"""Lists of any kind, compared element by element: sets, tuples, intervals, unions of them, and lists without brackets.

Reading the brackets here, and not in the LaTeX parser, keeps a set from being taken for a tuple, and saves the parser
its slowest work: `(1, 2)` may be a point or an interval, and it tries both.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

OR = re.compile(r"\\text\{\s*or\s*\}|\bor\b|\\lor\b|\\vee\b|;")
AND = re.compile(r"\\text\{\s*and\s*\}|\band\b|\\land\b|\\wedge\b")
_RELATION = re.compile(r"[<>]|\\(?:[lg]eq?|[lg]eqslant|ne|neq|lt|gt|in|mid)\b|[≤≥≠∈|]")
_SIGNS = re.compile(r"\\pm\b|±")
_NAMED = re.compile(r"(?P<name>(?P<letter>[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?\s*)=(?P<value>[^=]+)")
_POINT = re.compile(r"\((?P<names>[a-zA-Z](?:\s*,\s*[a-zA-Z])+)\)\s*=\s*\((?P<values>.*)\)")
_CUP = re.compile(r"\\cup\b|∪")
MOST = 40  # elements


class Listed(NamedTuple):
    """`opens` and `closes` are one bracket each, or both '' for a bare list, or both 'u' for a union."""

    opens: str
    items: list[str]
    closes: str


def same(gold: str, answer: str, equal: Callable[[str, str], bool]) -> bool | None:
    """Whether two lists are equal, their elements by `equal`; None where either is no list."""
    golds, answers = split(gold), split(answer)
    if golds is None or answers is None:
        return None
    if len(golds.items) != len(answers.items):
        return None if "u" in golds.opens + answers.opens else False
    by_name = _by_name(golds, answers, equal)
    if by_name is not None:
        return by_name
    kinds = {golds.opens, answers.opens}
    if "u" in kinds:
        # [1,3] may be a union, and a union may be written in other pieces.
        return True if kinds == {"u"} and _same_in_any_order(golds.items, answers.items, equal) else None
    if kinds <= {"{", ""}:
        return _same_in_any_order(golds.items, answers.items, equal)
    bare = "" in kinds and kinds <= {"", "("}
    if not bare and (golds.opens, golds.closes) != (answers.opens, answers.closes):
        return False
    return all(equal(g, a) for g, a in zip(golds.items, answers.items, strict=True))


def _by_name(golds: Listed, answers: Listed, equal: Callable[[str, str], bool]) -> bool | None:
    """`x=1, y=2` against the same in any order, or against values in the order of the names; None without names.

    `x_1=3, x_2=5` are solutions of one x, in any order.
    """
    first, second = _names(golds), _names(answers)
    if first and second:
        return first.keys() == second.keys() and all(equal(value, second[name]) for name, value in first.items())
    if not first and not second:
        return None
    if "{" in golds.opens + answers.opens:
        return False
    values = [
        [names[n] for n in (sorted(names) if all(map(str.isalpha, names)) else names)] if names else listed.items
        for names, listed in ((first, golds), (second, answers))
    ]
    return all(equal(g, a) for g, a in zip(*values, strict=True))


def _names(listed: Listed) -> dict[str, str]:
    """Name -> value, where every item is a name and its value, and no two names are alike but for an index."""
    matches = [_NAMED.fullmatch(item) for item in listed.items]
    names = {m["name"].strip(): m["value"] for m in matches if m}
    letters = {m["letter"] for m in matches if m}
    return names if len(letters) == len(listed.items) else {}


def split(text: str) -> Listed | None:
    """A text as a list, or None for what is none: one value, an inequality, several bracketed groups."""
    text = re.sub(r"\\(?:left|right|big|Big)(?![a-z])", "", text).replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    text = text.replace("\\langle", "(").replace("\\rangle", ")").replace("\\{", "\x01").replace("\\}", "\x02").strip()
    point = _POINT.fullmatch(text)
    if point:  # (x,y)=(1,2) says x=1, y=2
        names, values = point["names"].split(","), _at_top(point["values"], re.compile(","))
        if len(names) == len(values):
            return Listed("(", [f"{n.strip()}={_again(v)}" for n, v in zip(names, values, strict=True)], ")")
    inside = text[1:-1] if len(text) > 2 and _spans(text) else None
    if inside is not None:
        items = _at_top(inside, re.compile(","))
        opens, closes = text[0].replace("\x01", "{"), text[-1].replace("\x02", "}")
        if (len(items) > 1 or opens == "{") and all(items) and not _RELATION.search(inside):
            items = _both_signs(items) if opens == "{" else items
            return Listed(opens, [_again(item) for item in items], closes)
        return None
    for pattern, kind in ((_CUP, "u"), (re.compile(f",|{OR.pattern}|{AND.pattern}"), "")):
        items = _at_top(text, pattern)
        items = [AND.sub("", OR.sub("", item)).strip() for item in items] if kind == "" else items
        items = [item for item in items if item]  # `1, 2, and 3`
        thousands = kind == "" and re.fullmatch(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", text)
        items = _both_signs(items) if kind == "" else items
        if 1 < len(items) <= MOST and not thousands and not _RELATION.search(text):
            return Listed(kind, [_again(item) for item in items], kind)
    return None


def _both_signs(items: list[str]) -> list[str]:
    r"""`1\pm\sqrt5` as the two that it means."""
    found = []
    for item in items:
        signs = ("+", "-") if len(_SIGNS.findall(item)) == 1 and "(" not in item else ("\\pm ",)
        found += [_SIGNS.sub(lambda m, sign=sign: sign, item).removeprefix("+").strip() for sign in signs]
    return found


def _again(item: str) -> str:
    return item.strip().replace("\x01", "\\{").replace("\x02", "\\}")


def _spans(text: str) -> bool:
    """Whether the bracket that opens a text is the one that closes it."""
    if text[0] not in "([\x01" or text[-1] not in ")]\x02" or (text[0] == "\x01") != (text[-1] == "\x02"):
        return False
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([\x01{") - (character in ")]\x02}")
        if depth == 0:
            return at == len(text) - 1
    return False


def _at_top(text: str, pattern: re.Pattern) -> list[str]:
    """`text` split where the pattern matches outside all brackets."""
    depth, depths = 0, []
    for character in text:
        depth -= character in ")]\x02}"
        depths.append(depth)
        depth += character in "([\x01{"
    parts, start = [], 0
    for match in pattern.finditer(text):
        if depths[match.start()] == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def _same_in_any_order(golds: list[str], answers: list[str], equal: Callable[[str, str], bool]) -> bool:
    left = list(answers)
    for gold in golds:
        found = next((i for i, answer in enumerate(left) if equal(gold, answer)), None)
        if found is None:
            return False
        left.pop(found)
    return True
