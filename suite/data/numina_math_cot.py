"""NuminaMath-CoT: 860,000 competition and school problems with worked solutions, the answer boxed."""

from collections.abc import Iterator

from suite import reasoning
from suite.data import reading, traces


def load(
    split: str, *, source: str = "AI-MO/NuminaMath-CoT", test_size: int = 500, seed: int = 0
) -> Iterator[dict | reading.Dropped]:
    r"""Rows with the columns prompt, completion and solution, from `problem` and `solution`.

    The final answer is the last \boxed{} of the worked solution; a row without one (a proof, say) is left out.
    `test_size` and `seed` divide a source without a test split.
    """
    for place, row in reading.rows(split, source, by=("problem",), test_size=test_size, seed=seed):
        solution = reading.text(row, place, "solution")
        completion = traces.worked(solution)
        if completion is None:
            yield reading.Dropped("no final answer", place)
        else:
            yield traces.row(reading.text(row, place, "problem"), completion, reasoning.last_boxed(solution))
