"""The life of configs/miniqwen-26m, its own files at a tiny size: each stage is killed in its middle, and goes on."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from suite import args, cli
from tests.conftest import ROOT, write_yaml
from tests.crashes import MODULES
from tests.warm import Halt, Warm, kill_after

LIFE = ROOT / "configs" / "miniqwen-26m"
CLOCKS = re.compile(r'"(seconds|fingerprint|identity)": "?[\w.]+"?')  # a fingerprint knows when a file was written
NOT_CHAPTERS = ("pretrain-moe", "sft-traces-on-short", "sft-traces-on-long", "evaluate-traces")


def chapters() -> list[tuple[str, str]]:
    """(command, file name) of every line of run.sh that runs something."""
    found = []
    for line in (LIFE / "run.sh").read_text().splitlines():
        if line.startswith("suite "):
            _, command, flag, path = shlex.split(line, comments=True)
            assert flag == "--config" and path.startswith("$life/"), line
            found.append((command, path.removeprefix("$life/")))
    return found


def test_run_sh_lists_every_numbered_file_once_and_in_order_and_then_measures():
    files = [name for _, name in chapters()]
    numbered = sorted((p.name for p in LIFE.glob("[0-9]*.yaml")), key=lambda name: int(name.partition("-")[0]))
    assert [name for name in files if name[0].isdigit()] == numbered
    assert {p.stem for p in LIFE.glob("*.yaml")} == {Path(name).stem for name in files} | set(NOT_CHAPTERS)
    for command, name in chapters():
        assert (LIFE / name).read_text().startswith(f"# suite {command} --config configs/miniqwen-26m/{name}\n")


def test_run_sh_is_run_from_the_root_line_by_line_and_ends_where_a_line_fails(tmp_path):
    """A `suite` that only writes down how it was called, and fails at the DPO if it is told to."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_in = tmp_path / ".venv/bin/suite"
    stand_in.write_text('#!/bin/sh\necho "$*" >> called\ntest "$1" != "$FAILS_AT"\n')
    stand_in.chmod(0o755)
    (tmp_path / "configs/miniqwen-26m").mkdir(parents=True)
    shutil.copy(LIFE / "run.sh", tmp_path / "configs/miniqwen-26m")
    lines = [f"{command} --config configs/miniqwen-26m/{name}" for command, name in chapters()]
    for fails_at, expected in (("", lines), ("dpo", lines[:8])):
        (tmp_path / "called").unlink(missing_ok=True)
        env = {**os.environ, "FAILS_AT": fails_at}
        code = subprocess.run(["bash", "configs/miniqwen-26m/run.sh"], cwd=tmp_path, env=env).returncode
        assert (tmp_path / "called").read_text().splitlines() == expected and (code == 0) == (not fails_at)


def test_every_stage_of_it_goes_on_where_it_was():
    for command, name in chapters():
        if command in cli.stages():
            assert args.read_yaml(LIFE / name)["resume_from_checkpoint"] is True, name


def lay_data(home: Path) -> None:
    """Files in MiniMind's layouts, under MiniMind's names."""
    rng = random.Random(0)
    words = ["the", "number", "is", "seven", "and", "so", "on", "一", "二", "三"]

    def said(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    def turns(answer: str) -> list[dict]:
        return [{"role": "user", "content": said(4)}, {"role": "assistant", "content": answer}]

    def pair() -> dict:
        asked = turns("")[:1]
        return {name: [*asked, {"role": "assistant", "content": said(5)}] for name in ("chosen", "rejected")}

    files = {
        "pretrain_hq": [{"text": said(30)} for _ in range(60)],
        "sft_mini_512": [{"conversations": turns(said(8))} for _ in range(40)],
        "sft_1024": [{"conversations": turns(said(16))} for _ in range(40)],
        "dpo": [pair() for _ in range(40)],
        "r1_mix_1024": [
            {"conversations": turns(f"<think>\n{said(6)}\n</think>\n<answer>\n{said(3)}\n</answer>")} for _ in range(40)
        ],
    }
    (home / "minimind_dataset").mkdir(parents=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (home / "minimind_dataset" / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def made_tiny(command: str, name: str) -> dict:
    """The file as it is, with sizes for a test and no GPU."""
    keys = {k: v for k, v in args.read_yaml(LIFE / name).items() if not k.startswith(("vllm_", "use_vllm"))}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    if command == "prepare":
        return keys | ({"size": 40, "test_size": 8} if keys["name"] == "arithmetic" else {"test_size": 8})
    if command == "tokenizer":
        return keys | {"vocab_size": 300}
    if command == "evaluate":
        return keys | {"max_rows": 8, "max_completion_length": 8, "num_generations": 2}
    if command == "report":
        return keys
    keys |= {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 3, "save_steps": 1, "logging_steps": 1}
    keys |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
    if "model_config" in keys:
        keys["model_config"] = small | {"num_key_value_heads": 1}
        if "large" in name:
            keys["model_config"] |= {"hidden_size": 48}
    if "max_length" in keys:
        keys["max_length"] = 96
    if command == "grpo":
        keys |= {"num_generations": 2, "max_completion_length": 8, "log_completions": False}
    return keys | ({"max_completion_length": 32} if command == "distill" else {})


def ends(home: Path) -> dict[str, bytes | str]:
    """What a life amounts to: rows, weights, and numbers without the time they took."""
    found: dict[str, bytes | str] = {}
    for path in sorted([*home.glob("data/**/*.parquet"), *home.glob("runs/miniqwen-26m/*/*.safetensors")]):
        found[str(path.relative_to(home))] = path.read_bytes()
    for path in sorted(home.glob("runs/**/results.json")):
        found[str(path.relative_to(home))] = CLOCKS.sub("", path.read_text())
    return found


@pytest.mark.slow
def test_killed_in_the_middle_of_each_stage_it_ends_with_the_same_numbers(tmp_path):
    homes = {name: tmp_path / name for name in ("straight", "killed")}
    for home in homes.values():
        lay_data(home)
        for command, name in chapters():
            write_yaml(home / name, **made_tiny(command, name))
    warm = Warm(*MODULES)
    try:
        for command, name in chapters():
            words = [command, "--config", name]
            done = warm.run(words, homes["straight"])
            assert done.code == 0, f"{name}: {done.said[-2000:]}"
            run = homes["killed"] / str(args.read_yaml(homes["killed"] / name).get("output_dir"))
            trains = command in cli.stages() and command != "tokenizer"
            # A stage as soon as it has saved once, with most of it still to come.
            first = {"halt": Halt(str(run / "checkpoint-1")), "meanwhile": kill_after(0)}
            how = first if trains else {"die_at": max(1, (done.steps or 2) // 2)}
            killed = warm.run(words, homes["killed"], **how)
            assert killed.code == -9, f"{name} was not killed: {killed.said[-500:]}"
            done = warm.run(words, homes["killed"])
            assert done.code == 0, f"{name}: {done.said[-2000:]}"
            if trains:
                steps = json.loads((run / "trainer_state.json").read_text())["global_step"]
                assert steps == 3 and "going on" in done.said.lower(), done.said[-1500:]
    finally:
        warm.close()
    straight, after = (ends(home) for home in homes.values())
    assert len(straight) > 15 and straight.keys() == after.keys()
    assert [name for name in straight if straight[name] != after[name]] == []
