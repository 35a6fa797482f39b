"""Omni-MATH: 4,400 olympiad problems with a difficulty from 1 to 10, a worked solution and a final answer."""

from collections.abc import Iterator

from suite.data import reading, traces


def load(
    split: str,
    *,
    source: str = "KbsdJames/Omni-MATH",
    min_difficulty: float = 0.0,
    max_difficulty: float = 10.0,
    test_size: int = 500,
    seed: int = 0,
) -> Iterator[dict | reading.Dropped]:
    """Rows with the columns prompt, completion and solution, from `problem`, `solution` (worked) and `answer`.

    Problems less difficult than `min_difficulty` or more than `max_difficulty`, and those without an answer or a worked
    solution, are left out. The set calls its only split `test`; `test_size` and `seed` divide it.
    """
    for place, row in reading.rows(split, source, by=("problem",), test_size=test_size, seed=seed):
        answer = reading.text(row, place, "answer")
        completion = traces.worked(reading.text(row, place, "solution"), answer)
        if not min_difficulty <= reading.number(row, place, "difficulty") <= max_difficulty:
            yield reading.Dropped("difficulty", place)
        elif completion is None:
            yield reading.Dropped("no final answer or no solution", place)
        else:
            yield traces.row(reading.text(row, place, "problem"), completion, answer)
