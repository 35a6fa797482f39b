"""Each form of miniqwen is what a stock class computes with the same weights, however the tokens come to it.

A mixture is Qwen2MoE, latent attention is DeepSeek-V2's, and YaRN is transformers'.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Qwen2ForCausalLM,
    Qwen2MoeForCausalLM,
)
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from suite.model import MiniQwenConfig, MiniQwenForCausalLM
from tests.conftest import TINY, save_model
from tests.test_model import tokens

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
FORMS = {
    "experts": {"num_experts": 4},
    "a shared expert": {
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32,
        "norm_topk_prob": False,
        "mlp_only_layers": [0],
    },
    "latent": {"kv_lora_rank": 24},
    "latent with compressed queries": {
        "kv_lora_rank": 32,
        "q_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 6,
        "v_head_dim": 10,
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5},
    },
    "latent experts": {"num_experts": 4, "kv_lora_rank": 24},
    "yarn": {"rope_parameters": YARN},
}
MIXTURES = ["experts", "a shared expert"]
LATENT = ["latent", "latent with compressed queries"]


@pytest.fixture(scope="module")
def directories(tokenizer_dir, tmp_path_factory):
    """A checkpoint of each form, and of the dense model, as it is saved."""
    home = tmp_path_factory.mktemp("forms")
    return {
        form: save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, home / form.replace(" ", "-"), **shape)
        for form, shape in {"dense": {}, **FORMS}.items()
    }


@pytest.fixture(params=FORMS)
def model(directories, request):
    return AutoModelForCausalLM.from_pretrained(directories[request.param]).eval()


def assert_same(ours, theirs, ids, **asked) -> None:
    """The same logits, loss and gradients, by name; `theirs` may have parameters that nothing asks for."""
    answers = []
    for each in (ours, theirs):
        each.zero_grad()
        answers.append(each(ids, labels=ids, **asked))
        answers[-1].loss.backward()
    torch.testing.assert_close(answers[0].logits, answers[1].logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(answers[0].loss, answers[1].loss, atol=1e-5, rtol=1e-5)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("form", MIXTURES)
@pytest.mark.parametrize("how", ["grouped_mm", "eager"])
def test_a_mixture_is_qwen2moe_on_disk_and_in_what_it_computes(directories, form, how):
    ours = MiniQwenForCausalLM.from_pretrained(directories[form], experts_implementation=how)
    theirs, report = Qwen2MoeForCausalLM.from_pretrained(directories[form], output_loading_info=True)
    # Of a shared expert that is none, stock has a gate all the same, which weighs tensors without a value.
    assert not report["unexpected_keys"] and all("shared_expert" in name for name in report["missing_keys"])
    assert bool(report["missing_keys"]) == (form == "experts")
    assert_same(ours, theirs, tokens(3, 21), output_router_logits=True)
    assert ours.config._experts_implementation == how


@pytest.mark.parametrize("form", MIXTURES)
def test_a_qwen2moe_checkpoint_loads_into_a_miniqwen(directories, form, tmp_path):
    theirs = Qwen2MoeForCausalLM.from_pretrained(directories[form])
    theirs.save_pretrained(tmp_path)
    ours = MiniQwenForCausalLM.from_pretrained(tmp_path)
    assert_same(ours, theirs, tokens(2, 13))


@pytest.mark.parametrize("form", MIXTURES)
def test_the_balance_is_measured_by_transformers_formula_and_its_weight_is_in_the_loss(directories, form):
    model = MiniQwenForCausalLM.from_pretrained(directories[form], router_aux_loss_coef=0.5)
    ids, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    mask[0, :5] = 0
    plain = model(ids, attention_mask=mask, labels=ids)
    asked = model(ids, attention_mask=mask, labels=ids, output_router_logits=True)
    mixtures = sum(map(model.config.is_mixture, range(2)))
    assert plain.aux_loss is None and len(asked.router_logits) == mixtures
    expected = load_balancing_loss_func(asked.router_logits, 4, 2, mask)
    torch.testing.assert_close(asked.aux_loss, expected)
    torch.testing.assert_close(asked.loss, plain.loss + 0.5 * expected)
    # By hand: E * sum over experts of (how many of a token's k choices) * (mean probability), over what is no padding.
    kept = mask.reshape(-1).bool()
    probabilities = torch.cat([logits[kept] for logits in asked.router_logits]).softmax(-1)
    chosen = F.one_hot(probabilities.topk(2).indices, 4).sum(1).float()
    torch.testing.assert_close(expected, 4 * (chosen.mean(0) * probabilities.mean(0)).sum())


def test_a_mixture_that_was_asked_for_its_balance_generates_and_is_saved_without_the_question(directories, tmp_path):
    asked = MiniQwenForCausalLM.from_pretrained(directories["experts"], output_router_logits=True)
    ids, mask = tokens(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[0, :4] = 0
    how = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    plain = MiniQwenForCausalLM.from_pretrained(directories["experts"])
    assert torch.equal(asked.generate(ids, **how), plain.generate(ids, **how))
    asked.save_pretrained(tmp_path)
    assert Qwen2MoeForCausalLM.from_pretrained(tmp_path).generate(ids, **how).shape[0] == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_balance_reaches_the_router_under_gradient_checkpointing_too(directories, checkpointing):
    grads = []
    for coefficient in (0.0, 1.0):
        model = MiniQwenForCausalLM.from_pretrained(directories["experts"], router_aux_loss_coef=coefficient).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        ids = tokens(2, 12)
        model(ids, labels=ids, output_router_logits=True).loss.backward()
        grads.append(model.model.layers[0].mlp.gate.weight.grad)
    assert (grads[0] - grads[1]).abs().max() > 1e-3


def deepseek(ours: MiniQwenForCausalLM) -> DeepseekV2ForCausalLM:
    """The stock model of a latent miniqwen: DeepSeek-V2 without a mixture."""
    fields = {name: value for name, value in ours.config.to_dict().items() if name not in ("model_type", "auto_map")}
    layers = ours.config.num_hidden_layers
    theirs = DeepseekV2ForCausalLM(DeepseekV2Config(**fields, first_k_dense_replace=layers, n_routed_experts=1))
    theirs.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", LATENT)
def test_latent_attention_is_deepseeks(directories, form, attention):
    ours = MiniQwenForCausalLM.from_pretrained(directories[form], attn_implementation=attention)
    assert_same(ours, deepseek(ours), tokens(2, 90))


def test_latent_attention_is_what_a_naive_computation_without_compression_gives(directories):
    """A head at a time, keys and values written out, neighbours turned as complex numbers; nothing of it is shared."""
    layer = MiniQwenForCausalLM.from_pretrained(directories["latent"]).model.layers[0].self_attn
    config, T = layer.config, 11
    x = torch.randn(1, T, config.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    n, p, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim

    def turned(rows):  # (T, P): each pair of neighbours is a complex number, turned by e^(i * position * theta^(-2j/P))
        speed = config.rope_parameters["rope_theta"] ** (-torch.arange(0, p, 2) / p)
        angle = torch.arange(T)[:, None] * speed
        pairs = torch.view_as_complex(rows.reshape(T, p // 2, 2).contiguous()) * torch.polar(torch.ones(()), angle)
        return torch.view_as_real(pairs).reshape(T, p)

    short, where = (x[0] @ layer.kv_a_proj_with_mqa.weight.T).split((config.kv_lora_rank, p), dim=-1)
    short = short / (short.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * layer.kv_a_layernorm.weight
    heads = []
    for h in range(config.num_attention_heads):
        q = x[0] @ layer.q_proj.weight.view(-1, n + p, config.hidden_size)[h].T
        q = torch.cat((q[:, :n], turned(q[:, n:])), dim=-1)
        k_v = short @ layer.kv_b_proj.weight.view(-1, n + v, config.kv_lora_rank)[h].T
        k = torch.cat((k_v[:, :n], turned(where)), dim=-1)
        scores = (q @ k.T / math.sqrt(n + p)).masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(-1) @ k_v[:, n:])
    expected = torch.cat(heads, dim=-1) @ layer.o_proj.weight.T

    model = MiniQwenForCausalLM.from_pretrained(directories["latent"])
    rope = model.model.rotary_emb(x, torch.arange(T)[None])
    said = layer(x, rope, None, None)[0][0]
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-4)
    names, weights = zip(*layer.named_parameters(), strict=True)
    along = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    found, wanted = (torch.autograd.grad((each * along).sum(), (x, *weights)) for each in (said, expected))
    for name, ours, theirs in zip(("x", *names), found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_yarn_is_transformers_past_the_length_it_was_made_for(directories):
    ours, theirs = (
        each.from_pretrained(directories["yarn"], max_position_embeddings=512)
        for each in (MiniQwenForCausalLM, Qwen2ForCausalLM)
    )
    assert ours.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(8) + 1)
    assert_same(ours, theirs, tokens(2, 300))
    plain = MiniQwenForCausalLM.from_pretrained(
        directories["yarn"], rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    assert (plain(tokens(1, 300)).logits - ours(tokens(1, 300)).logits).abs().max() > 0.1


def test_the_cache_changes_nothing_one_token_at_a_time_or_many(model):
    ids = tokens(2, 30)
    step = model(ids[:, :8], use_cache=True)
    said, cache = [step.logits], step.past_key_values
    for first, last in [*((t, t + 1) for t in range(8, 20)), (20, 30)]:
        said.append(model(ids[:, first:last], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(said, dim=1), model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["dense", *FORMS], indirect=True)
def test_left_padding_changes_nothing_and_neither_does_a_static_cache(model):
    short, long = tokens(1, 9, seed=1), tokens(1, 14, seed=2)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), short], dim=1)
    mask = torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0
    both = torch.cat([padded, long])
    logits = model(both, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    torch.testing.assert_close(logits[0, 5:], model(short).logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1], model(long).logits[0], atol=1e-4, rtol=1e-4)
    how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    alone = [model.generate(row, **how, attention_mask=torch.ones_like(row))[0, -8:] for row in (short, long)]
    together = model.generate(both, attention_mask=mask, **how)[:, -8:]
    assert torch.equal(together, torch.stack(alone))
    static = model.generate(both, attention_mask=mask, **how, cache_implementation="static", disable_compile=True)
    assert torch.equal(static[:, -8:], together)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", FORMS)
def test_packed_is_unpacked(directories, form, attention):
    model = MiniQwenForCausalLM.from_pretrained(directories[form], attn_implementation=attention)
    one, two = tokens(1, 7, seed=3), tokens(1, 11, seed=4)
    positions = torch.cat([torch.arange(7), torch.arange(11)])[None]
    packed = model(torch.cat([one, two], dim=1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, :7], model(one).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed[:, 7:], model(two).logits, atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_gives_every_form_the_same_gradients(directories):
    ids = tokens(2, 12)
    for form, path in directories.items():
        grads = []
        for checkpointing in (False, True):
            model = MiniQwenForCausalLM.from_pretrained(path).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(ids, labels=ids).loss.backward()
            grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*grads, msg=lambda m, f=form: f"{f}: {m}")


def test_every_parameter_that_trains_has_a_gradient_whoever_is_chosen(directories):
    """Two tokens meet at most four of the experts' eight places; no rank may wait for a gradient that does not come."""
    for form, path in directories.items():
        model = MiniQwenForCausalLM.from_pretrained(path).train()
        model(tokens(1, 2), labels=tokens(1, 2)).loss.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"{form}: {without}"


def test_the_cache_takes_what_the_configuration_says(model):
    cache = model(tokens(1, 10), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 10 * model.config.cache_bytes(bytes_a_value=4)


def test_latent_attention_caches_less_than_grouped_query_attention_of_one_head():
    config = MiniQwenConfig(kv_lora_rank=64)
    assert (
        config.cache_bytes()
        == 8 * (64 + 32) * 2
        < config.cache_bytes_grouped(1)
        == MiniQwenConfig(num_key_value_heads=1).cache_bytes()
    )


def test_a_dense_configuration_says_nothing_of_other_forms():
    config = MiniQwenConfig()
    there = config.to_dict()
    assert not [key for key in there if "expert" in key or "lora" in key or "router" in key]
    assert not hasattr(config, "output_router_logits")  # TRL would ask a dense model for them


def test_what_is_not_said_of_a_mixture_gives_a_token_as_many_parameters_as_the_dense_model_has():
    dense = MiniQwenForCausalLM(MiniQwenConfig(**TINY, vocab_size=300))
    for shared in (0, 32):
        shape = {**TINY, "vocab_size": 300, "num_experts": 8, "shared_expert_intermediate_size": shared}
        mixture = MiniQwenForCausalLM(MiniQwenConfig(**shape))
        config = mixture.config
        idle = 6 * 3 * config.hidden_size * config.moe_intermediate_size * config.num_hidden_layers
        gates = (8 + bool(shared)) * config.hidden_size * config.num_hidden_layers
        assert mixture.num_parameters() - idle - gates == dense.num_parameters()


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"moe_intermediate_size": 64}, "moe_intermediate_size 64 goes with `num_experts`"),
        ({"router_aux_loss_coef": 0.01}, "router_aux_loss_coef 0.01 goes with `num_experts`"),
        ({"v_head_dim": 8}, "v_head_dim 8 goes with `kv_lora_rank`"),
        ({"num_experts": 0}, "num_experts 0 must be at least 1"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num_experts_per_tok 5 must lie between 1 and num_experts 4"),
        ({"num_experts": 4, "mlp_only_layers": [0, 1]}, "leave no mixture in 2 layers"),
        ({"num_experts": 4, "mlp_only_layers": [2]}, "there are the layers 0 to 1"),
        ({"num_experts": 4, "shared_expert_intermediate_size": 128}, "moe_intermediate_size 0"),
        ({"kv_lora_rank": 16, "num_key_value_heads": 1}, "num_key_value_heads 1 goes with grouped-query attention"),
        ({"kv_lora_rank": 16, "qk_rope_head_dim": 5}, "qk_rope_head_dim 5 is odd"),
        ({"hidden_act": "silly"}, "hidden_act: there is no 'silly'. There are: gelu, .* silu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5: .* rope_type 'default'"),
        ({"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5: .* rope_type 'yarn'"),
    ],
)
def test_forms_that_do_not_go_together_are_refused(wrong, names):
    with pytest.raises(ValueError, match=names):
        MiniQwenConfig(**{**TINY, **wrong})


@pytest.mark.parametrize("form", [{"num_experts": 4}, {"kv_lora_rank": 16}])
def test_a_form_is_not_given_to_weights_of_another(miniqwen_dir, form):
    with pytest.raises(ValueError, match="is not what this model was made with"):
        AutoModelForCausalLM.from_pretrained(miniqwen_dir, **form)


def test_a_layer_that_cannot_be_built_is_refused_of_a_checkpoint_too(miniqwen_dir):
    with pytest.raises(ValueError, match="hidden_act: there is no 'silly'"):
        AutoModelForCausalLM.from_pretrained(miniqwen_dir, hidden_act="silly")
    with pytest.raises(ValueError, match="rope_parameters: rope_type 'linear' needs 'factor'"):
        MiniQwenForCausalLM(MiniQwenConfig(**TINY, rope_parameters={"rope_type": "linear", "rope_theta": 1e4}))
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    with pytest.raises(ValueError, match="partial_rotary_factor 0.5"):
        AutoModelForCausalLM.from_pretrained(miniqwen_dir, rope_parameters=rope)


def test_a_part_of_each_head_turns_where_the_rope_type_has_it_so():
    rope = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    speeds = MiniQwenForCausalLM(MiniQwenConfig(**TINY, rope_parameters=rope)).model.rotary_emb.inv_freq
    assert [speed > 0 for speed in speeds.tolist()] == [True] * (len(speeds) // 2) + [False] * (len(speeds) // 2)
    whole = MiniQwenConfig(**TINY, rope_parameters={"partial_rotary_factor": 1.0})
    assert whole.rope_parameters["rope_type"] == "default"
