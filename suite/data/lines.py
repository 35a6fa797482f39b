"""Rows of one file, each with its place: .jsonl, .json, .txt or .parquet, plain, .gz or .zst, read as a stream.

A line that is no row is given as `Dropped` in its place: it is counted and named, and the rows around it are read. In a
file of which nothing can be read the first such line is an error.
"""

import codecs
import contextlib
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from suite.args import say

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
COMPRESSED = (".gz", ".zst")
_BOM = b"\xef\xbb\xbf"  # which Windows puts at the beginning of UTF-8
# No UTF-8 begins with one of them; the first begins with the second.
_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_NUL = "NUL bytes"  # beside each Latin letter, in UTF-16
_CONVERT = {
    "not UTF-8": " Convert it: iconv -f GB18030 -t UTF-8, say.",
    _NUL: " Convert it: iconv -f UTF-16LE -t UTF-8, say, or -f UTF-16BE.",  # without its mark, iconv has to be told
}
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, where its other half is missing
_NAMED = 3  # of the rows of a file that are left out, so many are named; of more the number is told


class Dropped(NamedTuple):
    """A row that is left out: the reason, in a few words that many rows share, and the place of the row."""

    reason: str
    where: str


def suffix(path: Path) -> str:
    """What kind of file it is, whether compressed or not."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def read(path: Path, columns: tuple[str, ...] = ()) -> Iterator[tuple[str, dict | Dropped]]:
    """(place, row) of every row; of a parquet file only `columns`, where it has any of them.

    Raises `ValueError` for a file that is cut off, broken from beginning to end, or marked as UTF-16.
    """
    kind = suffix(path)
    rows = {".parquet": _parquet, ".json": _json}.get(kind)
    broken: dict[str, Dropped] = {}  # the first of each reason
    whole = False
    for place, row in rows(path, columns) if rows else _lines(path, kind):
        if not isinstance(row, Dropped):
            whole = True
        elif row.reason not in broken:
            broken[row.reason] = row
        yield place, row
    if broken and not whole:
        first = next(iter(broken.values()))
        if broken.keys() <= _CONVERT.keys():  # bytes of UTF-16 are often no UTF-8, either
            first = broken.get(_NUL, first)
        way = _CONVERT.get(first.reason, "")
        raise ValueError(f"{first.where}: {first.reason}, and so it is with every row of the file.{way}")


def told(path: Path, rows: Iterable[tuple[str, dict | Dropped]], *, alone: bool = False) -> Iterator[tuple[str, dict]]:
    """The rows of a file without those that are left out; of these the first are named, and of more the number told.

    Rank 0 tells it, or whoever reads the file `alone`. Raises `ValueError` where that is every one of them.
    """
    left_out: Counter[str] = Counter()
    first, kept = None, False
    for place, row in rows:
        if not isinstance(row, Dropped):
            kept = True
            yield place, row
            continue
        first = first or row
        left_out[row.reason] += 1
        if left_out.total() <= _NAMED:
            _say_once(f"left out: {row.where}: {row.reason}", alone)
    if first and not kept:
        raise ValueError(f"{path}: no row can be used. The first is {first.where}: {first.reason}.")
    if left_out.total() > _NAMED:
        reasons = ", ".join(f"{n} ({reason})" for reason, n in left_out.most_common())
        _say_once(f"left out in all of {path}: {reasons}", alone)


_said: set[str] = set()


def _say_once(line: str, alone: bool) -> None:
    """Rows are read more than once: to look at the first, to divide them, epoch by epoch."""
    if line not in _said:
        _said.add(line)
        print(line, flush=True) if alone else say(line)


def _lines(path: Path, kind: str) -> Iterator[tuple[str, dict | Dropped]]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if line := (_first(line, path) if number == 1 else line).strip():
                place = f"{path}, line {number}"
                yield place, _row(line, kind, place)


def _first(line: bytes, path: Path) -> bytes:
    """The first line without its mark of UTF-8. Raises `ValueError` for that of UTF-16 or UTF-32."""
    name = next((name for mark, name in _MARKS.items() if line.startswith(mark)), None)
    if name:
        raise ValueError(f"{path} is {name}. Convert it: iconv -f {name} -t UTF-8.")
    return line.removeprefix(_BOM)


def _row(line: bytes, kind: str, place: str) -> dict | Dropped:
    if 0 in line:  # ten times as fast as to look for b"\0"
        return Dropped(_NUL, place)
    try:
        text = line.decode()
        row = {"text": text.strip()} if kind == ".txt" else json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return Dropped("not UTF-8", place)
    except UnicodeEncodeError:
        return Dropped("half a character", place)
    except json.JSONDecodeError as error:
        return Dropped("not JSON", f"{place}, column {error.colno}")
    except RecursionError:
        return Dropped("not JSON", place)
    return row if isinstance(row, dict) else Dropped("no JSON object", place)


def _json(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict | Dropped]]:
    """A list of objects, all in memory; or, as some name their .jsonl files, an object a line."""
    with _opened(path) as file:
        start = file.peek(1 << 16)[: 1 << 16].removeprefix(_BOM).lstrip()
        content = file.read() if start.startswith(b"[") and not start.startswith(b"[\0") else None
    if content is None:
        yield from _lines(path, ".jsonl")
        return
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}).{_CONVERT['not UTF-8']}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    for number, row in enumerate(found, 1):
        place = f"{path}, row {number}"
        yield place, row if isinstance(row, dict) else Dropped("no JSON object", place)


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is cut off or broken: {error}") from None
    there = [name for name in columns if name in file.schema_arrow.names]
    number = 0
    for batch in file.iter_batches(batch_size=1000, columns=there or None):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}, row {number}", row


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed as they are read. Raises `ValueError` where they are cut off or broken."""
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix == ".zst":
                import pyarrow  # Python itself reads Zstandard from 3.14 on

                stream = stack.enter_context(pyarrow.input_stream(str(path), compression="zstd"))
                yield io.BufferedReader(stream, 1 << 20)
            elif path.suffix == ".gz":
                yield stack.enter_context(gzip.open(path))
            else:
                yield stack.enter_context(path.open("rb"))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no gzip file, or is cut off or broken: {error}") from None
    except OSError as error:
        if path.suffix != ".zst":
            raise
        raise ValueError(f"{path} is no Zstandard file, or is cut off or broken: {error}") from None
