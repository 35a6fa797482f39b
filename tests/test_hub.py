"""Checkpoints reach a Hub and come back; every refusal is one line, and a broken upload goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from suite import checkpoint, export, hub
from tests.conftest import ON_CPU, write_yaml
from tests.hub_stand_in import READS, WRITES, a_hub, connect
from tests.test_export import IDS, adapter_of, in_a_process_without_suite, logits_of


@pytest.fixture
def there(monkeypatch, tmp_path):
    """A Hub for this process."""
    with a_hub() as found:
        connect(monkeypatch, found, tmp_path)
        monkeypatch.setenv("HF_TOKEN", WRITES)
        yield found


def elsewhere(found, **more) -> dict[str, str]:
    return {"HF_ENDPOINT": found.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITES, **more}


def push(*words) -> None:
    export.main([str(word) for word in words])


@pytest.fixture
def run_dir(miniqwen_dir, tmp_path):
    """A run as it lies there, with the pickles that a Trainer leaves and two checkpoints."""
    path = shutil.copytree(miniqwen_dir, tmp_path / "run")
    for step in (5, 10):
        shutil.copytree(miniqwen_dir, path / f"checkpoint-{step}")
        (path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"pickle")
        (path / f"checkpoint-{step}" / "README.md").write_text(f"step {step}")
    (path / "training_args.bin").write_bytes(b"pickle")
    (path / "run.json").write_text("{}")
    return path


def test_a_run_is_pushed_without_its_pickles_and_twice_is_once(run_dir, there, capsys):
    push(run_dir, "--push", "me/model")
    assert f"{there.url}/me/model" in capsys.readouterr().out
    sent = there.files("me/model")
    assert set(sent) - {".gitattributes"} == set(hub.files_of(run_dir))
    assert {"model.safetensors", "config.json", "modeling.py", "chat_template.jinja"} <= set(sent)
    assert not [name for name in sent if name.endswith((".bin", ".pt"))] and "run.json" not in sent
    assert not there.repos["me/model"].private and len(there.puts) == 1
    push(run_dir, "--push", "me/model")
    assert len(there.puts) == 1


def test_a_repository_is_private_where_it_is_asked_for_or_the_account_has_it_so(run_dir, there):
    push(run_dir, "--push", "me/private", "--hub_private_repo", "true")
    there.private_by_default = True
    push(run_dir, "--push", "me/default")
    push(run_dir, "--push", "me/public", "--hub_private_repo", "false")
    assert [there.repos[f"me/{name}"].private for name in ("private", "default", "public")] == [True, True, False]


def test_each_saved_step_is_a_revision_of_its_own(run_dir, there):
    push(run_dir, "--push", "me/model", "--hub_step_revisions", "true")
    assert set(there.repos["me/model"].branches) == {"main", "step-5", "step-10"}
    assert there.files("me/model", "step-5")["README.md"] == b"step 5"
    assert "optimizer.pt" not in there.files("me/model", "step-10") and "README.md" not in there.files("me/model")
    push(run_dir, "--push", "me/model", "--hub_revision", "other")
    assert "model.safetensors" in there.files("me/model", "other")


def test_the_card_of_a_run_goes_along_and_with_what_is_made_of_it_and_may_have_more_to_tell(run_dir, there):
    told = {"stage": "sft", "config": {}, "inputs": {}, "processes": 1, "finished": True, "seconds": 1.0, "steps": 10}
    (run_dir / "run.json").write_text(json.dumps(told))
    push(run_dir, "--push", "me/model")
    push(run_dir, "--output_dir", "plain", "--as", "qwen2", "--push", "me/plain")
    as_what = " and exported as qwen2, its weights in float32"
    for repo, title, made in (("me/model", "# run", ""), ("me/plain", "# plain", as_what)):
        text = there.files(repo)["README.md"].decode()
        assert title in text and f"by `suite sft`{made}: 10 steps in 1 s." in text
    (run_dir / "run.json").write_text(json.dumps({**told, "seconds": 2.0}))
    push(run_dir, "--push", "me/model")  # no other file than the card has changed, so nothing is in its way
    assert b"10 steps in 2 s." in there.files("me/model")["README.md"]


def test_a_repository_that_holds_something_else_is_refused_and_replaced_only_where_that_is_said(run_dir, there):
    push(run_dir, "--push", "me/model")
    before = dict(there.files("me/model"))
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    with pytest.raises(ValueError, match="me/model is there already and holds something else: its config.json"):
        push(run_dir, "--push", "me/model")
    assert there.files("me/model") == before
    there.repos["me/model"].commit("main", {**before, "model-00001-of-00002.safetensors": b"old"})
    push(run_dir, "--push", "me/model", "--hub_replace", "true")
    now = there.files("me/model")
    assert b"gelu" in now["config.json"] and "model-00001-of-00002.safetensors" not in now


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "No token for the Hub: run `hf auth login`"),
        ("hf_wrong", "does not know this token"),
        (READS, "This token may not write to me/model"),
    ],
)
def test_no_token_or_one_without_rights_is_one_line_that_does_not_show_it(run_dir, there, monkeypatch, token, message):
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    before = checkpoint.fingerprint(run_dir)
    with pytest.raises(ValueError, match=message) as caught:
        push(run_dir, "--push", "me/model")
    assert "\n" not in str(caught.value) and "hf_" not in str(caught.value)
    assert not there.repos and checkpoint.fingerprint(run_dir) == before


def test_without_a_network_it_is_one_line_before_any_work(run_dir, there, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="The Hub at http://127.0.0.1:9 cannot be reached"):
        push(run_dir, "--output_dir", "out", "--as", "qwen2", "--push", "me/model")
    assert not Path("out").exists()


def test_an_upload_that_breaks_off_says_how_to_go_on_and_does(run_dir, there, monkeypatch):
    there.full = True
    with pytest.raises(ValueError, match="Sending to me/model broke off .*Run the same command again") as caught:
        push(run_dir, "--push", "me/model")
    assert "\n" not in str(caught.value) and set(there.files("me/model")) == {".gitattributes"}
    there.full = False
    push(run_dir, "--push", "me/model")
    assert "model.safetensors" in there.files("me/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        push(run_dir, "--push", "me/model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push", "model"], "push: 'model' names no repository; it must be owner/name"),
        (["--output_dir", "out", "--push", "me/x", "--push_adapter", "me/x"], "need a repository each"),
        (["--output_dir", "out", "--push_adapter", "me/x"], "is a whole model and no adapter"),
        (["--push", "me/x", "--as", "qwen2"], "output_dir is missing"),
        (["--output_dir", "out", "--push", "me/x", "--hub_step_revisions", "true"], "the steps are the run's own"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(run_dir, there, words, message):
    with pytest.raises(ValueError, match=message):
        push(run_dir, *words)
    assert not there.seen


LOAD = """
import sys
from pathlib import Path
torch.save(AutoModelForCausalLM.from_pretrained(*{names}, **{how})(torch.tensor({ids})).logits, "back.pt")
AutoTokenizer.from_pretrained({names}[0], **{how})
print(*[p for p in Path(".").rglob("*") if p.is_file() and b"{token}" in p.read_bytes()], "nothing")
"""


def back(found, tmp_path, name: str, **how):
    """The logits of what stock transformers loads from the Hub, in a process without the suite."""
    import torch

    code = LOAD.format(names=[name], how=how, ids=IDS, token=WRITES)
    env = elsewhere(found, HF_HOME=str(tmp_path / "home"), HF_HUB_CACHE=str(tmp_path / "home/hub"))
    assert in_a_process_without_suite(code, tmp_path, **env).split()[-1] == "nothing"
    return torch.load(tmp_path / "back.pt")


@pytest.mark.slow
def test_adapter_merged_model_and_miniqwen_come_back_by_stock_from_pretrained(miniqwen_dir, qwen2_dir, there, tmp_path):
    lora = adapter_of(qwen2_dir, tmp_path / "lora")
    push(lora, "--output_dir", "merged", "--push", "me/merged", "--push_adapter", "me/adapter")
    push(miniqwen_dir, "--push", "me/mini")
    assert set(there.files("me/adapter")) >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    expected = logits_of("merged")
    assert back(there, tmp_path, "me/merged").equal(expected)
    assert (back(there, tmp_path, "me/adapter") - expected).abs().max() < 1e-4
    assert back(there, tmp_path, "me/mini", trust_remote_code=True).equal(logits_of(miniqwen_dir))


@pytest.mark.slow
def test_a_push_that_was_killed_goes_on_and_sends_nothing_twice(qwen2_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    shutil.copytree(qwen2_dir, sharded)
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(qwen2_dir).save_pretrained(sharded, max_shard_size="100KB")
    shards = len(list(sharded.glob("*.safetensors")))
    before = checkpoint.fingerprint(sharded)
    with a_hub(hold_after=1) as found:
        words = [sys.executable, "-m", "suite.cli", "export", str(sharded), "--push", "me/model"]
        env = {**os.environ, **elsewhere(found)}
        with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pushing:
            assert found.held.wait(120)
            pushing.kill()
        assert len(found.puts) == 1 and set(found.files("me/model")) == {".gitattributes"}
        found.hold_after = None
        found.release.set()
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert WRITES not in done.stdout + done.stderr
        assert len(found.puts) == len(set(found.puts)) == shards > 2
        assert set(found.files("me/model")) > {path.name for path in sharded.glob("*.safetensors")}
        assert (back(found, tmp_path, "me/model") - logits_of(qwen2_dir)).abs().max() == 0
    assert checkpoint.fingerprint(sharded) == before


def train(model: Path, rows: Path, **keys) -> None:
    from suite.train import sft

    config = write_yaml(
        Path("sft.yaml"), model_name_or_path=str(model), dataset_name=str(rows), output_dir="run", max_steps=4,
        save_steps=2, **keys,
    )  # fmt: skip
    sft.main(["--config", str(config), *ON_CPU])


def test_a_run_that_would_replace_a_model_on_the_hub_is_refused_before_one_is_loaded(
    miniqwen_dir, arithmetic_dir, there, monkeypatch
):
    there.put("me/run", {"README.md": b"mine"})
    hub.check_holds_no_model("me/run", None)
    there.put("me/run", {"model-00001-of-00002.safetensors": b"another"})
    hub.check_holds_no_model("me/run", "new")
    hub.check_holds_no_model("me/other", None)
    refused = r"me/run is there already and holds a model \(model-00001.*hub_replace: true"
    with pytest.raises(ValueError, match=refused):
        train(miniqwen_dir, arithmetic_dir, push_to_hub=True)
    monkeypatch.setattr("suite.resume.look", lambda *_: ("go on", "another/checkpoint-2"))
    with pytest.raises(ValueError, match=refused):  # where a run begins from another's checkpoint
        train(miniqwen_dir, arithmetic_dir, push_to_hub=True)
    assert not Path("run").exists() and len(there.repos["me/run"].branches["main"]) == 2


@pytest.mark.slow
def test_a_run_pushes_as_it_trains_each_step_a_branch_and_neither_pickle_nor_token_leaves(
    miniqwen_dir, arithmetic_dir, there, tmp_path, capfd
):
    there.put("me/run", {"model-00001-of-00002.safetensors": b"another"})
    train(miniqwen_dir, arithmetic_dir, push_to_hub=True, hub_step_revisions=True, hub_replace=True)
    repo = there.repos["me/run"]
    assert set(repo.branches) == {"main", "step-2", "step-4"}
    for revision, path in (("main", "run"), ("step-2", "run/checkpoint-2"), ("step-4", "run/checkpoint-4")):
        sent = there.files("me/run", revision)
        assert sent["model.safetensors"] == (tmp_path / path / "model.safetensors").read_bytes()
        assert "modeling.py" in sent and "model-00001-of-00002.safetensors" not in sent
        assert not [n for n in sent if n.endswith((".bin", ".pt", ".pth"))]
        assert not {"run.json", "trainer_state.json"} & set(sent)
    cards = [there.files("me/run", branch)["README.md"].decode() for branch in ("main", "step-2")]
    assert "by `suite sft`: 4 steps in" in cards[0] and "as it stood at step 2" in cards[1]
    assert there.files("me/run")["curves.png"] == (tmp_path / "run/curves.png").read_bytes()
    assert not [card for card in cards if str(tmp_path.parent) in card]
    said = "".join(capfd.readouterr()).encode() + b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert WRITES.encode() not in said and WRITES.encode() not in b"".join(there.files("me/run").values())


def test_a_hub_that_would_refuse_does_so_before_a_model_is_loaded(miniqwen_dir, arithmetic_dir, there, monkeypatch):
    def told(**keys) -> str:
        with pytest.raises(ValueError) as caught:
            train(miniqwen_dir, arithmetic_dir, **keys)
        assert not Path("run").exists() and not there.repos
        return str(caught.value)

    assert "ends up in files" in told(push_to_hub=True, hub_token=WRITES)
    assert "goes with `push_to_hub: true`" in told(hub_step_revisions=True)
    assert "hub_replace goes with" in told(hub_replace=True)
    assert "There are: end, every_save, all_checkpoints" in told(push_to_hub=True, hub_strategy="checkpoint")
    assert "must be owner/name" in told(push_to_hub=True, hub_model_id="me/too/deep")
    monkeypatch.delenv("HF_TOKEN")
    assert "No token for the Hub" in told(push_to_hub=True)
