"""How many tokens a model takes, and which prompts leave it no room for an answer."""

from collections.abc import Collection, Sequence

from suite import pins

STRETCHED = ("linear", "dynamic")  # rope_types whose factor `max_position_embeddings` does not hold yet, as in vLLM
WITHIN = ("yarn", "longrope", "llama3")  # those whose factor it holds


def config_before_loading(name: str, revision: str | None = None):
    """The config of a model that is still to be loaded; None where it cannot be read here, which is left to whoever
    loads the model."""
    from transformers import AutoConfig

    import suite.model  # noqa: F401  (AutoConfig reads a miniqwen's)

    repository, noted = pins.where(name)
    try:
        return AutoConfig.from_pretrained(repository, revision=revision or noted, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def positions_of(config) -> int | None:
    """How many tokens a model takes, its answer's among them, counted as vLLM does; None where its config is silent."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)  # some models know no such limit
    rope = vars(text).get("rope_parameters") or {}
    if positions is None or rope.get("rope_type") not in STRETCHED:
        return positions
    return int(positions * (rope.get("factor") or 1))


def most_of_vllm(config) -> int | None:
    """The longest window that vLLM gives a model; None where only vLLM can count it.

    It knows other keys and other kinds of stretching, and one for each kind of layer:
    https://github.com/vllm-project/vllm/blob/v0.31.0/vllm/config/model.py (_get_and_verify_max_len)
    """
    text = config.get_text_config()
    rope = vars(text).get("rope_parameters") or {}
    by_layer = [part for part in rope.values() if isinstance(part, dict)]
    counted = rope.get("rope_type") in (*STRETCHED, *WITHIN) and not by_layer
    if getattr(text, "model_max_length", None) or not (counted or all("factor" not in p for p in [rope, *by_layer])):
        return None
    return positions_of(config)


def require_room(prompts: Collection[Sequence[int]], positions: int | None) -> None:
    """Raise `ValueError` where a prompt, in token ids, leaves no position for the first token of its answer."""
    beyond = [] if positions is None else [len(ids) for ids in prompts if len(ids) >= positions]
    if beyond:
        raise ValueError(without_room(beyond, len(prompts), positions, way="Show fewer examples (`num_fewshot`)"))


def without_room(
    beyond: Sequence[int], looked_at: int, positions: int, *, way: str = "", answer: int = 1, whose: str = "the model"
) -> str:
    """What to say of prompts, of so many tokens, that leave no room for `answer` tokens; `way` is the first way out."""
    return (
        f"{len(beyond)} of {looked_at} prompts do not fit: the longest has {max(beyond)} tokens, and with "
        f"{'one' if answer == 1 else answer} of its answer that is more than the {positions} positions of {whose} "
        f"(`max_position_embeddings`, or a lower `vllm_max_model_length`). {f'{way}, leave' if way else 'Leave'} such "
        "rows out (`max_prompt_tokens` of `suite prepare`), or take a model with more positions."
    )
