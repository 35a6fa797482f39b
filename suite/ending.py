"""How a command ends: a mistake and Ctrl-C are one line each, and SIGTERM and SIGHUP close what was begun."""

import contextlib
import errno
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # a file that this user may not read, or write


def answer_for(main: Callable, argv: Sequence[str] | None = None) -> int:
    """Run a command at the front door: a `ValueError` becomes one line and exit code 2, as a file does that one may not
    read; Ctrl-C one line and 130. Who reads no further (`suite list data | head -1`) ends it in silence, with 141 as a
    shell counts it.

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
        if not _nobody_reads(sys.stdout.fileno()):
            raise
        return 128 + signal.SIGPIPE
    except ValueError as error:
        return _mistaken(str(error))
    except OSError as error:
        if error.errno not in REFUSED or error.filename is None:
            raise
        return _mistaken(f"'{error.filename}': {error.strerror}. Whose it is and what others may, `ls -l` says.")
    except KeyboardInterrupt as end:
        by = end.by if isinstance(end, TerminatedError) else signal.SIGINT
        told = "interrupted" if by == signal.SIGINT else f"ended by {by.name}"
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"suite: {told}. {end}".rstrip(), file=sys.stderr, flush=True)
        return 128 + by
    return 0


def _mistaken(said: str) -> int:
    rank = int(os.environ.get("RANK", 0))
    if rank > 0:
        time.sleep(60)
    where = f" (rank {rank})" if rank > 0 else ""
    print(f"suite: {' '.join(said.split())}{where}", file=sys.stderr, flush=True)
    return 2


def _leave_group() -> None:
    """Leave the launcher's process group, where the command has not: gloo's threads abort an interpreter that ends
    before them, and a run that had nothing left to do would seem to have failed."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _nobody_reads(output: int) -> bool:
    """Whether nobody reads any more what we print there; then the rest of it goes nowhere."""
    pipe = select.poll()
    pipe.register(output, 0)
    if not any(what & (select.POLLERR | select.POLLHUP) for _, what in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


class TerminatedError(KeyboardInterrupt):
    """A SIGTERM, where it ends a command as Ctrl-C does."""

    by = signal.SIGTERM


class HungUpError(TerminatedError):
    """A SIGHUP. It is a kind of its own, because whoever adds to what is said raises the same kind anew."""

    by = signal.SIGHUP


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP unwind: what the command has begun it closes, and no process of vLLM outlives it.

    A second SIGTERM ends at once. A second SIGHUP says nothing new: of a closed terminal the shell tells, and then the
    kernel. Where SIGHUP is ignored (`nohup`), it stays so. Training has its own way with SIGTERM: it saves first.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python hears of signals
        yield
        return
    process = os.getpid()

    def hear(number, frame):
        if os.getpid() != process:  # a worker that was forked from here
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for output in (1, 2):  # the terminal is gone, and a word to it would be an error of its own
            _nobody_reads(output)
        raise ends[number]

    ends = {signal.SIGTERM: TerminatedError}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends[signal.SIGHUP] = HungUpError
    before = {number: signal.signal(number, hear) for number in ends}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, signal.SIG_DFL if was is None else was)
