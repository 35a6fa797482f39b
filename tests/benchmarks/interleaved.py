"""Ours and theirs measured in turns, so that whatever else the machine does slows both of them alike."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

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
    """The seconds that ours and theirs took, round by round."""

    ours: Series
    theirs: Series

    @property
    def speed(self) -> Series:
        """How many times as fast as theirs: a quotient of each round, so that a slow minute cancels out."""
        return Series([b / a for a, b in zip(self.ours.values, self.theirs.values, strict=True)])

    @property
    def above(self) -> Series:
        """Seconds that ours takes above theirs, a difference of each round."""
        return Series([a - b for a, b in zip(self.ours.values, self.theirs.values, strict=True)])


def rounds(ours: Callable[[], float], theirs: Callable[[], float], n: int = 9, turns: int = 1) -> Rounds:
    """Call both once to warm up, then in turns; both return seconds. A round is the mean of `turns` calls of each."""
    ours(), theirs()
    measured = []
    for _ in range(n):
        a, b = zip(*((ours(), theirs()) for _ in range(turns)), strict=True)
        measured.append((fmean(a), fmean(b)))
    return Rounds(Series([a for a, _ in measured]), Series([b for _, b in measured]))


def process(*command: str, cwd: Path = ROOT) -> tuple[float, str]:
    """(seconds from start to exit, what it printed) of `python COMMAND`. Raises `RuntimeError` where it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    took = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"python {' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return took, done.stdout


def told(what: str, measured: Series, goal: str, met: bool) -> None:
    print(f"{what:<44} {measured!s:<26} goal {goal:<8} {'met' if met else 'MISSED'}", flush=True)
