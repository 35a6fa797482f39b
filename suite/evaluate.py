"""Checkpoints answer prompts they never saw, and the very reward that trains says how well, with intervals.

    suite evaluate --checkpoints runs/sft runs/grpo --dataset_name data/gsm8k --output_dir runs/compare
    suite evaluate --compare sft grpo --output_dir runs/compare

What is measured follows from the columns of the test rows, and may be all three: `prompt` and `solution` are answered
and judged; of `text` the bits per byte are counted; of `prompt`, `chosen` and `rejected` how often the chosen answer is
the likelier one. `metrics` names what each stage is there for: its `before` is that of the model it started from.

`output_dir` collects: results.json holds one object a checkpoint, in the order they were first evaluated, and
rows.jsonl one line a completion; the card of each run tells of them. A checkpoint that was evaluated the same way
before is reused. Completions are written down as they come, in a hidden file beside the results: what was killed goes
on, and ends as it would have. Likelihoods, which take one pass over the rows, are measured from the first row again.
"""

import json
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from suite import (
    args,
    card,
    checkpoint,
    columns,
    comparison,
    engine,
    measures,
    metrics,
    pins,
    reasoning,
    record,
    run,
    source,
    whole,
)
from suite.judging import score, summarize
from suite.registry import pick
from suite.whole import digest

# Shape of the rows -> what it lets one measure, what a stage is there for in want of another word first.
MEASURED = {
    "prompt+solution": ("accuracy", "format", "thinking", "strict", "lenient", "truncated", "tokens"),
    "prompt+chosen+rejected": ("preferred",),
    "text": ("bits_per_byte",),
}


# Keys that decide nothing of what is said.
ABOUT = ("checkpoints", "compare", "max_flips", "output_dir", "metrics")


@dataclass
class EvaluateArguments:
    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoint directories or models on the Hub."}
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Two that were evaluated into output_dir, by stage or checkpoint: who gained, who lost."},
    )
    max_flips: int = field(default=5, metadata={"help": "With compare: problems to show that flipped, each way."})
    output_dir: str = field(default="runs/evaluate", metadata={"help": "Where results.json and rows.jsonl go."})
    max_rows: int | None = field(default=None, metadata={"help": "Take only the first rows of the test split."})
    max_completion_length: int = field(default=512, metadata={"help": "Longest completion, in tokens."})
    num_generations: int = field(default=4, metadata={"help": "Samples a prompt for pass@k; 0 for greedy only."})
    temperature: float = field(default=1.0, metadata={"help": "Of the samples; the greedy pass has none."})
    top_p: float = field(default=1.0, metadata={"help": "Of the samples."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    metrics: dict | str | None = field(
        default=None,
        metadata={"help": "What a stage is there for, {dpo: preferred, ...}; else accuracy, or what else is measured."},
    )

    def __post_init__(self):
        if bool(self.checkpoints) == bool(self.compare):
            raise ValueError("Name `checkpoints` to evaluate, or two that were evaluated to `compare`.")
        if self.compare and len(set(self.compare)) != 2:
            raise ValueError(f"compare: takes two names, and these are {', '.join(self.compare)}.")
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise ValueError(f"checkpoints names one twice: {', '.join(self.checkpoints)}.")
        for key, least in (("num_generations", 0), ("max_completion_length", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least {least}.")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows: {self.max_rows} must be at least 1.")
        if self.num_generations > 0 and self.temperature <= 0:
            raise ValueError("temperature: samples need one above 0; set num_generations: 0 for greedy only.")
        self.metrics = args.as_mapping("metrics", self.metrics)
        for stage, metric in self.metrics.items():
            pick(f"metric (of {stage})", metric, [name for names in MEASURED.values() for name in names])


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    return EvaluateArguments, engine.EngineArguments, ScriptArguments, DatasetMixtureConfig


@args.orderly_end()
def main(argv=None) -> None:
    evaluate, keys, script, mixture, _ = args.parse(arguments(), argv, needs_config=False)
    if evaluate.compare:
        print(compare(Path(evaluate.output_dir), *evaluate.compare, evaluate.max_flips))
        return
    engine.require_asked(keys)
    for name in evaluate.checkpoints:
        checkpoint.check_whole(name)
    script.dataset_train_split = script.dataset_test_split  # only the test rows are read
    rows = list(source.rows(script, mixture, tuple(MEASURED), every_column=True)[0])[: evaluate.max_rows]
    about = {name: _purpose(name, rows, evaluate) for name in evaluate.checkpoints}
    directory = Path(evaluate.output_dir)
    how = {k: v for k, v in asdict(evaluate).items() if k not in ABOUT}
    conditions = digest([rows, how | asdict(keys)])
    asked_of = ", ".join(filter(None, source.names(script, mixture)))
    for name in evaluate.checkpoints:
        journal = directory / f".{digest(name)}.journal"
        left = whole.read_lines(journal)[:1]
        at = pins.at_commit(name, left[0].get("at") if left else None)  # what was begun goes on with its commit
        fingerprint = checkpoint.fingerprint(at)
        identity = digest([name, fingerprint, conditions, about[name]])
        head = {"checkpoint": name, "at": at, "identity": identity}
        if any(result["identity"] == identity for result in results_of(directory)):
            if left == [head]:  # killed at the very end
                _drop_older_rows(directory, name, identity)
                whole.remove(journal)
            print(f"{name} was evaluated in this very way before; reusing it from {directory}/results.json.")
            continue
        if left and left != [head]:
            print(f"{name} was being evaluated in another way; what it said then is dropped.")
        with Heard(journal, directory, head) as heard:
            result, said = evaluate_one(at, rows, evaluate, keys, heard, about[name]["metric"])
            which = {"stage": _stage(name), "checkpoint": name, "fingerprint": fingerprint, "dataset": asked_of}
            which |= {**about[name], "conditions": conditions}
            _collect(directory, {**which, **result, "identity": identity}, said)
            heard.remove()
        print(record.one_line(next(r for r in results_of(directory) if r["checkpoint"] == name)), flush=True)
    for name in evaluate.checkpoints:
        card.write(name)
    print(record.results_table(results_of(directory)))


def compare(directory: Path, first: str, second: str, problems: int) -> str:
    """What two evaluated models differ in, for people. Raises `ValueError` for one that was not evaluated there."""
    results = [r for r in results_of(directory) if "accuracy" in r]
    pair = []
    for name in (first, second):
        found = [r for r in results if name in (r["stage"], r["checkpoint"])]
        if len(found) != 1:
            there = ", ".join(r["checkpoint"] if found else r["stage"] for r in (found or results)) or "none"
            raise ValueError(f"compare: {directory} has {len(found)} evaluations of '{name}'. There are: {there}.")
        pair += found
    rows = [json.loads(line) for line in _lines(directory)]
    said = [[row for row in rows if row.get("identity") == result["identity"]] for result in pair]
    told = comparison.told((first, second), comparison.pair(*said), problems)
    if pair[0].get("conditions") != pair[1].get("conditions"):
        told += "\nwarning: they were not evaluated alike (rows, sampling, lengths or engine), so read this with care."
    return told


def _stage(name: str) -> str:
    """What a checkpoint is called: its run, and one on the way by its own name behind that."""
    path = Path(name)
    return f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.name


def _purpose(name: str, rows: list[dict], evaluate: EvaluateArguments) -> dict:
    """The metric that a checkpoint's stage is there for, and the model it started from: None where nobody knows, ""
    for a model from nothing. Raises `ValueError` for a metric that the rows cannot be asked."""
    there = [m for shape, names in MEASURED.items() if columns.shape_of(rows[0], (shape,)) for m in names]
    metric = evaluate.metrics.get(_stage(name).partition("/")[0], there[0])
    if metric not in there:
        raise ValueError(f"metrics: {Path(name).name} is there for {metric}, and the rows let one measure: {there}.")
    told = Path(name) / "run.json"
    made = checkpoint.read_json(told).get("config") if told.is_file() else None
    started = None if made is None else made.get("model_name_or_path", "")
    return {"metric": metric, "started_from": started}


class Heard(whole.Journal):
    """What a checkpoint has said so far, and the seconds that it took."""

    def __init__(self, path: Path, directory: Path, head: dict):
        super().__init__(path, directory / "results.json", head)
        self.said: dict[str, dict[int, engine.Completion]] = {"greedy": {}, "sampled": {}}
        self.begun = time.monotonic()
        for kind, number, text, tokens, finished, seconds in self.lines:
            self.said[kind][number] = engine.Completion(text, tokens, finished)
            self.begun = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Of this attempt and those before it."""
        return round(time.monotonic() - self.begun, 2)

    def hear(self, kind: str, number: int, said: engine.Completion) -> None:
        self.add([kind, number, said.text, said.tokens, said.finished, self.seconds])
        self.said[kind][number] = said


def evaluate_one(
    name: str, rows: list[dict], evaluate: EvaluateArguments, keys: engine.EngineArguments, heard: Heard, metric: str
) -> tuple[dict, list[dict]]:
    """(the result object, one row a completion) of one checkpoint on `rows`."""
    from tqdm import tqdm

    bar = partial(tqdm, leave=False, desc=f"{Path(name).name}: likelihoods")
    tokenizer = run.tokenizer(name)
    measured, said, result = {}, [], {}
    if columns.shape_of(rows[0], ("prompt+solution",)):
        measured, said = _answered(name, rows, evaluate, keys, heard, tokenizer)
        result = {"accuracy": measured["accuracy"]["value"], "format": measured["format"]["value"]}
    measured |= measures.of_rows(name, rows, keys.dtype, bar)
    if "text" in rows[0]:
        result["guessing"] = measures.guessing(tokenizer, [row["text"] for row in rows])
    aim = measured[metric]
    told = {"before": None, "after": aim["value"], "ci95": aim["ci95"], "n": aim["n"]}
    return {**result, **told, "seconds": heard.seconds, "metrics": measured}, said


def _answered(name, rows, evaluate, keys, heard, tokenizer) -> tuple[dict, list[dict]]:
    """(metrics, one row a completion) of the answers a checkpoint gives: greedy ones and samples."""
    samples = evaluate.num_generations
    greedy = engine.Sampling(max_new_tokens=evaluate.max_completion_length)
    sampled = replace(greedy, temperature=evaluate.temperature, top_p=evaluate.top_p, seed=evaluate.seed)
    once = [row["prompt"] for row in rows]
    asked = {"greedy": (once, greedy), "sampled": ([prompt for prompt in once for _ in range(samples)], sampled)}
    _ask(name, asked, keys, heard)
    opened = run.opens_thinking(tokenizer)
    said = []
    for kind, each in (("greedy", 1), ("sampled", samples)):
        groups = [[heard.said[kind][i * each + n] for n in range(each)] for i in range(len(rows))]
        said += score(rows, groups, kind, opened)
    thoughts = reasoning.texts([row["completion"] for row in said if row["kind"] == "greedy"], think_opened=opened)
    lengths = [len(tokenizer(reasoning.thinking(text))["input_ids"]) for text in thoughts]
    return {**summarize(said, samples), "thinking": metrics.mean(lengths)}, said


def _ask(name: str, asked: dict[str, tuple[list, engine.Sampling]], keys: engine.EngineArguments, heard: Heard) -> None:
    """Have the checkpoint say what is not heard yet. The completions do not depend on where it was interrupted."""
    from tqdm import tqdm

    total, there = sum(len(prompts) for prompts, _ in asked.values()), sum(map(len, heard.said.values()))
    if there:
        print(f"{name}: {there} of {total} completions are there; going on.", flush=True)
    if there == total:
        return
    with closing(engine.load_as_asked(name, keys)) as model:
        for kind, (prompts, sampling) in asked.items():
            done = set(heard.said[kind])
            if len(done) == len(prompts):
                continue
            bar = tqdm(total=len(prompts), initial=len(done), leave=False, desc=f"{Path(name).name}: {kind}")
            with bar:
                for number, said in model.stream(prompts, sampling, done):
                    heard.hear(kind, number, said)
                    bar.update()


def results_of(directory: Path) -> list[dict]:
    """What results.json holds. Raises `ValueError` where it is broken."""
    path = directory / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:
        raise ValueError(f"{path} is cut off or broken. Choose another output_dir, or remove it.") from None


def _collect(directory: Path, result: dict, said: list[dict]) -> None:
    """Put a checkpoint's result and rows in the place of its older ones, or behind the others, and tell all befores.

    results.json says which rows count: the new ones are there before it names them, and the older ones go after it.
    """
    name, identity = result["checkpoint"], result["identity"]
    with whole.taking_turns(directory):
        results = results_of(directory)
        at = next((i for i, r in enumerate(results) if r["checkpoint"] == name), len(results))
        there = [line for line in _lines(directory) if json.loads(line).get("identity") != identity]
        about = {"checkpoint": name, "stage": result["stage"], "identity": identity}
        _write_lines(directory, there + [json.dumps({**about, **row}, ensure_ascii=False) for row in said])
        results = [*results[:at], result, *results[at + 1 :]]
        told = [{**r, "before": _before(r, results)} if "metric" in r else r for r in results]
        checkpoint.write_json(directory / "results.json", told)
    _drop_older_rows(directory, name, identity)


def _before(result: dict, results: list[dict]) -> float | None:
    """The metric of a stage in the model it started from, where that was measured on the same rows in the same way.

    A model from nothing holds every token to be as likely as any other.
    """
    if result["started_from"] is None:
        return None
    if result["started_from"] == "":
        return result.get("guessing") if result["metric"] == "bits_per_byte" else None
    for other in results:
        same = Path(other["checkpoint"]) == Path(result["started_from"])
        if same and other.get("conditions") == result["conditions"]:
            return other["metrics"][result["metric"]]["value"]
    return None


def _drop_older_rows(directory: Path, name: str, identity: str) -> None:
    """Leave out what a checkpoint said when it was evaluated before, and in another way."""
    with whole.taking_turns(directory):
        rows = [(line, json.loads(line)) for line in _lines(directory)]
        kept = [line for line, row in rows if row["checkpoint"] != name or row.get("identity") == identity]
        if len(kept) < len(rows):
            _write_lines(directory, kept)


def _lines(directory: Path) -> list[str]:
    path = directory / "rows.jsonl"
    # No splitlines(), which also divides at marks that JSON leaves inside a text.
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []


def _write_lines(directory: Path, lines: list[str]) -> None:
    with whole.file(directory / "rows.jsonl") as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
