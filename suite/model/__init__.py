"""miniqwen. Importing this package teaches the Auto classes its name, `model_type: miniqwen`."""

from transformers import AutoConfig, AutoModelForCausalLM

from suite.model.configuration import MiniQwenConfig
from suite.model.modeling import MiniQwenForCausalLM, MiniQwenModel

AutoConfig.register("miniqwen", MiniQwenConfig)
AutoModelForCausalLM.register(MiniQwenConfig, MiniQwenForCausalLM)

__all__ = ["MiniQwenConfig", "MiniQwenForCausalLM", "MiniQwenModel"]
