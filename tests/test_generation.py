"""`generate` on miniqwen's own road gives what transformers' does; what it does not cover takes transformers'."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from suite.model import generation as road
from tests.conftest import ON_CPU, TINY, built_by, shaken, write_yaml

PAD = 0


@pytest.fixture
def model(miniqwen_dir):
    return MiniQwenForCausalLM.from_pretrained(miniqwen_dir).eval()


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """How many rows each step of the own road had, in order."""
    taken, step = [], road.Decoder.step

    def watched(decoder, *args):
        taken.append(decoder.rows)
        return step(decoder, *args)

    monkeypatch.setattr(road.Decoder, "step", watched)
    return taken


def asked(rows: int, length: int = 9) -> dict:
    """A left-padded batch of prompts, each of another length."""
    ids = torch.randint(10, 250, (rows, length), generator=torch.Generator().manual_seed(rows))
    mask = (torch.arange(length) >= torch.arange(rows)[:, None] % (length - 2)).long()
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask, "pad_token_id": PAD}


def both(model, **how) -> tuple:
    """What `generate` gives, and what it gives with transformers' own loop."""
    torch.manual_seed(0)
    ours = model.generate(**how)
    torch.manual_seed(0)
    with transformers_loop():
        return ours, model.generate(**how)


@contextmanager
def transformers_loop():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MiniQwenForCausalLM, "_sample", GenerationMixin._sample)
        yield


@pytest.mark.parametrize("rows", [1, 3, 8, 33])
def test_greedy_tokens_are_those_of_transformers(model, steps, rows):
    ours, theirs = both(model, **asked(rows), max_new_tokens=24, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, theirs)
    assert steps == [rows] * 23


def test_only_enough_rows_and_steps_are_worth_packing(model):
    assert road.packs(model, rows=8, steps=100)
    assert not road.packs(model, rows=1, steps=100)
    assert not road.packs(model, rows=8, steps=2)
    assert not road.packs(model.to(torch.bfloat16), rows=8, steps=100)


def test_without_padding_there_is_no_mask_and_the_same_tokens(model, steps):
    how = asked(6)
    how["attention_mask"] = torch.ones_like(how["attention_mask"])
    ours, theirs = both(model, **how, max_new_tokens=20, do_sample=False)
    assert torch.equal(ours, theirs)
    assert steps


def test_prompts_of_a_group_are_read_once(model, steps, monkeypatch):
    how = asked(3)
    how = {key: each.repeat_interleave(4, dim=0) if key != "pad_token_id" else each for key, each in how.items()}
    read, forward = [], torch.nn.Embedding.forward
    monkeypatch.setattr(
        torch.nn.Embedding, "forward", lambda module, ids: read.append(tuple(ids.shape)) or forward(module, ids)
    )
    ours, theirs = both(model, **how, max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, theirs)
    assert read[:21] == [(3, 9), *[(12,)] * 19, (12, 9)]
    assert steps == [12] * 19


def test_an_answer_may_outgrow_the_first_block_of_the_cache(model, steps):
    ours, theirs = both(model, **asked(4), max_new_tokens=road.BLOCK + 20, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, theirs)
    assert len(steps) == road.BLOCK + 19


class Prefers(LogitsProcessor):
    """Writes into what it is given, as a processor may."""

    def __call__(self, input_ids, scores):
        scores[:, 11] += 3.0
        scores[torch.arange(len(scores)), input_ids[:, -1]] = -torch.inf
        return scores


class EndsAfter(StoppingCriteria):
    """Ends each row at another length, whatever it says."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.arange(len(input_ids)) % 5 + 12 <= input_ids.shape[1]


@pytest.mark.parametrize(
    "option",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [20, 21, 22, 23, 24]},
        {"bad_words_ids": [[30], [31, 32]]},
        {"min_new_tokens": 12, "eos_token_id": list(range(10, 60))},
        {"forced_eos_token_id": 7},
        {"logits_processor": LogitsProcessorList([Prefers()])},
        {"prefix_allowed_tokens_fn": lambda row, ids: list(range(row + 20, row + 60))},
        {"stopping_criteria": StoppingCriteriaList([EndsAfter()])},
        {"stopping_criteria": StoppingCriteriaList([EndsAfter()]), "eos_token_id": None},
        {"num_return_sequences": 1, "max_length": 30, "max_new_tokens": None},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "temperature": 0.7, "top_p": 1e-6},
        {"do_sample": True, "min_p": 0.999},
    ],
    ids=lambda option: "-".join(option),
)
def test_an_option_does_what_it_does_in_transformers(model, steps, option):
    ours, theirs = both(model, **asked(7), **{"max_new_tokens": 20, "do_sample": False, **option})
    assert torch.equal(ours, theirs)
    assert steps


def test_stop_strings_end_an_answer(model, steps, miniqwen_dir):
    tokenizer = AutoTokenizer.from_pretrained(miniqwen_dir)
    said = model.generate(**asked(5), max_new_tokens=20, do_sample=False)
    stop = tokenizer.decode(said[2, 14])
    how = {"stop_strings": [stop], "tokenizer": tokenizer, "max_new_tokens": 20, "do_sample": False}
    ours, theirs = both(model, **asked(5), **how)
    assert torch.equal(ours, theirs)
    assert steps


def test_rows_that_have_ended_leave_the_batch_and_are_padded(model, steps):
    how = {**asked(16), "max_new_tokens": 40, "do_sample": False}
    said = model.generate(**how, eos_token_id=None)
    ends = [int(said[row, 9 + 3 * row]) for row in range(13)]  # a row in three steps, or sooner
    steps.clear()
    ours, theirs = both(model, **how, eos_token_id=ends)
    assert torch.equal(ours, theirs)
    assert steps[0] == 16
    assert sorted(steps, reverse=True) == steps
    assert len(set(steps)) > 2, f"rows in each step: {steps}"
    for row in ours[:, 9:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        assert set(row[end + 1 :]) <= {PAD}


def test_a_streamer_hears_the_same(model, steps):
    class Heard(list):
        put, end = list.append, lambda self: self.append("end")

    heard = [Heard(), Heard()]
    how = {**asked(1), "max_new_tokens": 9, "do_sample": False}
    model.generate(**how, streamer=heard[0])
    with transformers_loop():
        model.generate(**how, streamer=heard[1])
    assert len(heard[0]) == len(heard[1])
    assert all(torch.equal(a, b) for a, b in zip(heard[0][:-1], heard[1][:-1], strict=True))
    assert steps


def test_packed_weights_are_never_those_of_the_last_step(model, steps):
    how = {**asked(8), "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    before = model.generate(**how)
    shaken(model, by=0.05)
    after, theirs = both(model, **how)
    assert torch.equal(after, theirs)
    assert not torch.equal(after, before)
    for parameter in model.parameters():  # as DeepSpeed and FSDP put weights back
        parameter.data = parameter.data.roll(1, dims=-1)
    assert torch.equal(*both(model, **how))


def test_an_adapter_speaks_on_the_road(model, steps):
    from peft import LoraConfig, get_peft_model

    how = {**asked(8), "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    bare = model.generate(**how)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    shaken(adapted, by=0.05)
    steps.clear()
    ours, theirs = both(adapted, **how)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, bare)
    assert steps == [8] * 19


def test_each_row_hears_its_own_adapter(model, steps):
    """PEFT keeps a name for each row of the call: it must not meet fewer, of equal prompts or when rows have ended."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    adapted.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"]))
    shaken(adapted, by=0.05)
    rows = {key: each[:1].expand(6, -1) for key, each in asked(6).items() if key != "pad_token_id"}
    names = ["default", "other", "__base__"] * 2
    assert torch.equal(*both(adapted.eval(), **rows, adapter_names=names, max_new_tokens=20, do_sample=False))
    assert not steps


def test_a_hook_inside_a_layer_meets_tensors_that_can_be_learned_from(model, steps):
    met = []
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, inputs, output: met.append(inputs[0]))
    model.generate(**asked(3), max_new_tokens=6, do_sample=False)
    assert not steps and not any(each.is_inference() for each in met)


def test_a_model_whose_inputs_may_require_grads_keeps_the_road(model, steps):
    model.enable_input_require_grads()  # as TRL does with adapters and gradient checkpointing
    assert torch.equal(*both(model, **asked(3), max_new_tokens=20, do_sample=False))
    assert steps


def test_the_keys_and_values_of_the_prompts_are_not_held_twice(model, monkeypatch):
    caches, prefill = [], road.prefill

    def watched(model, input_ids, model_kwargs, max_length):
        caches.append(model_kwargs["past_key_values"])
        return prefill(model, input_ids, model_kwargs, max_length)

    monkeypatch.setattr(road, "prefill", watched)
    model.generate(**asked(3), max_new_tokens=6, do_sample=False)
    assert (
        sum(each.untyped_storage().nbytes() for layer in caches[0].layers for each in (layer.keys, layer.values)) == 0
    )


def test_a_merged_or_disabled_adapter_is_not_heard(model, steps):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    shaken(adapted, by=0.05)
    how = {**asked(8), "max_new_tokens": 20, "do_sample": False}
    with adapted.disable_adapter():
        assert torch.equal(*both(adapted, **how))
    assert torch.equal(*both(adapted.merge_and_unload(), **how))
    assert steps


def test_a_seed_gives_the_same_tokens_again_and_another_gives_others(model, steps):
    how = {**asked(8), "max_new_tokens": 20, "do_sample": True, "top_k": 0}
    said = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        said.append(model.generate(**how))
    assert torch.equal(said[0], said[1])
    assert not torch.equal(said[0], said[2])
    torch.manual_seed(1)
    model.generate(**how)
    state = torch.get_rng_state()  # all the randomness there is: a run that goes on from it draws the same
    again = [model.generate(**how)]
    torch.set_rng_state(state)
    again.append(model.generate(**how))
    assert torch.equal(*again)
    assert steps


@pytest.mark.parametrize(
    "how",
    [{"temperature": 1.0, "top_k": 0}, {"temperature": 0.6, "top_k": 20}, {"top_p": 0.7, "top_k": 0}, {"min_p": 0.05}],
    ids=lambda how: "-".join(how),
)
def test_tokens_are_drawn_with_the_probabilities_that_transformers_gives_them(model, how):
    torch.manual_seed(0)
    ids, draws = torch.arange(20, 30)[None], 4000
    scores = model.generate(
        ids, max_new_tokens=1, do_sample=True, **how, output_scores=True, return_dict_in_generate=True
    ).scores[0][0]
    probabilities = scores.softmax(-1)
    drawn = model.generate(ids, max_new_tokens=1, do_sample=True, num_return_sequences=draws, **how)[:, -1]
    counts = drawn.bincount(minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double() * draws
    # Pearson's chi-square (https://en.wikipedia.org/wiki/Pearson's_chi-squared_test), rare tokens together.
    rare = expected < 5
    bins = [(counts[possible][~rare], expected[~rare])]
    if expected[rare].sum() > 5:
        bins.append((counts[possible][rare].sum()[None], expected[rare].sum()[None]))
    seen, due = (torch.cat(each) for each in zip(*bins, strict=True))
    freedom = max(1, len(seen) - 1)
    assert ((seen - due) ** 2 / due).sum() < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_scores_that_are_no_numbers_are_told():
    with pytest.raises(RuntimeError, match="inf or nan"):
        road.draw(torch.tensor([[0.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(RuntimeError, match="leave no token"):
        road.draw(torch.full((1, 4), -torch.inf))


def test_one_token_that_is_left_is_always_drawn():
    scores = torch.full((64, 300), -torch.inf)
    scores[torch.arange(64), torch.arange(64) * 4] = -80.0
    assert torch.equal(road.draw(scores), torch.arange(64) * 4)


def test_grpo_s_call_takes_the_road_in_training_mode(model, steps):
    """With the keys that TRL's GRPOTrainer writes into its GenerationConfig."""
    config = GenerationConfig(
        max_new_tokens=20,
        do_sample=True,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=[5, 6],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        cache_implementation=None,
        disable_compile=True,
    )
    prompts = asked(2)
    ids, mask = (prompts[key].repeat_interleave(4, dim=0) for key in ("input_ids", "attention_mask"))
    model.train()
    with torch.no_grad():
        said = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert said.shape[0] == 8
    assert steps
    assert len({tuple(row) for row in said.tolist()}) > 2, "the rows of a group must differ"
    assert model.training


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.0}])
def test_the_rollouts_of_grpo_take_the_road(miniqwen_dir, arithmetic_dir, monkeypatch, steps, keys):
    """TRL puts a `forward` of its own around the model's."""
    from suite.train import grpo

    shape = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 20, "output_dir": "run"}
    where = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(arithmetic_dir)}
    config = write_yaml(Path("grpo.yaml"), reward_funcs=["accuracy"], **where, **shape, **keys)
    trainer = built_by(grpo.main, ["--config", config, *ON_CPU], monkeypatch)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert steps
    assert steps[0] == 8


def test_suite_evaluate_s_engine_takes_the_road(miniqwen_dir, steps):
    from suite.engine import Sampling
    from suite.engine.transformers_engine import TransformersEngine

    engine = TransformersEngine(str(miniqwen_dir), batch_size=4)
    prompts = ["12+34", "2+4=6 1+3", "The answer", "4", "46 The answer to the problem"]
    greedy = engine.complete(prompts, Sampling(temperature=0.0, max_new_tokens=20))
    assert steps
    with transformers_loop():
        theirs = engine.complete(prompts, Sampling(temperature=0.0, max_new_tokens=20))
    assert greedy == theirs


def test_what_all_prompts_begin_with_is_known_on_the_road_too(miniqwen_dir, steps):
    from suite.engine import Sampling, rendered
    from suite.engine.transformers_engine import TransformersEngine

    engine = TransformersEngine(str(miniqwen_dir), batch_size=8)
    begin = "46 The answer to the problem is a number. 2+4=6 1+3=4 "
    prompts = [begin + end for end in ("12", "1+3", "The problem", "1+3", "1+3", "4")]
    assert engine._beginning(rendered(engine.tokenizer, prompts))
    for sampling in (Sampling(max_new_tokens=20), Sampling(max_new_tokens=20, temperature=1.0, seed=3)):
        said = engine.complete(prompts, sampling)
        assert steps and steps[0] == 6
        if sampling.temperature == 0:
            with transformers_loop():
                assert engine.complete(prompts, sampling) == said
        else:
            assert len({one.text for (one,) in said}) > 3
        steps.clear()


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda *args: None)


def wrapped(model):
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def dropping(model):
    model.config.attention_dropout = 0.1
    model.train()


def checkpointing(model):
    model.gradient_checkpointing_enable()
    model.train()


@pytest.mark.parametrize(
    ("change", "option"),
    [
        (None, {"use_cache": False}),
        (None, {"num_beams": 2}),
        (None, {"return_dict_in_generate": True, "output_scores": True}),
        (None, {"cache_implementation": "static"}),
        (None, {"prefill_chunk_size": 4}),
        (None, {"past_key_values": "new"}),
        (None, {"inputs_embeds": "of the ids"}),
        (hooked, {}),
        (wrapped, {}),
        (dropping, {}),
        (checkpointing, {}),
        (lambda model: model.set_attn_implementation("eager"), {}),
    ],
    ids=["no cache", "beams", "scores", "static", "chunks", "a cache", "embeddings", "hook", "forward", "dropout"]
    + ["checkpointing", "eager"],
)
def test_what_the_road_does_not_cover_takes_transformers(model, steps, change, option):
    if change is not None:
        change(model)
    how = asked(5)
    if "past_key_values" in option:
        option = {"past_key_values": DynamicCache(config=model.config)}
    if "inputs_embeds" in option:
        option = {"inputs_embeds": model.model.embed_tokens(how["input_ids"])}
    said = model.generate(**how, **option, max_new_tokens=20, do_sample=False)
    assert getattr(said, "sequences", said).shape[1] > 9
    assert not steps


def test_hidden_states_asked_for_once_do_not_close_the_road(model, steps):
    model(torch.arange(10, 20)[None], output_hidden_states=True, output_attentions=True)
    assert torch.equal(*both(model, **asked(5), max_new_tokens=20, do_sample=False))
    assert steps


MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
FORMS = {
    "mixture": (True, MIXTURE),
    "half a mixture": (True, {**MIXTURE, "decoder_sparse_step": 2}),
    "latent": (False, {"kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}),
    "yarn": (True, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}),
    "wide heads": (True, {"num_key_value_heads": 4, "tie_word_embeddings": False}),
}


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True}, {"do_sample": True, "top_k": 0}])
def test_the_model_can_learn_from_what_it_has_said(model, steps, how):
    """Steps are taken in inference mode, whose tensors autograd refuses: none of them may get out."""
    said = model.generate(**asked(8), max_new_tokens=24, **how)
    assert steps and not said.is_inference()
    model(input_ids=said, labels=said).loss.backward()


@pytest.mark.parametrize("form", FORMS)
def test_each_form_generates_what_it_did(steps, form):
    takes, shape = FORMS[form]
    torch.manual_seed(0)
    model = MiniQwenForCausalLM(MiniQwenConfig(vocab_size=300, **{**TINY, **shape})).eval()
    ours, theirs = both(model, **asked(6), max_new_tokens=20, do_sample=False)
    assert torch.equal(ours, theirs)
    assert bool(steps) == takes


def test_in_bfloat16_each_token_is_the_best_or_nearly(model, steps):
    model = model.to(torch.bfloat16)
    how = asked(6)
    said = model.generate(**how, max_new_tokens=20, do_sample=False, eos_token_id=None)
    mask = torch.cat([how["attention_mask"], torch.ones(6, 20, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(said, attention_mask=mask, position_ids=positions).logits[:, 8:-1].float()
    chosen = logits.gather(-1, said[:, 9:, None]).squeeze(-1)
    assert (logits.amax(-1) - chosen).max() < 0.25
    assert steps


def test_the_road_travels_with_a_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation.py").is_file() and (tmp_path / "skinny.py").is_file()
