"""Two processes under DDP, ZeRO-2, ZeRO-3 and FSDP2 learn what one process learns, by the files of accelerate_configs/.

Each engine is launched once and looked at by several tests. An engine that is not there falls back to another in
silence (FSDP2 without a GPU to DDP, a wrong launch to one process), so every test first asserts what it looks at.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ON_CPU, ROOT, run_suite, write_yaml

pytestmark = pytest.mark.slow

ENGINES = ("ddp", "zero2", "zero3", "fsdp2")
CONFIGS = ROOT / "accelerate_configs"
# What makes a GPU file run on two CPU processes; port 0 takes a free one.
OVERRIDES = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
# Two processes on few cores: more threads only stand in each other's way.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
SECONDS = 400  # the first DeepSpeed run on a machine compiles a gloo op: one minute, or three on busy cores


def launch(engine: str, *words, cwd: Path) -> str:
    """`accelerate launch` of a module with a file of accelerate_configs/; what it printed. Leaves no process behind."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{engine}.yaml"]
    process = subprocess.Popen(
        [str(word) for word in (*command, *OVERRIDES, "-m", *words)],
        cwd=cwd,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, printed[-4000:]
    return printed


@pytest.fixture(scope="module")
def config(tmp_path_factory, miniqwen_dir, arithmetic_dir) -> Path:
    """SFT for five steps of eight answers of unequal length: four at a time, twice."""
    return write_yaml(
        tmp_path_factory.mktemp("config") / "sft.yaml",
        model_name_or_path=str(miniqwen_dir),
        dataset_name=str(arithmetic_dir),
        eos_token="<|im_end|>",
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=5,
        logging_steps=1,
        save_strategy="no",
    )


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    """The checkpoint of one process."""
    from suite.train import sft

    target = tmp_path_factory.mktemp("alone") / "sft"
    sft.main(["--config", str(config), *ON_CPU, "--output_dir", str(target)])
    return target


@pytest.fixture(scope="module", params=ENGINES)
def launched(request, config, tmp_path_factory) -> tuple[str, list[dict], Path]:
    """(engine, what each rank saw of it, checkpoint) of the same SFT on two processes, two answers at a time."""
    engine, target = request.param, tmp_path_factory.mktemp(request.param)
    stage = ("tests.fsdp2_launcher", "sft") if engine == "fsdp2" else ("suite.train.sft",)
    words = ["--config", config, *ON_CPU, "--per_device_train_batch_size", "2", "--output_dir", "sft"]
    launch(engine, "tests.engine_probe", "facts", *stage, *words, cwd=target)
    ranks = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(target.glob("facts.*"))]
    return engine, ranks, target / "sft"


def assert_real(engine: str, ranks: list[dict]) -> None:
    """Two ranks, both of them under this engine and no other."""
    assert [facts["world_size"] for facts in ranks] == [2, 2], ranks
    for facts in ranks:
        sharded = engine == "fsdp2"
        assert facts["is_fsdp_enabled"] == sharded, facts
        assert facts["dtensors"] == (facts["parameters"] if sharded else 0), facts
        assert facts["is_deepspeed_enabled"] == engine.startswith("zero"), facts
        assert facts["zero_stage"] == {"zero2": 2, "zero3": 3}.get(engine), facts
        assert facts["ds_shapes"] == (facts["parameters"] if engine == "zero3" else 0), facts
    wrapper = {"ddp": "DistributedDataParallel", "fsdp2": "FSDPMiniQwenForCausalLM"}.get(engine, "DeepSpeedEngine")
    assert {facts["wrapper"] for facts in ranks} == {wrapper}


def logged(run: Path, key: str) -> list[float]:
    """One value per optimizer step."""
    history = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[key] for entry in history if key in entry]


def parameters(checkpoint: Path) -> dict:
    """What plain `from_pretrained` reads, tied weights under both their names."""
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    model, told = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return dict(model.named_parameters(remove_duplicate=False))


def test_two_processes_have_the_loss_of_one_at_every_step(launched, alone):
    engine, ranks, run = launched
    assert_real(engine, ranks)
    assert len(logged(alone, "loss")) == 5
    assert logged(run, "loss") == pytest.approx(logged(alone, "loss"), abs=1e-3)
    assert logged(run, "grad_norm") == pytest.approx(logged(alone, "grad_norm"), abs=1e-3)


def test_from_pretrained_reads_the_weights_that_one_process_learned(launched, alone, miniqwen_dir):
    import torch

    engine, ranks, run = launched
    assert_real(engine, ranks)
    start, one, two = parameters(miniqwen_dir), parameters(alone), parameters(run)
    assert two.keys() == one.keys()
    for name, weight in two.items():
        torch.testing.assert_close(weight, one[name], atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
        # A tolerance is worth nothing where the weight hardly moved.
        assert (one[name] - start[name]).abs().max() > 1e-3, name


def test_what_is_sharded_is_held_in_halves(launched):
    engine, ranks, _ = launched
    assert_real(engine, ranks)
    held = [facts["local_elements"] / facts["elements"] if facts["elements"] else 0 for facts in ranks]
    # ZeRO-3's parameters are empty between layers; ZeRO-2 and DDP keep all of them everywhere.
    assert held == {"fsdp2": [0.5, 0.5], "zero3": [0, 0]}.get(engine, [1, 1])
    layers = [name for name in ranks[0]["sharded_modules"] if "DecoderLayer" in name]
    assert layers == (["FSDPMiniQwenDecoderLayer"] * 2 if engine == "fsdp2" else [])


@pytest.mark.parametrize("kind", ["qwen2_dir", "miniqwen_dir"])
def test_fsdp2_without_a_named_class_wraps_the_decoder_layers_of_both_models(kind, request, monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401
    from suite import args

    for key, value in args.read_yaml(CONFIGS / "fsdp2.yaml")["fsdp_config"].items():  # as `accelerate launch` does
        monkeypatch.setenv(key.upper(), str(value).lower() if isinstance(value, bool) else str(value))
    model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(kind))
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(model)
    wrapped_alone = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert [m for m in model.modules() if wrapped_alone(m)] == list(model.model.layers)


def test_a_misspelt_key_ends_two_processes_with_one_line(config, tmp_path):
    words = ["sft", "--config", config, *ON_CPU, "--learning_rat", "1", "--output_dir", tmp_path / "sft"]
    ended = run_suite(*words, "--launch", CONFIGS / "ddp.yaml", *OVERRIDES, env=ENVIRONMENT, timeout=120)
    assert ended.returncode != 0
    printed = (ended.stdout + ended.stderr).splitlines()
    assert [line for line in printed if line.startswith("suite:")] == [
        "suite: Unknown key 'learning_rat' in the command line. Did you mean 'learning_rate'?"
    ]
    assert not (tmp_path / "sft").exists()
