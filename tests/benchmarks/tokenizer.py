"""Memory and time of `suite tokenizer` on a gigabyte of text that is made on the spot: English, Chinese and code.

Words are drawn as they are in books, a few very often and most hardly ever (Zipf's law), and one in a hundred is new,
as names, misprints and hashes are on the web: without a bound the table of different words never stops growing.
"""

import json
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from tests.benchmarks.interleaved import Series, process, told

SIZE = 1_000_000_000  # bytes of text
GOAL = 4096  # MiB that the largest process may hold at once
_LETTERS = "etaoinshrdlucmfwypvbgkqjxz"


def main(n: int = 2, size: int = SIZE) -> None:
    """Train 6,400 tokens twice, whatever `n`: it takes minutes, and the second time shows that it is the same."""
    with tempfile.TemporaryDirectory() as home:
        corpus = write_corpus(Path(home) / "corpus.jsonl", size)
        (Path(home) / "config.yaml").write_text(f"dataset_name: {corpus}\nvocab_size: 6400\n")
        words = ["-m", "suite.train.tokenizer", "--config", f"{home}/config.yaml"]
        runs = [process(*words, "--output_dir", f"{home}/{turn}") for turn in "ab"]
        print(runs[0].printed.rstrip(), flush=True)
        peak = Series([run.peak for run in runs])
        told(f"peak memory on {size / 1e6:.0f} MB of text, MiB", peak, f"<= {GOAL}", max(peak.values) <= GOAL)
        told("seconds from start to exit", Series([run.seconds for run in runs]))
        first, second = (Path(home, turn, "tokenizer.json").read_bytes() for turn in "ab")
        print(f"tokenizer.json twice: {'the same' if first == second else 'MISSED: not the same'}", flush=True)


def write_corpus(path: Path, size: int, seed: int = 0) -> Path:
    """About `size` bytes of text as rows of a .jsonl file, a third each English, Chinese and code."""
    draw = np.random.default_rng(seed)
    english, chinese, names = _vocabularies(draw)
    makers = {"english": lambda: _english(draw, english), "chinese": lambda: _chinese(draw, chinese)}
    makers["code"] = lambda: _code(draw, names)
    written = dict.fromkeys(makers, 0)
    with path.open("w", encoding="utf-8") as file:
        while sum(written.values()) < size:
            kind = min(written, key=written.__getitem__)
            text = makers[kind]()
            written[kind] += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path


class _Zipf:
    """Words, the first of which are drawn far more often than the last."""

    def __init__(self, words: list[str]):
        self.words = np.array(list(dict.fromkeys(words)), dtype=object)
        self.sums = np.cumsum(1 / (np.arange(len(self.words)) + 2.7))  # Mandelbrot's offset

    def draw(self, draw: np.random.Generator, count: int) -> list[str]:
        return self.words[np.searchsorted(self.sums, draw.random(count) * self.sums[-1])].tolist()


def _vocabularies(draw: np.random.Generator) -> tuple[_Zipf, _Zipf, _Zipf]:
    consonants, vowels = _LETTERS[4:], "aeiou"
    syllables = [a + b + c for a in consonants for b in vowels for c in ("", *_LETTERS[1:9])]
    characters = _Zipf([chr(c) for c in draw.permutation(np.arange(0x4E00, 0x9FA5))[:5000]])
    english = _joined(draw, _Zipf(syllables), 300_000, "")
    chinese = _joined(draw, characters, 200_000, "")
    names = _joined(draw, _Zipf(english[:20_000]), 100_000, "_")
    return _Zipf(english), _Zipf(chinese), _Zipf(names)


def _joined(draw: np.random.Generator, parts: _Zipf, count: int, by: str) -> list[str]:
    """Words of one to three parts each."""
    drawn = iter(parts.draw(draw, 3 * count))
    return [by.join(islice(drawn, size)) for size in draw.integers(1, 4, count).tolist()]


def _with_new(draw: np.random.Generator, words: list[str]) -> list[str]:
    """The words, one in a hundred of which is one that was never seen."""
    for at in draw.integers(0, len(words), len(words) // 100):
        words[at] = "".join(_LETTERS[n] for n in draw.integers(0, 26, draw.integers(5, 13)))
    return words


def _english(draw: np.random.Generator, vocabulary: _Zipf) -> str:
    words = _with_new(draw, vocabulary.draw(draw, 2000))
    for at, end in zip(range(0, len(words), 15), draw.choice((".", ".", ",", "?\n", "; 1987."), 2000), strict=False):
        words[at] = words[at].capitalize()
        words[at - 1] += end
    return " ".join(words)


def _chinese(draw: np.random.Generator, vocabulary: _Zipf) -> str:
    marks = draw.choice(("，", "。", "", "", "", "", "", ""), 3000)
    return "".join(word + mark for word, mark in zip(vocabulary.draw(draw, 3000), marks, strict=True))


def _code(draw: np.random.Generator, names: _Zipf) -> str:
    words, numbers = iter(_with_new(draw, names.draw(draw, 1200))), iter(draw.integers(0, 1000, 600))
    lines = []
    for a, b, c, d in zip(words, words, words, words, strict=False):
        lines += [f"def {a}({b}, {c}={next(numbers)}):", f"    {d} = {b}.{c}[{next(numbers)}]"]
        lines += [f"    return {d} + {b}", ""]
    return "\n".join(lines)
