"""1 for a well-formed completion: one think block, one answer block, neither empty, nothing around them; else 0."""

from suite.columns import text_of
from suite.reasoning import is_well_formed


def format_reward(completions, **columns) -> list[float]:
    return [float(is_well_formed(text_of(completion))) for completion in completions]
