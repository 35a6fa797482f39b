"""GSM8K: grade-school word problems with worked solutions, from the Hub or from a local file or directory."""

import re
from collections.abc import Iterator

from suite import pins, reasoning
from suite.data import reading

_CALCULATOR = re.compile(r"<<[^>]*>>")  # <<48/2=24>>: marks for a calculator that no model here has


def load(split: str, *, source: str = "openai/gsm8k", test_size: int = 500, seed: int = 0) -> Iterator[dict]:
    """Rows with the columns prompt, completion and solution.

    `source` is a Hub repository, a file or a directory; `test_size` and `seed` divide one without a test split.
    Raises `ValueError` for a row without `question` or without an `answer` that ends in `#### ...`, naming its place.
    """
    # The Hub's copy has a second subset, `socratic`, with other worked solutions to the same questions.
    subset = "main" if pins.split(source)[0] == "openai/gsm8k" else None
    for place, row in reading.rows(split, source, by=("question",), test_size=test_size, seed=seed, subset=subset):
        worked, mark, answer = reading.text(row, place, "answer").rpartition("####")
        if not mark:
            raise ValueError(f"{place}: `answer` must end in '#### ...', and ends in {answer[-60:]!r}.")
        yield {
            "prompt": [{"role": "user", "content": reading.text(row, place, "question")}],
            "completion": [{"role": "assistant", "content": reasoning.write(_CALCULATOR.sub("", worked), answer)}],
            "solution": answer.strip(),
        }
