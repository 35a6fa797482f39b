"""The `vllm.general_plugins` entry point: vLLM serves a miniqwen with its own classes, in every worker process."""

import contextlib
import ctypes
import os
import signal

OWNER = "SUITE_VLLM_OWNER"  # an environment variable: the process that has started an engine and asks it


def register() -> None:
    from vllm import ModelRegistry

    import suite.model  # noqa: F401  (vLLM reads the config through AutoConfig)

    ModelRegistry.register_model("MiniQwenForCausalLM", "suite.model.vllm_forms:MiniQwenForCausalLM")
    end_with_owner()


def end_with_owner() -> None:
    """In the engine's process: have Linux end it with the one that asks it.

    That one closes it in every other case; where it is killed, vLLM 0.31 would generate on, to nobody, and hold the
    memory of the GPU that the next attempt needs.
    """
    if os.environ.get(OWNER) == str(os.getppid()):
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def check_served(name: str, config: dict) -> None:
    """Raise `ValueError` where a model with this config.json is a miniqwen of a form that vLLM is not taught."""
    if config.get("model_type") == "miniqwen" and "kv_lora_rank" in config:
        raise ValueError(
            f"{name} has latent attention, which the plugin does not teach vLLM. Generate with transformers "
            "(`use_vllm: false`), or serve what `suite export --as deepseek_v2` writes of it (where it has no experts)."
        )
