"""Data sets by name. A data set is `<name>.py` with `load(split, *, knobs...)`: rows of one of the five shapes.

Where a key of `suite prepare` should have another default for a data set, its file says so: `DEFAULTS = {key: value}`.
One that is there to be asked says `BENCHMARK = True`: it need not have training rows.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from suite.registry import entries, pick


def names() -> dict[str, str]:
    """Name -> what it holds."""
    return entries(Path(__file__).parent, "load")


def load(name: str) -> Callable:
    """The `load` of the data set called `name`. Raises `ValueError` for one that is not there."""
    return _module(name).load


def defaults(name: str) -> dict:
    """Key of `suite prepare` -> the value it has for this data set where nobody says another."""
    return vars(_module(name)).get("DEFAULTS", {})


def is_benchmark(name: str) -> bool:
    """Whether a data set is there to be asked, and need not have training rows."""
    return vars(_module(name)).get("BENCHMARK", False)


def _module(name: str):
    pick("data set", name, names())
    return importlib.import_module(f"suite.data.{name}")
