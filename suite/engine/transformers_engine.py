"""The engine of transformers: batches of prompts, the longest first, and what all begin with read once."""

import contextlib
import math
import os
from collections.abc import Collection, Iterator, Sequence

from suite import merge
from suite.engine import Completion, Engine, Sampling, rendered, seed_of, stop_ids
from suite.engine.positions import positions_of, require_room
from suite.run import tokenizer as load_tokenizer

WORTH_SHARING = 8  # tokens that all prompts begin with: reading them once costs a call of its own


class TransformersEngine(Engine):
    """Batched `generate`, prompts sorted by length so that little is padding. What all begin with is read once.

    The longest come first: what does not fit into memory shows at once, and not when all the others are done.
    """

    def __init__(self, name: str, *, batch_size: int = 64, dtype: str = "auto"):
        import torch

        tokenizer = load_tokenizer(name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._take(merge.to_ask(name, dtype).to(device).eval(), tokenizer, batch_size)

    def _take(self, model, tokenizer, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.stop_ids = stop_ids(tokenizer, model.generation_config)
        self.positions = positions_of(model.config)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_ids[0]

    def stream(
        self, prompts: Sequence, sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """A batch at a time, each with a seed of its own. The same seed and the same list give the same completions."""
        import torch

        ids = rendered(self.tokenizer, prompts)
        require_room(ids, self.positions)
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        beginning = self._beginning(ids)
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            if all(number in done for number in batch):
                continue
            if sampling.temperature > 0:
                torch.manual_seed(seed_of(sampling, first))
            said = self._generate([ids[i] for i in batch], sampling, beginning)
            yield from [(number, one) for number, one in zip(batch, said, strict=True) if number not in done]

    def room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """How many tokens the answer to a prompt may have; below 1 where that fills the model's positions."""
        return min(sampling.max_new_tokens, (self.positions or math.inf) - len(prompt))

    def how(self, sampling: Sampling, new: int):
        """What `generate` is told beside a prompt: how to draw, and where an answer ends, at most `new` tokens on."""
        drawn = {"do_sample": False}
        if sampling.temperature > 0:
            drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        return told(**drawn, max_new_tokens=new, eos_token_id=self.stop_ids, pad_token_id=self.pad_id)

    def _beginning(self, ids: list[list[int]]) -> list[tuple]:
        """The keys and values, per layer, of what all prompts begin with: a system prompt, examples. (1, K, S, D)"""
        import torch
        from transformers.cache_utils import DynamicCache, DynamicLayer

        length = min([len(os.path.commonprefix(ids)), *(len(row) - 1 for row in ids)]) if len(ids) > 1 else 0
        if length < WORTH_SHARING:
            return []
        with self._without_gradients():
            first = torch.tensor([ids[0][:length]], device=self.model.device)
            cache = self.model(input_ids=first, use_cache=True, logits_to_keep=1).get("past_key_values")
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return []  # a window that slides, a state: what is in it is not what all rows would have there
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _generate(self, ids: list[list[int]], sampling: Sampling, beginning: list[tuple]) -> list[Completion]:
        import torch

        from suite.model.generation import HandedOver

        known = beginning[0][0].shape[2] if beginning else 0  # tokens; the padding stands behind them
        width = max(map(len, ids))
        # Of each answer; the longest prompts of a batch go on with the others, and what is beyond is cut off.
        room = [self.room(row, sampling) for row in ids]
        padded = torch.tensor([row[:known] + [self.pad_id] * (width - len(row)) + row[known:] for row in ids])  # (B, T)
        mask = torch.tensor([[1] * known + [0] * (width - len(row)) + [1] * (len(row) - known) for row in ids])
        cache = HandedOver() if beginning else None
        for number, (keys, values) in enumerate(beginning):
            cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), number)
        asked = f"with {len(ids)} completions at a time, of up to {width} + {max(room)} tokens each"
        way = "Set per_device_eval_batch_size lower, or max_completion_length."
        with self._without_gradients(), enough_memory(asked, way):
            out = self.model.generate(
                input_ids=padded.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                past_key_values=cache,
                generation_config=self.how(sampling, max(room)),
            )
        return [self._completion(row[:most]) for row, most in zip(out[:, width:].tolist(), room, strict=True)]

    def _without_gradients(self):
        import torch

        return torch.inference_mode()

    def close(self) -> None:
        """Give the memory back: the weights go when nobody holds them."""
        del self.model

    def _completion(self, ids: list[int]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        kept = ids if end is None else ids[: end + 1]
        return Completion(self.tokenizer.decode(kept, skip_special_tokens=True), len(kept), end is not None)


def told(**settings):
    """A generation config whose unset fields have transformers' defaults.

    `generate` fills them from the checkpoint's own instead: a repetition penalty, as Qwen2.5's has one, a min_p, beams,
    tokens never to be said. vLLM takes only the stop tokens from there, and the same checkpoint must give the same
    answers with both; nor does a loss on what was sampled know how it was bent.
    """
    from transformers import GenerationConfig

    class Told(GenerationConfig):
        def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs) -> dict:
            if allow_custom_entries:  # so only does `generate` hand over what is the checkpoint's
                return kwargs
            return super().update(defaults_only, allow_custom_entries, **kwargs)

    return Told(**settings)


@contextlib.contextmanager
def enough_memory(asked: str, way: str) -> Iterator[None]:
    """Turns out of memory into a `ValueError` that says what was `asked`, and the way out."""
    import torch

    try:
        yield
    except RuntimeError as error:  # on a CPU it has no type of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ValueError(f"Out of memory {asked}. {way}") from error
