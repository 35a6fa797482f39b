"""What the rewards of a run give to completions made up from the gold answers: a trial without any model."""

import inspect
import statistics
from collections.abc import Callable, Sequence

from suite import reasoning
from suite.rewards.verify import gold_answer, judge

# Case -> what it is. All of one row are one group, as if a model had said them to the same prompt.
CASES = {
    "gold": "well-formed, with the row's own gold answer",
    "other": "well-formed, with another row's gold answer",
    "empty": "nothing",
    "cut off": "the first half of the gold completion",
    "format only": "well-formed, and no answer to the question",
    "doubled": "the gold completion, and behind it the other one: two answers",
}
THINKING = "First, I read the question.\nThen, I work it out step by step.\nFinally, I check the result."


def gold_completion(row: dict) -> str:
    """A well-formed completion with the row's gold answer; for rows with `tests`, with its program."""
    if row.get("tests") is None:
        return reasoning.write(THINKING, gold_answer(row["solution"]) or "")
    program = str(row["solution"])
    return reasoning.write(THINKING, program if "```" in program else f"```python\n{program}\n```")


def others(rows: Sequence[dict]) -> list[int]:
    """For each row, the number of another one whose gold answer is a different one.

    Raises `ValueError` where some row has none: nothing can be shown with golds that are all alike.
    """
    golds = [str(row["solution"]) if row.get("tests") is not None else gold_answer(row["solution"]) for row in rows]
    first: dict[str, int] = {}
    for i, gold in enumerate(golds):
        if gold is not None:
            first.setdefault(gold, i)
    if not first:
        raise ValueError("Not one of the gold answers can be read.")
    different = list(first.values())
    found: dict[int, int] = {}
    for step in range(1, min(len(different), 20) + 1):
        pairs = [(i, different[(i + step) % len(different)]) for i in range(len(rows)) if i not in found]
        verdicts = judge([golds[j] for _, j in pairs], [golds[i] for i, _ in pairs])
        found |= {i: j for (i, j), v in zip(pairs, verdicts, strict=True) if golds[i] != golds[j] and not v.right}
    missing = next((i for i in range(len(rows)) if i not in found), None)
    if missing is not None:
        raise ValueError(f"Row {missing + 1} (gold {golds[missing]!r}) has no other row with another gold answer.")
    return [found[i] for i in range(len(rows))]


def completions(rows: Sequence[dict], think_opened: bool = False) -> list[dict[str, str]]:
    """Case -> completion, for each row; without the <think> that its prompt has opened."""
    golds = [gold_completion(row) for row in rows]
    found = []
    for row, gold, other in zip(rows, golds, others(rows), strict=True):
        said = {
            "gold": gold,
            "other": golds[other],
            "empty": "",
            "cut off": gold[: len(gold) // 2],
            "format only": reasoning.write(THINKING, "I do not know."),
            "doubled": f"{gold}\n{golds[other]}",
        }
        opened = reasoning.opens_thinking(row.get("prompt", ""), think_opened)
        found.append({case: text.removeprefix("<think>") if opened else text for case, text in said.items()})
    return found


def is_about_correctness(reward: Callable) -> bool:
    """Whether a reward says right or wrong, and nothing about length: it reads the gold and counts no tokens."""
    names = inspect.signature(reward).parameters
    return ("solution" in names or "tests" in names) and "completion_ids" not in names


def weighted(scores: dict[str, Sequence[float | None]], weights: dict[str, float]) -> list[float]:
    """The sum GRPO learns from, a number a completion: weights times rewards, what could not be judged left out."""
    sums = zip(*scores.values(), strict=True)
    return [sum(weights[n] * v for n, v in zip(scores, values, strict=True) if v is not None) for values in sums]


def by_case(values: Sequence[float | None]) -> dict[str, list]:
    """Scores in the order of rows and cases -> case -> one score a row."""
    return {case: list(values[at :: len(CASES)]) for at, case in enumerate(CASES)}


def spread(values: Sequence[float | None]) -> float:
    """The mean standard deviation inside a row's group: 0 leaves GRPO nothing to learn."""
    groups = [values[i : i + len(CASES)] for i in range(0, len(values), len(CASES))]
    return statistics.fmean(statistics.pstdev([v for v in group if v is not None] or [0.0]) for group in groups)


def failures(name: str, values: Sequence[float | None], wants_one: bool) -> list[str]:
    """What is wrong with a reward, or with the weighted sum, in words: nothing where gold is ahead in every row."""
    cases = by_case(values)
    unjudged = [i for i, value in enumerate(cases["gold"]) if value is None]
    if unjudged:
        return [f"{name} gives None to the gold answer of {_rows(unjudged)}: it cannot be read"]
    low = [i for i, value in enumerate(cases["gold"]) if wants_one and value != 1.0]
    found = [f"{name} gives {cases['gold'][low[0]]:.3g} and not 1 to the gold answer of {_rows(low)}"] if low else []
    # None is no less than 1: a reward that leaves wrong answers out teaches nothing about them.
    ties = {
        case: [i for i, (g, v) in enumerate(zip(cases["gold"], cases[case], strict=True)) if v is None or v >= g]
        for case in list(CASES)[1:]
    }
    given = {case: cases[case][rows[0]] for case, rows in ties.items() if rows}
    ahead = [f"'{case}' {v if v is None else f'{v:.3g}'} in {_rows(ties[case])}" for case, v in given.items()]
    return [*found, f"{name} gives no less than gold to {', '.join(ahead)}"] if ahead else found


def _rows(numbers: list[int]) -> str:
    return f"row {numbers[0] + 1}" + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
