"""What a YAML file may say beyond TRL's own keys, and a reader that takes nothing it does not understand.

A configuration is read before a model or a data set is touched. Every mistake is one `ValueError` that names the
value, the choices and the way out.
"""

import enum
import inspect
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path

from suite.registry import nearest

# Keys that recipes on the web still carry, and what became of them.
SUCCESSORS = {
    "max_prompt_length": "TRL dropped it; leave rows with long prompts out of the data instead",
    "max_seq_length": "it is now `max_length`",
    "torch_dtype": "it is now `dtype`",
    "evaluation_strategy": "it is now `eval_strategy`",
    "warmup_ratio": "it is now `warmup_steps`, where a number below 1 is a share of the run: `warmup_steps: 0.03`",
    "overwrite_output_dir": "choose another `output_dir`, or go on with `resume_from_checkpoint: true`",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "save_safetensors": "safetensors is the only format there is",
    "group_by_length": "it is now `train_sampling_strategy: group_by_length`",
    "no_cuda": "it is now `use_cpu`",
    "vllm_device": "vLLM shares the training GPU (`vllm_mode: colocate`) or has its own process (`vllm_mode: server`)",
    "max_completion_len": "it is `max_completion_length`",
    "reward_model_name_or_path": "name the reward model, as owner/model or a directory, in `reward_funcs`",
    **dict.fromkeys(
        ("cliprange", "cliprange_value", "kl_coef", "num_ppo_epochs", "vf_coef", "whiten_rewards"),
        "TRL dropped the PPO trainer; `suite grpo` takes its place",
    ),
}
# What people write for a key whose name is not close to it.
SHORT = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "model": "model_name_or_path",
    "dataset": "dataset_name",
}
DTYPES = ("auto", "float32", "bfloat16", "float16")
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


@dataclass
class RunArguments:
    """What every training stage understands beside TRL's keys."""

    max_seconds: str | None = field(
        default=None,
        metadata={
            "help": "Stop after so many seconds of training, or after as many as the run in this directory took."
        },
    )
    hub_step_revisions: bool = field(
        default=False, metadata={"help": "With push_to_hub: each saved step is a branch of its own, step-N."}
    )

    def __post_init__(self):
        if self.max_seconds is None or "/" in self.max_seconds:  # a run, which may not have been made yet
            return
        if not _converts(float, self.max_seconds)[0] or float(self.max_seconds) <= 0:
            raise ValueError(
                f"max_seconds: '{self.max_seconds}' is neither a number of seconds above 0 nor the directory of a run."
            )


# What is logged of the answers to `eval_answers`, each with eval_ before it; names for `metric_for_best_model`, too.
ANSWERS = ("accuracy", "strict", "lenient", "format", "unjudged", "truncated", "tokens")


@dataclass
class AnswerArguments:
    """What is answered at every evaluation of a run.

    TRL's own keys say when that is (`eval_strategy`, `eval_steps`, `eval_on_start`), how many are answered at a time
    (`per_device_eval_batch_size`) and, in GRPO and distillation, how long an answer may be (`max_completion_length`).
    """

    eval_answers: int = field(
        default=0,
        metadata={
            "help": "So many test rows are answered greedily at every evaluation, and judged as `suite evaluate` does: "
            "eval_accuracy, eval_format, ... Where TRL's own evaluation samples (grpo, distill) it reads as many rows."
        },
    )
    eval_answers_dataset: str | None = field(
        default=None,
        metadata={"help": "The data set whose test rows (prompt, solution) those are; else the run's own."},
    )

    def __post_init__(self):
        if self.eval_answers < 0:
            raise ValueError(f"eval_answers: {self.eval_answers} must be a number of rows, or 0 for none.")
        if self.eval_answers_dataset and not self.eval_answers:
            raise ValueError("eval_answers_dataset names rows to answer; `eval_answers` says how many, and says none.")


@dataclass
class AnswerLengthArguments(AnswerArguments):
    """The same where TRL's own config knows no completions."""

    max_completion_length: int | None = field(
        default=None, metadata={"help": "Longest answer of `eval_answers`, in tokens; 512."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_completion_length is None:
            self.max_completion_length = 512
        elif not self.eval_answers:
            raise ValueError("max_completion_length: nothing is generated here but the answers of `eval_answers`.")
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length: {self.max_completion_length} must be at least 1.")


@dataclass
class ScratchArguments:
    """A model from nothing: its shape and its tokenizer."""

    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Tokenizer of the new model."})
    model_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of MiniQwenConfig that differ from its defaults."}
    )

    def __post_init__(self):
        self.model_config = as_mapping("model_config", self.model_config)


@dataclass
class RewardArguments:
    """Which rewards GRPO sums, and their knobs. `reward_weights` is TRL's own key."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={
            "help": "Names from `suite list rewards`, dotted paths of your own functions, or reward models (owner/x)."
        },
    )
    reward_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Knobs by reward: {overlong: {max_completion_len: 512}}."}
    )
    reward_schedule: dict | str | None = field(
        default=None,
        metadata={"help": "Weights that move between two steps: {format: {from: 1.0, to: 0.1, start: 0, end: 200}}."},
    )

    def __post_init__(self):
        if not self.reward_funcs or len(set(self.reward_funcs)) < len(self.reward_funcs):
            raise ValueError(f"reward_funcs: {self.reward_funcs} must name at least one reward, and none twice.")
        self.reward_schedule = {
            name: _check_schedule(name, entry, self.reward_funcs)
            for name, entry in as_mapping("reward_schedule", self.reward_schedule).items()
        }
        self.reward_kwargs = {
            name: as_mapping(f"reward_kwargs.{name}", knobs)
            for name, knobs in as_mapping("reward_kwargs", self.reward_kwargs).items()
        }
        unused = [name for name in self.reward_kwargs if name not in self.reward_funcs]
        if unused:
            raise ValueError(
                f"reward_kwargs has knobs for '{unused[0]}', which reward_funcs {self.reward_funcs} does not name."
                f"{nearest(unused[0], self.reward_funcs)}"
            )


def _check_schedule(name: str, entry, reward_funcs: list[str]) -> dict:
    """One weight's way: numbers `from` and `to`, steps `start` and `end`."""
    key = f"reward_schedule.{name}"
    if name not in reward_funcs:
        raise ValueError(f"{key}: reward_funcs {reward_funcs} does not name it.{nearest(name, reward_funcs)}")
    entry = as_mapping(key, entry)
    hints = {"from": float, "to": float, "start": int, "end": int}
    if entry.keys() != hints.keys():
        raise ValueError(f"{key} needs the keys {', '.join(hints)}, and has {', '.join(map(str, entry)) or 'none'}.")
    entry = {k: coerce(f"{key}.{k}", v, hints[k]) for k, v in entry.items()}
    if not 0 <= entry["start"] < entry["end"] or not all(math.isfinite(v) for v in entry.values()):
        raise ValueError(f"{key}: steps must have 0 <= start < end and weights be finite, got {entry}.")
    return entry


def as_mapping(key: str, value: dict | str | None) -> dict:
    """A mapping as YAML gives it, or as JSON on the command line."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{key}: '{value}' is not JSON ({error}).") from None
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{key} must be a mapping, got {value!r}.")
    return value or {}


def _loader() -> type:
    """YAML as it is, except that of two equal keys the last one does not win in silence."""
    import yaml  # here, so that `suite --help` need not wait for it

    class UniqueKeys(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            seen = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, which SafeLoader unfolds itself
                    continue
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, typing.Hashable):
                    raise ValueError(f"a key must be text, and on line {key_node.start_mark.line + 1} it is {key}")
                if key in seen:
                    raise ValueError(f"the key '{key}' stands twice (again on line {key_node.start_mark.line + 1})")
                seen.add(key)
            return super().construct_mapping(node, deep)

    return UniqueKeys


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file. Raises `ValueError` for a missing file, bad YAML, or anything but a mapping."""
    path = Path(path)
    if not path.is_file():
        there = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ValueError(
            f"There is no config file '{path}'.{nearest(path, there)}"
            + (f" In that directory there are: {', '.join(there)}." if there else "")
        )
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a YAML mapping (`key: value` lines), and holds {_kind(content)}.")
    return content


def _kind(value) -> str:
    names = {"NoneType": "nothing", "list": "a list", "str": "one piece of text", "dict": "a mapping"}
    return names.get(type(value).__name__, f"the {type(value).__name__} {value!r}")


def coerce(key: str, value, hint):
    """`value` as the type `hint` asks for. Raises `ValueError` naming key, value and type where it cannot be one.

    Numbers may come as text, for YAML reads `1e-6` as text; a single value may stand for a list of one.
    """
    alternatives = _alternatives(hint)
    for alternative in alternatives:
        if type(value) is alternative:  # bool before int: True is an int, too
            return value
    for alternative in alternatives:
        fits, result = _try_as(key, value, alternative)
        if fits:
            return result
    wanted = " or ".join(dict.fromkeys(_type_name(a) for a in alternatives))
    quote = " Put it in quotes." if str in alternatives and isinstance(value, (int, float)) else ""
    raise ValueError(f"{key}: {value!r} is a {type(value).__name__}, and {key} takes {wanted}.{quote}")


def _alternatives(hint) -> list:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [a for member in typing.get_args(hint) for a in _alternatives(member)] if union else [hint]


def _type_name(hint) -> str:
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint)


def _try_as(key: str, value, hint) -> tuple[bool, object]:
    """(fits, the value as that type) for one alternative of a union."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return True, value
    if hint is type(None):
        return value is None or value in ("none", "null"), None
    if origin is typing.Literal:
        return value in inner, value
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, str), value  # the dataclass names the members itself
    if hint is list or origin is list:
        values = value if isinstance(value, list) else [value]
        if value is None or (inner and is_dataclass(inner[0])):
            return isinstance(value, list), value
        return True, [coerce(key, v, inner[0]) for v in values] if inner else values
    if hint is dict or origin is dict:
        return isinstance(value, dict), value
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return _converts(float, value)
    if hint is int and isinstance(value, str):
        return _converts(int, value)
    if hint is bool and isinstance(value, str) and value.lower() in ("true", "false", "yes", "no"):
        return True, value.lower() in ("true", "yes")
    return isinstance(hint, type) and type(value) is hint, value


def _converts(kind: type, value) -> tuple[bool, object]:
    try:
        return True, kind(value)
    except ValueError:
        return False, None


def knobs(function: Callable) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function: what a user may turn."""
    return {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def check_knobs(owner: str, function: Callable, given: dict) -> dict:
    """`given` with every value in its declared type. Raises `ValueError` for a knob the function does not have."""
    there = knobs(function)
    for name in given:
        if name not in there:
            listed = ", ".join(there) or "none"
            raise ValueError(f"{owner} has no knob '{name}'. There are: {listed}.{nearest(name, there)}")
    hints = typing.get_type_hints(function)
    return {name: coerce(f"{owner}.{name}", value, hints.get(name, typing.Any)) for name, value in given.items()}


def knob_class(name: str, function: Callable) -> type:
    """A dataclass with one field per knob of `function`, so that its knobs are keys like any other."""
    hints = typing.get_type_hints(function)
    return make_dataclass(
        name,
        [
            (p.name, hints.get(p.name, str), field(default=None if p.default is p.empty else p.default))
            for p in knobs(function).values()
        ],
    )


def take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """(path after --config, the other words)."""
    words, path = [], None
    rest = iter(argv)
    for word in rest:
        if word == "--config":
            path = next(rest, None)
            if path is None or path.startswith("--"):
                raise ValueError("--config needs the path of a YAML file.")
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            words.append(word)
    return path, words


def parse(
    dataclasses: Sequence[type],
    argv: Sequence[str] | None = None,
    *,
    needs_config: bool = True,
    only: Sequence[type] = (),
) -> tuple:
    """The dataclasses, filled from `--config FILE` and `--key value` words, and what was written out, as a dict.

    The command line wins over the file. With `only`, just these are filled, nothing is asked of the machine, and the
    dict holds the value of every key: for a command that reads another one's config. Raises `ValueError` for an
    unknown key (naming its nearest neighbour, or its successor where TRL dropped it), a prefix of a key, a duplicate
    YAML key, and a value of the wrong type.
    """
    from trl import TrlParser

    class Parser(TrlParser):
        def error(self, message):
            raise ValueError(message)

    path, words = take_config(list(sys.argv[1:] if argv is None else argv))
    if path is None and needs_config:
        raise ValueError("No --config FILE. Every stage reads one: see configs/, for example configs/quickstart/.")
    written = read_yaml(path) if path else {}
    hints = {key: hint for d in dataclasses for key, hint in typing.get_type_hints(d).items()}
    keys = {f.name: hints[f.name] for d in dataclasses for f in fields(d) if f.init}
    for name, value in as_mapping("env", written.pop("env", None)).items():
        os.environ[name] = str(value)
    for key in written:
        _check_key(key, keys, path)
    written = {key: _coerce_key(key, value, keys[key]) for key, value in written.items()}

    parser = Parser(list(dataclasses), allow_abbrev=False, prog="suite")
    parser.set_defaults_with_config(**written)
    namespace, unknown = parser.parse_known_args(words)
    for word in unknown:
        _check_key(word.partition("=")[0].removeprefix("--").replace("-", "_"), keys, "the command line", word)
    values = vars(namespace)
    said = {w.partition("=")[0].lstrip("-").replace("-", "_") for w in words if w.startswith("--")}
    written |= {k: values[k] for k in said | {s.removeprefix("no_") for s in said} if k in keys}
    _check_required(only or dataclasses, values)
    _check_mixture(values)
    _check_weights(values)
    _check_dtype(values)
    _check_top_p(values)
    if only:
        return (*(d(**{f.name: values[f.name] for f in fields(d) if f.init}) for d in only), values)
    _check_run(values)
    try:
        filled = parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
    except OSError as error:  # a key that names a file, such as accelerator_config
        raise ValueError(f"A key names a file that cannot be read: {error}.") from None
    for instance in filled:
        if "resume_from_checkpoint" in values and hasattr(instance, "resume_from_checkpoint"):
            said_resume = instance.resume_from_checkpoint  # the Trainer takes the text "true" for a path
            instance.resume_from_checkpoint = {"true": True, "false": None}.get(str(said_resume).lower(), said_resume)
    return (*filled, written)


def _coerce_key(key: str, value, hint):
    if key == "resume_from_checkpoint" and isinstance(value, bool):
        return str(value).lower()
    return coerce(key, value, hint)


def _check_key(key: str, keys, where, word: str | None = None) -> None:
    if word is not None and not word.startswith("--"):
        raise ValueError(f"'{word}' on {where} belongs to no key. Keys are written `--key value`.")
    if key in SUCCESSORS:
        raise ValueError(f"The key '{key}' in {where} is no more: {SUCCESSORS[key]}.")
    if key not in keys:
        meant = f" Did you mean '{SHORT[key]}'?" if SHORT.get(key) in keys else nearest(key, keys)
        raise ValueError(f"Unknown key '{key}' in {where}.{meant}")


def _check_required(dataclasses, values: dict) -> None:
    """Fields without a default; argparse would only print its usage."""
    for d in dataclasses:
        for f in fields(d):
            if f.default is MISSING and f.default_factory is MISSING and f.init and values.get(f.name) is None:
                raise ValueError(f"'{f.name}' is missing. {f.metadata.get('help', '')}".strip())


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


def _check_run(values: dict) -> None:
    """What is asked of the machine, and of the numbers of a training run."""
    _check_precision(values)
    _check_streaming(values)
    if "learning_rate" in values:
        _check_numbers(values)
        _check_reports(values["report_to"])
    _check_group_size(values)


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


def _check_weights(values: dict) -> None:
    weights, rewards = values.get("reward_weights"), values.get("reward_funcs")
    if weights is not None and not all(math.isfinite(w) for w in weights):
        raise ValueError(f"reward_weights {weights} must all be finite.")
    if weights is not None and rewards is not None and len(weights) != len(rewards):
        raise ValueError(
            f"reward_weights {weights} has {len(weights)} numbers for {len(rewards)} rewards: {', '.join(rewards)}."
        )


def describe(dataclasses: Sequence[type]) -> str:
    """Every key a command takes, with its default and what it does: the page behind `--help`."""
    lines = []
    for d in dataclasses:
        lines.append(f"\n{d.__name__}")
        for f in (f for f in fields(d) if f.init):
            default = f.default if f.default is not MISSING else f.default_factory
            default = default() if callable(default) else default
            shown = "required" if default is MISSING else repr(default.value if hasattr(default, "value") else default)
            told = " ".join(str(f.metadata.get("help", "")).split())
            lines.append(f"  --{f.name} ({shown})  {told[:160]}{'...' if len(told) > 160 else ''}".rstrip())
    return "\n".join(lines)


def grpo_arguments() -> tuple[type, ...]:
    """What a GRPO config may say; `suite score` reads the same file."""
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig, ScriptArguments

    ours = (RewardArguments, AnswerArguments, RunArguments)
    return ScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig, *ours


def say(line: str) -> None:
    """Print a line once, whatever the number of processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(line, flush=True)
