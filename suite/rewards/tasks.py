"""reasoning-gym's own scorers. Some evaluate what the model wrote, so only `suite.rewards.worker` calls them."""

import json

import reasoning_gym
from reasoning_gym.factory import DATASETS


def score(name: str, entry: str, answer: str) -> float:
    """The score, from 0 to 1, that the task `name` gives an answer to its `entry` (JSON). Unknown tasks raise."""
    assert name in DATASETS, name
    given = float(reasoning_gym.get_score_answer_fn(name)(answer=answer, entry=json.loads(entry)))
    # Most scorers give a crumb (0.01 to 0.05) for any answer at all; an answer is not accuracy.
    return given if given >= 0.1 else 0.0
