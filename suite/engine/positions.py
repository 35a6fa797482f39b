"""How many tokens a model takes, and which prompts leave it no room for an answer."""

from collections.abc import Collection, Sequence

STRETCHED = ("linear", "dynamic")  # rope_types whose factor `max_position_embeddings` does not hold yet, as in vLLM
WITHIN = ("yarn", "longrope", "llama3")  # those whose factor it holds


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
    lengths = [len(ids) for ids in prompts]
    too_long = 0 if positions is None else sum(length >= positions for length in lengths)
    if too_long:
        raise ValueError(
            f"{too_long} of {len(lengths)} prompts do not fit: the longest has {max(lengths)} tokens, and with one of "
            f"its answer that is more than the {positions} positions of the model (`max_position_embeddings`, or a "
            "lower `vllm_max_model_length`). Leave such rows out (`max_prompt_tokens` of `suite prepare`), show fewer "
            "examples (`num_fewshot`), or take a model with more positions."
        )
