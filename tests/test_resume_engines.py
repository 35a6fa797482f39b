"""A run that was cut off goes on under DDP, ZeRO-2, ZeRO-3 and FSDP2, whole and as LoRA, as if nothing had happened.

One launch an engine: in its two processes every stage runs straight through, is cut off in the middle and goes on. A
few cells of the table in docs/resume.md are measured in every test run, and the whole table by the soak.
"""

import functools
import json
from pathlib import Path

import pytest

from tests.conftest import ON_CPU, ROOT, write_yaml
from tests.engines import assert_real, facts, launcher, run
from tests.resume import differences
from tests.test_resume import LORA, STEPS, made  # noqa: F401  (made is a fixture)

STAGES = ("pretrain", "sft", "dpo", "distill", "grpo")
# Title of the column -> (engine, what stands behind a stage's name).
COLUMNS = {
    "one process": (None, ""),
    "LoRA": (None, "-lora"),
    "DDP": ("ddp", ""),
    "ZeRO-2": ("zero2", ""),
    "ZeRO-3": ("zero3", ""),
    "FSDP2": ("fsdp2", ""),
    "DDP, LoRA": ("ddp", "-lora"),
    "ZeRO-3, LoRA": ("zero3", "-lora"),
    "FSDP2, LoRA": ("fsdp2", "-lora"),
}
# Each stage with what is hardest to go on with.
KEYS = {
    "pretrain": {"dataset_streaming": True, "packing": True},
    "sft": {"packing": True, "tag_weight": 3.0},
    "dpo": {"sync_ref_model": True, "ref_model_sync_steps": 2},
    "distill": {"lmbda": 0.5},
    "grpo": {"num_iterations": 3, "beta": 0.1},  # the cut falls between the second and the third use of a rollout
}
ROWS = {"sft": "thoughts"}
# LoRA's reference is the model without it, and does not move; with dropout the policy that samples is another one.
LORA_KEYS = {
    "sft": {},
    "dpo": {"sync_ref_model": False, "ref_model_sync_steps": 512},
    "distill": {"lora_dropout": 0.0},
    "grpo": {"lora_dropout": 0.0},
}
# Of no column: 18 rows are three steps, and the cut falls into the second epoch, behind batches that each rank skips.
BALANCED = {"sft-balanced": {"train_sampling_strategy": "batch_rebalance"}}
CELLS = {"ddp": ("pretrain", "grpo", *BALANCED), "zero3": ("dpo", "sft-lora"), "fsdp2": ("sft", "distill", "grpo-lora")}


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):  # noqa: F811
    """(engine, names) -> the directory of their runs, straight and resumed. Each is launched once."""

    @functools.cache
    def launched(engine: str | None, names: tuple[str, ...]) -> Path:
        home = tmp_path_factory.mktemp(engine or "alone")
        configs = [write_yaml(home / f"{name}.yaml", **keys_of(name, made)) for name in names]
        words = ["-m", "tests.engine_probe", home / "runs", *configs, "--cut", 5, "--", *ON_CPU]
        run([*launcher(engine), *words], cwd=home)
        return home / "runs"

    return launched


def keys_of(name: str, made: dict) -> dict:  # noqa: F811
    """The config of a cell: 10 steps, saved at the fifth."""
    if name in BALANCED:
        return {**STEPS, **made["thoughts"], **BALANCED[name]}
    stage, _, lora = name.partition("-")
    keys = {**STEPS, **made[ROWS.get(stage, stage)], **KEYS[stage]}
    return {**keys, **LORA, **LORA_KEYS[stage]} if lora else keys


def measure(engine: str | None, out: Path, name: str) -> float:
    """The largest difference between a straight run and the resumed one, which must be less than what is promised."""
    for one in (name, f"{name}-resumed"):
        assert_real(engine, facts(out, one))
    found = differences(out / name, out / f"{name}-resumed", 10)
    assert max(found.values()) < 1e-6, (engine, name, found)
    return max(found.values())


def names_of(engine: str | None) -> tuple[str, ...]:
    """The cells of an engine's columns."""
    ends = [end for theirs, end in COLUMNS.values() if theirs == engine]
    return tuple(stage + end for end in ends for stage in STAGES if not end or stage in LORA_KEYS)


@pytest.mark.slow
@pytest.mark.parametrize("engine", CELLS)
def test_a_run_goes_on_as_if_nothing_had_happened(runs, engine):
    for name in CELLS[engine]:
        measure(engine, runs(engine, CELLS[engine]), name)


@pytest.mark.slow
def test_a_model_that_fsdp2_has_sharded_is_saved_with_its_own_code(runs):
    """FSDP2 gives it a class of its own, from a file of torch's."""
    saved = runs("fsdp2", CELLS["fsdp2"]) / "sft"
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["MiniQwenForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling.MiniQwenForCausalLM"
    assert (saved / "modeling.py").is_file() and not list(saved.glob("_fsdp*"))


def test_these_cells_are_of_every_stage_and_of_every_engine_that_is_promised():
    """The columns of one process are in tests/test_resume.py, bit for bit."""
    assert {name.partition("-")[0] for names in CELLS.values() for name in names} == set(STAGES)
    assert CELLS.keys() == {"ddp", "zero3", "fsdp2"}
    assert all(name in (*names_of(engine), *BALANCED) for engine, names in CELLS.items() for name in names)


@pytest.mark.soak
def test_the_page_on_resuming_shows_these_differences(runs):
    measured = {
        stage: [
            measure(engine, runs(engine, names_of(engine)), stage + end) if stage + end in names_of(engine) else None
            for engine, end in COLUMNS.values()
        ]
        for stage in STAGES
    }
    page = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    shown = {
        name: [None if cell == "—" else float(cell) for cell in cells_of_line]
        for line in page.splitlines()
        for name, *cells_of_line in [[cell.strip() for cell in line.strip("|").split("|")]]
        if name in STAGES and cells_of_line
    }
    told = "docs/resume.md shows another table; this is today's:\n" + table(measured)
    assert shown.keys() == measured.keys(), told
    for stage in STAGES:
        assert [cell is None for cell in shown[stage]] == [cell is None for cell in measured[stage]], told
        for on_page, today in zip(shown[stage], measured[stage], strict=True):
            assert on_page is None or on_page == pytest.approx(today, rel=9, abs=1e-8), told


def table(measured: dict[str, list[float | None]]) -> str:
    """The table as docs/resume.md holds it."""
    head = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines = [
        f"| {stage} | " + " | ".join("—" if cell is None else f"{cell:.2g}" for cell in cells) + " |"
        for stage, cells in measured.items()
    ]
    return "\n".join(head + lines)
