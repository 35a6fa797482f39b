"""Two ends a run may have before its last step: its time is up, or it is told to go by SIGTERM."""

import mmap
import os
import select
import signal
import threading
import time
from contextlib import suppress

import torch
from transformers import TrainerCallback

# What a run ends with that saved and left because it was told to; "temporary failure, try again" in sysexits.h.
EXIT_CODE = 75
# Seconds. Under a launcher one SIGTERM arrives twice: from Slurm, which tells every process, and from the launcher,
# which on a busy machine takes a while to wake.
_ONE_AND_THE_SAME = 15.0
_TOLD_WITH_OTHERS = 3.0  # seconds between the first and the last process of a job that Slurm tells


class StopAfter(TrainerCallback):
    """Stops training when the seconds are up, on all ranks at the same step. `spent` is what went before a resume."""

    def __init__(self, seconds: float, spent: float):
        self.left = seconds - spent

    def on_train_begin(self, args, state, control, **kwargs):
        self.end = time.monotonic() + self.left

    def on_step_end(self, args, state, control, **kwargs):
        if _on_any_rank(time.monotonic() >= self.end, args):
            control.should_training_stop = True


class StopOnSigterm(TrainerCallback):
    """Saves at the end of the step in which SIGTERM comes, on all ranks the same, and stops; a second one ends at once.

    transformers' `enable_jit_checkpoint` saves before the optimizer's step and each rank at a step of its own choosing:
    a run that goes on from there is another run, or hangs.
    """

    def __init__(self):
        self.told: float | None = None
        self.stopped = False
        self.before = None
        # Seen by what is forked from this process: 1 when it was told, and a number that changes with every step.
        self.shared = mmap.mmap(-1, 2)

    def listen(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may
            self.before = signal.signal(signal.SIGTERM, self._hear)
            os.register_at_fork(after_in_child=self._stand_by)

    def _hear(self, number, frame) -> None:
        launched = "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ
        if self.told is None:
            self.told, self.shared[0] = time.monotonic(), 1
            if int(os.environ.get("RANK", 0)) == 0:
                with suppress(OSError):  # a `| tee` was told, too, and is gone
                    os.write(1, b"SIGTERM: saving at the end of this step. A second one ends at once.\n")
        elif not launched or time.monotonic() - self.told > _ONE_AND_THE_SAME:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _stand_by(self) -> None:
        """In a data loader's worker: Slurm tells every process of a job, and without its rows the step has no end."""
        if self.before is not None:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            threading.Thread(target=self._end_with_parent, daemon=True).start()

    def _end_with_parent(self) -> None:
        parent = os.getppid()
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent and self._is_to_stay(parent):
            pass
        os._exit(128 + signal.SIGTERM)

    def _is_to_stay(self, parent: int) -> bool:
        """Whether the parent was told, too, if a moment later, and still needs its rows.

        A long call into C, or a machine that gives it no time, keeps it from hearing; at a step's end it has heard.
        """
        heard = signal.sigtimedwait([signal.SIGTERM], _TOLD_WITH_OTHERS)
        step = self.shared[1]
        while not (heard and heard.si_pid == parent) and os.getppid() == parent:
            if self.shared[0] or self.shared[1] != step:
                return bool(self.shared[0])
            heard = signal.sigtimedwait([signal.SIGTERM], 0.1)
        return False

    def on_step_end(self, args, state, control, **kwargs):
        self.shared[1] = (self.shared[1] + 1) % 256
        if _on_any_rank(self.told is not None, args):
            control.should_save = control.should_training_stop = self.stopped = True
            _let_print()

    def restore(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
            self.before = None


def _let_print() -> None:
    """Where nobody reads what is printed any more, print to nowhere: it must not end the run before it has saved."""
    for output in (1, 2):
        poll = select.poll()
        poll.register(output, 0)
        if any(what & (select.POLLERR | select.POLLNVAL) for _, what in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)


def _on_any_rank(flag: bool, args) -> bool:
    if args.world_size == 1:
        return flag
    said = torch.tensor(float(flag), device=args.device)
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return bool(said)
