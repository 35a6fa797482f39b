"""Output is there whole or not at all, wherever a kill falls and whenever the disk is full."""

import errno
import itertools
import json
import os
import resource
import signal
import time

import pytest

from suite import whole
from tests import warm


def in_a_child(work, before) -> int:
    """The wait status of a fork of this process in which `before()` and then `work()` ran; 0 if both came through."""
    pid = os.fork()
    if pid == 0:
        try:
            before()
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 (nothing of pytest may go on in the child)
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def write_directory(version: str) -> None:
    with whole.directory(whole.Path("out")) as partial:
        (partial / "one").write_text(version)
        (partial / "two").mkdir()
        (partial / "two" / "three").write_text(version)


def versions() -> set[str]:
    return {path.read_text() for path in whole.Path("out").rglob("*") if path.is_file()}


def every_kill(work, look) -> int:
    """Kill `work` at each of its steps, before and after, and `look` at what is left; how many kills there were."""
    for step in itertools.count(1):
        for after in (False, True):
            status = in_a_child(work, lambda step=step, after=after: warm.counted(step, after=after))
            assert status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL), status
            look()
            if status == 0:
                return 2 * step - 2 + after


def test_a_directory_that_is_killed_at_any_step_is_the_old_one_or_the_new_one(tmp_path):
    write_directory("old")
    seen = set()

    def look():
        seen.update(versions())
        assert len(versions()) == 1 and len(list(whole.Path("out").rglob("*"))) == 3
        write_directory("old")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    assert every_kill(lambda: write_directory("new"), look) > 20
    assert seen == {"old", "new"}


def test_where_directories_cannot_be_swapped_the_old_one_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr(whole.ctypes, "CDLL", lambda name: object())  # a system without renameat2
    write_directory("old")
    missing = []

    def look():
        missing.append(not whole.Path("out").exists())
        whole.restore(whole.Path("out"))
        assert versions() in ({"old"}, {"new"})
        write_directory("old")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    every_kill(lambda: write_directory("new"), look)
    assert 1 <= sum(missing) <= 2, "between two renames, and nowhere else"


def test_a_file_that_is_killed_at_any_step_is_the_old_one_or_the_new_one(tmp_path):
    def write(text: str) -> None:
        with whole.file(whole.Path("file")) as partial:
            partial.write_text(text)

    write("old")
    seen = set()

    def look():
        seen.add(whole.Path("file").read_text())
        write("old")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    every_kill(lambda: write("new"), look)
    assert seen == {"old", "new"}


def test_a_journal_that_is_killed_at_any_step_has_every_line_before(tmp_path):
    path = whole.Path("journal")

    def write() -> None:
        journal = whole.Journal(path, whole.Path("out"), {"head": 1})
        for number in range(len(journal.lines), 5):
            journal.add(number)
            journal.sync()
        journal.close()

    def look():
        journal = whole.Journal(path, whole.Path("out"), {"head": 1})
        assert journal.lines == list(range(len(journal.lines)))
        journal.close()

    every_kill(write, look)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"head": 1}, 0, 1, 2, 3, 4]


def test_half_a_line_is_no_line_and_a_journal_of_something_else_is_begun_anew(tmp_path):
    def opened(head: dict) -> list:
        journal = whole.Journal(whole.Path("journal"), whole.Path("out"), head)
        lines = journal.lines
        journal.add(f"line {len(lines)}")
        journal.close()
        return lines

    assert opened({"a": 1}) == []
    with open("journal", "ab") as file:
        file.write(b'"half a li')
    assert opened({"a": 1}) == ["line 0"]
    assert opened({"a": 1}) == ["line 0", "line 1"]
    assert opened({"a": 2}) == []
    whole.Path("journal").write_text('{"a": 2}\nno JSON\n')
    with pytest.raises(ValueError, match="journal, line 2: not JSON. Remove that line"):
        opened({"a": 2})


def test_one_process_at_a_time(tmp_path):
    out = whole.Path("out")
    journal = whole.Journal(whole.Path("journal"), out)
    with pytest.raises(ValueError, match="Another process is writing out. Wait for it, or end it"):
        whole.Journal(whole.Path("journal"), out)
    journal.close()
    assert not list(tmp_path.iterdir()), "nothing was said"
    with whole.directory(out) as partial:
        (partial / "mine").write_text("mine")
        with pytest.raises(ValueError, match="Another process is writing out"), whole.directory(out):
            pass
    assert (out / "mine").read_text() == "mine"


def test_a_forked_child_that_outlives_its_parent_keeps_nobody_out(tmp_path):
    def work() -> None:
        journal = whole.Journal(whole.Path("journal"), whole.Path("out"))
        journal.add("line")
        if os.fork() == 0:
            os.write(tell, b".")
            time.sleep(5)
            os._exit(0)

    hear, tell = os.pipe()
    assert in_a_child(work, lambda: None) == 0
    assert os.read(hear, 1) == b"."
    journal = whole.Journal(whole.Path("journal"), whole.Path("out"))
    assert journal.lines == ["line"]
    journal.close()


def test_what_is_left_beside_a_whole_output_goes_unless_somebody_holds_it(tmp_path):
    out, journal = whole.Path("out"), whole.Path(".out.journal")
    write_directory("new")
    for held in (False, True):
        lines = whole.Journal(journal, out)
        lines.add("line")
        if not held:
            lines.close()
            whole.Path(".out.partial").mkdir()
            whole.Path(".out.partial/old").write_text("old")
        whole.tidy(out)
        assert {path.name for path in tmp_path.iterdir()} == ({"out", journal.name} if held else {"out"})
    lines.close()


def full_disk(size: int = 4096) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("way", ["file", "directory", "journal"])
def test_a_full_disk_is_one_line_and_what_was_there_stays(way, tmp_path):
    out = whole.Path("data/out")

    def write() -> None:
        if way == "journal":
            journal = whole.Journal(whole.Path("data/journal"), out)
            try:
                for _ in range(100):
                    journal.add("x" * 100)
            finally:
                journal.close()
            return
        with getattr(whole, way)(out) as partial:
            (partial / "part" if way == "directory" else partial).write_bytes(b"x" * 5000)

    def told() -> None:
        with pytest.raises(ValueError) as raised:
            write()
        assert str(raised.value) == (
            f"Cannot write data/out: {os.strerror(errno.EFBIG)}. What was there before is untouched. "
            "Make room there, and the same command goes on."
        )

    assert in_a_child(told, full_disk) == 0
    left = {path.name for path in whole.Path("data").iterdir()}
    assert left == ({"journal"} if way == "journal" else set())
    write()
    assert in_a_child(told, full_disk) == 0
    if way != "journal":
        assert {path.name for path in whole.Path("data").iterdir()} == {"out"}
        assert sum(path.stat().st_size for path in whole.Path("data").rglob("*") if path.is_file()) == 5000
    else:
        whole.Path("data/journal").write_bytes(whole.Path("data/journal").read_bytes()[:-7])
        journal = whole.Journal(whole.Path("data/journal"), out)
        assert set(journal.lines) == {"x" * 100}


@pytest.mark.parametrize("library", ["safetensors", "tokenizers"])
def test_a_full_disk_is_one_line_where_a_library_in_rust_writes_and_nothing_is_left(library, tmp_path):
    import numpy
    import safetensors.numpy
    import tokenizers

    def write() -> None:
        with whole.directory(whole.Path("data/out"), kept_on=ValueError) as partial:
            (partial / "config.json").write_text("{}")
            if library == "safetensors":
                safetensors.numpy.save_file({"x": numpy.zeros(5000)}, partial / "model.safetensors")
            else:
                words = {f"word{number}": number for number in range(1000)}
                tokenizers.Tokenizer(tokenizers.models.WordLevel(words)).save(str(partial / "tokenizer.json"))

    def told() -> None:
        with pytest.raises(whole.NoRoomError, match=f"^Cannot write data/out: {os.strerror(errno.EFBIG)}. What was"):
            write()

    assert in_a_child(told, full_disk) == 0
    assert not list(whole.Path("data").iterdir())
    write()


def test_what_is_wrong_elsewhere_is_not_called_a_write_error(tmp_path):
    with pytest.raises(FileNotFoundError), whole.directory(whole.Path("out")):
        open("nowhere")
    with pytest.raises(ConnectionRefusedError), whole.directory(whole.Path("out")):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody there")
    whole.Path("taken").write_text("a file")
    for place in ("taken/out", "taken/out/deep"):
        with pytest.raises(ValueError, match=f"Cannot write {place}: .*(irectory|File exists).*Choose another place"):
            with whole.directory(whole.Path(place)):
                pass
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_is_to_be_looked_at_is_kept_until_the_next_attempt_and_all_else_is_not(tmp_path):
    def left_by(error: Exception) -> set[str]:
        with pytest.raises(type(error)), whole.directory(whole.Path("out"), kept_on=ValueError) as partial:
            assert not any(partial.iterdir())
            (partial / "one").write_text("")
            raise error
        return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}

    assert left_by(ValueError("it is not what it should be")) == {".out.partial", ".out.partial/one"}
    assert left_by(KeyError("a fault of ours")) == set()
    left_by(ValueError())
    write_directory("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_another_disk_is_followed(tmp_path):
    whole.Path("disk/real").mkdir(parents=True)
    whole.Path("out").symlink_to("disk/real")
    write_directory("new")
    assert whole.Path("out").is_symlink() and versions() == {"new"}
    assert [path.name for path in whole.Path("disk").iterdir()] == ["real"]


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_may_be_read_by_whoever_may_read_what_lies_beside_them(mask, mode, tmp_path):
    import numpy
    from safetensors.numpy import save_file

    before = os.umask(mask)
    try:
        with whole.directory(tmp_path / "model") as partial:
            save_file({"x": numpy.zeros(2)}, partial / "model.safetensors")
            (partial / "config.json").write_text("{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {mode}


SOURCE = '''"""Sums."""
import re

PROMPT = "Add."


class Sum:
    """What a sum is."""

    sign: str = "+"

    def of(self, a, b=None):
        """The sum of two."""
        return re.match(r"\\d+", f"{a + 1:>3}", flags=re.I) if a else {**a, "b": b}
'''


def test_what_a_source_does_is_the_same_whatever_its_comments_its_layout_and_its_docstrings():
    does = whole.digest(whole.code_of(SOURCE))
    for old, new in (
        ("import re\n", "import re  # a comment\n\n\n"),
        ('"""Sums."""\n', ""),
        ('"""What a sum is."""', '"""Another."""'),
        ('"""The sum of two."""', ""),
        ("of(self, a, b=None)", "of(\n        self,\n        a,\n        b=None,\n    )"),
        ('"Add."', "(u'A' 'dd.')"),
    ):
        assert old in SOURCE and whole.digest(whole.code_of(SOURCE.replace(old, new))) == does, new


def test_another_constant_name_order_or_pattern_is_another_source():
    sources = [SOURCE] + [
        SOURCE.replace(old, new)
        for old, new in (
            ('"Add."', '"Add!"'),
            ('"Add."', '""'),
            ('"Add."', "None"),
            ('"Add."', "'None'"),
            ('"Add."', '["Add.", []]'),
            ('"Add."', '[["Add."]]'),
            ('"Add."', '[["Add.", []]]'),
            ("\\d+", "\\d*"),
            ("+ 1", "- 1"),
            ("+ 1", "+ 1.0"),
            ("+ 1", "+ True"),
            (":>3", ":>4"),
            ("re.I", "re.M"),
            ("b=None", "b=0"),
            ("a, b=None", "b, a=None"),
            ("a, b=None", "a, *, b=None"),
            ("{**a, ", "{a: "),
            ("sign: str =", "sign ="),
            ("import re", "import regex as re"),
            ("    def of", "    async def of"),
            ("class Sum:", "class Sum(str):"),
            ("    sign:", "    @property\n    def none(self): ...\n\n    sign:"),
        )
    ]
    assert len({whole.digest(whole.code_of(source)) for source in sources}) == len(sources)


@pytest.mark.parametrize(
    "reads", ["Sum.__doc__", "getattr(Sum, '__doc__')", "inspect.getdoc(Sum)", "get_json_schema(Sum)"]
)
def test_a_docstring_counts_in_a_source_that_may_read_it(reads):
    source = f"{SOURCE}\nprint({reads})\n"
    other = source.replace("What a sum is.", "Another.")
    assert whole.digest(whole.code_of(source)) != whole.digest(whole.code_of(other))
    assert whole.digest(whole.code_of(source)) == whole.digest(
        whole.code_of(source.replace("import re", "import re  # it"))
    )


def test_what_is_no_python_or_reads_its_own_source_counts_to_the_letter():
    for broken in ("def f(:\n", "a = 1\0", f"{SOURCE}\nprint(inspect.getsource(Sum))\n"):
        assert whole.code_of(broken) == broken
