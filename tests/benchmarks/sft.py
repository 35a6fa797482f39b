"""`suite sft` against TRL's own SFT script on the same rows, model and settings: whole process, and training alone."""

import random
import re
import tempfile
from pathlib import Path

import yaml

from tests.benchmarks.interleaved import Rounds, Series, process, rounds, told

GOAL = 0.98
STEPS, BATCH = 60, 8
SETTINGS = {
    "max_length": 128,
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "learning_rate": 1e-3,
    "gradient_checkpointing": False,
    "logging_steps": 20,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "seed": 0,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prepare(directory: Path) -> None:
    """Rows of sums, as conversations, and a random Qwen2 of 2 layers, which TRL's script can load as well."""
    from datasets import Dataset
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    draw = random.Random(0)
    sums = [[draw.randint(10, 99) for _ in range(8)] for _ in range(STEPS * BATCH)]
    texts = [(" + ".join(map(str, numbers)), f"The sum is {sum(numbers)}.") for numbers in sums]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in texts
    ]
    (directory / "data").mkdir()
    Dataset.from_list(rows).to_parquet(directory / "data" / "train.parquet")

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator((part for text in texts for part in text), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(directory / "model")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory / "model")


class Script:
    """One of the two scripts as a process; every call trains into a fresh directory."""

    def __init__(self, directory: Path, name: str, *command: str):
        self.directory, self.name, self.command = directory, name, command
        self.train_runtimes: list[float] = []

    def __call__(self) -> float:
        output = self.directory / f"{self.name}-{len(self.train_runtimes)}"
        config = output.with_suffix(".yaml")
        where = {
            "model_name_or_path": str(self.directory / "model"),
            "dataset_name": str(self.directory / "data"),
            "output_dir": str(output),
        }
        config.write_text(yaml.safe_dump({**where, **SETTINGS}), encoding="utf-8")
        took, printed = process(*self.command, "--config", str(config), cwd=self.directory)
        self.train_runtimes.append(float(re.search(r"'train_runtime': '?([\d.e+-]+)", printed)[1]))
        return took


def main(n: int = 9) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(directory)
        ours = Script(directory, "ours", "-m", "suite.cli", "sft")
        theirs = Script(directory, "theirs", "-m", "trl.scripts.sft")
        whole = rounds(ours, theirs, n)
        training = Rounds(Series(ours.train_runtimes[1:]), Series(theirs.train_runtimes[1:]))  # without the warm-up
    rows = STEPS * BATCH
    print(f"seconds, {STEPS} steps of {BATCH} rows: suite sft {whole.ours}, TRL's script {whole.theirs}")
    print(f"rows a second in training: ours {rows / training.ours.median:.1f}, TRL {rows / training.theirs.median:.1f}")
    told("TRL's seconds / suite sft's, whole process", whole.speed, f">= {GOAL}", whole.speed.median >= GOAL)
    told("TRL's seconds / suite sft's, training", training.speed, f">= {GOAL}", training.speed.median >= GOAL)
