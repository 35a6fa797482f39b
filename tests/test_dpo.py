"""DPO: the loss is the paper's, the reference is handled once, and preferences are learned."""

import itertools
import json
from pathlib import Path

import pytest

from suite.train import dpo
from tests.conftest import ON_CPU, base_flavoured, built_by, shaken, write_yaml
from tests.rows import a_tool, with_tools, write_rows

pytestmark = pytest.mark.slow
BETA = 0.1


@pytest.fixture(scope="module")
def pairs_dir(tmp_path_factory) -> Path:
    """Sums: the chosen answer is right and short, the rejected one is wrong and long."""
    from datasets import Dataset

    target = tmp_path_factory.mktemp("pairs")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{a}+{b}"}],
            "chosen": [{"role": "assistant", "content": str(a + b)}],
            "rejected": [{"role": "assistant", "content": f"{a + b + 1}, or so"}],
        }
        for a in range(8)
        for b in range(8)
    ]
    Dataset.from_list(rows).to_parquet(target / "train.parquet")
    return target


def words(model_dir, pairs_dir, *more, **keys) -> list[str]:
    config = write_yaml(
        Path("dpo.yaml"), model_name_or_path=str(model_dir), dataset_name=str(pairs_dir), output_dir="run",
        beta=BETA, per_device_train_batch_size=4, logging_steps=1, save_strategy="no", **keys,
    )  # fmt: skip
    return ["--config", str(config), *ON_CPU, *more]


def summed_logprob(model, ids, completion_mask, attention_mask):
    """log p of each row's completion: (B,)."""
    import torch

    with torch.no_grad():
        logprobs = model(input_ids=ids, attention_mask=attention_mask).logits.log_softmax(-1)  # (B, T, V)
    of_tokens = logprobs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]  # (B, T-1)
    return (of_tokens * completion_mask[:, 1:]).sum(-1)


def test_pairs_of_which_none_is_better_are_counted_and_where_all_are_so_refused(capsys):
    from datasets import Dataset

    rows = [{"prompt": "?", "chosen": "Yes.", "rejected": said} for said in ("No.", "Yes.", "Yes.")]
    for given, which in ((rows, "3"), (Dataset.from_list(rows), "3"), (iter(rows), "the first 3")):
        dpo.say_which_are_no_choice(given)
        assert f"in 2 of {which} pairs `chosen` is `rejected`, word for word (first: row 2)" in capsys.readouterr().out
    dpo.say_which_are_no_choice(rows[:1])
    assert not capsys.readouterr().out
    with pytest.raises(ValueError, match="in all 2 pairs"):
        dpo.say_which_are_no_choice(rows[1:])
    dpo.say_which_are_no_choice(itertools.chain(rows[1:2] * 200, rows))
    assert "in 200 of the first 200 pairs" in capsys.readouterr().out


def test_the_loss_of_a_batch_is_the_papers(miniqwen_dir, pairs_dir, monkeypatch):
    """-log sigmoid(beta * (log p_w/p_ref_w - log p_l/p_ref_l)), equation 7 of https://arxiv.org/abs/2305.18290"""
    from torch.nn.functional import logsigmoid
    from transformers import AutoModelForCausalLM

    trainer = built_by(dpo.main, words(miniqwen_dir, pairs_dir), monkeypatch)
    reference = AutoModelForCausalLM.from_pretrained(miniqwen_dir)
    shaken(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    given = batch["input_ids"], batch["completion_mask"], batch["attention_mask"]
    chosen, rejected = (summed_logprob(trainer.model, *given) - summed_logprob(reference, *given)).chunk(2)
    expected = -logsigmoid(BETA * (chosen - rejected)).mean().item()
    assert abs(expected - 0.6931) > 0.01, "the policy did not move: log 2 would prove nothing"
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(expected, abs=1e-5)
    trained = batch["input_ids"][batch["completion_mask"].bool()].tolist()
    assert trained.count(trainer.processing_class.eos_token_id) == len(batch["input_ids"])  # every turn's end


def test_pairs_are_compared_with_what_the_template_is_told_beside_their_turns(miniqwen_dir, monkeypatch, tmp_path):
    from suite import measures

    model = with_tools(miniqwen_dir, tmp_path / "model")
    tools = [a_tool("add", a="integer")]
    row = {
        "prompt": [{"role": "user", "content": "2+2"}],
        "chosen": [{"role": "assistant", "content": "4"}],
        "rejected": [{"role": "assistant", "content": "5"}],
        "tools": json.dumps(tools),
    }
    write_rows(tmp_path / "pairs" / "train.parquet", [row] * 4)
    trainer = built_by(dpo.main, words(model, tmp_path / "pairs"), monkeypatch)
    kept, tokenizer = trainer.train_dataset[0], trainer.processing_class
    for name in ("chosen", "rejected"):
        wanted = tokenizer.apply_chat_template([*row["prompt"], *row[name]], tools=tools, tokenize=True)["input_ids"]
        assert kept["prompt_ids"] + kept[f"{name}_ids"] == wanted
    seen = []
    monkeypatch.setattr(
        measures, "log_probs", lambda _, ids, progress: seen.extend(ids) or [[-1.0] * (len(one) - 1) for one in ids]
    )
    monkeypatch.setattr(measures, "positions_of", lambda config: None)
    assert measures.margins(trainer.model, tokenizer, [row]) == [0.0]
    assert seen == [kept["prompt_ids"] + kept[f"{name}_ids"] for name in ("chosen", "rejected")]


@pytest.mark.parametrize("way", ["whole", "precomputed", "lora"])
def test_dpo_learns_to_prefer_and_holds_the_reference_once(miniqwen_dir, pairs_dir, way):
    keys = {"max_steps": 12, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    if way == "precomputed":
        keys["precompute_ref_log_probs"] = True
    if way == "lora":
        keys |= {"use_peft": True, "lora_r": 8, "lora_dropout": 0.0, "lora_target_modules": "all-linear",
                 "learning_rate": 1e-2}  # fmt: skip
    dpo.main(words(miniqwen_dir, pairs_dir, **keys))
    log = json.loads(Path("run/trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in log if "rewards/accuracies" in entry]
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: the policy is its own reference
    assert steps[-1]["rewards/accuracies"] > 0.9 and steps[-1]["loss"] < 0.5
    if way == "lora":
        assert Path("run/adapter_model.safetensors").is_file() and not Path("run/model.safetensors").exists()


def test_the_model_after_dpo_stops_at_the_end_of_a_turn_though_its_base_ends_texts(tokenizer_dir, tmp_path, pairs_dir):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    dpo.main(words(base_flavoured(tokenizer_dir, tmp_path / "base"), pairs_dir, max_steps=1))
    tokenizer = AutoTokenizer.from_pretrained("run")
    assert tokenizer.eos_token == "<|im_end|>"
    assert AutoConfig.from_pretrained("run").eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token_id in GenerationConfig.from_pretrained("run").eos_token_id


def test_a_max_length_that_no_prompt_leaves_room_in_is_refused_and_the_directory_stays_free(miniqwen_dir, pairs_dir):
    with pytest.raises(ValueError, match="64 of 64 rows are left out: their prompt alone fills `max_length`"):
        dpo.main(words(miniqwen_dir, pairs_dir, max_length=4))
    assert not Path("run/run.json").exists()


def test_an_adapter_directory_and_rows_of_another_shape_are_refused(miniqwen_dir, arithmetic_dir, pairs_dir):
    with pytest.raises(ValueError, match="needs the shape 'prompt.chosen.rejected'"):
        dpo.main(words(miniqwen_dir, arithmetic_dir))
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    Path("adapter/adapter_model.safetensors").write_bytes((miniqwen_dir / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds a LoRA adapter and no model of its own"):
        dpo.main(words("./adapter", pairs_dir))
    assert not Path("run").exists()
