"""A mixture of experts in the place of the feed-forward network: each token goes to the few experts its router chooses.

    N = tokens of the whole batch, B * T      E = num_experts      k = num_experts_per_tok
    C = hidden_size                           F = moe_intermediate_size

Names and layout are Qwen2MoE's: in memory the weights of all experts are one tensor, on disk each expert has its own.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.integrations import use_experts_implementation

from .configuration import MiniQwenConfig

register_checkpoint_conversion_mapping(
    MiniQwenConfig.model_type, get_checkpoint_conversion_mapping("qwen2_moe"), overwrite=True
)


class MiniQwenRouter(nn.Module):
    """softmax(W x), of which the k largest are kept. https://arxiv.org/abs/1701.06538

    With `norm_topk_prob` these are scaled to sum to 1, so that the output is as large as one expert's.
    """

    def __init__(self, config: MiniQwenConfig):
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x):  # (N, C) -> logits (N, E), weights (N, k), chosen (N, k)
        logits = F.linear(x, self.weight)
        weights, chosen = logits.softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights.to(logits.dtype), chosen


@use_experts_implementation
class MiniQwenExperts(nn.Module):
    """E SwiGLU networks whose weights lie in two tensors. https://arxiv.org/abs/2002.05202

    By default transformers runs them as one grouped product (`experts_implementation: grouped_mm`): what `forward`
    does here, which is `eager`, without the loop. Both use all of the two tensors whoever is chosen, so no rank
    waits for another under ZeRO-3 or FSDP.
    """

    def __init__(self, config: MiniQwenConfig):
        super().__init__()
        self.num_experts = config.num_experts
        width = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * width, config.hidden_size))  # (E, 2F, C)
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, width))  # (E, C, F)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x, chosen, weights):  # (N, C), (N, k), (N, k) -> (N, C)
        out = torch.zeros_like(x)
        for expert in range(self.num_experts):
            token, place = torch.where(chosen == expert)  # (n,) each: the tokens that chose it, and where among their k
            gate, up = F.linear(x[token], self.gate_up_proj[expert]).chunk(2, dim=-1)  # (n, F) each
            said = F.linear(self.act_fn(gate) * up, self.down_proj[expert])  # (n, C)
            out.index_add_(0, token, (said * weights[token, place, None]).to(out.dtype))
        return out


class MiniQwenMixture(nn.Module):
    """The chosen experts' outputs, weighted and summed."""

    def __init__(self, config: MiniQwenConfig):
        super().__init__()
        self.gate = MiniQwenRouter(config)
        self.experts = MiniQwenExperts(config)

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        flat = x.reshape(-1, x.shape[-1])  # (N, C)
        _, weights, chosen = self.gate(flat)
        return self.experts(flat, chosen, weights).view_as(x)


class MiniQwenSharedMixture(MiniQwenMixture):
    """The same beside an expert that every token meets, weighted by a gate of its own. https://arxiv.org/abs/2401.06066"""

    def __init__(self, config: MiniQwenConfig, shared_expert: nn.Module):
        super().__init__(config)
        self.shared_expert = shared_expert
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x):  # (B, T, C) -> (B, T, C)
        return super().forward(x) + self.shared_expert_gate(x).sigmoid() * self.shared_expert(x)
