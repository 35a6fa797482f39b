"""SFT in which the tags of an answer weigh more than its words: few tokens, and the whole format hangs on them."""

import re
from collections.abc import Callable

import torch
from datasets import IterableDataset
from transformers.convert_slow_tokenizer import bytes_to_unicode
from trl import SFTTrainer
from trl.trainer.utils import pad

from suite import reasoning

_TAG = re.compile("|".join(map(re.escape, reasoning.TAGS)).encode())
_BYTES = {character: bytes([byte]) for byte, character in bytes_to_unicode().items()}


class TagWeightedSFTTrainer(SFTTrainer):
    """`SFTTrainer` with the loss sum_t w_t * -log p(y_t | y_<t) / N.

    w_t is `tag_weight` where token t overlaps the characters of a tag, else 1. N counts the trained tokens of the whole
    batch, over processes and accumulated steps, as TRL's own loss does, and not their weights: what is no tag pulls
    exactly as hard as without weights, and each tag `tag_weight` times as hard. (MiniMind's rule for R1 traces.)
    `eval_loss` is weighted alike. Raises `ValueError` where no trained token of any row overlaps a tag.
    """

    def __init__(self, *args, tag_weight: float, **kwargs):
        self.tag_weight = tag_weight
        super().__init__(*args, **kwargs)
        self.data_collator = _weighing(self.data_collator, tag_weight)

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        prepared = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
        mark = TagMarker(processing_class)
        if isinstance(prepared, IterableDataset):  # marked as it comes; nobody knows how many rows there will be
            return prepared.map(mark)
        prepared = prepared.map(mark, num_proc=args.dataset_num_proc, desc=f"Finding tags in {dataset_name} dataset")
        prepared = prepared.map(_untagged, num_proc=args.dataset_num_proc)
        without = sum(prepared["untagged"])
        documents = sum(map(len, prepared["seq_lengths"])) if "seq_lengths" in prepared.column_names else len(prepared)
        if without == documents:
            raise ValueError(
                f"tag_weight: no trained token of the {documents} {dataset_name} rows overlaps one of "
                f"{', '.join(reasoning.TAGS)}. Remove `tag_weight`, or train on rows in that format."
            )
        if args.process_index == 0:
            print(f"tag_weight {self.tag_weight:g}: {without} of {documents} {dataset_name} rows have no tag to weigh.")
        return prepared.remove_columns("untagged")

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "in_tag" not in self._signature_columns:
            self._signature_columns.append("in_tag")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        weights = inputs.pop("token_weights")  # (B, T)

        def weighed(**given):
            outputs = model(**given)
            outputs.log_probs = outputs.log_probs * weights[:, 1:]  # (B, T-1), of the tokens that were predicted
            return outputs

        return super().compute_loss(weighed, inputs, return_outputs, num_items_in_batch)


class TagMarker:
    """Which tokens of a row overlap a tag's characters.

    In Qwen2.5's vocabulary a tag is three or more tokens, and they merge with their neighbors (`><`, `>\\n`): only the
    place of each token in the text tells. A byte-level token spells its bytes, so that place is exact and needs no
    second tokenization. Raises `ValueError` for a tokenizer of another kind.
    """

    def __init__(self, tokenizer):
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        if type(decoder).__name__ != "ByteLevel":
            raise ValueError(
                f"tag_weight needs a byte-level tokenizer, as Qwen2.5's and miniqwen's are; this is a "
                f"{type(tokenizer).__name__} that decodes by {type(decoder).__name__}."
            )
        self.tokenizer = tokenizer
        self.added = {i: text.encode() for text, i in tokenizer.get_added_vocab().items()}
        self.spelled: dict[int, bytes] = {}

    def __call__(self, row: dict) -> dict:
        """`in_tag`: one 0 or 1 a token of `row["input_ids"]`."""
        starts, text = [], bytearray()
        for token in row["input_ids"]:
            starts.append(len(text))
            text += self.spell(token)
        marked = [0] * len(starts)
        ends = [*starts[1:], len(text)]
        token = 0
        for tag in _TAG.finditer(text):
            while ends[token] <= tag.start():
                token += 1
            while token < len(starts) and starts[token] < tag.end():
                marked[token] = 1
                token += 1
            token -= 1  # it may reach into the next tag, as `><` does
        return {"in_tag": marked}

    def spell(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        if token in self.added:
            return self.added[token]
        if token not in self.spelled:
            characters = self.tokenizer.convert_ids_to_tokens(token)
            self.spelled[token] = b"".join(_BYTES[character] for character in characters)
        return self.spelled[token]


def _untagged(row: dict) -> dict:
    """`untagged`: how many documents of a row, packed or single, have no trained token in a tag."""
    weighed = [mark and label != -100 for mark, label in zip(row["in_tag"], row["labels"], strict=True)]
    found, at = 0, 0
    for length in row.get("seq_lengths") or [len(weighed)]:
        found += not any(weighed[at : at + length])
        at += length
    return {"untagged": found}


def _weighing(collate: Callable, tag_weight: float) -> Callable:
    """A collator that adds `token_weights`, laid out as `input_ids` are: padded, or end to end."""

    def with_weights(rows: list[dict]) -> dict:
        batch = collate(rows)
        marks = [torch.tensor(row["in_tag"], dtype=torch.float32) for row in rows]
        if collate.padding_free:
            marks = [torch.cat(marks)]
        marked = pad(marks, padding_value=0, padding_side="right", pad_to_multiple_of=collate.pad_to_multiple_of)
        assert marked.shape == batch["input_ids"].shape, (marked.shape, batch["input_ids"].shape)
        batch["token_weights"] = 1 + (tag_weight - 1) * marked  # (B, T)
        return batch

    return with_weights
