"""1 for the right final answer, 0 for a wrong one or none, None where the gold answer cannot be read."""

from typing import Literal

from suite.columns import text_of
from suite.reasoning import final_answer
from suite.rewards.verify import is_right, task_score

Reading = Literal["tags", "tags or box", "lenient"]


def accuracy_reward(
    completions, solution, task=None, *, reading: Reading = "tags or box", **columns
) -> list[float | None]:
    """Judge each completion against its row's `solution`.

    A row whose `task` names a reasoning-gym task is scored by that library's own scorer, which may give parts of 1.
    `reading` says where an answer may stand: "tags", "tags or box" or "lenient" (see `reasoning.final_answer`).
    """
    tasks = task or [None] * len(completions)
    scores = []
    for completion, gold, row_task in zip(completions, solution, tasks, strict=True):
        answer = final_answer(text_of(completion), reading)
        # Other data sets have a column `task`, too; ours holds a name and an entry.
        if isinstance(row_task, dict) and row_task.get("entry"):
            scores.append(task_score(answer, row_task))
        else:
            right = is_right(answer, gold)
            scores.append(None if right is None else float(right))
    return scores
