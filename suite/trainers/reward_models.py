"""Reward models of the Hub, each at the commit that the run is pinned to; TRL would give them the policy's revision."""


def load(funcs: list, pinned: list[dict], config) -> tuple[list, list]:
    """(`funcs` with a model in the place of each name that is pinned, their tokenizers; None for all others).

    Loaded as TRL does: https://github.com/huggingface/trl/blob/v1.16.0/trl/trainer/grpo_trainer.py (Reward functions)
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    commits = {p["name"]: p["commit"] for p in pinned if p["kind"] == "model"}
    how = {**config.model_init_kwargs, "trust_remote_code": config.trust_remote_code}
    if config.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        how["device_map"] = None
    models, tokenizers = [], []
    for func in funcs:
        name = func.partition("@")[0] if isinstance(func, str) else None
        if name not in commits:
            models.append(func)
            tokenizers.append(None)
            continue
        at = {"revision": commits[name]}
        models.append(AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **{**how, **at}))
        tokenizers.append(AutoTokenizer.from_pretrained(name, trust_remote_code=config.trust_remote_code, **at))
    return models, tokenizers
