"""What a user can get wrong is one ValueError before a model is loaded, and leaves no trace behind."""

import shutil

import pytest

from suite import engine
from suite.train import grpo, pretrain, sft
from tests.conftest import ON_CPU, write_yaml


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """Run a stage with some keys; a model that is loaded, and an output directory left behind, fail the test."""

    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)

    def run(stage, keys: dict, message: str) -> None:
        config = write_yaml(tmp_path / "run.yaml", output_dir=str(tmp_path / "out"), **keys)
        with pytest.raises(ValueError, match=message):
            stage.main(["--config", str(config), *ON_CPU])
        assert not (tmp_path / "out").exists()

    return run


@pytest.fixture
def keys(miniqwen_dir, arithmetic_dir):
    return {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(arithmetic_dir)}


def test_an_unknown_reward(attempt, keys):
    attempt(grpo, {**keys, "reward_funcs": ["acuracy"]}, "no reward 'acuracy'.*Did you mean 'accuracy'")


def test_a_misspelt_knob(attempt, keys):
    knobs = {"accuracy": {"readng": "tags"}}
    attempt(grpo, {**keys, "reward_kwargs": knobs}, "accuracy has no knob 'readng'.*Did you mean 'reading'")


def test_vllm_that_is_not_installed(attempt, keys, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    attempt(grpo, {**keys, "use_vllm": True}, "use_vllm: true needs vLLM")


def test_rows_without_the_needed_column(attempt, keys, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows").mkdir()
    table = pyarrow.table({"question": ["1+1"], "answer": ["2"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows" / "train.parquet")
    wrong = {**keys, "dataset_name": str(tmp_path / "rows")}
    attempt(sft, wrong, "columns answer, question.*needs the shape 'messages'.*prompt, completion")
    attempt(grpo, wrong, "needs the shape 'prompt.solution' .prompt, solution.")


def test_a_checkpoint_cut_off_half_way(attempt, keys, miniqwen_dir, tmp_path):
    half = shutil.copytree(miniqwen_dir, tmp_path / "half")
    weights = half / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    attempt(sft, {**keys, "model_name_or_path": str(half)}, "cut off or broken")


def test_a_tokenizer_without_a_chat_template(attempt, keys, miniqwen_dir, tmp_path):
    bare = shutil.copytree(miniqwen_dir, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    attempt(sft, {**keys, "model_name_or_path": str(bare)}, "no chat template.*chat_template_path")
    attempt(grpo, {**keys, "model_name_or_path": str(bare)}, "no chat template")


def test_a_model_that_is_not_there(attempt, keys):
    attempt(sft, {**keys, "model_name_or_path": "./nowhere"}, "no checkpoint directory")
    attempt(sft, {"dataset_name": keys["dataset_name"]}, "No model: set `model_name_or_path`")


def test_a_field_that_miniqwen_does_not_have(attempt, keys, miniqwen_dir):
    scratch = {"dataset_name": keys["dataset_name"], "tokenizer_name_or_path": str(miniqwen_dir)}
    attempt(pretrain, {**scratch, "model_config": {"hiden_size": 64}}, "no field 'hiden_size'.*'hidden_size'")
    attempt(pretrain, {"dataset_name": keys["dataset_name"]}, "tokenizer_name_or_path")


def test_a_second_run_in_the_same_directory(keys, tmp_path, miniqwen_dir):
    (tmp_path / "out").mkdir()
    shutil.copy(miniqwen_dir / "model.safetensors", tmp_path / "out")
    config = write_yaml(tmp_path / "run.yaml", output_dir=str(tmp_path / "out"), **keys)
    with pytest.raises(ValueError, match="already holds a run.*resume_from_checkpoint: true"):
        sft.main(["--config", str(config), *ON_CPU])


def test_an_adapter_that_no_stage_can_start_from(attempt, keys, miniqwen_dir, tmp_path):
    adapter = shutil.copytree(miniqwen_dir, tmp_path / "adapter")
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    attempt(grpo, {**keys, "model_name_or_path": str(adapter)}, "holds a LoRA adapter.*Merge it first")
