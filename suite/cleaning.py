"""What a row must be to be kept: checks, each of which gives a reason, and the count of what they left out.

A check takes a batch of rows and gives, for each, None or the `Reason` why it has to go.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from suite import columns, rewards, run
from suite.data.reading import Dropped
from suite.rewards import proof

BATCH = 1000  # rows that are checked together; the most that are in memory at once
UNPROVEN = ("unreadable gold", "gold does not earn 1")
_OWN_TURNS = ("completion", "chosen", "rejected", "messages", "text")
# A Han character, kana or hangul syllable stands for itself; elsewhere a word does, and a sign of arithmetic.
_HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_BETWEEN_HAN = re.compile(rf"(?<=[{_HAN}]) (?=[{_HAN}])")
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+|[-+*/=<>^]")


class Reason(NamedTuple):
    """Why a row goes: a name under which it is counted, and what to say of this one."""

    name: str
    detail: str = ""


Check = Callable[[list[dict]], list[Reason | None]]


@dataclass
class Count:
    """What became of the rows of one split."""

    read: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # reason -> the first row that went for it

    def drop(self, reason: Reason, place: str) -> None:
        self.dropped[reason.name] += 1
        self.first.setdefault(reason.name, f"{place}{': ' if reason.detail else ''}{reason.detail}")

    def as_dict(self) -> dict:
        return {"rows": self.kept, "read": self.read, "dropped": dict(self.dropped), "first": self.first}


def sift(
    rows: Iterable[dict | Dropped], checks: Sequence[Check], count: Count, at_most: int | None = None
) -> Iterator[list[dict]]:
    """Batches of the rows that pass every check, `at_most` so many in all; `count` learns of the others.

    The checks are made in their order, each on what the ones before it have left.
    """
    rows = iter(rows)
    while (at_most is None or count.kept < at_most) and (batch := list(islice(rows, BATCH))):
        left = []
        for number, row in enumerate(batch, count.read + 1):
            if isinstance(row, Dropped):
                count.drop(Reason(row.reason), row.where)
            else:
                left.append((number, row))
        count.read += len(batch)
        for check in checks:
            verdicts = check([row for _, row in left])
            for (number, row), reason in zip(left, verdicts, strict=True):
                if reason:
                    count.drop(reason, f"row {number}, '{_beginning(row)}'")
            left = [pair for pair, reason in zip(left, verdicts, strict=True) if not reason]
        if at_most is not None and count.kept + len(left) > at_most:
            left = left[: at_most - count.kept]
        count.kept += len(left)
        if left:
            yield [row for _, row in left]


def _beginning(row: dict) -> str:
    words = " ".join(asked(row).split())
    return words[:60] + ("..." if len(words) > 60 else "")


def _turns(row: dict, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(role, text) of every turn in these columns; a text without turns is the assistant's, and a prompt the user's."""
    for name in names:
        held = row.get(name)
        if isinstance(held, str):
            yield "user" if name == "prompt" else "assistant", held
        for message in held if isinstance(held, list) else ():
            # A call of a tool has no text of its own.
            yield message["role"], message.get("content") or "".join(map(str, message.get("tool_calls") or ()))


def asked(row: dict) -> str:
    """What makes a row this row and no other: the user's words of a conversation, a plain prompt, or the text."""
    said = [text for role, text in _turns(row, ("prompt", "messages")) if role == "user"]
    return "\n".join(said) if said else columns.text_of(row.get("text") or row.get("prompt") or "")


def empty(rows: list[dict]) -> list[Reason | None]:
    """A turn without words, a conversation without turns, or a text of spaces."""

    def look(row: dict) -> Reason | None:
        for name in ("prompt", *_OWN_TURNS):
            if name in row:
                turns = [text for role, text in _turns(row, [name]) if role != "system"]
                if not turns or not all(text.strip() for text in turns):
                    return Reason("empty", f"in `{name}`")
        return None

    return [look(row) for row in rows]


def unclosed_think(rows: list[dict]) -> list[Reason | None]:
    """<think> without </think> behind it, in what a model would learn to say."""

    def look(row: dict) -> Reason | None:
        inside = columns.text_of(row.get("prompt") or "").rstrip().endswith("<think>")
        for name in ("completion", "chosen", "messages"):
            for role, text in _turns(row, [name]):
                opened = inside or "<think>" in text
                if role == "assistant" and opened and "</think>" not in text.rpartition("<think>")[2]:
                    return Reason("unclosed think", f"`{name}` ends '...{' '.join(text.split())[-40:]}'")
        return None

    return [look(row) for row in rows]


def duplicates() -> Check:
    """A row that has been there before, in every column."""
    seen: set[bytes] = set()

    def check(rows: list[dict]) -> list[Reason | None]:
        found = []
        for row in rows:
            digest = hashlib.blake2b(json.dumps(row, sort_keys=True, default=str).encode(), digest_size=8).digest()
            found.append(Reason("duplicate") if digest in seen else None)
            seen.add(digest)
        return found

    return check


def too_long(name_or_path: str, max_length: int | None, max_prompt_tokens: int | None) -> Check:
    """More tokens than `max_length` in the whole row, or than `max_prompt_tokens` in its prompt.

    A conversation counts as the tokenizer's chat template writes it; of a pair, its longer answer counts. Raises
    `ValueError` where conversations meet a tokenizer without a template.
    """
    tokenizer = run.tokenizer(name_or_path)

    def written(row: dict, turns, ends_open: bool = False) -> str:
        if isinstance(turns, str):
            return turns
        if not tokenizer.chat_template:
            raise ValueError(
                f"tokenizer_name_or_path: '{name_or_path}' has no chat template, and these rows are conversations."
            )
        beside = columns.template_kwargs(row)
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ends_open, **beside)

    def tokens(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    def wholes(row: dict) -> list[str]:
        prompt = row.get("prompt")
        alone = [written(row, row[name]) for name in ("text", "messages") if row.get(name)]
        answers = [row[name] for name in ("completion", "chosen", "rejected") if row.get(name)]
        return [*alone, *(written(row, prompt + answer) for answer in answers if prompt)] or [
            written(row, prompt, True)
        ]

    def check(rows: list[dict]) -> list[Reason | None]:
        found: list[Reason | None] = [None] * len(rows)
        for limit, what, texts_of in (
            (max_length, "too long", wholes),
            (
                max_prompt_tokens,
                "prompt too long",
                lambda row: [written(row, row["prompt"], True)] if "prompt" in row else [],
            ),
        ):
            if limit is None:
                continue
            numbered = [(at, text) for at, row in enumerate(rows) for text in texts_of(row)]
            for (at, _), length in zip(numbered, tokens([text for _, text in numbered]), strict=True):
                if length > limit and not found[at]:
                    found[at] = Reason(what, f"{length} tokens, and {limit} are allowed")
        return found

    return check


class Overlap:
    """The questions of a test set, and which rows of a training set say the same.

    A row overlaps if one of its questions has `size` words in a row (or Han characters) that stand in just one test
    question, or is a test question as a whole, which is all that is asked of shorter ones. Words that several test
    questions share are a turn of phrase of the data set ("Express your answer as a fraction ...") and prove nothing.
    """

    def __init__(self, size: int):
        self.size = size
        self.questions: dict[int, str] = {}  # the hash of all its words -> how it begins
        self.owner: dict[int, int | None] = {}  # the hash of `size` words -> the question that has them; None: several

    def _words(self, row: dict) -> list[str]:
        return _WORD.findall(unicodedata.normalize("NFKC", asked(row)).lower())

    def _grams(self, words: list[str]) -> Iterator[tuple[int, list[str]]]:
        for start in range(len(words) - self.size + 1):
            gram = words[start : start + self.size]
            yield hash(tuple(gram)), gram

    def add(self, rows: list[dict]) -> None:
        """Learn the questions of a batch of test rows."""
        for row in rows:
            words = self._words(row)
            question = hash(tuple(words))
            if question in self.questions:
                continue
            self.questions[question] = " ".join(words[:8])
            for gram, _ in self._grams(words):
                self.owner[gram] = question if self.owner.get(gram, question) == question else None

    def check(self, rows: list[dict]) -> list[Reason | None]:
        return [self._look(self._words(row)) for row in rows]

    def _look(self, words: list[str]) -> Reason | None:
        if hash(tuple(words)) in self.questions:
            return Reason("overlap with test", "it is a test row, too")
        for gram, shared in self._grams(words):
            if self.owner.get(gram) is not None:
                return Reason("overlap with test", f"so says a test row: '{_BETWEEN_HAN.sub('', ' '.join(shared))}'")
        return None


def unproven(rows: list[dict]) -> list[Reason | None]:
    """A gold answer that, written as a completion, does not earn full marks. Rows without one pass."""
    given = [at for at, row in enumerate(rows) if "solution" in row]
    scores = _scores([rows[at] for at in given], [proof.gold_completion(rows[at]) for at in given])
    found: list[Reason | None] = [None] * len(rows)
    for at, score in zip(given, scores, strict=True):
        if score != 1.0:
            end = columns.text_of(rows[at].get("prompt", ""))[-200:]
            name = UNPROVEN[0] if score is None else UNPROVEN[1]
            found[at] = Reason(name, f"solution {rows[at]['solution']!r} earns {score}, prompt ends '{end}'")
    return found


def wrong_completion(rows: list[dict]) -> list[Reason | None]:
    """A completion that does not earn full marks against its row's own `solution`. Rows that lack either pass."""
    given = [at for at, row in enumerate(rows) if "solution" in row and "completion" in row]
    scores = _scores([rows[at] for at in given], [columns.text_of(rows[at]["completion"]) for at in given])
    found: list[Reason | None] = [None] * len(rows)
    for at, score in zip(given, scores, strict=True):
        if score != 1.0:
            end = columns.text_of(rows[at]["completion"])[-60:]
            found[at] = Reason("wrong completion", f"solution {rows[at]['solution']!r}, completion ends '{end}'")
    return found


def _scores(rows: list[dict], completions: list[str]) -> list[float | None]:
    """What the reward about correctness gives: `code` where rows have tests, `accuracy` elsewhere."""
    if not rows:
        return []
    names = dict.fromkeys(name for row in rows for name in row)
    reward = rewards.load("code" if "tests" in names else "accuracy")
    given = {name: [row.get(name) for row in rows] for name in names if name not in ("prompt", "completion")}
    return reward(completions, **given)
