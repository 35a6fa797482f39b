"""The front door answers without importing torch, and knows what there is."""

import os
import re
import subprocess
import sys

import pytest

from suite import cli, data, ending
from tests.conftest import ROOT, run_suite

REGIONAL = "--dynamo_use_regional_compilation "


@pytest.mark.parametrize("words", [[], ["--help"], ["list", "rewards"], ["list", "data"], ["list", "stages"]])
def test_the_front_door_does_not_import_torch(words):
    code = f"import sys; from suite import cli; cli._main({words!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_list_prints_each_name_with_its_first_docstring_line(capsys):
    cli.show(["rewards"])
    assert re.search("^accuracy +1 for the right final answer", capsys.readouterr().out, re.MULTILINE)
    cli.show(["stages"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[: len(cli.LIFE)] == list(cli.LIFE)  # in the order of a model's life


def test_a_new_stage_appears_by_itself_behind_those_that_are_known(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    for name in ("align", "sft", "pretrain"):
        (tmp_path / "train" / f"{name}.py").write_text('"""A stage."""\n\n\ndef main(argv=None): ...\n')
    monkeypatch.setattr(cli, "HERE", tmp_path)
    assert list(cli.stages()) == ["pretrain", "sft", "align"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stf"], "no command 'stf'.*Did you mean 'sft'"),
        (["foo"], "no command 'foo'. Choose one of: prepare, sample, tokenizer, pretrain, sft"),
        (["list", "models"], "choose one of rewards, data, stages"),
        (["run", "nowhere"], "directory of numbered configs"),
        (["report", "nowhere"], "no directory 'nowhere'"),
        (["rollouts", "nowhere"], "no directory 'nowhere'"),
        (["prepare", "--launch", "x.yaml"], "--launch is for training stages"),
        (["sft", "--launch", "nowhere.yaml"], "accelerate config file"),
    ],
)
def test_a_wrong_command_is_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        cli._main(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prepare", "arithmetic", "--help"], "--forgets (0.0)"),
        (["prepare", "openr1_math", "--help"], "the first `traces_per_problem` traces"),
        (
            ["prepare", "gsm8k", "--help"],
            "--source ('openai/gsm8k')  `source` is a Hub repository, a file or a directory.",
        ),
        (["prepare", "ultrafeedback", "--help"], "--system_prompt ('none')"),
        (["prepare", "--help"], "suite prepare NAME --help"),
        (["evaluate", "-h"], "--max_completion_length (512)  Longest completion, in tokens."),
        (["grpo", "--help"], "--reward_schedule (None)  Weights that move"),
        (["sft", "--help"], "--enable_jit_checkpoint (True)  On SIGTERM the run saves at the end of the step"),
        (["serve", "--help"], "--host ('127.0.0.1')  Address to listen at"),
        (["report", "--help"], "--run_dir (required)  A run, or a directory of runs."),
    ],
)
def test_every_command_explains_its_keys(words, told, capsys):
    cli._main(words)
    assert told in capsys.readouterr().out


def test_a_key_that_a_command_does_not_take_is_not_explained(capsys):
    cli._main(["sample", "--help"])
    said = capsys.readouterr().out
    assert "--reward_kwargs" in said and "reward_schedule" not in said


def test_every_knob_of_a_data_set_has_a_line_of_help():
    silent = [(name, knob) for name in data.names() for knob, line in data.told(name).items() if not line]
    assert not silent


@pytest.mark.parametrize(("regional", "passed_on"), [("", ""), ("False", ""), ("true", REGIONAL), ("1", REGIONAL)])
def test_launch_is_the_command_one_may_type_by_hand(regional, passed_on, monkeypatch, capsys):
    config = ROOT / "accelerate_configs" / "ddp.yaml"
    seen = []
    monkeypatch.setattr("os.execv", lambda program, words: seen.append(words))
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", regional)  # which the launcher does not pass on
    words = ["sft", "--config", "c.yaml", "--launch", str(config), "--num_processes", "2", "--max_steps", "3"]
    cli._main(words)
    typed = (
        f"accelerate launch --config_file {config} --num_processes 2 {passed_on}"
        "-m suite.train.sft --config c.yaml --max_steps 3"
    )
    assert capsys.readouterr().out.strip() == typed
    assert seen[0][1:] == ["-m", "accelerate.commands.launch", *typed.split()[2:]]


def test_an_unknown_command_ends_with_exit_code_2():
    done = run_suite("stf")
    assert done.returncode == 2 and done.stderr.startswith("suite: There is no command 'stf'")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_reads_no_further_ends_a_command_in_silence(unbuffered):
    """As in `suite list data | head -1`, whether or not it is printed at once."""
    reads, writes = os.pipe()
    os.close(reads)
    words = [sys.executable, "-m", "suite.cli", "list", "data"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(words, env=env, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_command_that_ends_leaves_its_process_group(tmp_path):
    """A run with nothing left to do returns before it trains: the group that its configuration began ends, too."""
    from torch import distributed

    def begin(argv):
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)

    assert ending.answer_for(begin) == 0
    assert not distributed.is_initialized()


def test_a_file_that_one_may_not_read_is_one_line_and_any_other_fault_of_the_machine_is_a_traceback(capsys):
    def refused(argv):
        raise PermissionError(13, "Permission denied", "weights.safetensors")

    def gone(argv):
        raise ConnectionResetError(104, "Connection reset by peer")

    assert ending.answer_for(refused) == 2
    said = capsys.readouterr().err
    assert said.startswith("suite: 'weights.safetensors': Permission denied. ") and said.count("\n") == 1
    with pytest.raises(ConnectionResetError):
        ending.answer_for(gone)
