"""A run that was cut off and goes on is the run that was not: bit for bit in one process, for every stage."""

import contextlib
import importlib

import pytest

from tests import resume
from tests.conftest import ON_CPU, write_yaml
from tests.rows import write_rows

pytestmark = pytest.mark.slow
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1, "lora_target_modules": "all-linear"}
# 10 steps, of which a step is two batches; what is logged is not logged when it is saved, so averages are cut, too.
STEPS = {
    "max_steps": 10, "save_steps": 5, "logging_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2, "lr_scheduler_type": "linear",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory, arithmetic_dir, miniqwen_dir, tokenizer_dir):
    """Where rows of each shape lie, and the keys with which a stage finds them."""
    home = tmp_path_factory.mktemp("resume")
    pairs = [
        {"prompt": [{"role": "user", "content": f"{i}+1"}],
         "chosen": [{"role": "assistant", "content": str(i + 1)}],
         "rejected": [{"role": "assistant", "content": str(i)}]}
        for i in range(21)
    ]  # fmt: skip
    write_rows(home / "pairs" / "train.parquet", pairs)
    for name, size in {"text": 33, "short": 5}.items():
        write_rows(home / name / "train.parquet", [{"text": f"{i} and {i * 7} make {i * 8}."} for i in range(size)])
    thoughts = [
        {"prompt": [{"role": "user", "content": f"{i}?"}],
         "completion": [{"role": "assistant", "content": f"<think>\n{i}\n</think>\n<answer>\n{i}\n</answer>"}]}
        for i in range(18)
    ]  # fmt: skip
    write_rows(home / "few" / "train.parquet", [{"prompt": row["prompt"], "solution": "1"} for row in thoughts[:6]])
    write_rows(home / "ten" / "train.parquet", thoughts[:10])
    write_rows(home / "thoughts" / "train.parquet", thoughts)
    sums = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(arithmetic_dir)}
    text = {
        "tokenizer_name_or_path": str(tokenizer_dir),
        "dataset_name": str(home / "text"),
        "model_config": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2},
    }
    grpo = {"num_generations": 2, "max_completion_length": 8, "reward_funcs": ["tests.engines.letters_reward"]}
    return {
        "pretrain": {**text, "max_length": 32},
        "short": {**text, "max_length": 32, "dataset_name": str(home / "short")},
        "sft": {**sums, "max_length": 64},
        "mixture": {
            **{**sums, "dataset_name": None},
            "max_length": 64,
            "test_split_size": 0.5,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "datasets": [
                {"path": str(home / "thoughts")},
                {"path": str(arithmetic_dir), "columns": ["prompt", "completion"]},
            ],
        },
        "ten": {**sums, "max_length": 64, "dataset_name": str(home / "ten")},
        "thoughts": {**sums, "max_length": 64, "dataset_name": str(home / "thoughts")},
        "dpo": {**sums, "dataset_name": str(home / "pairs"), "max_length": 64},
        "distill": {**sums, "teacher_model_name_or_path": str(miniqwen_dir), "max_completion_length": 8},
        "grpo": {**sums, **grpo},
        "few": {**sums, **grpo, "dataset_name": str(home / "few")},
    }


VARIANTS = {
    "pretrain": ("pretrain", {}),
    "pretrain, packed stream": ("pretrain", {"dataset_streaming": True, "packing": True}),
    # Two batches of three rows an epoch, and one over: the cut falls into the third pass over the stream.
    "pretrain, stream begun anew": ("pretrain", {"dataset_streaming": True}, "short"),
    # 18 rows are nine batches, five steps: the cut falls on the end of the epoch, before it is evaluated.
    "sft, at the end of an epoch": ("sft", {"logging_strategy": "epoch"}, "thoughts"),
    "sft, in the second epoch": ("sft", {}, "ten"),
    "sft, by length, in the second epoch": ("sft", {"train_sampling_strategy": "group_by_length"}, "ten"),
    "sft, rebalanced, in the second epoch": ("sft", {"train_sampling_strategy": "batch_rebalance"}, "ten"),
    "sft, packed with weighed tags": ("sft", {"packing": True, "tag_weight": 3.0}, "thoughts"),
    "sft, mixture": ("sft", {}, "mixture"),
    "sft": ("sft", {}),
    "sft, LoRA with dropout": ("sft", LORA),
    "dpo": ("dpo", {}),
    "dpo, LoRA with dropout": ("dpo", LORA),
    "dpo, moving reference": ("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 2}),
    "distill, half given": ("distill", {"lmbda": 0.5}),
    "distill, LoRA": ("distill", {"lmbda": 1.0, **LORA, "lora_dropout": 0.0}),
    "grpo": ("grpo", {}),
    # One rollout serves three steps: the cut falls between its second and its third use.
    "grpo, between two uses of a rollout": ("grpo", {"num_iterations": 3, "beta": 0.1}),
    "grpo, evaluated, weights moving": (
        "grpo",
        {
            "eval_strategy": "steps",
            "eval_steps": 4,
            "dataset_test_split": "train",
            "log_completions": True,
            "per_device_eval_batch_size": 2,
            "num_generations_eval": 2,
            "reward_schedule": {"tests.engines.letters_reward": {"from": 1.0, "to": 0.2, "start": 2, "end": 8}},
        },
        "few",
    ),
    "grpo, LoRA": ("grpo", {**LORA, "lora_dropout": 0.0, "beta": 0.1}),
    "grpo, four batches a rollout": ("grpo", {"steps_per_generation": 4}),
}


EVALUATED = {"eval_strategy": "steps", "eval_steps": 4, "dataset_test_split": "train", "lr_scheduler_type": "constant"}
BY_EPOCH = {"eval_strategy": "epoch", "eval_steps": None}
EPOCHS = {**BY_EPOCH, "save_strategy": "epoch", "save_steps": 0, "max_steps": -1, "num_train_epochs": 2}
# The end of a run at which nothing but the end asked for an evaluation, and its keys.
ENDS = {
    "sft": ("sft", {**EVALUATED, **LORA}, "thoughts", ["--max_steps", "7"]),
    "sft, at the end of an epoch": ("sft", {**EVALUATED, **LORA, **EPOCHS}, "thoughts", ["--num_train_epochs", "1"]),
    "sft, in an epoch": ("sft", {**EVALUATED, **LORA, **BY_EPOCH}, "thoughts", ["--max_steps", "7"]),
    "grpo": (
        "grpo",
        {**EVALUATED, "log_completions": True, "per_device_eval_batch_size": 2, "num_generations_eval": 2},
        "few",
        ["--max_steps", "7"],
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_run_made_longer_equals_one_that_long_and_its_last_evaluation_is_made_whatever_cuts_it_off(
    name, made, tmp_path
):
    stage, keys, rows, shorter = ENDS[name]
    main = importlib.import_module(f"suite.train.{stage}").main
    config = write_yaml(tmp_path / f"{stage}.yaml", **{**STEPS, **made[rows], **keys})
    words = ["--config", str(config), *ON_CPU]
    main([*words, "--output_dir", "straight"])
    assert any("eval_loss" in entry and entry["step"] == 10 for entry in resume.logged(tmp_path / "straight"))
    main([*words, "--output_dir", "longer", *shorter])
    main([*words, "--output_dir", "longer", "--resume_from_checkpoint", "true"])
    assert resume.difference(tmp_path / "straight", tmp_path / "longer", 10) == 0.0
    resume.cut_off(tmp_path / "straight", 10, tmp_path / "cut")
    main([*words, "--output_dir", "cut", "--resume_from_checkpoint", "true"])
    assert resume.difference(tmp_path / "straight", tmp_path / "cut", 10) == 0.0


@pytest.mark.parametrize("name", VARIANTS)
def test_ten_steps_equal_five_and_five(name, made, tmp_path):
    stage, keys, rows = (*VARIANTS[name], VARIANTS[name][0])[:3]
    main = importlib.import_module(f"suite.train.{stage}").main
    config = write_yaml(tmp_path / f"{stage}.yaml", **{**STEPS, **made[rows], **keys})
    words = ["--config", str(config), *ON_CPU]
    main([*words, "--output_dir", "straight"])
    resume.cut_off(tmp_path / "straight", 5, tmp_path / "resumed")
    main([*words, "--output_dir", "resumed", "--resume_from_checkpoint", "true"])
    assert resume.difference(tmp_path / "straight", tmp_path / "resumed", 10) == 0.0


def test_a_run_begun_by_one_that_read_the_turns_alone_does_not_go_on_with_more(monkeypatch):
    from types import SimpleNamespace

    from suite import resume

    def says(arguments):
        return [{"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": arguments}}]}]}]

    told, plain = [{"messages": [], "tools": None}], [{"messages": []}]
    begins, goes_on = SimpleNamespace(resume_from_checkpoint=None), SimpleNamespace(resume_from_checkpoint="run/c-2")
    records = []
    for rows in (told, plain, says({"a": 1}), says('{"a": 1}')):
        records.append({})
        resume.check_beside(rows, records[-1], begins)
    nothing = {"beside_turns": [], "own_arguments": False}
    assert records == [{**nothing, "beside_turns": ["tools"]}, nothing, {**nothing, "own_arguments": True}, nothing]
    for before, now, message in (
        ({}, plain, None),
        (records[0], told, None),
        ({}, told, "run/c-2 belongs to a run whose chat template was given nothing .* now it would be `tools`"),
        (records[2], says({"b": 1}), None),
        ({}, says('{"a": 1}'), None),
        ({"beside_turns": []}, says({"a": 1}), "run/c-2 belongs to a run of an older `suite`, which may have read"),
    ):
        monkeypatch.setattr(resume.checkpoint, "record_of", lambda path, before=before: before)
        with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
            resume.check_beside(now, {}, goes_on)
