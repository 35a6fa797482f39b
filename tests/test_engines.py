"""SFT, DPO, GRPO and distillation on two processes under DDP, ZeRO-2, ZeRO-3 and FSDP2 learn what one process learns.

Each engine is launched once, runs every stage in the same two processes and is looked at by many tests.
"""

import functools
import json
import random
import subprocess
from pathlib import Path

import pytest

from suite.keys import ANSWERS
from suite.train import sft
from tests.conftest import ON_CPU, ROOT, run_suite, save_model, write_yaml
from tests.engines import CONFIGS, ENGINES, ENVIRONMENT, OVERRIDES, assert_real, facts, launcher, logged, run
from tests.rows import taught_rows, write_rows

pytestmark = pytest.mark.slow

STEPS = 4
ANSWERED, TAUGHT_STEPS = 11, 48
STAGES = ("sft", "dpo", "grpo")
TAUGHT = ("distill",)
EXPERTS = ("sft-experts",)
ANSWERING = ("sft-answers", "sft-answers-lora")
ADAPTERS = tuple(f"{stage}-lora" for stage in STAGES)
COLUMNS = {None: "one process", "ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}


@pytest.fixture(scope="module")
def preferences_dir(arithmetic_dir, tmp_path_factory) -> Path:
    """The sums again: worked out is better than zeros, of unequal number."""
    from datasets import Dataset, load_dataset

    target = tmp_path_factory.mktemp("data") / "preferences"
    target.mkdir()
    sums = load_dataset("parquet", data_files=str(arithmetic_dir / "train.parquet"), split="train")
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": [{"role": "assistant", "content": "0" * (1 + number % 9)}],
        }
        for number, row in enumerate(sums)
    ]
    Dataset.from_list(rows).to_parquet(str(target / "train.parquet"))
    return target


def rollouts(tokenizer_dir: Path, completions: int) -> list[list[list[int]]]:
    """[step][completion]: any tokens, of unequal number, ended as a model would end them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    plain = sorted(set(range(len(tokenizer))) - set(tokenizer.get_added_vocab().values()))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rng = random.Random(0)
    return [[[*rng.choices(plain, k=rng.randint(3, 15)), end] for _ in range(completions)] for _ in range(STEPS)]


@pytest.fixture(scope="module")
def teacher_dir(tokenizer_dir, tmp_path_factory) -> Path:
    """Surer of itself than the student, and of other things."""
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    target = tmp_path_factory.mktemp("teacher")
    return save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, target, initializer_range=0.2)


@pytest.fixture(scope="module")
def experts_dir(tokenizer_dir, tmp_path_factory) -> Path:
    """A mixture of experts, of which some batch will leave some alone."""
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    target = tmp_path_factory.mktemp("experts")
    return save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, target, num_experts=8)


@pytest.fixture(scope="module")
def sevens(miniqwen_dir, tmp_path_factory) -> tuple[Path, Path]:
    """(a model that has learned to say 7, rows where that is right in half)."""
    home = tmp_path_factory.mktemp("sevens")
    write_rows(home / "rows" / "train.parquet", taught_rows(32, "7"))
    write_rows(home / "rows" / "test.parquet", taught_rows(ANSWERED, "7788"))
    config = write_yaml(
        home / "sft.yaml",
        model_name_or_path=str(miniqwen_dir),
        dataset_name=str(home / "rows"),
        output_dir=str(home / "model"),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        max_steps=TAUGHT_STEPS,
        save_strategy="no",
    )
    sft.main(["--config", str(config), *ON_CPU])
    return home / "model", home / "rows"


@pytest.fixture(scope="module")
def configs(
    tmp_path_factory,
    miniqwen_dir,
    experts_dir,
    teacher_dir,
    tokenizer_dir,
    arithmetic_dir,
    preferences_dir,
    sevens,
) -> list[Path]:
    """Each stage whole and as LoRA, four rows at a time, accumulated: half as many at a time on two processes."""
    directory = tmp_path_factory.mktemp("config")
    common = {
        "model_name_or_path": str(miniqwen_dir),
        "dataset_name": str(arithmetic_dir),
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_dropout": 0.0, "learning_rate": 1e-2}
    own = {
        "sft": {},
        "dpo": {"dataset_name": str(preferences_dir)},
        "grpo": {
            "reward_funcs": ["tests.engines.letters_reward"],
            "num_generations": 4,
            "gradient_accumulation_steps": 3,  # 12 completions a step: of three groups, the second lies on both ranks
            "max_completion_length": 16,
            "beta": 0.5,  # at ratio 1 the rest of the loss does not know the weights
        },
        "distill": {"teacher_model_name_or_path": str(teacher_dir), "lmbda": 0.0, "beta": 0.5},
        # The balance of half a batch is another's: each rank would add its own.
        "sft-experts": {"model_name_or_path": str(experts_dir), "router_aux_loss_coef": 0.0},
    }
    asked = {
        "model_name_or_path": str(sevens[0]),
        "dataset_name": str(sevens[1]),
        "learning_rate": 1e-5,
        "max_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "eval_answers": ANSWERED,
        "max_completion_length": 24,
        "per_device_eval_batch_size": 1,
    }
    (directory / "grpo.rollouts.json").write_text(json.dumps(rollouts(tokenizer_dir, 12)), encoding="utf-8")
    whole = [write_yaml(directory / f"{stage}.yaml", **common | own[stage]) for stage in STAGES + TAUGHT + EXPERTS]
    adapters = [write_yaml(directory / f"{stage}-lora.yaml", **common | own[stage] | lora) for stage in STAGES]
    answers = [
        write_yaml(directory / "sft-answers.yaml", **common | asked),
        write_yaml(directory / "sft-answers-lora.yaml", **common | lora | asked),
    ]
    return whole + adapters + answers


@pytest.fixture(scope="module")
def runs(configs, tmp_path_factory):
    """Engine, or None for one process -> the directory of its runs. Each is launched once, when it is asked for."""

    @functools.cache
    def launched(engine: str | None) -> tuple[Path, Exception | None]:
        target = tmp_path_factory.mktemp(engine or "alone")
        halved = ["--per_device_train_batch_size", 2] if engine else []
        words = ["-m", "tests.engine_probe", target, *configs, "--", *ON_CPU, *halved]
        try:
            run([*launcher(engine), *words], cwd=target)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return target, error
        return target, None

    def out(engine: str | None) -> Path:
        target, error = launched(engine)
        if error:  # to everyone who asks, without another launch
            raise error
        return target

    return out


def parameters(checkpoint: Path) -> dict:
    """What plain `from_pretrained` reads, tied weights under both their names."""
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401  (the Auto classes learn miniqwen)

    model, told = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return dict(model.named_parameters(remove_duplicate=False))


def assert_same_and_moved(two: dict, one: dict, start: dict) -> None:
    """Two checkpoints agree, and a tolerance is worth nothing where a weight hardly moved."""
    import torch

    assert two.keys() == one.keys()
    for name, weight in two.items():
        torch.testing.assert_close(weight, one[name], atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
        assert (one[name] - start[name]).abs().max() > 1e-3, name


@pytest.mark.parametrize("stage", STAGES + TAUGHT + EXPERTS + ADAPTERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_have_the_loss_of_one_at_every_step(runs, engine, stage):
    one, two = runs(None), runs(engine)
    assert_real(None, facts(one, stage))
    assert_real(engine, facts(two, stage))
    for key in ("loss", "grad_norm"):
        expected = logged(one / stage, key)
        assert len(expected) == STEPS and len(set(expected)) == STEPS, expected
        assert logged(two / stage, key) == pytest.approx(expected, rel=1e-3), key


@pytest.mark.parametrize("stage", ["dpo", "grpo", "dpo-lora", "grpo-lora"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_reference_is_the_starting_model_on_every_rank(runs, engine, stage):
    """TRL shards a reference as each rank has read it: whoever read nothing holds noise."""
    ranks = facts(runs(engine), stage)
    assert_real(engine, ranks)
    assert [rank["reference"] is None for rank in ranks] == [stage in ADAPTERS] * 2  # LoRA's is the model without it
    first, *later = logged(runs(engine) / stage, "kl" if stage.startswith("grpo") else "rewards/margins")
    assert first == pytest.approx(0, abs=1e-5)
    assert later[-1] > 0.05


@pytest.mark.parametrize("engine", ENGINES)
def test_a_group_that_lies_on_both_ranks_is_one_group(runs, engine):
    one, two = runs(None) / "grpo", runs(engine) / "grpo"
    assert_real(engine, facts(two.parent, "grpo"))
    assert logged(one, "frac_reward_zero_std") == [0] * STEPS  # rewards differ inside every group
    for key in ("frac_reward_zero_std", "reward", "reward_std", "completions/mean_length"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-5), key


@pytest.mark.parametrize("stage", STAGES + EXPERTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_from_pretrained_reads_the_weights_that_one_process_learned(runs, engine, stage, miniqwen_dir, experts_dir):
    one, two = runs(None), runs(engine)
    assert_real(engine, facts(two, stage))
    start = parameters(experts_dir if stage in EXPERTS else miniqwen_dir)
    assert_same_and_moved(parameters(two / stage), parameters(one / stage), start)


@pytest.mark.parametrize("stage", ADAPTERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_stock_peft_reads_the_adapter_that_one_process_learned(runs, engine, stage, miniqwen_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def adapter(checkpoint: Path) -> dict:
        base = AutoModelForCausalLM.from_pretrained(miniqwen_dir, dtype="float32")
        model = PeftModel.from_pretrained(base, checkpoint)
        return {name: weight for name, weight in model.named_parameters() if "lora_" in name}

    assert_real(engine, facts(runs(engine), stage))
    learned, found = adapter(runs(None) / stage), adapter(runs(engine) / stage)
    assert len(learned) == 2 * 7 * 2  # A and B of seven projections in two layers
    start = {name: weight * ("lora_A" in name) for name, weight in learned.items()}  # B begins at zero
    moved = {name for name in learned if "lora_B" in name}
    assert_same_and_moved(*({name: w[name] for name in moved} for w in (found, learned, start)))
    for name in learned.keys() - moved:
        assert (found[name] - learned[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize("name", ANSWERING)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_give_the_answers_of_one_between_their_steps(runs, engine, name):
    """Of an odd number of rows, one at a time, some with longer answers: the ranks are done at unequal times."""
    one, two = runs(None) / name, runs(engine) / name
    assert_real(engine, facts(two.parent, name))
    for key in (*(f"eval_{key}" for key in ANSWERS), "eval_accuracy_ci95"):
        expected = logged(one, key)
        assert len(expected) == 3 and logged(two, key) == pytest.approx(expected, rel=1e-12), key
    assert 0 < logged(one, "eval_accuracy")[0] < 1
    assert not logged(one, "eval_tokens")[0].is_integer(), "all answers have one length, and all ranks are done at once"
    for key in ("loss", "grad_norm"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-3), key


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_sharded_is_held_in_halves(runs, engine, stage):
    ranks = facts(runs(engine), stage)
    assert_real(engine, ranks)
    for rank in ranks:
        for model in (rank, rank["reference"]) if stage != "sft" else (rank,):
            held = model["local_elements"] / model["elements"] if model["elements"] else 0
            # ZeRO-3's parameters are empty between layers; ZeRO-2 and DDP keep all of them everywhere.
            assert held == {"fsdp2": 0.5, "zero3": 0}.get(engine, 1)
        layers = [name for name in rank["sharded_modules"] if "DecoderLayer" in name]
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


def test_a_misspelt_key_ends_two_processes_with_one_line(configs, tmp_path):
    words = ["sft", "--config", configs[0], *ON_CPU, "--learning_rat", "1", "--output_dir", tmp_path / "sft"]
    ended = run_suite(*words, "--launch", CONFIGS / "ddp.yaml", *OVERRIDES, env=ENVIRONMENT)
    assert ended.returncode != 0
    printed = (ended.stdout + ended.stderr).splitlines()
    assert [line for line in printed if line.startswith("suite:")] == [
        "suite: Unknown key 'learning_rat' in the command line. Did you mean 'learning_rate'?"
    ]
    assert not (tmp_path / "sft").exists()


def test_the_page_on_engines_shows_these_losses(runs):
    measured = {stage: [logged(runs(engine) / stage, "loss")[-1] for engine in COLUMNS] for stage in STAGES}
    page = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    shown = {
        cells[0].lower(): [float(cell) for cell in cells[1:]]
        for line in page.splitlines()
        if (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].lower() in STAGES
    }
    fresh = [f"| {stage.upper()} | " + " | ".join(f"{loss:.5f}" for loss in measured[stage]) + " |" for stage in STAGES]
    head = f"| | {' | '.join(COLUMNS.values())} |"
    told = "docs/engines.md shows other losses; these are today's:\n" + "\n".join([head, "|---" * 6 + "|", *fresh])
    assert shown.keys() == measured.keys(), told
    for stage in STAGES:
        assert shown[stage] == pytest.approx(measured[stage], rel=1e-3, abs=1e-5), told
