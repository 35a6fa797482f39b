"""Do prompts and answers fit the positions of a model? Found out from its config and the rows, before it is loaded."""

from collections.abc import Iterator
from itertools import islice

from suite.args import say
from suite.engine.positions import positions_of, without_room

LOOKED_AT = 200  # of rows that stream, or are read one by one
BATCH = 10_000
MARKS = 32  # tokens that a chat template writes around a turn at most; Qwen's are five
NAMED = 10  # bytes that JSON writes around the name of a field at most, where its value is null
SPELLED = 3  # bytes that NFC, by which Qwen's tokenizer begins, makes of one at most; ASCII stays as it is


def positions_before_loading(name: str, config, how: dict | None) -> int | None:
    """The positions of a model that is still to be loaded in this way (`model_init_kwargs`, with its revision)."""
    from transformers import AutoConfig

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    how = {"trust_remote_code": config.trust_remote_code, **(how or {})}  # as TRL does: who wrote it there, wins
    return positions_of(AutoConfig.from_pretrained(name, **how))


def check_sampled(model, config, tokenizer, train_rows=None, test_rows=None) -> int | None:
    """Where the answers of a model to the prompts of some rows end at the latest: its positions, or vLLM's window.

    Raises `ValueError` where they do not fit; rows that are None, as test rows that nobody wants, are passed over.
    """
    positions = positions_before_loading(model.model_name_or_path, config, config.model_init_kwargs)
    window = config.vllm_max_model_length if config.use_vllm and config.vllm_mode == "colocate" else None
    end = min((most for most in (positions, window) if most is not None and most > 0), default=None)
    for split, rows in (("train", train_rows), ("test", test_rows)):
        check_answers(split, rows, tokenizer, config, end, ends=config.use_vllm)
    return end


def check_answers(
    split: str, rows, tokenizer, config, positions: int | None, *, ends: bool, whose: str = "the model"
) -> None:
    """Raise `ValueError` where a prompt, or its longest completion, would be sampled past the positions of a model.

    `split` is what the message calls the rows; of those that stream the first are looked at. `ends` says that whoever
    samples ends a completion there, as vLLM does. That is only said: it is trained on as one that was cut off.
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
        lower = f"Set `max_completion_length` to at most {left}" if left > 0 and not ends else ""
        told = without_room(beyond, looked_at, positions, way=lower, answer=answer, whose=whose)
        raise ValueError(f"{split} rows: {told}")
    if long:
        say(
            f"note: {split} rows: {len(long)} of {looked_at} prompts and `max_completion_length` {longest} are "
            f"together more than the {positions} positions of {whose}. vLLM cuts such a completion off there."
        )


def check_asked(prompts: list, tokenizer, positions: int | None, way: str = "") -> None:
    """Raise `ValueError` where a prompt that a model is going to be asked leaves no position for the first token of its
    answer. It is the model's own word (`positions.require_room`), without a token of most prompts."""
    if positions is None:
        return
    from datasets import Dataset
    from pyarrow import ArrowException

    try:
        rows = Dataset.from_dict({"prompt": prompts})
    except ArrowException:  # of several types: looked at as rows that stream are
        rows = ({"prompt": prompt} for prompt in prompts)
    beyond, looked_at = _longer_than(positions - 1, rows, tokenizer, {})
    if beyond:
        raise ValueError(without_room(beyond, looked_at, positions, way=way))


def _longer_than(room: int, rows, tokenizer, template_kwargs: dict) -> tuple[list[int], int]:
    """(tokens of each prompt that has more than `room`, how many prompts were looked at).

    Only prompts that may have more by their bytes are tokenized, and those of rows that stream: these are few, and
    what they hold need not have one type.
    """
    if not hasattr(rows, "__len__"):
        asked = [[row["prompt"] for row in islice(rows, LOOKED_AT)]]
        looked_at = len(asked[0])
    else:
        asked, looked_at = _suspects(room, rows, tokenizer, template_kwargs), len(rows)
    found = (_tokens(tokenizer, prompts, template_kwargs) for prompts in asked)
    return [length for lengths in found for length in lengths if length > room], looked_at


def _suspects(room: int, rows, tokenizer, template_kwargs: dict) -> Iterator[list]:
    """The prompts whose bytes do not show that they have at most `room` tokens, from some thousands of rows at a time.

    A token is a byte at least. The bytes are counted in Arrow; the prompts are read as the trainer reads them, for
    `datasets` keeps a field of several types as JSON text there.
    """
    import numpy

    rows = rows.select_columns(["prompt"])
    begin, added = 0, None
    for table in rows.with_format("arrow").iter(BATCH):
        cells = table["prompt"].combine_chunks()
        if added is None:  # by the template, before and behind the turns of any prompt
            empty = "" if _is_text(cells.type) else [{"role": "user", "content": "?"}]
            (added,) = _tokens(tokenizer, [empty], template_kwargs)
        (suspects,) = numpy.nonzero(_bytes(cells) + added > room)
        if len(suspects):
            yield rows[(begin + suspects).tolist()]["prompt"]
        begin += len(cells)


def _tokens(tokenizer, prompts: list, template_kwargs: dict) -> list[int]:
    """How many each prompt is for a model that is to answer it; those of text come first."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    turns = [prompt for prompt in prompts if not isinstance(prompt, str)]
    found = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    if turns:
        how = {"add_generation_prompt": True, "return_dict": True, **template_kwargs}
        found = [*found, *tokenizer.apply_chat_template(turns, **how)["input_ids"]]
    return list(map(len, found))


def _is_text(kind) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _bytes(cells):
    """At most how many bytes the text in each cell of an Arrow array has, with the marks of its turns. (cells,)

    That of a type which is not known here is without end.
    """
    import numpy
    from pyarrow import BaseExtensionType, compute, types

    kind = cells.type
    if isinstance(kind, BaseExtensionType):  # JSON text: a template writes a blank behind its commas and colons
        return MARKS + 2 * _bytes(cells.storage)
    if _is_text(kind):
        lengths = [compute.fill_null(count(cells), 0) for count in (compute.binary_length, compute.utf8_length)]
        size, letters = (numpy.asarray(length, dtype=numpy.int64) for length in lengths)
        return numpy.where(size == letters, size, SPELLED * size)
    if types.is_struct(kind):
        named = sum(len(field.name.encode()) + NAMED for field in kind)
        return MARKS + named + sum(_bytes(field) for field in cells.flatten())
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        turns, of = compute.list_flatten(cells), compute.list_parent_indices(cells)
        return numpy.bincount(numpy.asarray(of), weights=_bytes(turns), minlength=len(cells))
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    return numpy.full(len(cells), MARKS if number else numpy.inf)
