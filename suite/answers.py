"""The answers of a teacher on disk: written down one by one as they come, and published whole or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from pathlib import Path

from suite import checkpoint
from suite.engine import Completion

RECORD, JOURNAL, ASKING = "sample.json", "answers.jsonl", "asking.json"
SYNC_EVERY = 1.0  # seconds: what a power cut may cost; a kill costs nothing that was written down


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
        held = record_of(target)
        if target.exists() and not held and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} holds something that `suite sample` did not write. Choose another output_dir.")
        _refuse_others(target, held.get("asking", asking), asking)
        self.target = target
        self._partial = target.with_name(f".{target.name}.partial")
        self._found: dict[tuple[str, int], Completion] = {}
        self._fresh, self._synced = True, time.monotonic()
        with self._writing():
            self._partial.mkdir(parents=True, exist_ok=True)
            self._journal = (self._partial / JOURNAL).open("a+b")
        try:
            self._open(asking)
        except BaseException:
            self._journal.close()
            raise

    def _open(self, asking: dict) -> None:
        """Take what an earlier process left, or what the target holds, and leave the journal ready for more."""
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another `suite sample` is writing {self.target}. Wait for it, or end it.") from None
        self._journal.seek(0)
        lines = self._journal.read()
        noted = self._partial / ASKING
        if lines and noted.is_file():
            self._fresh = False
            _refuse_others(self._partial, _noted(noted), asking)
        else:
            published = self.target / JOURNAL
            lines = published.read_bytes() if published.is_file() else b""
        whole = lines[: lines.rfind(b"\n") + 1]  # a kill may have cut off the last line
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                said = json.loads(line)
                key = said["prompt"], said["number"]
                self._found[key] = Completion(said["text"], said["tokens"], said["finished"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{self._partial / JOURNAL}, line {number}: no answer. Remove that line.") from None
        with self._writing():
            checkpoint.write_json(noted, asking)
            if self._fresh:
                self._journal.truncate(0)
                self._journal.write(whole)
            else:
                self._journal.truncate(len(whole))
            self._journal.flush()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, prompt: str, number: int) -> Completion | None:
        return self._found.get((prompt, number))

    def add(self, prompt: str, number: int, said: Completion) -> None:
        """Write one answer down."""
        self._found[prompt, number] = said
        self._fresh = False
        line = {"prompt": prompt, "number": number, "text": said.text, "tokens": said.tokens, "finished": said.finished}
        with self._writing():
            self._journal.write(json.dumps(line).encode() + b"\n")
            self._journal.flush()
            if time.monotonic() - self._synced > SYNC_EVERY:
                os.fsync(self._journal.fileno())
                self._synced = time.monotonic()

    def publish(self, rows: list[dict], record: dict) -> None:
        """Make `target` a directory with these rows, the record and the answers, in place of what it was."""
        import pyarrow
        import pyarrow.parquet

        with self._writing():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), self._partial / "train.parquet")
            checkpoint.write_json(self._partial / RECORD, record)
            os.fsync(self._journal.fileno())
            shutil.rmtree(self.target, ignore_errors=True)
            os.replace(self._partial, self.target)
            (self.target / ASKING).unlink()  # the record says it, too

    def close(self) -> None:
        """Let the next process write. One that has added nothing leaves no trace."""
        self._journal.close()
        if self._fresh:
            shutil.rmtree(self._partial, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            kept = f" {len(self)} answers are kept beside it." if self._found else ""
            raise ValueError(f"Cannot write {self.target}: {error}.{kept}") from None


def _refuse_others(where: Path, before: dict, now: dict) -> None:
    names = sorted(before.keys() | now.keys())
    different = [f"{n} was {before.get(n)!r}, is now {now.get(n)!r}" for n in names if before.get(n) != now.get(n)]
    if different:
        raise ValueError(
            f"{where} holds answers that were asked in another way: {'; '.join(different)}. Choose another output_dir, "
            "or remove that directory."
        )
