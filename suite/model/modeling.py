"""miniqwen: a decoder in Qwen2.5's shape, on the Hugging Face stack's own attention, cache and generation.

The letters in the shape comments:

    B = batch              T = tokens in this call        S = tokens attended to (cache + this call)
    C = hidden_size        F = intermediate_size          V = vocab_size
    H = query heads        K = key/value heads            D = head_dim = C / H

Parameter names are Qwen2's, so a checkpoint of either class loads into the other. The dense form is here and in
`attention`; a mixture of experts (`experts`) and latent attention (`latent`) take its parts' places where the
configuration asks for them, when a layer is built.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import MiniQwenAttention, MiniQwenRotaryEmbedding  # relative: these files travel with a checkpoint,
from .configuration import MiniQwenConfig  # and there is no `suite` where they arrive
from .experts import MiniQwenExperts, MiniQwenMixture, MiniQwenRouter, MiniQwenSharedMixture
from .generation import MiniQwenGenerationMixin
from .latent import MiniQwenCompressedQueryAttention, MiniQwenLatentAttention


class MiniQwenRMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight; torch computes it in float32 inside. https://arxiv.org/abs/1910.07467"""


class MiniQwenMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). https://arxiv.org/abs/2002.05202"""

    def __init__(self, config: MiniQwenConfig, width: int):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x):  # (B, T, C) -> (B, T, F) -> (B, T, C)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def attention_of(config: MiniQwenConfig, layer_idx: int) -> nn.Module:
    if not config.kv_lora_rank:
        return MiniQwenAttention(config, layer_idx)
    return (MiniQwenCompressedQueryAttention if config.q_lora_rank else MiniQwenLatentAttention)(config, layer_idx)


def feed_forward_of(config: MiniQwenConfig, layer_idx: int) -> nn.Module:
    if not config.is_mixture(layer_idx):
        return MiniQwenMLP(config, config.intermediate_size)
    if not config.shared_expert_intermediate_size:
        return MiniQwenMixture(config)
    return MiniQwenSharedMixture(config, MiniQwenMLP(config, config.shared_expert_intermediate_size))


class MiniQwenDecoderLayer(GradientCheckpointingLayer):
    """Attention, then the feed-forward network, each on a normed copy and added back to the residual stream."""

    def __init__(self, config: MiniQwenConfig, layer_idx: int):
        super().__init__()
        self.self_attn = attention_of(config, layer_idx)
        self.mlp = feed_forward_of(config, layer_idx)
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
    _can_record_outputs = {
        "hidden_states": MiniQwenDecoderLayer,
        "attentions": [MiniQwenAttention, MiniQwenLatentAttention],
        "router_logits": OutputRecorder(MiniQwenRouter, index=0),
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for `@use_experts_implementation` in this file, and it is in `experts`

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MiniQwenRouter):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, MiniQwenExperts):
            init.normal_(module.gate_up_proj, std=self.config.initializer_range)
            init.normal_(module.down_proj, std=self.config.initializer_range)


class MiniQwenModel(MiniQwenPreTrainedModel):
    """Tokens to hidden states."""

    def __init__(self, config: MiniQwenConfig):
        config.check_form()
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
    ) -> MoeModelOutputWithPast:
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
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(x), past_key_values=past_key_values if use_cache else None
        )


class MiniQwenForCausalLM(MiniQwenPreTrainedModel, MiniQwenGenerationMixin):
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
    ) -> MoeCausalLMOutputWithPast:
        """labels (B, T) holds -100 where nothing is learned; the loss shifts them itself.

        Only the last `logits_to_keep` positions are projected (0 means all): the (B, T, V) logits, not the weights,
        are what runs out of memory first.

        A mixture that is asked by `output_router_logits` adds to the loss how unevenly its tokens choose: E times the
        sum over experts of (share of tokens) * (mean probability), k where all are even, by `router_aux_loss_coef`.
        https://arxiv.org/abs/2101.03961
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
        aux_loss = None
        if outputs.router_logits:
            of_this_call = None if attention_mask is None else attention_mask[:, -outputs.last_hidden_state.shape[1] :]
            aux_loss = load_balancing_loss_func(
                outputs.router_logits, self.config.num_experts, self.config.num_experts_per_tok, of_this_call
            )
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )
