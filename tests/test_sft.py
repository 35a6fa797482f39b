"""SFT: tags weigh what they should and nothing else does; what would train nothing is refused."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from suite import reasoning
from suite.train import sft
from tests.conftest import ON_CPU, built_by, write_yaml
from tests.rows import a_tool, with_tools, write_rows

TEXTS = [
    "<think>\n2+2\n</think>\n<answer>4</answer>",
    "a<think>b</think><answer></answer>c",
    "no tag, <thin and >, <thinking>, < think>",
    "中文<think>先想一想。</think>\n\n<answer>４</answer>！",
    "<think><think></answer></answer>\n<answer>😀</answer>\n",
    "",
]


def overlap_by_offsets(tokenizer, text: str) -> list[int]:
    """The same question asked of the tokenizer's own character offsets."""
    spans = [(at, at + len(tag)) for tag in reasoning.TAGS for at in range(len(text)) if text.startswith(tag, at)]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return [int(any(start < to and end > of for of, to in spans)) for start, end in offsets]


@pytest.mark.parametrize("kind", ["qwen", "miniqwen"])
def test_a_token_is_marked_where_its_characters_overlap_a_tag(kind, request):
    from transformers import AutoTokenizer

    from suite.trainers.tag_weights import TagMarker

    path = request.getfixturevalue("shared_data") / "qwen2.5-tokenizer" if kind == "qwen" else None
    tokenizer = AutoTokenizer.from_pretrained(path or request.getfixturevalue("tokenizer_dir"))
    mark = TagMarker(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert mark({"input_ids": ids})["in_tag"] == overlap_by_offsets(tokenizer, text), text
    assert sum(mark({"input_ids": tokenizer(TEXTS[0])["input_ids"]})["in_tag"]) >= 4


def test_a_tokenizer_that_does_not_spell_bytes_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from suite.trainers.tag_weights import TagMarker

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(ValueError, match="byte-level"):
        TagMarker(words)


def trainer_of(model_dir, rows, tag_weight, **keys):
    """The stage's trainer over `rows`, as main() builds it."""
    from trl import SFTConfig, SFTTrainer

    import suite.model  # noqa: F401
    from suite.trainers.tag_weights import TagWeightedSFTTrainer

    config = SFTConfig(
        output_dir="unused", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", max_length=256,
        per_device_train_batch_size=2, eos_token="<|im_end|>", model_init_kwargs={"dtype": "float32"}, **keys,
    )  # fmt: skip
    kind, how = (SFTTrainer, {}) if tag_weight is None else (TagWeightedSFTTrainer, {"tag_weight": tag_weight})
    return kind(model=str(model_dir), args=config, train_dataset=rows, **how)


def loss_by_hand(trainer, batch: dict, tag_weight: float) -> float:
    """Softmax, logarithm and weights over plain logits, one token at a time."""
    import torch

    from suite.trainers.tag_weights import TagMarker

    mark = TagMarker(trainer.processing_class)
    inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")}
    logprobs = trainer.model(**inputs).logits.double().log_softmax(-1)  # (B, T, V)
    total, trained = 0.0, 0
    for row, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        in_tag = mark({"input_ids": ids})["in_tag"]
        for t in range(1, len(ids)):
            if labels[t] != -100:
                trained += 1
                total -= (tag_weight if in_tag[t] else 1.0) * logprobs[row, t - 1, ids[t]].item()
    assert torch.is_tensor(batch["token_weights"])
    return total / trained


def rows_in_the_format(n: int = 6):
    from datasets import Dataset

    system = {"role": "system", "content": reasoning.SYSTEM_PROMPT}
    return Dataset.from_list(
        [
            {
                "prompt": [system, {"role": "user", "content": f"{i}+1"}],
                "completion": [{"role": "assistant", "content": reasoning.write(f"{i}+1={i + 1} " * i, str(i + 1))}],
            }
            for i in range(1, n + 1)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_the_weighted_loss_is_the_one_computed_by_hand(miniqwen_dir, packing, capsys):
    trainer = trainer_of(miniqwen_dir, rows_in_the_format(), 10.0, packing=packing)
    assert "tag_weight 10: 0 of 6 train rows have no tag to weigh" in capsys.readouterr().out
    trainer.model.train()
    seen = 0
    for batch in trainer.get_train_dataloader():
        expected = loss_by_hand(trainer, batch, 10.0)
        plain = loss_by_hand(trainer, batch, 1.0)
        assert expected > 1.5 * plain  # four tags a row: the weight is felt
        assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(expected, abs=1e-6 * expected)
        seen += 1
    assert seen >= 1


@pytest.mark.slow
def test_the_weighted_loss_with_tags_of_several_tokens(shared_data, tmp_path):
    """Qwen2.5's own vocabulary, in assistant turns only: the system prompt names the tags, too."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "qwen2.5-tokenizer")
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.2,
        )  # fmt: skip
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = rows_in_the_format(4).map(lambda row: {"messages": row["prompt"] + row["completion"]})
    trainer = trainer_of(tmp_path, rows.select_columns("messages"), 10.0, assistant_only_loss=True)
    batch = next(iter(trainer.get_train_dataloader()))
    trained = batch["labels"] != -100
    in_prompt = (batch["token_weights"] > 1) & ~trained
    assert in_prompt.any(), "the system prompt names the tags: they must not count"
    expected = loss_by_hand(trainer, batch, 10.0)
    assert trainer.compute_loss(trainer.model, dict(batch)).item() == pytest.approx(expected, abs=1e-6 * expected)


@pytest.mark.slow
def test_a_weight_of_one_is_no_weight_and_a_batch_may_be_cut_up(miniqwen_dir):
    rows = rows_in_the_format()
    losses = {}
    for name, weight, batch, accumulated in (("plain", None, 4, 1), ("one", 1.0, 4, 1), ("cut", 1.0, 1, 4)):
        config = dict(max_steps=2, logging_steps=1, gradient_accumulation_steps=accumulated, save_strategy="no")
        trainer = trainer_of(miniqwen_dir, rows, weight, **config)
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = batch
        trainer.train()
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses["one"] == pytest.approx(losses["plain"], abs=1e-6)
    assert losses["cut"] == pytest.approx(losses["plain"], abs=1e-3)  # the log rounds to four digits


@pytest.fixture
def messages_dir(tmp_path) -> Path:
    from datasets import Dataset

    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4, without any tag"}]
    Dataset.from_list([{"messages": turns}] * 8).to_parquet(tmp_path / "data" / "train.parquet")
    return tmp_path / "data"


def run_sft(model_dir, data_dir, *words, **keys):
    config = write_yaml(
        Path("sft.yaml"), model_name_or_path=str(model_dir), dataset_name=data_dir and str(data_dir), output_dir="run",
        max_steps=1, save_strategy="no", **keys,
    )  # fmt: skip
    sft.main(["--config", str(config), *ON_CPU, *words])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tag_weight": 0}, "tag_weight: 0.0 must be a finite number above 0"),
        ({"tag_weight": 10}, "Set `assistant_only_loss: true`"),
        ({"tag_weight": 10, "assistant_only_loss": True, "loss_type": "dft"}, "loss_type: nll"),
        pytest.param(
            {"attn_implementation": "flash_attention_2"},
            "needs the package flash-attn.*sdpa",
            marks=pytest.mark.skipif(bool(find_spec("flash_attn") or find_spec("kernels")), reason="it is there"),
        ),
        ({"load_in_4bit": True}, "load_in_4bit: quantized weights cannot be trained"),
        ({"eos_token": "<|endoftext|>"}, "writes '<.im_end.>' there"),
        ({"completion_only_loss": True}, "of `messages` every turn would be trained. Set `assistant_only_loss: true`"),
        (
            {"model_init_kwargs": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}},
            "needs rope_type and rope_th",
        ),
    ],
)
def test_what_would_train_something_else_is_refused_before_a_model_is_loaded(miniqwen_dir, messages_dir, keys, message):
    with pytest.raises(ValueError, match=message):
        run_sft(miniqwen_dir, messages_dir, **keys)
    assert not Path("run").exists()


def test_of_a_mixture_that_streams_the_first_rows_alone_are_looked_at_for_masks(miniqwen_dir, monkeypatch, tmp_path):
    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    write_rows(tmp_path / "many" / "train.parquet", [{"messages": turns}] * 1200)
    looked_at = []
    monkeypatch.setattr(sft.turns, "check_masks", lambda rows, *how: looked_at.append(sum(1 for _ in rows)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        keys = {"datasets": [{"path": str(tmp_path / "many")}], "streaming": True, "assistant_only_loss": True}
        run_sft(miniqwen_dir, None, **keys)
    assert looked_at == [1000]


@pytest.mark.parametrize("way", ["a file", "a stream", "prepared", "a mixture"])
def test_what_a_template_is_told_beside_the_turns_is_trained_as_trl_trains_it(way, miniqwen_dir, monkeypatch, tmp_path):
    from datasets import Dataset

    from suite import prepare

    model = with_tools(miniqwen_dir, tmp_path / "model")
    asked, answer = {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}
    tools = [None, [a_tool("add", a="integer")], [a_tool("say", words="string"), a_tool("stop")], None]
    rows = [
        {"messages": [{**asked, "content": f"{n}+2"}, answer], "tools": held, "chat_template_kwargs": {"hint": f"{n}!"}}
        for n, held in enumerate(tools)
    ]
    theirs = trainer_of(model, Dataset.from_list(rows, on_mixed_types="use_json"), None).train_dataset
    read = write_rows(tmp_path / "rows.jsonl", [rows[0] | {"tools": ""}, *rows[1:]])
    if way in ("prepared", "a mixture"):
        prepare.main(["files", "--source", str(read), "--output_dir", "data/rows", "--test_size", "1", "--seed", "3"])
        read = Path("data/rows")
    keys = {"dataset_name": str(read), "dataset_streaming": way == "a stream", "max_length": 256, "max_steps": 1}
    if way == "a mixture":
        keys = {"datasets": [{"path": str(read)}, {"path": str(read), "split": "test"}], "max_length": 256}
    config = write_yaml(Path("sft.yaml"), model_name_or_path=str(model), output_dir="run", **keys)
    ours = built_by(sft.main, ["--config", config, *ON_CPU], monkeypatch).train_dataset
    found, wanted = ([row["input_ids"] for row in rows] for rows in (ours, theirs))
    assert all(ids in wanted for ids in found) and len(found) == (3 if way == "prepared" else 4)


def test_tools_that_the_template_would_not_write_or_that_are_none_are_refused(miniqwen_dir, tmp_path):
    turns = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    for more, message in (
        (
            {"tools": json.dumps([a_tool("add")])},
            "The chat template does not write the `tools` of row 1.*`chat_template_path` .SFT.",
        ),
        (
            {"tools": "add"},
            "train.*, row 1: `tools` must be a list of functions, as such or as JSON text, and is 'add'",
        ),
        (
            {"chat_template_kwargs": "loud"},
            "row 1: `chat_template_kwargs` must be keys and their values, as such or as JSON text, and is 'loud'",
        ),
    ):
        write_rows(tmp_path / "odd" / "train.parquet", [{"messages": turns, **more}] * 4)
        with pytest.raises(ValueError, match=message):
            run_sft(miniqwen_dir, tmp_path / "odd")


def test_messages_of_which_only_answers_are_trained_may_say_it_twice_and_others_are_told_of(capsys):
    from trl import SFTConfig

    for asked, rows, told in (
        ({"completion_only_loss": True, "assistant_only_loss": True}, {"messages": []}, False),
        ({"completion_only_loss": False}, {"messages": []}, False),
        ({}, {"prompt": "", "completion": ""}, False),
        ({}, {"messages": []}, True),
    ):
        sft.check_masked(SFTConfig("o", bf16=False, use_cpu=True, **asked), [rows])
        assert ("every turn is trained, the user's too" in capsys.readouterr().out) == told, asked


@pytest.mark.slow
def test_a_run_of_no_step_is_no_run(miniqwen_dir, messages_dir):
    with pytest.raises(ValueError, match="Not one step was trained: .*`dataloader_drop_last: true`. Lower the batch"):
        run_sft(miniqwen_dir, messages_dir, dataloader_drop_last=True, per_device_train_batch_size=9)
    assert not Path("run/run.json").exists() and not Path("run/config.json").exists()


@pytest.mark.parametrize(
    "keys", [{"load_in_4bit": True, "use_peft": True}, {"optim": "paged_adamw_8bit"}], ids=["weights", "optimizer"]
)
def test_what_needs_bitsandbytes_says_so_before_a_model_is_loaded(miniqwen_dir, messages_dir, keys, monkeypatch):
    from suite import run

    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs bitsandbytes.*qwen-suite.qlora."):
        run_sft(miniqwen_dir, messages_dir, **keys)
    assert not Path("run").exists()


@pytest.mark.slow
def test_rows_without_a_tag_and_rows_cut_before_their_end_are_refused(miniqwen_dir, messages_dir):
    with pytest.raises(ValueError, match="no trained token of the 8 train rows overlaps"):
        run_sft(miniqwen_dir, messages_dir, tag_weight=10, assistant_only_loss=True)
    with pytest.raises(ValueError, match="None of the first 8 rows ends with the end of a turn"):
        run_sft(miniqwen_dir, messages_dir, max_length=12)
    assert not list(Path("run").iterdir())


@pytest.mark.slow
def test_long_context_by_rope_scaling_is_a_key_that_the_saved_model_keeps(qwen2_dir, messages_dir):
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 512}
    run_sft(
        qwen2_dir, messages_dir, model_init_kwargs={"rope_parameters": scaled, "max_position_embeddings": 2048},
        max_length=2048,
    )  # fmt: skip
    saved = json.loads(Path("run/config.json").read_text())
    assert saved["rope_parameters"].items() >= scaled.items() and saved["max_position_embeddings"] == 2048
    from transformers import AutoModelForCausalLM

    def frequencies(path):
        return AutoModelForCausalLM.from_pretrained(path).model.rotary_emb.inv_freq

    assert (frequencies("run") - frequencies(qwen2_dir)).abs().max() > 0.01


@pytest.mark.slow
def test_a_base_with_a_temperature_and_no_sampling_is_saved_with_sampling(miniqwen_dir, messages_dir, tmp_path, capsys):
    base = shutil.copytree(miniqwen_dir, tmp_path / "base")
    settings = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**settings, "do_sample": False, "temperature": 0.6}))
    run_sft(base, messages_dir)
    saved = json.loads(Path("run/generation_config.json").read_text())
    assert saved["do_sample"] is True and saved["temperature"] == 0.6
    assert "settings of sampling beside `do_sample: false`" in capsys.readouterr().out


def test_a_base_whose_generation_config_cannot_be_saved_ends_before_the_first_step(
    miniqwen_dir, messages_dir, tmp_path
):
    base = shutil.copytree(miniqwen_dir, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"length_penalty": 1.2}))
    with pytest.raises(ValueError, match="`length_penalty` is set to `1.2`.* Edit that file"):
        run_sft(base, messages_dir)
    assert not Path("run/run.json").exists()
