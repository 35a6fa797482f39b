"""Share of a row's `tests` that the program in a completion passes, by asserts or by stdin and stdout, in a sandbox.

Read `suite/rewards/sandbox.py` before training with this: it says what the sandbox does not protect against.
"""

import ast
import functools
import json
import logging
import os
import re
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from suite.reasoning import last_tagged, spoken, texts
from suite.rewards.sandbox import WALLS, Outcome, Test, protections, run

LANGUAGES = ("", "python", "python3", "py")

_log = logging.getLogger(__name__)
_OPENING = re.compile(r"\s*([\w+#.-]*)\s*")
_FUNCTION = re.compile(r"^(?:async +)?def +(\w+)", re.MULTILINE)


class Judged(NamedTuple):
    """A program, or None; the tests of its row, or None where they cannot be read; and how it went, where it ran."""

    program: str | None
    tests: tuple[Test, ...] | None
    outcome: Outcome | OSError | None

    @property
    def share(self) -> float | None:
        """Of the tests, that passed; None without a verdict."""
        if self.tests is None or isinstance(self.outcome, OSError):
            return None
        return self.outcome.passed / self.outcome.total if self.outcome else 0.0

    @property
    def by(self) -> str:
        """What decided, in the verifier's words where it has one for it."""
        if self.tests is None:
            return "unreadable gold"
        if isinstance(self.outcome, OSError):
            return "refused"
        if self.outcome is None:
            return "no answer"
        return "timeout" if self.outcome.timed_out else "crash" if self.outcome.crashed else "tests"


def code_reward(
    completions,
    tests,
    prompts=None,
    starter_code=None,
    *,
    seconds: float = 5.0,
    memory_mb: int = 512,
    think_opened: bool = False,
    **columns,
) -> list[float | None]:
    """Passed tests / tests, in [0, 1]: 0 without a program, None for a row whose `tests` cannot be read.

    The program is the last fenced block of Python in the last <answer>, or that whole answer; without an <answer>, the
    last fenced block of what is said outside the thinking. Where the row has a `starter_code`, as HumanEval has, the
    program runs behind it and may go on in the middle of its function; of several blocks the last is taken that has
    that function, and with neither block nor <answer> all that is said.

    `tests` of a row: a list, or JSON text of one, of statements ("assert f(2) == 3", f being the program's; they run in
    a process of their own) and of {"input", "output"} (the program runs as a script; its stdout must be the output, but
    for spaces at the ends of lines and blank lines at the end, and its exit status 0). A text that is no JSON is one
    test: a whole test program, as HumanEval has it; functions that come whole with the `starter_code` are meant as they
    stand there. Every test starts the program anew.

    seconds: for each test, and four times that for all tests of one completion. memory_mb: address space, MiB.
    Logs code/timeouts, code/unreadable_tests and code/crashes, as shares of the batch, through TRL's `log_metric`.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"code.seconds: {seconds} is no time a test could take. Give a number above 0, such as 5.")
    if memory_mb < 64:
        raise ValueError(f"code.memory_mb: {memory_mb} is less than Python needs to start. Give 64 or more.")
    said = texts(completions, prompts, think_opened)
    judged = judge(said, tests, starter_code, seconds=seconds, memory_mb=memory_mb)
    if log_metric := columns.get("log_metric"):
        ran = [verdict.outcome for verdict in judged]
        for name, count in {
            "code/timeouts": sum(isinstance(o, Outcome) and o.timed_out for o in ran),
            "code/unreadable_tests": sum(verdict.tests is None for verdict in judged),
            "code/crashes": sum(isinstance(o, OSError) or (o is not None and o.crashed) for o in ran),
        }.items():
            log_metric(name, count / max(1, len(judged)))
    return [verdict.share for verdict in judged]


def judge(
    said: Sequence[str],
    tests: Sequence,
    starters: Sequence | None = None,
    *,
    seconds: float = 5.0,
    memory_mb: int = 512,
) -> list[Judged]:
    """Run the program of each text against its row's tests; the same program and tests are run once."""
    _warn_of_missing_walls()
    starters = [starter or "" for starter in starters or [""] * len(said)]
    programs = [program_of(text, starter) for text, starter in zip(said, starters, strict=True)]
    cases = [read_tests(held) for held in tests]
    jobs = [
        (ways_to_run(program, starter), _with_what_is_given(read, starter))
        if program is not None and read is not None
        else None
        for program, starter, read in zip(programs, starters, cases, strict=True)
    ]
    outcomes = _run_all(set(jobs) - {None}, seconds, memory_mb << 20)
    return [Judged(*judged, outcomes.get(job)) for *judged, job in zip(programs, cases, jobs, strict=True)]


def program_of(text: str, starter: str = "") -> str | None:
    """The program a completion gives, or None; never from inside its thinking."""
    said = spoken(text)
    answer = last_tagged(said)
    found = blocks(said if answer is None else answer)
    if begun := _FUNCTION.findall(starter):
        found = [block for block in found if re.search(rf"\bdef +{begun[-1]}\b", block)] or found
    if found:
        return found[-1]
    return (said if answer is None and starter else answer) or None


def ways_to_run(program: str, starter: str) -> tuple[str, ...]:
    """Texts of which the first that is Python is the program meant: behind the code that its prompt begins, as the
    whole function or as the rest of it, the indentation of which a model may have dropped; else alone."""
    if not starter:
        return (program,)
    indent = re.match(r"\s*", starter.rstrip().rpartition("\n")[2])[0] or "    "
    rest = program.strip("\n")
    ways = (rest, indent + rest, textwrap.indent(rest, indent))
    return (*(f"{starter.rstrip()}\n{way}" for way in ways), program)


def _with_what_is_given(tests: tuple[Test, ...], starter: str) -> tuple[Test, ...]:
    """Statements that call a function of the prompt's own mean that one, and not what a program makes of it."""
    given = _given(starter)
    return tuple(given + test if isinstance(test, str) else test for test in tests) if given else tests


@functools.lru_cache(maxsize=4096)
def _given(starter: str) -> str:
    """The program that a prompt begins, without what is left to write, where it has whole functions besides; "" where
    it has classes, of which the objects belong to the program."""
    try:
        body = ast.parse(starter).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    functions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    to_write = [node for node in functions if all(isinstance(part, ast.Expr | ast.Pass) for part in node.body)]
    to_write += functions[-1:]
    if any(isinstance(node, ast.ClassDef) for node in body) or all(node in to_write for node in functions):
        return ""
    return "".join(ast.unparse(node) + "\n" for node in body if node not in to_write)


def blocks(text: str) -> list[str]:
    """The content of each complete fenced block of Python, or of no stated language."""
    found, block, language, indent = [], None, "", ""
    for line in text.split("\n"):
        if block is None:
            before, fence, after = line.rpartition("```")
            if fence and before.count("```") % 2 == 0 and (opening := _OPENING.fullmatch(after)):
                block, language, indent = [], opening[1].lower(), before
        elif line.strip() == "```":
            if language in LANGUAGES:
                # A fence in a list is indented with all it holds.
                inside = "\n".join(block)
                found.append(textwrap.dedent(inside) if indent and indent.isspace() else inside)
            block = None
        else:
            block.append(line)
    return found


def read_tests(tests) -> tuple[Test, ...] | None:
    """The tests of a row, or None where they cannot be read: no list, an empty one, or one bad entry."""
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError):
            tests = [tests]
    if not isinstance(tests, list | tuple) or not tests:
        return None
    read = tuple(_read_test(test) for test in tests)
    return None if None in read else read


def _read_test(test) -> Test | None:
    if isinstance(test, str):
        return test if _does_something(test) else None
    if isinstance(test, dict):
        given, wanted = test.get("input"), test.get("output")
        if isinstance(given, str) and isinstance(wanted, str):
            return given, wanted
    return None


@functools.lru_cache(maxsize=4096)
def _does_something(statements: str) -> bool:
    """Whether a test is Python, and more than a value: the text of a Python list, once run, would pass any program."""
    try:
        body = ast.parse(statements).body
        return not all(isinstance(node, ast.Expr) and _is_value(node.value) for node in body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_value(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _run_all(jobs: set, seconds: float, memory_bytes: int) -> dict[tuple, Outcome | OSError]:
    """(ways to run a program, tests) -> how it went. Threads here only wait for processes; ranks on one machine share
    its cores."""

    def outcome(job: tuple) -> Outcome | OSError:
        try:
            return run(*job, seconds, memory_bytes)
        except OSError as error:  # the machine's fault, and not the completion's: no verdict
            _log.warning("A program could not be judged: %s", error)
            return error

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    ordered = list(jobs)
    with ThreadPoolExecutor(workers) as threads:
        return dict(zip(ordered, threads.map(outcome, ordered), strict=True))


@functools.cache
def _warn_of_missing_walls() -> None:
    try:
        missing = [f"{wall} ({what})" for wall, what in WALLS.items() if not protections()[wall]]
    except OSError:  # then no program can be run at all, and each says so
        return
    if missing:
        _log.warning("The sandbox for programs is weaker on this machine, it lacks: %s", "; ".join(missing))
