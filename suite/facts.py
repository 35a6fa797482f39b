"""What only the running process knows of a run, for its run.json: seeds, machine, engine, size of the model."""

import os
import re
from pathlib import Path


def of(trainer) -> dict:
    """Facts of a run, as they are read from the trainer that has made it."""
    import platform

    arguments = trainer.args
    return {
        "seeds": {"seed": arguments.seed, "data_seed": arguments.data_seed},
        "hardware": _hardware(arguments.device),
        "engine": _engine(trainer.accelerator),
        "python": platform.python_version(),
        "parameters": _parameters(trainer.model),
    }


def _engine(accelerator) -> str:
    """By the name of its file in accelerate_configs/."""
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    return {"FSDP": "fsdp2", "NO": "one process"}.get(kind, "ddp")


def _parameters(model) -> dict[str, int]:
    from peft import PeftModel

    if isinstance(model, PeftModel):  # which knows how many stand in a byte
        trained, everything = model.get_nb_trainable_parameters()
        return {"all": everything, "trained": trained}
    sizes = [(getattr(p, "ds_numel", None) or p.numel(), p.requires_grad) for p in model.parameters()]  # ZeRO-3 shares
    return {"all": sum(n for n, _ in sizes), "trained": sum(n for n, trained in sizes if trained)}


def _hardware(device) -> str:
    import platform

    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB each"
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = "no GPU used" if device.type == "cpu" else device.type
    return f"{cores} cores of {model.group(1) if model else platform.machine()}, {used}"
