"""A byte-level BPE tokenizer in Qwen2's format: digits one by one, ChatML, tags that are single, ordinary tokens."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from suite import args, columns, reasoning, run, source

_TAGS = re.compile("|".join(map(re.escape, reasoning.TAGS)))
END_OF_TEXT, TURN_STARTS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


@dataclass
class TokenizerArguments:
    output_dir: str = field(default="tokenizer", metadata={"help": "Where the tokenizer goes."})
    vocab_size: int = field(default=6400, metadata={"help": "How many tokens, the added ones included."})
    min_frequency: int = field(default=2, metadata={"help": "A pair of tokens must occur so often to be merged."})
    model_max_length: int = field(default=32768, metadata={"help": "What the tokenizer says of the longest input."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'true': reuse a finished one."})

    def __post_init__(self):
        smallest = 256 + 3 + len(reasoning.TAGS)
        if self.vocab_size < smallest:
            raise ValueError(
                f"vocab_size: {self.vocab_size} is too small: 256 bytes, 3 special tokens, {len(reasoning.TAGS)} tags "
                f"need {smallest}."
            )


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    return ScriptArguments, TokenizerArguments, DatasetMixtureConfig


def main(argv=None) -> None:
    script, config, mixture, written = args.parse(arguments(), argv)
    record = run.begin("tokenizer", config, written, script.dataset_name)
    if record is None:
        return
    rows, _ = source.rows(script, mixture, ("messages", "prompt+completion", "text"))
    run.claim(config.output_dir, record)
    tokenizer = train(corpus(rows), config.vocab_size, config.min_frequency)
    save(tokenizer, config)
    run.note_finished(config.output_dir, vocab_size=tokenizer.get_vocab_size())
    sample = next(corpus(rows))
    tokens = len(tokenizer.encode(sample).ids)
    bytes_a_token = len(sample.encode()) / tokens
    print(f"{config.output_dir}: {tokenizer.get_vocab_size()} tokens; {bytes_a_token:.2f} bytes each on the first row.")


def corpus(rows) -> Iterator[str]:
    """The text of each row, one at a time; of a conversation, each turn with its role, as ChatML writes them.

    Tags are left out: they become tokens of their own, so no merge should be spent on them.
    """
    for row in rows:
        if "text" in row:
            text = row["text"]
        else:
            turns = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
            text = "\n".join(f"{turn['role']}\n{columns.text_of([turn])}" for turn in turns)
        yield _TAGS.sub(" ", text)


def train(texts: Iterator[str], vocab_size: int, min_frequency: int):
    """A `tokenizers.Tokenizer` over a stream of texts. The same stream gives the same tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, TURN_STARTS, TURN_ENDS]
    added = len(specials) + len(reasoning.TAGS)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - added,
            min_frequency=min_frequency,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    # Ordinary tokens: TRL decodes completions without special ones, and the rewards must see the tags.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in reasoning.TAGS])
    return tokenizer


def save(tokenizer, config: TokenizerArguments) -> None:
    """Write it as Qwen2's tokenizer class reads it, with the ChatML template."""
    from transformers import Qwen2Tokenizer

    wrapped = Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=None,
        model_max_length=config.model_max_length,
    )
    wrapped.chat_template = files("suite.model").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    wrapped.save_pretrained(Path(config.output_dir))


if __name__ == "__main__":
    sys.exit(args.answer_for(main))
