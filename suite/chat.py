"""Talk with a checkpoint, or with a model behind an address: words as they come, thinking folded or shown.

suite chat runs/quickstart/grpo
suite chat runs/quickstart/grpo --compare runs/quickstart/sft
suite chat http://localhost:8000/v1
suite chat runs/quickstart/grpo --web

/help says what can be said to the program; everything else goes to the model. Ctrl-C stops an answer, Ctrl-D ends.
`--web` opens the same as a page on this machine, with as many tabs as one likes.
"""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suite import args, ending, engine, pins, talk, web

HELP = """/reset          forget the conversation
/system TEXT    a new system prompt, and a new conversation; /system suite is the one that rows are prepared with
/think          show thinking as it comes, or fold it again
/thought        what was thought before the last answer
/save FILE      append the conversation to FILE, a line of JSON that `suite sft` reads
/exit           end (or Ctrl-D)"""


@dataclass
class ChatArguments:
    model_name_or_path: str = field(metadata={"help": "A checkpoint, a model on the Hub, or http://.../v1."})
    compare: str | None = field(default=None, metadata={"help": "A second one, which answers beside the first."})
    model: str | None = field(default=None, metadata={"help": "Which model of those that an address serves."})
    api_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "Environment variable with an address's key."})
    system_prompt: str | None = field(default=None, metadata={"help": "System prompt; 'suite' is the suite's own."})
    show_thinking: bool = field(default=False, metadata={"help": "Show thinking instead of folding it."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Length limit of an answer, in tokens."})
    temperature: float = field(default=0.7, metadata={"help": "0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling."})
    dtype: str = field(default="auto", metadata={"help": "The type in which the weights are loaded."})
    web: bool = field(default=False, metadata={"help": "Talk on a page instead of in the terminal."})

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: {self.max_new_tokens} must be at least 1.")


def arguments() -> tuple[type, ...]:
    return ChatArguments, web.WebArguments


def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("--"):
        words = ["--model_name_or_path", *words]
    asked, page, written = args.parse(arguments(), words, needs_config=False)
    names = [asked.model_name_or_path, *([asked.compare] if asked.compare else [])]
    _check_names(names, written)
    for name in names:  # one that is nowhere is told before the other is loaded, and one that cannot converse
        pins.at_commit(name)
        if not _is_address(name):
            talk.require_template(name)
    sampling = engine.Sampling(asked.max_new_tokens, asked.temperature, asked.top_p)
    if asked.web:
        with web.opened(page, written) as door:  # what is wrong with the address is told before a model is loaded
            start = web.Settings(sampling, asked.system_prompt or "", asked.show_thinking)
            web.serve(door, [_talker(name, asked) for name in names], start)
        return
    web.refuse_keys(written)
    conversations = [talk.Conversation(_talker(name, asked), asked.system_prompt) for name in names]
    chat = Chat(conversations, sampling, asked.show_thinking)
    print(f"{' and '.join(one.talker.name for one in conversations)}. /help for help.", flush=True)
    for line in _lines():
        if not chat.take(line):
            break


def _is_address(name: str) -> bool:
    return re.match(r"https?://", name) is not None


def _check_names(names: list[str], written: dict) -> None:
    """Raise `ValueError`, before the first model is loaded, for a name that means none, and for a key that nobody of
    those who answer would read."""
    here = [name for name in names if not _is_address(name)]
    for name in here:
        if re.match(r"\w+:/|[\w.-]+:\d+(/|$)", name) and not Path(name).exists():
            raise ValueError(
                f"'{name}' is no model, and no address either: one begins with http:// or https://, such as "
                "http://localhost:8000/v1."
            )
        engine.require_whole(name, use_vllm=False)
    for key in ("model", "api_key_env"):  # without its value, which may be the key itself
        if key in written and len(here) == len(names):
            raise ValueError(f"{key} goes with an address, such as http://localhost:8000/v1. Remove it.")
    if "dtype" in written and not here:
        raise ValueError("dtype goes with a checkpoint: behind an address its server has loaded the model. Remove it.")


def _talker(name: str, asked: ChatArguments) -> talk.Talker:
    if _is_address(name):
        return talk.Endpoint(name, asked.model, asked.api_key_env)
    return talk.Checkpoint(name, asked.dtype)


def _lines() -> Iterator[str]:
    """What is typed; Ctrl-C at the prompt is told what ends the program."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (arrow keys and a history)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\nCtrl-D or /exit ends.")


class Chat:
    """The conversation with one model, or the same conversation with two."""

    def __init__(self, conversations: list[talk.Conversation], sampling: engine.Sampling, show_thinking: bool):
        self.conversations, self.sampling, self.show_thinking = conversations, sampling, show_thinking
        self.thoughts = [""] * len(conversations)

    def take(self, line: str) -> bool:
        """A line that was typed: a command, or something to be answered. False ends the program."""
        line = line.strip()
        word, _, rest = line.partition(" ")
        if word in ("/exit", "/quit"):
            return False
        if not line.startswith("/"):
            if line:
                self.ask(line)
            return True
        commands = {
            "/help": lambda: print(HELP), "/reset": self._reset, "/system": lambda: self._system(rest.strip()),
            "/think": self._think, "/thought": self._thought, "/save": lambda: self._save(rest.strip()),
        }  # fmt: skip
        if word not in commands:
            print(f"There is no {word}.\n{HELP}")
        else:
            commands[word]()
        return True

    def ask(self, text: str) -> None:
        """Have each model answer; two of them side by side where the window is wide enough."""
        width = shutil.get_terminal_size().columns
        together = len(self.conversations) > 1 and width >= 80
        answers = []
        for number, name in enumerate(self._names()):
            if len(self.conversations) > 1 and not together:
                print(f"-- {name}")
            answers.append(self._answer(number, text, silent=together))
        if together:
            print("\n".join(beside(self._names(), answers, width)))

    def _names(self) -> list[str]:
        return [conversation.talker.name for conversation in self.conversations]

    def _answer(self, number: int, text: str, silent: bool) -> str:
        """Stream one answer, and return what was shown of it. Ctrl-C ends the answer; what was said of it counts."""
        folded, shown = talk.Folded(), ""
        pieces = self.conversations[number].ask(text, self.sampling)
        try:
            for piece in pieces:
                shown += self._show(folded, piece, silent)
        except KeyboardInterrupt:
            pieces.close()
            print(" [stopped]", end="" if silent else "\n")
        except Exception as error:  # whatever it is, the conversation until then is still there
            print(f"\n{talk.told(error)}" if shown and not silent else talk.told(error))
        shown += self._say(folded.rest(), silent)
        if not silent:
            print()
        self.thoughts[number] = folded.thought.strip()
        return shown.strip()

    def _show(self, folded: talk.Folded, piece: str, silent: bool) -> str:
        before, was_thinking = len(folded.thought), folded.thinking
        said = folded.feed(piece)
        thought = folded.thought[before:]
        if self.show_thinking and thought:
            self._say(thought, silent)
        elif not self.show_thinking and folded.thinking and not was_thinking:
            self._say("[thinking ... /thought shows it]\n", silent)
        return self._say(said.lstrip("\n") if was_thinking else said, silent)

    @staticmethod
    def _say(text: str, silent: bool) -> str:
        if text and not silent:
            print(text, end="", flush=True)
        return text

    def _begin(self, system_prompt: str | None) -> None:
        for conversation in self.conversations:
            conversation.begin(system_prompt)
        self.thoughts = [""] * len(self.conversations)

    def _reset(self) -> None:
        self._begin(self.conversations[0].system_prompt)
        print("A new conversation.")

    def _system(self, text: str) -> None:
        self._begin(text)
        print(f"A new conversation, system prompt: {self.conversations[0].system_prompt or 'none'}")

    def _think(self) -> None:
        self.show_thinking = not self.show_thinking
        print("Thinking is shown." if self.show_thinking else "Thinking is folded.")

    def _thought(self) -> None:
        for name, thought in zip(self._names(), self.thoughts, strict=True):
            print(f"{f'-- {name}: ' if len(self.thoughts) > 1 else ''}{thought or 'nothing was thought.'}")

    def _save(self, name: str) -> None:
        if not name:
            print("/save needs a file: /save chats.jsonl")
            return
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                for conversation in self.conversations:
                    file.write(json.dumps(conversation.row(), ensure_ascii=False) + "\n")
        except OSError as error:
            print(f"/save: {name} cannot be written: {error.strerror}.")
        else:
            print(f"Saved to {name}.")


def beside(names: list[str], answers: list[str], width: int) -> list[str]:
    """Two texts in two columns."""
    half = (width - 3) // 2
    columns = []
    for name, answer in zip(names, answers, strict=True):
        lines = [line for text in answer.splitlines() for line in textwrap.wrap(text, half) or [""]]
        columns.append([name[-half:], "-" * half, *lines])
    height = max(map(len, columns))
    left, right = ([*column, *[""] * (height - len(column))] for column in columns)
    return [f"{a:<{half}} | {b}".rstrip() for a, b in zip(left, right, strict=True)]


if __name__ == "__main__":
    sys.exit(ending.answer_for(main))
