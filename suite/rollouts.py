"""Page through the completions that a GRPO run logged: by step, by prompt over steps, by condition.

suite rollouts runs/quickstart/grpo --step 40
suite rollouts runs/quickstart/grpo --prompt "12 + 34"
suite rollouts runs/quickstart/grpo --where "format == 1 and accuracy == 0"
suite rollouts runs/quickstart/grpo --evaluation true
"""

import os
import pydoc
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suite import args, ending, reasoning
from suite.columns import text_of
from suite.rewards.scoring import TABLE
from suite.trainers.completions import EVALUATION, TRAINING

RIGHT, WRONG, BOLD, DIM, PLAIN = "\033[32m", "\033[31m", "\033[1m", "\033[2m", "\033[0m"


@dataclass
class RolloutsArguments:
    run_dir: str = field(metadata={"help": "A run that logged its completions (`log_completions: true`)."})
    step: int | None = field(default=None, metadata={"help": "Only this step; -1 is the last that was logged."})
    prompt: str | None = field(default=None, metadata={"help": "Only prompts with these words in them, step by step."})
    where: str | None = field(
        default=None,
        metadata={"help": "Only completions for which this holds, such as 'format == 1 and accuracy == 0'."},
    )
    evaluation: bool = field(
        default=False, metadata={"help": "What was sampled in the run's evaluations, and not what it was trained on."}
    )
    max_rows: int = field(default=200, metadata={"help": "Show at most this many completions; 0 = all."})

    def __post_init__(self):
        if self.max_rows < 0:
            raise ValueError(f"max_rows: {self.max_rows} must be 0 (all) or more.")


def arguments() -> tuple[type, ...]:
    return (RolloutsArguments,)


def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("--"):
        words = ["--run_dir", *words]
    asked, _ = args.parse(arguments(), words, needs_config=False)
    table = read(Path(asked.run_dir), EVALUATION if asked.evaluation else TRAINING)
    found = choose(table, asked.step, asked.prompt, asked.where)
    shown = found if asked.max_rows == 0 else found.head(asked.max_rows)
    colors = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = [*told(shown, colors), f"\n{summary(found, table)}"]
    if len(shown) < len(found):
        lines.append(f"Shown are the first {len(shown)}; `--max_rows 0` shows all.")
    if sys.stdout.isatty():
        os.environ.setdefault("LESS", "-RFX")
        pydoc.pager("\n".join(lines))
    else:
        print("\n".join(lines))


def read(run_dir: Path, kind: str = TRAINING):
    """Every logged completion of that kind as a data frame, in the order of the steps.

    Raises `ValueError` where a directory holds none.
    """
    import pandas

    if not run_dir.is_dir():
        raise ValueError(f"There is no directory '{run_dir}'. Name a run, such as runs/quickstart/grpo.")
    files = sorted((run_dir / "completions").glob(f"{kind}_*.parquet"))
    if not files and kind == EVALUATION:
        raise ValueError(f"evaluation: '{run_dir}' has logged no completions of an evaluation.")
    if not files:
        near = sorted(str(p.parent) for p in run_dir.glob("*/completions") if any(p.iterdir()))
        raise ValueError(
            f"'{run_dir}' holds no logged completions."
            + (f" There are: {', '.join(near)}." if near else " Set `log_completions: true` for a GRPO run.")
        )
    try:
        tables = [pandas.read_parquet(path) for path in files]
    except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
        raise ValueError(f"'{run_dir}/completions' holds a broken file: {error}. Remove it.") from None
    table = pandas.concat(tables, ignore_index=True).rename(columns=lambda name: name.removesuffix("_reward"))
    for column in ("prompt", "completion"):
        table[column] = [text_of(_plain(said)) for said in table[column]]
    return table


def _plain(said):
    """Messages come back from parquet as arrays."""
    return said if isinstance(said, str) else list(said)


def rewards_of(table) -> list[str]:
    """What is a number in the table, and no column of its own, was a reward's."""
    return [name for name in table.columns if name not in TABLE and table[name].dtype.kind in "fib"]


def choose(table, step: int | None, prompt: str | None, where: str | None):
    """The rows of a step, of a prompt, and under a condition. Raises `ValueError` where that is none of them."""
    found = table
    if step is not None:
        steps = sorted(set(table["step"]))
        wanted = steps[-1] if step == -1 else step
        found = found[found["step"] == wanted]
        if found.empty:
            raise ValueError(f"step: {step} was not logged. There are {len(steps)} from {steps[0]} to {steps[-1]}.")
    if prompt is not None:
        found = found[found["prompt"].str.contains(prompt, regex=False)]
        if found.empty:
            raise ValueError(f"prompt: no prompt there has '{prompt}' in it.")
        found = found.sort_values(["prompt", "step"], kind="stable")
    if where is not None:
        try:
            found = found.query(where, engine="python")
        except Exception as error:  # pandas raises whatever its parser, Python's or the comparison does
            raise ValueError(
                f"where: '{where}' cannot be asked ({error}). There are: step, {', '.join(rewards_of(table))}, "
                "advantage, prompt, completion; for example 'format == 1 and accuracy == 0'."
            ) from None
    return found


def told(table, colors: bool) -> Iterator[str]:
    """The lines of a page: each group's prompt once, under it its completions with what they were given."""
    before = None
    names = rewards_of(table)
    for row in table.to_dict("records"):
        group = (row["step"], row["prompt"])
        if group != before:
            step = _in(BOLD, f"step {row['step']}", colors)
            yield f"\n{step}  {row['prompt'].strip()}"
            before = group
        given = [f"{name} {row[name]:g}" for name in names]
        given += [f"advantage {row['advantage']:+.3f}"] if "advantage" in row else []  # distillation has neither
        yield _in(DIM, f"  -- {'  '.join(given)}", colors)
        yield "\n".join(f"  {line}" for line in highlighted(row, colors).splitlines())


def highlighted(row: dict, colors: bool) -> str:
    """A completion with its answer set off: green and red where there is an `accuracy`, else bold."""
    said = row["completion"].strip()
    answer = reasoning.final_answer(said)
    if answer is None:
        return said
    before, there, behind = said.rpartition(answer)
    if not there:  # the reading has changed it
        return f"{said}\n[answer: {answer}]"
    color = BOLD if "accuracy" not in row else RIGHT if row["accuracy"] == 1 else WRONG
    return f"{before}{_in(color, answer, colors, '[', ']')}{behind}"


def _in(color: str, text: str, colors: bool, opens: str = "", closes: str = "") -> str:
    return f"{color}{text}{PLAIN}" if colors else f"{opens}{text}{closes}"


def summary(found, table) -> str:
    """How many there are, and the mean of each reward among them."""
    means = ", ".join(f"{name} {found[name].mean():.3f}" for name in rewards_of(found)) if len(found) else ""
    steps = found["step"].nunique()
    return f"{len(found)} of {len(table)} completions, {steps} steps" + (f"; mean {means}" if means else "")


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
