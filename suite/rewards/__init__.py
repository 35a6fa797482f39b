"""Rewards by name. A reward is `<name>.py` with `<name>_reward(completions, *, knobs..., **columns)`.

It returns one finite number a completion, or None where it cannot judge. Nothing here imports torch.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path

from suite.args import check_knobs
from suite.registry import entries, pick


def names() -> dict[str, str]:
    """Name -> what it rewards."""
    return entries(Path(__file__).parent, "{name}_reward")


def load(name: str, knobs: dict | None = None) -> Callable:
    """The reward called `name`, or at a dotted path, with its knobs set.

    Raises `ValueError` for an unknown reward, an unknown knob or a knob of the wrong type: `**columns` would swallow
    a misspelt one in silence.
    """
    if "." in name:
        module, _, function = name.rpartition(".")
        try:
            reward = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"reward_funcs: cannot import '{name}': {error}.") from None
    else:
        pick("reward", name, names())
        reward = getattr(importlib.import_module(f"suite.rewards.{name}"), f"{name}_reward")
    return functools.partial(reward, **check_knobs(name, reward, knobs)) if knobs else reward
