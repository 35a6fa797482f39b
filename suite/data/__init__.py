"""Data sets by name. A data set is `<name>.py` with `load(split, *, knobs...)`: rows of one of the five shapes."""

import importlib
from collections.abc import Callable
from pathlib import Path

from suite.registry import entries, pick


def names() -> dict[str, str]:
    """Name -> what it holds."""
    return entries(Path(__file__).parent, "load")


def load(name: str) -> Callable:
    """The `load` of the data set called `name`. Raises `ValueError` for one that is not there."""
    pick("data set", name, names())
    return importlib.import_module(f"suite.data.{name}").load
