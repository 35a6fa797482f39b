"""Training on a CPU as docs/scaling.md advises it: layers compiled one by one, as accelerate does it, memory that is
freed kept for the next step, and 64 rows in a step, which spread what is done once a step over more products.

glibc hands large tensors back to the system as soon as they are free, and the next step's pages must be cleared again.
"""

import sys

from accelerate.utils import compile_regions

from tests.benchmarks.interleaved import process
from tests.benchmarks.model import against_qwen2, pair, step

BATCH, LENGTH = 64, 128
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "9000000000", "CUDA_VISIBLE_DEVICES": ""}


def main(n: int) -> None:
    print(process("-m", "tests.benchmarks.kept", str(n), env=KEPT).printed, end="")


def measure(n: int) -> None:
    models = dict(zip(("miniqwen", "Qwen2"), pair(), strict=True))
    steps = {name: step(compile_regions(model), BATCH, LENGTH) for name, model in models.items()}
    print(f"B {BATCH}, T {LENGTH}")
    against_qwen2(", layers compiled, memory kept", models["miniqwen"], steps, BATCH, LENGTH, n, 1)


if __name__ == "__main__":  # in a process whose environment says so
    measure(int(sys.argv[1]))
