"""How a command ends: a mistake and Ctrl-C are one line each, and SIGTERM closes what was begun."""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence


def answer_for(main: Callable, argv: Sequence[str] | None = None) -> int:
    """Run a command at the front door: a `ValueError` becomes one line and exit code 2, Ctrl-C one line and 130. Who
    reads no further (`suite list data | head -1`) ends it in silence, with 141 as a shell counts it.

    Under a launcher all ranks make the same mistake. Rank 0 says it and ends, and then the launcher ends the others;
    a rank that ended first would have rank 0 killed before it spoke. One that is still there after a while was alone
    with its mistake, and says it itself.
    """
    # bitsandbytes warns on a CPU of a kernel it would have liked, wherever it is installed and nobody asked for it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        main(argv)
        _leave_group()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 128 + signal.SIGPIPE
    except ValueError as error:
        rank = int(os.environ.get("RANK", 0))
        if rank > 0:
            time.sleep(60)
        where = f" (rank {rank})" if rank > 0 else ""
        print(f"suite: {' '.join(str(error).split())}{where}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt as end:
        told = "ended by SIGTERM" if isinstance(end, TerminatedError) else "interrupted"
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"suite: {told}. {end}".rstrip(), file=sys.stderr, flush=True)
        return 128 + (signal.SIGTERM if isinstance(end, TerminatedError) else signal.SIGINT)
    return 0


def _leave_group() -> None:
    """Leave the launcher's process group, where the command has not: gloo's threads abort an interpreter that ends
    before them, and a run that had nothing left to do would seem to have failed."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _nobody_reads() -> bool:
    """Whether it is what we print that nobody reads any more; then the rest of it goes nowhere."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not any(what & (select.POLLERR | select.POLLHUP) for _, what in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class TerminatedError(KeyboardInterrupt):
    """A SIGTERM, where it ends a command as Ctrl-C does."""


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Within it SIGTERM unwinds: what the command has begun it closes, and vLLM's processes do not outlive it.

    A second one ends at once. Training has its own way: it saves first.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python hears of signals
        yield
        return
    process = os.getpid()

    def hear(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != process:  # a worker that was forked from here
            os.kill(os.getpid(), signal.SIGTERM)
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
