"""UltraFeedback, binarized: 61,000 prompts, each with a better and a worse answer, for DPO."""

from collections.abc import Iterator

from suite.data import reading

DEFAULTS = {"system_prompt": "none"}  # general chat, which asks for no format


def load(
    split: str,
    *,
    source: str = "HuggingFaceH4/ultrafeedback_binarized",
    min_margin: float = 0.0,
    test_size: int = 500,
    seed: int = 0,
) -> Iterator[dict | reading.Dropped]:
    """Rows with the columns prompt, chosen and rejected, each a conversation, from `chosen` and `rejected`.

    The splits are the source's train_prefs and test_prefs. `min_margin` is the least difference of the two scores;
    pairs with less, or whose answers are the same, are left out. `test_size` and `seed` divide a source without a
    test split.
    """
    names = ("train_prefs", "test_prefs")
    for place, row in reading.rows(split, source, by=("prompt",), test_size=test_size, seed=seed, names=names):
        chosen, rejected = reading.value(row, place, "chosen") or [], reading.value(row, place, "rejected") or []
        if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
            yield reading.Dropped("the answers have different prompts", place)
        elif chosen[-1] == rejected[-1]:
            yield reading.Dropped("chosen is rejected", place)
        elif min_margin > 0 and not _margin(row, place) >= min_margin:  # nan, where a score is missing
            yield reading.Dropped("margin", place)
        else:
            yield {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _margin(row: dict, place: str) -> float:
    return reading.number(row, place, "score_chosen") - reading.number(row, place, "score_rejected")
