"""The isolated side of the sandbox: a bare interpreter that forks one child for each test and says how each ended.

`sandbox` runs this file by path, so it imports the standard library and its neighbour `sandbox_walls` only, and no more
of it than it must: start-up is most of what a judgement costs. It has one thread and nothing open, which is what makes
forking safe here and not in a trainer.

On stdin comes a job, in marshal because importing json would cost a third of the start-up:
    {programs, tests, seconds, memory_bytes, parent, scratch, packages}, and a test is (statements or None, input).
On stdout goes a line "ready", then for each test a line "passed timed_out crashed", each 0 or 1, or, if the walls could
not be put up, "broken" and why, and no more. A test without statements passes with exit status 0, and what it printed
lies in `<scratch>/<number>.out` for the trainer to compare: the output that is expected never comes here, where the
program could find it in memory.
"""

import _signal as signal  # the C half of `signal`: the other half makes enums, for as long as Python takes to start
import marshal
import math
import os
import select
import site
import sys
import time
import types

OUTPUT_BYTES = 1 << 20
THREADS = 64
TESTS_IN_FULL = 4  # the tests of a program may together take as long as so many that run into their limit
_TICK = 0.05  # seconds between two looks at the clock, the parent and the number of threads


def main() -> None:
    with open(0, "rb", closefd=False) as stdin:  # sys.stdin stays untouched, for the programs
        job = marshal.loads(stdin.read())
    # At the end of the path and for this import only: other neighbours are called `code`, `format` and `numbers`.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import sandbox_walls as walls

    sys.path.pop()
    sys.path += job["packages"]
    site.setquit()  # exit() and quit(), which come with the site module that -S leaves out
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a trainer that ignores it would hand that down
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells every process of a job, and this is no verdict
    if sys.platform == "linux":
        _go_first()  # before the next line, which closes /proc/self to oneself
        walls.prctl(walls.PR_SET_DUMPABLE, 0)  # nobody of the same user looks into this process or its children
    os.write(1, b"ready\n")
    deadline = time.monotonic() + job["seconds"] * min(len(job["tests"]), TESTS_IN_FULL)
    for number, test in enumerate(job["tests"]):
        allowed = min(job["seconds"], deadline - time.monotonic())
        ending = _run(job, test, number, allowed, walls) if allowed > 0 else (False, True, False)
        os.write(1, b"%d %d %d\n" % ending)
    os.killpg(0, signal.SIGKILL)  # itself, and on a machine without seccomp whatever the programs have started


def _go_first() -> None:
    """Where the machine runs out of memory, let the kernel end this process and its children, and not the trainer."""
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:  # a container may keep it closed
        pass


def _run(
    job: dict, test: tuple[str | None, str], number: int, allowed: float, walls: types.ModuleType
) -> tuple[bool, bool, bool]:
    """One test in a child of its own, with a directory of its own -> (passed, timed out, crashed)."""
    statements, given = test
    home = f"{job['scratch']}/{number}"
    os.mkdir(home, 0o700)
    with open(f"{home}/stdin", "wb") as file:
        file.write(given.encode("utf-8", "surrogatepass"))
    stdin = os.open(f"{home}/stdin", os.O_RDONLY)
    os.unlink(f"{home}/stdin")
    (output, output_end), (verdict, verdict_end) = os.pipe(), os.pipe()
    token, helper = os.urandom(16), os.getpid()
    child = os.fork()
    if child == 0:
        _enter(home, stdin, output_end, verdict_end)
        if sys.platform == "linux":
            # Tied to the thread that forked, and this helper has one. (The helper itself, which is started by one of
            # many threads of a trainer, watches its parent instead: see _watch.)
            walls.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != helper:
                os._exit(1)
        try:
            walls.put_up(home, job["memory_bytes"], math.ceil(job["seconds"]))
        except Exception as error:
            os.write(3, repr(error).encode())
            os._exit(1)
        os.write(3, b".")
        _behave(job["programs"], statements, token)
    for descriptor in (stdin, output_end, verdict_end):
        os.close(descriptor)
    status, reason, said, word = _watch(child, output, verdict, allowed, job)
    for descriptor in (output, verdict):
        os.close(descriptor)
    if not word.startswith(b".") and reason != "time":  # the program has not run, and is not to blame
        os.write(1, b"broken " + (b" ".join(word.split()) or b"ended by status %d" % status) + b"\n")
        os.killpg(0, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    timed_out = reason == "time" or code == -signal.SIGXCPU
    if reason or code:
        return False, timed_out, code < 0 and not timed_out
    if statements is None:
        with open(f"{home}.out", "wb") as file:
            file.write(said)
    return statements is None or word == b"." + token, False, False


def _enter(home: str, stdin: int, output: int, verdict: int) -> None:
    """Streams, directory and environment of the child. The verdict becomes descriptor 3."""
    for old, new in ((stdin, 0), (output, 1), (os.open("/dev/null", os.O_WRONLY), 2), (verdict, 3)):
        os.dup2(old, new)
    os.closerange(4, 256)
    os.chdir(home)
    os.environ.update(HOME=home, TMPDIR=home)
    sys.argv = ["program.py"]


def _behave(programs: tuple[str, ...], statements: str | None, token: bytes) -> None:
    """Run as `__main__` what the model wrote. What it raises, SystemExit too, ends the child as it ends a script."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    run, write, leave = exec, os.write, os._exit  # a program may put its own in their place, which run no test
    tests = None if statements is None else compile(statements, "tests.py", "exec", dont_inherit=True)
    run(_first_that_is_python(programs), module.__dict__)
    if tests is None:
        sys.exit()  # with all that belongs to an exit: waiting for threads, flushing
    run(tests, module.__dict__)
    write(3, token)  # only here; leaving early, by whatever way, says nothing
    leave(0)


def _first_that_is_python(programs: tuple[str, ...]) -> types.CodeType:
    """Compiled here, behind the walls: a text can keep the compiler busy, or be too deep for it."""
    for program in programs[:-1]:
        try:
            return compile(program, "program.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):  # no Python, and half a character
            pass
    return compile(programs[-1], "program.py", "exec", dont_inherit=True)


def _watch(child: int, output: int, verdict: int, allowed: float, job: dict) -> tuple[int, str, bytes, bytes]:
    """-> (wait status, why it was killed or "", what it printed, what it said on the verdict pipe)."""
    ends = time.monotonic() + allowed
    read = {output: bytearray(), verdict: bytearray()}
    is_open = set(read)
    for descriptor in read:
        os.set_blocking(descriptor, False)
    while True:
        select.select(is_open, [], [], min(_TICK, max(0, ends - time.monotonic())) if is_open else 0.001)
        ended, status = os.waitpid(child, os.WNOHANG)  # before reading: what it wrote is then all there
        is_open -= {descriptor for descriptor in is_open if _drain(descriptor, read[descriptor])}
        reason = ""
        if len(read[output]) > OUTPUT_BYTES or len(read[verdict]) > OUTPUT_BYTES:
            reason = "output"
        elif not ended and time.monotonic() >= ends:
            reason = "time"
        elif not ended and _threads(child) > THREADS:
            reason = "threads"
        orphaned = os.getppid() != job["parent"]
        if not ended and (reason or orphaned):
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        if orphaned:  # killed without a chance to clean up; its pipes may live on in other children of it
            os.execvp("rm", ["rm", "-rf", "--", job["scratch"]])
        if ended or reason:
            return status, reason, bytes(read[output]), bytes(read[verdict])


def _drain(descriptor: int, read: bytearray) -> bool:
    """Read what is there, up to the limit -> whether the other end is closed."""
    try:
        while len(read) <= OUTPUT_BYTES:
            data = os.read(descriptor, 1 << 16)
            if not data:
                return True
            read += data
    except BlockingIOError:
        pass
    return False


def _threads(pid: int) -> int:
    """How many threads a process has; 0 where there is no /proc to count them in."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


if __name__ == "__main__":
    main()
