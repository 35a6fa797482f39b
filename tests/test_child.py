"""A child process of ours: it is found from anywhere, says how it ended, and leaves nothing behind."""

import os
import signal
import subprocess
import sys

import pytest

from suite import child
from tests.conftest import ROOT


@pytest.mark.parametrize(("code", "words"), [(0, "with code 0"), (3, "with code 3"), (-9, "by SIGKILL")])
def test_how_a_process_ended_is_told_by_its_code_or_its_signal(code, words):
    assert child.how_it_ended(code) == words


def test_a_child_whose_owner_is_gone_is_told_so(monkeypatch):
    monkeypatch.setenv(child.OWNER, str(os.getpid()))  # of whoever started this process, that is not the number
    assert not child.is_owned()


@pytest.mark.slow
def test_a_child_is_this_very_suite_wherever_it_runs_and_the_users_path_comes_behind(tmp_path):
    (tmp_path / "elsewhere/suite").mkdir(parents=True)
    (tmp_path / "elsewhere/suite/cli.py").write_text("print('another suite')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere"), "MARK": "seen"}
    process = child.start(
        "cli", ["list", "stages"], environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert os.getpgid(process.pid) == process.pid
    said, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "grpo" in said and "another suite" not in said, error


@pytest.mark.slow
def test_what_a_child_has_started_is_killed_with_it_and_killing_nothing_is_no_error():
    process = subprocess.Popen(["sh", "-c", "sleep 60 & echo; wait"], process_group=0, stdout=subprocess.PIPE)
    process.stdout.readline()
    child.kill(process)
    process.communicate(timeout=10)  # it is at its end when the sleeper, too, is gone
    assert process.returncode == -signal.SIGKILL
    child.kill(process)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with another")
def test_a_child_does_not_outlive_an_owner_that_is_killed():
    asked = "import time; from suite import child; print(child.is_owned(), flush=True); time.sleep(60)"
    owner = f"""
import os, subprocess, sys
from suite import child
subprocess.run([sys.executable, "-c", {asked!r}], env={{**os.environ, child.OWNER: str(os.getpid())}})
"""
    process = subprocess.Popen([sys.executable, "-c", owner], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"True\n"
    process.kill()
    process.communicate(timeout=10)  # which is at its end when the child, too, is gone
