"""A checkpoint that was cut off half-way is recognised before anything is loaded."""

import json
import shutil

import pytest

from suite import checkpoint


@pytest.fixture
def copy(miniqwen_dir, tmp_path):
    return shutil.copytree(miniqwen_dir, tmp_path / "copy")


def test_a_whole_checkpoint_passes_and_a_hub_name_is_left_to_the_hub(copy):
    checkpoint.check_whole(copy)
    checkpoint.check_whole("Qwen/Qwen2.5-0.5B")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_cut_off_anywhere_are_refused(copy, share):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="cut off or broken"):
        checkpoint.check_whole(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [("model.safetensors", "no weights"), ("config.json", "neither config.json nor adapter_config.json")],
)
def test_a_missing_file_is_named(copy, name, message):
    (copy / name).unlink()
    with pytest.raises(ValueError, match=message):
        checkpoint.check_whole(copy)


def test_a_broken_json_is_named(copy):
    (copy / "config.json").write_text('{"model_type": "mini')
    with pytest.raises(ValueError, match="config.json' is cut off"):
        checkpoint.check_whole(copy)


def test_a_missing_shard_is_named(copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
        checkpoint.check_whole(copy)


def test_a_directory_that_is_not_there_names_its_neighbours(copy):
    with pytest.raises(ValueError, match="There are: .*copy"):
        checkpoint.check_whole(copy.parent / "cpy")


def test_a_fingerprint_follows_the_weights_and_not_the_place(copy, miniqwen_dir):
    assert checkpoint.fingerprint(copy) == checkpoint.fingerprint(miniqwen_dir)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert checkpoint.fingerprint(copy) != checkpoint.fingerprint(miniqwen_dir)


def test_the_last_checkpoint_is_the_last_whole_one(miniqwen_dir, tmp_path):
    for step in (5, 10, 20):
        shutil.copytree(miniqwen_dir, tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-20" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.last(tmp_path).name == "checkpoint-10"
    assert checkpoint.last(tmp_path / "checkpoint-5") is None
