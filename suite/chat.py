"""Talk with a checkpoint, or with a model behind an address: words as they come, thinking folded or shown.

suite chat runs/quickstart/grpo
suite chat runs/quickstart/grpo --compare runs/quickstart/sft
suite chat http://localhost:8000/v1

/help says what can be said to the program; everything else goes to the model. Ctrl-C stops an answer, Ctrl-D ends.
"""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suite import args, engine, reasoning

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
    dtype: str = field(default="auto", metadata={"help": "In which type the weights are loaded."})

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"max_new_tokens: {self.max_new_tokens} must be at least 1, temperature: {self.temperature} at least "
                f"0, top_p: {self.top_p} above 0 and at most 1."
            )


def arguments() -> tuple[type, ...]:
    return (ChatArguments,)


def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("--"):
        words = ["--model_name_or_path", *words]
    asked, _ = args.parse(arguments(), words, needs_config=False)
    names = [asked.model_name_or_path, *([asked.compare] if asked.compare else [])]
    talkers = [_talker(name, asked) for name in names]
    sampling = engine.Sampling(asked.max_new_tokens, asked.temperature, asked.top_p)
    chat = Chat(talkers, sampling, asked.system_prompt, asked.show_thinking)
    print(f"{' and '.join(t.name for t in talkers)}. /help for help.", flush=True)
    for line in _lines():
        if not chat.take(line):
            break


def _talker(name: str, asked: ChatArguments):
    from suite import talk

    if re.match(r"https?://", name):
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

    def __init__(self, talkers: list, sampling: engine.Sampling, system_prompt: str | None, show_thinking: bool):
        self.talkers, self.sampling, self.show_thinking = talkers, sampling, show_thinking
        self.system_prompt = reasoning.SYSTEM_PROMPT if system_prompt == "suite" else system_prompt
        self.reset()

    def reset(self) -> None:
        first = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        self.conversations: list[list[dict]] = [list(first) for _ in self.talkers]
        self.thoughts = [""] * len(self.talkers)

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
        together = len(self.talkers) > 1 and width >= 80
        answers = []
        for number, talker in enumerate(self.talkers):
            if len(self.talkers) > 1 and not together:
                print(f"-- {talker.name}")
            self.conversations[number].append({"role": "user", "content": text})
            answers.append(self._answer(number, talker, silent=together))
        if together:
            print("\n".join(beside([t.name for t in self.talkers], answers, width)))

    def _answer(self, number: int, talker, silent: bool) -> str:
        """Stream one answer, and return what was shown of it. Ctrl-C ends the answer; what was said of it counts."""
        from suite.talk import Folded

        folded, whole, shown = Folded(), "", ""
        pieces = talker.answer(self.conversations[number], self.sampling)
        try:
            for piece in pieces:
                whole += piece
                shown += self._show(folded, piece, silent)
        except KeyboardInterrupt:
            pieces.close()
            print(" [stopped]", end="" if silent else "\n")
        except ValueError as error:
            print(error)
        shown += self._say(folded.rest(), silent)
        if not silent:
            print()
        self.thoughts[number] = folded.thought.strip()
        if whole:
            self.conversations[number].append({"role": "assistant", "content": whole})
        else:
            self.conversations[number].pop()  # a question without an answer is not asked
        return shown.strip()

    def _show(self, folded, piece: str, silent: bool) -> str:
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

    def _reset(self) -> None:
        self.reset()
        print("A new conversation.")

    def _system(self, text: str) -> None:
        self.system_prompt = reasoning.SYSTEM_PROMPT if text == "suite" else text or None
        self.reset()
        print(f"A new conversation, system prompt: {self.system_prompt or 'none'}")

    def _think(self) -> None:
        self.show_thinking = not self.show_thinking
        print("Thinking is shown." if self.show_thinking else "Thinking is folded.")

    def _thought(self) -> None:
        for talker, thought in zip(self.talkers, self.thoughts, strict=True):
            print(f"{f'-- {talker.name}: ' if len(self.talkers) > 1 else ''}{thought or 'nothing was thought.'}")

    def _save(self, name: str) -> None:
        if not name:
            print("/save needs a file: /save chats.jsonl")
            return
        try:
            with Path(name).expanduser().open("a", encoding="utf-8") as file:
                for talker, said in zip(self.talkers, self.conversations, strict=True):
                    row = {"messages": said, "model": talker.name}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
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
    sys.exit(args.answer_for(main))
