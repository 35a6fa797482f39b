"""The row shapes TRL reads, and a check that rows have the one a stage needs."""

import functools
import json
import re

SHAPES = {
    "text": ("text",),
    "messages": ("messages",),
    "prompt+completion": ("prompt", "completion"),
    "prompt+chosen+rejected": ("prompt", "chosen", "rejected"),
    "prompt+solution": ("prompt", "solution"),
    "prompt": ("prompt",),
}
# What TRL's SFT and DPO give the chat template of a row beside its turns, and what that must be.
BESIDE_TURNS = {
    "tools": (list, "a list of functions, as such or as JSON text"),
    "chat_template_kwargs": (dict, "keys and their values, as such or as JSON text"),
}
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


def beside(name: str, cell) -> list | dict | None:
    """What a cell of BESIDE_TURNS says, and None where that is nothing. Raises `ValueError` for what it cannot be."""
    kind, needed = BESIDE_TURNS[name]
    said = None if isinstance(cell, str) and not cell.strip() else cell
    try:
        said = json.loads(said) if isinstance(said, str) else said
    except ValueError:
        pass  # it is told of as it stands
    if not isinstance(said, kind | None) or (kind is list and not all(isinstance(one, dict) for one in said or ())):
        raise ValueError(f"`{name}` must be {needed}, and is {cell!r:.60}.")
    return said or None


def template_kwargs(row: dict) -> dict:
    """What the chat template is given of a row beside its turns, by TRL's own rules.

    Nothing of one without an answer: TRL asks prompts alone. Raises `ValueError` for cells that would be a traceback.
    """
    if not has_answer(row):
        return {}
    tools, more = (beside(name, row.get(name)) for name in BESIDE_TURNS)
    return {"tools": tools, **(more or {})}


def not_asked(row: dict, own: dict | None) -> list[str]:
    """Which of BESIDE_TURNS of a row its prompt is asked without, where a config gives `own` chat_template_kwargs."""
    found, own = [], own or {}
    for name in BESIDE_TURNS:
        try:
            said = beside(name, without_none(row.get(name)))
        except ValueError:
            said = row[name]
        if said and not (isinstance(said, dict) and {**own, **said} == own):
            found.append(name)
    return found


def without_none(held):
    """A cell of parquet, in which all rows have the keys that one of them has, without those it did not have itself."""
    if isinstance(held, dict):
        return {key: without_none(value) for key, value in held.items() if value is not None}
    return [without_none(one) for one in held] if isinstance(held, list) else held


def as_text(name: str, cell) -> str | None:
    """A cell of BESIDE_TURNS as JSON text, which keeps in one column of parquet what each row says, and no more."""
    said = beside(name, cell)
    return said and (cell if isinstance(cell, str) else json.dumps(said, ensure_ascii=False))


def own_arguments(turns):
    """Turns whose calls have their own arguments. Parquet gives each the names of all, as None; what is None in the
    source looks just so, and is left out, too, wherever it is read."""
    if not isinstance(turns, list):
        return turns
    kept = [{key: without_none(value) for key, value in turn.items()} for turn in turns if isinstance(turn, dict)]
    return kept if len(kept) == len(turns) else turns


def calls(row: dict) -> bool:
    """Whether a turn calls a tool, with arguments that are not text."""
    turns = [turn for said in row.values() if isinstance(said, list) for turn in said if isinstance(turn, dict)]
    made = [call.get("function") or call for turn in turns for call in turn.get("tool_calls") or []]
    return any(isinstance(call.get("arguments"), dict) for call in made)


def settled(dataset, first: dict, there: list[str], turns: tuple[str, ...], where: str, made_by: list):
    """Rows with those of BESIDE_TURNS that are `there` as TRL reads them: of `tools` JSON text or None, else a dict;
    and with `turns` whose calls have the arguments of their own row.

    `made_by` is the code of this: without it `datasets` would take what an older one has made out of its cache. Raises
    `ValueError` for what cannot be read: of rows on a disk at once, and of a stream's but the first on the way.
    """
    from datasets import Features, Json, List, Value, concatenate_datasets

    kinds, known = {"tools": Value("string"), "chat_template_kwargs": Json()}, dataset.features
    calling = [name for name in turns if known and re.search(r"'arguments': {|Json", repr(known[name]))]
    ours = {name: kinds[name] for name in there} | {name: List(Json()) for name in calling}
    if not ours:
        return dataset
    padded = [name for name in there if known and known[name] != Value("string") and "Json" not in repr(known[name])]
    how = {"there": there, "padded": padded, "calling": calling, "where": where, "made_by": made_by}
    reading = functools.partial(_settled_row, **how)
    if not hasattr(dataset, "data"):
        reading(first, 0)
        return dataset.map(reading, with_indices=True, features=known and Features({**known, **ours}))
    # They alone are written anew, and turns only where they call.
    made = dataset.select_columns(list(ours)).map(
        reading, with_indices=True, features=Features(ours), desc=" and ".join(ours)
    )
    others = dataset.remove_columns(list(ours))
    return concatenate_datasets([others, made], axis=1) if others.column_names else made


def _settled_row(
    row: dict, at: int, *, there: list[str], padded: list[str], calling: list[str], where: str, made_by: list
) -> dict:
    made = {name: own_arguments(row.get(name)) for name in calling}
    try:
        for name in there:
            cell = without_none(row.get(name)) if name in padded else row.get(name)
            made[name] = as_text(name, cell) if name == "tools" else beside(name, cell) or {}
    except ValueError as error:
        raise ValueError(f"{where}, row {at + 1}: {error} Write it so, or leave the column out.") from None
    return made


def is_conversational(row: dict) -> bool:
    """Whether a row holds messages, and not plain text."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def text_of(turn) -> str:
    """The words of a prompt or completion, conversational (a list of messages) or plain."""
    if isinstance(turn, str):
        return turn
    return "".join(message.get("content") or "" for message in turn)
