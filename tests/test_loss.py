"""miniqwen's own cross-entropy against transformers', which is torch's."""

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from suite.model.loss import next_token_loss
from tests.conftest import TINY

B, T, V = 3, 7, 50


def both(logits, labels, **given) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(loss, gradient) of ours, then of transformers'; the loss is tripled on its way back."""
    found = []
    for loss_function in (next_token_loss, ForCausalLMLoss):
        at = logits.clone().requires_grad_()
        loss = loss_function(logits=at, labels=labels, vocab_size=V, **given)
        found.append((loss.detach(), torch.autograd.grad(3 * loss, at)[0]))
    return found


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[0, :4], labels[1] = -100, -100
    return 5 * torch.randn(B, T, V, generator=generator), labels


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_items_in_batch": 40},
        {"num_items_in_batch": torch.tensor(40)},
        {"ignore_index": 3},
        {"a trainer's": "word"},
    ],
    ids=str,
)
def test_loss_and_gradient_are_those_of_transformers(drawn, given):
    logits, labels = drawn
    if "ignore_index" in given:
        labels = labels.where(labels >= 0, 3)
    ours, theirs = both(logits, labels, **given)
    torch.testing.assert_close(ours, theirs)
    assert ours[1].abs().sum() > 0


def test_labels_that_are_shifted_already_are_not_shifted_again(drawn):
    logits, labels = drawn
    ours, theirs = both(logits, None, shift_labels=labels)
    torch.testing.assert_close(ours, theirs)


def test_logits_of_16_bits_are_lost_in_32(drawn):
    logits, labels = drawn
    ours, theirs = both(logits.bfloat16(), labels)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)


def test_a_certain_and_wrong_answer_costs_what_it_costs():
    logits = torch.full((1, 2, V), -1e4)
    logits[..., 7] = 1e4
    ours, theirs = both(logits, torch.tensor([[0, 8]]))
    assert ours[0] == 2e4
    torch.testing.assert_close(ours, theirs)


def test_a_label_outside_of_the_vocabulary_is_named(drawn):
    logits, labels = drawn
    with pytest.raises(IndexError, match=f"Target {V} is out of bounds"):
        both(logits, labels.where(labels != labels.max(), V))


def test_there_is_one_way_back(drawn):
    logits, labels = drawn
    loss = next_token_loss(logits.requires_grad_(), labels, V)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_model_takes_it_and_another_may_be_set():
    model = MiniQwenForCausalLM(MiniQwenConfig(**TINY))
    ids = torch.arange(20, 30)[None]
    assert model.loss_function is next_token_loss
    model.loss_function = lambda **given: torch.tensor(7.0)
    assert model(ids, labels=ids).loss == 7
