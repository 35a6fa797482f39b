"""Runs stages one after another in the same processes and writes down what each ran on.

`accelerate launch ... -m tests.engine_probe OUT CONFIG... [--cut STEP] [-- WORDS...]`, or plain `python -m` in one
process. A config is named as the house names them, `<stage>[-variant].yaml`; the stage's own `main` runs it into
OUT/<name>, with WORDS behind it. Rank R writes OUT/<name>.R.json when the engine has wrapped the model and no step was
taken yet. Completions that lie beside a config, `<stage>.rollouts.json`, are replayed by every rank instead of being
sampled. With `--cut` each run is then cut off behind its checkpoint of that step, and goes on in OUT/<name>-resumed.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback

from suite import ending
from tests import resume


def make_fsdp2_real() -> None:
    """To be called once in every process, before a TRL config is made, for that one asks for the device.

    On a machine without GPUs accelerate 1.15 takes `use_cpu: true` for plain data parallelism and drops the FSDP plugin
    without a word. Two methods of its `PartialState` decide that; here they say "several devices, over gloo, on the
    CPU". Everything after that (sharding, DTensor parameters, gathering for a save) is the libraries' own code.
    """
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, cpu, sagemaker, backend=None: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def look(model) -> dict:
    """What an engine has made of a model's parameters."""
    parameters = list(model.parameters())
    return {
        "wrapper": type(model).__name__,
        "parameters": len(parameters),
        "ds_shapes": sum(hasattr(p, "ds_shape") for p in parameters),
        "dtensors": sum(type(p).__name__ == "DTensor" for p in parameters),
        "elements": sum(p.numel() for p in parameters),
        "local_elements": sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in parameters),
        "sharded_modules": [  # FSDP2 gives what it shards a class of its own
            type(module).__name__
            for module in model.modules()
            if any(base.__name__ == "FSDPModule" for base in type(module).__mro__)
        ],
    }


class Probe(TrainerCallback):
    """Looks once, when the engine has wrapped the model and no step was taken yet."""

    def __init__(self, trainer, path: Path):
        self.trainer, self.path = trainer, path

    def on_train_begin(self, args, state, control, **kwargs):
        trainer = self.trainer
        reference = getattr(trainer, "ref_model", None)  # SFT's trainer has no such thing
        facts = {
            **look(trainer.model_wrapped),
            "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
            "is_fsdp_enabled": trainer.is_fsdp_enabled,
            "is_deepspeed_enabled": trainer.is_deepspeed_enabled,
            "zero_stage": trainer.model_wrapped.zero_optimization_stage() if trainer.is_deepspeed_enabled else None,
            "reference": look(reference) if reference is not None else None,
        }
        self.path.write_text(json.dumps(facts), encoding="utf-8")


def tell(out: Path):
    """A `Trainer.train` that looks at its engine first, and writes beside `out` what it saw."""
    train = Trainer.train

    def train_and_tell(trainer, *args, **kwargs):
        trainer.add_callback(Probe(trainer, out.with_name(f"{out.name}.{trainer.args.process_index}.json")))
        return train(trainer, *args, **kwargs)

    return train_and_tell


def replay(path: Path):
    """A `GRPOTrainer._generate_single_turn` that reads [optimizer step][completion] of all ranks together."""
    steps = json.loads(path.read_text(encoding="utf-8"))

    def generate(trainer, prompt_ids, *unused, **unused_too):
        first = trainer.accelerator.process_index * len(prompt_ids)
        mine = steps[trainer.state.global_step][first : first + len(prompt_ids)]
        assert len(mine) == len(prompt_ids), f"{path} has {len(mine)} completions for {len(prompt_ids)} prompts"
        return mine, None

    return generate


def run(config: Path, out: Path, words: list[str]) -> None:
    """One stage, by its own `main`, from a config into `out`."""
    stage = config.stem.partition("-")[0]
    rollouts = config.with_name(f"{stage}.rollouts.json")
    if rollouts.is_file():
        from trl import GRPOTrainer

        GRPOTrainer._generate_single_turn = replay(rollouts)
    plain, Trainer.train = Trainer.train, tell(out)
    importlib.import_module(f"suite.train.{stage}").main(["--config", str(config), *words, "--output_dir", str(out)])
    Trainer.train = plain


def parse(argv: list[str]) -> tuple[Path, list[Path], int | None, list[str]]:
    """(OUT, the configs, STEP or None, WORDS)."""
    at = argv.index("--") if "--" in argv else len(argv)
    ours, words = argv[:at], argv[at + 1 :]
    step = None
    if "--cut" in ours:
        *ours, _, step = ours
    out, *configs = map(Path, ours)
    return out, configs, step and int(step), words


def main(argv: list[str]) -> None:
    out, configs, step, words = parse(argv)
    out.mkdir(exist_ok=True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        make_fsdp2_real()
    # A stage ends with the process group; here the next one still needs it.
    PartialState.destroy_process_group = lambda self, group=None: None
    for config in configs:
        run(config, out / config.stem, words)
        if step is not None:
            resumed = out / f"{config.stem}-resumed"
            if int(os.environ.get("RANK", 0)) == 0:
                resume.cut_off(out / config.stem, step, resumed)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            run(config, resumed, [*words, "--resume_from_checkpoint", "true"])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(ending.answer_for(main, sys.argv[1:]))
