"""Training on a CPU under `bf16: true` against float32: as the model is, and with its layers compiled.

It pays where the CPU multiplies bfloat16 by itself (AMX, AVX-512 BF16). Elsewhere PyTorch emulates it, so slowly that
two rows must do.
"""

import torch
from accelerate.utils import compile_regions

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from tests.benchmarks.interleaved import rounds, told
from tests.benchmarks.model import SHAPE, step

BATCH, LENGTH = 64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2, 128


def main(n: int) -> None:
    model = MiniQwenForCausalLM(MiniQwenConfig(**SHAPE)).train()
    print(f"B {BATCH}, T {LENGTH}")
    for how, trained in (("", model), (", layers compiled", compile_regions(model))):
        half, full = (step(trained, BATCH, LENGTH, bf16=bf16) for bf16 in (True, False))
        told(f"bf16 / float32, training tokens a second{how}", rounds(half, full, n).speed)
