"""A quarter for each of the four tags that occurs exactly once, behind every earlier tag that counted."""

from suite import reasoning


def tags_reward(completions, prompts=None, *, think_opened: bool = False, **columns) -> list[float]:
    """From 0 to 1 in quarters, one number a completion: a first step towards `format`, for a model that knows no tags.

    The tags are gone through in the order of `reasoning.TAGS`; in `</think><think>` the first that counts is <think>,
    and </think> does not stand behind it. `think_opened` says that prompts end in <think>.
    """
    return [_share(text) for text in reasoning.texts(completions, prompts, think_opened)]


def _share(text: str) -> float:
    counted, behind = 0, -1
    for tag in reasoning.TAGS:
        at = text.find(tag)
        if at > behind and text.count(tag) == 1:
            counted, behind = counted + 1, at
    return counted / len(reasoning.TAGS)
