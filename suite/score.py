"""Rows with completions become the same rows with a column per reward, and a table; or rewards are put to the test.

suite score rows.jsonl --reward_funcs accuracy format
suite score rows.jsonl --config configs/qwen2.5-0.5b/grpo.yaml
suite score --prove data/gsm8k --config configs/qwen2.5-0.5b/grpo.yaml
"""

import inspect
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suite import args, checkpoint, columns, ending, rewards, whole
from suite.keys import RewardArguments, grpo_arguments
from suite.rewards import proof
from suite.rewards.scoring import score_rows, table
from suite.values import as_mapping


@dataclass
class ScoreArguments:
    """What is scored; which rewards do it is said by the keys of a GRPO config."""

    rows: str | None = field(default=None, metadata={"help": "A .jsonl or .parquet file with a column `completion`."})
    prove: str | None = field(
        default=None, metadata={"help": "A prepared data set, whose golds the rewards must like."}
    )
    output_file: str | None = field(default=None, metadata={"help": "Where the scored rows go; ROWS.scored.jsonl."})
    max_rows: int | None = field(default=None, metadata={"help": "Take only the first rows; 200 with `prove`."})

    def __post_init__(self):
        if (self.rows is None) == (self.prove is None):
            raise ValueError("Say what to score: `suite score ROWS.jsonl`, or `suite score --prove data/NAME`.")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows: {self.max_rows} must be at least 1.")


@dataclass
class WithoutConfig:
    """The keys of a GRPO config that matter here, for a command line without one: TRL takes ten seconds to import."""

    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weights of the rewards; 1 each."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Its tokenizer counts lengths; without one, words and signs."}
    )


def arguments(with_config: bool = True) -> tuple[type, ...]:
    theirs = grpo_arguments() if with_config else (WithoutConfig, RewardArguments)
    return ScoreArguments, *theirs


@ending.orderly_end()
def main(argv=None) -> None:
    path, words = args.take_config(list(sys.argv[1:] if argv is None else argv))
    if words and not words[0].startswith("--"):
        words = ["--rows", *words]
    words += ["--config", path] if path else []
    # Only read, not made ready to train: a config for eight GPUs is scored on a laptop.
    wanted = (ScoreArguments, RewardArguments)
    score, reward, values = args.parse(arguments(bool(path)), words, needs_config=False, only=wanted)
    model = values["model_name_or_path"]
    tokenizer = _tokenizer(model)
    opened = tokenizer is not None and _opens_thinking(tokenizer, values.get("chat_template_kwargs"))
    found = rewards.load_all(reward.reward_funcs, reward.reward_kwargs, think_opened=opened)
    funcs = dict(zip(reward.reward_funcs, found, strict=True))
    count = _token_counter(funcs, tokenizer)
    if score.prove:
        weights = dict(zip(funcs, values["reward_weights"] or [1.0] * len(funcs), strict=True))
        prove(score, funcs, weights, reward.reward_schedule, count, opened)
    else:
        how = {
            "rewards": {name: rewards.version(name, func) for name, func in funcs.items()},
            "reward_kwargs": reward.reward_kwargs,
            "tokens": checkpoint.fingerprint(model) if tokenizer is not None else "words",
            "opened": opened,
        }
        score_file(Path(score.rows), score, funcs, count, how)


def _tokenizer(model: str | None):
    """The tokenizer beside the model of a run, or None, said aloud, where there is none yet."""
    if not model:
        return None
    from suite import run

    try:
        return run.tokenizer(model)
    except ValueError as error:
        print(f"{error} So prompts are taken not to open <think>.")
        return None


def _opens_thinking(tokenizer, template_kwargs: dict | str | None) -> bool:
    from suite import run

    return run.opens_thinking(tokenizer, as_mapping("chat_template_kwargs", template_kwargs))


def _callable(funcs: dict[str, Callable | str]) -> dict[str, Callable]:
    """The rewards, those of models loaded: behind all that can be known to be wrong without them."""
    if not any(isinstance(func, str) for func in funcs.values()):
        return funcs
    from suite.engine.reward_model import RewardModel

    return {name: RewardModel(func) if isinstance(func, str) else func for name, func in funcs.items()}


def _token_counter(funcs: dict[str, Callable | str], tokenizer) -> Callable[[str], list] | None:
    """Text -> token ids, where some reward asks for them and rows may not have them; a reward model does not."""
    asking = (inspect.signature(func).parameters for func in funcs.values() if callable(func))
    if not any("completion_ids" in parameters for parameters in asking):
        return None
    if tokenizer is not None:
        return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    print("No tokenizer: lengths are counted in words and signs, not in tokens. `--model_name_or_path` names one.")
    return lambda text: re.findall(r"\w+|[^\w\s]", text)


def score_file(path: Path, score: ScoreArguments, funcs: dict[str, Callable | str], count, how: dict) -> None:
    """Write the scored rows beside `path`, whole or not at all, and print the table.

    The scores are in a journal until then, from which the next attempt goes on; `how` is all that decides what they
    are, beside the rows.
    """
    target = Path(score.output_file or path.with_suffix(f".scored{path.suffix}"))
    if target.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"output_file: '{target}' must end in .jsonl or .parquet.")
    if target.exists():
        whole.tidy(target)
        raise ValueError(f"'{target}' exists. Name another place with `--output_file`, or remove it.")
    rows = read_rows(path)[: score.max_rows]
    _check_columns(rows, funcs, path)
    if target.suffix == ".parquet":
        _arrow([{**row, **dict.fromkeys(funcs)} for row in rows])
    head = {"rows": whole.digest([whole.digest(row) for row in rows]), "how": whole.digest(how)}
    with whole.Journal(whole.journal_of(target), target, head) as journal:
        if journal.lines:
            print(f"Going on from an earlier attempt, whose scores are in {journal.path}.", flush=True)
        scores = score_rows(rows, _callable(funcs), count, progress=True, journal=journal)
        scored = [{**row, **{name: s.values[i] for name, s in scores.items()}} for i, row in enumerate(rows)]
        with whole.file(target) as partial:
            _write(partial, target.suffix, scored)
        journal.remove()
    replaced = [name for name in funcs if any(name in row for row in rows)]
    if replaced:
        print(f"The columns {', '.join(replaced)} of '{path}' are replaced in '{target}'.")
    print(table(scores))
    print(f"{len(rows)} rows: {target}")


def read_rows(path: Path) -> list[dict]:
    """The rows of a .jsonl or .parquet file. Raises `ValueError` for a broken one, naming its line or row."""
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'.")
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            rows = list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1))
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read as parquet: {error}") from None
        unit = "row"
    elif path.suffix == ".jsonl":
        rows, unit = list(_json_lines(path)), "line"
    else:
        raise ValueError(f"'{path}' must end in .jsonl or .parquet.")
    if not rows:
        raise ValueError(f"{path} has no rows.")
    with_prompts = "prompt" in rows[0][1]
    for number, row in rows:
        if ("prompt" in row) != with_prompts:
            raise ValueError(f"{path}, {unit} {number}: some rows have a `prompt` and some have none.")
        for column in ("prompt", "completion") if with_prompts else ("completion",):
            if not _is_said(row.get(column)):
                has = f"has {row[column]!r:.60} there" if column in row else f"has the columns {', '.join(row)}"
                raise ValueError(f"{path}, {unit} {number}: needs a `{column}`, text or messages, and {has}.")
    return [row for _, row in rows]


def _is_said(value) -> bool:
    messages = value if isinstance(value, list) else []
    return isinstance(value, str) or (
        isinstance(value, list)
        and all(isinstance(m, dict) and isinstance(m.get("content"), str | None) for m in messages)
    )


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, row) of every line that is not blank."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}).") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a row must be a JSON object, got {row!r:.60}.")
        yield number, row


def _check_columns(rows: list[dict], funcs: dict[str, Callable | str], path: Path) -> None:
    """Every column that a reward cannot do without is in every row, and none is named as a knob."""
    first: dict[tuple, int] = {}
    for i, row in enumerate(rows):
        first.setdefault(tuple(row), i)
    for names, i in first.items():
        rewards.check_columns(funcs, names, f"{path}, row {i + 1}")


def _write(path: Path, suffix: str, rows: list[dict]) -> None:
    if suffix == ".jsonl":
        path.write_text("".join(f"{_json_line(row)}\n" for row in rows), encoding="utf-8")
        return
    import pyarrow.parquet

    pyarrow.parquet.write_table(_arrow(rows), path)


def _arrow(rows: list[dict]):
    import pyarrow

    try:
        return pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, UnicodeEncodeError) as error:
        raise ValueError(f"These rows do not fit into parquet ({error}); name an --output_file in .jsonl.") from None


def _json_line(row: dict) -> str:
    line = json.dumps(row, ensure_ascii=False, default=str)  # dates, from parquet
    # Half a surrogate pair, which a cut-off emoji may leave, has no UTF-8 of its own.
    return line if line.isascii() or line.encode("utf-8", "ignore").decode() == line else json.dumps(row, default=str)


def prove(
    score: ScoreArguments,
    funcs: dict[str, Callable | str],
    weights: dict[str, float],
    schedule: dict,
    count,
    opened: bool,
) -> None:
    """Print what each reward gives to each made-up case. Raises `ValueError` where gold does not come first."""
    directory = Path(score.prove)
    rows = _prepared(directory)[: score.max_rows or 200]
    flat = [
        {**row, "completion": text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]}
        for row, cases in zip(rows, proof.completions(rows, opened), strict=True)
        for text in cases.values()
    ]
    _check_columns(flat, funcs, directory)
    funcs = _callable(funcs)
    scores = {name: score.values for name, score in score_rows(flat, funcs, count).items()}
    found = []
    for name, func in funcs.items():
        if proof.is_about_correctness(func):
            found += proof.failures(name, scores[name], wants_one=True)
    lines = dict(scores)
    for which, when in (("from", " (start)"), ("to", " (end)")) if schedule else ((None, ""),):
        now = weights | {name: way[which] for name, way in schedule.items()} if which else weights
        lines[f"weighted sum{when}"] = proof.weighted(scores, now)
        if not found:  # a bad reward spoils the sum, too, and is told once
            found = proof.failures(f"weighted sum{when}", lines[f"weighted sum{when}"], wants_one=False)
    print(_proof_table(lines))
    print("\n".join(f"  {case}: {what}" for case, what in proof.CASES.items()))
    if found:
        raise ValueError(f"The rewards fail the check on {len(rows)} rows of {directory}: {'; '.join(found)}.")
    print(f"Proven on {len(rows)} rows of {directory}: gold comes first everywhere.")


def _prepared(directory: Path) -> list[dict]:
    names = ("train.parquet", "test.parquet")  # a benchmark may have the second only
    path = next((directory / name for name in names if (directory / name).is_file()), directory / names[0])
    if not path.is_file():
        raise ValueError(f"There is no '{path}'. `suite prepare NAME` writes data/NAME; see `suite list data`.")
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    columns.check(rows[0].keys() if rows else (), ("prompt+solution",), str(directory))
    return rows


def _proof_table(lines: dict[str, list[float | None]]) -> str:
    """The mean of each case over the rows, and the spread inside a group."""
    width = max(map(len, lines))
    out = [f"{'':<{width}}" + "".join(f"{case:>13}" for case in [*proof.CASES, "spread"])]
    for name, values in lines.items():
        means = []
        for case in proof.by_case(values).values():
            judged = [v for v in case if v is not None]
            means.append(f"{statistics.fmean(judged):13.3f}" if judged else f"{'-':>13}")
        out.append(f"{name:<{width}}" + "".join(means) + f"{proof.spread(values):13.3f}")
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
