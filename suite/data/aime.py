"""AIME: problems of the American Invitational Mathematics Examination, whose answers are whole numbers below 1,000."""

import re
from collections.abc import Iterator

from suite.data import reading

BENCHMARK = True
DEFAULTS = {"drop_duplicates": False}
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")


def load(split: str, *, source: str = "AI-MO/aimo-validation-aime", year: int | None = None) -> Iterator[dict]:
    """Rows with the columns prompt and solution, from `problem` or `question` and `answer`, and year, where it is
    known.

    The source has the 90 problems of 2022 to 2024, and `year` keeps those of one. A row names its year in `year`, or
    in its `url`. Of other sources, HuggingFaceH4/aime_2024 and math-ai/aime25 have these columns. Raises `ValueError`
    where a `year` is asked for and a row names none, or no row names that one.
    """
    years = set()
    for place, row in reading.benchmark(split, source):
        held = _year(row)
        if year is not None and held is None:
            raise ValueError(f"{place}: it names no year, neither in `year` nor in `url`. Leave out --year {year}.")
        years.add(held)
        if year in (None, held):
            yield {
                "prompt": [{"role": "user", "content": reading.text(row, place, "problem", "question")}],
                "solution": reading.text(row, place, "answer"),
                **({"year": held} if held else {}),
            }
    if year is not None and years and year not in years:
        raise ValueError(f"year: no problem is of {year}. There are: {', '.join(map(str, sorted(years)))}.")


def _year(row: dict) -> int | None:
    found = _YEAR.search(str(row.get("year") or row.get("url") or ""))
    return int(found[0]) if found else None
