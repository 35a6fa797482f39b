"""A conversation with one model, its words as they come: a checkpoint in this process, or a model behind HTTP.

What a terminal and a page have in common lives here: who answers, what was said so far, and what of it is thinking.
"""

import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

from suite import engine, reasoning, run
from suite.reasoning import CLOSES, OPENS


class Talker(ABC):
    """Whoever answers. `messages` is the conversation, the last turn a user's."""

    name: str

    @abstractmethod
    def answer(self, messages: list[dict], sampling: engine.Sampling) -> Iterator[str]:
        """The answer in pieces, beginning with a <think> that the prompt opens. Closing the iterator stops it."""


def require_template(name: str) -> None:
    """Raise `ValueError` for a checkpoint that has no chat template; its weights are not looked at."""
    if not run.tokenizer(name).chat_template:
        raise ValueError(f"'{name}' has no chat template, so nobody can talk with it; `suite sft` adds one.")


class Checkpoint(Talker):
    """A checkpoint that transformers generates with, in a thread beside the one that shows."""

    def __init__(self, name: str, dtype: str = "auto"):
        self.name = name
        self.engine = engine.load(name, dtype=dtype)

    def answer(self, messages: list[dict], sampling: engine.Sampling) -> Iterator[str]:
        import torch
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        from suite.engine.transformers_engine import enough_memory

        here, stop = self.engine, threading.Event()
        prompt = engine.render(here.tokenizer, messages)
        longest = here.room(prompt, sampling)
        if longest < 1:
            raise ValueError(
                f"This conversation has {len(prompt)} tokens, and the model {here.positions} positions: `/reset`."
            )
        ids = torch.tensor([prompt], device=here.model.device)  # (1, T)
        streamer = TextIteratorStreamer(here.tokenizer, skip_prompt=True, skip_special_tokens=True)

        def stopped(seen, scores, **kwargs):
            return torch.full((seen.shape[0],), stop.is_set(), device=seen.device)

        failed = []
        asked = f"with the {len(prompt)} tokens of this conversation and up to {longest} of its answer"
        way = "Begin a new one (`/reset`), or set max_new_tokens lower."

        def generate() -> None:
            try:
                with torch.inference_mode(), enough_memory(asked, way):
                    here.model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([stopped]),
                        generation_config=here.how(sampling, longest),
                    )
            except Exception as error:  # it is raised where the words are read
                failed.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            if run.opens_thinking(here.tokenizer):
                yield OPENS
            yield from streamer
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]


class Endpoint(Talker):
    """A model behind an OpenAI-compatible endpoint, streamed as server-sent events."""

    def __init__(self, base_url: str, model: str | None, api_key_env: str = "OPENAI_API_KEY"):
        """Raises `ValueError` where nobody answers, or several models are served and none is named."""
        from suite.endpoint import EndpointArguments, EndpointEngine

        there = EndpointEngine(model or "", EndpointArguments(base_url=base_url, api_key_env=api_key_env))
        names = there.models
        if model is None and len(names) != 1:
            told = ", ".join(names) or "none that it tells of"
            raise ValueError(f"{base_url} serves {len(names)} models; name one by `--model`. There are: {told}.")
        self.name, self.base_url = model or names[0], there.base_url
        self._key = os.environ.get(api_key_env, "").strip()

    def answer(self, messages: list[dict], sampling: engine.Sampling) -> Iterator[str]:
        import httpx

        body = {
            "model": self.name, "messages": messages, "max_tokens": sampling.max_new_tokens, "stream": True,
            "temperature": sampling.temperature, "top_p": sampling.top_p,
        }  # fmt: skip
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            with httpx.stream(
                "POST", f"{self.base_url}/chat/completions", json=body, headers=headers, timeout=httpx.Timeout(600.0)
            ) as response:
                if response.status_code != 200:
                    told = response.read().decode(errors="replace")[:300]
                    raise ValueError(f"{self.base_url} refuses ({response.status_code}): {self._clean(told)}")
                yield from _pieces(_lines(response.iter_text()))
        except (httpx.HTTPError, BrokenOffError) as error:
            raise ValueError(f"{self.base_url} broke off: {self._clean(str(error))}.") from None

    def _clean(self, words: str) -> str:
        """Without the key, which some servers repeat."""
        return words.replace(self._key, "***") if self._key else words


class BrokenOffError(Exception):
    """What a server says in the middle of a stream, where it can no longer refuse by a status."""


def _lines(texts: Iterator[str]) -> Iterator[str]:
    """The lines of a text that comes in parts. They end where an event's do: httpx and `str.splitlines` also see the
    end of one in U+2028, U+2029 and U+0085, which JSON may hold as they are."""
    rest = ""
    for text in texts:
        *lines, rest = (rest + text).split("\n")
        yield from lines
    yield rest


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """The words of a stream of events; thinking that the server keeps apart is put back into its tags.

    Raises `BrokenOffError` for an event that is an error, or no event of a completion.
    """
    thinking = False
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        delta = _delta(data)
        thought, said = delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")
        if thought:
            yield ("" if thinking else OPENS) + thought
            thinking = True
        if said:
            yield (CLOSES if thinking else "") + said
            thinking = False


def _delta(data: str) -> dict:
    """What an event adds to the answer."""
    try:
        event = json.loads(data)
        if event.get("error"):
            told = event["error"]
            raise BrokenOffError(told.get("message", told) if isinstance(told, dict) else told)
        choices = event.get("choices") or [{}]
        return choices[0].get("delta") or {}
    except (ValueError, AttributeError, TypeError, KeyError):
        raise BrokenOffError(f"it sent '{data[:100]}', which is no event of a completion") from None


def told(error: Exception) -> str:
    """What kept a model from answering, in one line; of what nobody foresaw also what kind of error it is."""
    words = " ".join(str(error).split())
    return words if isinstance(error, ValueError) else f"{type(error).__name__}: {words}".removesuffix(": ")


class Conversation:
    """What is said with one model. Its `turns` begin with the system prompt, where there is one."""

    def __init__(self, talker: Talker, system_prompt: str | None = None):
        self.talker = talker
        self.begin(system_prompt)

    def begin(self, system_prompt: str | None) -> None:
        """Forget what was said. The system prompt "suite" stands for the one that rows are prepared with."""
        self.system_prompt = reasoning.SYSTEM_PROMPT if system_prompt == "suite" else system_prompt or None
        self.turns = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []

    def ask(self, text: str, sampling: engine.Sampling) -> Iterator[str]:
        """The answer in pieces. Closing the iterator stops it, and what was said of it counts; a question without any
        answer is not asked."""
        turns, said = self.turns, ""  # these turns: a new conversation may begin while an answer ends
        turns.append({"role": "user", "content": text})
        pieces = self.talker.answer(list(turns), sampling)
        try:
            for piece in pieces:
                said += piece
                yield piece
        finally:
            pieces.close()
            if said:
                turns.append({"role": "assistant", "content": said})
            else:
                turns.pop()

    def row(self) -> dict:
        """The conversation as a row that `suite sft` reads."""
        return {"messages": self.turns, "model": self.talker.name}


class Folded:
    """Splits an answer, piece by piece, into what is thought and what is said. A tag may come in several pieces."""

    def __init__(self):
        self.split, self.thought = reasoning.Split(), ""

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self.split.thinking

    def feed(self, piece: str) -> str:
        """What of the answer, with this piece, can be shown now; what is thought goes to `thought`."""
        thought, said = self.split.feed(piece)
        self.thought += thought
        return said

    def rest(self) -> str:
        """What was held back for a tag that never came."""
        thought, said = self.split.rest()
        self.thought += thought
        return said
