"""Checkpoints from which a run goes on as if it had never stopped, and which are whole or not there at all."""

import math
import os
import shutil
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate.data_loader import SkipBatchSampler
from safetensors import SafetensorError
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, sort_checkpoints

from suite import card, checkpoint, whole, yardstick

# What transformers and TRL keep in memory from step to step, and leave out of their checkpoints.
# Averages of what is not logged yet, and the place in the buffer of rollouts with the buffer itself.
NUMBERS = (
    "_tr_loss",
    "_last_told",
    "_total_loss_scalar",
    "_globalstep_last_logged",
    "_total_train_tokens",
    "_entropy_window_stats",
    "_step",
    "_buffered_inputs",
)
COLLECTIONS = ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs")
# Of several processes on a CPU each calls its device `cpu:RANK`, and torch.load knows no such place to put tensors.
torch.serialization.register_package(99, lambda kept: None, lambda kept, at: kept if at.startswith("cpu:") else None)


def exact(trainer_class: type) -> type:
    """The same trainer, with exact and whole checkpoints."""
    return type(trainer_class.__name__, (ExactTrainer, trainer_class), {"__doc__": trainer_class.__doc__})


class ExactTrainer:
    """Goes before one of TRL's trainers.

    A checkpoint is written aside, by all ranks, looked at as far as names and sizes go, and then renamed: there is no
    moment at which `checkpoint-N` is there and not whole. Older ones are removed after that. Beside what transformers
    saves it holds `exact_state_RANK.pt`, and in run.json what makes the run what it is, with the size of every file.
    """

    _aside: Path | None = None
    _sampler = None
    _last_told: tuple = (None, None)
    _best_is_told = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.record: dict = {}
        self.resumed: str | None = None
        self.place = Place()
        self.add_callback(self.place)
        self.taking_up = _TakeUp(self)
        self.add_callback(self.taking_up)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs):
        self.begun, self.resumed = time.monotonic(), resume_from_checkpoint
        if self.resumed is not None:
            self.args.eval_on_start = False  # that was before the first step of all
        try:
            found = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except OSError as error:  # of a log, or of completions, that there was no room for
            if error.errno not in whole.FULL:
                raise
            raise ValueError(f"{self.args.output_dir} has no room left ({error}). {self._what_is_left()}") from error
        if self.state.global_step == 0:  # which transformers takes for a run like any other
            raise ValueError(
                f"Not one step was trained: the rows do not fill a batch, and `dataloader_drop_last: "
                f"{str(self.args.dataloader_drop_last).lower()}`. Lower the batch, or give more rows."
            )
        return found

    def seconds(self) -> float:
        """What the run took so far, the time before a resume with it."""
        return self.record.get("spent", 0.0) + time.monotonic() - self.begun

    def _init_training_state(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resumed, trial):
        """(epochs, batches of the epoch) behind us. transformers divides steps, and a stream has no known length."""
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resumed, trial)
        if resumed is None:
            return 0, 0
        self.state.compute_steps(self.args, max_steps)  # transformers goes on with those of the checkpoint
        self.state.best_model_checkpoint = self._best_so_far()
        if self.state.global_step >= max_steps:
            return num_train_epochs, 0  # transformers would make one step more
        self.place.epoch, self.place.batches = self._read_state()["place"]
        self._turn_to_epoch()
        return self.place.epoch, self.place.batches

    def _turn_to_epoch(self) -> None:
        """Have the sampler give the order of the epoch that is taken up."""
        if hasattr(self._sampler, "set_epoch"):  # transformers does not reach it behind the batches that are skipped
            self._sampler.set_epoch(self.place.epoch)
            return
        for _ in range(self.place.epoch):  # the others shuffle with one generator from epoch to epoch
            next(iter(self._sampler or ()), None)

    def _best_so_far(self) -> str | None:
        """Where the best checkpoint lies now: the run may have been moved, and transformers would do without it."""
        told = checkpoint.read_json(Path(self.resumed) / TRAINER_STATE_NAME).get("best_model_checkpoint")
        if told is None:
            return None
        places = [Path(self.args.output_dir), Path(self.resumed).parent]
        best = next((place / Path(told).name for place in places if (place / Path(told).name).is_dir()), None)
        if self.args.load_best_model_at_end:
            checkpoint.record_of(best or places[-1] / Path(told).name)
        return None if best is None else str(best)

    def evaluate(self, *args, **kwargs):
        """What the best model goes by has a value in every evaluation: where it was not measured, one that is never
        the best. transformers would end the run."""
        measured, asked = super().evaluate(*args, **kwargs), yardstick.key(self.args)
        if asked is None or measured.get(asked) is not None:
            return measured
        if asked not in measured and not self._best_is_told:
            yardstick.tell_what_there_is(self.args, measured)
            self._best_is_told = True
        return {**measured, asked: math.nan}

    def _determine_best_metric(self, metrics, trial):
        """Under `save_strategy: best` every evaluation saves while nobody can say which is the best."""
        asked = yardstick.key(self.args)
        return super()._determine_best_metric(metrics, trial) or (asked is not None and math.isnan(metrics[asked]))

    def _finalize_training(self, trial, *args, **kwargs):
        """With a limit of 1 transformers removes the last checkpoint here for the best, and nothing could go on."""
        if self._owes_an_evaluation():
            self._evaluate_the_end(trial)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _owes_an_evaluation(self) -> bool:
        """Whether nothing but the end of the run asks for an evaluation of this step, and it was not made yet.

        transformers makes it before the last checkpoint. A run that is made longer goes on from there, and would have
        in its log, and in its random numbers, an evaluation that is none of a run of that length.
        """
        step, args = self.state.global_step, self.args
        if step < self.state.max_steps or args.save_strategy == SaveStrategy.BEST:  # which saves by what was evaluated
            return False
        if args.eval_strategy == IntervalStrategy.STEPS:
            asked = step % self.state.eval_steps != 0 and args.eval_delay <= step
        else:  # the end of an epoch, or what transformers calls one: a longer run comes to it once more, if it is one
            asked = args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= self.state.epoch
        return asked and not any(
            e["step"] == step and any(k.startswith("eval_") for k in e) for e in self.state.log_history
        )

    def _evaluate_the_end(self, trial) -> None:
        """Where the last checkpoint turns out to be the best, the one before it stays, whatever `save_total_limit` is:
        the last one names it, and a run that is made longer goes on from there."""
        self.taking_up.take_up_random_numbers()  # where the last checkpoint was all that was left to go on from
        self._determine_best_metric(self._evaluate(trial, None), trial)
        last = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step and last.is_dir():
            self.state.best_model_checkpoint = str(last)

    def _get_train_sampler(self, *args, **kwargs):
        self._sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(self._sampler, LengthGroupedSampler):
            # transformers gives it none, and it would draw from torch's own, which a resume finds elsewhere.
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            self._sampler.generator = torch.Generator().manual_seed(seed)
        return self._sampler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Of an epoch that is taken up in its middle accelerate forgets how many rows the last batch of all ranks has,
        and then the rows that fill it up would count in the averages."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        loader = self.accelerator.gradient_state.active_dataloader
        if loader is not None and isinstance(loader.batch_sampler, SkipBatchSampler):
            whole_epoch = self.callback_handler.train_dataloader
            whole_epoch.begin()
            loader.remainder = whole_epoch.remainder
            whole_epoch.end()
        return found

    def take_up(self) -> None:
        """Restore what was in memory when the checkpoint was written."""
        saved = self._read_state()
        self.model.train()  # TRL tells by it whose averages are logged, and an epoch may end before the next batch
        for name, value in saved["numbers"].items():
            setattr(self, name, value)
        for name, value in saved["collections"].items():
            _refill(vars(self)[name], value)
        for share, value in zip(self._moving_reference(), saved["reference"], strict=True):
            share.copy_(value)

    def _read_state(self) -> dict:
        path = Path(self.resumed) / checkpoint.EXACT_STATE.format(rank=self.args.process_index)
        return torch.load(path, map_location=self.args.device, weights_only=True)

    def _write_state(self, directory: Path) -> None:
        state = {
            "place": (self.place.epoch, self.place.batches),
            "numbers": {name: _gathered(vars(self)[name]) for name in NUMBERS if name in vars(self)},
            "collections": {name: _plain(vars(self)[name]) for name in COLLECTIONS if name in vars(self)},
            "reference": self._moving_reference(),
        }
        torch.save(state, directory / checkpoint.EXACT_STATE.format(rank=self.args.process_index))

    def _moving_reference(self) -> list[torch.Tensor]:
        """This rank's share of a reference model that `sync_ref_model` moves; loaded again it would stand at step 0."""
        if not vars(self.args).get("sync_ref_model"):
            return []
        return [_share(parameter) for parameter in self.ref_model.parameters()]

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, learning_rate=None, **kwargs):
        if grad_norm is None and learning_rate is None:  # an epoch that ended with the checkpoint we come from
            grad_norm, learning_rate = self._last_told
        self._last_told = grad_norm, learning_rate
        if self._owes_an_evaluation():
            self.control.should_evaluate = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs)

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save_checkpoint(self, model, trial):
        final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with self.written_aside(final) as directory:
            self._save_into(directory, model, trial)
            if self.is_world_process_zero():
                (directory / card.NAME).unlink(missing_ok=True)  # PEFT's
                checkpoint.seal(directory, {**self.record, "step": self.state.global_step, "spent": self.seconds()})
                whole.put(directory, final)
                card.write(final, pictures=False)
                self._retire(final, directory.parent)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Send a checkpoint. What is sent is put together aside: in `output_dir` it would look like the end."""
        output_dir, self.args.output_dir = self.args.output_dir, str(Path(self.args.output_dir) / checkpoint.PUSHING)
        try:
            Path(self.args.output_dir).mkdir(exist_ok=True)
            if self.is_world_process_zero():
                shutil.copy(Path(checkpoint_folder) / card.NAME, self.args.output_dir)
            super()._push_from_checkpoint(checkpoint_folder)
        finally:
            self.args.output_dir = output_dir

    def create_model_card(self, *args, **kwargs) -> None:
        """Ours, in the place of TRL's, which is made at each save: as far as the run has come."""
        if self.is_world_process_zero():
            card.write(self.args.output_dir, pictures=False)

    def _retire(self, newest: Path, aside: Path) -> None:
        """Take checkpoints beyond `save_total_limit` away in one step each, the oldest first; never the best one."""
        limit, kept = self.args.save_total_limit or 0, {str(newest), self.state.best_model_checkpoint} - {None}
        there = sort_checkpoints(self.args.output_dir, use_mtime=True)
        spare = [Path(path) for path in there if path not in kept]
        for path in spare[: max(0, len(there) - max(limit, len(kept)))] if limit > 0 else []:
            with suppress(OSError):
                os.rename(path, aside / path.name)  # and that is removed behind the save

    def _save_into(self, directory: Path, model, trial) -> None:
        push, self.args.push_to_hub = self.args.push_to_hub, False
        self._aside = directory.parent
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._aside, self.args.push_to_hub = None, push
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == directory.parent:  # this one, under its name of a moment
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / Path(best).name)
            if self.is_world_process_zero():
                self.state.save_to_json(directory / TRAINER_STATE_NAME)
        if not self.args.save_only_model:
            self._write_state(directory)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir=None, state_dict=None):
        """FSDP2 gives a model a class of its own, and miniqwen would be saved with the code of that one."""
        sharded = type(self.model)
        if FSDPModule in sharded.__bases__:
            self.model.__class__ = sharded.__bases__[1]
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model.__class__ = sharded

    def save_whole(self) -> None:
        """Save the finished model, its tokenizer and the state of training into `output_dir`, config.json last."""
        output_dir = Path(self.args.output_dir)
        with self.written_aside(output_dir) as directory:
            self.save_model(str(directory), _internal_call=True)  # else it would be pushed before anyone looked at it
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.state.save_to_json(directory / TRAINER_STATE_NAME)
                checkpoint.pour(directory, output_dir)

    @contextmanager
    def written_aside(self, final: Path) -> Iterator[Path]:
        """A directory for all ranks to write to, which is gone in the end; `ValueError` where the disk is full."""
        aside = checkpoint.aside(self.args.output_dir)
        try:
            if self.is_world_process_zero():
                whole.remove(aside)  # of a save that was cut off
                (aside / final.name).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            yield aside / final.name
        except Exception as error:
            whole.remove(aside)
            if not isinstance(error, OSError | RuntimeError | SafetensorError) or not _is_of_the_disk(error):
                raise
            free = f"{shutil.disk_usage(self.args.output_dir).free / 1e6:,.1f} MB are free there"
            raise ValueError(f"{final} could not be written ({error}; {free}). {self._what_is_left()}") from error
        if self.is_world_process_zero():
            whole.remove(aside)
        self.accelerator.wait_for_everyone()

    def _what_is_left(self) -> str:
        last, _ = checkpoint.last(self.args.output_dir)
        if last is None:
            return "There is no earlier checkpoint. Free some space and run again."
        return f"{last} is whole: free some space and go on from there with `resume_from_checkpoint: true`."


class Place(TrainerCallback):
    """Where in the rows training stands: whole epochs, and batches of this one."""

    def __init__(self):
        self.epoch, self.batches = 0, 0

    def on_substep_end(self, args, state, control, **kwargs):
        self.batches += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.batches += 1

    def on_epoch_end(self, args, state, control, **kwargs):
        if not control.should_training_stop:  # else it is called in the middle of an epoch
            self.epoch, self.batches = self.epoch + 1, 0


class _TakeUp(TrainerCallback):
    """Has the trainer take up what it left, after transformers has set all to nought and before the first step."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.idle = True

    def on_train_begin(self, args, state, control, **kwargs):
        if self.trainer.resumed is not None:
            self.trainer.take_up()

    def on_step_end(self, args, state, control, **kwargs):
        self.idle = False

    def on_epoch_end(self, args, state, control, **kwargs):
        self.take_up_random_numbers()

    def take_up_random_numbers(self) -> None:
        """An epoch that ended with the checkpoint ends once more, without a batch, and a run that ended with it has
        none either: transformers restores the random numbers behind the first batch."""
        if self.trainer.resumed is not None and self.idle:
            self.trainer._load_rng_state(self.trainer.resumed)
            self.idle = False


def _share(parameter) -> torch.Tensor:
    """What this rank holds of a parameter under ZeRO-3, FSDP2 or neither."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.data
    return parameter.data.to_local() if hasattr(parameter, "to_local") else parameter.data


def _gathered(value):
    """A gradient's norm, of which FSDP2 leaves each rank a part, as a whole; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_gathered, value))
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _plain(value):
    """Nested collections as dicts and lists, which `torch.load(weights_only=True)` reads without running code."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | torch.Tensor):
        return [_plain(entry) for entry in value]
    return value


def _refill(collection, saved) -> None:
    """Put saved entries into a dict, list or deque that others hold on to. A defaultdict makes what it lacks."""
    if not isinstance(collection, Mapping):
        collection.clear()
        collection.extend(saved)
        return
    for key, value in saved.items():
        if isinstance(value, dict | list) and isinstance(collection[key], Mapping | list | deque):
            _refill(collection[key], value)
        else:
            collection[key] = value


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a write failed: safetensors passes the system's words on, and torch's writer has words of its own.

    What was raised by others in the middle of a write, as for a data loader's worker that died, is none of it.
    """
    words = ("No space left", "File too large", "quota", "os error")
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return (
        isinstance(error, OSError)
        or any(word.lower() in str(error).lower() for word in words)
        or innermost.f_code.co_filename == torch.save.__code__.co_filename
    )
