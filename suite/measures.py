"""What a model finds likely of rows it never saw: bits per byte of texts, and how often the preferred answer is ahead.

Nothing is generated here. Log-probabilities are read with transformers, also where vLLM answers the prompts.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from suite import columns, metrics
from suite.args import say
from suite.engine.positions import positions_of

# Positions whose logits are in memory at once; at Qwen2.5's vocabulary of 152 k, 0.6 GB in 32 bits.
_POSITIONS = 1024
_TOKENS = 16_384  # in a batch, padding included


def of_rows(name: str, rows: Sequence[dict], dtype: str = "auto", progress: Callable = iter) -> dict[str, dict]:
    """Metric -> value, ci95 and n, of what the columns of the rows can be asked; nothing where that is neither.

    bits_per_byte  of `text`: the sum of -log2 p(token | tokens before it), over the bytes of those tokens. A text's
                   first token, which nothing precedes, does not count, nor does the end of the text.
    preferred      of `prompt`, `chosen` and `rejected`: the share of rows whose chosen answer is more likely. The
                   probability is that of the whole answer with its end of turn, not normalized by its length.
    """
    reads_text, compares = "text" in rows[0], {"prompt", "chosen", "rejected"} <= rows[0].keys()
    if not (reads_text or compares):
        return {}
    model, tokenizer = _load(name, dtype)
    measured = {}
    if reads_text:
        texts = [row["text"] for row in rows]
        counted = bits_and_bytes(model, tokenizer, texts, progress)
        measured["bits_per_byte"] = metrics.ratio(*zip(*counted, strict=True))
    if compares:
        ahead = margins(model, tokenizer, rows, progress)
        measured["preferred"] = metrics.rate([float(margin > 0) for margin in ahead])
    return measured


def guessing(tokenizer, texts: Sequence[str]) -> float:
    """Bits per byte of these texts where every token is as likely as any other: what a model from nothing begins at."""
    lengths = [(len(ids) - 1, _bytes_behind_first(tokenizer, text, ids)) for text, ids in _cut(tokenizer, texts)]
    tokens, size = map(sum, zip(*lengths, strict=True))
    return math.log2(len(tokenizer)) * tokens / size


def bits_and_bytes(model, tokenizer, texts: Sequence[str], progress: Callable = iter) -> list[tuple[float, int]]:
    """(bits, bytes) of each text behind its first token.

    One longer than the model's positions is read in windows, each of which begins with the last token of the one
    before. Where a model knows no such limit, a window has as many tokens as a batch.
    """
    window = positions_of(model.config) or _TOKENS
    pieces, of, bytes_of = [], [], []
    for number, (text, ids) in enumerate(_cut(tokenizer, texts)):
        bytes_of.append(_bytes_behind_first(tokenizer, text, ids))
        for start in range(0, max(1, len(ids) - 1), window - 1):
            pieces.append(ids[start : start + window])
            of.append(number)
    bits = [0.0] * len(texts)
    for number, logs in zip(of, log_probs(model, pieces, progress), strict=True):
        bits[number] -= sum(logs) / math.log(2)
    return list(zip(bits, bytes_of, strict=True))


def margins(model, tokenizer, rows: Sequence[dict], progress: Callable = iter) -> list[float]:
    """log p(chosen | prompt) - log p(rejected | prompt) of each row, in nats.

    A row of which an answer ends beyond the model's positions is left out, and that is said. Raises `ValueError` where
    all are.
    """
    from suite.trainers.distillation import trained_tokens

    positions, sequences, answers = positions_of(model.config), [], []
    for row in rows:
        beside = {name: row[name] for name in columns.BESIDE_TURNS if name in row}
        both = ({"prompt": row["prompt"], "completion": row[name], **beside} for name in ("chosen", "rejected"))
        ids, trained = zip(*(trained_tokens(one, tokenizer, None, {}) for one in both), strict=True)
        if positions is None or max(map(len, ids)) <= positions:
            sequences += ids
            answers += trained
    left_out = len(rows) - len(sequences) // 2
    if left_out:
        told = f"{left_out} of {len(rows)} pairs have more tokens than the {positions} positions of the model"
        if not sequences:
            raise ValueError(f"{told}: none is left to measure. Take shorter ones, or a model with more positions.")
        say(f"warning: {told} (`max_position_embeddings`), and are not measured.")
    found = [
        sum(log for log, counts in zip(logs, trained[1:], strict=True) if counts)
        for logs, trained in zip(log_probs(model, sequences, progress), answers, strict=True)
    ]
    return [chosen - rejected for chosen, rejected in zip(found[::2], found[1::2], strict=True)]


def log_probs(model, sequences: Sequence[list[int]], progress: Callable = iter) -> list[list[float]]:
    """log p(token | tokens before it), in nats, of every token but the first of each sequence."""
    found: list[list[float]] = [[]] * len(sequences)
    if not sequences:
        return found
    plain = _ends_in_its_head(model, min(sequences, key=len))
    most = _TOKENS if plain else min(_TOKENS, _POSITIONS)
    for batch in progress(list(_batches([len(ids) for ids in sequences], most))):
        for number, logs in zip(batch, _log_probs_of(model, [sequences[i] for i in batch], plain), strict=True):
            found[number] = logs
    return found


def _ends_in_its_head(model, ids: list[int]) -> bool:
    """Whether a model's logits are what its head makes of the hidden states, for one sequence to the last bit.

    Then all of a batch never need to be in memory at once. Some scale their logits behind the head (Granite, Cohere)
    or cap them (Gemma 2), each by another key of its config: only the model itself says what it does.
    """
    import torch

    head, asked = model.get_output_embeddings(), torch.tensor([ids], device=model.device)  # (1, T)
    with torch.inference_mode():
        hidden = model.base_model(input_ids=asked, use_cache=False).last_hidden_state  # (1, T, D)
        return torch.equal(head(hidden).float(), model(input_ids=asked, use_cache=False).logits.float())


def _log_probs_of(model, sequences: list[list[int]], plain: bool) -> list[list[float]]:
    """`plain`: whether the logits may be computed a part at a time, by the head alone."""
    import torch

    width = max(map(len, sequences))
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in sequences], device=model.device)  # (B, T)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences], device=model.device)
    asked = {"input_ids": padded, "attention_mask": mask, "use_cache": False}
    with torch.inference_mode():
        if plain:
            states, logits_of = model.base_model(**asked).last_hidden_state, model.get_output_embeddings()  # (B, T, D)
        else:
            states, logits_of = model(**asked).logits, torch.nn.Identity()  # (B, T, V)
        states, targets = states[:, :-1].flatten(0, 1), padded[:, 1:].flatten()  # (B * (T-1), D or V), (B * (T-1),)
        logs = [
            logits_of(part).float().log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
            for part, wanted in zip(states.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
        ]
    flat = torch.cat(logs).view(len(sequences), width - 1).tolist() if width > 1 else [[]] * len(sequences)
    return [logs[: len(ids) - 1] for logs, ids in zip(flat, sequences, strict=True)]


def _batches(lengths: list[int], most: int) -> Iterator[list[int]]:
    """Numbers of sequences, those of like length together, so many that a batch has at most `most` tokens."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[number] > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _cut(tokenizer, texts: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """(text, its token ids) of each text. Raises `ValueError` for one without text, and behind the last if all were of
    one token, which nothing precedes."""
    longest = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError("An empty `text` has no bytes to measure. `suite prepare` leaves such rows out.")
        longest = max(longest, len(ids))
        yield text, ids
    if longest == 1:
        raise ValueError(
            f"Every `text` of {len(texts):,} is one token, and a text is measured behind its first. Take longer ones."
        )


def _bytes_behind_first(tokenizer, text: str, ids: list[int]) -> int:
    """The bytes of a text without those that its first token spells.

    That may be a part of a character, which is no text; a byte-level vocabulary writes a character for each byte of it.
    """
    spelled = tokenizer.decode(ids[:1])
    first = len(spelled.encode()) if text.startswith(spelled) else len(tokenizer.convert_ids_to_tokens(ids[0]))
    return len(text.encode()) - first


def _load(name: str, dtype: str):
    import torch

    from suite import merge, run

    tokenizer = run.tokenizer(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return merge.to_ask(name, dtype).to(device).eval(), tokenizer
