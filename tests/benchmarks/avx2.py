"""A benchmark on a CPU with AVX2 instructions, the widest of most laptops, where torch and MKL would take wider ones.

The wider the instructions, the shorter are the matrix products, and what waits for memory is not: on two AVX-512 cores
a product runs twice as fast as with AVX2, and the same code takes a smaller share of that rate.
"""

import tempfile

from tests.benchmarks.interleaved import process

AVX2 = {
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "CUDA_VISIBLE_DEVICES": "",
}


def main(n: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as kernels:  # those compiled for wider instructions do not fit
        told = process(
            "-m", "tests.benchmarks", name, "--rounds", str(n), env=AVX2 | {"TORCHINDUCTOR_CACHE_DIR": kernels}
        )
    print(told.printed.partition("rounds in turns\n")[2], end="")
