"""Training on a CPU in as many processes as it has cores, of one thread each, as `accelerate launch` starts them.

In one process all threads wait for the slowest at the end of every product; processes wait for each other once a step,
and while one waits for memory another multiplies.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate.utils import compile_regions
from torch.nn.parallel import DistributedDataParallel

from tests.benchmarks.interleaved import process
from tests.benchmarks.kept import KEPT
from tests.benchmarks.model import against_qwen2, pair, step

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
LENGTH = 128
ROWS, KEPT_ROWS = 16, 64  # in a step, of all processes together: as in the benchmarks of one process


def main(n: int) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(CORES))
    one = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for how, env in (("as it is", one), ("kept", one | KEPT)):
        told = process(*launch, "-m", "tests.benchmarks.processes", str(n), how, env=env)
        print(told.printed, end="", flush=True)


def measure(n: int, kept: bool) -> None:
    how, rows = (", layers compiled, memory kept", KEPT_ROWS) if kept else ("", ROWS)
    each = max(1, rows // CORES)
    models = dict(zip(("miniqwen", "Qwen2"), pair(), strict=True))
    steps = {}
    for name, model in models.items():
        shared = DistributedDataParallel(model)
        steps[name] = together(step(compile_regions(shared) if kept else shared, each, LENGTH))
    print(f"B {CORES} x {each}, T {LENGTH}, {CORES} processes")
    against_qwen2(how, models["miniqwen"], steps, CORES * each, LENGTH, n, 1, summed)


def together(run: Callable[[], float]) -> Callable[[], float]:
    """A step that begins when all processes are there, and its seconds until all have ended it."""

    def timed() -> float:
        dist.barrier()
        start = time.perf_counter()
        run()
        dist.barrier()
        return time.perf_counter() - start

    return timed


def summed(rate: float) -> float:
    """The rate of all processes that multiply at the same time."""
    total = torch.tensor(rate, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item()


if __name__ == "__main__":  # one of the processes; the first one tells
    dist.init_process_group("gloo")
    with contextlib.redirect_stdout(sys.stdout if dist.get_rank() == 0 else None):
        measure(int(sys.argv[1]), sys.argv[2] == "kept")
    dist.destroy_process_group()
