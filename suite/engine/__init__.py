"""Prompts in, completions out: one interface over transformers, vLLM and, in `suite.endpoint`, a model behind HTTP.

Here is what all of them share: what is asked and what comes back, how a checkpoint is loaded, which tokens a prompt is
and which ones end an answer. Each kind of engine is a file beside this one, and is imported only when it is asked for.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suite import checkpoint, look, turns
from suite.engine.vllm_setup import require_vllm, require_window, shares_of_machine


@dataclass(frozen=True)
class Completion:
    """What a model said. `tokens` counts the stop token; `finished` is False where the length limit cut it off.

    No token at all means that the model was not to be asked: an endpoint has refused the request.
    """

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How to sample. Temperature 0 is greedy, and then one sample a prompt is all there is."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:  # nan is neither
            raise ValueError(f"temperature: {self.temperature} must be at least 0 (greedy), and finite.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p} must be above 0 and at most 1.")


@dataclass
class EngineArguments:
    """How a command that only asks a model loads it."""

    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Completions at a time, with transformers."})
    dtype: str = field(default="auto", metadata={"help": "The type in which the weights are loaded."})
    use_vllm: bool = field(default=False, metadata={"help": "Generate with vLLM instead of transformers."})
    vllm_max_model_length: int | None = field(default=None, metadata={"help": "vLLM's context window, in tokens."})
    vllm_gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of the GPU that vLLM takes."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share one model."})
    vllm_data_parallel_size: int = field(
        default=1,
        metadata={"help": "Replicas of the model that share the prompts, each on vllm_tensor_parallel_size GPUs."},
    )

    def __post_init__(self):
        sizes = ("per_device_eval_batch_size", "vllm_tensor_parallel_size", "vllm_data_parallel_size")
        for key in sizes:
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1.")
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            raise ValueError(
                f"vllm_gpu_memory_utilization: {self.vllm_gpu_memory_utilization} is a share of the GPU, which must be "
                "above 0 and at most 1."
            )

    def vllm_options(self) -> dict:
        """The vllm_* keys, by the names that `load` and vLLM have for them."""
        return {
            "max_model_len": self.vllm_max_model_length,
            "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
            "tensor_parallel_size": self.vllm_tensor_parallel_size,
            "replicas": self.vllm_data_parallel_size,
        }


class Engine(ABC):
    """What asks a model. Each kind says how completions come one by one; that all of them together follow from it.

    A model that is loaded here is asked nothing where a prompt has no room (`positions.require_room`), and an answer
    ends, cut off, where the positions do.
    """

    tokenizer = None  # where the prompts are rendered here

    @abstractmethod
    def stream(
        self, prompts: Sequence, sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """(number of the prompt, completion), one for each prompt, in the order in which they are finished.

        `sampling.n` plays no part here: who wants a prompt answered twice gives it twice. The numbers in `done` are
        left out, and the others get the completions that they get without it: what was interrupted goes on as itself.
        """

    @abstractmethod
    def close(self) -> None:
        """Give the memory back."""

    def complete(
        self, prompts: Sequence, sampling: Sampling, progress: Callable | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts. The same seed gives the same ones.

        `progress(completions, total=...)` wraps the iterator over them (a progress bar).
        """
        asked = [prompt for prompt in prompts for _ in range(sampling.n)]
        said = self.stream(asked, sampling)
        by_number = dict(said if progress is None else progress(said, total=len(asked)))
        return [
            [by_number[number] for number in range(first, first + sampling.n)]
            for first in range(0, len(asked), sampling.n)
        ]


def load(
    name: str,
    *,
    use_vllm: bool = False,
    batch_size: int = 64,
    dtype: str = "auto",
    replicas: int = 1,
    tensor_parallel_size: int = 1,
    **vllm_options,
) -> Engine:
    """The engine for a checkpoint directory or a model on the Hub. Raises `ValueError` for a broken directory, and
    where vLLM or the GPUs are missing."""
    require_whole(name, use_vllm)
    if not use_vllm:
        from suite.engine.transformers_engine import TransformersEngine

        return TransformersEngine(name, batch_size=batch_size, dtype=dtype)
    shares = shares_of_machine(replicas, tensor_parallel_size)
    from suite.engine.vllm_engine import VllmEngine, VllmReplicas

    how = {"dtype": dtype, "tensor_parallel_size": tensor_parallel_size, **vllm_options}
    return VllmEngine(name, **how) if replicas == 1 else VllmReplicas(name, shares, **how)


def load_as_asked(name: str, keys: EngineArguments) -> Engine:
    """The engine that a command's keys ask for."""
    options = keys.vllm_options() if keys.use_vllm else {}
    return load(name, use_vllm=keys.use_vllm, batch_size=keys.per_device_eval_batch_size, dtype=keys.dtype, **options)


def settle(trainer) -> None:
    """After a trainer of TRL's that samples was made: its transformers draw by its own keys, and the vLLM that it
    started with seeds that a resumed run finds again."""
    if not trainer.use_vllm:
        from suite.engine.transformers_engine import told

        trainer.generation_config = told(**trainer.generation_config.to_dict())
    elif trainer.args.vllm_mode == "colocate":
        from suite.engine import colocated

        colocated.settle(trainer)


def require_asked(names: Sequence[str], keys: EngineArguments) -> None:
    """Raise `ValueError` where this machine lacks what a command's keys ask for (vLLM, or so many GPUs), or one of the
    models is none that can be asked so, or not at such a length. It is called before the first of them is loaded."""
    if keys.use_vllm:
        require_vllm("use_vllm: true")
        shares_of_machine(keys.vllm_data_parallel_size, keys.vllm_tensor_parallel_size)
    for name in names:
        require_whole(name, keys.use_vllm)
        if keys.use_vllm:
            require_window(keys.vllm_max_model_length, name)


def require_whole(name: str, use_vllm: bool) -> None:
    """Raise `ValueError` for a broken directory, and for one that vLLM cannot be given."""
    checkpoint.check_whole(name)
    checkpoint.check_base(name)
    if use_vllm:
        require_vllm("use_vllm: true", model=name)
        checkpoint.refuse_adapter(name)
        if checkpoint.is_local(name):
            look.demand_names(Path(name))


def render(tokenizer, prompt) -> list[int]:
    """Token ids of a prompt: a conversation goes through the chat template, plain text as it is."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if not tokenizer.chat_template:
        raise ValueError(
            f"'{tokenizer.name_or_path}' has no chat template, and a prompt is a conversation. Take a checkpoint that "
            "has one (`suite sft` adds one), or rows whose prompts are plain text."
        )
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


def rendered(tokenizer, prompts: Sequence) -> list[list[int]]:
    """Token ids of each prompt; one that is given many times is rendered once."""
    once: dict[int, list[int]] = {}
    for prompt in prompts:
        if id(prompt) not in once:
            once[id(prompt)] = render(tokenizer, prompt)
    return [once[id(prompt)] for prompt in prompts]


def asked_of(tokenizer, prompts: Sequence, done: Collection[int]) -> dict[int, list[int]]:
    """The token ids of each prompt whose number is not in `done`."""
    numbers = [number for number in range(len(prompts)) if number not in done]
    return dict(zip(numbers, rendered(tokenizer, [prompts[n] for n in numbers]), strict=True))


def stop_ids(tokenizer, generation_config) -> list[int]:
    """Every id that ends a completion: those of the generation config and the tokenizer's own, as GRPO stops."""
    declared = generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([*declared, *own_stop_ids(tokenizer)]))


def own_stop_ids(tokenizer) -> list[int]:
    """The ids that a tokenizer by itself says end a completion: its EOS, and what its template ends turns with.

    In a base model the two differ; GRPO stops its rollouts at both, and what is measured must be what is trained.
    """
    ends = turns.end_of_turn(tokenizer) if tokenizer.chat_template else None
    own = [tokenizer.eos_token_id, None if ends is None else tokenizer.convert_tokens_to_ids(ends)]
    return list(dict.fromkeys(token for token in own if token is not None))


def seed_of(sampling: Sampling, number: int) -> int:
    """The seed of one completion. With one seed for all, the same prompt would be answered alike every time."""
    return random.Random(f"{sampling.seed}/{number}").getrandbits(31)
