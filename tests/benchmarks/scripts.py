"""`suite sft`, `suite dpo` and `suite grpo` against TRL's own scripts: the same rows, model and settings, in turns.

That both do the same work is checked: as many tokens, and the same loss. Two cores need about 30 seconds a round and
stage.
"""

import random
import tempfile
from pathlib import Path

from tests.benchmarks import runs
from tests.benchmarks.interleaved import Rounds, rounds, told

SPEED, MEMORY = 0.98, 1.02
SETTINGS = {
    **runs.ON_CPU,
    "max_steps": 20,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-4,
    "logging_steps": 20,
}
OF_STAGE = {
    "sft": {"max_length": 128, "max_steps": 40},
    "dpo": {"max_length": 128},
    "grpo": {
        "reward_funcs": [f"{runs.__name__}.letters_reward"],
        "num_generations": 4,
        "max_completion_length": 32,
    },
}
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ROWS = 320


def rows(stage: str) -> list[dict]:
    """Sums, as conversations, in the shape that the stage reads."""
    draw = random.Random(0)
    found = []
    for _ in range(ROWS):
        numbers = [draw.randint(10, 99) for _ in range(8)]
        asked = [{"role": "user", "content": " + ".join(map(str, numbers))}]
        right, wrong = (
            [{"role": "assistant", "content": f"The sum is {total}."}] for total in (sum(numbers), sum(numbers) + 10)
        )
        shapes = {
            "sft": {"prompt": asked, "completion": right},
            "dpo": {"prompt": asked, "chosen": right, "rejected": wrong},
            "grpo": {"prompt": asked, "solution": str(sum(numbers))},
        }
        found.append(shapes[stage])
    return found


def main(n: int, *stages: str) -> None:
    for stage in stages or OF_STAGE:
        compare(stage, n)


def compare(stage: str, n: int) -> None:
    settings = {**SETTINGS, **OF_STAGE[stage]}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        runs.save_rows(rows(stage), directory / "data")
        tokenizer = runs.save_tokenizer(runs.texts(rows("sft")), 512, directory / "model")
        runs.save_model(tokenizer, directory / "model", **SHAPE)
        ours = runs.Run(directory, "ours", settings, "-m", "suite.cli", stage)
        theirs = runs.Run(directory, "theirs", settings, "-m", f"trl.scripts.{stage}")
        whole = rounds(ours, theirs, n)
    work = {*zip(ours.tokens, ours.losses, strict=True), *zip(theirs.tokens, theirs.losses, strict=True)}
    assert len(work) == 1, f"not the same work (tokens, loss): {work}"
    [(tokens, loss)] = work
    training = Rounds.of(ours.training[1:], theirs.training[1:])  # without the warm-up
    cpu, peaks = Rounds.of(ours.cpu[1:], theirs.cpu[1:]), Rounds.of(ours.peaks[1:], theirs.peaks[1:])
    print(
        f"{stage}: {settings['max_steps']} steps, {tokens:.4g} tokens, loss {loss} in both\n"
        f"seconds, whole process: suite {stage} {whole.ours}, TRL's script {whole.theirs}\n"
        f"CPU seconds, whole process: ours {cpu.ours}, TRL's {cpu.theirs}, TRL's / ours {cpu.speed}\n"
        f"tokens a second in training: ours {tokens / training.ours.median:.0f}, "
        f"TRL's {tokens / training.theirs.median:.0f}\n"
        f"peak memory in MiB: ours {peaks.ours}, TRL's {peaks.theirs}"
    )
    for what, measured in (("whole process", whole), ("training", training)):
        told(f"{stage}: ours / TRL's tokens a second, {what}", measured.speed, f">= {SPEED}",
             measured.speed.median >= SPEED)  # fmt: skip
    told(f"{stage}: ours / TRL's peak memory", peaks.times, f"<= {MEMORY}", peaks.times.median <= MEMORY)
