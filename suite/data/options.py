"""Multiple-choice questions: the options a line each behind the question, and the letter that is the answer."""

import re
from collections.abc import Iterable, Iterator

from suite.data import reading

LETTERS = "ABCDEFGHIJ"
_SAYS = re.compile(r"(?:answer is|answer:)", re.IGNORECASE)
_OPTION = re.compile(r"\W*([A-J])(?:[).:]|\W*$)", re.MULTILINE)  # (C)  C.  **C** at the end of a line; not "A dog"


def listed(question: str, options: list[str]) -> str:
    """The question as a model is asked it: `A. ...`, `B. ...` below it."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


def of_subject(rows: Iterable[tuple[str, dict]], column: str, subset: str, split: str) -> Iterator[tuple[str, dict]]:
    """The rows, each with its place, whose `column` names the subject `subset`; those of all with "all".

    Raises `ValueError` for a subject that none of the rows to be asked has; it may be without examples.
    """
    seen: dict[str, bool] = {}
    for place, row in rows:
        subject = reading.text(row, place, column)
        seen[subject] = chosen = subset in ("all", subject)
        if chosen:
            yield place, row
    if split == "test" and seen and not any(seen.values()):
        raise ValueError(f"subset: no question is about '{subset}'. There are: all, {', '.join(sorted(seen))}.")


def given(row: dict, place: str, column: str) -> list[str]:
    """The options that stand in a column. Raises `ValueError` where they are no list of two to ten."""
    held = reading.value(row, place, column)
    if not isinstance(held, list) or not 2 <= len(held) <= len(LETTERS):
        raise ValueError(f"{place}: `{column}` must list 2 to {len(LETTERS)} options, and is {str(held)[:60]}.")
    return [str(option).strip() for option in held]


def letter_of(answer, options: list[str], place: str) -> str:
    """The letter of the right option, which a data set gives as such or counted from 0. Raises `ValueError` for one
    that is none of them."""
    there = LETTERS[: len(options)]
    said = str(answer).strip()
    if said in there and len(said) == 1:
        return said
    if said.isdecimal() and int(said) < len(there):
        return there[int(said)]
    raise ValueError(f"{place}: `answer` must be one of {', '.join(there)}, or its number from 0, and is {said!r:.60}.")


def letter(text: str) -> str | None:
    """The option that a worked solution to a multiple-choice question ends with: 'The answer is (C).'"""
    said = _SAYS.split(text)[1:]
    found = _OPTION.match(said[-1]) if said else None
    return found.group(1) if found else None
