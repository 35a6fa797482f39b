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
from concurrent.futures import ThreadPoolExecutor

from suite.reasoning import last_tagged, spoken, texts
from suite.rewards.sandbox import WALLS, Outcome, Test, protections, run

LANGUAGES = ("", "python", "python3", "py")

_log = logging.getLogger(__name__)
_OPENING = re.compile(r"\s*([\w+#.-]*)\s*")


def code_reward(
    completions,
    tests,
    prompts=None,
    *,
    seconds: float = 5.0,
    memory_mb: int = 512,
    think_opened: bool = False,
    **columns,
) -> list[float | None]:
    """Passed tests / tests, in [0, 1]: 0 without a program, None for a row whose `tests` cannot be read.

    The program is the last fenced block of Python in the last <answer>, or that whole answer; without an <answer>, the
    last fenced block of what is said outside the thinking.

    `tests` of a row: a list, or JSON text of one, of statements ("assert f(2) == 3", run behind the program in its own
    namespace) and of {"input", "output"} (the program runs as a script; its stdout must be the output, but for spaces
    at the ends of lines and blank lines at the end, and its exit status 0). A text that is no JSON is one test: a whole
    test program, as HumanEval has it. Every test starts the program anew.

    seconds: for each test, and four times that for all tests of one completion. memory_mb: address space, MiB.
    Logs code/timeouts, code/unreadable_tests and code/crashes, as shares of the batch, through TRL's `log_metric`.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"code.seconds: {seconds} is no time a test could take. Give a number above 0, such as 5.")
    if memory_mb < 64:
        raise ValueError(f"code.memory_mb: {memory_mb} is less than Python needs to start. Give 64 or more.")
    _warn_of_missing_walls()
    rows = list(zip(map(program_of, texts(completions, prompts, think_opened)), map(read_tests, tests), strict=True))
    outcomes = _run_all({row for row in rows if None not in row}, seconds, memory_mb << 20)
    if log_metric := columns.get("log_metric"):
        ran = [outcomes.get(row) for row in rows]
        for name, count in {
            "code/timeouts": sum(isinstance(o, Outcome) and o.timed_out for o in ran),
            "code/unreadable_tests": sum(cases is None for _, cases in rows),
            "code/crashes": sum(isinstance(o, OSError) or (o is not None and o.crashed) for o in ran),
        }.items():
            log_metric(name, count / max(1, len(rows)))
    return [_score(program, cases, outcomes.get((program, cases))) for program, cases in rows]


def program_of(text: str) -> str | None:
    """The program a completion gives, or None; never from inside its thinking."""
    said = spoken(text)
    answer = last_tagged(said)
    block = last_block(said if answer is None else answer)
    return block if block is not None else answer or None


def last_block(text: str) -> str | None:
    """The content of the last complete fenced block of Python, or of no stated language."""
    last, block, language, indent = None, None, "", ""
    for line in text.split("\n"):
        if block is None:
            before, fence, after = line.rpartition("```")
            if fence and before.count("```") % 2 == 0 and (opening := _OPENING.fullmatch(after)):
                block, language, indent = [], opening[1].lower(), before
        elif line.strip() == "```":
            if language in LANGUAGES:
                last = "\n".join(block)
                if indent and indent.isspace():  # a fence in a list is indented with all it holds
                    last = textwrap.dedent(last)
            block = None
        else:
            block.append(line)
    return last


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
    """(program, tests) -> how it went. Threads here only wait for processes; ranks on one machine share its cores."""

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


def _score(program: str | None, cases: tuple | None, outcome: Outcome | OSError | None) -> float | None:
    if cases is None or isinstance(outcome, OSError):
        return None
    return outcome.passed / outcome.total if outcome else 0.0


@functools.cache
def _warn_of_missing_walls() -> None:
    try:
        missing = [f"{wall} ({what})" for wall, what in WALLS.items() if not protections()[wall]]
    except OSError:  # then no program can be run at all, and each says so
        return
    if missing:
        _log.warning("The sandbox for programs is weaker on this machine, it lacks: %s", "; ".join(missing))
