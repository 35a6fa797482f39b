"""How a miniqwen attends: RoPE, softmax attention in plain torch, and grouped-query attention.

B = batch              T = tokens in this call        S = tokens attended to (cache + this call)
H = query heads        K = key/value heads            D = head_dim
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import MiniQwenConfig


class MiniQwenRotaryEmbedding(nn.Module):
    """The angles by which RoPE turns queries and keys. https://arxiv.org/abs/2104.09864

    Pair i of a head turns by position * theta^(-2i/D). Other `rope_type`s (linear, yarn, llama3) take their
    frequencies from transformers; those that change with the length of the input are refused.
    """

    def __init__(self, config: MiniQwenConfig):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        there = {"default", *ROPE_INIT_FUNCTIONS} - {"dynamic", "longrope"}  # which change with the length of the input
        if self.rope_type not in there:
            raise ValueError(f"rope_type: miniqwen has no '{self.rope_type}'. There are: {', '.join(sorted(there))}.")
        frequencies = (
            self.compute_default_rope_parameters
            if self.rope_type == "default"
            else (ROPE_INIT_FUNCTIONS[self.rope_type])
        )
        try:
            inv_freq, self.attention_scaling = frequencies(config)
        except KeyError as missing:  # which transformers only warns of
            raise ValueError(f"rope_parameters: rope_type '{self.rope_type}' needs {missing}.") from missing
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

    With its halves exchanged, every element lies on its partner; the minus of x_i cos - x_{i + D/2} sin is in `sin`
    already. Whole rows go through each operation, where halves would cost twice the time; and the halves have a
    dimension of their own, or a compiled loop would look for every partner by itself.
    """
    x, cos, sin = (each.unflatten(-1, (2, -1)) for each in (x, cos, sin))
    return (x * cos + x.roll(1, dims=-2) * sin).flatten(-2)


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
