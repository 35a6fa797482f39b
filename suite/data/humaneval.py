"""HumanEval: 164 Python functions to write from their docstrings, each judged by running its tests in the sandbox."""

from collections.abc import Iterator

from suite.data import reading

BENCHMARK = True
DEFAULTS = {"drop_duplicates": False}
_ASKED = (
    "Complete this Python function. Answer with the whole function, and the imports it needs, in one ```python block."
    "\n\n```python\n{}\n```"
)


def load(split: str, *, source: str = "openai/openai_humaneval") -> Iterator[dict]:
    """Rows with the columns prompt, solution (the whole function), tests, starter_code (the program as the prompt
    begins it, which an answer may repeat or go on with) and task_id, from `prompt`, `canonical_solution`, `test` and
    `entry_point`.

    `source` may be the official HumanEval.jsonl.gz of https://github.com/openai/human-eval.
    """
    for place, row in reading.benchmark(split, source):
        given = str(reading.value(row, place, "prompt"))
        tests = str(reading.value(row, place, "test")).strip()
        yield {
            "prompt": [{"role": "user", "content": _ASKED.format(given.strip())}],
            "solution": given + str(reading.value(row, place, "canonical_solution")),
            "tests": f"{tests}\n\ncheck({reading.text(row, place, 'entry_point')})\n",
            "starter_code": given,
            "task_id": reading.text(row, place, "task_id"),
        }
