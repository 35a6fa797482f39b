"""1 for a well-formed completion: one think block, one answer block, neither empty, nothing around them; else 0."""

from suite import reasoning


def format_reward(
    completions, prompts=None, *, soft: bool = False, think_opened: bool = False, **columns
) -> list[float]:
    """`soft` lets text stand around the two blocks and between them. `think_opened`: prompts end in <think>."""
    texts = reasoning.texts(completions, prompts, think_opened)
    return [float(reasoning.is_well_formed(text, soft=soft)) for text in texts]
