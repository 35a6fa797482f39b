"""The shape of a miniqwen. Every field has Qwen2's name, so that Qwen2 code, vLLM and PEFT read it unchanged."""

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters


class MiniQwenConfig(PreTrainedConfig):
    """The defaults are a 26 M-parameter model: 8 layers of width 512 over a vocabulary of 6,400.

    Raises `ValueError` for a shape that cannot be built, naming the two numbers that disagree.
    """

    model_type = "miniqwen"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 6400
    hidden_size: int = 512
    intermediate_size: int = 1408
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 2
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: RopeParameters | dict | None = None
    attention_dropout: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    default_theta = 1_000_000.0  # Qwen2.5's; used where `rope_parameters` names none

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}."
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_attention_heads {self.num_attention_heads} is an odd head "
                "dimension; RoPE turns pairs, so it must be even."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by num_key_value_heads "
                f"{self.num_key_value_heads}; each key/value head serves a whole group of query heads."
            )
        # Where transformers notes on saving which class lies in which file beside the weights. TRL reads it of a model
        # it does not know by name. No annotated field: that would be written as null, which AutoConfig cannot read.
        self.auto_map = {}
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads
