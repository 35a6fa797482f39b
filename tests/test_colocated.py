"""GRPO on two processes, each with a vLLM of its own inside: both sample from the weights both have just trained."""

from pathlib import Path

import pytest

from tests.conftest import HEADS_OF_32, ON_CPU, save_model, write_yaml
from tests.engines import assert_real, facts, launcher, logged, run
from tests.test_vllm import DIFFERENCE, cpu_vllm, difference_of_logprobs  # noqa: F401  (cpu_vllm is a fixture)
from tests.test_vllm import ENVIRONMENT as ONE_GIB_OF_CACHE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_two_vllms_sample_from_the_weights_just_trained(
    cpu_vllm,  # noqa: F811
    engine,
    tokenizer_dir,
    arithmetic_dir,
    tmp_path,
):
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    # vLLM rounds the float32 weights to bfloat16, and the larger the logits, the more that shows.
    shape = {**HEADS_OF_32, "initializer_range": 0.05}
    start = save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, tmp_path / "start", **shape)
    config = write_yaml(
        tmp_path / "grpo.yaml",
        model_name_or_path=str(start),
        dataset_name=str(arithmetic_dir),
        reward_funcs=["tests.engines.letters_reward"],
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=128,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=24,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
    )
    run([*launcher(engine), "-m", "tests.engine_probe", "out", config, "--", *ON_CPU], tmp_path, **ONE_GIB_OF_CACHE)

    assert_real(engine, facts(Path("out"), "grpo"))
    differences = logged(Path("out/grpo"), DIFFERENCE)
    assert len(differences) == 2
    assert max(differences) < 0.01, differences
    assert logged(Path("out/grpo"), "reward_std")[0] > 0
    moved = difference_of_logprobs(start, Path("out/grpo"))
    assert moved > 0.1, f"the weights moved logprobs by {moved} only: step 2 would not show a sync that is missing"
