"""What exact and whole checkpoints cost against TRL's own: a step, a save, and the look after the last save."""

import contextlib
import io
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.benchmarks import runs
from tests.benchmarks.interleaved import Rounds, told

STEPS, SAVE_EVERY = 12, 4  # a round trains each trainer for so many
SHAPE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1408}


def main(n: int = 5) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for stage in ("sft", "grpo"):
            _compare(stage, n, Path(directory) / stage)


def _compare(stage: str, n: int, directory: Path) -> None:
    """Each trainer in turns, each round from the start in a fresh directory."""
    from suite.trainers.exact import exact

    steps, saves, looks = {"ours": [], "theirs": []}, {"ours": [], "theirs": []}, []
    make = _sft if stage == "sft" else _grpo
    start = _start(directory)
    for i in range(n + 1):
        for name in ("ours", "theirs") if i % 2 else ("theirs", "ours"):
            with contextlib.redirect_stdout(io.StringIO()):  # every line a trainer logs
                trainer = make(start, directory / f"{name}-{i}", exact if name == "ours" else lambda kind: kind)
                a_step, a_save = _timed(trainer)
                if name == "ours":
                    looks.append(_look(trainer))
            if i > 0:  # the first round warms up
                steps[name].append(a_step)
                saves[name].append(a_save)
    a_step = Rounds.of(steps["ours"], steps["theirs"]).times
    told(f"{stage}: a step, ours / TRL's", a_step, "<= 1.02", a_step.median <= 1.02)
    told(f"{stage}: a save, ours / TRL's", Rounds.of(saves["ours"], saves["theirs"]).times)
    ours, theirs, look = (median(values) for values in (saves["ours"], saves["theirs"], looks))
    print(
        f"{stage}: a save of 26 M weights and their Adam: ours {ours:.2f} s, brought to the disk; TRL's {theirs:.2f} s"
    )
    print(f"{stage}: the look at what the last save left: {look:.2f} s")


def _timed(trainer) -> tuple[float, float]:
    """(median seconds of a step, median seconds of a save) of one training run."""
    from transformers import TrainerCallback

    steps, saves = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.begun = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            steps.append(time.perf_counter() - self.begun)

    save = trainer._save_checkpoint

    def timed_save(*args):
        begun = time.perf_counter()
        save(*args)
        saves.append(time.perf_counter() - begun)

    trainer._save_checkpoint = timed_save
    trainer.add_callback(Clock())
    trainer.train()
    return median(steps), median(saves)


def _look(trainer) -> float:
    """Seconds that `suite` takes to read back a finished model."""
    from suite import run

    trainer.save_whole()
    begun = time.perf_counter()
    run._look_at_save(trainer)
    return time.perf_counter() - begun


def _start(directory: Path) -> Path:
    """A random model of 26 M parameters with its tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = runs.save_tokenizer(_texts(), 6400, directory / "start")
    config = Qwen2Config(
        vocab_size=6400, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **SHAPE,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(directory / "start")
    return directory / "start"


def _texts() -> list[str]:
    return [f"What is {i} + {i * 7}? It is {i * 8}, for {i} and {i * 7} make it." for i in range(64)]


def _settings(directory: Path) -> dict:
    keys = {key: value for key, value in runs.ON_CPU.items() if key != "save_strategy"}
    return {
        **keys, "output_dir": str(directory), "max_steps": STEPS, "save_steps": SAVE_EVERY, "save_total_limit": 1,
        "logging_steps": 5, "per_device_train_batch_size": 4, "disable_tqdm": True, "log_level": "error",
    }  # fmt: skip


def _sft(start: Path, directory: Path, kind):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**_settings(directory), max_length=64)
    return kind(SFTTrainer)(model=str(start), args=config, train_dataset=Dataset.from_dict({"text": _texts()}))


def _grpo(start: Path, directory: Path, kind):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(**_settings(directory), max_completion_length=16, num_generations=4)
    rows = Dataset.from_dict({"prompt": _texts()})
    return kind(GRPOTrainer)(model=str(start), args=config, train_dataset=rows, reward_funcs=_length)


def _length(completions: list[str], **columns) -> list[float]:
    return [float(len(completion)) for completion in completions]
