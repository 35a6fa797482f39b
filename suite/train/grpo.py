"""Reinforcement learning by GRPO: sample a group per prompt, score it, make what beat its group likelier."""

import sys

from suite import args, checkpoint, engine, rewards, run


def arguments() -> tuple[type, ...]:
    return args.grpo_arguments()


def main(argv=None) -> None:
    script, config, model, mixture, reward, extra, written = args.parse(arguments(), argv)
    funcs = rewards.load_all(reward.reward_funcs, reward.reward_kwargs)  # a bad knob is found before all else
    if config.use_vllm:
        engine.require_vllm("use_vllm: true")
    record = run.begin("grpo", config, written, model.model_name_or_path, script.dataset_name)
    if record is None:
        return
    callbacks = run.callbacks(extra)
    train_rows, test_rows = run.rows(script, mixture, ("prompt+solution",), with_test=config.eval_strategy != "no")
    there = [*next(iter(train_rows)), "prompts"]
    rewards.check_columns(dict(zip(reward.reward_funcs, funcs, strict=True)), there, "The rows")
    checkpoint.check_whole(model.model_name_or_path)
    checkpoint.refuse_adapter(model.model_name_or_path)
    tokenizer = run.tokenizer(model.model_name_or_path, model.model_revision, needs_template=True)
    config.model_init_kwargs = run.model_init_kwargs(model, config)

    from trl import GRPOTrainer, get_peft_config, get_quantization_config

    from suite.trainers.reward_schedule import RewardSchedule

    trainer = GRPOTrainer(
        model=model.model_name_or_path,
        reward_funcs=rewards.load_all(
            reward.reward_funcs,
            reward.reward_kwargs,
            think_opened=run.opens_thinking(tokenizer, config.chat_template_kwargs),
        ),
        args=config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        callbacks=callbacks,
    )
    if reward.reward_schedule:
        trainer.add_callback(RewardSchedule(trainer, reward.reward_funcs, reward.reward_schedule))
    run.finish(trainer, config, record)


if __name__ == "__main__":
    sys.exit(args.answer_for(main))
