"""A run that is killed at any moment goes on as if nothing had happened, and leaves nothing that is taken for whole and
is not."""

import functools
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests import crashes
from tests.crashes import Runner, Straight
from tests.warm import Warm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def warm():
    server = Warm(*crashes.MODULES)
    yield server
    server.close()


@pytest.fixture(scope="module")
def runners(warm, tmp_path_factory, arithmetic_dir, miniqwen_dir, tokenizer_dir) -> dict[str, Runner]:
    home = tmp_path_factory.mktemp("crashes")
    configs = crashes.configs(home, arithmetic_dir, miniqwen_dir, tokenizer_dir)
    return {stage: Runner(warm, stage, config, home / stage) for stage, config in configs.items()}


@pytest.fixture(scope="module")
def straight(runners) -> Callable[[str], Straight]:
    return functools.cache(lambda stage: Straight.of(runners[stage]))


@pytest.mark.parametrize("stage", crashes.STAGES)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_end(stage, runners, straight):
    found = crashes.kill_often(runners[stage], straight(stage), 3, seed=0)
    assert found["killed"] == 3 and found["went on to the same end"] >= 1


@pytest.mark.soak
def test_thirty_kills_a_stage_go_on_to_the_same_end(runners, straight):
    begun, told = time.monotonic(), {}
    for number, stage in enumerate(crashes.STAGES):
        told[stage] = crashes.kill_often(runners[stage], straight(stage), 30, seed=number + 1)
    total = sum(told.values(), Counter())
    print("\n".join(f"{stage}: {dict(sorted(found.items()))}" for stage, found in {**told, "all": total}.items()))
    assert total["killed"] == 30 * len(crashes.STAGES) and total["in a save"] >= 30
    assert time.monotonic() - begun < 20 * 60
