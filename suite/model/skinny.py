"""A product of a few rows with a large weight, which is all that a step of generation multiplies.

Such a product waits for memory: each weight is read once and meets only as many numbers as there are rows. BLAS turns
the weights round first, which pays for many rows, and waits again at the beginning of each page of memory. The kernel
below reads the weights as they lie and asks for the next rows while it multiplies these: with 26 M parameters and 8
rows, on two AVX-512 cores, it takes 0.5 to 0.7 of the time of `F.linear`.

It is C, because nothing in PyTorch can ask for memory ahead, and is compiled when it is first needed, in less than a
second. Without gcc there is no kernel: that is said once, and `fits` is false.

    B = rows of x    I = numbers in such a row    O = rows of the weight, and numbers in a row of the result
"""

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

ROWS = 16  # at most: with more, products no longer wait for memory
INSTRUCTIONS = {"AVX512": ["-mavx512f", "-mfma"], "AVX2": ["-mavx2", "-mfma"]}  # what torch may use -> for a compiler
LANES, PAIR = 16, 2  # by which I and O are divisible; the kernel says why

# Eight rows of x at once meet PAIR rows of the weight, and each meeting has sums of its own: what the registers hold.
# The next PAIR rows are asked into the nearest cache, the row FAR below into the second, which takes as long to come.
SOURCE = r"""
#include <omp.h>
#define UNROLLED _Pragma("GCC unroll 8")
#ifdef __AVX512F__
enum { LANES = 16, PAIR = 2, FAR = 16 };
#else
enum { LANES = 8, PAIR = 1, FAR = 16 };
#endif
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static float total(lanes sums) {
  float parts[LANES];
  *(lanes *)parts = sums;
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return parts[0];
}

static inline __attribute__((always_inline)) void
block(int B, const float *x, const float *w, const float *bias, float *out, long I, long O, int ahead) {
  lanes sums[PAIR][8];
  UNROLLED for (int o = 0; o < PAIR; o++) UNROLLED for (int b = 0; b < B; b++) sums[o][b] = (lanes){0};
  for (long i = 0; i < I; i += LANES)
    UNROLLED for (int o = 0; o < PAIR; o++) {
      lanes weights = *(const lanes *)(w + o * I + i);
      if (ahead) __builtin_prefetch(w + (o + PAIR) * I + i), __builtin_prefetch(w + (o + FAR) * I + i, 0, 2);
      UNROLLED for (int b = 0; b < B; b++) sums[o][b] += weights * *(const lanes *)(x + b * I + i);
    }
  UNROLLED for (int o = 0; o < PAIR; o++) UNROLLED for (int b = 0; b < B; b++)
    out[b * O + o] = total(sums[o][b]) + (bias ? bias[o] : 0);
}

void multiply(const float *x, const float *w, const float *bias, float *out, long B, long I, long O) {
  #pragma omp parallel
  {
    long share = (O / PAIR + omp_get_num_threads() - 1) / omp_get_num_threads() * PAIR;
    long first = omp_get_thread_num() * share, end = first + share < O ? first + share : O;
    for (long o = first; o < end; o += PAIR) {
      const float *bias_o = bias ? bias + o : 0;
      long b = 0;
      #define TAKE(N) block(N, x + b * I, w + o * I, bias_o, out + b * O + o, I, O, b == 0), b += N
      while (b + 8 <= B) TAKE(8);
      if (b + 4 <= B) TAKE(4);
      if (b + 2 <= B) TAKE(2);
      if (b < B) TAKE(1);
    }
  }
}
"""


def fits(rows: int, weight) -> bool:
    """Whether there is a kernel for so many rows and this weight (O, I)."""
    out_width, width = weight.shape
    whole = width % LANES == 0 and out_width % PAIR == 0 and weight.is_contiguous()
    return rows <= ROWS and whole and weight.dtype == torch.float32 and kernel() is not None


@functools.cache
def kernel() -> Callable | None:
    """The compiled `multiply`; None without a compiler that knows this processor and torch's OpenMP: not clang."""
    instructions = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    if instructions is None:
        return None
    try:
        multiply = compiled(shlex.split(os.environ.get("CC", "")) or ["cc"], instructions)
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as problem:
        logger.warning(
            "miniqwen generates more slowly than it could, the same tokens: its kernel for a few rows needs gcc (`cc`, "
            f"or what CC names), and {_reason(problem)}"
        )
        return None
    multiply.argtypes, multiply.restype = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 3, None
    return multiply


def _reason(problem: Exception) -> str:
    """The first line in which a compiler wrote of an error, else its last; or why there is none."""
    lines = (getattr(problem, "stderr", None) or b"").decode(errors="replace").strip().splitlines() or [str(problem)]
    return next((line for line in lines if "error" in line), lines[-1])


def compiled(compiler: list[str], instructions: list[str]) -> Callable:
    """`multiply` of SOURCE. Not linked with OpenMP: its threads are torch's, which are in the process already."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        source, unlinked, library = (str(Path(directory, name)) for name in ("skinny.c", "skinny.o", "skinny.so"))
        Path(source).write_text(SOURCE, encoding="utf-8")
        compiling = [*compiler, "-O3", *instructions, "-fopenmp", "-fPIC", "-x", "c", "-c", source, "-o", unlinked]
        for command in (compiling, [*compiler, "-shared", unlinked, "-o", library]):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        return ctypes.CDLL(library).multiply


def skinny_product(weight, bias=None) -> Callable:
    """x (B, I) -> x W^T + bias (B, O), all in float32 on a CPU, with the weight (O, I) kept as it lies."""
    multiply, (out_width, width) = kernel(), weight.shape
    # Tensors of our own on the same memory: whatever a parameter is given for `data`, what is read here stays.
    weight, bias = weight.detach(), None if bias is None else bias.detach().contiguous()
    weight_at, bias_at = weight.data_ptr(), None if bias is None else bias.data_ptr()

    def product(x):
        if x.dtype != torch.float32 or x.shape[1:] != (width,):  # C would read whatever lies there
            raise RuntimeError(f"Rows of {width} float32 numbers are multiplied here, not {x.dtype} {tuple(x.shape)}.")
        x, out = x.contiguous(), x.new_empty(len(x), out_width)
        multiply(x.data_ptr(), weight_at, bias_at, out.data_ptr(), len(x), width, out_width)
        return out

    product.reads = weight, bias  # which live as long
    return product
