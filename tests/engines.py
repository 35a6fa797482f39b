"""Starts stages under an engine on two CPU processes, by the files of accelerate_configs/, and reads what they left.

An engine that is not there falls back to another in silence (FSDP2 without a GPU to DDP, a wrong launch to one
process), so whoever looks at a run asserts first what it ran on: `assert_real`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

ENGINES = ("ddp", "zero2", "zero3", "fsdp2")
CONFIGS = ROOT / "accelerate_configs"
# What makes a GPU file run on two CPU processes; port 0 takes a free one.
OVERRIDES = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
# Two processes on few cores: more threads only stand in each other's way.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
SECONDS = 900  # the first DeepSpeed run on a machine compiles a gloo op: one minute, or three on busy cores


def letters_reward(completions, **columns) -> list[float]:
    """A reward that even a random model's completions differ in."""
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def launcher(engine: str | None) -> list:
    """What stands before `-m MODULE`: an engine on two processes, or with None one bare process."""
    if engine is None:
        return [sys.executable]
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{engine}.yaml", *OVERRIDES]


def run(command: list, cwd: Path, **environment: str) -> str:
    """Run a command to its end; what it printed. Leaves no process behind."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, printed[-4000:]
    return printed


def facts(out: Path, name: str) -> list[dict]:
    """What each rank of a run saw of its engine."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{name}.[0-9].json"))]


def assert_real(engine: str | None, ranks: list[dict]) -> None:
    """Two ranks, both of them under this engine and no other; with None one rank, under none."""
    assert [rank["world_size"] for rank in ranks] == ([1] if engine is None else [2, 2]), ranks
    for rank in ranks:
        assert rank["is_fsdp_enabled"] == (engine == "fsdp2"), rank
        assert rank["is_deepspeed_enabled"] == (engine in ("zero2", "zero3")), rank
        assert rank["zero_stage"] == {"zero2": 2, "zero3": 3}.get(engine), rank
        wrapper = {"ddp": "DistributedDataParallel", "fsdp2": "FSDP", None: ""}.get(engine, "DeepSpeedEngine")
        wrapped = [rank]
        if rank["reference"] and engine not in (None, "ddp"):  # it gets no gradients: DDP has nothing to do there
            wrapped.append(rank["reference"])
        for model in wrapped:
            assert model["dtensors"] == (model["parameters"] if engine == "fsdp2" else 0), rank
            assert model["ds_shapes"] == (model["parameters"] if engine == "zero3" else 0), rank
            assert model["wrapper"].startswith(wrapper), rank


def logged(run: Path, key: str) -> list[float]:
    """One value per optimizer step."""
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[key] for entry in history if key in entry]
