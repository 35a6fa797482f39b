"""MMLU-Pro: 12,000 harder multiple-choice questions of fourteen subjects with up to ten options, answered by letter."""

from collections.abc import Iterator

from suite.data import options, reading, traces

BENCHMARK = True
DEFAULTS = {"drop_duplicates": False}


def load(split: str, *, source: str = "TIGER-Lab/MMLU-Pro", subset: str = "all") -> Iterator[dict]:
    """Rows with the columns prompt, solution (a letter), choices and subject, from `question`, `options`, `answer` (a
    letter) and `category`; and completion, where `cot_content` works the answer out.

    The training rows are the 70 examples that the source calls `validation`. `subset` is one category, such as math,
    or all.
    """
    found = reading.benchmark(split, source, examples="validation")
    for place, row in options.of_subject(found, "category", subset, split):
        given = _without_fillers(options.given(row, place, "options"))
        question = options.listed(reading.text(row, place, "question"), given)
        gold = options.letter_of(reading.value(row, place, "answer"), given, place)
        steps = str(row.get("cot_content") or "").removeprefix("A: Let's think step by step.").strip()
        made = {"prompt": [{"role": "user", "content": question}], "solution": gold}
        if split == "train" and options.letter(steps) == gold:
            made = traces.row(question, traces.worked(steps, gold), gold)
        yield {**made, "choices": given, "subject": reading.text(row, place, "category")}


def _without_fillers(given: list[str]) -> list[str]:
    """The options without the "N/A" that fill up short lists."""
    while given and given[-1] == "N/A":
        given = given[:-1]
    return given
