"""The real command line over configs/smoke: the chapters chained in one process, then again, and each file alone."""

import json
import re

import pytest

from tests.conftest import ROOT, run_suite
from tests.crashes import MODULES
from tests.warm import Warm

pytestmark = pytest.mark.slow
SMOKE = ROOT / "configs" / "smoke"


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """`suite run configs/smoke` in an empty directory."""
    home = tmp_path_factory.mktemp("smoke")
    done = run_suite("run", SMOKE, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return home, done.stdout


@pytest.fixture(scope="module")
def warm():
    server = Warm(*MODULES)
    yield server
    server.close()


def test_the_whole_life_runs_and_every_stage_leaves_a_checkpoint(life):
    home, said = life
    for stage in ("pretrain", "sft", "sft-traces", "dpo", "grpo", "distill"):
        record = json.loads((home / "runs/smoke" / stage / "run.json").read_text())
        assert record["finished"] and record["steps"] > 0
        assert (home / "runs/smoke" / stage / "model.safetensors").is_file()
    assert (home / "runs/smoke/sft-lora/adapter_model.safetensors").is_file()
    assert json.loads((home / "data/smoke-rft/sample.json").read_text())["answers"]["kept"] > 0
    assert "$ suite grpo --config" in said


def test_results_hold_one_object_a_stage_in_order_and_rows_one_line_a_completion(life):
    home, _ = life
    results = json.loads((home / "runs/smoke/results.json").read_text())
    told = {"pretrain": "bits_per_byte", "sft": "format", "sft-traces": "thinking", "dpo": "preferred",
            "grpo": "accuracy", "distill": "accuracy"}  # fmt: skip
    assert {r["stage"]: r["metric"] for r in results} == told and list(told) == [r["stage"] for r in results]
    by_name = {r["checkpoint"]: r for r in results}
    for result in results:
        assert {"stage", "accuracy", "before", "after", "ci95", "format", "n", "seconds"} <= result.keys()
        low, high = result["ci95"]
        assert low <= result["after"] == result["metrics"][result["metric"]]["value"] <= high and result["n"] == 32
        assert {"strict", "lenient", "truncated", "tokens", "sampled", "pass@2"} <= result["metrics"].keys()
        if result["stage"] != "pretrain":
            assert result["before"] == by_name[result["started_from"]]["metrics"][result["metric"]]["value"]
    assert results[0]["before"] == results[0]["guessing"] > results[0]["after"]
    rows = [json.loads(line) for line in (home / "runs/smoke/rows.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * 32 * (1 + 2)


def test_the_report_is_one_page_with_its_pictures_inside(life):
    home, said = life
    page = (home / "runs/smoke/report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((home / "runs/smoke/report").glob("*.png"))) > 8
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", page)  # four letters of a picture may happen to be these
    names = {p.stem for p in (home / "runs/smoke/report").glob("*.png")}
    panels = {"reward", "kl", "entropy", "completion-length"}
    assert {f"grpo-{panel}" for panel in panels} | {"sft-loss", "pretrain-loss", "before-after"} <= names
    assert "stage" in said and "lenient" in said


def test_tensorboard_works_offline(life):
    home, _ = life
    assert list((home / "runs/smoke/grpo").rglob("events.out.tfevents.*"))


def test_rewards_are_logged_raw_and_the_weight_that_moves_beside_them(life):
    home, _ = life
    state = json.loads((home / "runs/smoke/grpo/trainer_state.json").read_text())
    logged = [entry for entry in state["log_history"] if "reward" in entry]
    assert [entry["reward_weights/tags"] for entry in logged] == [0.5, 0.25, 0.0]
    for entry, weight in zip(logged, [0.5, 0.25, 0.0], strict=True):
        raw = {n: entry[f"rewards/{n}_reward/mean"] for n in ("accuracy", "format", "tags", "length", "overlong")}
        weights = {"accuracy": 1.0, "format": 0.5, "tags": weight, "length": 0.1, "overlong": 0.1}
        assert entry["reward"] == pytest.approx(sum(weights[n] * raw[n] for n in raw), abs=1e-5)
        assert entry["verify/timeouts"] == entry["verify/unreadable_golds"] == 0


def test_running_it_again_reuses_everything_and_says_so(life, warm):
    home, _ = life
    before = (home / "runs/smoke/grpo/model.safetensors").stat().st_mtime_ns
    done = warm.run(["run", SMOKE], home)
    assert done.code == 0, done.said[-3000:]
    assert done.said.count("holds this very run, complete") == 8
    assert done.said.count("holds these very answers already") == 1
    assert done.said.count("already evaluated this way") == 6 and "holds these very rows already" in done.said
    assert (home / "runs/smoke/grpo/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["2-tokenizer", "3-pretrain", "4-sft", "5-sft-lora", "8-grpo"])
def test_each_file_runs_alone(life, warm, name, tmp_path):
    home, _ = life
    command = name.split("-")[1]
    done = warm.run([command, "--config", SMOKE / f"{name}.yaml", "--output_dir", tmp_path / "alone"], home)
    assert done.code == 0, done.said[-3000:]
    assert json.loads((tmp_path / "alone/run.json").read_text())["finished"]


def test_the_stop_token_agrees_everywhere_after_sft(life):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    import suite.model  # noqa: F401

    home, _ = life
    tokenizer = AutoTokenizer.from_pretrained(home / "runs/smoke/sft")
    assert tokenizer.eos_token == "<|im_end|>"
    assert AutoConfig.from_pretrained(home / "runs/smoke/sft").eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in GenerationConfig.from_pretrained(home / "runs/smoke/sft").eos_token_id
