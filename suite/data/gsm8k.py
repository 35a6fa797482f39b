"""GSM8K: grade-school word problems with worked solutions, from the Hub or from a local file or directory."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from suite import reasoning

_CALCULATOR = re.compile(r"<<[^>]*>>")  # <<48/2=24>>: marks for a calculator that no model here has


def load(split: str, *, source: str = "openai/gsm8k", test_size: int = 500, seed: int = 0) -> Iterator[dict]:
    """Rows with the columns prompt, completion and solution.

    `source` is a Hub repository, a directory with train.jsonl and test.jsonl, or one .jsonl file, which is then split
    by question: `test_size` questions, chosen by `seed`, are the test set. Raises `ValueError` for a row without
    `question` or without an `answer` that ends in `#### ...`, naming its line.
    """
    for number, row in enumerate(_rows(split, source, test_size, seed), 1):
        worked, mark, answer = str(row.get("answer") or "").rpartition("####")
        if "question" not in row or not mark:
            raise ValueError(
                f"gsm8k, row {number} of {source} ({split}): needs `question` and an `answer` with '####', "
                f"has {', '.join(row)}."
            )
        steps = _CALCULATOR.sub("", worked).strip()
        yield {
            "prompt": [{"role": "user", "content": row["question"].strip()}],
            "completion": [{"role": "assistant", "content": reasoning.write(steps, answer)}],
            "solution": answer.strip(),
        }


def _rows(split: str, source: str, test_size: int, seed: int) -> list[dict]:
    path = Path(source)
    if path.is_dir():
        return _read(path / f"{split}.jsonl")
    if path.is_file():
        rows = _read(path)
        questions = sorted({row.get("question", "") for row in rows})
        if not 0 < test_size < len(questions):
            raise ValueError(f"gsm8k.test_size: {test_size} must lie between 1 and {len(questions) - 1} questions.")
        test = set(random.Random(seed).sample(questions, test_size))
        return [row for row in rows if (row.get("question", "") in test) == (split == "test")]
    if path.suffix in (".json", ".jsonl") or source.startswith((".", "/")):
        raise ValueError(f"gsm8k.source: there is no file or directory '{source}'.")
    from datasets import load_dataset

    return list(load_dataset(source, "main", split=split))


def _read(path: Path) -> list[dict]:
    if not path.is_file():
        raise ValueError(f"gsm8k.source: there is no file '{path}'.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}).") from None
    return rows
