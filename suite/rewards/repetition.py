"""The share of a completion's n-grams of words that repeat an earlier one, times a penalty of -1."""

import math
import re

from suite.columns import text_of
from suite.rewards.language import CJK

_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")


def repetition_reward(
    completions, prompts=None, *, ngram_size: int = 3, max_penalty: float = -1.0, **columns
) -> list[float]:
    """(1 - different n-grams / all n-grams) * max_penalty, one number a completion; 0 with too few words for any.

    Words are casefolded runs of letters and digits, a Chinese, Japanese or Korean character is a word of its own,
    and signs are none. So the number does not hang on the tokenizer, as it does in TRL's reward, which counts token
    ids. Source: https://arxiv.org/abs/2502.03373, C.2. Raises `ValueError` for knobs out of range.
    """
    if ngram_size < 1:
        raise ValueError(f"repetition.ngram_size: {ngram_size} must be at least 1.")
    if not (math.isfinite(max_penalty) and max_penalty <= 0):
        raise ValueError(f"repetition.max_penalty: {max_penalty} must be finite and at most 0.")
    return [_repeated(text_of(completion), ngram_size) * max_penalty + 0.0 for completion in completions]  # no -0.0


def _repeated(text: str, n: int) -> float:
    words = _WORD.findall(text.casefold())
    if len(words) < n:
        return 0.0
    ngrams = list(zip(*(words[i:] for i in range(n)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams)
