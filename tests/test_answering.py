"""A run that answers test rows as it trains logs what `suite evaluate` measures, and learns what it would have."""

import importlib
import json
from pathlib import Path

import pytest

from suite.keys import ANSWERS
from suite.train import grpo, sft
from tests import resume
from tests.conftest import ON_CPU, built_by, write_yaml
from tests.rows import taught_rows, write_rows

ROWS, FEW, STEPS, EVERY = 20, 4, 40, 4
LONGEST, BATCH = 24, 8
ASKED = {
    "eval_strategy": "steps", "eval_steps": EVERY, "eval_answers": ROWS, "max_completion_length": LONGEST,
    "per_device_eval_batch_size": BATCH,
}  # fmt: skip
TRAINED = {
    "learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "max_steps": STEPS,
    "save_steps": EVERY, "logging_steps": EVERY,
}  # fmt: skip
LORA = {"use_peft": True, "lora_r": 8, "lora_dropout": 0.1, "lora_target_modules": "all-linear"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Who has learned to say 7 is right in half of the test rows; beside them rows of other shapes, without a test."""
    home = tmp_path_factory.mktemp("answering") / "sevens"
    write_rows(home / "train.parquet", taught_rows(32, "7"))
    write_rows(home / "test.parquet", taught_rows(ROWS + 5, "7788"))
    write_rows(home.parent / "few" / "train.parquet", taught_rows(16, "7788"))
    write_rows(home.parent / "few" / "test.parquet", taught_rows(FEW, "7788"))
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": [{"role": "assistant", "content": "8"}]}
        for row in taught_rows(12, "7")
    ]
    bare = [{"prompt": row["prompt"], "completion": row["completion"]} for row in taught_rows(12, "7")]
    for name, rows in {"pairs": pairs, "bare": bare, "text": [{"text": f"{i} and {i}."} for i in range(24)]}.items():
        for split in ("train", "test"):
            write_rows(home.parent / name / f"{split}.parquet", rows)
    unread = [{**row, "solution": "?"} for row in taught_rows(4, "7")]
    write_rows(home.parent / "unread" / "test.parquet", unread)
    return home


def words(stage: str, output_dir, **keys) -> list[str]:
    """The command line of a run, by a config beside its directory."""
    config = write_yaml(Path(f"{output_dir}.{stage}.yaml"), **keys)
    return ["--config", str(config), *ON_CPU, "--output_dir", str(output_dir)]


def run(stage: str, output_dir, *more, **keys) -> Path:
    importlib.import_module(f"suite.train.{stage}").main([*words(stage, output_dir, **keys), *more])
    return Path(output_dir)


def history(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def answers(run_dir: Path) -> dict[int, dict[str, float]]:
    """Step -> what was logged of the answers."""
    names = {f"eval_{name}" for name in ANSWERS} | {"eval_accuracy_ci95"}
    return {e["step"]: {k: e[k] for k in names} for e in history(run_dir) if "eval_accuracy" in e}


@pytest.fixture(scope="module")
def whole(miniqwen_dir, data, tmp_path_factory) -> Path:
    """SFT that learns to say 7, asked before the first step, too, and ending with its best checkpoint."""
    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(data), **TRAINED, **ASKED}
    best = {"eval_on_start": True, "load_best_model_at_end": True, "metric_for_best_model": "eval_accuracy"}
    return run("sft", tmp_path_factory.mktemp("whole") / "run", **keys, **best)


@pytest.fixture(scope="module")
def lora(miniqwen_dir, data, tmp_path_factory) -> Path:
    """The same as an adapter with dropout, which draws random numbers, under gradient checkpointing."""
    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(data), **TRAINED, **ASKED, **LORA}
    return run("sft", tmp_path_factory.mktemp("lora") / "run", "--gradient_checkpointing", "true", **keys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_what_is_logged_is_what_evaluate_measures_of_the_checkpoint_of_that_step(kind, request, data, tmp_path):
    from suite import evaluate

    run_dir = request.getfixturevalue(kind)
    logged = answers(run_dir)
    assert list(logged) == [0] * (kind == "whole") + list(range(EVERY, STEPS + 1, EVERY))
    shares = [found["eval_accuracy"] for found in logged.values()]
    assert max(shares) == 0.5 and min(shares) == 0.0, shares
    assert len({found["eval_tokens"] for found in logged.values()}) > 2, "they all say the same"
    steps = sorted(range(EVERY, STEPS + 1, EVERY), key=lambda step: logged[step]["eval_tokens"])
    chosen = {step: str(run_dir / f"checkpoint-{step}") for step in (steps[0], steps[2], steps[-1])}
    how = ["--max_rows", ROWS, "--num_generations", 0, "--max_completion_length", LONGEST,
           "--per_device_eval_batch_size", BATCH, "--output_dir", tmp_path / "results"]  # fmt: skip
    evaluate.main(list(map(str, ["--dataset_name", data, "--checkpoints", *chosen.values(), *how])))
    results = {r["checkpoint"]: r["metrics"] for r in json.loads((tmp_path / "results/results.json").read_text())}
    for step, name in chosen.items():
        measured = results[name]
        assert {k: v["value"] for k, v in measured.items() if k in ANSWERS} == {
            name: logged[step][f"eval_{name}"] for name in ANSWERS
        }
        low, high = measured["accuracy"]["ci95"]
        assert logged[step]["eval_accuracy_ci95"] == (high - low) / 2 and measured["accuracy"]["n"] == ROWS


@pytest.mark.slow
def test_a_run_learns_the_same_with_answers_and_without(lora, miniqwen_dir, data, tmp_path):
    """Both are evaluated, for the Trainer's data loaders draw a random number each."""
    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(data), **TRAINED, **LORA}
    when = {"eval_strategy": "steps", "eval_steps": EVERY, "per_device_eval_batch_size": BATCH}
    without = run("sft", tmp_path / "without", "--gradient_checkpointing", "true", **keys, **when)
    found = resume.differences(lora, without, STEPS)
    assert found.pop("log") > 0 and max(found.values()) == 0.0, found
    entries = [e for e in history(lora) if "eval_accuracy" not in e]
    assert len(entries) == len(history(without)) and not answers(without)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_a_run_that_goes_on_logs_the_answers_of_the_straight_one(kind, request, miniqwen_dir, data, tmp_path):
    straight = request.getfixturevalue(kind)
    resumed = resume.cut_off(straight, EVERY, tmp_path / "run")  # which is the best so far
    keys = json.loads((straight / "run.json").read_text(encoding="utf-8"))["config"]
    sft.main([*words("sft", resumed, **keys), "--resume_from_checkpoint", "true"])
    assert resume.difference(straight, resumed, STEPS) == 0.0
    assert len(answers(resumed)) == len(answers(straight)) >= STEPS / EVERY


@pytest.mark.slow
def test_the_best_model_by_accuracy_is_kept_and_is_the_end_of_the_run(whole):
    from safetensors.torch import load_file

    logged = {step: found["eval_accuracy"] for step, found in answers(whole).items() if step}
    best = next(step for step, share in logged.items() if share == max(logged.values()))
    assert best < STEPS, "the last one would be kept by anyone"
    state = json.loads((whole / "trainer_state.json").read_text(encoding="utf-8"))
    assert (Path(state["best_model_checkpoint"]).name, state["best_metric"]) == (f"checkpoint-{best}", 0.5)
    end, kept, last = (
        load_file(directory / "model.safetensors")
        for directory in (whole, whole / f"checkpoint-{best}", whole / f"checkpoint-{STEPS}")
    )
    assert all((end[name] == kept[name]).all() for name in kept)
    assert any((end[name] != last[name]).any() for name in kept)


@pytest.mark.slow
def test_the_answers_are_in_tensorboard_in_the_curves_and_cost_seconds_that_are_told(miniqwen_dir, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from suite import plots

    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(data), **TRAINED, **ASKED, "max_steps": EVERY}
    made = run("sft", tmp_path / "run", "--report_to", "tensorboard", **keys)
    events = EventAccumulator(str(next(made.rglob("events.out.tfevents.*")).parent)).Reload()
    assert {"eval/accuracy", "eval/format", "eval/tokens", "eval/loss"} <= set(events.Tags()["scalars"])
    curves = plots.curves(history(made), False)
    assert curves["answers"]["eval_accuracy"][0] == [EVERY] and "eval_tokens" in curves["completion-length"]
    (seconds,) = (entry["eval_answers_runtime"] for entry in history(made) if "eval_answers_runtime" in entry)
    assert 0 < seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "dpo", "distill", "grpo"])
def test_every_stage_is_asked_learns_the_same_unasked_and_goes_on(stage, whole, data, tmp_path):
    """Where the rows of a stage have no solutions, others are named; where its evaluation samples, it reads as many."""
    few = str(data.parent / "few")
    own = {
        "pretrain": {"dataset_name": str(data.parent / "text"), "max_length": 32, "eval_answers_dataset": few},
        "dpo": {"dataset_name": str(data.parent / "pairs"), "eval_answers_dataset": few},
        "distill": {
            "dataset_name": few,
            "teacher_model_name_or_path": str(whole),
            "lmbda": 1.0,
            "log_completions": True,
        },
        "grpo": {"dataset_name": few, "num_generations": 2, "num_generations_eval": 2, "log_completions": True},
    }[stage]
    short = {"max_steps": 4, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-4}
    keys = {"model_name_or_path": str(whole), **TRAINED, **ASKED, **own, **short, "eval_answers": FEW}
    asked = run(stage, tmp_path / "asked", **keys)
    assert [(step, found["eval_accuracy"]) for step, found in answers(asked).items()] == [(2, 0.5), (4, 0.5)]
    ours = ["eval_answers", "eval_answers_dataset"] + ["max_completion_length"] * (stage in ("pretrain", "dpo"))
    unasked = run(stage, tmp_path / "unasked", **{key: value for key, value in keys.items() if key not in ours})
    found = resume.differences(asked, unasked, 4)
    assert found.pop("log") > 0 and max(found.values()) == 0.0, found
    run(stage, resume.cut_off(asked, 2, tmp_path / "resumed"), "--resume_from_checkpoint", "true", **keys)
    assert resume.difference(asked, tmp_path / "resumed", 4) == 0.0
    if "log_completions" in own:  # an evaluation's own are no longer where those of training are
        logged = sorted(path.stem for path in (tmp_path / "resumed" / "completions").iterdir())
        assert logged == ["completions_00003", "completions_00004", "evaluation_00004"]


@pytest.mark.slow
def test_an_evaluation_that_samples_reads_as_many_rows_as_are_answered(whole, data, tmp_path, monkeypatch):
    keys = {"model_name_or_path": str(whole), "dataset_name": str(data), **TRAINED, **ASKED, "num_generations": 2}
    trainer = built_by(grpo.main, words("grpo", tmp_path / "run", **{**keys, "eval_answers": 3}), monkeypatch)
    assert [row["solution"] for row in trainer.eval_dataset] == ["7", "7", "8"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_strategy": "no"}, "answered at every evaluation, and there is none. Set `eval_strategy: steps`"),
        ({"eval_answers": -1}, "eval_answers: -1 must be a number of rows"),
        ({"eval_answers": 0}, "max_completion_length: nothing is generated here but the answers of `eval_answers`"),
        (
            {"eval_answers": 0, "eval_answers_dataset": "x", "max_completion_length": None},
            "eval_answers_dataset names rows to answer; `eval_answers` says how many",
        ),
        ({"max_completion_length": 0}, "max_completion_length: 0 must be at least 1"),
        (
            {"eval_answers": 0, "max_completion_length": None, "metric_for_best_model": "accuracy"},
            "metric_for_best_model: accuracy is measured on answers, and none are asked for. Set `eval_answers: 128`",
        ),
        ({"dataset_name": "bare"}, "eval_answers: .*bare.*columns.*solution.*`eval_answers_dataset` may name another"),
        ({"eval_answers_dataset": "data/nowhere"}, "eval_answers: There is no data directory 'data/nowhere'"),
        ({"eval_answers_dataset": "unread"}, "eval_answers: not one of the first 4 solutions of .*unread can be read"),
        (
            {"dataset_name": None, "datasets": [{"path": "bare"}], "test_split_size": 0.5},
            "eval_answers: which test rows, where `datasets` mixes several",
        ),
    ],
)
def test_rows_that_cannot_be_answered_are_refused_before_a_model_is_loaded(keys, message, miniqwen_dir, data):
    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(data), **TRAINED, **ASKED, **keys}
    there = ("dataset_name", "eval_answers_dataset")
    keys |= {k: str(data.parent / keys[k]) for k in there if keys.get(k) in ("bare", "unread")}
    if keys.get("datasets"):
        keys["datasets"] = [{"path": str(data.parent / "bare")}]
    with pytest.raises(ValueError, match=message):
        sft.main(words("sft", "run", **{key: value for key, value in keys.items() if value is not None}))
    assert not Path("run").exists()


def test_a_prompt_that_is_too_long_for_the_model_is_refused_before_the_first_step(miniqwen_dir, data, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "x" * n}], "solution": "7"} for n in (9, 600)]
    write_rows(tmp_path / "long" / "test.parquet", rows)
    keys = {"model_name_or_path": str(miniqwen_dir), "dataset_name": str(data), **TRAINED, **ASKED}
    with pytest.raises(ValueError, match="eval_answers: 1 of 2 prompts do not fit: the longest has 6.. tokens"):
        sft.main(words("sft", "run", **keys, eval_answers_dataset=str(tmp_path / "long")))
    assert not list(Path("run").glob("checkpoint-*"))


def test_conversations_are_not_asked_of_a_tokenizer_without_a_template(tokenizer_dir, data, tmp_path):
    import shutil

    from suite.train import pretrain

    plain = shutil.copytree(tokenizer_dir, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    keys = {"tokenizer_name_or_path": str(plain), "dataset_name": str(data.parent / "text"), **TRAINED, **ASKED}
    with pytest.raises(
        ValueError, match="eval_answers: the prompts of .*sevens are conversations, .* no chat template"
    ):
        pretrain.main(words("pretrain", "run", **keys, eval_answers_dataset=str(data)))
    assert not Path("run").exists()


def test_streamed_rows_are_taken_as_far_as_they_are_asked_for(data):
    from types import SimpleNamespace

    from trl import DatasetMixtureConfig, ScriptArguments

    from suite import source
    from suite.keys import AnswerArguments

    script = ScriptArguments(dataset_name=str(data), dataset_streaming=True)
    config = SimpleNamespace(eval_strategy="steps", metric_for_best_model=None)
    asked = AnswerArguments(eval_answers=3)
    found = source.to_answer(asked, config, script, DatasetMixtureConfig(), SimpleNamespace(chat_template="x"))
    assert [row["solution"] for row in found] == ["7", "7", "8"] and "completion" not in found[0]
