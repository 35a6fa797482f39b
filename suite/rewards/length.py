"""Shorter than the others of its prompt is better, from 0.5 down to -0.5; a wrong answer gets 0 at most (Kimi k1.5)."""

from suite.rewards.accuracy import accuracy_reward
from suite.rewards.groups import by_prompt


def length_reward(
    completions, solution, completion_ids, prompts, *, think_opened: bool = False, **columns
) -> list[float | None]:
    """0.5 - (length - min) / (max - min) for a right answer, at most 0 for a wrong one (Kimi k1.5, 2.3.3).

    Lengths are tokens of `completion_ids`; min and max are taken over all completions of the same prompt, on all
    ranks (`groups`: every rank calls this reward, or none). Where all are equally long each gets 0. The verdict is
    that of `accuracy`; where it is None so is this, but the length still counts for the others.
    Source: https://arxiv.org/abs/2501.12599.
    """
    # Before the verdicts, which may take longer here than elsewhere.
    groups = by_prompt(prompts, [len(ids) for ids in completion_ids])
    columns.pop("log_extra", None)  # accuracy's own: TRL would append its columns twice
    verdicts = accuracy_reward(completions, solution, prompts=prompts, think_opened=think_opened, **columns)
    rewards = []
    for verdict, ids, lengths in zip(verdicts, completion_ids, groups, strict=True):
        shortest, longest = min(lengths), max(lengths)
        value = 0.5 - (len(ids) - shortest) / (longest - shortest) if longest > shortest else 0.0
        right = verdict is not None and verdict >= 1.0
        rewards.append(None if verdict is None else value if right else min(0.0, value))
    return rewards
