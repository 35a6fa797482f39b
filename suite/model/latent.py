"""Multi-head latent attention, DeepSeek-V2's: keys and values are made of one short vector a token, which is cached.

    B = batch              T = tokens in this call        S = tokens attended to (cache + this call)
    C = hidden_size        H = heads                      R = kv_lora_rank, the length of the short vector
    N = qk_nope_head_dim   P = qk_rope_head_dim           V = v_head_dim

https://arxiv.org/abs/2405.04434, section 2.1. Names and layout are DeepSeek-V2's.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import eager_attention, rotate
from .configuration import MiniQwenConfig


def in_halves(x):
    """(..., P): DeepSeek turns neighbors (x_0, x_1), `rotate` turns (x_0, x_{P/2}). The pairs put as `rotate` asks."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def scaling_of(config: MiniQwenConfig) -> float:
    """1 / sqrt(N + P); with YaRN's `mscale_all_dim` times m^2, as DeepSeek-V2 has it. https://arxiv.org/abs/2309.00071"""
    rope = config.rope_parameters
    m = 1.0
    if rope["rope_type"] != "default" and rope.get("mscale_all_dim") and rope["factor"] > 1:
        m = 0.1 * rope["mscale_all_dim"] * math.log(rope["factor"]) + 1.0
    return config.qk_head_dim**-0.5 * m * m


class MiniQwenLatentAttention(nn.Module):
    """Per token the cache holds R values for what is said, and P for where: the one part of a key that RoPE turns.

    While many tokens come at once, every head's keys and values are made of them. For a single token it is cheaper the
    other way round: what would make the keys is multiplied into the query, and what would make the values into the
    output, so that the short vectors stay as they are (the paper's "absorbed" form).
    """

    def __init__(self, config: MiniQwenConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.heads, self.rank = config.num_attention_heads, config.kv_lora_rank
        self.nope_dim, self.rope_dim, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.num_key_value_groups = 1
        self.is_causal = True
        self.scaling = scaling_of(config)
        self.make_queries(config)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.rank + self.rope_dim, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(self.rank, eps=config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(self.rank, self.heads * (self.nope_dim + self.v_dim), bias=False)
        self.o_proj = nn.Linear(self.heads * self.v_dim, config.hidden_size, bias=False)

    def make_queries(self, config: MiniQwenConfig) -> None:
        self.q_proj = nn.Linear(config.hidden_size, self.heads * (self.nope_dim + self.rope_dim), bias=False)

    def queries(self, x):  # (B, T, C) -> (B, T, H * (N + P))
        return self.q_proj(x)

    def forward(self, x, rope, attention_mask, past_key_values: Cache | None, **kwargs):
        B, T, _ = x.shape
        still, turning = self.queries(x).view(B, T, self.heads, -1).split((self.nope_dim, self.rope_dim), dim=-1)
        turning = rotate(in_halves(turning), *rope)
        query = still.transpose(1, 2), turning.transpose(1, 2)  # (B, H, T, N) and (B, H, T, P)
        short, where = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope_dim), dim=-1)
        short = self.kv_a_layernorm(short)[:, None]  # (B, 1, T, R)
        where = rotate(in_halves(where)[:, :, None], *rope).transpose(1, 2)  # (B, 1, T, P)
        if past_key_values is not None:
            short, where = past_key_values.update(short, where, self.layer_idx)  # (B, 1, S, R) and (B, 1, S, P)
        attend = self.absorbed if T == 1 and self.can_absorb() else self.expanded
        kwargs["dropout"] = self.config.attention_dropout if self.training else 0.0
        out, weights = attend(query, short, where, attention_mask, **kwargs)  # (B, T, H, V)
        return self.o_proj(out.reshape(B, T, -1)), weights

    def attention(self) -> Callable:
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)

    def expanded(self, query, short, where, attention_mask, **kwargs):
        both = self.kv_b_proj(short[:, 0]).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, S, N + V)
        key, value = both.split((self.nope_dim, self.v_dim), dim=-1)
        key = torch.cat((key, where.expand(-1, self.heads, -1, -1)), dim=-1)  # (B, H, S, N + P)
        query = torch.cat(query, dim=-1)  # (B, H, T, N + P)
        return self.attention()(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)

    def can_absorb(self) -> bool:
        """Whether the matrix lies here as it is: no adapter beside it, not quantized, not in shares (ZeRO-3).

        And whether the attention takes any number of rows of any length; flash and flex attention do not.
        """
        whole = type(self.kv_b_proj) is nn.Linear and self.kv_b_proj.weight.dim() == 2
        return whole and self.config._attn_implementation in ("eager", "sdpa")

    def absorbed(self, query, short, where, attention_mask, **kwargs):
        """The heads share one key, so they become the rows of one head: all of them see every token."""
        to_key, to_value = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split(
            (self.nope_dim, self.v_dim), dim=1
        )
        rows = torch.cat((query[0] @ to_key, query[1]), dim=-1).transpose(1, 2)  # (B, 1, H, R + P)
        key = torch.cat((short, where), dim=-1)  # (B, 1, S, R + P)
        out, weights = self.attention()(
            self, rows, key, short, attention_mask, scaling=self.scaling, **{**kwargs, "is_causal": False}
        )  # (B, H, 1, R)
        out = out @ to_value.transpose(1, 2)  # (B, H, 1, R) (H, R, V) -> (B, H, 1, V)
        return out.transpose(1, 2), None if weights is None else weights.transpose(1, 2)


class MiniQwenCompressedQueryAttention(MiniQwenLatentAttention):
    """The same with queries that are made of a short vector, too, which saves memory in training."""

    def make_queries(self, config: MiniQwenConfig) -> None:
        self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
        self.q_a_layernorm = nn.RMSNorm(config.q_lora_rank, eps=config.rms_norm_eps)
        self.q_b_proj = nn.Linear(config.q_lora_rank, self.heads * (self.nope_dim + self.rope_dim), bias=False)

    def queries(self, x):  # (B, T, C) -> (B, T, H * (N + P))
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
