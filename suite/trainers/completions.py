"""The completions that an evaluation samples are logged apart from those of training.

TRL keeps both in one place, and calls the file by the step alone: what was sampled to be evaluated takes the place of
what was trained on in that step, or is mixed with it.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

# Beside TRL's completions_00040.parquet, and like it but for the beginning of its name.
TRAINING, EVALUATION = "completions", "evaluation"


def keep_apart(trainer) -> None:
    """Have a trainer that samples write the completions of each evaluation, all of them, into a file of their own."""
    if not trainer.log_completions:
        return
    evaluate, log = trainer.evaluate, trainer.log

    def log_in_evaluation(*args, **kwargs) -> None:
        trainer.log_completions = False
        try:
            log(*args, **kwargs)
        finally:
            trainer.log_completions = True
        if trainer.accelerator.is_main_process:
            _write(trainer)

    def evaluate_apart(*args, **kwargs) -> dict[str, float]:
        of_training, trainer._logs = trainer._logs, {name: _empty(held) for name, held in trainer._logs.items()}
        trainer.log = log_in_evaluation
        try:
            return evaluate(*args, **kwargs)
        finally:
            trainer._logs, trainer.log = of_training, log

    trainer.evaluate = evaluate_apart


def _empty(held) -> list | defaultdict:
    """TRL's own hold no more than a rollout."""
    return defaultdict(list) if isinstance(held, Mapping) else []


def _write(trainer) -> None:
    """The columns of TRL's file."""
    import pandas

    logs, step = trainer._logs, trainer.state.global_step
    if not logs["prompt"]:  # distillation on given completions samples none
        return
    columns = {"step": step, "prompt": logs["prompt"], "completion": logs["completion"]}
    columns |= logs.get("rewards", {}) | logs.get("extra", {})
    if "advantages" in logs:
        columns["advantage"] = logs["advantages"]
    path = Path(trainer.args.output_dir) / "completions" / f"{EVALUATION}_{step:05d}.parquet"
    pandas.DataFrame(columns).to_parquet(path)
