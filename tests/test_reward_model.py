"""A reward model judges by what it learned, or it is refused; what it says is in tests/test_score.py."""

import pytest

from suite import rewards
from suite.engine.reward_model import RewardModel
from tests.conftest import TINY


def test_a_model_that_writes_is_refused_by_its_config_alone(qwen2_dir, miniqwen_dir):
    for path, kind in ((qwen2_dir, "Qwen2ForCausalLM"), (miniqwen_dir, "MiniQwenForCausalLM")):
        with pytest.raises(ValueError, match=f"is no reward model: it is a {kind}.*classifier with one label"):
            rewards.load(str(path))


def test_a_head_that_would_be_random_numbers_judges_nothing(qwen2_dir, tokenizer_dir, tmp_path):
    """Of a model that writes, and of a classifier with two labels, as they may come from the Hub."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = Qwen2Config(vocab_size=len(tokenizer), num_labels=2, pad_token_id=tokenizer.pad_token_id, **TINY)
    Qwen2ForSequenceClassification(config).save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    for path in (qwen2_dir, tmp_path / "two"):
        with pytest.raises(ValueError, match="is no reward model: its weights hold no score.weight of one output"):
            RewardModel(str(path))
