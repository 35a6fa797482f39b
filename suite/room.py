"""Do prompts and answers fit the positions of a model? Found out from its config and the rows, before it is loaded."""

from collections.abc import Iterator
from itertools import islice

from suite.args import say
from suite.engine.positions import positions_of

LOOKED_AT = 200  # of rows that stream, or are read one by one
BATCH = 10_000
MARKS = 32  # tokens that a chat template writes around a turn at most; Qwen's are five
SPELLED = 3  # bytes that NFC, by which Qwen's tokenizer begins, makes of one at most; ASCII stays as it is


def positions_before_loading(name: str, config, how: dict | None) -> int | None:
    """The positions of a model that is still to be loaded in this way (`model_init_kwargs`, with its revision)."""
    from transformers import AutoConfig

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    return positions_of(AutoConfig.from_pretrained(name, trust_remote_code=config.trust_remote_code, **(how or {})))


def check_sampled(model, config, tokenizer, *splits) -> int | None:
    """Where the answers of a model to the prompts of some rows end at the latest: its positions, or vLLM's window.

    Raises `ValueError` where they do not fit; `splits` that are None, as test rows that nobody wants, are passed over.
    """
    positions = positions_before_loading(model.model_name_or_path, config, config.model_init_kwargs)
    window = config.vllm_max_model_length if config.use_vllm and config.vllm_mode == "colocate" else None
    end = min((most for most in (positions, window) if most is not None and most > 0), default=None)
    for rows in splits:
        check_answers(rows, tokenizer, config, end, ends=config.use_vllm)
    return end


def check_answers(rows, tokenizer, config, positions: int | None, *, ends: bool, whose: str = "the model") -> None:
    """Raise `ValueError` where a prompt, or its longest completion, would be sampled past the positions of a model.

    `ends` says that whoever samples ends a completion there, as vLLM does. That is only said: it is trained on as one
    that was cut off. Of rows that stream the first are looked at.
    """
    if positions is None or rows is None:
        return
    longest = config.max_completion_length or 1
    template_kwargs = vars(config).get("chat_template_kwargs") or {}  # a key of GRPO's and distillation's
    long, looked_at = _longer_than(positions - longest, rows, tokenizer, template_kwargs)
    answer = 1 if ends else longest
    beyond = [length for length in long if length + answer > positions]
    if beyond:
        left = positions - max(beyond)
        lower = f"Set `max_completion_length` to at most {left}, leave" if left > 0 and not ends else "Leave"
        raise ValueError(
            f"{len(beyond)} of {looked_at} prompts do not fit: the longest has {max(beyond)} tokens, and with "
            f"{'one' if answer == 1 else answer} of its answer that is more than the {positions} positions of {whose} "
            f"(`max_position_embeddings`, or a lower `vllm_max_model_length`). {lower} such rows out "
            "(`max_prompt_tokens` of `suite prepare`), or take a model with more positions."
        )
    if long:
        say(
            f"note: {len(long)} of {looked_at} prompts and `max_completion_length` {longest} are together more than "
            f"the {positions} positions of {whose}. vLLM cuts such a completion off there."
        )


def _longer_than(room: int, rows, tokenizer, template_kwargs: dict) -> tuple[list[int], int]:
    """(tokens of each prompt that has more than `room`, how many prompts were looked at).

    A token is a byte at least, so that a prompt of fewer bytes than `room` is known to fit without being tokenized.
    """
    import numpy

    long, looked_at, added = [], 0, None
    for prompts in _columns(rows):
        looked_at += len(prompts)
        if added is None:  # by the template, before and behind the turns of any prompt
            empty = "" if _is_text(prompts.type) else [{"role": "user", "content": "?"}]
            (added,) = _tokens(tokenizer, [empty], template_kwargs)
        (suspects,) = numpy.nonzero(_bytes(prompts) + added > room)
        if len(suspects):
            found = prompts.take(suspects).to_pylist()
            long += [length for length in _tokens(tokenizer, found, template_kwargs) if length > room]
    return long, looked_at


def _columns(rows) -> Iterator:
    """The prompts, as Arrow arrays of some thousands; of rows that stream the first ones."""
    import pyarrow

    if not hasattr(rows, "__len__"):
        yield pyarrow.array([row["prompt"] for row in islice(rows, LOOKED_AT)])
        return
    for table in rows.select_columns(["prompt"]).with_format("arrow").iter(BATCH):
        yield table["prompt"].combine_chunks()


def _tokens(tokenizer, prompts: list, template_kwargs: dict) -> list[int]:
    """How many each prompt is for a model that is to answer it."""
    if isinstance(prompts[0], str):
        found = tokenizer(prompts, verbose=False)
    else:
        found = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True, **template_kwargs)
    return list(map(len, found["input_ids"]))


def _is_text(kind) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _bytes(cells):
    """At most how many bytes the text in each cell of an Arrow array has, with the marks of its turns. (cells,)"""
    import numpy
    from pyarrow import compute, types

    if _is_text(cells.type):
        lengths = [compute.fill_null(count(cells), 0) for count in (compute.binary_length, compute.utf8_length)]
        size, letters = (numpy.asarray(length, dtype=numpy.int64) for length in lengths)
        return numpy.where(size == letters, size, SPELLED * size)
    if types.is_struct(cells.type):
        return MARKS + sum(_bytes(field) for field in cells.flatten())
    if types.is_list(cells.type) or types.is_large_list(cells.type):
        turns, of = compute.list_flatten(cells), compute.list_parent_indices(cells)
        return numpy.bincount(numpy.asarray(of), weights=_bytes(turns), minlength=len(cells))
    return numpy.full(len(cells), MARKS)  # a number, or nothing
