"""Where a turn ends: the one token that a run trains, stops at and saves, read off the chat template.

A Qwen2.5 base model ends texts with <|endoftext|> while its template ends turns with <|im_end|>. Whoever trains with
the first gets a model that never stops talking, and the loss does not show it. So nobody has to say it: the template
does.
"""

import itertools
from pathlib import Path

from suite import columns
from suite.checkpoint import is_local

_SAID = "What the assistant said."


def end_of_turn(tokenizer, chat_template: str | None = None) -> str | None:
    """The token that a chat template (the tokenizer's own, or another) writes behind what an assistant said, if any."""
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
    text = _rendered(tokenizer, asked, chat_template)
    behind = text.rpartition(_SAID)[2]
    added = set(tokenizer.get_added_vocab().values())
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((tokenizer.convert_ids_to_tokens(i) for i in ids if i in added), None)


def _rendered(tokenizer, turns: list[dict], chat_template: str | None, beside: dict | None = None) -> str:
    """A conversation as text. Raises `ValueError` for a broken template, and for one that refuses these roles."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, chat_template=chat_template, tokenize=False, **(beside or {}))
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"The chat template cannot write a conversation of the roles {roles}: {error}") from error


def settle(
    tokenizer, *, conversational: bool, eos_token: str | None = None, chat_template_path: str | None = None
) -> str:
    """Make the end of a turn the tokenizer's EOS, and return it; the trainers carry it to the model's configs.

    Where rows are plain text there are no turns, and EOS is `eos_token`, or what the tokenizer has. Raises `ValueError`
    for an `eos_token` that is no token, or that would leave turns without an end.
    """
    if eos_token is not None and eos_token not in tokenizer.get_vocab():
        raise ValueError(
            f"eos_token: '{eos_token}' is not a token of this tokenizer, whose EOS is '{tokenizer.eos_token}'."
        )
    if not conversational:
        tokenizer.eos_token = eos_token or tokenizer.eos_token
        return tokenizer.eos_token
    ends = end_of_turn(*_templated(tokenizer, chat_template_path))
    if ends is None:
        raise ValueError(
            "The chat template writes no token of its own behind an assistant's turn, so a model cannot learn to stop. "
            "Set `chat_template_path` to a template that does, such as that of Qwen/Qwen2.5-0.5B-Instruct."
        )
    if ends not in tokenizer.get_vocab():
        raise ValueError(
            f"chat_template_path: that template ends a turn with '{ends}', which is not a token of this model. Take a "
            "template of the model's own family."
        )
    if eos_token not in (None, ends):
        raise ValueError(
            f"eos_token: '{eos_token}' is not what ends a turn: the chat template writes '{ends}' there, and a model "
            f"trained like this would run on past it. Remove `eos_token`, or set it to '{ends}'."
        )
    tokenizer.eos_token = ends
    return ends


def told_to_vllm(tokenizer, generation_kwargs: dict | None) -> dict:
    """The sampling options of a rollout with vLLM, which reads the tokenizer from disk: there it is not yet settled."""
    there = generation_kwargs or {}
    return {**there, "stop_token_ids": [*there.get("stop_token_ids", []), tokenizer.eos_token_id]}


def _templated(tokenizer, chat_template_path: str | None) -> tuple:
    """(tokenizer, template or None for its own) that a run will have once TRL has followed `chat_template_path`."""
    if chat_template_path is None:
        return tokenizer, None
    path = Path(chat_template_path)
    if path.suffix in (".jinja", ".j2"):
        if not path.is_file():
            raise ValueError(f"chat_template_path: there is no file '{path}'.")
        return tokenizer, path.read_text(encoding="utf-8")
    if is_local(chat_template_path) and not (path / "tokenizer_config.json").is_file():
        raise ValueError(f"chat_template_path: '{path}' is neither a .jinja file nor a directory with a tokenizer.")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(chat_template_path), None
    except OSError as error:  # the network and the Hub's own refusals
        raise ValueError(f"chat_template_path: cannot load the tokenizer of '{path}': {error}") from error


def check_said(rows, tokenizer, chat_template_path: str | None = None, looked_at: int = 100) -> None:
    """Raise `ValueError` where the template refuses a row, or leaves out its tools or part of the last answer in it.

    R1-Distill's cuts away all before </think>: right for earlier turns, and SFT on traces would never see a thought.
    White space aside, for templates trim. Looks at the first rows only.
    """
    source, template = _templated(tokenizer, chat_template_path)
    for number, row in enumerate(itertools.islice(rows, looked_at), 1):
        answers = [row[key] for key in ("completion", "chosen", "rejected") if key in row] or [[]]
        for turns in [row["messages"]] if "messages" in row else [[*row["prompt"], *said] for said in answers]:
            beside = columns.template_kwargs(row)
            text = _rendered(source, turns, template, beside)
            if beside.get("tools") and text == _rendered(source, turns, template, {**beside, "tools": None}):
                raise ValueError(
                    f"The chat template does not write the `tools` of row {number}: the model would learn to call what "
                    "it was never told of. Set `chat_template_path` (SFT) to one that does, start from a model whose "
                    "template does, or leave the column out."
                )
            if turns[-1]["role"] != "assistant":
                continue
            if "".join((turns[-1].get("content") or "").split()) not in "".join(text.split()):
                raise ValueError(
                    f"The chat template leaves out part of what the assistant says in row {number}, as R1-Distill's "
                    "does with all before </think>, so it would not be learned. Set `chat_template_path` (SFT) to one "
                    "that keeps it, or start from a model whose template does."
                )


def check_masks(rows, tokenizer, chat_template_path: str | None = None) -> None:
    """For `assistant_only_loss`: raise `ValueError` where a row has no assistant, or the template hides the end.

    `rows` have `messages` or `prompt` and `completion`; plain text, in which nobody takes turns, is refused, too.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    for number, row in enumerate(rows, 1):
        if not columns.is_conversational(row):
            raise ValueError(
                "assistant_only_loss: the rows are plain text, which has no turns. Remove it: of a "
                "`prompt` and its `completion` only the completion is trained, anyway."
            )
        turns = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        if not any(turn["role"] == "assistant" and turn.get("content") for turn in turns):
            raise ValueError(
                f"assistant_only_loss: row {number} has no assistant turn, so nothing in it could be learned. "
                "`suite prepare` leaves such rows out."
            )
    source, template = _templated(tokenizer, chat_template_path)
    template = template or source.chat_template
    marked = template if has_generation_markers(template) else get_training_chat_template(source)
    if not is_chat_template_stop_token_trained(source, chat_template=marked):
        raise ValueError(
            "assistant_only_loss: the chat template leaves the end of the assistant's turn out of the loss, so the "
            "model would never learn to stop. Put it between {% generation %} and {% endgeneration %}, or set "
            "`assistant_only_loss: false`."
        )


def check_trained(rows, eos_token: str, eos_token_id: int, *, split: bool = False, looked_at: int = 1000) -> str | None:
    """How many tokenized rows (a column of labels) are cut off before their end, as a line to say, if any are.

    Looks at the first rows only, a packed one document by document. With `split`, packing has cut documents anywhere
    and lost nothing: a piece may well hold a prompt alone, or end in mid-sentence. Raises `ValueError` where rows teach
    nothing, or never how a conversation ends.
    """
    found = [
        [label for label in labels if label != -100]
        for row in itertools.islice(rows, looked_at)
        for labels in _documents(row)
    ]
    if split:  # what is trained of all the pieces, as of one document
        found = [[label for labels in found for label in labels]]
    empty = sum(not labels for labels in found)
    if empty or not found:
        raise ValueError(
            f"{f'{empty} of the first {len(found)} rows' if found else 'All rows'} have no token in the loss: the "
            "prompt alone fills `max_length`, or the mask is empty. Raise `max_length`, or leave such rows out."
        )
    # The last two: templates write a line break behind the token that ends a turn.
    ending = sum(eos_token_id in (labels if split else labels[-2:]) for labels in found)
    if not ending:
        raise ValueError(
            f"None of the first {len(found)} rows ends with the end of a turn, '{eos_token}', in the loss: a model "
            "trained on them never stops. `max_length` cuts it off, or the chat template leaves it out."
        )
    if ending == len(found):
        return None
    return (
        f"{len(found) - ending} of the first {len(found)} rows are cut off by `max_length` before '{eos_token}': "
        "they do not teach the model to stop."
    )


def _documents(row: dict) -> list[list[int]]:
    """The labels of each document that was packed into a row, or of the row itself."""
    starts = itertools.accumulate(row.get("seq_lengths") or [len(row["labels"])], initial=0)
    return [row["labels"][start:end] for start, end in itertools.pairwise(starts)]
