"""A configuration is read strictly: every mistake is one ValueError that names the value and the way out."""

import typing

import pytest
import yaml

from suite import args
from suite.keys import RewardArguments, RunArguments
from suite.values import check_knobs
from tests.conftest import run_suite, write_yaml

SFT = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "bf16": False, "use_cpu": True}


def sft_classes():
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    return (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig, RunArguments)


def grpo_classes():
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig, ScriptArguments

    return (ScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig, RewardArguments, RunArguments)


def parse(tmp_path, keys: dict, words=(), classes=sft_classes):
    path = write_yaml(tmp_path / "run.yaml", **keys)
    return args.parse(classes(), ["--config", str(path), *words])


def test_values_reach_the_fields_they_name_and_the_command_line_wins(tmp_path):
    script, config, model, _, _, written = parse(
        tmp_path, {**SFT, "learning_rate": "2e-4", "max_steps": 3}, ["--max_steps", "5", "--lora_r=4"]
    )
    assert (config.learning_rate, config.max_steps, model.lora_r) == (2e-4, 5, 4)
    assert (script.dataset_name, model.model_name_or_path) == ("d", "m")
    assert written["max_steps"] == 5 and written["lora_r"] == 4


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1e-3}, "Unknown key 'learning_rat' .* Did you mean 'learning_rate'"),
        ({"learning": 1e-3}, "Unknown key 'learning'"),
        ({"max_seq_length": 512}, "max_length"),
        ({"torch_dtype": "bfloat16"}, "it is now `dtype`"),
        ({"evaluation_strategy": "no"}, "eval_strategy"),
        ({"warmup_ratio": 0.1}, "warmup_steps"),
        ({"overwrite_output_dir": True}, "resume_from_checkpoint"),
        ({"max_steps": [1, 2]}, "max_steps: .* is a list, and max_steps takes int"),
        ({"max_steps": 2.5}, "max_steps: 2.5 is a float"),
        ({"max_steps": True}, "max_steps: True is a bool"),
        ({"packing": 1}, "packing: 1 is a int"),
        ({"dataset_streaming": True}, "dataset_streaming: .* nobody knows how many rows .* Set `max_steps`"),
        ({"run_name": 7}, "run_name: 7 .* in quotes"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast'"),
        ({"learning_rate": None}, "learning_rate: None"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"max_seconds": "soon"}, "max_seconds: 'soon'"),
        ({"lr": 1e-3}, "Unknown key 'lr' .* Did you mean 'learning_rate'"),
        ({"learning_rate": -1e-3}, "learning_rate: -0.001 must be at least 0, and finite"),
        ({"learning_rate": float("nan")}, "learning_rate: nan must be at least 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: 0 must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: 0 must be at least 1"),
        ({"max_length": 0}, "max_length: 0 must be at least 1"),
        ({"num_train_epochs": 0}, "num_train_epochs: 0.0 trains nothing"),
        ({"save_steps": 0}, "save_steps: 0.* must be above 0"),
        ({"dtype": "bf16"}, "no 'bf16' here.* Did you mean 'bfloat16'"),
        ({"report_to": "wand"}, "no 'wand'.* Did you mean 'wandb'"),
        ({"accelerator_config": "nowhere.json"}, "a file that cannot be read: .*nowhere.json"),
        ({"datasets": [{"path": "x", "splt": "train"}]}, "'splt' inside `datasets:`.*Did you mean 'split'"),
        ({"datasets": [{"name": "x"}]}, "no `path`"),
    ],
)
def test_a_wrong_key_or_value_is_refused(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, {**SFT, **keys})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "Did you mean 'learning_rate'"),
        (["--learn", "1"], "Unknown key 'learn'"),
        (["--max_steps", "many"], "--max_steps.*invalid int value: 'many'"),
        (["--max_seq_length", "9"], "max_length"),
        (["stray"], "'stray' on the command line"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_refused(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, SFT, words)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.0}, "temperature: 0.0 must be above 0"),
        ({"top_p": 2.0}, "top_p: 2.0 must be above 0 and at most 1"),
        ({"beta": -0.1}, "beta: -0.1 must be at least 0"),
        ({"num_iterations": 0}, "num_iterations: 0 must be at least 1"),
        ({"steps_per_generation": 0}, "steps_per_generation: 0 must be at least 1"),
        ({"max_completion_length": 0}, "max_completion_length: 0 must be at least 1"),
    ],
)
def test_a_number_that_no_group_could_be_sampled_by_is_refused(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, {**SFT, **keys}, classes=grpo_classes)


def test_metrics_for_somebody_who_is_not_installed_are_refused_before_a_model_is_loaded(tmp_path):
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    missing = sorted(INTEGRATION_TO_CALLBACK.keys() - set(get_available_reporting_integrations()))[0]
    with pytest.raises(ValueError, match=f"report_to: '{missing}' needs a package"):
        parse(tmp_path, {**SFT, "report_to": missing})
    assert parse(tmp_path, {**SFT, "report_to": "none"})[1].report_to == []


def test_every_dropped_key_is_really_gone_from_trl():
    there = {key for c in (*sft_classes(), *grpo_classes()) for key in typing.get_type_hints(c)}
    assert not there & args.SUCCESSORS.keys()


def test_max_prompt_length_names_what_to_do_instead(tmp_path):
    with pytest.raises(ValueError, match="max_prompt_length.*leave rows with long prompts out"):
        parse(tmp_path, {**SFT, "max_prompt_length": 512}, classes=grpo_classes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps: 1\nmax_steps: 2\n", "'max_steps' stands twice .*line 2"),
        ("- a\n- b\n", "must hold a YAML mapping .*holds a list"),
        ("", "holds nothing"),
        ("a: [1, 2\n", "run.yaml"),
        ("model_init_kwargs:\n  a: 1\n  a: 2\n", "'a' stands twice"),
        ("? [a, b]\n: 1\n", "a key must be text, and on line 1 it is"),
    ],
)
def test_yaml_that_is_no_clean_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        args.parse(sft_classes(), ["--config", str(path)])


def test_a_missing_config_names_those_that_are_there(tmp_path):
    write_yaml(tmp_path / "sft.yaml", a=1)
    with pytest.raises(ValueError, match="no config file.*stf.yaml.*Did you mean .*sft.yaml"):
        args.parse(sft_classes(), ["--config", str(tmp_path / "stf.yaml")])
    with pytest.raises(ValueError, match="No --config FILE"):
        args.parse(sft_classes(), [])


def test_bf16_on_a_cpu_must_be_written_out(tmp_path):
    keys = {k: v for k, v in SFT.items() if k != "bf16"}
    with pytest.raises(ValueError, match="bf16: false"):
        parse(tmp_path, keys)
    assert parse(tmp_path, {**keys, "bf16": True})[1].bf16 is True


@pytest.mark.parametrize(
    ("keys", "arithmetic"),
    [
        ({"num_generations": 5}, "8 x 1 processes x 1 steps = 8 completions.* num_generations 2 or 4 or 8"),
        (
            {"num_generations": 6, "gradient_accumulation_steps": 2},
            "8 x 1 processes x 2 steps = 16 .* batch of 12 or 18",
        ),
        ({"num_generations": 4, "generation_batch_size": 6}, "generation_batch_size 6"),
        ({"num_generations": 1}, "at least 2"),
    ],
)
def test_groups_that_do_not_fill_the_batch_print_the_arithmetic(tmp_path, keys, arithmetic):
    with pytest.raises(ValueError, match=arithmetic):
        parse(tmp_path, {**SFT, "per_device_train_batch_size": 8, **keys}, classes=grpo_classes)


@pytest.mark.parametrize(("said", "means"), [(True, True), ("true", True), (False, None), ("runs/x", "runs/x")])
def test_resume_true_is_no_path(tmp_path, said, means):
    assert parse(tmp_path, {**SFT, "resume_from_checkpoint": said})[1].resume_from_checkpoint == means
    word = str(said).lower()
    assert parse(tmp_path, SFT, ["--resume_from_checkpoint", word])[1].resume_from_checkpoint == means


def test_a_single_value_may_stand_for_a_list(tmp_path):
    model = parse(tmp_path, {**SFT, "lora_target_modules": "all-linear"})[2]
    assert model.lora_target_modules == "all-linear"  # TRL itself unpacks a list of one


def test_knobs_are_checked_against_the_signature():
    def brevity(completions, *, longest: int = 5, soft: bool = False):
        pass

    assert check_knobs("brevity", brevity, {"longest": "7"}) == {"longest": 7}
    with pytest.raises(
        ValueError, match="brevity has no knob 'longst'. There are: longest, soft. Did you mean 'longest'"
    ):
        check_knobs("brevity", brevity, {"longst": 7})
    with pytest.raises(ValueError, match="brevity.longest: 'x' is a str"):
        check_knobs("brevity", brevity, {"longest": "x"})


def test_knobs_of_a_reward_that_is_not_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match="reward_kwargs has knobs for 'formt'.*Did you mean 'format'"):
        parse(tmp_path, {**SFT, "reward_kwargs": {"formt": {}}, "num_generations": 4}, classes=grpo_classes)


def test_env_in_yaml_reaches_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("SUITE_TEST", raising=False)
    monkeypatch.setattr("os.environ", dict(__import__("os").environ))
    parse(tmp_path, {**SFT, "env": {"SUITE_TEST": 3}})
    assert __import__("os").environ["SUITE_TEST"] == "3"


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**SFT, "learning_rat": 1}))
    done = run_suite("sft", "--config", path, cwd=tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith("suite: ")]
    assert done.returncode == 2 and len(said) == 1 and "learning_rate" in said[0]
    assert "Traceback" not in done.stderr
