"""What happened in a run directory: a page with plots, PNGs, the before/after table, and completions to read.

The page is there twice: report.html stands alone, report.md names its pictures.

The card of each run, its README.md, is written anew with what is known by now.

suite report runs/quickstart
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from suite import args, card, checkpoint, ending, pages, plots, samples, tables
from suite.comparison import asked_alike
from suite.results import is_same, results_of, run_of, told_apart


@dataclass
class ReportArguments:
    run_dir: str = field(metadata={"help": "A run, or a directory of runs."})
    completions: int = field(default=3, metadata={"help": "How many problems to show with their completions."})

    def __post_init__(self):
        if self.completions < 0:
            raise ValueError(f"completions: {self.completions} must be at least 0.")


def arguments() -> tuple[type, ...]:
    return (ReportArguments,)


def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("--"):
        words = ["--run_dir", *words]
    report, _ = args.parse(arguments(), words, needs_config=False)
    directory = Path(report.run_dir)
    if not directory.is_dir():
        raise ValueError(f"There is no directory '{directory}'. Name a run, or a directory of runs.")
    runs = find_runs(directory)
    own = told_apart(results_of(directory))
    results = [*own, *measured_below(directory, {result["identity"] for result in own if "identity" in result})]
    if not runs and not results:
        raise ValueError(f"There is nothing to report in '{directory}': neither trainer_state.json nor results.json.")
    for path in (directory, *sorted(directory.glob("*/"))):
        card.write(path)
    pictures, about = draw(directory, runs, results)
    picked = samples.of_evaluation(directory / "rows.jsonl", report.completions)
    called = {result["checkpoint"]: result["stage"] for result in own}
    for row in (row for *_, group in picked for row in group):
        row["stage"] = called[row["checkpoint"]]
    page = directory / "report.html"
    told = (f"Report on {directory}", results, pictures, picked, about)
    page.write_text(pages.in_html(*told), encoding="utf-8")
    page.with_suffix(".md").write_text(pages.in_markdown(*told), encoding="utf-8")
    show(results, picked, page, sum(map(len, pictures.values())))


def find_runs(directory: Path) -> list[Path]:
    """The run directories at and right below a directory, in the order they were started."""
    states = [*directory.glob("trainer_state.json"), *directory.glob("*/trainer_state.json")]
    found = [p.parent for p in states if not p.parent.name.startswith(("checkpoint-", "."))]
    return sorted(found, key=lambda p: (about_run(p).get("started", 0.0), p.name))


def measured_below(directory: Path, known: set[str]) -> list[dict]:
    """What evaluations on other rows left right below a directory, told by where: text/pretrain, pairs/dpo.

    One that is `known` already is left out.
    """
    places = [path for path in sorted(directory.glob("*/")) if not path.name.startswith(".")]
    found = [(path.name, result) for path in places for result in told_apart(results_of(path))]
    return [{**r, "stage": f"{name}/{r['stage']}"} for name, r in found if r.get("identity") not in known]


def about_run(run_dir: Path) -> dict:
    path = run_dir / "run.json"
    return checkpoint.read_json(path) if path.is_file() else {}


def draw(directory: Path, runs: list[Path], results: list[dict]) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """(heading -> pictures drawn, heading -> a line about the run)."""
    folder = directory / "report"
    folder.mkdir(exist_ok=True)
    pictures: dict[str, list[Path]] = {}
    about = {}
    ended = [r for r in results if not Path(r["checkpoint"]).name.startswith("checkpoint-")]
    if ended:
        pictures["Each stage"] = [folder / "before-after.png"]
        plots.draw_results(ended, pictures["Each stage"][0])
    for number, (how, alike) in enumerate(asked_alike(results), 1):
        for metric, checkpoints_of in progress(alike).items():
            path = folder / f"progress-{metric.replace('_', '-')}{f'-{number}' if number > 1 else ''}.png"
            plots.draw_progress(metric, checkpoints_of, how or plots.UNSEEN, path)
            about_what = ", ".join(filter(None, (metric.replace("_", " "), how)))
            pictures[f"Checkpoint by checkpoint: {about_what}"] = [path]
    for run_dir in runs:
        history = checkpoint.read_json(run_dir / "trainer_state.json")["log_history"]
        for panel, lines in plots.curves(history, plots.has_rewards(history)).items():
            path = folder / f"{run_dir.name}-{panel}.png"
            plots.draw_curves(panel, lines, f"{run_dir.name}: {panel.replace('-', ' ')}", path)
            pictures.setdefault(run_dir.name, []).append(path)
        made = about_run(run_dir)
        if made.get("finished"):
            tokens = max((entry.get("num_tokens", 0) for entry in history), default=0)
            told = [f"{made['stage']}, {made.get('steps', '?')} steps in {made['seconds']:.0f} s"]
            told += [f"{tokens:,.0f} tokens"] if tokens else []
            told += [tables.one_line(r) for r in results if is_same(r["checkpoint"], run_dir) and "metric" in r]
            about[run_dir.name] = "; ".join(told)
    return pictures, about


def progress(results: list[dict]) -> dict[str, dict[str, list[dict]]]:
    """Metric -> run -> {step, seconds, value, ci95} of each of its checkpoints, where more than one was evaluated."""
    found: dict[str, dict[str, list[dict]]] = {}
    for result in (r for r in results if "metric" in r):
        path = Path(result["checkpoint"])
        made, is_step = about_run(path), path.name.startswith("checkpoint-")
        step, seconds = (made.get(key) for key in (("step", "spent") if is_step else ("steps", "seconds")))
        if step is None or seconds is None or result["after"] is None or result["ci95"] is None:
            continue
        point = {"step": step, "seconds": seconds, "value": result["after"], "ci95": result["ci95"]}
        run = str(run_of(Path(result["stage"])))
        found.setdefault(result["metric"], {}).setdefault(run, []).append(point)
    several = {m: {run: points for run, points in runs.items() if len(points) > 1} for m, runs in found.items()}
    for points in (points for runs in several.values() for points in runs.values()):
        points.sort(key=lambda point: point["step"])
    return {metric: runs for metric, runs in several.items() if runs}


def show(results: list[dict], picked, page: Path, drawn: int) -> None:
    """The same in the terminal."""
    for prompt, solution, group in picked:
        print(f"\n{prompt.strip()}   (gold: {solution})")
        for row in group:
            said = row["completion"].strip().replace("\n", " ")
            print(f"  {row['stage']:<12} {samples.verdict(row)}  {said[:160]}")
    if results:
        print(f"\n{tables.results_table(results)}")
        print(f"({tables.NOTE})")
    print(f"\n{drawn} pictures in {page.parent / 'report'}/, all of them on one page: {page}")


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
