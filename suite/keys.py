"""What a config may say beyond TRL's own keys."""

import math
from dataclasses import dataclass, field

from suite.registry import nearest
from suite.values import as_mapping, coerce, converts

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class RunArguments:
    """What every training stage understands beside TRL's keys."""

    max_seconds: str | None = field(
        default=None,
        metadata={"help": "Stop after this many seconds of training, or as many as the run in this directory took."},
    )
    hub_step_revisions: bool = field(
        default=False, metadata={"help": "With push_to_hub: each saved step is a branch of its own, step-N."}
    )
    hub_replace: bool = field(
        default=False, metadata={"help": "With push_to_hub: put it in the place of the model that is there."}
    )

    def __post_init__(self):
        if self.max_seconds is None or "/" in self.max_seconds:  # a run, which may not have been made yet
            return
        if not converts(float, self.max_seconds)[0] or float(self.max_seconds) <= 0:
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
            "help": "How many test rows each evaluation answers greedily, and judges as `suite evaluate` does: "
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
class RewardFuncArguments:
    """Which rewards judge, and their knobs."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={
            "help": "Names from `suite list rewards`, dotted paths of your own functions, or reward models (owner/x)."
        },
    )
    reward_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Knobs by reward: {overlong: {max_completion_len: 512}}."}
    )

    def __post_init__(self):
        if not self.reward_funcs or len(set(self.reward_funcs)) < len(self.reward_funcs):
            raise ValueError(f"reward_funcs: {self.reward_funcs} must name at least one reward, and none twice.")
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


@dataclass
class RewardArguments(RewardFuncArguments):
    """The rewards that GRPO sums, step by step. `reward_weights` is TRL's own key."""

    reward_schedule: dict | str | None = field(
        default=None,
        metadata={"help": "Weights that move between two steps: {format: {from: 1.0, to: 0.1, start: 0, end: 200}}."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.reward_schedule = {
            name: _check_schedule(name, entry, self.reward_funcs)
            for name, entry in as_mapping("reward_schedule", self.reward_schedule).items()
        }


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


def grpo_arguments() -> tuple[type, ...]:
    """What a GRPO config may say; `suite score` reads the same file."""
    from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig, ScriptArguments

    ours = (RewardArguments, AnswerArguments, RunArguments)
    return ScriptArguments, GRPOConfig, ModelConfig, DatasetMixtureConfig, *ours
