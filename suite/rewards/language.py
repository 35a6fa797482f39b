r"""The share of a completion's letters that belong to the script of the wanted language.

Scripts, not languages: `en` means Latin letters, and French has them, too. What is written alike in every language
does not count: the four tags, math between dollars, `\(...\)` or `\[...\]`, LaTeX commands, the language tag of a code
fence, digits and punctuation. Code inside a fence does count.
"""

import re
from typing import Literal

from suite.columns import text_of
from suite.reasoning import TAGS

Language = Literal["en", "zh", "ja", "ko", "ru", "ar"]

# Ranges for a character class of `re`, from Unicode's blocks.
HAN = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u309f\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f"
HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a"
CYRILLIC = "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f"
ARABIC = "\u0600-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufeff"
CJK = HAN + KANA + HANGUL  # written without spaces, or with particles glued to the word

_SCRIPTS = {
    "en": LATIN,
    "zh": HAN,
    "ja": HAN + KANA,
    "ko": HANGUL,  # Hanja are rare today, and would let Chinese through
    "ru": CYRILLIC,
    "ar": ARABIC,
}
_LETTERS = {language: re.compile(f"[{script}]") for language, script in _SCRIPTS.items()}
_TAG = re.compile("|".join(TAGS))
_FENCE = re.compile(r"^[ \t]{0,20}(?:```|~~~)[^\n`]*+$", re.MULTILINE)
# As pandoc reads dollars, so that two prices on a line are no formula.
_INLINE = re.compile(r"\$(?!\s)[^$\n]++(?<!\s)\$(?!\d)")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def language_reward(completions, prompts=None, *, language: Language = "en", **columns) -> list[float]:
    """From 0 to 1, one number a completion: letters of the wanted script / all letters.

    en: Latin; zh: Han; ja: Han, Hiragana and Katakana; ko: Hangul; ru: Cyrillic; ar: Arabic. 0 where there are no
    letters at all: who says nothing, or only formulas, has not said it in the wanted language. Raises `ValueError`
    for another language.
    """
    if language not in _LETTERS:
        raise ValueError(f"language.language: '{language}' must be one of {', '.join(_LETTERS)}.")
    rewards = []
    for completion in completions:
        letters = "".join(filter(str.isalpha, _prose(text_of(completion))))
        rewards.append(len(_LETTERS[language].findall(letters)) / len(letters) if letters else 0.0)
    return rewards


def _prose(text: str) -> str:
    """`text` without what is written alike in every language."""
    text = _FENCE.sub(" ", _TAG.sub(" ", text))
    for opens, closes in (("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)")):
        text = _without(text, opens, closes)
    return _COMMAND.sub(" ", _INLINE.sub(" ", text))


def _without(text: str, opens: str, closes: str) -> str:
    """`text` without what stands between each pair. By finds, not by a pattern: linear if the pair never closes."""
    kept, at = [], 0
    while (start := text.find(opens, at)) >= 0 and (end := text.find(closes, start + len(opens))) >= 0:
        kept.append(text[at:start])
        at = end + len(closes)
    return " ".join([*kept, text[at:]])
