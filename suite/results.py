"""What evaluations leave in a directory: results.json, an object a checkpoint, and rows.jsonl, a line a completion.

results.json says which rows count: new ones are there before it names them, and older ones go after it.
"""

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from suite import checkpoint, pins, whole


def results_of(directory: Path) -> list[dict]:
    """What results.json holds. Raises `ValueError` where it is broken."""
    path = directory / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:
        raise ValueError(f"{path} is cut off or broken. Choose another output_dir, or remove it.") from None
    if not isinstance(found, list) or not all(isinstance(row, dict) and "checkpoint" in row for row in found):
        raise ValueError(f"{path} is not of `suite evaluate`. Choose another output_dir, or move it away.")
    return found


def is_same(one: str | Path, other: str | Path) -> bool:
    """Whether two names mean one checkpoint, however its path is written. A name on the Hub is no path."""
    if pins.is_on_hub(str(one)) or pins.is_on_hub(str(other)):
        return str(one) == str(other)
    return os.path.realpath(one) == os.path.realpath(other)


def called(directory: Path, name: str) -> str:
    """The name that a checkpoint has in `directory` already, where it was evaluated or an evaluation was begun."""
    known = [told["checkpoint"] for told in results_of(directory)]
    for path in sorted(directory.glob(".*.journal")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # a neighbor's, ended meanwhile or broken
            with path.open("rb") as lines:
                known.append(json.loads(lines.readline())["checkpoint"])
    return next((each for each in known if is_same(each, name)), name)


def run_of(path: Path) -> Path:
    """The run that a checkpoint belongs to; any other is its own."""
    return path.parent if path.name.startswith("checkpoint-") else path


def told_apart(results: list[dict]) -> list[dict]:
    """The results, where runs of one name are called by the shortest ends of their paths that differ: a/sft, b/sft."""
    paths = [Path(result["checkpoint"]) for result in results]
    runs = {run_of(path) for path in paths}
    told = []
    for path, result in zip(paths, results, strict=True):
        run = run_of(path)
        name = _shortest(run, runs)
        told.append({**result, "stage": str(name / path.relative_to(run))} if len(name.parts) > 1 else result)
    return told


def _shortest(path: Path, among: Collection[Path]) -> Path:
    """The last parts of a path, as few as none of the others ends with; all of it where another ends with all of it."""
    for n in range(1, len(path.parts)):
        if [other.parts[-n:] for other in among].count(path.parts[-n:]) == 1:
            return Path(*path.parts[-n:])
    return path


def rows_of(directory: Path, identity: str) -> list[dict]:
    """The rows of one evaluation."""
    return [row for row in map(json.loads, _lines(directory)) if row.get("identity") == identity]


def find(directory: Path, name: str) -> tuple[Path, dict]:
    """(the directory that holds it, the result with answers) of a stage or checkpoint that was evaluated into
    `directory`, or else of one whose evaluation lies in the directory that its own name begins with, or is.

    Raises `ValueError` where there is none, or more than one.
    """
    path = Path(name)
    around = [(parent, str(path.relative_to(parent))) for parent in path.parents[:2]]
    for place, asked in ((directory, name), (path, None), *around):
        every = results_of(place)
        there = [(r, told["stage"]) for r, told in zip(every, told_apart(every), strict=True) if "accuracy" in r]
        found = [r for r, called in there if asked in (None, r["stage"], called) or is_same(r["checkpoint"], path)]
        if len(found) > 1:  # of one checkpoint that older results hold under two names, that which was given
            found = [r for r in found if r["checkpoint"] == name] or found
        if len(found) == 1:
            return place, found[0]
        if found:
            told = ", ".join(r["checkpoint"] for r in found)
            raise ValueError(f"compare: {place} has {len(found)} evaluations of '{name}'. There are: {told}.")
    told = ", ".join(r["stage"] for r in told_apart(results_of(directory)) if "accuracy" in r)
    if not told:
        raise ValueError(
            f"compare: {directory} holds no evaluation. Run one first: `suite evaluate --checkpoints RUN_A RUN_B "
            f"--dataset_name data/NAME --output_dir {directory}`. If '{name}' was evaluated elsewhere, name it with "
            "its directory (runs/other/sft), or set `output_dir`."
        )
    raise ValueError(
        f"compare: {directory} has no evaluation of '{name}'. There are: {told}. If it was evaluated elsewhere, name "
        "it with its directory (runs/other/sft), or set `output_dir`."
    )


def collect(directory: Path, result: dict, said: list[dict]) -> None:
    """Put a checkpoint's result and rows in the place of its older ones, or behind the others, and tell all befores."""
    name, identity = result["checkpoint"], result["identity"]
    with whole.taking_turns(directory):
        results = results_of(directory)
        at = next((i for i, r in enumerate(results) if is_same(r["checkpoint"], name)), len(results))
        there = [line for line in _lines(directory) if json.loads(line).get("identity") != identity]
        about = {"checkpoint": name, "stage": result["stage"], "identity": identity}
        _write_lines(directory, there + [json.dumps({**about, **row}, ensure_ascii=False) for row in said])
        after = [r for r in results[at + 1 :] if not is_same(r["checkpoint"], name)]
        results = [*results[:at], result, *after]
        told = [{**r, "before": _before(r, results)} if "metric" in r else r for r in results]
        checkpoint.write_json(directory / "results.json", told)
    drop_older_rows(directory, name, identity)


def _before(result: dict, results: list[dict]) -> float | None:
    """The metric of a stage in the model it started from, where that was measured on the same rows in the same way.

    A model from nothing holds every token to be as likely as any other.
    """
    if result["started_from"] is None:
        return None
    if result["started_from"] == "":
        return result.get("guessing") if result["metric"] == "bits_per_byte" else None
    for other in results:
        if is_same(other["checkpoint"], result["started_from"]) and other.get("conditions") == result["conditions"]:
            return other["metrics"][result["metric"]]["value"]
    return None


def drop_older_rows(directory: Path, name: str, identity: str) -> None:
    """Leave out what a checkpoint said when it was evaluated before, and in another way."""
    with whole.taking_turns(directory):
        rows = [(line, json.loads(line)) for line in _lines(directory)]
        older = {there for there in {row["checkpoint"] for _, row in rows} if is_same(there, name)}
        kept = [line for line, row in rows if row["checkpoint"] not in older or row.get("identity") == identity]
        if len(kept) < len(rows):
            _write_lines(directory, kept)


def _lines(directory: Path) -> list[str]:
    path = directory / "rows.jsonl"
    # No splitlines(), which also divides at marks that JSON leaves inside a text.
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []


def _write_lines(directory: Path, lines: list[str]) -> None:
    with whole.file(directory / "rows.jsonl") as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
