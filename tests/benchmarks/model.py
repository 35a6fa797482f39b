"""Training a miniqwen of 26 M parameters against `Qwen2ForCausalLM` with the same weights, as it is, with its layers
compiled one by one and compiled as a whole, against the machine's own products, and a mixture of experts in which a
token meets as many parameters as in the dense model.

Two limits: the rate of one large square product, and a bare loop over the products of a step and no more, which are
narrower and reach less: 0.88 of that rate on two AVX-512 cores. There a profile of a compiled step (64 rows of 128) had
80 % of its time in these products, 11 % in fused element-wise kernels, 8 % in attention, and little in AdamW.

Compiled as a whole, each kernel that turns queries or keys computes RoPE's cosines anew; compiled one by one, all
layers get them as inputs, and there is one layer to compile and not eight.
"""

import sys
import time
from collections.abc import Callable

import torch
from accelerate.utils import compile_regions
from transformers import Qwen2Config, Qwen2ForCausalLM

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from tests.benchmarks.interleaved import Rounds, Series, process, rounds, told

FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "rope_parameters")  # fmt: skip
SHAPE = {name: getattr(MiniQwenConfig(), name) for name in FIELDS}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2}
SQUARE = 2048  # rows and columns of the product whose rate is the machine's
SHARE = 0.8
WARM = 3  # steps before the memory of all later ones is there


def step(model: torch.nn.Module, batch: int, length: int, *, bf16: bool = False) -> Callable[[], float]:
    """A function that takes one step of AdamW (forward, backward, update) and returns its seconds; `bf16` computes as
    the trainers do under that key."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)  # as the trainers' default is
    ids = torch.randint(SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones_like(ids)

    def run() -> float:
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss  # as TRL asks
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def product(device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """A function that multiplies two square matrices and returns its seconds."""
    one, other = (torch.randn(SQUARE, SQUARE, device=device, dtype=dtype) for _ in range(2))

    def run() -> float:
        start = time.perf_counter()
        one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def bare(model: torch.nn.Module, batch: int, length: int) -> Callable[[], float]:
    """A function that multiplies what a step of the dense model multiplies with its weights, and returns its seconds:
    forward, then backward the gradients of inputs and weights."""
    weights = [each.weight.detach() for each in model.modules() if isinstance(each, torch.nn.Linear)]
    widths = {width for weight in weights for width in weight.shape}
    activations = {width: weights[0].new_empty(batch * length, width).normal_() for width in widths}

    def run() -> float:
        start = time.perf_counter()
        for weight in weights:
            activations[weight.shape[1]] @ weight.T
        for weight in reversed(weights):
            gradient = activations[weight.shape[0]]
            gradient @ weight
            gradient.T @ activations[weight.shape[1]]
        if weights[0].device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def operations(config: MiniQwenConfig, batch: int, length: int) -> float:
    """Of a training step of the dense model: two a weight and token, as many for scores and values, thrice with the
    gradients. A causal model needs half of the scores; both halves are counted here, as most kernels compute them.
    """
    C, F, D = config.hidden_size, config.intermediate_size, config.head_dim
    weights = C * D * 2 * (config.num_attention_heads + config.num_key_value_heads) + 3 * C * F
    token = 2 * weights * config.num_hidden_layers + 2 * C * config.vocab_size
    token += 4 * length * C * config.num_hidden_layers
    return 3.0 * token * batch * length


def pair(attention: str = "sdpa") -> tuple[torch.nn.Module, torch.nn.Module]:
    """(miniqwen, Qwen2) with equal weights in training mode: bfloat16 on a GPU, float32 on a CPU."""
    ours = MiniQwenForCausalLM(MiniQwenConfig(**SHAPE, attn_implementation=attention))
    theirs = Qwen2ForCausalLM(Qwen2Config(**SHAPE, attn_implementation=attention))
    theirs.load_state_dict(ours.state_dict())
    ids = torch.arange(64)[None]
    losses = [model(input_ids=ids, labels=ids).loss.item() for model in (ours, theirs)]
    assert abs(losses[0] - losses[1]) < 1e-4, f"not the same model: losses {losses}"
    return placed(ours), placed(theirs)


def placed(model: torch.nn.Module) -> torch.nn.Module:
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    return model.to(device, dtype).train()


def peak(name: str, batch: int, length: int) -> float:
    """MiB that a process holds at most, which trains one of the two for three steps and nothing else."""
    return process("-m", "tests.benchmarks.model", name, str(batch), str(length)).peak


def main(n: int = 9) -> None:
    batch, length, turns = (64, 512, 20) if torch.cuda.is_available() else (16, 128, 1)
    models = dict(zip(("miniqwen", "Qwen2"), pair(), strict=True))
    steps = {name: step(model, batch, length) for name, model in models.items()}
    print(f"B {batch}, T {length}, {turns} steps a round, {torch.get_num_threads()} threads")
    against_qwen2("", models["miniqwen"], steps, batch, length, n, turns)
    products = bare(models["miniqwen"], batch, length)
    told("share of a step's bare products", rounds(steps["miniqwen"], products, n, turns).speed)
    mixture = step(placed(MiniQwenForCausalLM(MiniQwenConfig(**SHAPE, **MIXTURE))), batch, length)
    told("mixture / dense at equal active parameters", rounds(mixture, steps["miniqwen"], n, turns).speed)
    compiled = {name: step(torch.compile(model), batch, length) for name, model in models.items()}
    against_qwen2(", compiled", models["miniqwen"], compiled, batch, length, n, turns)
    regions = {name: step(compile_regions(model), batch, length) for name, model in models.items()}
    against_qwen2(", layers compiled", models["miniqwen"], regions, batch, length, n, turns)
    told("share of a step's bare products, layers compiled", rounds(regions["miniqwen"], products, n, turns).speed)
    if not torch.cuda.is_available():
        held = Rounds.of(*([peak(name, batch, length) for _ in range(3)] for name in ("miniqwen", "Qwen2")))
        told("miniqwen / Qwen2, peak memory of training", held.times, "<= 1.0", round(held.times.median, 2) <= 1.0)


def against_qwen2(
    how: str,
    model: MiniQwenForCausalLM,
    steps: dict,
    batch: int,
    length: int,
    n: int,
    turns: int,
    summed: Callable[[float], float] = float,
) -> None:
    """Tokens a second of miniqwen and of Qwen2, and how much of the machine's rate the first one takes.

    Where several processes take a step together, `summed` makes of the rate of one that of all.
    """
    multiply = product(model.device, model.dtype)
    rates: list[float] = []

    def ours() -> float:
        took = steps["miniqwen"]()
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < took:  # as long as the step: a core that works on runs slower than at first
            multiply()
            done += 1
        rates.append(summed(2 * SQUARE**3 * done / (time.perf_counter() - start)))
        return took

    measured = rounds(ours, steps["Qwen2"], n, turns, WARM)
    rate = Series([sum(rates[i : i + turns]) / turns for i in range(WARM, len(rates), turns)])
    work = operations(model.config, batch, length)
    share = Series([work / took / can for took, can in zip(measured.ours.values, rate.values, strict=True)])
    speeds = [batch * length / each.median for each in (measured.ours, measured.theirs)]
    print("tokens a second{}: miniqwen {:.0f}, Qwen2 {:.0f}".format(how, *speeds))
    speed, name = measured.speed, f"miniqwen / Qwen2, training tokens a second{how}"
    told(name, speed, ">= 1.0", speed.median >= 1.0)
    told(f"share of the matrix product's rate{how}", share, f">= {SHARE}", share.median >= SHARE)
    told("that rate, GFLOP a second", Series([value / 1e9 for value in rate.values]))


if __name__ == "__main__":  # one of the two alone, for its memory
    classes = {"miniqwen": (MiniQwenForCausalLM, MiniQwenConfig), "Qwen2": (Qwen2ForCausalLM, Qwen2Config)}
    model_class, config_class = classes[sys.argv[1]]
    alone = step(model_class(config_class(**SHAPE)).train(), *map(int, sys.argv[2:]))
    for _ in range(3):
        alone()
