"""What a child process of ours is: a module of the suite, in a process group of its own, that ends with its owner.

The one half is the owner's: it starts a child, ends it with all that it started, and says how it ended. The other half
is the child's: however its owner ends, it does not outlive it.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

OWNER = "SUITE_VLLM_OWNER"  # an environment variable: the process that has started a child, or an engine, and asks it


def start(module: str, words: Sequence[str], environment: Mapping[str, str], **how) -> subprocess.Popen:
    """`python -m suite.MODULE WORDS...`, which finds this very suite, wherever it runs. `how` is of `Popen`."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", f"suite.{module}", *words],
        env={**environment, "PYTHONPATH": path, OWNER: str(os.getpid())},
        process_group=0,  # Ctrl-C is for this process, which then ends the child in good order
        **how,
    )


def kill(process: subprocess.Popen) -> None:
    """End whatever is left of a child and of what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def how_it_ended(code: int) -> str:
    """A process's exit code in words, to go behind "ended"."""
    return f"with code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"


def is_owned() -> bool:
    """In a child, as it begins: it ends with its owner from now on. False where that is gone, and it is to end, too."""
    end_with_owner()
    return os.environ[OWNER] == str(os.getppid())


def end_with_owner() -> None:
    """In the process of a child or of an engine: have Linux end it with the one that asks it.

    That one closes it in every other case; where it is killed, vLLM 0.31 would generate on, to nobody, and hold the
    memory of the GPU that the next attempt needs.
    """
    if os.environ.get(OWNER) == str(os.getppid()):
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
