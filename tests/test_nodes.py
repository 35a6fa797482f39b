"""The example of configs/slurm as it lies there: two machines, which here are one, learn what one process learns."""

import json
import os
import random
import re
import socket
import sys
from pathlib import Path

import pytest

from tests.conftest import ON_CPU, ROOT, run_suite, write_yaml
from tests.engines import CONFIGS, logged, run

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "configs" / "slurm" / "nodes.sbatch"
# What SLURM has and this machine has not. srun starts the command once a node, and each node knows its own number.
SLURM = {
    "scontrol": '[ "$*" = "show hostnames two-nodes" ] && printf "127.0.0.1\\n127.0.0.2\\n"',
    "srun": """while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & done
status=0; for job in $(jobs -p); do wait "$job" || status=$?; done; exit $status""",
    "suite": f'exec {sys.executable} -m suite.cli "$@"',
}


@pytest.fixture
def cluster(tmp_path) -> dict[str, str]:
    """The environment of a job on two nodes with one device each, with SLURM's programs on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_port() - 20000),
        "SLURM_JOB_NODELIST": "two-nodes",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }


def free_port() -> int:
    """One of those that the script makes of a job's number, and hardly the one that another run of the tests takes."""
    for port in random.sample(range(20000, 30000), 10000):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("every port from 20000 to 29999 is taken")


def test_two_machines_learn_what_one_process_learns(cluster, miniqwen_dir, arithmetic_dir, tmp_path):
    config = write_yaml(
        tmp_path / "sft.yaml",
        model_name_or_path=str(miniqwen_dir),
        dataset_name=str(arithmetic_dir),
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
    )
    words = ["sft", "--config", config, *ON_CPU]
    alone = run_suite(*words, "--output_dir", "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr[-2000:]
    ddp = ["--launch", CONFIGS / "ddp.yaml", "--mixed_precision", "no"]
    halved = ["--per_device_train_batch_size", 4, "--output_dir", "nodes"]
    printed = run(["bash", SCRIPT, *words, *halved, *ddp], cwd=tmp_path, **cluster)

    port = 20000 + int(cluster["SLURM_JOB_ID"])
    words = r"--num_machines 2 --num_processes 2 --machine_rank (\d) --main_process_ip 127\.0\.0\.1 --main_process_port"
    told = re.findall(f"{words} {port} ", printed)  # two launchers, which may have written into one line
    assert sorted(told) == ["0", "1"], printed[-2000:]
    assert json.loads(Path("nodes/run.json").read_text(encoding="utf-8"))["processes"] == 2
    for key in ("loss", "grad_norm"):  # of both machines together: half the rows are not enough to have them
        assert logged(Path("nodes"), key) == pytest.approx(logged(Path("alone"), key), rel=1e-3)
    assert len(set(logged(Path("alone"), "loss"))) == 4
