"""One step of SFT and one of GRPO, as LoRA, of a random Qwen2.5-0.5B at its true shapes, beside TRL's own scripts.

Once each, whatever the rounds: two cores need about 3 minutes and 2 GB of disk. Weights are float32; SFT takes 2 rows
of at most 256 tokens, GRPO 4 completions of at most 64. Of the memory, 2 GB are the checkpoint's own file, mapped and
not copied.
"""

import sys
import tempfile
from pathlib import Path

from tests.benchmarks import runs
from tests.benchmarks.interleaved import ROOT, Rounds, Series, process, told

LIMIT = 16 << 10  # MiB
MEMORY = 1.02  # of TRL's
ROWS = 200
TOKENIZER = ROOT.parent / "shared" / "data" / "qwen2.5-tokenizer"
SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
SETTINGS = {
    **runs.ON_CPU,
    "max_steps": 1,
    "logging_steps": 1,
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": "all-linear",
}
OF_STAGE = {
    "sft": {"per_device_train_batch_size": 2, "max_length": 256, "learning_rate": 1e-4},
    "grpo": {
        "reward_funcs": [f"{runs.__name__}.letters_reward"],
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 64,
        "learning_rate": 1e-5,
    },
}


def build(target: Path) -> None:
    """Write the random checkpoint; its tokenizer is Qwen2.5's where that lies beside the checkout."""
    from transformers import AutoTokenizer

    if TOKENIZER.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        tokenizer.save_pretrained(target)
    else:
        tokenizer = runs.save_tokenizer(runs.texts(runs.gsm8k_rows(ROWS)), 4096, target)
    runs.save_model(tokenizer, target, **SHAPE)


def main(n: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        # In a process of its own: what this one held would count as the peak of every child.
        process("-m", __name__, f"{name}/model")
        for stage in OF_STAGE:
            one_step(stage, Path(name))


def one_step(stage: str, built: Path) -> None:
    directory = built / stage
    directory.mkdir()
    (directory / "model").symlink_to(built / "model")
    columns = ("prompt", "completion" if stage == "sft" else "solution")
    runs.save_rows([{c: row[c] for c in columns} for row in runs.gsm8k_rows(ROWS)], directory / "data")
    settings = {**SETTINGS, **OF_STAGE[stage]}
    ours = runs.Run(directory, "ours", settings, "-m", "suite.cli", stage)
    theirs = runs.Run(directory, "theirs", settings, "-m", f"trl.scripts.{stage}")
    ours(), theirs()
    for who, run in ((f"suite {stage}", ours), (f"trl.scripts.{stage}", theirs)):
        print(
            f"{who}: {run.training[0]:.1f} seconds for the step, {run.whole[0]:.1f} for the process, "
            f"{run.peaks[0]:.0f} MiB at most; {run.tokens[0]:.0f} tokens, loss {run.losses[0]}"
        )
    peak, share = Series(ours.peaks), Rounds.of(ours.peaks, theirs.peaks).times
    told(f"{stage} at true shapes, peak memory in MiB", peak, f"<= {LIMIT}", peak.median <= LIMIT)
    told(f"{stage} at true shapes, ours / TRL's peak", share, f"<= {MEMORY}", share.median <= MEMORY)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
