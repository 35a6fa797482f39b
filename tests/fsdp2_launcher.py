"""Runs a stage under real FSDP2 on CPU processes: `accelerate launch ... -m tests.fsdp2_launcher sft --config FILE`.

On a machine without GPUs accelerate 1.15 takes `use_cpu: true` for plain data parallelism and drops the FSDP plugin
without a word. Two methods of its `PartialState` decide that; here they say "several devices, over gloo, on the CPU".
Everything after that (sharding, DTensor parameters, gathering the weights for a save) is the libraries' own code.
"""

import importlib
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from suite import args


def make_fsdp2_real() -> None:
    """To be called once in every process, before a TRL config is made, for that one asks for the device."""
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, cpu, sagemaker, backend=None: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def main(argv: list[str]) -> None:
    make_fsdp2_real()
    importlib.import_module(f"suite.train.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(args.answer_for(main, sys.argv[1:]))
