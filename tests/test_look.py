"""The look after a save names what differs: each kind of damage is made here, and found."""

import json
import shutil

import pytest

from suite import look, merge
from tests.conftest import ON_CPU, save_model, shaken, write_yaml

# As DeepSeek-R1-Distill's: what an assistant said is cut behind its last </think>.
STRIPS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture
def saved(miniqwen_dir, tmp_path):
    return shutil.copytree(miniqwen_dir, tmp_path / "saved")


@pytest.fixture
def tensors(saved):
    from safetensors.torch import load_file

    return load_file(saved / "model.safetensors")


def write(path, tensors) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def change(path, **keys) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_sound_checkpoint_has_no_findings_and_equals_its_memory(saved, tensors):
    assert look.at_files(saved) == look.at_files(saved, memory=tensors, eos_token="<|im_end|>") == []
    look.demand(saved, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tensor_that_is_not_finite_is_named_and_counted(saved, tensors, value, dtype):
    import torch

    broken = tensors["model.norm.weight"].to(getattr(torch, dtype))
    broken[3] = broken[5] = value
    write(saved, {**tensors, "model.norm.weight": broken})
    assert look.at_files(saved) == ["model.norm.weight has 2 of 64 values that are not finite"]


def test_what_differs_from_memory_is_named(saved, tensors):
    memory = {name: tensor.clone() for name, tensor in tensors.items()}
    memory["model.norm.weight"][0] += 0.5
    memory["extra"] = memory["model.norm.weight"].clone()
    del memory["model.layers.0.mlp.up_proj.weight"]
    memory["model.layers.1.mlp.up_proj.weight"] = memory["model.layers.1.mlp.up_proj.weight"][:-1]
    memory["model.layers.1.mlp.down_proj.weight"] = memory["model.layers.1.mlp.down_proj.weight"].half()
    found = look.at_files(saved, memory=memory)
    assert sorted(found) == [
        "extra is in the model and not on disk",
        "model.layers.0.mlp.up_proj.weight is on disk and not in the model",
        "model.layers.1.mlp.down_proj.weight on disk is torch.float32, in memory torch.float16",
        "model.layers.1.mlp.up_proj.weight on disk has the shape (128, 64), in memory (127, 64)",
        "model.norm.weight on disk differs from memory by up to 0.5",
    ]
    with pytest.raises(ValueError, match="'.*saved' is not what it should be: .*up to 0.5.*The files are kept"):
        look.demand(saved, found)


def test_a_truncated_shard_is_a_finding(saved, tensors):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:-100])
    (finding,) = look.at_files(saved)
    assert "model.safetensors' is cut off or broken" in finding


def test_weights_that_are_no_longer_as_tied_as_the_configuration_says(saved, tensors):
    write(saved, {**tensors, look.HEAD: tensors[look.EMBEDDING] + 1})
    assert look.at_files(saved) == [f"config.json ties {look.HEAD} to {look.EMBEDDING}, and on disk the two differ"]
    write(saved, tensors)
    change(saved / "config.json", tie_word_embeddings=False)
    assert look.at_files(saved) == [f"config.json ties no weights, and {look.HEAD} is not on disk"]


@pytest.mark.parametrize("form", ["dense", "mixture", "qwen2", "qwen2_moe"])
def test_a_tensor_without_which_vllm_would_begin_all_the_same_is_named(form, tokenizer_dir, tmp_path):
    """https://github.com/vllm-project/vllm, model_executor/model_loader/default_loader.py, asks too little."""
    from safetensors.torch import load_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from suite import export
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    classes = (Qwen2ForCausalLM, Qwen2Config) if form == "qwen2" else (MiniQwenForCausalLM, MiniQwenConfig)
    shape = {"num_experts": 4, "num_experts_per_tok": 2} if "mo" in form or "mix" in form else {}
    saved = save_model(*classes, tokenizer_dir, tmp_path / "saved", **shape)
    if form == "qwen2_moe":
        export.main([str(saved), "--output_dir", str(tmp_path / "exported"), "--as", form])
        saved = tmp_path / "exported"
    look.demand_names(saved)
    there = load_file(saved / "model.safetensors")
    wanted = ["self_attn.k_proj.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight"]
    wanted += ["mlp.gate.weight", "mlp.experts.3.up_proj.weight"] if shape else ["mlp.up_proj.weight"]
    for name in wanted:
        told = "conversion of the weights" if "experts" in name else "layers.1.*random numbers"
        write(saved, {key: value for key, value in there.items() if key != f"model.layers.1.{name}"})
        with pytest.raises(ValueError, match=f"does not hold all weights of its .*{told}"):
            look.demand_names(saved)
        if "experts.3" in name:
            with pytest.raises(ValueError, match="Cannot load .*conversion of the weights"):
                merge.loaded(saved)


def test_what_only_vllm_knows_how_to_load_is_left_to_it(saved, tensors, capsys):
    less = {key: value for key, value in tensors.items() if "k_proj" not in key}
    write(saved, less)
    for keys in ({"model_type": "of_tomorrow"}, {"quantization_config": {"quant_method": "new"}},
                 {"architectures": ["MiniQwenForSequenceClassification"]}):  # fmt: skip
        before = (saved / "config.json").read_text()
        change(saved / "config.json", **keys)
        look.demand_names(saved)
        (saved / "config.json").write_text(before)
    write(saved, {**tensors, "more": tensors["model.norm.weight"].clone()})
    change(saved / "config.json", attn_implementation="flash_attention_2")  # which vLLM has of its own
    look.demand_names(saved)
    assert not capsys.readouterr().err


def test_an_end_of_turn_on_which_the_files_disagree_is_named_file_by_file(saved):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(saved)
    turn, text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for name in ("config.json", "generation_config.json"):
        change(saved / name, eos_token_id=[text, turn])
        assert look.at_files(saved) == []
        change(saved / name, eos_token_id=text)
        assert look.at_files(saved) == [
            f"a turn ends with '<|im_end|>' ({turn}), and {name} stops at eos_token_id {text}"
        ]
        change(saved / name, eos_token_id=turn)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(saved)
    assert look.at_files(saved) == ["a turn ends with '<|im_end|>', and the tokenizer's EOS is '<|endoftext|>'"]
    for name in ("config.json", "generation_config.json"):
        change(saved / name, eos_token_id=text)
    assert look.at_files(saved, eos_token="<|endoftext|>") == []  # a base model: it ends texts
    (saved / "tokenizer_config.json").unlink()
    assert "no tokenizer beside the weights" in look.at_files(saved)[0]


def test_a_template_that_strips_think_blocks_is_a_finding(saved):
    (saved / "chat_template.jinja").write_text(STRIPS_THOUGHTS)
    assert "leaves <think> blocks out" in look.at_files(saved)[0]
    assert look.at_files(saved, keeps_thoughts=False) == []


@pytest.mark.slow
def test_a_model_that_answers_otherwise_or_does_not_stop_is_found_when_it_is_asked(saved):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import suite.model  # noqa: F401

    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    alone = look.logits(model, tokenizer)
    assert look.at_model(saved, alone) == []
    shaken(model)
    adapted = look.logits(model, tokenizer)
    (differs, nothing) = look.at_model(saved, adapted, adapted, alone)
    assert "the model on disk differs by up to" in differs and "the merge did nothing" in nothing
    assert look.at_model(saved, alone, alone, adapted) == []
    change(saved / "generation_config.json", eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    assert look.at_model(saved, alone) == ["generation runs on past '<|im_end|>', the end of a turn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "finding"),
    [
        ({"learning_rate": 3e38, "max_grad_norm": 0.0}, "model.norm.weight has 64 of 64 values that are not finite"),
        (
            {"learning_rate": 1e30, "use_peft": True, "lora_target_modules": "all-linear", "lora_r": 2},
            "lora_B.weight has .* values that are not finite",
        ),
    ],
)
def test_a_run_that_saved_something_else_than_it_should_ends_in_an_error_and_keeps_it(
    miniqwen_dir, arithmetic_dir, tmp_path, keys, finding
):
    from suite.train import sft

    config = write_yaml(
        tmp_path / "sft.yaml", model_name_or_path=str(miniqwen_dir), dataset_name=str(arithmetic_dir), output_dir="run",
        max_steps=2, save_strategy="no", **keys,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"What was saved in 'run' is not what it should be: .*{finding}"):
        sft.main(["--config", str(config), *ON_CPU])
    assert list((tmp_path / "run").glob("*model.safetensors"))
    assert not json.loads((tmp_path / "run" / "run.json").read_text()).get("finished")
