"""The folder is the registry: what it holds is read from the files themselves, without importing any of them."""

import ast
import difflib
from pathlib import Path


def entries(folder: Path, function: str) -> dict[str, str]:
    """Name -> first docstring line of every `<name>.py` in `folder` that defines `function`, sorted by name.

    `{name}` in `function` stands for the file's own name: `{name}_reward` finds `accuracy_reward` in accuracy.py.
    """
    found = {}
    for path in sorted(p for p in folder.glob("*.py") if not p.name.startswith("_")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise ValueError(f"{path}, line {error.lineno}: {error.msg}.") from None
        wanted = function.format(name=path.stem)
        if any(isinstance(node, ast.FunctionDef) and node.name == wanted for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def nearest(name: str, choices) -> str:
    """' Did you mean 'accuracy'?', or nothing where no choice is close."""
    close = difflib.get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def pick(kind: str, name: str, choices) -> str:
    """`name` itself, or a `ValueError` that lists the choices and names the nearest."""
    if not isinstance(name, str) or name not in choices:
        listed = ", ".join(choices) or "none"
        raise ValueError(f"There is no {kind} '{name}'. There are: {listed}.{nearest(name, choices)}")
    return name
