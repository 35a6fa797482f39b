"""The `vllm.general_plugins` entry point: vLLM serves a miniqwen with its own Qwen2, in every worker process."""


def register() -> None:
    from vllm import ModelRegistry

    import suite.model  # noqa: F401  (vLLM reads the config through AutoConfig)

    ModelRegistry.register_model("MiniQwenForCausalLM", "vllm.model_executor.models.qwen2:Qwen2ForCausalLM")
