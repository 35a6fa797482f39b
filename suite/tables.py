"""What was measured, in tables for people: of each stage, before and after, with intervals."""

from suite.comparison import asked_alike

# Metric in results.json -> what it says to a reader.
HEADINGS = {
    "accuracy": "accuracy",
    "strict": "in tags",
    "lenient": "lenient",
    "format": "format",
    "truncated": "cut off",
    "sampled": "sampled",
    "preferred": "preferred",
    "bits_per_byte": "bits/byte",
    "thinking": "thinking",
    "tokens": "tokens",
}
# Those that are no shares of rows, in words.
QUANTITIES = {
    "bits_per_byte": "bits per byte",
    "thinking": "tokens of thinking",
    "tokens": "tokens a completion",
}
NOTE = (
    "Shares in per cent. Accuracy: the reward that trains, greedy decoding, with its 95 % interval (Wilson). In tags: "
    "only inside <answer>. Lenient: any last answer. Sampled: the reward of samples at the temperature of the "
    "evaluation; pass@k: one of k is right; maj@k: the answer that most of k give is right, a tie by lot. Preferred: "
    "pairs whose chosen answer is more likely. Bits/byte: of the text. Thinking, tokens: mean numbers of tokens, "
    "of the thinking and of the whole completion."
)
# Stands above results that were asked in several ways, each of which has tables of its own.
APART = "Asked in different ways: numbers are comparable only below the same heading."
OF_K = ("pass@", "maj@")  # metrics of k samples; in a table stands that of the largest k
MOST_LINES = 20  # of a table of subjects; more are in results.json


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def number(metric: str, value: float | None) -> str:
    """A metric's value as it is told: shares in per cent."""
    if value is None or metric not in QUANTITIES:
        return percent(value)
    return f"{value:.2f}" if metric == "bits_per_byte" else f"{value:.1f}"


def label(metric: str) -> str:
    """A metric with its unit."""
    return QUANTITIES.get(metric) or f"{HEADINGS.get(metric, metric)}, %"


def one_line(result: dict) -> str:
    """The goal of a stage, before and after, and how long it took to find out."""
    metric = result["metric"]
    low, high = (number(metric, end) for end in result["ci95"])
    before = "" if result["before"] is None else f"{number(metric, result['before'])} -> "
    return (
        f"{result['stage']}: {label(metric)} {before}{number(metric, result['after'])} [{low}, {high}], "
        f"n = {result['n']}, {result['seconds']:.0f} s"
    )


def purposes(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, one row of texts a checkpoint): the goal of its stage, before it and after it."""
    rows = []
    for r in (r for r in results if "metric" in r):  # an older results.json has none
        metric = r["metric"]
        interval = f"[{', '.join(number(metric, end) for end in r['ci95'])}]"
        cells = [number(metric, r["before"]), number(metric, r["after"]), interval, str(r["n"])]
        rows.append([r["stage"], label(metric), *cells])
    return ["stage", "goal", "before", "after", "95 % interval", "n"], rows


def table_rows(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, one row of texts a checkpoint): all that was measured, shares in per cent, accuracy with its 95 %
    interval."""
    best = [name for kind in OF_K for name in _of_k(results, kind)[-1:]]
    names = [name for name in (*HEADINGS, *best) if any(name in r["metrics"] for r in results)]
    rows = []
    for result in results:
        there = {name: result["metrics"].get(name, {"value": None}) for name in names}
        cells = [number(name, measured["value"]) for name, measured in there.items()]
        if "accuracy" in result["metrics"]:
            cells[0] += f" [{', '.join(map(percent, there['accuracy']['ci95']))}]"
        rows.append([result["stage"], *cells, str(result["n"])])
    return ["stage", *(HEADINGS.get(name, name) for name in names), "n"], rows


def _k(name: str) -> int:
    return int(name.partition("@")[2])


def text_table(headings: list[str], rows: list[list[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = [headings, ["-" * w for w in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def results_table(results: list[dict]) -> str:
    """results.json for a terminal: all that was measured, accuracy by subject and level, each stage's goal."""
    ways = asked_alike(results)
    parts = [APART] if len(ways) > 1 else []
    for how, alike in ways:
        headings, rows = purposes(alike)
        tables = [table_rows(alike), *groups(alike), *([(headings, rows)] if rows else [])]
        parts += [f"{how}:"] * bool(how) + [text_table(*table) for table in tables]
    return "\n\n".join(parts)


def groups(results: list[dict]) -> list[tuple[list[str], list[list[str]]]]:
    """(headings, one row of texts a value) for each column by which accuracy is told, a column a checkpoint."""
    told = []
    for name in dict.fromkeys(column for r in results for column in r.get("by", {})):
        by = [r.get("by", {}).get(name, {}) for r in results]
        values = list(dict.fromkeys(value for found in by for value in found))
        if len(values) <= MOST_LINES:
            rows = [[v, *(_with_interval("accuracy", found.get(v)) for found in by), _counts(by, v)] for v in values]
            told.append(([f"accuracy by {name}", *(r["stage"] for r in results), "n"], rows))
    return told


def _counts(by: list[dict], value: str) -> str:
    return " / ".join(dict.fromkeys(str(found[value]["n"]) for found in by if value in found))


def before_after(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, one row of texts a metric), a column a checkpoint: each value with its 95 % interval, and n."""
    of_k = [name for kind in OF_K for name in _of_k(results, kind)]
    names = [name for name in (*HEADINGS, *of_k) if any(name in r["metrics"] for r in results)]
    rows = []
    for name in names:
        measured = [r["metrics"].get(name) for r in results]
        counts = dict.fromkeys(str(m["n"]) for m in measured if m)
        rows.append([label(name), *(_with_interval(name, m) for m in measured), " / ".join(counts)])
    return ["", *(r["stage"] for r in results), "n"], rows


def _of_k(results: list[dict], kind: str) -> list[str]:
    return sorted({name for r in results for name in r["metrics"] if name.startswith(kind)}, key=_k)


def _with_interval(metric: str, measured: dict | None) -> str:
    if measured is None or measured["value"] is None:
        return "-"
    ends = [number(metric, end) for end in measured["ci95"] or ()]
    return number(metric, measured["value"]) + (f" [{', '.join(ends)}]" if ends else "")


def markdown_table(headings: list[str], rows: list[list[str]], *, numbers: bool = True) -> str:
    """A table whose first column holds names, and the others numbers, which stand to the right."""
    lines = [headings, ["---"] + ["---:" if numbers else "---"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
