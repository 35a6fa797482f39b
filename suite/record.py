"""What happened, for people: tables, curves and a page that stands alone."""

import base64
import contextlib
import html
import json
from collections.abc import Callable
from pathlib import Path

from suite.whole import digest

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
    "bits_per_byte": "bits a byte",
    "thinking": "tokens of thinking",
    "tokens": "tokens a completion",
}
NOTE = (
    "Shares in per cent. Accuracy: the reward that trains, greedy decoding, with its 95 % interval (Wilson). In tags: "
    "only inside <answer>. Lenient: any last answer. Sampled: the reward of samples at the temperature of the "
    "evaluation; pass@k: one of k is right; maj@k: the answer that most of k give is right, a tie by lot. Preferred: "
    "pairs whose chosen answer is the likelier one. Bits/byte: of the text. Thinking, tokens: mean numbers of tokens, "
    "of the thinking and of the whole completion."
)
OF_K = ("pass@", "maj@")  # metrics of k samples; in a table stands that of the largest k
MOST_LINES = 20  # of a table of subjects; more are in results.json
# Panel -> (what the axis says, the logged keys it draws). A key ending in * takes every key with that beginning.
PANELS = {
    "loss": ("loss", ["loss", "eval_loss"]),
    "token-accuracy": ("share of next tokens right", ["mean_token_accuracy", "eval_mean_token_accuracy"]),
    "answers": ("share of test rows, greedy", ["eval_accuracy", "eval_lenient", "eval_format", "eval_truncated"]),
    "reward": ("reward", ["reward", "rewards/*/mean"]),
    "reward-spread": ("spread of reward in a group", ["reward_std", "frac_reward_zero_std"]),
    "reward-weights": ("weight", ["reward_weights/*"]),
    "not-judged": ("share of completions", ["verify/*", "code/timeouts", "code/crashes", "code/unreadable_tests"]),
    "kl": ("KL to the starting model, nats a token", ["kl"]),
    "entropy": ("entropy, nats a token", ["entropy"]),
    "completion-length": ("tokens", ["completions/mean_length", "completions/mean_terminated_length", "eval_tokens"]),
    "clipped": ("share of completions cut off", ["completions/clipped_ratio"]),
    "gradient-norm": ("gradient norm", ["grad_norm"]),
}
# Only what a GRPO run logs tells anything there: its loss is near 0 by construction at one update per rollout.
NOT_FOR_GRPO = ("loss", "token-accuracy")
COLOURS = ("#2f5d8a", "#c4622d", "#4f8a4b", "#8a5a9e", "#8c8c2e", "#5b5b5b")


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
    """What a stage is there for, before and after, and how long it took to find out."""
    metric = result["metric"]
    low, high = (number(metric, end) for end in result["ci95"])
    before = "" if result["before"] is None else f"{number(metric, result['before'])} -> "
    return (
        f"{result['stage']}: {label(metric)} {before}{number(metric, result['after'])} [{low}, {high}], "
        f"n = {result['n']}, {result['seconds']:.0f} s"
    )


def purposes(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, one row of texts a checkpoint): what its stage is there for, before it and after it."""
    rows = []
    for r in (r for r in results if "metric" in r):  # an older results.json has none
        metric = r["metric"]
        interval = f"[{', '.join(number(metric, end) for end in r['ci95'])}]"
        cells = [number(metric, r["before"]), number(metric, r["after"]), interval, str(r["n"])]
        rows.append([r["stage"], label(metric), *cells])
    return ["stage", "is there for", "before", "after", "95 % interval", "n"], rows


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
    """results.json for a terminal: all that was measured, accuracy by subject and level, what each stage is there
    for."""
    headings, rows = purposes(results)
    tables = [table_rows(results), *groups(results), *([(headings, rows)] if rows else [])]
    return "\n\n".join(text_table(*table) for table in tables)


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


def has_rewards(history: list[dict]) -> bool:
    """Whether a `log_history` is that of a GRPO run."""
    return any("reward" in entry for entry in history)


def curves(history: list[dict], is_grpo: bool) -> dict[str, dict[str, tuple[list, list]]]:
    """Panel -> key -> (steps, values), of what a `log_history` holds."""
    found: dict[str, dict] = {}
    for panel, (_, patterns) in PANELS.items():
        if is_grpo and panel in NOT_FOR_GRPO:
            continue
        for pattern in patterns:
            for key in dict.fromkeys(k for entry in history for k in entry if _matches(k, pattern)):
                points = [(e["step"], e[key]) for e in history if isinstance(e.get(key), int | float)]
                if points:
                    found.setdefault(panel, {})[key] = tuple(map(list, zip(*points, strict=True)))
    return found


def _matches(key: str, pattern: str) -> bool:
    before, star, after = pattern.partition("*")
    return key.startswith(before) and key.endswith(after) if star else key == pattern


def drawn_once(draw: Callable, shown, path: Path) -> None:
    """`draw(shown, path)`, unless the picture says of itself that it shows this: a card is written many times."""
    from PIL import Image

    of = digest([draw.__name__, shown])
    if path.is_file():
        with contextlib.suppress(OSError), Image.open(path) as picture:  # what is none, or cut off, is drawn over
            picture.load()
            if picture.info.get("Source") == of:
                return
    draw(shown, path, of)


def draw_curves(panel: str, lines: dict, title: str, path: Path) -> None:
    """One panel as a PNG."""
    figure, (axes,) = _new_figure([title])
    _draw(axes, panel, lines)
    figure.savefig(path)


def draw_all_curves(found: dict[str, dict], path: Path, of: str | None = None) -> None:
    """Every panel of a run on one PNG, two side by side; `of` is written into it."""
    figure, several = _new_figure([panel.replace("-", " ") for panel in found], columns=2)
    for axes, (panel, lines) in zip(several, found.items(), strict=True):
        _draw(axes, panel, lines)
    figure.savefig(path, metadata={"Source": of})


def _draw(axes, panel: str, lines: dict) -> None:
    """One panel: thin raw values, and a running mean where there are many."""
    for colour, (key, (steps, values)) in zip(COLOURS * 3, lines.items(), strict=False):
        label = key.removeprefix("rewards/").removesuffix("/mean").removeprefix("completions/")
        width = max(1, len(values) // 20)
        if width > 1:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        smooth = [sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
                  for i in range(len(values))]  # fmt: skip
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, smooth, color=colour, linewidth=1.6, label=label, marker=marker)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(PANELS[panel][0], fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def draw_results(results: list[dict], path: Path, of: str | None = None) -> None:
    """What was measured of each checkpoint as bars with their 95 % intervals: shares, bits a byte, thinking."""
    groups = [("accuracy", "lenient", "format", "preferred"), ("bits_per_byte",), ("thinking",)]
    there = [[name for name in group if any(name in r["metrics"] for r in results)] for group in groups]
    there = [names for names in there if names]
    titles = ["On rows no stage has seen", *[""] * (len(there) - 1)]
    figure, several = _new_figure(titles, width=1.6 + 1.3 * len(results))
    for axes, names in zip(several, there, strict=True):
        for offset, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            _draw_bars(axes, name, results, colour, (offset - (len(names) - 1) / 2) / (len(names) + 0.7), len(names))
        axes.set_xticks(range(len(results)), [r["stage"] for r in results])
        axes.set_xlim(-0.6, len(results) - 0.4)  # one below the other, though the last has no bar in each
        if names[0] in QUANTITIES:
            axes.set_ylim(bottom=0)
            axes.set_ylabel(QUANTITIES[names[0]], fontsize=9)
            continue
        axes.set_ylim(0, 105)
        axes.set_ylabel("%, with 95 % interval", fontsize=9)
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, metadata={"Source": of})


def draw_progress(metric: str, runs: dict[str, list[dict]], path: Path) -> None:
    """A metric of several runs' checkpoints, each {step, seconds, value, ci95}: over steps, and over seconds."""
    figure, several = _new_figure(["On rows no stage has seen", ""], columns=2)
    unit = 1 if metric in QUANTITIES else 100
    for axes, along in zip(several, ("step", "seconds"), strict=True):
        for colour, (run, points) in zip(COLOURS * 3, runs.items(), strict=False):
            at = [point[along] for point in points]
            values, low, high = (
                [unit * value for value in of] for of in zip(*((p["value"], *p["ci95"]) for p in points), strict=True)
            )
            axes.plot(at, values, color=colour, marker="o", markersize=3, label=run)
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(along, fontsize=9)
        axes.set_ylabel(label(metric), fontsize=9)
    several[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _draw_bars(axes, metric: str, results: list[dict], colour: str, offset: float, of: int) -> None:
    """One metric of every checkpoint that has it, one bar of the `of` that stand together."""
    unit = 1 if metric in QUANTITIES else 100
    shown = [(i, r["metrics"][metric]) for i, r in enumerate(results) if metric in r["metrics"]]
    shown = [(i, m) for i, m in shown if m["value"] is not None]
    values = [unit * m["value"] for _, m in shown]
    below = [max(0.0, v - unit * m["ci95"][0]) for v, (_, m) in zip(values, shown, strict=True)]
    above = [max(0.0, unit * m["ci95"][1] - v) for v, (_, m) in zip(values, shown, strict=True)]
    at = [i + offset for i, _ in shown]
    axes.bar(at, values, width=0.92 / (of + 0.7), color=colour, label=HEADINGS[metric])
    axes.errorbar(at, values, yerr=[below, above], fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2)


def _new_figure(titles: list[str], columns: int = 1, width: float = 5.0):
    """(figure, its axes, one for each title)."""
    from matplotlib.figure import Figure

    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(max(4.0, width) * columns, 3.2 * rows), dpi=130, layout="constrained")
    several = [figure.add_subplot(rows, columns, number) for number in range(1, len(titles) + 1)]
    for axes, title in zip(several, titles, strict=True):
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, several


def sample_completions(
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
    by_problem: dict[int, list[dict]] = {}
    for line in filter(None, rows_path.read_text(encoding="utf-8").split("\n")):
        row = json.loads(line)
        if row.get("identity") not in named:
            continue
        if row["kind"] == "greedy" and (checkpoints is None or row["checkpoint"] in checkpoints):
            by_problem.setdefault(row["row"], []).append(row)
    if checkpoints is not None:
        for group in by_problem.values():
            group.sort(key=lambda row: checkpoints.index(row["checkpoint"]))
    # Stable order: the problems whose verdict moved between stages first, as they came within that.
    shown = sorted(by_problem.values(), key=lambda group: -len({row["accuracy"] for row in group}))[:problems]
    return [(group[0]["prompt"], group[0]["solution"], group) for group in shown]


def page(title: str, results: list[dict], pictures: dict[str, list[Path]], samples, about: dict[str, str]) -> str:
    """One HTML page that needs no other file: table, pictures, completions."""
    esc = html.escape
    parts = [f"<h1>{esc(title)}</h1>"]
    if results:
        parts.append(f"<h2>Before and after</h2>{_html_table(*purposes(results))}")
        parts.append(f"<h2>All that was measured</h2>{_html_table(*table_rows(results))}<p class=note>{esc(NOTE)}</p>")
    for heading, paths in pictures.items():
        note = f"<p class=note>{esc(about[heading])}</p>" if heading in about else ""
        images = "".join(
            f'<img alt="{esc(p.stem)}" src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}">'
            for p in paths
        )
        parts.append(f"<h2>{esc(heading)}</h2>{note}<div class=grid>{images}</div>")
    for prompt, solution, group in samples:
        cells = "".join(
            f"<div class='said {'right' if row['accuracy'] == 1 else 'wrong'}'><b>{esc(row['stage'])}</b>"
            f"<pre>{esc(row['completion'])}</pre></div>"
            for row in group
        )
        parts.append(f"<h2 class=asked>{esc(prompt)} <span>(gold: {esc(str(solution))})</span></h2>"
                     f"<div class=grid>{cells}</div>")  # fmt: skip
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>{esc(title)}</title>{_STYLE}<body>{''.join(parts)}"


def _html_table(headings: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def markdown_page(title: str, results: list[dict], pictures: dict[str, list[Path]], samples, about: dict) -> str:
    """The same in Markdown, its pictures beside it; short, with the first picture of each heading."""
    parts = [f"# {title}"]
    if results:
        parts.append(markdown_table(*purposes(results)))
        parts.append(f"All that was measured:\n\n{markdown_table(*table_rows(results))}\n\n{NOTE}")
    for heading, paths in pictures.items():
        first = paths[0]
        parts.append(f"## {heading}\n\n{about.get(heading, '')}\n\n![{first.stem}]({first.parent.name}/{first.name})")
    for prompt, solution, group in samples:
        parts.append(f"## {prompt} (gold: {solution})")
        for row in group:
            verdict = "right" if row["accuracy"] == 1 else "wrong"
            parts.append(f"{row['stage']}, {verdict}:\n\n```\n{row['completion']}\n```")
    return "\n\n".join(parts) + "\n"


_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}h2 span{color:#777;font-weight:400}
table{border-collapse:collapse;display:block;overflow-x:auto}
th,td{white-space:nowrap;padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}.note{color:#666;font-size:.85rem}
.grid{display:flex;flex-wrap:wrap;gap:1rem}.grid img{max-width:100%;width:520px;height:auto}
.said{flex:1 1 200px;border-left:3px solid #c4622d;padding-left:.7rem}.said.right{border-color:#4f8a4b}
pre{white-space:pre-wrap;font-size:.8rem;margin:.3rem 0}
</style>"""
