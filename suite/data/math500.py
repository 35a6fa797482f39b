"""MATH-500: the 500 problems of MATH's test set, of seven subjects and five levels, that most papers report."""

from collections.abc import Iterator

from suite.data import reading

BENCHMARK = True
DEFAULTS = {"drop_duplicates": False}  # its number of problems is part of its name


def load(split: str, *, source: str = "HuggingFaceH4/MATH-500") -> Iterator[dict]:
    """Rows with the columns prompt, solution, subject and level, from `problem`, `answer`, `subject` and `level`.

    `source` is a Hub repository, a file or a directory.
    """
    for place, row in reading.benchmark(split, source):
        yield {
            "prompt": [{"role": "user", "content": reading.text(row, place, "problem")}],
            "solution": reading.text(row, place, "answer"),
            "subject": reading.text(row, place, "subject"),
            "level": reading.text(row, place, "level"),
        }
