"""The house rules on imports: down, never up; each narrow bar held."""

import ast
from pathlib import Path

from tests.conftest import ROOT

FLOORS = {
    0: {
        "args",
        "keys",
        "values",
        "sense",
        "ending",
        "child",
        "columns",
        "reasoning",
        "registry",
        "whole",
        "machine",
        "model",
    },
    1: {
        "run",
        "source",
        "room",
        "yardstick",
        "rehearsal",
        "resume",
        "turns",
        "look",
        "pins",
        "card",
        "facts",
        "lineage",
        "recipe",
        "privacy",
        "merge",
        "forms",
        "hub",
        "engine",
        "endpoint",
        "talk",
        "web",
        "address",
        "server",
        "server_child",
        "reasoning_parser",
        "answers",
        "trainers",
        "checkpoint",
        "metrics",
        "measures",
        "judging",
        "asking",
        "shots",
        "conditions",
        "results",
        "answering",
        "comparison",
        "tables",
        "plots",
        "samples",
        "pages",
        "rewards",
        "data",
        "cleaning",
    },
    2: {"prepare", "train", "sample", "score", "evaluate", "chat", "serve", "export", "doctor", "report", "rollouts"},
    3: {"cli", "notebook"},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
VLLM_ROOMS = {
    "engine/vllm_engine",
    "engine/vllm_setup",
    "engine/colocated",
    "serve",
    "server_child",
    "reasoning_parser",
    "model/vllm_plugin",
    "model/vllm_forms",
}
FILES = [p for p in sorted((ROOT / "suite").rglob("*.py")) if p != ROOT / "suite/__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "suite").with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it; `from suite import run` counts as suite.run."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # miniqwen's files travel with its checkpoints, and find each other beside the weights.
            travels = path.parent == ROOT / "suite/model" and node.level == 1
            assert node.level == 0 or travels, f"{path}: relative import on line {node.lineno}"
            found.add(f"suite.model.{node.module}" if travels else node.module)
            if node.module == "suite":
                found |= {f"suite.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("suite.")}


def test_every_file_has_a_floor():
    assert not {str(p) for p in FILES if room_of(p) not in FLOOR}


def test_imports_go_down():
    for path in FILES:
        here = room_of(path)
        for other in rooms_imported(path) - {here}:
            allowed = FLOOR[other] < FLOOR[here] or (FLOOR[other] == FLOOR[here] and FLOOR[here] in (0, 1))
            assert allowed, f"{path} (floor {FLOOR[here]}) imports suite.{other} (floor {FLOOR[other]})"


def test_neighbors_form_no_circle():
    edges: dict[str, set[str]] = {}
    for path in FILES:
        edges.setdefault(room_of(path), set()).update(rooms_imported(path) - {room_of(path)})

    def walk(room: str, trail: tuple[str, ...]) -> None:
        assert room not in trail, " -> ".join((*trail, room))
        for other in edges.get(room, ()):
            walk(other, (*trail, room))

    for room in edges:
        walk(room, ())


def test_rewards_import_neither_torch_nor_transformers():
    for path in FILES:
        if room_of(path) == "rewards":
            # trl.rewards imports nothing heavy, and `overlong` is TRL's own.
            heavy = {n for n in imported(path) if n.split(".")[0] in ("torch", "transformers", "trl")} - {"trl.rewards"}
            assert not heavy, f"{path} imports {heavy}"


def test_vllm_is_named_in_its_own_rooms_only():
    for path in FILES:
        if any(name.split(".")[0] == "vllm" for name in imported(path)):
            name = path.relative_to(ROOT / "suite").with_suffix("").as_posix()
            assert name in VLLM_ROOMS, f"{path} imports vllm"


def test_the_package_itself_imports_nothing():
    assert not imported(ROOT / "suite/__init__.py")


def test_every_file_says_what_lives_there_and_no_function_outgrows_a_screen():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path} has no docstring"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines < 60, f"{path}: {node.name} has {lines} lines"
