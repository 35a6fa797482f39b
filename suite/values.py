"""How what a YAML file or the command line says becomes a value of the type that a key, or a knob, asks for."""

import enum
import inspect
import json
import types
import typing
from collections.abc import Callable
from dataclasses import field, is_dataclass, make_dataclass

from suite.registry import nearest


def as_mapping(key: str, value: dict | str | None) -> dict:
    """A mapping as YAML gives it, or as JSON on the command line."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{key}: '{value}' is not JSON ({error}).") from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{key} must be a mapping, got {value!r}.")
    return value or {}


def coerce(key: str, value, hint):
    """`value` as the type `hint` asks for. Raises `ValueError` naming key, value and type where it cannot be one.

    Numbers may come as text, which quotes or JSON make of them; a single value may stand for a list of one.
    """
    alternatives = _alternatives(hint)
    for alternative in alternatives:
        if type(value) is alternative:  # bool before int: True is an int, too
            return value
    for alternative in alternatives:
        fits, result = _try_as(key, value, alternative)
        if fits:
            return result
    wanted = " or ".join(dict.fromkeys(_type_name(a) for a in alternatives))
    quote = " Put it in quotes." if str in alternatives and isinstance(value, (int, float)) else ""
    if value is None:
        raise ValueError(f"{key} has no value (null), and takes {wanted}.")
    raise ValueError(f"{key}: {value!r} is a {type(value).__name__}, and {key} takes {wanted}.{quote}")


def _alternatives(hint) -> list:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [a for member in typing.get_args(hint) for a in _alternatives(member)] if union else [hint]


def _type_name(hint) -> str:
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def _try_as(key: str, value, hint) -> tuple[bool, object]:
    """(fits, the value as that type) for one alternative of a union."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return True, value
    if hint is type(None):
        return value is None or value in ("none", "null"), None
    if origin is typing.Literal:
        return value in inner, value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, str), value  # the dataclass names the members itself
    if hint is list or origin is list:
        values = value if isinstance(value, list) else [value]
        if value is None or (inner and is_dataclass(inner[0])):
            return isinstance(value, list), value
        return True, [coerce(key, v, inner[0]) for v in values] if inner else values
    if hint is dict or origin is dict:
        return isinstance(value, dict), value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return converts(float, value)
    if hint is int and isinstance(value, str):
        return converts(int, value)
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false", "yes", "no"):
        return True, value.lower() in ("true", "yes")
    return isinstance(hint, type) and type(value) is hint, value


def converts(kind: type, value) -> tuple[bool, object]:
    try:
        return True, kind(value)
    except ValueError:
        return False, None


def knobs(function: Callable) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function: what a user may turn."""
    return {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def check_knobs(owner: str, function: Callable, given: dict) -> dict:
    """`given` with every value in its declared type. Raises `ValueError` for a knob the function does not have."""
    there = knobs(function)
    for name in given:
        if name not in there:
            listed = ", ".join(there) or "none"
            raise ValueError(f"{owner} has no knob '{name}'. There are: {listed}.{nearest(name, there)}")
    hints = typing.get_type_hints(function)
    return {name: coerce(f"{owner}.{name}", value, hints.get(name, typing.Any)) for name, value in given.items()}


def knob_class(name: str, function: Callable, told: dict[str, str]) -> type:
    """A dataclass with one field per knob of `function`, so that its knobs are keys like any other; `told` is the help
    of each."""
    hints = typing.get_type_hints(function)
    return make_dataclass(
        name,
        [
            (
                p.name,
                hints.get(p.name, str),
                field(default=None if p.default is p.empty else p.default, metadata={"help": told[p.name]}),
            )
            for p in knobs(function).values()
        ],
    )
