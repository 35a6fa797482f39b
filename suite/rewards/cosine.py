"""Right answers earn more the shorter they are, wrong ones lose less the longer they are, along a cosine of length."""

import math

from suite.rewards.accuracy import accuracy_reward


def cosine_reward(
    completions,
    solution,
    completion_ids,
    prompts=None,
    *,
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    think_opened: bool = False,
    **columns,
) -> list[float | None]:
    """long + (short - long) / 2 * (1 + cos(pi * length / max_len)), from https://arxiv.org/abs/2502.03373, C.1.

    `short` and `long` are the values at no tokens and at `max_len` tokens: max and min_value_correct for a right
    answer, min and max_value_wrong for a wrong one. Lengths are those of `completion_ids`; beyond `max_len` the
    value stays, where the bare formula would climb again. The verdict is that of `accuracy`, and where it is None
    so is this. Raises `ValueError` for a `max_len` below 1 and for bounds in the wrong order.
    """
    if max_len < 1:
        raise ValueError(f"cosine.max_len: {max_len} must be at least 1.")
    _check_bounds("wrong", min_value_wrong, max_value_wrong)
    _check_bounds("correct", min_value_correct, max_value_correct)
    columns.pop("log_extra", None)  # accuracy's own: TRL would append its columns twice
    verdicts = accuracy_reward(completions, solution, prompts=prompts, think_opened=think_opened, **columns)
    rewards = []
    for verdict, ids in zip(verdicts, completion_ids, strict=True):
        right = verdict is not None and verdict >= 1.0
        short, long = (max_value_correct, min_value_correct) if right else (min_value_wrong, max_value_wrong)
        progress = min(len(ids) / max_len, 1.0)
        value = long + 0.5 * (short - long) * (1.0 + math.cos(progress * math.pi))
        rewards.append(None if verdict is None else value)
    return rewards


def _check_bounds(which: str, low: float, high: float) -> None:
    for name, value in ((f"min_value_{which}", low), (f"max_value_{which}", high)):
        if not math.isfinite(value):
            raise ValueError(f"cosine.{name}: {value} must be a finite number.")
    if low > high:
        raise ValueError(f"cosine.min_value_{which}: {low} must be at most max_value_{which}, which is {high}.")
