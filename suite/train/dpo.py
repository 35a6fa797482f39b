"""Direct preference optimization on `prompt+chosen+rejected` rows, whole or as LoRA."""

import itertools
import sys

from suite import args, ending, pins, resume, run, source
from suite.keys import AnswerLengthArguments, RunArguments


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

    ours = (AnswerLengthArguments, RunArguments)
    return ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig, *ours


def main(argv=None) -> None:
    script, config, model, mixture, answers, extra, written = args.parse(arguments(), argv)
    data = (*source.names(script, mixture), answers.eval_answers_dataset)
    record = run.begin("dpo", config, written, model.model_name_or_path, *data)
    if record is None:
        return
    pins.settle(record, config, script, model, mixture, answers)
    callbacks = run.callbacks(extra, record)
    train_rows, test_rows = source.rows(
        script, mixture, ("prompt+chosen+rejected",), with_test=config.eval_strategy != "no"
    )
    say_which_are_no_choice(train_rows)
    record["rows"] = source.counts(train_rows, test_rows)
    resume.check_beside(train_rows, record, config)
    tokenizer = run.starting_point(model, config, train_rows)
    asked = source.to_answer(answers, config, script, mixture, tokenizer)

    from trl import DPOTrainer, get_quantization_config

    from suite.trainers.exact import exact

    # No `ref_model`: TRL loads the starting model a second time, frozen; with LoRA it is the model without its
    # adapter, and with `precompute_ref_log_probs: true` it is asked once, before training, and not kept.
    with run.every_rank_reads_weights():
        trainer = exact(DPOTrainer)(
            model=model.model_name_or_path,
            args=config,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model),
            peft_config=run.adapter_config(model),
            callbacks=callbacks,
        )
    source.check_left_out(train_rows, trainer.train_dataset)
    source.say_which_pairs_are_cut_off(trainer.train_dataset, config)
    source.say_what_is_beyond(trainer)
    if asked:
        from suite.answering import Answering

        trainer.add_callback(Answering(trainer, asked, answers.max_completion_length))
    run.finish(trainer, config, record)


def say_which_are_no_choice(rows) -> None:
    """Say how many pairs have the same answer twice, of rows that stream among the first: TRL trains them without a
    word. Raises `ValueError` where all are so; a stream may have others behind those."""
    whole = hasattr(rows, "__len__")
    pairs = rows.select_columns(["chosen", "rejected"]) if hasattr(rows, "select_columns") else rows
    looked_at = pairs if whole else itertools.islice(pairs, source.LOOKED_AT)
    alike = [row["chosen"] == row["rejected"] for row in looked_at]
    if whole and all(alike):
        raise ValueError(
            f"`chosen` is `rejected`, word for word, in all {len(alike)} pairs: there is nothing to prefer."
        )
    if any(alike):
        of = len(alike) if whole else f"the first {len(alike)}"
        run.say(
            f"note: in {sum(alike)} of {of} pairs `chosen` is `rejected`, word for word (first: row "
            f"{alike.index(True) + 1}). They teach nothing; `suite prepare files` leaves them out."
        )


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
