"""A checkpoint that was cut off half-way is recognized before anything is loaded."""

import json
import os
import shutil
from pathlib import Path

import pytest

from suite import checkpoint, engine


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


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_weights_in_a_pickle_are_not_taken_for_a_save_that_was_cut_off(name, copy):
    (copy / "model.safetensors").rename(copy / name)
    kind = {"pytorch_model.bin": "AutoModel", "adapter_model.bin": "AutoPeftModel"}[name]
    with pytest.raises(ValueError, match=f"in {name}, a pickle, and only safetensors.* `{kind}ForCausalLM.from_pretr"):
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


def test_a_directory_that_is_not_there_names_its_neighbors(copy):
    with pytest.raises(ValueError, match="There are: .*copy"):
        checkpoint.check_whole(copy.parent / "cpy")


def test_a_fingerprint_tells_a_row_that_changed_in_the_middle_of_a_long_file(copy, tmp_path):
    rows = [json.dumps({"text": f"{number:06d}" * 20}) for number in range(40_000)]
    file = tmp_path / "rows.jsonl"

    def of(lines: list[str]) -> str:
        file.write_text("\n".join(lines))
        return checkpoint.fingerprint(file)

    assert of(rows) == of(rows) and file.stat().st_size > 4 << 20
    for changed in (0, 9_000, 20_000, 39_999):
        assert of([*rows[:changed], rows[changed].replace("0", "x"), *rows[changed + 1 :]]) != of(rows)
    assert checkpoint.fingerprint(file, ends=True) != of(rows)
    shutil.copy(copy / "model.safetensors", tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(file.read_bytes())  # of weights the ends are enough, and their neighbors'
    assert checkpoint.fingerprint(tmp_path) == checkpoint.fingerprint(tmp_path, ends=True)


def test_a_fingerprint_tells_rows_that_changed_in_the_folder_of_a_copy_of_the_hub(tmp_path):
    (tmp_path / "data" / "part-0.parquet").mkdir(parents=True)  # which is no file
    (tmp_path / "data" / "train.JSONL").write_text("1")
    before = checkpoint.fingerprint(tmp_path)
    (tmp_path / "data" / "train.JSONL").write_text("2")
    assert checkpoint.fingerprint(tmp_path) != before


def test_a_fingerprint_follows_the_weights_and_not_the_place(copy, miniqwen_dir):
    assert checkpoint.fingerprint(copy) == checkpoint.fingerprint(miniqwen_dir)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert checkpoint.fingerprint(copy) != checkpoint.fingerprint(miniqwen_dir)


def test_a_checkpoint_that_was_evaluated_into_itself_is_the_one_it_was(copy):
    before = checkpoint.fingerprint(copy)
    for name in ("rows.jsonl", "results.json", "run.json"):
        (copy / name).write_text("[]\n")
    assert checkpoint.fingerprint(copy) == before
    (copy / "results.json").unlink()  # then they are somebody's rows
    assert checkpoint.fingerprint(copy) != before


def test_the_last_checkpoint_is_the_last_that_is_as_it_was_sealed(miniqwen_dir, tmp_path):
    for step in (5, 10, 15, 20):
        directory = tmp_path / f"checkpoint-{step}"
        shutil.copytree(miniqwen_dir, directory)
        if step != 5:
            (directory / checkpoint.EXACT_STATE.format(rank=0)).write_bytes(b"state")
        checkpoint.seal(directory, {"step": step})
    (tmp_path / "checkpoint-20" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint-15" / checkpoint.EXACT_STATE.format(rank=0)).unlink()
    last, passed = checkpoint.last(tmp_path)
    assert last.name == "checkpoint-10" and len(passed) == 2
    assert "checkpoint-20' is not whole: model.safetensors has 4 bytes" in passed[0]
    assert "checkpoint-15' is not whole: exact_state_0.pt is missing" in passed[1]
    with pytest.raises(ValueError, match="holds weights and no optimizer"):
        checkpoint.record_of(tmp_path / "checkpoint-5")
    with pytest.raises(ValueError, match="was not written by `suite`.*model_name_or_path: .*cpy"):
        checkpoint.record_of(shutil.copytree(miniqwen_dir, tmp_path / "cpy"))
    assert checkpoint.last(tmp_path / "nowhere") == (None, [])


def test_weights_that_are_cut_off_are_never_sealed(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut off"):
        checkpoint.seal(copy, {})
    assert not (copy / "run.json").exists()


def test_a_finished_model_becomes_a_checkpoint_with_its_last_file(copy, tmp_path, monkeypatch):
    (copy / "trainer_state.json").write_text("{}")
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(a).name), replace(a, b)))
    (tmp_path / "run").mkdir()
    checkpoint.pour(copy, tmp_path / "run")
    assert moved[-1] == "config.json" and not list(copy.iterdir())
    checkpoint.check_whole(tmp_path / "run")


def test_an_adapter_whose_base_is_gone_is_refused_before_anybody_asks_the_hub_for_it(copy, tmp_path):
    (copy / "model.safetensors").rename(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "runs/gone"}')
    for open_it in (checkpoint.check_base, engine.load):
        with pytest.raises(ValueError, match="'runs/gone', is not there. Put it there"):
            open_it(str(tmp_path))
    checkpoint.check_base(tmp_path, base=str(tmp_path))  # where it is, was said
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    for open_it in (checkpoint.check_base, engine.load):
        with pytest.raises(ValueError, match="does not say which model it adapts"):
            open_it(str(tmp_path))


def test_an_adapter_is_not_put_beside_a_base_that_was_trained_anew(copy, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (copy / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(copy)}))
    (copy / "model.safetensors").write_bytes(b"as it was")
    (adapter / "run.json").write_text(json.dumps({"inputs": {str(copy): checkpoint.fingerprint(copy)}}))
    checkpoint.check_base(adapter)
    (copy / "model.safetensors").write_bytes(b"trained anew")
    for open_it in (checkpoint.check_base, engine.load):
        with pytest.raises(ValueError, match="is not the base that '.*adapter' was trained on"):
            open_it(str(adapter))


def test_of_an_adapter_a_base_on_the_hub_is_not_verified_and_an_older_record_counts_the_answers(copy, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(copy)}))
    for name in ("rows.jsonl", "results.json"):
        (copy / name).write_text("[]\n")
    older = checkpoint.fingerprint(copy, with_answers=True)
    (tmp_path / "run.json").write_text(json.dumps({"inputs": {str(copy): older}}))
    assert older != checkpoint.fingerprint(copy)
    checkpoint.check_base(tmp_path)
    assert not capsys.readouterr().out
    checkpoint.check_base(tmp_path, "Qwen/Qwen2.5-0.5B")
    assert "'Qwen/Qwen2.5-0.5B' is on the Hub, and whether" in capsys.readouterr().out


def test_weights_of_another_width_than_the_config_says_are_refused_unread(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 2 * config["hidden_size"]}))
    with pytest.raises(ValueError, match="does not fit together: config.json has vocab_size .* and hidden_size"):
        checkpoint.check_whole(copy)
