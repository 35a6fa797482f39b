"""MMLU-Pro-CoT-Train-43K: multiple-choice questions of fourteen subjects, with worked answers that name a letter."""

import ast
from collections.abc import Iterator

from suite.data import options, reading, traces


def load(
    split: str, *, source: str = "Brench/MMLU-Pro-CoT-Train-43K", test_size: int = 500, seed: int = 0
) -> Iterator[dict | reading.Dropped]:
    """Rows with the columns prompt, completion and solution (a letter), from `question` and `chain_of_thoughts`.

    The options stand in `question`, a line each. The solution is `answer` where there is such a column, else the
    letter the worked answer ends with; a row whose worked answer says another letter than `answer`, or that
    `parsed_answer_correctness` calls wrong, is left out. `test_size` and `seed` divide the one split there is.
    """
    for place, row in reading.rows(split, source, by=("question",), test_size=test_size, seed=seed):
        steps = _steps(reading.value(row, place, "chain_of_thoughts"))
        said, gold = options.letter(steps), reading.text(row, place, "answer") if "answer" in row else None
        gold = gold or said
        if not gold:
            yield reading.Dropped("no final answer", place)
        elif (said or gold) != gold or row.get("parsed_answer_correctness") in (False, "False"):
            yield reading.Dropped("wrong answer", place)
        else:
            yield traces.row(reading.text(row, place, "question"), traces.worked(steps, gold), gold)


def _steps(found) -> str:
    """One text, a paragraph a step. The column holds a list, the Python spelling of one, or the text itself."""
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            found = ast.literal_eval(found.strip())
        except (SyntaxError, ValueError):
            pass  # a text that happens to begin with a bracket
    return "\n".join(str(step).strip() for step in found) if isinstance(found, list) else str(found or "").strip()
