"""Checkpoints answer prompts they never saw, and the very reward that trains says how well, with intervals.

    suite evaluate --checkpoints runs/sft runs/grpo --dataset_name data/gsm8k --output_dir runs/compare

`output_dir` collects: results.json holds one object a checkpoint, in the order they were first evaluated, and
rows.jsonl one line a completion. A checkpoint that was evaluated the same way before is reused.
"""

import hashlib
import json
import os
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from suite import args, checkpoint, columns, engine, metrics, record, rewards, run, source


@dataclass
class EvaluateArguments:
    checkpoints: list[str] = field(metadata={"help": "Checkpoint directories or models on the Hub."})
    output_dir: str = field(default="runs/evaluate", metadata={"help": "Where results.json and rows.jsonl go."})
    max_rows: int | None = field(default=None, metadata={"help": "Take only the first rows of the test split."})
    max_completion_length: int = field(default=512, metadata={"help": "Longest completion, in tokens."})
    num_generations: int = field(default=4, metadata={"help": "Samples a prompt for pass@k; 0 for greedy only."})
    temperature: float = field(default=1.0, metadata={"help": "Of the samples; the greedy pass has none."})
    top_p: float = field(default=1.0, metadata={"help": "Of the samples."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})

    def __post_init__(self):
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise ValueError(f"checkpoints names one twice: {', '.join(self.checkpoints)}.")
        for key, least in (("num_generations", 0), ("max_completion_length", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least {least}.")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows: {self.max_rows} must be at least 1.")
        if self.num_generations > 0 and self.temperature <= 0:
            raise ValueError("temperature: samples need one above 0; set num_generations: 0 for greedy only.")


def arguments() -> tuple[type, ...]:
    from trl import DatasetMixtureConfig, ScriptArguments

    return EvaluateArguments, engine.EngineArguments, ScriptArguments, DatasetMixtureConfig


def main(argv=None) -> None:
    evaluate, keys, script, mixture, _ = args.parse(arguments(), argv, needs_config=False)
    if keys.use_vllm:
        engine.require_vllm("use_vllm: true")
    for name in evaluate.checkpoints:
        checkpoint.check_whole(name)
    script.dataset_train_split = script.dataset_test_split  # only the test rows are read
    rows = list(source.rows(script, mixture, ("prompt+solution",))[0])[: evaluate.max_rows]
    directory = Path(evaluate.output_dir)
    for name in evaluate.checkpoints:
        how = {k: v for k, v in asdict(evaluate).items() if k not in ("checkpoints", "output_dir")} | asdict(keys)
        identity = _identity(name, rows, how)
        if any(result["identity"] == identity for result in _results(directory)):
            print(f"{name} was evaluated in this very way before; reusing it from {directory}/results.json.")
            continue
        result, said = evaluate_one(name, rows, evaluate, keys)
        _collect(directory, {"stage": Path(name).name, "checkpoint": name, **result, "identity": identity}, said)
        print(record.one_line({"stage": Path(name).name, **result}), flush=True)
    print(record.results_table(_results(directory)))


def _identity(name: str, rows: list[dict], how: dict) -> str:
    parts = [name, checkpoint.fingerprint(name), json.dumps(rows, sort_keys=True, default=str), how]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _results(directory: Path) -> list[dict]:
    path = directory / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def evaluate_one(
    name: str, rows: list[dict], evaluate: EvaluateArguments, keys: engine.EngineArguments
) -> tuple[dict, list[dict]]:
    """(the result object, one row a completion) of one checkpoint on `rows`."""
    from tqdm import tqdm

    begun = time.monotonic()
    model = engine.load_as_asked(name, keys)
    prompts = [row["prompt"] for row in rows]
    bar = partial(tqdm, leave=False)
    sampled = [[] for _ in rows]
    with closing(model):
        greedy = model.complete(
            prompts,
            engine.Sampling(max_new_tokens=evaluate.max_completion_length),
            partial(bar, desc=f"{Path(name).name}: greedy"),
        )
        if evaluate.num_generations:
            sampling = engine.Sampling(
                max_new_tokens=evaluate.max_completion_length,
                temperature=evaluate.temperature,
                top_p=evaluate.top_p,
                n=evaluate.num_generations,
                seed=evaluate.seed,
            )
            sampled = model.complete(prompts, sampling, partial(bar, desc=f"{Path(name).name}: sampled"))
    opened = run.opens_thinking(model.tokenizer)
    said = score(rows, greedy, "greedy", opened) + score(rows, sampled, "sampled", opened)
    measured = summarize(said, evaluate.num_generations)
    return {
        "accuracy": measured["accuracy"]["value"],
        "ci95": measured["accuracy"]["ci95"],
        "format": measured["format"]["value"],
        "n": measured["accuracy"]["n"],
        "seconds": round(time.monotonic() - begun, 2),
        "metrics": measured,
    }, said


def score(
    rows: list[dict], completions: list[list[engine.Completion]], kind: str, think_opened: bool = False
) -> list[dict]:
    """One row a completion: what was asked, what was said, and what each reading of it earns."""
    readings = {
        "accuracy": rewards.load("accuracy", think_opened=think_opened),
        "strict": rewards.load("accuracy", {"reading": "tags"}, think_opened=think_opened),
        "lenient": rewards.load("accuracy", {"reading": "lenient"}, think_opened=think_opened),
        "format": rewards.load("format", think_opened=think_opened),
    }
    flat = [(number, row, c) for number, (row, group) in enumerate(zip(rows, completions, strict=True)) for c in group]
    texts = [c.text for _, _, c in flat]
    columns_there = [name for name in rows[0] if name not in ("prompt", "completion")]
    given = {name: [row.get(name) for _, row, _ in flat] for name in columns_there}
    given["prompts"] = [row["prompt"] for _, row, _ in flat]
    extra: dict[str, list] = {}
    scores = {name: reward(texts, **given) for name, reward in readings.items() if name != "accuracy"}
    scores["accuracy"] = readings["accuracy"](texts, **given, log_extra=extra.__setitem__)
    return [
        {
            "row": number,
            "kind": kind,
            "prompt": columns.text_of([m for m in row["prompt"] if m["role"] != "system"])
            if not isinstance(row["prompt"], str)
            else row["prompt"],
            "solution": row["solution"],
            "completion": c.text,
            "answer": extra["answer"][i],
            "judged_by": extra["judged_by"][i],
            "tokens": c.tokens,
            "finished": c.finished,
            **{name: values[i] for name, values in scores.items()},
        }
        for i, (number, row, c) in enumerate(flat)
    ]


def summarize(said: list[dict], samples: int) -> dict:
    """Metric -> value, ci95 and n. Those of the samples are per problem, so that n counts problems, not samples."""
    greedy = [row for row in said if row["kind"] == "greedy"]
    measured = {name: metrics.rate([r[name] for r in greedy]) for name in ("accuracy", "strict", "lenient", "format")}
    unjudged = ("timeout", "crash", "refused", "unreadable gold")
    measured["unjudged"] = metrics.rate([float(r["judged_by"] in unjudged) for r in greedy])
    measured["truncated"] = metrics.rate([float(not r["finished"]) for r in greedy])
    measured["tokens"] = metrics.mean([r["tokens"] for r in greedy])
    if samples:
        groups: dict[int, list[float]] = {}
        for r in said:
            if r["kind"] == "sampled" and r["accuracy"] is not None:
                groups.setdefault(r["row"], []).append(r["accuracy"])
        right = [sum(score >= 1.0 for score in group) for group in groups.values()]
        measured["sampled"] = metrics.mean([sum(group) / len(group) for group in groups.values()])
        for k in sorted({samples} | {2**i for i in range(1, 10) if 2**i < samples} - {1}):
            measured[f"pass@{k}"] = metrics.mean([metrics.pass_at(k, samples, r) for r in right])
    return measured


def _collect(directory: Path, result: dict, said: list[dict]) -> None:
    """Put a checkpoint's result and rows in the place of its older ones, or behind the others; whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    name = result["checkpoint"]
    results = _results(directory)
    at = next((i for i, r in enumerate(results) if r["checkpoint"] == name), len(results))
    path = directory / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n") if path.is_file() else []
    kept = [line for line in lines if json.loads(line)["checkpoint"] != name]
    new = [json.dumps({"checkpoint": name, "stage": result["stage"], **row}, ensure_ascii=False) for row in said]
    partial_file = directory / ".rows.jsonl.partial"
    partial_file.write_text("".join(f"{line}\n" for line in [*kept, *new]), encoding="utf-8")
    os.replace(partial_file, path)
    checkpoint.write_json(directory / "results.json", [*results[:at], result, *results[at + 1 :]])
