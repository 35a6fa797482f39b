"""Longer than a model was made for: RoPE scaling by `model_init_kwargs`, from the YAML to the saved config.json."""

import json
import math
from pathlib import Path

import pytest

from suite import args
from tests.conftest import ON_CPU, ROOT, write_yaml

pytestmark = pytest.mark.slow

WINDOW, FACTOR, THETA = 32, 8, 100.0
SCALED = {
    "linear": {"rope_type": "linear", "factor": float(FACTOR), "rope_theta": THETA},
    "dynamic": {"rope_type": "dynamic", "factor": float(FACTOR), "rope_theta": THETA},
    "yarn": {
        "rope_type": "yarn",
        "factor": float(FACTOR),
        "original_max_position_embeddings": WINDOW,
        "rope_theta": THETA,
    },
    "a slower base": {"rope_type": "default", "rope_theta": 50 * THETA},
}


@pytest.fixture(scope="module")
def looks_back(tmp_path_factory) -> Path:
    """A Qwen2 that has learned, in a window of 32 tokens, to say the first token of the text when it is asked."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=48, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=WINDOW, initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = loss_of(model, WINDOW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    target = tmp_path_factory.mktemp("looks-back")
    model.save_pretrained(target)
    return target


def loss_of(model, length: int):
    """The loss on 64 texts: a token to remember, then noise, and in the second half questions (token 0)."""
    import torch

    texts = torch.randint(16, 48, (64, length))  # (B, T)
    texts[:, 0] = torch.randint(1, 16, (64,))
    texts[:, length // 2 :: 4] = 0
    asked = texts == 0
    wanted = texts[:, :1].expand_as(texts)[asked]
    return torch.nn.functional.cross_entropy(model(input_ids=texts).logits[asked], wanted)


@pytest.mark.parametrize("how", SCALED)
def test_a_scaled_model_reads_eight_windows_and_an_unscaled_one_does_not(how, looks_back, tmp_path):
    import torch
    from transformers import Qwen2ForCausalLM

    plain = Qwen2ForCausalLM.from_pretrained(looks_back)
    scaled = Qwen2ForCausalLM.from_pretrained(looks_back, rope_parameters=SCALED[how])
    scaled.save_pretrained(tmp_path)
    reloaded = Qwen2ForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.manual_seed(1)
        assert loss_of(plain, WINDOW) < 0.1
        assert loss_of(plain, FACTOR * WINDOW) > 1
        assert loss_of(scaled, FACTOR * WINDOW) < 0.1
        assert loss_of(reloaded, FACTOR * WINDOW) < 0.1


def test_sft_trains_beyond_the_window_and_saves_how(qwen2_dir, arithmetic_dir, tmp_path):
    import torch
    from transformers import Qwen2ForCausalLM

    from suite.train import sft

    window = json.loads((qwen2_dir / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    rope = {**SCALED["yarn"], "original_max_position_embeddings": window, "rope_theta": 10000.0}
    init = {"rope_parameters": rope, "max_position_embeddings": FACTOR * window}
    config = write_yaml(tmp_path / "long.yaml", model_init_kwargs=init, packing=True, max_length=2 * window)
    words = ["--model_name_or_path", qwen2_dir, "--dataset_name", arithmetic_dir, "--output_dir", tmp_path / "long"]
    words += [*ON_CPU, "--max_steps", 1, "--per_device_train_batch_size", 1, "--logging_steps", 1]
    sft.main(["--config", str(config), *map(str, words)])

    saved = json.loads((tmp_path / "long" / "config.json").read_text(encoding="utf-8"))
    assert saved["rope_parameters"] == rope
    assert saved["max_position_embeddings"] == FACTOR * window
    history = json.loads((tmp_path / "long" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert math.isfinite(history[0]["loss"])
    before, after = (Qwen2ForCausalLM.from_pretrained(path) for path in (qwen2_dir, tmp_path / "long"))
    slower = after.model.rotary_emb.inv_freq / before.model.rotary_emb.inv_freq  # (head_dim / 2,)
    assert slower[0] == 1  # the fastest pair counts neighbours, and is left as it is
    assert slower[-1] == pytest.approx(1 / FACTOR)
    assert torch.all(slower[1:] <= slower[:-1])


def test_the_shipped_long_config_turns_the_slower_base(qwen2_dir):
    import torch
    from transformers import Qwen2ForCausalLM

    init = args.read_yaml(ROOT / "configs/qwen2.5-1.5b/sft-long.yaml")["model_init_kwargs"]
    model = Qwen2ForCausalLM.from_pretrained(qwen2_dir, **init)
    pairs = torch.arange(0, 16, 2) / 16
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, 300000.0**-pairs)
    assert model.config.max_position_embeddings == 32768
