"""A few completions to read: of an evaluation, or of what GRPO logged; and how they go into Markdown."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from suite.columns import text_of


def of_evaluation(
    rows_path: Path, problems: int = 3, checkpoints: list[str] | None = None
) -> list[tuple[str, str, list[dict]]]:
    """(prompt, solution, its greedy completion by each stage) for a few problems on which the stages differ most.

    With `checkpoints`, of those only, in that order. Rows of an evaluation that results.json does not name do not
    count: `suite evaluate` was killed between the two files, or another way of evaluating took its place.
    """
    if not rows_path.is_file():
        return []
    results = rows_path.with_name("results.json")
    named = {r.get("identity") for r in json.loads(results.read_text(encoding="utf-8"))} if results.is_file() else set()
    by_problem: dict[tuple, list[dict]] = {}
    for line in filter(None, rows_path.read_text(encoding="utf-8").split("\n")):
        row = json.loads(line)
        if row.get("identity") not in named:
            continue
        if row["kind"] == "greedy" and (checkpoints is None or row["checkpoint"] in checkpoints):
            # Two evaluations in one directory may be on other rows, whose numbers say nothing.
            by_problem.setdefault((row["row"], row["prompt"], str(row["solution"])), []).append(row)
    if checkpoints is not None:
        for group in by_problem.values():
            group.sort(key=lambda row: checkpoints.index(row["checkpoint"]))
    # Stable order: the problems whose verdict moved between stages first, as they came within that.
    shown = sorted(by_problem.values(), key=lambda group: -len({row["accuracy"] for row in group}))[:problems]
    return [(group[0]["prompt"], group[0]["solution"], group) for group in shown]


def in_markdown(source: Path, results: list[dict], rows: Path | None) -> Iterator[str]:
    """Three, of the evaluation, beside what was said before; or, where there is none, of what GRPO logged last."""
    samples = of_evaluation(rows, 3, [r["checkpoint"] for r in results[-2:]]) if rows else []
    for prompt, solution, group in samples:
        yield f"**{inline(prompt)}** (gold: {inline(str(solution))})"
        for row in group:
            yield f"{row['stage']}, {verdict(row)}:\n\n{fenced(row['completion'])}"
    if samples:
        return
    logged = sorted((source / "completions").glob("completions_*.parquet"))
    if logged:
        yield from _logged(logged[-1])
    else:
        yield "None to show: there is no evaluation of this model, and no run of GRPO that logged (`log_completions`)."


def _logged(path: Path) -> Iterator[str]:
    from pyarrow.parquet import read_table

    table = read_table(path).slice(0, 3).to_pylist()
    for row in table:
        texts = [text_of(row[key]) if isinstance(row[key], list) else row[key] for key in ("prompt", "completion")]
        own = [f"{k} {v:.3g}" for k, v in row.items() if isinstance(v, float) and k != "advantage"]
        yield f"**{inline(texts[0])}** (step {row['step']}: {', '.join(own)})\n\n{fenced(texts[1])}"


def verdict(row: dict) -> str:
    """What the reward said of a completion, in a word or two; where it could not judge it, that is nobody's mistake."""
    return {1: "right", None: "not judged"}.get(row["accuracy"], "wrong")


def inline(text: str, limit: int = 300) -> str:
    """Text on one line, in which nothing is Markdown or HTML."""
    line = " ".join(text.split())
    line = line if len(line) <= limit else f"{line[:limit]} ..."
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", line)


def fenced(text: str, limit: int = 2000) -> str:
    """Text as it is, in a fence longer than any in it."""
    text = text if len(text) <= limit else f"{text[:limit]}\n... ({len(text) - limit:,} more characters)"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
