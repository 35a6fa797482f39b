"""The engine of vLLM, on GPUs or on the CPU, and several of them at once."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict

from suite import child, pins
from suite.engine import Completion, Engine, Sampling, asked_of, own_stop_ids, seed_of
from suite.engine.positions import require_room
from suite.engine.replicas import Replicas
from suite.engine.vllm_setup import settled_for_cpu
from suite.run import tokenizer as load_tokenizer


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
        seconds = 30  # its own 5 kill workers that are still tidying up
        self.llm.llm_engine.engine_core.shutdown(timeout=seconds)


class VllmReplicas(Engine):
    """Data parallel: several engines of vLLM, each in a process of its own with its share of the GPUs.

    vLLM's own is for servers; its `LLM` refuses a `data_parallel_size`. A completion has its seed from its number,
    whoever draws it, so they are those of one engine.
    """

    def __init__(self, name: str, shares: list[dict[str, str]], **how):
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
