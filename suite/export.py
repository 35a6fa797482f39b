"""A checkpoint becomes a plain model directory: an adapter merged, a miniqwen in a stock class, a dense model upcycled.

    suite export runs/x/sft-lora --output_dir runs/x/merged
    suite export runs/x/grpo --output_dir runs/x/plain --as qwen2 --dtype bfloat16
    suite export runs/x/pretrain --output_dir runs/x/experts --upcycle --num_experts 8
    suite export runs/x/sft-lora --output_dir runs/x/merged --push me/model --push_adapter me/model-lora

What is written is read back before it gets its name: the model on disk answers as the one in memory, not as the base of
its adapter, and stops where a turn ends. `--as` is short for `--model_type`. Works on the CPU, in float32: four bytes a
parameter.
"""

import math
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from suite import args, card, checkpoint, ending, forms, hub, look, merge, pins, run, turns, whole
from suite.keys import DTYPES

OF_WRITING = ("push_adapter", "dtype", "eos_token", "chat_template_path", "max_shard_size")


@dataclass
class ExportArguments:
    checkpoint: str = field(metadata={"help": "The directory of a model, or of an adapter."})
    output_dir: str | None = field(default=None, metadata={"help": "Where the plain directory goes; must not exist."})
    base: str | None = field(default=None, metadata={"help": "The adapter's base model, where it has moved."})
    dtype: str = field(
        default="auto", metadata={"help": f"Of the weights: {', '.join(DTYPES)}; auto is as the (base) model's."}
    )
    model_type: str | None = field(
        default=None,
        metadata={
            "help": "Write a miniqwen in transformers' own class: "
            + ", ".join(f"{n} ({w})" for n, w in forms.STOCK.items())
        },
    )
    upcycle: bool = field(
        default=False, metadata={"help": "Make a mixture of experts of a dense model, which answers as it did."}
    )
    num_experts: int | None = field(
        default=None, metadata={"help": "How many, each a copy of the feed-forward network."}
    )
    num_experts_per_tok: int | None = field(
        default=None, metadata={"help": "How many of them a token goes to; 2 unless said."}
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "What the model stops at, where it ends texts and no turns."}
    )
    chat_template_path: str | None = field(default=None, metadata={"help": "A .jinja file to take its place."})
    keeps_thoughts: bool = field(
        default=True, metadata={"help": "Refuse a chat template that leaves <think> blocks out of earlier turns."}
    )
    max_shard_size: str = field(default="5GB", metadata={"help": "Weights go into files of at most this size."})
    push: str | None = field(
        default=None, metadata={"help": "owner/name on the Hub for output_dir or, without one, for the checkpoint."}
    )
    push_adapter: str | None = field(
        default=None, metadata={"help": "owner/name on the Hub for the adapter as it is, beside the merged model."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private; by default as the account has it."}
    )
    hub_revision: str | None = field(default=None, metadata={"help": "The branch to push to, instead of main."})
    hub_step_revisions: bool = field(
        default=False, metadata={"help": "Push each checkpoint-N of the run, too, as the branch step-N."}
    )
    hub_replace: bool = field(default=False, metadata={"help": "Put it in the place of what the repository holds."})

    def __post_init__(self):
        if self.model_type not in (None, *forms.STOCK):
            there = ", ".join(forms.STOCK)
            raise ValueError(f"--as: a model cannot be written as '{self.model_type}'. There are: {there}.")
        self._check_upcycle()
        if not re.fullmatch(r"[1-9]\d*[KMGT]B", self.max_shard_size):
            raise ValueError(f"max_shard_size: '{self.max_shard_size}' must be a size like 500MB or 5GB.")
        if self.output_dir is None and self.push is None:
            raise ValueError("output_dir is missing: where is the plain directory to go? (Or `push` what is there.)")
        self._check_ways()
        for key in ("push", "push_adapter"):
            if getattr(self, key) is not None:
                hub.check_name(key, getattr(self, key))
        if self.hub_step_revisions and self.output_dir is not None and self.push_adapter is None:
            raise ValueError("hub_step_revisions: the steps are the run's own; push them without an output_dir.")
        if self.push is not None and self.push == self.push_adapter:
            raise ValueError("push and push_adapter: a model and its adapter need a repository each.")
        self.check_free()

    def _check_ways(self) -> None:
        """Raise `ValueError` for a key of writing, or of pushing, where nothing is written, or pushed."""
        given = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        how = {"model_type": "--as", "upcycle": "--upcycle"} | {key: key for key in OF_WRITING}
        if self.output_dir is None and (key := next((key for key in given if key in how), None)):
            raise ValueError(f"output_dir is missing: {how[key]} goes with a plain directory that is written.")
        of_hub = next((key for key in given if key.startswith("hub_")), None)
        if of_hub and self.push is None and self.push_adapter is None:
            raise ValueError(f"{of_hub} goes with `push`, and nothing is pushed. Set it, or remove {of_hub}.")

    def check_free(self) -> None:
        """Raise `ValueError` where something is in the place of `output_dir`: an export replaces nothing."""
        if self.output_dir is not None and Path(self.output_dir).exists():
            raise ValueError(f"output_dir {self.output_dir} is there already. Choose another, or remove it.")

    def _check_upcycle(self) -> None:
        if self.upcycle != (self.num_experts is not None):
            raise ValueError("--upcycle and num_experts go together: `--upcycle --num_experts 8`.")
        if not self.upcycle and self.num_experts_per_tok is not None:
            raise ValueError("num_experts_per_tok goes with --upcycle: `--upcycle --num_experts 8`.")
        self.num_experts_per_tok = 2 if self.num_experts_per_tok is None else self.num_experts_per_tok
        if self.upcycle and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} must lie between 1 and num_experts {self.num_experts}."
            )


def arguments() -> tuple[type, ...]:
    return (ExportArguments,)


def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("--"):
        words = ["--checkpoint", *words]
    words = ["--model_type" if word == "--as" else word.replace("--as=", "--model_type=", 1) for word in words]
    keys, _ = args.parse(arguments(), words, needs_config=False)
    source = Path(keys.checkpoint)
    if not source.is_dir():
        raise ValueError(f"There is no checkpoint directory '{source}'.")
    checkpoint.check_whole(source)
    base = merge.base_of(source, keys.base)
    _check_forms(keys, merge.config_of(base or source))
    if keys.push_adapter is not None and base is None:
        raise ValueError(f"push_adapter: '{source}' is a whole model and no adapter.")
    if keys.push or keys.push_adapter:
        hub.check_access()  # before the work, not behind it
    if keys.output_dir is not None:
        tokenizer = tokenizer_of(source, base, keys)
        if base is None:  # an adapter may bring rows of its own for tokens that its base does not know
            _check_vocabulary(source, tokenizer, merge.config_of(source))
        write(keys, base, tokenizer)
    push(keys, source, base)


def _check_vocabulary(source: Path, tokenizer, config: dict) -> None:
    """Raise `ValueError` where the tokenizer knows tokens for which the model has no embedding.

    One that was added to it and that no conversation has to hold is only told: Gemma 3 1B has such a token of images.
    """
    size = config.get("vocab_size", math.inf)
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= size}
    if not beyond:
        return
    ends = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token)
    added, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template or "")
    used = {token: at for token, at in beyond.items() if token not in added or token in ends or token in template}
    token, number = max((used or beyond).items(), key=lambda one: one[1])
    told = f"its tokenizer has a token {number}, '{token}', and config.json vocab_size {size}"
    if used:
        raise ValueError(
            f"'{source}' does not fit together: {told}, so there is no embedding for it. Take the tokenizer the model "
            "was trained with, or give it more rows (`model.resize_token_embeddings`)."
        )
    args.say(f"note: '{source}': {told}. There is no embedding for it, so a text that holds it cannot be answered.")


def _check_forms(keys: ExportArguments, config: dict) -> None:
    """Before a model is loaded: whether it can become what is asked, from what its config.json says."""
    if keys.upcycle:
        forms.check_upcycle(config)
        config = {**config, "num_experts": keys.num_experts}
    if keys.model_type is not None:
        forms.check_stock(config, keys.model_type)


def push(keys: ExportArguments, source: Path, base: str | None) -> None:
    """Send what is asked for; an adapter goes beside the name of its base, which must be known to who loads it."""
    written = Path(keys.output_dir) if keys.output_dir else source
    how = {"private": keys.hub_private_repo, "replace": keys.hub_replace}
    sent = [(repo, path) for repo, path in ((keys.push, written), (keys.push_adapter, source)) if repo]
    if base is not None and checkpoint.is_local(base) and source in [path for _, path in sent]:
        print(f"its base '{base}' is a directory here: whoever loads the adapter needs it, too.")
    for repo, path in sent:
        if path == source:  # what was written has been looked at
            look.demand(path, look.at_files(path, keeps_thoughts=keys.keeps_thoughts))
        card.write(path)  # with what has been measured since
        for step in checkpoint.steps(source) if path == source and keys.hub_step_revisions else ():
            checkpoint.check_whole(step)
            print(hub.push(step, repo, revision=f"step-{step.name.partition('-')[2]}", **how), flush=True)
        print(hub.push(path, repo, revision=keys.hub_revision, **how))


def tokenizer_of(source: Path, base: str | None, keys: ExportArguments):
    """The tokenizer beside a checkpoint, or its base's, with what the model is to stop at as its EOS.

    A base model ends texts, and what was trained on conversations ends turns: only of a run that pretrained, or where
    `eos_token` says so, is the tokenizer's own EOS kept.
    """
    own = base is None or (source / "tokenizer_config.json").is_file()
    found = run.tokenizer(*pins.split(str(source) if own else base))
    if keys.chat_template_path is not None:
        path = Path(keys.chat_template_path)
        if not path.is_file():
            raise ValueError(f"chat_template_path: there is no file '{path}'.")
        try:
            found.chat_template = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"chat_template_path: '{path}' is no text in UTF-8.") from None
    ends_texts = keys.eos_token is not None or merge.record_of(source).get("stage") == "pretrain"
    before = found.eos_token
    turns.settle(found, conversational=bool(found.chat_template) and not ends_texts, eos_token=keys.eos_token)
    if found.eos_token != before:
        print(f"it stops at '{found.eos_token}', where its tokenizer said '{before}'.")
    return found


def write(keys: ExportArguments, base: str | None, tokenizer) -> Path:
    """The plain directory, under a hidden name until the look at it has found nothing."""
    import torch

    source, target = Path(keys.checkpoint), Path(keys.output_dir)
    model, *before = merge.merged(source, base, tokenizer) if base else (merge.loaded(source),)
    stored = merge.config_of(base or source)
    name = keys.dtype if keys.dtype != "auto" else stored.get("dtype") or stored.get("torch_dtype") or "float32"
    dtype = getattr(torch, name)
    # Rounded first and asked in float32 then: so the model on disk, asked in float32, has to say the same.
    expected = look.logits(merge.cast(merge.cast(model, dtype), torch.float32), tokenizer)
    merge.cast(model, dtype)
    if keys.upcycle:
        model = forms.upcycled(model, keys.num_experts, keys.num_experts_per_tok)
    if keys.model_type is not None:
        model = forms.as_stock(model)
    merge.settle_stops(model, tokenizer)
    merge.settle_sampling(model.generation_config)
    # Qwen2MoE without a shared expert has three tensors of it without a value, which vLLM would not know.
    memory = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
    with whole.directory(target, kept_on=ValueError) as partial:
        # A copy, for what is given here is emptied on the way.
        model.save_pretrained(partial, state_dict=dict(memory), max_shard_size=keys.max_shard_size)
        tokenizer.save_pretrained(partial)
        look.demand(
            partial,
            look.at_files(partial, memory=memory, eos_token=tokenizer.eos_token, keeps_thoughts=keys.keeps_thoughts),
        )
        del model, memory
        look.demand(partial, look.at_model(partial, expected, *before))
        keys.check_free()  # it was when the command began
    try:
        card.write(target, source)
    except whole.NoRoomError:  # whole or not at all, or the same command would find something in its place
        whole.remove(target)
        raise
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(f"{target}: {size / 1e6:,.1f} MB of weights in {name}, read back and asked.")
    return target


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
