"""Direct preference optimisation on `prompt+chosen+rejected` rows, whole or as LoRA."""

import sys

from suite import args, pins, run, source


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

    return ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig, args.RunArguments


def main(argv=None) -> None:
    script, config, model, mixture, extra, written = args.parse(arguments(), argv)
    record = run.begin("dpo", config, written, model.model_name_or_path, *source.names(script, mixture))
    if record is None:
        return
    pins.settle(record, config, script, model, mixture)
    callbacks = run.callbacks(extra, record)
    train_rows, test_rows = source.rows(
        script, mixture, ("prompt+chosen+rejected",), with_test=config.eval_strategy != "no"
    )
    record["rows"] = source.counts(train_rows, test_rows)
    tokenizer = run.starting_point(model, config, train_rows)

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
    run.finish(trainer, config, record)


if __name__ == "__main__":
    sys.exit(args.answer_for(main))
