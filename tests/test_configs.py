"""Every YAML under configs/ is read strictly by its own command, and says how it is run."""

import re

import pytest
import torch

from suite import args, cli, rewards
from tests.conftest import ROOT

CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yaml"))


def command_of(path) -> str:
    stem = re.sub(r"^\d+-", "", path.stem)
    return next(c for c in sorted(cli.commands(), key=len, reverse=True) if stem == c or stem.startswith(f"{c}-"))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_the_config_parses_strictly(path):
    module = cli.module_of(command_of(path))
    written = args.read_yaml(ROOT / path)
    classes = module.arguments(written["name"]) if command_of(path) == "prepare" else module.arguments()
    # A GPU's config on a machine without one: bf16 is refused there, unless it is told to use the CPU.
    on_cpu = [] if torch.cuda.is_available() or "bf16" not in written else ["--use_cpu", "true"]
    args.parse(classes, ["--config", str(ROOT / path), *on_cpu])
    for name in written.get("reward_funcs", []):
        rewards.load(name, written.get("reward_kwargs", {}).get(name))


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_the_config_opens_with_its_command_and_what_it_took(path):
    first, second, *_ = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert first.startswith(f"# suite {command_of(path)} --config {path}"), first
    assert second.startswith("# ") and len(second) > 10, second


def test_a_trained_model_is_named_by_the_config_that_made_it():
    """An input under runs/ is some other config's output."""
    outputs = {args.read_yaml(ROOT / p).get("output_dir") for p in CONFIGS}
    for path in CONFIGS:
        for key in ("model_name_or_path", "tokenizer_name_or_path", "dataset_name"):
            value = str(args.read_yaml(ROOT / path).get(key, ""))
            if value.startswith("runs/"):
                assert value in outputs, f"{path}: nobody writes {key} {value}"
