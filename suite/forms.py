"""A model in another form: a miniqwen in the class transformers has for it, a dense model as a mixture of experts."""

from suite import merge

# What says of a model which it is; every other field of a miniqwen's configuration is the stock class's.
_ITS_OWN = ("model_type", "architectures", "auto_map", "transformers_version", "dtype")
STOCK = {"qwen2": "dense", "qwen2_moe": "a mixture of experts", "deepseek_v2": "dense with latent attention"}
UPCYCLES = ("miniqwen", "qwen2")


def stock_type(config: dict) -> str | None:
    """What transformers calls a miniqwen with this config.json; None where it has no such class."""
    mixture, latent = "num_experts" in config, "kv_lora_rank" in config
    if mixture and latent:
        return None
    return "qwen2_moe" if mixture else "deepseek_v2" if latent else "qwen2"


def check_stock(config: dict, asked: str) -> None:
    """Raise `ValueError` where a model with this config.json cannot be written as `asked`, naming what it can be."""
    if config["model_type"] != "miniqwen":
        raise ValueError(
            f"--as {asked} is for a miniqwen, and this model is a {config['model_type']} already: leave it out."
        )
    found = stock_type(config)
    if found is None:
        raise ValueError(
            f"--as {asked}: this miniqwen is a mixture of experts with latent attention, and transformers has no class "
            "for both. Leave it out: it loads by the code that travels with it."
        )
    if found != asked:
        raise ValueError(f"--as {asked} is {STOCK[asked]}, and this miniqwen is {STOCK[found]}: --as {found}.")


def check_upcycle(config: dict) -> None:
    """Raise `ValueError` for what is no dense model of a kind that has a mixture to become."""
    if config["model_type"] not in UPCYCLES or "num_experts" in config:
        what = "a mixture already" if "num_experts" in config else f"a {config['model_type']}"
        raise ValueError(f"--upcycle makes a mixture of a dense model ({', '.join(UPCYCLES)}), and this one is {what}.")


def as_stock(model):
    """The same tensors in transformers' own class, which vLLM and every converter know."""
    import transformers

    asked = stock_type(model.config.to_dict())
    more = {}
    if asked == "deepseek_v2":  # whose layers are dense up to the first that is a mixture
        more = {"first_k_dense_replace": model.config.num_hidden_layers, "n_routed_experts": 0}
    name = {"qwen2": "Qwen2", "qwen2_moe": "Qwen2Moe", "deepseek_v2": "DeepseekV2"}[asked]
    config = getattr(transformers, f"{name}Config")(**_fields(model.config), **more)
    return _filled(getattr(transformers, f"{name}ForCausalLM"), config, model, model.state_dict())


def upcycled(model, num_experts: int, num_experts_per_tok: int, seed: int = 0):
    """A dense model as a mixture that answers alike: each expert is a copy of its feed-forward network.

    A token's weights sum to 1 (`norm_topk_prob`), so whichever experts it goes to say together what the network said.
    The router begins at random, for equal scores would send every token to the same ones. https://arxiv.org/abs/2212.05055
    """
    import torch
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    old = model.config
    mini = old.model_type == "miniqwen"
    config = (MiniQwenConfig if mini else Qwen2MoeConfig)(
        **_fields(old),
        num_experts=num_experts,
        num_experts_per_tok=num_experts_per_tok,
        moe_intermediate_size=old.intermediate_size,
        shared_expert_intermediate_size=0,
        norm_topk_prob=True,
    )
    state = dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for layer in range(old.num_hidden_layers):
        mlp = f"model.layers.{layer}.mlp."
        gate, up, down = (state.pop(f"{mlp}{name}_proj.weight") for name in ("gate", "up", "down"))
        state[f"{mlp}experts.gate_up_proj"] = torch.cat((gate, up)).expand(num_experts, -1, -1)  # (E, 2F, C)
        state[f"{mlp}experts.down_proj"] = down.expand(num_experts, -1, -1)  # (E, C, F)
        router = torch.randn(num_experts, old.hidden_size, generator=generator) * old.initializer_range
        state[f"{mlp}gate.weight"] = router.to(gate.dtype)
    return _filled(MiniQwenForCausalLM if mini else Qwen2MoeForCausalLM, config, model, state)


def _fields(config) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in _ITS_OWN}


def _filled(model_class, config, old, state: dict):
    """A new model with these tensors. Only what Qwen2MoE keeps of a shared expert it has not may be missing."""
    import torch

    new = merge.cast(model_class(config), old.dtype)
    missing, unexpected = new.load_state_dict(state, strict=False)
    assert not unexpected and all(".shared_expert" in name for name in missing), (missing, unexpected)
    with torch.no_grad():
        for name in missing:
            new.get_parameter(name).zero_()
    new.generation_config = old.generation_config
    return new
