"""A model in training answers test rows greedily, and is judged by the very rewards that `suite evaluate` asks.

It does so at every evaluation of the Trainer's own, so `eval_strategy`, `eval_steps` and `eval_on_start` say when, and
what comes out is logged and chosen by as any other metric: eval_accuracy, eval_format, eval_tokens, ... Each rank
answers its share of the rows. No random number is drawn and no weight is touched: an evaluated run learns the same with
answers and without.

A vLLM that has just sampled for GRPO's own evaluation answers here, too, for it holds the weights of this very step. In
all other cases transformers does: no engine is woken for it, and no weight is sent, which with LoRA would round them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from trl.models import unwrap_model_for_generation

from suite import engine, judging, run
from suite.args import say
from suite.engine.positions import positions_of, require_room
from suite.engine.transformers_engine import TransformersEngine
from suite.keys import ANSWERS


class Answering(TrainerCallback):
    """Answers `rows` at every evaluation of a trainer, with at most `longest` tokens each."""

    def __init__(self, trainer, rows: list[dict], longest: int):
        self.trainer, self.rows = trainer, rows
        self.sampling = engine.Sampling(max_new_tokens=longest)
        self.think_opened = run.opens_thinking(trainer.processing_class)
        self._check_room()
        batch, ranks = trainer.args.per_device_eval_batch_size, trainer.args.world_size
        say(
            f"each evaluation: {len(rows)} test rows are answered greedily, {batch} at a time on "
            f"{ranks} {'process' if ranks == 1 else 'processes'}, with at most {longest:,} tokens each."
        )

    def _check_room(self) -> None:
        """Raise `ValueError` where a prompt is too long for the model, now and not at the first evaluation."""
        ids = engine.rendered(self.trainer.processing_class, [row["prompt"] for row in self.rows])
        try:
            require_room(ids, positions_of(self.trainer.model.config))
        except ValueError as error:
            raise ValueError(f"eval_answers: {error}") from None

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """`metrics` is what the Trainer chooses the best model by, and what it has logged already."""
        begun = time.monotonic()
        said = gather_object(self._judged(args.process_index, args.world_size))  # of all ranks
        measured = judging.summarize(sorted(said, key=lambda row: row["row"]), 0)
        found = {f"eval_{name}": measured[name]["value"] for name in ANSWERS}
        low, high = measured["accuracy"]["ci95"]
        found |= {"eval_accuracy_ci95": (high - low) / 2, "eval_answers_runtime": round(time.monotonic() - begun, 4)}
        # Where nothing could be judged there is no value, and that is never the best.
        metrics.update({name: float("nan") if value is None else value for name, value in found.items()})
        Trainer.log(self.trainer, found)  # TRL's own would print the completions of its evaluation once more

    def _judged(self, rank: int, ranks: int) -> list[dict]:
        """The answers of this rank to its share of the rows, with what each reading of them earns."""
        # Ranks that hold one model in pieces take every step together: each answers as many rows, some of them twice.
        each = -(-len(self.rows) // ranks)
        mine = [(rank + ranks * i) % len(self.rows) for i in range(each)]
        said = self._said([self.rows[number]["prompt"] for number in mine])
        once = [i for i in range(each) if rank + ranks * i < len(self.rows)]
        if not once:
            return []
        judged = judging.score(
            [self.rows[mine[i]] for i in once], [[said[i]] for i in once], "greedy", self.think_opened
        )
        return [{**row, "row": mine[once[row["row"]]]} for row in judged]

    def _said(self, prompts: list) -> list[engine.Completion]:
        """What the model says, whole again where ZeRO-3 holds it in pieces, without gradient checkpointing."""
        trainer, args = self.trainer, self.trainer.args
        if vars(trainer).get("use_vllm") and _is_ready(trainer):
            model = trainer.accelerator.unwrap_model(trainer.model)
            asked = _InTraining(model, trainer.processing_class, args.per_device_eval_batch_size)
            return asked.by_vllm(trainer.vllm_generation, prompts)
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=vars(args).get("ds3_gather_for_generation", True),  # a key of GRPO's and distill's
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model:
            asked = _InTraining(model, trainer.processing_class, args.per_device_eval_batch_size)
            return [said for (said,) in asked.complete(prompts, self.sampling)]


class _InTraining(TransformersEngine):
    """The engine of `suite evaluate`, around a model that goes on to learn."""

    def __init__(self, model, tokenizer, batch_size: int):
        self._take(model, tokenizer, batch_size)

    def by_vllm(self, vllm, prompts: list) -> list[engine.Completion]:
        """The answers of TRL's vLLM, read as those of the model itself."""
        ids = engine.rendered(self.tokenizer, prompts)
        with _greedy(vllm):
            _, said, _, _ = vllm.generate(prompts=ids, images=None, num_generations=1)
        return [self._completion(list(tokens)) for tokens in said]

    def _beginning(self, ids: list[list[int]]) -> list[tuple]:
        return []  # a call of the model that not every rank would make, and in each of them FSDP2 gathers from all

    def _without_gradients(self):
        return torch.no_grad()  # what FSDP2 gathers here it keeps, and no tensor of inference mode can be trained on


def _is_ready(trainer) -> bool:
    """Whether the vLLM of a run holds the weights of this step, and is awake."""
    return trainer._last_loaded_step == trainer.state.global_step and not trainer.args.vllm_enable_sleep_mode


@contextmanager
def _greedy(vllm) -> Iterator[None]:
    """TRL's vLLM without what bends or draws from the distribution; where it stops it goes on to know."""
    ends = {key: value for key, value in vllm.generation_kwargs.items() if key in ("stop_token_ids", "logit_bias")}
    honest = {"temperature": 0.0, "repetition_penalty": 1.0, "generation_kwargs": ends}
    before = {name: getattr(vllm, name) for name in honest}
    vars(vllm).update(honest)
    try:
        yield
    finally:
        vars(vllm).update(before)
