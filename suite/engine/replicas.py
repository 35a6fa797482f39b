"""Several engines at once, each in a process of its own: prompts go to whichever has the fewest in work.

This side starts `replica_child` once for each share of the machine and speaks to it over pipes, in lines of JSON.
It knows nothing of models: prompts are token ids here. The children end with this process, whatever ends that.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from suite import child

CLOSE_SECONDS = 60  # for the children to end their engines, which takes vLLM up to 30
SPARE = 4  # of so many prompts in work, one more waits in the child, so that a seat which gets free is taken at once
LOG_LINES = 40  # that are shown of a child which failed

Prompt = tuple[int, list[int]]  # (number, token ids)


class Replica:
    """One child, and what it was asked and has not answered yet."""

    def __init__(self, which: str, asked: dict, environment: dict[str, str], heard: queue.SimpleQueue):
        self.which, self.load, self.seats, self.failure = which, 0, 0, None
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the child)
        self.process = child.start(
            "engine.replica_child",
            [json.dumps(asked)],
            {**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    def _listen(self, heard: queue.SimpleQueue) -> None:
        """Pass on what the child says; None when it says no more."""
        with contextlib.suppress(ValueError):  # half a line is a child that died while it spoke
            for line in self.process.stdout:
                heard.put((self, json.loads(line)))
        heard.put((self, None))

    def tell(self, message: dict) -> None:
        """Send a request. A child that is dead is told of by its silence."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def hang_up(self) -> None:
        """Ask the child to end; one that is still loading would not hear it."""
        if not self.seats:
            child.kill(self.process)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def end(self, until: float) -> None:
        try:
            self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill(self.process)
            self.process.wait()
        self.log.close()

    def last_words(self) -> str:
        """Why it said no more, in one line; what its log ends with goes to stderr."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        child.kill(self.process)
        code = self.process.wait()
        if self.failure is not None and self.failure.startswith("ValueError: "):  # it can be mended without the log
            return self.failure.removeprefix("ValueError: ")
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        print("\n".join(f"[{self.which}] {line}" for line in lines), file=sys.stderr, flush=True)
        if self.failure is not None:
            return f"The vLLM of {self.which} failed: {self.failure}"
        short = " That is how a machine whose memory is full ends processes." if code == -signal.SIGKILL else ""
        when = f"with {self.load} prompts in work" if self.seats else "while it loaded"
        return f"The vLLM of {self.which} was ended {child.how_it_ended(code)}, {when}.{short}"


class Replicas:
    """The children, all of them ready. Whoever makes one of these closes it."""

    def __init__(self, asked: dict, environments: Sequence[dict[str, str]]):
        """`asked` is how each child makes its engine. Raises `ValueError` where one cannot."""
        self.heard: queue.SimpleQueue = queue.SimpleQueue()
        self.asking = 0  # the number of a call to `answers`: what comes of an earlier one is not heard
        self.members: list[Replica] = []
        self.positions = 0
        begun = time.monotonic()
        try:
            for number, environment in enumerate(environments, 1):
                which = f"replica {number} of {len(environments)}"
                self.members.append(Replica(which, asked, environment, self.heard))
            while not all(member.seats for member in self.members):
                member, said = self._next()
                member.seats, self.positions = said["seats"], said["positions"]  # of the one model, alike in all
        except BaseException:  # Ctrl-C while they load
            self.close()
            raise
        print(f"{len(self.members)} replicas are ready, {time.monotonic() - begun:.0f} s.", flush=True)

    def _next(self) -> tuple[Replica, dict]:
        """What a child says next. Raises `ValueError` where one has failed."""
        member, said = self.heard.get()
        if said is not None and "failure" in said:
            member.failure, said = said["failure"], None
        if said is None:
            raise ValueError(member.last_words())
        return member, said

    def answers(self, prompts: Iterable[Prompt], sampling: dict) -> Iterator[tuple[int, dict]]:
        """(number, what a `Completion` is made of) of each prompt, in the order in which they are finished."""
        self.asking += 1
        waiting = deque(prompts)
        try:
            while waiting or any(member.load for member in self.members):
                self._deal(waiting, sampling)
                member, said = self._next()
                if said["asking"] == self.asking:
                    member.load -= 1
                    yield said["number"], said["completion"]
        finally:  # who stops listening half-way must not wait for these answers before the next ones
            if any(member.load for member in self.members):
                self.asking += 1
                for member in self.members:
                    member.load = 0
                    member.tell({"asking": self.asking, "prompts": []})

    def _deal(self, waiting: deque[Prompt], sampling: dict) -> None:
        """Give prompts away as long as there is room, one at a time to the child that has the fewest."""
        dealt: dict[Replica, list[Prompt]] = {}
        while waiting:
            least = min(self.members, key=lambda member: member.load)
            if least.load >= least.seats + least.seats // SPARE:
                break
            least.load += 1
            dealt.setdefault(least, []).append(waiting.popleft())
        for member, prompts in dealt.items():
            member.tell({"asking": self.asking, "prompts": prompts, "sampling": sampling})

    def close(self) -> None:
        """End all children together."""
        for member in self.members:
            member.hang_up()
        until = time.monotonic() + CLOSE_SECONDS
        for member in self.members:
            member.end(until)
        self.members = []
