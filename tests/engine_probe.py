"""Runs a stage and writes down what it ran on: `accelerate launch ... -m tests.engine_probe FACTS MODULE WORDS...`.

MODULE.main(WORDS) is called as it is; only the Trainer it builds is given one more callback, which looks at the wrapped
model when training begins. Rank R writes FACTS.R, a JSON file.
"""

import importlib
import json
import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback

from suite import args


def look(trainer) -> dict:
    """What makes an engine that engine, read off the live objects."""
    parameters = list(trainer.model_wrapped.parameters())
    return {
        "wrapper": type(trainer.model_wrapped).__name__,
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "is_fsdp_enabled": trainer.is_fsdp_enabled,
        "is_deepspeed_enabled": trainer.is_deepspeed_enabled,
        "zero_stage": trainer.model_wrapped.zero_optimization_stage() if trainer.is_deepspeed_enabled else None,
        "parameters": len(parameters),
        "ds_shapes": sum(hasattr(p, "ds_shape") for p in parameters),
        "dtensors": sum(type(p).__name__ == "DTensor" for p in parameters),
        "elements": sum(p.numel() for p in parameters),
        "local_elements": sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in parameters),
        "sharded_modules": [  # FSDP2 gives what it shards a class of its own
            type(module).__name__
            for module in trainer.model_wrapped.modules()
            if any(base.__name__ == "FSDPModule" for base in type(module).__mro__)
        ],
    }


class Probe(TrainerCallback):
    """Looks once, when the engine has wrapped the model and no step was taken yet."""

    def __init__(self, trainer, path: Path):
        self.trainer, self.path = trainer, path

    def on_train_begin(self, args, state, control, **kwargs):
        self.path.write_text(json.dumps(look(self.trainer)), encoding="utf-8")


def main(argv: list[str]) -> None:
    facts, module, *words = argv
    train = Trainer.train

    def train_and_tell(trainer, *args, **kwargs):
        trainer.add_callback(Probe(trainer, Path(f"{facts}.{trainer.args.process_index}")))
        return train(trainer, *args, **kwargs)

    Trainer.train = train_and_tell
    importlib.import_module(module).main(words)


if __name__ == "__main__":
    sys.exit(args.answer_for(main, sys.argv[1:]))
