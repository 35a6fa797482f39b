"""What does not belong on a page that others read: where things lie on this machine, and secrets."""

import os
import re
from pathlib import Path

_PATH = re.compile(r"(?<![\w.~/:<-])(?:/[\w.@+-]+){2,}/?")
_SECRET = re.compile(r"\bhf_\w{16,}|\bsk-[\w-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_NAMES_A_SECRET = re.compile(r"TOKEN(?!IZ)|SECRET|PASSWORD|CREDENTIAL|_KEY$", re.IGNORECASE)


def shown(path: str | Path) -> str:
    """A path as it may be shown: from the working directory, or only its end where it lies elsewhere."""
    path = Path(path)
    if not path.is_absolute():
        return str(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return f".../{'/'.join(path.parts[1:][-2:])}"


def without_paths(text: str) -> str:
    """A text with every path of this machine cut to its end."""
    return _PATH.sub(lambda found: shown(found.group()), text)


def without_secrets(text: str) -> str:
    """A text without the Hub's token, what looks like one, and any value of a variable that is named as a secret."""
    from huggingface_hub import get_token

    known = [get_token(), *(value for name, value in os.environ.items() if _NAMES_A_SECRET.search(name))]
    for secret in known:
        if secret and len(secret) >= 8:
            text = text.replace(secret, "[secret]")
    return _SECRET.sub("[secret]", text)
