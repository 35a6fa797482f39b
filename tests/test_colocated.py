"""GRPO on two processes, each with a vLLM of its own inside: both sample from the weights both have just trained, and a
run that goes on samples, and answers test rows with, what it would have."""

import functools
from pathlib import Path

import pytest

from tests.conftest import HEADS_OF_32, ON_CPU, run_suite, save_model, write_yaml
from tests.engines import assert_real, facts, launcher, logged, run
from tests.resume import cut_off, differences
from tests.test_vllm import DIFFERENCE, cpu_vllm, difference_of_logprobs  # noqa: F401  (cpu_vllm is a fixture)
from tests.test_vllm import ENVIRONMENT as ONE_GIB_OF_CACHE

pytestmark = pytest.mark.slow
# ZeRO-3 has to gather each weight before vLLM gets it. DDP, where each rank holds all of them, is left to the soak.
ENGINES = pytest.mark.parametrize("engine", [pytest.param("ddp", marks=pytest.mark.soak), "zero3"])


@pytest.fixture(scope="module")
def start(tokenizer_dir, tmp_path_factory) -> Path:
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    # vLLM rounds the float32 weights to bfloat16, and the larger the logits, the more that shows.
    shape = {**HEADS_OF_32, "initializer_range": 0.05}
    return save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, tmp_path_factory.mktemp("start"), **shape)


@pytest.fixture(scope="module")
def runs(cpu_vllm, start, arithmetic_dir, tmp_path_factory):  # noqa: F811
    """Engine -> the directory of its run `grpo`, which is launched once."""

    @functools.cache
    def launched(engine: str) -> Path:
        home = tmp_path_factory.mktemp(engine)
        write_yaml(
            home / "grpo.yaml",
            model_name_or_path=str(start),
            dataset_name=str(arithmetic_dir),
            reward_funcs=["tests.engines.letters_reward"],
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=128,
            num_generations=8,  # of one prompt: half of them on each rank
            per_device_train_batch_size=4,
            max_completion_length=24,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            max_steps=2,
            logging_steps=1,
            save_steps=1,
            log_completions=True,
            eval_strategy="steps",
            eval_steps=1,
            eval_answers=4,
            num_generations_eval=2,
            per_device_eval_batch_size=4,
        )
        launch(engine, home, "grpo.yaml")
        return home

    return launched


def launch(engine: str, home: Path, config: str, *words: str) -> None:
    run([*launcher(engine), "-m", "tests.engine_probe", ".", config, "--", *ON_CPU, *words], home, **ONE_GIB_OF_CACHE)


@ENGINES
def test_two_vllms_sample_from_the_weights_just_trained(runs, engine, start):
    out = runs(engine)
    assert_real(engine, facts(out, "grpo"))
    found = logged(out / "grpo", DIFFERENCE)
    assert len(found) == 2
    assert max(found) < 0.01, found
    assert logged(out / "grpo", "reward_std")[0] > 0
    moved = difference_of_logprobs(start, out / "grpo")
    assert moved > 0.1, f"the weights moved logprobs by {moved} only: step 2 would not show a sync that is missing"


@ENGINES
def test_a_run_that_goes_on_samples_the_completions_it_would_have_sampled(runs, engine):
    out = runs(engine)
    first, second = (sampled(out / "grpo", step) for step in (1, 2))
    assert len(set(first)) == len(set(second)) == 8  # the members of a group, on both ranks, are samples of their own
    (out / "grpo.yaml").rename(out / "grpo-resumed.yaml")
    cut_off(out / "grpo", 1, out / "grpo-resumed")
    launch(engine, out, "grpo-resumed.yaml", "--resume_from_checkpoint", "true")
    assert sampled(out / "grpo-resumed", 2) == second
    assert len(logged(out / "grpo", "eval_accuracy")) == 2  # answered by those vLLMs, on the way
    found = differences(out / "grpo", out / "grpo-resumed", 2)
    assert max(found.values()) < 1e-6, found


def test_vllm_is_imported_where_it_is_wanted_only_and_then_works_where_trl_was_imported_without(
    cpu_vllm,  # noqa: F811
    start,
    arithmetic_dir,
    tmp_path,
):
    (tmp_path / "ours.py").write_text(
        "import sys\n\n"
        "def vllm_reward(completions, **rest):\n    return [float('vllm' in sys.modules)] * len(completions)\n"
    )
    shared = dict(
        model_name_or_path=str(start),
        dataset_name=str(arithmetic_dir),
        reward_funcs=["ours.vllm_reward"],
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=24,
        max_steps=1,
        logging_steps=1,
    )
    (tmp_path / "life").mkdir()
    write_yaml(tmp_path / "life/1-grpo-without.yaml", **shared, output_dir="without")
    asked = {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 128}
    write_yaml(tmp_path / "life/2-grpo-with.yaml", **shared, **asked, output_dir="with")
    done = run_suite("run", "life", *ON_CPU, cwd=tmp_path, env=ONE_GIB_OF_CACHE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert logged(tmp_path / "without", "rewards/vllm_reward/mean") == [0]
    assert logged(tmp_path / "with", "rewards/vllm_reward/mean") == [1]
    (difference,) = logged(tmp_path / "with", DIFFERENCE)
    assert 0 < difference < 0.01


def sampled(run: Path, step: int) -> list[str]:
    """The completions of a step, as TRL writes them down."""
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(run / "completions" / f"completions_{step:05d}.parquet"))["train"]
    assert len(set(map(str, rows["prompt"]))) == 1
    return list(map(str, rows["completion"]))
