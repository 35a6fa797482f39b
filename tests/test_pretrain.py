"""`suite pretrain` and rows in which there is nothing to learn."""

import pytest

from suite.train import pretrain
from tests.conftest import ON_CPU, TINY, built_by, write_yaml
from tests.rows import write_rows


def config_of(tmp_path, texts: list[str], **keys):
    write_rows(tmp_path / "data" / "train.parquet", [{"text": text} for text in texts])
    return write_yaml(tmp_path / "run.yaml", output_dir="out", dataset_name=str(tmp_path / "data"), **keys)


@pytest.mark.parametrize("streamed", [False, True])
def test_rows_without_words_are_one_line_before_anything_is_built(streamed, tokenizer_dir, tmp_path):
    keys = {"tokenizer_name_or_path": str(tokenizer_dir), "max_steps": 2, "dataset_streaming": streamed}
    config = config_of(tmp_path, ["", " ", "\n"], **keys)
    with pytest.raises(ValueError, match="`text` is empty in all 3 rows that were read.*`suite prepare` leaves"):
        pretrain.main(["--config", str(config), *ON_CPU])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"packing": True, "per_device_train_batch_size": 2},
            ", packed into 1 of `max_length` 64, ",
        ),
        ({"per_device_train_batch_size": 4, "max_steps": 2}, " does not fill a batch of 4"),
    ],
)
def test_rows_too_few_for_one_batch_are_one_line_where_such_a_batch_is_left_out(keys, told, miniqwen_dir, tmp_path):
    there = {"model_name_or_path": str(miniqwen_dir), "max_length": 64, "dataloader_drop_last": True}
    config = config_of(tmp_path, ["1+2", "3+4", "5+6"], **there, **keys)
    with pytest.raises(
        ValueError, match=f"nothing to learn from: `text` of the 3 rows that were read{told}.*Remove it, or lower"
    ):
        pretrain.main(["--config", str(config), *ON_CPU])
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_new_model_has_the_dtype_that_was_asked_for(dtype, tokenizer_dir, tmp_path, monkeypatch, capsys):
    keys = {"tokenizer_name_or_path": str(tokenizer_dir), "model_config": TINY, "dtype": dtype}
    words = ["--config", config_of(tmp_path, ["1+2=3"] * 4, **keys), *ON_CPU]
    model = built_by(pretrain.main, words, monkeypatch).model
    there = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    assert there == {"float32" if dtype == "auto" else dtype}
    assert str(model.model.rotary_emb.inv_freq.dtype) == "torch.float32"
    assert ("dtype bfloat16 keeps 8 bits" in capsys.readouterr().out) == (dtype == "bfloat16")
