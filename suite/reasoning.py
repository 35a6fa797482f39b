r"""The grammar of an answer: think, then answer.

    <think>
    7+8=15, and one more ten than I thought
    </think>
    <answer>95</answer>

Everything that writes, reads, rewards or shows an answer takes its tags, its system prompt and its reading from here.
"""

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")

SYSTEM_PROMPT = (
    "You solve the user's problem. First think it through step by step between <think> and </think>, "
    "then give only the final answer between <answer> and </answer>."
)

_WELL_FORMED = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SAID = re.compile(r"(?:answer is|answer:|####)\s*[:=]?\s*([^\n]+?)\s*(?:\.\s|\.?\s*$|\n)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


def write(thinking: str, answer: str) -> str:
    """A well-formed completion."""
    return f"<think>\n{thinking.strip()}\n</think>\n<answer>{answer.strip()}</answer>"


def is_well_formed(completion: str) -> bool:
    """One think block, one answer block, in that order, neither empty, with nothing but space around them."""
    match = _WELL_FORMED.fullmatch(completion)
    if match is None or any(completion.count(tag) != 1 for tag in TAGS):
        return False
    thinking, answer = match.groups()
    return bool(thinking.strip()) and bool(answer.strip())


def spoken(completion: str) -> str:
    """What is left of a completion without its thinking, finished or not."""
    text = _THINKING.sub("", completion)
    text = text.rpartition("</think>")[2]  # a prompt that already opened <think> leaves only the closing tag here
    return text.partition("<think>")[0]


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, braces balanced."""
    start = text.rfind("\\boxed{")
    while start != -1:
        depth, begin = 0, start + len("\\boxed{")
        for end in range(begin, len(text)):
            if text[end] == "{":
                depth += 1
            elif text[end] == "}":
                if depth == 0:
                    return text[begin:end]
                depth -= 1
        start = text.rfind("\\boxed{", 0, start)
    return None


def final_answer(completion: str, reading: str = "tags or box") -> str | None:
    r"""The answer a completion gives, or None; never from inside its thinking.

    reading: "tags" takes the last complete <answer>; "tags or box" else the last \boxed{}; "lenient" else what
    follows "answer is" or "####", else the last number.
    """
    assert reading in ("tags", "tags or box", "lenient"), reading
    text = spoken(completion)
    tagged = _ANSWER.findall(text)
    if tagged:
        return tagged[-1].strip() or None
    if reading == "tags":
        return None
    boxed = last_boxed(text)
    if boxed is not None or reading == "tags or box":
        return boxed
    for pattern in (_SAID, _NUMBER):
        found = pattern.findall(text)
        if found:
            return found[-1].strip()
    return None
