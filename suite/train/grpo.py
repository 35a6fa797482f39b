"""Reinforcement learning by GRPO: sample a group per prompt, score it, make what beat its group more likely."""

import math
import sys

from suite import args, ending, pins, rewards, room, run, source, turns
from suite.engine import colocated, settle, vllm_setup
from suite.keys import grpo_arguments
from suite.rewards.scoring import told_apart, watched


def arguments() -> tuple[type, ...]:
    return grpo_arguments()


def main(argv=None) -> None:
    script, config, model, mixture, reward, answers, extra, written = args.parse(arguments(), argv)
    funcs = rewards.load_all(reward.reward_funcs, reward.reward_kwargs)  # a bad knob is found before all else
    if config.remove_unused_columns:
        rewards.check_kept(dict(zip(reward.reward_funcs, funcs, strict=True)))
    if config.use_vllm:
        vllm_setup.require_vllm("use_vllm: true", config.vllm_mode, model.model_name_or_path)
    read = [*source.names(script, mixture), *filter(rewards.is_model, reward.reward_funcs)]
    record = run.begin("grpo", config, written, model.model_name_or_path, *read, answers.eval_answers_dataset)
    if record is None:
        return
    pins.settle(record, config, script, model, mixture, reward, answers)
    callbacks = run.callbacks(extra, record)
    how = {"with_test": config.eval_strategy != "no", "asked_with": config.chat_template_kwargs}
    train_rows, test_rows = source.rows(script, mixture, ("prompt+solution",), **how)
    test_rows = source.as_many(test_rows, answers.eval_answers)
    record["rows"] = source.counts(train_rows, test_rows)
    check_rows(dict(zip(reward.reward_funcs, funcs, strict=True)), train_rows, test_rows)
    tokenizer = run.starting_point(model, config, train_rows)
    asked = source.to_answer(answers, config, script, mixture, tokenizer)
    room.check_sampled(model, config, tokenizer, train_rows, test_rows)
    if config.use_vllm:
        config.generation_kwargs = turns.told_to_vllm(tokenizer, config.generation_kwargs)
        colocated.make_ready(config, model)
    run.say("\n".join([*doubts(config, model), arithmetic(config, train_rows)]))

    with vllm_setup.in_trl(config.use_vllm):
        from trl import GRPOTrainer, get_quantization_config

    from suite.trainers import completions, reward_models
    from suite.trainers.exact import exact
    from suite.trainers.reward_schedule import RewardSchedule

    opened = run.opens_thinking(tokenizer, config.chat_template_kwargs)
    funcs = rewards.load_all(reward.reward_funcs, reward.reward_kwargs, think_opened=opened)
    with run.every_rank_reads_weights(), pins.in_vllm(config, model):
        funcs, tokenizers = reward_models.load(list(map(watched, reward.reward_funcs, funcs)), record["pins"], config)
        trainer = exact(GRPOTrainer)(
            model=model.model_name_or_path,
            reward_funcs=funcs,
            reward_processing_classes=tokenizers,
            args=config,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model),
            peft_config=run.adapter_config(model),
            callbacks=callbacks,
        )
    trainer.reward_func_names = told_apart(reward.reward_funcs, trainer.reward_func_names)
    settle(trainer)
    completions.keep_apart(trainer)
    if reward.reward_schedule:
        trainer.add_callback(RewardSchedule(trainer, reward.reward_funcs, reward.reward_schedule))
    if asked:
        from suite.answering import Answering

        trainer.add_callback(Answering(trainer, asked, config.max_completion_length))
    run.finish(trainer, config, record)


def check_rows(funcs: dict, train_rows, test_rows) -> None:
    """Raise `ValueError` for columns with which the first rollout, or the first evaluation, would end."""
    for where, rows in (("The rows", train_rows), ("The test rows", test_rows)):
        there = () if rows is None else next(iter(rows))
        if pictures := [column for column in ("image", "images") if column in there and there[column] != []]:
            raise ValueError(
                f"{where}: TRL takes the column `{pictures[0]}` for pictures that the model is shown, and models here "
                "read text alone. Rename it, or leave it out."
            )
        if there:
            rewards.check_columns(funcs, there, where)


def arithmetic(config, rows) -> str:
    """What a run amounts to: prompts and completions a step, steps, tokens at most.

    Raises `ValueError` where the rows do not fill one rollout: TRL drops what is left over, and that would be all.
    """
    batch, group, rollout = config.per_device_train_batch_size, config.num_generations, config.generation_batch_size
    completions = batch * config.world_size * config.gradient_accumulation_steps
    steps = config.max_steps
    if hasattr(rows, "__len__"):
        if len(rows) < rollout // group:
            raise ValueError(
                f"The rows hold {len(rows)} prompts, and one rollout takes {rollout // group} ({rollout} completions, "
                f"{group} a prompt). Lower `gradient_accumulation_steps` or the batch, or raise `num_generations`."
            )
        rollouts = len(rows) // (rollout // group)  # an epoch has whole ones, each trained on `num_iterations` times
        an_epoch = math.ceil(rollouts * config.num_iterations * rollout / completions)
        steps = steps if steps > 0 else math.ceil(config.num_train_epochs * an_epoch)
    # A rollout is whole even where the last step needs only a part of it.
    generated = math.ceil(steps * completions / (config.num_iterations * rollout)) * rollout
    return (
        f"each rollout: {rollout // group} prompts x {group} completions = {rollout}\n"
        f"each optimizer step: {completions} completions ({batch} a device x {config.world_size} processes x "
        f"{config.gradient_accumulation_steps} accumulated)\n"
        f"the run: {steps:,} steps, {generated:,} completions, at most {generated * config.max_completion_length:,} "
        f"generated tokens ({config.max_completion_length:,} each)"
    )


def doubts(config, model) -> list[str]:
    """One line for each setting that makes the importance ratio, or the KL, say something else than it means."""
    found = []
    honest_ones = {
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
    }
    drawn = {key: getattr(config, key) for key in honest_ones} | (config.generation_kwargs or {})  # which TRL lets win
    for key, honest in honest_ones.items():
        value = drawn[key]
        if value not in (honest, None) and not (key == "top_k" and value < 0) and not (key == "min_p" and value == 0):
            wanted = "null" if honest is None else honest
            found.append(
                f"warning: {key} {value} cuts or bends the distribution that rollouts are drawn from, and the policy's "
                f"own probabilities do not know it: the importance ratio is biased. Set `{key}: {wanted}`."
            )
    if config.use_vllm and not config.vllm_importance_sampling_correction:
        found.append(
            "warning: vllm_importance_sampling_correction false takes what vLLM sampled for the policy's own samples, "
            "and their probabilities differ by the kernels' rounding. Set `vllm_importance_sampling_correction: true`."
        )
    if model.use_peft and model.lora_dropout > 0:
        found.append(
            f"warning: lora_dropout {model.lora_dropout} makes the policy that is trained differ from the policy "
            "that sampled, from step 0 on; KL and ratio measure the dropout. Set `lora_dropout: 0`."
        )
    return found


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
