"""A raw data set becomes data/<name>/{train,test}.parquet: columns checked, every gold answer proven.

suite prepare gsm8k
suite prepare arithmetic --digits 2 --size 5000
suite prepare reasoning_gym --task countdown --output_dir data/countdown
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from suite import args, checkpoint, columns, data, reasoning, rewards
from suite.rewards import proof

SPLITS = ("train", "test")


@dataclass
class PrepareArguments:
    """What every data set understands; its own knobs come on top (`suite prepare NAME --help`)."""

    name: str = field(metadata={"help": "Which data set: see `suite list data`."})
    output_dir: str | None = field(default=None, metadata={"help": "Where the parquet files go; data/NAME."})
    system_prompt: str = field(
        default=reasoning.SYSTEM_PROMPT,
        metadata={"help": "First message of every prompt. 'none' writes none, and a data set's own message stays."},
    )
    drop_unproven: int = field(
        default=0, metadata={"help": "How many rows may be left out whose gold answer does not earn accuracy 1."}
    )


def arguments(name: str) -> tuple[type, ...]:
    """Our own keys, and the data set's knobs."""
    return PrepareArguments, args.knob_class(f"{name} knobs", data.load(name))


def main(argv=None) -> None:
    path, words = args.take_config(list(sys.argv[1:] if argv is None else argv))
    name = args.read_yaml(path).get("name") if path else None
    if words and not words[0].startswith("--"):
        name = words[0]
        words = ["--name", *words]
    if "--name" in words:
        name = words[words.index("--name") + 1]
    if name is None:
        raise ValueError(f"Which data set? `suite prepare NAME`. There are: {', '.join(data.names())}.")
    words = [*(["--config", path] if path else []), *words]
    prepare, turned, _ = args.parse(arguments(name), words, needs_config=False)
    write(prepare, data.load(name), asdict(turned))


def write(prepare: PrepareArguments, load, knobs: dict) -> Path:
    """Write both splits and prepare.json, whole or not at all, and return their directory.

    Raises `ValueError` for rows of no known shape, an empty split, or a gold answer that does not prove itself.
    """
    target = Path(prepare.output_dir or f"data/{prepare.name}")
    settings = {
        "name": prepare.name,
        "system_prompt": prepare.system_prompt,
        "drop_unproven": prepare.drop_unproven,
        **knobs,
    }
    identity = hashlib.sha256(json.dumps([settings, _source_fingerprint(knobs)]).encode()).hexdigest()[:16]
    if _identity(target) == identity and all((target / f"{split}.parquet").is_file() for split in SPLITS):
        print(f"{target} holds these very rows already; reusing them.")
        return target
    if target.exists() and _identity(target) is None and any(target.iterdir()):
        raise ValueError(f"{target} holds something that `suite prepare` did not write. Choose another output_dir.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    counts, left = {}, prepare.drop_unproven
    for split in SPLITS:
        rows = [_with_system(row, prepare.system_prompt) for row in load(split, **knobs)]
        rows, dropped = _proven(rows, f"{prepare.name} ({split})", left)
        left -= dropped
        counts[split] = {"rows": len(rows), "dropped_unproven": dropped}
        _write_parquet(rows, partial / f"{split}.parquet")
        print(f"{target}/{split}.parquet: {len(rows)} rows, columns {', '.join(rows[0])}", end="")
        print(f"; left out {dropped} whose gold answer did not prove itself" if dropped else "")
    checkpoint.write_json(partial / "prepare.json", {"identity": identity, "settings": settings, "splits": counts})
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    return target


def _source_fingerprint(knobs: dict) -> str:
    """A local source may change under the same name."""
    source = Path(str(knobs.get("source") or ""))
    files = sorted(source.iterdir()) if source.is_dir() and str(knobs.get("source")) else [source]
    return ",".join(f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files if p.is_file())


def _identity(target: Path) -> str | None:
    record = target / "prepare.json"
    return json.loads(record.read_text(encoding="utf-8"))["identity"] if record.is_file() else None


def _with_system(row: dict, system_prompt: str) -> dict:
    """The row with the system prompt as first message, where its prompt is a conversation without one."""
    prompt = row.get("prompt")
    if system_prompt == "none" or not isinstance(prompt, list) or prompt[0]["role"] == "system":
        return row
    return {**row, "prompt": [{"role": "system", "content": system_prompt}, *prompt]}


def _proven(rows: list[dict], where: str, may_drop: int) -> tuple[list[dict], int]:
    """(rows, how many were dropped): a gold answer, written as a completion, must earn full marks."""
    if not rows:
        raise ValueError(f"{where} has no rows.")
    columns.check(rows[0].keys(), columns.SHAPES, where)
    if "solution" not in rows[0]:
        return rows, 0
    names = dict.fromkeys(name for row in rows for name in row)
    reward = rewards.load("code" if "tests" in names else "accuracy")
    given = {name: [row.get(name) for row in rows] for name in names if name not in ("prompt", "completion")}
    scores = reward([proof.gold_completion(row) for row in rows], **given)
    bad = [number for number, score in enumerate(scores) if score != 1.0]
    if len(bad) > may_drop:
        unreadable = sum(scores[number] is None for number in bad)
        number = bad[0]
        prompt = columns.text_of(rows[number].get("prompt", ""))[-200:]
        raise ValueError(
            f"{where}: {len(bad)} of {len(rows)} gold answers do not prove themselves: {unreadable} are unreadable, "
            f"{len(bad) - unreadable} do not earn 1. The first is row {number + 1}: solution "
            f"{rows[number]['solution']!r} earns {scores[number]}, prompt ends '{prompt}'. Mend the rows, or allow it: "
            f"--drop_unproven {len(bad)}."
        )
    return [row for row, score in zip(rows, scores, strict=True) if score == 1.0], len(bad)


def _write_parquet(rows: list[dict], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
