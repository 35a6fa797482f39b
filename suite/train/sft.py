"""Supervised fine-tuning on `messages` or `prompt+completion` rows, whole or as LoRA."""

import sys

from suite import args, checkpoint, run


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    return ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig, args.RunArguments


def main(argv=None) -> None:
    script, config, model, mixture, extra, written = args.parse(arguments(), argv)
    record = run.begin("sft", config, written, model.model_name_or_path, script.dataset_name)
    if record is None:
        return
    callbacks = run.callbacks(extra)
    train_rows, test_rows = run.rows(
        script, mixture, ("messages", "prompt+completion"), with_test=config.eval_strategy != "no"
    )
    checkpoint.check_whole(model.model_name_or_path)
    checkpoint.refuse_adapter(model.model_name_or_path)
    tokenizer = run.tokenizer(
        model.model_name_or_path, model.model_revision, needs_template=config.chat_template_path is None
    )
    config.model_init_kwargs = run.model_init_kwargs(model, config)

    from trl import SFTTrainer, get_peft_config, get_quantization_config

    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        callbacks=callbacks,
    )
    run.finish(trainer, config, record)


if __name__ == "__main__":
    sys.exit(args.answer_for(main))
