"""The worker processes behind the verifier: limits that hold, from anywhere, and nothing left behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from suite import rewards
from suite.rewards import pool, worker
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # every one starts processes

SLOW = "(a+b+c+d+e+f)^{99}"  # simplify multiplies it out
FOREVER = ("same", "x^2+2x+1", SLOW)
FAIR = ("same", r"2\sqrt{2}", r"\sqrt{8}")


@pytest.fixture(autouse=True)
def _nothing_remembered():
    pool._known.clear()
    pool._late.clear()


def helpers_of(pid: int) -> set[int]:
    """The helper processes that `pid` has started, and their workers."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid or int(fields[1]) in found:
            found.add(int(stat.parent.name))
    return found


def alive(pids: set[int]) -> set[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "gone"

    return {pid for pid in pids if state(pid) not in ("gone", "Z")}


def gone_within(seconds: float, pids: set[int]) -> bool:
    until = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.1)
    return not alive(pids)


def seconds_of_workers() -> float:
    """CPU time of the workers that the helper has seen the end of: no busy machine makes more of it."""
    fields = Path(f"/proc/{pool._helper.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def start(body: str) -> subprocess.Popen:
    """`body` as a Python process of its own, which waits for a line where `body` says so."""
    code = "from suite.rewards import pool\nimport os, signal, sys, time, threading\n" + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_what_has_no_end_is_a_timeout_and_costs_nobody_else():
    assert pool.judge([FAIR, FOREVER, ("same", "x^2-1", "(x-1)(x+1)")]) == ["equal", "timeout", "equal"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_workers_have_a_limit_on_memory_and_no_way_out():
    pool.judge([FAIR])
    helper = pool._helper.process.pid
    workers = helpers_of(helper)
    assert workers and os.getpgid(helper) == helper  # Ctrl-C in a terminal is for the run alone
    for pid in workers:
        limits = Path(f"/proc/{pid}/limits").read_text()
        address_space = next(line for line in limits.splitlines() if line.startswith("Max address space"))
        assert int(address_space.split()[3]) < 4 << 30
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


def test_a_row_that_is_no_task_cannot_be_judged_and_is_counted():
    assert pool.judge([("task", "no_such_task", "{}", "7"), FAIR]) == ["unreadable", "equal"]
    logged: dict[str, float] = {}
    task = [{"name": "chain_sum", "entry": "no json"}, {"name": "no_such_task", "entry": "{}"}]
    accuracy = rewards.load("accuracy")
    assert accuracy(["7"] * 2, solution=["7"] * 2, task=task, log_metric=logged.__setitem__) == [None, None]
    assert logged["verify/unreadable_golds"] == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_time_is_a_knob():
    for seconds in (0.1, 1.2):  # the first round has 0.2 in any case
        pool.close()
        assert pool.judge([FOREVER], seconds=seconds) == ["timeout"]
        assert seconds - 0.05 < seconds_of_workers() < 2 * seconds + 0.5


def test_a_timeout_is_remembered_for_the_other_rewards_of_a_step_and_asked_again_with_more_time(monkeypatch):
    monkeypatch.setattr(pool, "LATE_SECONDS", 600)
    hard = ("same", r"\sqrt{2}", r"\frac{1}{\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}}+\sqrt{2}-\sqrt{2}")
    assert pool.judge([FOREVER, hard], seconds=0.002) == ["timeout", "timeout"]
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_ask", lambda *asked: pytest.fail(f"asked anew: {asked}"))
        assert pool.judge([FOREVER], seconds=0.001) == ["timeout"]
    assert pool.judge([hard], seconds=20) == ["different"]


def test_the_memory_never_forgets_what_is_being_asked(monkeypatch):
    monkeypatch.setattr(pool, "REMEMBERED", 3)
    old = [("same", f"x^{n}", f"x^{n}+1") for n in range(3)]
    assert pool.judge(old) == ["different"] * 3
    assert pool.judge([old[0], FAIR, ("same", "x^2", "x*x")]) == ["different", "equal", "equal"]


def test_a_helper_that_was_killed_is_replaced():
    pool.judge([FAIR])
    os.kill(pool._helper.process.pid, signal.SIGKILL)
    assert pool.judge([("same", r"\sqrt{3}", r"\frac{3}{\sqrt{3}}")]) == ["equal"]


def test_a_helper_that_cannot_work_says_why(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no such thing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool.close()
    with pytest.raises(ValueError, match="helper cannot do its work: ImportError: no such thing"):
        pool.judge([FAIR])
    monkeypatch.undo()
    pool.close()
    assert pool.judge([FAIR]) == ["equal"]


def test_a_worker_that_was_killed_costs_one_completion_at_most():
    pool.judge([FAIR])
    workers = helpers_of(pool._helper.process.pid)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert gone_within(60, workers)  # one that is told, and has not ended yet, still takes a job
    jobs = [("same", rf"\sqrt{{{n}}}", rf"\frac{{{n}}}{{\sqrt{{{n}}}}}") for n in (5, 6, 7, 10)]
    assert pool.judge(jobs).count("equal") >= 3
    assert pool.judge([("same", r"\sqrt{11}", r"\frac{11}{\sqrt{11}}")]) == ["equal"]


def test_an_answer_that_lies_there_counts_however_late_the_helper_is_to_look(monkeypatch):
    class Prompt(worker.Worker):
        """It has answered before the helper looks, and that was kept from looking for longer than a job may take."""

        def __init__(self, memory):
            self.socket, self.theirs = socket.socketpair()
            self.jobs, self.job, self.seconds = 0, None, 0.0

        def give(self, number, job, seconds):
            super().give(number, job, seconds)
            self.until = 0.0
            self.theirs.sendall(f"{self.token} equal 0.001\n".encode())

        def end(self):
            self.socket.close(), self.theirs.close()
            return "timeout"

    monkeypatch.setattr(worker, "Worker", Prompt)
    supervisor = worker.Supervisor(1, 0, os.getppid())
    supervisor.warm.add("same")
    assert supervisor.judge([FAIR, FAIR], 0.1) == ["equal", "equal"]
    supervisor.close()


def test_many_threads_get_their_own_answers():
    found: dict[int, list[str]] = {}

    def ask(n: int) -> None:
        found[n] = pool.judge(
            [("same", rf"\sqrt{{{n}}}", rf"\frac{{{n}}}{{\sqrt{{{n}}}}}"), ("same", rf"\sqrt{{{n}}}", "\\pi")]
        )

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: ["equal", "different"] for n in range(12, 20)}


def test_it_works_inside_asyncio_on_the_loop_and_beside_it():
    async def both() -> list:
        here = pool.judge([FAIR])
        beside = await asyncio.gather(
            *(asyncio.to_thread(pool.judge, [("same", f"x^{n}", f"x^{n}+1")]) for n in (2, 3))
        )
        return [here, *beside]

    assert asyncio.run(both()) == [["equal"], ["different"], ["different"]]


def test_a_forked_child_starts_a_helper_of_its_own():
    pool.judge([FAIR])
    child = os.fork()
    if child == 0:
        pool._known.clear()
        os._exit(0 if pool.judge([FAIR]) == ["equal"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    pool._known.clear()
    assert pool.judge([FAIR]) == ["equal"]


def test_timeouts_and_unreadable_golds_are_metrics_of_the_run():
    logged: dict[str, float] = {}
    said = [
        f"<answer>{SLOW}</answer>",
        "<answer>5</answer>",
        "<answer>5</answer>",
        r"\boxed{9^{9^{9^9}}}",
    ]
    values = rewards.load("accuracy", {"seconds": 0.05})(
        said, solution=["x^2+2x+1", None, "5", r"\sqrt{2}"], log_metric=logged.__setitem__
    )
    assert values == [0.0, None, 1.0, 0.0]
    assert logged == {
        "verify/timeouts": 0.25, "verify/crashes": 0.0, "verify/refused": 0.25, "verify/unreadable_golds": 0.25
    }  # fmt: skip


@pytest.mark.parametrize("task", ["countdown", "chain_sum"])
def test_a_task_is_scored_in_a_worker_and_what_it_evaluates_can_do_no_harm(task, tmp_path):
    import json

    import reasoning_gym

    entry = reasoning_gym.create_dataset(task, seed=0, size=1)[0]
    row = {"name": task, "entry": json.dumps(entry, default=str)}
    victim = tmp_path / "victim"
    victim.write_text("alive")
    said = [f"<answer>{entry['answer']}</answer>", f"<answer>__import__('os').remove('{victim}')</answer>", "nothing"]
    assert rewards.load("accuracy")(said, solution=["?"] * 3, task=[row] * 3) == [1.0, 0.0, 0.0]
    assert victim.exists()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(0)", 0),
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(30)", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.usefixtures("hears_signals")
def test_nothing_is_left_however_the_parent_ends(end, code, busy):
    work = f"threading.Thread(target=pool.judge, args=([{FOREVER!r}] ,60), daemon=True).start(); time.sleep(1)"
    process = start(
        f"pool.judge([{FAIR!r}])\n{work if busy else ''}\nprint('ready', flush=True)\nsys.stdin.readline()\n{end}"
    )
    assert process.stdout.readline() == "ready\n"
    left = helpers_of(process.pid)
    assert len(left) >= 2
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.wait(60) == code  # a signal that is not heard would end in peace, 30 seconds later
    assert gone_within(60, left), left


def test_every_rank_has_workers_of_its_own(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        "import torch.distributed as dist\nfrom suite.rewards import verify\ndist.init_process_group('gloo')\n"
        f"said = [r'\\sqrt{{8}}', '{SLOW}', r'\\sqrt{{2}}']\n"
        "v = verify.judge(said, [r'2\\sqrt{2}', 'x^2+2x+1', r'2\\sqrt{2}'], seconds=1)\n"
        "dist.barrier()\nprint(f'{[x.right for x in v]} {v[1].by}\\n', end='', flush=True)\n"
        "dist.destroy_process_group()\n"  # or gloo's threads may still run when the interpreter ends, which aborts it
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # In one write each, or the ranks write into one another's lines.
    assert done.stdout.count("[True, False, False] timeout") == 2, done.stdout
