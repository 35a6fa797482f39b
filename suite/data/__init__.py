"""Data sets by name. A data set is `<name>.py` with `load(split, *, knobs...)`: rows of one of the five shapes.

Where a key of `suite prepare` should have another default for a data set, its file says so: `DEFAULTS = {key: value}`.
One that is there to be asked says `BENCHMARK = True`: it need not have training rows.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

from suite.registry import entries, pick
from suite.values import knobs
from suite.whole import code_of

_MAKERS = ("suite.data.", "suite.columns", "suite.reasoning")  # modules that decide what is in a row
# What a knob is for any data set that says nothing else of it.
_KNOBS = {
    "source": "Where the rows come from: a repository on the Hub, a file or a directory.",
    "test_size": "How many test questions there are.",
    "seed": "Another seed, other test rows.",
}


def names() -> dict[str, str]:
    """Name -> what it holds."""
    return entries(Path(__file__).parent, "load")


def load(name: str) -> Callable:
    """The `load` of the data set called `name`. Raises `ValueError` for one that is not there."""
    return _module(name).load


def defaults(name: str) -> dict:
    """Key of `suite prepare` -> the value it has for this data set where nobody says another."""
    return vars(_module(name)).get("DEFAULTS", {})


def told(name: str) -> dict[str, str]:
    """Knob of a data set -> the first sentence that the docstring of its `load` says of it."""
    load = _module(name).load
    sentences = re.split(r"(?<=[.;:]) ", " ".join((inspect.getdoc(load) or "").split()))
    said = {knob: next((s for s in sentences if f"`{knob}`" in s), _KNOBS.get(knob, "")) for knob in knobs(load)}
    return {knob: f"{line[:1].upper()}{line[1:-1]}." if line else "" for knob, line in said.items()}


def is_benchmark(name: str) -> bool:
    """Whether a data set is there to be asked, and need not have training rows."""
    return vars(_module(name)).get("BENCHMARK", False)


def code(*modules) -> list:
    """What the code does that makes rows: that of `modules`, and of all that these read and write rows with."""
    found = list(modules)
    for module in found:  # which grow
        named = [held for held in vars(module).values() if inspect.ismodule(held)]
        found += [held for held in named if held.__name__.startswith(_MAKERS) and held not in found]
    return [code_of(inspect.getsource(module)) for module in found]


def _module(name: str):
    pick("data set", name, names())
    return importlib.import_module(f"suite.data.{name}")
