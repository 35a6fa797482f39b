"""The code reward: what counts as a program, a test and a pass; and that a program can do nothing else meanwhile."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

from suite import rewards
from suite.rewards import pool, sandbox_walls
from suite.rewards.code import code_reward, program_of, read_tests
from suite.rewards.sandbox import protections
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # every one starts processes


@pytest.fixture(autouse=True, scope="module")
def _no_other_helper():
    """The verifier's helper is a child of this process, too, and these tests look for children."""
    pool.close()


RIGHT = "def double(x):\n    return 2 * x"
WRONG = "def double(x):\n    return x"
ASSERTS = ["assert double(2) == 4", "assert double(0) == 0", "assert double(-1) == -2"]
ENDLESS = "while True:\n    pass"


def fenced(program: str) -> str:
    return f"```python\n{textwrap.dedent(program)}\n```"


def score(program: str, *tests, **knobs) -> float | None:
    return code_reward([fenced(program)], tests=[list(tests) or ["assert True"]], **knobs)[0]


def need(wall: str) -> None:
    kernel = {"memory": "RLIMIT_AS", "seccomp": "seccomp filters", "landlock": "Landlock, version 3"}[wall]
    if not protections()[wall]:
        pytest.skip(f"this kernel does not offer {kernel}")


def need_proc() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system has no /proc to look for processes in")


def refused(action: str, *imports: str) -> str:
    """A program that passes only if `action` ends in an OSError."""
    head = "".join(f"import {name}\n" for name in ("os", *imports))
    return f"{head}try:\n    {action}\n    done = True\nexcept OSError:\n    done = False"


def processes() -> dict[int, tuple[int, int, str]]:
    """pid -> (parent, session, state) of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(path.parent.name)] = (int(fields[1]), int(fields[3]), fields[0])
    return found


def wait_for(condition, seconds: float = 60):
    """What `condition` gives as soon as it is true; the last it gave after so many seconds."""
    ends = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < ends:
        time.sleep(0.02)
    return value


def helper_of(pid: int) -> int | None:
    """The sandbox that a process has started, once it has a child at work."""
    there = processes()
    own = [child for child, (parent, session, _) in there.items() if parent == pid and session == child]
    return next((child for child in own if any(parent == child for parent, _, _ in there.values())), None)


def session(leader: int) -> list[int]:
    return [pid for pid, (_, session, state) in processes().items() if session == leader and state not in "ZX"]


# -- what is a program, a test, a pass


def test_asserts_give_the_share_that_holds():
    assert score(RIGHT, *ASSERTS) == 1.0
    assert score(WRONG, *ASSERTS) == pytest.approx(1 / 3)
    assert score("def double(x): return 2 * abs(x)", *ASSERTS) == pytest.approx(2 / 3)
    assert score("def double(x:", *ASSERTS) == score("import no_such_module", *ASSERTS) == 0.0


def test_stdin_and_stdout_are_compared_but_for_blanks_at_line_ends_and_the_end():
    program = "import sys\nfor line in sys.stdin:\n    print(int(line) + 1, '')\nprint()"
    assert score(program, {"input": "1\n2\n", "output": "2\n3"}, {"input": "5", "output": "6\n\n"}) == 1.0
    assert score(program, {"input": "1\n2\n", "output": "2 3"}, {"input": "1", "output": " 2"}) == 0.0
    assert score("print('naïve 你好', input())", {"input": "é\n", "output": "naïve 你好 é"}) == 1.0


def test_a_script_fails_by_an_exception_a_bad_exit_status_or_reading_past_the_end():
    for program, passes in {
        "print(1)": 1.0,
        "print(1)\nimport sys\nsys.exit(0)": 1.0,
        "print(1)\nexit()": 1.0,
        "print(1)\nexit(3)": 0.0,
        "print(1)\n1 / 0": 0.0,
        "print(1)\ninput()\ninput()": 0.0,
        "print(1, flush=True)\nimport os\nos.abort()": 0.0,
    }.items():
        assert score(program, {"input": "x", "output": "1"}) == passes, program


def test_a_script_runs_as_main_and_waits_for_its_threads():
    program = """
    import threading, time
    def late():
        time.sleep(0.1)
        print("late")
    if __name__ == "__main__":
        threading.Thread(target=late).start()
        print("soon")
    """
    assert score(program, {"input": "", "output": "soon\nlate"}) == 1.0


def test_leaving_before_the_assert_is_no_pass():
    for leave in ("import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "exit()", "1 / 0"):
        assert score(f"{RIGHT}\n{leave}", *ASSERTS) == 0.0
    assert score("def double(x):\n    import os\n    os._exit(0)", *ASSERTS) == 0.0


@pytest.mark.parametrize(
    "trick",
    [
        "import builtins\nbuiltins.exec = lambda *given, **keys: None",
        "import builtins\nbuiltins.compile = lambda *given, **keys: 'pass'",
        "import builtins\nbuiltins.AssertionError = type('Leave', (SystemExit,), {})",
        "import atexit, os\natexit.register(lambda: os._exit(0))",
        "import os, sys\nsys.excepthook = lambda *raised: os._exit(0)",
        "import os\nfor end in (1, 3):\n    os.write(end, b'1 0 0\\n')",
        "def check(candidate):\n    pass",
    ],
)
def test_a_wrong_program_that_meddles_with_its_judge_passes_nothing(trick):
    whole = "def check(candidate):\n    assert candidate(2) == 4\n\ncheck(double)"
    assert score(f"{trick}\ndef double(x):\n    return x", whole) == 0.0


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("<think>t</think><answer>x = 1</answer>", "x = 1"),
        ("<answer>```python\nx = 1\n```</answer>", "x = 1"),
        ("<answer>a\n```py\nx = 1\n```\nb\n```\nx = 2\n```\nc</answer>", "x = 2"),
        ("```python\nx = 1\n```\n<answer>x = 2</answer>", "x = 2"),
        ("here:\n```Python\nx = 1\n```\nit prints\n```text\n1\n```", "x = 1"),
        ("here: ```python\nx = 1\n```", "x = 1"),
        ("1. so\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1"),
        ("<think>```python\nx = 1\n```</think>", None),
        ("<think>```python\nx = 1\n```", None),
        ("x = 1", None),
        ("<answer></answer>", None),
        ("```python\nx = 1", None),
        ("", None),
    ],
)
def test_the_program_is_the_last_block_of_the_answer_or_of_what_is_said(text, program):
    assert program_of(text) == program


def test_a_program_inside_the_thinking_is_never_run():
    thought = f"<think>{fenced(RIGHT)}</think>"
    assert code_reward([thought, thought + fenced(WRONG)], tests=[ASSERTS[:1]] * 2) == [0.0, 0.0]
    opened = [fenced(RIGHT)]
    assert code_reward(opened, tests=[ASSERTS], prompts=["<|user|>go<think>\n"]) == [0.0]
    assert code_reward(opened, tests=[ASSERTS], think_opened=True) == [0.0]


def test_conversational_completions_are_read_like_plain_ones():
    said = [[{"role": "assistant", "content": f"<think>a</think><answer>{fenced(RIGHT)}</answer>"}]]
    assert rewards.load("code", {"seconds": 3})(said, tests=[ASSERTS]) == [1.0]


def test_fences_by_the_thousand_are_read_at_once():
    started = time.thread_time()
    for text in ("```" * 50_000, "x```\n" * 50_000, "```a\n" * 50_000, "```" + " " * 200_000, "<answer>```\n" * 20_000):
        program_of(text)
    assert time.thread_time() - started < 2


PAIR = {"input": "", "output": ""}


@pytest.mark.parametrize(
    "tests",
    [None, [], "", "  ", "[]", "{}", "7", "null", 3, {}, [1], [None], ["assert 1", 2], [PAIR, None], ["["], ["# none"]]
    + [[{"input": ""}], [{"input": 1, "output": "2"}], "['assert double(1) == 3']", "[" * 100_000, [b"assert 1"], [""]],
)
def test_tests_that_cannot_be_read_give_no_verdict(tests):
    assert read_tests(tests) is None
    assert code_reward([fenced(RIGHT), "no program"], tests=[tests] * 2) == [None, None]


def test_tests_may_be_json_or_one_whole_program():
    suite = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 6\ncheck(double)"
    given = [json.dumps(ASSERTS), json.dumps([{"input": "", "output": "1"}]), suite, [*ASSERTS[:1], PAIR]]
    assert code_reward([fenced(RIGHT)] * 4, tests=given) == [1.0, 0.0, 1.0, 1.0]
    assert code_reward([fenced(WRONG)], tests=[suite]) == [0.0]


def test_no_program_earns_0_and_what_happened_is_logged():
    logged = {}
    said = ["none", fenced(RIGHT), fenced(ENDLESS), fenced("import os; os.abort()")]
    tests = [ASSERTS[:1], None, ["assert 1"], ["assert 1"]]
    given = code_reward(said, tests=tests, seconds=3, log_metric=logged.__setitem__)  # by the clock on the wall
    assert given == [0.0, None, 0.0, 0.0]
    assert logged == {"code/timeouts": 0.25, "code/unreadable_tests": 0.25, "code/crashes": 0.25}
    code_reward([fenced(RIGHT)], tests=[ASSERTS], log_metric=logged.__setitem__)
    assert set(logged.values()) == {0.0}


@pytest.mark.parametrize("knobs", [{"seconds": 0}, {"seconds": float("nan")}, {"memory_mb": 8}])
def test_limits_that_nothing_can_meet_are_refused(knobs):
    with pytest.raises(ValueError, match=f"code.{next(iter(knobs))}: .*Give"):
        score(RIGHT, **knobs)


def test_whatever_a_model_writes_gives_a_number():
    for program in (
        "\0",
        "\ud800",
        "(" * 5000,
        "x = " + "-" * 100_000 + "1",
        "def f(): f()\nf()",
        "raise BaseException",
    ):
        assert code_reward([f"<answer>{program}</answer>"], tests=[ASSERTS[:1]]) == [0.0]
    assert score("import sys\nsys.setrecursionlimit(10**9)\nf = lambda _: list(map(f, '1'))\nf(0)") == 0.0


def test_one_hash_seed_makes_one_verdict():
    program = "print(*{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    order = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True
    ).stdout
    assert score(program, {"input": "", "output": order}) == 1.0


# -- cheats: a wrong program passes nothing, whatever it returns and wherever it looks


def returning(body: str) -> str:
    """A program whose f returns one object of a class with this body, whatever it is given."""
    return f"class Any:\n{textwrap.indent(body, '    ')}\nanything = Any()\ndef f(*given): return anything"


YES = "lambda self, *other: True"
UNITTEST = "import unittest\nunittest.TestCase().assertEqual(f(2), 4)"
CLOSE = "import math\nassert math.isclose(f(2), 4)"
EQUAL = returning(
    f"__eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = {YES}\n__hash__ = lambda self: 4"
)
NUMBER = returning(
    "__sub__ = __rsub__ = __abs__ = __mod__ = __round__ = lambda self, *other: 0\n__float__ = lambda self: float('nan')"
)
WAVERS = """
    import itertools
    answers = itertools.cycle((9, 0))
    class Wavers(int):
        __int__ = __float__ = __index__ = __trunc__ = lambda self: next(answers)
        __lt__ = __gt__ = __eq__ = lambda self, other: True
    def f(*given): return Wavers(9)
"""
LOOK = """
    import gc, glob, os, re, sys
    def texts():
        frame = sys._getframe()
        while frame:
            yield repr((frame.f_locals.keys(), frame.f_code.co_consts, frame.f_globals.keys()))
            yield from (repr(held)[:1 << 16] for held in list(frame.f_locals.values()) if type(held) is not type(frame))
            frame = frame.f_back
        for held in gc.get_objects():
            if type(held) in (dict, list, tuple):
                for value in held.values() if type(held) is dict else held:
                    if type(value) in (str, bytes, int):
                        yield repr(value)
        for end in range(3, 64):
            for read in (lambda: os.pread(end, 1 << 20, 0), lambda: os.read(end, 1 << 20) if end > 5 else b""):
                try:
                    yield repr(read())
                except OSError:
                    pass
        pids = range(os.getppid(), os.getpid() + 3)
        near = [f"/proc/{pid}/{name}" for pid in pids for name in ("fd/0", "fd/4", "mem")]
        for path in near + glob.glob("../*") + glob.glob("*"):
            try:
                yield repr(os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20))
            except OSError:
                pass
    def f(*given):
        return next((int(found[0]) for text in texts() if (found := re.search("7[3]519", text))), None)
"""
MEMORY = """
    import ctypes, gc, os, re
    def f(*given):
        dump = os.open("dump", os.O_RDWR | os.O_CREAT)
        for arena in {id(held) >> 20 for held in gc.get_objects()}:
            os.lseek(dump, 0, os.SEEK_SET)
            for page in range(arena << 8, arena + 1 << 8):
                ctypes.CDLL(None).write(dump, ctypes.c_void_p(page << 12), 4096)  # no crash where there is no page
            if found := re.search(b"7[3]519", os.pread(dump, 1 << 20, 0)):
                return int(found[0])
"""
PATCHED = """
    import builtins, math, unittest
    for name in ("sorted", "abs", "float", "any", "all", "round", "sum", "len", "isinstance"):
        globals()[name] = lambda *given, **named: 4
        if name not in ("len", "isinstance"):  # without which it could not even answer
            setattr(builtins, name, globals()[name])
    math.isclose = lambda *given, **named: True
    for name in dir(unittest.TestCase):
        if name.startswith("assert"):
            setattr(unittest.TestCase, name, lambda *given, **named: None)
    def f(*given): return 5
"""
WRITES = """
    import marshal, os, struct
    def f(*given):
        words = [b".passed", b"passed", b"1 0 0\\n"]
        for message in (("value", 4, ([], "")), ("value", True, ((), ""))):
            data = marshal.dumps(message)
            words.append(struct.pack("=Q", len(data)) + data)
        for end in (1, 2, 3, *range(6, 64)):
            for word in words:
                try: os.write(end, word)
                except OSError: pass
        os._exit(0)
"""


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (EQUAL, ["assert f(2) == 4", "assert 4 == f(2)", "assert f(2) in {4}", "assert f(2) >= 4", "assert 4 < f(2)"]),
        (EQUAL, ["assert f(2) == [4]", "assert 4 in f(2)", "assert [f(2)] == [4]", "assert {4: f(2)} == {4: 5}"]),
        (EQUAL, ["assert isinstance(f(2), int)", "assert f(2) is True", UNITTEST]),
        (NUMBER, ["assert abs(f(2) - 4) < 1e-6", "assert abs(4 - f(2)) < 1e-6", "assert f(2) % 4 == 0"]),
        (NUMBER, [CLOSE, "assert round(f(2), 3) == 0"]),
        (returning("__class__ = int\n__eq__ = " + YES), ["assert f(2) == 4", "assert isinstance(f(2), int)"]),
        ("class int(int):\n    __eq__ = lambda self, other: True\ndef f(*given): return int(5)", ["assert f(2) == 4"]),
        ("class s(str):\n    __eq__ = lambda self, other: True\ndef f(*given): return s('a')", ["assert f(2) == 'b'"]),
        ("class l(list):\n    __eq__ = lambda self, other: True\ndef f(*given): return l()", ["assert f(2) == ['b']"]),
        (WAVERS, ["r = f(2)\nassert 3 < r < 5", "r = f(2)\nassert 3 < float(r)\nassert r < 5", "assert f(2) == 3"]),
        (LOOK, ["assert f(2) == 73519", "wanted = 73519\nassert f(2) == wanted"]),
        (MEMORY, ["assert f(2) == 73519", "wanted = '73519'\nassert str(f(2)) == wanted"]),
        (PATCHED, ["assert len(f(2)) == 4", "assert abs(f(2)) == 4", "assert isinstance(f(2), str)"]),
        (PATCHED, ["assert math.isclose(f(2), 4)", CLOSE, "assert all([f(2) == 4])"]),
        (PATCHED, [UNITTEST, "assert sorted([f(2)]) == 4"]),
        (WRITES, ["assert f(2) == 4", "def check(g):\n    assert g(2) == 4\ncheck(f)"]),
        ("import sys\ndef f(*given): sys.exit(0)", ["assert f(2) == 4", "try:\n    f(2)\nexcept Exception:\n    pass"]),
        ("import os\ndef f(*given): os._exit(0)", ["assert f(2) == 4", "try:\n    f(2)\nexcept:\n    pass"]),
        ("class math:\n    isclose = lambda *given: True\ndef f(*given): return 5", ["assert math.isclose(f(2), 4)"]),
    ],
)  # fmt: skip
def test_a_wrong_program_that_cheats_passes_nothing(program, tests):
    assert score(program, *tests) == 0.0


def test_whatever_comes_over_the_wire_is_no_pass():
    """A program that answers by itself, in whatever words: what it says is data, or the test fails."""
    answers = [
        "('kept', 0)", "('type', 'object')", "('made', 'os.abort', ('tuple', []))", "('made', 'builtins.eval', '4')",
        "('exception', 0, 'E', ('type', 'int'))", "('exception', [], 'E', ('type', 'ValueError'))", "('function', 0)",
        "('array', 'O', [1], b'12345678')", "('list', 7)", "('dict', [[]], [1])", "say.__code__", "()", "[4]", "...",
    ]  # fmt: skip
    speak = """
    import marshal, os, struct
    def say(*message):
        data = marshal.dumps(message)
        os.write(5, struct.pack("=Q", len(data)) + data)
    while os.read(4, 1 << 16):
        {}
    """
    said = [speak.format(f"say('value', {answer}, ([], ''))") for answer in answers]
    said += [speak.format(way) for way in ("say()", "say('value')", "say('error', 4, ())", "os.write(5, b'x' * 99)")]
    said += [
        speak.format("say('ask', 'call', [0, ('tuple', []), ('dict', [], [])])\n        say('value', 5, ([], ''))")
    ]
    given = code_reward([fenced(program) for program in said], tests=[["assert f == 4"]] * len(said), seconds=1)
    assert given == [0.0] * len(said)
    assert score(speak.format("say('value', 4, ([], ''))"), "assert f == 4") == 1.0


def test_tests_mean_the_functions_that_the_prompt_gives_and_not_what_a_program_makes_of_them():
    starter = (
        "def encode(s):\n    return s[::-1]\n\ndef stub(s):\n    '''To do.'''\n\ndef decode(s):\n    '''Undo it.'''\n"
    )
    tests = ["assert decode(encode('abc')) == 'abc'", "assert stub('a') == 'b'"]
    for program, share in {
        "def stub(s):\n    return 'b'\ndef decode(s):\n    return s[::-1]": 1.0,
        "def encode(s):\n    return s\ndef decode(s):\n    return s": 0.0,
    }.items():
        assert code_reward([fenced(program)], tests=[tests], starter_code=[starter]) == [share], program


# -- two processes: what tests may do with a program as if there was one


STACK = """
    import collections, contextlib, enum
    class Stack:
        limit = 3
        def __init__(self, *items): self.items = list(items)
        def push(self, item): self.items.append(item)
        def __len__(self): return len(self.items)
        def __eq__(self, other): return isinstance(other, Stack) and self.items == other.items
        def __hash__(self): return len(self.items)
        def __getitem__(self, n): return self.items[n]
        def __add__(self, other): return Stack(*self.items, *other.items)
        def __str__(self): return f"<{self.items}>"
    class Many(Stack): pass
    class Full(ValueError): pass
    class Colour(enum.Enum):
        RED = 1
    class Level(enum.IntEnum):
        HIGH = 2
    class Words(list):
        def long(self): return [word for word in self if len(word) > 2]
    Point = collections.namedtuple("Point", "x y")
    count = 0
    def fill(stack, n):
        if n > stack.limit: raise Full(f"{n} is too many")
        for item in range(n): stack.push(item)
    def up():
        global count
        count += 1
    @contextlib.contextmanager
    def opened():
        yield 7
"""
STACK_TESTS = """
    s = Stack()
    s.push(4); s.push([5])
    assert len(s) == 2 and s[0] == 4 and s.items == [4, [5]] and list(s) == [4, [5]] and str(s) == "<[4, [5]]>" and s
    assert Stack(1) == Stack(1) != Stack(2) and Stack(1) + Stack(2) == Stack(1, 2) and len({Stack(1), Stack(1)}) == 1
    assert isinstance(Many(), Stack) and not isinstance(3, Stack) and issubclass(Many, Stack)
    s.limit = 1
    try:
        fill(s, 2)
    except Full as error:
        assert isinstance(error, ValueError) and str(error) == "2 is too many"
    else:
        assert False
    assert Colour.RED is Colour.RED and Colour(1) == Colour.RED and Colour.RED.value == 1 and Colour.RED != 1
    assert Level.HIGH == 2 and Level.HIGH > 1 and 3 > Level.HIGH and Level.HIGH + 1 == 3 == 1 + Level.HIGH
    assert Words(["a", "long"]) == ["a", "long"] and Words(["a", "long"]).long() == ["long"]
    p = Point(1, 2)
    assert p == (1, 2) and p.x == 1 and tuple(p) == (1, 2)
    up(); up()
    assert count == 2
    with opened() as seven:
        assert seven == 7
    """
PLAIN = """
    import collections, datetime, decimal, fractions
    import numpy as np
    class Odd(Exception): pass
    def same(value): return value
    def in_place(values): values.sort(); values.append(0)
    def rename(table, *, into): table.clear(); into.update(a=1)
    def grouped(words):
        found = collections.defaultdict(list)
        for word in words: found[len(word)].append(word)
        return found
    def squares():
        n = 0
        while True:
            yield n * n
            n += 1
    def apply(function, *values): return [function(value) for value in values]
    def add(n): return lambda m: n + m
    def odd(): raise Odd("odd")
    def say(what): print(what)
    async def later(n): return n
    def kinds(): return {"n": np.float64(0.5), "b": np.bool_(True), "i": [np.int64(3)], "e": np.array([[1, 2]]), 3: {4}}
"""
PLAIN_TESTS = """
    import asyncio, collections, contextlib, datetime, decimal, fractions, io, itertools, math
    values = [None, True, 2**200, -0.5, 1j, "né\\ud800", b"x", [1, [2]], (1,), {1: [2]}, {1}, frozenset({(1, 2)})]
    values += [fractions.Fraction(1, 3), decimal.Decimal("1.10"), datetime.date(2024, 2, 29), ..., int]
    values += [collections.deque([1], 2), collections.Counter("aab"), collections.OrderedDict(a=1)]
    values += [datetime.datetime(2024, 1, 1, 2), datetime.timedelta(1), range(3), bytearray(b"x")]
    for value in values:
        assert same(value) == value and type(same(value)) is type(value), value
    assert math.isnan(same(math.nan))
    numbers = [3, 1, 2]
    assert in_place(numbers) is None and numbers == [1, 2, 3, 0]
    table, new = {1: 2}, {}
    rename(table, into=new)
    assert table == {} and new == {"a": 1}
    assert grouped(["a", "bc", "d"]) == {1: ["a", "d"], 2: ["bc"]}
    assert list(itertools.islice(squares(), 4)) == [0, 1, 4, 9] and next(squares()) == 0
    assert apply(lambda n: n + 1, 1, 2) == [2, 3] and apply(str, 1) == ["1"] and apply(len, "ab") == [2]
    assert apply(add(1), 1) == [2] and add(2)(3) == 5 and apply(lambda n: apply(add(n), n), 4) == [[8]]
    assert sorted([3, 1], key=lambda n: same(-n)) == [3, 1] and same(x for x in "ab") is not None
    assert list(same(iter([1, 2]))) == [1, 2]
    def fails(n):
        raise KeyError(n)
    for call, kind in ((lambda: apply(fails, 1), KeyError), (odd, Odd), (lambda: same(), TypeError)):
        try:
            call()
        except kind:
            continue
        assert False
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        say("é")
    assert said.getvalue() == "é\\n"
    assert asyncio.run(later(3)) == 3
    async def both():
        return await asyncio.gather(later(1), later(2))
    assert asyncio.run(both()) == [1, 2]
    found = kinds()
    assert found["n"] == 0.5 and found["b"] is True and found["i"] == [3] and found[3] == {4}
    assert found["e"].shape == (1, 2) and (same(found["e"]) == np.array([[1, 2]])).all()
    many = list(range(50_000))
    assert same(many) == many and same([[n] for n in many[:5000]]) == [[n] for n in many[:5000]]
    """


@pytest.mark.parametrize(("program", "tests"), [(STACK, STACK_TESTS), (PLAIN, PLAIN_TESTS)])
def test_tests_use_a_program_over_there_as_if_it_was_here(program, tests):
    assert score(program, textwrap.dedent(tests)) == 1.0


def test_a_docstring_is_the_programs_own():
    program = "def f():\n    'its own words'\nclass C:\n    'others'"
    assert score(program, "assert f.__doc__ == 'its own words'", "assert C.__doc__ == C().__doc__ == 'others'") == 1.0
    assert score("def f(): pass", "assert f.__doc__ is None") == 1.0


def test_a_builtin_that_a_program_calls_its_own_is_meant_where_a_test_names_nothing_else():
    assert (
        score("def sum(a, b): return a + b", "assert sum(10, 15) == 25", "assert sum([1, 2], [3]) == [1, 2, 3]") == 1.0
    )
    assert (
        score("def len(x): return 3\ndef f(x): return x", "assert len(f([1])) == 3", "assert len(f([1])) == 1") == 0.5
    )


# -- limits: what one program does costs that program only


def test_an_endless_loop_costs_one_test_and_leaves_the_batch_alone():
    started = time.monotonic()
    odd = f"{RIGHT}\nif input():\n    {ENDLESS.replace(chr(10), ' ')}\nprint(1)"
    pairs = [{"input": "\n", "output": "1"}, {"input": "go\n", "output": "1"}, {"input": "\n", "output": "1"}]
    given = code_reward([fenced(RIGHT), fenced(ENDLESS), fenced(odd)], tests=[ASSERTS, ASSERTS, pairs], seconds=3)
    assert given == [1.0, 0.0, pytest.approx(2 / 3)]
    assert time.monotonic() - started < 60


def test_many_tests_may_take_as_long_as_four():
    started = time.monotonic()
    assert score(ENDLESS, *(["assert True"] * 200), seconds=0.3) == 0.0
    assert time.monotonic() - started < 30  # and not 60


def test_sleeping_is_no_way_around_the_clock():
    logged = {}
    assert score("import time\ntime.sleep(60)", seconds=0.3, log_metric=logged.__setitem__) == 0.0
    assert logged["code/timeouts"] == 1.0


def test_a_memory_bomb_is_refused_its_memory():
    need("memory")
    assert score("x = bytearray(3 << 30)", "assert len(x)") == 0.0
    assert score("x = bytearray(100 << 20)", "assert len(x)") == 1.0
    assert score("x = bytearray(100 << 20)", "assert len(x)", memory_mb=100) == 0.0


def test_the_limits_cannot_be_raised_again():
    need("memory")
    program = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\nx = bytearray(3 << 30)"
    assert score(program, "assert len(x)") == 0.0


def test_endless_output_is_cut_off_long_before_the_time():
    for test in ("assert True", {"input": "", "output": "x"}):
        logged, started = {}, time.monotonic()
        assert score("while True: print('x' * 1000)", test, seconds=20, log_metric=logged.__setitem__) == 0.0
        assert time.monotonic() - started < 20
        assert logged == {"code/timeouts": 0.0, "code/unreadable_tests": 0.0, "code/crashes": 1.0}


def test_files_cannot_grow_without_end():
    program = "with open('big', 'wb') as file:\n    for _ in range(64): file.write(bytes(1 << 20))"
    assert score(program) == 0.0
    assert score("open('small', 'w').write('x')", "assert open('small').read() == 'x'") == 1.0


def test_threads_are_allowed_and_a_thread_bomb_is_not():
    spawn = "import threading, time\nstop = threading.Event()\n"
    spawn += (
        "threading.stack_size(65536)\nmany = [threading.Thread(target=stop.wait, daemon=True) for _ in range({0})]\n"
    )
    spawn += "[thread.start() for thread in many]\ntime.sleep(0.3)"
    assert score(spawn.format(8)) == 1.0
    if Path("/proc/self/task").is_dir():
        assert score(spawn.format(300)) == 0.0


def test_asyncio_and_numpy_work_inside():
    assert score("import asyncio\nasync def f(): return 3", "assert asyncio.run(f()) == 3") == 1.0
    assert score("import numpy as np", "assert (np.ones((8, 8)) @ np.ones((8, 8))).sum() == 512") == 1.0


# -- walls: nothing outside is reached


def test_a_fork_bomb_does_not_fork():
    need("seccomp")
    ways = ("os.fork()", "os.posix_spawn('/bin/true', ['true'], {})", "subprocess.run(['true'])")
    for action in (*ways, "os.execv('/bin/true', ['true'])"):
        assert score(refused(action, "subprocess"), "assert not done") == 1.0, action
    assert score("import os\nwhile True: os.fork()") == 0.0


def test_the_network_is_refused():
    need("seccomp")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for action in (
            f"socket.create_connection(('127.0.0.1', {port}), 1).sendall(b'x')",
            "socket.socket(socket.AF_UNIX)",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        ):
            assert score(refused(action, "socket"), "assert not done") == 1.0, action
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_nothing_is_written_or_removed_outside_the_scratch_directory(tmp_path):
    need("landlock")
    kept, new, folder = tmp_path / "kept", tmp_path / "new", tmp_path / "folder"
    kept.write_text("here")
    folder.mkdir()
    for action in (
        f"open({str(kept)!r}, 'w')",
        f"os.truncate({str(kept)!r}, 0)",
        f"os.close(os.open({str(kept)!r}, os.O_RDONLY | os.O_TRUNC))",
        f"os.remove({str(kept)!r})",
        f"os.rename({str(kept)!r}, 'mine')",
        f"os.link({str(kept)!r}, 'mine')",
        f"os.rmdir({str(folder)!r})",
        f"open({str(new)!r}, 'w')",
        f"os.mkdir({str(new)!r})",
        f"os.symlink('x', {str(new)!r})",
        f"open('x', 'w'); os.rename('x', {str(new)!r})",
    ):
        assert score(refused(action), "assert not done") == 1.0, action
    assert kept.read_text() == "here" and folder.is_dir() and not new.exists()


def test_modes_and_times_of_files_outside_stay(tmp_path):
    need("seccomp")
    kept = tmp_path / "kept"
    kept.write_text("here")
    before = kept.stat()
    for action in (f"os.chmod({str(kept)!r}, 0)", f"os.utime({str(kept)!r}, (1, 1))", f"os.chown({str(kept)!r}, 1, 1)"):
        assert score(refused(action), "assert not done") == 1.0, action
    assert kept.stat() == before


def test_secrets_in_the_environment_are_not_to_be_seen(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    names = {"PATH", "HOME", "TMPDIR", "LANG", "PYTHONHASHSEED", "MALLOC_ARENA_MAX", "LD_LIBRARY_PATH"}
    names |= {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LC_CTYPE"}
    assert score("import os", f"assert set(os.environ) <= {names}") == 1.0
    assert score("import os", "assert os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']") == 1.0


def test_the_environment_and_memory_of_the_trainer_are_closed():
    need("landlock")
    for name in ("environ", "mem", "maps", "fd/1"):
        for pid in (os.getpid(), "' + str(os.getppid()) + '"):
            action = f"open('/proc/{pid}/{name}')"
            assert score(refused(action), "assert not done") == 1.0, action


def test_no_other_process_can_be_killed_or_limited():
    need("seccomp")
    victim = subprocess.Popen(["sleep", "60"])
    try:
        pid = victim.pid
        for action in (
            f"os.kill({pid}, 9)",
            "os.kill(os.getppid(), 9)",
            "os.killpg(0, 9)",
            "os.kill(-1, 9)",
            f"signal.pidfd_send_signal(os.pidfd_open({pid}), 9)",
            f"resource.prlimit({pid}, resource.RLIMIT_CPU, (0, 0))",
            f"fcntl.fcntl(1, fcntl.F_SETOWN, {pid})",
            f"os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
            f"os.sched_setaffinity({pid}, {{0}})",
            f"assert ctypes.CDLL(None).syscall(234, {pid}, {pid}, 9) == 0 or os.open('', 0)",
            "os.setsid()",
        ):
            program = refused(action, "signal", "resource", "fcntl", "ctypes")
            assert score(program, "assert not done", "assert not done") == 1.0, action
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    assert score("import os, signal\nos.kill(os.getpid(), 0)\nsignal.raise_signal(0)") == 1.0


def test_the_scratch_directory_goes_whatever_a_program_made_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = """
    import os
    os.mkdir("closed")
    open("closed/file", "w").close()
    os.mkdir("closed/inner", 0)
    os.symlink("/", "root")
    for _ in range(1500):
        os.mkdir("deep")
        os.chdir("deep")
    """
    try:
        assert score(program) == 1.0
        assert score(f"{textwrap.dedent(program)}\n{ENDLESS}", seconds=1) == 0.0
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["rm", "-rf", tmp_path])  # pytest's own cleaning trips over such a tree


def test_nothing_is_left_running():
    need_proc()
    program = "import os\nfor escape in (os.setsid, os.fork):\n    try: escape()\n    except OSError: pass\n" + ENDLESS
    judge = threading.Thread(target=score, args=(program,), kwargs={"seconds": 5})
    judge.start()
    helper = wait_for(lambda: helper_of(os.getpid()))
    seen = wait_for(lambda: judge.is_alive() and len(there := session(helper)) == 3 and there)
    judge.join()
    assert seen  # it, the program and its tests
    assert not session(helper) and wait_for(lambda: not set(seen) & processes().keys())


def test_a_sandbox_that_is_killed_takes_the_program_along_and_is_a_crash(tmp_path, monkeypatch):
    need_proc()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    given, logged = [], {}
    knobs = {"seconds": 60, "log_metric": logged.__setitem__}
    judge = threading.Thread(target=lambda: given.append(score(f"open('begun', 'w').close()\n{ENDLESS}", **knobs)))
    judge.start()
    assert wait_for(lambda: list(tmp_path.glob("sandbox-*/*/begun")))  # behind its walls
    helper = helper_of(os.getpid())
    os.kill(helper, signal.SIGKILL)
    judge.join()
    assert given == [0.0] and logged["code/crashes"] == 1.0
    assert wait_for(lambda: not session(helper))


def test_a_machine_that_cannot_run_it_gives_no_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    logged = {}
    given = code_reward([fenced(RIGHT), "none"], tests=[ASSERTS] * 2, log_metric=logged.__setitem__)
    assert given == [None, 0.0] and logged["code/crashes"] == 0.5


def test_it_works_in_a_thread_and_inside_asyncio():
    given = []
    thread = threading.Thread(target=lambda: given.append(score(RIGHT, *ASSERTS)))
    thread.start()
    thread.join()

    async def inside() -> None:
        given.append(score(RIGHT, *ASSERTS))
        given.append(await asyncio.to_thread(score, RIGHT, *ASSERTS))

    asyncio.run(inside())
    assert given == [1.0, 1.0, 1.0]


def test_killing_the_trainer_takes_the_sandbox_and_its_directory_along(tmp_path):
    need_proc()
    script = (
        "import threading; from suite.rewards.code import code_reward\n"
        f"call = dict(completions=[{fenced(ENDLESS)!r}], tests=[['assert 1']], seconds=60.0)\n"
        "threading.Thread(target=code_reward, kwargs=call).start()\n"
        "threading.Event().wait()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    trainer = subprocess.Popen([sys.executable, "-c", script], env=environment)
    helper = wait_for(lambda: helper_of(trainer.pid), 120)
    assert wait_for(lambda: len(session(helper)) == 3) and list(tmp_path.iterdir())
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    wait_for(lambda: not session(helper) and not list(tmp_path.iterdir()))
    assert not session(helper) and not list(tmp_path.iterdir())


def verdict(rules: list, call: int, *arguments: int, architecture: int) -> int:
    """What a seccomp filter says of a system call: the few instructions that ours has, interpreted."""
    data = struct.pack("=IIQ6Q", call, architecture, 0, *(*arguments, *[0] * (6 - len(arguments))))
    at, held = 0, 0
    while True:
        code, if_true, if_false, value = rules[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            held = struct.unpack_from("=I", data, value)[0]
        elif code == 0x54:
            held &= value
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: held & value}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "calls"),
    [
        (
            "x86_64",
            {"socket": 41, "kill": 62, "clone": 56, "pair": 53, "execve": 59, "read": 0, "prctl": 157}
            | {"shmat": 30, "semop": 65, "semtimedop": 220, "msgsnd": 69, "msgrcv": 70},
        ),
        (
            "aarch64",
            {"socket": 198, "kill": 129, "clone": 220, "pair": 199, "execve": 221, "read": 63, "prctl": 167}
            | {"shmat": 196, "semop": 193, "semtimedop": 192, "msgsnd": 189, "msgrcv": 188},
        ),
    ],
)
def test_the_filter_says_the_same_on_either_machine(machine, calls):
    column, audit = sandbox_walls.MACHINES[machine]
    rules = sandbox_walls.rules(column, audit, 4711)

    def says(call: int | str, *arguments: int, architecture: int = audit) -> str:
        number = calls.get(call, call)
        answer = verdict(rules, number, *arguments, architecture=architecture)
        return {0x7FFF0000: "yes", 0x50001: "no", 0x50026: "no such call", 0x80000000: "death"}[answer]

    assert says("read", 0) == "yes" and says("read", 0, architecture=0x40000003) == "death"
    assert says("socket", 2, 1) == says("execve") == "no" and says(435) == "no such call"
    assert (
        says("kill", 4711, 9) == "yes" and says("kill", 0, 9) == says("kill", 1, 9) == says("kill", 2**32 - 1) == "no"
    )
    assert says("clone", 0x10000 | 17) == "yes" and says("clone", 17) == "no"
    assert says("pair", 1, 1 | 0o2000000) == "yes" and says("pair", 1, 2) == says("pair", 2, 1) == "no"
    assert says("prctl", 1, 0) == "no" and says("prctl", 15, 0) == "yes"
    # Segments, semaphores and queues of other programs: whoever guesses their numbers needs no *get.
    assert {says(call) for call in ("shmat", "semop", "semtimedop", "msgsnd", "msgrcv")} == {"no"}
    if machine == "x86_64":
        assert says(0x40000000 + 41) == "no such call"
