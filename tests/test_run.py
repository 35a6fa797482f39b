"""What every training run shares: a directory is claimed once, and rows have the shape a stage needs."""

import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from suite import checkpoint, resume, run, source
from suite.args import parse
from suite.keys import RunArguments
from tests.conftest import write_yaml
from tests.rows import write_rows


@dataclass
class Config:
    output_dir: str
    resume_from_checkpoint: bool | str | None = None
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0


@dataclass
class Script:
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    dataset_streaming: bool = False


@dataclass
class Mixture:
    datasets: list
    streaming: bool = False
    test_split_size: float | None = None


def begin(tmp_path, resume=None, scheduler="linear", warmup=0, **written):
    """(whether there is something to do, the config); what is begun is claimed, as `finish` does."""
    config = Config(str(tmp_path / "run"), resume, scheduler, warmup)
    record = run.begin("sft", config, {"learning_rate": 1e-3, **written})
    if record is not None:
        run.claim(config.output_dir, record)
    return record is not None, config


def test_a_directory_that_holds_a_run_is_refused_naming_both_ways_out(tmp_path):
    assert begin(tmp_path)[0]
    with pytest.raises(ValueError, match="resume_from_checkpoint: true.*another output_dir"):
        begin(tmp_path)


def test_a_model_that_somebody_else_left_there_is_refused_too(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ValueError, match="already holds a run"):
        begin(tmp_path)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == b"precious"


def test_resume_true_starts_where_there_is_nothing_and_reuses_what_is_complete(tmp_path, capsys):
    go_on, config = begin(tmp_path, resume=True)
    assert go_on and config.resume_from_checkpoint is None and "starting one" in capsys.readouterr().out
    run.note_finished(str(tmp_path / "run"), steps=3)
    assert begin(tmp_path, resume=True)[0] is False
    assert "complete" in capsys.readouterr().out


def test_resume_true_refuses_another_run_and_says_what_differs(tmp_path):
    begin(tmp_path)
    run.note_finished(str(tmp_path / "run"), steps=3)
    with pytest.raises(ValueError, match="learning_rate was 0.001, is now 0.01"):
        begin(tmp_path, resume=True, learning_rate=1e-2)


def saved(tmp_path, step: int):
    """A checkpoint of the run in `tmp_path`, as far as its record goes."""
    directory = tmp_path / "run" / f"checkpoint-{step}"
    directory.mkdir()
    (directory / checkpoint.EXACT_STATE.format(rank=0)).write_bytes(b"state")
    record = checkpoint.read_json(tmp_path / "run" / "run.json")
    checkpoint.seal(directory, {**record, "step": step, "spent": 7.0})
    return directory


def test_resume_true_goes_on_from_the_last_whole_checkpoint_and_names_what_it_passed_over(tmp_path, capsys):
    begin(tmp_path)
    assert begin(tmp_path, resume=True)[1].resume_from_checkpoint is None
    assert "left before its first checkpoint" in capsys.readouterr().out
    saved(tmp_path, 5)
    (saved(tmp_path, 10) / "exact_state_0.pt").write_bytes(b"half")
    go_on, config = begin(tmp_path, resume=True)
    assert go_on and config.resume_from_checkpoint.endswith("checkpoint-5")
    told = capsys.readouterr().out
    assert "passed over" in told and "checkpoint-10' is not whole: exact_state_0.pt has 4 bytes" in told
    (tmp_path / "run" / "checkpoint-5" / "exact_state_0.pt").unlink()
    with pytest.raises(ValueError, match="cannot be gone on from: .*not whole.*another output_dir"):
        begin(tmp_path, resume=True)


def test_a_change_that_moves_no_weight_is_told_and_one_that_does_is_refused(tmp_path, capsys, monkeypatch):
    begin(tmp_path, logging_steps=10)
    saved(tmp_path, 5)
    assert begin(tmp_path, resume=True, logging_steps=1, gradient_checkpointing=True)[0]
    told = capsys.readouterr().out
    assert "logging_steps was 10, is now 1: what is shown and saved changes, and no weight" in told
    assert "gradient_checkpointing is now True: sums are rounded in another way" in told
    for changed in ({"seed": 3}, {"max_steps": 20}, {"per_device_train_batch_size": 4}):
        with pytest.raises(ValueError, match=f"checkpoint-5 holds another run: {next(iter(changed))} is now"):
            begin(tmp_path, resume=True, logging_steps=10, **changed)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="1 processes before, 2 now, and rows, random numbers and rollouts belong"):
        begin(tmp_path, resume=True, logging_steps=10)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(run, "version", lambda package: "0.1")
    assert begin(tmp_path, resume=True, logging_steps=10)[0]
    assert "is now 0.1: it goes on, and bit for bit as before is no longer promised" in capsys.readouterr().out


@pytest.mark.parametrize("stream", [{"dataset_streaming": True}, {"datasets": [{"path": "a"}], "streaming": True}])
def test_several_workers_read_a_stream_in_an_order_of_their_own(stream, tmp_path, capsys):
    begin(tmp_path, logging_steps=10)
    saved(tmp_path, 5)
    assert begin(tmp_path, resume=True, logging_steps=10, dataloader_num_workers=2)[0]
    told = capsys.readouterr().out
    assert "dataloader_num_workers is now 2: rows are brought in another way, and are the same" in told
    begin(tmp_path / "stream", **stream)
    saved(tmp_path / "stream", 5)
    assert begin(tmp_path / "stream", resume=True, dataloader_num_workers=1, **stream)[0]
    with pytest.raises(ValueError, match="dataloader_num_workers is now 2, and several read the rows of a stream"):
        begin(tmp_path / "stream", resume=True, dataloader_num_workers=2, **stream)


@pytest.mark.parametrize(
    ("stage", "before", "now", "differs"),
    [
        ("sft", {"lora_r": 16}, {}, []),
        ("sft", {"lora_r": 16}, {"use_peft": False}, []),
        ("sft", {"lora_r": 16, "use_peft": True}, {"use_peft": True}, ["lora_r"]),
        ("sft", {"lora_r": 16}, {"lora_r": 16, "use_peft": True}, ["use_peft"]),
        ("pretrain", {"use_peft": True, "use_dora": True, "dataset_text_field": "words"}, {}, []),
        ("sft", {"lr_scheduler_type": "constant", "warmup_steps": 0.1}, {"lr_scheduler_type": "constant"}, []),
        ("sft", {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}, {"lr_scheduler_type": "cosine"},
         ["warmup_steps"]),
        ("dpo", {"label_smoothing_factor": 0.1}, {"label_smoothing_factor": 0.0}, []),
        ("sft", {"label_smoothing_factor": 0.1}, {}, ["label_smoothing_factor"]),
        ("dpo", {"label_smoothing": 0.1}, {}, []),
        ("dpo", {"label_smoothing": 0.1, "loss_type": ["robust"]}, {"loss_type": ["robust"]}, ["label_smoothing"]),
        ("sft", {"dataset_kwargs": {"add_special_tokens": False}}, {}, []),
        ("sft", {"lr_scheduler_kwargs": {"min_lr": "1e-6"}}, {"lr_scheduler_kwargs": {"min_lr": 1e-6}}, []),
        ("sft", {"lr_scheduler_kwargs": {"a": [{"b": "1e-6"}]}}, {"lr_scheduler_kwargs": {"a": [{"b": 1e-6}]}}, []),
        ("sft", {"lr_scheduler_kwargs": {"min_lr": "1e-6"}}, {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
         ["lr_scheduler_kwargs"]),
        ("sft", {"seed": 1}, {}, ["seed"]),
        ("sft", {"use_bnb_nested_quant": True, "ignore_bias_buffers": True}, {}, []),
        ("pretrain", {"model_init_kwargs": {"a": 1}}, {}, []),
        ("pretrain", {"tokenizer_name_or_path": "a", "model_name_or_path": "b"}, {"model_name_or_path": "b"}, []),
    ],
)  # fmt: skip
def test_a_key_that_nobody_read_and_a_number_that_was_text_make_no_other_run(stage, before, now, differs):
    found = resume._differences({"config": before}, {"config": now, "stage": stage})
    assert [key for key, *_ in found] == differs


def test_another_engine_on_as_many_processes_is_refused(tmp_path, monkeypatch):
    """Without the optimizer, which it would not find, transformers would go on with an empty one and say nothing."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    begin(tmp_path)
    saved(tmp_path, 5)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    with pytest.raises(ValueError, match="ZeRO-3 before, DDP now, and each keeps the optimizer in pieces of its own"):
        begin(tmp_path, resume=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="ZeRO-3 before, FSDP2 now"):
        begin(tmp_path, resume=True)


def test_only_a_constant_learning_rate_lets_a_run_be_made_longer(tmp_path, capsys):
    begin(tmp_path, max_steps=10)
    saved(tmp_path, 10)
    run.note_finished(str(tmp_path / "run"), steps=10)
    (tmp_path / "run" / "config.json").write_text("{}")
    for scheduler, warmup in (("linear", 0), ("constant_with_warmup", 0.1)):
        with pytest.raises(ValueError, match=f"under lr_scheduler_type {scheduler} the steps before would have had"):
            begin(tmp_path, resume=True, scheduler=scheduler, warmup=warmup, max_steps=20)
    with pytest.raises(ValueError, match="max_steps was 10, is now 5"):
        begin(tmp_path, resume=True, scheduler="constant", max_steps=5)
    go_on, config = begin(tmp_path, resume=True, scheduler="constant", max_steps=20)
    assert go_on and config.resume_from_checkpoint.endswith("checkpoint-10")
    assert "max_steps was 10, is now 20: the learning rate is constant" in capsys.readouterr().out
    assert not (tmp_path / "run" / "config.json").exists()  # the shorter run's model is not this run's
    assert checkpoint.read_json(tmp_path / "run" / "run.json")["spent"] == 7.0


def test_a_checkpoint_named_by_its_path_is_held_to_the_run_it_comes_from(tmp_path):
    begin(tmp_path)
    path = str(saved(tmp_path, 5))
    assert begin(tmp_path, resume=path)[1].resume_from_checkpoint == path
    with pytest.raises(ValueError, match="seed is now 3"):
        begin(tmp_path, resume=path, seed=3)
    config = Config(str(tmp_path / "elsewhere"), path)
    assert run.begin("sft", config, {"learning_rate": 1e-3})["spent"] == 7.0
    with pytest.raises(ValueError, match="a run of `suite sft`, not grpo"):
        run.begin("grpo", config, {"learning_rate": 1e-3})
    with pytest.raises(ValueError, match="There is no checkpoint directory"):
        begin(tmp_path, resume=path + "0")


def test_resume_true_notices_that_an_input_changed(tmp_path, arithmetic_dir):
    config = Config(str(tmp_path / "run"), True)
    run.claim(config.output_dir, run.begin("sft", config, {}, str(arithmetic_dir)))
    run.note_finished(config.output_dir)
    path = tmp_path / "run" / "run.json"
    text = path.read_text()
    path.write_text(
        text.replace(checkpoint.fingerprint(arithmetic_dir), checkpoint.fingerprint(arithmetic_dir, ends=True))
    )
    assert run.begin("sft", Config(config.output_dir, True), {}, str(arithmetic_dir)) is None  # an older record
    path.write_text(text.replace(checkpoint.fingerprint(arithmetic_dir), "0" * 16))
    with pytest.raises(ValueError, match=f"{arithmetic_dir} has changed"):
        run.begin("sft", Config(config.output_dir, True), {}, str(arithmetic_dir))


def test_what_a_run_reads_may_lie_elsewhere_by_now_if_it_is_the_same(tmp_path, arithmetic_dir, capsys):
    here = shutil.copytree(arithmetic_dir, tmp_path / "here")
    (here / "notes.jsonl").write_bytes(bytes(5 << 20))  # longer than its two ends
    config, there = Config(str(tmp_path / "run"), True), str(here)
    run.claim(config.output_dir, run.begin("sft", config, {"dataset_name": there}, there))
    run.note_finished(config.output_dir)
    moved = str(shutil.copytree(here, tmp_path / "moved here"))
    assert run.begin("sft", Config(config.output_dir, True), {"dataset_name": moved}, moved) is None
    assert f"dataset_name was {there!r}, is now {moved!r}: the same files" in capsys.readouterr().out
    whole, ends = (checkpoint.fingerprint(moved, ends=ends) for ends in (False, True))
    assert whole != ends
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace(whole, ends))  # an older record
    assert run.begin("sft", Config(config.output_dir, True), {"dataset_name": moved}, moved) is None
    (tmp_path / "moved here" / "train.parquet").write_bytes(b"other rows")
    with pytest.raises(ValueError, match="dataset_name was .* is now") as refused:
        run.begin("sft", Config(config.output_dir, True), {"dataset_name": moved}, moved)
    assert "has changed" not in str(refused.value)


def test_the_parts_of_a_mixture_are_inputs_of_a_run_as_a_data_set_is(arithmetic_dir):
    @dataclass
    class Part:
        path: str

    assert source.names(Script(str(arithmetic_dir)), Mixture([])) == [str(arithmetic_dir)]
    found = source.names(Script(), Mixture([Part(str(arithmetic_dir)), Part("owner/name")]))
    record = run.begin("sft", Config("run"), {}, *found)
    assert record["inputs"] == {
        str(arithmetic_dir): checkpoint.fingerprint(arithmetic_dir),
        "owner/name": "owner/name",
    }


def test_rows_have_only_the_columns_of_their_shape(arithmetic_dir):
    rows, test = source.rows(Script(str(arithmetic_dir)), Mixture([]), ("text",), with_test=True)
    assert rows.column_names == ["text"] and len(test) == 100
    rows, test = source.rows(Script(str(arithmetic_dir)), Mixture([]), ("prompt+solution",))
    assert sorted(rows.column_names) == ["prompt", "solution"] and test is None


@pytest.mark.parametrize(
    ("script", "datasets", "shapes", "message"),
    [
        ({}, [], ("text",), "No rows: set `dataset_name`"),
        ({"dataset_name": "data/nowhere"}, [], ("text",), "no data directory 'data/nowhere'.*suite prepare"),
        ({"dataset_name": "x"}, [object()], ("text",), "Both `datasets` and `dataset_name`"),
        ({"dataset_train_split": "trian"}, [], ("text",), "no split 'trian'. There are: test, train"),
        ({}, "own", ("prompt+chosen+rejected",), "has the columns completion, prompt, solution, text.*needs the shape"),
    ],
)
def test_rows_that_are_not_there_are_refused(arithmetic_dir, script, datasets, shapes, message):
    if datasets == "own" or "dataset_train_split" in script:
        script, datasets = {"dataset_name": str(arithmetic_dir), **script}, []
    with pytest.raises(ValueError, match=message):
        source.rows(Script(**script), Mixture(datasets), shapes)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Three prepared directories: sums with golds, the same shape without, and chats."""
    home, messages = tmp_path_factory.mktemp("parts"), [{"role": "user", "content": "?"}]
    answer = [{"role": "assistant", "content": "4"}]
    for name, more in (
        ("sums", {"prompt": messages, "completion": answer, "solution": "4"}),
        ("pairs", {"prompt": messages, "completion": answer}),
        ("chats", {"messages": [*messages, *answer]}),
    ):
        for split, count in (("train", 12), ("test", 2)):
            write_rows(home / name / f"{split}.parquet", [more] * count)
        (home / name / "prepare.json").write_text('{"identity": "x"}')
    return home


def mixed(parts, shapes, *entries, with_test=False, **keys):
    """The rows of a mixture, by TRL's own keys in a config file."""
    from trl import DatasetMixtureConfig, ScriptArguments

    datasets = [{**entry, "path": str(parts / entry["path"])} for entry in entries]
    config = write_yaml(parts / "mix.yaml", datasets=datasets, **keys)
    script, mixture, _ = parse((ScriptArguments, DatasetMixtureConfig), ["--config", str(config)])
    return source.rows(script, mixture, shapes, with_test=with_test)


def test_prepared_directories_mix_by_trls_own_keys_and_what_only_one_has_is_cut_away(parts):
    shapes = ("messages", "prompt+completion")
    rows, _ = mixed(parts, shapes, {"path": "sums"}, {"path": "pairs"})
    assert len(rows) == 24 and rows.column_names == ["prompt", "completion"]
    rows, _ = mixed(parts, shapes, {"path": "sums", "fraction": 0.25}, {"path": "pairs", "fraction": 0.75})
    assert len(rows) == 16
    rows, _ = mixed(
        parts, shapes, {"path": "sums", "split": "test"}, {"path": "pairs", "columns": ["prompt", "completion"]}
    )
    assert len(rows) == 14 and all(row["completion"] for row in rows)
    with pytest.raises(ValueError, match="no split 'test'.*Set `test_split_size`"):
        mixed(parts, shapes, {"path": "sums"}, with_test=True)
    rows, test = mixed(parts, shapes, {"path": "sums"}, with_test=True, test_split_size=0.25)
    assert len(test) * 3 == len(rows)


def test_the_test_rows_of_a_mixture_are_the_same_in_every_process(parts):
    import numpy

    write_rows(parts / "many" / "train.parquet", [{"text": str(i)} for i in range(40)])
    found = []
    for seed in (1, 2):
        numpy.random.seed(seed)
        state = numpy.random.get_state()[1].tolist()
        _, test = mixed(parts, ("text",), {"path": "many"}, with_test=True, test_split_size=0.25)
        found.append(test["text"][:])
        assert numpy.random.get_state()[1].tolist() == state
    assert found[0] == found[1] and len(found[0]) == 10


def test_rows_without_a_test_split_are_told_how_to_get_one(parts):
    write_rows(parts / "alone" / "train.parquet", [{"text": "x"}])
    script = Script(dataset_name=str(parts / "alone"))
    with pytest.raises(ValueError, match="no split 'test'.*Set `datasets: .*alone.*` in the place.*`test_split_size`"):
        source.rows(script, Mixture([]), ("text",), with_test=True)
    script = Script(dataset_name=str(write_rows(parts / "file.jsonl", [{"text": "x"}])))
    with pytest.raises(ValueError, match="no split 'test'.*`suite prepare files --source .*file.jsonl"):
        source.rows(script, Mixture([]), ("text",), with_test=True)


@pytest.mark.parametrize(
    ("entries", "shapes", "message"),
    [
        (
            ["sums", "chats"],
            ("messages", "prompt+completion"),
            "no shape in common: .*sums has prompt.*chats has messages",
        ),
        (["sums", "pairs"], ("prompt+solution",), "pairs has the columns completion, prompt, and this stage needs"),
        (["sums", "nowhere"], ("prompt+completion",), "no data directory '.*nowhere'"),
        (["sums", "sums/train.parquet"], ("prompt+completion",), "is a file, .*`suite prepare files --source FILE"),
    ],
)
def test_parts_that_do_not_mix_are_refused_by_their_names(parts, entries, shapes, message):
    with pytest.raises(ValueError, match=message):
        mixed(parts, shapes, *({"path": name} for name in entries))


def test_rows_that_a_trainer_has_dropped_are_counted_and_a_run_without_any_is_refused(capsys):
    source.check_left_out([1, 2, 3], [1, 2, 3])
    source.check_left_out(iter([1]), [1])
    assert capsys.readouterr().out == ""
    source.check_left_out([1, 2, 3], [2])
    assert "2 of 3 rows are left out: their prompt alone fills `max_length`" in capsys.readouterr().out
    with pytest.raises(ValueError, match="3 of 3 rows are left out"):
        source.check_left_out([1, 2, 3], [])


def test_a_max_length_beyond_the_models_positions_is_said_and_none_within(capsys):
    from suite.model import MiniQwenConfig

    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
    long, packed = {"input_ids": [1] * 300}, {"input_ids": [1] * 500, "seq_lengths": [250, 250]}
    pair = {"prompt_ids": [1] * 200, "chosen_ids": [2] * 9, "rejected_ids": [3] * 99}
    for longest, positions, rope, rows, beyond in (
        (256, 256, None, [long], 0),  # TRL has cut them off by then
        (1024, 256, None, [{"input_ids": [1] * 256}, packed], 0),
        (1024, 1024, yarn, [long], 0),
        (1024, 256, None, [packed, long], 1),
        (None, 256, None, iter([long, pair]), 2),
    ):
        model = MiniQwenConfig(max_position_embeddings=positions, rope_parameters=rope)
        args = SimpleNamespace(max_length=longest)
        trainer = SimpleNamespace(args=args, model=SimpleNamespace(config=model), train_dataset=rows)
        source.say_what_is_beyond(trainer)
        said = capsys.readouterr().out
        told = f"warning: {beyond} of the first 2 rows have more tokens than the 256 positions of the model"
        assert said.startswith(told) if beyond else said == ""


def test_pairs_whose_answer_max_length_cuts_off_are_counted(capsys):
    pairs = [{"prompt_ids": [1] * 4, "chosen_ids": [2] * 4, "rejected_ids": [3] * n} for n in (4, 5, 6)]
    for longest, mode in ((10, "keep_start"), (None, "keep_start"), (8, "keep_end")):
        source.say_which_pairs_are_cut_off(pairs, SimpleNamespace(max_length=longest, truncation_mode=mode))
    assert capsys.readouterr().out == ""
    source.say_which_pairs_are_cut_off(iter(pairs), SimpleNamespace(max_length=8, truncation_mode="keep_start"))
    assert "2 of the first 3 pairs have an answer that `max_length` 8 cuts off" in capsys.readouterr().out


def test_an_empty_data_set_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    empty = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        source.rows(Script(str(tmp_path)), Mixture([]), ("text",))


def test_a_tokenizer_without_a_chat_template_is_refused_where_one_is_needed(miniqwen_dir, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(miniqwen_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    assert run.tokenizer(str(tmp_path)).eos_token == "<|im_end|>"
    with pytest.raises(ValueError, match="no chat template"):
        run.tokenizer(str(tmp_path), needs_template=True)


def test_max_seconds_takes_a_number_or_the_length_of_a_finished_run(tmp_path):
    assert run.callbacks(RunArguments(), {}) == []
    assert len(run.callbacks(RunArguments(max_seconds="2.5"), {})) == 1
    begin(tmp_path)
    with pytest.raises(ValueError, match="no finished run"):
        run.callbacks(RunArguments(max_seconds=str(tmp_path / "run")), {})
    run.note_finished(str(tmp_path / "run"), seconds=4.0)
    assert len(run.callbacks(RunArguments(max_seconds=str(tmp_path / "run")), {})) == 1


def test_a_single_process_that_sees_several_gpus_steps_over_the_rows_of_its_config_and_says_so(tmp_path, capsys):
    from trl import SFTConfig

    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=3)
    run.take_one_gpu(config)
    assert not capsys.readouterr().out
    config._n_gpu = 8
    assert config.train_batch_size == 24
    run.take_one_gpu(config)
    assert (config.n_gpu, config.train_batch_size) == (1, 3)
    assert "sees 8 GPUs, and one at a time will compute" in capsys.readouterr().out
