"""The clean helper behind `pool`: it imports math-verify once, forks workers from itself, and ends those that overstay.

A worker's time is counted in CPU seconds by the kernel, which ends it even where no Python code runs; a busy machine
does not turn right answers into timeouts. A fork costs a hundredth of a second, a fresh interpreter with math-verify
two. Requests and replies are lines of JSON on stdin and stdout, a whole batch in each.
"""

import contextlib
import ctypes
import gc
import json
import math
import os
import resource
import secrets
import selectors
import signal
import socket
import sys
import time
from collections import deque

from suite.rewards import sandbox_walls

FIRST_SECONDS = 0.2  # CPU time in the first round, which nearly all that ends at all ends in
OVERTIME = 3.0  # CPU seconds for each worker in a batch's second round, with the full limit for each job,
BATCH_SECONDS = 5.0  # and not much of that where the first round took so long already
LEAST_SECONDS = 0.05  # of the overtime that are worth giving to a job
WALL_FACTOR = 20  # a worker that sleeps, or never gets the CPU, is ended after so many times its CPU limit
JOBS_A_WORKER = 2000  # then it is replaced: caches grow


class Worker:
    """One forked process and the job it holds."""

    def __init__(self, memory: int):
        self.socket, theirs = socket.socketpair()
        self.jobs, self.job, self.seconds, self.until, self.token = 0, None, 0.0, 0.0, ""
        self.pid = os.fork()
        if self.pid == 0:
            _close_all_but(theirs.fileno())
            _work(theirs, memory)
        theirs.close()

    def give(self, number: int, job, seconds: float) -> None:
        self.job, self.jobs, self.seconds = number, self.jobs + 1, seconds
        self.until = time.monotonic() + max(1.0, WALL_FACTOR * seconds)
        self.token = secrets.token_hex(8)
        self.socket.sendall(json.dumps([self.token, seconds, job]).encode() + b"\n")

    def reply(self) -> tuple[str, float] | None:
        """(outcome, CPU seconds) of its job; None where it is dead, or says anything else: some scorers evaluate what a
        model wrote, and that may try to speak for its worker."""
        try:
            said = self.socket.recv(256).decode("ascii", "replace").split()
        except ConnectionResetError:  # it died before it had read its job
            return None
        if len(said) != 3 or said[0] != self.token:
            return None
        return said[1], float(said[2])

    def end(self) -> str:
        """Kill it, and say what it died of: 'timeout' or 'crash'."""
        status = 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, 0)
        self.socket.close()
        return "timeout" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "crash"


class Supervisor:
    """Hands jobs to its workers, and replaces those that die."""

    def __init__(self, size: int, memory: int, parent: int):
        self.memory, self.parent = memory, parent
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.size, self.warm, self.spent = size, set(), 0.0  # CPU seconds of this batch

    def hire(self) -> None:
        worker = Worker(self.memory)
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
        self.spent, first = 0.0, min(FIRST_SECONDS, seconds)
        outcomes = self.round(dict(enumerate(jobs)), first, math.inf)
        late = sorted((i for i, o in outcomes.items() if o == "timeout"), key=lambda i: len(json.dumps(jobs[i])))
        if late and seconds > first:
            overtime = max(0.5, min(OVERTIME, BATCH_SECONDS - self.spent / self.size)) * self.size
            outcomes |= self.round({i: jobs[i] for i in late}, seconds, self.spent + overtime)
        return [outcomes[i] for i in range(len(jobs))]

    def round(self, jobs: dict[int, list], seconds: float, budget: float) -> dict[int, str]:
        """Every job once, with `seconds` of CPU for each; a timeout is what the budget leaves nothing for."""
        waiting, outcomes = deque(jobs), {}
        while waiting or any(w.job is not None for w in self.workers):
            while len(self.workers) < min(self.size, len(jobs)):
                self.hire()
            for worker in [w for w in self.workers if w.job is None]:
                promised = sum(w.seconds for w in self.workers if w.job is not None)
                left = min(seconds, budget - self.spent - promised)
                if waiting and left >= min(seconds, LEAST_SECONDS):
                    number = waiting[0]
                    try:
                        worker.give(number, jobs[number], left)
                        waiting.popleft()
                    except OSError:  # it died while it had nothing to do
                        self.dismiss(worker)
            if waiting and budget - self.spent < min(seconds, LEAST_SECONDS):
                outcomes |= dict.fromkeys(waiting, "timeout")
                waiting.clear()
            self.listen(outcomes, 0.1)  # before the clock: who was kept from looking may have an answer lying there
            for worker in [w for w in self.workers if w.job is not None and time.monotonic() > w.until]:
                outcomes[worker.job] = "timeout"
                self.spent += worker.seconds
                self.dismiss(worker)
        return outcomes

    def listen(self, outcomes: dict[int, str], seconds: float) -> None:
        """Take what workers have to say within `seconds`, and end with the parent process."""
        for key, _ in self.selector.select(seconds):
            worker = key.data
            reply = worker.reply()
            if reply is not None:
                outcomes[worker.job], spent = reply
                self.spent += spent
                worker.job = None
            if reply is None or worker.jobs >= JOBS_A_WORKER:
                job, died_of = worker.job, self.dismiss(worker)
                if job is not None:
                    outcomes[job] = died_of
                    self.spent += worker.seconds
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    # Nothing here needs the network, a file or another process, and some scorers evaluate what a model wrote.
    sandbox_walls.put_up(os.devnull, _address_space() + memory, JOBS_A_WORKER)
    lines = connection.makefile("r", encoding="utf-8")
    for line in lines:
        token, seconds, job = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            outcome = _outcome(*job)
        except (MemoryError, SystemError):
            os._exit(1)
        except Exception:  # noqa: BLE001 (whatever a model wrote: it is counted, and costs its own completion)
            outcome = "crash"
        left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        connection.sendall(f"{token} {outcome} {seconds - left:.3f}\n".encode())
    os._exit(0)


def _close_all_but(kept: int) -> None:
    """The helper's pipes and its other workers' sockets are none of this worker's business."""
    os.closerange(3, kept)
    os.closerange(kept + 1, 4096)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)


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
    """Bytes of address space this process has now; a guess where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


def main() -> None:
    """Serve batches `[seconds, [[kind, ...], ...]]` until stdin ends; a reply is `[outcomes, what went wrong]`."""
    size, memory, parent = map(int, sys.argv[1:])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)  # what a library prints is no reply
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent that ignores it hands that down
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells every process of a job: the run needs this to end well
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
            replies.write(json.dumps(_reply(supervisor, *json.loads(line))) + "\n")
            replies.flush()
    supervisor.close()


def _reply(supervisor: Supervisor, seconds: float, jobs: list) -> tuple[list[str] | None, str | None]:
    try:
        return supervisor.judge(jobs, seconds), None
    except Exception as error:  # noqa: BLE001 (math-verify missing, no memory to fork: for the user's eyes)
        return None, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
