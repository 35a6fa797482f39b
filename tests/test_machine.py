"""What a card is taken for, by what nvidia-smi says of it, and what a config must say otherwise there."""

import os
from dataclasses import fields

import pytest

from suite import args, machine
from tests.conftest import ROOT

# nvidia-smi --query-gpu=index,uuid,name,memory.total,compute_cap --format=csv,noheader,nounits
CARDS = {
    "T4": "0, GPU-a, Tesla T4, 15360, 7.5",
    "L4": "0, GPU-b, NVIDIA L4, 23034, 8.9",
    "A100": "0, GPU-c, NVIDIA A100-SXM4-40GB, 40960, 8.0",
    "A100, 80 GB": "0, GPU-d, NVIDIA A100-SXM4-80GB, 81920, 8.0",
    "H100": "0, GPU-e, NVIDIA H100 80GB HBM3, 81559, 9.0",
    "RTX 3060": "0, GPU-f, NVIDIA GeForce RTX 3060, 12288, 8.6",
    "RTX 4090": "0, GPU-g, NVIDIA GeForce RTX 4090, 24564, 8.9",
    "V100": "0, GPU-h, Tesla V100-SXM2-32GB, 32768, 7.0",
    "none": "",
}
NO_CARDS = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\nMake sure, please, it runs.",
    "No devices were found",
    "0, GPU-a, Some Card, [N/A], [N/A]",
    "\n",
)


def here(card: str) -> machine.Machine:
    return machine.read(CARDS[card])


@pytest.mark.parametrize(
    ("card", "like", "dtype", "told"),
    [
        ("T4", "T4", "float16", "Tesla T4, 15 GiB: float16, for it has no bfloat16"),
        ("L4", "L4", "bfloat16", "NVIDIA L4, 22 GiB: bfloat16"),
        ("A100", "A100", "bfloat16", "NVIDIA A100-SXM4-40GB, 40 GiB: bfloat16"),
        ("A100, 80 GB", "A100", "bfloat16", "NVIDIA A100-SXM4-80GB, 80 GiB: bfloat16"),
        ("H100", "A100", "bfloat16", "NVIDIA H100 80GB HBM3, 80 GiB: bfloat16"),
        ("RTX 3060", "T4", "bfloat16", "NVIDIA GeForce RTX 3060, 12 GiB: bfloat16"),
        ("RTX 4090", "L4", "bfloat16", "NVIDIA GeForce RTX 4090, 24 GiB: bfloat16"),
        ("V100", "L4", "float16", "Tesla V100-SXM2-32GB, 32 GiB: float16, for it has no bfloat16"),
        ("none", "none", "float32", "no GPU: float32, and small enough to see that everything works"),
    ],
)
def test_a_card_is_told_by_its_size_and_by_whether_it_has_bfloat16(card, like, dtype, told):
    found = here(card)
    assert (found.like, found.dtype, found.told()) == (like, dtype, told)
    assert found.pick(none="none", T4="T4", L4="L4", A100="A100") == like
    assert machine.asking(found)["dtype"] == dtype
    assert machine.asking(found)["use_vllm"] == (like != "none" and machine.has_vllm())


@pytest.mark.parametrize("told", NO_CARDS)
def test_what_is_no_card_is_none(told):
    assert machine.read(told) == machine.Machine("no GPU") and not machine.read(told).has_gpu


def test_the_first_card_that_cuda_would_show_is_the_one():
    told = f"{CARDS['T4']}\n{CARDS['L4'].replace('0,', '1,', 1)}"
    for visible, name in ((None, "Tesla T4"), ("1,0", "NVIDIA L4"), ("GPU-b", "NVIDIA L4"), ("0", "Tesla T4")):
        assert machine.read(told, visible).name == name
    for hidden in ("", "-1", "7"):
        assert not machine.read(told, hidden).has_gpu


@pytest.mark.parametrize(
    ("card", "told"),
    [
        (
            "T4",
            "--dtype float16 --bf16 false --fp16 true --per_device_train_batch_size 8 --gradient_accumulation_steps 4",
        ),
        ("L4", "--per_device_train_batch_size 16 --gradient_accumulation_steps 2"),
        ("A100", "--per_device_train_batch_size 16 --gradient_accumulation_steps 2"),
        ("A100, 80 GB", "--per_device_train_batch_size 32 --gradient_accumulation_steps 1"),
        ("RTX 3060", "--per_device_train_batch_size 8 --gradient_accumulation_steps 4"),
        (
            "none",
            "--dtype float32 --use_cpu true --bf16 false "
            "--per_device_train_batch_size 4 --gradient_accumulation_steps 2",
        ),
    ],
)
def test_lora_fits_each_card_and_its_step_stays_what_it_is(card, told):
    assert machine.words(machine.fitted(ROOT / "configs/qwen2.5-0.5b/sft-lora.yaml", here(card))) == told


@pytest.mark.parametrize("name", ["sft", "sft-lora", "grpo", "grpo-lora", "dpo", "sft-long"])
@pytest.mark.parametrize("card", CARDS)
def test_what_is_fitted_are_keys_of_the_stage_and_whole_groups(name, card):
    path = ROOT / f"configs/qwen2.5-0.5b/{name}.yaml"
    written, keys = args.read_yaml(path), machine.fitted(path, here(card))
    from trl import GRPOConfig, ModelConfig

    there = {f.name for kind in (GRPOConfig, ModelConfig) for f in fields(kind)}
    assert keys.keys() <= there
    at_a_time, step = keys["per_device_train_batch_size"], written["per_device_train_batch_size"]
    step *= written.get("gradient_accumulation_steps", 1)
    if here(card).has_gpu:
        assert at_a_time * keys["gradient_accumulation_steps"] == step
    room = written["per_device_train_batch_size"] * here(card).gigabytes / 24
    assert at_a_time <= max(1, room) or not here(card).has_gpu
    if name.startswith("grpo"):
        assert at_a_time * keys["gradient_accumulation_steps"] % 8 == 0  # TRL's num_generations


def test_looking_asks_nvidia_smi_for_the_columns_that_are_read(tmp_path, monkeypatch):
    """By a program of that name that answers only to these very words."""
    asked = "--query-gpu=index,uuid,name,memory.total,compute_cap --format=csv,noheader,nounits"
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] && echo "{CARDS["L4"]}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.look().name == "NVIDIA L4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine.look().has_gpu
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program.write_text("#!/bin/sh\nexit 9\n")
    assert not machine.look().has_gpu
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert not machine.look().has_gpu
