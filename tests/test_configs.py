"""Every YAML under configs/ is read strictly by its own command, says how it is run, and adds up on its machine."""

import functools
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from suite import args, cli, rewards, source
from tests.conftest import ROOT

CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*.yaml"))
STAGES = cli.stages()
COMMANDS = sorted(cli.commands(), key=len, reverse=True)
# The second line of a config opens with one of these; of `6 + 2` GPUs six train and two serve vLLM.
GPUS = re.compile(r"# (?:One|(?P<train>\d+)(?: \+ \d+)? x) (?P<size>24|80) GB GPUs?[.:]")
CPU = re.compile(r"# (?:Two CPU cores|One of two CPU cores|Any CPU|Any machine)[,. ]")
LONGEST_PROMPT = 512  # where no --max_prompt_tokens says it; GSM8K's longest has 261 tokens, system prompt and all
WINDOWS = {"Qwen/Qwen2.5-Math-1.5B": 4096}
WINDOW = 32768  # what all other Qwen2.5 were trained on
INPUTS = ("model_name_or_path", "teacher_model_name_or_path", "tokenizer_name_or_path", "dataset_name", "checkpoints")
BLOCKS = ("model", "data", "method", "run")
RUN = {"output_dir", "resume_from_checkpoint", "use_cpu", "bf16", "gradient_checkpointing", "report_to", "seed",
       "log_completions", "num_completions_to_print"}  # fmt: skip


def command_of(path: Path) -> str:
    stem = re.sub(r"^\d+-", "", path.stem)
    return next(c for c in COMMANDS if stem == c or stem.startswith(f"{c}-"))


def trains(path: Path) -> bool:
    return command_of(path) in STAGES and command_of(path) != "tokenizer"


@functools.cache
def lines_of(path: Path) -> tuple[str, ...]:
    return tuple((ROOT / path).read_text(encoding="utf-8").splitlines())


@functools.cache
def written_in(path: Path) -> dict:
    return args.read_yaml(ROOT / path)


@functools.cache
def classes_of(path: Path) -> tuple[type, ...]:
    module = cli.module_of(command_of(path))
    return module.arguments(written_in(path)["name"]) if command_of(path) == "prepare" else module.arguments()


@functools.cache
def parsed(path: Path) -> tuple[dict, dict]:
    """(every key's value, what is written) as the command itself reads it."""
    on_cpu = ["--use_cpu", "true", "--bf16", "false"] if trains(path) and not is_for_cpu(path) else []
    *filled, _ = args.parse(classes_of(path), ["--config", str(ROOT / path), *on_cpu])
    return {k: v for instance in filled for k, v in vars(instance).items()}, written_in(path)


def is_for_cpu(path: Path) -> bool:
    return CPU.match(lines_of(path)[1]) is not None


def processes(path: Path) -> int:
    """How many train, by the header."""
    found = GPUS.match(lines_of(path)[1])
    return int(found["train"] or 1) if found else 1


@functools.cache
def prepared_by(path: Path) -> dict[str, str]:
    """Data directory -> the line that makes it, of every `suite prepare` in the file; each line must parse."""
    from suite import prepare

    found = {}
    for line in lines_of(path):
        _, is_there, words = line.partition("# suite prepare ")
        if is_there and not words.startswith("--config"):
            name, *rest = shlex.split(words)
            ours, *_ = args.parse(prepare.arguments(name), ["--name", name, *rest], needs_config=False)
            found[ours.output_dir or f"data/{name}"] = words
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_the_config_parses_strictly(path):
    _, written = parsed(path)
    for name in written.get("reward_funcs", []):
        rewards.load(name, written.get("reward_kwargs", {}).get(name))


def test_what_an_evaluation_says_of_a_stage_it_says_of_one_that_there_is():
    made = {Path(written_in(p)["output_dir"]).name for p in CONFIGS if trains(p)}
    for path in CONFIGS:
        if command_of(path) == "evaluate":
            assert set(written_in(path).get("metrics", {})) <= made, path


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_the_config_opens_with_its_command_and_its_machine(path):
    first, second, *_ = lines_of(path)
    assert first.startswith(f"# suite {command_of(path)} --config {path}"), first
    assert GPUS.match(second) or CPU.match(second), second
    words = shlex.split(first)
    launched = 1
    if "--launch" in words:
        launched = args.read_yaml(ROOT / words[words.index("--launch") + 1])["num_processes"]
    if "--num_processes" in words:
        launched = int(words[words.index("--num_processes") + 1])
    assert launched == processes(path)


@pytest.mark.parametrize("path", [p for p in CONFIGS if trains(p) and not is_for_cpu(p)], ids=str)
def test_the_memory_of_a_gpu_config_adds_up_and_fits(path):
    told = next(line for line in lines_of(path) if line.startswith("# Memory"))
    sums = re.findall(r"((?:[\w\- ]+ \d+\.\d \+ )+[\w\- ]+ \d+\.\d) = (\d+\.\d) GB", told)
    assert sums, told
    for parts, total in sums:
        assert sum(map(float, re.findall(r"(\d+\.\d)(?: \+|$)", parts))) == pytest.approx(float(total), abs=0.01)
        assert float(total) < 1.07 * int(GPUS.match(lines_of(path)[1])["size"])  # a card's GB are GiB


def test_no_config_pays_for_a_square_of_packed_rows_and_who_does_is_told_the_way_out(capsys):
    packed = [p for p in CONFIGS if trains(p) and written_in(p).get("packing")]
    assert len(packed) > 5
    for path in packed:
        values, _ = parsed(path)
        source.say_what_packing_costs(SimpleNamespace(**values), values["attn_implementation"])
        assert capsys.readouterr().out == "", path
    keys = {"packing": True, "packing_strategy": "bfd", "max_length": 4096, "per_device_train_batch_size": 4}
    for changed, attention, told in (
        ({}, None, "sdpa masks, and pays for, .* 16,384 x 16,384 tokens. `per_device_train_batch_size: 1` and 4 times"),
        ({"packing_strategy": "bfd_split"}, "eager", "eager masks, .* and 4 times"),
        ({"per_device_train_batch_size": 1, "max_length": 16384}, "sdpa", "nearly so long `packing: false` costs less"),
        ({}, "flash_attention_2", None),
        ({"packing": False}, None, None),
    ):
        source.say_what_packing_costs(SimpleNamespace(**{**keys, **changed}), attention)
        said = capsys.readouterr().out
        assert re.search(told, said) and said.count("\n") == 1 if told else not said


@pytest.mark.parametrize("path", [p for p in CONFIGS if command_of(p) == "grpo"], ids=str)
def test_the_batch_holds_whole_groups_on_the_machine_of_the_header(path):
    values, _ = parsed(path)
    steps = values["steps_per_generation"] or values["gradient_accumulation_steps"]
    batch = values["per_device_train_batch_size"] * processes(path) * steps
    assert batch % values["num_generations"] == 0 and values["num_generations"] >= 2
    assert processes(path) % values["vllm_tensor_parallel_size"] == 0


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_what_is_read_and_said_fits_the_window(path):
    values, written = parsed(path)
    model = str(written.get("model_name_or_path", ""))
    window = (written.get("model_init_kwargs") or {}).get("max_position_embeddings") or WINDOWS.get(model, WINDOW)
    room = values.get("vllm_max_model_length") if values.get("vllm_mode") != "server" else served_length(path)
    if trains(path) and values.get("max_length"):
        assert values["max_length"] <= window
    if room:
        limits = re.findall(r"--max_prompt_tokens (\d+)", "\n".join(lines_of(path)))
        assert values["max_completion_length"] + int(limits[0] if limits else LONGEST_PROMPT) <= room <= window


def served_length(path: Path) -> int:
    """Of the server whose command stands in the header."""
    command = next(line for line in lines_of(path) if "vllm serve" in line)
    return int(re.search(r"--max-model-len (\d+)", command)[1])


def test_the_server_is_started_with_what_the_trainer_needs():
    from trl.scripts.vllm_serve import ScriptArguments, build_command

    path = Path("configs/qwen2.5-7b/grpo-server.yaml")
    ours = shlex.split(next(line for line in lines_of(path) if "vllm serve" in line).removeprefix("# "))
    theirs = build_command(ScriptArguments(model=written_in(path)["model_name_or_path"]))
    needed = theirs[theirs.index("--weight-transfer-config") :]
    assert "processed_logprobs" in needed  # else the importance ratio forgets the temperature
    assert ours[:4] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve", written_in(path)["model_name_or_path"]]
    assert ours[-len(needed) :] == needed


def test_what_a_config_reads_is_made_by_another_or_by_the_line_it_names():
    outputs = {written_in(p).get("output_dir") for p in CONFIGS}
    for path in CONFIGS:
        written, prepared = written_in(path), prepared_by(path)
        for key in INPUTS:
            named = written.get(key) or []
            for value in named if isinstance(named, list) else [named]:
                if value.startswith(("runs/", "data/")):
                    made = re.sub(r"/checkpoint-\d+$", "", value)  # on the way to it
                    assert made in outputs or made in prepared, f"{path}: nobody writes {key} {value}"
        assert set(prepared) <= {written.get("dataset_name")}, f"{path} prepares what it does not read"


def test_a_data_directory_is_prepared_in_one_way():
    lines: dict[str, set] = {}
    for path in CONFIGS:
        for directory, words in prepared_by(path).items():
            lines.setdefault(directory, set()).add(words)
    assert {directory: found for directory, found in lines.items() if len(found) > 1} == {}


def test_no_two_configs_write_into_one_directory():
    made = [written_in(p).get("output_dir") for p in CONFIGS if command_of(p) not in ("evaluate", "report")]
    assert sorted(made) == sorted(set(made))


def kind_of(key: str, owner: str) -> str:
    if key in RUN or key.startswith(("logging_", "save_", "hub_", "push_to_hub")):
        return "run"
    if owner in ("ModelConfig", "ScratchArguments") or key.startswith("teacher_") or key == "model_init_kwargs":
        return "model"
    return "data" if owner in ("ScriptArguments", "DatasetMixtureConfig") else "method"


@pytest.mark.parametrize("path", [p for p in CONFIGS if trains(p)], ids=str)
def test_the_blocks_are_model_data_method_run(path):
    owners = {f.name: d.__name__ for d in classes_of(path) for f in fields(d)}
    body = "\n".join(line for line in lines_of(path) if not line.startswith("#"))
    blocks = [re.findall(r"^(\w+):", block, re.MULTILINE) for block in re.split(r"\n{2,}", body)]
    kinds = [{kind_of(key, owners[key]) for key in block} for block in blocks]
    assert kinds == [{kind} for kind in BLOCKS]


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parts[1].startswith("qwen2.5-")], ids=str)
def test_nothing_is_written_that_is_the_default_anyway(path):
    _, written = parsed(path)
    defaults = {
        f.name: f.default if f.default is not MISSING else f.default_factory()
        for d in classes_of(path)
        for f in fields(d)
        if f.default is not MISSING or f.default_factory is not MISSING
    }
    told = "per_device_train_batch_size"  # the default is 8, and no arithmetic can be followed without it
    assert {k: v for k, v in written.items() if k in defaults and defaults[k] == v and k != told} == {}


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_grpo_r1_pays_for_what_its_model_can_say(size):
    """R1-Distill's prompt has opened <think>, and its answers are boxed; our own model of traces writes <answer>."""
    _, written = parsed(Path(f"configs/qwen2.5-{size}/grpo-r1.yaml"))
    opened = size == "1.5b"
    answer = r"So it is \boxed{%s}." if opened else "<answer>%s</answer>"
    start = "" if opened else "<think>"
    said = {
        "right": f"{start}6 times 7.</think>\n{answer % 42}",
        "wrong": f"{start}6 times 7.</think>\n{answer % 43}",
        "never closed": f"{start}6 times 7 is {answer % 42}",
    }
    funcs = rewards.load_all(written["reward_funcs"], written["reward_kwargs"], think_opened=opened)
    rows = {
        "solution": ["42"] * 3,
        "prompts": [[{"role": "user", "content": "6 * 7?"}]] * 3,
        "completion_ids": [[0]] * 3,
    }
    completions = [[{"role": "assistant", "content": text}] for text in said.values()]
    scores = [func(completions=completions, **rows) for func in funcs]
    right, wrong, open_ended = (
        sum(weight * score for weight, score in zip(written["reward_weights"], column, strict=True))
        for column in zip(*scores, strict=True)
    )
    best = sum(
        w for w, name in zip(written["reward_weights"], written["reward_funcs"], strict=True) if name != "overlong"
    )
    assert right == best > wrong >= open_ended
