"""Commands of the suite in forks of one process that has imported everything: a command takes as long as its work.

`Warm` starts `python -m tests.warm`, which reads a job a line, forks, and tells first the process and then its end.
Jobs may die at a given one of their calls to the file system, or find the disk full. They may also halt where
somebody is to do something to them, however long that takes him: a test that watched a run from beside it would come
too late on a busy machine.
"""

import contextlib
import glob
import importlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

# Between two of these calls nothing changes on the disk but the content of files that are open.
STEPS = ("mkdir", "rename", "replace", "fsync", "open", "ftruncate", "write", "rmdir", "unlink")


def counted(die_at: int | None, after: bool = False, then: Callable[[], None] = lambda: None) -> itertools.count:
    """Count this process's calls to the file system, and have it die at call `die_at`, before it or after it. `then` is
    called behind each."""
    calls = itertools.count(1)

    def wrap(call):
        def wrapped(*args, **kwargs):
            now = next(calls) == die_at
            if now and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **kwargs)
            finally:
                if now:
                    os.kill(os.getpid(), signal.SIGKILL)
                then()

        return wrapped

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))
    return calls


@dataclass(frozen=True)
class Halt:
    """Where a job stops (SIGSTOP), until somebody has it go on: before it does anything, as soon as a file matches
    `path` and has more `lines` than so many, or where the step behind `step` begins."""

    path: str | None = None
    lines: int = -1
    step: int | None = None

    def begin(self) -> Callable[[], None]:
        """In the job: what is to be called whenever a file has changed."""
        job, to_come = os.getpid(), [signal.SIGSTOP]

        def stop() -> None:
            if to_come and os.getpid() == job:
                os.kill(job, to_come.pop())

        if self.step is not None:
            from transformers.trainer_callback import CallbackHandler

            begins = CallbackHandler.on_step_begin

            def on_step_begin(handler, args, state, control):
                if state.global_step == self.step:
                    stop()
                return begins(handler, args, state, control)

            CallbackHandler.on_step_begin = on_step_begin
        elif self.path is None:
            stop()
        return lambda: stop() if to_come and self._is_there() else None

    def _is_there(self) -> bool:
        if self.path is None:
            return False
        found = glob.glob(self.path, include_hidden=True)
        return any(self.lines < 0 or Path(path).read_bytes().count(b"\n") > self.lines for path in found)


@dataclass
class Ended:
    """How a command ended: exit code or minus the signal, what it said, seconds, calls to the file system."""

    code: int
    said: str
    seconds: float
    steps: int | None


class Warm:
    """One job at a time, each in a process of its own. `modules` are imported beforehand, too."""

    def __init__(self, *modules: str):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", *modules],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._told() == "ready"

    def _told(self):
        line = self.server.stdout.readline()
        assert line, "the warm process is gone"
        return json.loads(line)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(30)

    def run(self, words, cwd, *, die_at=None, after=False, limit=None, halt=None, meanwhile=None) -> Ended:
        """`suite WORDS...` in `cwd`. With `limit` no file may have more bytes; `meanwhile(pid)` is called at once, or
        while the command stands still at its `halt`."""
        job = {"words": [str(word) for word in words], "cwd": str(cwd), "die_at": die_at, "after": after,
               "limit": limit, "halt": halt and asdict(halt), "log": f"{cwd}.log"}  # fmt: skip
        Path(job["log"]).write_text("")
        begun = time.monotonic()
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        pid = self._told()
        halted = halt is not None and _halts(pid)
        if meanwhile is not None and (halt is None or halted):
            self._do(meanwhile, pid)
        if halted:
            _signal(pid, signal.SIGCONT)
        code = self._told()
        said = Path(job["log"]).read_text(errors="replace")
        assert halt is None or halted, f"it never came to {halt}: {said[-3000:]}"
        steps = Path(f"{cwd}.log.steps")
        found = int(steps.read_text()) if steps.is_file() else None
        steps.unlink(missing_ok=True)
        return Ended(code, said, time.monotonic() - begun, found)

    def _do(self, meanwhile: Callable[[int], None], pid: int) -> None:
        """Where that fails, the job goes, too, and those behind it are not taken for it."""
        try:
            meanwhile(pid)
        except BaseException:
            _signal(pid, signal.SIGKILL)
            self._told()
            raise


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def state(pid: int) -> str:
    """One letter, as in /proc: Z of a process that has ended, T of one that stands still."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # gone altogether, perhaps while we looked
        return "Z"


def _halts(pid: int) -> bool:
    """Whether a process comes to stand still before it ends."""
    while (now := state(pid)) not in "TZX":
        time.sleep(0.002)
    return now == "T"


def kill_after(seconds: float, number: int = signal.SIGKILL):
    """For `meanwhile`: a signal after so many seconds, if the process is still there."""

    def send(pid: int) -> None:
        time.sleep(seconds)
        _signal(pid, number)

    return send


def _work(job: dict) -> int:
    """The child's life."""
    from suite import cli, ending

    os.chdir(job["cwd"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    calls = counted(job["die_at"], job["after"], Halt(**job["halt"]).begin() if job["halt"] else lambda: None)
    code = ending.answer_for(cli._main, job["words"])
    steps = next(calls) - 1
    if job["limit"] is None:
        Path(job["log"] + ".steps").write_text(str(steps))
    return code


def main() -> None:
    import datasets  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401  (a card's pictures)
    import matplotlib.figure  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM  # noqa: F401

    import suite.evaluate
    import suite.model
    import suite.prepare
    import suite.sample
    import suite.score  # noqa: F401

    for module in sys.argv[1:]:
        importlib.import_module(module)
    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                code = _work(json.loads(line))
            except SystemExit as end:
                code = end.code
            except BaseException:  # noqa: BLE001 (nothing of this loop may go on in the child)
                import traceback

                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            os._exit(code)
        print(json.dumps(pid), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
    os._exit(0)  # tidying up after so many imports takes seconds


if __name__ == "__main__":
    main()
