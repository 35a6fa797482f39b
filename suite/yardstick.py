"""What the best checkpoint of a run is chosen by, `metric_for_best_model`: whether any evaluation will measure it."""

import ast
import functools
import sys
from fnmatch import fnmatch
from pathlib import Path

from suite.args import say
from suite.keys import ANSWERS
from suite.registry import nearest

# What transformers' Trainer measures in every evaluation, and with `eval_answers` we do.
ALWAYS = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
OF_ANSWERS = (*ANSWERS, "accuracy_ci95", "answers_runtime")
FOLLOWS = ("reduce_lr_on_plateau", "greedy")  # schedules that go by it, too


def check(config, answers: int) -> None:
    """Find out now, and not at the first evaluation, that nobody measures what the best model goes by.

    Rewards may log what they like (TRL's `log_metric`), so GRPO's names are not all known: there it is only told.
    """
    if config.metric_for_best_model is None:
        return
    asked = config.metric_for_best_model.removeprefix("eval_")
    if asked in ANSWERS and not answers:
        raise ValueError(
            f"metric_for_best_model: {config.metric_for_best_model} is measured on answers, and none are asked for. "
            "Set `eval_answers: 128`."
        )
    measured, by_others = measured_by_trl(type(config))
    there = [*ALWAYS, *measured, *(OF_ANSWERS if answers else ())]
    if config.eval_strategy == "no" or any(fnmatch(asked, name) for name in there):
        return
    told = f"metric_for_best_model: no evaluation of this run measures '{asked}'"
    more = "" if answers else f" With `eval_answers` there are also: {', '.join(ANSWERS)}."
    listed = f"There are: {', '.join(there)}.{nearest(asked, [*there, *ANSWERS])}{more}"
    if not by_others and config.skip_memory_metrics:
        raise ValueError(f"{told}. {listed}")
    say(f"note: {told}, unless a reward logs it. {listed}")


@functools.cache
def measured_by_trl(config_class: type) -> tuple[tuple[str, ...], bool]:
    """(what TRL's trainer for a config measures, with * where a name is put in; whether others may add to it).

    Read off the trainer's source, beside the config's: to import it would take ten seconds.
    """
    config_file = Path(sys.modules[config_class.__module__].__file__)
    source = config_file.with_name(config_file.name.replace("_config", "_trainer")).read_text(encoding="utf-8")
    found, by_others = {}, False
    for node in ast.walk(ast.parse(source)):
        match node:  # self._metrics[mode][NAME]; what stands under "train" is no evaluation's
            case ast.Subscript(value=ast.Subscript(value=ast.Attribute(attr="_metrics"), slice=ast.Name()), slice=name):
                match name:
                    case ast.Constant(value=text):
                        found[text] = True
                    case ast.JoinedStr(values=parts):
                        found["".join(str(p.value) if isinstance(p, ast.Constant) else "*" for p in parts)] = True
                    case _:
                        by_others = True
    return tuple(found), by_others


def key(args) -> str | None:
    """The name under which an evaluation gives it."""
    asked = args.metric_for_best_model
    return None if asked is None else f"eval_{asked.removeprefix('eval_')}"


def tell_what_there_is(args, measured: dict) -> None:
    """At the first evaluation, of a name that could not be known to be wrong: the run goes on without a best one.

    Raises `ValueError` where the learning rate goes by it.
    """
    there = ", ".join(name.removeprefix("eval_") for name in measured if name.startswith("eval_"))
    told = f"metric_for_best_model: this evaluation measured no '{args.metric_for_best_model}'. There are: {there}."
    if args.lr_scheduler_type in FOLLOWS:
        raise ValueError(f"{told} And lr_scheduler_type {args.lr_scheduler_type.value} goes by it.")
    kept = "every evaluation saves a checkpoint, and " if args.save_strategy == "best" else ""
    say(f"warning: {told} The run goes on: {kept}it ends with the weights of its last step, not of its best.")
