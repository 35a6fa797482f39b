"""Numina-Math-R1-COT-172K: problems of NuminaMath with the traces of a DeepSeek-R1 model, think tags and all."""

from collections.abc import Iterator

from suite import reasoning
from suite.data import reading, traces


def load(
    split: str, *, source: str = "Brench/Numina-Math-R1-COT-172K", test_size: int = 500, seed: int = 0
) -> Iterator[dict | reading.Dropped]:
    r"""Rows with the columns prompt, completion and solution, from `problem` and `reannotated_assistant_content`.

    `solution` is the final answer of the reference in the column of that name, and the trace's own where there is no
    reference with a \boxed{}: with `drop_wrong_completions`, `suite prepare` holds the one against the other. The
    column `system` is not used: its prompt asks for another format. The set has a training split only, which
    `test_size` and `seed` divide.
    """
    for place, row in reading.rows(split, source, by=("problem",), test_size=test_size, seed=seed):
        found = traces.traced(reading.text(row, place, "reannotated_assistant_content"))
        if isinstance(found, str):
            yield reading.Dropped(found, place)
            continue
        completion, answer = found
        reference = reasoning.last_boxed(str(row.get("solution") or ""))
        yield traces.row(reading.text(row, place, "problem"), completion, reference or answer)
