"""A reward weight that moves during the run."""

from transformers import TrainerCallback


class RewardSchedule(TrainerCallback):
    """Moves weights of `GRPOTrainer.reward_weights` in a straight line between two steps, and logs them.

    A weight that is scheduled takes the place of its `reward_weights` entry. The rewards themselves are not touched:
    TRL logs them raw, as `rewards/<name>/mean`, and applies the weights to their sum, `reward`.
    """

    def __init__(self, trainer, reward_funcs: list[str], schedule: dict[str, dict]):
        self.trainer = trainer
        self.schedule = {name: (reward_funcs.index(name), way) for name, way in schedule.items()}

    def on_train_begin(self, args, state, control, **kwargs):  # an evaluation may come before the first step
        self._set(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        for name, weight in self._set(state.global_step).items():
            # Where a reward's `log_metric` puts its numbers; put anew, since not every step generates and takes them.
            self.trainer._pending_metrics[f"reward_weights/{name}"] = [weight]

    def _set(self, step: int) -> dict[str, float]:
        weights = {name: weight_at(step, way) for name, (_, way) in self.schedule.items()}
        for name, (index, _) in self.schedule.items():
            self.trainer.reward_weights[index] = weights[name]
        return weights


def weight_at(step: int, way: dict) -> float:
    """`from` until step `start`, `to` from step `end` on, and a straight line between."""
    share = (step - way["start"]) / (way["end"] - way["start"])
    return way["from"] + (way["to"] - way["from"]) * min(1.0, max(0.0, share))
