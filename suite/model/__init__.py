"""miniqwen. Importing this package teaches the Auto classes its name, `model_type: miniqwen`.

Its files travel with every checkpoint: where `suite` is not installed, `trust_remote_code=True` loads it by them.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from suite.model.configuration import MiniQwenConfig
from suite.model.modeling import MiniQwenForCausalLM, MiniQwenModel

AutoConfig.register("miniqwen", MiniQwenConfig)
AutoModelForCausalLM.register(MiniQwenConfig, MiniQwenForCausalLM)
MiniQwenConfig.register_for_auto_class()
MiniQwenForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["MiniQwenConfig", "MiniQwenForCausalLM", "MiniQwenModel"]
