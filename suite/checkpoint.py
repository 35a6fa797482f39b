"""What lies in a checkpoint or data directory: is it whole, and which one is it?"""

import hashlib
import json
import os
import re
import struct
from pathlib import Path

from suite import whole
from suite.args import say

WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"
EXACT_STATE = "exact_state_{rank}.pt"  # what a process keeps in memory between two steps
MARKERS = ("adapter_config.json", "config.json")  # without one of them nobody takes a directory for a checkpoint
READ = (".safetensors", ".json", ".parquet", ".jinja", ".jsonl", ".txt", ".gz", ".zst")  # what a run may be made from
_SAVING = ".saving.partial"
PUSHING = ".pushing.partial"  # what is on its way to the Hub while training goes on
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
    if _SAVING in path.absolute().parts:
        raise ValueError(f"'{path}' is where a run saves until it is whole. Take the run's last checkpoint.")
    if not path.is_dir():
        near = sorted(str(p.parent) for p in path.parent.glob("*/config.json")) if path.parent.is_dir() else []
        raise ValueError(
            f"There is no checkpoint directory '{path}'." + (f" There are: {', '.join(near)}." if near else "")
        )
    _check_files(path)


def _check_files(path: Path) -> None:
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"'{path}' is no checkpoint: it has neither config.json nor adapter_config.json.")
    shapes = shapes_of(path)
    for name in ("config.json", "adapter_config.json", "tokenizer.json", "generation_config.json"):
        if (path / name).is_file():
            told = read_json(path / name)
            if name == "config.json":
                _check_width(path, told, shapes.get("model.embed_tokens.weight"))


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Tensor -> shape, of all weights in a directory. Raises `ValueError` where there are none, or not whole ones."""
    if (path / INDEX).is_file():
        files = sorted(set(read_json(path / INDEX).get("weight_map", {}).values()))
        if not files:
            raise ValueError(f"'{path / INDEX}' names no weights. Take another checkpoint.")
    else:
        files = [name for name in WEIGHTS if (path / name).is_file()]
        if not files:
            _refuse_pickle(path)
            raise ValueError(f"'{path}' holds no weights ({' or '.join(WEIGHTS)}). Was it cut off while saving?")
    return {name: shape for file in files for name, shape in _check_safetensors(path / file).items()}


def _refuse_pickle(path: Path) -> None:
    """Raise `ValueError` for a directory whose weights are whole, and in a format that is never read."""
    for pattern, of in (("pytorch_model*.bin", "AutoModel"), ("adapter_model.bin", "AutoPeftModel")):
        if found := sorted(path.glob(pattern)):
            raise ValueError(
                f"'{path}' holds its weights in {found[0].name}, a pickle, and only safetensors are read. If you trust "
                f"it, convert it in place: `{of}ForCausalLM.from_pretrained('{path}').save_pretrained('{path}')`."
            )


def _check_width(path: Path, config: dict, embeddings: list[int] | None) -> None:
    """What is wrong with one tensor is wrong with all: then config.json is that of another model."""
    asked = [config.get("vocab_size"), config.get("hidden_size")]
    if embeddings and None not in asked and "quantization_config" not in config and embeddings != asked:
        raise ValueError(
            f"'{path}' does not fit together: config.json has vocab_size {asked[0]} and hidden_size {asked[1]}, where "
            f"the weights' are {embeddings}. Take another checkpoint, or the config.json that it had."
        )


def refuse_adapter(path: str | Path | None) -> None:
    """Raise `ValueError` for a directory that holds only a LoRA adapter, which no stage can start from."""
    if path and (Path(path) / "adapter_config.json").is_file() and not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"'{path}' holds a LoRA adapter and no model of its own. Merge it first (`suite export {path} "
            "--output_dir DIRECTORY`), or start from its base model."
        )


def check_base(path: str | Path, base: str | None = None) -> None:
    """Raise `ValueError` for an adapter whose base, by what it says itself or as given, is a directory that is gone, or
    that is not what the adapter was trained on."""
    path = Path(path)
    if not (path / "adapter_config.json").is_file():
        return
    trained_on = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    name = base or trained_on
    if not name:
        raise ValueError(
            f"'{path}' does not say which model it adapts. Say it: `suite export {path}` and `suite serve` by --base "
            "DIRECTORY, all others by base_model_name_or_path in its adapter_config.json."
        )
    if is_local(name) and not Path(name).is_dir():
        raise ValueError(
            f"The base of '{path}', '{name}', is not there. Put it there, or say where: `suite export {path}` and "
            "`suite serve` by --base DIRECTORY, all others by base_model_name_or_path in its adapter_config.json."
        )
    record = read_json(path / "run.json") if (path / "run.json").is_file() else {}
    then = record.get("inputs", {}).get(trained_on)
    if then in (None, trained_on):
        return
    if name != trained_on and not Path(name).exists():
        say(f"note: '{name}' is on the Hub, and whether '{path}' was trained on it was not verified.")
    elif then not in (now := fingerprint(name), fingerprint(name, with_answers=True)):
        raise ValueError(
            f"'{name}' is not the base that '{path}' was trained on: it is another model, or its files have changed "
            f"(fingerprint {then} then, {now} now). Put back the one that was, or name it: --base DIRECTORY of `suite "
            "export` and `suite serve`."
        )


def read_json(path: Path) -> dict:
    """The object in a JSON file of a checkpoint. Raises `ValueError` where it is cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"'{path}' is cut off or broken: it is not JSON. Take another checkpoint.") from None


def _check_safetensors(path: Path) -> dict[str, list[int]]:
    """Tensor -> shape. The header says how long the file must be. https://huggingface.co/docs/safetensors (Format)"""
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
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}


def fingerprint(path: str | Path, *, with_answers: bool = False, ends: bool = False) -> str:
    """Sixteen hex digits of what a directory, or a file, holds: names, sizes and contents. The Hub's name otherwise.

    Of each file the first and last MiB are read: a trained tensor there differs as surely as anywhere else. Of data, of
    which a single row may have changed, all is read up to 4 GiB, and of more 4,096 spread MiB. What is noted of a
    directory does not count, nor what `suite evaluate` has collected in it. Older records differ: `with_answers` its
    rows count, and by `ends` data are read as weights are.
    """
    path = Path(path)
    if not path.exists():
        return str(path)
    digest = hashlib.sha256()
    noted = ("run.json", "trainer_state.json", "prepare.json", "sample.json", "results.json")
    if (path / "results.json").is_file() and not with_answers:
        noted += ("rows.jsonl",)
    there = [*path.iterdir(), *path.glob("data/*")] if path.is_dir() else []  # where a copy of the Hub has its rows
    files = sorted(p for p in there if p.suffix.lower() in READ and p.is_file()) if path.is_dir() else [path]
    files = [file for file in files if file.name not in noted]
    ends = ends or any(file.suffix == ".safetensors" for file in files)
    apart = max(_SAMPLE, sum(file.stat().st_size for file in files) // 4096)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        between = () if ends else range(_SAMPLE, size - _SAMPLE, apart)
        with file.open("rb") as stream:
            for at in (0, *between, max(0, size - _SAMPLE)):
                stream.seek(at)
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]


def steps(run_dir: str | Path) -> list[Path]:
    """The checkpoints in a run directory, whole or not, in the order of their steps."""
    there = (p for p in Path(run_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name))
    return sorted(there, key=lambda p: int(p.name.partition("-")[2]))


def aside(run_dir: str | Path) -> Path:
    """Where a run writes a checkpoint, or its model, until it is whole."""
    return Path(run_dir) / _SAVING


def lock_of(run_dir: str | Path) -> Path:
    """What the process that writes a run keeps locked."""
    return Path(run_dir) / ".run.lock"


def seal(directory: Path, record: dict) -> None:
    """Write run.json into a checkpoint that is complete: what makes the run what it is, and the size of every file.

    Raises `ValueError` where its weights are not whole.
    """
    if any((directory / name).is_file() for name in (*WEIGHTS, INDEX)):  # an engine may keep them in its own pieces
        _check_files(directory)
    files = {str(p.relative_to(directory)): p.stat().st_size for p in sorted(directory.rglob("*")) if p.is_file()}
    write_json(directory / "run.json", {**record, "files": files})


def pour(directory: Path, into: Path) -> None:
    """Move all files of a finished model into a run's directory. What makes a checkpoint of it comes last."""
    whole.sync(directory)
    for path in sorted(directory.iterdir(), key=lambda p: (p.name in MARKERS, p.name)):
        if path.is_dir():
            whole.put(path, into / path.name)
        else:
            os.replace(path, into / path.name)
    whole.sync(into / "trainer_state.json")


def record_of(path: str | Path) -> dict:
    """What makes the run of a checkpoint what it is, from its run.json.

    Raises `ValueError` for a checkpoint that is not whole, or from which a run cannot go on as it was.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"There is no checkpoint directory '{path}'.")
    record = read_json(path / "run.json") if (path / "run.json").is_file() else {}
    if "files" not in record:
        raise ValueError(
            f"'{path}' was not written by `suite`: random numbers, averages and rollouts of the run are not in it. To "
            f"train on from its weights, set `model_name_or_path: {path}` and another output_dir."
        )
    for name, size in record["files"].items():
        there = (path / name).stat().st_size if (path / name).is_file() else None
        if there != size:
            told = "is missing" if there is None else f"has {there} bytes, and was written with {size}"
            raise ValueError(f"'{path}' is not whole: {name} {told}. Take another checkpoint.")
    if EXACT_STATE.format(rank=0) not in record["files"]:
        raise ValueError(
            f"'{path}' holds weights and no optimizer (`save_only_model: true`): nothing can go on from it as it was. "
            f"To train on from its weights, set `model_name_or_path: {path}` and another output_dir."
        )
    return record


def last(run_dir: str | Path) -> tuple[Path | None, list[str]]:
    """(the checkpoint with the highest step from which the run can go on, why each later one was passed over)."""
    passed = []
    for path in reversed(steps(run_dir)):
        try:
            record_of(path)
        except ValueError as error:
            passed.append(str(error))
            continue
        return path, passed
    return None, passed


def write_json(path: Path, content) -> None:
    """Write a file whole or not at all."""
    with whole.file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
