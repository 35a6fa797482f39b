"""How often each pre-token of a corpus of any size occurs, counted in bounded memory: all that a BPE tokenizer learns
from.

A trainer that is given the text itself keeps every different pre-token, each with a list of the places of its pairs:
half a kilobyte and more, and in a script without spaces every clause is one. Three bounds hold that back here, and the
same corpus with the same seed gives the same counts.

1. A pre-token longer than `LONGEST` bytes is counted in pieces.
2. Past `max_words` different ones, the rare are cut in two, and their halves take over their counts: lossy counting
   (Manku and Motwani, VLDB 2002) that keeps the mass of the text, so that of a Chinese clause seen once its pairs of
   characters remain, and of a rare name its syllables.
3. Past `max_bytes` of text, the counts so far are halved and from there on every second row, by the toss of a seeded
   coin, is read: a sample of the whole corpus, taken in one pass over a stream whose length nobody knows.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

LONGEST = 24  # bytes: eight Chinese characters; hardly a word of any spaced script is longer
_BATCH = 1 << 24  # characters that are counted together before a word is looked at, for words repeat


class Words:
    """Pre-token -> count, and what was done to stay within the bounds."""

    def __init__(self, pattern: str, max_words: int, max_bytes: int, seed: int):
        """`pattern` is a tokenizer's regular expression, in the syntax of PyPI `regex`, whose matches are the words."""
        import regex

        self.counts: dict[str, int] = {}
        self.rows = self.bytes = 0  # that were counted
        self.share = 1.0  # of the rows, that is read
        self.cuts = 0  # how often the rare ones were cut in two
        self._find, self._max_words, self._max_bytes = regex.compile(pattern).findall, max_words, max_bytes
        self._coin = random.Random(seed)

    def count(self, texts: Iterable[str]) -> None:
        """Count the words of each text, one text after the other: no word reaches from one into the next."""
        batch, held = Counter(), 0
        for text in texts:
            if self.share < 1 and self._coin.random() >= self.share:
                continue
            self.rows += 1
            for at in range(0, len(text), _BATCH):  # the one word in millions that is cut here does no harm
                piece = unicodedata.normalize("NFC", text[at : at + _BATCH])
                batch.update(self._find(piece))
                held += len(piece)
                self.bytes += len(piece.encode(errors="replace"))
                if held >= _BATCH or self.bytes > self._max_bytes:
                    self._take(batch)
                    batch, held = Counter(), 0
                if self.bytes > self._max_bytes:
                    self.counts = dict(thinned(self.counts, 0.5))
                    self.bytes, self.rows, self.share = self.bytes // 2, self.rows // 2, self.share / 2
        self._take(batch)

    def _take(self, batch: Counter) -> None:
        for word, n in batch.items():
            for piece in _pieces(word):
                self.counts[piece] = self.counts.get(piece, 0) + n
        if len(self.counts) > self._max_words:
            self._cut_rare()

    def _cut_rare(self) -> None:
        """Halve the number of different words, or come as near to it as single characters allow."""
        self.cuts += 1
        goal = self._max_words // 2
        while len(self.counts) > goal:
            least = sorted(self.counts.values(), reverse=True)[goal]
            rare = [word for word, n in self.counts.items() if n <= least and len(word) > 1]
            if not rare:
                return
            for word in rare:
                n = self.counts.pop(word)
                for half in (word[: len(word) // 2], word[len(word) // 2 :]):
                    self.counts[half] = self.counts.get(half, 0) + n


def thinned(counts: dict[str, int], share: float) -> Iterator[tuple[str, int]]:
    """Counts as a sample of that share of the text would have them: each is rounded so that their sum stays right."""
    owed = 0.0
    for word, n in counts.items():
        owed += n * share
        if (whole := int(owed)) > 0:
            owed -= whole
            yield word, whole


def _pieces(word: str) -> Iterator[str]:
    size = len(word) if word.isascii() else len(word.encode(errors="replace"))
    if size <= LONGEST:
        yield word
        return
    step = max(1, LONGEST * len(word) // size)
    for at in range(0, len(word), step):
        yield word[at : at + step]
