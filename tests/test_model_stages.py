"""The forms of miniqwen in the stages: TRL balances the experts, LoRA adapts what it can, and export takes both.

Everything runs in this process: a stage of two steps takes a second or two.
"""

from pathlib import Path

import pytest

from suite import export
from tests.conftest import ON_CPU, save_model, write_yaml
from tests.engines import logged
from tests.test_export import adapter_of, logits_of

pytestmark = pytest.mark.slow

STEPS = 2
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def experts_dir(tokenizer_dir, tmp_path_factory) -> Path:
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    target = tmp_path_factory.mktemp("experts")
    return save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, target, num_experts=4)


@pytest.fixture
def stage(experts_dir, arithmetic_dir):
    """Run a stage on the mixture, into a directory of its own."""

    def run(name: str, output_dir: str, **keys) -> Path:
        from suite.cli import module_of

        common = {
            "model_name_or_path": str(experts_dir),
            "dataset_name": str(arithmetic_dir),
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "max_steps": STEPS,
            "logging_steps": 1,
            "save_strategy": "no",
            "output_dir": output_dir,
        }
        written = {key: value for key, value in (common | keys).items() if value is not None}
        module_of(name).main(["--config", str(write_yaml(Path(f"{output_dir}.yaml"), **written)), *ON_CPU])
        return Path(output_dir)

    return run


def test_a_mixture_with_latent_attention_is_pretrained_from_the_fields_of_the_yaml(stage, tokenizer_dir, capsys):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    Path("texts").mkdir()
    Dataset.from_dict({"text": ["12+34 is 46. " * 20] * 64}).to_parquet("texts/train.parquet")
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    out = stage(
        "pretrain",
        "pretrained",
        model_name_or_path=None,
        tokenizer_name_or_path=str(tokenizer_dir),
        dataset_name="texts",
        model_config={**shape, "num_experts": 4, "shared_expert_intermediate_size": 32, "kv_lora_rank": 16},
        packing=True,
        max_length=64,
    )
    printed = capsys.readouterr().out
    said = "4 experts, 2 a token, latent attention: 96 bytes of cache a token in bfloat16, "
    said += "where key/value heads of their own take 256 with 2, 512 with 4 of them"
    assert said in printed
    assert len(logged(out, "aux_loss")) == STEPS
    config = AutoModelForCausalLM.from_pretrained(out).config
    assert (config.num_experts, config.moe_intermediate_size, config.kv_lora_rank) == (4, 48, 16)


def test_trls_coefficient_reaches_the_router(stage, experts_dir):
    from safetensors.torch import load_file

    routers = {}
    for coefficient in (0.0, None, 1.0):
        out = stage("sft", f"sft-{coefficient}", router_aux_loss_coef=coefficient)
        balance = logged(out, "aux_loss")
        assert len(balance) == (0 if coefficient == 0.0 else STEPS)
        assert all(1.9 < value < 4 for value in balance)  # 2 where even, 4 where all tokens go to the same two
        routers[coefficient] = load_file(out / "model.safetensors")["model.layers.0.mlp.gate.weight"]
    # Adam's first steps have one size whatever the gradient is; what differs is where they go.
    start = load_file(experts_dir / "model.safetensors")["model.layers.0.mlp.gate.weight"]
    moved = {coefficient: (router - start).sign() for coefficient, router in routers.items()}
    assert (moved[1.0] != moved[0.0]).float().mean() > 0.2 > (moved[None] != moved[0.0]).float().mean()
    assert logged(Path("sft-1.0"), "grad_norm") != logged(Path("sft-0.0"), "grad_norm")


def test_dpo_and_grpo_balance_experts_too_and_a_dense_model_has_none_to_balance(stage, arithmetic_dir, miniqwen_dir):
    from datasets import Dataset, load_dataset

    sums = load_dataset("parquet", data_files=str(arithmetic_dir / "train.parquet"), split="train").select(range(16))
    wrong = [[{"role": "assistant", "content": "0"}]] * 16
    pairs = {"prompt": sums["prompt"], "chosen": sums["completion"], "rejected": wrong}
    Path("pairs").mkdir()
    Dataset.from_dict(pairs).to_parquet("pairs/train.parquet")
    assert len(logged(stage("dpo", "dpo", dataset_name="pairs"), "aux_loss")) == STEPS
    rewards = {"reward_funcs": ["tests.engines.letters_reward"], "num_generations": 4, "max_completion_length": 8}
    assert len(logged(stage("grpo", "grpo", **rewards), "aux_loss")) == STEPS
    with pytest.raises(ValueError, match="router_aux_loss_coef: 0.1 is for a mixture of experts"):
        stage("sft", "dense", model_name_or_path=str(miniqwen_dir), router_aux_loss_coef=0.1)


def test_trl_counts_the_operations_of_the_experts_that_a_token_meets():
    from trl.trainer.utils import compute_flops_per_token

    from suite.model import MiniQwenConfig

    dense, mixture = (compute_flops_per_token(MiniQwenConfig(num_experts=e), 128) for e in (None, 8))
    assert mixture - dense == 3 * 2 * 8 * 512 * 8  # the routers, forward and back


def test_an_adapter_says_what_it_leaves_and_adapts_the_experts_where_asked(stage, experts_dir, capsys):
    from safetensors.torch import load_file

    lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.0, "learning_rate": 1e-2}
    stage("sft", "linear", **lora)
    assert "leaves the experts of this mixture and their router as they are" in capsys.readouterr().out
    out = stage("sft", "experts", **lora, lora_target_parameters=EXPERTS)
    assert "leaves the experts" not in capsys.readouterr().out
    with_experts, linear = (set(load_file(Path(run) / "adapter_model.safetensors")) for run in (out, "linear"))
    assert linear < with_experts and all("self_attn" in name for name in linear)
    assert all("mlp.experts" in name for name in with_experts - linear)
    # Merged and in stock's class: the look after export compares it with the adapter beside its base.
    export.main([str(out), "--output_dir", "merged", "--as", "qwen2_moe"])
    assert (logits_of("merged") - logits_of(experts_dir)).abs().max() > 0.01


def test_an_adapter_of_latent_attention_is_in_every_token_that_is_generated(tokenizer_dir, tmp_path):
    """A token on a cache multiplies by the matrix itself where that lies bare, and not beside an adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    base = save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, tmp_path / "latent", kv_lora_rank=24)
    lora = adapter_of(base, tmp_path / "lora", by=0.2)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).eval()
    assert any("kv_b_proj" in name for name, _ in model.named_parameters() if "lora_B" in name)
    ids = torch.arange(20, 30)[None]
    step = model(ids[:, :9], use_cache=True)
    last = model(ids[:, 9:], past_key_values=step.past_key_values, use_cache=True).logits
    torch.testing.assert_close(last, model(ids).logits[:, 9:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.merge_and_unload()(ids).logits[:, 9:], last, atol=1e-4, rtol=1e-4)
