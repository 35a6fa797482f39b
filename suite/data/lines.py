"""Rows of one file, each with its place: .parquet, or .jsonl, .json or .txt, plain, .gz or .zst, read as a stream.

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
COMPRESSED = (".gz", ".zst")  # which parquet is not: it is compressed inside
_UNPACKED_BY = {".gz": "gunzip", ".zst": "unzstd"}
_BOM = b"\xef\xbb\xbf"  # which Windows puts at the beginning of UTF-8
# No UTF-8 begins with one of them; the first begins with the second.
_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_HEAD = 1 << 18  # bytes at the beginning of a file, by which its encoding is known
_FOREIGN = 3  # lines there that are no UTF-8, where hardly one says otherwise, are no accident
_ENOUGH = 30  # lines beyond ASCII tell of the lines behind them, too
_OBJECTS = "A row is a JSON object in a line of its own; a .json may be one list of objects, too."
_WAY = {
    "not UTF-8": "Convert it: iconv -f GB18030 -t UTF-8 where it is Chinese, -f WINDOWS-1252 where it is Western, say.",
    "not JSON": _OBJECTS,
    "no JSON object": _OBJECTS,
}
_BEYOND_ASCII = re.compile(r"[^\0-\x7f]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, where its other half is missing
_NAMED = 3  # of the rows of a file that are left out, so many are named; of more the number is told


class Dropped(NamedTuple):
    """A row that is left out: the reason, in a few words that many rows share, and the place of the row."""

    reason: str
    where: str


def suffix(path: Path) -> str:
    """What kind of file it is, whether compressed or not, and written in small letters or not."""
    path = Path(path.name.lower())
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def read(path: Path, columns: tuple[str, ...] = ()) -> Iterator[tuple[str, dict | Dropped]]:
    """(place, row) of every row; of a parquet file only `columns`, where it has any of them.

    Raises `ValueError` for a file that is cut off, broken from beginning to end, or not in UTF-8.
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
        way = _WAY.get(first.reason, "")
        raise ValueError(f"{first.where}: {first.reason}, and so it is with every row of the file. {way}".rstrip())


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
            say_once(f"left out: {row.where}: {row.reason}", alone)
    if first and not kept:
        raise ValueError(f"{path}: no row can be used. The first is {first.where}: {first.reason}.")
    if left_out.total() > _NAMED:
        reasons = ", ".join(f"{n} ({reason})" for reason, n in left_out.most_common())
        say_once(f"left out in all of {path}: {reasons}", alone)


_said: set[str] = set()


def say_once(line: str, alone: bool = False) -> None:
    """Files are looked at, and rows read, more than once: to look at the first, to divide them, epoch by epoch."""
    if line not in _said:
        _said.add(line)
        print(line, flush=True) if alone else say(line)


def _lines(path: Path, kind: str) -> Iterator[tuple[str, dict | Dropped]]:
    with _opened(path) as file:
        _check_encoding(file.peek(_HEAD)[:_HEAD], path)
        for number, line in enumerate(file, 1):
            if line := (line.removeprefix(_BOM) if number == 1 else line).strip():
                place = f"{path}, line {number}"
                yield place, _row(line, kind, place)


def _check_encoding(head: bytes, path: Path) -> None:
    """Raise `ValueError` where the first bytes show that a file is not in UTF-8. Some of its lines may read as if."""
    name = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None) or _unmarked(head)
    if name:
        raise ValueError(f"{path} is {name}. Convert it: iconv -f {name} -t UTF-8.")
    lines = head.split(b"\n")[:-1]  # the last may be cut off
    told = sum(bool(line.strip(b" \t\r[]{},")) for line in lines)  # without the brackets of a list
    beyond_ascii = [line for line in lines if not line.isascii()]
    foreign = sum(not _reads_as(line, "utf-8") for line in beyond_ascii)
    # Of many lines a tenth are enough, of few a third. What is fewer is left out line by line.
    if len(beyond_ascii) >= _ENOUGH:
        share = 0.1
    elif len(head) < _HEAD:  # the whole file
        share = 0.3
    else:
        return
    # Two bytes of GB18030 may be a letter of UTF-8, so a short line may read as that.
    if foreign >= max(_FOREIGN, share * told, 0.9 * len(beyond_ascii)):
        way = "Convert it: iconv -f WINDOWS-1252 -t UTF-8, say."
        if _is_chinese(b"\n".join(beyond_ascii).decode("gb18030", "replace")):
            way = "Convert it: iconv -f GB18030 -t UTF-8, say."
        elif 0 in head:
            way = "It has NUL bytes, too: is it text?"
        raise ValueError(f"{path} is not UTF-8: of its first {len(lines)} lines, {foreign} cannot be read. {way}")


def _unmarked(head: bytes) -> str | None:
    """UTF-16 that does not say so has a NUL in the end of each line, and beside each Latin letter.

    So has a broken file of UTF-8: but what stands between its NULs is no Chinese when it is read by twos.
    """
    even, odd = head[::2].count(0), head[1::2].count(0)
    ends = head.count(b"\n\0") + head.count(b"\0\n")
    name = "UTF-16LE" if odd > even else "UTF-16BE"
    beside_letters = 4 * abs(even - odd) > len(head)
    if not (beside_letters or ends) or not _reads_as(head, name):
        return None
    text = head.decode(name, "ignore")
    if "\0" in text:
        return None
    if beside_letters or not _reads_as(head, "utf-8"):
        return name
    return name if 2 * ends > head.count(b"\n") and _is_chinese(text) else None


def _is_chinese(text: str) -> bool:
    """Whether most that is no ASCII is common Chinese (level 1 of GB 2312), as Western text taken for it is not."""
    beyond_ascii = _BEYOND_ASCII.findall(text, 0, 1 << 16)[:1000]
    codes = [char.encode("gb2312", "ignore") for char in beyond_ascii]
    return 2 * sum(len(code) == 2 and 0xB0 <= code[0] <= 0xD7 for code in codes) > len(codes)


def _reads_as(content: bytes, encoding: str) -> bool:
    """Whether it can be read so; its last character may be cut off."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return False
    return True


def _row(line: bytes, kind: str, place: str) -> dict | Dropped:
    if 0 in line:  # ten times as fast as to look for b"\0"
        return Dropped("NUL bytes", place)
    try:
        text = line.decode()
        row = {"text": text.strip()} if kind == ".txt" else json.loads(text)
    except UnicodeDecodeError:
        return Dropped("not UTF-8", place)
    except json.JSONDecodeError as error:
        return Dropped("not JSON", f"{place}, column {error.colno}")
    except (RecursionError, ValueError):  # brackets without end, or a number of thousands of digits
        return Dropped("not JSON", place)
    return _whole(row, place, text)


def _whole(row, place: str, text: str) -> dict | Dropped:
    """What was read from `text`, unless it is no object, or holds half a character, which cannot be written again."""
    if _SURROGATE.search(text):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return Dropped("half a character", place)
    return row if isinstance(row, dict) else Dropped("no JSON object", place)


def _json(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict | Dropped]]:
    """A list of objects, all in memory; or, as some name their .jsonl files, an object a line."""
    with _opened(path) as file:
        head = file.peek(_HEAD)[:_HEAD]
        _check_encoding(head, path)
        content = file.read() if head.removeprefix(_BOM).lstrip().startswith(b"[") else None
    if content is None:
        yield from _lines(path, ".jsonl")
        return
    try:
        text = content.decode("utf-8-sig")
        found = json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). {_WAY['not UTF-8']}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: not JSON ({error}).") from None
    suspect = text if _SURROGATE.search(text) else ""
    for number, row in enumerate(found, 1):
        place = f"{path}, row {number}"
        yield place, _whole(row, place, suspect)


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    file = parquet_file(path)
    there = [name for name in columns if name in file.schema_arrow.names]
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1000, columns=there or None):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except OSError as error:
        raise ValueError(f"{path} is broken behind row {number}: {error}") from None


def parquet_file(path: Path):
    """A parquet file, opened. Raises `ValueError` where it is cut off or broken, or compressed once more."""
    import pyarrow
    import pyarrow.parquet

    if program := _UNPACKED_BY.get(path.suffix.lower()):
        raise ValueError(
            f"{path}: parquet is compressed inside, and is not read where it is {path.suffix}, too. Unpack it: "
            f"{program} '{path}'"
        )
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is cut off or broken: {error}") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed as they are read. Raises `ValueError` where they are cut off or broken."""
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix.lower() == ".zst":
                import pyarrow  # Python itself reads Zstandard from 3.14 on

                stream = stack.enter_context(pyarrow.input_stream(str(path), compression="zstd"))
                yield io.BufferedReader(stream, 1 << 20)
            elif path.suffix.lower() == ".gz":
                yield io.BufferedReader(stack.enter_context(gzip.open(path)), _HEAD)
            else:
                yield stack.enter_context(path.open("rb", _HEAD))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no gzip file, or is cut off or broken: {error}") from None
    except OSError as error:
        if path.suffix.lower() != ".zst":
            raise
        raise ValueError(f"{path} is no Zstandard file, or is cut off or broken: {error}") from None
