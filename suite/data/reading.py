"""Raw rows from a local file, a directory or the Hub, each with its place; and the split where a source has none.

What a data set does with a row it cannot use: a row without a column it needs is an error that names the place (the
source has another schema than was thought); a row that has the column and nothing usable in it is yielded as
`Dropped`, which `suite prepare` counts by reason.
"""

import contextlib
import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from suite import checkpoint

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
_SHARD = re.compile(r"[-_]\d+-of-\d+.*")  # train-00000-of-00005.parquet belongs to the split `train`
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Dropped(NamedTuple):
    """A row that a data set leaves out: the reason, in a few words that many rows share, and the place of the row."""

    reason: str
    where: str


def rows(
    split: str,
    source: str,
    *,
    by: tuple[str, ...],
    test_size: int = 500,
    seed: int = 0,
    subset: str | None = None,
    names: tuple[str, str] = ("train", "test"),
) -> Iterator[tuple[str, dict]]:
    """(place, row) of one split, "train" or "test", of a source: one file, a directory of files, or a Hub repository.

    `names` are the source's own names of the two splits. A source with the first only, or with just one of any name,
    is divided: of the different values of the columns `by` (the question), `test_size`, chosen by `seed`, are the test
    set; so no question is in both. Raises `ValueError` for a source that is not there or has no split that would do.
    """
    parts = _parts(source, subset)
    if set(names) <= parts.keys():
        wanted = names[0] if split == "train" else names[1]
        yield from _places(source, wanted, parts[wanted])
        return
    if names[0] not in parts and len(parts) > 1:
        raise ValueError(
            f"{source} has neither a split '{names[0]}' nor just one. There are: {', '.join(parts)}. Name a file of it."
        )
    only = names[0] if names[0] in parts else next(iter(parts))
    test = _draw((_digest(row, place, by) for place, row in _places(source, only, parts[only], by)), test_size, seed)
    for place, row in _places(source, only, parts[only]):
        if (_digest(row, place, by) in test) == (split == "test"):
            yield place, row


def value(row: dict, place: str, *names: str):
    """What stands in the first of the columns `names` that the row has. Raises `ValueError` where it has none."""
    for name in names:
        if name in row:
            return row[name]
    wanted = " or ".join(f"`{name}`" for name in names)
    raise ValueError(f"{place}: there is no column {wanted}, only {', '.join(map(str, row))}. Is it another data set?")


def text(row: dict, place: str, *names: str) -> str:
    """The same, as text without the space around it; None is no text. Raises `ValueError` for a list or an object."""
    found = value(row, place, *names)
    if isinstance(found, list | dict):
        raise ValueError(f"{place}: {' or '.join(f'`{n}`' for n in names)} must be text, and is {str(found)[:60]}.")
    return "" if found is None else str(found).strip()


def number(row: dict, place: str, name: str) -> float:
    """The same, as a number; None is nan. Raises `ValueError` for what is none."""
    found = value(row, place, name)
    try:
        return float("nan") if found is None else float(found)
    except (TypeError, ValueError):
        raise ValueError(f"{place}: `{name}` must be a number, and is {str(found)[:60]!r}.") from None


def files(source: str) -> dict[str, list[Path]]:
    """Split -> its files, of a local source; nothing for a Hub repository.

    A file on its own is one split, whatever its name says.
    """
    path = Path(source)
    if path.is_file():
        return {_split_of(path): [path]}
    found: dict[str, list[Path]] = {}
    for folder in (path, path / "data") if path.is_dir() else ():
        for file in sorted(folder.glob("*")):
            if file.is_file() and _format(file) in SUFFIXES:
                found.setdefault(_split_of(file), []).append(file)
    return found


def _format(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _split_of(path: Path) -> str:
    return _SHARD.sub("", path.name.partition(".")[0])


def _parts(source: str, subset: str | None) -> dict:
    """Split -> files, or split -> data set of the Hub."""
    path = Path(source)
    found = files(source)
    if path.is_file() and _format(path) not in SUFFIXES:
        raise ValueError(f"'{source}' is no kind of file that can be read here. There are: {', '.join(SUFFIXES)}, .gz.")
    if found:
        return {next(iter(found)): [path]} if path.is_file() else found
    if path.is_dir():
        raise ValueError(f"The directory '{source}' holds no {', '.join(SUFFIXES)} file.")
    if checkpoint.is_local(source) or _format(path) in SUFFIXES or not _HUB_NAME.fullmatch(source):
        raise ValueError(f"There is no file or directory '{source}'.")
    from datasets import load_dataset

    try:
        return dict(load_dataset(source, name=subset))
    except (OSError, RuntimeError, ValueError) as error:  # the network and the Hub's own refusals
        raise ValueError(
            f"There is no file or directory '{source}' here, and the Hub does not give it: {error}. "
            "Where there is no network, name a local copy: --source PATH."
        ) from error


def _places(source: str, split: str, part, columns: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """(place, row) of every row; where the format allows it, only `columns` are read."""
    if isinstance(part, list):
        for path in part:
            yield from _read(path, columns)
        return
    there = [name for name in columns if name in part.column_names]
    for number, row in enumerate(part.select_columns(there) if there else part, 1):
        yield f"{source} ({split}), row {number}", row


def _read(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    kind = _format(path)
    if kind == ".parquet":
        yield from _read_parquet(path, columns)
        return
    if kind == ".json":
        yield from _read_json(path)
        return
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, {"text": line.strip()} if kind == ".txt" else _object(line, place)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A file as text. Raises `ValueError`, naming it, where its bytes are not UTF-8 or its gzip is broken."""
    try:
        # The mark that Windows puts at the beginning of UTF-8 (-sig) is no part of the first row.
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as text:
            yield text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Convert it: iconv -f GB18030 -t UTF-8, say.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no gzip file, or is cut off or broken: {error}") from None


def _object(line: str, place: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: a row must be a JSON object, and this is {line.strip()[:60]!r}.")
    return row


def _read_json(path: Path) -> Iterator[tuple[str, dict]]:
    """A list of objects, all in memory; or, as some name their .jsonl files, an object a line."""
    with _opened(path) as text:
        content = text.read()
    if not content.lstrip().startswith("["):
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield f"{path}, line {number}", _object(line, f"{path}, line {number}")
        return
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: a row must be a JSON object, and this is {str(row)[:60]!r}.")
        yield f"{path}, row {number}", row


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
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


def _digest(row: dict, place: str, by: tuple[str, ...]) -> bytes:
    """Eight bytes for the question, for a million of them may be kept while the rows go by."""
    value(row, place, *by)
    question = [row[name] for name in by if name in row]
    return hashlib.blake2b(json.dumps(question, default=str).encode(), digest_size=8).digest()


def _draw(digests: Iterable[bytes], test_size: int, seed: int) -> set[bytes]:
    questions = sorted(set(digests))
    if len(questions) < 2:
        raise ValueError(
            f"The source has one split, of {len(questions)} different questions: too few to divide it into a training "
            "and a test set."
        )
    if not 0 < test_size < len(questions):
        raise ValueError(
            f"test_size: {test_size} must lie between 1 and {len(questions) - 1}: the source has one split, of "
            f"{len(questions)} different questions, and is divided."
        )
    return set(random.Random(seed).sample(questions, test_size))
