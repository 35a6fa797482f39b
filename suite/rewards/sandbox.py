"""Run a program that a model wrote against its tests, in processes that can do little harm; the trainer's side of it.

How: each run starts a fresh interpreter (`sandbox_child`) with an empty environment, its own session and a scratch
directory; that forks for each test, behind walls (`sandbox_walls`) that are put up before the program is read. Asserts
run in a process of their own (`sandbox_judge`), where no line of the program runs, and get from the program's
(`sandbox_program`) by a pipe (`sandbox_wire`) nothing but data: it has neither their text nor their verdict, and what
it makes of Python's builtins and modules stays with it. What a script prints is compared here.

Asserts may do with a program what they could in one process, but for this: they hand it plain data, functions and
iterators, and no object of a class of their own; `in` asks an object for its items; and they neither set the program's
globals nor give it input.

What this does NOT protect against:
- **Reading.** The program reads every file that the user may read: data with gold answers, keys, caches. It has no
  network to send them over, but it can put them into what it prints.
- **Tests that leave room.** The program answers for itself, and what it says is believed: `isclose` without an import
  is its own, `undo(do(x)) == x` holds for two functions that do nothing, `sorted(f(x)) == sorted(x)` for one that
  empties `x`, `f(x) != 3` for any object, and an object may say one thing now and another later. A value that a test
  states, with `==`, `in`, `<` or `math.isclose`, is compared where the program has no hand.
- **Load.** Limits are per test: files of 16 MiB each but as many as fit into the time, memory of the page cache, 64
  threads, every core it gets. It can slow the machine down, and fill the disk until its directory is deleted. Times
  are wall clock: on a crowded machine a slow right program can fail.
- **Holes in the kernel**, and side channels such as timing. The wall is system calls, not a virtual machine.
- **Machines without the walls.** macOS has neither seccomp nor Landlock nor the limit on memory; Linux has seccomp on
  x86_64 and aarch64, and Landlock as meant here since 6.2, unless a container forbids them. What is missing is simply
  not there: `protections()` tells. Without seccomp a program has the network, may signal the trainer, and may start
  processes that outlive it; without Landlock it may overwrite and delete whatever the user may.
For programs by somebody who means harm, put the whole training into a virtual machine.
"""

import ast
import builtins
import functools
import itertools
import logging
import marshal
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

from suite.rewards.sandbox_child import SIZE_BYTES, TESTS_IN_FULL

WALLS = {
    "memory": "no limit on memory",
    "seccomp": "network, new processes and signals to others are open to it",
    "landlock": "it may write and delete outside its scratch directory",
}
ALIASES = {"np": "numpy", "pd": "pandas"}  # what modules are called that are no part of Python
GRACE = 10.0  # seconds for starting, forking and reporting on a crowded machine, beyond what the tests may take

# A test: statements about what the program defines, or (stdin, expected stdout) of the program as a script.
Test = str | tuple[str, str]

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """`timed_out` and `crashed` (ended by a signal, or for printing or starting too much): whether any test did."""

    passed: int
    total: int
    timed_out: bool
    crashed: bool


@functools.cache
def protections() -> dict[str, bool]:
    """Wall -> whether this machine has it, found by putting them all up once in a process of its own."""
    home = tempfile.gettempdir()
    told = subprocess.run(
        _command("sandbox_walls.py"), cwd=home, env=_environment(home), capture_output=True, text=True
    )
    return {wall: wall in told.stdout.split() for wall in WALLS}


def run(programs: tuple[str, ...], tests: tuple[Test, ...], seconds: float, memory_bytes: int) -> Outcome:
    """How many of the tests the program passes: the first of `programs` that is Python. `seconds` is for each test,
    and four times that for all of them.

    Raises `OSError` where the machine cannot run it at all, whatever the program: no verdict.
    """
    scratch = tempfile.mkdtemp(prefix="sandbox-")
    job = {
        "programs": programs,
        "seconds": seconds,
        "memory_bytes": memory_bytes,
        "parent": os.getpid(),
        "scratch": scratch,
        "packages": [path for path in sys.path if path.endswith("-packages")],  # numpy, where it is installed
    }
    try:
        patience = seconds * min(len(tests), TESTS_IN_FULL) + GRACE
        told, error, late = _talk(_handed(job, tests), scratch, patience)
        ready, *endings = told.decode(errors="replace").splitlines() or [""]
        if ready != "ready" or any(ending.startswith("broken") for ending in endings):
            why = " ".join(endings) + error.decode(errors="replace").strip()[-500:]
            raise OSError(f"The sandbox did not start: {why or 'no word of why'}")
        marks = [[mark == "1" for mark in ending.split()] for ending in endings]
        passed = sum(
            mark[0] and _is_met(test, Path(scratch, f"{number}.out"))
            for number, (mark, test) in enumerate(zip(marks, tests, strict=False))  # fewer marks: somebody killed it
        )
    finally:
        delete(scratch)
    lost = len(marks) < len(tests) and not late
    return Outcome(passed, len(tests), late or any(mark[1] for mark in marks), lost or any(mark[2] for mark in marks))


def delete(folder: str) -> None:
    """Remove a directory, however deep a program nested it and whatever it forbade; a failure is a line in the log.

    It goes down and up by descriptors. `shutil.rmtree` goes by recursion and by paths, and both have an end.
    """
    here = None
    try:
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        to_do = [_clear(here)]  # for each level down to here, the directories that are still there
        while len(to_do) > 1 or to_do[0]:
            if to_do[-1]:
                name = to_do[-1][-1]
                os.chmod(name, 0o700, dir_fd=here)
                here = _step(name, here)
                to_do.append(_clear(here))
            else:
                here = _step("..", here)
                to_do.pop()
                os.rmdir(to_do[-1].pop(), dir_fd=here)
        os.rmdir(folder)
    except OSError as error:
        _log.warning("The scratch directory %s could not be deleted: %s", folder, error)
    finally:
        if here is not None:
            os.close(here)


def _step(name: str, here: int) -> int:
    there = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
    os.close(here)
    return there


def _clear(directory: int) -> list[str]:
    """The names of the directories in it, after everything else was removed."""
    with os.scandir(directory) as entries:
        kinds = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in kinds:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [name for name, is_directory in kinds if is_directory]


def _is_met(test: Test, printed: Path) -> bool:
    """Whether a test that ended well also printed what it should; spaces at line ends and blank lines at the end aside.

    Statements have been judged where they ran."""
    return isinstance(test, str) or _stripped(printed.read_bytes()) == _stripped(test[1].encode("utf-8", "replace"))


def _stripped(output: bytes) -> list[bytes]:
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


def _command(script: str) -> list[str]:
    """-P: the directory of the script is not on the path. -S: no site module, half of the start-up. No user's
    packages and no PYTHON* variables either: there is no such variable in the environment but ours."""
    return [sys.executable, "-P", "-S", "-X", "utf8", str(Path(__file__).with_name(script))]


def _environment(scratch: str) -> dict[str, str]:
    """No token, key or proxy of the trainer's. One thread for libraries that else take one, and memory, per core."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8"}
    environment |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {"MALLOC_ARENA_MAX": "2", "PYTHONHASHSEED": "0"}  # the same program, the same verdict
    if "LD_LIBRARY_PATH" in os.environ:  # some builds of Python do not start without
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment


def _handed(job: dict, tests: tuple[Test, ...]) -> IO[bytes]:
    """A nameless file with the job behind its length, and behind it the tests, which only what runs them reads."""
    texts = [marshal.dumps((test, *_from_outside(test))) if isinstance(test, str) else b"" for test in tests]
    places = itertools.accumulate(map(len, texts), initial=0)
    job["tests"] = [
        ((place, len(text)), "") if isinstance(test, str) else (None, test[0])
        for place, text, test in zip(places, texts, tests, strict=False)
    ]
    packed = marshal.dumps(job)
    file = tempfile.TemporaryFile()
    file.write(len(packed).to_bytes(SIZE_BYTES, "little") + packed + b"".join(texts))
    file.seek(0)
    return file


@functools.lru_cache(maxsize=4096)
def _from_outside(statements: str) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """(name, module) of what these tests look into and do not define, which they import themselves; and the builtins
    that they mean from the program: those they name, where they name nothing else that could be the program's."""
    nodes = list(ast.walk(ast.parse(statements)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    own |= {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    looked_into = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and node.value in names} - own
    modules = {name: name for name in looked_into & sys.stdlib_module_names}
    modules |= {name: module for name, module in ALIASES.items() if name in looked_into}
    others = {node.id for node in names} - own - set(modules)
    theirs = others if others <= set(dir(builtins)) else set()
    return tuple(sorted(modules.items())), tuple(sorted(theirs))


def _talk(job: IO[bytes], scratch: str, patience: float) -> tuple[bytes, bytes, bool]:
    """Start the helper, hand it the job -> (its stdout, its stderr, whether it had to be killed).

    Popen without preexec_fn starts it by vfork and exec: safe beside threads and CUDA, and quick beside much memory.
    """
    with job:
        helper = subprocess.Popen(
            _command("sandbox_child.py"),
            stdin=job,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env=_environment(scratch),
            start_new_session=True,
        )
    try:
        return *helper.communicate(timeout=patience), False
    except subprocess.TimeoutExpired:
        os.killpg(helper.pid, signal.SIGKILL)
        return *helper.communicate(), True
    finally:
        if helper.poll() is None:  # an interrupt
            os.killpg(helper.pid, signal.SIGKILL)
            helper.wait()
