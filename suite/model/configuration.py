"""The shape of a miniqwen, and its form: dense or a mixture of experts, grouped-query or latent attention.

Every field has the name it has in Qwen2, Qwen2MoE or DeepSeek-V2, so that their code, vLLM and PEFT read it unchanged.
"""

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters

# The fields that go with a mixture of experts, and with latent attention, and mean nothing without.
_OF_A_MIXTURE = (
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "output_router_logits",
    "router_aux_loss_coef",
)
_OF_LATENT_ATTENTION = ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


class MiniQwenConfig(PreTrainedConfig):
    """The defaults are a dense 26 M-parameter model: 8 layers of width 512 over a vocabulary of 6,400.

    `num_experts` makes the feed-forward networks mixtures of experts. What is not said of them is filled in:
    two experts a token (`num_experts_per_tok`), each so wide (`moe_intermediate_size`) that a token meets as many
    parameters as in the dense model, weights that sum to 1 (`norm_topk_prob`), no shared expert
    (`shared_expert_intermediate_size: 0`), and a mixture in every layer (`decoder_sparse_step: 1`) but those that
    `mlp_only_layers` names (GGUF has no name for a dense layer among them).

    `kv_lora_rank` makes the attention latent: so many values a token are cached in each layer, and `qk_rope_head_dim`
    more. With d = hidden_size / num_attention_heads the rest is filled in as DeepSeek-V2 has it: d dimensions of
    a head that do not turn (`qk_nope_head_dim`), d / 2 that do, values of d (`v_head_dim`), and queries that are not
    compressed (`q_lora_rank`: null).

    Raises `ValueError` for a shape that cannot be built, naming the two numbers that disagree.
    """

    model_type = "miniqwen"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_local_experts": "num_experts"}  # where TRL counts the operations of a token

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

    num_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    shared_expert_intermediate_size: int | None = None
    norm_topk_prob: bool | None = None
    decoder_sparse_step: int | None = None
    mlp_only_layers: list[int] | None = None

    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None

    default_theta = 1_000_000.0  # Qwen2.5's; used where `rope_parameters` names none

    def __post_init__(self, **kwargs):
        for name in ("num_experts", "kv_lora_rank", "q_lora_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1; to do without it, leave it out.")
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1.")
        if not self.initializer_range > 0 or not self.rms_norm_eps > 0 or not 0 <= self.attention_dropout < 1:
            raise ValueError(
                f"initializer_range {self.initializer_range} and rms_norm_eps {self.rms_norm_eps} must be above 0, and "
                f"attention_dropout {self.attention_dropout} a share, from 0 to below 1."
            )
        self._check_tokens()
        if self.num_experts:
            self._fill_in_mixture(kwargs)
        else:
            self._refuse_without("num_experts", _OF_A_MIXTURE, kwargs)
        if self.kv_lora_rank:
            self._fill_in_latent_attention()
        else:
            self._refuse_without("kv_lora_rank", _OF_LATENT_ATTENTION, kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_key_value_heads < 1:
            raise ValueError(f"num_key_value_heads {self.num_key_value_heads} must be at least 1.")
        self._check_heads()
        kwargs.pop("model_type", None)  # read from a checkpoint of Qwen2 or Qwen2MoE it is a miniqwen all the same
        # Where transformers notes on saving which class lies in which file beside the weights. TRL reads it of a model
        # it does not know by name. No annotated field: that would be written as null, which AutoConfig cannot read.
        self.auto_map = {}
        super().__post_init__(**kwargs)
        self._check_layers()

    def _check_tokens(self) -> None:
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            given = getattr(self, name)
            for token in given if isinstance(given, list) else [] if given is None else [given]:
                if not 0 <= token < self.vocab_size:
                    raise ValueError(f"{name} {token} is none of the {self.vocab_size} tokens, which count from 0.")

    def _refuse_without(self, form: str, fields: tuple[str, ...], kwargs: dict) -> None:
        """Raise `ValueError` where a field is set that goes with a form this model does not have."""
        for name in fields:
            value = kwargs.get(name, self.__dict__.get(name))
            if value is not None:
                raise ValueError(f"{name} {value} goes with `{form}`, which is not set: set it too, or neither.")

    def _fill_in_mixture(self, kwargs: dict) -> None:
        filled = {
            "num_experts_per_tok": min(2, self.num_experts),
            "shared_expert_intermediate_size": 0,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        for name, value in filled.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} must lie between 1 and num_experts {self.num_experts}."
            )
        if self.moe_intermediate_size is None:
            left = self.intermediate_size - self.shared_expert_intermediate_size
            self.moe_intermediate_size = left // self.num_experts_per_tok
        if self.moe_intermediate_size < 1 or self.shared_expert_intermediate_size < 0 or self.decoder_sparse_step < 1:
            raise ValueError(
                f"moe_intermediate_size {self.moe_intermediate_size} and decoder_sparse_step "
                f"{self.decoder_sparse_step} must be at least 1, and shared_expert_intermediate_size "
                f"{self.shared_expert_intermediate_size} at least 0."
            )
        if not all(0 <= layer < self.num_hidden_layers for layer in self.mlp_only_layers):
            raise ValueError(
                f"mlp_only_layers {self.mlp_only_layers}: there are the layers 0 to {self.num_hidden_layers - 1}."
            )
        if not any(self.is_mixture(layer) for layer in range(self.num_hidden_layers)):
            raise ValueError(
                f"num_experts {self.num_experts}: decoder_sparse_step {self.decoder_sparse_step} and mlp_only_layers "
                f"{self.mlp_only_layers} leave no mixture in {self.num_hidden_layers} layers."
            )
        # No fields: TRL takes a configuration that has the first for a mixture's, and balances its experts by default.
        self.output_router_logits = kwargs.pop("output_router_logits", False)
        self.router_aux_loss_coef = kwargs.pop("router_aux_loss_coef", 0.001)

    def _fill_in_latent_attention(self) -> None:
        if self.num_key_value_heads not in (None, self.num_attention_heads, type(self).num_key_value_heads):
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} goes with grouped-query attention, and kv_lora_rank "
                f"{self.kv_lora_rank} with latent attention, where every head has keys of its own. Remove one of them."
            )
        self.num_key_value_heads = self.num_attention_heads
        d = self.hidden_size // self.num_attention_heads
        for name, value in {"qk_nope_head_dim": d, "qk_rope_head_dim": d // 2, "v_head_dim": d}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _check_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}."
            )
        if self.kv_lora_rank and self.head_dim % 2:
            raise ValueError(f"qk_rope_head_dim {self.qk_rope_head_dim} is odd; RoPE turns pairs, so it must be even.")
        if self.head_dim % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_attention_heads {self.num_attention_heads} is an odd head "
                "dimension; RoPE turns pairs, so it must be even."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by num_key_value_heads "
                f"{self.num_key_value_heads}; each key/value head serves a whole group of query heads."
            )

    def _check_layers(self) -> None:
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act: there is no '{self.hidden_act}'. There are: {', '.join(sorted(ACT2FN))}.")
        if not (theta := self.rope_parameters.get("rope_theta") or 0) > 0:
            raise ValueError(f"rope_theta {theta} must be above 0.")
        share, kind = self.rope_parameters.get("partial_rotary_factor", 1), self.rope_parameters.get("rope_type")
        if (
            share not in (None, 1) and kind != "proportional"
        ):  # which turns the rest by nothing, and leaves the head its size
            raise ValueError(
                f"partial_rotary_factor {share}: miniqwen turns every dimension of a head under rope_type '{kind}'. "
                "Remove it; `rope_type: proportional` reads it."
            )

    def check_form(self) -> None:
        """Raise `ValueError` for what was set on the configuration of a model made without, as `from_pretrained` lets
        one: a form, or what no layer could be built of."""
        self._check_layers()
        for form, filled_in in (("num_experts", "num_experts_per_tok"), ("kv_lora_rank", "v_head_dim")):
            if (getattr(self, form) is None) != (getattr(self, filled_in) is None):
                raise ValueError(
                    f"{form} {getattr(self, form)} is not what this model was made with, and its weights are of the "
                    "form it has. `suite export --upcycle` makes a mixture of a dense model."
                )

    def to_dict(self) -> dict:
        """Without the fields of a form that this model does not have: to others, `num_experts` says what it is.

        And without `output_router_logits`, which TRL sets while it trains: stock Qwen2MoE cannot generate with it.
        """
        absent = ["output_router_logits"] if self.num_experts else ["num_experts", *_OF_A_MIXTURE]
        absent += [] if self.kv_lora_rank else ["kv_lora_rank", *_OF_LATENT_ATTENTION]
        return {name: value for name, value in super().to_dict().items() if name not in absent}

    @property
    def head_dim(self) -> int:
        """The dimensions of a head that RoPE turns: all, but in latent attention, and there the code asks for these."""
        return self.qk_rope_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def qk_head_dim(self) -> int | None:
        """Of latent attention, a query's dimensions. Elsewhere transformers takes a number for latent attention's."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.kv_lora_rank else None

    def is_mixture(self, layer: int) -> bool:
        """Whether a layer's feed-forward network is a mixture, as Qwen2MoE counts its layers."""
        sparse = bool(self.num_experts) and (layer + 1) % self.decoder_sparse_step == 0
        return sparse and layer not in self.mlp_only_layers

    def in_words(self) -> str:
        """The form in a line, with what a token takes in the cache."""
        form = f"{self.num_experts} experts, {self.num_experts_per_tok} a token" if self.num_experts else "dense"
        cache = f"{self.cache_bytes():,} bytes of cache a token in bfloat16"
        if not self.kv_lora_rank:
            return f"{form}, {cache}"
        of = ", ".join(f"{self.cache_bytes_grouped(k):,} with {k}" for k in (2, self.num_attention_heads))
        return f"{form}, latent attention: {cache}, where key/value heads of their own take {of} of them"

    def cache_bytes(self, bytes_a_value: int = 2) -> int:
        """What a token leaves in the cache of all layers, in bytes; two a value in bfloat16."""
        if not self.kv_lora_rank:
            return self.cache_bytes_grouped(self.num_key_value_heads, bytes_a_value)
        return (self.kv_lora_rank + self.qk_rope_head_dim) * self.num_hidden_layers * bytes_a_value

    def cache_bytes_grouped(self, key_value_heads: int, bytes_a_value: int = 2) -> int:
        """What it would leave there with grouped-query attention of so many key/value heads."""
        d = self.hidden_size // self.num_attention_heads
        return 2 * key_value_heads * d * self.num_hidden_layers * bytes_a_value
