"""Rewards by name. A reward is `<name>.py` with `<name>_reward(completions, *, knobs..., **columns)`.

It returns one finite number a completion, or None where it cannot judge. Nothing here imports torch.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

from suite import checkpoint
from suite.args import check_knobs, knobs
from suite.registry import entries, pick


def names() -> dict[str, str]:
    """Name -> what it rewards."""
    return entries(Path(__file__).parent, "{name}_reward")


def is_model(name: str) -> bool:
    """Whether a name means a reward model: a checkpoint directory or a model on the Hub, which TRL loads itself."""
    return "/" in name


def load(name: str, given: dict | None = None, *, think_opened: bool = False) -> Callable | str:
    """The reward called `name`, or at a dotted path, with the knobs it is `given`; the name itself of a reward model.

    `think_opened` goes to every reward that asks whether the chat template has already opened <think>. Raises
    `ValueError` for an unknown reward, an unknown, missing or wrongly typed knob (`**columns` would swallow a
    misspelt one in silence), and a reward model's directory that is not whole.
    """
    given = given or {}
    if is_model(name):
        if given:
            raise ValueError(f"reward_kwargs: the reward model '{name}' has no knobs, and is given {', '.join(given)}.")
        checkpoint.check_whole(name)
        return name
    if "." in name:
        module, _, function = name.rpartition(".")
        try:
            reward = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"reward_funcs: cannot import '{name}': {error}.") from None
    else:
        if not name.isidentifier() or not (Path(__file__).parent / f"{name}.py").is_file():
            pick("reward", name, names())
        reward = getattr(importlib.import_module(f"suite.rewards.{name}"), f"{name}_reward", None)
        if reward is None:  # `verify` is a file, and no reward
            pick("reward", name, names())
    turned = check_knobs(name, reward, given)
    there = knobs(reward)
    missing = [knob for knob, p in there.items() if p.default is p.empty and knob not in turned]
    if missing:
        raise ValueError(f"{name} needs `reward_kwargs: {{{name}: {{{missing[0]}: ...}}}}`, which has no default.")
    if think_opened and "think_opened" in there:
        turned.setdefault("think_opened", True)
    return functools.partial(reward, **turned) if turned else reward


def load_all(funcs: list[str], kwargs: dict[str, dict], *, think_opened: bool = False) -> list[Callable | str]:
    """The rewards of a run, in the order of `reward_funcs`, each with its part of `reward_kwargs`."""
    return [load(name, kwargs.get(name), think_opened=think_opened) for name in funcs]


def check_columns(funcs: dict[str, Callable | str], there: Iterable[str], where: str) -> None:
    """Raise `ValueError` where the rows lack a column that a reward cannot do without, or have one named as its knob.

    TRL passes columns by name, so such a column would silently take the knob's place.
    """
    there = set(there)
    for name, func in funcs.items():
        if isinstance(func, str):  # a reward model reads prompts and completions
            continue
        for column, p in inspect.signature(func).parameters.items():
            needed = p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
            if needed and column not in there | {"completions", "prompts", "completion_ids"}:
                listed = ", ".join(sorted(there))
                raise ValueError(f"{where}: the reward '{name}' needs a column `{column}`; there are: {listed}.")
            if p.kind is p.KEYWORD_ONLY and column in there:
                raise ValueError(f"{where}: the column `{column}` has the name of a knob of '{name}'. Rename it.")
