"""MMLU: 14,000 multiple-choice questions of 57 subjects with four options each, answered by letter."""

from collections.abc import Iterator

from suite import pins
from suite.data import options, reading

BENCHMARK = True
DEFAULTS = {"drop_duplicates": False}


def load(split: str, *, source: str = "cais/mmlu", subset: str = "all") -> Iterator[dict]:
    """Rows with the columns prompt, solution (a letter), choices and subject, from `question`, `choices`, `answer`
    (a number from 0, or a letter) and `subject`.

    The training rows are the five examples a subject that the source calls `dev`. `subset` is one subject, such as
    abstract_algebra, or all.
    """
    on_hub = subset if pins.split(source)[0] == "cais/mmlu" else None
    found = reading.benchmark(split, source, subset=on_hub, examples="dev")
    for place, row in options.of_subject(found, "subject", subset, split):
        given = options.given(row, place, "choices")
        yield {
            "prompt": [{"role": "user", "content": options.listed(reading.text(row, place, "question"), given)}],
            "solution": options.letter_of(reading.value(row, place, "answer"), given, place),
            "choices": given,
            "subject": reading.text(row, place, "subject"),
        }
