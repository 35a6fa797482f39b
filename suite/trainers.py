"""What TRL's trainers lack: a reward weight that moves during the run."""

from transformers import TrainerCallback


class RewardSchedule(TrainerCallback):
    """Moves weights of `GRPOTrainer.reward_weights` in a straight line between two steps, and logs them.

    The rewards themselves are not touched: TRL logs them raw, as `rewards/<name>/mean`, and applies the weights to
    their sum, `reward`.
    """

    def __init__(self, trainer, reward_funcs: list[str], schedule: dict[str, dict]):
        self.trainer = trainer
        self.schedule = {name: (reward_funcs.index(name), way) for name, way in schedule.items()}

    def on_step_begin(self, args, state, control, **kwargs):
        for name, (index, way) in self.schedule.items():
            weight = weight_at(state.global_step, way)
            self.trainer.reward_weights[index] = weight
            # What a reward function calls as `log_metric`: averaged over the logging interval, with the other metrics.
            self.trainer._log_metric(f"reward_weights/{name}", weight)


def weight_at(step: int, way: dict) -> float:
    """`from` until step `start`, `to` from step `end` on, and a straight line between."""
    share = (step - way["start"]) / (way["end"] - way["start"])
    return way["from"] + (way["to"] - way["from"]) * min(1.0, max(0.0, share))
