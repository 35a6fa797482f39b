"""The row shapes TRL reads, and a check that rows have the one a stage needs."""

SHAPES = {
    "text": ("text",),
    "messages": ("messages",),
    "prompt+completion": ("prompt", "completion"),
    "prompt+chosen+rejected": ("prompt", "chosen", "rejected"),
    "prompt+solution": ("prompt", "solution"),
    "prompt": ("prompt",),
}


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


def is_conversational(row: dict) -> bool:
    """Whether a row holds messages, and not plain text."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def text_of(turn) -> str:
    """The words of a prompt or completion, conversational (a list of messages) or plain."""
    if isinstance(turn, str):
        return turn
    return "".join(message.get("content") or "" for message in turn)
