"""What vLLM makes of a miniqwen, where its plugin has named this file: vLLM's own Qwen2 or, of a mixture, Qwen2MoE."""

from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen2_moe import Qwen2MoeForCausalLM

from suite.model.vllm_plugin import check_served


class Mixture(Qwen2MoeForCausalLM):
    """vLLM's Qwen2MoE has the gate of a shared expert even where there is none, and a miniqwen's checkpoint has not."""

    def load_weights(self, weights) -> set[str]:
        loaded = super().load_weights(weights)
        if self.config.shared_expert_intermediate_size:
            return loaded
        return loaded | {name for name, _ in self.named_parameters() if name.endswith("shared_expert_gate.weight")}


class MiniQwenForCausalLM(Qwen2ForCausalLM):
    """The name in config.json is one for all forms: asked for a model, it gives one of the form that is meant."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        check_served("This miniqwen", config.to_dict())
        return (Mixture if config.num_experts else Qwen2ForCausalLM)(vllm_config=vllm_config, prefix=prefix)
