"""Files of your own, or of the Hub: ShareGPT conversations, Alpaca, preference pairs, plain texts, TRL's shapes."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Container, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from suite import columns, reasoning
from suite.data import code, lines, reading
from suite.data.lines import Dropped
from suite.whole import digest

DEFAULTS = {"system_prompt": "none"}  # these rows ask for no format
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
Layout = Literal["auto", "conversations", "alpaca", "preference", "text", "trl"]
# The layout that a row's columns show: the first of these whose columns are all there.
_SHOWN_BY: tuple[tuple[str, set[str]], ...] = (
    ("preference", {"conversations", "chosen", "rejected"}),
    ("preference", {"instruction", "chosen", "rejected"}),
    *(("trl", set(names)) for shape, names in columns.SHAPES.items() if shape not in ("text", "messages")),
    ("preference", {"chosen", "rejected"}),
    ("conversations", {"conversations"}),
    ("conversations", {"messages"}),
    ("alpaca", {"instruction", "output"}),
    ("text", {"text"}),
)
_QUESTION = ("conversations", "messages", "prompt", "instruction", "input", "text", "chosen")
_SPOKEN = ("prompt", "completion", "chosen", "rejected")  # of one row, all text or all turns
_PAIRS = ("prompt+chosen+rejected", "prompt")  # of columns.SHAPES, what a row of a pair has
_PADDED = re.compile(r"(\.parquet|\([^()]*\)), row \d+$", re.IGNORECASE)  # the place of a row of parquet, or of the Hub
_HEADER = 100  # rows before which a row of a known layout must come
_MARKS = re.compile(r"</?s>|<\|im_(?:start|end)\|>")  # where another vocabulary's texts begin and end


def load(
    split: str,
    *,
    source: str = "",
    layout: Layout = "auto",
    subset: str | None = None,
    test_size: int = 100,
    seed: int = 0,
) -> Iterator[dict | Dropped]:
    """Rows whose columns follow from the layout, which the first row shows where `layout` is "auto".

    conversations: `conversations` or `messages`, turns of from/value or role/content, -> messages. Turns without roles
    are question and answer in turn; a `reasoning_content` becomes the think block before its answer.
    alpaca: `instruction`, `input`, `output`, perhaps `system` and `history` (pairs of texts), -> prompt, completion.
    preference: `chosen` and `rejected`, -> prompt, chosen, rejected. The prompt is `conversations`, or `instruction`
    and `input`, or the beginning that both answers share, or the text in `prompt`.
    text: `text`, or the lines of a .txt file, -> text, without the <s>...</s> that some put around each document.
    trl: rows that have one of TRL's shapes already, as they are.

    A line that cannot be read and a row of another layout, with a role that is not known, with tool calls, or without
    an answer at its end, is left out. `source` is a file, a directory or a Hub repository (`subset` is its
    configuration there); without a test split it is divided by `test_size` and `seed`.
    """
    if not source:
        raise ValueError("Which files? `suite prepare files --source PATH --output_dir data/NAME`.")
    strange = None
    found = reading.rows(split, source, by=_QUESTION, test_size=test_size, seed=seed, subset=subset, broken=True)
    for place, row in found:
        if layout == "auto" and not isinstance(row, Dropped):
            layout = _layout(row) or "auto"
            if layout == "auto":  # a header, it may be
                strange = strange or (place, row)
                row = Dropped("no known layout", place)
        yield _example(layout, row, place)
    if layout == "auto" and strange:
        raise _no_layout(*strange)


def splits(source: str, train: str, test: str, *, streaming: bool, wanted: Container[str] | None = None) -> dict:
    """`train`, and `test` where there is one -> data set of the rows of a local file or directory.

    Where only some are `wanted`, the other one is not looked at, and None.
    With `streaming` the files are read row by row each time; else they are copied into the cache of `datasets`. A file
    on its own is `train`, and so are the files of a directory that names none "train", but those held out. Raises
    `ValueError` where there is nothing to read, no such split, or one with files of two layouts.
    """
    parts = reading.files(source)
    if not parts or any(lines.suffix(path) not in lines.SUFFIXES for paths in parts.values() for path in paths):
        raise reading.unread(source)
    if Path(source).is_file():
        parts = {train: [Path(source)]}
    else:
        parts = reading.with_train(parts, train, test)
    if train not in parts:
        raise ValueError(f"{source} has no split '{train}'. There are: {', '.join(parts)}.")
    there = {split: parts[split] for split in dict.fromkeys((train, test)) if split in parts}
    reading.tell_of_others(source, (path for paths in there.values() for path in paths))
    read = {split for split in there if wanted is None or split in wanted}
    return {split: _as_data_set(paths, streaming) if split in read else None for split, paths in there.items()}


def _as_data_set(paths: list[Path], streaming: bool):
    from accelerate import PartialState
    from datasets import Dataset, IterableDataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    layout = layout_of(paths)
    knobs = {"paths": [str(path) for path in paths], "layout": layout, "of": len(paths)}
    knobs["kind"], knobs["beside"] = _kind_of(paths, layout), _beside_of(paths, layout)
    if streaming:
        return IterableDataset.from_generator(stream, gen_kwargs=knobs)
    # Else an older copy would do, of other files or by other code.
    written = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    made_from = digest([written, code(sys.modules[__name__])])
    # Rank 0 makes the copy, and tells what it leaves out; the others find it.
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    try:
        with PartialState().main_process_first() if several else contextlib.nullcontext():
            return Dataset.from_generator(stream, gen_kwargs={**knobs, "made_from": made_from})
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, ArrowException | OverflowError | TypeError):  # the last from `datasets`
            raise ValueError(
                f"{', '.join(knobs['paths'])}: a column holds what cannot be in one table: {cause}. A column has one "
                "type in all rows: write it so, or leave it out. `suite prepare files` finds the type, or tells which "
                "column has none."
            ) from error
        raise ValueError(str(cause)) from error


def stream(
    paths: list[str], layout: str, of: int = 1, made_from: str = "", kind: str = "", beside: tuple[str, ...] = ()
) -> Iterator[dict]:
    """The rows of files, one file after the other. What is left out of them is told of.

    They may be a share `of` so many, where several processes divide the files among themselves. A row that is not of
    `kind`, text or turns, is left out, too; where none is given the first row says it. All rows have what is `beside`
    the turns of some: `datasets` leaves away a column that the first row does not have.
    """
    for path in map(Path, paths):
        found = (
            (place, row if isinstance(row, Dropped) else _of_kind(row, kind, place, beside))
            for place, row in _examples(path, layout)
        )
        for _, row in lines.told(path, found, alone=len(paths) < of):
            kind = kind or _kind(row)
            yield row


def _examples(path: Path, layout: str) -> Iterator[tuple[str, dict | Dropped]]:
    for place, row in lines.read(path):
        yield place, _with_words(_example(layout, row, place), place)


def _of_kind(row: dict, kind: str, place: str, beside: tuple[str, ...]) -> dict | Dropped:
    if _kind(row) != (kind or _kind(row)):
        return Dropped("not of the first row's kind", place)
    more = next(
        (name for name in columns.BESIDE_TURNS if _is_learned(row) and row.get(name) and name not in beside), ""
    )
    if more:
        return Dropped(f"{more}, which no row has at the beginning", place)
    # An empty text, and not None: of a thousand rows that have none `datasets` would conclude that none ever has.
    return {**row, **{name: row.get(name) or "" for name in beside}}


def _beside_of(paths: list[Path], layout: str) -> tuple[str, ...]:
    """What the first rows of the files have beside their turns."""
    first = chain.from_iterable(islice(_examples(path, layout), _HEADER) for path in paths)
    found = {name for _, row in first if isinstance(row, dict) and _is_learned(row) for name in row}
    return tuple(name for name in columns.BESIDE_TURNS if name in found)


def _is_learned(row: dict) -> bool:
    """Whether a row holds turns and an answer."""
    return _kind(row) == "turns" and columns.has_answer(row)


def _kind_of(paths: list[Path], layout: str) -> str:
    """Text or turns, as the first row is. Raises `ValueError` where most of the first rows of a file are of the other
    kind; a stray one is left out by whoever reads on."""
    kind = ""
    for path in paths:
        first = islice(_examples(path, layout), _HEADER)
        looked_at = [(place, _kind(row)) for place, row in first if not isinstance(row, Dropped)]
        kind = kind or next((of for _, of in looked_at), "")
        others = [found for found in looked_at if found[1] != kind]
        if 2 * len(others) > len(looked_at):
            place, other = others[0]
            raise ValueError(
                f"{place}: this row is of {other}, and the first is of {kind}; so are {len(others)} of the first "
                f"{len(looked_at)} rows of the file. Write all rows alike."
            )
    return kind


def layout_of(paths: list[Path]) -> str:
    """The layout that the first rows of each file show. Raises `ValueError` where they are not of one mind."""
    shown: dict[str, Path] = {}
    for path in paths:
        rows = ((place, row) for place, row in lines.read(path) if not isinstance(row, Dropped))
        first = list(islice(rows, 1)) or [("", {})]
        layout = next((found for _, row in chain(first, islice(rows, _HEADER)) if (found := _layout(row))), None)
        if layout is None:
            raise _no_layout(*first[0]) if first[0][1] else ValueError(f"{path} has no rows.")
        shown.setdefault(layout, path)
    if len(shown) > 1:
        told = ", ".join(f"{path} ({layout})" for layout, path in shown.items())
        raise ValueError(f"These files are of different layouts: {told}. Name one, or a directory of one layout.")
    return next(iter(shown))


def _layout(row: dict) -> str | None:
    # Beside conversations, a prompt of plain text is what they begin with, once more.
    if isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list):
        return "preference"
    return next((layout for layout, there in _SHOWN_BY if there <= row.keys()), None)


def _no_layout(place: str, row: dict) -> ValueError:
    known = "; ".join(f"{name}: {', '.join(sorted(there))}" for name, there in _SHOWN_BY)
    return ValueError(f"{place}: no layout has the columns {', '.join(map(str, row))}. There are {known}.")


def _example(layout: str, row: dict | Dropped, place: str) -> dict | Dropped:
    """What a row becomes; a row of another layout is `Dropped` with the reader's own words."""
    if isinstance(row, Dropped):
        return row
    try:
        made = _READERS[layout](row, place)
    except ValueError as error:
        return Dropped("not of this layout", str(error))
    if isinstance(made, Dropped) or not _is_learned(made):
        return made
    try:
        return {**made, **_beside_turns(row, place)}
    except ValueError as error:
        return Dropped("tools or chat_template_kwargs that cannot be read", f"{place}: {error}")


def _beside_turns(row: dict, place: str) -> dict:
    """What the chat template is given beside the turns of a row that is learned from."""
    kept = {name: row[name] for name in columns.BESIDE_TURNS if name in row}
    if _PADDED.search(place):
        kept = columns.without_none(kept)
    return {name: columns.as_text(name, cell) for name, cell in kept.items()}


def _conversation(row: dict, place: str) -> dict | Dropped:
    messages = _messages(reading.value(row, place, "conversations", "messages"), row, place)
    if isinstance(messages, str):
        return Dropped(messages, place)
    if not messages or messages[-1]["role"] != "assistant":
        return Dropped("no answer at the end", place)
    return {"messages": messages}


def _alpaca(row: dict, place: str) -> dict:
    answer = reading.text(row, place, "output")
    return {"prompt": _instruction(row, place), "completion": [{"role": "assistant", "content": answer}]}


def _preference(row: dict, place: str) -> dict | Dropped:
    answers = [_messages(_as_turns(reading.value(row, place, name)), {}, place) for name in ("chosen", "rejected")]
    if "conversations" in row:
        prompt = _messages(row["conversations"], row, place)
    elif "instruction" in row:
        prompt = _instruction(row, place)
    else:
        prompt, answers = _parted(row, place, answers)
    reason = next((found for found in (prompt, *answers) if isinstance(found, str)), None)
    if not reason and answers[0] == answers[1]:
        reason = "chosen is rejected"
    if not reason and not all(answers):
        reason = "no answer at the end"
    if reason or not prompt or prompt[-1]["role"] != "user":
        return Dropped(reason or "no question at the end", place)
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def _parted(row: dict, place: str, answers: list) -> tuple[list | str, list]:
    """(the turns with which both conversations begin, what is left of each)."""
    if any(isinstance(answer, str) for answer in answers):
        return [], answers
    shared = 0
    for a, b in zip(*answers, strict=False):
        if a != b:
            break
        shared += 1
    if shared == 0 and "prompt" in row:
        return [*_system(row, place), {"role": "user", "content": reading.text(row, place, "prompt")}], answers
    return [*_system(row, place), *answers[0][:shared]], [answer[shared:] for answer in answers]


def _text(row: dict, place: str) -> dict:
    text = reading.text(row, place, "text")
    if text.startswith(("<s>", "<|im_start|>")) and text.endswith(("</s>", "<|im_end|>")):
        text = "\n".join(filter(None, map(str.strip, _MARKS.split(text))))
    return {"text": text}


def _as_it_is(row: dict, place: str) -> dict | Dropped:
    columns.check(row.keys(), columns.SHAPES, place)
    for name in _said(row):
        held = row[name]
        if held is None or isinstance(held, str):  # an empty one is counted by `suite prepare`
            continue
        if not isinstance(held, list) or not all(map(_is_turn, held)):
            raise ValueError(f"{place}: `{name}` must be text, or turns of role and content, and is {str(held)[:60]}.")
    if len({_kind({name: row[name]}) for name in _SPOKEN if row.get(name)}) > 1:
        raise ValueError(f"{place}: {', '.join(f'`{n}`' for n in _SPOKEN if n in row)} must all be text, or all turns.")
    # Where a row has another shape, too, nobody knows that it is read for its pair.
    other = columns.shape_of(row.keys(), [shape for shape in columns.SHAPES if shape not in _PAIRS])
    if not other and row.get("chosen") is not None and row["chosen"] == row.get("rejected"):
        return Dropped("chosen is rejected", place)
    return {**row, **{name: columns.own_arguments(row[name]) for name in _said(row)}}


def _with_words(row: dict | Dropped, place: str) -> dict | Dropped:
    """The row, unless a turn or a text in it has no words. `suite prepare` has a check, and a key, of its own."""
    if isinstance(row, Dropped):
        return row
    return row if all(_says_something(row[name]) for name in _said(row)) else Dropped("empty", place)


def _said(row: dict) -> list[str]:
    """The columns that hold what is said; `text` where there is no other, for beside them it may be anything."""
    return [name for name in ("messages", *_SPOKEN) if name in row] or [name for name in row if name == "text"]


def _says_something(held: str | list | None) -> bool:
    """Whether a text does, or every turn but the system's; who calls a tool need not say it in words."""
    if not isinstance(held, list):
        return bool((held or "").strip())
    turns = [turn for turn in held if turn["role"] != "system"]
    return bool(turns) and all(turn.get("tool_calls") or (turn.get("content") or "").strip() for turn in turns)


_READERS: dict[str, Callable[[dict, str], dict | Dropped]] = {
    "conversations": _conversation,
    "alpaca": _alpaca,
    "preference": _preference,
    "text": _text,
    "trl": _as_it_is,
}


def _kind(row: dict) -> str:
    return "turns" if any(isinstance(row.get(name), list) for name in (*_SPOKEN, "messages")) else "text"


def _is_turn(held) -> bool:
    return isinstance(held, dict) and "role" in held and isinstance(held.get("content"), str | None)


def _as_turns(answer) -> list:
    """An answer as turns: it may be one turn, several, or just its text."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    return answer if isinstance(answer, list) else [answer]


def _messages(turns, row: dict, place: str) -> list[dict] | str:
    """Turns as TRL reads them, the row's `system` in front; or the reason why they cannot be read."""
    turns = [] if turns is None else turns
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "turns that are none"
    messages = _system(row, place)
    in_turn = bool(turns) and not any("from" in turn or "role" in turn for turn in turns)
    for number, turn in enumerate(turns):
        said = ("user", "assistant")[number % 2] if in_turn else reading.text(turn, place, "from", "role").lower()
        if said not in ROLES:
            return f"role '{said}'"
        if turn.get("tool_calls"):
            return "tool calls"
        if isinstance(reading.value(turn, place, "value", "content"), list | dict):
            return "a turn that is more than text"
        content = reading.text(turn, place, "value", "content")
        thinking = str(turn.get("reasoning_content") or "").strip()
        messages.append({"role": ROLES[said], "content": reasoning.write(thinking, content) if thinking else content})
    return messages


def _system(row: dict, place: str) -> list[dict]:
    return [{"role": "system", "content": reading.text(row, place, "system")}] if row.get("system") else []


def _instruction(row: dict, place: str) -> list[dict]:
    """The prompt of an Alpaca row: system, the turns before, then instruction and input as one question."""
    messages = _system(row, place)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(map(_is_pair, history)):
        raise ValueError(f"{place}: `history` must be pairs of texts, question and answer, and is {str(history)[:60]}.")
    for question, answer in history:
        messages += [{"role": "user", "content": question or ""}, {"role": "assistant", "content": answer or ""}]
    asked = [reading.text(row, place, name) for name in ("instruction", "input") if name in row]
    return [*messages, {"role": "user", "content": "\n".join(part for part in asked if part)}]


def _is_pair(held) -> bool:
    return isinstance(held, list) and len(held) == 2 and all(isinstance(said, str | None) for said in held)
