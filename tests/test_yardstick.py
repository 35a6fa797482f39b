"""What the best checkpoint is chosen by is known before a model is loaded, or told at the first evaluation."""

import fnmatch
import re

import pytest

from suite import yardstick
from suite.checkpoint import read_json
from suite.train import dpo, grpo, pretrain, sft
from tests.conftest import ON_CPU, write_yaml
from tests.rows import write_rows


def config_of(kind: str, tmp_path, **keys):
    import trl

    return getattr(trl, kind)(output_dir=str(tmp_path), bf16=False, use_cpu=True, eval_strategy="steps", **keys)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("SFTConfig", "loss"),
        ("SFTConfig", "eval_mean_token_accuracy"),
        ("DPOConfig", "eval_rewards/accuracies"),
        ("DistillationConfig", "completions/mean_length"),
        ("GRPOConfig", "reward"),
        ("GRPOConfig", "rewards/accuracy_reward/mean"),
    ],
)
def test_what_is_measured_is_no_mistake(tmp_path, capsys, kind, name):
    yardstick.check(config_of(kind, tmp_path, metric_for_best_model=name), 0)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("kind", ["SFTConfig", "DPOConfig", "DistillationConfig"])
def test_what_nobody_measures_is_refused_with_the_names_there_are(tmp_path, kind):
    config = config_of(kind, tmp_path, metric_for_best_model="eval_entrpy")
    with pytest.raises(ValueError, match="measures 'entrpy'. There are: loss, .*mean 'entropy'.*`eval_answers`"):
        yardstick.check(config, 0)
    with pytest.raises(ValueError, match="measured on answers, and none are asked for"):
        yardstick.check(config_of(kind, tmp_path, metric_for_best_model="accuracy"), 0)
    yardstick.check(config_of(kind, tmp_path, metric_for_best_model="accuracy"), 8)


def test_where_rewards_may_log_what_they_like_a_strange_name_is_only_told_of(tmp_path, capsys):
    yardstick.check(config_of("GRPOConfig", tmp_path, metric_for_best_model="rewrd"), 0)
    assert "unless a reward logs it. There are: loss, " in (told := capsys.readouterr().out)
    assert "Did you mean 'reward'" in told


def ran(stage, tmp_path, **keys) -> dict:
    """The state of a run of two steps, each of them evaluated."""
    every_step = {f"{what}_steps": 1 for what in ("eval", "logging")}
    config = write_yaml(
        tmp_path / "run.yaml",
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        eval_strategy="steps",
        **every_step,
        **keys,
    )
    stage.main(["--config", str(config), *ON_CPU])
    return read_json(tmp_path / "run" / "trainer_state.json")


def measured(state: dict) -> set[str]:
    return {name.removeprefix("eval_") for entry in state["log_history"] for name in entry if name.startswith("eval_")}


@pytest.mark.slow
def test_a_measure_that_does_not_come_is_told_at_the_first_evaluation_and_the_run_goes_on(
    miniqwen_dir, arithmetic_dir, tmp_path, capsys
):
    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(arithmetic_dir)}
    few = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "eval_answers": 4, "num_generations": 4,
           "max_completion_length": 4, "reward_funcs": ["format"]}  # fmt: skip
    best = {"load_best_model_at_end": True, "metric_for_best_model": "rewards/accuracy/mean", "save_strategy": "best"}
    state = ran(grpo, tmp_path, **keys, **few, **best)
    told = re.findall("warning: metric_for_best_model: .*", capsys.readouterr().out)
    assert len(told) == 1 and "measured no 'rewards/accuracy/mean'. There are: loss, " in told[0]
    assert "every evaluation saves a checkpoint" in told[0] and "rewards/format_reward/mean" in told[0]
    assert (tmp_path / "run" / "model.safetensors").is_file() and (tmp_path / "run" / "checkpoint-1").is_dir()
    assert state["global_step"] == 2 and state["best_global_step"] is None
    known, others = yardstick.measured_by_trl(type(config_of("GRPOConfig", tmp_path)))
    there = [*yardstick.ALWAYS, *yardstick.OF_ANSWERS, *known]
    assert others and not {n for n in measured(state) if not any(fnmatch.fnmatch(n, k) for k in there)}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kind"), [(sft, "SFTConfig"), (dpo, "DPOConfig"), (pretrain, "SFTConfig")])
def test_every_name_that_an_evaluation_logs_is_known_beforehand(
    stage, kind, miniqwen_dir, arithmetic_dir, tmp_path, capsys
):
    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(arithmetic_dir), "save_strategy": "no"}
    if stage is dpo:
        keys["dataset_name"] = str(tmp_path / "pairs")
        for split in ("train", "test"):
            rows = [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}] * 8
            write_rows(tmp_path / "pairs" / f"{split}.parquet", rows)
    # What only a mixture of experts has may be asked of any model: it is TRL's name, and is not measured here.
    state = ran(stage, tmp_path, **keys, max_length=64, metric_for_best_model="aux_loss")
    assert "warning: metric_for_best_model: this evaluation measured no 'aux_loss'" in capsys.readouterr().out
    names, others = yardstick.measured_by_trl(type(config_of(kind, tmp_path)))
    assert not others and "loss" in measured(state) and not measured(state) - {*yardstick.ALWAYS, *names}
