"""The clean helper behind `pool`: it imports math-verify once, forks workers from itself, and ends those that overstay.

A worker's time is counted in CPU seconds by the kernel, which ends it even where no Python code runs; a busy machine
does not turn right answers into timeouts. A fork costs a hundredth of a second, a fresh interpreter with math-verify
two. Requests and replies are lines of JSON on stdin and stdout, a whole batch in each.
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque

FIRST_SECONDS = 0.15  # CPU time in the first round, which nearly all that ends at all ends in
OVERTIME = 3.0  # seconds a batch may spend on the second round, with the full limit for each
WALL_FACTOR = 20  # a worker that sleeps, or never gets the CPU, is ended after so many times its CPU limit
JOBS_A_WORKER = 2000  # then it is replaced: caches grow


class Worker:
    """One forked process and the job it holds."""

    def __init__(self, others: list["Worker"], memory: int):
        self.socket, theirs = socket.socketpair()
        self.jobs, self.job, self.until = 0, None, None
        self.pid = os.fork()
        if self.pid == 0:
            for other in others:
                other.socket.close()
            self.socket.close()
            _work(theirs, memory)
        theirs.close()

    def give(self, number: int, job, seconds: float) -> None:
        self.job, self.jobs = number, self.jobs + 1
        self.until = time.monotonic() + max(1.0, WALL_FACTOR * seconds)
        self.socket.sendall(json.dumps([seconds, job]).encode() + b"\n")

    def end(self) -> str:
        """Kill it, and say what it died of: 'timeout' or 'crash'."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.socket.close()
        died_of = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return "timeout" if died_of in (signal.SIGPROF, signal.SIGKILL) else "crash"


class Supervisor:
    """Hands jobs to its workers, and replaces those that die."""

    def __init__(self, size: int, memory: int, parent: int):
        self.memory, self.parent = memory, parent
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.size, self.warm = size, set()

    def hire(self) -> None:
        worker = Worker(self.workers, self.memory)
        self.workers.append(worker)
        self.selector.register(worker.socket, selectors.EVENT_READ, worker)

    def dismiss(self, worker: Worker) -> str:
        self.selector.unregister(worker.socket)
        self.workers.remove(worker)
        return worker.end()

    def warm_up(self, kinds: set[str]) -> None:
        """Import what these kinds of jobs need, and hire anew where that is news to the workers."""
        if kinds <= self.warm:
            return
        self.close()
        if "same" in kinds - self.warm:
            from suite.rewards import latex

            latex.warm_up()
        if "task" in kinds - self.warm:
            from suite.rewards import tasks  # noqa: F401
        self.warm |= kinds
        gc.collect()
        gc.freeze()  # so that a worker's garbage collection does not copy every page

    def judge(self, jobs: list, seconds: float) -> list[str]:
        """One outcome a job. Those that outlast the first round share the overtime, the shortest first."""
        self.warm_up({kind for kind, *_ in jobs})
        first = min(FIRST_SECONDS, seconds)
        outcomes = self.round(dict(enumerate(jobs)), first, None)
        late = sorted((i for i, o in outcomes.items() if o == "timeout"), key=lambda i: len(json.dumps(jobs[i])))
        if late and seconds > first:
            outcomes |= self.round({i: jobs[i] for i in late}, seconds, time.monotonic() + OVERTIME)
        return [outcomes[i] for i in range(len(jobs))]

    def round(self, jobs: dict[int, list], seconds: float, end: float | None) -> dict[int, str]:
        """Every job once, `seconds` of CPU each; what has not ended at the time `end` is a timeout."""
        waiting, outcomes = deque(jobs), {}
        while waiting or any(w.job is not None for w in self.workers):
            late = end is not None and time.monotonic() >= end
            if late:
                outcomes |= dict.fromkeys(waiting, "timeout")
                waiting.clear()
            while len(self.workers) < min(self.size, len(jobs)):
                self.hire()
            for worker in [w for w in self.workers if w.job is None]:
                if waiting:
                    number = waiting.popleft()
                    worker.give(number, jobs[number], seconds)
            for worker in [w for w in self.workers if w.job is not None and (late or time.monotonic() > w.until)]:
                outcomes[worker.job] = "timeout"
                self.dismiss(worker)
            self.listen(outcomes, 0.1)
        return outcomes

    def listen(self, outcomes: dict[int, str], seconds: float) -> None:
        """Take what workers have to say within `seconds`, and end with the parent process."""
        for key, _ in self.selector.select(seconds):
            worker = key.data
            said = worker.socket.recv(64)
            if said:
                outcomes[worker.job] = said.decode().strip()
                worker.job = None
            if not said or worker.jobs >= JOBS_A_WORKER:
                job, died_of = worker.job, self.dismiss(worker)
                if job is not None:
                    outcomes[job] = died_of
        if os.getppid() != self.parent:
            self.close()
            os._exit(0)

    def close(self) -> None:
        for worker in list(self.workers):
            self.dismiss(worker)


def _work(connection: socket.socket, memory: int) -> None:
    """A worker's life: judge what comes until nobody is there to ask."""
    _die_with_parent()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # some systems have no such limit
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory,) * 2)
    lines = connection.makefile("r", encoding="utf-8")
    for line in lines:
        seconds, job = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            outcome = _outcome(*job)
        except (MemoryError, SystemError):
            os._exit(1)
        except Exception:  # noqa: BLE001 (whatever a model wrote: it is counted, and costs its own completion)
            outcome = "crash"
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.sendall(outcome.encode() + b"\n")
    os._exit(0)


def _outcome(kind: str, *asked: str) -> str:
    """What becomes of one job; the imports were done by the helper before it forked."""
    if kind == "same":
        from suite.rewards import latex

        return "equal" if latex.same(*asked) else "different"
    from suite.rewards import tasks

    return str(tasks.score(*asked))


def _die_with_parent() -> None:
    """Linux ends a worker with its helper, whatever ends that; elsewhere it notices when it wants its next job."""
    parent = os.getppid()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)


def _address_space() -> int:
    """Bytes of address space this process has now."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def main() -> None:
    """Serve batches `[seconds, [[kind, ...], ...]]` until stdin ends."""
    size, memory, parent = map(int, sys.argv[1:])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)  # what a library prints is no reply
    os.dup2(nowhere, 2)
    supervisor = Supervisor(size, memory, parent)
    requests, buffered = selectors.DefaultSelector(), b""
    requests.register(0, selectors.EVENT_READ)
    while os.getppid() == parent:
        if not requests.select(1.0):
            continue
        chunk = os.read(0, 1 << 20)
        if not chunk:
            break
        buffered += chunk
        while b"\n" in buffered:
            line, _, buffered = buffered.partition(b"\n")
            seconds, jobs = json.loads(line)
            replies.write(json.dumps(supervisor.judge(jobs, seconds)) + "\n")
            replies.flush()
    supervisor.close()


if __name__ == "__main__":
    main()
