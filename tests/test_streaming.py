"""Pretraining reads files as they were published and packs on the fly: in order, the same each time, without a copy."""

import gzip
import itertools
import json
import math
import random
from pathlib import Path

import psutil
import pytest

from suite import source
from suite.train import pretrain
from tests.conftest import ON_CPU, TINY, built_by, write_yaml
from tests.hub_stand_in import a_hub, connect
from tests.rows import write_rows

pytestmark = pytest.mark.slow
LENGTH = 64


def text(draw: random.Random) -> str:
    return " ".join(f"{draw.randrange(100)}+{draw.randrange(100)}" for _ in range(draw.randint(1, 40)))


@pytest.fixture
def pretrained(tmp_path, tokenizer_dir, monkeypatch):
    """The trainer that `suite pretrain` builds on a stream; the cache of `datasets` is an empty directory."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def build(rows, *words):
        keys = {"dataset_streaming": True, "packing": True, "packing_strategy": "wrapped", "max_length": LENGTH}
        config = write_yaml(
            tmp_path / "p.yaml", **keys, dataset_name=str(rows), model_config=TINY, max_steps=5, logging_steps=1
        )
        words = ["--config", config, *ON_CPU, "--tokenizer_name_or_path", tokenizer_dir, *words]
        return built_by(
            pretrain.main, [*words, "--output_dir", tmp_path / f"out-{len(list(tmp_path.iterdir()))}"], monkeypatch
        )

    return build


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The same 1,500 texts as one gzipped file, as a directory of files, and as prepared rows."""
    home, draw = tmp_path_factory.mktemp("published"), random.Random(0)
    rows = [{"text": text(draw)} for _ in range(1500)]
    lines = [json.dumps(row) + "\n" for row in rows]
    (home / "one.jsonl.gz").write_bytes(gzip.compress("".join([*lines[:7], "{broken\n", *lines[7:]]).encode()))
    write_rows(home / "many" / "part-1.jsonl", rows[:500])
    write_rows(home / "many" / "part-2.jsonl", rows[500:])
    write_rows(home / "prepared" / "train.parquet", rows)
    return home, [row["text"] for row in rows]


@pytest.mark.parametrize("name", ["one.jsonl.gz", "many", "prepared"])
def test_every_token_of_a_stream_is_packed_in_its_order_and_nothing_is_copied(name, published, pretrained, tmp_path):
    home, texts = published
    trainer = pretrained(home / name)
    tokenizer = trainer.processing_class
    packed = [token for row in trainer.train_dataset for token in row["input_ids"]]
    assert packed == tokenizer("".join(f"{said}{tokenizer.eos_token}" for said in texts))["input_ids"]
    batches = [next(iter(trainer.get_train_dataloader()))["input_ids"] for _ in range(2)]
    assert batches[0].equal(batches[1]) and batches[0].shape == (8, LENGTH)
    assert not list((tmp_path / "cache").rglob("*.arrow")), "a second copy on the disk"


def written(rows: list[dict], name: str, home: Path) -> bytes:
    """The content of a file of rows."""
    if name.endswith(".gz"):
        return gzip.compress(written(rows, name.removesuffix(".gz"), home))
    return write_rows(home / name, rows).read_bytes()


@pytest.mark.parametrize(("kind", "workers"), [("jsonl.gz", "1"), ("parquet", "0")])
def test_a_stream_from_the_hub_is_learned_whole_and_in_its_order_and_nothing_is_copied(
    kind, workers, published, tokenizer_dir, tmp_path, monkeypatch
):
    """By a run that ends where the texts do. They are a tag's; `main` has moved on to others."""
    from transformers import AutoTokenizer, Trainer

    (_, texts), learned, step = published, [], Trainer.training_step
    names = [f"data/train-0000{n}-of-00002.{kind}" for n in range(2)]
    parts = [[{"text": said} for said in part] for part in (texts[:1000], texts[1000:])]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokens = tokenizer("".join(f"{said}{tokenizer.eos_token}" for said in texts))["input_ids"]
    steps = math.ceil(math.ceil(len(tokens) / 512) / 8)
    config = write_yaml(
        Path("p.yaml"), dataset_name="me/texts@v1", dataset_streaming=True, packing=True, packing_strategy="wrapped",
        max_length=512, max_steps=steps, model_config=TINY, tokenizer_name_or_path=str(tokenizer_dir),
        save_strategy="no", output_dir="run", dataloader_num_workers=int(workers),
    )  # fmt: skip

    def recorded(trainer, model, inputs, *more):
        learned.append(inputs["labels"])
        return step(trainer, model, inputs, *more)

    with a_hub() as hub, monkeypatch.context() as patch:
        connect(patch, hub, tmp_path / "home")
        files = {name: written(rows, name, tmp_path) for name, rows in zip(names, parts, strict=True)}
        commit = hub.put("datasets/me/texts", files)
        hub.repos["datasets/me/texts"].branches["v1"] = [commit]
        hub.put("datasets/me/texts", {names[0]: files[names[1]]})
        patch.setattr(Trainer, "training_step", recorded)
        pretrain.main(["--config", str(config), *ON_CPU])
    assert [token for rows in learned for token in rows[rows != -100].tolist()] == tokens
    state = json.loads(Path("run/trainer_state.json").read_text())
    assert state["global_step"] == steps > 10 and state["log_history"][-1]["train_loss"] > 0
    assert {f"GET /datasets/me/texts/resolve/{commit}/{name}" for name in names} <= set(hub.seen)
    assert not [path for path in (tmp_path / "home").rglob("*") if path.stat().st_size > 4096], "a copy on the disk"


def test_memory_does_not_grow_with_what_was_read(published, pretrained):
    home, _ = published
    trainer, process = pretrained(home / "one.jsonl.gz"), psutil.Process()
    held = []
    for _ in range(5):  # epochs
        for _ in itertools.islice(trainer.train_dataset, 10**6):
            pass
        held.append(process.memory_info().rss >> 20)
    assert held[-1] - held[1] < 50, held


def test_text_that_packing_throws_away_is_told_of(published, pretrained, capsys):
    home, _ = published
    pretrained(home / "many")
    assert "cut off" not in capsys.readouterr().out
    pretrained(home / "many", "--packing_strategy", "bfd")
    assert "% of the tokens of the first 200 texts are cut off" in capsys.readouterr().out


def test_a_data_loader_process_reads_ahead(published, tmp_path, tokenizer_dir):
    home, _ = published
    losses = []
    for workers in ("0", "1"):
        config = write_yaml(
            tmp_path / "p.yaml", dataset_name=str(home / "one.jsonl.gz"), model_config=TINY, max_steps=3,
            dataset_streaming=True, packing=True, packing_strategy="wrapped", max_length=LENGTH, logging_steps=1,
            save_strategy="no", output_dir=str(tmp_path / workers), tokenizer_name_or_path=str(tokenizer_dir),
        )  # fmt: skip
        pretrain.main(["--config", str(config), *ON_CPU, "--dataloader_num_workers", workers])
        state = json.loads((tmp_path / workers / "trainer_state.json").read_text())
        losses.append([step["loss"] for step in state["log_history"] if "loss" in step])
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_what_is_cut_off_is_counted_in_tokens(tokenizer_dir):
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    rows = Dataset.from_dict({"text": ["1" * 9, "1" * 29]})  # one token a digit, and one for the end of the text
    assert source.share_cut_off(rows, tokenizer, 20) == pytest.approx(10 / 40)
    assert source.share_cut_off(rows, tokenizer, 30) == 0
