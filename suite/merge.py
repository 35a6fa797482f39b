"""From what a run leaves to a plain model: an adapter merged into its base."""

import json
from pathlib import Path

from suite import checkpoint, look, pins
from suite.args import say

# What a generation config says of sampling, none of which transformers saves beside `do_sample: false`.
SAMPLING = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")


def record_of(source: Path) -> dict:
    """The record of the run that made a directory, or made it as one of its checkpoints; empty for a foreign one."""
    there = [d / "run.json" for d in (source, source.absolute().parent) if (d / "run.json").is_file()]
    return json.loads(there[0].read_text(encoding="utf-8")) if there else {}


def base_of(source: Path, given: str | None = None) -> str | None:
    """The base model of an adapter; None for a whole model.

    Raises `ValueError` where the base is not there, is itself an adapter, or is not the one the adapter was trained on.
    A base that was quantized only in memory (QLoRA) is taken as it is stored, unquantized.
    """
    if not (source / "adapter_config.json").is_file():
        if given is not None:
            raise ValueError(f"base: '{source}' is a whole model and no adapter, so it has no base.")
        return None
    trained_on = checkpoint.read_json(source / "adapter_config.json").get("base_model_name_or_path")
    name = given or trained_on
    if not name:
        raise ValueError(f"'{source}' does not say which model it adapts. Name it: --base DIRECTORY.")
    checkpoint.check_base(source, name)
    checkpoint.check_whole(name)
    checkpoint.refuse_adapter(name)
    _, pinned = pins.where(source)
    return name if pinned == "main" or name != trained_on or checkpoint.is_local(name) else f"{name}@{pinned}"


def shapes_of(adapter: Path) -> dict[str, list[int]]:
    """What an adapter holds, tensor -> shape."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)


def config_of(name: str | Path) -> dict:
    """config.json of a directory; of a model on the Hub what it says there."""
    if checkpoint.is_local(str(name)):
        return checkpoint.read_json(Path(name) / "config.json")
    from transformers import PreTrainedConfig

    try:
        repository, revision = pins.where(name)
        return PreTrainedConfig.get_config_dict(repository, revision=revision)[0]
    except OSError as error:  # the network and the Hub's own refusals
        raise ValueError(f"Cannot load the configuration of '{name}': {error}") from error


def loaded(name: str | Path, dtype: str = "auto"):
    """A model on the CPU, with all weights of its own. Raises `ValueError` where one is not there."""
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    try:
        repository, revision = pins.where(name)
        how = {"dtype": dtype, "revision": revision, "output_loading_info": True}
        model, told = AutoModelForCausalLM.from_pretrained(repository, **how)
    except (OSError, RuntimeError) as error:  # the network, the Hub's refusals, tensors that do not fit
        raise ValueError(f"Cannot load '{name}': {error}") from error
    for config in getattr(model, "peft_config", {}).values():  # by its name on the Hub it may be an adapter
        _refuse_no_change_of_weights(name, config)
    try:
        look.demand_weights(name, model, told)
    except ValueError as error:
        if getattr(model, "_hf_peft_config_loaded", False):  # transformers knows of no `modules_to_save`
            pinned = "" if revision == "main" else f" --revision {revision}"
            raise ValueError(
                f"'{name}' is an adapter with whole tensors of its own, which cannot be read from the Hub. Download it "
                f"and take DIR: `hf download {repository}{pinned} --local-dir DIR`."
            ) from error
        raise
    if lost := sorted(told["unexpected_keys"]):
        more = f" (and {len(lost) - 1} more)" if lost[1:] else ""
        say(f"note: '{name}' holds {lost[0]}{more}, which has no place in its {model.config.model_type}: left out.")
    return model


def check_adapter(source: Path) -> None:
    """Raise `ValueError` for an adapter that is no change of weights, or of a kind that PEFT does not know."""
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(source))
    except KeyError as error:
        raise ValueError(f"The adapter '{source}' has the peft_type {error}, which PEFT here does not know.") from error
    _refuse_no_change_of_weights(source, config)


def _refuse_no_change_of_weights(name: str | Path, config) -> None:
    """Raise `ValueError` for an adapter that only PEFT's own `forward` applies: the model under it answers as its base.

    PEFT takes an empty list of tokens for plain LoRA.
    """
    why = None
    if config.is_prompt_learning:
        why = f"one of {config.peft_type.value}: it lives in front of the prompt and not in weights"
    elif tokens := getattr(config, "alora_invocation_tokens", None):
        why = f"an aLoRA (alora_invocation_tokens: {tokens}): it changes the model behind these tokens alone"
    if why:
        raise ValueError(
            f"The adapter '{name}' is {why}, so it is neither merged, asked nor served here. Load it with PEFT itself "
            "(`PeftModel.from_pretrained`)."
        )


def to_ask(name: str, dtype: str):
    """A model on the CPU as it answers: a whole one, or an adapter beside its base."""
    base = base_of(Path(name))
    return loaded(name, dtype) if base is None else beside(Path(name), base, dtype).get_base_model()


def beside(source: Path, base: str, dtype: str):
    """The adapter beside its base's weights, by PEFT: what transformers loads itself lacks `modules_to_save`.

    Raises `ValueError` for an adapter that does not fit, or that is no change of weights.
    """
    from peft import PeftModel

    check_adapter(source)
    model = loaded(base, dtype)
    _make_room(model, source)
    try:
        model = PeftModel.from_pretrained(model, source)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The adapter '{source}' does not fit its base '{base}': {_first_line(error)}") from error
    _check_places(model, source, base)
    return model


def merged(source: Path, base: str, tokenizer):
    """(the base with the adapter merged into its weights, logits of the adapter beside its base, of the base alone).

    All in float32, the sum too, so that only what is written is rounded. Raises
    `ValueError` for an adapter that does not fit, that changes nothing, or that merged answers otherwise than beside
    its base.
    """
    if "quantization_config" in config_of(base):
        raise ValueError(
            f"The base '{base}' is stored quantized, and merging into rounded weights loses what the adapter learned. "
            "Name the model it was quantized from: --base DIRECTORY."
        )
    model = beside(source, base, "float32")
    adapted = look.logits(model, tokenizer)
    with model.disable_adapter():
        alone = look.logits(model, tokenizer)
    if adapted.equal(alone):
        raise ValueError(f"The adapter '{source}' changes nothing: its base answers the same without it.")
    try:
        model = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT found values that are not finite
        raise ValueError(f"'{source}' cannot be merged: {_first_line(error)}") from error
    findings = look.at_logits("the merged model", look.logits(model, tokenizer), adapted)
    if findings:
        raise ValueError(f"Merging '{source}' into '{base}' went wrong: {findings[0]}. Nothing was written.")
    return model, adapted, alone


def cast(model, dtype):
    """The model with its parameters in `dtype`. `model.to` would round the angles of RoPE, too, which no file holds."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _make_room(model, source: Path) -> None:
    """Give the base as many rows of embeddings as the adapter brings: trained with a `chat_template_path` that names a
    tokenizer, it had as many as that takes, and PEFT has kept all of them."""
    embeddings = look.EMBEDDING, look.EMBEDDING.replace(".weight", ".base_layer.weight")  # the latter beside a LoRA
    rows = {shape[0] for name, shape in shapes_of(source).items() if name.endswith(embeddings)}
    if rows and rows != {model.get_input_embeddings().num_embeddings}:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def _check_places(model, source: Path, base: str) -> None:
    """PEFT only warns of tensors that find no place, and leaves places without a tensor at their random beginning.

    The embeddings of the base may come with an adapter, and need not.
    """
    from peft import get_peft_model_state_dict

    there = set(shapes_of(source))
    needed, allowed = (set(get_peft_model_state_dict(model, save_embedding_layers=more)) for more in (False, True))
    for names, what in ((there - needed - allowed, "has no place for"), (needed - there, "asks of the adapter for")):
        if names:
            raise ValueError(
                f"The adapter '{source}' does not fit its base '{base}', which {what} {sorted(names)[0]} "
                f"(and {len(names) - 1} more)."
            )


def settle_sampling(config) -> None:
    """Let a generation config be one that transformers writes.

    A temperature beside `do_sample: false` samples with vLLM and does nothing with transformers, which writes no such
    config: let it sample with both. At temperature 0 greedy is meant, and the settings of sampling go. Raises
    `ValueError`, and changes nothing, where another setting is refused.
    """
    refused = config is not None and _refusal(config)
    if not refused:
        return
    said = sorted(name for name in SAMPLING if getattr(config, name, None) is not None)
    greedy = config.temperature == 0
    changes = dict.fromkeys(SAMPLING) | {"do_sample": False} if greedy else {"do_sample": True}
    before = {name: getattr(config, name, None) for name in changes}
    config.__dict__.update(changes if said else {})
    if refused := _refusal(config):
        config.__dict__.update(before)
        raise ValueError(
            f"generation_config.json of the base holds what transformers does not save: {refused} Edit that file: "
            "remove the setting, or add the one it asks for."
        )
    if greedy:
        say(f"note: generation_config.json has temperature 0, which is greedy: {', '.join(said)} are left out.")
    else:
        say("note: generation_config.json has settings of sampling beside `do_sample: false`; here it is true.")


def _refusal(config) -> str:
    """Why transformers would not save a generation config; empty where it would."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        told = " ".join(str(error).removeprefix("GenerationConfig is invalid:").split())
        return told.partition(" If you're using a pretrained model")[0]
    return ""


def settle_stops(model, tokenizer) -> None:
    """Let the model's configurations stop at the tokenizer's EOS first, and at what they stopped at besides."""
    ends = tokenizer.eos_token_id
    before = model.generation_config.eos_token_id
    others = [i for i in (before if isinstance(before, list) else [before]) if i not in (None, ends)]
    model.config.eos_token_id = ends
    model.generation_config.eos_token_id = [ends, *others] if others else ends
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
