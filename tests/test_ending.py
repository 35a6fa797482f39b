"""How a command ends that is told to: each signal once, twice, and from a terminal that is gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hears_signals")]

COMMAND = """
import fcntl, sys, termios, time
from pathlib import Path
from suite import ending

@ending.orderly_end()
def main(argv):
    try:
        print("begun", flush=True)
        time.sleep(600)
    finally:
        print("closing", flush=True)
        sys.stdin.readline()  # that whoever gives the second signal has given it; nothing, where nobody does
        Path("closed").touch()

if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.exit(ending.answer_for(main))
"""


def begun(*before: str, **how) -> subprocess.Popen:
    return subprocess.Popen(
        [*before, sys.executable, "-c", COMMAND],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **how},
    )


@pytest.mark.parametrize(
    ("first", "second", "code", "said"),
    [
        ("SIGTERM", "SIGHUP", 143, "suite: ended by SIGTERM."),  # systemd sends both
        ("SIGHUP", "SIGHUP", 129, "suite: ended by SIGHUP."),  # of the shell, and of the kernel
        ("SIGTERM", "SIGTERM", -15, None),
        ("SIGHUP", "SIGTERM", -15, None),
    ],
)
def test_what_was_begun_is_closed_and_a_second_sigterm_alone_ends_at_once(first, second, code, said):
    with begun(stdin=subprocess.PIPE) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.Signals[first])
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.Signals[second])
        _, error = process.communicate("given\n", timeout=60)
    assert (process.returncode, error.strip() or None, Path("closed").exists()) == (code, said, said is not None)


def test_a_command_whose_terminal_is_closed_closes_what_was_begun_though_nobody_hears_it():
    master, slave = os.openpty()
    process = begun(stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert os.read(master, 100).startswith(b"begun")
    os.close(master)
    assert process.wait(60) == 128 + signal.SIGHUP and Path("closed").exists()


def test_behind_nohup_a_closed_terminal_says_nothing():
    with begun("nohup") as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and error.splitlines()[-1] == "suite: ended by SIGTERM."
