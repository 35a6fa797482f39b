"""Generated tokens a second of miniqwen against `Qwen2ForCausalLM`, and against what their matrix products allow.

The model is the 26 M one in float32, with equal weights in both. The limit is a bare loop over the products of one such
call and no more: the prompts' once, then those of one token a row for each step, by `F.linear` with the weights as they
lie. miniqwen lays its weights out for a call and has a kernel for few rows, which lifts that limit: the second limit is
the same loop over its products.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from suite.model.generation import packed_product
from suite.model.skinny import kernel
from tests.benchmarks.interleaved import Rounds, Series, told

PROMPT, NEW = 16, 128  # tokens
RATIO = {8: 1.1, 32: 1.0}  # batch -> miniqwen / Qwen2
SHARE = 0.75
HOW = {"greedy": {"do_sample": False}, "sampled": {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}}


def pair() -> tuple[MiniQwenForCausalLM, Qwen2ForCausalLM]:
    """(miniqwen, Qwen2) with equal weights. No token ends an answer, so that all are equally long."""
    config = MiniQwenConfig()
    ours = MiniQwenForCausalLM(config).eval()
    shape = {key: value for key, value in config.to_dict().items() if key in Qwen2Config().to_dict()}
    theirs = Qwen2ForCausalLM(Qwen2Config(**{**shape, "model_type": "qwen2", "architectures": None})).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def timed(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def generated(model: torch.nn.Module, batch: int, **how) -> Callable:
    """A function that answers a left-padded batch of prompts."""
    ids = torch.randint(model.config.vocab_size, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(PROMPT) >= torch.arange(batch)[:, None] % 4).long()
    return lambda: model.generate(ids, attention_mask=mask, max_new_tokens=NEW, pad_token_id=0, **how)


def linears(model: MiniQwenForCausalLM) -> list[torch.nn.Linear]:
    """Those of the layers; the head is multiplied with the last token of a prompt only."""
    return [module for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]


def bare(model: MiniQwenForCausalLM, batch: int) -> Callable:
    """A function that multiplies what one call of `generate` multiplies, with the weights as they lie."""
    body, head = linears(model), model.lm_head
    prompts = {each.in_features: torch.randn(batch * PROMPT, each.in_features) for each in body}
    tokens = {width: x[:batch].clone() for width, x in prompts.items()}

    @torch.inference_mode()
    def run() -> None:
        for x in [prompts, *[tokens] * (NEW - 1)]:
            for each in body:
                F.linear(x[each.in_features], each.weight, each.bias)
            F.linear(tokens[head.in_features], head.weight)

    return run


def bare_packed(model: MiniQwenForCausalLM, batch: int) -> Callable:
    """The same with miniqwen's own products for the steps, and the packing."""
    body, head = linears(model), model.lm_head
    prompts = {each.in_features: torch.randn(batch * PROMPT, each.in_features) for each in body}
    tokens = {width: x[:batch].clone() for width, x in prompts.items()}

    @torch.inference_mode()
    def run() -> None:
        for each in body:
            F.linear(prompts[each.in_features], each.weight, each.bias)
        F.linear(tokens[head.in_features], head.weight)
        packed = [(packed_product(batch, group), tokens[group[0].in_features]) for group in groups(model)]
        for _ in range(NEW - 1):
            for product, x in packed:
                product(x)

    return run


def groups(model: MiniQwenForCausalLM) -> list[list[torch.nn.Linear]]:
    """The modules that a packed product stands for."""
    found = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        found += [[attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj]]
        found += [[mlp.gate_proj, mlp.up_proj], [mlp.down_proj]]
    return [*found, [model.lm_head]]


def main(n: int = 9) -> None:
    ours, theirs = pair()
    print(f"{NEW} tokens after {PROMPT}, {torch.get_num_threads()} threads; seconds a call, as miniqwen / Qwen2")
    print("few rows are multiplied by", "the kernel" if kernel() else "MKL: no C compiler")
    for batch, ratio in RATIO.items():
        greedy = [generated(model, batch, **HOW["greedy"]) for model in (ours, theirs)]
        same = torch.eq(*(run() for run in greedy)).all(dim=1)  # of random weights, two tokens may be equally likely
        assert same.float().mean() >= 0.9, f"not the same model: greedy tokens equal in {same.sum()} of {batch} rows"
        runs = {
            f"{who} {how}": generated(m, batch, **HOW[how])
            for how in HOW
            for who, m in zip("ab", (ours, theirs), strict=True)
        }
        runs |= {"bare": bare(ours, batch), "packed": bare_packed(ours, batch)}
        seconds = {name: [] for name in runs}
        for turn in range(n + 1):
            for name in sorted(runs, reverse=turn % 2 == 1):  # what a neighbour begins hits all alike
                seconds[name].append(timed(runs[name]))
        seconds = {name: values[1:] for name, values in seconds.items()}  # the first turn warms up
        for how in HOW:
            report(f"B {batch}, {how}", seconds[f"a {how}"], seconds[f"b {how}"], seconds, batch, ratio)


def report(what: str, ours: list[float], theirs: list[float], limits: dict, batch: int, ratio: float) -> None:
    speeds = [Series([batch * NEW / second for second in values]) for values in (ours, theirs, limits["bare"])]
    print(f"{what}: tokens a second {speeds[0]} / {speeds[1]}; the bare products alone {speeds[2]}")
    speed = Rounds.of(ours, theirs).speed
    share, packed = (Rounds.of(ours, limits[name]).speed for name in ("bare", "packed"))
    told(f"generate, {what}, miniqwen / Qwen2", speed, f">= {ratio}", speed.median >= ratio)
    told(f"generate, {what}, share of the bare products", share, f">= {SHARE}", share.median >= SHARE)
    told(f"generate, {what}, share of the packed products", packed)
