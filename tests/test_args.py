"""A configuration is read strictly: every mistake is one ValueError that names the value and the way out."""

import ast
import inspect
import typing
from types import SimpleNamespace

import pytest
import yaml

from suite import args, sense
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


def dpo_classes():
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

    return (ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig, RunArguments)


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
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"max_seconds": "soon"}, "max_seconds: 'soon'"),
        ({"lr": 1e-3}, "Unknown key 'lr' .* Did you mean 'learning_rate'"),
        ({"learning_rate": -1e-3}, "learning_rate: -0.001 must be at least 0, and finite"),
        ({"learning_rate": float("nan")}, "learning_rate: nan must be at least 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: 0 must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: 0 must be at least 1"),
        ({"max_length": 0}, "max_length: 0 must be at least 2"),
        ({"num_train_epochs": 0}, "num_train_epochs: 0.0 trains nothing"),
        ({"save_steps": 0}, "save_steps: 0.* must be above 0"),
        ({"dtype": "bf16"}, "no 'bf16' here.* Did you mean 'bfloat16'"),
        ({"report_to": "wand"}, "no 'wand'.* Did you mean 'wandb'"),
        ({"accelerator_config": "nowhere.json"}, "a file that cannot be read: .*nowhere.json"),
        ({"datasets": [{"path": "x", "splt": "train"}]}, "'splt' inside `datasets:`.*Did you mean 'split'"),
        ({"datasets": [{"name": "x"}]}, "no `path`"),
        ({"packing_strategy": "wraped"}, "packing_strategy: there is no 'wraped'. There are: .*mean 'wrapped'"),
        ({"loss_type": "nlll"}, "loss_type: there is no 'nlll'.*mean 'nll'"),
        ({"lora_alpha": 0}, "lora_alpha: 0 must be at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout: 1 drops all"),
        ({"lora_dropout": 5}, "lora_dropout: 5.0 is a share"),
        ({"dataset_num_proc": -1}, "dataset_num_proc: -1 must be at least 0"),
        ({"max_grad_norm": -2.0}, "max_grad_norm: -2.0 must be at least -1"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 0.1}, "does nothing under .*constant_with_warmup"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "dataset_kwargs: .* rows are read as text here"),
        ({"lr_scheduler_kwargs": "min_lr=1"}, "lr_scheduler_kwargs: 'min_lr=1' is not JSON"),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "load_best_model_at_end .*there are none"),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, "save_strategy: best .*there are none"),
        ({"eval_on_start": True}, "eval_on_start .*there are none"),
        ({"activation_offloading": True}, "activation_offloading: .* has no GPU"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: 0 must be at least 1"),
        ({"neftune_noise_alpha": -1.0}, "neftune_noise_alpha: -1.0 must be at least 0"),
        ({"lora_task_type": "SEQ_CLS"}, "lora_task_type: there is no 'SEQ_CLS'. There are: CAUSAL_LM"),
        ({"accelerator_config": {"split_batchs": True}}, "an entry that is never read: .*split_batchs"),
        ({"save_strategy": "best", "eval_strategy": "steps"}, "best by which measure"),
        ({"metric_for_best_model": "eval_truncated"}, "is more eval_truncated better, or less"),
        ({"num_generations": 4}, "Unknown key 'num_generations' in .*yaml. It is a key of .*`suite grpo`"),
        ({"model_config": {}}, "Unknown key 'model_config' in .*yaml. It is a key of `suite pretrain`"),
        ({"learning_rate": None}, "learning_rate has no value .null., and takes float"),
        ({"pad_to_multiple_of": -8}, "pad_to_multiple_of: -8 must be at least 1"),
        ({"eval_accumulation_steps": 0}, "eval_accumulation_steps: 0 must be at least 1"),
        ({"ddp_backend": "ncl"}, "ddp_backend: ncl is for processes that a launcher starts"),
        ({"packing": True, "max_length": None}, "packing: .* pieces of `max_length`, which has no value"),
        ({"max_steps": 0}, "max_steps: 0 must be at least 1"),
        ({"warmup_steps": 1.5}, "warmup_steps: 1.5 is neither a number of steps nor"),
        ({"seed": 2**32}, "seed: 4294967296 must be below"),
        ({"logging_steps": -1}, "logging_steps: -1.0 must be above 0"),
        ({"save_total_limit": 0}, "save_total_limit: 0 must be at least 1. Without it all checkpoints are kept"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: there is no 'cosin'. There are: linear, .*mean 'cosine'"),
        (
            {"torch_compile_mode": "fast"},
            "torch_compile_mode: there is no 'fast'. There are: default, lite, red",
        ),
        ({"torch_compile_backend": "inducto"}, "torch_compile_backend: .*Did you mean 'inductor'"),
        ({"eval_strategy": "step"}, "eval_strategy: there is no 'step'. There are: no, steps, epoch"),
        ({"deepspeed": "zero.json"}, "deepspeed: zero.json is for processes that a launcher starts.*zero2.yaml"),
        ({"fsdp_config": {"version": 2}}, "fsdp_config: .* add `--launch accelerate_configs/fsdp2.yaml`"),
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
        ({"num_generations": None}, "num_generations: None leaves nothing to compare"),
        ({"generation_batch_size": -8}, "generation_batch_size: -8 must be at least 1"),
        ({"max_completion_length": None}, "max_completion_length has no value"),
        ({"generation_kwargs": {"top_p": 0}}, "top_p: 0 must be above 0 and at most 1"),
        ({"repetition_penalty": 0}, "repetition_penalty: 0.0 must be above 0"),
        ({"top_k": -1}, "top_k: -1 must be at least 0"),
        ({"temperature": 0.0}, "temperature: 0.0 must be above 0"),
        ({"top_p": 2.0}, "top_p: 2.0 must be above 0 and at most 1"),
        ({"beta": -0.1}, "beta: -0.1 must be at least 0"),
        ({"num_iterations": 0}, "num_iterations: 0 must be at least 1"),
        ({"steps_per_generation": 0}, "steps_per_generation: 0 must be at least 1"),
        ({"max_completion_length": 0}, "max_completion_length: 0 must be at least 1"),
        ({"epsilon": -0.2}, "epsilon: -0.2 must be at least 0"),
        ({"delta": 0.5}, "delta: 0.5 .* must be above 1"),
        ({"top_entropy_quantile": 20}, "top_entropy_quantile: 20.0 is a share, from 0 to 1"),
        ({"loss_type": "grop"}, "loss_type: there is no 'grop'. There are: grpo, .*mean 'grpo'"),
        ({"scale_rewards": "False"}, "scale_rewards: there is no 'False'. There are: group, batch, none"),
        ({"importance_sampling_level": "tokens"}, "importance_sampling_level: .*mean 'token'"),
        ({"generation_kwargs": {"do_sample": False}}, "generation_kwargs: .* all answers of a group the same"),
        ({"entropy_coef": float("nan")}, "entropy_coef: nan must be finite"),
        ({"epsilon_high": float("nan")}, "epsilon_high: nan must be at least 0"),
        ({"sync_ref_model": True, "beta": 0.1, "use_peft": True}, "sync_ref_model .* there is none"),
        ({"sync_ref_model": True}, "sync_ref_model .* with `beta: 0` nobody asks one"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor .* here it does nothing"),
    ],
)
def test_what_no_group_could_learn_by_is_refused(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, {**SFT, **keys}, classes=grpo_classes)


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        (sft_classes, {"dataset_num_proc": 0}),
        (sft_classes, {"max_grad_norm": -1.0}),
        (sft_classes, {"max_grad_norm": float("inf")}),
        (sft_classes, {"dataset_kwargs": {"skip_prepare_dataset": False}}),
        (sft_classes, {"lr_scheduler_type": "constant", "warmup_steps": 2.0, "optim": "schedule_free_adamw"}),
        (grpo_classes, {"epsilon_high": float("inf")}),
        (grpo_classes, {"entropy_coef": -0.01}),
        (grpo_classes, {"remove_unused_columns": True}),
    ],
)
def test_what_is_unusual_and_means_something_is_let_through(tmp_path, classes, keys):
    config = parse(tmp_path, {**SFT, **keys}, classes=classes)[1]
    assert {key: getattr(config, key) for key in keys} == keys


def test_each_kind_of_device_may_have_a_backend_of_its_own():
    sense.check_choices(sft_classes(), {"ddp_backend": "cuda:nccl,cpu:gloo"})
    with pytest.raises(ValueError, match="packing_strategy: there is no 'bdf'"):
        sense.check_choices(sft_classes(), {"packing_strategy": "bdf"})


def test_a_warmup_that_a_schedule_of_deepspeed_may_read_is_let_through(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    values = {"lr_scheduler_type": "constant", "warmup_steps": 10}
    sense._check_schedule(values)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    sense._check_schedule({**values, "deepspeed": "zero.json"})
    with pytest.raises(ValueError, match="warmup_steps: 10 does nothing"):
        sense._check_schedule(values)


@pytest.mark.parametrize(("said", "means"), [(True, "group"), (False, "none"), ("batch", "batch")])
def test_scale_rewards_may_be_the_truth_that_trl_takes_it_for(tmp_path, said, means):
    assert parse(tmp_path, {**SFT, "scale_rewards": said}, classes=grpo_classes)[1].scale_rewards == means


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss_type": ["sigmoid", "sgt"]}, "loss_type: there is no 'sgt'. There are: sigmoid, .*mean 'sft'"),
        ({"f_divergence_type": "js"}, "f_divergence_type: there is no 'js'. There are: reverse_kl"),
        ({"beta": 0.0}, "beta: 0.0 multiplies what DPO learns from"),
        ({"loss_type": "robust", "label_smoothing": 0.6}, "label_smoothing: 0.6 .* must be below 0.5"),
        ({"loss_type": "aot", "use_weighting": True}, "use_weighting: TRL cannot weigh"),
        ({"loss_type": "discopop", "discopop_tau": 0.0}, "discopop_tau: 0.0 must be above 0"),
        ({"loss_type": "aot", "f_divergence_type": "js_divergence"}, "js_divergence is for the losses d.* is aot"),
        ({"loss_type": []}, "loss_type: .. names no loss"),
        ({"loss_type": "exo_pair"}, "loss_type: exo_pair takes a logarithm of `label_smoothing`"),
        ({"precompute_ref_log_probs": True, "sync_ref_model": True}, "precompute_.*`sync_ref_model: true`"),
        ({"precompute_ref_log_probs": True, "dataset_streaming": True, "max_steps": 1}, "`dataset_streaming: true`"),
        (
            {"precompute_ref_log_probs": True, "datasets": [{"path": "a"}], "streaming": True, "max_steps": 1},
            "`streaming: true`",
        ),
        ({"label_smoothing": 0.1}, "label_smoothing: TRL reads it in the losses aot, .*`loss_type: robust`"),
    ],
)
def test_what_no_preference_could_be_learned_by_is_refused(tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, {**SFT, **keys}, classes=dpo_classes)


def test_what_dpo_reads_is_let_through(tmp_path):
    for keys in ({"loss_type": "sft", "beta": 0.0}, {"loss_type": "robust", "label_smoothing": 0.1}):
        assert parse(tmp_path, {**SFT, **keys}, classes=dpo_classes)[1].loss_type == [keys["loss_type"]]


def compared_with(trainer: str, name: str) -> set[str]:
    """Every word that TRL's trainer compares a value of this name with."""
    found = set()
    for node in ast.walk(source_of(trainer)):
        if isinstance(node, ast.Compare) and name in (vars(node.left).get("attr"), vars(node.left).get("id")):
            words = [c for part in node.comparators for c in ast.walk(part) if isinstance(c, ast.Constant)]
            found |= {word.value for word in words if isinstance(word.value, str)}
    return found


def source_of(trainer: str) -> ast.Module:
    from importlib.util import find_spec
    from pathlib import Path

    return ast.parse(Path(find_spec(f"trl.trainer.{trainer}_trainer").origin).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("trainer", "choices"), [("grpo", sense.GRPO), ("dpo", sense.DPO)])
def test_the_names_there_are_are_those_that_trl_asks_for(trainer, choices):
    assert {key: compared_with(trainer, key) for key in choices} == {key: set(names) for key, names in choices.items()}


def test_the_losses_with_label_smoothing_are_those_of_trl():
    found = set()
    for node in ast.walk(source_of("dpo")):
        match node:
            case ast.If(test=ast.Compare(left=ast.Name("loss_type"), comparators=[ast.Constant(name)]), body=body):
                if any("label_smoothing" in ast.unparse(line) for line in body):
                    found.add(name)
    assert found == sense.SMOOTHED


def test_what_is_read_of_optim_args_is_what_transformers_looks_for():
    from transformers import trainer_optimizer as made

    handlers = made._OPTIMIZER_HANDLERS
    for optim in ("sgd", "adagrad", "rmsprop"):
        names = sense._read_of_optim_args(optim)
        said = SimpleNamespace(optimizer_kwargs={}, optim_args=dict.fromkeys(names, "1"))
        assert set(names) == handlers[optim](said)[1].keys()
    for optim, handler in handlers.items():
        if "bitsandbytes" not in handler.__name__ or "ademamix" in optim:
            assert set(sense._read_of_optim_args(optim)) == looked_for(inspect.getsource(handler)), optim
    every = {name for optim in handlers for name in sense._read_of_optim_args(optim) or []}
    assert every == looked_for(inspect.getsource(made)) >= {"momentum", "rank", "max_lr", "t_beta3"}
    assert sense._read_of_optim_args("rmsprop_bnb") is None and sense._read_of_optim_args("paged_lion_8bit") == []


def looked_for(source: str) -> set[str]:
    """The names by which code looks into `optim_args`: written there, or those that a loop puts there."""
    loops: dict[str, set[str]] = {}
    found = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            loops.setdefault(node.target.id, set()).update(ast.literal_eval(node.iter))
    for node in ast.walk(tree):
        match node:
            case (
                ast.Subscript(value=ast.Attribute(attr="optim_args"), slice=asked)
                | ast.Call(func=ast.Attribute(value=ast.Attribute(attr="optim_args")), args=[asked, *_])
                | ast.Compare(left=asked, ops=[ast.In()], comparators=[ast.Attribute(attr="optim_args")])
            ):
                found |= loops[asked.id] if isinstance(asked, ast.Name) else {asked.value}
    return found


# fmt: off
def broken_over_lines(ctx):
    for key in (
        "momentum",
        "dampening",
    ):
        ctx.kwargs[key] = ctx.optim_args[key]
    return (ctx.optim_args
        .get(
            "rank", 1), ctx.optim_args . pop( "scale" ), ctx.optim_args[
            "nesterov"])
# fmt: on


def test_what_is_read_of_optim_args_does_not_hang_on_how_the_lines_are_broken(monkeypatch):
    from transformers import trainer_optimizer as made

    monkeypatch.setitem(made._OPTIMIZER_HANDLERS, "sgd", broken_over_lines)
    expected = {"momentum", "dampening", "rank", "scale", "nesterov"}
    assert set(sense._read_of_optim_args("sgd")) == expected == looked_for(inspect.getsource(broken_over_lines))


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
        ("a:\n\tb: 1\n", "indented by spaces, and not by tabs"),
        ("model_init_kwargs:\n  a: 1\n  a: 2\n", "'a' stands twice"),
        ("? [a, b]\n: 1\n", "a key must be text, and on line 1 it is"),
    ],
)
def test_yaml_that_is_no_clean_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        args.parse(sft_classes(), ["--config", str(path)])


def test_numbers_without_a_point_are_numbers_inside_mappings_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("kwargs: {min_lr: 1e-6, theta: 1E6, steps: 10, name: '1e5', word: 1e, hex: 0x1e5}\n")
    found = {"min_lr": 1e-6, "theta": 1e6, "steps": 10, "name": "1e5", "word": "1e", "hex": 0x1E5}
    assert args.read_yaml(path) == {"kwargs": found}


def test_a_missing_config_names_those_that_are_there(tmp_path):
    write_yaml(tmp_path / "sft.yaml", a=1)
    with pytest.raises(ValueError, match="no config file.*stf.yaml.*Did you mean .*sft.yaml"):
        args.parse(sft_classes(), ["--config", str(tmp_path / "stf.yaml")])
    with pytest.raises(ValueError, match=f"'{tmp_path}' is a directory. In that directory there are: .*sft.yaml"):
        args.parse(sft_classes(), ["--config", str(tmp_path)])
    with pytest.raises(ValueError, match="--config stands 2 times, .*: a.yaml, b.yaml"):
        args.parse(sft_classes(), ["--config", "a.yaml", "--config=b.yaml"])
    with pytest.raises(ValueError, match="No --config FILE"):
        args.parse(sft_classes(), [])


def test_bf16_on_a_cpu_must_be_written_out(tmp_path):
    keys = {k: v for k, v in SFT.items() if k != "bf16"}
    with pytest.raises(ValueError, match="bf16: false"):
        parse(tmp_path, keys)
    assert parse(tmp_path, {**keys, "bf16": True})[1].bf16 is True


def test_fp16_is_refused_on_a_cpu_and_let_through_on_a_gpu(tmp_path, monkeypatch):
    import torch

    on_gpu = {key: value for key, value in SFT.items() if key != "use_cpu"}
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for keys in (SFT, on_gpu):
        with pytest.raises(ValueError, match="fp16: true .* this run is on a CPU.*Set `fp16: false`"):
            parse(tmp_path, {**keys, "fp16": True})
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    sense._check_precision({**on_gpu, "fp16": True})
    with pytest.raises(ValueError, match="fp16: true"):
        sense._check_precision({**SFT, "fp16": True})


def test_a_run_that_was_begun_with_keys_that_nobody_read_may_go_on_without(monkeypatch):
    import torch

    begun, now = {"fp16": True}, {"fp16": False, "bf16": False}  # as the refusal on a CPU says to set them
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert all(sense.is_idle(key, "sft", said) for key in ("fp16", "bf16") for said in (begun, now))
    assert not any(sense.is_idle("bf16", "sft", said) for said in ({}, {"bf16": None})), "which is TRL's default"
    for key, saids in {
        "use_vllm": ({"use_vllm": False}, {}),
        "eval_strategy": ({"eval_strategy": "no"}, {}),
        "max_steps": ({"max_steps": 0}, {"max_steps": -1}, {}),
    }.items():
        assert all(sense.is_idle(key, "grpo", said) for said in saids), "as its refusal says to set it, or to remove it"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert sense.is_idle("fp16", "sft", {"use_cpu": True}) and not sense.is_idle("fp16", "sft", begun)
    assert sense.is_idle("padding_free", "dpo", {}) and not sense.is_idle("padding_free", "sft", {})


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


def test_null_is_nobody_to_report_to(tmp_path):
    assert parse(tmp_path, {**SFT, "report_to": None})[1].report_to == []


def test_a_bare_no_and_a_number_of_seconds_are_what_they_look_like(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: out\nbf16: false\nuse_cpu: true\nsave_strategy: no\nmax_seconds: 600\n")
    _, config, *_, written = args.parse(sft_classes(), ["--config", str(path)])
    assert config.save_strategy == "no" and written["max_seconds"] == "600"


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


def test_what_env_says_is_text_as_it_is_written(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("env: {A: 8e6, B: 1.50, C: true, D: '7', E: 0x10}\nmax_steps: 1\n")
    assert args.read_yaml(path) == {"env": dict(A="8e6", B="1.50", C="true", D="7", E="0x10"), "max_steps": 1}


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({**SFT, "learning_rat": 1}))
    done = run_suite("sft", "--config", path, cwd=tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith("suite: ")]
    assert done.returncode == 2 and len(said) == 1 and "learning_rate" in said[0]
    assert "Traceback" not in done.stderr
