"""The answers of a teacher on disk: written down one by one as they come, and published whole or not at all."""

import json
from collections.abc import Collection
from pathlib import Path

from suite import checkpoint, whole
from suite.engine import Completion

RECORD, JOURNAL = "sample.json", "answers.jsonl"


def record_of(target: Path) -> dict:
    """What `suite sample` noted about a directory that it wrote; an empty mapping about any other."""
    path = target / RECORD
    return _noted(path) if path.is_file() else {}


def _noted(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is cut off or broken. Choose another output_dir, or remove {path.parent}.")
    return found


class Answers:
    """Answers to prompts, by the digest of the prompt and a number.

    Until `publish` they lie in a hidden directory beside the target, from which the next process goes on.
    """

    def __init__(self, target: Path, asking: dict):
        """`asking` is all that decides what an answer is like: answers asked in another way are not mixed with these.

        Raises `ValueError` where `target` holds something else or answers that were asked in another way, where
        another process is writing, and where nothing can be written.
        """
        whole.restore(target)
        held = record_of(target)
        if target.exists() and not held and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} holds something that `suite sample` did not write. Choose another output_dir.")
        _refuse_others(target, held.get("asking", asking), asking)
        self.target = target
        self._partial = whole.partial_of(target)
        self._journal = whole.Journal(self._partial / JOURNAL, target)
        self._fresh = False
        try:
            self._open(asking)
        except BaseException:
            self._journal.close()
            raise

    def _open(self, asking: dict) -> None:
        """Take what an earlier process left beside the answers of the target, and leave the journal ready for more."""
        left = record_of(self._partial)
        if left:
            _refuse_others(self._partial, left.get("asking", {}), asking)
        else:  # killed before anything was asked
            self._journal.replace([])
        self._published = _completions(whole.read_lines(self.target / JOURNAL), self.target / JOURNAL)
        there = _completions(self._journal.lines, self._journal.path)
        self._found = self._published | there
        self._fresh = len(self._found) == len(self._published)
        # What is published may be missing there: nothing is copied yet, or not all, or a kill in the middle of
        # publishing has left the directory in whose place the new one was put.
        for key in [key for key in self._found if key not in there]:
            self._journal.add(_line(*key, self._found[key]))
        checkpoint.write_json(self._partial / RECORD, {"asking": asking})

    def __len__(self) -> int:
        return len(self._found)

    def get(self, prompt: str, number: int) -> Completion | None:
        return self._found.get((prompt, number))

    @property
    def published(self) -> Collection[tuple[str, int]]:
        """What the target held an answer to before this asking began, however often it was interrupted."""
        return self._published.keys()

    def add(self, prompt: str, number: int, said: Completion) -> None:
        """Write one answer down."""
        self._fresh = False
        self._journal.add(_line(prompt, number, said))
        self._found[prompt, number] = said

    def publish(self, rows: list[dict], record: dict) -> None:
        """Make `target` a directory with these rows, the record and the answers, in place of what it was."""
        import pyarrow
        import pyarrow.parquet

        with whole.writing(self.target):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self._partial / "train.parquet")
            checkpoint.write_json(self._partial / RECORD, record)
            whole.put(self._partial, self.target)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt) and not self._fresh:
            raise kind(f"{len(self)} answers are kept: the same command goes on.") from None

    def close(self) -> None:
        """Let the next process write. One that has added nothing leaves no trace."""
        if self._fresh:
            whole.remove(self._partial)
        self._journal.close()


def _line(prompt: str, number: int, said: Completion) -> dict:
    return {"prompt": prompt, "number": number, "text": said.text, "tokens": said.tokens, "finished": said.finished}


def _completions(lines: list, path: Path) -> dict[tuple[str, int], Completion]:
    found = {}
    for number, said in enumerate(lines, 1):
        try:
            found[said["prompt"], said["number"]] = Completion(said["text"], said["tokens"], said["finished"])
        except (KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: no answer. Remove that line.") from None
    return found


def _refuse_others(where: Path, before: dict, now: dict) -> None:
    names = sorted(before.keys() | now.keys())
    different = [f"{n} was {before.get(n)!r}, is now {now.get(n)!r}" for n in names if before.get(n) != now.get(n)]
    if different:
        raise ValueError(
            f"{where} holds answers that were asked in another way: {'; '.join(different)}. Choose another output_dir, "
            "or remove that directory."
        )
