"""What lies in a checkpoint or data directory: is it whole, and which one is it?"""

import hashlib
import json
import os
import re
import struct
from pathlib import Path

WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
_SAMPLE = 1 << 20


def is_local(name: str | None) -> bool:
    """Whether a name means a directory here and not a repository on the Hub."""
    return bool(name) and (Path(name).exists() or name.startswith((".", "/", "~", "runs/", "data/")))


def check_whole(path: str | Path) -> None:
    """Raise `ValueError` for a local checkpoint directory that is missing, cut off half-way or without weights.

    Looks at names, sizes and safetensors headers; no tensor is read. A name that is no local path is left to the Hub.
    """
    if not is_local(str(path)):
        return
    path = Path(path)
    if not path.is_dir():
        near = sorted(str(p.parent) for p in path.parent.glob("*/config.json")) if path.parent.is_dir() else []
        raise ValueError(
            f"There is no checkpoint directory '{path}'." + (f" There are: {', '.join(near)}." if near else "")
        )
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"'{path}' is no checkpoint: it has neither config.json nor adapter_config.json.")
    if (path / INDEX).is_file():
        files = sorted(set(read_json(path / INDEX).get("weight_map", {}).values()))
        if not files:
            raise ValueError(f"'{path / INDEX}' names no weights. Take another checkpoint.")
    else:
        files = [name for name in WEIGHTS if (path / name).is_file()]
        if not files:
            raise ValueError(f"'{path}' holds no weights ({' or '.join(WEIGHTS)}). Was it cut off while saving?")
    for name in files:
        _check_safetensors(path / name)
    for name in ("config.json", "adapter_config.json", "tokenizer.json", "generation_config.json"):
        if (path / name).is_file():
            read_json(path / name)


def refuse_adapter(path: str | Path | None) -> None:
    """Raise `ValueError` for a directory that holds only a LoRA adapter, which no stage can start from."""
    if path and (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"'{path}' holds a LoRA adapter and no model of its own. Merge it first (`suite export {path} "
            "--output_dir DIRECTORY`), or start from its base model."
        )


def read_json(path: Path) -> dict:
    """The object in a JSON file of a checkpoint. Raises `ValueError` where it is cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"'{path}' is cut off or broken: it is not JSON. Take another checkpoint.") from None


def _check_safetensors(path: Path) -> None:
    """The header says how long the file must be. https://huggingface.co/docs/safetensors (Format)"""
    if not path.is_file():
        raise ValueError(f"'{path.parent}' is not whole: {path.name} is missing. Take another checkpoint.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        try:
            header = json.loads(file.read(length)) if length < size else {}
        except (json.JSONDecodeError, UnicodeDecodeError):
            header = {}
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    if not ends or size != 8 + length + max(ends):
        raise ValueError(
            f"'{path}' is cut off or broken: {size} bytes, where its header asks for "
            f"{8 + length + max(ends) if ends else 'more'}. Take another checkpoint."
        )


def fingerprint(path: str | Path) -> str:
    """Sixteen hex digits of what a directory holds: names, sizes, and the ends of each file. The Hub's name otherwise.

    The first and last MiB of a file are read; a trained tensor there differs as surely as anywhere else.
    """
    path = Path(path)
    if not path.is_dir():
        return str(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".parquet", ".jinja")):
        if file.name in ("run.json", "trainer_state.json", "prepare.json", "sample.json", "results.json"):
            continue
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, file.stat().st_size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]


def steps(run_dir: str | Path) -> list[Path]:
    """The checkpoints in a run directory, whole or not, in the order of their steps."""
    there = (p for p in Path(run_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name))
    return sorted(there, key=lambda p: int(p.name.partition("-")[2]))


def last(run_dir: str | Path) -> Path | None:
    """The whole checkpoint with the highest step in a run directory."""
    for path in reversed(steps(run_dir)):
        try:
            check_whole(path)
        except ValueError:
            continue
        if (path / "trainer_state.json").is_file():
            return path
    return None


def write_json(path: Path, content) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
