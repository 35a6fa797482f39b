"""A model behind an OpenAI-compatible endpoint: many requests in flight, patience where it helps, one line where not.

The API key comes from an environment variable and goes into the request's header, and nowhere else.
"""

import asyncio
import os
import random
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from suite.engine import Completion, Engine, Sampling, seed_of
from suite.values import as_mapping

# Of one request: how often it is sent, and seconds between, doubled each time.
ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 10, 1.0, 60.0
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504, 529)
# So many requests refused, and none answered yet: what is refused is not the prompt.
REFUSED_AT_FIRST = 5


@dataclass
class EndpointArguments:
    """Where the model is, and how it is asked."""

    base_url: str | None = field(
        default=None, metadata={"help": "An OpenAI-compatible endpoint, such as http://localhost:8000/v1."}
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Name of the environment variable that holds the endpoint's key."}
    )
    concurrency: int = field(default=32, metadata={"help": "Requests in flight at a time."})
    request_timeout: float = field(default=600.0, metadata={"help": "Seconds one request may take."})
    request_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": 'More fields of a request: {"reasoning_effort": "high"}. null leaves one of ours out.'},
    )

    def __post_init__(self):
        self.request_kwargs = as_mapping("request_kwargs", self.request_kwargs)
        # Whoever writes the key itself here must not read it in an error message, which logs keep.
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env must be the name of an environment variable, such as OPENAI_API_KEY.")
        if self.base_url is not None and "@" in self.base_url:
            raise ValueError("base_url must hold no name or key; the key belongs in the environment (api_key_env).")
        if self.base_url is not None and not re.fullmatch(r"https?://[^\s?#]+", self.base_url):
            raise ValueError(
                f"base_url: '{self.base_url.partition('?')[0]}' must be an address without a query, such as "
                "http://localhost:8000/v1."
            )
        if self.concurrency < 1 or not self.request_timeout > 0:
            raise ValueError(
                f"concurrency: {self.concurrency} must be at least 1, and request_timeout: {self.request_timeout} more "
                "than 0 seconds."
            )


class EndpointEngine(Engine):
    """One request a completion: some servers refuse `n`, and those that take it tell only the sum of the tokens."""

    def __init__(self, name: str, keys: EndpointArguments, *, answered: bool = False):
        """`answered` says that it is known to answer requests like these: what it refuses then is the prompt.

        Raises `ValueError` where nobody answers at `base_url`, or the key is refused.
        """
        key = os.environ.get(keys.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"The environment variable {keys.api_key_env} holds something that is no API key.")
        self.name = name
        self.keys = keys
        self.base_url = keys.base_url.rstrip("/")
        self._key = key
        self._answered = answered
        self._refused = 0
        self.models = self._greet()

    def close(self) -> None:
        """Nothing is held."""

    def stream(
        self, prompts: Sequence, sampling: Sampling, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """Each completion as it arrives; a plain prompt is sent as what a user said.

        A request that is refused while others are answered (a content filter, a prompt that is too long) yields a
        completion without tokens. Raises `ValueError` where asking on is of no use, and for a prompt with tool calls or
        their results.
        """
        numbers = [number for number in range(len(prompts)) if number not in done]
        _refuse_tool_calls(prompts[number] for number in numbers)
        with asyncio.Runner() as runner:  # leaving it cancels what is still in flight
            found: asyncio.Queue = asyncio.Queue()
            runner.get_loop().create_task(self._ask_all(numbers, prompts, sampling, found))
            for _ in numbers:
                said = runner.run(found.get())
                if isinstance(said, Exception):
                    raise said
                yield said

    async def _ask_all(self, numbers: list[int], prompts: Sequence, sampling: Sampling, found: asyncio.Queue) -> None:
        import httpx

        left = iter(numbers)

        async def ask_one_after_another(client) -> None:
            for number in left:
                body = self._body(prompts[number], sampling, seed_of(sampling, number))
                found.put_nowait((number, await self._answer(client, body, len(numbers))))

        at_once = min(self.keys.concurrency, len(numbers))
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        timeout = httpx.Timeout(self.keys.request_timeout, connect=30.0)
        try:
            async with httpx.AsyncClient(headers=self._headers(), timeout=timeout, limits=limits) as client:
                await asyncio.gather(*(ask_one_after_another(client) for _ in range(at_once)))
        except Exception as error:  # it is raised where the completions are read
            found.put_nowait(error)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def _body(self, prompt, sampling: Sampling, seed: int) -> dict:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        body = {
            "model": self.name,
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            **self.keys.request_kwargs,
        }
        return {name: value for name, value in body.items() if value is not None}

    async def _answer(self, client, body: dict, asked: int) -> Completion:
        """One request, sent again after what may pass: no connection, too many requests, a server in trouble."""
        import httpx

        trouble, wait = "", 0.0
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(wait)
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.5)
            try:
                response = await client.post(f"{self.base_url}/chat/completions", json=body)
            except httpx.RequestError as error:
                trouble = self._clean(f"{type(error).__name__} {error}")
                continue
            if response.status_code in TRANSIENT:
                trouble = self._told(response)
                wait = max(wait, _retry_after(response))
                continue
            if response.status_code != 200:
                return self._refusal(response, asked)
            completion = _read(response)
            if completion is not None:
                self._answered = True
                return completion
            trouble = f"no completion in its reply: {self._told(response)}"
            if not self._answered:
                raise ValueError(f"{self.base_url} does not answer as an OpenAI-compatible endpoint does: {trouble}.")
        raise ValueError(
            f"{self.base_url} did not answer a request that was sent {ATTEMPTS} times; the last time: {trouble}."
        )

    def _refusal(self, response, asked: int) -> Completion:
        """What a request that was refused for good means: an end, or one completion that there will not be."""
        told = self._told(response)
        if response.status_code in (401, 403):
            raise ValueError(self._key_refused(told))
        if response.status_code == 402:  # out of credit: none of the others will be answered either
            raise ValueError(
                f"{self.base_url} wants to be paid before it answers more: {told}. Add credit there, or name another "
                "endpoint (`base_url`)."
            )
        if response.status_code == 404:
            listed = f" There are: {', '.join(self.models[:20])}." if self.models else ""
            raise ValueError(
                f"{self.base_url} knows no model '{self.name}', or has no chat completions there (most addresses end "
                f"in /v1): {told}.{listed}"
            )
        self._refused += 1
        if not self._answered and self._refused >= min(REFUSED_AT_FIRST, asked):
            raise ValueError(f"{self.base_url} refuses every request: {told}.")
        if self._refused == 1:
            print(f"{self.base_url} refuses a request, which costs that one completion: {told}", flush=True)
        return Completion("", 0, False)

    def _greet(self) -> list[str]:
        """The names of the models that are served, where the endpoint tells them."""
        import httpx

        try:
            response = httpx.get(f"{self.base_url}/models", headers=self._headers(), timeout=httpx.Timeout(30.0))
        except (httpx.ReadTimeout, httpx.RemoteProtocolError):
            return []  # somebody is there
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ValueError(
                f"Cannot connect to base_url {self.base_url}: {self._clean(str(error))}. Is the server running, and "
                "the address right? Most end in /v1."
            ) from None
        if response.status_code == 401:
            raise ValueError(self._key_refused(self._told(response)))
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):  # not every endpoint has this page
            return []

    def _key_refused(self, told: str) -> str:
        held = "holds the wrong key" if self._key else "is not set"
        return f"{self.base_url} wants an API key, and the environment variable {self.keys.api_key_env} {held}: {told}."

    def _told(self, response) -> str:
        """A reply in a few words."""
        try:
            content = response.json()
            error = content.get("error", content)
            words = error.get("message", error) if isinstance(error, dict) else error
        except (ValueError, AttributeError):
            words = response.text
        return self._clean(f"{response.status_code} {words}")

    def _clean(self, words: str) -> str:
        """One short line without the key, which some servers repeat."""
        words = " ".join(words.split())
        return (words.replace(self._key, "***") if self._key else words)[:300].rstrip(".")


def _refuse_tool_calls(prompts: Iterable) -> None:
    """Raise `ValueError` where a prompt holds more than what is said: calls have ids here, which rows do not have."""
    for prompt in prompts:
        turns = [] if isinstance(prompt, str) else prompt
        if any(turn.get("tool_calls") or turn["role"] == "tool" for turn in turns):
            last = next((turn["content"] for turn in reversed(turns) if turn.get("content")), "")
            raise ValueError(
                f"A prompt whose last text is {last!r:.60} holds tool calls or their results, and an endpoint is sent "
                "texts alone. Leave such rows out, or ask a model that is loaded here, without base_url: its chat "
                "template reads them."
            )


def _retry_after(response) -> float:
    """Seconds that a server asks to be left alone, within reason."""
    try:
        return min(5 * LONGEST_WAIT, float(response.headers.get("retry-after", 0)))
    except ValueError:  # a date
        return 0.0


def _read(response) -> Completion | None:
    """The completion in a reply, its thinking put back in front; None where there is none."""
    try:
        reply = response.json()
        choice = reply["choices"][0]
        message = choice["message"]
        thought = message.get("reasoning_content") or message.get("reasoning")  # servers that cut it off the text
        text = message.get("content") or ""
        tokens = (reply.get("usage") or {}).get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(text, str) or not isinstance(thought or "", str):
        return None
    finished = choice.get("finish_reason") == "stop"
    if thought:
        closed = "\n</think>\n" if text or finished else ""
        text = f"<think>\n{thought.strip()}{closed}{text.lstrip()}"
    elif "</think>" in text and "<think>" not in text:  # a template that opens it in the prompt
        text = f"<think>\n{text.lstrip()}"
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can say and a file cannot
    return Completion(text, tokens if isinstance(tokens, int) and tokens > 0 else len(text.split()) + 1, finished)
