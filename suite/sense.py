"""Whether what a config says makes sense: numbers in their range, names that exist, keys that go together.

The libraries find most of it out when a model is loaded, or later, or never.
"""

import enum
import inspect
import math
import os
import re
import typing
from collections.abc import Sequence
from dataclasses import fields

from suite.keys import DTYPES
from suite.registry import nearest
from suite.values import as_mapping

# Of training, the least that a number may be: below it TRL trains on nothing or something else without a word, or
# stops where the model is loaded, and some of it with a traceback.
LEAST = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
         "max_completion_length", "num_iterations", "steps_per_generation", "num_generations_eval", "lora_r",
         "lora_alpha", "ref_model_sync_steps", "precompute_ref_batch_size", "generation_batch_size",
         "eval_accumulation_steps"),
        1,
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "warmup_steps", "beta", "seed", "data_seed", "dataloader_num_workers",
         "dataset_num_proc", "epsilon", "epsilon_high", "neftune_noise_alpha"),
        0,
    ),
    "max_length": 2,  # of a row of one token nothing is predicted
    "max_grad_norm": -1,  # as 0: no clipping
}  # fmt: skip
ENDLESS = ("max_grad_norm", "epsilon_high")  # infinite, they bound nothing
# Numbers that are a share of something, from 0 to 1.
SHARES = ("top_entropy_quantile", "min_p", "ld_alpha", "ref_model_mixup_alpha", "label_smoothing_factor",
          "label_smoothing", "lora_dropout")  # fmt: skip
# Names that TRL looks at when it comes to use them: behind the first rollout, or at the first step.
GRPO = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
DPO = {
    "loss_type": ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
                  "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
}  # fmt: skip
SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}  # the losses of DPO that read `label_smoothing`
COMPILE_MODES = ("default", "lite", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
DIVERGING = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}  # by other measures
BY_LENGTH = ("group_by_length", "batch_rebalance")  # of `train_sampling_strategy`
OF_4BIT = (
    "bnb_4bit_quant_type",
    "bnb_4bit_quant_storage",
    "use_bnb_nested_quant",
)  # read with `load_in_4bit: true` alone
# What is read of a name on the Hub, and of no path here -> the key of that name.
ON_THE_HUB = {
    "model_revision": "model_name_or_path",
    "teacher_model_revision": "teacher_model_name_or_path",
    "dataset_config": "dataset_name",
}
# Measures of which less may be better, or neither: the Trainer takes more of anything for better that is no loss.
UNCLEAR = ("unjudged", "truncated", "tokens", "entropy", "kl", "completions/clipped_ratio", "completions/mean_length")


def check(values: dict) -> None:
    """What holds wherever the keys are read. `values` has every key of the command, said or not."""
    _check_mappings(values)
    _check_mixture(values)
    _check_weights(values)
    _check_dtype(values)
    _check_top_p(values)
    _check_window(values)
    if "lora_task_type" in values:
        _check_choice("lora_task_type", values["lora_task_type"], ("CAUSAL_LM",))


def check_run(values: dict) -> None:
    """What is asked of the machine, and of the numbers of a training run."""
    _check_precision(values)
    _check_launch(values)
    _check_streaming(values)
    _check_rows(values)
    _check_padding(values)
    if values.get("ignore_bias_buffers"):
        raise ValueError("ignore_bias_buffers is read by nobody but TRL's own script of DPO. Remove it.")
    if values.get("activation_offloading") and _is_on_cpu(values):
        raise ValueError(
            "activation_offloading: true brings activations from a GPU to the CPU, and this run has no GPU."
        )
    if "learning_rate" in values:
        _check_numbers(values)
        _check_reports(values["report_to"])
        _check_schedule(values)
        _check_compilation(values)
        _check_best(values)
        _check_batches(values)
    if "vllm_mode" in values:
        _check_choice("vllm_mode", values["vllm_mode"], ("colocate", "server"))
    if "temperature" in values and values.get("max_completion_length", 1) is None:  # elsewhere that is the default
        raise ValueError("max_completion_length has no value (null), and answers that are sampled need an end.")
    if "generation_batch_size" in values:
        _check_grpo(values)
        _check_group_size(values)
    if "precompute_ref_log_probs" in values:
        _check_dpo(values)


def is_idle(key: str, stage: str, said: dict) -> bool:
    """Whether nobody reads a key beside what else a config says, `said`.

    Such a key is refused, here or as a run begins; a run that was once begun with it may go on without.
    """
    adapts = said.get("use_peft") and stage != "pretrain"
    match key:
        case "use_peft":
            return not adapts
        case "use_vllm":
            return not said.get("use_vllm")
        case "ignore_bias_buffers" | "ignore_data_skip":  # the second is read at a resume alone
            return True
        case "train_sampling_strategy":
            return stage in ("grpo", "distill") or streams(said) is not None
        case "dataloader_in_order":
            return not said.get("dataloader_num_workers")
        case "model_init_kwargs" | "model_revision" if stage == "pretrain" and not said.get("model_name_or_path"):
            return True
        case "model_revision" | "teacher_model_revision" | "dataset_config":
            mixed = key == "dataset_config" and bool(said.get("datasets"))
            return mixed or os.path.exists(said.get(ON_THE_HUB[key]) or "")
        case "test_split_size" | "streaming":
            return not said.get("datasets")
        case "dataset_streaming":
            return bool(said.get("datasets"))
        case "tokenizer_name_or_path":
            return stage == "pretrain" and bool(said.get("model_name_or_path"))
        case "load_in_4bit" | "load_in_8bit" | "dataset_text_field" | "completion_only_loss":
            return stage == "pretrain"
        case "padding_free":
            return stage == "dpo"
        case "warmup_steps":
            return _begins_whole(said)
        case "fp16":
            return _is_on_cpu(said)
        case "bf16":  # which TRL leaves off beside fp16, where nobody says anything of it
            return said.get("bf16") is False or said.get("bf16") is None and bool(said.get("fp16"))
        case "max_steps":
            return (said.get("max_steps") or -1) < 1
        case "do_eval" | "eval_strategy":
            return (said.get("eval_strategy") or "no") == "no"
        case "eval_steps":
            return said.get("eval_strategy") != "steps"
        case "greater_is_better":
            return not _takes_a_best(said)
        case "fsdp_config":
            return not said.get("fsdp")
        case "label_smoothing_factor":
            return stage not in ("pretrain", "sft")
        case "label_smoothing":
            return not SMOOTHED & set(_losses(said))
        case "dataset_kwargs":
            return not as_mapping(key, said.get(key)).get("skip_prepare_dataset")
    if key.startswith("vllm_") and (not said.get("use_vllm") or is_of_other_server(key, said)):
        return True
    return is_of_adapter(key) and not adapts or key in OF_4BIT and not said.get("load_in_4bit")


def streams(said: dict) -> str | None:
    """The key by which the rows stream, if they do: that of `dataset_name`, or that of a mixture."""
    key = "streaming" if said.get("datasets") else "dataset_streaming"
    return key if said.get(key) else None


def is_of_adapter(key: str) -> bool:
    return key.startswith("lora_") or key in ("use_rslora", "use_dora")


def is_of_other_server(key: str, said: dict) -> bool:
    """Whether a key says where a vLLM server is, and the run would sample by a vLLM of its own: TRL's default."""
    of_server = key.startswith("vllm_server_") or key == "vllm_group_port"
    return of_server and said.get("vllm_mode", "colocate") == "colocate"


def check_choices(dataclasses: Sequence[type], values: dict) -> None:
    """Of keys with choices argparse checks what the command line says, and not what a file says; and of names that
    the library knows by an Enum it would say which there are, and not of which key."""
    hints = {key: hint for d in dataclasses for key, hint in typing.get_type_hints(d).items()}
    for f in (f for d in dataclasses for f in fields(d)):
        for kind in typing.get_args(hints[f.name]):
            if isinstance(kind, enum.EnumType) and values.get(f.name) is not None:
                _check_choice(f.name, _word(values[f.name]), [member.value for member in kind])
        if values.get(f.name) is not None and "choices" in f.metadata and f.name != "ddp_backend":  # may be several
            _check_choice(f.name, values[f.name], f.metadata["choices"])


def _check_choice(key: str, value, there: Sequence[str]) -> None:
    if value not in there:
        raise ValueError(f"{key}: there is no '{value}'. There are: {', '.join(there)}.{nearest(value, there)}")


def _word(value) -> str | None:
    """What a key of a few words says: transformers keeps some of them as an Enum, whose value is the word."""
    return value.value if isinstance(value, enum.Enum) else value


def _check_mappings(values: dict) -> None:
    """TRL takes text that is no JSON for it, and hands it on."""
    for key in values:
        if key.endswith("_kwargs"):
            as_mapping(key, values[key])


def _check_mixture(values: dict) -> None:
    """An unknown key inside `datasets:` is a bare TypeError in TRL."""
    if "datasets" not in values:
        return
    from trl.scripts.utils import DatasetConfig

    there = [f.name for f in fields(DatasetConfig)]
    for entry in values["datasets"] or []:
        entry = as_mapping("datasets", entry)
        for key in entry:
            if key not in there:
                raise ValueError(
                    f"Unknown key '{key}' inside `datasets:`. There are: {', '.join(there)}.{nearest(key, there)}"
                )
        if "path" not in entry:
            raise ValueError(f"An entry of `datasets:` has no `path`: {entry}.")


def _check_weights(values: dict) -> None:
    weights, rewards = values.get("reward_weights"), values.get("reward_funcs")
    if weights is not None and not all(math.isfinite(w) for w in weights):
        raise ValueError(f"reward_weights {weights} must all be finite.")
    if weights is not None and rewards is not None and len(weights) != len(rewards):
        raise ValueError(
            f"reward_weights {weights} has {len(weights)} numbers for {len(rewards)} rewards: {', '.join(rewards)}."
        )


def _check_dtype(values: dict) -> None:
    """The library finds out as the model is loaded, by an AttributeError."""
    name = values.get("dtype")
    if name is not None and name not in DTYPES:
        raise ValueError(f"dtype: there is no '{name}' here. There are: {', '.join(DTYPES)}.{nearest(name, DTYPES)}")


def _check_top_p(values: dict) -> None:
    top_p = values.get("top_p")
    if top_p is not None and not (isinstance(top_p, int | float) and 0 < top_p <= 1):
        raise ValueError(f"top_p: {top_p!r} must be above 0 and at most 1.")


def _check_window(values: dict) -> None:
    window = values.get("vllm_max_model_length")
    if window is not None and window < 1 and window != -1:
        raise ValueError(f"vllm_max_model_length: {window} must be at least 1, or -1 for what has room.")


def _check_numbers(values: dict) -> None:
    """Numbers of a training run that nothing good can come of."""
    for key, least in LEAST.items():
        value = values.get(key)
        endless = key in ENDLESS
        if value is not None and not (least <= value < math.inf or endless and value == math.inf):  # nan is neither
            raise ValueError(f"{key}: {value} must be at least {least}{'' if endless else ', and finite'}.")
    if (limit := values["save_total_limit"]) is not None and limit < 1:
        raise ValueError(
            f"save_total_limit: {limit} must be at least 1. Without it all checkpoints are kept; "
            "`save_strategy: 'no'` makes none."
        )
    if not math.isfinite(values.get("entropy_coef") or 0):
        raise ValueError(f"entropy_coef: {values['entropy_coef']} must be finite.")
    for key in SHARES:
        if values.get(key) is not None and not 0 <= values[key] <= 1:
            raise ValueError(f"{key}: {values[key]} is a share, from 0 to 1.")
    if values.get("lora_dropout") == 1:
        raise ValueError("lora_dropout: 1 drops all, so that an adapter learns nothing.")
    if isinstance(multiple := values.get("pad_to_multiple_of"), int) and multiple < 1:
        raise ValueError(
            f"pad_to_multiple_of: {multiple} must be at least 1; null pads no further than the longest row."
        )
    if values["label_smoothing_factor"] > 0 and "packing" not in values:
        raise ValueError("label_smoothing_factor belongs to the loss of SFT and pretraining: here it does nothing.")
    for key in ("seed", "data_seed"):
        if (values[key] or 0) >= 2**32:
            raise ValueError(f"{key}: {values[key]} must be below {2**32}.")
    if values["warmup_steps"] > 1 and values["warmup_steps"] % 1:
        raise ValueError(
            f"warmup_steps: {values['warmup_steps']} is neither a number of steps nor, below 1, a share of the run."
        )
    _check_length(values)
    _check_optim_args(values)
    for kind in ("save", "eval", "logging"):
        every, strategy = values[f"{kind}_steps"], _word(values[f"{kind}_strategy"])
        if strategy == "steps" and every is not None and not every > 0:
            raise ValueError(f"{kind}_steps: {every} must be above 0; `{kind}_strategy: 'no'` means never.")


def _check_length(values: dict) -> None:
    """transformers takes any number of steps below 1 for none that was given."""
    if values["max_steps"] < 1 and values["max_steps"] != -1:
        raise ValueError(
            f"max_steps: {values['max_steps']} must be at least 1. Without it, or with -1, `num_train_epochs` says how "
            "long a run is."
        )
    if values["max_steps"] == -1 and not 0 < values["num_train_epochs"] < math.inf:
        raise ValueError(
            f"num_train_epochs: {values['num_train_epochs']} trains nothing. Set it above 0, or `max_steps`."
        )


def _check_optim_args(values: dict) -> None:
    """transformers passes over a name that it does not look for."""
    said, optim = values.get("optim_args"), str(_word(values.get("optim")))
    if not said:
        return
    if not all(pair.count("=") == 1 for pair in str(said).split(",")):
        raise ValueError(f"optim_args: {said!r} must be written as name=value,name=value.")
    there = _read_of_optim_args(optim)
    if there == []:
        raise ValueError(
            f"optim_args: {optim} reads none of it ({said}). Remove it; what can be set there are keys such as "
            "learning_rate, weight_decay, adam_beta1, adam_beta2 and adam_epsilon."
        )
    for name in (pair.partition("=")[0].replace(" ", "") for pair in str(said).split(",")):
        if there is not None and name not in there:
            raise ValueError(
                f"optim_args: {optim} reads no '{name}'. There are: {', '.join(there)}.{nearest(name, there)} What "
                "else can be set are keys such as learning_rate, weight_decay and adam_beta1."
            )


def _read_of_optim_args(optim: str) -> list[str] | None:
    """The names that transformers looks for when it makes this optimizer, as its source has them; None where it hands
    on whatever is there, and the optimizer refuses what it does not know."""
    from transformers import trainer_optimizer as made

    handler = made._OPTIMIZER_HANDLERS[optim]
    if handler is made._get_bitsandbytes_optimizer and "ademamix" not in optim:  # one function for four optimizers
        return None if "rmsprop" in optim else []
    source = inspect.getsource(handler)
    asked = re.findall(r'optim_args\s*(?:\.\s*(?:get|pop)\s*\(|\[)\s*"(\w+)"', source)
    asked += re.findall(r'"(\w+)"', " ".join(re.findall(r"for\s+key\s+in\s*\(([^)]*)\)\s*:", source)))
    return list(dict.fromkeys(asked))


def _check_reports(report_to) -> None:
    """Who is to be told of the metrics and cannot be, for the Trainer finds out when the model is loaded."""
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    asked = [report_to] if isinstance(report_to, str) else report_to or []
    for name in asked:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            there = ["none", *sorted(INTEGRATION_TO_CALLBACK)]
            raise ValueError(f"report_to: there is no '{name}'. There are: {', '.join(there)}.{nearest(name, there)}")
        if name not in get_available_reporting_integrations():
            raise ValueError(
                f"report_to: '{name}' needs a package that is not installed here. Install it, or say none."
            )


def _check_precision(values: dict) -> None:
    """TRL turns bf16 on where nobody said anything; on a CPU that is slow, and fp16 is nothing: both silent."""
    if values.get("fp16") and _is_on_cpu(values):
        raise ValueError(
            "fp16: true computes in float16 on a GPU, and this run is on a CPU, where it would all be float32 without "
            "a word. Set `fp16: false`, and `bf16: false`."
        )
    if values.get("bf16", False) is None and _is_on_cpu(values):
        raise ValueError(
            "bf16 is TRL's default, and this run is on a CPU. Set `bf16: false` and `use_cpu: true`, or write "
            "`bf16: true` out if you mean it."
        )


def _check_launch(values: dict) -> None:
    """The library finds out when the model is loaded, or never."""
    launched = {"RANK", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"} & os.environ.keys()
    for key, engine in (("deepspeed", "zero2"), ("fsdp", "fsdp2"), ("fsdp_config", "fsdp2"), ("ddp_backend", "ddp")):
        if values.get(key) and not launched:
            raise ValueError(
                f"{key}: {values[key]} is for processes that a launcher starts, and this is a single one. Remove it, "
                f"and add `--launch accelerate_configs/{engine}.yaml` to the command."
            )


def _is_on_cpu(values: dict) -> bool:
    import torch

    return bool(values.get("use_cpu")) or not torch.accelerator.is_available()


def _check_streaming(values: dict) -> None:
    """TRL finds out when the model is loaded, and of test rows by an AttributeError."""
    key = streams(values)
    if key and values.get("max_steps", 1) <= 0:
        raise ValueError(f"{key}: true, so nobody knows how many rows there are. Set `max_steps`.")
    if key == "streaming" and values.get("test_split_size") is not None:
        raise ValueError(
            f"test_split_size: {values['test_split_size']} of a stream cannot be set aside, for nobody knows how many "
            "rows it has. Remove it, or `streaming: true`."
        )


def _check_schedule(values: dict) -> None:
    if _begins_whole(values) and values["warmup_steps"] > 0:
        raise ValueError(
            f"warmup_steps: {values['warmup_steps']} does nothing under `lr_scheduler_type: constant`, which begins "
            "with the whole learning rate. `constant_with_warmup` has a warmup."
        )


def _check_compilation(values: dict) -> None:
    """accelerate finds out of the one when the model is loaded, and torch of the other at the first step."""
    from accelerate.utils import DynamoBackend

    if (backend := values["torch_compile_backend"]) is not None:  # in capitals, too
        _check_choice("torch_compile_backend", backend.lower(), [each.value.lower() for each in DynamoBackend])
    if (mode := values["torch_compile_mode"]) is not None:
        _check_choice("torch_compile_mode", mode, COMPILE_MODES)


def _check_batches(values: dict) -> None:
    """Keys by which other rows would be read than the config says, or in an order that no resume finds again."""
    if values["auto_find_batch_size"]:
        raise ValueError(
            "auto_find_batch_size: true takes a smaller batch when memory runs out, so a step would be of fewer rows "
            "than the config says, and a group of GRPO torn apart. Remove it. A lower `per_device_train_batch_size` "
            "with more `gradient_accumulation_steps` needs less memory for the same step."
        )
    if values["ignore_data_skip"]:
        raise ValueError(
            "ignore_data_skip: true begins an epoch anew where a run is resumed, which would be another run from "
            "there on. Remove it: rows that were read are passed over, and not computed."
        )
    if not values["dataloader_in_order"]:
        raise ValueError(
            "dataloader_in_order: false takes batches in the order in which they happen to be ready, and no resume "
            "would find it again. Remove it."
        )
    strategy = values["train_sampling_strategy"]
    if strategy != "random" and "temperature" in values:
        raise ValueError(
            f"train_sampling_strategy: {strategy} is not read here, where prompts have an order of TRL's own. Remove "
            "it; `shuffle_dataset: false` takes them as they come."
        )
    if strategy not in BY_LENGTH:
        return
    if "precompute_ref_log_probs" in values:
        raise ValueError(
            f"train_sampling_strategy: {strategy} asks how long a row is, and the pairs of DPO have no single length. "
            "Remove it."
        )
    if key := streams(values):
        raise ValueError(
            f"train_sampling_strategy: {strategy} asks how long every row is, and of rows that stream nobody knows. "
            f"Remove it, or `{key}: true`."
        )


def _begins_whole(said: dict) -> bool:
    """Whether nobody reads a warmup: some optimizers have one of their own, and so may a schedule of DeepSpeed."""
    elsewhere = "schedule_free" in str(_word(said.get("optim"))) or said.get("deepspeed")
    elsewhere = elsewhere or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    return _word(said.get("lr_scheduler_type")) == "constant" and not elsewhere


def _takes_a_best(said: dict) -> bool:
    """Whether some measure says which checkpoint is the best one: one that is named, or else the loss."""
    follows = _word(said.get("lr_scheduler_type")) in ("reduce_lr_on_plateau", "greedy")
    return bool(said.get("metric_for_best_model") or said.get("load_best_model_at_end") or follows)


def _check_best(values: dict) -> None:
    """The best of nothing would be chosen in silence, and of some measures the worst."""
    saved, metric = _word(values["save_strategy"]), values["metric_for_best_model"]
    asked = [key for key in ("load_best_model_at_end", "eval_on_start") if values[key]]
    asked += ["save_strategy: best"] if saved == "best" else []
    if asked and _word(values["eval_strategy"]) == "no":
        raise ValueError(
            f"{asked[0]} is about evaluations, and there are none. Set `eval_strategy: steps`, `eval_steps`."
        )
    if saved == "best" and metric is None and not values["load_best_model_at_end"]:
        raise ValueError("save_strategy: best by which measure? Set `metric_for_best_model`, eval_loss for example.")
    if metric is not None and metric.removeprefix("eval_") in UNCLEAR and values["greater_is_better"] is None:
        raise ValueError(
            f"metric_for_best_model: is more {metric} better, or less? The Trainer would take more for better. Say "
            "`greater_is_better: false`, or true."
        )


def _check_dpo(values: dict) -> None:
    """Names of losses, and numbers that the losses would not read, or would make nothing of."""
    losses = _losses(values)
    if not losses:
        raise ValueError("loss_type: [] names no loss. `sigmoid` is DPO's own.")
    for loss in losses:
        _check_choice("loss_type", loss, DPO["loss_type"])
    _check_choice("f_divergence_type", values["f_divergence_type"], DPO["f_divergence_type"])
    if not values["beta"] > 0 and losses != ["sft"]:
        raise ValueError(f"beta: {values['beta']} multiplies what DPO learns from, so it must be above 0.")
    if (
        not values["label_smoothing"] < 0.5
    ):  # TRL divides by 1 - 2 x it: from there on the worse answer would be learned
        raise ValueError(
            f"label_smoothing: {values['label_smoothing']} is the share of wrong labels, and must be below 0.5."
        )
    if values["f_divergence_type"] != "reverse_kl" and not set(losses) <= DIVERGING:
        raise ValueError(
            f"f_divergence_type: {values['f_divergence_type']} is for the losses {', '.join(sorted(DIVERGING))}, and "
            f"loss_type is {', '.join(losses)}. Remove one of them."
        )
    if "exo_pair" in losses and values["label_smoothing"] == 0:
        raise ValueError(
            "loss_type: exo_pair takes a logarithm of `label_smoothing`. Set it above 0, to 0.001 perhaps."
        )
    if values["use_weighting"] and {"aot", "aot_unpaired"} & set(losses):
        raise ValueError(
            "use_weighting: TRL cannot weigh the pairs of the losses aot and aot_unpaired. Remove one of them."
        )
    if not values["discopop_tau"] > 0:
        raise ValueError(f"discopop_tau: {values['discopop_tau']} must be above 0, for the loss divides by it.")
    if values["label_smoothing"] > 0 and not SMOOTHED & set(losses):
        raise ValueError(
            f"label_smoothing: TRL reads it in the losses {', '.join(sorted(SMOOTHED))}, and loss_type is "
            f"{', '.join(losses)}: it would do nothing. `loss_type: robust` is the sigmoid loss with it."
        )
    if values["precompute_ref_log_probs"] and (values["sync_ref_model"] or streams(values)):
        other = "sync_ref_model" if values["sync_ref_model"] else streams(values)
        raise ValueError(
            f"precompute_ref_log_probs asks a reference that stays as it is, once for every row, and cannot go with "
            f"`{other}: true`. Remove one of them."
        )
    _check_reference(values)


def _losses(said: dict) -> list[str]:
    losses = said.get("loss_type", "sigmoid")
    return losses if isinstance(losses, list) else [losses]


def _check_grpo(values: dict) -> None:
    for key, there in GRPO.items():
        _check_choice(key, values[key], there)
    if not values["repetition_penalty"] > 0:
        raise ValueError(f"repetition_penalty: {values['repetition_penalty']} must be above 0; 1 is none.")
    if values["top_k"] < (-1 if values["use_vllm"] else 0):
        raise ValueError(f"top_k: {values['top_k']} must be at least 0, which draws from all tokens.")
    if not values["temperature"] > 0:
        raise ValueError(f"temperature: {values['temperature']} must be above 0, for a group is sampled.")
    sampling = as_mapping("generation_kwargs", values["generation_kwargs"])  # which TRL lets win over the keys
    _check_top_p(sampling)
    if sampling.get("do_sample") is False or sampling.get("temperature") == 0:
        raise ValueError(f"generation_kwargs: {sampling} makes all answers of a group the same, with nothing to learn.")
    if values["delta"] is not None and not values["delta"] > 1:
        raise ValueError(
            f"delta: {values['delta']} is where the importance ratio ends, and must be above 1, its start."
        )
    _check_reference(values)


def _check_reference(values: dict) -> None:
    """TRL finds out when both models are loaded, one of them by a NotImplementedError."""
    if values["sync_ref_model"] and values["use_peft"]:
        raise ValueError(
            "sync_ref_model moves a reference model, and with `use_peft: true` there is none: the reference is the "
            "model without its adapter. Remove one of them."
        )
    if values["sync_ref_model"] and values["beta"] == 0:
        raise ValueError(
            "sync_ref_model moves a reference model, and with `beta: 0` nobody asks one. Set `beta` above 0, or remove "
            "sync_ref_model."
        )


def _check_rows(values: dict) -> None:
    """What TRL would look for in rows in vain, or not look at."""
    if "model_config" in values and values["dataset_text_field"] != "text":  # pretraining
        raise ValueError(
            f"dataset_text_field: rows are read from their column `text`. Call the column "
            f"'{values['dataset_text_field']}' so, and remove the key."
        )
    if "model_config" in values and values["chat_template_path"] is not None:
        raise ValueError(
            "chat_template_path: rows of `text` go through no chat template. Remove it; `suite sft` sets one."
        )
    if values.get("packing") and values["max_length"] is None:
        raise ValueError(
            "packing: rows are laid end to end in pieces of `max_length`, which has no value (null). Set it."
        )
    given = as_mapping("dataset_kwargs", values.get("dataset_kwargs"))
    if given and given != {"skip_prepare_dataset": False}:  # which is the default
        raise ValueError(
            f"dataset_kwargs: {given}. All that may stand there is skip_prepare_dataset, for rows of token ids, and "
            "rows are read as text here. Remove it."
        )


def _check_padding(values: dict) -> None:
    """TRL's DPO goes on without; its SFT finds out when the model is loaded."""
    if not values.get("padding_free"):
        return
    if "packing" not in values:
        raise ValueError("padding_free: TRL's DPO cannot do it, and would pad. Remove it.")
    if not values["packing"] and values["max_length"] is not None:
        raise ValueError(
            f"padding_free: without `packing: true` rows are not cut off, so max_length {values['max_length']} would "
            "not hold. Set `packing: true`, which pads nothing either, or `max_length: null`."
        )


def _check_group_size(values: dict) -> None:
    """GRPO compares the completions of one prompt, so whole groups must fill the generation batch."""
    group, device_batch = values["num_generations"], values["per_device_train_batch_size"]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    steps = values["steps_per_generation"] or values["gradient_accumulation_steps"]
    batch = values["generation_batch_size"] or device_batch * processes * steps
    if group is None or group < 2:
        raise ValueError(f"num_generations: {group} leaves nothing to compare; GRPO needs at least 2 per prompt.")
    if batch % group == 0:
        return
    sum_of_it = (
        f"generation_batch_size {batch}"
        if values["generation_batch_size"]
        else f"per_device_train_batch_size {device_batch} x {processes} processes x {steps} steps = {batch} completions"
    )
    divisors = [d for d in range(2, batch + 1) if batch % d == 0]
    near = sorted(sorted(divisors, key=lambda d: abs(d - group))[:3])
    unit = math.lcm(group, processes)  # a batch holds whole groups, and as much for every process
    ways = [f"num_generations {' or '.join(map(str, near))}"] if near else []
    ways.append(f"a batch of {' or '.join(str(b) for b in (batch // unit * unit, -(-batch // unit) * unit) if b)}")
    raise ValueError(
        f"num_generations {group} does not divide the batch: {sum_of_it}. "
        f"Nearest values that work: {'; or '.join(ways)}."
    )
