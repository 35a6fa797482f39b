"""Files of your own, or of the Hub: ShareGPT conversations, Alpaca, preference pairs, plain texts, TRL's shapes."""

from collections.abc import Callable, Iterator
from typing import Literal

from suite import columns
from suite.data import reading

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
# Layout -> the columns that show it, any of these sets. The first that fits is taken.
_SHOWN_BY: dict[str, tuple[set[str], ...]] = {
    "preference": ({"conversations", "chosen", "rejected"}, {"instruction", "chosen", "rejected"}),
    "trl": tuple(set(names) for shape, names in columns.SHAPES.items() if shape not in ("text", "messages")),
    "conversations": ({"conversations"}, {"messages"}),
    "alpaca": ({"instruction", "output"},),
    "text": ({"text"},),
}
_QUESTION = ("conversations", "messages", "prompt", "instruction", "input", "text")


def load(
    split: str,
    *,
    source: str = "",
    layout: Layout = "auto",
    subset: str | None = None,
    test_size: int = 100,
    seed: int = 0,
) -> Iterator[dict | reading.Dropped]:
    """Rows whose columns follow from the layout, which the first row shows where `layout` is "auto".

    conversations: `conversations` or `messages`, turns of from/value or role/content, -> messages.
    alpaca: `instruction`, `input`, `output`, perhaps `system` and `history` (pairs of texts), -> prompt, completion.
    preference: `conversations` or `instruction` and `input`, `chosen` and `rejected`, -> prompt, chosen, rejected.
    text: `text`, or the lines of a .txt file, -> text. trl: rows that have one of TRL's shapes already, as they are.

    A row with a role that is not known, or without an answer at its end, is left out. `source` is a file, a directory
    or a Hub repository (`subset` is its configuration there); without a test split it is divided by `test_size` and
    `seed`.
    """
    if not source:
        raise ValueError("Which files? `suite prepare files --source PATH --output_dir data/NAME`.")
    read = None
    for place, row in reading.rows(split, source, by=_QUESTION, test_size=test_size, seed=seed, subset=subset):
        read = read or _READERS[layout if layout != "auto" else _layout(row, place)]
        yield read(row, place)


def _layout(row: dict, place: str) -> str:
    for layout, shown_by in _SHOWN_BY.items():
        if any(names <= row.keys() for names in shown_by):
            return layout
    known = "; ".join(f"{k}: {' or '.join(', '.join(sorted(n)) for n in v)}" for k, v in _SHOWN_BY.items())
    raise ValueError(f"{place}: no layout has the columns {', '.join(map(str, row))}. There are {known}.")


def _conversation(row: dict, place: str) -> dict | reading.Dropped:
    messages = _messages(reading.value(row, place, "conversations", "messages"), row, place)
    if isinstance(messages, str):
        return reading.Dropped(messages, place)
    if not messages or messages[-1]["role"] != "assistant":
        return reading.Dropped("no answer at the end", place)
    return {"messages": messages}


def _alpaca(row: dict, place: str) -> dict:
    answer = reading.text(row, place, "output")
    return {"prompt": _instruction(row, place), "completion": [{"role": "assistant", "content": answer}]}


def _preference(row: dict, place: str) -> dict | reading.Dropped:
    if "conversations" in row:
        prompt = _messages(row["conversations"], row, place)
    else:
        prompt = _instruction(row, place)
    answers = [_messages(_as_turns(reading.value(row, place, name)), {}, place) for name in ("chosen", "rejected")]
    reason = next((found for found in (prompt, *answers) if isinstance(found, str)), None)
    if reason or not prompt or prompt[-1]["role"] != "user":
        return reading.Dropped(reason or "no question at the end", place)
    if answers[0] == answers[1]:
        return reading.Dropped("chosen is rejected", place)
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}


def _text(row: dict, place: str) -> dict:
    return {"text": reading.text(row, place, "text")}


def _as_it_is(row: dict, place: str) -> dict:
    columns.check(row.keys(), columns.SHAPES, place)
    for name in ("prompt", "completion", "chosen", "rejected", "messages"):
        held = row.get(name)
        if held is None or isinstance(held, str):  # an empty one is counted by `suite prepare`
            continue
        if not isinstance(held, list) or not all(map(_is_turn, held)):
            raise ValueError(f"{place}: `{name}` must be text, or turns of role and content, and is {str(held)[:60]}.")
    return row


_READERS: dict[str, Callable[[dict, str], dict | reading.Dropped]] = {
    "conversations": _conversation,
    "alpaca": _alpaca,
    "preference": _preference,
    "text": _text,
    "trl": _as_it_is,
}


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
    for turn in turns:
        said = reading.text(turn, place, "from", "role").lower()
        if said not in ROLES:
            return f"role '{said}'"
        if isinstance(reading.value(turn, place, "value", "content"), list | dict):
            return "a turn that is more than text"
        messages.append({"role": ROLES[said], "content": reading.text(turn, place, "value", "content")})
    return messages


def _system(row: dict, place: str) -> list[dict]:
    return [{"role": "system", "content": reading.text(row, place, "system")}] if row.get("system") else []


def _instruction(row: dict, place: str) -> list[dict]:
    """The prompt of an Alpaca row: system, the turns before, then instruction and input as one question."""
    messages = _system(row, place)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError(f"{place}: `history` must be pairs of question and answer, and is {str(history)[:60]}.")
    for question, answer in history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    asked = [reading.text(row, place, "instruction"), str(row.get("input") or "").strip()]
    return [*messages, {"role": "user", "content": "\n".join(part for part in asked if part)}]
