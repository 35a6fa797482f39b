"""Rows with completions are scored as GRPO scores them: groups whole, columns as lists, metrics counted."""

import asyncio
import functools
import inspect
import json
import math
import statistics
import time
import types
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass

from suite import columns
from suite.whole import Journal

# Columns of the table of completions that are no reward: TRL's, and those that `accuracy` adds.
TABLE = ("step", "prompt", "completion", "advantage", "answer", "judged_by")
CHUNK = 256  # completions that are scored together, and a step of the progress bar


@dataclass
class Score:
    """What one reward gave: a number or None a completion, its own metrics, and the seconds it took."""

    values: list[float | None]
    metrics: dict[str, float]
    seconds: float


def score_rows(
    rows: list[dict], funcs: dict[str, Callable], count=None, progress: bool = False, journal: Journal | None = None
) -> dict[str, Score]:
    """Name -> what the reward gives to each row, called as GRPO calls it: groups whole, columns as lists.

    What the lines of `journal` say already is not scored again, and what is scored is written down there.
    """
    from tqdm import tqdm

    found = {name: Score([None] * len(rows), {}, 0.0) for name in funcs}
    there = journal.lines if journal is not None else []
    with tqdm(total=len(rows), unit=" completions", disable=not progress) as bar:
        for number, chunk in enumerate(_chunks(rows)):
            if number < len(there):
                scored = there[number]
            else:
                scored = _score_chunk([rows[i] for i in chunk], funcs, count)
                if journal is not None:
                    journal.add(scored)
            for name, (values, metrics, seconds) in scored.items():
                found[name].seconds += seconds
                for metric, value in metrics.items():
                    found[name].metrics[metric] = found[name].metrics.get(metric, 0.0) + value
                for i, value in zip(chunk, values, strict=True):
                    found[name].values[i] = value
            bar.update(len(chunk))
    return found


def _score_chunk(rows: list[dict], funcs: dict[str, Callable], count) -> dict[str, list]:
    """Name -> [values, metrics, seconds] of rows that are scored together."""
    batch, scored = _batch(rows, count), {}
    for name, func in funcs.items():
        begun, metrics = time.perf_counter(), {}
        values = call(name, func, batch, metrics)
        scored[name] = [values, metrics, time.perf_counter() - begun]
    return scored


def _chunks(rows: list[dict]) -> Iterator[list[int]]:
    """Row numbers, about `CHUNK` at a time, all completions of one prompt together."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(json.dumps(row.get("prompt", i), sort_keys=True, default=str), []).append(i)
    chunk: list[int] = []
    for group in groups.values():
        chunk += group
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _batch(rows: list[dict], count) -> dict[str, list]:
    """Columns as a reward gets them."""
    names = dict.fromkeys(name for row in rows for name in row)
    batch = {name: [row.get(name) for row in rows] for name in names}
    batch["completions"] = batch.pop("completion")
    if "prompt" in batch:
        batch["prompts"] = batch.pop("prompt")
    if count and "completion_ids" not in batch:
        batch["completion_ids"] = [count(columns.text_of(said)) for said in batch["completions"]]
    return batch


def call(name: str, func: Callable, batch: dict[str, list], metrics: dict[str, float]) -> list[float | None]:
    """A reward's values for a batch; its own metrics are added up, shares as numbers of completions.

    Raises `ValueError` for a reward that does not give one finite number, or None, for each.
    """
    n = len(batch["completions"])

    def log_metric(metric: str, value: float) -> None:
        metrics[metric] = metrics.get(metric, 0.0) + value * n

    state = types.SimpleNamespace(global_step=0, max_steps=0, epoch=0.0, is_world_process_zero=True)
    given = func(**batch, trainer_state=state, log_metric=log_metric, log_extra=lambda column, values: None)
    if inspect.iscoroutine(given):
        given = asyncio.run(given)
    return judged(name, given, n)


def watched(name: str, func: Callable | str) -> Callable | str:
    """A reward that TRL calls, with what it gives looked at as `call` does; a reward model's name as it is."""
    if isinstance(func, str):
        return func
    own = func.func if isinstance(func, functools.partial) else func  # TRL logs a reward by its function's name

    if inspect.iscoroutinefunction(func):

        @functools.wraps(own)
        async def watching(completions, **given):
            return judged(name, await func(completions=completions, **given), len(completions))

    else:

        @functools.wraps(own)
        def watching(completions, **given):
            return judged(name, func(completions=completions, **given), len(completions))

    return watching


def told_apart(names: list[str], logged: list[str]) -> list[str]:
    """What rewards are called in the logs: as TRL does, and one of whose names there would be two by its own in full.

    TRL takes the name of a function or the last part of a path. The numbers of two of one name would be one average,
    and those of a reward called as a column of the table of completions would take its place there, or lose their own.
    """
    short = [name.removesuffix("_reward") for name in logged]  # as tables say it
    shared = {name for name in short if short.count(name) > 1} | {*TABLE}
    return [
        full if called in shared and not full.isidentifier() else name  # ours are no column, nor two of one name
        for full, name, called in zip(names, logged, short, strict=True)
    ]


def judged(name: str, given, n: int) -> list[float | None]:
    """What the reward `name` has given to `n` completions, as a list.

    Raises `ValueError` where it is not one finite number, or None, for each.
    """
    try:
        values = [] if isinstance(given, str | bytes | Mapping | Set) else list(given)
    except TypeError:
        values = []
    odd = next((i for i, value in enumerate(values) if not _is_verdict(value)), None)
    if len(values) == n and odd is None:
        return [None if value is None else float(value) for value in values]
    what = f"{type(given).__name__} of {len(given)}" if hasattr(given, "__len__") and values else type(given).__name__
    where = f", whose entry {odd + 1} is {values[odd]!r:.60}" if odd is not None and len(values) == n else ""
    raise ValueError(
        f"The reward '{name}' gave {given!r:.100} ({what}){where}. It must give a list of {n}, as many as there were "
        "completions: for each a finite number, or None where it cannot judge."
    )


def _is_verdict(value) -> bool:
    try:
        return value is None or math.isfinite(value)  # which takes tensors of one number, but no text
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def table(scores: dict[str, Score]) -> str:
    """Mean, spread, share of None, timeouts and milliseconds of each reward, and whatever else it counted."""
    width = max(map(len, [*scores, "reward"]))
    lines = [f"{'reward':<{width}}     mean   spread   None  timeouts  ms a completion"]
    for name, score in scores.items():
        judged = [v for v in score.values if v is not None]
        mean, spread = (statistics.fmean(judged), statistics.pstdev(judged)) if judged else (math.nan, math.nan)
        timeouts = sum(value for metric, value in score.metrics.items() if metric.endswith("/timeouts"))
        lines.append(
            f"{name:<{width}}  {mean:7.3f}  {spread:7.3f}  {1 - len(judged) / len(score.values):5.1%}  "
            f"{timeouts:8.0f}  {1000 * score.seconds / len(score.values):15.2f}"
        )
    for name, score in scores.items():
        lines += [f"{name}: {metric} {value:.0f}" for metric, value in score.metrics.items() if round(value) > 0]
    return "\n".join(lines)
