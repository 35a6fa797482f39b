"""The `vllm.general_plugins` entry point: vLLM serves a miniqwen with its own classes, in every worker process."""

from suite.child import end_with_owner


def register() -> None:
    from vllm import ModelRegistry

    import suite.model  # noqa: F401  (vLLM reads the config through AutoConfig)

    ModelRegistry.register_model("MiniQwenForCausalLM", "suite.model.vllm_forms:MiniQwenForCausalLM")
    end_with_owner()


def check_served(name: str, config: dict) -> None:
    """Raise `ValueError` where a model with this config.json is a miniqwen of a form that vLLM is not taught."""
    if config.get("model_type") == "miniqwen" and "kv_lora_rank" in config:
        raise ValueError(
            f"{name} has latent attention, which the plugin does not teach vLLM. Generate with transformers "
            "(`use_vllm: false`), or serve what `suite export --as deepseek_v2` writes of it (where it has no experts)."
        )
