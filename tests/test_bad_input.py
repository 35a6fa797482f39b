"""What a user can get wrong is one ValueError before a model is loaded, and leaves no trace behind."""

import shutil

import pytest

from suite import columns, evaluate, resume, run, sample, sense
from suite.engine import vllm_setup
from suite.train import distill, dpo, grpo, pretrain, sft
from tests import engines, rows
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
    monkeypatch.setattr(vllm_setup, "find_spec", lambda name: None)
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


def test_a_shape_that_is_none_or_is_not_asked_for(attempt, keys, miniqwen_dir):
    scratch = {"dataset_name": keys["dataset_name"], "tokenizer_name_or_path": str(miniqwen_dir)}
    attempt(pretrain, {**scratch, "model_config": {"hidden_size": "wide"}}, "model_config.hidden_size: 'wide' is a str")
    attempt(pretrain, {**scratch, "model_config": {"num_hidden_layers": 0}}, "num_hidden_layers 0 must be at least 1")
    attempt(pretrain, {**scratch, "model_config": {"vocab_size": 100}}, "vocab_size 100 has no room for the .* tokens")
    attempt(pretrain, {**scratch, "model_config": {"pad_token_id": 999}}, "pad_token_id 999 is none of the .* tokens")
    attempt(pretrain, {**scratch, "model_config": {"eos_token_id": [1, -1]}}, "eos_token_id -1 is none of the")
    for wrong in ({"initializer_range": -1}, {"attention_dropout": 2}, {"max_position_embeddings": 0}):
        attempt(pretrain, {**scratch, "model_config": wrong}, " ".join(f"{k} {v}" for k, v in wrong.items()))
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 0}}
    attempt(pretrain, {**scratch, "model_config": rope}, "rope_theta 0 must be above 0")
    attempt(pretrain, {**keys, "model_config": {"num_hidden_layers": 4}}, "model_config is the shape of a new model")


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("text", [{"text": "a"}, {"text": None}], "row 2: `text` is None"),
        ("text", [{"text": 5}], "row 1: `text` must be text, and is 5"),
        ("messages", [{"messages": "hello"}], "`messages` must be turns"),
        ("messages", [{"messages": [{"from": "human", "value": "hello"}]}], "`messages` must be turns"),
        (
            "messages",
            [{"messages": [{"role": "user", "content": c}]} for c in ("a", None)],
            "row 2: .* without content",
        ),
        (
            "prompt+completion",
            [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}],
            "row 2: `comp",
        ),
        ("prompt+completion", [{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}], "all of it turns"),
        ("prompt+solution", [{"prompt": "a", "solution": None}], "`solution` is None in every row"),
    ],
)
def test_cells_that_are_neither_text_nor_turns(name, rows, message):
    from datasets import Dataset

    with pytest.raises(ValueError, match=message):
        columns.check_cells(Dataset.from_list(rows), rows[0], columns.SHAPES[name], "data/x (train)")


def test_cells_that_may_be_empty_are_no_mistake():
    from datasets import Dataset

    called = {"role": "assistant", "content": None, "tool_calls": "add(1, 2)"}
    for name, row in (
        ("messages", {"messages": [{"role": "user", "content": "a", "tool_calls": None}, called]}),
        ("messages", {"messages": []}),
        ("prompt+solution", {"prompt": "a", "solution": 5}),
        ("prompt+completion", {"prompt": "", "completion": "b"}),
    ):
        columns.check_cells(Dataset.from_list([row]), row, columns.SHAPES[name], "data/x (train)")


def test_rows_with_a_hole(attempt, keys, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows").mkdir()
    table = pyarrow.table({"prompt": ["1+1", None], "chosen": ["2", "2"], "rejected": ["3", "3"]})
    pyarrow.parquet.write_table(table, tmp_path / "rows" / "train.parquet")
    attempt(dpo, {**keys, "dataset_name": str(tmp_path / "rows")}, "row 2: `prompt` is None.*suite prepare")


def test_an_output_dir_that_is_none_or_cannot_be_one(keys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "below"):
        config = write_yaml(tmp_path / "run.yaml", output_dir=str(place), **keys)
        with pytest.raises(ValueError, match="notes.txt' is a file and no directory. Choose another output_dir"):
            sft.main(["--config", str(config), *ON_CPU])
    config = write_yaml(tmp_path / "run.yaml", output_dir=keys["dataset_name"], **keys)
    with pytest.raises(ValueError, match="arithmetic holds rows, which a run would lie among"):
        sft.main(["--config", str(config), *ON_CPU])
    with pytest.raises(ValueError, match="output_dir is missing"):
        sft.main(["--config", str(write_yaml(tmp_path / "run.yaml", **keys)), *ON_CPU])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_mistake_that_shows_at_the_first_step_leaves_the_directory_free(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "letters_reward", lambda completions, **columns: [])
    wrong = {**keys, "reward_funcs": ["tests.engines.letters_reward"], "max_completion_length": 4}
    config = write_yaml(tmp_path / "run.yaml", output_dir=str(tmp_path / "out"), **wrong)
    for _ in range(2):  # the second attempt is not told of a run that is there already
        with pytest.raises(ValueError, match="letters_reward' gave .* It must give a list of 8"):
            grpo.main(["--config", str(config), *ON_CPU, "--max_steps", "1"])


def test_batches_that_would_be_others_than_the_config_says_or_than_a_resume_finds(attempt, keys):
    stages = (sft, dpo, grpo, pretrain, distill)
    for stage in stages:
        attempt(stage, {**keys, "auto_find_batch_size": True}, "auto_find_batch_size: .* Remove it. A lower `per_dev")
        attempt(stage, {**keys, "ignore_data_skip": True}, "ignore_data_skip: true begins an epoch anew .* Remove it")
    attempt(sft, {**keys, "dataloader_in_order": False}, "dataloader_in_order: false takes batches in the order in")
    for strategy in sense.BY_LENGTH:
        by_length = {**keys, "train_sampling_strategy": strategy}
        attempt(dpo, by_length, f"train_sampling_strategy: {strategy} asks .* the pairs of DPO have no single length")
        stream = {**by_length, "dataset_streaming": True, "max_steps": 1}
        attempt(pretrain, stream, f"{strategy} asks .* of rows that stream nobody knows")
    for stage in (grpo, distill):
        unread = {**keys, "train_sampling_strategy": "sequential"}
        attempt(stage, unread, "train_sampling_strategy: sequential is not read here.*`shuffle_dataset: false`")


@pytest.mark.parametrize("stage", [sft, dpo, grpo, pretrain])
def test_what_could_be_told_only_of_a_model_that_is_there(stage, attempt, keys, tmp_path):
    if stage is dpo:
        rows.write_rows(tmp_path / "rows" / "train.parquet", [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}] * 8)
        keys["dataset_name"] = str(tmp_path / "rows")
    attempt(stage, {**keys, "attn_implementation": "spda"}, "attn_implementation: there is no 'spda'.*mean 'sdpa'")
    attempt(stage, {**keys, "attn_implementation": "paged|sdpa"}, "there is no 'paged.sdpa'. There are: eager, flash")
    attempt(stage, {**keys, "router_aux_loss_coef": 0.01}, "router_aux_loss_coef: 0.01 .* this miniqwen does not")
    attempt(stage, {**keys, "dtype": "float16"}, "dtype: float16 is for weights that stay as they are.*float32")
    if stage is not grpo:
        attempt(stage, {**keys, "pad_token": "<pad>"}, "pad_token: '<pad>' is not a token .* pads with '<.endoftext")
    if stage is not pretrain:
        for names in (["q_proj", "lm_head"], ["lm_head"], "lm_head|.*proj"):
            head = {**keys, "use_peft": True, "lora_target_modules": names}
            attempt(stage, head, "lora_target_modules: TRL reads the weight of lm_head itself.*Remove it")


def test_columns_that_trl_passes_to_rewards_itself_or_takes_for_pictures(attempt, keys, tmp_path):
    keys |= {"dataset_name": str(tmp_path / "rows"), "eval_strategy": "steps", "eval_steps": 1}
    plain = {"prompt": [{"role": "user", "content": "1+1="}], "solution": "2"}
    for column in ("prompts", "completions", "trainer_state", "log_metric"):
        rows.write_rows(tmp_path / "rows" / "train.parquet", [{**plain, column: "x"}] * 8)
        rows.write_rows(tmp_path / "rows" / "test.parquet", [plain] * 8)
        attempt(grpo, keys, f"The rows: the column `{column}` has a name that TRL passes to rewards itself. Rename it")
    rows.write_rows(tmp_path / "rows" / "train.parquet", [plain] * 8)
    rows.write_rows(tmp_path / "rows" / "test.parquet", [{**plain, "completions": "x"}] * 8)
    attempt(grpo, keys, "The test rows: the column `completions`")
    rows.write_rows(tmp_path / "rows" / "test.parquet", [{**plain, "image": "x.png"}] * 8)
    attempt(grpo, keys, "The test rows: TRL takes the column `image` for pictures")


def test_padding_free_that_would_cut_nothing_off_or_is_not_there(attempt, keys):
    for stage in (sft, pretrain):
        attempt(stage, {**keys, "padding_free": True}, "padding_free: .* max_length 1024 would not hold. Set `packing")
    attempt(dpo, {**keys, "padding_free": True}, "padding_free: TRL's DPO cannot do it")


def test_keys_that_nobody_would_read(attempt, keys, miniqwen_dir):
    attempt(sft, {**keys, "use_bnb_nested_quant": True}, "use_bnb_nested_quant: this has no effect without `load_in_4")
    attempt(dpo, {**keys, "ignore_bias_buffers": True}, "ignore_bias_buffers is read by nobody")
    attempt(pretrain, {**keys, "completion_only_loss": True}, "completion_only_loss: rows of `text` have no answers")
    attempt(pretrain, {**keys, "tokenizer_name_or_path": str(miniqwen_dir)}, "is the tokenizer of a new model, and")
    attempt(pretrain, {**keys, "eos_token": "<eos>"}, "eos_token: '<eos>' is not a token of this tokenizer")
    scratch = {"dataset_name": keys["dataset_name"], "tokenizer_name_or_path": str(miniqwen_dir)}
    attempt(pretrain, {**scratch, "chat_template_path": "x.jinja"}, "chat_template_path: rows of `text` go through no")
    for key, value in (("model_init_kwargs", {"attention_dropout": 0.1}), ("model_revision", "step-5")):
        attempt(pretrain, {**scratch, key: value}, f"{key} says how `model_name_or_path` is loaded, and there is none")
    attempt(sft, {**keys, "optim_args": "momentum=0.9"}, "optim_args: adamw_torch_fused reads none of it .momentum=0.9")
    attempt(sft, {**keys, "optim": "sgd", "optim_args": "momentum"}, "optim_args: 'momentum' must be written as name=")
    attempt(sft, {**keys, "optim": "adamw_8bit", "optim_args": "momentum=0.9"}, "adamw_8bit reads none of it")
    for optim, wrong, there in (
        ("sgd", "momentun", "momentum, .*Did you mean 'momentum'"),
        ("schedule_free_adamw", "weight_decay", "weight_lr_power, r. "),
        ("ademamix", "beta_1", "beta1, beta2, beta3, .*Did you mean 'beta1'"),
    ):
        said = {"optim": optim, "optim_args": f"{wrong} = 0.9"}
        attempt(sft, {**keys, **said}, f"optim_args: {optim} reads no '{wrong}'. There are: .*{there}")
    attempt(pretrain, {**scratch, "max_length": 1}, "max_length: 1 must be at least 2")
    for wrong in ({"router_aux_loss_coef": 0.1}, {"attn_implementation": "spda"}, {"pad_token": "<pad>"}):
        attempt(pretrain, {**scratch, **wrong}, f"{next(iter(wrong))}: ")


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
    for stage in (grpo, pretrain):
        attempt(stage, {**keys, "model_name_or_path": str(adapter)}, "holds a LoRA adapter.*Merge it first")


def test_keys_of_an_adapter_that_nobody_asked_for(attempt, keys):
    lora = {**keys, "lora_r": 8, "lora_target_modules": "all-linear"}
    for stage in (sft, dpo, grpo):
        attempt(stage, lora, "lora_r, lora_target_modules: this has no effect without `use_peft: true`")
    run.check_idle_keys({**lora, "use_peft": False})  # which was said


def test_an_adapter_of_no_layers(attempt, keys):
    attempt(sft, {**keys, "use_peft": True}, "lora_target_modules: which layers of this miniqwen.*all-linear")
    attempt(sft, {**keys, "use_peft": True, "lora_target_modules": []}, "lora_target_modules: which layers")


def test_evaluations_that_nobody_asked_for(attempt, keys):
    attempt(sft, {**keys, "eval_steps": 5}, "eval_steps: this has no effect without `eval_strategy: steps`")
    attempt(sft, {**keys, "do_eval": True}, "do_eval: this has no effect without `eval_strategy: steps`")
    by_epoch = {**keys, "eval_steps": 5, "eval_strategy": "epoch"}
    attempt(sft, by_epoch, "eval_steps: this has no effect with `eval_strategy: epoch`. Remove it")
    run.check_idle_keys({"eval_steps": 5, "eval_strategy": "no"})  # which was said
    assert sense.is_idle("eval_steps", "sft", {"eval_steps": 5}), "a run that was begun with it may go on without"


@pytest.mark.parametrize("when", ["epoch", "best"])
def test_a_number_of_steps_beside_saves_that_count_none(when, attempt, keys):
    other = {**keys, "save_steps": 5, "save_strategy": when, "eval_strategy": "steps", "eval_steps": 5}
    other |= {"metric_for_best_model": "loss"}
    attempt(sft, other, f"save_steps: this has no effect with `save_strategy: {when}`. Remove it")
    run.check_idle_keys({"save_steps": 5, "save_strategy": "no"})  # which was said
    assert "save_steps" in resume.MAY_CHANGE, "a run that was begun with it may go on without"


def test_what_no_stage_does_or_leaves_undone(attempt, keys):
    for asked in ({"do_train": False}, {"do_predict": True}):
        attempt(sft, {**keys, **asked}, "do_train, do_predict: a stage trains, and predicts nothing")
    run.check_idle_keys({"do_train": True, "do_predict": False})


def test_a_measure_that_is_better_greater_and_has_no_name(attempt, keys):
    attempt(sft, {**keys, "greater_is_better": False}, "greater_is_better: this has no effect without `metric_for_best")
    for read in ({"metric_for_best_model": "loss"}, {"lr_scheduler_type": "greedy"}, {"load_best_model_at_end": True}):
        run.check_idle_keys({"greater_is_better": False, **read})


def test_what_is_read_of_a_name_on_the_hub_beside_a_path(attempt, keys, arithmetic_dir):
    attempt(sft, {**keys, "model_revision": "v1"}, "model_revision: this has no effect, for '.*' is a path here and no")
    attempt(grpo, {**keys, "dataset_config": "main"}, "dataset_config: this has no effect, for '.*' is a path here")
    with pytest.raises(ValueError, match="dataset_config: this has no effect"):
        evaluate.main(["--checkpoints", "x/y", "--dataset_name", str(arithmetic_dir), "--dataset_config", "main"])
    mixed = {"datasets": [{"path": "me/rows", "name": "main"}], "dataset_config": "main"}
    with pytest.raises(
        ValueError, match="dataset_config: this has no effect, for each part of `datasets` has a `name`"
    ):
        run.check_idle_keys(mixed)
    assert sense.is_idle("dataset_config", "sft", mixed), "a run may go on without"
    run.check_idle_keys({**keys, "model_revision": "main"})  # which is the default
    run.check_idle_keys({"model_name_or_path": "me/model", "model_revision": "v1"})
    assert sense.is_idle("model_revision", "sft", {**keys, "model_revision": "v1"}), "a run may go on without"


def test_keys_of_a_mixture_beside_one_data_set_and_the_other_way_round(attempt, keys, arithmetic_dir):
    attempt(
        sft, {**keys, "test_split_size": 0.1}, "test_split_size: this has no effect here.* set `datasets: .{path: .*}.`"
    )
    attempt(sft, {**keys, "streaming": True}, "streaming: this has no effect here.* set `dataset_streaming: true` in")
    mixed = {**keys, "dataset_name": None, "datasets": [{"path": str(arithmetic_dir)}], "max_steps": 1}
    attempt(sft, {**mixed, "dataset_streaming": True}, "dataset_streaming: this has no effect.* by `streaming: true`")
    for key in ("test_split_size", "streaming", "dataset_streaming"):
        assert sense.is_idle(key, "sft", mixed if key == "dataset_streaming" else keys), "a run may go on without"
    run.check_idle_keys({"dataset_name": "a", "streaming": False, "test_split_size": None})
    run.check_idle_keys({"datasets": [{"path": "a"}], "streaming": True, "dataset_streaming": False})


def test_test_rows_set_aside_of_a_stream(attempt, keys, arithmetic_dir):
    mixed = {**keys, "dataset_name": None, "datasets": [{"path": str(arithmetic_dir)}], "max_steps": 1}
    attempt(
        sft,
        {**mixed, "streaming": True, "test_split_size": 0.1},
        "test_split_size: 0.1 of a stream cannot be set aside",
    )
    attempt(sft, {**mixed, "streaming": True, "max_steps": -1}, "streaming: true, so nobody knows how many rows")


@pytest.mark.parametrize("window", [0, -5])
def test_a_window_of_no_tokens(window, attempt, keys):
    for stage in (grpo, distill):
        asked = {**keys, "use_vllm": True, "vllm_max_model_length": window}
        attempt(stage, asked, f"vllm_max_model_length: {window} must be at least 1, or -1 for what has room")


def test_keys_of_vllm_that_nobody_asked_for(attempt, keys):
    attempt(grpo, {**keys, "vllm_mode": "server"}, "vllm_mode: this has no effect without `use_vllm: true`")
    with pytest.raises(ValueError, match="vllm_max_model_length: this has no effect without `use_vllm: true`"):
        evaluate.main(["--checkpoints", keys["model_name_or_path"], "--vllm_max_model_length", "64"])
    with pytest.raises(ValueError, match="vllm_tensor_parallel_size: this has no effect without `use_vllm: true`"):
        sample.main(["--model_name_or_path", "x", "--output_dir", "out", "--vllm_tensor_parallel_size", "2"])
    run.check_idle_keys({"vllm_mode": "server", "use_vllm": False})  # which was said
    assert sense.is_idle("vllm_mode", "grpo", {}) and not sense.is_idle("vllm_mode", "grpo", {"use_vllm": True})


def test_a_server_that_is_named_and_would_not_be_asked(attempt, keys):
    """Who names a server and not its mode would sample inside the run, and never know."""
    asked = {**keys, "use_vllm": True}
    for stage, other in ((grpo, {}), (distill, {"teacher_model_name_or_path": keys["model_name_or_path"]})):
        at_port = {**asked, **other, "vllm_server_port": 8001}
        attempt(stage, at_port, "vllm_server_port: this has no effect with `vllm_mode: colocate`.*`vllm_mode: server`")
        attempt(stage, {**at_port, "vllm_mode": "serve"}, "vllm_mode: there is no 'serve'. There are: colocate, server")
    run.check_idle_keys({"vllm_server_port": 8001, "vllm_mode": "server", "use_vllm": True})
    run.check_idle_keys({"vllm_server_base_url": None, "use_vllm": True})  # which says nothing
    run.check_idle_keys({"vllm_max_model_length": 512, "vllm_mode": "server", "use_vllm": True})  # by `--vllm_mode`
    assert sense.is_idle("vllm_server_port", "grpo", asked), "a run that was begun with it may go on without"


def test_an_adapter_that_pretraining_would_not_make(attempt, keys):
    for key in ("use_peft", "load_in_4bit"):
        attempt(pretrain, {**keys, key: True}, f"{key}: `suite pretrain` trains every weight")
