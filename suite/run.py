"""What every training run shares: its directory, how its model is loaded, and its end."""

import contextlib
import json
import os
import time
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from suite import (
    card,
    checkpoint,
    columns,
    facts,
    hub,
    look,
    merge,
    pins,
    reasoning,
    rehearsal,
    resume,
    sense,
    turns,
    whole,
)
from suite.args import say

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def begin(stage: str, config, written: dict, *inputs: str | None) -> dict | None:
    """The record of the run to be made in `config.output_dir`; None where that very run lies there, complete.

    `inputs` are the checkpoints and data directories the run reads. A directory that already holds a run is refused
    with a `ValueError`, unless `resume_from_checkpoint` says to go on and nothing that makes the run has changed.
    Nothing is written yet: a run whose rows or model turn out to be wrong leaves no trace.
    """
    if hasattr(config, "push_to_hub"):  # what makes a tokenizer has no such key
        if written.get("output_dir") is None:  # TRL would take one that every other run takes, too
            raise ValueError("output_dir is missing: where are the checkpoints and the model to go?")
        _check_hub(config, written)
        take_one_gpu(config)
        config.enable_jit_checkpoint = False  # `stopping.StopOnSigterm` does it, and says why
    check_idle_keys(written)
    record = {
        "stage": stage,
        "config": {key: value for key, value in written.items() if key not in resume.FREE_KEYS},
        "inputs": {str(i): checkpoint.fingerprint(i) for i in inputs if i},
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "engine": resume.engine(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    record = json.loads(json.dumps(record, default=lambda found: asdict(found) if is_dataclass(found) else str(found)))
    directory, lock = Path(config.output_dir), checkpoint.lock_of(config.output_dir)
    if lock.exists() and int(os.environ.get("RANK", 0)) == 0:
        with whole.held(lock, directory):  # refused now, and not when rows and model are read
            pass
    record["found"] = resume.stamp(directory)
    what, config.resume_from_checkpoint = resume.look(directory, record, config)
    if what != "complete":
        _check_place(directory)
    begins = what == "start" or what == "go on" and record["found"] is None  # the latter from another run's checkpoint
    if begins and getattr(config, "push_to_hub", False) and not written.get("hub_replace"):
        if int(os.environ.get("RANK", 0)) == 0:
            hub.check_holds_no_model(config.hub_model_id, config.hub_revision)
    if what == "go on":
        record["spent"] = checkpoint.record_of(config.resume_from_checkpoint)["spent"]
    has_model = any((directory / name).is_file() for name in checkpoint.MARKERS)
    if what == "complete" and has_model and not (directory / card.NAME).is_file():
        _tell(directory)  # the one thing the disk had no room for
    return None if what == "complete" else record


def _check_place(directory: Path) -> None:
    """Find out now, and not when the model is loaded, that nothing can be written there."""
    if any(directory.glob("*.parquet")) and not (directory / "run.json").is_file():
        raise ValueError(f"output_dir {directory} holds rows, which a run would lie among. Choose another output_dir.")
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"output_dir {directory}: '{there}' is a file and no directory. Choose another output_dir.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"output_dir {directory}: nothing can be written in '{there}'. Choose another output_dir, or make it "
            "writable."
        )


def take_one_gpu(config) -> None:
    """Have a single process that sees several GPUs step over as many rows as its config says, and say how to use all.

    transformers would put the model into `nn.DataParallel`, and multiply the rows of a step by the number of GPUs.
    """
    if config.n_gpu > 1:
        say(
            f"note: this one process sees {config.n_gpu} GPUs, and one at a time will compute. Add `--launch "
            "accelerate_configs/ddp.yaml` to the command to train on all of them, or set CUDA_VISIBLE_DEVICES=0."
        )
        config._n_gpu = 1  # as transformers itself does for a model that lies on several


def _check_hub(config, written: dict) -> None:
    """Find out now, and not behind the training, that the Hub would refuse; and let no pickle and no token through."""
    if config.hub_token is not None:
        raise ValueError(
            "hub_token: a token in a config ends up in files. Run `hf auth login`, or set the environment variable "
            "HF_TOKEN, and remove the key."
        )
    if not config.push_to_hub:
        if idle := [key for key in ("hub_step_revisions", "hub_replace") if written.get(key)]:
            raise ValueError(f"{idle[0]} goes with `push_to_hub: true`.")
        return
    if config.hub_strategy == "checkpoint":
        raise ValueError(
            "hub_strategy: checkpoint sends the optimizer's state, which is a pickle, and only safetensors are sent. "
            "There are: end, every_save, all_checkpoints."
        )
    if int(os.environ.get("RANK", 0)) == 0:
        config.hub_model_id = hub.full_name(config.hub_model_id or Path(config.output_dir).absolute().name)
    hub.leave_out()


def check_idle_keys(written: dict) -> None:
    """Keys of an adapter, 4 bits, vLLM, evaluations, saves or the Hub, that are passed over in silence where nobody
    asked for any."""
    if written.get("do_train") is False or written.get("do_predict"):
        raise ValueError(
            "do_train, do_predict: a stage trains, and predicts nothing. Remove them; `suite evaluate` asks a model."
        )
    idle = [key for key in written if sense.is_of_adapter(key)]
    if idle and "use_peft" not in written:
        raise ValueError(
            f"{', '.join(idle)}: this has no effect without `use_peft: true`, and the whole model would be trained. "
            "Set it, or `use_peft: false` if you mean the whole model."
        )
    idle = [key for key in written if key in sense.OF_4BIT]
    if idle and "load_in_4bit" not in written:
        raise ValueError(
            f"{', '.join(idle)}: this has no effect without `load_in_4bit: true`. Set it, or `load_in_4bit: false`."
        )
    idle = [key for key in written if key.startswith("vllm_")]
    if idle and "use_vllm" not in written:
        raise ValueError(
            f"{', '.join(idle)}: this has no effect without `use_vllm: true`, and transformers would generate. Set it, "
            "or `use_vllm: false` if you mean that."
        )
    idle = [key for key in written if written[key] is not None and sense.is_of_other_server(key, written)]
    if idle and written["use_vllm"]:
        raise ValueError(
            f"{', '.join(idle)}: this has no effect with `vllm_mode: colocate`, and a vLLM inside the run would "
            "sample. Set `vllm_mode: server`, or remove it."
        )
    idle = [key for key in ("eval_steps", "do_eval") if written.get(key)]
    if idle and "eval_strategy" not in written:
        raise ValueError(
            f"{idle[0]}: this has no effect without `eval_strategy: steps`. Set it, or `eval_strategy: 'no'`."
        )
    for kind in ("eval", "save"):
        when = f"{kind}_strategy"
        if written.get(f"{kind}_steps") and written.get(when) in ("epoch", "best"):
            raise ValueError(
                f"{kind}_steps: this has no effect with `{when}: {written[when]}`. Remove it (on the command line: "
                f"`--{kind}_steps 0`), or set `steps` there."
            )
    if written.get("greater_is_better") is not None and sense.is_idle("greater_is_better", "", written):
        raise ValueError(
            "greater_is_better: this has no effect without `metric_for_best_model`, which says what is greater. Set "
            "it, or remove this."
        )
    for key, of in sense.ON_THE_HUB.items():
        is_default = key != "dataset_config" and written.get(key) == "main"
        if written.get(key) and not is_default and sense.is_idle(key, "", written):
            why = "each part of `datasets` has a `name` of its own"
            if os.path.exists(written.get(of) or ""):
                why = f"'{written[of]}' is a path here and no name on the Hub"
            raise ValueError(f"{key}: this has no effect, for {why}. Remove it.")
    _check_idle_keys_of_rows(written)


def _check_idle_keys_of_rows(written: dict) -> None:
    """`dataset_name` and a mixture have each their own."""
    name = written.get("dataset_name")
    mixed = f"`datasets: [{{path: {name}}}]` in the place of `dataset_name`" if name else "`datasets`"
    for key, way in (
        ("test_split_size", f"It is for a mixture: set {mixed}, or remove it"),
        ("streaming", f"It is for a mixture: set `dataset_streaming: true` in its place, or {mixed}"),
        ("dataset_streaming", "`datasets` streams by `streaming: true`: set that in its place"),
    ):
        if written.get(key) and sense.is_idle(key, "", written):
            raise ValueError(f"{key}: this has no effect here. {way}.")


def tokenizer(name: str | None, revision: str = "main", *, needs_template: bool = False):
    """The tokenizer beside a model. Raises `ValueError` where a chat template is needed and there is none."""
    if not name:
        raise ValueError("No model: set `model_name_or_path` to a checkpoint directory or a model on the Hub.")
    checkpoint_or_tokenizer = Path(name)
    if checkpoint.is_local(name) and not (checkpoint_or_tokenizer / "tokenizer_config.json").is_file():
        raise ValueError(f"'{name}' holds no tokenizer (tokenizer_config.json is missing).")
    from transformers import AutoTokenizer

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    repository, at = pins.split(name)
    if pins.is_on_hub(name):  # a mistyped path is told at once, and not when transformers has tried it six times
        at = pins.commit_of(repository, "model", at or revision)
    how = {"revision": at or revision, "padding_side": "left", "truncation_side": "left"}
    try:
        found = AutoTokenizer.from_pretrained(repository, **how)
    except OSError as error:  # the network and the Hub's own refusals
        raise ValueError(f"Cannot load the tokenizer of '{name}': {error}") from error
    if needs_template and not found.chat_template:
        raise ValueError(
            f"The tokenizer of '{name}' has no chat template, and conversations need one. Set `chat_template_path` "
            "(SFT), or start from a checkpoint that has one."
        )
    return found


def opens_thinking(tokenizer, template_kwargs: dict | None = None) -> bool:
    """Whether a chat template writes <think> behind every prompt, as R1-Distill's does."""
    if not tokenizer.chat_template:
        return False
    asked = [{"role": "user", "content": "?"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, **(template_kwargs or {}))
    return reasoning.opens_thinking(text)


def starting_point(model, config, rows, *, eos_token: str | None = None, chat_template_path: str | None = None):
    """The tokenizer of the model a run starts from, with the EOS of this run; `config` learns how to load the model.

    `rows` are the training rows, whose first tells conversations from plain text. Raises `ValueError` for a checkpoint
    that is not whole or only an adapter, a missing package, an end of turn that no template agrees with, and a template
    that leaves out what is to be learned.
    """
    checkpoint.check_whole(model.model_name_or_path)
    checkpoint.refuse_adapter(model.model_name_or_path)
    check_loading(model, config)
    rehearsal.optimization(config)
    _check_rope(model, config)
    _say_what_stays(model)
    conversational = columns.is_conversational(next(iter(rows)))
    found = tokenizer(
        model.model_name_or_path,
        model.model_revision,
        needs_template=conversational and chat_template_path is None,
    )
    turns.settle(found, conversational=conversational, eos_token=eos_token, chat_template_path=chat_template_path)
    if conversational:
        turns.check_said(rows, found, chat_template_path)
    rehearsal.padding(config, found)
    rehearsal.sampling(config, found)
    config.model_init_kwargs = model_init_kwargs(model, config)
    return found


def check_loading(model, config) -> None:
    """What would fail only after the weights were read, or without a way out; and what their dtype costs."""
    in_32_bits = resume.engine() not in ("DDP", "no engine") or config.deepspeed  # ZeRO and FSDP keep such weights
    if not model.use_peft and not in_32_bits:
        if model.dtype == "float16":
            raise ValueError(
                "dtype: float16 is for weights that stay as they are, under `use_peft: true`. The steps of whole "
                "training are too small for it. Leave it at float32; `fp16: true` computes in it all the same."
            )
        if model.dtype == "bfloat16":
            say(
                "warning: dtype bfloat16 keeps 8 bits of every weight, and steps that are smaller are lost. With "
                "`dtype: float32` and `bf16: true` they are kept, and the computing is in bfloat16 all the same."
            )
    if model.attn_implementation == "flash_attention_2" and not (find_spec("flash_attn") or find_spec("kernels")):
        raise ValueError(
            "attn_implementation: flash_attention_2 needs the package flash-attn (or kernels), which is not installed. "
            "`attn_implementation: sdpa` needs none."
        )
    quantized = [key for key in ("load_in_4bit", "load_in_8bit") if getattr(model, key)]
    if quantized and not model.use_peft:
        raise ValueError(
            f"{quantized[0]}: quantized weights cannot be trained; an adapter beside them can: `use_peft: true`."
        )
    optim = str(getattr(config.optim, "value", config.optim))
    theirs = [*quantized, *([f"optim: {optim}"] if "8bit" in optim or "paged" in optim else [])]
    if theirs and find_spec("bitsandbytes") is None:
        raise ValueError(f"{theirs[0]} needs bitsandbytes, which is not installed: pip install 'qwen-suite[qlora]'.")


def _check_rope(model, config) -> None:
    """Longer context by `model_init_kwargs: {rope_parameters: ...}`: whole, and not with what would not keep it."""
    scaling = (config.model_init_kwargs or {}).get("rope_parameters")
    if scaling is None:
        return
    if not isinstance(scaling, dict) or not {"rope_type", "rope_theta"} <= scaling.keys():
        raise ValueError(
            f"model_init_kwargs.rope_parameters: {scaling!r} needs rope_type and rope_theta (1000000.0 for Qwen2.5), "
            "for it takes the place of the model's own."
        )
    if model.use_peft:
        say(
            "warning: an adapter does not carry rope_parameters. Whoever loads or merges it must give them to the base "
            "again, or save a base with them first."
        )


def _say_what_stays(model) -> None:
    """Of a mixture, LoRA's `all-linear` leaves out the experts and their router: tensors, and no linear layers."""
    path = Path(model.model_name_or_path or "") / "config.json"
    if not model.use_peft or model.lora_target_parameters or not path.is_file():
        return
    if checkpoint.read_json(path).get("num_experts"):
        say(
            "the adapter leaves the experts of this mixture and their router as they are. To adapt the experts, too: "
            "`lora_target_parameters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]` and `lora_dropout: 0`."
        )


def model_init_kwargs(model, config) -> dict:
    """How `model_name_or_path` is to be loaded, from TRL's ModelConfig keys and `model_init_kwargs`.

    Raises `ValueError` for a key of the latter that means nothing to this model.
    """
    rehearsal.loading(model, config)
    return {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(config.model_init_kwargs or {}),
    }


def adapter_config(model):
    """TRL's LoRA configuration; with the commit of a base on the Hub, by which PEFT and `suite` load it again."""
    from trl import get_peft_config

    found = get_peft_config(model)
    if found is not None and pins.is_on_hub(model.model_name_or_path):
        found.revision = model.model_revision
    return found


def every_rank_reads_weights():
    """A context in which to make a trainer that loads a second model beside the policy: a reference, a reward model.

    Under FSDP with `fsdp_cpu_ram_efficient_loading` only rank 0 reads weights, and accelerate sends the policy's to the
    others. TRL shards a reference as it lies there: the shares of the other ranks are noise, and nothing says so.
    """
    from accelerate.utils import patch_environment

    return patch_environment(fsdp_cpu_ram_efficient_loading="false")


def callbacks(extra, record: dict) -> list:
    """The callbacks that our own keys ask for. Raises `ValueError` where `max_seconds` names no finished run."""
    asked = [_step_revisions(extra.hub_replace)] if extra.hub_step_revisions else []
    if extra.max_seconds is None:
        return asked
    if "/" in extra.max_seconds:
        seconds = (resume.run_in(Path(extra.max_seconds)) or {}).get("seconds")
        if seconds is None:
            raise ValueError(f"max_seconds: '{extra.max_seconds}' holds no finished run, so it has no length.")
    else:
        seconds = float(extra.max_seconds)
    from suite.trainers.stopping import StopAfter

    return [*asked, StopAfter(seconds, record.get("spent", 0.0))]


def _step_revisions(replace: bool):
    from transformers import TrainerCallback

    class StepRevisions(TrainerCallback):
        """Pushes each checkpoint as the branch step-N. A Hub that refuses does not end a run."""

        def on_save(self, args, state, control, **kwargs):
            if not state.is_world_process_zero:
                return
            step = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            try:
                how = {"private": args.hub_private_repo, "revision": f"step-{state.global_step}", "replace": replace}
                say(hub.push(step, args.hub_model_id, **how))
            except ValueError as error:
                say(f"{step.name} was not pushed: {error} `suite export` pushes it later, too.")

    return StepRevisions()


def finish(trainer, config, record: dict) -> None:
    """Claim the directory, train, save, note what it took, tell it in a card, and push if the config says so.

    A run that SIGTERM ends saves a checkpoint and leaves with `stopping.EXIT_CODE`. Raises `ValueError` where another
    process is at the directory, or was since `begin`.
    """
    # Or the first save would be refused, after all its steps. A model that only judges has none.
    merge.settle_sampling(getattr(trainer.model, "generation_config", None))
    trainer.accelerator.wait_for_everyone()  # every rank has looked into the directory by now
    with contextlib.ExitStack() as stack:
        if trainer.accelerator.is_main_process:
            stack.enter_context(whole.held(checkpoint.lock_of(config.output_dir), Path(config.output_dir)))
            claim(config.output_dir, record)
        _train_and_save(trainer, config, record)


def _train_and_save(trainer, config, record: dict) -> None:
    from suite.trainers import stopping

    is_main = trainer.accelerator.is_main_process
    trainer.record = record
    told = stopping.StopOnSigterm()
    if record["config"].get("enable_jit_checkpoint", True):
        told.listen()
    trainer.add_callback(told)
    try:
        trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    except ValueError:  # a mistake that shows at the first step leaves no trace either
        if is_main and trainer.state.global_step == 0 and not checkpoint.steps(config.output_dir):
            whole.remove(Path(config.output_dir) / "run.json")
        raise
    finally:
        told.restore()
    if told.stopped:
        say(f"Stopped and saved at step {trainer.state.global_step}; go on with `resume_from_checkpoint: true`.")
        trainer.accelerator.end_training()
        raise SystemExit(stopping.EXIT_CODE)
    if is_main:
        whole.remove(Path(config.output_dir) / checkpoint.PUSHING)
    took = {"seconds": trainer.seconds(), "steps": trainer.state.global_step}
    trainer.save_whole()
    if is_main:
        _look_at_save(trainer)
        note_finished(config.output_dir, **took, facts=facts.of(trainer))
        _tell(Path(config.output_dir))
        if config.push_to_hub:
            how = {"private": config.hub_private_repo, "revision": config.hub_revision, "replace": True}
            say(hub.push(Path(config.output_dir), config.hub_model_id, **how))  # TRL would save once more, unseen
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def _tell(directory: Path) -> None:
    if int(os.environ.get("RANK", 0)) == 0:
        with whole.writing(directory / card.NAME):
            card.write(directory)


def _look_at_save(trainer) -> None:
    """Read back what was saved, tensor by tensor on the CPU. Raises `ValueError` with all that is not as it should be.

    A template that leaves think blocks out of earlier turns is only told of: rows that have some to learn were refused
    before they were trained on.
    """
    begun, directory, tokenizer = time.monotonic(), trainer.args.output_dir, trainer.processing_class
    memory = _in_memory(trainer)
    look.demand(directory, look.at_files(directory, memory=memory, eos_token=tokenizer.eos_token, keeps_thoughts=False))
    for finding in look.at_thoughts(tokenizer):
        say(f"note: {finding}")
    say(f"{directory}: read back, {time.monotonic() - begun:.1f} s.")


def _in_memory(trainer):
    """The tensors that were saved, by name; None where this process holds only a share of each."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    from peft import PeftModel, get_peft_model_state_dict

    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()


def claim(output_dir: str, record: dict) -> None:
    """Write run.json: from here on the directory holds this run, and no model yet.

    Raises `ValueError` where it is no longer what `begin` saw.
    """
    directory, found = Path(output_dir), record.pop("found")
    if resume.stamp(directory) != found:
        raise ValueError(
            f"Another process has begun a run in {directory} meanwhile. Choose another output_dir, or go on with that "
            "run when it has ended: `resume_from_checkpoint: true`."
        )
    directory.mkdir(parents=True, exist_ok=True)
    _take_back(directory)
    checkpoint.write_json(directory / "run.json", {**record, "started": time.time()})


def _take_back(directory: Path) -> None:
    """Of a finished run that is made longer: its weights lie in its last checkpoint, too."""
    old = resume.run_in(directory) or {}
    if old.pop("finished", False):  # first of all: nobody may read of a finished run that has no model
        checkpoint.write_json(directory / "run.json", old)
    for name in checkpoint.MARKERS:
        (directory / name).unlink(missing_ok=True)


def note_finished(output_dir: str, **result) -> None:
    """Write into run.json that the run is complete, and what came of it."""
    path = Path(output_dir) / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    seconds = record.get("spent", 0.0) + time.time() - record["started"]
    checkpoint.write_json(path, {**record, "finished": True, "seconds": seconds, **result})
