"""Any task of reasoning-gym by name (`--task countdown`), scored by that library's own scorer."""

import json
from collections.abc import Iterator

from suite.registry import pick

DEFAULTS = {"overlap_ngram": 0}  # all questions of a task share their phrases, and no two are the same


def load(
    split: str, *, task: str = "chain_sum", size: int = 1000, test_size: int = 200, seed: int = 0
) -> Iterator[dict]:
    """Rows with the columns prompt, solution and task (name, and the entry as JSON, which the scorer reads).

    `task` is one of reasoning-gym's, of which `size` training and `test_size` test questions are made; another `seed`
    makes others. No test question is a training question. Raises `ValueError` for a task reasoning-gym does not have,
    or one that cannot give as many different questions.
    """
    import reasoning_gym  # three seconds, so not at the top
    from reasoning_gym.factory import DATASETS

    pick("reasoning-gym task", task, sorted(DATASETS))
    wanted = size + test_size
    seen, rows = set(), []
    # Small tasks repeat themselves; three times the size is enough for those that can give the number at all.
    for entry in reasoning_gym.create_dataset(task, seed=seed, size=3 * wanted):
        if entry["question"] not in seen:
            seen.add(entry["question"])
            rows.append(_row(task, entry))
        if len(rows) == wanted:
            break
    if len(rows) < wanted:
        raise ValueError(
            f"reasoning_gym: '{task}' has only {len(rows)} different questions for size {size} + test_size {test_size}."
        )
    yield from rows[test_size:] if split == "train" else rows[:test_size]


def _row(task: str, entry: dict) -> dict:
    return {
        "prompt": [{"role": "user", "content": entry["question"]}],
        "solution": str(entry["answer"]),
        "task": {"name": task, "entry": json.dumps(entry, default=str)},
    }
