"""The conversation of `talk` as a page, made with Gradio: a column for each model, which answer the same message.

The page talks with the machine it came from and with nobody else: no fonts, no analytics, no share link, and its own
Content-Security-Policy sees to what a model's answer may try. What is HTML in an answer is shown as text. Each tab has
a conversation of its own; a model answers one message at a time, and who comes second waits in Gradio's queue.
"""

import contextlib
import hmac
import ipaddress
import json
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from suite import engine, talk

# Gradio's page has scripts and styles in itself and evaluates some; all else comes from where the page came from.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
BETWEEN = 0.05  # seconds between two updates of a column: a model may be faster than a browser
PATIENCE = 3.0  # seconds that a new conversation waits for an answer of the old one to end
# Code, in which Markdown shows every character as it is: a block, perhaps still being written, and `words` in a line.
_CODE = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}(?=[^`\n]*\n)|~{3,}(?=[^\n]*\n)).*?(?:^[ \t>]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<![`\\])(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class WebArguments:
    host: str = field(default="127.0.0.1", metadata={"help": "With web: the address to listen at."})
    port: int = field(default=7860, metadata={"help": "With web: its port; 0 takes a free one."})
    password_env: str = field(
        default="SUITE_PASSWORD",
        metadata={"help": "With web: name of the environment variable with the page's password."},
    )

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise ValueError(f"port: {self.port} must be 0 (a free one) to 65535.")


@dataclass(frozen=True)
class Door:
    """Where the page will be found, and the password that it asks for, if any."""

    listener: socket.socket
    url: str
    password: str


@dataclass(frozen=True)
class Settings:
    """Where a tab's settings begin."""

    sampling: engine.Sampling
    system_prompt: str
    show_thinking: bool


def refuse_keys(written: dict) -> None:
    """Without a page, the keys of a page would say nothing."""
    for name in asdict(WebArguments()):
        if name in written:
            raise ValueError(f"{name} goes with `--web`.")


@contextlib.contextmanager
def opened(keys: WebArguments, written: dict) -> Iterator[Door]:
    """A door that is open and not answered yet. Raises `ValueError` where Gradio is missing, the port is taken, or
    others could come in without a password."""
    password = os.environ.get(keys.password_env, "").strip()
    if "password_env" in written and not password:  # not named: who writes the password itself here must not read it
        raise ValueError("password_env must name an environment variable that holds the page's password.")
    host = keys.host.strip("[]")
    try:
        family, *_, address = socket.getaddrinfo(
            host or None, keys.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address, family=family)
    except OSError as error:
        raise ValueError(
            f"Nothing can listen at port {keys.port} of '{keys.host}': {error.strerror}. A free port is `--port 0`."
        ) from None
    with listener:
        at, port = listener.getsockname()[:2]
        if not password and not ipaddress.ip_address(at).is_loopback:
            raise ValueError(
                f"host: '{keys.host}' lets other machines in, and there is no password. Set the environment variable "
                f"{keys.password_env}, or leave host at 127.0.0.1."
            )
        _require_gradio()
        yield Door(listener, f"http://{f'[{at}]' if ':' in at else at}:{port}", password)


def _require_gradio() -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which reads it
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError("web: true needs Gradio, which is not installed: pip install 'qwen-suite[web]'.") from None


def serve(door: Door, talkers: list[talk.Talker], start: Settings) -> None:
    """Answer at the door until a signal comes."""
    import fastapi
    import gradio
    import uvicorn

    page = Page(talkers, start)
    auth = None if not door.password else (lambda _, said: hmac.compare_digest(said.encode(), door.password.encode()))
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page.build(), path="/", auth=auth,
        auth_message="Any name will do; the password is the one that this page was started with.",
        theme=_theme(), css=STYLE, footer_links=[], run_history=False, ssr_mode=False, pwa=False, mcp_server=False,
        enable_monitoring=False, max_file_size="1b",
    )  # fmt: skip
    inside = app.routes[-1].app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets=None) -> None:
            """End what keeps connections open: answers, and the heartbeat of every tab."""
            page.is_closing.set()
            inside.stop_event.set()
            await super().shutdown(sockets)

    print(f"{' and '.join(t.name for t in talkers)} at {door.url}. Ctrl-C ends.", flush=True)
    Server(uvicorn.Config(_guarded(app), log_level="error", timeout_graceful_shutdown=5)).run(sockets=[door.listener])


def _guarded(app):
    """The app, each of whose replies carries the policy."""

    async def guarded(scope, receive, send) -> None:
        async def send_with_policy(message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return guarded


class Tab:
    """One conversation of one open page: what each model has said, what it is still asked, and how it answers."""

    def __init__(self, talkers: list[talk.Talker], start: Settings):
        self.start = start
        self.sampling, self.show_thinking = start.sampling, start.show_thinking
        self.conversations = [talk.Conversation(talker, start.system_prompt) for talker in talkers]
        self.asked: dict[int, str] = {}  # number of the model -> the message it has yet to turn to
        self.running: set[int] = set()
        self.stopping = threading.Event()
        self.is_over = False  # another conversation has taken the place of this one

    @property
    def is_busy(self) -> bool:
        return bool(self.asked or self.running)

    def stop(self) -> None:
        """Have every answer end with its next piece."""
        self.asked.clear()
        self.stopping.set()

    def end(self) -> None:
        """Make way for another conversation: once no answer is running, nothing more of this one reaches the page."""
        self.is_over = True
        self.stop()
        patience = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < patience:
            time.sleep(0.01)


class Page:
    """The page's parts, and what happens where one clicks."""

    def __init__(self, talkers: list[talk.Talker], start: Settings):
        self.talkers, self.start = talkers, start
        self.is_closing = threading.Event()

    def build(self):
        """The page as Gradio has it."""
        import gradio

        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        at_once = {"queue": False, **quiet}
        with gradio.Blocks(title="suite chat", analytics_enabled=False, fill_height=True, fill_width=True) as page:
            tab = gradio.State()
            with gradio.Sidebar(position="right", open=False, width=320):
                settings = self._settings()
            with gradio.Row(elem_id="columns", equal_height=True):
                columns = [self._column(number) for number in range(len(self.talkers))]
            with gradio.Row(elem_id="below"):
                box = gradio.Textbox(
                    placeholder="Say something", show_label=False, container=False, submit_btn="Send", autofocus=True,
                    max_lines=8, elem_id="message", min_width=200,
                )  # fmt: skip
                again = gradio.Button("New conversation", elem_id="again", size="sm", scale=0)
                save = gradio.Button("Save", elem_id="save", size="sm", scale=0)
                rows = gradio.Textbox(visible="hidden")
            asked = box.submit(self.take, [tab, box, *settings], [tab, box, *columns], **at_once)
            for number, column in enumerate(columns):
                one = {"concurrency_limit": 1, "concurrency_id": f"model {number}"}
                answered = asked.success(self._answering(number), tab, column, **one, **quiet)
                answered.then(self.settle, tab, box, **at_once)
            box.stop(self.stop, tab, box, **at_once)
            # Through the queue, so that what an answer still has to show comes before the empty page.
            again.click(self.begin, [tab, *settings], [tab, box, *columns], concurrency_limit=None, **quiet)
            save.click(self.rows, tab, rows, **at_once).then(None, rows, None, js=DOWNLOAD)
        return page

    def _settings(self) -> list:
        """The parts that `_chosen` reads, in its order."""
        import gradio

        how = self.start.sampling
        return [
            gradio.Textbox(
                self.start.system_prompt, label="System prompt", lines=3, max_lines=12, elem_id="system",
                info="'suite' is the one that rows are prepared with. A new one begins a new conversation.",
            ),
            gradio.Checkbox(self.start.show_thinking, label="Show thinking of the next answers", elem_id="thinking"),
            gradio.Number(how.max_new_tokens, label="Longest answer, in tokens", precision=0, minimum=1),
            gradio.Slider(0, max(2.0, how.temperature), how.temperature, step=0.01, label="Temperature (0 is greedy)"),
            gradio.Slider(min(0.01, how.top_p), 1, how.top_p, step=0.01, label="Top p"),
        ]  # fmt: skip

    def _chosen(self, system_prompt: str, show_thinking: bool, tokens: int | None, *how: float) -> Settings:
        sampling = engine.Sampling(tokens or self.start.sampling.max_new_tokens, *how)
        return Settings(sampling, system_prompt.strip(), show_thinking)

    def _column(self, number: int):
        import gradio

        return gradio.Chatbot(
            label=self.talkers[number].name, elem_id=f"model-{number}", elem_classes="talker", min_width=300,
            height="100%", buttons=[], feedback_options=None, allow_tags=False,
            latex_delimiters=[
                {"left": "$$", "right": "$$", "display": True}, {"left": r"\[", "right": r"\]", "display": True},
                {"left": r"\(", "right": r"\)", "display": False},
            ],
        )  # fmt: skip

    def take(self, tab: Tab | None, text: str, *settings) -> list:
        """A message for all models: shown at once, and answered by what comes behind."""
        import gradio

        chosen = self._chosen(*settings)
        tab = tab or Tab(self.talkers, chosen)
        if tab.is_busy or not text.strip():
            return [tab, *[gradio.skip()] * (1 + len(self.talkers))]
        if tab.start.system_prompt != chosen.system_prompt:
            tab = Tab(self.talkers, chosen)
        tab.sampling, tab.show_thinking = chosen.sampling, chosen.show_thinking
        tab.stopping.clear()
        tab.asked = dict.fromkeys(range(len(self.talkers)), text.strip())
        seen = [
            bubbles([*one.turns, _said_by("user", text.strip())], chosen.show_thinking) for one in tab.conversations
        ]
        return [tab, gradio.Textbox(value="", submit_btn=False, stop_btn="Stop"), *seen]

    def _answering(self, number: int):
        """What answers for one model: a function of its own, for Gradio queues by function."""

        def answer(tab: Tab) -> Iterator[list[dict]]:
            tab.running.add(number)  # before the message is taken up: at no moment the tab seems idle
            try:
                text = tab.asked.pop(number, None)
                if text is not None:
                    yield from self._answer(tab, number, text)
            finally:
                tab.running.discard(number)

        return answer

    def _answer(self, tab: Tab, number: int, text: str) -> Iterator[list[dict]]:
        """The column, again and again, as one model's answer grows. What goes wrong is told in it."""
        conversation, said, note, at = tab.conversations[number], "", None, 0.0
        before = [*conversation.turns, _said_by("user", text)]
        pieces = conversation.ask(text, tab.sampling)
        try:
            for piece in pieces:
                said += piece
                if tab.stopping.is_set() or self.is_closing.is_set():
                    note = ("Stopped", "What was said until then counts.")
                    break
                if time.monotonic() - at > BETWEEN:
                    yield bubbles([*before, _said_by("assistant", said)], tab.show_thinking, is_growing=True)
                    at = time.monotonic()
        except Exception as error:  # whatever it is, the other column and the other tabs go on
            if not isinstance(error, ValueError):
                traceback.print_exc()
            note = ("Error", talk.told(error))
        finally:
            pieces.close()
        if tab.is_over:
            yield []  # Gradio repeats what came last once this ends, which may be behind the empty page
        else:
            if not note and not said.strip():
                note = ("No answer", "The model ended its turn at once.")
            yield bubbles([*before, _said_by("assistant", said)], tab.show_thinking, note=note)

    def settle(self, tab: Tab):
        """Once nobody is answering any more, the next message may be sent."""
        import gradio

        return gradio.skip() if tab.is_busy else gradio.Textbox(submit_btn="Send", stop_btn=False)

    def stop(self, tab: Tab):
        tab.stop()
        return self.settle(tab)

    def begin(self, tab: Tab | None, *settings) -> list:
        """Forget the conversation."""
        import gradio

        if tab:
            tab.end()
        empty = [[] for _ in self.talkers]
        return [Tab(self.talkers, self._chosen(*settings)), gradio.Textbox(submit_btn="Send", stop_btn=False), *empty]

    def rows(self, tab: Tab | None) -> str:
        """The conversation as lines of JSON, which the page then downloads."""
        said = tab.conversations if tab else []
        return "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in said)


def _said_by(role: str, text: str) -> dict:
    return {"role": role, "content": text}


def bubbles(
    turns: list[dict], show_thinking: bool, *, is_growing: bool = False, note: tuple | None = None
) -> list[dict]:
    """A conversation as Gradio's Chatbot takes it: thinking in accordions before what was said, all text escaped.

    `is_growing` says that the last turn is still being written; `note`, a title and a text, is the program's own word.
    """
    found = []
    for number, turn in enumerate(turns):
        if turn["role"] == "user":
            found.append(_said_by("user", shown(turn["content"])))
        elif turn["role"] == "assistant":
            folded = talk.Folded()
            said = folded.feed(turn["content"]) + ("" if is_growing and number == len(turns) - 1 else folded.rest())
            if folded.thought.strip():
                is_open = folded.thinking and is_growing and number == len(turns) - 1
                title = "Thinking ..." if is_open else "Thought"
                state = {} if show_thinking else {"status": "done"}
                thought = _said_by("assistant", shown(folded.thought.strip()))
                found.append(thought | {"metadata": {"title": title, **state}})
            if said.strip():
                found.append(_said_by("assistant", shown(said.strip())))
    if note:
        title, text = note
        found.append(_said_by("assistant", shown(text)) | {"metadata": {"title": title}})
    return found


def shown(text: str) -> str:
    """Text that Markdown shows with its HTML as it was written. In code it does so by itself."""
    parts, at = [], 0
    for code in _CODE.finditer(text):
        parts += [_escaped(text[at : code.start()]), code[0]]
        at = code.end()
    return "".join([*parts, _escaped(text[at:])])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")  # and not >, which begins a quotation in Markdown


def _theme():
    """Gradio's own, in the fonts of the reader's machine."""
    import gradio

    return gradio.themes.Default(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", radius_size="lg",
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "Consolas", "monospace"],
    )  # fmt: skip


DOWNLOAD = """(rows) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([rows], {type: "application/jsonl"}));
    link.download = "chat.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
}"""

# The columns fill the window and scroll by themselves, on a phone one under the other; what one types into stays in
# sight. Gradio's button that empties a column would leave the conversation as it is: it is not shown.
STYLE = """
footer, .talker .icon-button-wrapper { display: none !important; }
.gradio-container > .main { padding: 12px 48px 12px 16px !important; }
main.contain > .column { height: calc(100dvh - 24px); flex-wrap: nowrap; gap: 12px; }
#columns { flex: 1 1 0; min-height: 0; flex-wrap: nowrap; gap: 12px; }
#columns .talker { flex: 1 1 0; min-width: 0 !important; }
#below { flex: none; align-items: end; gap: 8px; }
#again, #save { flex: none; width: auto; min-width: 0; height: 34px; padding: 0 12px; }
.sidebar .toggle-button .chevron { display: none; }
.sidebar .toggle-button::after { content: "\\2699"; font-size: 20px; }
.sidebar.open .toggle-button::after { content: "\\00d7"; }
@media (max-width: 640px) {
  .gradio-container > .main { padding: 8px !important; }
  main.contain > .column { height: calc(100dvh - 16px); gap: 8px; }
  #columns { flex-direction: column; gap: 8px; }
  #columns .talker { min-height: 0; width: 100%; }
  #below { flex-wrap: wrap; }
  #below > .form, #below > #message { flex: 1 0 100%; }
  #again, #save { flex: 1 1 0 !important; }
  .sidebar:not(.open) .toggle-button { top: 6px; }
}
"""
