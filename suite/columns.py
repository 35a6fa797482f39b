"""The row shapes TRL reads, and a check that rows have the one a stage needs."""

import json

SHAPES = {
    "text": ("text",),
    "messages": ("messages",),
    "prompt+completion": ("prompt", "completion"),
    "prompt+chosen+rejected": ("prompt", "chosen", "rejected"),
    "prompt+solution": ("prompt", "solution"),
    "prompt": ("prompt",),
}
# What TRL's SFT and DPO give the chat template of a row beside its turns.
BESIDE_TURNS = ("tools", "chat_template_kwargs")
_TURNS = "a list of {role, content}"


def shape_of(columns, wanted) -> str | None:
    """The first of the `wanted` shapes whose columns are all there."""
    return next((shape for shape in wanted if set(SHAPES[shape]) <= set(columns)), None)


def check(columns, wanted, where: str) -> str:
    """The shape to use. Raises `ValueError` naming the columns that are there and the shapes that would do."""
    shape = shape_of(columns, wanted)
    if shape is None:
        needs = " or ".join(f"'{s}' ({', '.join(SHAPES[s])})" for s in wanted)
        raise ValueError(
            f"{where} has the columns {', '.join(sorted(columns))}, and this stage needs the shape {needs}. "
            "Rename the columns, or let `suite prepare` write them."
        )
    return shape


def check_cells(dataset, first: dict, names: tuple[str, ...], where: str) -> None:
    """Raise `ValueError` where cells are neither text nor turns, as TRL would find out on the way, by a traceback.

    What kind a column is the `first` row says, for a column has one type. Cells that are missing are looked for in all
    rows where these lie on a disk; of rows that stream only the first is seen.
    """
    kinds = {name: _kind(first[name]) for name in names if name != "solution"}
    for name, kind in kinds.items():
        needed = {"text": ("text",), "messages": ("turns",)}.get(name, ("text", "turns"))
        if kind not in needed:
            need = " or ".join(needed).replace("turns", f"turns ({_TURNS})")
            raise ValueError(f"{where}, row 1: `{name}` must be {need}, and is {first[name]!r:.60}.")
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"`{name}` {kind}" for name, kind in kinds.items())
        raise ValueError(f"{where}: all of a row must be text, or all of it turns ({_TURNS}), and here is {told}.")
    if not hasattr(dataset, "data"):
        return
    for name, kind in kinds.items():
        _check_none_missing(dataset, name, kind, where)
    judged_by_it = "solution" in names and not {"tests", "task"} & first.keys()
    if judged_by_it and dataset.data.column("solution").null_count == dataset.data.num_rows:
        raise ValueError(f"{where}: `solution` is None in every row, so no answer could be judged.")


def _kind(cell) -> str:
    if isinstance(cell, str):
        return "text"
    turns = isinstance(cell, list) and all(
        isinstance(turn, dict) and "role" in turn and isinstance(turn.get("content"), str | None) for turn in cell
    )
    return "turns" if turns else "neither"


def _check_none_missing(dataset, name: str, kind: str, where: str) -> None:
    """By Arrow's own counts, which read no text."""
    import pyarrow.compute

    column = dataset.data.column(name)
    missing = column.null_count
    if kind == "turns" and not missing:
        turns = pyarrow.compute.list_flatten(column)
        there = [field.name for field in turns.type] if pyarrow.types.is_struct(turns.type) else []
        if "content" in there and "tool_calls" not in there:  # beside calls there may be no content
            missing = pyarrow.compute.struct_field(turns, "content").null_count
    if missing:
        cells = enumerate(column.to_pylist(), 1)
        at = next(n for n, cell in cells if cell is None or kind == "turns" and any(t["content"] is None for t in cell))
        told = "is None, or has a turn without content" if kind == "turns" else "is None"
        raise ValueError(
            f"{where}, row {at}: `{name}` {told}; there are {missing} such. Leave these rows out: `suite prepare files "
            "--source FILE --output_dir DIRECTORY` does."
        )


def has_answer(row: dict) -> bool:
    """Whether there is something to learn in a row, or to measure, that is not sampled."""
    return bool({"messages", "completion", "chosen"} & row.keys())


def template_kwargs(row: dict) -> dict:
    """What the chat template is given of a row beside its turns, by TRL's own rules.

    Nothing of one without an answer: TRL asks prompts alone. Raises `ValueError` for cells that would be a traceback.
    """
    if not has_answer(row):
        return {}
    tools, more = row.get("tools"), row.get("chat_template_kwargs") or {}
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except ValueError:
        pass  # it is told of as it stands
    if not isinstance(tools, list | None):
        raise ValueError(f"`tools` must be a list of functions, as such or as JSON text, and is {tools!r:.60}.")
    if not isinstance(more, dict):
        raise ValueError(f"`chat_template_kwargs` must be keys and their values, and is {more!r:.60}.")
    return {"tools": tools, **more}


def beside_turns(dataset, first: dict, where: str) -> list[str]:
    """Which of BESIDE_TURNS rows of turns and answers have. Raises `ValueError` for what TRL could not read."""
    there = [name for name in BESIDE_TURNS if name in first]
    try:
        template_kwargs(first)
    except ValueError as error:
        raise ValueError(f"{where}, row 1: {error} Write it so, or leave the column out.") from None
    name = "chat_template_kwargs"
    if name not in there:
        return there
    on_disk = hasattr(dataset, "data")
    missing = dataset.data.column(name).null_count if on_disk else int(first[name] is None)
    if on_disk and missing == dataset.data.num_rows:  # so is {} in every row, in parquet
        there.remove(name)
    elif missing:
        told = f"{missing} rows have" if on_disk else "the first row has"
        raise ValueError(f"{where}: {told} None as `{name}`. Write {{}} there, or leave the column out.")
    return there


def is_conversational(row: dict) -> bool:
    """Whether a row holds messages, and not plain text."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def text_of(turn) -> str:
    """The words of a prompt or completion, conversational (a list of messages) or plain."""
    if isinstance(turn, str):
        return turn
    return "".join(message.get("content") or "" for message in turn)
