"""reasoning-gym's own scorers. Some evaluate what the model wrote, so only `suite.rewards.worker` calls them."""

import json

import reasoning_gym
from reasoning_gym.factory import DATASETS


def score(name: str, entry: str, answer: str) -> float | str:
    """The score, from 0 to 1, that the task `name` gives an answer to its `entry` (JSON); 'unreadable' for a row whose
    task or entry is none."""
    try:
        asked = json.loads(entry)
    except ValueError:
        return "unreadable"
    if name not in DATASETS or not isinstance(asked, dict) or not {"question", "answer"} <= asked.keys():
        return "unreadable"
    given = float(reasoning_gym.get_score_answer_fn(name)(answer=answer, entry=asked))
    # Most scorers give a crumb (0.01 to 0.05) for any answer at all; an answer is not accuracy.
    return given if given >= 0.1 else 0.0
