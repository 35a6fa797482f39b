"""A byte-level BPE tokenizer in Qwen2's format: digits one by one, ChatML, tags that are single, ordinary tokens.

It reads a corpus of any size as a stream, in bounded memory (suite/data/words.py says how). On a gigabyte of English,
Chinese and code made up for it the process held 1.3 GB at most, and made the same tokenizer.json twice:
`python -m tests.benchmarks tokenizer`.
"""

import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from suite import args, card, checkpoint, columns, ending, pins, reasoning, run, source, whole
from suite.data import passages
from suite.data.words import Words, thinned

_TAGS = re.compile("|".join(map(re.escape, reasoning.TAGS)))
END_OF_TEXT, TURN_STARTS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# The trainer counts the words again, one by one: so many are enough for any vocabulary, and take seconds.
_TRAINED_ON = 30_000_000
_HELD_OUT, _HELD_OUT_BYTES = 0.01, 1_000_000  # share of the rows, and as much of their text as is ever needed


@dataclass
class TokenizerArguments:
    output_dir: str = field(default="tokenizer", metadata={"help": "Where the tokenizer goes."})
    vocab_size: int = field(default=6400, metadata={"help": "How many tokens, the added ones included."})
    min_frequency: int = field(default=2, metadata={"help": "How often a pair of tokens must occur to be merged."})
    model_max_length: int = field(default=32768, metadata={"help": "What the tokenizer says of the longest input."})
    max_words: int = field(
        default=1_000_000,
        metadata={
            "help": "Count at most this many different pre-tokens; beyond it the rare count in halves. A million of "
            "the longest take 2.7 GB to learn from."
        },
    )
    max_bytes: int = field(
        default=2_000_000_000,
        metadata={"help": "Count about this much text; of a larger corpus, a sample of its rows drawn by `seed`."},
    )
    seed: int = field(default=0, metadata={"help": "Draws the held-out rows, and the sample of a large corpus."})
    compare_with: str | None = field(
        default=None, metadata={"help": "A tokenizer to compare bytes per token with: Qwen/Qwen2.5-0.5B, or its copy."}
    )
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'true': reuse a finished one."})

    def __post_init__(self):
        smallest = 256 + 3 + len(reasoning.TAGS)
        if self.vocab_size < smallest:
            raise ValueError(
                f"vocab_size: {self.vocab_size} is too small: 256 bytes, 3 special tokens, {len(reasoning.TAGS)} tags "
                f"need {smallest}."
            )
        for name, least in (("min_frequency", 1), ("max_words", 1000), ("max_bytes", 1000)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least {least}.")


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    return ScriptArguments, TokenizerArguments, DatasetMixtureConfig


def main(argv=None) -> None:
    script, config, mixture, written = args.parse(arguments(), argv)
    record = run.begin("tokenizer", config, written, config.compare_with, *source.names(script, mixture))
    if record is None:
        return
    pins.settle(record, config, script, mixture)
    other = run.tokenizer(*pins.split(config.compare_with)) if config.compare_with else None
    # The rows are read once, so nothing is gained by a copy of them; a stream has no shares, and sets no rows aside.
    script.dataset_streaming = not mixture.datasets
    mixture.streaming = mixture.test_split_size is None and all(part.fraction is None for part in mixture.datasets)
    rows, _ = source.rows(script, mixture, ("messages", "prompt+completion", "text"), beside_turns=False)
    if mixture.datasets and mixture.streaming:
        rows = source.read_on(rows, [part.path for part in mixture.datasets])
    with whole.held(checkpoint.lock_of(config.output_dir), Path(config.output_dir)):
        run.claim(config.output_dir, record)
        _make(rows, config, other)
    card.write(config.output_dir)


def _make(rows, config: TokenizerArguments, other) -> None:
    """Count, learn, save, and measure on what was not learned from, beside the `other` tokenizer if there is one."""
    held_out: list[str] = []
    words = count(_set_aside(_progress(corpus(rows)), held_out, config.seed), config)
    tokenizer = learn(words.counts, config.vocab_size, config.min_frequency)
    save(tokenizer, config)
    texts = {**passages.passages(), "held-out rows": "\n".join(held_out)}
    measured = {kind: _bytes_a_token(text, tokenizer, other) for kind, text in texts.items() if text.strip()}
    run.note_finished(
        config.output_dir,
        vocab_size=tokenizer.get_vocab_size(),
        counted={"rows": words.rows, "bytes": words.bytes, "share": words.share, "words": len(words.counts)},
        bytes_per_token=measured,
    )
    print(f"{config.output_dir}: {tokenizer.get_vocab_size()} tokens.\n{_table(measured, config.compare_with)}")


def corpus(rows) -> Iterator[str]:
    """The text of each row, one at a time; of a conversation, each turn with its role, as ChatML writes them.

    Tags are left out: they become tokens of their own, so no merge should be spent on them.
    """
    for row in rows:
        if "text" in row:
            text = row["text"] or ""
        else:
            parts = [row[name] or "" for name in ("messages", "prompt", "completion") if name in row]
            text = "\n".join(map(_written, parts))
        yield _TAGS.sub(" ", text)


def _written(part: str | list[dict]) -> str:
    if isinstance(part, str):
        return part
    return "\n".join(f"{turn['role']}\n{columns.text_of([turn])}" for turn in part)


def _progress(texts: Iterable[str]) -> Iterator[str]:
    """The texts, with a bar of the bytes that went by for those who watch, and two lines a minute for a log."""
    from tqdm import tqdm

    pause = 1 if sys.stderr.isatty() else 30
    with tqdm(desc="counting", unit="B", unit_scale=True, delay=pause, mininterval=pause) as bar:
        for text in texts:
            yield text
            bar.update(len(text.encode(errors="replace")))


def _set_aside(texts: Iterable[str], held_out: list[str], seed: int) -> Iterator[str]:
    """The texts to learn from; one in a hundred goes to `held_out` instead, until there is enough to measure on."""
    coin, room = random.Random(f"held-out {seed}"), _HELD_OUT_BYTES
    for text in texts:
        if room > 0 and coin.random() < _HELD_OUT:
            held_out.append(text[:room])
            room -= len(text.encode(errors="replace"))
        else:
            yield text


def count(texts: Iterable[str], config: TokenizerArguments) -> Words:
    """The pre-tokens of a stream of texts, within the bounds of `config`. Raises `ValueError` where there are none."""
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    words = Words(PRETOKENIZE_REGEX, config.max_words, config.max_bytes, config.seed)
    words.count(texts)
    if not words.counts:
        raise ValueError("There is no text to learn from: every row is empty.")
    read = "all rows" if words.share == 1 else f"a sample, one row in {1 / words.share:.0f} by seed {config.seed}"
    cut = f"; {words.cuts} times the rare ones were halved" if words.cuts else ""
    run.say(
        f"counted {words.bytes / 1e6:.1f} MB in {words.rows} rows ({read}): {sum(words.counts.values())} pre-tokens, "
        f"{len(words.counts)} different ones{cut}."
    )
    return words


def train(texts: Iterable[str], vocab_size: int, min_frequency: int):
    """A `tokenizers.Tokenizer` over a stream of texts. The same stream gives the same tokenizer."""
    return learn(count(texts, TokenizerArguments()).counts, vocab_size, min_frequency)


def learn(counts: dict[str, int], vocab_size: int, min_frequency: int):
    """A `tokenizers.Tokenizer` of pre-tokens and their counts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    specials = [END_OF_TEXT, TURN_STARTS, TURN_ENDS]
    added = len(specials) + len(reasoning.TAGS)
    share = min(1.0, _TRAINED_ON / sum(counts.values()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")  # how `_written_out` parts its words
    tokenizer.train_from_iterator(
        _written_out(counts if share == 1 else dict(thinned(counts, share))),
        trainers.BpeTrainer(
            vocab_size=vocab_size - added,
            min_frequency=max(1, round(min_frequency * share)),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=sys.stderr.isatty(),
        ),
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    # Ordinary tokens: TRL decodes completions without special ones, and the rewards must see the tags.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in reasoning.TAGS])
    return tokenizer


def _written_out(counts: dict[str, int], size: int = 1 << 16) -> Iterator[str]:
    """Each pre-token as often as it was counted, its bytes as ByteLevel writes them, in strings of about `size`.

    The trainer takes no counts, only text; but so it has no pattern to match, and no text that is not counted.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    byte_level, line, held = ByteLevel(add_prefix_space=False, use_regex=False), [], 0
    for word, n in counts.items():
        written = byte_level.pre_tokenize_str(word.encode(errors="replace").decode())[0][0] + " "
        while n > 0:
            times = min(n, size // len(written) + 1)
            line.append(written * times)
            held, n = held + times * len(written), n - times
            if held >= size:
                yield "".join(line)
                line, held = [], 0
    yield "".join(line)


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


def _bytes_a_token(text: str, tokenizer, other) -> dict[str, float]:
    """How many bytes of a text the tokenizer, and the other where there is one, put into a token on average."""
    size = len(text.encode(errors="replace"))
    found = {"here": round(size / len(tokenizer.encode(text).ids), 3)}
    if other is not None:
        found["other"] = round(size / len(other(text, add_special_tokens=False)["input_ids"]), 3)
    return found


def _table(measured: dict[str, dict[str, float]], other: str | None) -> str:
    width = max(map(len, ["bytes a token", *measured]))
    heads = ["here", *([str(other)] if other else [])]
    lines = ["  ".join([f"{'bytes a token':<{width}}", *(f"{head:>6}" for head in heads)])]
    for kind, values in measured.items():
        cells = (f"{value:>{max(6, len(head))}.2f}" for value, head in zip(values.values(), heads, strict=True))
        lines.append("  ".join([f"{kind:<{width}}", *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
