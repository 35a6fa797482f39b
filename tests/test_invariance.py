"""What must not change the loss: how a batch is cut into micro-batches, and whether its documents are packed.

All of it in one process; test_engines holds the same for two.
"""

import json
from pathlib import Path

import pytest

from tests.conftest import ON_CPU

pytestmark = pytest.mark.slow

DOCUMENTS = 24
MODELS = ["miniqwen_dir", "qwen2_dir"]


@pytest.mark.parametrize("model", MODELS)
def test_four_at_once_and_one_after_another_learn_the_same(model, request, arithmetic_dir, tmp_path):
    from safetensors.torch import load_file
    from torch.testing import assert_close

    from suite.train import sft

    losses, weights = [], []
    for batch, accumulation in ((4, 1), (1, 4)):
        run = tmp_path / f"{batch}x{accumulation}"
        words = ["--model_name_or_path", request.getfixturevalue(model), "--dataset_name", arithmetic_dir, *ON_CPU]
        words += ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
        words += ["--max_steps", 6, "--learning_rate", 1e-3, "--lr_scheduler_type", "constant", "--logging_steps", 1]
        words += ["--eos_token", "<|im_end|>", "--save_strategy", "no", "--output_dir", run]
        sft.main(["--config", str(empty_config(tmp_path)), *map(str, words)])
        history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        losses.append([entry["loss"] for entry in history if "loss" in entry])
        weights.append(load_file(run / "model.safetensors"))
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert_close(*weights, atol=1e-4, rtol=0)


def empty_config(directory: Path) -> Path:
    """A stage wants a file; here the command line says everything."""
    path = directory / "empty.yaml"
    path.write_text("{}\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def documents(arithmetic_dir):
    """The first rows, in both shapes that SFT and pretraining read."""
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(arithmetic_dir / "train.parquet"), split="train")
    return rows.select(range(DOCUMENTS))


def sum_of_losses(model_dir: Path, rows, attention: str, *, packing: bool, blind: bool = False):
    """(rows after packing, sum of the token losses over all documents, its gradient), by SFTTrainer's own collation.

    `blind` hides from the model where one document ends and the next begins.
    """
    import torch
    from trl import SFTConfig, SFTTrainer

    import suite.model  # noqa: F401

    config = SFTConfig(
        output_dir="unused", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", max_length=128,
        per_device_train_batch_size=2, packing=packing, packing_strategy="bfd", eos_token="<|im_end|>",
        model_init_kwargs={"attn_implementation": attention, "dtype": "float32"},
    )  # fmt: skip
    trainer = SFTTrainer(model=str(model_dir), args=config, train_dataset=rows)
    trainer.model.train()
    total = 0.0
    for batch in trainer.get_train_dataloader():
        if blind:
            batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=1)
        loss.backward()
        total += loss.item()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    return len(trainer.train_dataset), total, gradient


@pytest.mark.parametrize("columns", [["prompt", "completion"], ["text"]], ids=["sft", "pretrain"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model", MODELS)
def test_packed_documents_have_the_loss_they_have_alone(model, attention, columns, request, documents):
    import torch

    model_dir, rows = request.getfixturevalue(model), documents.select_columns(columns)
    alone, loss, gradient = sum_of_losses(model_dir, rows, attention, packing=False)
    packed, packed_loss, packed_gradient = sum_of_losses(model_dir, rows, attention, packing=True)
    assert alone == DOCUMENTS and packed < alone / 2, f"{packed} packed rows"
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(packed_gradient, gradient, atol=1e-3 * gradient.abs().max().item(), rtol=0)


def test_documents_that_see_each_other_have_another_loss(miniqwen_dir, documents):
    """Otherwise the test above would prove nothing."""
    rows = documents.select_columns(["text"])
    _, loss, _ = sum_of_losses(miniqwen_dir, rows, "sdpa", packing=True)
    _, mixed, _ = sum_of_losses(miniqwen_dir, rows, "sdpa", packing=True, blind=True)
    assert abs(mixed - loss) > 1e-3 * loss
