r"""The grammar of an answer: think, then answer.

    <think>
    7+8=15, and one more ten than I thought
    </think>
    <answer>95</answer>

Everything that writes, reads, rewards or shows an answer takes its tags, its system prompt and its reading from here.
"""

import re

from suite.columns import text_of

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
OPENS, CLOSES = TAGS[:2]  # thinking

SYSTEM_PROMPT = (
    "You solve the user's problem. First think it through step by step between <think> and </think>, "
    "then give only the final answer between <answer> and </answer>."
)

_WELL_FORMED = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_SOFT = re.compile(r"<think>(.*?)</think>.*?<answer>(.*?)</answer>", re.DOTALL)
_SAYS = re.compile(r"answer is|answer:|####|答案(?:是|为|选|[:：])", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")
# Dollars as pandoc reads them, so that two prices on a line are no formula; no longer than an answer may be.
_FORMULA = re.compile(
    r"\$\$([^$]{1,300})\$\$|\$(?!\s)([^$\n]{1,300})(?<!\s)\$(?!\d)|\\[(\[]((?:[^$\\]|\\[^()\[\]]){1,300})\\[)\]]"
)
_HAS_VALUE = re.compile(r"\d|\\(?:[dt]?frac|sqrt|pi|infty|emptyset)(?![a-z])")
_BOXED_TOKEN = re.compile(r"\\boxed\s*([^\s{}$\\]+)")


def write(thinking: str, answer: str) -> str:
    """A well-formed completion."""
    return f"<think>\n{thinking.strip()}\n</think>\n<answer>{answer.strip()}</answer>"


def texts(completions, prompts=None, think_opened: bool = False) -> list[str]:
    """The words of each completion, conversational or plain, beginning with the <think> that its prompt has opened.

    R1-Distill's chat template writes <think> behind every prompt; its completions begin inside. A prompt that shows
    it is recognized; one that goes through such a template is not, so `think_opened` says it for all.
    """
    if prompts is None:
        prompts = [[]] * len(completions)
    return [
        "<think>" * opens_thinking(prompt, think_opened) + text_of(said)
        for said, prompt in zip(completions, prompts, strict=True)
    ]


def opens_thinking(prompt, think_opened: bool = False) -> bool:
    """Whether a prompt ends inside a think block that has just begun; in a conversation the template may have it so."""
    return (think_opened and not isinstance(prompt, str)) or text_of(prompt).rstrip().endswith("<think>")


def is_well_formed(completion: str, soft: bool = False) -> bool:
    """One think block, one answer block, in that order, neither empty, with nothing but space around them.

    `soft` lets text stand before, between and behind the two.
    """
    if any(completion.count(tag) != 1 for tag in TAGS):  # before the pattern, which many tags would keep busy
        return False
    match = _SOFT.search(completion) if soft else _WELL_FORMED.fullmatch(completion)
    return match is not None and all(part.strip() for part in match.groups())


def thinking(completion: str) -> str:
    """What stands in the first think block of a completion, finished or not."""
    return completion.partition("<think>")[2].partition("</think>")[0].strip()


def spoken(completion: str) -> str:
    """What is left of a completion without its thinking, finished or not. Linear in its length, as all of this is:
    a model writes whatever it likes."""
    kept, rest = [], completion
    while True:
        before, opens, rest = rest.partition("<think>")
        kept.append(before)
        if not opens:
            break
        _, closes, rest = rest.partition("</think>")
        if not closes:
            break
    return " ".join(kept).rpartition("</think>")[2]  # a prompt that already opened <think> leaves only the closing tag


class Split:
    """Divides words that come in pieces into what is thought and what is said. A tag may come in several pieces.

    The tags belong to neither; all else is kept as it is. What is thought and never closed is thought to the end, and a
    closing tag that nothing has opened is a word like any other.
    """

    def __init__(self, thinking: bool = False):
        """`thinking` is how it begins: whether the prompt has opened a think block."""
        self.thinking, self.held = thinking, ""

    def feed(self, piece: str) -> tuple[str, str]:
        """(what is thought, what is said) of all that came, as far as it can be told by now and was not told before."""
        self.held += piece
        thought, said = [], []
        while True:
            tag = CLOSES if self.thinking else OPENS
            before, there, behind = self.held.partition(tag)
            if not there:
                keep = next((n for n in range(len(tag) - 1, 0, -1) if self.held.endswith(tag[:n])), 0)
                before, behind = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
            (thought if self.thinking else said).append(before)
            self.held = behind
            if not there:
                return "".join(thought), "".join(said)
            self.thinking = not self.thinking

    def rest(self) -> tuple[str, str]:
        """What was held back for a tag that never came."""
        held, self.held = self.held, ""
        return (held, "") if self.thinking else ("", held)


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, braces balanced; else the 5 of the last `\boxed 5`."""
    opened, last = [], None
    for at, character in enumerate(text):
        if character in "{}" and text[at - 1 : at] == "\\" and text[at - 2 : at - 1] != "\\":
            continue  # a brace to be seen, of a set
        if character == "{":
            opened.append(at)
        elif character == "}" and opened:
            start = opened.pop()
            if text.endswith("\\boxed", 0, start) and (last is None or start > last[0]):
                last = (start, at)
    if last is None:
        tokens = _BOXED_TOKEN.findall(text)
        return tokens[-1] if tokens else None
    return text[last[0] + 1 : last[1]]


def last_tagged(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`."""
    before, closes, _ = text.rpartition("</answer>")
    _, opens, answer = before.rpartition("<answer>")
    return answer.partition("</answer>")[0].strip() if closes and opens else None


def final_answer(completion: str, reading: str = "tags or box") -> str | None:
    r"""The answer a completion gives, or None; never from inside its thinking.

    reading: "tags" takes the last complete <answer>; "tags or box" else the last \boxed{}; "lenient" else what
    follows "answer is" or "####", else the last formula between dollars or number.
    """
    assert reading in ("tags", "tags or box", "lenient"), reading
    text = spoken(completion)
    tagged = last_tagged(text)
    if tagged is not None:
        return tagged or None
    if reading == "tags":
        return None
    boxed = last_boxed(text)
    if boxed is not None or reading == "tags or box":
        return boxed
    said = list(_SAYS.finditer(text))
    if said:
        line = text[said[-1].end() :].strip(" \t:=*").partition("\n")[0].partition(". ")[0].strip().removesuffix(".")
        if line:
            return line
    return _last_expression(text)


def _last_expression(text: str) -> str | None:
    """The last formula that may be a value, or the last number outside one; of an equation the right side."""
    formulas = [m for m in _FORMULA.finditer(text) if _HAS_VALUE.search(m[0])]
    numbers = list(_NUMBER.finditer(text))
    if not formulas or (numbers and numbers[-1].start() >= formulas[-1].end()):
        return numbers[-1][0] if numbers else None
    said = next(filter(None, formulas[-1].groups())).strip()
    return said if "," in said else re.split(r"(?<![<>!])=", said)[-1].strip()
