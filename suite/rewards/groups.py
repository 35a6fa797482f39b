"""The completions of one prompt, wherever they lie: in this batch, and in those of the other ranks.

TRL cuts a generation batch into one slice a rank, and where a slice is no multiple of `num_generations` a group lies
on two ranks. Whoever compares the completions of a prompt must see all of them.
"""

import sys

from suite.columns import text_of


def by_prompt(prompts, values) -> list[list]:
    """For each row here, the values of all rows that share its prompt's text, over all ranks and in their order.

    values: one a row, anything that pickles. Where a launcher has started torch.distributed this is a COLLECTIVE:
    every rank must call it in every call of a reward, once, also with an empty batch or one that cannot be judged,
    or the others wait for ever. Rows that repeat a prompt of the data set share one group.
    """
    own = [text_of(prompt) for prompt in prompts]
    groups: dict[str, list] = {}
    for prompt, value in _over_all_ranks(list(zip(own, values, strict=True))):
        groups.setdefault(prompt, []).append(value)
    return [groups[prompt] for prompt in own]


def _over_all_ranks(pairs: list[tuple]) -> list[tuple]:
    # Asked of sys.modules, for rewards import no torch: a launcher that spreads a run over ranks has imported it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return pairs
    ranks = distributed.get_world_size()
    if ranks == 1:
        return pairs
    gathered: list = [None] * ranks
    distributed.all_gather_object(gathered, pairs)
    return [pair for part in gathered for pair in part]
