"""Completions to verdicts, and verdicts to numbers: what `suite evaluate` and a run that evaluates itself both ask."""

from suite import columns, metrics, reasoning, rewards
from suite.engine import Completion
from suite.rewards import code, numbers, wording

UNJUDGED = ("timeout", "crash", "refused", "unreadable gold")
GOLD = ("the gold answer",)  # a vote that no text can be
GROUPS = ("subject", "level")  # columns by whose values the accuracy is told
MOST_GROUPS = 100  # a column of more values than that is no subject
_LONGEST_VOTE = 500  # characters; more is no answer that two samples share in other words


def score(rows: list[dict], completions: list[list[Completion]], kind: str, think_opened: bool = False) -> list[dict]:
    """One row a completion: what was asked, what was said, and what each reading of it earns.

    A row with `tests` is judged by running its program, and any other by `accuracy`. Strict, an answer counts only
    inside <answer>; lenient, any last answer of a text does, and a program wherever it stands anyway.
    """
    flat = [(number, row, c) for number, (row, group) in enumerate(zip(rows, completions, strict=True)) for c in group]
    texts, prompts = [c.text for _, _, c in flat], [row["prompt"] for _, row, _ in flat]
    run = [i for i, (_, row, _) in enumerate(flat) if row.get("tests") is not None]
    read = sorted(set(range(len(flat))) - set(run))
    scored: dict[int, dict] = {}
    for judge, which in ((_by_running, run), (_by_reading, read)):
        if which:
            part = [flat[i][1] for i in which]
            found = judge(part, [texts[i] for i in which], [prompts[i] for i in which], think_opened)
            scored |= dict(zip(which, found, strict=True))
    forms = rewards.load("format", think_opened=think_opened)(texts, prompts=prompts)
    return [
        {
            "row": number,
            "kind": kind,
            "prompt": _asked(row["prompt"]),
            "solution": row["solution"],
            "completion": c.text,
            "tokens": c.tokens,
            "finished": c.finished,
            **scored[i],
            "format": forms[i],
        }
        for i, (number, row, c) in enumerate(flat)
    ]


def _asked(prompt) -> str:
    return prompt if isinstance(prompt, str) else columns.text_of([m for m in prompt if m["role"] != "system"])


def _by_reading(rows: list[dict], texts: list[str], prompts: list, think_opened: bool) -> list[dict]:
    names = [name for name in rows[0] if name not in ("prompt", "completion")]
    given = {name: [row.get(name) for row in rows] for name in names} | {"prompts": prompts}
    extra: dict[str, list] = {}
    scores = {}
    for name, reading in (("accuracy", {}), ("strict", {"reading": "tags"}), ("lenient", {"reading": "lenient"})):
        reward = rewards.load("accuracy", reading, think_opened=think_opened)
        scores[name] = reward(texts, **given, **({"log_extra": extra.__setitem__} if name == "accuracy" else {}))
    return [
        {
            "answer": extra["answer"][i],
            "judge": "accuracy",
            "judged_by": extra["judged_by"][i],
            **{n: v[i] for n, v in scores.items()},
        }
        for i in range(len(rows))
    ]


def _by_running(rows: list[dict], texts: list[str], prompts: list, think_opened: bool) -> list[dict]:
    texts = reasoning.texts(texts, prompts, think_opened)
    judged = code.judge(texts, [row["tests"] for row in rows], [row.get("starter_code") for row in rows])
    tagged = [reasoning.last_tagged(reasoning.spoken(text)) is not None for text in texts]
    return [
        {
            "answer": verdict.program or "",
            "judge": "code",
            "judged_by": verdict.by,
            "accuracy": verdict.share,
            "strict": verdict.share if in_tags or verdict.share is None else 0.0,
            "lenient": verdict.share,
        }
        for verdict, in_tags in zip(judged, tagged, strict=True)
    ]


def summarize(said: list[dict], samples: int) -> dict:
    """Metric -> value, ci95 and n. Those of the samples are per problem, so that n counts problems, not samples."""
    greedy = [row for row in said if row["kind"] == "greedy"]
    measured = {name: metrics.rate([r[name] for r in greedy]) for name in ("accuracy", "strict", "lenient", "format")}
    measured["unjudged"] = metrics.rate([float(_is_unjudged(r)) for r in greedy])
    measured["truncated"] = metrics.rate([float(not r["finished"]) for r in greedy])
    measured["tokens"] = metrics.mean([r["tokens"] for r in greedy])
    return measured | (_of_samples(said, samples) if samples else {})


def _is_unjudged(row: dict) -> bool:
    """A program that loops for ever or crashes has failed its tests; a comparison that does so tells nothing."""
    return row["accuracy"] is None if row["judge"] == "code" else row["judged_by"] in UNJUDGED


def _of_samples(said: list[dict], samples: int) -> dict:
    """The mean reward of the samples, pass@k and maj@k; a problem that was not judged in all of them does not count."""
    groups: dict[int, list[dict]] = {}
    for row in said:
        if row["kind"] == "sampled":
            groups.setdefault(row["row"], []).append(row)
    judged = [group for group in groups.values() if all(row["accuracy"] is not None for row in group)]
    right = [sum(row["accuracy"] >= 1.0 for row in group) for group in judged]
    sizes = sorted({1, samples} | {2**i for i in range(1, 10) if 2**i < samples})
    measured = {"sampled": metrics.share([sum(r["accuracy"] for r in group) / len(group) for group in judged], samples)}
    for k in sizes:
        measured[f"pass@{k}"] = metrics.share([metrics.pass_at(k, samples, n) for n in right], samples // k)
    if not any(row["judge"] == "code" for group in groups.values() for row in group):  # no two programs are the same
        ballots = [list(map(vote, group)) for group in judged]
        winners = [
            {v for v, row in zip(ballot, group, strict=True) if row["accuracy"] >= 1.0}
            for ballot, group in zip(ballots, judged, strict=True)
        ]
        for k in (k for k in sizes if k > 2):  # two can only agree, or toss a coin
            shares = [metrics.maj_at(k, ballot, won) for ballot, won in zip(ballots, winners, strict=True)]
            measured[f"maj@{k}"] = metrics.share(shares, samples // k)
    return measured


def vote(row: dict):
    """What a judged completion votes for: the same for all that mean the same answer, None for no answer.

    All that the verifier found equal to the gold are one answer. A wrong one is known by its exact value, where it is
    a number, or by its text without case and spacing; so is one that reasoning-gym found right, for its tasks have
    several right answers.
    """
    answer = row["answer"]
    if not answer.strip():
        return None
    if row["accuracy"] >= 1.0 and row["judged_by"] != "task":
        return GOLD
    if len(answer) > _LONGEST_VOTE:
        return answer
    said = wording.unwrap(answer)
    return numbers.quantity(said) or wording.normal(said)


def by_group(said: list[dict], rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Column -> each of its values -> the greedy accuracy there, where rows have a `subject` or a `level`."""
    found: dict[str, dict[str, dict]] = {}
    for column in GROUPS:
        groups: dict[str, list] = {}
        for row in said:
            if row["kind"] == "greedy" and rows[row["row"]].get(column) is not None:
                groups.setdefault(str(rows[row["row"]][column]), []).append(row["accuracy"])
        if 1 < len(groups) <= MOST_GROUPS:
            found[column] = {value: metrics.rate(groups[value]) for value in sorted(groups)}
    return found
