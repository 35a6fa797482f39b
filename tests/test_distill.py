"""White-box distillation: the loss against a short computation, both ways, over vocabularies padded apart."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from suite.train import distill
from tests.conftest import ON_CPU, save_model, write_yaml
from tests.rows import a_tool, write_rows

PADDING = 24  # rows of the teacher's vocabulary that are no token
BATCH_OF_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 1}


@pytest.fixture(scope="session")
def teacher_dir(tokenizer_dir, tmp_path_factory) -> Path:
    """A wider Qwen2 with an untied head and more rows than there are tokens, as Qwen2.5-7B beside 0.5B."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def padded(vocab_size, **shape):
        return Qwen2Config(
            vocab_size=vocab_size + PADDING, **{**shape, "hidden_size": 96, "tie_word_embeddings": False}
        )

    return save_model(Qwen2ForCausalLM, padded, tokenizer_dir, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def rows(arithmetic_dir):
    from datasets import load_dataset

    return load_dataset("parquet", data_files=str(arithmetic_dir / "test.parquet"), split="train").select(range(8))


def build(student: Path, teacher: Path, rows, *, lmbda: float):
    """The trainer as the stage builds it."""
    from transformers import AutoConfig, AutoTokenizer
    from trl import DistillationConfig

    import suite.model  # noqa: F401
    from suite.trainers.distillation import WhiteBoxTrainer, load_teacher

    tokenizer = AutoTokenizer.from_pretrained(student)
    of_student, of_teacher = (AutoConfig.from_pretrained(path).vocab_size for path in (student, teacher))
    config = DistillationConfig(
        output_dir="unused", use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        per_device_train_batch_size=len(rows), max_completion_length=40, teacher_model_name_or_path=str(teacher),
    )  # fmt: skip
    config.generation_kwargs = distill.sampling(config, tokenizer, of_student)
    return WhiteBoxTrainer(
        model=str(student), teacher_model=load_teacher(config, None, of_student), args=config, train_dataset=rows,
        processing_class=tokenizer, lmbda=lmbda, rows_of_teacher=of_teacher,
    )  # fmt: skip


def divergence(student, teacher, batch, beta: float, temperature: float):
    """Equation (1) of https://huggingface.co/papers/2306.13649 from whole logits, token by token."""
    import torch

    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)  # (B, T)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    start = batch["prompt_ids"].shape[1] - 1  # the logits before the first token of a completion
    logits = [model(ids, attention_mask=seen).logits[:, start:-1] for model in (student, teacher)]  # (B, C, V)
    shared = min(part.shape[-1] for part in logits)
    p_s, p_t = ((part[..., :shared].double() / temperature).softmax(-1) for part in logits)

    def kl(p, q):
        return (p * (p.log() - q.log())).sum(-1)  # (B, C)

    m = beta * p_t + (1 - beta) * p_s
    ends = {0.0: lambda: kl(p_t, p_s), 1.0: lambda: kl(p_s, p_t)}
    token = ends.get(beta, lambda: beta * kl(p_t, m) + (1 - beta) * kl(p_s, m))()
    mask = batch["completion_mask"] * batch.get("tool_mask", torch.ones_like(batch["completion_mask"]))
    return (token * mask).sum() / mask.sum()


def load(path: Path):
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401

    return AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()


@pytest.mark.slow
@pytest.mark.parametrize("lmbda", [1.0, 0.0], ids=["sampled", "given"])
@pytest.mark.parametrize("wide", ["teacher", "student"])
def test_the_loss_is_the_divergence_over_the_rows_that_both_have(wide, lmbda, miniqwen_dir, teacher_dir, rows):
    import torch

    student, teacher = (miniqwen_dir, teacher_dir) if wide == "teacher" else (teacher_dir, miniqwen_dir)
    trainer = build(student, teacher, rows, lmbda=lmbda)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(list(rows))
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum() > 0
    assert batch["completion_ids"].max() < len(trainer.processing_class)  # what is no token is never sampled
    ours, theirs = load(student), load(teacher)
    for beta, temperature in ((0.0, 1.0), (0.3, 1.0), (1.0, 1.0), (0.0, 1.7), (0.3, 0.6), (1.0, 1.7)):
        trainer.beta, trainer.temperature = beta, temperature
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        by_hand = divergence(ours, theirs, batch, beta, temperature)
        assert loss.item() == pytest.approx(by_hand.item(), abs=1e-5)
        assert by_hand > 1e-3
        loss.backward()
        ours.zero_grad()
        by_hand.backward()
        for (name, weight), (_, other) in zip(trainer.model.named_parameters(), ours.named_parameters(), strict=True):
            torch.testing.assert_close(weight.grad, other.grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    if wide == "student":
        assert not trainer.model.lm_head.weight.grad[-PADDING:].any()  # and what is no token is not learned


@pytest.mark.slow
def test_given_rows_are_cut_where_sft_cuts_them(miniqwen_dir, rows):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    import suite.model  # noqa: F401
    from suite.trainers.distillation import trained_tokens

    turns = [{"role": r, "content": c} for r, c in (("user", "1+1"), ("assistant", "2"), ("user", "2+2"))]
    kinds = {
        "messages": [{"messages": [*turns, {"role": "assistant", "content": "4"}]}],
        "conversations": [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows],
        "plain": [{"prompt": "12+34\n", "completion": "46"}, {"prompt": "1+3=", "completion": "4<|im_end|>"}],
    }
    for kind, examples in kinds.items():
        config = SFTConfig(
            output_dir="unused", use_cpu=True, bf16=False, report_to="none", eos_token="<|im_end|>",
            assistant_only_loss=kind == "messages", shuffle_dataset=False,
        )  # fmt: skip
        sft = SFTTrainer(model=str(miniqwen_dir), args=config, train_dataset=Dataset.from_list(examples))
        tokenizer = sft.processing_class
        for prepared, row in zip(sft.train_dataset, examples, strict=True):
            ids, trained = trained_tokens(row, tokenizer, tokenizer.chat_template, {})
            assert ids == prepared["input_ids"], kind
            assert [i if bit else -100 for i, bit in zip(ids, trained, strict=True)] == prepared["labels"], kind


@pytest.mark.slow
def test_a_given_completion_ends_with_its_turn_and_every_assistant_turn_is_in_the_loss(miniqwen_dir, teacher_dir, rows):
    trainer = build(miniqwen_dir, teacher_dir, rows, lmbda=0.0)
    spell = trainer.processing_class.decode
    prompt, completion, trained = trainer.given(rows[0])
    said = rows[0]["completion"][0]["content"]
    assert spell(prompt) == f"<|im_start|>user\n{rows[0]['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert spell(completion) == said + "<|im_end|>" and trained == [1] * len(completion)

    said_by = (("user", "1+1"), ("assistant", "2"), ("user", "3+3"), ("assistant", "6"))
    talk = [{"role": role, "content": content} for role, content in said_by]
    prompt, completion, trained = trainer.given({"messages": talk})
    assert spell(prompt) == "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    assert spell([i for i, bit in zip(completion, trained, strict=True) if bit]) == "2<|im_end|>6<|im_end|>"
    trainer.max_completion_length = 2
    assert trainer.given({"messages": talk})[1:] == (completion[:2], [1, 1])
    with pytest.raises(ValueError, match="no completion to learn from"):
        trainer.given({"messages": talk[:1]})


@pytest.fixture
def distilled(arithmetic_dir, miniqwen_dir, teacher_dir, tmp_path):
    """Run the stage with some keys: (what was logged, its directory)."""

    def run(name: str, **keys) -> tuple[list[dict], Path]:
        keys = {
            "model_name_or_path": str(miniqwen_dir),
            "teacher_model_name_or_path": str(teacher_dir),
            "dataset_name": str(arithmetic_dir),
            "max_completion_length": 40,
            "learning_rate": 2e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "output_dir": str(tmp_path / name),
            **keys,
        }
        distill.main(["--config", str(write_yaml(tmp_path / f"{name}.yaml", **keys)), *ON_CPU])
        history = json.loads((tmp_path / name / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        return [entry for entry in history if "loss" in entry], tmp_path / name

    return run


@pytest.mark.slow
@pytest.mark.parametrize("lmbda", [1.0, 0.0], ids=["sampled", "given"])
def test_four_at_once_and_one_after_another_learn_the_same(lmbda, distilled):
    from safetensors.torch import load_file
    from torch.testing import assert_close

    each = partial(distilled, lmbda=lmbda, beta=0.5, max_steps=4, lr_scheduler_type="constant")
    at_once, one = each("4x1", per_device_train_batch_size=4, gradient_accumulation_steps=1)
    in_turn, two = each("1x4", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert [e["loss"] for e in at_once] == pytest.approx([e["loss"] for e in in_turn], abs=1e-5)
    assert [e["grad_norm"] for e in at_once] == pytest.approx([e["grad_norm"] for e in in_turn], abs=1e-4)
    assert len({e["completions/mean_length"] for e in at_once}) > 1  # or a mean of means would do as well
    assert_close(load_file(one / "model.safetensors"), load_file(two / "model.safetensors"), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_teacher_that_is_the_student_has_nothing_to_teach(distilled, miniqwen_dir):
    for lmbda, beta in ((1.0, 1.0), (0.0, 0.0), (0.0, 0.5)):
        keys = {"teacher_model_name_or_path": str(miniqwen_dir), "lmbda": lmbda, "beta": beta, "max_steps": 1}
        (first,), _ = distilled(f"{lmbda}-{beta}", **keys)
        assert abs(first["loss"]) < 1e-6 and first["grad_norm"] < 1e-5


@pytest.mark.slow
def test_a_base_model_is_saved_with_the_end_of_a_turn_as_its_eos(distilled, miniqwen_dir, tmp_path):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    base = shutil.copytree(miniqwen_dir, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(base)
    for name in ("config", "generation_config"):
        content = json.loads((base / f"{name}.json").read_text(encoding="utf-8"))
        (base / f"{name}.json").write_text(json.dumps({**content, "eos_token_id": tokenizer.eos_token_id}))
    _, out = distilled("run", model_name_or_path=str(base), max_steps=1)
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert AutoTokenizer.from_pretrained(out).eos_token_id == AutoConfig.from_pretrained(out).eos_token_id == ends
    assert ends in GenerationConfig.from_pretrained(out).eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"lmbda": 1.0},
        {"lmbda": 0.0, "beta": 0.0},
        {"lmbda": 0.5, "beta": 0.5},
        {"lmbda": 0.0, "use_peft": True, "lora_r": 8, "lora_dropout": 0.0, "lora_target_modules": "all-linear"},
    ],
    ids=["sampled", "given", "mixed", "given-lora"],
)
def test_the_student_comes_nearer_to_the_teacher_on_held_out_rows(keys, distilled, miniqwen_dir, teacher_dir, rows):
    import torch
    from peft import PeftModel

    logged, out = distilled("run", max_steps=80, per_device_train_batch_size=8, **keys)
    assert len(logged) == 80
    start, teacher = load(miniqwen_dir), load(teacher_dir)
    after = PeftModel.from_pretrained(load(miniqwen_dir), str(out)) if "use_peft" in keys else load(out)
    judge = build(miniqwen_dir, teacher_dir, rows, lmbda=0.0)
    judge.model.eval()
    with torch.no_grad():
        batch = judge._generate_and_score_completions(list(rows))
        far, near = (divergence(model, teacher, batch, beta=0.0, temperature=1.0).item() for model in (start, after))
    assert near < 0.75 * far, f"{far} -> {near}"


@pytest.mark.slow
def test_given_rows_beyond_the_positions_of_either_are_said(distilled, teacher_dir, tmp_path, capsys):
    rows = [
        {"prompt": [{"role": "user", "content": "1+1"}], "completion": [{"role": "assistant", "content": "12" * n}]}
        for n in (1, 1, 1, 1, 1, 1, 1, 90)
    ]
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    short = with_positions(teacher_dir, tmp_path / "short", 128)
    keys = {"dataset_name": str(tmp_path / "rows"), "teacher_model_name_or_path": str(short), "max_steps": 1}
    distilled("within", lmbda=0.0, max_completion_length=100, **keys)
    assert "positions of" not in capsys.readouterr().out
    distilled("beyond", lmbda=0.0, max_completion_length=160, **keys)
    said = capsys.readouterr().out
    assert "1 of the first 8 rows" in said and "128 positions of the teacher" in said and "512" not in said


# What a user can get wrong, before any weights are read.


@pytest.fixture
def attempt(tmp_path, monkeypatch, miniqwen_dir, teacher_dir, arithmetic_dir):
    def loaded(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", loaded)

    def run(message: str, **keys) -> None:
        standard = {"model_name_or_path": miniqwen_dir, "dataset_name": arithmetic_dir}
        keys = {**standard, "teacher_model_name_or_path": teacher_dir, "output_dir": tmp_path / "out", **keys}
        keys = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
        with pytest.raises(ValueError, match=message):
            distill.main(["--config", str(write_yaml(tmp_path / "run.yaml", **keys)), *ON_CPU])
        assert not (tmp_path / "out").exists()

    return run


def with_positions(directory: Path, target: Path, positions: int) -> Path:
    """A copy of a model whose config knows another number of positions."""
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    return target


def test_answers_beyond_the_positions_of_student_or_teacher_are_refused(attempt, teacher_dir, tmp_path):
    said = [{"role": "assistant", "content": "2"}]
    rows = [{"prompt": [{"role": "user", "content": "1+1" * n}], "completion": said} for n in (1, 1, 1, 1, 300)]
    write_rows(tmp_path / "rows" / "train.jsonl", rows)
    write_rows(tmp_path / "rows" / "test.jsonl", rows[3:])
    write_rows(tmp_path / "fit" / "train.jsonl", rows[:4])
    write_rows(tmp_path / "fit" / "test.jsonl", rows[3:])
    for lmbda in (1.0, 0.5):
        keys = {"dataset_name": tmp_path / "rows", "lmbda": lmbda, "max_completion_length": 40}
        attempt("1 of 5 prompts do not fit: .* 40 of its answer .* 512 positions of the model", **BATCH_OF_ONE, **keys)
    keys = {"dataset_name": tmp_path / "fit", "max_completion_length": 40, "eval_strategy": "steps", "eval_steps": 1}
    attempt("1 of 2 prompts do not fit: .* 512 positions of the model", **BATCH_OF_ONE, **keys)
    short = with_positions(teacher_dir, tmp_path / "short", 64)
    keys = {"dataset_name": tmp_path / "fit", "max_completion_length": 62, "teacher_model_name_or_path": short}
    attempt("4 of 4 prompts do not fit: .* 62 of its answer .* 64 positions of the teacher", **BATCH_OF_ONE, **keys)


def test_no_teacher_and_a_teacher_that_is_not_there(attempt):
    attempt("No teacher: set `teacher_model_name_or_path`", teacher_model_name_or_path=None)
    attempt("no checkpoint directory 'nowhere'", teacher_model_name_or_path="./nowhere")


def test_a_teacher_cut_off_half_way_and_one_that_is_an_adapter(attempt, teacher_dir, tmp_path):
    half = shutil.copytree(teacher_dir, tmp_path / "half")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:1000])
    attempt("cut off or broken", teacher_model_name_or_path=half)
    adapter = shutil.copytree(teacher_dir, tmp_path / "adapter")
    (adapter / "config.json").rename(adapter / "adapter_config.json")
    attempt("holds a LoRA adapter and no model of its own", teacher_model_name_or_path=adapter)


def test_a_teacher_with_another_tokenizer(attempt, teacher_dir, tmp_path):
    from transformers import AutoTokenizer

    more = shutil.copytree(teacher_dir, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(more)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(more)
    attempt(
        "is another one: '<tool>' is no token of the student and token 298 of the t", teacher_model_name_or_path=more
    )

    other = shutil.copytree(teacher_dir, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"].reverse()
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    attempt("has the student's tokens and cuts text into them in another way", teacher_model_name_or_path=other)


def test_keys_that_contradict_each_other(attempt):
    attempt("lmbda: 1.5 is a share of the steps", lmbda=1.5)
    attempt("beta must be in", beta=2.0)
    attempt("rows are 400, and one step takes 512 .8 a device x 1 pro", gradient_accumulation_steps=64)
    attempt("temperature: 0.0 must be above 0", temperature=0.0)
    attempt("top_p, use_vllm: with `lmbda: 0` nothing is sampled", lmbda=0.0, top_p=0.9, use_vllm=True)
    attempt("Unknown key 'lambda'.*Did you mean 'lmbda'", **{"lambda": 0.5})


def test_tools_of_a_row_that_a_student_would_be_asked_without(attempt, tmp_path):
    turn = {"role": "assistant", "content": "4"}
    row = {"prompt": [{"role": "user", "content": "2+2"}], "completion": [turn], "tools": json.dumps([a_tool("add")])}
    write_rows(tmp_path / "told" / "train.parquet", [row] * 16)
    told = {"dataset_name": tmp_path / "told", "per_device_train_batch_size": 1, "lmbda": 0.5}
    attempt("lmbda: 0.5 .* without the tools of a row. Set `lmbda: 0`", **told)
    told_by_config = [{"chat_template_kwargs": {"hint": "Add."}}, {"chat_template_kwargs": {}}]
    distill.check_beside(0.5, told_by_config, {"hint": "Add.", "loud": True})
    distill.check_beside(0.0, told_by_config, None)
    for own in ({"hint": "Subtract."}, None):
        with pytest.raises(ValueError, match="without the chat_template_kwargs of a row.* config's own `chat_te"):
            distill.check_beside(0.5, told_by_config, own)


def test_rows_without_a_completion_can_only_be_sampled(attempt, arithmetic_dir, tmp_path):
    import pyarrow.parquet

    bare = tmp_path / "bare"
    bare.mkdir()
    table = pyarrow.parquet.read_table(arithmetic_dir / "train.parquet").select(["prompt", "solution"])
    pyarrow.parquet.write_table(table, bare / "train.parquet")
    attempt("needs the shape 'messages' .messages. or 'prompt.completion'", dataset_name=bare, lmbda=0.0)
    attempt("needs the shape 'prompt.completion'", dataset_name=bare, lmbda=0.5)
    attempt("no checkpoint directory", dataset_name=bare, lmbda=1.0, model_name_or_path="./nowhere")


def test_qwen25_has_its_own_tokenizer_and_no_other(shared_data):
    from transformers import AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(shared_data / "qwen2.5-tokenizer") for _ in range(2))
    distill.check_same_tokens(ours, theirs, "7B")
    theirs.add_tokens(["<think>"])
    with pytest.raises(ValueError, match="'<think>' is no token of the student and token 151665 of the teacher\\."):
        distill.check_same_tokens(ours, theirs, "7B")
