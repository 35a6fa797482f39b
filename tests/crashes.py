"""Runs of every stage that are killed at random moments, and a look at every directory that they leave.

A run is a fork of one warm process (tests/warm.py). A kill falls on a call to the file system, on a moment of the
clock, or into a save: between two calls, or while the content of a file is being written.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from suite import checkpoint
from tests import resume
from tests.conftest import ON_CPU, save_model, write_yaml
from tests.rows import write_rows
from tests.warm import Ended, Warm, kill_after, state

STAGES = ("pretrain", "sft", "dpo", "distill", "grpo")
STEPS = 6
TRAINERS = ("sft_trainer", "dpo_trainer", "grpo_trainer")
MODULES = (
    *(f"trl.trainer.{name}" for name in TRAINERS), "suite.trainers.distillation", "suite.trainers.exact",
    *(f"suite.train.{stage}" for stage in STAGES),
)  # fmt: skip
EVERY_STEP_SAVED = {
    "max_steps": STEPS, "save_steps": 1, "logging_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2,
    "lr_scheduler_type": "constant",
}  # fmt: skip


def configs(home: Path, arithmetic_dir: Path, miniqwen_dir: Path, tokenizer_dir: Path) -> dict[str, Path]:
    """A config a stage, all of them tiny, one with an adapter."""
    pairs = [
        {"prompt": [{"role": "user", "content": f"{i}+1"}],
         "chosen": [{"role": "assistant", "content": str(i + 1)}],
         "rejected": [{"role": "assistant", "content": str(i)}]}
        for i in range(20)
    ]  # fmt: skip
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    teacher = save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, home / "teacher", initializer_range=0.2)
    write_rows(home / "pairs" / "train.parquet", pairs)
    rows = {"dataset_name": str(arithmetic_dir)}
    sums = {"model_name_or_path": str(miniqwen_dir), **rows}
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    lora = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1, "lora_target_modules": "all-linear"}
    rollouts = {"num_generations": 2, "max_completion_length": 4, "reward_funcs": ["tests.crashes.letters_reward"]}
    keys = {
        "pretrain": {"tokenizer_name_or_path": str(tokenizer_dir), "model_config": shape, **rows, "max_length": 32},
        "sft": {**sums, "max_length": 64},
        "dpo": {**sums, "dataset_name": str(home / "pairs"), "max_length": 64, **lora},
        "distill": {**sums, "teacher_model_name_or_path": str(teacher), "max_completion_length": 4, "lmbda": 0.5},
        "grpo": {**sums, **rollouts, "num_iterations": 2},
    }
    return {stage: write_yaml(home / f"{stage}.yaml", **EVERY_STEP_SAVED, **keys[stage]) for stage in STAGES}


def letters_reward(completions, **columns) -> list[float]:
    """A reward in which a random model's completions differ. Where a file called `hold` lies and two steps are saved,
    it says by a file called `held` that it is at work, and is until `hold` is gone."""
    if Path("hold").exists() and Path("run/checkpoint-2").exists():
        Path("held").touch()
        until = time.monotonic() + 600
        while Path("hold").exists() and time.monotonic() < until:
            time.sleep(0.05)
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


@dataclass
class Runner:
    """Starts one stage, time and again, in directories of its own."""

    warm: Warm
    stage: str
    config: Path
    home: Path

    def run(self, name: str, *words, **how) -> Ended:
        """The run in `home/name/run`, begun or gone on with."""
        cwd = self.home / name
        cwd.mkdir(parents=True, exist_ok=True)
        return self.warm.run([*self.command("run"), *words], cwd, **how)

    def command(self, output_dir: str | Path) -> list:
        given = ["--config", self.config, "--output_dir", output_dir, "--resume_from_checkpoint", "true"]
        return [self.stage, *given, *ON_CPU]

    def directory(self, name: str) -> Path:
        return self.home / name / "run"


@dataclass
class Straight:
    """A run that nobody has touched, and how long it took: what the others are held to."""

    run: Path
    ended: Ended

    @classmethod
    def of(cls, runner: Runner) -> "Straight":
        ended = runner.run("straight")
        assert ended.code == 0, ended.said
        return cls(runner.directory("straight"), ended)

    def place_of(self, directory: Path) -> Path:
        """Where the same lies in this run, by the name of its step."""
        step = self.run / directory.name
        return step if directory.name.startswith("checkpoint-") else self.run


def in_a_save(run: Path, number: int, seconds: float) -> Callable[[int], None]:
    """For `meanwhile`: kill -9 so many seconds into the save `number` from now."""

    def kill(pid: int) -> None:
        for present in [True, False] * (number - 1) + [True]:
            while checkpoint.aside(run).exists() != present and state(pid) != "Z":
                time.sleep(0.0005)
        kill_after(seconds)(pid)

    return kill


def once_there(path: Path, then: Callable[[int], None]) -> Callable[[int], None]:
    """For `meanwhile`: what to do with the run when a file or directory has come to be. The run does not wait for that:
    it must be one that has long to go then."""

    def wait(pid: int) -> None:
        while not path.exists() and state(pid) != "Z":
            time.sleep(0.002)
        then(pid)

    return wait


def children(pid: int) -> list[int]:
    """The processes that a run has forked."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[None]:
    """A disk of so many bytes; skips the test where this user may mount none."""
    at.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", at], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", at], check=True)


def make_room(at: Path) -> None:
    """Let a small disk be a large one."""
    subprocess.run(["mount", "-o", "remount,size=64m", at], check=True)


def fill(at: Path) -> None:
    """Leave no room at all on a small disk."""
    with suppress(OSError), (at / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def used(at: Path) -> int:
    disk = os.statvfs(at)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def refused_in_one_line(ended: Ended) -> str:
    """What a run says that ends for want of room: one line, and nothing half-written is left."""
    assert ended.code == 2 and "Traceback" not in ended.said, ended.said[-3000:]
    before, found, said = ended.said.rpartition("suite: ")  # a progress bar may stand in the same line
    assert found and "suite: " not in before and said.count("\n") == 1, ended.said[-3000:]
    return said


def blow(rng: random.Random, straight: Straight, run: Path) -> dict:
    """How a run is to be killed: on a call, in a save, or when the clock says so."""
    kind = rng.choice(["call", "save", "clock"])
    if kind == "call":
        return {"die_at": rng.randint(1, straight.ended.steps), "after": rng.random() < 0.5}
    if kind == "save":
        return {"meanwhile": in_a_save(run, rng.randint(1, 3), rng.uniform(0, 0.04))}
    return {"meanwhile": kill_after(rng.uniform(0, straight.ended.seconds))}


def kill_often(runner: Runner, straight: Straight, kills: int, seed: int, seconds: float = 240) -> Counter:
    """Kill a run so often, or till the time is up; look at what it leaves, and hold its end to the straight run's.

    A run that comes to its end before it is killed is followed by another. How often each thing was found.
    """
    rng, found, number, until = random.Random(seed), Counter(), 0, time.monotonic() + seconds
    while found["killed"] < kills and time.monotonic() < until:
        name, number, had_one = f"killed-{number}", number + 1, False
        run, limit = runner.directory(name), ("--save_total_limit", str(1 + number % 2))
        while True:
            is_on = found["killed"] < kills and time.monotonic() < until
            how = blow(rng, straight, run) if is_on else {}
            ended = runner.run(name, *limit, **how)
            if ended.code == 0:
                break
            assert ended.code == -9, ended.said
            found += Counter(["killed", "in a save" if checkpoint.aside(run).exists() else "elsewhere"])
            found += look(run, straight, exported=found["killed"] == 1)
            assert not had_one or checkpoint.last(run)[0], f"{run} had a whole checkpoint, and has none"
            had_one = checkpoint.last(run)[0] is not None
        difference = resume.difference(straight.run, run, STEPS)
        assert difference == 0.0, f"{run} ends another run: {difference}"
        assert not checkpoint.aside(run).exists() and not checkpoint.lock_of(run).exists()
        found["went on to the same end"] += 1
        shutil.rmtree(runner.home / name)
    return found


def look(run: Path, straight: Straight, *, exported: bool = False) -> Counter:
    """Every directory of a run: taken for what it is, or refused; a checkpoint that is there is whole.

    What is no checkpoint is always offered to `suite export`, too; the last checkpoint if it is to be `exported`.
    """
    found, steps = Counter(), checkpoint.steps(run)
    for directory in [run, *(path for path in sorted(run.rglob("*")) if path.is_dir())] if run.is_dir() else []:
        kind = "checkpoint" if directory in steps else "run" if directory == run else "hidden"
        asked = {
            name: take
            for name, take in TAKERS.items()
            if name != "export" or kind != "checkpoint" or (exported and directory == steps[-1])
        }
        takers = [name for name, take in asked.items() if _takes(take, directory)]
        if takers:
            assert same_weights(directory, straight.place_of(directory)), f"{takers} take {directory} for another"
        assert kind != "checkpoint" or takers == list(asked), f"{directory} is only fit for {takers}"
        found[f"{kind} directories {'taken, and right' if takers else 'refused'}"] += 1
    return found


def same_weights(one: Path, other: Path) -> bool:
    """Whether two directories hold the same tensors, bit for bit."""
    from safetensors.torch import load_file

    first, second = ({path.name: load_file(path) for path in at.glob("*.safetensors")} for at in (one, other))
    return (
        bool(first)
        and {name: sorted(held) for name, held in first.items()}
        == {name: sorted(held) for name, held in second.items()}
        and all(tensor.equal(second[name][key]) for name, held in first.items() for key, tensor in held.items())
    )


def _takes(take: Callable[[Path], None], directory: Path) -> bool:
    """Whether somebody takes a directory for a checkpoint. Anything but a refusal that says why is an error."""
    from safetensors import SafetensorError

    try:
        take(directory)
    except (ValueError, OSError, SafetensorError) as error:
        assert str(error)
        return False
    return True


def is_taken(directory: Path) -> bool:
    """Whether `from_pretrained` or a later stage would take a directory."""
    return _takes(_load, directory) or _takes(checkpoint.check_whole, directory)


def _load(directory: Path) -> None:
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    AutoModelForCausalLM.from_pretrained(directory)


def _export(directory: Path) -> None:
    from suite import export

    with tempfile.TemporaryDirectory() as home:
        export.main([str(directory), "--output_dir", str(Path(home) / "plain")])


TAKERS = {
    "from_pretrained": _load,
    "a later stage": checkpoint.check_whole,
    "a resume": checkpoint.record_of,
    "export": _export,
}


def main() -> None:
    """`-m tests.crashes BYTES STAGE WORDS...`: a stage, on rank 0 of which no file may have more bytes."""
    import importlib
    import resource

    from suite import ending

    if int(os.environ.get("RANK", 0)) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    sys.exit(ending.answer_for(importlib.import_module(f"suite.train.{sys.argv[2]}").main, sys.argv[3:]))


if __name__ == "__main__":
    main()
