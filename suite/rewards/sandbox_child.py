"""The isolated side of the sandbox: a bare interpreter that forks for each test and says how each ended.

`sandbox` runs this file by path, so it imports the standard library and its neighbors `sandbox_*` only, and no more of
it than it must: start-up is most of what a judgment costs. It has one thread and nothing open, which is what makes
forking safe here and not in a trainer.

On stdin, a file, comes a job, in marshal because importing json would cost a third of the start-up:
    {programs, tests, seconds, memory_bytes, parent, scratch, packages}, and a test is (where its statements lie in the
    same file, or None; input).
On stdout goes a line "ready", then for each test a line "passed timed_out crashed", each 0 or 1, or, if the walls could
not be put up, "broken" and why, and no more.

What is expected is never where a program could find it. A test without statements passes with exit status 0, and what
it printed lies in `<scratch>/<number>.out` for the trainer to compare. For one with statements there are two children:
`sandbox_program` in the one answers what `sandbox_judge` in the other asks, and only the other reads the statements.
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
SIZE_BYTES = 8  # of the length of the job, which comes before it
TESTS_IN_FULL = 4  # the tests of a program may together take as long as so many that run into their limit
_TICK = 0.05  # seconds between two looks at the clock, the parent and the number of threads


def main() -> None:
    # sys.stdin stays untouched, for the programs. No byte more than the job is read: behind it lie the tests.
    job = marshal.loads(os.read(0, int.from_bytes(os.read(0, SIZE_BYTES), "little")))
    # At the end of the path and for this import only: other neighbors are called `code`, `format` and `numbers`.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import sandbox_judge as judge
    import sandbox_program as program
    import sandbox_walls as walls

    sys.path.pop()
    rooms = types.SimpleNamespace(judge=judge, program=program, walls=walls)
    while os.open(os.devnull, os.O_RDONLY) < 9:  # so that no pipe has a number that a child needs for another
        pass
    sys.path += job["packages"]
    site.setquit()  # exit() and quit(), which come with the site module that -S leaves out
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a trainer that ignores it would hand that down
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells every process of a job, and this is no verdict
    if sys.platform == "linux":
        _go_first()  # before the next line, which closes /proc/self to oneself
        walls.prctl(walls.PR_SET_DUMPABLE, 0)  # nobody of the same user looks into this process or its children
    compile("", "", "exec")  # the first time takes longer than all else in a child, and it has two
    os.write(1, b"ready\n")
    deadline = time.monotonic() + job["seconds"] * min(len(job["tests"]), TESTS_IN_FULL)
    for number, test in enumerate(job["tests"]):
        allowed = min(job["seconds"], deadline - time.monotonic())
        ending = _run(job, test, number, allowed, rooms) if allowed > 0 else (False, True, False)
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
    job: dict, test: tuple[tuple[int, int] | None, str], number: int, allowed: float, rooms: types.SimpleNamespace
) -> tuple[bool, bool, bool]:
    """One test in children of its own, with a directory of its own -> (passed, timed out, crashed)."""
    place, given = test
    home = f"{job['scratch']}/{number}"
    os.mkdir(home, 0o700)
    with open(f"{home}/stdin", "wb") as file:
        file.write(given.encode("utf-8", "surrogatepass"))
    stdin = os.open(f"{home}/stdin", os.O_RDONLY)
    os.unlink(f"{home}/stdin")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    output, word, verdict, there, back = (os.pipe() for _ in range(5))
    streams = (stdin, output[1], nowhere, word[1])
    judge = None
    if place is None:
        program = _fork(home, streams, job, rooms, lambda: _be_script(job["programs"]))
    else:
        # The program first: no test has been read until then, nor is by this process ever.
        program = _fork(
            home, (*streams, there[0], back[1]), job, rooms, lambda: _be_asked(job["programs"], rooms.program)
        )
        streams = (0, output[1], nowhere, verdict[1], back[0], there[1])
        judge = _fork(home, streams, job, rooms, lambda: rooms.judge.run(_read(*place)))
    for descriptor in (stdin, nowhere, output[1], word[1], verdict[1], *there, *back):
        os.close(descriptor)
    read = {output[0]: bytearray(), word[0]: bytearray(), verdict[0]: bytearray()}
    own = verdict[0] if judge else word[0]
    status, reason = _watch(judge or program, own, program, read, allowed, job)
    if judge is not None:
        status = _end(program, patiently=read[verdict[0]] == b".gone") or status
    for descriptor in read:
        os.close(descriptor)
    said, walls_word, verdict_word = map(bytes, read.values())
    if not walls_word.startswith(b".") and reason != "time":  # the program has not run, and is not to blame
        os.write(1, b"broken " + (b" ".join(walls_word.split()) or b"ended by status %d" % status) + b"\n")
        os.killpg(0, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    timed_out = reason == "time" or code == -signal.SIGXCPU
    if judge is None and not reason and not code:
        with open(f"{home}.out", "wb") as file:
            file.write(said)
        return True, False, False
    if judge is not None and verdict_word == b".passed" and not reason:
        return True, False, False
    return False, timed_out, code < 0 and not timed_out


def _fork(
    home: str, streams: tuple[int, ...], job: dict, rooms: types.SimpleNamespace, behave: types.FunctionType
) -> int:
    """A child behind its walls that does what `behave` does, with `streams` as its descriptors from 0 on -> its pid.

    Descriptor 3 is for its word: a dot once the walls stand, or why they do not.
    """
    helper = os.getpid()
    if child := os.fork():
        return child
    for new, old in enumerate(streams):
        os.dup2(old, new)
    os.closerange(len(streams), 256)
    os.chdir(home)
    os.environ.update(HOME=home, TMPDIR=home)
    sys.argv = ["program.py"]
    if sys.platform == "linux":
        # Tied to the thread that forked, and this helper has one. (The helper itself, which is started by one of
        # many threads of a trainer, watches its parent instead: see _watch.)
        rooms.walls.prctl(rooms.walls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != helper:
            os._exit(1)
    try:
        rooms.walls.put_up(home, job["memory_bytes"], math.ceil(job["seconds"]))
    except Exception as error:
        os.write(3, repr(error).encode())
        os._exit(1)
    os.write(3, b".")
    behave()
    sys.exit()  # with all that belongs to an exit: waiting for threads, flushing


def _read(place: int, size: int) -> bytes:
    """The tests, out of what the trainer left on stdin, which then is empty."""
    tests = os.pread(0, size, os.lseek(0, 0, os.SEEK_CUR) + place)  # it stands behind the job, since that was read
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return tests


def _be_script(programs: tuple[str, ...]) -> None:
    """Run as `__main__` what the model wrote. What it raises, SystemExit too, ends the child as it ends a script."""
    exec(_first_that_is_python(programs), _main())


def _be_asked(programs: tuple[str, ...], room: types.ModuleType) -> None:
    room.run(_first_that_is_python(programs), _main())


def _main() -> dict:
    sys.modules["__main__"] = types.ModuleType("__main__")
    return sys.modules["__main__"].__dict__


def _first_that_is_python(programs: tuple[str, ...]) -> types.CodeType:
    """Compiled here, behind the walls: a text can keep the compiler busy, or be too deep for it."""
    for program in programs[:-1]:
        try:
            return compile(program, "program.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):  # no Python, and half a character
            pass
    return compile(programs[-1], "program.py", "exec", dont_inherit=True)


def _watch(last: int, own: int, program: int, read: dict[int, bytearray], allowed: float, job: dict) -> tuple[int, str]:
    """Read from the children until the last has ended, which shows first in the descriptor that is its own ->
    (its wait status, why it was killed or "")."""
    ends = time.monotonic() + allowed
    is_open = set(read)
    for descriptor in read:
        os.set_blocking(descriptor, False)
    while True:
        select.select(is_open, [], [], min(_TICK, max(0, ends - time.monotonic())) if own in is_open else 0.001)
        ended, status = os.waitpid(last, os.WNOHANG)  # before reading: what it wrote is then all there
        is_open -= {descriptor for descriptor in is_open if _drain(descriptor, read[descriptor])}
        reason = ""
        if any(len(said) > OUTPUT_BYTES for said in read.values()):
            reason = "output"
        elif not ended and time.monotonic() >= ends:
            reason = "time"
        elif not ended and _threads(program) > THREADS:
            reason = "threads"
        orphaned = os.getppid() != job["parent"]
        if not ended and (reason or orphaned):
            os.kill(last, signal.SIGKILL)
            _, status = os.waitpid(last, 0)
        if orphaned:  # killed without a chance to clean up; its pipes may live on in other children of it
            os.execvp("rm", ["rm", "-rf", "--", job["scratch"]])
        if ended or reason:
            return status, reason


def _end(program: int, patiently: bool) -> int:
    """End a program that answered tests -> its wait status, 0 where it did not end by itself.

    One that has closed its end of the wire is about to, and by what is worth knowing.
    """
    ends = time.monotonic() + patiently
    while True:
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() >= ends:
            os.kill(program, signal.SIGKILL)
            os.waitpid(program, 0)
            return 0
        time.sleep(0.001)


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
