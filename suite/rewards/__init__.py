"""Rewards by name. A reward is `<name>.py` with `<name>_reward(completions, *, knobs..., **columns)`.

It returns one finite number a completion, or None where it cannot judge. Nothing here imports torch.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from suite import checkpoint
from suite.registry import entries, pick
from suite.rewards.scoring import TABLE
from suite.values import check_knobs, knobs
from suite.whole import code_of, digest

VERDICT_KNOBS = ("reading", "tolerance", "seconds")
# What TRL passes beside the columns. A column `completion_ids` gives way to TRL's own; any other would be passed twice,
# or be lost.
RESERVED = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
TAKEN = ("prompts", "completions", *RESERVED[1:])


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
        _refuse_writer(name)
        return name
    reward = _find(name)
    turned = check_knobs(name, reward, given)
    there = knobs(reward)
    missing = [knob for knob, p in there.items() if p.default is p.empty and knob not in turned]
    if missing:
        raise ValueError(f"{name} needs `reward_kwargs: {{{name}: {{{missing[0]}: ...}}}}`, which has no default.")
    if given and "." not in name:
        # No completions: our own rewards say now, and not at step 0, what is out of range.
        columns = [p.name for p in inspect.signature(reward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        reward(**{column: [] for column in columns}, **turned)
    if think_opened and "think_opened" in there:
        turned.setdefault("think_opened", True)
    return functools.partial(reward, **turned) if turned else reward


def _refuse_writer(name: str) -> None:
    """Raise `ValueError` for a directory with a model that writes: it would get a head of random numbers, and judge."""
    config = Path(name) / "config.json"
    kinds = checkpoint.read_json(config).get("architectures") or [] if config.is_file() else []
    if kinds and all(kind.endswith("ForCausalLM") for kind in kinds):
        raise ValueError(
            f"'{name}' is no reward model: it is a {kinds[0]}, which writes and gives no number. Name a sequence "
            "classifier with one label, or a reward of `suite list rewards`."
        )


def _find(name: str) -> Callable:
    """The function behind a name from the folder, or behind a dotted path."""
    if "." in name:
        module, _, function = name.rpartition(".")
        try:
            reward = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError, SyntaxError) as error:
            raise ValueError(f"reward_funcs: cannot import '{name}': {error}.") from None
        if not inspect.isroutine(reward):
            raise ValueError(f"reward_funcs: '{name}' is no function, but {reward!r:.60}.")
        return reward
    if not name.isidentifier() or not (Path(__file__).parent / f"{name}.py").is_file():
        if Path(name).is_dir():
            raise ValueError(f"reward_funcs: '{name}' is a directory; a reward model there is named './{name}'.")
        pick("reward", name, names())
    reward = getattr(importlib.import_module(f"suite.rewards.{name}"), f"{name}_reward", None)
    if reward is None:  # `verify` is a file, and no reward
        pick("reward", name, names())
    if name in TABLE:
        raise ValueError(
            f"reward_funcs: the logged completions have a column `{name}`, whose place the reward of that name would "
            f"take. Rename suite/rewards/{name}.py and its function."
        )
    return reward


def load_all(funcs: list[str], kwargs: dict[str, dict], *, think_opened: bool = False) -> list[Callable | str]:
    """The rewards of a run, in the order of `reward_funcs`, each with its part of `reward_kwargs`.

    What `accuracy` is told about right and wrong goes to the rewards that ask it, too: a run has one verdict.
    """
    verdict = {knob: value for knob, value in kwargs.get("accuracy", {}).items() if knob in VERDICT_KNOBS}
    loaded = [load(name, kwargs.get(name), think_opened=think_opened) for name in funcs]
    return [functools.partial(f, **verdict) if verdict and _asks_accuracy(f) else f for f in loaded]


def _asks_accuracy(reward: Callable | str) -> bool:
    """Whether one of our rewards hands its columns on to `accuracy`."""
    function = reward.func if isinstance(reward, functools.partial) else reward
    module = sys.modules.get(getattr(function, "__module__", ""), None)
    ours = module is not None and module.__name__.startswith("suite.rewards.")
    return ours and hasattr(module, "accuracy_reward") and not module.__name__.endswith(".accuracy")


def version(name: str, func: Callable | str) -> str:
    """What a reward is at the moment: a user's own function may change under its name, and so may a reward model."""
    if is_model(name):
        return checkpoint.fingerprint(name)
    own = func.func if isinstance(func, functools.partial) else func
    files = [Path(inspect.getsourcefile(own) or "")] if "." in name else sorted(Path(__file__).parent.glob("*.py"))
    return digest([code_of(path.read_text(encoding="utf-8")) for path in files if path.is_file()])


def check_kept(funcs: dict[str, Callable | str]) -> None:
    """Raise `ValueError` for a reward that names a column of the rows besides the prompt, where TRL keeps no other."""
    kept = {"prompts", "completions", *RESERVED}
    for name, func in funcs.items():
        parameters = [] if isinstance(func, str) else inspect.signature(func).parameters.values()
        read = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in kept]
        if read:
            raise ValueError(
                f"remove_unused_columns: true takes away the column `{read[0]}`, which the reward '{name}' reads. "
                "Leave it false."
            )


def check_columns(funcs: dict[str, Callable | str], there: Iterable[str], where: str) -> None:
    """Raise `ValueError` where the rows lack a column that a reward cannot do without, or have one named as its knob.

    `there` names the columns of the rows. TRL passes them by name, so such a column would silently take the knob's
    place.
    """
    there = set(there)
    if taken := [column for column in TAKEN if column in there]:
        raise ValueError(f"{where}: the column `{taken[0]}` has a name that TRL passes to rewards itself. Rename it.")
    passed = {"prompts" if column == "prompt" else column for column in there - {"completion"}}
    for name, func in funcs.items():
        if isinstance(func, str):  # a reward model reads prompts and completions
            continue
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(func).parameters.values()):
            raise ValueError(f"The reward '{name}' must take **columns: GRPO passes every column by name.")
        for column, p in inspect.signature(func).parameters.items():
            needed = p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
            if needed and column not in passed | {"completions", *RESERVED}:
                listed = ", ".join(sorted(passed))
                raise ValueError(f"{where}: the reward '{name}' needs a column `{column}`; there are: {listed}.")
        if named := sorted(passed & _knobs_by_name(func)):
            raise ValueError(f"{where}: the column `{named[0]}` has the name of a knob of '{name}'. Rename it.")


def _knobs_by_name(reward: Callable) -> set[str]:
    """The knobs that a column would turn: a reward's own, and those of `accuracy` where it hands columns on to it."""
    asked = [reward, load("accuracy")] if _asks_accuracy(reward) else [reward]
    return {knob for function in asked for knob in knobs(function)}
