"""How a miniqwen generates: the prompts once through the modules, then a step of one token for every row.

`generate` is transformers' own, with all its options. What it calls at its end is replaced here: the loop that takes a
step, lets the logits processors change the scores, chooses a token and asks the stopping criteria. A step computes what
the modules compute, with less around it: keys and values are written in place, rows that have ended leave the batch,
and on a CPU q, k and v are one product, gate and up another, on weights laid out for it at the beginning of the call.
What does not fit this road (beams, a cache of the caller's, more outputs than tokens, weights in shards, hooks in the
modules, latent attention) takes transformers'.

There is no torch.compile in it: it cannot look into these products, and a compiled step without them took more than
twice the time of this one on two CPU cores (26 M parameters, batch 8), after 51 s of compiling. On a GPU this was not
measured; there `cache_implementation="static"` asks for transformers' own compiled road.

The letters in the shape comments:

    R = rows of the call   B = rows still in the batch    T = tokens of the prompts     S = tokens in the cache
    C = hidden_size        F = intermediate_size          V = vocab_size                D = head_dim
    H = query heads        K = key/value heads            G = H / K, query heads that share a key head
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from .skinny import fits, skinny_product

BLOCK = 256  # tokens by which the cache grows: one that is whole from the start would be as long as the longest answer
PACKED_BYTES = 1 << 30  # of weights at most, since packed ones are a second copy
PACKED_STEPS = 16  # at least: packing takes about as long as five
PACKED_ROWS = 4  # at least: with fewer, products are as fast unpacked
TURNS = 16  # steps whose RoPE is computed at once: for one it would take as many operations
SLEEPING = {
    "output_capturing_hook",
    "make_inputs_require_grads",
}  # transformers' recorders, and what only training needs
INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


class HandedOver(DynamicCache):
    """The keys and values of what all rows of a call begin with. Who has made it looks at it no more."""


class MiniQwenGenerationMixin(GenerationMixin):
    """`generate`, with a decoding loop of its own where that fits."""

    def _sample(
        self,
        input_ids,  # (R, T), padded on the left
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus: bool = False,
        streamer=None,
        **model_kwargs,
    ):
        """Greedy or sampled tokens, as `GenerationMixin._sample` gives them. (R, T) -> (R, T + new)"""
        plain = not synced_gpus and takes_plain_steps(generation_config, input_ids, model_kwargs)
        if not plain or not can_step(self, input_ids.device):
            return super()._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        pad = generation_config._pad_token_tensor
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)  # as transformers asks
        choose = draw if generation_config.do_sample else likeliest
        decoder, logits = prefill(self, input_ids, model_kwargs, generation_config.max_length)
        going = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)  # (R,)
        while True:
            # A copy where a processor may write into it: rows that have ended keep their logits.
            scores = logits.to(torch.float32, copy=len(logits_processor) > 0)
            tokens = choose(logits_processor(input_ids, scores))  # (R,)
            if ends:
                tokens = torch.where(going, tokens, pad)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            going = going & ~stopping_criteria(input_ids, None)
            if streamer is not None:
                streamer.put(tokens.cpu())
            left = int(going.sum())
            if left == 0:
                break
            if ends and 2 * left <= decoder.rows:
                decoder.keep(going)
            logits = decoder.step(tokens, logits)
        if streamer is not None:
            streamer.end()
        return input_ids


def takes_plain_steps(generation_config, input_ids, model_kwargs: dict) -> bool:
    """Whether a call asks for no more than tokens, from token ids, with a cache that nobody else holds."""
    cache = model_kwargs.get("past_key_values")
    fresh = type(cache) is DynamicCache and cache.get_seq_length() == 0
    return (
        # transformers marks a cache that the caller brought
        (type(cache) is HandedOver or (fresh and not hasattr(cache, "_is_user_defined")))
        and generation_config.cache_implementation in (None, "dynamic")
        and generation_config.compile_config is None
        and generation_config.prefill_chunk_size is None
        and not generation_config.return_dict_in_generate
        and not generation_config.is_assistant
        and {key for key, value in model_kwargs.items() if value is not None} <= INPUTS
        and all(model_kwargs.get(key) is not None for key in ("attention_mask", "position_ids"))
        and model_kwargs["attention_mask"].shape == model_kwargs["position_ids"].shape == input_ids.shape
    )


def can_step(model, device: torch.device) -> bool:
    """Whether a step may pass by the modules' `forward`: none has a hook, another `forward` or shards for weights.

    A module that a step does call may have no hook either. PEFT's `adapter_names` has one of as many names as the call
    has rows, of which some leave; and nobody's hook expects the tensors of inference mode.
    """
    config, layers = model.config, model.model.layers
    passed_by = [model.model, *layers, *(part for layer in layers for part in (layer.self_attn, layer.mlp))]
    drops = model.training and (config.attention_dropout or any(type(m) is nn.Dropout and m.p for m in model.modules()))
    return (
        config._attn_implementation == "sdpa"
        and not config.kv_lora_rank
        and not drops
        and not (model.training and model.is_gradient_checkpointing)
        and not torch.is_autocast_enabled(device.type)
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)  # what wraps a layer has its reasons
        and (untouched(model) or waits_for_trl(model))
        and all(untouched(module) for module in passed_by)
        and all(quiet(module) for module in model.modules())
        and "prepare_inputs_for_generation" not in vars(model)  # PEFT's, where it puts learned prompts in front
        and all(weight.device == device and not hasattr(weight, "ds_id") for weight in model.parameters())
    )


def untouched(module: nn.Module) -> bool:
    """Whether the `forward` of a module is its class's.

    TRL's loss of a distillation puts back the `forward` it has borrowed as an attribute of the module, and which road a
    rollout takes must not depend on whether there was a loss before: a run that goes on would draw other tokens.
    """
    forward = vars(module).get("forward")
    return forward is None or getattr(forward, "__func__", None) is type(module).forward


def quiet(module: nn.Module) -> bool:
    """Whether no hook of a module does anything here."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return all(getattr(hook, "__name__", "") in SLEEPING for hook in hooks)


def waits_for_trl(model: nn.Module) -> bool:
    """Whether all that is put around `forward` is TRL's: GRPO asks it for log-probabilities, and `generate` nothing.

    accelerate's autocast around that is not: it changes what is computed.
    """
    wrapper = getattr(vars(model).get("forward"), "__func__", None)
    return isinstance(wrapper, FunctionType) and wrapper.__globals__["__name__"] == "trl.trainer.utils"


def likeliest(scores):
    """The first of the likeliest tokens of a row. (R, V) -> (R,). On a CPU `argmax` takes half as long again."""
    return scores.max(dim=-1).indices


def draw(scores):
    """One token a row, each with its probability. (R, V) -> (R,)

    torch.multinomial lets an exponential of every token race. On a CPU those R x V random numbers come one after the
    other and take longer than a layer of the model; R do, where they fall between the running sums of the
    probabilities (https://en.wikipedia.org/wiki/Inverse_transform_sampling). In float64, or rare tokens would be lost.
    """
    probabilities = scores.softmax(dim=-1)
    if scores.device.type != "cpu":
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
    if not sums[:, -1].isfinite().all():
        raise RuntimeError("The scores of the next token hold inf or nan, or leave no token to choose.")
    # In (0, sum]: the first running sum that reaches it is never that of a token without probability.
    reached = sums[:, -1:] * (1 - torch.rand(len(sums), 1, dtype=torch.float64))
    return torch.searchsorted(sums, reached).squeeze(1)


def prefill(model, input_ids, model_kwargs: dict, max_length: int) -> tuple["Decoder", torch.Tensor]:
    """The prompts through the modules: a decoder that holds their keys and values, and the logits of the next token.

    Rows with one prompt, of which GRPO makes whole groups, go through once.
    """
    inputs = torch.stack([input_ids, model_kwargs["attention_mask"] != 0, model_kwargs["position_ids"]])  # (3, R, T)
    unique, prompt_of = torch.unique(inputs, dim=1, return_inverse=True)  # (3, P, T), (R,)
    if unique.shape[1] == inputs.shape[1]:
        unique, prompt_of = inputs, torch.arange(inputs.shape[1], device=input_ids.device)
    ids, mask, positions = unique
    cache = model_kwargs["past_key_values"]
    known = cache.get_seq_length()
    if known:  # rows with one prompt have one beginning
        first = torch.empty(len(ids), dtype=torch.long, device=ids.device)  # (P,)
        first[prompt_of] = torch.arange(len(prompt_of), device=ids.device)
        cache.batch_select_indices(first)
    outputs = model(
        input_ids=ids[:, known:],
        attention_mask=mask,
        position_ids=positions[:, known:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
    )
    decoder = Decoder(model, cache, mask, positions, prompt_of, steps=max_length - input_ids.shape[1] - 1)
    return decoder, outputs.logits[:, -1][prompt_of]


class Decoder:
    """The rows of one call to `generate`, and a step of one token for all of them.

    The packed weights live as long as this object: a call that follows a step of training packs the new ones.

    RoPE turns a pair of numbers as one complex number, so the two are neighbours here, in queries and in keys, where
    the modules have them half a head apart: what attention compares is the same.
    """

    @torch.inference_mode()  # nothing here is ever differentiated, and half of a small operation is to be ready for it
    def __init__(self, model, cache: DynamicCache, mask, positions, prompt_of, steps: int):
        self.model, self.config, self.steps = model, model.config, steps
        self.positions = positions[prompt_of, -1:]  # (B, 1) of the last token
        self.mask = None  # (B, 1, 1, S), added to the scores of attention, where there is padding
        if not mask.all():
            added = torch.zeros_like(mask, dtype=model.dtype).masked_fill(mask == 0, -torch.inf)
            self.mask = added[prompt_of][:, None, None]
        self.length = cache.get_seq_length()
        self.cache = []  # per layer (B, 2K, S, D): the keys of all heads, then the values
        for layer in cache.layers:
            self.cache.append(self.grown(torch.cat([neighbors(layer.keys), layer.values], dim=1)[prompt_of]))
            layer.keys = layer.values = layer.keys.new_empty(0)  # a layer at a time: never the whole cache twice
        self.kept = None  # (B,) rows of the call that are still in the batch; None while all are
        self.turns = []  # of the steps to come, the next one last
        self.turned_in = torch.promote_types(model.dtype, torch.float32)  # there are no complex numbers of bfloat16
        self.pack()

    @property
    def rows(self) -> int:
        return len(self.positions)

    def grown(self, keys_values):  # (B, 2K, S, D) -> (B, 2K, S + BLOCK, D)
        return F.pad(keys_values, (0, 0, 0, BLOCK))

    def pack(self) -> None:
        """The layers and the head, as they are fastest for this number of rows."""
        model, self.layers, self.head = self.model, [], None  # the old ones go before the new ones come
        pays = packs(model, self.rows, self.steps)
        for number, layer in enumerate(model.model.layers):
            packed = pays and not self.config.is_mixture(number) and packable(layer)
            self.layers.append(PackedLayer(layer, self.rows) if packed else Layer(layer))
        norm, head = model.model.norm, model.lm_head
        packed = pays and is_plain(head) and is_plain(norm)
        self.head = packed_product(self.rows, [head], norm) if packed else lambda x: head(norm(x))

    @torch.inference_mode()
    def keep(self, going) -> None:
        """Let the rows that have ended leave the batch. going (R,)"""
        among = going if self.kept is None else going[self.kept]  # (B,)
        self.kept = going.nonzero().squeeze(1)
        for number, keys_values in enumerate(self.cache):
            self.cache[number] = keys_values[among]
        self.positions = self.positions[among]
        self.turns = [turn[among] for turn in self.turns]
        self.mask = None if self.mask is None else self.mask[among]
        self.pack()

    @torch.inference_mode()
    def step(self, tokens, logits):
        """The logits after `tokens`; rows that left the batch keep those they had. (R,), (R, V) -> (R, V)"""
        self.steps -= 1
        if self.kept is None:
            return self.forward(tokens)
        return logits.index_copy(0, self.kept, self.forward(tokens[self.kept]))

    def forward(self, tokens):
        """tokens (B,) -> logits (B, V)"""
        if self.length == self.cache[0].shape[2]:
            for number, keys_values in enumerate(self.cache):  # a layer at a time, here as well
                self.cache[number] = self.grown(keys_values)
        self.length += 1
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, 1))
        x = self.model.model.embed_tokens(tokens)  # (B, C)
        turn = self.turn(x)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            heads = layer.heads(x).view(self.rows, -1, self.config.head_dim)  # (B, H + 2K, D)
            x = layer.add_attention(x, self.attended(heads, turn, cache, layer.scaling))
            x = layer.add_feed_forward(x)
        return self.head(x)

    def turn(self, x):
        """RoPE's cos + i sin at the position of this step. (B, 1, D / 2)"""
        if not self.turns:
            positions = self.positions + torch.arange(1, TURNS + 1, device=self.positions.device)  # (B, TURNS)
            self.positions = positions[:, -1:]
            cos, sin = (each.to(self.turned_in) for each in self.model.model.rotary_emb(x, positions))
            half = self.config.head_dim // 2
            turns = torch.complex(cos[..., :half], sin[..., half:])  # (B, TURNS, 1, D / 2)
            self.turns = list(turns.transpose(0, 1).contiguous())[::-1]
        return self.turns.pop()

    def attended(self, heads, turn, cache, scaling: float):
        """Attention of one token a row to its cache, which takes in the token first. (B, H + 2K, D) -> (B, H * D)

        The G query heads that share a key head stand where the tokens of a longer input would: the cache is read as it
        lies, once for all of them. https://arxiv.org/abs/2305.13245
        """
        H, K = self.config.num_attention_heads, self.config.num_key_value_heads
        heads = heads.to(self.turned_in)
        torch.view_as_complex(heads[:, : H + K].unflatten(-1, (-1, 2))).mul_(turn)
        heads = heads.to(cache.dtype)
        cache.select(2, self.length - 1).copy_(heads[:, H:])
        keys, values = cache.narrow(2, 0, self.length).chunk(2, dim=1)  # (B, K, S, D)
        query = heads[:, :H].view(self.rows, K, H // K, -1)
        mask = None if self.mask is None else self.mask.expand(-1, -1, H // K, -1)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)  # (B, K, G, D)
        return out.reshape(self.rows, -1)


def neighbors(x):
    """Pairs that stand half a row apart, side by side: (x_0, x_{D/2}, x_1, x_{D/2 + 1}, ...). (..., D) -> (..., D)"""
    return x.unflatten(-1, (2, -1)).mT.flatten(-2)


class Layer:
    """What a decoder layer does around attention, through its modules, whatever they are: adapters, experts."""

    def __init__(self, layer: nn.Module):
        self.layer, self.scaling, self.head_dim = layer, layer.self_attn.scaling, layer.self_attn.head_dim

    def heads(self, x):  # (B, C) -> (B, (H + 2K) * D): queries, keys, values
        attention, x = self.layer.self_attn, self.layer.input_layernorm(x)
        heads = (each.unflatten(-1, (-1, self.head_dim)) for each in (attention.q_proj(x), attention.k_proj(x)))
        return torch.cat([*(neighbors(each).flatten(-2) for each in heads), attention.v_proj(x)], dim=-1)

    def add_attention(self, x, attended):  # (B, C), (B, H * D) -> (B, C)
        return x + self.layer.self_attn.o_proj(attended)

    def add_feed_forward(self, x):  # (B, C) -> (B, C), by a mixture of experts, too, which asks for a length
        return x + self.layer.mlp(self.layer.post_attention_layernorm(x)[:, None])[:, 0]


class PackedLayer(Layer):
    """The same of a dense layer, by four packed products, the norms' weights in two of them."""

    def __init__(self, layer: nn.Module, rows: int):
        super().__init__(layer)
        attention, mlp = layer.self_attn, layer.mlp
        product = partial(packed_product, rows)
        q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
        turning, still = torch.arange(q.out_features + k.out_features + v.out_features).split(
            [q.out_features + k.out_features, v.out_features]
        )
        order = torch.cat([neighbors(turning.view(-1, self.head_dim)).flatten(), still])
        self.heads = product([q, k, v], norm=layer.input_layernorm, order=order)
        self.out = product([attention.o_proj])
        self.gate_up = product([mlp.gate_proj, mlp.up_proj], norm=layer.post_attention_layernorm)
        self.down, self.act = product([mlp.down_proj]), mlp.act_fn

    def add_attention(self, x, attended):
        return x.add_(self.out(attended))

    def add_feed_forward(self, x):
        """SwiGLU: down(silu(gate(x)) * up(x)). https://arxiv.org/abs/2002.05202"""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, F)
        return x.add_(self.down(self.act(gate).mul_(up)))


def packs(model, rows: int, steps: int) -> bool:
    """Whether packing pays. Both packed products are in float32; on a GPU there is no such thing."""
    if model.device.type != "cpu" or model.dtype != torch.float32 or not torch.backends.mkl.is_available():
        return False
    size = sum(weight.numel() * weight.itemsize for weight in model.parameters())
    return rows >= PACKED_ROWS and steps >= PACKED_STEPS and size <= PACKED_BYTES


def packable(layer: nn.Module) -> bool:
    attention, mlp = layer.self_attn, layer.mlp
    products = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    products += (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return all(map(is_plain, (*products, layer.input_layernorm, layer.post_attention_layernorm)))


def is_plain(module: nn.Module) -> bool:
    """Whether a linear module or a norm is its weights and no more: no adapter, no quantization, no hook, no shard."""
    known = type(module) is nn.Linear or isinstance(module, nn.RMSNorm)
    whole = all(type(each) is nn.Parameter and each.dtype == torch.float32 for each in module.parameters())
    return known and whole and untouched(module)


def stacked(parts: list):
    """One below the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def packed_product(rows: int, linears: list[nn.Linear], norm: nn.Module | None = None, order=None) -> Callable:
    """x -> what `linears` make of it side by side, after `norm` where there is one: a function of (rows, in).

    A few rows are multiplied by `skinny_product`; where that does not fit, and for more rows, by MKL.

    `order` (out,) says which number of the result stands where.

    The weight of a norm is a factor of each column: (x w) W^T = x (W diag(w))^T. Of x it is left to divide by its root
    mean square, sqrt((|x|^2 + in * eps) / in), and a factor of sqrt(in) goes to the weights as well.
    https://arxiv.org/abs/1910.07467
    """
    weight, bias = stacked([each.weight for each in linears]), None  # (out, in)
    if linears[0].bias is not None:
        bias = stacked([each.bias for each in linears])
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    width = weight.shape[1]
    if norm is not None:
        weight = weight * (norm.weight * width**0.5)
    product = skinny_product(weight, bias) if fits(rows, weight) else mkl_product(rows, weight, bias)
    if norm is None:
        return product
    floor = torch.tensor(norm.eps * width).sqrt()
    return lambda x: product(x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(floor))


def mkl_product(rows: int, weight, bias) -> Callable:
    """x -> x W^T + bias by MKL, which keeps a copy of the weight in an order of its own."""
    multiply, packed = torch.ops.mkl._mkl_linear.default, torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    shape = weight.new_empty(()).expand_as(weight)  # of the unpacked weight only its shape is asked for
    return lambda x: multiply(x, packed, shape, bias, rows)
