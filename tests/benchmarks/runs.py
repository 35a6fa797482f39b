"""A training run as a process of its own, what it took, and small models and rows to start it from."""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from suite import data, reasoning
from tests.benchmarks.interleaved import ROOT, own_peak, process

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
ON_CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 0,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Run:
    """A command that trains; every call does so anew, in a fresh directory with an empty cache, and is remembered."""

    def __init__(self, directory: Path, name: str, settings: dict, *command: str):
        self.directory, self.name, self.settings, self.command = directory, name, settings, command
        self.whole: list[float] = []  # seconds from start to exit
        self.training: list[float] = []  # seconds of `trainer.train()`
        self.cpu: list[float] = []  # seconds
        self.peaks: list[float] = []  # MiB
        self.tokens: list[float] = []
        self.losses: list[float] = []

    def __call__(self) -> float:
        output = self.directory / f"{self.name}-{len(self.whole)}"
        config = output.with_suffix(".yaml")
        where = {
            "model_name_or_path": str(self.directory / "model"),
            "dataset_name": str(self.directory / "data"),
            "output_dir": str(output),
        }
        config.write_text(yaml.safe_dump({**where, **self.settings}), encoding="utf-8")
        cache = {"HF_DATASETS_CACHE": str(output.with_suffix(".cache"))}
        done = process(*self.command, "--config", str(config), cwd=self.directory, env=cache)
        assert done.peak > own_peak(), "the peak is the benchmark's own, from which the child began"
        self.whole.append(done.seconds)
        self.cpu.append(done.cpu)
        self.peaks.append(done.peak)
        for key, values in (("train_runtime", self.training), ("num_tokens", self.tokens), ("train_loss", self.losses)):
            values.append(_logged(key, done.printed))
        return done.seconds

    @property
    def tokens_a_second(self) -> list[float]:
        """Of training alone. Padding is no token."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.training, strict=True)]


def _logged(key: str, printed: str) -> float:
    """The last value that a trainer printed under a name."""
    return float(re.findall(rf"'{key}': '?([\d.e+-]+)", printed)[-1])


def save_tokenizer(texts: list[str], vocab_size: int, target: Path):
    """A byte-level tokenizer trained on `texts`, with ChatML's template and end of turn; saved, and returned."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(target)
    return tokenizer


def save_model(tokenizer, target: Path, **shape) -> None:
    """A random Qwen2 for `tokenizer`, which TRL's scripts can load as well."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        **{"vocab_size": len(tokenizer), "tie_word_embeddings": True, **shape},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(target)


def save_rows(rows: list[dict], directory: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    directory.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / "train.parquet")


def gsm8k_rows(count: int) -> list[dict]:
    """The first rows of GSM8K as `prompt+completion`, with the system prompt; made ones where it does not lie beside
    the checkout."""
    found = data.load("gsm8k")("train", source=str(GSM8K)) if GSM8K.is_file() else _like_gsm8k()
    system = {"role": "system", "content": reasoning.SYSTEM_PROMPT}
    return [
        {"prompt": [system, *row["prompt"]], "completion": row["completion"], "solution": row["solution"]}
        for row in itertools.islice(found, count)
    ]


def _like_gsm8k() -> Iterator[dict]:
    """Endless rows of numbers, as long as GSM8K's are: by `save_tokenizer` with 4,096 tokens, 201 with a deviation of
    50, system prompt and tags included."""
    draw = random.Random(0)
    while True:
        words = [str(draw.randrange(100)) for _ in range(int(min(400, max(40, draw.lognormvariate(4.76, 0.39)))))]
        middle = len(words) // 2
        said = reasoning.write(" ".join(words[middle:]), words[-1])
        yield {
            "prompt": [{"role": "user", "content": " ".join(words[:middle])}],
            "completion": [{"role": "assistant", "content": said}],
            "solution": words[-1],
        }


def texts(rows: list[dict]) -> list[str]:
    """Every turn of `prompt+completion` rows, to train a tokenizer on."""
    return [turn["content"] for row in rows for turn in [*row["prompt"], *row["completion"]]]


def letters_reward(completions: list, **columns) -> list[float]:
    """The share of Latin letters: a reward that every script can import, and that differs inside a group of noise."""
    said = [turns[0]["content"] for turns in completions]
    return [sum(c.isascii() and c.isalpha() for c in text) / max(1, len(text)) for text in said]
