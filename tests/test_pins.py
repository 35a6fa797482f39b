"""Names on the Hub stay at the commit they once were: as branches move, across a resume, and without a network."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from suite import pins, source
from tests.hub_stand_in import a_hub, connect

NOWHERE = "0" * 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with a_hub() as found:
        connect(monkeypatch, found, tmp_path / "home")
        yield found


@pytest.fixture
def rows_of_two(hub) -> tuple[str, str]:
    """me/rows, whose `main` has moved from one commit to another."""
    said = [{"data/train.jsonl": json.dumps({"text": text}).encode()} for text in ("first", "second")]
    return tuple(hub.put("datasets/me/rows", files) for files in said)


def without_a_network(monkeypatch) -> None:
    import datasets.config
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@dataclass
class Run:
    """The keys of a run that say where it lies."""

    output_dir: str = "run"
    resume_from_checkpoint: str | None = None


@dataclass
class Model:
    model_name_or_path: str | None = None
    model_revision: str = "main"


@dataclass
class Rows:
    dataset_name: str | None = None


def settle(*parts, run: Run | None = None) -> list[dict]:
    record: dict = {}
    pins.settle(record, run or Run(), *parts)
    return record["pins"]


def lay(directory: str, pinned: list[dict]) -> None:
    Path(directory).mkdir(parents=True)
    (Path(directory) / "run.json").write_text(json.dumps({"pins": pinned}))


def test_a_branch_a_tag_and_a_commit_are_known_and_stay_known_without_a_network(hub, monkeypatch):
    old = hub.put("me/model", {"config.json": b"{}"})
    hub.repos["me/model"].branches["v1"] = [old]
    new = hub.put("me/model", {"config.json": b"{} "})
    bare = hub.put("datasets/me/rows", {"train.jsonl": b"{}"})  # it has no README.md
    asked = [("me/model", "model"), ("me/model", "model", "v1"), ("me/rows", "dataset")]
    assert [pins.commit_of(*names) for names in asked] == [new, old, bare]
    before = len(hub.seen)
    assert pins.commit_of("me/model", "model", NOWHERE) == NOWHERE and len(hub.seen) == before
    hub.put("me/model", {"config.json": b"{}  "})
    without_a_network(monkeypatch)
    assert [pins.commit_of(*names) for names in asked] == [new, old, bare]
    with pytest.raises(ValueError, match=r"'me/other' \(revision main\) .*: the Hub cannot be reached, and it is not"):
        pins.commit_of("me/other", "model")


def test_what_the_cache_has_outlives_a_hub_that_refuses_it(hub):
    commit = hub.put("me/model", {"config.json": b"{}"})
    assert pins.commit_of("me/model", "model") == commit
    hub.repos["me/model"].private = True  # 401 to who has no token
    assert pins.commit_of("me/model", "model") == commit


def test_a_mistyped_path_is_told_at_once_and_what_the_cache_knows_needs_no_hub(hub, monkeypatch, tokenizer_dir):
    from huggingface_hub import constants

    from suite import run

    files = {file.name: file.read_bytes() for file in tokenizer_dir.iterdir() if file.is_file()}
    commit = hub.put("me/model", {"config.json": b"{}", **files})
    assert len(run.tokenizer("me/model")) > 0
    for key in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):  # nobody listens there
        monkeypatch.setattr(constants, key, getattr(constants, key).replace(hub.url, "http://127.0.0.1:9"))
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    waited = []  # huggingface_hub would try six times, and wait 23 s in between
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(ValueError, match="the Hub cannot be reached.* If you meant a directory"):
        run.tokenizer("nowhere")
    assert pins.commit_of("me/model", "model") == commit and len(run.tokenizer("me/model")) > 0
    assert not waited


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("me/model", "model", "v9"), "it has no revision 'v9'"),
        (("me/none", "model"), "the model 'me/none' (revision main) from the Hub: the Hub does not give it (404)"),
        (("me/x--y", "model"), "Cannot have -- or .."),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, monkeypatch, asked, told):
    monkeypatch.setenv("HF_TOKEN", "hf_token_that_only_reads")
    hub.put("me/model", {"config.json": b"{}"})
    with pytest.raises(ValueError) as caught:
        pins.commit_of(*asked)
    assert told in str(caught.value) and "\n" not in str(caught.value) and "hf_token" not in str(caught.value)


def test_every_key_that_names_something_on_the_hub_gets_its_commit(hub, tokenizer_dir):
    from trl import DatasetMixtureConfig, DistillationConfig, ModelConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    from suite.keys import AnswerArguments, RewardArguments, ScratchArguments

    of = {name: hub.put(name, {"config.json": b"{}"}) for name in ("me/model", "me/teacher", "me/judge", "me/words")}
    of |= {name: hub.put(f"datasets/{name}", {"train.jsonl": b"{}"}) for name in ("me/rows", "me/more", "me/exam")}
    hub.repos["me/teacher"].branches["v1"] = [of["me/teacher"]]
    hub.put("me/teacher", {"config.json": b"{} "})
    config = DistillationConfig(
        output_dir="run", use_cpu=True, bf16=False, teacher_model_name_or_path="me/teacher", teacher_model_revision="v1"
    )
    model = ModelConfig(model_name_or_path="me/model")
    script = ScriptArguments(dataset_name=f"me/rows@{of['me/rows']}")
    local = Path("part")
    local.mkdir()
    parts = [DatasetConfig(path="me/more"), DatasetConfig(path="./part"), DatasetConfig(path="json")]
    mixture = DatasetMixtureConfig(datasets=parts)
    scratch = ScratchArguments(tokenizer_name_or_path="me/words")
    rewards = RewardArguments(reward_funcs=["accuracy", "my_rewards.brevity", "me/judge"])
    record: dict = {}
    answers = AnswerArguments(eval_answers=8, eval_answers_dataset="me/exam")
    pins.settle(record, config, script, model, mixture, scratch, rewards, answers)
    assert (model.model_revision, config.teacher_model_revision) == (of["me/model"], of["me/teacher"])
    assert scratch.tokenizer_name_or_path == f"me/words@{of['me/words']}"
    assert script.dataset_name == f"me/rows@{of['me/rows']}"
    assert [part.path for part in mixture.datasets] == [f"me/more@{of['me/more']}", "./part", "json"]
    assert rewards.reward_funcs[2] == "me/judge"
    assert answers.eval_answers_dataset == f"me/exam@{of['me/exam']}"
    assert {p["name"]: p["commit"] for p in record["pins"]} == of
    assert {p["revision"] for p in record["pins"]} == {"main", "v1", of["me/rows"]}


def test_names_of_this_machine_ask_nobody(hub, miniqwen_dir):
    model = Model(str(miniqwen_dir))
    assert settle(model, Rows("data/arithmetic"), Rows(None), Rows("files/nowhere.jsonl.gz")) == [] and not hub.seen
    assert model.model_revision == "main"


def test_a_template_of_another_model_is_read_where_the_cache_holds_its_commit(hub, tokenizer_dir):
    from trl import SFTConfig

    files = {path.name: path.read_bytes() for path in tokenizer_dir.iterdir()}
    old = hub.put("me/words", files)
    hub.put("me/words", {**files, "chat_template.jinja": b"another"})
    config = SFTConfig(output_dir="run", use_cpu=True, bf16=False, chat_template_path=f"me/words@{old}")
    pins.settle({}, config)
    there = Path(config.chat_template_path)
    assert (there / "chat_template.jinja").read_bytes() == files["chat_template.jinja"]
    assert (there / "tokenizer.json").is_file() and there.name == old


def test_a_run_that_goes_on_stays_where_it_began_and_says_that_main_has_moved(hub, rows_of_two, capsys):
    old = hub.put("me/model", {"config.json": b"{}"})
    first = settle(Model("me/model"), Rows("me/rows"))
    lay("run", first)
    new = hub.put("me/model", {"config.json": b"{} "})
    capsys.readouterr()
    model = Model("me/model")
    assert settle(model, Rows("me/rows"), run=Run()) == first and model.model_revision == old
    said = capsys.readouterr().out
    assert said == f"me/model: main has moved on to {new[:12]}; this run stays with {old[:12]}, as it began.\n"
    assert settle(Model("me/model", new))[0]["commit"] == new  # asked for: another revision than the run's
    assert settle(Model("me/model"), run=Run("elsewhere"))[0]["commit"] == new


def test_a_run_from_a_checkpoint_of_another_directory_stays_where_that_one_began(hub):
    old = hub.put("me/model", {"config.json": b"{}"})
    lay("other/checkpoint-5", settle(Model("me/model")))
    hub.put("me/model", {"config.json": b"{} "})
    assert settle(Model("me/model"), run=Run("new", "other/checkpoint-5"))[0]["commit"] == old


def test_a_run_goes_on_without_a_network_and_without_a_word(hub, monkeypatch, capsys):
    first = settle(Model("me/model")) if hub.put("me/model", {"config.json": b"{}"}) else None
    lay("run", first)
    without_a_network(monkeypatch)
    assert settle(Model("me/model")) == first and capsys.readouterr().out == ""


def test_a_revision_beside_its_own_key_or_without_a_name_is_refused(hub):
    with pytest.raises(ValueError, match="goes by its own key, `model_revision: v1`"):
        settle(Model("me/model@v1"))
    with pytest.raises(ValueError, match="'me/rows@' names no revision"):
        settle(Rows("me/rows@"))


def texts(path: str, **how) -> list[str]:
    return [row["text"] for row in pins.load_dataset(path, split="train", **how)]


def test_a_data_set_is_read_at_its_commit_and_streams_from_it(rows_of_two):
    old, new = rows_of_two
    assert [texts(f"me/rows@{commit}") for commit in (old, new, "main")] == [["first"], ["second"], ["second"]]
    assert texts(f"me/rows@{old}", streaming=True) == ["first"]


def test_without_a_network_the_cache_gives_that_commit_and_not_its_latest(rows_of_two, monkeypatch):
    old, new = rows_of_two
    assert texts(f"me/rows@{old}") == ["first"] and texts(f"me/rows@{new}") == ["second"]
    without_a_network(monkeypatch)
    assert texts(f"me/rows@{old}") == ["first"] and texts(f"me/rows@{old}", streaming=True) == ["first"]
    assert texts(f"me/rows@{old}", name=None) == ["first"], "as a run asks, by its `dataset_config`"
    with pytest.raises(ValueError, match=f"the cache does not hold 'me/rows' as of its commit {NOWHERE}"):
        texts(f"me/rows@{NOWHERE}")


def test_a_data_set_that_the_hub_no_longer_gives_comes_from_the_cache_at_its_commit_or_not_at_all(hub, rows_of_two):
    old, new = rows_of_two
    assert texts(f"me/rows@{new}") == ["second"]
    del hub.repos["datasets/me/rows"]
    assert texts(f"me/rows@{new}") == ["second"]
    with pytest.raises(ValueError, match="the cache does not hold"):  # `datasets` would give the other one
        texts(f"me/rows@{old}")


def test_rows_and_each_part_of_a_mixture_come_from_their_commits(hub, rows_of_two):
    from trl import DatasetMixtureConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    other = hub.put("datasets/me/more", {"train.jsonl": b'{"text": "more"}'})
    hub.put("datasets/me/more", {"train.jsonl": b'{"text": "moved"}'})
    script, none = ScriptArguments(dataset_name=f"me/rows@{rows_of_two[0]}"), DatasetMixtureConfig(datasets=[])
    assert source.rows(script, none, ("text",))[0]["text"] == ["first"]
    paths = [f"me/rows@{rows_of_two[0]}", f"me/more@{other}"]
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=path) for path in paths])
    assert source.rows(ScriptArguments(), mixture, ("text",))[0]["text"] == ["first", "more"]


def test_splits_that_do_not_fit_in_one_table_are_told_in_a_line(hub):
    from trl import DatasetMixtureConfig, ScriptArguments

    from suite.data import reading

    hub.put("datasets/me/odd", {"train.jsonl": b'{"text": "a"}', "test.jsonl": b'{"text": "b", "note": "more"}'})
    with pytest.raises(ValueError, match="Cannot read 'me/odd' from the Hub: .*column names.* A copy of its files"):
        source.rows(ScriptArguments("me/odd"), DatasetMixtureConfig(), ("text",))
    with pytest.raises(ValueError, match="Cannot read 'me/odd' from the Hub: .*column names.* --source PATH"):
        next(reading.rows("train", "me/odd", by=("text",)))


def test_prepare_notes_the_commit_it_read_and_reads_that_one_again_where_it_is_named(hub, monkeypatch):
    from suite import prepare

    def asked(number: int) -> bytes:
        rows = [{"question": f"{i}+{number}?", "answer": f"#### {i + number}"} for i in range(9)]
        return "".join(f"{json.dumps(row)}\n" for row in rows).encode()

    def made(*words) -> dict:
        prepare.main(["gsm8k", "--source", *words, "--test_size", "2", "--overlap_ngram", "0"])
        return json.loads((Path(words[-1]) / "prepare.json").read_text())["source"]

    first = hub.put("datasets/me/sums", {"train.jsonl": asked(1)})
    assert made("me/sums", "--output_dir", "data/a") == {"name": "me/sums", "revision": "main", "commit": first}
    second = hub.put("datasets/me/sums", {"train.jsonl": asked(2)})
    seen = len(hub.seen)
    assert made("me/sums", "--output_dir", "data/a")["commit"] == first and len(hub.seen) == seen
    assert made("me/sums", "--output_dir", "data/b")["commit"] == second
    assert made(f"me/sums@{first}", "--output_dir", "data/c")["commit"] == first
    rows = [(Path("data") / name / "train.parquet").read_bytes() for name in "abc"]
    assert rows[0] == rows[2] != rows[1]


def test_prepare_counts_by_the_tokenizer_of_one_commit_and_so_does_an_attempt_that_goes_on(hub, tokenizer_dir, capsys):
    from suite import prepare

    def write(gold: str) -> None:
        for split in ("train", "test"):
            row = {"prompt": f"{split}: 2+2?", "solution": gold}
            Path(f"raw/{split}.jsonl").write_text(f"{json.dumps(row)}\n")

    def made(directory: str, name: str = "me/words") -> dict:
        words = ["--source", "raw", "--tokenizer_name_or_path", name, "--max_length", "50"]
        prepare.main(["files", *words, "--output_dir", directory])
        return json.loads(Path(directory, "prepare.json").read_text())["tokenizer"]

    Path("raw").mkdir()
    write("4")
    files = {path.name: path.read_bytes() for path in tokenizer_dir.iterdir()} | {"config.json": b"{}"}
    first = hub.put("me/words", files)
    assert made("a") == {"name": "me/words", "revision": "main", "commit": first}
    write("")
    with pytest.raises(ValueError, match="could not be verified"):
        made("b")
    hub.put("me/words", {**files, "tokenizer.json": b"broken"})
    write("4")
    capsys.readouterr()
    assert made("b")["commit"] == first and "Going on from an earlier attempt" in capsys.readouterr().out
    assert made("c", f"me/words@{first}") == {"name": "me/words", "revision": first, "commit": first}


def moved_base(hub, qwen2_dir) -> tuple[str, Path]:
    """(the commit of me/base that `qwen2_dir` is; the same weights shaken, which `main` has moved to)."""
    from transformers import AutoModelForCausalLM

    from tests.conftest import shaken

    first = hub.put("me/base", {path.name: path.read_bytes() for path in qwen2_dir.iterdir()})
    model = AutoModelForCausalLM.from_pretrained(qwen2_dir)
    shaken(model)
    model.save_pretrained("moved")
    hub.put("me/base", {**hub.files("me/base"), "model.safetensors": Path("moved/model.safetensors").read_bytes()})
    return first, Path("moved")


def test_an_adapter_knows_the_commit_of_its_base_and_is_loaded_and_merged_with_that_one(hub, qwen2_dir):
    from trl import ModelConfig

    from suite import engine, merge, run
    from tests.test_export import adapter_of

    first, _ = moved_base(hub, qwen2_dir)
    model = ModelConfig(model_name_or_path="me/base", use_peft=True)
    settle(model)
    assert run.adapter_config(model).revision == model.model_revision != first
    assert run.adapter_config(ModelConfig(model_name_or_path=str(qwen2_dir), use_peft=True)).revision is None
    lora = adapter_of(qwen2_dir, Path("lora"))
    path = lora / "adapter_config.json"
    told = {**json.loads(path.read_text()), "base_model_name_or_path": "me/base", "revision": first}
    path.write_text(json.dumps(told))
    assert merge.base_of(lora) == f"me/base@{first}" and merge.config_of(f"me/base@{first}")["hidden_size"] == 64
    weight = "model.layers.0.mlp.up_proj.weight"
    wanted = merge.loaded(qwen2_dir).state_dict()[weight]
    assert merge.loaded(merge.base_of(lora)).state_dict()[weight].equal(wanted)
    there = engine.load(str(lora)).model.state_dict()
    assert next(there[key] for key in there if key.endswith("layers.0.mlp.up_proj.base_layer.weight")).equal(wanted)


def test_an_evaluation_notes_the_commit_and_is_made_again_where_main_has_moved(hub, qwen2_dir, capsys):
    from suite import evaluate

    moved_base(hub, qwen2_dir)
    first = hub.repos["me/base"].branches["main"][-1]
    row = {"prompt": "1+1", "solution": "2"}
    hub.put("datasets/me/rows", {"test.jsonl": json.dumps(row).encode()})
    words = ["--checkpoints", "me/base", "--dataset_name", "me/rows", "--output_dir", "runs", "--num_generations", "0"]

    def result() -> dict:
        evaluate.main([*words, "--max_completion_length", "2"])
        (told,) = json.loads(Path("runs/results.json").read_text())
        return told

    assert result()["fingerprint"] == f"me/base@{first}"
    assert result()["fingerprint"] == f"me/base@{first}" and "already evaluated this way" in capsys.readouterr().out
    second = hub.put("me/base", {**hub.files("me/base"), "README.md": b"moved"})
    assert result()["fingerprint"] == f"me/base@{second}"
    assert pins.at_commit("me/base", f"me/base@{first}") == f"me/base@{first}" and pins.at_commit("runs/x") == "runs/x"


def test_a_reward_model_has_a_commit_of_its_own_and_not_the_revision_of_the_policy(hub, qwen2_dir):
    from transformers import Qwen2Config, Qwen2ForSequenceClassification
    from trl import GRPOConfig

    from suite.trainers import reward_models

    config = Qwen2Config.from_pretrained(qwen2_dir, num_labels=1)
    judge = Qwen2ForSequenceClassification(config)
    judge.save_pretrained("judge")
    files = {path.name: path.read_bytes() for folder in (qwen2_dir, Path("judge")) for path in folder.iterdir()}
    first = hub.put("me/judge", files)
    hub.put("me/judge", {**files, "model.safetensors": b"broken"})
    pinned = [{"kind": "model", "name": "me/judge", "revision": "main", "commit": first}]
    how = GRPOConfig(output_dir="run", use_cpu=True, bf16=False, model_init_kwargs={"revision": NOWHERE})
    own = len
    funcs, tokenizers = reward_models.load([own, "me/judge", "me/judge@v1", "./judge"], pinned, how)
    assert funcs[0] is own and funcs[3] == "./judge" and tokenizers[0] is tokenizers[3] is None
    for func, tokenizer in zip(funcs[1:3], tokenizers[1:3], strict=True):
        assert func.score.weight.equal(judge.score.weight) and func.config._name_or_path == "me/judge"
        assert tokenizer("1+1")["input_ids"]


ASKS = """
import os
from accelerate import PartialState
from suite import pins

state = PartialState(cpu=True)
print(f"told on {os.environ['RANK']}: asked by {pins._on_rank_0(lambda: os.environ['RANK'])}.", flush=True)
state.destroy_process_group()  # or gloo's threads may still run when the interpreter ends, which aborts it
"""


@pytest.mark.slow
def test_of_several_processes_one_asks_and_all_are_told_the_same():
    import sys

    from tests import engines

    Path("asks.py").write_text(ASKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "asks.py"]
    said = engines.run(launch, Path("."))
    assert "told on 0: asked by 0." in said and "told on 1: asked by 0." in said


WORDS = ["--per_device_train_batch_size", "2", "--save_steps", "1", "--logging_steps", "1", "--lr_scheduler_type",
         "constant", "--max_length", "64", "--resume_from_checkpoint", "true"]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_made_longer_reads_what_it_began_with_and_its_card_names_the_commits(hub, qwen2_dir, capsys):
    from suite.train import sft
    from tests.conftest import ON_CPU, write_yaml

    _, moved = moved_base(hub, qwen2_dir)
    hub.put("me/base", {path.name: path.read_bytes() for path in qwen2_dir.iterdir()}, "main")
    now = hub.repos["me/base"].at("main")
    row = {"prompt": [{"role": "user", "content": "1+1"}], "completion": [{"role": "assistant", "content": "2"}]}
    rows = hub.put("datasets/me/rows", {"train.jsonl": b"".join(json.dumps(row).encode() + b"\n" for _ in range(8))})
    write_yaml(Path("sft.yaml"), model_name_or_path="me/base", datasets=[{"path": "me/rows"}], output_dir="run")
    config = ["--config", "sft.yaml", *WORDS, *ON_CPU]
    sft.main([*config, "--max_steps", "1"])
    pinned = json.loads(Path("run/run.json").read_text())["pins"]
    assert {p["name"]: p["commit"] for p in pinned} == {"me/base": now, "me/rows": rows}
    later = {**hub.files("me/base"), "model.safetensors": (moved / "model.safetensors").read_bytes()}
    hub.put("me/base", later)
    hub.put("datasets/me/rows", {"train.jsonl": b'{"text": "another shape"}\n'})
    capsys.readouterr()
    sft.main([*config, "--max_steps", "2"])
    said = capsys.readouterr().out
    assert "me/base: main has moved on" in said and "me/rows: main has moved on" in said
    assert json.loads(Path("run/run.json").read_text())["pins"] == pinned
    text = Path("run/README.md").read_text()
    assert f"model_revision: {now}" in text and f"- path: me/rows@{rows}" in text and "8 train" in text
    assert "base_model: me/base" in text and "- me/rows" in text
