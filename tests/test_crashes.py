"""A run that is killed at any moment goes on as if nothing had happened, and leaves nothing that is taken for whole and
is not."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from suite import checkpoint
from suite.trainers import exact, stopping
from tests import crashes, engines, resume
from tests.conftest import ON_CPU, ROOT
from tests.crashes import Runner, Straight
from tests.warm import Halt, Warm, kill_after, state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def warm():
    server = Warm(*crashes.MODULES)
    yield server
    server.close()


@pytest.fixture(scope="module")
def runners(warm, tmp_path_factory, arithmetic_dir, miniqwen_dir, tokenizer_dir) -> dict[str, Runner]:
    home = tmp_path_factory.mktemp("crashes")
    configs = crashes.configs(home, arithmetic_dir, miniqwen_dir, tokenizer_dir)
    return {stage: Runner(warm, stage, config, home / stage) for stage, config in configs.items()}


@pytest.fixture(scope="module")
def straight(runners) -> Callable[[str], Straight]:
    return functools.cache(lambda stage: Straight.of(runners[stage]))


@pytest.mark.parametrize("stage", crashes.STAGES)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(stage, runners, straight):
    found = crashes.kill_often(runners[stage], straight(stage), 3, seed=0)
    assert found["killed"] == 3 and found["went on to the same end"] >= 1


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_sigterm_saves_at_the_end_of_the_step_and_the_run_goes_on_to_the_same_end(stage, runners, straight):
    runner, whole = runners[stage], straight(stage)
    run, seldom = runner.directory("told"), ("--save_steps", "100", "--logging_steps", "4")
    for step in (0, 3):
        ended = runner.run("told", *seldom, halt=Halt(step=step), meanwhile=kill_after(0, signal.SIGTERM))
        assert ended.code == 75, ended.said
        last, _ = checkpoint.last(run)
        assert last.name == f"checkpoint-{step + 1}"
        assert f"Stopped and saved at step {step + 1}; go on with" in ended.said
        assert not checkpoint.lock_of(run).exists() and not checkpoint.aside(run).exists()
    assert runner.run("told", *seldom).code == 0
    assert resume.difference(whole.run, run, crashes.STEPS) == 0.0


def held_run(runners, name: str, then: Callable[[int], None]):
    """A run of GRPO whose reward behind the second step has no end, and what is done to it then."""
    runner = runners["grpo"]
    run = runner.directory(name)
    run.parent.mkdir(parents=True)
    (run.parent / "hold").touch()
    ended = runner.run(name, meanwhile=crashes.once_there(run.parent / "held", then))
    (run.parent / "hold").unlink()
    return run, ended


def test_a_second_sigterm_ends_at_once_and_the_last_checkpoint_is_good(runners, straight):
    log = runners["grpo"].home / "twice.log"

    def twice(pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        while "A second one ends at once" not in log.read_text() and state(pid) != "Z":
            time.sleep(0.01)  # two that come before it has heard the first are one
        os.kill(pid, signal.SIGTERM)

    run, ended = held_run(runners, "twice", twice)
    assert ended.code == -signal.SIGTERM, ended.said  # and it has ended, though its step has not
    assert runners["grpo"].run("twice").code == 0
    assert resume.difference(straight("grpo").run, run, crashes.STEPS) == 0.0


def test_of_two_processes_in_one_directory_the_second_is_refused(runners, warm):
    second = {}

    def start_another(pid: int) -> None:
        runner = runners["grpo"]
        command = [sys.executable, "-m", "suite.cli", *runner.command("run")]
        how = {"cwd": runner.home / "both", "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "timeout": 300}
        second["ended"] = subprocess.run(command, capture_output=True, text=True, **how)
        os.kill(pid, signal.SIGKILL)

    run, first = held_run(runners, "both", start_another)
    assert first.code == -signal.SIGKILL
    assert second["ended"].returncode == 2
    assert "suite: Another process is writing run. Wait for it, or end it." in second["ended"].stderr
    assert runners["grpo"].run("both").code == 0  # what the killed one has left locks nothing


def test_sigterm_is_left_alone_where_the_config_says_so_and_before_training(runners):
    runner = runners["sft"]
    run = runner.directory("alone")
    term = kill_after(0, signal.SIGTERM)
    ended = runner.run("alone", "--enable_jit_checkpoint", "false", halt=Halt(step=1), meanwhile=term)
    assert ended.code == -signal.SIGTERM and (run / "checkpoint-1").is_dir()
    ended = runner.run("early", halt=Halt(), meanwhile=term)
    assert ended.code == -signal.SIGTERM and not runner.directory("early").exists()


@pytest.mark.parametrize("name", ["workers", "worker"])
def test_a_job_that_is_told_to_end_with_its_workers_saves_and_a_worker_told_alone_ends(name, runners, straight):
    runner = runners["sft"]
    run = runner.directory(name)

    def tell(pid: int) -> None:
        """The parent first, which hears nothing while it stands still, for longer than a worker waits at least."""
        for told in [*([pid] if name == "workers" else []), *crashes.children(pid)]:
            os.kill(told, signal.SIGTERM)
        time.sleep(4)

    ended = runner.run(
        name,
        "--dataloader_num_workers",
        "1",
        "--max_steps",
        "400",  # a worker that is told alone waits for its parent to be told, too
        halt=Halt(str(run / "checkpoint-2")),
        meanwhile=tell,
    )
    last, _ = checkpoint.last(run)
    assert last is not None
    if name == "workers":
        assert ended.code == 75, ended.said
    else:
        # By torch, out of a signal, or where it was about to take rows that the worker was handing over.
        told = "DataLoader worker (pid" in ended.said or "in _try_get_data\n" in ended.said
        assert ended.code == 1 and told and "free some space" not in ended.said, ended.said
    assert crashes.same_weights(straight("sft").run / "checkpoint-2", run / "checkpoint-2")


def test_only_what_the_writer_itself_raises_is_taken_for_a_full_disk():
    class Reader:  # as torch raises it out of a signal, wherever the process then is
        def write(self, data) -> int:
            raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly")

    for target, of_the_disk in [("/dev/full", True), (Reader(), False)]:
        with pytest.raises(RuntimeError) as raised:
            torch.save(torch.zeros(1 << 18), target)
        assert exact._is_of_the_disk(raised.value) is of_the_disk, raised.value


def test_a_sigterm_that_a_busy_launcher_passes_on_late_is_no_second_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told, ends, now = stopping.StopOnSigterm(), [], time.monotonic()
    monkeypatch.setattr(os, "kill", lambda *sent: ends.append(sent))
    monkeypatch.setattr(signal, "signal", lambda *heard: None)
    for later, ended in ((0, []), (8, []), (20, [(os.getpid(), signal.SIGTERM)])):
        monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda later=later: now + later))
        told._hear(signal.SIGTERM, None)
        assert ends == ended, later


def test_a_worker_whose_parent_is_gone_ends_when_it_is_told():
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        stopping.StopOnSigterm().listen()
        worker = os.fork()
        os.write(writer, str(worker).encode() if worker else b"")
        time.sleep(120)
        os._exit(0)
    worker = int(os.read(reader, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.kill(worker, signal.SIGTERM)
    end = time.monotonic() + 60
    while state(worker) != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    assert state(worker) == "Z"


def test_what_nobody_reads_any_more_does_not_end_a_run():
    kept = os.dup(1)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    try:
        stopping._let_print()
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            os.write(1, b"into a pipe that `tee` has left")
        stopping._let_print()
        assert os.write(1, b"to nowhere") == 10
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(writer)


def test_chapters_stop_where_one_is_told_to_end(runners, warm, tmp_path):
    config = (runners["sft"].config).read_text()
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "1-sft.yaml").write_text(config.replace("max_steps: 6", "max_steps: 60") + "output_dir: one\n")
    (tmp_path / "book" / "2-sft.yaml").write_text(config + "output_dir: two\n")
    there = Halt(str(tmp_path / "one" / "checkpoint-1"))
    ended = warm.run(["run", "book", *ON_CPU], tmp_path, halt=there, meanwhile=kill_after(0, signal.SIGTERM))
    assert ended.code == 75 and "Stopped and saved" in ended.said
    assert (tmp_path / "one").is_dir() and not (tmp_path / "two").exists()


@pytest.mark.parametrize("too_big", ["model.safetensors", "optimizer.pt"])
def test_a_file_that_may_not_grow_is_one_line_and_the_run_goes_on_when_it_may(too_big, runners, straight):
    runner, whole = runners["sft"], straight("sft")
    limit = (whole.run / "checkpoint-1" / too_big).stat().st_size - 100
    before = ["--save_steps", "2"]
    assert runner.run(too_big, *before, die_at=whole.ended.steps // 4).code == -signal.SIGKILL
    last, _ = checkpoint.last(runner.directory(too_big))
    said = crashes.refused_in_one_line(runner.run(too_big, *before, limit=limit))
    assert "could not be written" in said and (last is None or f"run/{last.name} is whole: free some space" in said)
    assert not checkpoint.aside(runner.directory(too_big)).exists()
    assert runner.run(too_big, *before).code == 0
    assert resume.difference(whole.run, runner.directory(too_big), crashes.STEPS) == 0.0


# Pages of a disk: as many as run.json needs, or too few for a later checkpoint, for the model, and for the last file.
@pytest.mark.parametrize(
    "ends",
    [
        pytest.param(["1", "1/2", "-60", "-8"]),
        pytest.param(["2", "1/9", "-12", "-6", "-4", "-2"], marks=pytest.mark.soak),
    ],
)
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_when_there_is_room(ends, runners, straight, tmp_path):
    runner, whole = runners["dpo"], straight("dpo")
    disk = tmp_path / "disk"
    with crashes.small_disk(disk, 64 << 20):
        assert runner.warm.run([*runner.command(disk / "run")], tmp_path).code == 0
        needed = crashes.used(disk)
    refused = 0
    for number, pages in enumerate(ends):
        at, size = tmp_path / str(number), int(Fraction(pages) * (needed if "/" in pages else 4096))
        with crashes.small_disk(at, size if size > 0 else needed + size):
            ended = runner.warm.run([*runner.command(at / "run")], tmp_path)
            if ended.code != 0:
                said = crashes.refused_in_one_line(ended)
                assert "No space left" in said or "could not be written" in said, said
                assert not checkpoint.aside(at / "run").exists()
                crashes.look(at / "run", whole)
                crashes.make_room(at)
                assert runner.warm.run([*runner.command(at / "run")], tmp_path).code == 0
                refused += 1
            assert resume.difference(whole.run, at / "run", crashes.STEPS) == 0.0
    assert refused >= 3


def test_a_log_that_finds_the_disk_full_is_one_line_too(runners, straight, tmp_path):
    runner, whole = runners["grpo"], straight("grpo")
    words = ["--log_completions", "true", "--logging_steps", "1", "--report_to", "tensorboard", "--save_steps", "2"]
    disk = tmp_path / "disk"
    with crashes.small_disk(disk, 16 << 20):
        how = {"halt": Halt(step=2), "meanwhile": lambda pid: crashes.fill(disk)}
        ended = runner.warm.run([*runner.command(disk / "run"), *words], tmp_path, **how)
        said = crashes.refused_in_one_line(ended)
        assert "no room left" in said or "could not be written" in said
        assert "run/checkpoint-2 is whole: free some space" in said
        (disk / "ballast").unlink()
        assert runner.warm.run([*runner.command(disk / "run"), *words], tmp_path).code == 0
        assert crashes.same_weights(whole.run, disk / "run")


def test_a_finished_run_that_is_made_longer_is_the_long_run(runners, straight):
    runner, whole = runners["sft"], straight("sft")
    run = runner.directory("longer")
    assert runner.run("longer", "--max_steps", "3").code == 0
    for call in (3, 9, 16):  # while run.json and the markers of the shorter run's model give way
        assert runner.run("longer", die_at=call).code == -signal.SIGKILL
        if crashes.is_taken(run):
            assert crashes.same_weights(run, whole.run / "checkpoint-3")
            assert checkpoint.read_json(run / "run.json")["config"]["max_steps"] == 3
    ended = runner.run("longer")
    assert ended.code == 0 and "max_steps was 3, is now 6: the learning rate is constant" in ended.said, ended.said
    assert resume.difference(whole.run, run, crashes.STEPS) == 0.0
    again = runner.run("longer")
    assert again.code == 0 and "holds this very run, complete" in again.said


def test_the_best_checkpoint_outlives_kills_limits_and_a_move(runners):
    runner = runners["sft"]
    best = ["--eval_strategy", "steps", "--eval_steps", "1", "--load_best_model_at_end", "true", "--logging_steps", "1",
            "--save_total_limit", "1", "--learning_rate", "0.3", "--max_steps", "5"]  # fmt: skip
    assert runner.run("best", *best).code == 0
    killed = runner.directory("best-killed")
    kill = {"halt": Halt(str(killed / "checkpoint-3")), "meanwhile": kill_after(0)}
    assert runner.run("best-killed", *best, **kill).code == -signal.SIGKILL
    killed.parent.rename(runner.home / "best-moved")
    moved = runner.directory("best-moved")
    assert runner.run("best-moved", *best).code == 0
    state = checkpoint.read_json(moved / "trainer_state.json")
    named = runner.home / "best-moved" / state["best_model_checkpoint"]
    assert named.is_dir() and named.name == f"checkpoint-{state['best_global_step']}"
    assert crashes.same_weights(named, moved) and crashes.same_weights(runner.directory("best"), moved)
    assert (moved / "checkpoint-5").is_dir()  # from which the run could be made longer


def launched(runner: Runner, home: Path, module: list, *words) -> subprocess.Popen:
    """A stage on two processes under DDP, in a process group of its own, with what it prints in a file."""
    home.mkdir(exist_ok=True)
    command = [*engines.launcher("ddp"), "-m", *module, *runner.command("run")[1:], *words]
    with (home / "log").open("w") as log:
        how = {"cwd": home, "env": {**os.environ, **engines.ENVIRONMENT}, "start_new_session": True}
        return subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, **how)


def ended(process: subprocess.Popen, home: Path) -> tuple[int, str]:
    """The launcher's exit code, and what was printed. Leaves no process behind."""
    try:
        code = process.wait(engines.SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return code, (home / "log").read_text()


# Slurm tells every process of the job, and whoever tells the launcher alone has it pass that on: the soak does both.
@pytest.mark.parametrize("tells", [[os.killpg], pytest.param([os.killpg, os.kill], marks=pytest.mark.soak)])
def test_two_processes_told_by_slurm_or_by_their_launcher_save_once_at_one_step(tells, runners, tmp_path):
    home, before = tmp_path / "two", 0
    for tell in tells:
        words = ["--save_steps", "2", "--max_steps", "400", "--save_total_limit", "2"]
        process = launched(runners["sft"], home, ["suite.train.sft"], *words)
        later = home / "run" / f"checkpoint-{before // 2 * 2 + 2}"
        crashes.once_there(later, lambda pid, tell=tell: tell(pid, signal.SIGTERM))(process.pid)
        code, said = ended(process, home)
        last, passed = checkpoint.last(home / "run")
        step = checkpoint.record_of(last)["step"]
        assert code == 1 and not passed and step > before, said[-3000:]
        assert said.count("SIGTERM: saving") == 1 and said.count(f"Stopped and saved at step {step};") == 1
        assert {f"exact_state_{rank}.pt" for rank in (0, 1)} <= {path.name for path in last.iterdir()}
        before = step


@pytest.mark.soak
def test_of_two_processes_one_whose_disk_is_full_ends_both_with_one_line(runners, straight, tmp_path):
    home, limit = tmp_path / "two", (straight("sft").run / "checkpoint-1" / "optimizer.pt").stat().st_size - 100
    begun = time.monotonic()
    code, said = ended(launched(runners["sft"], home, ["tests.crashes", limit, "sft"]), home)
    assert code == 1 and said.count("suite: ") == 1 and "checkpoint-1 could not be written" in said, said[-3000:]
    assert time.monotonic() - begun < 150 and checkpoint.last(home / "run")[0] is None


@pytest.mark.soak
@pytest.mark.parametrize("stage", crashes.STAGES)
def test_thirty_kills_go_on_to_the_same_end(stage, runners, straight):
    found = crashes.kill_often(runners[stage], straight(stage), 30, seed=1)
    print(f"{stage}: {dict(sorted(found.items()))}")
    assert found["killed"] >= 10 and found["in a save"] >= 5  # 30, on a machine that is not busy
