"""Expressions judged in processes of their own, with a hard limit on time and memory, from any thread of any process.

This side starts one clean helper (`suite.rewards.worker`) when the first expression is met and speaks to it over
pipes. Nothing is forked here, where there may be threads and CUDA; and nothing here waits on a signal.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import threading
import time

from suite import child

SECONDS = 2.0  # CPU time for one comparison
MEMORY = 1 << 30  # bytes a worker may take above what math-verify itself takes
START_SECONDS = 120  # for the helper to start on a machine that is busy loading a model
REMEMBERED = 50_000  # outcomes: the rewards of one step ask the same, and so do later steps
LATE_SECONDS = 30  # for so long a timeout is remembered, for the other rewards of the step

Job = tuple[str, ...]  # ('same', gold, answer) or ('task', name, entry, answer)

_lock = threading.Lock()
_known: dict[Job, str] = {}
_late: dict[Job, tuple[float, float]] = {}  # the CPU seconds a job had, and when
_helper: "Helper | None" = None


class HelperGoneError(Exception):
    """The helper died or fell silent with a batch in its hands."""


class Helper:
    """The helper process, and one exchange with it at a time."""

    def __init__(self):
        self.process = child.start(
            "rewards.worker",
            [str(_size()), str(MEMORY), str(os.getpid())],
            os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",  # a file called json.py where the user stands must not be taken for the library
        )
        self.poll = select.poll()
        self.poll.register(self.process.stdout, select.POLLIN)

    def ask(self, jobs: list[Job], seconds: float) -> list[str]:
        """One outcome a job."""
        try:
            self.process.stdin.write(json.dumps([seconds, jobs]).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._line(time.monotonic() + START_SECONDS + 2 * seconds * len(jobs))
        except BrokenPipeError:
            raise HelperGoneError("no listener") from None
        try:
            outcomes, failure = json.loads(reply)
        except ValueError:
            raise HelperGoneError("no sense") from None
        if failure is not None:
            raise ValueError(f"The verifier's helper cannot do its work: {failure}. Is math-verify installed?")
        return outcomes

    def _line(self, until: float) -> bytes:
        buffered, pipe = b"", self.process.stdout.fileno()
        while not buffered.endswith(b"\n"):
            # No select(), which knows only the first 1,024 files of a process.
            ready = self.poll.poll(1000 * max(0.0, until - time.monotonic()))
            chunk = os.read(pipe, 1 << 20) if ready else b""
            if not chunk:
                raise HelperGoneError("no reply")
            buffered += chunk
        return buffered

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # it ends its workers, and itself
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def judge(jobs: list[Job], seconds: float = SECONDS) -> list[str]:
    """One outcome a job: 'equal' or 'different', a task's score, 'timeout' (of `seconds` of CPU, or of the batch's
    overtime) or 'crash'.

    Identical jobs are done once. Threads take turns. Raises `ValueError` where math-verify is not installed.
    """
    if not jobs:
        return []
    with _lock:
        found = {job: outcome for job in jobs if (outcome := _remembered(job, seconds)) is not None}
        new = [job for job in dict.fromkeys(jobs) if job not in found]
        if new:
            answers = dict(zip(new, _ask(new, seconds), strict=True))
            found |= answers
            _remember(answers, seconds)
        return [found[job] for job in jobs]


def _remembered(job: Job, seconds: float) -> str | None:
    if job in _known:
        return _known[job]
    given, when = _late.get(job, (0.0, 0.0))
    return "timeout" if given >= seconds and time.monotonic() - when < LATE_SECONDS else None


def _remember(answers: dict[Job, str], seconds: float) -> None:
    """Keep what was decided; a timeout for a while only, since a batch of hostile ones may have caused it; no crash."""
    if len(_known) + len(answers) > REMEMBERED:
        _known.clear()
    _late.clear()
    for job, outcome in answers.items():
        if outcome == "timeout":
            _late[job] = (seconds, time.monotonic())
        elif outcome != "crash":
            _known[job] = outcome


def _ask(jobs: list[Job], seconds: float) -> list[str]:
    """Ask the helper; where it dies, a new one; where that dies, too, the batch has crashed."""
    global _helper
    for _ in range(2):
        if _helper is None:
            _helper = Helper()
        try:
            return _helper.ask(jobs, seconds)
        except HelperGoneError:
            close()
        except BaseException:  # Ctrl-C half-way through an exchange: the next reply would belong to this one
            close()
            raise
    return ["crash"] * len(jobs)


def _size() -> int:
    """Workers for this process: the machine's cores, shared with the other ranks on it, and at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, min(4, cores // max(1, int(ranks) if ranks.isdecimal() else 1)))


def close() -> None:
    """End the helper and its workers."""
    global _helper
    helper, _helper = _helper, None
    if helper is not None:
        helper.close()


def _forget_in_child() -> None:
    """A forked child (a data loader's worker) has its parent's pipes and perhaps a lock nobody will open."""
    global _helper, _lock
    _helper, _lock = None, threading.Lock()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
