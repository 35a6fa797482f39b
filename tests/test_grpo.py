"""GRPO: the loss is the papers', the arithmetic said at the start is what happens, and doubtful settings are named."""

import json
import re
import sys
from pathlib import Path

import pytest

from suite.rewards.scoring import TABLE
from suite.train import grpo
from tests.conftest import ON_CPU, base_flavoured, built_by, shaken, write_yaml
from tests.rows import write_rows

BETA, EPSILON = 0.05, 0.2
THEIRS = ("step", "prompt", "completion", "advantage")  # of every table of completions, as TRL writes it


def words(model_dir, data_dir, *more, **keys) -> list[str]:
    """A run whose reward differs inside every group, whatever a random model says."""
    Path("letters.py").write_text(
        "seen = []\n"
        "def letters_reward(completions, **columns):\n"
        "    seen.extend(completions)\n"
        "    return [float(sum(map(ord, c[0]['content'])) % 7) for c in completions]\n"
    )
    keys = {
        "reward_funcs": ["letters.letters_reward"], "num_generations": 4, "per_device_train_batch_size": 8,
        "max_completion_length": 12, "logging_steps": 1, "save_strategy": "no", "output_dir": "run", **keys,
    }  # fmt: skip
    config = write_yaml(Path("grpo.yaml"), model_name_or_path=str(model_dir), dataset_name=str(data_dir), **keys)
    return ["--config", str(config), *ON_CPU, *more]


@pytest.fixture(autouse=True)
def _own_rewards_are_importable(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)


def logprobs_of(model, inputs):
    """log p of every completion token: (B, C)."""
    import torch

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logprobs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)  # (B, T, V)
    length = inputs["completion_ids"].shape[1]
    return logprobs[:, -length - 1 : -1].gather(2, inputs["completion_ids"][..., None])[..., 0]


@pytest.mark.slow
def test_the_loss_of_a_batch_is_the_papers_in_every_normalization(miniqwen_dir, arithmetic_dir, monkeypatch):
    """min(r A, clip(r) A) - beta r KL (k3), https://arxiv.org/abs/2402.03300 equation 3, the KL times the ratio as in
    https://arxiv.org/abs/2512.02556; the variants divide otherwise.

    grpo: by each completion's length; bnpo: by the tokens of the batch; dapo (arXiv 2503.14476, equation 8): by
    those of the whole rollout; dr_grpo (arXiv 2503.20783): by the longest length there may be.
    """
    import torch
    from transformers import AutoModelForCausalLM

    trainer = built_by(grpo.main, words(miniqwen_dir, arithmetic_dir, beta=BETA, num_iterations=2), monkeypatch)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    texts = trainer.processing_class.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    rewards = torch.tensor([float(sum(map(ord, text)) % 7) for text in texts])
    prompts = inputs["prompt_ids"].tolist()  # TRL shuffles a rollout, so that a group does not lie together
    advantages = torch.zeros(len(prompts), 1)
    for prompt in prompts:
        group = torch.tensor([other == prompt for other in prompts])
        assert group.sum() == 4 and rewards[group].std() > 0
        advantages[group, 0] = (rewards[group] - rewards[group].mean()) / (rewards[group].std() + 1e-4)
    torch.testing.assert_close(inputs["advantages"], advantages[:, 0], atol=1e-5, rtol=0)

    # A random model seldom stops: as if its completions had ended after 3, 4, 5, ... tokens.
    inputs["completion_mask"] = (torch.arange(12) < torch.arange(3, 11)[:, None]).long()
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    old = logprobs_of(AutoModelForCausalLM.from_pretrained(miniqwen_dir), inputs)
    shaken(trainer.model, 0.01)
    ratio = (logprobs_of(trainer.model, inputs) - old).exp()  # (B, C)
    assert (ratio > 1 + EPSILON).any() and (ratio < 1 - EPSILON).any(), "nothing is clipped"
    gain = torch.min(ratio * advantages, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantages)
    kl = ratio * (1 / ratio - (1 / ratio).log() - 1)
    mask = inputs["completion_mask"]
    loss = (BETA * kl - gain) * mask
    expected = {
        "grpo": (loss.sum(1) / mask.sum(1)).mean(),
        "bnpo": loss.sum() / mask.sum(),
        "dapo": loss.sum() / mask.sum(),  # one generation is one batch here
        "dr_grpo": loss.sum() / (len(loss) * 12),
    }
    assert len({round(value.item(), 4) for value in expected.values()}) >= 3
    for name, value in expected.items():
        trainer.loss_type = name
        found = trainer.compute_loss(trainer.model, dict(inputs))
        assert found.item() == pytest.approx(value.item(), abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"per_device_train_batch_size": 8, "num_train_epochs": 1, "gradient_accumulation_steps": 3},
        {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "num_iterations": 2,
            "gradient_accumulation_steps": 5,
        },
        {"per_device_train_batch_size": 8, "generation_batch_size": 16, "max_steps": 3},
    ],
    ids=["epoch", "iterations", "steps"],
)
def test_the_arithmetic_said_at_the_start_is_what_happens(miniqwen_dir, tmp_path, keys, capsys):
    from datasets import Dataset

    sys.modules.pop("letters", None)  # an earlier test's, which has seen its completions
    rows = [{"prompt": [{"role": "user", "content": f"{i}+1"}], "solution": str(i + 1)} for i in range(25)]
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    grpo.main(words(miniqwen_dir, tmp_path / "data", max_completion_length=4, report_to="none", **keys))
    said = capsys.readouterr().out
    steps = int(re.search(r"the run: ([\d,]+) steps", said)[1].replace(",", ""))
    rollout, group = map(int, re.search(r"rollout: (\d+) prompts x (\d+) completions", said).groups())
    assert json.loads(Path("run/run.json").read_text())["steps"] == steps
    generated = int(re.search(r"([\d,]+) completions, at most", said)[1].replace(",", ""))
    assert generated == len(sys.modules["letters"].seen)
    assert rollout * group == keys.get(
        "generation_batch_size", keys["per_device_train_batch_size"] * keys.get("gradient_accumulation_steps", 1)
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gradient_accumulation_steps": 400}, "The rows hold 400 prompts, and one rollout takes 800"),
        ({"use_vllm": True, "vllm_mode": "server"}, "vllm_mode: server sends weights.*no CUDA.*colocate"),
    ],
)
def test_what_cannot_run_is_refused_before_a_model_is_loaded(miniqwen_dir, arithmetic_dir, keys, message):
    with pytest.raises(ValueError, match=message):
        grpo.main(words(miniqwen_dir, arithmetic_dir, max_steps=1, **keys))
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, []),
        ({"top_p": 0.9, "top_k": 20}, ["top_p 0.9", "top_k 20"]),
        ({"min_p": 0.1, "repetition_penalty": 1.1}, ["min_p 0.1", "repetition_penalty 1.1"]),
        ({"generation_kwargs": {"top_p": 0.9, "temperature": 0.7}}, ["temperature 0.7", "top_p 0.9"]),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, ["vllm_importance_sampling_correction"]),
        ({"vllm_importance_sampling_correction": False}, []),
        ({"use_peft": True}, ["lora_dropout 0.05"]),
        ({"use_peft": True, "lora_dropout": 0.0}, []),
        ({"top_p": 1.0, "top_k": 0, "min_p": 0.0}, []),
    ],
)
def test_settings_that_bend_the_importance_ratio_are_named_with_the_reason(keys, named):
    from suite import args

    parsed = args.parse(grpo.arguments(), words("runs/none", "data/none", **keys))
    lines = grpo.doubts(parsed[1], parsed[2])
    assert len(lines) == len(named) and all(name in line for name, line in zip(named, lines, strict=True))
    assert all(" Set `" in line for line in lines)


@pytest.mark.slow
def test_a_base_model_stops_its_rollouts_at_the_end_of_a_turn(tokenizer_dir, arithmetic_dir, tmp_path, monkeypatch):
    model = base_flavoured(tokenizer_dir, tmp_path / "base")
    trainer = built_by(grpo.main, words(model, arithmetic_dir), monkeypatch)
    turn, text = trainer.processing_class.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert trainer.eos_token_ids == [turn, text] == trainer.generation_config.eos_token_id


@pytest.mark.slow
def test_a_reward_that_gives_too_little_ends_the_run_with_its_name(miniqwen_dir, arithmetic_dir):
    own = words(miniqwen_dir, arithmetic_dir, max_steps=1, reward_funcs=["halves.half_reward"])
    Path("halves.py").write_text("def half_reward(completions, **columns):\n    return 0.5\n")
    with pytest.raises(ValueError, match=r"The reward 'halves.half_reward' gave 0.5 \(float\).*a list of 8, as many"):
        grpo.main(own)


@pytest.mark.slow
def test_rewards_of_one_name_or_called_as_a_column_are_logged_apart(miniqwen_dir, arithmetic_dir):
    import pandas

    funcs = ["letters.letters_reward", "ones.letters_reward", "ones.step", "accuracy"]
    own = words(miniqwen_dir, arithmetic_dir, max_steps=1, reward_funcs=funcs, log_completions=True)
    body = "(completions, **columns):\n    return [1.0] * len(completions)\n"
    Path("ones.py").write_text(f"def letters_reward{body}def step{body.replace('1.0', '0.5')}")
    grpo.main(own)
    (logged, *_) = json.loads(Path("run/trainer_state.json").read_text())["log_history"]
    assert logged["rewards/ones.letters_reward/mean"] == 1.0 != logged["rewards/letters.letters_reward/mean"]
    (table,) = map(pandas.read_parquet, Path("run/completions").glob("completions_*.parquet"))
    assert set(table.columns) - {*funcs[:3], "accuracy_reward"} == {*TABLE} >= {*THEIRS}
    assert set(funcs[:3]) <= set(table.columns) and len(table) == 8 and set(table["step"]) == {1}


def test_answers_beyond_the_models_positions_are_refused_before_it_is_loaded(miniqwen_dir, tmp_path, monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)
    rows = [{"prompt": [{"role": "user", "content": "1+1" * n}], "solution": "2"} for n in (1, 1, 1, 2000)]
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    with pytest.raises(ValueError, match="1 of 4 prompts do not fit: the longest has .* positions of the model"):
        grpo.main(words(miniqwen_dir, tmp_path / "rows", max_steps=1))
    write_rows(tmp_path / "rows" / "train.jsonl", rows[:3])
    with pytest.raises(ValueError, match="3 of 3 prompts do not fit: .* 510 of its answer .* 512 positions"):
        grpo.main(words(miniqwen_dir, tmp_path / "rows", max_steps=1, max_completion_length=510))
    write_rows(tmp_path / "rows" / "test.jsonl", rows[2:])
    with pytest.raises(ValueError, match="1 of 2 prompts do not fit"):
        grpo.main(words(miniqwen_dir, tmp_path / "rows", max_steps=1, eval_strategy="steps", eval_steps=1))
    assert not Path("run").exists()
