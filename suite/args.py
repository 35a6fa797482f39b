"""A reader of configs and command lines that takes nothing it does not understand.

A configuration is read before a model or a data set is touched. Every mistake is one `ValueError` that names the
value, the choices and the way out.
"""

import os
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from suite import sense
from suite.registry import nearest
from suite.values import as_mapping, coerce

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
    "group_by_length": "it is now `train_sampling_strategy: group_by_length`, of SFT and pretraining",
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
# Keys of which the library's help says something else than holds here: (default, help).
OTHERWISE = {
    "enable_jit_checkpoint": (True, "On SIGTERM the run saves at the end of the step, and ends; else it ends at once."),
}


# By YAML 1.1 a number needs a point, and this is text.
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+\Z")


def _loader() -> type:
    """YAML as it is, except that of two equal keys the last one does not win in silence, that 1e-6 is a number, and
    that what `env` says is text."""
    import yaml  # here, so that `suite --help` need not wait for it

    class UniqueKeys(yaml.SafeLoader):
        def get_single_node(self):
            root = super().get_single_node()
            for key, env in root.value if isinstance(root, yaml.MappingNode) else ():
                if key.value == "env" and isinstance(env, yaml.MappingNode):
                    env.value = [(name, self.as_text(value)) for name, value in env.value]
            return root

        def as_text(self, node):
            is_scalar = isinstance(node, yaml.ScalarNode)
            return yaml.ScalarNode("tag:yaml.org,2002:str", node.value) if is_scalar else node

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

    UniqueKeys.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))
    return UniqueKeys


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file. Raises `ValueError` for a missing file, bad YAML, or anything but a mapping."""
    path = Path(path)
    if not path.is_file():
        there = sorted(str(p) for p in (path if path.is_dir() else path.parent).glob("*.yaml"))
        what = (
            f"'{path}' is a directory." if path.is_dir() else f"There is no config file '{path}'.{nearest(path, there)}"
        )
        raise ValueError(what + (f" In that directory there are: {', '.join(there)}." if there else ""))
    import yaml

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        tab = " YAML is indented by spaces, and not by tabs." if r"'\t'" in str(error) else ""
        raise ValueError(f"{path}: {' '.join(str(error).split())}{tab}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a YAML mapping (`key: value` lines), and holds {_kind(content)}.")
    return content


def _kind(value) -> str:
    names = {"NoneType": "nothing", "list": "a list", "str": "one piece of text", "dict": "a mapping"}
    return names.get(type(value).__name__, f"the {type(value).__name__} {value!r}")


def take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """(path after --config, the other words)."""
    words: list[str] = []
    paths: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--config" or word.startswith("--config="):
            path = next(rest, "") if word == "--config" else word.removeprefix("--config=")
            if not path or path.startswith("--"):
                raise ValueError("--config needs the path of a YAML file.")
            paths.append(path)
        else:
            words.append(word)
    if len(paths) > 1:
        raise ValueError(f"--config stands {len(paths)} times, and a command reads one file: {', '.join(paths)}.")
    return (paths[0] if paths else None), words


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
    unknown key (naming its nearest neighbor, or its successor where TRL dropped it), a prefix of a key, a duplicate
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
    for action in parser._actions:
        action.required = False  # `_check_required` says more of what is missing, and later: first what is unknown
    namespace, unknown = parser.parse_known_args(words)
    for word in unknown:
        _check_key(word.partition("=")[0].removeprefix("--").replace("-", "_"), keys, "the command line", word)
    values = vars(namespace)
    said = {w.partition("=")[0].lstrip("-").replace("-", "_") for w in words if w.startswith("--")}
    written |= {k: values[k] for k in said | {s.removeprefix("no_") for s in said} if k in keys}
    _check_required(only or dataclasses, values)
    sense.check(values)
    sense.check_choices(dataclasses, values)
    if only:
        return (*(d(**{f.name: values[f.name] for f in fields(d) if f.init}) for d in only), values)
    sense.check_run(values)
    try:
        filled = parser.parse_args_into_dataclasses(args=words, look_for_args_file=False)
    except OSError as error:  # a key that names a file, such as accelerator_config
        raise ValueError(f"A key names a file that cannot be read: {error}.") from None
    except TypeError as error:  # an entry of such a key
        raise ValueError(f"One of the mappings has an entry that is never read: {error}.") from None
    for instance in filled:
        if "resume_from_checkpoint" in values and hasattr(instance, "resume_from_checkpoint"):
            said_resume = instance.resume_from_checkpoint  # the Trainer takes the text "true" for a path
            instance.resume_from_checkpoint = {"true": True, "false": None}.get(str(said_resume).lower(), said_resume)
    return (*filled, written)


def _coerce_key(key: str, value, hint):
    """`coerce`, where TRL takes truth for a word of its own."""
    if key == "resume_from_checkpoint" and isinstance(value, bool):
        return str(value).lower()
    if key == "report_to" and value is None:
        return "none"
    if key.endswith("_strategy") and value is False:  # which YAML makes of a bare no
        return "no"
    if key == "max_seconds" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a run may stand there, too
    if key == "scale_rewards" and isinstance(value, bool):
        return "group" if value else "none"
    return coerce(key, value, hint)


def _check_key(key: str, keys, where, word: str | None = None) -> None:
    if word is not None and not word.startswith("--"):
        raise ValueError(f"'{word}' on {where} belongs to no key. Keys are written `--key value`.")
    if key in SUCCESSORS:
        raise ValueError(f"The key '{key}' in {where} no longer exists: {SUCCESSORS[key]}.")
    if key not in keys:
        meant = f" Did you mean '{SHORT[key]}'?" if SHORT.get(key) in keys else _elsewhere(key) or nearest(key, keys)
        raise ValueError(f"Unknown key '{key}' in {where}.{meant}")


def _elsewhere(key: str) -> str:
    """' It is a key of `suite grpo`.', or nothing where no stage has it."""
    import trl

    from suite.keys import RewardArguments, ScratchArguments

    of = {"pretrain": [ScratchArguments], "sft": [trl.SFTConfig], "dpo": [trl.DPOConfig]}
    of |= {"distill": [trl.DistillationConfig], "grpo": [trl.GRPOConfig, RewardArguments]}
    there = [f"`suite {stage}`" for stage, kinds in of.items() if any(key == f.name for d in kinds for f in fields(d))]
    return f" It is a key of {', '.join(there)}." if there else ""


def _check_required(dataclasses, values: dict) -> None:
    """Fields without a default; argparse would only print its usage."""
    for d in dataclasses:
        for f in fields(d):
            if f.default is MISSING and f.default_factory is MISSING and f.init and values.get(f.name) is None:
                raise ValueError(f"'{f.name}' is missing. {f.metadata.get('help', '')}".strip())


def describe(dataclasses: Sequence[type]) -> str:
    """Every key a command takes, with its default and what it does: the page behind `--help`."""
    lines = []
    for d in dataclasses:
        lines.append(f"\n{d.__name__}")
        for f in (f for f in fields(d) if f.init):
            default = f.default if f.default is not MISSING else f.default_factory
            default = default() if callable(default) else default
            default, told = OTHERWISE.get(f.name, (default, f.metadata.get("help", "")))
            shown = "required" if default is MISSING else repr(default.value if hasattr(default, "value") else default)
            told = " ".join(str(told).split())
            lines.append(f"  --{f.name} ({shown})  {told[:160]}{'...' if len(told) > 160 else ''}".rstrip())
    return "\n".join(lines)


def say(line: str) -> None:
    """Print a line once, whatever the number of processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(line, flush=True)
