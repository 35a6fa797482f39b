"""What was logged, and what was measured, in pictures."""

import contextlib
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

from suite import whole
from suite.comparison import asked_alike
from suite.tables import HEADINGS, QUANTITIES, label

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
UNSEEN = "On rows no stage has seen"
COLORS = ("#2f5d8a", "#c4622d", "#4f8a4b", "#8a5a9e", "#8c8c2e", "#5b5b5b")


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

    of = whole.digest([draw.__name__, shown])
    if path.is_file():
        with contextlib.suppress(OSError), Image.open(path) as picture:  # what is none, or cut off, is drawn over
            picture.load()
            if picture.info.get("Source") == of:
                return
    with whole.file(path) as partial:
        draw(shown, partial, of)


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
    figure.savefig(path, format="png", metadata={"Source": of})


def _draw(axes, panel: str, lines: dict) -> None:
    """One panel: thin raw values, and a running mean where there are many."""
    for color, (key, (steps, values)) in zip(COLORS * 3, lines.items(), strict=False):
        label = key.removeprefix("rewards/").removesuffix("/mean").removeprefix("completions/")
        width = max(1, len(values) // 20)
        if width > 1:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        smooth = [sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
                  for i in range(len(values))]  # fmt: skip
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, smooth, color=color, linewidth=1.6, label=label, marker=marker)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(PANELS[panel][0], fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def draw_results(results: list[dict], path: Path, of: str | None = None) -> None:
    """What was measured of each checkpoint as bars with their 95 % intervals: shares, bits per byte, thinking.

    Those that were asked in another way stand further down, under a title that says how.
    """
    panels = [panel for how, alike in asked_alike(results) for panel in _panels(how or UNSEEN, alike)]
    most = max(len(alike) for *_, alike in panels)
    figure, several = _new_figure([title for title, *_ in panels], width=1.6 + 1.3 * most)
    for axes, (_, names, results) in zip(several, panels, strict=True):
        for offset, (name, color) in enumerate(zip(names, COLORS, strict=False)):
            _draw_bars(axes, name, results, color, (offset - (len(names) - 1) / 2) / (len(names) + 0.7), len(names))
        axes.set_xticks(range(len(results)), [r["stage"] for r in results])
        axes.set_xlim(-0.6, most - 0.4)  # one below the other, though the last has no bar in each
        if names[0] in QUANTITIES:
            axes.set_ylim(bottom=0)
            axes.set_ylabel(QUANTITIES[names[0]], fontsize=9)
            continue
        axes.set_ylim(0, 105)
        axes.set_ylabel("%, with 95 % interval", fontsize=9)
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, format="png", metadata={"Source": of})


def _panels(title: str, results: list[dict]) -> list[tuple[str, list[str], list[dict]]]:
    """(title of the first, the metrics that stand together, the results) of those that were asked alike."""
    groups = [("accuracy", "lenient", "format", "preferred"), ("bits_per_byte",), ("thinking",)]
    there = [[name for name in group if any(name in r["metrics"] for r in results)] for group in groups]
    return [("" if n else title, names, results) for n, names in enumerate(filter(None, there))]


def draw_progress(metric: str, runs: dict[str, list[dict]], title: str, path: Path) -> None:
    """A metric of several runs' checkpoints, each {step, seconds, value, ci95}: over steps, and over seconds."""
    figure, several = _new_figure([title, ""], columns=2)
    unit = 1 if metric in QUANTITIES else 100
    for axes, along in zip(several, ("step", "seconds"), strict=True):
        for color, (run, points) in zip(COLORS * 3, runs.items(), strict=False):
            at = [point[along] for point in points]
            values = [unit * point["value"] for point in points]
            # Of one row there is no interval, and where there is none nothing is filled.
            low, high = ([math.nan if p["ci95"][i] is None else unit * p["ci95"][i] for p in points] for i in (0, 1))
            axes.plot(at, values, color=color, marker="o", markersize=3, label=run)
            axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xlabel(along, fontsize=9)
        axes.set_ylabel(label(metric), fontsize=9)
    several[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _draw_bars(axes, metric: str, results: list[dict], color: str, offset: float, of: int) -> None:
    """One metric of every checkpoint that has it, one bar of the `of` that stand together."""
    unit = 1 if metric in QUANTITIES else 100
    shown = [(i, r["metrics"][metric]) for i, r in enumerate(results) if metric in r["metrics"]]
    shown = [(i, m) for i, m in shown if m["value"] is not None]
    at, values = [i + offset for i, _ in shown], [unit * m["value"] for _, m in shown]
    axes.bar(at, values, width=0.92 / (of + 0.7), color=color, label=HEADINGS[metric])
    spread = [(i + offset, m) for i, m in shown if None not in m["ci95"]]  # one row has no interval
    at, values = [i for i, _ in spread], [unit * m["value"] for _, m in spread]
    below = [max(0.0, v - unit * m["ci95"][0]) for v, (_, m) in zip(values, spread, strict=True)]
    above = [max(0.0, unit * m["ci95"][1] - v) for v, (_, m) in zip(values, spread, strict=True)]
    axes.errorbar(at, values, yerr=[below, above], fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2)


def _new_figure(titles: list[str], columns: int = 1, width: float = 5.0):
    """(figure, its axes, one for each title)."""
    from matplotlib.figure import Figure

    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(max(4.0, width) * columns, 3.2 * rows), dpi=130, layout="constrained")
    several = [figure.add_subplot(rows, columns, number) for number in range(1, len(titles) + 1)]
    for axes, title in zip(several, titles, strict=True):
        wrapped = textwrap.fill(title, int(10 * max(4.0, width)))
        axes.set_title(wrapped, fontsize=10, loc="left", parse_math=False)  # a prompt may hold TeX
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure, several
