"""README.md and the pages under docs/, taken apart: fences, commands and what they need, links, headings, tables."""

import ast
import re
import shlex
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import ROOT

ENGLISH = ("README.md", *(f"docs/{name}.md" for name in
           ("stages", "rewards", "data", "configs", "scaling", "troubleshooting", "miniqwen")))  # fmt: skip
CHINESE = {name: f"docs/zh/{Path(name).name}" for name in ENGLISH}
_FENCE = re.compile(r"^(\s*)```(\S*)[ ]?(.*)$")
_COMMENT = re.compile(r"(?:^|\s)#\s*(.*)$")
_NEEDS = re.compile(r"\bneeds\b(?! (?:no|nothing)\b)|(?<!不)需要")
_FAILS = re.compile(r"\bfails\b|会报错")
_ASSIGNED = re.compile(r"[A-Z_][A-Z0-9_]*=")


@dataclass
class Fence:
    """A block of code: its language, what else its first line says, where it begins, and the block before it."""

    language: str
    about: str
    line: int
    text: str


@dataclass
class Command:
    """A line of a `sh` fence. `mark` is "needs" where something must be there, "fails" where it is to, else ""."""

    words: list[str]
    mark: str
    line: int
    environment: dict[str, str] = field(default_factory=dict)
    answer: str = ""  # what the page has it say, among other things

    def __str__(self) -> str:
        return shlex.join(self.words)


class Page:
    def __init__(self, name: str):
        self.name, self.path = name, ROOT / name
        self.fences: list[Fence] = []
        self.prose: list[str] = []  # the lines outside of fences, in their places; the others are empty
        lines, opened = self.path.read_text(encoding="utf-8").splitlines(), None
        for number, line in enumerate(lines, 1):
            found = _FENCE.match(line)
            if found and opened is None:
                opened = (*found.groups(), number, [])
            elif opened is not None and line.strip() == "```":
                indent, language, about, start, inside = opened
                self.fences.append(Fence(language, about, start, "\n".join(t.removeprefix(indent) for t in inside)))
                opened = None
            elif opened is not None:
                opened[4].append(line)
            self.prose.append("" if found or opened is not None else line)
        assert opened is None, f"{name}: the fence of line {opened[3]} never closes"

    def commands(self) -> list[Command]:
        found = []
        for fence, behind in zip(self.fences, [*self.fences[1:], None], strict=False):
            if fence.language == "sh":
                of_fence = list(_commands(fence))
                if of_fence and behind and behind.language == "text" and not behind.about:
                    of_fence[-1].answer = behind.text
                found += of_fence
        return found

    def files(self) -> dict[str, str]:
        """What the page has its reader write down: name -> content."""
        return {f.about: f.text + "\n" for f in self.fences if f.language in ("json", "python", "yaml") and f.about}

    def headings(self) -> list[tuple[int, str]]:
        found = (re.match(r"(#+) (.*)", line) for line in self.prose)
        return [(len(match[1]), match[2].strip()) for match in found if match]

    def anchors(self) -> set[str]:
        """As GitHub makes them."""
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in self.headings()}

    def links(self) -> list[str]:
        return [link for line in self.prose for link in re.findall(r"\]\(([^)\s]+)\)", line)]

    def inline(self) -> list[str]:
        """What stands between backticks, across line breaks."""
        text = "\n".join(line.strip() for line in self.prose)
        return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]

    def tables(self) -> list[list[list[str]]]:
        found, rows = [], []
        for line in [*self.prose, ""]:
            if line.startswith("|"):
                rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
            elif rows:
                found.append(rows)
                rows = []
        return found


def _commands(fence: Fence):
    """The commands of a fence; a comment on its own line speaks for all below it, until the next one."""
    spoken, waiting = "", ""
    for number, line in enumerate(fence.text.splitlines(), fence.line + 1):
        if line.strip().startswith("#"):
            spoken = _mark(line)
            continue
        waiting += line
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        words, comment = shlex.split(waiting, comments=True), _COMMENT.search(waiting)
        waiting = ""
        if words:
            said = {}
            while _ASSIGNED.match(words[0]):
                key, _, said[key] = words[0].partition("=")
                del words[0]
            yield Command(words, (_mark(comment[0]) if comment else "") or spoken, number, said)


def _mark(comment: str) -> str:
    return "fails" if _FAILS.search(comment) else "needs" if _NEEDS.search(comment) else ""


def every_page() -> list[str]:
    """README.md, the pages in their order, and all others."""
    there = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "docs").rglob("*.md"))]
    return [*ENGLISH, *(name for name in there if name not in ENGLISH)]


def is_said_in(message: str, path: str) -> bool | None:
    """Whether some text in a Python file can come out as the message, or begin with it; None if it is not installed."""
    home = ROOT
    if not path.startswith(("suite/", "tests/")):
        spec = find_spec(path.partition("/")[0])
        if spec is None:
            return None
        home = Path(spec.submodule_search_locations[0]).parent
    message = " ".join(message.split())
    return any(_comes_out(message, parts) for parts in _texts((home / path).read_text(encoding="utf-8")))


def _texts(source: str):
    """Every text of a program as parts: what is written, and None for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield [node.value]
        elif isinstance(node, ast.JoinedStr):
            yield [part.value if isinstance(part, ast.Constant) else None for part in node.values]


def _comes_out(message: str, parts: list[str | None]) -> bool:
    """Word for word, what is filled in aside. A message may end before the text does, behind twenty letters of it, but
    not with what is filled in, which could be anything, where a word of the text follows that."""
    tokens = [token for part in parts for token in ([None] if part is None else re.findall(r"\s+|\S+", part))]
    if not tokens or (tokens[0] and not message.startswith(tokens[0])):
        return False
    units: list[str] = []  # a token, or what is filled in with all up to the next word
    lengths: list[int] = []
    is_open = False
    for token in tokens[: 3 * len(message.split()) + 20]:
        if not is_open:
            units.append("")
            lengths.append(0)
        units[-1] += ".+?" if token is None else re.escape(token)
        lengths[-1] += len(token or "")
        is_open = token is None or is_open and token.isspace()
    must = next((n for n in range(1, len(units) + 1) if sum(lengths[:n]) >= 20), None)
    if must is None:
        return False
    may = ""
    for unit in reversed(units[must:]):
        may = f"(?:{unit}{may})?"
    return re.fullmatch("".join(units[:must]) + may, message) is not None
