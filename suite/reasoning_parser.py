"""What tells vLLM's server which words of an answer are thought: `--reasoning-parser-plugin suite.reasoning_parser`.

vLLM's own parsers go by token ids, and refuse a tokenizer in which <think> is several tokens. This one goes by the
text, as all of the suite does. `suite serve` names it; so may who starts `vllm serve` by hand, with
`--reasoning-parser suite`.
"""

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.reasoning import ReasoningParser, ReasoningParserManager

from suite import reasoning, run

# What vLLM puts beside a request's own `chat_template_kwargs`, and `run.opens_thinking` settles itself.
_SETTLED = ("add_generation_prompt", "continue_final_message", "documents", "tokenize")


@ReasoningParserManager.register_module("suite")
class SuiteParser(ReasoningParser):
    """One answer to one request. What is thought and what is said, with the tags between them, is what the model said.

    All answers pass through here to their end, with `_split` as the only state: that thinking has ended is never told.
    """

    engine_based_streaming = True  # so that vLLM fetches, at the end, what was held back as the beginning of a tag

    def __init__(self, tokenizer, *args, chat_template_kwargs: dict | None = None, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        asked = {key: value for key, value in (chat_template_kwargs or {}).items() if key not in _SETTLED}
        self._opened = run.opens_thinking(tokenizer, asked)
        self._split = reasoning.Split(self._opened)

    def extract_reasoning(self, model_output: str, request) -> tuple[str | None, str | None]:
        """(what is thought, what is said) of a whole answer; None for what there is none of."""
        split = reasoning.Split(self._goes_on_thinking(request))
        thought, said = (a + b for a, b in zip(split.feed(model_output), split.rest(), strict=True))
        return thought or None, said or None

    def _goes_on_thinking(self, request) -> bool:
        """Whether an answer begins inside a think block: as the template has it, or a last turn that it continues."""
        if not getattr(request, "continue_final_message", False):  # the other kind of request has no such field
            return self._opened
        begun = request.messages[-1].get("content")
        return isinstance(begun, str) and reasoning.opens_thinking(begun)

    def adjust_initial_state_from_prompt(self, prompt_token_ids) -> None:
        """Before a stream: the prompt itself says whether it has opened a think block."""
        tail = list(prompt_token_ids)[-4 * len(reasoning.OPENS) :]  # a token has at least a byte
        self._split = reasoning.Split(reasoning.opens_thinking(self.model_tokenizer.decode(tail)))

    def extract_reasoning_streaming(
        self, previous_text, current_text, delta_text, previous_token_ids, current_token_ids, delta_token_ids
    ) -> DeltaMessage | None:
        """What the next words are, as far as it can be told by now."""
        return _delta(*self._split.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back for a tag that never came."""
        return _delta(*self._split.rest())

    def count_reasoning_tokens(self, token_ids) -> int:
        """How many tokens of an answer are thought; those of the tags count as what they stand behind."""
        split, thought = reasoning.Split(self._opened), 0
        for token in self.model_tokenizer.convert_ids_to_tokens(list(token_ids)):  # ASCII, tags too, stands as it is
            thought += split.thinking
            split.feed(token or "")
        return thought

    def is_reasoning_end(self, input_ids) -> bool:
        """Never: what follows a prompt may be thought."""
        return False

    def is_reasoning_end_streaming(self, input_ids, delta_ids) -> bool:
        """For a request of a form (JSON, a choice), asked token by token: whether the form may begin.

        It is asked only where the prompt opens thinking; elsewhere `suite serve` has the form begin at once.
        """
        tail = list(input_ids)[-(len(list(delta_ids)) + 4 * len(reasoning.CLOSES)) :]
        return reasoning.CLOSES in self.model_tokenizer.decode(tail).rpartition(reasoning.OPENS)[2]

    def extract_content_ids(self, input_ids) -> list[int]:
        """Nothing: it is asked where thinking has ended, for tool calls, which this parser does not serve."""
        return []


def _delta(thought: str, said: str) -> DeltaMessage | None:
    there = {name: text for name, text in (("reasoning", thought), ("content", said)) if text}
    return DeltaMessage(**there) if there else None
