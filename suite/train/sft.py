"""Supervised fine-tuning on `messages` or `prompt+completion` rows, whole or as LoRA."""

import itertools
import sys
from dataclasses import dataclass, field

from suite import args, ending, pins, resume, run, source, turns
from suite.keys import AnswerLengthArguments, RunArguments


@dataclass
class TagArguments:
    tag_weight: float | None = field(
        default=None,
        metadata={"help": "How often a token of <think>, </think>, <answer>, </answer> counts in the loss; 1."},
    )

    def __post_init__(self):
        if self.tag_weight is not None and not 0 < self.tag_weight < float("inf"):
            raise ValueError(f"tag_weight: {self.tag_weight} must be a finite number above 0.")


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    ours = (TagArguments, AnswerLengthArguments, RunArguments)
    return ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig, *ours


def main(argv=None) -> None:
    script, config, model, mixture, tags, answers, extra, written = args.parse(arguments(), argv)
    data = (*source.names(script, mixture), answers.eval_answers_dataset)
    record = run.begin("sft", config, written, model.model_name_or_path, *data)
    if record is None:
        return
    pins.settle(record, config, script, model, mixture, answers)
    callbacks = run.callbacks(extra, record)
    train_rows, test_rows = source.rows(
        script, mixture, ("messages", "prompt+completion"), with_test=config.eval_strategy != "no"
    )
    record["rows"] = source.counts(train_rows, test_rows)
    resume.check_beside(train_rows, record, config)
    check_masked(config, train_rows)
    if tags.tag_weight is not None:
        check_tag_weight(config, train_rows)
    tokenizer = run.starting_point(
        model, config, train_rows, eos_token=config.eos_token, chat_template_path=config.chat_template_path
    )
    source.say_what_packing_costs(config, model.attn_implementation)
    asked = source.to_answer(answers, config, script, mixture, tokenizer)
    config.eos_token = tokenizer.eos_token  # TRL carries it to the model's configs
    if config.assistant_only_loss:
        looked_at = train_rows if hasattr(train_rows, "__len__") else itertools.islice(train_rows, 1000)
        turns.check_masks(looked_at, tokenizer, config.chat_template_path)

    from trl import SFTTrainer, get_quantization_config

    from suite.trainers.exact import exact

    kind, how = SFTTrainer, {}
    if tags.tag_weight is not None:
        from suite.trainers.tag_weights import TagWeightedSFTTrainer

        kind, how = TagWeightedSFTTrainer, {"tag_weight": tags.tag_weight}
    trainer = exact(kind)(
        model=model.model_name_or_path,
        args=config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=run.adapter_config(model),
        callbacks=callbacks,
        **how,
    )
    source.say_what_is_beyond(trainer)
    if not config.packing:
        source.check_left_out(train_rows, trainer.train_dataset)
    split = config.packing and config.packing_strategy != "bfd"
    cut = turns.check_trained(trainer.train_dataset, tokenizer.eos_token, tokenizer.eos_token_id, split=split)
    if cut:
        run.say(cut)
    if asked:
        from suite.answering import Answering

        trainer.add_callback(Answering(trainer, asked, answers.max_completion_length))
    run.finish(trainer, config, record)


def check_masked(config, rows) -> None:
    """Raise `ValueError` where `messages` rows would be trained whole, although their answers alone were asked for.
    Where nothing was asked for, say so."""
    if config.assistant_only_loss or "messages" not in next(iter(rows)):
        return
    if config.completion_only_loss is None:
        run.say("note: every turn is trained, the user's too. Only the assistant's are by `assistant_only_loss: true`.")
    if config.completion_only_loss:
        raise ValueError(
            "completion_only_loss: true is for rows of `prompt` and `completion`; of `messages` every turn would be "
            "trained. Set `assistant_only_loss: true` in its place."
        )


def check_tag_weight(config, rows) -> None:
    """Raise `ValueError` where a weight would reach beyond assistant turns, or TRL's loss has no room for one."""
    if "messages" in next(iter(rows)) and not config.assistant_only_loss:
        raise ValueError(
            "tag_weight weighs what the assistant says, and `messages` rows train every turn, the system prompt with "
            "its own tags included. Set `assistant_only_loss: true`."
        )
    if config.loss_type != "nll" or config.label_smoothing_factor > 0:
        raise ValueError("tag_weight goes with `loss_type: nll` and no label smoothing.")
    if config.completion_only_loss is False:
        raise ValueError("tag_weight weighs what the assistant says; `completion_only_loss: false` trains the prompt.")


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
