"""miniqwen is Qwen2: the same weights give the same logits, with and without cache, padding and packing."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from tests.conftest import TINY


@pytest.fixture(scope="module")
def pair(miniqwen_dir):
    mini = AutoModelForCausalLM.from_pretrained(miniqwen_dir).eval()
    return mini, Qwen2ForCausalLM.from_pretrained(miniqwen_dir).eval()


def tokens(batch: int, length: int, seed: int = 0):
    return torch.randint(10, 250, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_the_auto_classes_know_miniqwen(pair):
    assert type(pair[0]) is MiniQwenForCausalLM


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_miniqwen_checkpoint_in_qwen2_gives_the_same_logits(miniqwen_dir, attention):
    mini = MiniQwenForCausalLM.from_pretrained(miniqwen_dir, attn_implementation=attention)
    qwen = Qwen2ForCausalLM.from_pretrained(miniqwen_dir, attn_implementation=attention)
    ids = tokens(3, 21)
    torch.testing.assert_close(mini(ids).logits, qwen(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_qwen2_checkpoint_in_miniqwen_gives_the_same_logits(qwen2_dir):
    qwen, mini = Qwen2ForCausalLM.from_pretrained(qwen2_dir), MiniQwenForCausalLM.from_pretrained(qwen2_dir)
    ids = tokens(2, 17)
    torch.testing.assert_close(mini(ids).logits, qwen(ids).logits, atol=1e-5, rtol=1e-5)


def test_loss_and_gradients_are_those_of_qwen2(pair):
    mini, qwen = pair
    ids = tokens(4, 16)
    for model in pair:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
    for (name, ours), theirs in zip(mini.named_parameters(), qwen.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(pair, side):
    mini, _ = pair
    short, long = tokens(1, 9, seed=1), tokens(1, 14, seed=2)
    pad = torch.zeros(1, 5, dtype=torch.long)
    row = torch.cat([pad, short] if side == "left" else [short, pad], dim=1)
    mask = torch.cat([pad, torch.ones_like(short)] if side == "left" else [torch.ones_like(short), pad], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = mini(
        torch.cat([row, long]),
        attention_mask=torch.cat([mask, torch.ones_like(long)]),
        position_ids=torch.cat([positions, torch.arange(14)[None]]),
    ).logits
    kept = out[0, 5:] if side == "left" else out[0, :9]
    torch.testing.assert_close(kept, mini(short).logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[1], mini(long).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_do_not_see_each_other(miniqwen_dir, attention):
    mini = MiniQwenForCausalLM.from_pretrained(miniqwen_dir, attn_implementation=attention)
    one, two = tokens(1, 7, seed=3), tokens(1, 11, seed=4)
    positions = torch.cat([torch.arange(7), torch.arange(11)])[None]
    packed = mini(torch.cat([one, two], dim=1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, :7], mini(one).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed[:, 7:], mini(two).logits, atol=1e-4, rtol=1e-4)


def test_the_cache_changes_nothing(pair):
    mini, _ = pair
    ids = tokens(2, 12)
    whole = mini(ids).logits
    first = mini(ids[:, :8], use_cache=True)
    steps, cache = [first.logits], first.past_key_values
    for t in range(8, 12):
        step = mini(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
        steps.append(step.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_generate_agrees_with_qwen2_on_a_left_padded_batch(pair):
    ids, mask = tokens(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    how = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(pair[0].generate(ids, **how), pair[1].generate(ids, **how))


def test_gradient_checkpointing_gives_the_same_gradients(miniqwen_dir):
    ids, grads = tokens(2, 12), []
    for checkpointing in (False, True):
        model = MiniQwenForCausalLM.from_pretrained(miniqwen_dir).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        grads.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*grads)


def test_tied_weights_stay_tied_through_a_save(pair, tmp_path):
    pair[0].save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_yarn_takes_its_frequencies_from_transformers(miniqwen_dir):
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
    mini = MiniQwenForCausalLM.from_pretrained(miniqwen_dir, rope_parameters=rope)
    qwen = Qwen2ForCausalLM.from_pretrained(miniqwen_dir, rope_parameters=rope)
    ids = tokens(1, 40)
    torch.testing.assert_close(mini(ids).logits, qwen(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"hidden_size": 66}, "hidden_size 66"),
        ({"num_attention_heads": 64}, "odd head dimension"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(wrong, names):
    with pytest.raises(ValueError, match=names):
        MiniQwenConfig(**{**TINY, **wrong})
