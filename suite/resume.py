"""Is this the run that lies there, and may it go on? What has changed is said with what follows; what would be wrong is
refused."""

import os
from itertools import islice
from pathlib import Path

from suite import checkpoint, columns, sense
from suite.args import EXPONENT, say

# Keys of a config that say nothing of what is trained.
FREE_KEYS = {
    "resume_from_checkpoint", "output_dir", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",
    "hub_revision", "hub_always_push", "hub_step_revisions", "hub_replace",
}  # fmt: skip
# Keys that may change under a run, and what follows.
_LOOKS = "what is shown and saved changes, and no weight"
_FETCHES = "rows are brought in another way, and are the same"
_ROUNDS = "sums are rounded in another way, so this is no longer bit for bit the run that was begun"
MAY_CHANGE = {
    **dict.fromkeys(
        ["logging_steps", "logging_strategy", "logging_first_step", "log_completions", "num_completions_to_print",
         "log_unique_prompts", "report_to", "run_name", "project", "trackio_space_id", "disable_tqdm", "log_level",
         "save_steps", "save_strategy", "save_total_limit", "enable_jit_checkpoint", "max_seconds"],
        _LOOKS,
    ),
    **dict.fromkeys(
        ["gradient_checkpointing", "gradient_checkpointing_kwargs", "attn_implementation", "torch_compile", "tf32",
         "vllm_gpu_memory_utilization"],
        _ROUNDS,
    ),
    **dict.fromkeys(["dataloader_num_workers", "dataloader_pin_memory"], _FETCHES),
}  # fmt: skip
LENGTH = ("max_steps", "num_train_epochs")
LOOKED_AT = 200  # of the rows, to see whether these call tools
CONSTANT = ("constant", "constant_with_warmup")


def look(directory: Path, record: dict, config) -> tuple[str, str | None]:
    """("start", None), ("go on", checkpoint) or ("complete", None); prints why.

    Raises `ValueError` where the directory holds something else, or what would not go on as it was.
    """
    resume = config.resume_from_checkpoint
    old = run_in(directory)
    if isinstance(resume, str):
        before = checkpoint.record_of(resume)
        if old is not None and directory.resolve() not in Path(resume).resolve().parents:
            raise ValueError(
                f"output_dir {directory} already holds a run, and '{resume}' is not one of its checkpoints."
            )
        _agree(resume, before, record, config)
        return "go on", resume
    if old is None:
        if resume:
            say(f"{directory} holds no run yet; starting one.")
        return "start", None
    if not resume:
        raise ValueError(
            f"output_dir {directory} already holds a run. Go on with it (`resume_from_checkpoint: true`), or choose "
            "another output_dir."
        )
    return _go_on(directory, old, record, config)


def check_beside(rows, record: dict, config) -> None:
    """Note in the record what the rows give the chat template beside their turns, and whether these call tools.

    Raises `ValueError` where the run that goes on was begun without it, as by an older `suite`, which read turns alone,
    and calls with the names of the arguments of all others: its rows would be others from here on.
    """
    there = [name for name in columns.BESIDE_TURNS if name in next(iter(rows))]
    calls = any(map(columns.calls, islice(rows, LOOKED_AT)))
    record |= {"beside_turns": there, "own_arguments": calls}
    if not config.resume_from_checkpoint:
        return
    last = checkpoint.record_of(config.resume_from_checkpoint)
    before = last.get("beside_turns", [])
    if calls and not last.get("own_arguments"):
        raise ValueError(
            f"{config.resume_from_checkpoint} belongs to a run of an older `suite`, which may have read tool calls "
            "with a null for each argument of others: it cannot go on as it was. Choose another output_dir, or go on "
            "with the `suite` that began it."
        )
    if before != there:
        now, then = (" and ".join(map("`{}`".format, names)) or "nothing" for names in (there, before))
        raise ValueError(
            f"{config.resume_from_checkpoint} belongs to a run whose chat template was given {then} beside the turns "
            f"of a row, by another `suite`, and now it would be {now}: it cannot go on as it was. Choose another "
            "output_dir, or go on with the `suite` that began it."
        )


def _go_on(directory: Path, old: dict, record: dict, config) -> tuple[str, str | None]:
    last, passed = checkpoint.last(directory)
    if not old or (last is None and passed):
        why = f": {passed[0]}" if passed else ": it was not written by `suite`, or cut off."
        raise ValueError(
            f"output_dir {directory} holds a model or checkpoints that cannot be gone on from{why} Choose another "
            "output_dir, or remove this one."
        )
    if old.get("finished"):
        longer = _agree(directory, old, record, config)
        if not longer:
            say(f"{directory} holds this very run, complete ({old['seconds']:.0f} s); reusing it.")
            return "complete", None
        if last is None:
            raise ValueError(f"{directory} is complete and has no checkpoint to go on from. Choose another output_dir.")
    for line in passed:
        say(f"passed over: {line}")
    if last is None:
        say(f"{directory} was left before its first checkpoint; starting again.")
        return "start", None
    if not old.get("finished"):
        _agree(last, checkpoint.record_of(last), record, config)
    say(f"going on from {last}.")
    return "go on", str(last)


def engine() -> str:
    """What holds the model on one process or more, as `accelerate launch` was told."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return f"FSDP{os.environ.get('FSDP_VERSION', '')}"
    return "DDP" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "no engine"


def run_in(directory: Path) -> dict | None:
    """The record of the run in a directory; an empty one for a run that `suite` did not write."""
    if (directory / "run.json").is_file():
        return checkpoint.read_json(directory / "run.json")
    foreign = ("checkpoint-*", "*.safetensors", "trainer_state.json", "tokenizer.json")
    return {} if any(any(directory.glob(pattern)) for pattern in foreign) else None


def stamp(directory: Path) -> list | None:
    """By what to know whether the run in a directory is still the one that was looked at."""
    there = run_in(directory)
    return None if there is None else [there.get("started"), there.get("finished")]


def _agree(where: str | Path, old: dict, new: dict, config) -> bool:
    """Say what has changed since `old` and what follows; whether the run is to be longer now.

    Raises `ValueError` for a change after which the result would be neither the old run's nor the new one's.
    """
    longer, refused = False, []
    for key, before, now in _differences(old, new):
        what = f"{key} was {before!r}, is now {now!r}" if before is not None else f"{key} is now {now!r}"
        if key in LENGTH and _is_longer(before, now):
            longer = True
            if _is_constant(config):
                say(f"{what}: the learning rate is constant, so the steps before are the same.")
            else:
                name = _name(config.lr_scheduler_type)
                refused.append(f"{what}, and under lr_scheduler_type {name} the steps before would have had other "
                               "learning rates (constant allows it)")  # fmt: skip
        elif key == "dataloader_num_workers" and sense.streams(new["config"]) and max(before or 0, now or 0) > 1:
            refused.append(f"{what}, and several read the rows of a stream in an order of their own")
        elif key in MAY_CHANGE:
            say(f"{what}: {MAY_CHANGE[key]}.")
        elif _are_the_same_files(old, new, before, now):
            say(f"{what}: the same files in another place, or by another path.")
        else:
            refused.append(what)
    # What was not read before, or is no longer, a key has told of.
    both = old.get("inputs", {}).keys() & new["inputs"].keys()
    for name in sorted(both & set(_changed(old.get("inputs", {}), new["inputs"]))):
        if not _is_as_it_was(old["inputs"][name], name):
            refused.append(f"{name} has changed")
    if old.get("processes", new["processes"]) != new["processes"]:
        refused.append(
            f"{old['processes']} processes before, {new['processes']} now, and rows, random numbers and rollouts "
            "belong to a process each"
        )
    elif old.get("engine", new["engine"]) != new["engine"]:
        refused.append(
            f"{old['engine']} before, {new['engine']} now, and each keeps the optimizer in pieces of its own"
        )
    if old.get("stage") != new["stage"]:
        refused = [f"it is a run of `suite {old.get('stage')}`, not {new['stage']}"]
    if refused:
        raise ValueError(
            f"{where} holds another run: {'; '.join(refused)}. Choose another output_dir, or remove this one."
        )
    for package in _changed(old.get("versions", {}), new["versions"]):
        before, now = old["versions"].get(package), new["versions"].get(package)
        say(f"{package} was {before}, is now {now}: it goes on, and bit for bit as before is no longer promised.")
    return longer


def _differences(old: dict, new: dict) -> list[tuple]:
    """(key, its value before, its value now) for all that differs and was read, or is now."""
    before, now = old.get("config", {}), new["config"]
    return [
        (key, before.get(key), now.get(key))
        for key in _changed(before, now)
        if not _are_one_number(before.get(key), now.get(key))
        and not all(sense.is_idle(key, new["stage"], said) for said in (before, now))
    ]


def _are_one_number(before, now) -> bool:
    """Whether two values differ only in that 1e-6 inside of them was text in older records, and is a number now."""
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(_are_one_number(before[key], now[key]) for key in now)
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_are_one_number, before, now))
    if isinstance(before, str) and isinstance(now, float) and EXPONENT.match(before):
        return float(before) == now
    return before == now


def _changed(before: dict, now: dict) -> list[str]:
    return [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]


def _are_the_same_files(old: dict, new: dict, before, now) -> bool:
    """Whether two values of a key are paths of one model or data set: a run, and what it reads, may have been moved."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    then = old.get("inputs", {}).get(before)
    there = new["inputs"].get(now)
    return then not in (None, before) and there is not None and (then == there or _is_as_it_was(then, now))


def _is_as_it_was(digest: str, name: str) -> bool:
    """Whether a model or data set that has another digest now has it for having been digested otherwise, before."""
    return digest == checkpoint.fingerprint(name, ends=True)


def _is_longer(before, now) -> bool:
    return isinstance(before, int | float) and isinstance(now, int | float) and now > before > 0


def _is_constant(config) -> bool:
    """Whether the learning rate of a step does not depend on how many there will be; warmup may be a share of them."""
    share = isinstance(config.warmup_steps, float) and 0 < config.warmup_steps < 1
    return _name(config.lr_scheduler_type) in CONSTANT and not share


def _name(scheduler) -> str:
    return getattr(scheduler, "value", scheduler)
