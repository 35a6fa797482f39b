"""`suite rollouts`: what a GRPO run said, found by step, by prompt and by condition."""

from pathlib import Path

import pandas
import pytest

from suite import reasoning, rollouts
from suite.rewards.scoring import TABLE
from suite.train import grpo
from tests.conftest import ON_CPU, write_yaml
from tests.rows import read_rows


@pytest.fixture
def run_dir(tmp_path):
    """Two steps of two prompts with two completions each, as TRL logs them."""
    folder = tmp_path / "run" / "completions"
    folder.mkdir(parents=True)
    for step in (5, 10):
        said = [reasoning.write("so", answer) for answer in ("3", "4")] + ["no tags", reasoning.write("so", "7")]
        pandas.DataFrame(
            {
                "step": step,
                "prompt": [[{"role": "user", "content": asked}] for asked in ("1+2", "1+2", "3+4", "3+4")],
                "completion": [[{"role": "assistant", "content": text}] for text in said],
                "accuracy_reward": [1.0, 0.0, 0.0, 1.0],
                "format_reward": [1.0, 1.0, 0.0, float("nan")],
                "advantage": [0.7, -0.7, -0.7, 0.7],
            }
        ).to_parquet(folder / f"completions_{step:05d}.parquet")
    return tmp_path / "run"


def page(run_dir, capsys, *words) -> str:
    rollouts.main([str(run_dir), *words])
    return capsys.readouterr().out


def test_all_are_shown_by_step_with_what_they_were_given(run_dir, capsys):
    told = page(run_dir, capsys)
    assert told.count("step 5") == 2 and told.count("step 10") == 2
    assert "accuracy 1  format 1  advantage +0.700" in told and "<answer>[3]</answer>" in told
    assert "8 of 8 completions, 2 steps; mean accuracy 0.500, format 0.667" in told


def test_no_column_of_the_table_itself_is_taken_for_a_reward():
    assert rollouts.rewards_of(pandas.DataFrame({"accuracy": [1.0], **dict.fromkeys(TABLE, [0.5])})) == ["accuracy"]


def test_a_step_a_prompt_and_a_condition_choose(run_dir, capsys):
    assert "4 of 8 completions, 1 steps" in page(run_dir, capsys, "--step", "-1")
    over_steps = page(run_dir, capsys, "--prompt", "3+4")
    assert over_steps.index("step 5") < over_steps.index("step 10") and "1+2" not in over_steps
    gamed = page(run_dir, capsys, "--where", "format == 1 and accuracy == 0")
    assert "2 of 8 completions" in gamed and "[4]" in gamed and "[3]" not in gamed
    assert "0 of 8 completions, 0 steps" in page(run_dir, capsys, "--where", "accuracy > 1")
    assert "Shown are the first 3" in page(run_dir, capsys, "--max_rows", "3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "7"], "step: 7 was not logged. There are 2 from 5 to 10"),
        (["--prompt", "9+9"], "no prompt there has '9"),
        (["--where", "acuracy == 0"], "cannot be asked.*There are: step, accuracy, format, advantage"),
        (["--where", "accuracy =="], "cannot be asked"),
        (["--max_rows", "-1"], "max_rows: -1"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(run_dir, words, message):
    with pytest.raises(ValueError, match=message):
        rollouts.main([str(run_dir), *words])


def test_a_directory_without_completions_names_those_below_it_or_the_key(run_dir, tmp_path):
    with pytest.raises(ValueError, match="There are: .*run"):
        rollouts.main([str(tmp_path)])
    with pytest.raises(ValueError, match="log_completions: true"):
        rollouts.main([str(run_dir / "completions")])
    (run_dir / "completions" / "completions_00011.parquet").write_bytes(b"half")
    with pytest.raises(ValueError, match="broken file"):
        rollouts.main([str(run_dir)])


def test_what_evaluations_sampled_is_shown_apart_and_only_where_it_is_asked_for(run_dir, capsys):
    with pytest.raises(ValueError, match="evaluation: '.*run' has logged no completions of an evaluation"):
        rollouts.main([str(run_dir), "--evaluation", "true"])
    folder = run_dir / "completions"
    frame = pandas.read_parquet(folder / "completions_00005.parquet").head(1)
    frame.drop(columns=["accuracy_reward", "format_reward", "advantage"]).to_parquet(
        folder / "evaluation_00005.parquet"
    )
    assert "8 of 8 completions" in page(run_dir, capsys)
    told = page(run_dir, capsys, "--evaluation", "true")  # as distillation logs them: without rewards
    assert "1 of 1 completions, 1 steps" in told and "<answer>[3]</answer>" in told and "advantage" not in told


def test_colors_tell_right_answers_from_wrong_ones():
    right = {"completion": reasoning.write("so", "7"), "accuracy": 1.0}
    assert f"{rollouts.RIGHT}7{rollouts.PLAIN}" in rollouts.highlighted(right, colors=True)
    assert f"{rollouts.WRONG}7{rollouts.PLAIN}" in rollouts.highlighted({**right, "accuracy": 0.0}, colors=True)
    assert rollouts.highlighted({"completion": "no tags"}, colors=True) == "no tags"


@pytest.mark.slow
def test_what_a_run_really_logs_can_be_paged_through(miniqwen_dir, arithmetic_dir, tmp_path, capsys):
    config = write_yaml(
        tmp_path / "grpo.yaml", model_name_or_path=str(miniqwen_dir), dataset_name=str(arithmetic_dir),
        output_dir="run", max_steps=2, logging_steps=1, num_generations=2, per_device_train_batch_size=4,
        max_completion_length=8, log_completions=True, save_strategy="no", eval_strategy="steps", eval_steps=1,
        eval_on_start=True, per_device_eval_batch_size=2, num_generations_eval=1, eval_answers=7,
    )  # fmt: skip
    grpo.main(["--config", str(config), *ON_CPU])
    capsys.readouterr()
    assert "8 of 8 completions, 2 steps; mean accuracy 0.000, format 0.000" in page("run", capsys)
    told = page("run", capsys, "--evaluation", "true")  # also what did not fit into TRL's buffer of one rollout
    assert "21 of 21 completions, 3 steps; mean accuracy 0.000, format 0.000" in told
    for kind, split in (("completions", "train"), ("evaluation", "test")):
        asked = {row["prompt"][0]["content"] for row in read_rows(arithmetic_dir / f"{split}.parquet")}
        logged = [row for path in Path("run/completions").glob(f"{kind}_*") for row in read_rows(path)]
        assert {row["prompt"][0]["content"] for row in logged} <= asked, kind
