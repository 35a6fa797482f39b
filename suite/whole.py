"""How output appears whole or not at all: written beside its place, brought to the disk, and put there in one step.

What is not finished lies in a hidden neighbor of its target, `.NAME.partial`, which no reader takes for data and the
next attempt clears away or goes on from. Long work notes in a `Journal` what it has done. A disk that is full is one
`ValueError`.
"""

import ast
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, a limit on the size of files
_NUMBER = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers, which are written in Rust, pass it on
SYNC_EVERY = 1.0  # seconds of journal that a power cut may cost; a kill costs nothing that was written down
# Whoever names one of them may read docstrings as it runs, or all that is written.
_DOC_READERS = ("__doc__", "getdoc", "get_docstring", "get_json_schema", "model_json_schema", "schema_json")
_SOURCE_READERS = ("getsource", "getsourcelines", "getcomments")


def digest(content) -> str:
    """Sixteen hex digits of anything that JSON can say: whether an output, or part of one, is of the same making."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_of(source: str) -> list | str:
    """What a Python source does, for `digest`: not how it is laid out, nor its comments, nor its docstrings unless it
    may read them. Where it does not parse, or reads what is written, the source itself.

    The nodes of its tree, breadth first. `ast.unparse` and `ast.dump` write the same tree differently in different
    Pythons; here a field counts only where it holds something, so one that a newer Python adds changes nothing. What
    still differs is an f-string that Python 3.12 parses otherwise.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return source
    nodes = list(ast.walk(tree))
    said = {value for node in nodes for _, value in ast.iter_fields(node) if isinstance(value, str)}
    if not said.isdisjoint(_SOURCE_READERS):
        return source
    if said.isdisjoint(_DOC_READERS):
        for node in nodes:
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
    return [[type(node).__name__, _fields(node)] for node in ast.walk(tree)]


def _fields(node: ast.AST) -> dict[str, str | list[str]]:
    """Field -> what it holds, an empty text for each node: breadth first, they follow in order. `kind` is the u of
    u"text"."""

    def said(value) -> str:
        return "" if isinstance(value, ast.AST) else repr(value)

    there = {name: v for name, v in ast.iter_fields(node) if v is not None and v != [] and name != "kind"}
    return {name: list(map(said, v)) if isinstance(v, list) else said(v) for name, v in there.items()}


def journal_of(target: Path) -> Path:
    """Where a `Journal` of the work on `target` lies."""
    return target.with_name(f".{target.name}.journal")


def partial_of(target: Path) -> Path:
    """Where `target` is written until it is whole: on the same disk, for only there is a rename one step."""
    real = target.resolve() if target.is_symlink() else target
    return real.with_name(f".{real.name}.partial")


class NoRoomError(ValueError):
    """A disk that is full."""


@contextlib.contextmanager
def file(target: Path) -> Iterator[Path]:
    """A path to write to. Behind the block the file takes the place of `target`; where the block raises, it is gone."""
    partial = partial_of(target)
    try:
        with writing(target):
            partial.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            put(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def directory(target: Path, *, kept_on: type[Exception] | tuple = ()) -> Iterator[Path]:
    """An empty directory to write to. Behind the block it takes the place of `target`; where it raises, it is gone.

    What raises an error of the kinds in `kept_on` leaves its files there to be looked at, until the next attempt. What
    a killed attempt has left is cleared away first. Raises `ValueError` where another process is at it.
    """
    partial = partial_of(target)
    with writing(target):
        restore(target)
        partial.parent.mkdir(parents=True, exist_ok=True)
        handle = _hold(partial, os.O_RDONLY | os.O_DIRECTORY, target)
        kept = False
        try:
            for left in partial.iterdir():
                remove(left)
            yield partial
            put(partial, target)
        except kept_on:
            kept = True
            raise
        finally:
            if not kept:
                remove(partial)
            _release(handle)


def put(partial: Path, target: Path) -> None:
    """Bring a finished file or directory to the disk and give it the place of `target`.

    A kill at any moment leaves the old `target` or the new one. Where the system cannot swap two directories in one
    step, there is a moment with neither; the old one is then beside its place, and `restore` puts it back.
    """
    sync(partial)
    target = target.resolve() if target.is_symlink() else target
    if target.is_dir():
        if not _swap(partial, target):
            remove(_aside(target))
            os.rename(target, _aside(target))
            try:
                os.rename(partial, target)
            except BaseException:
                os.rename(_aside(target), target)
                raise
        _sync_one(target.parent)
        remove(partial)
        remove(_aside(target))
    else:
        os.replace(partial, target)
        _sync_one(target.parent)


def restore(target: Path) -> None:
    """Mend what a kill in the middle of `put` may have left; every command that replaces `target` begins with it."""
    target = target.resolve() if target.is_symlink() else target
    aside = _aside(target)
    if not aside.exists():
        return
    if target.exists():
        remove(aside)
    else:
        os.rename(aside, target)


def tidy(target: Path) -> None:
    """`target` is whole: remove what a kill at the very end has left beside it, unless another process is at work."""
    for left in (journal_of(target), partial_of(target)):
        if left.exists():
            with contextlib.suppress(ValueError):
                handle = _hold(left, os.O_RDONLY | (os.O_DIRECTORY if left.is_dir() else 0), target)
                remove(left)
                _release(handle)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or a directory and all in it, to the disk. Else a power cut may keep the name and lose what it
    names; and some disks say only now that they are full. Weights, which safetensors writes for their owner alone, may
    then be read by whoever may look into the directory, as all that lies beside them."""
    for folder, _, names in os.walk(path):
        for weights in Path(folder).glob("*.safetensors"):
            weights.chmod(Path(folder).stat().st_mode & 0o666)
        for there in (Path(folder), *(Path(folder) / name for name in names)):
            if not there.is_symlink():
                _sync_one(there)
    if not path.is_dir():
        _sync_one(path)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Where `target` cannot be written, raise a `ValueError` that says so in one line, and how to go on: `NoRoomError`
    where the disk is full.

    Errors about other files, and of the network, pass: whoever reads them knows more about them.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        ours, full = isinstance(error, OSError) and _is_about(error, target), number in FULL
        if not (ours or full):
            raise
        way = "Make room there, and the same command goes on." if full else "Choose another place, or make it writable."
        elsewhere = None if ours or not isinstance(error, OSError) else error.filename  # such as a library's cache
        told = re.sub(r"\.([^/]+)\.partial\b", r"\1", str(elsewhere or target))
        said, kind = (os.strerror(number), NoRoomError) if full else (error, ValueError)
        raise kind(f"Cannot write {told}: {said}. What was there before is untouched. {way}") from None


def _number(error: Exception) -> int | None:
    """The system's own number of what went wrong."""
    if isinstance(error, OSError):
        return error.errno
    found = _NUMBER.search(str(error))
    return int(found[1]) if found else None


def read_lines(path: Path) -> list:
    """The lines of a journal, none where there is no file; what was cut off at its end is no line.

    Raises `ValueError` for a line that is no JSON.
    """
    content = path.read_bytes() if path.is_file() else b""
    lines = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}, line {number}: not JSON. Remove that line.") from None
    return lines


class Journal:
    """What was done so far, a line of JSON each, written down as it comes; a kill loses the line it falls into.

    `lines` are those that an earlier process has left. One process at a time may hold it.
    """

    def __init__(self, path: Path, target: Path, head: dict | None = None):
        """`head` says what the lines belong to, and is the first of the file: lines of anything else are dropped.

        Errors name `target`, the output that the lines are for. Raises `ValueError` for a line that is no JSON, where
        nothing can be written, and where another process holds the journal.
        """
        self.path, self.target = path, target
        with writing(target):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = _hold(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, target)
        self._synced = time.monotonic()
        try:
            self.lines = read_lines(path)
            self._size = path.read_bytes().rfind(b"\n") + 1  # what is behind it was cut off half-way
            if head is not None:
                if self.lines[:1] != [head]:
                    self.replace([head])
                self.lines = self.lines[1:]
        except BaseException:
            _release(self._handle)
            raise
        self._empty = not self.lines

    def replace(self, lines: list) -> None:
        """Begin anew, with these lines."""
        with writing(self.target):
            os.ftruncate(self._handle, 0)
        self._size, self.lines = 0, lines
        self._write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def add(self, line) -> None:
        """Write one line down."""
        self._empty = False
        self._write(json.dumps(line).encode() + b"\n")
        if time.monotonic() - self._synced > SYNC_EVERY:
            self.sync()

    def _write(self, data: bytes) -> None:
        with writing(self.target):
            os.ftruncate(self._handle, self._size)  # half a line, of a kill or of a disk that was full
            done = 0
            while done < len(data):
                done += os.write(self._handle, data[done:])
        self._size += len(data)

    def sync(self) -> None:
        """Bring what was written to the disk."""
        with writing(self.target):
            os.fsync(self._handle)
        self._synced = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt) and not self._empty:
            raise kind("What is done is kept: the same command goes on.") from None

    def close(self) -> None:
        """Let the next process go on. A journal that says nothing leaves no trace."""
        if self._empty:
            remove(self.path)
        if self._handle is not None:
            _release(self._handle)
        self._handle = None

    def remove(self) -> None:
        """The work is done, and the journal is no longer needed."""
        self._empty = True
        self.close()


@contextlib.contextmanager
def held(lock: Path, target: Path) -> Iterator[None]:
    """Keep other processes from the work on `target`, by a lock on a file of its own; what a kill leaves locks nothing.

    Raises `ValueError` where another process is at it.
    """
    with writing(target):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = _hold(lock, os.O_RDWR | os.O_CREAT, target)
    try:
        yield
    finally:
        remove(lock)
        _release(handle)


@contextlib.contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """One process after another, where files in `folder` are read, changed and written back."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that has no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


_held: set[int] = set()


def _hold(path: Path, flags: int, target: Path) -> int:
    """The file or directory at `path`, made if need be, opened, and kept from other processes until it is released."""
    while True:
        if flags & os.O_DIRECTORY:
            path.mkdir(exist_ok=True)
        handle = os.open(path, flags, 0o666)
        _held.add(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _release(handle)
            raise ValueError(f"Another process is writing {target}. Wait for it, or end it.") from None
        except OSError:  # a file system that has no locks
            return handle
        with contextlib.suppress(FileNotFoundError):  # whoever held it until now may have renamed or removed it
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        _release(handle)


def _release(handle: int) -> None:
    _held.discard(handle)
    os.close(handle)


def _let_go() -> None:
    """In a forked child, such as a data loader's worker or vLLM's engine, which may outlive its parent."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old.partial")


def _swap(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False where the system or the file system cannot. man 2 renameat2"""
    at_cwd, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # not Linux
        return False
    return rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot bring a directory to the disk
            raise
    finally:
        os.close(handle)


def _is_about(error: OSError, target: Path) -> bool:
    """Whether an error names the target, what is written beside it, or a directory that holds it."""
    names = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | Path)]
    hidden = (str(partial_of(target)), str(_aside(target)), str(journal_of(target)))
    ours = [str(path) for path in (target, *target.parents)]
    return any(name in ours or name.startswith(hidden) for name in names)
