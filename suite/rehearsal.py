"""What TRL, transformers and PEFT make of a config when a run begins, tried out on next to nothing before a model is
loaded.

A misspelt key inside a mapping is a traceback there, after minutes of loading, or it is passed over in silence.
"""

import ast
import copy
import inspect
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from suite import pins
from suite.args import say
from suite.registry import nearest

# What is written into `model_init_kwargs` and would not be read there, or lose against a key that is.
ELSEWHERE = {
    "torch_dtype": "it is now the key `dtype`, outside of it",
    "use_flash_attention_2": "it is now the key `attn_implementation: flash_attention_2`, outside of it",
    "load_in_4bit": "it is a key of its own, which goes with `use_peft: true`",
    "load_in_8bit": "it is a key of its own, which goes with `use_peft: true`",
}
OF_THE_LOOP = ("every_n_layers", "offload")  # gradient_checkpointing_kwargs that transformers keeps for itself
NEEDS_MODEL = ("galore", "apollo", "lomo")  # optimizers that are made for the layers of a model


def optimization(config) -> None:
    """Make the optimizer and the schedule for one number. Raises `ValueError` for what they do not take."""
    import torch
    from torch.utils.checkpoint import checkpoint
    from transformers import Trainer, get_scheduler

    if config.use_liger_kernel and find_spec("liger_kernel") is None:
        raise ValueError("use_liger_kernel: true needs the package liger-kernel, which is not installed.")
    number, name = torch.zeros(1, requires_grad=True), config.optim.value
    try:
        kind, how = Trainer.get_optimizer_cls_and_kwargs(config)
        kind([number], **how)
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ImportError) or not any(word in name for word in NEEDS_MODEL):
            raise ValueError(f"optim: {name} cannot be made: {error}") from None
    schedule, given = config.lr_scheduler_type.value, config.lr_scheduler_kwargs
    try:
        steps = 10**9  # of a long run: what a share of its steps is does not matter here
        how = {"num_training_steps": steps, "num_warmup_steps": config.get_warmup_steps(steps)}
        optimizer = torch.optim.SGD([number], lr=config.learning_rate)
        get_scheduler(schedule, optimizer, **how, scheduler_specific_kwargs=given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"lr_scheduler_kwargs: {given} and lr_scheduler_type {schedule}: {error}") from None
    kept = {k: v for k, v in (config.gradient_checkpointing_kwargs or {}).items() if k not in OF_THE_LOOP}
    try:
        checkpoint(torch.sin, number, **{"use_reentrant": True, **kept})
    except (TypeError, ValueError) as error:
        raise ValueError(f"gradient_checkpointing_kwargs: {error}") from None


def loading(model, config) -> None:
    """Raise `ValueError` for keys of `model_init_kwargs`, and names of layers for an adapter, that the model lacks."""
    from transformers import AutoConfig

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    repository, at = pins.split(model.model_name_or_path)
    how = {"revision": at or model.model_revision, "trust_remote_code": config.trust_remote_code}
    how |= {k: v for k, v in (config.model_init_kwargs or {}).items() if k == "code_revision"}
    try:
        found = AutoConfig.from_pretrained(repository, **how)
    except OSError as error:  # the network and the Hub's own refusals
        raise ValueError(f"Cannot load the config of '{model.model_name_or_path}': {error}") from error
    init_kwargs("model_init_kwargs", config.model_init_kwargs, found)
    router(config, found)
    yarn(config.model_init_kwargs, found)
    attention((config.model_init_kwargs or {}).get("attn_implementation", model.attn_implementation), found)
    if model.use_peft:
        _check_targets(model, found)
        layers(model, found)


def router(config, model_config) -> None:
    """Raise `ValueError` for a share of the routers' loss where the model has no experts to choose from."""
    given = vars(config).get("router_aux_loss_coef")  # distillation has no such key
    if given and not hasattr(model_config.get_text_config(), "output_router_logits"):
        raise ValueError(
            f"router_aux_loss_coef: {given} is for a mixture of experts that returns its routers' logits, which this "
            f"{model_config.model_type} does not. Remove it."
        )


def yarn(given: dict | None, model_config) -> None:
    """Say where YaRN stretches a model, and its `max_position_embeddings` is the one of before: all count by that."""
    text = {**vars(model_config.get_text_config()), **(given or {})}
    positions, rope = text.get("max_position_embeddings"), text.get("rope_parameters") or {}
    if positions is None or rope.get("rope_type") != "yarn":
        return
    most = int((rope.get("original_max_position_embeddings") or positions) * (rope.get("factor") or 1))
    if most > positions:
        say(
            f"warning: YaRN stretches the model to {most} positions, and its `max_position_embeddings` is {positions}, "
            "which is where vLLM and `suite` end an answer. Set it, too: "
            f"`model_init_kwargs: {{max_position_embeddings: {most}}}`."
        )


def attention(asked: str | None, model_config) -> None:
    """Raise `ValueError` for an attention that there is not, that is not installed, or that the model does not have."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils import is_kernels_available

    if not asked or not isinstance(asked, str):  # a mapping says it for parts of a model
        return
    if "/" in asked:  # a kernel on the Hub
        if not is_kernels_available():
            raise ValueError(f"attn_implementation: {asked} is a kernel on the Hub and needs the package kernels.")
        return
    there = sorted({"eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name)})
    if asked not in there:  # a paged one, which stands there with a |, is for generation alone
        raise ValueError(
            f"attn_implementation: there is no '{asked}'. There are: {', '.join(there)}.{nearest(asked, there)}"
        )
    if as_it_comes(model_config) is None:
        return
    with_it = copy.deepcopy(model_config)
    with_it._attn_implementation = asked
    try:
        empty(with_it)
    except (ImportError, ValueError) as error:
        raise ValueError(f"attn_implementation: {asked} cannot be had here: {' '.join(str(error).split())}") from None


def padding(config, tokenizer) -> None:
    """Raise `ValueError` for a `pad_token` that the tokenizer lacks."""
    given = vars(config).get("pad_token")  # only SFT and DPO have that key
    brought = vars(config).get("chat_template_path")  # which may bring tokens of its own
    if given is not None and not brought and given not in tokenizer.get_vocab():
        raise ValueError(
            f"pad_token: '{given}' is not a token of this tokenizer, which pads with '{tokenizer.pad_token}'."
        )


def init_kwargs(key: str, given: dict | None, model_config) -> None:
    """Raise `ValueError` for a key that neither `from_pretrained` takes nor the model's config has.

    transformers hands such a one on to the model's class, which ends by a TypeError.
    """
    from transformers import PreTrainedModel

    loader = inspect.unwrap(PreTrainedModel.from_pretrained)
    parameters = [*inspect.signature(loader).parameters]
    taken = {
        *parameters,
        "code_revision",
    }  # the Auto classes take that; and what its code takes out of the rest by name
    for constant in loader.__code__.co_consts:
        taken |= {constant} if isinstance(constant, str) else set(constant) if isinstance(constant, tuple) else set()
    for name in given or {}:
        if name in ELSEWHERE:
            raise ValueError(f"{key}: '{name}' is not read there: {ELSEWHERE[name]}.")
        if name not in taken and not hasattr(model_config, name):
            who, there = type(model_config).__name__, [*parameters, *model_config.to_dict()]
            raise ValueError(f"{key}: neither from_pretrained nor {who} knows '{name}'.{nearest(name, there)}")
    changed = {name: value for name, value in (given or {}).items() if name not in taken}
    as_it_is = as_it_comes(model_config) if changed else None
    if as_it_is is None:
        return
    try:
        with_it = empty(type(model_config).from_dict(model_config.to_dict(), **changed))
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{key}: no model can be made with {changed} ({type(error).__name__}: {error}).") from None
    kinds, number = with_it.config.to_dict().get("layer_types"), changed.get("num_hidden_layers")
    if kinds and number and len(kinds) != number:
        raise ValueError(f"{key}: {number} layers need as many layer_types, and there are {len(kinds)}. Give both.")
    there = _shapes(as_it_is)
    # Weights that do not fit are not loaded, and new ones are random numbers. Layers that are left out do no harm.
    if any(there.get(name) != shape for name, shape in _shapes(with_it).items()):
        raise ValueError(
            f"{key}: the weights there are do not fit a model with {changed}. The shape of a model stays as it is; "
            "`suite pretrain` makes a new one of any shape."
        )


def empty(model_config):
    """The model without weights, on no device, of the class that TRL loads; None where that is not known here."""
    import torch
    import transformers

    known, (named, *_) = transformers.MODEL_FOR_CAUSAL_LM_MAPPING, model_config.architectures or [""]
    made = getattr(transformers, named, None)
    if made is None and type(model_config) in known:
        made = known[type(model_config)]
    with torch.device("meta"):
        return made and made(model_config)


def as_it_comes(model_config):
    """The empty model as its checkpoint has it; None where it cannot be made from the config alone."""
    try:
        return empty(model_config)
    except Exception:  # whatever it is, it is no fault of the keys that are tried out here: loading tells
        return None


def _shapes(model) -> dict:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _check_targets(model, model_config) -> None:
    """Raise `ValueError` where nobody says which layers an adapter is to have, and PEFT has no choice of its own."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOSEN

    chosen = model.lora_target_modules is None and model_config.model_type in CHOSEN
    if not (model.lora_target_modules or model.lora_target_parameters or chosen):
        raise ValueError(
            f"lora_target_modules: which layers of this {model_config.model_type} is the adapter to have? All of them: "
            "`lora_target_modules: all-linear`."
        )


def layers(model, model_config) -> None:
    """Raise `ValueError` for a layer that an adapter is to have and the model has not: PEFT adapts the others.

    The layers are those of an empty model, on no device.
    """
    asked = {
        "lora_target_modules": model.lora_target_modules,
        "lora_modules_to_save": model.lora_modules_to_save,
        "lora_target_parameters": model.lora_target_parameters,
    }
    asked = {key: names for key, names in asked.items() if names and names != "all-linear"}
    whole = as_it_comes(model_config) if asked else None
    if whole is None:
        return
    modules = [name for name, _ in whole.named_modules() if name]
    weighed = [name for name, module in whole.named_modules() if "weight" in dict(module.named_parameters())]
    parameters = [name for name, _ in whole.named_parameters()]
    of_key = {"lora_target_parameters": parameters, "lora_modules_to_save": modules}
    experts = _names_of_experts(model_config.model_type)
    head = next((name for name, module in whole.named_modules() if module is whole.get_output_embeddings()), None)
    for key, names in asked.items():
        there = of_key.get(key, weighed)
        if isinstance(names, str):
            if not experts and not any(re.fullmatch(names, name) for name in there):
                raise ValueError(
                    f"{key}: '{names}' stands alone, is read as a regular expression of whole names, and no layer of "
                    rf"the model has such a name. `.*\.{names}` is a layer in any block, all-linear is every one."
                )
            if key == "lora_target_modules" and head and re.fullmatch(names, head):
                raise _would_not_learn(key, head)
            continue
        ends = list(dict.fromkeys(name.rpartition(".")[2] for name in there))
        for wanted in names:
            if wanted not in experts and not any(f".{name}".endswith(f".{wanted}") for name in there):
                listed = ", ".join(end for end in ends if end and not end.isdigit())
                raise ValueError(f"{key}: the model has no '{wanted}'. There are: {listed}.{nearest(wanted, ends)}")
            if key == "lora_target_modules" and f".{head}".endswith(f".{wanted}"):
                raise _would_not_learn(key, head)


def _would_not_learn(key: str, head: str) -> ValueError:
    return ValueError(f"{key}: TRL reads the weight of {head} itself, so an adapter on it would not learn. Remove it.")


def _names_of_experts(model_type: str) -> Collection[str]:
    """Names of single experts' layers, of which the model holds one tensor: PEFT translates them for some models."""
    from peft.utils import transformers_weight_conversion as conversion

    alike = conversion._MODEL_TO_CONVERSION_PATTERN.get(model_type, model_type)
    return conversion._MOE_TARGET_MODULE_MAPPING.get(alike, ())


def sampling(config, tokenizer) -> None:
    """Raise `ValueError` for keys of `generation_kwargs` and `chat_template_kwargs` that nobody would read."""
    from transformers import GenerationConfig

    said = vars(config)  # a stage that does not sample has no such keys
    for name in said.get("generation_kwargs") or {}:
        who = "vLLM's SamplingParams" if config.use_vllm else "GenerationConfig"
        known = _known_to_vllm() if config.use_vllm else vars(GenerationConfig())
        if name not in known:
            raise ValueError(f"generation_kwargs: {who} has no '{name}'.{nearest(name, known)}")
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in said.get("chat_template_kwargs") or {}:
        if name not in taken and not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
            raise ValueError(f"chat_template_kwargs: the chat template does not mention '{name}': it would do nothing.")


def _known_to_vllm() -> list[str]:
    """The fields of its SamplingParams, read off the source: to import vLLM takes most of a minute."""
    source = Path(find_spec("vllm").origin).with_name("sampling_params.py").read_text(encoding="utf-8")
    kinds = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    (params,) = [node for node in kinds if node.name == "SamplingParams"]
    return [line.target.id for line in params.body if isinstance(line, ast.AnnAssign)]
