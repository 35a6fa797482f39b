"""OpenR1-Math-220k: problems of NuminaMath 1.5 with two to four traces of DeepSeek-R1, each marked right or wrong."""

from collections.abc import Iterator
from typing import Literal

from suite import pins
from suite.data import reading, traces


def load(
    split: str,
    *,
    source: str = "open-r1/OpenR1-Math-220k",
    subset: Literal["default", "extended", "all"] = "default",
    traces_per_problem: int = 1,
    test_size: int = 500,
    seed: int = 0,
) -> Iterator[dict | reading.Dropped]:
    """Rows with the columns prompt, completion and solution, from `problem`, `generations` and `answer`.

    Of each problem the first `traces_per_problem` traces are taken that are complete and marked right, by
    math-verify or, where that was not asked, by a language model. Of `subset`, default has 94,000 problems,
    extended 131,000 more, and all both. There is a training split only, which `test_size` and `seed` divide by problem.
    """
    if traces_per_problem < 1:
        raise ValueError(f"openr1_math.traces_per_problem: {traces_per_problem} must be at least 1.")
    hub = subset if pins.split(source)[0] == "open-r1/OpenR1-Math-220k" else None
    for place, row in reading.rows(split, source, by=("problem",), test_size=test_size, seed=seed, subset=hub):
        problem, answer = reading.text(row, place, "problem"), reading.text(row, place, "answer")
        found = [traces.traced(trace) for trace in _right(row, place)]
        taken = [trace for trace in found if not isinstance(trace, str)][:traces_per_problem]
        for completion, said in taken:
            yield traces.row(problem, completion, answer or said)
        if not taken:
            yield reading.Dropped(found[0] if found else "no right trace", place)


def _right(row: dict, place: str) -> list[str]:
    """The traces that ended by themselves and were found right."""
    said = reading.value(row, place, "generations") or []
    whole = row.get("is_reasoning_complete") or [True] * len(said)
    marks = row.get("correctness_math_verify") or row.get("correctness_llama") or [False] * len(said)
    if not len(said) == len(whole) == len(marks):
        raise ValueError(f"{place}: {len(said)} generations, {len(whole)} marks of an end, {len(marks)} of right.")
    return [trace for trace, ended, right in zip(said, whole, marks, strict=True) if trace and ended and right]
