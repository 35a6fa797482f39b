"""What happened, for people: tables, curves and a page that stands alone."""

import base64
import html
import json
from pathlib import Path

# Metric in results.json -> what it says to a reader.
HEADINGS = {
    "accuracy": "accuracy",
    "strict": "in tags",
    "lenient": "lenient",
    "format": "format",
    "truncated": "cut off",
    "sampled": "sampled",
}
# Panel -> (what the axis says, the logged keys it draws). A key ending in * takes every key with that beginning.
PANELS = {
    "loss": ("loss", ["loss", "eval_loss"]),
    "token-accuracy": ("share of next tokens right", ["mean_token_accuracy", "eval_mean_token_accuracy"]),
    "reward": ("reward", ["reward", "rewards/*/mean"]),
    "reward-spread": ("spread of reward in a group", ["reward_std", "frac_reward_zero_std"]),
    "reward-weights": ("weight", ["reward_weights/*"]),
    "not-judged": ("share of completions", ["verify/*", "code/timeouts", "code/crashes", "code/unreadable_tests"]),
    "kl": ("KL to the starting model, nats a token", ["kl"]),
    "entropy": ("entropy, nats a token", ["entropy"]),
    "completion-length": ("tokens", ["completions/mean_length", "completions/mean_terminated_length"]),
    "clipped": ("share of completions cut off", ["completions/clipped_ratio"]),
    "gradient-norm": ("gradient norm", ["grad_norm"]),
}
# Only what a GRPO run logs tells anything there: its loss is near 0 by construction at one update per rollout.
NOT_FOR_GRPO = ("loss", "token-accuracy")
COLOURS = ("#2f5d8a", "#c4622d", "#4f8a4b", "#8a5a9e", "#8c8c2e", "#5b5b5b")


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def one_line(result: dict) -> str:
    low, high = result["ci95"]
    return (
        f"{result['stage']}: accuracy {percent(result['accuracy'])} % "
        f"[{percent(low)}, {percent(high)}], format {percent(result['format'])} %, n = {result['n']}, "
        f"{result['seconds']:.0f} s"
    )


def table_rows(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, one row of texts a checkpoint). Rates are per cent, with the 95 % interval of accuracy."""
    best = next(reversed(_pass_at(results)), None)
    headings = ["stage", *HEADINGS.values(), *([best] if best else []), "tokens", "n"]
    rows = []
    for result in results:
        measured = result["metrics"]
        cells = [percent(measured[name]["value"]) if name in measured else "-" for name in HEADINGS]
        low, high = result["ci95"]
        cells[0] += f" [{percent(low)}, {percent(high)}]"
        if best:
            cells.append(percent(measured[best]["value"]) if best in measured else "-")
        tokens = measured["tokens"]["value"]
        rows.append([result["stage"], *cells, "-" if tokens is None else f"{tokens:.0f}", str(result["n"])])
    return headings, rows


def _k(name: str) -> int:
    return int(name.partition("@")[2])


def results_table(results: list[dict]) -> str:
    """The table of results.json for a terminal."""
    headings, rows = table_rows(results)
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    lines = [headings, ["-" * w for w in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def before_after(results: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(headings, one row of texts a metric), a column a checkpoint: each value with its 95 % interval, and n."""
    names = [name for name in (*HEADINGS, *_pass_at(results), "tokens") if any(name in r["metrics"] for r in results)]
    rows = []
    for name in names:
        measured = [r["metrics"].get(name) for r in results]
        counts = dict.fromkeys(str(m["n"]) for m in measured if m)
        what = "tokens a completion" if name == "tokens" else f"{HEADINGS.get(name, name)}, %"
        rows.append([what, *(_with_interval(m, 1 if name == "tokens" else 100) for m in measured), " / ".join(counts)])
    return ["", *(r["stage"] for r in results), "n"], rows


def _pass_at(results: list[dict]) -> list[str]:
    return sorted({name for r in results for name in r["metrics"] if name.startswith("pass@")}, key=_k)


def _with_interval(measured: dict | None, unit: int) -> str:
    if measured is None or measured["value"] is None:
        return "-"
    value, *ends = (f"{unit * number:.1f}" for number in (measured["value"], *(measured["ci95"] or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value


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


def draw_curves(panel: str, lines: dict, title: str, path: Path) -> None:
    """One panel as a PNG."""
    figure, (axes,) = _new_figure([title])
    _draw(axes, panel, lines)
    figure.savefig(path)


def draw_all_curves(found: dict[str, dict], path: Path) -> None:
    """Every panel of a run on one PNG, two side by side."""
    figure, several = _new_figure([panel.replace("-", " ") for panel in found], columns=2)
    for axes, (panel, lines) in zip(several, found.items(), strict=True):
        _draw(axes, panel, lines)
    figure.savefig(path)


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


def draw_results(results: list[dict], path: Path) -> None:
    """Accuracy, lenient accuracy and format of each checkpoint as bars with their 95 % intervals."""
    figure, (axes,) = _new_figure(["On prompts no stage has seen"], width=1.6 + 1.3 * len(results))
    names = ("accuracy", "lenient", "format")
    for offset, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        shown = [r["metrics"][name] for r in results]
        values = [100 * (m["value"] or 0) for m in shown]
        below = [v - 100 * m["ci95"][0] for v, m in zip(values, shown, strict=True)]
        above = [100 * m["ci95"][1] - v for v, m in zip(values, shown, strict=True)]
        at = [i + (offset - 1) * 0.27 for i in range(len(results))]
        axes.bar(at, values, width=0.25, color=colour, label=name)
        axes.errorbar(at, values, yerr=[[max(0, b) for b in below], [max(0, a) for a in above]], fmt="none",
                      ecolor="#222222", elinewidth=0.9, capsize=2)  # fmt: skip
    axes.set_xticks(range(len(results)), [r["stage"] for r in results])
    axes.set_ylim(0, 105)
    axes.set_ylabel("%, with 95 % interval", fontsize=9)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path)


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

    With `checkpoints`, of those only, in that order.
    """
    if not rows_path.is_file():
        return []
    by_problem: dict[int, list[dict]] = {}
    for line in rows_path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
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
        headings, rows = table_rows(results)
        head = "".join(f"<th>{esc(h)}</th>" for h in headings)
        body = "".join("<tr>" + "".join(f"<td>{esc(c)}</td>" for c in row) + "</tr>" for row in rows)
        parts.append(f"<h2>Before and after</h2><table><tr>{head}</tr>{body}</table>")
        parts.append("<p class=note>Rates in per cent. Accuracy: the reward that trained, greedy decoding, with its "
                     "95 % interval (Wilson). In tags: only inside &lt;answer&gt;. Lenient: any last answer. Sampled: "
                     "mean over samples at the temperature of the evaluation.</p>")  # fmt: skip
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


_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}h2 span{color:#777;font-weight:400}
table{border-collapse:collapse}th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}.note{color:#666;font-size:.85rem}
.grid{display:flex;flex-wrap:wrap;gap:1rem}.grid img{max-width:100%;width:520px;height:auto}
.said{flex:1 1 200px;border-left:3px solid #c4622d;padding-left:.7rem}.said.right{border-color:#4f8a4b}
pre{white-space:pre-wrap;font-size:.8rem;margin:.3rem 0}
</style>"""
