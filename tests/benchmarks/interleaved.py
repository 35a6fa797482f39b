"""Ours and theirs measured in turns, so that whatever else the machine does slows both of them alike."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import BinaryIO, NamedTuple

ROOT = Path(__file__).parents[2]


@dataclass
class Series:
    """One number a round: the median is the result, and the extremes say how far to trust it."""

    values: list[float]

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({min(self.values):.4g}..{max(self.values):.4g})"


@dataclass
class Rounds:
    """What ours and theirs took, round by round: seconds, or memory."""

    ours: Series
    theirs: Series

    @classmethod
    def of(cls, ours: list[float], theirs: list[float]) -> "Rounds":
        return cls(Series(ours), Series(theirs))

    @property
    def speed(self) -> Series:
        """How many times as fast as theirs: a quotient of each round, so that a slow minute cancels out."""
        return Series([b / a for a, b in zip(self.ours.values, self.theirs.values, strict=True)])

    @property
    def times(self) -> Series:
        """How many times as much as theirs."""
        return Series([a / b for a, b in zip(self.ours.values, self.theirs.values, strict=True)])

    @property
    def above(self) -> Series:
        """Seconds that ours takes above theirs, a difference of each round."""
        return Series([a - b for a, b in zip(self.ours.values, self.theirs.values, strict=True)])


def rounds(ours: Callable[[], float], theirs: Callable[[], float], n: int = 9, turns: int = 1, warm: int = 1) -> Rounds:
    """Call both `warm` times to warm up, then in turns; both return seconds. A round is the mean of `turns` calls."""
    for _ in range(warm):
        ours(), theirs()
    measured = []
    for i in range(n):
        first, second = (ours, theirs) if i % 2 == 0 else (theirs, ours)  # what a neighbour begins hits both alike
        a, b = zip(*((first(), second()) for _ in range(turns)), strict=True)
        measured.append((fmean(a), fmean(b)) if first is ours else (fmean(b), fmean(a)))
    return Rounds.of([a for a, _ in measured], [b for _, b in measured])


class Process(NamedTuple):
    """What became of a child process."""

    seconds: float  # from start to exit
    printed: str
    peak: float  # MiB of memory that the largest of it and its own children held at once
    cpu: float  # seconds that it and its own children computed: what a busy neighbour lengthens least


def process(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Process:
    """Run `python COMMAND` to its end. Raises `RuntimeError` where it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        _, status, usage = os.wait4(child.pid, 0)  # this child's own usage; RUSAGE_CHILDREN is of all that ever ended
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        printed, complained = (_text(file) for file in (out, err))
    if child.returncode:
        raise RuntimeError(f"python {' '.join(command)} failed:\n{printed[-2000:]}\n{complained[-4000:]}")
    return Process(seconds, printed, _mebibytes(usage), usage.ru_utime + usage.ru_stime)


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _mebibytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def own_peak() -> float:
    """MiB that this process has held at most. A child cannot be told to have held less: it begins as a copy of us."""
    return _mebibytes(resource.getrusage(resource.RUSAGE_SELF))


def told(what: str, measured: Series, goal: str | None = None, met: bool | None = None) -> None:
    """One line for a number, and whether it reached its goal, if it has one."""
    verdict = "" if goal is None else f"goal {goal:<8} {'met' if met else 'MISSED'}"
    print(f"{what:<48} {measured!s:<26} {verdict}".rstrip(), flush=True)
