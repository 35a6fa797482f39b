"""Pretraining: next-token prediction on `text`, from nothing (a new miniqwen) or from a checkpoint."""

import sys
from dataclasses import fields

from suite import args, checkpoint, ending, pins, rehearsal, run, source, turns
from suite.keys import AnswerLengthArguments, RunArguments, ScratchArguments
from suite.registry import nearest
from suite.values import coerce


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    ours = (ScratchArguments, AnswerLengthArguments, RunArguments)
    return ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig, *ours


def main(argv=None) -> None:
    script, config, model, mixture, scratch, answers, extra, written = args.parse(arguments(), argv)
    check_keys(model, config)
    data = (scratch.tokenizer_name_or_path, *source.names(script, mixture), answers.eval_answers_dataset)
    record = run.begin("pretrain", config, written, model.model_name_or_path, *data)
    if record is None:
        return
    pins.settle(record, config, script, model, mixture, scratch, answers)
    callbacks = run.callbacks(extra, record)
    train_rows, test_rows = source.rows(script, mixture, ("text",), with_test=config.eval_strategy != "no")
    check_words(train_rows)
    record["rows"] = source.counts(train_rows, test_rows)

    from trl import SFTTrainer

    from suite.trainers.exact import exact

    tokenizer, new = starting_point(model, config, scratch)
    asked = source.to_answer(answers, config, script, mixture, tokenizer)
    start = model.model_name_or_path or new_model(new, config.seed, model.attn_implementation)

    source.say_what_is_cut_off(train_rows, tokenizer, config)
    source.say_what_packing_costs(config, model.attn_implementation)
    trainer = exact(SFTTrainer)(
        model=start,
        args=config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    source.say_what_is_beyond(trainer)
    check_batch(train_rows, trainer.train_dataset, config)
    if asked:
        from suite.answering import Answering

        trainer.add_callback(Answering(trainer, asked, answers.max_completion_length))
    run.finish(trainer, config, record)


def check_keys(model, config) -> None:
    """Raise `ValueError` for keys that other stages follow and this one would pass over in silence."""
    given = [key for key in ("use_peft", "load_in_4bit", "load_in_8bit") if getattr(model, key)]
    if given:
        raise ValueError(
            f"{given[0]}: `suite pretrain` trains every weight, in its own precision. Remove it; an adapter learns by "
            "`suite sft`, `dpo`, `distill` and `grpo`."
        )
    given = [key for key in ("completion_only_loss", "assistant_only_loss") if getattr(config, key)]
    if given:
        raise ValueError(f"{given[0]}: rows of `text` have no answers, and `suite pretrain` learns all. Remove it.")
    if model.model_name_or_path:
        return
    given = ["model_init_kwargs"] if config.model_init_kwargs else []
    given += ["model_revision"] if model.model_revision != "main" else []
    if given:
        raise ValueError(
            f"{given[0]} says how `model_name_or_path` is loaded, and there is none. `model_config` is the shape of a "
            "new model."
        )


def starting_point(model, config, scratch) -> tuple:
    """(tokenizer, configuration of the new model or None where the run goes on from a checkpoint).

    Raises `ValueError` for what could otherwise be told only when the model is there.
    """
    run.check_loading(model, config)
    rehearsal.optimization(config)
    if model.model_name_or_path:
        for key, what in (("model_config", "shape"), ("tokenizer_name_or_path", "tokenizer")):
            if getattr(scratch, key):
                raise ValueError(
                    f"{key} is the {what} of a new model, and '{model.model_name_or_path}' has its own. Remove one."
                )
        checkpoint.check_whole(model.model_name_or_path)
        checkpoint.refuse_adapter(model.model_name_or_path)
        config.model_init_kwargs = run.model_init_kwargs(model, config)
        tokenizer, new = run.tokenizer(model.model_name_or_path, model.model_revision), None
    else:
        if not scratch.tokenizer_name_or_path:
            raise ValueError(
                "A model from nothing needs a tokenizer: set `tokenizer_name_or_path` (`suite tokenizer` trains one), "
                "or `model_name_or_path` to go on from a checkpoint."
            )
        tokenizer = run.tokenizer(*pins.split(scratch.tokenizer_name_or_path))
        new = new_config(tokenizer, scratch.model_config, model.dtype)
        rehearsal.router(config, new)
        rehearsal.attention(model.attn_implementation, new)
    turns.settle(tokenizer, conversational=False, eos_token=config.eos_token)
    rehearsal.padding(config, tokenizer)
    return tokenizer, new


def check_words(rows) -> None:
    """Raise `ValueError` where every text is empty: a model would learn that a text ends before it begins."""
    read = 0
    for row in rows:
        if (row["text"] or "").strip():  # nearly always the first
            return
        read += 1
    raise ValueError(
        f"There is nothing to learn from: `text` is empty in all {read:,} rows that were read. Put the words there; "
        "`suite prepare` leaves rows without words out, and says how many."
    )


def check_batch(rows, made, config) -> None:
    """Raise `ValueError` where `dataloader_drop_last` leaves out all that was `made` of the rows, packed or not."""
    batch = config.train_batch_size * config.world_size
    if config.dataloader_drop_last and hasattr(made, "__len__") and len(made) < batch:
        packed = f", packed into {len(made):,} of `max_length` {config.max_length}," if config.packing else ""
        raise ValueError(
            f"There is nothing to learn from: `text` of the {len(rows):,} rows that were read{packed} does not fill a "
            f"batch of {batch}, and `dataloader_drop_last: true` leaves out what does not. Remove it, or lower "
            "`per_device_train_batch_size` or, where rows are packed, `max_length`."
        )


def new_config(tokenizer, shape: dict, dtype: str):
    """The configuration of a miniqwen that agrees with the tokenizer on vocabulary and stop tokens.

    Raises `ValueError` for a field of `shape` that MiniQwenConfig does not have, and for a vocabulary below the
    tokenizer's.
    """
    from suite.model import MiniQwenConfig

    there = {f.name: f.type for f in fields(MiniQwenConfig)}
    for key in shape:
        if key not in there:
            raise ValueError(f"model_config has no field '{key}'.{nearest(key, there)}")
    shape = {key: coerce(f"model_config.{key}", value, there[key]) for key, value in shape.items()}
    if (size := shape.get("vocab_size", len(tokenizer))) < len(tokenizer):
        raise ValueError(
            f"model_config.vocab_size {size} has no room for the {len(tokenizer)} tokens of the tokenizer. Leave it "
            "out, or set it to as many or more."
        )
    return MiniQwenConfig(
        **{
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "dtype": None if dtype == "auto" else dtype,  # which is that of a checkpoint, and here is none
            **shape,
        }
    )


def new_model(config, seed: int, attn_implementation: str | None):
    """A miniqwen with random weights."""
    from transformers import set_seed

    from suite.model import MiniQwenForCausalLM

    set_seed(seed)
    model = MiniQwenForCausalLM._from_config(config, attn_implementation=attn_implementation)
    run.say(f"A new miniqwen of {model.num_parameters() / 1e6:.1f} M parameters: {model.config.in_words()}.")
    return model


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
