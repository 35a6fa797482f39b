"""What this machine has, and what a run must say otherwise to fit on it: the cards that Colab lends, or none.

The configs under configs/qwen2.5-*/ are sized for the GPU that their header names, most of them for one of 24 GB.
`fitted` makes one fit another card; nothing here loads torch, and no memory of a card is taken by asking for it.
"""

import os
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from suite import args

SIZED_FOR = 24  # GB of the GPU in the headers of the configs
BF16_SINCE = 8.0  # compute capability: Ampere
# A card counts as the largest of these that it is not smaller than by more than a tenth; a smaller one as the first.
GIGABYTES = {"T4": 16, "L4": 24, "A100": 42}
ON_CPU = {"batch": 4, "step": 8}  # sequences at a time, and in an optimizer step: one group of GRPO's
_ASKED = "index,uuid,name,memory.total,compute_cap"


@dataclass(frozen=True)
class Machine:
    """The GPU that a run will find first, by the name its driver has for it; without one, the CPU."""

    name: str
    mebibytes: int = 0
    capability: float = 0.0

    @property
    def has_gpu(self) -> bool:
        return self.mebibytes > 0

    @property
    def gigabytes(self) -> float:
        """Of the card's memory, as its maker counts: 10^9 bytes."""
        return self.mebibytes * 2**20 / 1e9

    @property
    def bf16(self) -> bool:
        """Whether it computes in bfloat16. A T4 does not."""
        return self.has_gpu and self.capability >= BF16_SINCE

    @property
    def dtype(self) -> str:
        """The type in which weights that are only read take the least room and time."""
        return "bfloat16" if self.bf16 else "float16" if self.has_gpu else "float32"

    @property
    def like(self) -> str:
        """Which of the cards that Colab lends it is most like in size: none, T4, L4 or A100."""
        if not self.has_gpu:
            return "none"
        return [n for n, size in GIGABYTES.items() if self.gigabytes > 0.9 * size or n == "T4"][-1]

    def pick(self, *, none, T4, L4, A100):  # noqa: N803 (they are called so)
        """The one of four values that goes with this machine."""
        return {"none": none, "T4": T4, "L4": L4, "A100": A100}[self.like]

    def told(self) -> str:
        """One line for people."""
        if not self.has_gpu:
            return f"{self.name}: float32, and small enough to see that everything works"
        what = "bfloat16" if self.bf16 else "float16, for it has no bfloat16"
        return f"{self.name}, {self.mebibytes / 1024:.0f} GiB: {what}"


def look() -> Machine:
    """The machine this process runs on: the first GPU that CUDA would show it, as nvidia-smi tells of it."""
    try:
        command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):  # no driver, or one that does not answer
        told = ""
    return read(told, os.environ.get("CUDA_VISIBLE_DEVICES"))


def read(told: str, visible: str | None = None) -> Machine:
    """The machine of nvidia-smi's lines (`index, uuid, name, MiB, capability`), where `visible` may choose or hide."""
    cards = {}
    for line in told.splitlines():
        index, *rest = (part.strip() for part in line.split(","))
        if len(rest) == 4 and rest[2].isdigit() and rest[3].replace(".", "").isdigit():
            uuid, name, mebibytes, capability = rest
            cards[index] = cards[uuid] = Machine(name, int(mebibytes), float(capability))
    first = next(iter(cards), None) if visible is None else visible.split(",")[0].strip()
    return cards.get(first) or Machine("no GPU")


def fitted(config: str | Path, here: Machine) -> dict:
    """The keys that a training config for one GPU of 24 GB must say otherwise on this machine: precision and batch.

    An optimizer step keeps its size on any GPU: where less fits at a time, more is accumulated. What does not hang on
    the batch (weights, optimizer, vLLM's share) must fit by itself. On a CPU the steps are small ones.
    """
    written = args.read_yaml(config)
    at_a_time, accumulated = written["per_device_train_batch_size"], written.get("gradient_accumulation_steps", 1)
    step = at_a_time * accumulated
    keys: dict = {"dtype": here.dtype} if written.get("dtype", here.dtype) != here.dtype else {}
    if not here.has_gpu:
        at_a_time, step = ON_CPU["batch"], ON_CPU["step"]
        keys |= {"use_cpu": True, "bf16": False}
    else:
        room = max(1.0, at_a_time * here.gigabytes / SIZED_FOR)
        at_a_time = max(n for n in range(1, step + 1) if step % n == 0 and n <= room)
        keys |= {} if here.bf16 else {"bf16": False, "fp16": True}
    return {**keys, "per_device_train_batch_size": at_a_time, "gradient_accumulation_steps": step // at_a_time}


def has_vllm() -> bool:
    return find_spec("vllm") is not None


def asking(here: Machine) -> dict:
    """The keys of a command that only asks a model. On a CPU vLLM takes longer to start than a few answers take."""
    return {"use_vllm": here.has_gpu and has_vllm(), "dtype": here.dtype}


def words(keys: dict) -> str:
    """Keys as they stand on the command line."""
    told = {key: str(value).lower() if isinstance(value, bool) else value for key, value in keys.items()}
    return " ".join(f"--{key} {value}" for key, value in told.items())
