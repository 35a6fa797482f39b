"""miniqwen: a dense decoder in Qwen2.5's shape, on the Hugging Face stack's own attention, cache and generation.

The letters in the shape comments:

    B = batch              T = tokens in this call        S = tokens attended to (cache + this call)
    C = hidden_size        F = intermediate_size          V = vocab_size
    H = query heads        K = key/value heads            D = head_dim = C / H

Parameter names are Qwen2's, so a checkpoint of either class loads into the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration import MiniQwenConfig  # relative: both files travel with a checkpoint, where there is no `suite`


class MiniQwenRMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight; torch computes it in float32 inside. https://arxiv.org/abs/1910.07467"""


class MiniQwenRotaryEmbedding(nn.Module):
    """The angles by which RoPE turns queries and keys. https://arxiv.org/abs/2104.09864

    Pair i of a head turns by position * theta^(-2i/D). Other `rope_type`s (linear, yarn, llama3) take their
    frequencies from transformers; those that change with the length of the input are refused.
    """

    def __init__(self, config: MiniQwenConfig):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        if self.rope_type in ("dynamic", "longrope"):
            raise ValueError(
                f"rope_type '{self.rope_type}' changes with the length of the input, which miniqwen does not do. "
                f"There are: {', '.join(sorted({'default', *ROPE_INIT_FUNCTIONS} - {'dynamic', 'longrope'}))}."
            )
        frequencies = (
            self.compute_default_rope_parameters
            if self.rope_type == "default"
            else (ROPE_INIT_FUNCTIONS[self.rope_type])
        )
        inv_freq, self.attention_scaling = frequencies(config)
        # Not in the checkpoint: transformers fills both again after it built a model on the meta device.
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: MiniQwenConfig):
        theta = config.rope_parameters["rope_theta"]
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return theta**-exponents, 1.0

    @torch.no_grad()
    def forward(self, x, position_ids):  # position_ids (B, T) -> cos, signed sin, each (B, T, 1, D), as `rotate` asks
        # float32 throughout: in bfloat16 the positions past 256 could not be told apart.
        with torch.autocast(x.device.type, enabled=False):
            angles = position_ids[:, :, None, None].float() * self.inv_freq.float()
            cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return torch.cat((cos, cos), dim=-1).to(x.dtype), torch.cat((-sin, sin), dim=-1).to(x.dtype)


def rotate(x, cos, sin):
    """Turn each pair (x_i, x_{i + D/2}) by its angle. (B, T, heads, D) -> (B, T, heads, D)

    Rolled by D/2, every element lies on its partner; the minus of x_i cos - x_{i + D/2} sin is in `sin` already. Whole
    rows go through each operation, where halves would cost twice the time.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def eager_attention(module, query, key, value, attention_mask, scaling: float, dropout: float = 0.0, **kwargs):
    """softmax(q k^T / sqrt(D) + mask) v, in plain torch. https://arxiv.org/abs/1706.03762"""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, K, S, D) -> (B, H, S, D)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, T, S)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (B, T, H, D)


class MiniQwenAttention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245) with Qwen2's biases on q, k and v."""

    def __init__(self, config: MiniQwenConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=True)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x, rope, attention_mask, past_key_values: Cache | None, **kwargs):
        B, T, _ = x.shape
        query = rotate(self.q_proj(x).view(B, T, -1, self.head_dim), *rope).transpose(1, 2)  # (B, H, T, D)
        key = rotate(self.k_proj(x).view(B, T, -1, self.head_dim), *rope).transpose(1, 2)  # (B, K, T, D)
        value = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, K, S, D)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        out, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )  # (B, T, H, D)
        return self.o_proj(out.reshape(B, T, -1)), weights


class MiniQwenMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). https://arxiv.org/abs/2002.05202"""

    def __init__(self, config: MiniQwenConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x):  # (B, T, C) -> (B, T, F) -> (B, T, C)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class MiniQwenDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the feed-forward network, each on a normed copy and added back to the residual stream."""

    def __init__(self, config: MiniQwenConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MiniQwenAttention(config, layer_idx)
        self.mlp = MiniQwenMLP(config)
        self.input_layernorm = MiniQwenRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MiniQwenRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x, rope, attention_mask=None, past_key_values: Cache | None = None, **kwargs):  # (B, T, C)
        x = x + self.self_attn(self.input_layernorm(x), rope, attention_mask, past_key_values, **kwargs)[0]
        return x + self.mlp(self.post_attention_layernorm(x))


class MiniQwenPreTrainedModel(PreTrainedModel):
    """What transformers needs to know to load, shard, checkpoint and generate with a miniqwen."""

    config_class = MiniQwenConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MiniQwenDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": MiniQwenDecoderLayer, "attentions": MiniQwenAttention}


class MiniQwenModel(MiniQwenPreTrainedModel):
    """Tokens to hidden states."""

    def __init__(self, config: MiniQwenConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(MiniQwenDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = MiniQwenRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MiniQwenRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values: Cache | None = None,
        inputs_embeds=None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """input_ids (B, T) or inputs_embeds (B, T, C) -> last_hidden_state (B, T, C).

        attention_mask (B, S) has 0 at padding, on either side; position_ids (B, T) that start again at 0 mark
        packed documents, which then do not see each other. Raises `ValueError` unless exactly one input is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds, and not both.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, C)
        if use_cache is None:  # a training step never comes back to its keys and values
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]  # (1, T)

        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rope = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(
                x, rope, attention_mask=mask, past_key_values=past_key_values, position_ids=position_ids, **kwargs
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(x), past_key_values=past_key_values if use_cache else None
        )


class MiniQwenForCausalLM(MiniQwenPreTrainedModel, GenerationMixin):
    """Tokens to the logits of the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MiniQwenConfig):
        super().__init__(config)
        self.model = MiniQwenModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values: Cache | None = None,
        inputs_embeds=None,
        labels=None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """labels (B, T) holds -100 where nothing is learned; the loss shifts them itself.

        Only the last `logits_to_keep` positions are projected (0 means all): the (B, T, V) logits, not the weights,
        are what runs out of memory first.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
