"""STILL-3-Preview-RL-Data: 30,000 mathematical questions with final answers, for reinforcement learning."""

from collections.abc import Iterator

from suite.data import reading


def load(
    split: str, *, source: str = "RUC-AIBOX/STILL-3-Preview-RL-Data", test_size: int = 500, seed: int = 0
) -> Iterator[dict]:
    """Rows with the columns prompt and solution, from `question` and `answer`.

    The set has a training split only, which `test_size` and `seed` divide.
    """
    for place, row in reading.rows(split, source, by=("question",), test_size=test_size, seed=seed):
        yield {
            "prompt": [{"role": "user", "content": reading.text(row, place, "question")}],
            "solution": reading.text(row, place, "answer"),
        }
