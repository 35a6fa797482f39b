"""Raw rows from a local file, a directory or the Hub, each with its place; and the split where a source has none.

What a data set does with a row it cannot use: a row without a column it needs is an error that names the place (the
source has another schema than was thought); a row that has the column and nothing usable in it is yielded as
`Dropped`, which `suite prepare` counts by reason. A line that is no row at all, among others that are, is left out and
named.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from suite import pins
from suite.data import lines
from suite.data.lines import SUFFIXES, Dropped

# What lies beside rows, and is none: notes, of which the .json look like rows, and what is hidden.
_NOTES = ("prepare.json", "sample.json", "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_BESIDE = (".", "_", "README", "LICENSE", "NOTICE", *_NOTES)  # how such names begin
_PROSE = re.compile(r"(readme|licen[cs]e|notice)([-_. ].*)?\.(txt|md)", re.IGNORECASE)  # no rows, though a .txt
_UNPACKED = {
    ".csv": " Convert it: python -c \"import pandas; pandas.read_csv('{}', dtype=str, keep_default_na=False)"
    ".to_json('{}', orient='records', lines=True, force_ascii=False)\"",
    ".zip": " Unpack it: unzip '{}'",
}
# Names of splits, other than `test`, that nobody means to be trained on.
_HELD_OUT = {"testing", "validation", "valid", "val", "dev", "eval", "evaluation"}
_SHARD = re.compile(r"[-_]\d+-of-\d+.*")  # train-00000-of-00005.parquet belongs to the split `train`


def rows(
    split: str,
    source: str,
    *,
    by: tuple[str, ...],
    test_size: int = 500,
    seed: int = 0,
    subset: str | None = None,
    names: tuple[str, str] = ("train", "test"),
    broken: bool = False,
) -> Iterator[tuple[str, dict | Dropped]]:
    """(place, row) of one split, "train" or "test", of a source: one file, a directory of files, or a Hub repository.

    A broken line is told of and left out; with `broken` it is given as `Dropped`, among the training rows where the
    source is divided.

    `names` are the source's own names of the two splits. A source with the first only, or with just one of any name,
    is divided: of the different values of the columns `by` (the question), `test_size`, chosen by `seed`, are the test
    set; so no question is in both. Which files of a directory are "train" `with_train` says. Raises `ValueError` for a
    source that is not there or has no split that would do.
    """
    parts = _parts(source, subset)
    if Path(source).exists():
        parts = with_train(parts, *names)
    if set(names) <= parts.keys():
        wanted = names[0] if split == "train" else names[1]
        _tell_of_others(source, parts, *names)
        yield from _places(source, wanted, parts[wanted], broken=broken)
        return
    if names[0] not in parts and len(parts) > 1:
        raise ValueError(
            f"{source} has neither a split '{names[0]}' nor just one. There are: {', '.join(parts)}. Name a file of "
            f"it, or call the files {names[0]}-00000-of-{len(parts):05d} and so on."
        )
    only = names[0] if names[0] in parts else next(iter(parts))
    _tell_of_others(source, parts, only)
    asked = (row for _, row in _places(source, only, parts[only], by, broken=broken) if not isinstance(row, Dropped))
    test = _draw((_digest(row, by) for row in asked), test_size, seed)
    for place, row in _places(source, only, parts[only], broken=broken):
        in_test = not isinstance(row, Dropped) and _digest(row, by) in test
        if in_test == (split == "test"):
            yield place, row


def benchmark(
    split: str, source: str, *, subset: str | None = None, examples: str | None = None
) -> Iterator[tuple[str, dict]]:
    """(place, row) of a source that is there to be asked, of which no row is set aside for training.

    "test" is its split `test`, or the only one it has, whatever its name; "train" is the split that it calls
    `examples`, and no rows where there is none. Raises `ValueError` for a source without rows to ask.
    """
    parts = _parts(source, subset)
    wanted = "test" if "test" in parts or len(parts) > 1 else next(iter(parts))
    if split == "train":
        if examples in parts and len(parts) > 1:
            yield from _places(source, examples, parts[examples])
        return
    if wanted not in parts:
        raise ValueError(
            f"{source} has neither a split 'test' nor just one. There are: {', '.join(parts)}. Name a file of it."
        )
    yield from _places(source, wanted, parts[wanted])


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
            if file.is_file() and lines.suffix(file) in SUFFIXES and not is_note(file):
                found.setdefault(_split_of(file), []).append(file)
    return found


def with_train(parts: dict[str, list[Path]], train: str, test: str) -> dict[str, list[Path]]:
    """The same, with all files but those held out as "train", where that is asked for and none is called so."""
    if train != "train" or train in parts:
        return parts
    those = [path for name, paths in parts.items() if name.lower() not in {test, *_HELD_OUT} for path in paths]
    return {train: those, **parts} if those else parts


def is_note(file: Path) -> bool:
    """Whether a file of a directory tells of the rows beside it, and holds none."""
    return file.name in _NOTES or bool(_PROSE.fullmatch(file.name))


def tell_of_others(source: str, read: Iterable[Path]) -> None:
    """Say how many files of a directory are not among those that are `read`."""
    others = _others(source, set(read))
    if others:
        lines.say_once(
            f"note: files in '{source}' that are not read: {len(others)}, such as {others[0]}. They are in a folder "
            "other than `data`, of another kind, or of another split."
        )


def _others(source: str, read: set[Path]) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith(_BESIDE))
        found += [Path(folder, name) for name in sorted(names) if not name.startswith(_BESIDE)]
    return [file for file in found if file not in read]


def _tell_of_others(source: str, parts: dict, *names: str) -> None:
    if Path(source).is_dir():
        tell_of_others(source, (path for name in names for path in parts[name]))


def cause(error: Exception) -> str:
    """What is behind an error of `datasets`, which says only that one was met, in one line."""
    return " ".join(str(error.__cause__ or error).split())


def unread(source: str) -> ValueError:
    """What to say of a file or directory in which there is nothing to read, with the way out."""
    path, within = Path(source), _others(source, set())
    lines_of = ", ".join(kind for kind in SUFFIXES if kind != ".parquet")
    kinds = f"{lines_of}, each also as {' or '.join(lines.COMPRESSED)}, and .parquet"
    if path.is_dir():
        way = f" What lies in its folders is not read, such as {within[0]}. Name a folder, or a file." if within else ""
        return ValueError(f"The directory '{source}' holds no file that can be read here. There are: {kinds}.{way}")
    way = _UNPACKED.get(path.suffix.lower(), "").format(path, path.with_suffix(".jsonl"))
    return ValueError(f"'{source}' is no kind of file that can be read here. There are: {kinds}.{way}")


def _split_of(path: Path) -> str:
    return _SHARD.sub("", path.name.partition(".")[0])


def is_on_hub(source: str) -> bool:
    """Whether a source means a repository on the Hub, `owner/name` or `owner/name@revision`, and no file here."""
    return pins.is_on_hub(source)


def _parts(source: str, subset: str | None) -> dict:
    """Split -> files, or split -> data set of the Hub."""
    path = Path(source)
    found = files(source)
    if path.is_file() and lines.suffix(path) not in SUFFIXES:
        raise unread(source)
    if found:
        return {next(iter(found)): [path]} if path.is_file() else found
    if path.is_dir():
        raise unread(source)
    if not is_on_hub(source):
        raise ValueError(f"There is no file or directory '{source}'.")
    from datasets.exceptions import DatasetGenerationError

    try:
        return dict(pins.load_dataset(source, name=subset))
    except DatasetGenerationError as error:
        raise ValueError(
            f"Cannot read '{source}' from the Hub: {cause(error)}. A copy of its files on this disk is read "
            "row by row: --source PATH."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # the network and the Hub's own refusals
        raise ValueError(
            f"There is no file or directory '{source}' here, and the Hub does not give it: {error}. "
            "Where there is no network, name a local copy: --source PATH."
        ) from error


def _places(
    source: str, split: str, part, columns: tuple[str, ...] = (), *, broken: bool = False
) -> Iterator[tuple[str, dict | Dropped]]:
    """(place, row) of every row; where the format allows it, only `columns` are read."""
    if isinstance(part, list):
        for path in part:
            found = lines.read(path, columns)
            yield from found if broken else lines.told(path, found)
        return
    there = [name for name in columns if name in part.column_names]
    for number, row in enumerate(part.select_columns(there) if there else part, 1):
        yield f"{source} ({split}), row {number}", row


def _digest(row: dict, by: tuple[str, ...]) -> bytes:
    """Eight bytes for the question, for a million of them may be kept while the rows go by."""
    question = [row[name] for name in by if name in row] or row
    return hashlib.blake2b(json.dumps(question, default=str).encode(), digest_size=8).digest()


def _draw(digests: Iterable[bytes], test_size: int, seed: int) -> set[bytes]:
    questions = sorted(set(digests))
    if len(questions) < 2:
        raise ValueError(
            f"The source has one split, of {len(questions)} different questions: too few to divide it into a training "
            "and a test set. An empty file looks like that, and so do rows of which nothing can be read."
        )
    if not 0 < test_size < len(questions):
        raise ValueError(
            f"test_size: {test_size} must lie between 1 and {len(questions) - 1}: the source has one split, of "
            f"{len(questions)} different questions, and is divided."
        )
    return set(random.Random(seed).sample(questions, test_size))
