"""Whether what a config says makes sense: numbers in their range, names that exist, keys that go together.

The libraries find most of it out when a model is loaded, or later, or never.
"""

import math
import os
from dataclasses import fields

from suite.keys import DTYPES
from suite.registry import nearest
from suite.values import as_mapping

# Of training, the least that a number may be: below it TRL trains on nothing or something else without a word, or
# stops where the model is loaded, and some of it with a traceback.
LEAST = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_length",
         "max_completion_length", "num_iterations", "steps_per_generation", "lora_r"),
        1,
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "warmup_steps", "beta", "seed", "dataloader_num_workers"),
        0,
    ),
}  # fmt: skip


def check(values: dict) -> None:
    """What holds wherever the keys are read. `values` has every key of the command, said or not."""
    _check_mixture(values)
    _check_weights(values)
    _check_dtype(values)
    _check_top_p(values)


def check_run(values: dict) -> None:
    """What is asked of the machine, and of the numbers of a training run."""
    _check_precision(values)
    _check_streaming(values)
    if "learning_rate" in values:
        _check_numbers(values)
        _check_reports(values["report_to"])
    _check_group_size(values)


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
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: {top_p} must be above 0 and at most 1.")


def _check_numbers(values: dict) -> None:
    """Numbers of a training run that nothing good can come of."""
    for key, least in LEAST.items():
        value = values.get(key)
        if value is not None and not least <= value < math.inf:  # nan is neither
            raise ValueError(f"{key}: {value} must be at least {least}, and finite.")
    if values["max_steps"] <= 0 and not 0 < values["num_train_epochs"] < math.inf:
        raise ValueError(
            f"num_train_epochs: {values['num_train_epochs']} trains nothing. Set it above 0, or `max_steps`."
        )
    for kind in ("save", "eval"):
        every, strategy = values[f"{kind}_steps"], values[f"{kind}_strategy"]
        if getattr(strategy, "value", strategy) == "steps" and every is not None and not every > 0:
            raise ValueError(f"{kind}_steps: {every} must be above 0; `{kind}_strategy: 'no'` means never.")
    if "generation_batch_size" in values and not values["temperature"] > 0:
        raise ValueError(f"temperature: {values['temperature']} must be above 0, for a group is sampled.")


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
    """TRL turns bf16 on where nobody said anything; on a CPU that is slow, and silent."""
    if values.get("bf16", False) is not None or values.get("fp16"):
        return
    import torch

    if values.get("use_cpu") or not torch.accelerator.is_available():
        raise ValueError(
            "bf16 is TRL's default, and this run is on a CPU. Set `bf16: false` and `use_cpu: true`, or write "
            "`bf16: true` out if you mean it."
        )


def _check_streaming(values: dict) -> None:
    """TRL finds out when the model is loaded."""
    for key in ("dataset_streaming", "streaming"):
        if values.get(key) and values.get("max_steps", 1) <= 0:
            raise ValueError(f"{key}: true, so nobody knows how many rows there are. Set `max_steps`.")


def _check_group_size(values: dict) -> None:
    """GRPO compares the completions of one prompt, so whole groups must fill the generation batch."""
    if "generation_batch_size" not in values:
        return
    group, device_batch = values["num_generations"], values["per_device_train_batch_size"]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    steps = values["steps_per_generation"] or values["gradient_accumulation_steps"]
    batch = values["generation_batch_size"] or device_batch * processes * steps
    if group < 2:
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
