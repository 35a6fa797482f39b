"""What vLLM makes of a miniqwen, where its plugin has named this file: vLLM's own Qwen2 or, of a mixture, Qwen2MoE."""

from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen2_moe import Qwen2MoeForCausalLM

from suite.model.vllm_plugin import check_served


class MiniQwenForCausalLM(Qwen2ForCausalLM):
    """The name in config.json is one for all forms: asked for a model, it gives one of the form that is meant."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        check_served("This miniqwen", config.to_dict())
        return (Qwen2MoeForCausalLM if config.num_experts else Qwen2ForCausalLM)(vllm_config=vllm_config, prefix=prefix)
