"""What a straight run and a resumed one left, compared: weights, optimizer, what was in memory, and what was logged."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

# What a clock says is another thing each time.
CLOCKS = ("runtime", "per_second", "step_time", "time", "total_flos")


def cut_off(straight: Path, step: int, target: Path) -> Path:
    """A run directory as a kill leaves it behind the checkpoint of `step`."""
    target.mkdir(parents=True)
    shutil.copytree(straight / f"checkpoint-{step}", target / f"checkpoint-{step}")
    record = json.loads((straight / "run.json").read_text(encoding="utf-8"))
    begun = {key: value for key, value in record.items() if key not in ("finished", "seconds", "steps")}
    (target / "run.json").write_text(json.dumps(begun), encoding="utf-8")
    return target


def difference(one: Path, other: Path, step: int) -> float:
    """The largest difference between two runs: in weights, in the checkpoint of `step` and in what was logged.

    Infinite where one has what the other has not.
    """
    return max(differences(one, other, step).values())


def differences(one: Path, other: Path, step: int) -> dict[str, float]:
    """The largest difference between two runs, by where it lies."""
    found = {"weights": _between(_weights(one), _weights(other)), "log": _between(logged(one), logged(other))}
    first, second = one / f"checkpoint-{step}", other / f"checkpoint-{step}"
    names = _states(first)
    assert names and names == _states(second), (names, _states(second))
    return found | {name: _between(_read(first / name), _read(second / name)) for name in names}


def _states(checkpoint: Path) -> list[str]:
    """Optimizer, random numbers and what was in memory, in the pieces that an engine makes of them."""
    there = (p for p in checkpoint.rglob("*") if p.suffix in (".pt", ".pth", ".bin") and p.name != "training_args.bin")
    return sorted(str(path.relative_to(checkpoint)) for path in there)


def logged(run: Path) -> list[dict]:
    """Every entry of a run's log, without what a clock says."""
    return _without_clocks(json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"])


def _weights(run: Path) -> dict:
    found = {}
    for path in sorted(run.glob("*.safetensors")):
        found |= load_file(path)
    assert found, f"{run} holds no weights"
    return found


def _read(path: Path):
    # Random numbers of Python and numpy, and DeepSpeed's own classes, are more than weights; the test has made them.
    return _without_clocks(torch.load(path, weights_only=False, map_location="cpu"))


def _without_clocks(value):
    if isinstance(value, dict):
        return {k: _without_clocks(v) for k, v in value.items() if not str(k).endswith(CLOCKS)}
    return [_without_clocks(entry) for entry in value] if isinstance(value, list | tuple) else value


def _between(one, other) -> float:
    """The largest difference in two nested structures; infinite where they have not the same shape or words."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return _between(one.tolist(), other.tolist())
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return math.inf
        if torch.equal(one, other) or one.numel() == 0:
            return 0.0
        return (one.double() - other.double()).abs().nan_to_num(math.inf).max().item()
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return math.inf
        return max((_between(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list):
        if not isinstance(other, list) or len(one) != len(other):
            return math.inf
        return max((_between(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if hasattr(one, "__dict__") and type(one) is type(other):  # DeepSpeed's loss scaler
        return _between(vars(one), vars(other))
    if one == other or (isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)):
        return 0.0
    return abs(one - other) if isinstance(one, float) and isinstance(other, int | float) else math.inf
