"""Checkpoints answer prompts they never saw, and the very reward that trains says how well, with intervals.

    suite evaluate --checkpoints runs/sft runs/grpo --dataset_name data/gsm8k --output_dir runs/compare
    suite evaluate --compare sft grpo --output_dir runs/compare
    suite evaluate --compare runs/compare/sft runs/elsewhere/sft

What is measured follows from the columns of the test rows, and may be all three: `prompt` and `solution` are answered
and judged; of `text` the bits per byte are counted; of `prompt`, `chosen` and `rejected` how often the chosen answer is
the more likely one. `metrics` names the goal of each stage: its `before` is that of the model it started from.

`output_dir` collects: results.json holds one object a checkpoint, in the order they were first evaluated, and
rows.jsonl one line a completion; the card of each run tells of them. Those that were asked other rows, or in another
way, are told in tables of their own. A checkpoint that was evaluated the same way before is reused, however its path
is written. Completions are written down as they come, in a hidden file beside the results: what was killed goes on, and
ends as it would have. Likelihoods, which take one pass over the rows, are measured from the first row again.
"""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from suite import (
    args,
    asking,
    card,
    checkpoint,
    columns,
    comparison,
    conditions,
    ending,
    engine,
    judging,
    measures,
    metrics,
    pins,
    reasoning,
    results,
    run,
    shots,
    source,
    tables,
    whole,
)
from suite.asking import Heard
from suite.registry import pick
from suite.values import as_mapping
from suite.whole import digest

# Shape of the rows -> what it lets one measure, and first the goal of a stage that names none.
MEASURED = {
    "prompt+solution": ("accuracy", "format", "thinking", "strict", "lenient", "truncated", "tokens"),
    "prompt+chosen+rejected": ("preferred",),
    "text": ("bits_per_byte",),
}


# Keys that make the prompts, and keys by which they are answered: what a result notes of how it was asked.
ASKING = ("system_prompt", "num_fewshot")
SAMPLER = ("max_completion_length", "num_generations", "temperature", "top_p", "seed")


@dataclass
class EvaluateArguments:
    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoint directories or models on the Hub."}
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Two that were evaluated, by stage, checkpoint or directory: who gained, who lost."},
    )
    max_flips: int = field(default=5, metadata={"help": "With compare: problems to show that flipped, each way."})
    output_dir: str = field(default="runs/evaluate", metadata={"help": "Where results.json and rows.jsonl go."})
    max_rows: int | None = field(default=None, metadata={"help": "Take only the first rows of the test split."})
    max_completion_length: int = field(default=512, metadata={"help": "Longest completion, in tokens."})
    num_generations: int = field(default=4, metadata={"help": "Samples per prompt for pass@k; 0 for greedy only."})
    temperature: float = field(default=1.0, metadata={"help": "Of the samples; the greedy pass has none."})
    top_p: float = field(default=1.0, metadata={"help": "Of the samples."})
    seed: int = field(default=0, metadata={"help": "Of the samples, and of the choice of examples."})
    system_prompt: str | None = field(
        default=None,
        metadata={"help": "Takes the place of the rows' own system message; 'none' leaves it out: the model's own."},
    )
    num_fewshot: int = field(
        default=0, metadata={"help": "Worked training rows before each problem, chosen by `seed`, as turns."}
    )
    metrics: dict | str | None = field(
        default=None,
        metadata={
            "help": "The goal of each stage, {dpo: preferred, ...}; by default accuracy, or else what is measured."
        },
    )

    def __post_init__(self):
        if bool(self.checkpoints) == bool(self.compare):
            raise ValueError("Name `checkpoints` to evaluate, or two that were evaluated to `compare`.")
        if self.compare and len(set(self.compare)) != 2:
            raise ValueError(f"compare: takes two names, and these are {', '.join(self.compare)}.")
        self.checkpoints = [name.rstrip("/") or name for name in self.checkpoints]  # a shell completes them so
        self.checkpoints = _each_once(self.checkpoints)
        for key, least in (("num_generations", 0), ("max_completion_length", 1), ("num_fewshot", 0), ("max_flips", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least {least}.")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows: {self.max_rows} must be at least 1.")
        if self.num_generations > 0 and self.temperature <= 0:
            raise ValueError("temperature: samples need one above 0; set num_generations: 0 for greedy only.")
        if self.num_generations > 0:
            engine.Sampling(temperature=self.temperature, top_p=self.top_p)  # which knows their ranges
        self.metrics = as_mapping("metrics", self.metrics)
        for stage, metric in self.metrics.items():
            pick(f"metric (of {stage})", metric, [name for names in MEASURED.values() for name in names])


def _each_once(names: list[str]) -> list[str]:
    """The checkpoints without those that are there already, as a link among them or written in another way."""
    found: list[str] = []
    for name in sorted(names, key=os.path.islink):  # a directory before the links to it
        same = next((other for other in found if results.is_same(name, other)), None)
        if same is None:
            found.append(name)
        elif name != same:
            args.say(f"{name} is {same}, which is evaluated once.")
    return sorted(found, key=names.index)


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    return EvaluateArguments, engine.EngineArguments, ScriptArguments, DatasetMixtureConfig


@ending.orderly_end()
def main(argv=None) -> None:
    evaluate, keys, script, mixture, written = args.parse(arguments(), argv, needs_config=False)
    run.check_idle_keys(written)
    if evaluate.compare:
        print(compare(Path(evaluate.output_dir), *evaluate.compare, evaluate.max_flips))
        return
    evaluate.checkpoints = [results.called(Path(evaluate.output_dir), name) for name in evaluate.checkpoints]
    engine.require_asked(evaluate.checkpoints, keys)
    for name in evaluate.checkpoints:  # one that is nowhere is told before the others are evaluated
        pins.at_commit(name)
    rows, prompts = _rows_and_prompts(evaluate, script, mixture)
    fewer = "Show fewer examples (`num_fewshot`)" if evaluate.num_fewshot else ""
    asking.require_answerable(evaluate.checkpoints, prompts, keys, fewer)
    about = {name: _purpose(name, rows, evaluate) for name in evaluate.checkpoints}
    named = ", ".join(filter(None, source.names(script, mixture)))
    if script.dataset_test_split != "test":
        named += f" (split {script.dataset_test_split})"
    noted = ({key: vars(evaluate)[key] for key in part} for part in (ASKING, SAMPLER))
    asked = conditions.of(named, rows, prompts, *noted, keys)
    for name in evaluate.checkpoints:
        _evaluate(name, rows, prompts, evaluate, keys, about[name], asked)
    for name in evaluate.checkpoints:
        card.write(name)
    print(tables.results_table(results.told_apart(results.results_of(Path(evaluate.output_dir)))))


def _rows_and_prompts(evaluate: EvaluateArguments, script, mixture) -> tuple[list[dict], list]:
    """(the test rows, what they are asked with): no prompts where the rows have nothing to answer."""
    train = None
    if evaluate.num_fewshot:
        try:
            train, rows = source.rows(script, mixture, ("prompt+solution",), with_test=True, every_column=True)
        except ValueError as error:
            raise ValueError(f"num_fewshot takes its examples from the training rows. {error}") from None
    else:
        script.dataset_train_split = script.dataset_test_split  # only the test rows are read
        rows, _ = source.rows(script, mixture, tuple(MEASURED), every_column=True)
    rows = list(rows)
    examples = shots.draw(train, rows, evaluate.num_fewshot, evaluate.seed) if train is not None else {}
    rows = rows[: evaluate.max_rows]
    if not columns.shape_of(rows[0], ("prompt+solution",)):
        return rows, []
    return rows, shots.prompts(rows, examples, evaluate.system_prompt)


def _evaluate(name: str, rows: list[dict], prompts: list, evaluate: EvaluateArguments, keys, about, asked) -> None:
    """Put a checkpoint's result into `output_dir`, unless it was already evaluated this way."""
    directory = Path(evaluate.output_dir)
    alike = conditions.identity(asked)
    journal = directory / f".{digest(name)}.journal"
    left = whole.read_lines(journal)[:1]
    at = pins.at_commit(name, left[0].get("at") if left else None)  # what was begun goes on with its commit
    fingerprint = checkpoint.fingerprint(at)
    identity = digest([name, fingerprint, alike, about])
    head = {"checkpoint": name, "at": at, "identity": identity}
    if any(result["identity"] == identity for result in results.results_of(directory)):
        if left == [head]:  # killed at the very end
            results.drop_older_rows(directory, name, identity)
            whole.remove(journal)
        print(f"{name} was already evaluated this way; reusing it from {directory}/results.json.")
        return
    if left and left != [head]:
        print(f"{name} was being evaluated in another way; what it said then is dropped.")
    with Heard(journal, directory, head) as heard:
        measured, said = evaluate_one(at, rows, prompts, evaluate, keys, heard)
        aim = measured["metrics"][about["metric"]]
        which = {
            "stage": _stage(name),
            "checkpoint": name,
            "fingerprint": fingerprint,
            "dataset": asked["data"]["name"],
        }
        which |= {**about, "conditions": alike, "asked": {**asked, "template": conditions.template(at)}}
        which |= {"before": None, "after": aim["value"], "ci95": aim["ci95"], "n": aim["n"]}
        results.collect(directory, {**which, **measured, "identity": identity}, said)
        heard.remove()
    there = results.told_apart(results.results_of(directory))
    print(tables.one_line(next(r for r in there if r["checkpoint"] == name)), flush=True)


def compare(directory: Path, first: str, second: str, problems: int) -> str:
    """What two evaluated models differ in, for people. Raises `ValueError` for one that was not evaluated there, and
    for one evaluation by two names."""
    pair = [results.find(directory, name) for name in (first, second)]
    if len({(place.resolve(), result["identity"]) for place, result in pair}) == 1:
        raise ValueError(f"compare: {first} and {second} are the same evaluation. Name two.")
    said = [results.rows_of(place, result["identity"]) for place, result in pair]
    one, other = (result for _, result in pair)
    if "asked" in one and "asked" in other:
        apart = conditions.differences(one["asked"], other["asked"])
    else:  # an older results.json says whether, and not how
        apart = ["an older evaluation does not say in what"] * (one.get("conditions") != other.get("conditions"))
    warning = "".join(f"\n  {line}" for line in apart)
    try:
        told = comparison.told((first, second), comparison.pair(*said), problems)
    except ValueError as error:
        raise ValueError(f"{error} They differ in:{warning or ' nothing that is noted.'}") from None
    if left := comparison.unjudged(*said):
        told += f"\n{left} more that both answered could not be judged, and do not count"
    if warning:
        told += f"\nwarning: they were not evaluated alike, so read this with care. They differ in:{warning}"
    return told


def _stage(name: str) -> str:
    """What a checkpoint is called: its run, and one on the way by its own name behind that."""
    path = Path(name) if Path(name).name.strip(".") else Path(name).resolve()  # . and .. have no name of their own
    return f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.name


def _purpose(name: str, rows: list[dict], evaluate: EvaluateArguments) -> dict:
    """The goal of a checkpoint's stage, a metric, and the model it started from: None where nobody knows, ""
    for a model from nothing. Raises `ValueError` for a metric that the rows cannot be asked."""
    there = [m for shape, names in MEASURED.items() if columns.shape_of(rows[0], (shape,)) for m in names]
    metric = evaluate.metrics.get(_stage(name).partition("/")[0], there[0])
    if metric not in there:
        raise ValueError(
            f"metrics: the goal of {Path(name).name} is {metric}, which these rows cannot measure. They can: "
            f"{', '.join(there)}."
        )
    told = Path(name) / "run.json"
    made = checkpoint.read_json(told).get("config") if told.is_file() else None
    started = None if made is None else made.get("model_name_or_path", "")
    return {"metric": metric, "started_from": started}


def evaluate_one(name: str, rows: list[dict], prompts: list, evaluate: EvaluateArguments, keys, heard: Heard) -> tuple:
    """(what was measured of one checkpoint on `rows`, one row a completion)."""
    from tqdm import tqdm

    bar = partial(tqdm, leave=False, desc=f"{Path(name).name}: likelihoods")
    tokenizer = run.tokenizer(name)
    measured, said, result = {}, [], {}
    if prompts:
        measured, said = _answered(name, rows, prompts, evaluate, keys, heard, tokenizer)
        result = {"accuracy": measured["accuracy"]["value"], "format": measured["format"]["value"]}
        result |= {"by": judging.by_group(said, rows)}
    measured |= measures.of_rows(name, rows, keys.dtype, bar)
    if "text" in rows[0]:
        result["guessing"] = measures.guessing(tokenizer, [row["text"] for row in rows])
    return {**result, "seconds": heard.seconds, "metrics": measured}, said


def _answered(name, rows, prompts, evaluate, keys, heard, tokenizer) -> tuple[dict, list[dict]]:
    """(metrics, one row a completion) of the answers a checkpoint gives: greedy ones and samples."""
    samples = evaluate.num_generations
    greedy = engine.Sampling(max_new_tokens=evaluate.max_completion_length)
    sampled = replace(greedy, temperature=evaluate.temperature, top_p=evaluate.top_p, seed=evaluate.seed)
    asked = {"greedy": (prompts, greedy), "sampled": ([each for each in prompts for _ in range(samples)], sampled)}
    asking.ask(name, asked, keys, heard)
    opened = run.opens_thinking(tokenizer)
    said = []
    for kind, each in (("greedy", 1), ("sampled", samples)):
        said += judging.score(rows, heard.groups(kind, len(rows), each), kind, opened)
    thinking = metrics.mean(_thinking_tokens(said, rows, tokenizer, opened))
    return {**judging.summarize(said, samples), "thinking": thinking}, said


def _thinking_tokens(said: list[dict], rows: list[dict], tokenizer, think_opened: bool) -> list[int]:
    """How long each greedy answer thinks: where its prompt has opened a think block, from its first token on."""
    greedy = [row for row in said if row["kind"] == "greedy"]
    prompts = [rows[row["row"]]["prompt"] for row in greedy]
    texts = reasoning.texts([row["completion"] for row in greedy], prompts, think_opened)
    return [len(tokenizer(reasoning.thinking(text), add_special_tokens=False)["input_ids"]) for text in texts]
