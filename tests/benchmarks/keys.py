"""What two keys of `suite sft` do to its speed on GSM8K's rows: `packing` and `tag_weight`.

The model is one layer of Qwen2.5-0.5B's width, so that attention, the layer's other products and the loss have the
shares of a real one's. Two cores need about 3 minutes a round for packing and 1 for tag weights.

Packing is compared at equal tokens: one row of `max_length` packed tokens a step, against as many single rows, padded
to the longest, as hold that many tokens on average. On a CPU there is no kernel that skips what lies outside of a
document: SDPA computes the whole square of a pack and masks it. What a pack wins there is its padding, less that.
"""

import tempfile
from pathlib import Path
from statistics import fmean

from tests.benchmarks import runs
from tests.benchmarks.interleaved import Rounds, rounds, told

LAYER = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 1,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
ROWS, VOCABULARY = 1000, 4096
TOKENS = 8192  # that a run trains on
PACKS = (512, 1024, 2048)
ROWS_A_STEP, WEIGHT = 8, 10
SETTINGS = {**runs.ON_CPU, "learning_rate": 1e-4, "max_length": 512}


def main(n: int, *keys: str) -> None:
    compared = {"packing": packing, "tag_weight": tag_weight}
    for key in keys or compared:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            length = prepare(directory)
            print(f"{ROWS} rows of {'GSM8K' if runs.GSM8K.is_file() else 'made words'}, {length:.0f} tokens on average")
            compared[key](directory, length, n)


def prepare(directory: Path) -> float:
    """Write rows and a model; the mean tokens of a row."""
    rows = runs.gsm8k_rows(ROWS)
    runs.save_rows(rows, directory / "data")
    tokenizer = runs.save_tokenizer(runs.texts(rows), VOCABULARY, directory / "model")
    runs.save_model(tokenizer, directory / "model", **LAYER)
    return fmean(len(tokenizer.apply_chat_template([*row["prompt"], *row["completion"]])["input_ids"]) for row in rows)


def run(directory: Path, name: str, **settings) -> runs.Run:
    """A run of `suite sft` that logs its tokens once, at its end."""
    settings = {**SETTINGS, **settings, "logging_steps": settings["max_steps"]}
    return runs.Run(directory, name, settings, "-m", "suite.cli", "sft")


def packing(directory: Path, length: float, n: int) -> None:
    for pack in PACKS:
        steps = {"max_length": pack, "max_steps": TOKENS // pack}
        single = max(1, int(pack / length))
        packed = run(directory, f"packed-{pack}", packing=True, per_device_train_batch_size=1, **steps)
        padded = run(directory, f"padded-{pack}", packing=False, per_device_train_batch_size=single, **steps)
        rounds(packed, padded, n)
        what = f"1 pack of {pack} / {single} padded rows"
        speed = Rounds.of(packed.tokens_a_second[1:], padded.tokens_a_second[1:])
        peaks = Rounds.of(packed.peaks[1:], padded.peaks[1:])
        print(
            f"tokens a second in training: {what}: {speed.ours} / {speed.theirs}; "
            f"tokens a step {packed.tokens[0] / steps['max_steps']:.0f} / {padded.tokens[0] / steps['max_steps']:.0f}; "
            f"peak memory in MiB {peaks.ours} / {peaks.theirs}"
        )
        told(f"tokens a second, {what}", speed.times)


def tag_weight(directory: Path, length: float, n: int) -> None:
    steps = {"max_steps": round(TOKENS / length / ROWS_A_STEP), "per_device_train_batch_size": ROWS_A_STEP}
    weighed, plain = run(directory, "weighed", tag_weight=WEIGHT, **steps), run(directory, "plain", **steps)
    whole = rounds(weighed, plain, n)
    assert weighed.tokens == plain.tokens, (weighed.tokens, plain.tokens)
    training = Rounds.of(weighed.training[1:], plain.training[1:])
    peaks = Rounds.of(weighed.peaks[1:], plain.peaks[1:])
    told(f"tokens a second, tag_weight {WEIGHT} / none, whole process", whole.speed)
    told(f"tokens a second, tag_weight {WEIGHT} / none, training", training.speed)
    told(f"peak memory, tag_weight {WEIGHT} / none", peaks.times)
