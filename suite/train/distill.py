"""Distillation with the teacher's logits: the student learns its next-token distributions, whole or as LoRA.

Two ways, and one key that chooses. `lmbda`, named as in TRL's GKD and in its paper, is the share of the steps in which
the student answers itself and the teacher marks every token (1, on-policy); in the others the rows' own completions are
read (0, supervised). Learning from a teacher's texts alone, without its logits, is `suite sample` and then `suite sft`.
"""

import itertools
import json
import sys
from dataclasses import dataclass, field

from suite import args, checkpoint, columns, ending, pins, rehearsal, resume, room, run, source, turns
from suite.engine import colocated, settle, vllm_setup
from suite.keys import AnswerArguments, RunArguments

# Keys that say how to sample, beside all that begin with vllm_.
SAMPLING = {"use_vllm", "top_p", "top_k", "min_p", "generation_kwargs", "repetition_penalty", "cache_implementation"}
# What two tokenizers must cut alike, beside having the same vocabulary.
PROBE = "Natalia sold 48/2 = 24 clips.\n\n\tdef f(x):\n        return x**2  # naïve\n答案是 3.14，对吗？ <think>\\frac"


@dataclass
class DistillArguments:
    lmbda: float = field(
        default=1.0,
        metadata={"help": "Share of the steps on the student's own samples: 1 = on-policy, 0 = the rows' completions."},
    )

    def __post_init__(self):
        if not 0 <= self.lmbda <= 1:
            raise ValueError(f"lmbda: {self.lmbda} is a share of the steps, from 0 (given rows) to 1 (on-policy).")


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, DistillationConfig, ModelConfig, ScriptArguments

    ours = (DistillArguments, AnswerArguments, RunArguments)
    return ScriptArguments, DistillationConfig, ModelConfig, DatasetMixtureConfig, *ours


def main(argv=None) -> None:
    script, config, model, mixture, distill, answers, extra, written = args.parse(arguments(), argv)
    check_keys(config, distill.lmbda, written)
    if config.use_vllm:
        vllm_setup.require_vllm("use_vllm: true", config.vllm_mode, model.model_name_or_path)
    read = (config.teacher_model_name_or_path, *source.names(script, mixture), answers.eval_answers_dataset)
    record = run.begin("distill", config, written, model.model_name_or_path, *read)
    if record is None:
        return
    pins.settle(record, config, script, model, mixture, answers)
    callbacks = run.callbacks(extra, record)
    train_rows, test_rows = read_rows(script, config, mixture, distill.lmbda, answers)
    record["rows"] = source.counts(train_rows, test_rows)
    resume.check_beside(train_rows, record, config)
    check_enough(config, train_rows)
    check_beside(distill.lmbda, train_rows, config.chat_template_kwargs)
    tokenizer = run.starting_point(model, config, train_rows)
    asked = source.to_answer(answers, config, script, mixture, tokenizer)
    if "messages" in next(iter(train_rows)):
        turns.check_masks(itertools.islice(train_rows, 1000), tokenizer)
    student_rows, teacher_rows = check_teacher(model, config, tokenizer)
    positions = check_room(model, config, distill.lmbda, tokenizer, train_rows, test_rows)
    config.generation_kwargs = sampling(config, tokenizer, student_rows)
    if config.use_vllm:
        colocated.make_ready(config, model)

    with vllm_setup.in_trl(config.use_vllm):
        from trl import get_quantization_config

        from suite.trainers import completions
        from suite.trainers.distillation import WhiteBoxTrainer, load_teacher
        from suite.trainers.exact import exact

    with run.every_rank_reads_weights():
        teacher = load_teacher(config, model.attn_implementation, student_rows)
    config.teacher_model_init_kwargs = None  # TRL takes them for a teacher that is still to be loaded
    with pins.in_vllm(config, model):
        trainer = exact(WhiteBoxTrainer)(
            model=model.model_name_or_path,
            teacher_model=teacher,
            args=config,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model),
            peft_config=run.adapter_config(model),
            callbacks=callbacks,
            lmbda=distill.lmbda,
            rows_of_teacher=teacher_rows,
        )
    say_what_is_beyond(trainer, positions)
    settle(trainer)
    completions.keep_apart(trainer)
    if asked:
        from suite.answering import Answering

        trainer.add_callback(Answering(trainer, asked, config.max_completion_length))
    run.finish(trainer, config, record)


def shapes(lmbda: float) -> tuple[str, ...]:
    """What the rows must hold: prompts for the student to answer, completions to read, or both."""
    return {1.0: ("prompt",), 0.0: ("messages", "prompt+completion")}.get(lmbda, ("prompt+completion",))


def read_rows(script, config, mixture, lmbda: float, answers) -> tuple:
    """(training rows, test rows or None); of the latter no more than are to be answered, where all are sampled."""
    how = {"with_test": config.eval_strategy != "no", "asked_with": config.chat_template_kwargs}
    train_rows, test_rows = source.rows(script, mixture, shapes(lmbda), **how)
    if lmbda == 1:  # else an evaluation reads what the rows hold, and takes no longer than a step
        test_rows = source.as_many(test_rows, answers.eval_answers)
    return train_rows, test_rows


def check_keys(config, lmbda: float, written: dict) -> None:
    """Raise `ValueError` where no teacher is named, or keys contradict each other."""
    if not config.teacher_model_name_or_path:
        raise ValueError(
            "No teacher: set `teacher_model_name_or_path` to a checkpoint directory or a model on the Hub. To learn "
            "from a teacher's texts without its weights, see `suite sample` and `suite sft`."
        )
    if config.temperature <= 0:
        raise ValueError(f"temperature: {config.temperature} must be above 0; the logits are divided by it.")
    idle = [key for key in written if key in SAMPLING or key.startswith("vllm_")]
    idle = [key for key in idle if written[key] not in (False, None)]
    if lmbda == 0 and idle:
        raise ValueError(f"{', '.join(idle)}: with `lmbda: 0` nothing is sampled. Remove it, or raise lmbda.")


def check_enough(config, rows) -> None:
    """Raise `ValueError` where the rows do not fill one step: TRL drops what is left over, and that would be all."""
    step = config.per_device_train_batch_size * config.world_size * config.gradient_accumulation_steps
    if hasattr(rows, "__len__") and len(rows) < step:
        raise ValueError(
            f"The rows are {len(rows)}, and one step takes {step} ({config.per_device_train_batch_size} a device x "
            f"{config.world_size} processes x {config.gradient_accumulation_steps} accumulated). Lower the batch."
        )


def check_beside(lmbda: float, rows, own: dict | None) -> None:
    """Raise `ValueError` where the student would be asked without what the rows that are read have in their prompts.

    The config's `own` chat_template_kwargs are given to what it is asked, and to what is read.
    """
    looked_at = itertools.islice(rows, room.LOOKED_AT) if lmbda > 0 else []
    idle = list(dict.fromkeys(name for row in looked_at for name in columns.not_asked(row, own)))
    if idle:
        config = " say in the config's own `chat_template_kwargs` what all rows say there,"
        raise ValueError(
            f"lmbda: {lmbda} has the student answer prompts, and TRL asks them without the {', '.join(idle)} of a row. "
            f"Set `lmbda: 0`, which reads the rows,{config if 'chat_template_kwargs' in idle else ''} or leave the "
            "column out."
        )


def check_teacher(model, config, tokenizer) -> tuple[int, int]:
    """(rows of the student's vocabulary, of the teacher's), read off their configs.

    Raises `ValueError` for a teacher that is not whole, is only an adapter, or has another tokenizer.
    """
    from transformers import AutoConfig
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    name, revision = config.teacher_model_name_or_path, config.teacher_model_revision or "main"
    checkpoint.check_whole(name)
    checkpoint.refuse_adapter(name)
    check_same_tokens(tokenizer, run.tokenizer(name, revision), name)
    configs = [
        AutoConfig.from_pretrained(n, revision=r, trust_remote_code=config.trust_remote_code)
        for n, r in ((model.model_name_or_path, model.model_revision), (name, revision))
    ]
    rehearsal.init_kwargs("teacher_model_init_kwargs", config.teacher_model_init_kwargs, configs[1])
    student_rows, teacher_rows = (c.get_text_config().vocab_size for c in configs)
    if student_rows > teacher_rows and is_deepspeed_zero3_enabled():
        raise ValueError(
            f"The student's vocabulary has {student_rows} rows and the teacher's {teacher_rows}: the student's head "
            "would have to be cut in every step, and ZeRO-3 holds it in pieces. Use ZeRO-2, DDP or FSDP2."
        )
    return student_rows, teacher_rows


def check_room(model, config, lmbda: float, tokenizer, train_rows, test_rows) -> dict[str, int | None]:
    """The positions of the student and of the teacher, read off their configs.

    Raises `ValueError` where the student would answer past its own, or past those at which the teacher reads the
    answer, of which vLLM knows nothing.
    """
    how = {"revision": config.teacher_model_revision or "main", **(config.teacher_model_init_kwargs or {})}
    student = room.positions_before_loading(model.model_name_or_path, config, config.model_init_kwargs)
    teacher = room.positions_before_loading(config.teacher_model_name_or_path, config, how)
    sampled = {0.0: (), 1.0: (train_rows, test_rows)}.get(lmbda, (train_rows,))  # between, an evaluation reads the rows
    end = room.check_sampled(model, config, tokenizer, *sampled)
    if teacher is not None and (end is None or teacher < end):
        for split, rows in zip(("train", "test"), sampled, strict=False):
            room.check_answers(split, rows, tokenizer, config, teacher, ends=False, whose="the teacher")
    return {"the model": student, "the teacher": teacher}


def say_what_is_beyond(trainer, positions: dict[str, int | None]) -> None:
    """Say how many given rows, of the first, are read past the positions of the student or of the teacher."""
    if trainer.lmbda == 1:
        return
    looked_at = [trainer.given(row) for row in itertools.islice(trainer.train_dataset, room.LOOKED_AT)]
    lengths = [len(prompt) + len(completion) for prompt, completion, _ in looked_at]
    for whose, limit in positions.items():
        beyond = sum(limit is not None and length > limit for length in lengths)
        if beyond:
            run.say(
                f"warning: {beyond} of the first {len(lengths)} rows, with what is read of their completions, have "
                f"more tokens than the {limit} positions of {whose} (`max_position_embeddings`), the longest "
                f"{max(lengths)}: its probabilities mean nothing there. Lower `max_completion_length`, or leave such "
                "rows out (`max_length` of `suite prepare`)."
            )


def check_same_tokens(student, teacher, name: str) -> None:
    """Raise `ValueError` unless both tokenizers make the same ids of the same text, names of special tokens included.

    Token i must be the same text in both, for the loss compares probabilities by their ids. Chat templates may differ:
    the teacher reads what the student's template has rendered.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    for token in sorted(ours.keys() | theirs.keys(), key=lambda t: ours.get(t, theirs.get(t))):
        if ours.get(token) != theirs.get(token):
            where = " and ".join(
                f"{'no token' if i is None else f'token {i}'} of the {who}"
                for who, i in (("student", ours.get(token)), ("teacher", theirs.get(token)))
            )
            raise ValueError(
                f"The tokenizer of the teacher '{name}' is another one: {token!r} is {where}. Take a teacher of the "
                "student's family, or learn from its texts: `suite sample` and then `suite sft`."
            )
    merges = [json.loads(t.backend_tokenizer.to_str())["model"].get("merges") for t in (student, teacher)]
    if merges[0] != merges[1] or student(PROBE)["input_ids"] != teacher(PROBE)["input_ids"]:
        raise ValueError(
            f"The tokenizer of the teacher '{name}' has the student's tokens and cuts text into them in another way. "
            "Take a teacher of the student's family, or learn from its texts: `suite sample` and then `suite sft`."
        )


def sampling(config, tokenizer, student_rows: int) -> dict | None:
    """`generation_kwargs` by which the student stops at the end of a turn, and never samples a row that is no token."""
    how = dict(config.generation_kwargs or {})
    padding = range(len(tokenizer), student_rows)
    if not config.use_vllm:
        how["suppress_tokens"] = [*padding, *how.get("suppress_tokens", [])]
        return how if how["suppress_tokens"] else config.generation_kwargs
    how = turns.told_to_vllm(tokenizer, how)
    if padding and config.vllm_mode == "colocate":  # on the way to a server, JSON would make text of the ids
        how["logit_bias"] = {**dict.fromkeys(padding, -100.0), **how.get("logit_bias", {})}
    return how


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
