"""0 until a completion comes near its limit in tokens, then falling to -1 (DAPO's soft overlong punishment)."""

import functools
from collections.abc import Callable


def overlong_reward(
    completions, completion_ids, prompts=None, *, max_completion_len: int, soft_punish_cache: int, **columns
) -> list[float]:
    """TRL's own reward: 0 up to max_completion_len - soft_punish_cache tokens, -1 above max_completion_len.

    In between it falls on a straight line (https://arxiv.org/abs/2503.14476, equation 13). Lengths are those of
    `completion_ids`, one list of token ids a completion. Raises `ValueError` for limits that make no sense.
    """
    return _punishment(max_completion_len, soft_punish_cache)(completion_ids=completion_ids)


@functools.lru_cache(maxsize=16)
def _punishment(max_completion_len: int, soft_punish_cache: int) -> Callable:
    if max_completion_len < 1:
        raise ValueError(f"overlong.max_completion_len: {max_completion_len} must be at least 1.")
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ValueError(
            f"overlong.soft_punish_cache: {soft_punish_cache} must lie between 0 and max_completion_len, "
            f"which is {max_completion_len}."
        )
    from trl.rewards import get_soft_overlong_punishment  # half a second, only where a run punishes length

    return get_soft_overlong_punishment(max_completion_len, soft_punish_cache)
