"""What a problem is asked with beside its own words: another system message, and worked examples before it."""

import random
from collections.abc import Iterable

from suite import cleaning, reasoning
from suite.rewards.wording import gold_answer


def draw(train: Iterable[dict], rows: list[dict], number: int, seed: int) -> dict[str | None, list[dict]]:
    """Subject -> `number` training rows as its examples; with None as the only subject where rows have none.

    The same problems, seed and training rows give the same examples, and one pass over the training rows finds them.
    None of them asks what a row in `rows` asks. Raises `ValueError` where there are too few.
    """
    rng, asked = random.Random(seed), {_question(row) for row in rows}
    subjects = list(dict.fromkeys(_subject(row) for row in rows))
    drawn: dict[str | None, list[dict]] = {subject: [] for subject in subjects}
    seen = dict.fromkeys(subjects, 0)
    for row in train:
        subject = _subject(row)
        if subject not in drawn or _question(row) in asked:
            continue
        seen[subject] += 1
        if len(drawn[subject]) < number:
            drawn[subject].append(row)
        elif (at := rng.randrange(seen[subject])) < number:  # each row so far has the same chance to be among them
            drawn[subject][at] = row
    if short := {subject: len(examples) for subject, examples in drawn.items() if len(examples) < number}:
        raise ValueError(_too_few(number, short))
    return drawn


def _too_few(number: int, short: dict[str | None, int]) -> str:
    """`short` are the subjects that have fewer, with how many each has."""
    subject, there = min(short.items(), key=lambda entry: entry[1])
    about = f" about '{subject}'" if subject is not None else ""
    more = f"; {len(short)} subjects have too few" if len(short) > 1 else ""
    others = " Or ask about another subject: `subset` of `suite prepare` keeps one." if subject is not None else ""
    return (
        f"num_fewshot: {number} examples are asked for, and the training rows have {there}{about} that are no test "
        f"rows{more}. Set it to {there} at most, where 0 shows none.{others}"
    )


def prompts(rows: list[dict], examples: dict[str | None, list[dict]], system_prompt: str | None = None) -> list:
    """What each row is asked with: its system message, the `examples` of its subject as turns, and its own turns.

    A `system_prompt` takes the place of the rows' own; 'none' leaves it out. Raises `ValueError` for one that goes
    with plain texts, which have no messages.
    """
    return [_prompt(row, examples.get(_subject(row), []), system_prompt) for row in rows]


def _prompt(row: dict, examples: list[dict], system_prompt: str | None):
    prompt = row["prompt"]
    if isinstance(prompt, str):
        if system_prompt not in (None, "none"):
            raise ValueError("system_prompt: the prompts of these rows are plain texts, which have no system message.")
        return "".join(f"{shown['prompt']}{_answer(shown)}\n\n" for shown in examples) + prompt
    own, asked = ([m for m in prompt if (m["role"] == "system") is whether] for whether in (True, False))
    if system_prompt is not None:
        own = [] if system_prompt == "none" else [{"role": "system", "content": system_prompt}]
    turns = [turn for shown in examples for turn in (*_asked(shown), *_answer_turns(shown))]
    return [*own, *turns, *asked]


def _asked(row: dict) -> list[dict]:
    return [message for message in row["prompt"] if message["role"] != "system"]


def _answer_turns(row: dict) -> list[dict]:
    if isinstance(row.get("completion"), list):
        return row["completion"]
    return [{"role": "assistant", "content": _answer(row)}]


def _answer(row: dict) -> str:
    """The worked answer of an example; where it has none, its gold inside the tags in which an answer is looked for."""
    if row.get("completion"):
        return row["completion"]
    gold = gold_answer(row["solution"]) or str(row["solution"])
    if row.get("tests") is not None:
        gold = f"```python\n{row['solution']}\n```"
    return f"{reasoning.TAGS[2]}{gold}{reasoning.TAGS[3]}"


def _subject(row: dict) -> str | None:
    return row.get("subject")


def _question(row: dict) -> str:
    return " ".join(cleaning.asked(row).split()).casefold()
