"""What TRL, transformers and PEFT would stumble over, or pass over, is refused before a model is loaded."""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from suite import rehearsal, run
from suite.train import dpo, grpo, sft
from tests.conftest import ON_CPU, TINY, write_yaml


def config_of(tmp_path, kind: str = "SFTConfig", **keys):
    import trl

    return getattr(trl, kind)(output_dir=str(tmp_path), bf16=False, use_cpu=True, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 500},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "lr_scheduler_kwargs": {"factor": 0.5}},
        {"optim": "adafactor", "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing_kwargs": {"every_n_layers": 2, "offload": True}},
    ],
)
def test_what_works_is_let_through(tmp_path, keys):
    rehearsal.optimization(config_of(tmp_path, **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lr_scheduler_kwargs": {"min_lr": 1e-6}}, "lr_scheduler_kwargs: .*min_lr.* and lr_scheduler_type linear"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type cosine_with_min_lr: .*min_lr_rate"),
        ({"gradient_checkpointing_kwargs": {"use_reentrent": False}}, "gradient_checkpointing_kwargs: .*use_reentrent"),
        ({"adam_beta2": 1.5}, "optim: adamw_torch.* cannot be made: Invalid beta parameter"),
        ({"optim": "schedule_free_adamw"}, "optim: schedule_free_adamw cannot be made: .*schedulefree"),
        ({"use_liger_kernel": True}, "use_liger_kernel: true needs the package liger-kernel"),
    ],
)
def test_what_would_end_the_first_step_is_refused(tmp_path, monkeypatch, keys, message):
    monkeypatch.setattr(rehearsal, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        rehearsal.optimization(config_of(tmp_path, **keys))


def test_yarn_beside_the_positions_of_before_is_told_with_the_key(capsys):
    from transformers import Qwen2Config

    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    for given, told in (
        (None, None),
        ({"rope_parameters": {**yarn, "rope_type": "linear"}}, None),  # whose factor is counted
        ({"rope_parameters": {**yarn, "original_max_position_embeddings": 128}}, None),
        ({"rope_parameters": {**yarn, "original_max_position_embeddings": 512}, "max_position_embeddings": 2048}, None),
        ({"rope_parameters": {**yarn, "original_max_position_embeddings": 512}}, 2048),
        ({"rope_parameters": yarn}, 2048),  # transformers takes the positions for the original ones
    ):
        rehearsal.yarn(given, Qwen2Config(**{**TINY, "max_position_embeddings": 512}))
        said = capsys.readouterr().out
        assert (f"max_position_embeddings: {told}}}`" in said and "is 512," in said) if told else said == ""
    written = Qwen2Config(**{**TINY, "max_position_embeddings": 512}, rope_parameters=yarn)  # as Qwen's cards advise
    rehearsal.yarn({"dtype": "float32"}, written)
    assert "stretches the model to 2048 positions" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["MiniQwenConfig", "Qwen2Config"])
def test_keys_of_the_config_and_of_from_pretrained_may_stand_in_model_init_kwargs(kind):
    import transformers

    import suite.model

    config = {**vars(suite.model), "Qwen2Config": transformers.Qwen2Config}[kind](**TINY)
    given = {"dtype": "bfloat16", "attn_implementation": "sdpa", "attention_dropout": 0.1, "use_cache": False,
             "device_map": None, "low_cpu_mem_usage": True, "use_kernels": False, "code_revision": "main",
             "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                 "original_max_position_embeddings": 512}}  # fmt: skip
    rehearsal.init_kwargs("model_init_kwargs", given, config)
    with pytest.raises(ValueError, match=f"from_pretrained nor {kind} knows 'attention_droput'.*'attention_dropout'"):
        rehearsal.init_kwargs("model_init_kwargs", {"attention_droput": 0.1}, config)
    fewer = {"num_hidden_layers": 1}  # the start of a student: whatever it has, the checkpoint has
    if kind == "Qwen2Config":
        with pytest.raises(ValueError, match="1 layers need as many layer_types, and there are 2. Give both."):
            rehearsal.init_kwargs("model_init_kwargs", fewer, config)
        fewer["layer_types"] = ["full_attention"]
    rehearsal.init_kwargs("model_init_kwargs", fewer, config)
    for changed in ({"num_hidden_layers": 3}, {"hidden_size": 32}, {"intermediate_size": 96}):
        with pytest.raises(ValueError, match="model_init_kwargs: (the weights .* not fit a|no) model.*with {'"):
            rehearsal.init_kwargs("model_init_kwargs", changed, config)
    with pytest.raises(ValueError, match="'torch_dtype' is not read there: it is now the key `dtype`"):
        rehearsal.init_kwargs("model_init_kwargs", {"torch_dtype": "bfloat16"}, config)


def adapter(**keys):
    none = dict.fromkeys(("lora_target_modules", "lora_modules_to_save", "lora_target_parameters"))
    return SimpleNamespace(**{**none, **keys})


def test_layers_that_the_model_lacks_are_named():
    from suite.model import MiniQwenConfig

    config = MiniQwenConfig(**TINY)
    for there in (None, "all-linear", ["q_proj", "mlp.up_proj"], r".*\.(q|k)_proj"):
        rehearsal.layers(adapter(lora_target_modules=there, lora_modules_to_save=["lm_head", "layers.1.mlp"]), config)
    with pytest.raises(ValueError, match="lora_target_modules: the model has no 'v_porj'.*q_proj.* mean 'v_proj'"):
        rehearsal.layers(adapter(lora_target_modules=["q_proj", "v_porj"]), config)
    with pytest.raises(ValueError, match=r"lora_target_modules: 'q_proj' stands alone.*`\.\*\\\.q_proj`"):
        rehearsal.layers(adapter(lora_target_modules="q_proj"), config)
    with pytest.raises(ValueError, match="lora_modules_to_save: the model has no 'lm_heed'.*mean 'lm_head'"):
        rehearsal.layers(adapter(lora_modules_to_save=["lm_heed"]), config)
    with pytest.raises(ValueError, match="lora_target_parameters: the model has no 'mlp.experts.up'"):
        rehearsal.layers(adapter(lora_target_parameters=["mlp.experts.up"]), config)


def test_names_that_peft_translates_and_models_that_need_more_than_their_config_are_let_through():
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_5 import Qwen3_5Config

    mixture = Qwen3MoeConfig(**TINY, num_experts=4, moe_intermediate_size=32, vocab_size=64, head_dim=16)
    rehearsal.layers(adapter(lora_target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"]), mixture)
    with pytest.raises(ValueError, match="lora_target_modules: the model has no 'q_porj'"):
        rehearsal.layers(adapter(lora_target_modules=["q_porj", "gate_proj"]), mixture)
    rehearsal.layers(adapter(lora_target_modules=["q_proj"]), Qwen3_5Config())  # of text and pictures


def test_a_rehearsal_draws_no_random_number(tmp_path):
    import torch

    from suite.model import MiniQwenConfig

    before = torch.get_rng_state()  # an adapter begins with what comes next
    rehearsal.optimization(config_of(tmp_path))
    rehearsal.layers(adapter(lora_target_modules=["q_proj", "k_proj"]), MiniQwenConfig(**TINY))
    rehearsal.init_kwargs("model_init_kwargs", {"attention_dropout": 0.1}, MiniQwenConfig(**TINY))
    assert torch.equal(before, torch.get_rng_state())


def test_keys_that_no_sampling_and_no_template_reads_are_refused(tmp_path, tokenizer_dir):
    tokenizer = run.tokenizer(str(tokenizer_dir))
    rehearsal.sampling(config_of(tmp_path), tokenizer)  # which does not sample
    good = {"generation_kwargs": {"min_new_tokens": 3}, "chat_template_kwargs": {"add_generation_prompt": True}}
    rehearsal.sampling(config_of(tmp_path, "GRPOConfig", **good), tokenizer)
    if find_spec("vllm") is not None:
        config = config_of(
            tmp_path, "GRPOConfig", use_vllm=True, generation_kwargs={"stop": ["x"], "min_new_tokens": 3}
        )
        with pytest.raises(ValueError, match="vLLM's SamplingParams has no 'min_new_tokens'.*mean 'min_tokens'"):
            rehearsal.sampling(config, tokenizer)
    for key, name, message in (
        ("generation_kwargs", "temprature", "GenerationConfig has no 'temprature'. Did you mean 'temperature'"),
        ("chat_template_kwargs", "enable_thinking", "the chat template does not mention 'enable_thinking'"),
    ):
        with pytest.raises(ValueError, match=f"{key}: {message}"):
            rehearsal.sampling(config_of(tmp_path, "GRPOConfig", **{key: {name: 1}}), tokenizer)


@pytest.mark.parametrize("stage", [sft, dpo, grpo])
def test_every_stage_rehearses_before_it_loads_a_model(stage, tmp_path, monkeypatch, miniqwen_dir, arithmetic_dir):
    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    from tests.rows import write_rows

    write_rows(tmp_path / "pairs" / "train.parquet", [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}] * 8)
    keys = {"model_name_or_path": str(miniqwen_dir), "output_dir": str(tmp_path / "out"),
            "dataset_name": str(tmp_path / "pairs" if stage is dpo else arithmetic_dir)}  # fmt: skip
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)
    for wrong, message in (
        ({"model_init_kwargs": {"hidden_sise": 8}}, "model_init_kwargs: neither .* knows 'hidden_sise'"),
        ({"lr_scheduler_kwargs": {"min_lr": 1e-6}}, "lr_scheduler_kwargs"),
        ({"use_peft": True, "lora_target_modules": ["q_porj", "k_proj"]}, "no 'q_porj'"),
    ):
        config = write_yaml(tmp_path / "run.yaml", **keys, **wrong)
        with pytest.raises(ValueError, match=message):
            stage.main(["--config", str(config), *ON_CPU])
        assert not (tmp_path / "out").exists()
