"""Completions to verdicts, and verdicts to numbers: what `suite evaluate` and a run that evaluates itself both ask."""

from suite import columns, engine, metrics, rewards


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
