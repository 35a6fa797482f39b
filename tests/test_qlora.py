"""SFT by keys that only the libraries act on: four-bit weights under an adapter, and NEFTune's noise."""

import json
from pathlib import Path

import pytest

from suite import args
from tests.conftest import ON_CPU, ROOT, write_yaml

pytestmark = pytest.mark.slow

MODEL_KEYS = ("load_in_4bit", "use_bnb_nested_quant", "dtype", "use_peft", "lora_r", "lora_alpha", "lora_dropout",
              "lora_target_modules")  # fmt: skip


def losses(directory: Path, model: Path, rows: Path, steps: int, **keys) -> list[float]:
    """The loss of each step of a short run of `suite sft` into `directory`."""
    from suite.train import sft

    config = write_yaml(directory.with_suffix(".yaml"), **keys)
    words = ["--model_name_or_path", model, "--dataset_name", rows, "--output_dir", directory, *ON_CPU]
    words += ["--max_steps", steps, "--learning_rate", 3e-3, "--logging_steps", 1, "--save_strategy", "no"]
    sft.main(["--config", str(config), *map(str, words)])
    history = json.loads((directory / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_qlora_as_shipped_learns_on_four_bits_and_leaves_an_adapter(qwen2_dir, arithmetic_dir, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    shipped = args.read_yaml(ROOT / "configs/qwen2.5-0.5b/sft-qlora.yaml")
    keys = {key: shipped[key] for key in MODEL_KEYS}
    four = losses(tmp_path / "four", qwen2_dir, arithmetic_dir, 8, **keys)
    whole = losses(tmp_path / "whole", qwen2_dir, arithmetic_dir, 1, **keys | {"load_in_4bit": False})
    assert four[-1] < 0.95 * four[0]
    # An adapter starts at nothing, so what differs in the first step is the base model: by its rounding, no more.
    assert 1e-3 < abs(four[0] - whole[0]) < 0.1 * whole[0]

    base = AutoModelForCausalLM.from_pretrained(qwen2_dir)
    adapted = PeftModel.from_pretrained(base, tmp_path / "four")
    trained = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    assert len(trained) == 2 * 7  # every linear layer of the two
    assert all(p.any() for p in trained)


def test_neftune_adds_noise_to_what_is_trained(qwen2_dir, arithmetic_dir, tmp_path):
    plain = losses(tmp_path / "plain", qwen2_dir, arithmetic_dir, 1)
    noisy = losses(tmp_path / "noisy", qwen2_dir, arithmetic_dir, 1, neftune_noise_alpha=5.0)
    assert noisy[0] != pytest.approx(plain[0], abs=1e-4)
    assert noisy[0] == pytest.approx(plain[0], rel=0.2)
