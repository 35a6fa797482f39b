"""Real rows and Qwen2.5's real tokenizer, on a small random Qwen2: the whole road but the weights."""

import json

import pytest

from suite import prepare
from suite.train import grpo, sft
from tests.conftest import ON_CPU, write_yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gsm8k(shared_data, tmp_path_factory):
    target = tmp_path_factory.mktemp("data") / "gsm8k"
    source = str(shared_data / "gsm8k" / "train.jsonl")
    prepare.main(["gsm8k", "--source", source, "--output_dir", str(target), "--max_rows", "200"])
    return target


@pytest.fixture(scope="module")
def qwen(shared_data, tmp_path_factory):
    """Qwen2.5's vocabulary and base flavour (it ends texts, not turns) over two narrow random layers."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    target = tmp_path_factory.mktemp("qwen")
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen2.5-tokenizer")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def tuned(gsm8k, qwen, tmp_path_factory):
    """20 SFT steps."""
    home = tmp_path_factory.mktemp("tuned")
    config = write_yaml(
        home / "sft.yaml",
        model_name_or_path=str(qwen),
        dataset_name=str(gsm8k),
        output_dir=str(home / "sft"),
        eos_token="<|im_end|>",
        max_length=192,  # each token costs a softmax over 151,936
        learning_rate=3e-3,
        per_device_train_batch_size=2,
        max_steps=20,
        logging_steps=1,
        save_strategy="no",
    )
    sft.main(["--config", str(config), *ON_CPU])
    return home / "sft"


def history(run_dir) -> list[dict]:
    return json.loads((run_dir / "trainer_state.json").read_text())["log_history"]


def test_twenty_sft_steps_lower_the_loss(tuned):
    losses = [entry["loss"] for entry in history(tuned) if "loss" in entry]
    assert len(losses) == 20 and sum(losses[-3:]) / 3 < losses[0] - 1.0


def test_the_tuned_model_stops_at_the_end_of_a_turn(tuned):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(tuned)
    assert tokenizer.eos_token == "<|im_end|>"
    assert AutoConfig.from_pretrained(tuned).eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in GenerationConfig.from_pretrained(tuned).eos_token_id


def test_two_grpo_steps_run_on_the_same_rows(tuned, gsm8k, tmp_path):
    config = write_yaml(
        tmp_path / "grpo.yaml",
        model_name_or_path=str(tuned),
        dataset_name=str(gsm8k),
        output_dir=str(tmp_path / "grpo"),
        reward_funcs=["accuracy", "format"],
        num_generations=4,
        max_completion_length=24,
        per_device_train_batch_size=4,
        max_steps=2,
        logging_steps=1,
        beta=0.01,
        save_strategy="no",
    )
    grpo.main(["--config", str(config), *ON_CPU])
    steps = [entry for entry in history(tmp_path / "grpo") if "reward" in entry]
    assert len(steps) == 2 and all("rewards/accuracy_reward/mean" in entry and "kl" in entry for entry in steps)
