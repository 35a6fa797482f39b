"""1 for the right final answer, 0 for a wrong one or none, None where the gold answer cannot be read."""

from collections.abc import Sequence
from typing import Literal

from suite import reasoning
from suite.rewards.pool import SECONDS
from suite.rewards.verify import Verdict, judge, score_tasks

Reading = Literal["tags", "tags or box", "lenient"]
# Metric -> the verdicts it counts, as a share of the completions.
COUNTED = {
    "verify/timeouts": "timeout",
    "verify/crashes": "crash",
    "verify/refused": "refused",
    "verify/unreadable_golds": "unreadable gold",
}


def accuracy_reward(
    completions,
    solution,
    task=None,
    choices=None,
    options=None,
    prompts=None,
    *,
    reading: Reading = "tags or box",
    tolerance: float = 0.0,
    seconds: float = SECONDS,
    think_opened: bool = False,
    **columns,
) -> list[float | None]:
    """Judge each completion against its row's `solution`, by the policy written down in `verify`.

    A row whose `task` names a reasoning-gym task is scored by that library's own scorer, which may give parts of 1.
    `choices` or `options` are the row's options, which a letter may stand for. `reading` says where an answer may
    stand: "tags", "tags or box" or "lenient" (see `reasoning.final_answer`); `tolerance` is relative to the gold
    number; `seconds` is the CPU time one comparison may take; `think_opened` says that prompts end in <think>.
    """
    for name, value, least in (("tolerance", tolerance, 0.0), ("seconds", seconds, 0.001)):
        if not least <= value < float("inf"):
            raise ValueError(f"accuracy.{name}: {value} must be a finite number of at least {least}.")
    answers = [reasoning.final_answer(t, reading) for t in reasoning.texts(completions, prompts, think_opened)]
    verdicts = _verdicts(answers, solution, task, choices or options, tolerance, seconds)
    if log_metric := columns.get("log_metric"):
        for metric, by in COUNTED.items():
            log_metric(metric, sum(v.by == by for v in verdicts) / max(1, len(verdicts)))
    if log_extra := columns.get("log_extra"):
        log_extra("answer", [answer or "" for answer in answers])
        log_extra("judged_by", [v.by for v in verdicts])
    return [None if v.right is None else float(v.right) for v in verdicts]


def _verdicts(answers: list, solution: Sequence, task, choices, tolerance: float, seconds: float) -> list[Verdict]:
    """Rows of a reasoning-gym task go to its scorer, all others to the verifier."""
    # Other data sets have a column `task`, too; ours holds a name and an entry.
    own = [i for i, t in enumerate(task or []) if isinstance(t, dict) and t.get("name") and t.get("entry")]
    rest = [i for i in range(len(answers)) if i not in set(own)]
    scored = score_tasks([answers[i] for i in own], [task[i] for i in own], seconds)
    judged = judge(
        [answers[i] for i in rest],
        [solution[i] for i in rest],
        tolerance=tolerance,
        choices=[choices[i] for i in rest] if choices else None,
        seconds=seconds,
    )
    found = dict(zip([*own, *rest], [*scored, *judged], strict=True))
    return [found[i] for i in range(len(answers))]
