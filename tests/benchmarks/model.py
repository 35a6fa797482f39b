"""Training tokens a second of miniqwen against `Qwen2ForCausalLM` at the same shape and with the same weights."""

import time
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from tests.benchmarks.interleaved import rounds, told

SHAPE = {
    "vocab_size": 6400,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}


def step(model: torch.nn.Module, batch: int, length: int) -> Callable[[], float]:
    """A function that takes one step of AdamW (forward, backward, update) and returns its seconds."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones_like(ids)

    def run() -> float:
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def pair(attention: str = "sdpa") -> tuple[torch.nn.Module, torch.nn.Module]:
    """(miniqwen, Qwen2) with equal weights in training mode: bfloat16 on a GPU, float32 on a CPU."""
    on_gpu = torch.cuda.is_available()
    ours = MiniQwenForCausalLM(MiniQwenConfig(**SHAPE, attn_implementation=attention))
    theirs = Qwen2ForCausalLM(Qwen2Config(**SHAPE, attn_implementation=attention))
    theirs.load_state_dict(ours.state_dict())
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    ids = torch.arange(64)[None]
    losses = [model(input_ids=ids, labels=ids).loss.item() for model in (ours, theirs)]
    assert abs(losses[0] - losses[1]) < 1e-4, f"not the same model: losses {losses}"
    return tuple(model.to(device, dtype).train() for model in (ours, theirs))


def main(n: int = 9) -> None:
    ours, theirs = pair()
    batch, length, turns = (64, 512, 20) if torch.cuda.is_available() else (16, 128, 5)
    measured = rounds(step(ours, batch, length), step(theirs, batch, length), n, turns)
    ours_speed, theirs_speed = (batch * length / each.median for each in (measured.ours, measured.theirs))
    print(
        f"tokens a second, B {batch}, T {length}, {turns} steps a round, {torch.get_num_threads()} threads: "
        f"miniqwen {ours_speed:.0f}, Qwen2 {theirs_speed:.0f}"
    )
    told("miniqwen / Qwen2, training tokens a second", measured.speed, ">= 1.0", measured.speed.median >= 1.0)
