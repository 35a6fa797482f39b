"""Visible steps in the thinking (Step 2:, 1., bullets, First, 第一步, 首先): the share of those wanted, at most 1."""

import re

from suite import reasoning

_WORDS = (
    r"(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|next|then|finally|lastly)\b"
    r"|第[一二三四五六七八九十\d]{1,3}步|首先|其次|然后|接着|最后"
)
_STEP = r"(?:step[ \t]?\d{1,3}\b|步骤[ \t]?[一二三四五六七八九十\d]{1,3})"
_LISTED = r"\(?\d{1,2}(?:[.)](?!\d)|[、）])|[-*•](?=[ \t])"
_LINE = r"^[ \t>#*_]{0,20}"
_SENTENCE = r"(?<=[.!?;:。！？；：，]\s)|(?<=[。！？；：，])"
# A step begins a line or a sentence (a Chinese one also a clause), and something must be said in it. A number and a
# word together (`1. First,`) are one step. Every repeat is bounded or possessive: no text is gone over many times.
_MARK = re.compile(
    rf"(?:{_LINE}(?:{_LISTED}|{_STEP})|(?:{_SENTENCE}){_STEP})[^\w\n]{{0,20}}+(?:{_WORDS})?[^\w\n]*+\w"
    rf"|(?:{_LINE}|{_SENTENCE})(?:{_WORDS})[^\w\n]*+\w",
    re.MULTILINE | re.IGNORECASE,
)


def steps_reward(completions, prompts=None, *, wanted: int = 3, think_opened: bool = False, **columns) -> list[float]:
    """min(1, steps found / wanted), one number a completion.

    Steps are looked for in the think block, or in the whole text where there is none. They are the form of steps,
    not their sense: weigh this reward lightly. `think_opened` says that prompts end in <think>. Raises `ValueError`
    for a `wanted` below 1.
    """
    if wanted < 1:
        raise ValueError(f"steps.wanted: {wanted} must be at least 1.")
    texts = reasoning.texts(completions, prompts, think_opened)
    return [min(1.0, sum(1 for _ in _MARK.finditer(_thinking(text))) / wanted) for text in texts]


def _thinking(text: str) -> str:
    """The first think block, finished or not; what stands before a lone </think>; else the whole text."""
    head, _, _ = text.partition("</think>")
    _, opens, inside = head.partition("<think>")
    return inside if opens else head
