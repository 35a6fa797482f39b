"""What leaves the suite is a plain directory: stock transformers loads it, and it answers as before."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from suite import engine, export, measures, merge, whole
from tests.conftest import HEADS_OF_32, base_flavoured, save_model
from tests.disk import full_disk
from tests.test_look import STRIPS_THOUGHTS

# A process in which nobody installed the suite, however the one that runs the tests came by it.
WITHOUT_SUITE = """
import importlib.util, os, sys
sys.path = [p for p in sys.path if not os.path.isdir(os.path.join(p or ".", "suite"))]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
assert importlib.util.find_spec("suite") is None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
"""


def in_a_process_without_suite(code: str, cwd: Path, **env) -> str:
    """What `code` prints there."""
    env = {**os.environ, "HF_MODULES_CACHE": str(cwd / "modules"), **env}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SUITE + code], cwd=cwd, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IDS = [[1, 2, 3, 40, 50, 60]]


def logits_of(path):
    """(B, T, V) of a few tokens, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    import suite.model  # noqa: F401

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path, dtype="float32")(torch.tensor(IDS)).logits


@pytest.fixture(scope="module")
def forms(tokenizer_dir, miniqwen_dir, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each form, by the name that transformers has for it; it has none for both forms at once."""
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    home = tmp_path_factory.mktemp("forms")
    latent = {"kv_lora_rank": 24, "q_lora_rank": 20}
    shapes = {
        "qwen2_moe": {"num_experts": 4},
        "qwen2_moe-shared": {"num_experts": 4, "shared_expert_intermediate_size": 32},
        "deepseek_v2": latent,
        "both": {"num_experts": 4, **latent},
    }
    made = {
        name: save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, home / name, **shape)
        for name, shape in shapes.items()
    }
    return {"qwen2": miniqwen_dir, **made}


@pytest.mark.slow
def test_a_miniqwen_of_every_form_brings_its_code_and_needs_no_suite(forms, tmp_path):
    import torch

    for name, path in forms.items():
        torch.save(logits_of(path), tmp_path / f"{name}.pt")
    code = f"""
for name, path in { ({name: str(path) for name, path in forms.items()})!r}.items():
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)
    assert model(torch.tensor({IDS})).logits.equal(torch.load(name + ".pt"))
    ids = AutoTokenizer.from_pretrained(path, trust_remote_code=True)("2+2", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=4).shape[1] > ids.input_ids.shape[1]
    model.save_pretrained("again-" + name)
    again = AutoModelForCausalLM.from_pretrained("again-" + name, trust_remote_code=True)
    assert again(torch.tensor({IDS})).logits.equal(torch.load(name + ".pt"))
    print(type(model).__module__.split(".")[0])
"""
    assert in_a_process_without_suite(code, tmp_path).split()[-5:] == ["transformers_modules"] * 5


def adapter_of(base: Path, target: Path, by: float = 0.05, tokenizer=None, **lora) -> Path:
    """A LoRA of every linear layer as training leaves it; moved `by` so much."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import suite.model  # noqa: F401

    torch.manual_seed(0)
    lora = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    model = get_peft_model(model, LoraConfig(**lora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += by * torch.randn_like(parameter)
    model.save_pretrained(target)
    ends_turns = tokenizer or AutoTokenizer.from_pretrained(base)
    ends_turns.eos_token = "<|im_end|>"
    ends_turns.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def base_dir(tokenizer_dir, tmp_path_factory):
    """Ends texts, as Qwen2.5's base models do, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    path = base_flavoured(tokenizer_dir, tmp_path_factory.mktemp("base"))
    AutoModelForCausalLM.from_pretrained(path).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lora_dir(base_dir, tmp_path_factory):
    return adapter_of(base_dir, tmp_path_factory.mktemp("lora"))


def export_(*words) -> None:
    export.main([str(word) for word in words])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_merged_adapter_answers_as_the_adapter_did_and_ends_turns(lora_dir, base_dir, dtype):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_(lora_dir, "--output_dir", "out", "--dtype", dtype, "--max_shard_size", "100KB")
    assert len(list(Path("out").glob("*.safetensors"))) > 2 and not list(Path().glob(".out*"))
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype="float32")
    with torch.no_grad():
        before = base(torch.tensor(IDS)).logits
        adapted = PeftModel.from_pretrained(base, lora_dir)(torch.tensor(IDS)).logits
    apart, moved = (logits_of("out") - adapted).abs().max(), (adapted - before).abs().max()
    assert apart < (1e-4 if dtype == "float32" else 0.2 * moved) and moved > 0.1
    stored = AutoModelForCausalLM.from_pretrained("out", dtype="auto")
    assert stored.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained("out")
    turn, text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert (tokenizer.eos_token_id, stored.config.eos_token_id) == (turn, turn)
    assert stored.generation_config.eos_token_id == [turn, text]


@pytest.mark.slow
def test_an_adapter_that_brings_rows_for_more_tokens_is_merged_with_them(base_dir, tmp_path):
    """As SFT with a `chat_template_path` that names a tokenizer leaves it."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    tokenizer.add_tokens([f"<|more-{number}|>" for number in range(8)])
    wider = adapter_of(base_dir, tmp_path / "wider", tokenizer=tokenizer)
    export_(wider, "--output_dir", "out", "--dtype", "float32")
    assert AutoConfig.from_pretrained("out").vocab_size == len(tokenizer) == len(AutoTokenizer.from_pretrained("out"))
    assert logits_of("out").shape[-1] == len(tokenizer)


@pytest.mark.slow
def test_an_adapter_is_asked_with_all_that_it_holds(base_dir, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole_head = adapter_of(base_dir, tmp_path / "head", modules_to_save=["lm_head"])
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype="float32")
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, whole_head)(torch.tensor(IDS)).logits
        asked = engine.load(str(whole_head), dtype="float32").model
        for model in (asked, measures._load(str(whole_head), "float32")[0]):
            assert (model(torch.tensor(IDS)).logits - expected).abs().max() < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    tokenizer.add_tokens(["<|more|>"])
    wider = engine.load(str(adapter_of(base_dir, tmp_path / "wider", tokenizer=tokenizer)))
    assert wider.complete(["2+2="], engine.Sampling(4))[0][0].tokens > 0


@pytest.mark.parametrize(
    ("lora", "saved", "more"),
    [
        ({"target_modules": ["q_proj"]}, True, 0),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False, 0),
        ({"target_modules": ["q_proj", "embed_tokens"]}, False, 0),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "auto", 4),
        ({"target_modules": ["q_proj"]}, "auto", 4),
    ],
)
def test_the_embeddings_of_the_base_may_come_with_an_adapter_and_need_not(lora, saved, more, base_dir, tmp_path):
    """Whatever PEFT would save itself, which asks the base on the Hub."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype="float32")
    model.resize_token_embeddings(model.config.vocab_size + more)
    model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **lora))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=saved)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "numpy") as file:
        whole_rows = [name for name in file.keys() if "embed_tokens" in name and "lora" not in name]  # noqa: SIM118
    assert bool(whole_rows) == bool(saved)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base_dir), "owner/not-there"))
    asked = merge.beside(tmp_path / "adapter", str(base_dir), "float32")
    assert isinstance(asked, PeftModel)
    with torch.no_grad():
        assert (asked.eval()(torch.tensor(IDS)).logits - model.eval()(torch.tensor(IDS)).logits).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_an_adapter_in_front_of_the_prompt_is_neither_asked_nor_merged(kind, base_dir, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    front = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir), front).save_pretrained(tmp_path / "front")
    AutoTokenizer.from_pretrained(base_dir).save_pretrained(tmp_path / "front")
    told = "lives in front of the prompt and not in weights.* Load it with PEFT itself"
    with pytest.raises(ValueError, match=told):
        merge.to_ask(str(tmp_path / "front"), "float32")
    with pytest.raises(ValueError, match=told):
        export_(tmp_path / "front", "--output_dir", "out")
    assert not Path("out").exists()


def test_an_alora_is_neither_asked_nor_merged_and_its_base_is_not_loaded(base_dir, tmp_path, monkeypatch):
    """PEFT cannot merge it, and the model under it answers as its base does."""
    behind = adapter_of(base_dir, tmp_path / "behind", alora_invocation_tokens=[5, 6])
    monkeypatch.setattr(merge, "loaded", None)
    told = r"is an aLoRA \(alora_invocation_tokens: \[5, 6\]\).* Load it with PEFT itself"
    with pytest.raises(ValueError, match=told):
        merge.to_ask(str(behind), "float32")
    with pytest.raises(ValueError, match=told):
        export_(behind, "--output_dir", "out")
    assert not Path("out").exists()


def test_an_alora_on_the_hub_is_not_asked_either(base_dir, tmp_path):
    """As transformers reads it from the Hub, it reads it from a directory: its answers were those of the base."""
    behind = adapter_of(base_dir, tmp_path / "behind", alora_invocation_tokens=[5, 6])
    with pytest.raises(ValueError, match=r"'\S+behind' is an aLoRA .* Load it with PEFT itself"):
        merge.loaded(behind, "float32")


def test_an_alora_of_no_tokens_is_plain_lora_as_to_peft(base_dir, tmp_path):
    import torch

    plain = adapter_of(base_dir, tmp_path / "plain")
    empty = adapter_of(base_dir, tmp_path / "empty", alora_invocation_tokens=[])
    assert json.loads((empty / "adapter_config.json").read_text())["alora_invocation_tokens"] == []
    expected = logits_of(plain)
    assert not torch.allclose(expected, logits_of(base_dir), atol=1e-2)
    for model in (merge.to_ask(str(empty), "float32"), merge.loaded(empty, "float32")):
        with torch.no_grad():
            torch.testing.assert_close(model(torch.tensor(IDS)).logits, expected)


def test_an_adapter_on_the_hub_with_whole_tensors_is_to_be_downloaded(base_dir, tmp_path):
    """As transformers reads it from the Hub, it reads it from a directory."""
    head = adapter_of(base_dir, tmp_path / "head", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=f"an adapter with whole tensors .*`hf download {head} --local-dir DIR`"):
        merge.loaded(head)


@pytest.mark.slow
def test_a_miniqwen_becomes_a_stock_model_with_its_tensors_and_logits(forms, tmp_path):
    import torch
    from safetensors.torch import load_file

    sources = {name: path for name, path in forms.items() if name != "both"}
    sources["qwen2-merged"] = adapter_of(forms["qwen2"], tmp_path / "lora")
    for name, source in sources.items():
        export_(source, "--output_dir", name, "--as", name.partition("-")[0])
        assert not list(Path(name).glob("*.py"))
        torch.save(logits_of(name), f"{name}.pt")
        if name in forms:
            assert torch.load(f"{name}.pt").sub(logits_of(source)).abs().max() < 1e-4
            here, there = load_file(f"{name}/model.safetensors"), load_file(source / "model.safetensors")
            # transformers' Qwen2MoE has a gate, even of a shared expert that is none.
            assert all("shared_expert_gate" in key for key in here.keys() ^ there.keys())
            assert all(here[key].equal(there[key]) for key in there)
    code = f"""
for name in {list(sources)}:
    model = AutoModelForCausalLM.from_pretrained(name)
    assert type(model).__module__.split(".")[2] == name.partition("-")[0] and AutoTokenizer.from_pretrained(name)
    assert model(torch.tensor({IDS})).logits.equal(torch.load(name + ".pt"))
"""
    in_a_process_without_suite(code, tmp_path)


@pytest.mark.parametrize("name", ["qwen2", "qwen2_moe", "qwen2_moe-shared", "deepseek_v2"])
def test_gguf_has_a_name_for_every_tensor_of_the_stock_model(forms, name):
    import gguf
    from safetensors import safe_open

    arch = {"qwen2": "QWEN2", "qwen2_moe": "QWEN2MOE", "deepseek_v2": "DEEPSEEK2"}[name.partition("-")[0]]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], 2)
    with safe_open(forms[name] / "model.safetensors", framework="pt") as file:
        # Its converters stack a mixture's experts, and ask for the stack's name.
        names = {re.sub(r"experts\.\d+\.", "experts.", key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    assert len(names) > 15
    assert not [key for key in names if known.get_name(key, try_suffixes=(".weight", ".bias")) is None]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_upcycled_model_answers_as_the_dense_one_did_and_trains_its_experts_apart(
    forms, qwen2_dir, tmp_path, dtype, capsys
):
    """The look after the export has compared the logits already, with the dense weights rounded alike."""
    import torch
    from transformers import AutoModelForCausalLM

    upcycle = ("--upcycle", "--num_experts", "4", "--dtype", dtype)
    export_(forms["qwen2"], "--output_dir", "miniqwen", *upcycle)
    export_(forms["qwen2"], "--output_dir", "stock", *upcycle, "--as", "qwen2_moe", "--num_experts_per_tok", "3")
    export_(forms["deepseek_v2"], "--output_dir", "latent", *upcycle, "--num_experts_per_tok", "1")
    export_(qwen2_dir, "--output_dir", "qwen2", *upcycle)
    kinds = {"miniqwen": "miniqwen", "stock": "qwen2_moe", "latent": "miniqwen", "qwen2": "qwen2_moe"}
    dense = {"miniqwen": forms["qwen2"], "stock": forms["qwen2"], "latent": forms["deepseek_v2"], "qwen2": qwen2_dir}
    for name, kind in kinds.items():
        config = json.loads(Path(name, "config.json").read_text())
        assert (config["model_type"], config["num_experts"]) == (kind, 4)
        if dtype == "float32":
            assert (logits_of(name) - logits_of(dense[name])).abs().max() < 1e-4
    model = AutoModelForCausalLM.from_pretrained("miniqwen", dtype="float32")
    experts = model.model.layers[0].mlp.experts.down_proj  # (E, C, F)
    assert experts[0].equal(experts[1])
    ids = torch.arange(10, 60)[None]
    model(ids, labels=ids).loss.backward()
    assert (experts.grad[0] - experts.grad[1]).abs().max() > 1e-6


@pytest.mark.slow
def test_a_model_that_is_exported_whole_keeps_its_form(forms):
    export_(forms["both"], "--output_dir", "out")
    assert (logits_of("out") - logits_of(forms["both"])).abs().max() < 1e-6


@pytest.mark.slow
def test_a_model_that_pretrained_goes_on_ending_texts_and_another_is_told(base_dir, tmp_path, capsys):
    from transformers import AutoTokenizer

    def end_of(path):
        return AutoTokenizer.from_pretrained(path).eos_token

    export_(base_dir, "--output_dir", "turns")
    assert end_of("turns") == "<|im_end|>" and "stops at '<|im_end|>'" in capsys.readouterr().out
    export_(base_dir, "--output_dir", "texts", "--eos_token", "<|endoftext|>")
    pretrained = shutil.copytree(base_dir, tmp_path / "pretrained")
    (pretrained / "run.json").write_text('{"stage": "pretrain"}')
    export_(pretrained, "--output_dir", "also", "--dtype", "float32")
    assert end_of("texts") == end_of("also") == "<|endoftext|>"


@pytest.mark.slow
def test_a_template_that_strips_thoughts_is_refused_replaced_or_accepted(miniqwen_dir, tmp_path):
    strips = shutil.copytree(miniqwen_dir, tmp_path / "strips")
    keeps = shutil.copy(strips / "chat_template.jinja", tmp_path / "keeps.jinja")
    (strips / "chat_template.jinja").write_text(STRIPS_THOUGHTS)
    with pytest.raises(ValueError, match="leaves <think> blocks out.*The files are kept"):
        export_(strips, "--output_dir", "out")
    assert not Path("out").exists() and Path(".out.partial/model.safetensors").is_file()
    export_(strips, "--output_dir", "out", "--chat_template_path", keeps)
    export_(strips, "--output_dir", "as-it-is", "--keeps_thoughts", "false")
    assert Path("out/chat_template.jinja").read_text() == Path(keeps).read_text()
    assert Path("as-it-is/chat_template.jinja").read_text() == STRIPS_THOUGHTS


@pytest.mark.slow
def test_an_export_replaces_nothing_that_came_there_while_it_was_at_work(miniqwen_dir):
    keys = export.ExportArguments(str(miniqwen_dir), output_dir="out")
    tokenizer = export.tokenizer_of(miniqwen_dir, None, keys)
    with whole.directory(Path("out")) as theirs:
        with pytest.raises(ValueError, match="Another process is writing out"):
            export.write(keys, None, tokenizer)
        (theirs / "theirs").write_text("")
    with pytest.raises(ValueError, match="out is there already"):
        export.write(keys, None, tokenizer)
    assert [path.name for path in Path("out").iterdir()] == ["theirs"]


@pytest.mark.slow
def test_a_full_disk_is_one_line_whatever_it_falls_into_and_the_same_command_goes_on(miniqwen_dir, tmp_path):
    run = shutil.copytree(miniqwen_dir, tmp_path / "run")
    record = {"stage": "sft", "config": {}, "inputs": {}, "processes": 1, "finished": True, "seconds": 1.0}
    (run / "run.json").write_text(json.dumps(record))
    kinds = ("loss", "reward", "kl", "entropy", "grad_norm", "reward_std", "mean_token_accuracy")
    history = [{"step": step, **{kind: step % 7 for kind in kinds}} for step in range(1, 400)]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    there = {path.name for path in tmp_path.iterdir()}
    export_(run, "--output_dir", "whole")
    sizes = {path.name: path.stat().st_size for path in Path("whole").iterdir()}
    assert sizes["config.json"] < sizes["model.safetensors"] < sizes["curves.png"]
    for file in (
        "config.json",
        "model.safetensors",
        "curves.png",
    ):  # the first, the weights, and what comes last of all
        with full_disk(sizes[file] - 1), pytest.raises(whole.NoRoomError) as told:
            export_(run, "--output_dir", "out")
        assert re.match(r"Cannot write out(/curves.png)?: .* Make room there, and the same command", str(told.value))
        assert {path.name for path in tmp_path.iterdir()} == there | {"whole"}
    export_(run, "--output_dir", "out")
    assert {path.name for path in Path("out").iterdir()} == sizes.keys()


def test_what_cannot_be_written_in_a_form_is_one_line_that_names_another(forms, tmp_path):
    for name, words, told in (
        ("qwen2", "--as qwen2_moe", "--as qwen2_moe is a mixture of experts, and this miniqwen is dense: --as qwen2"),
        ("qwen2_moe", "--as qwen2", "this miniqwen is a mixture of experts: --as qwen2_moe"),
        ("deepseek_v2", "--as qwen2", "this miniqwen is dense with latent attention: --as deepseek_v2"),
        ("both", "--as qwen2_moe", "no class for both"),
        ("deepseek_v2", "--upcycle --num_experts 4 --as qwen2_moe", "no class for both"),
        ("qwen2_moe", "--upcycle --num_experts 4", "this one is a mixture already"),
        ("qwen2", "--upcycle", "--upcycle and num_experts go together"),
        ("qwen2", "--num_experts 4", "--upcycle and num_experts go together"),
        ("qwen2", "--upcycle --num_experts 1", "num_experts_per_tok 2 must lie between 1 and num_experts 1"),
    ):
        with pytest.raises(ValueError, match=told):
            export_(forms[name], "--output_dir", "out", *words.split())
        assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_line_before_a_model_is_loaded(lora_dir, miniqwen_dir, qwen2_dir, tmp_path):
    def told(*words) -> str:
        with pytest.raises(ValueError) as caught:
            export_(*words)
        assert not Path("out").exists()
        return str(caught.value)

    def changed(name: str, **keys) -> Path:
        path = shutil.copytree(lora_dir, tmp_path / name)
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps({**config, **keys}))
        return path

    out = ("--output_dir", "out")
    (tmp_path / "there").mkdir()
    assert "is there already" in told(lora_dir, "--output_dir", "there")
    assert "output_dir is missing" in told(lora_dir)
    pushed = (lora_dir, "--push", "me/model")
    assert "output_dir is missing: dtype goes with" in told(*pushed, "--dtype", "bfloat16")
    assert "output_dir is missing: --as goes with" in told(*pushed, "--as", "qwen2")
    assert "hub_revision goes with `push`" in told(lora_dir, *out, "--hub_revision", "v2")
    assert "max_shard_size: 'big' must be a size" in told(lora_dir, "--output_dir", "new", "--max_shard_size", "big")
    assert "no checkpoint directory 'nowhere'" in told("nowhere", *out)
    assert "There are: qwen2, qwen2_moe, deepseek_v2" in told(lora_dir, *out, "--as", "llama")
    assert "this model is a qwen2 already" in told(lora_dir, *out, "--as", "qwen2")
    assert "There are: auto, float32" in told(lora_dir, *out, "--dtype", "int8")
    assert "so it has no base" in told(miniqwen_dir, *out, "--base", qwen2_dir)
    assert "'runs/gone', is not there" in told(changed("moved", base_model_name_or_path="runs/gone"), *out)
    assert "Name it: --base" in told(changed("nameless", base_model_name_or_path=None), *out)
    assert "holds a LoRA adapter" in told(changed("stacked", base_model_name_or_path=str(lora_dir)), *out)
    four_bits = shutil.copytree(qwen2_dir, tmp_path / "four")
    config = json.loads((four_bits / "config.json").read_text())
    (four_bits / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    assert "is stored quantized" in told(lora_dir, *out, "--base", four_bits)
    ours = changed("ours")
    base = json.loads((ours / "adapter_config.json").read_text())["base_model_name_or_path"]
    (ours / "run.json").write_text(json.dumps({"inputs": {base: "0123456789abcdef"}}))
    assert "is not the base that" in told(ours, *out)
    assert "num_experts_per_tok goes with --upcycle" in told(miniqwen_dir, *out, "--num_experts_per_tok", "1")
    (tmp_path / "utf-16.jinja").write_text("{{ messages }}", encoding="utf-16")
    assert "utf-16.jinja' is no text in UTF-8" in told(miniqwen_dir, *out, "--chat_template_path", "utf-16.jinja")


def test_a_token_without_an_embedding_is_told_and_refused_where_it_is_in_use(miniqwen_dir, tmp_path, capsys):
    from transformers import AutoTokenizer

    more = shutil.copytree(miniqwen_dir, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(more)
    size = len(tokenizer)
    tokenizer.add_tokens(["<|more|>"], special_tokens=True)
    tokenizer.save_pretrained(more)
    told = f"a token {size}, '<|more|>', and config.json vocab_size {size}"
    export_(more, "--output_dir", "out")
    assert f"note: '{more}': its tokenizer has {told}" in capsys.readouterr().out
    config = {"vocab_size": size}
    for key, value in (("pad_token", "<|more|>"), ("chat_template", tokenizer.chat_template + "<|more|>")):
        used = AutoTokenizer.from_pretrained(more)
        setattr(used, key, value)
        with pytest.raises(ValueError, match=re.escape(told)):
            export._check_vocabulary(more, used, config)
    with pytest.raises(ValueError, match="does not fit together"):  # the tokenizer of another model
        export._check_vocabulary(more, tokenizer, {"vocab_size": size - 50})


def with_weights(source: Path, target: Path, change) -> Path:
    """A copy of a checkpoint whose tensors, by their names, `change` has had in its hands."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_a_weight_that_is_missing_is_not_made_up_and_one_without_a_place_is_told(miniqwen_dir, tmp_path, capsys):
    import torch

    name = "model.layers.1.mlp.up_proj.weight"
    lost = with_weights(miniqwen_dir, tmp_path / "lost", lambda tensors: tensors.pop(name))
    told = rf"'{lost}' does not hold all weights of its miniqwen: {name} is missing"
    with pytest.raises(ValueError, match=told):
        export_(lost, "--output_dir", "out")
    with pytest.raises(ValueError, match=told):
        engine.load(str(lost))
    assert not Path("out").exists()
    more = with_weights(miniqwen_dir, tmp_path / "more", lambda tensors: tensors.update({"score": torch.ones(2)}))
    export_(more, "--output_dir", "out")
    assert "holds score, which has no place in its miniqwen: left out." in capsys.readouterr().out


def test_a_temperature_beside_do_sample_false_is_no_reason_not_to_write(miniqwen_dir, tmp_path, capsys):
    source = shutil.copytree(miniqwen_dir, tmp_path / "odd")
    said = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    (source / "generation_config.json").write_text(json.dumps(said))
    export_(source, "--output_dir", "out")
    found = json.loads(Path("out/generation_config.json").read_text())
    assert said | {"do_sample": True} == {name: found[name] for name in said}
    assert "settings of sampling beside `do_sample: false`" in capsys.readouterr().out


def test_a_generation_config_at_temperature_0_is_greedy_and_answers(miniqwen_dir, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    source = shutil.copytree(miniqwen_dir, tmp_path / "cold")
    (source / "generation_config.json").write_text(json.dumps({"temperature": 0.0, "top_p": 0.9, "eos_token_id": 0}))
    export_(source, "--output_dir", "out")
    assert "temperature 0, which is greedy: temperature, top_p are left out" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained("out")
    assert not model.generation_config.do_sample and model.generation_config.temperature in (None, 1.0)
    assert model.generate(torch.tensor(IDS), max_new_tokens=2).shape[1] > len(IDS[0])


@pytest.mark.parametrize(
    "said",
    [
        {"length_penalty": 1.2},
        {"early_stopping": True},
        {"output_scores": True},
        {"num_return_sequences": 2},
        {"temperature": 0.6, "length_penalty": 1.2},
        {"temperature": 0.0, "length_penalty": 1.2},
    ],
)
def test_a_generation_config_that_sampling_does_not_mend_is_one_line_and_as_it_was(said):
    from transformers import GenerationConfig

    config = GenerationConfig()
    config.__dict__.update(said)  # as loaded: some it would refuse to be made with
    before = config.to_dict()
    with pytest.raises(ValueError, match=f"`{list(said)[-1]}`.* Edit that file") as caught:
        merge.settle_sampling(config)
    assert "\n" not in str(caught.value) and config.to_dict() == before


@pytest.mark.slow
def test_an_adapter_that_does_not_fit_or_does_nothing_is_refused(lora_dir, base_dir, qwen2_dir, tmp_path):
    out = ("--output_dir", "out")
    with pytest.raises(ValueError, match="does not fit its base"):
        export_(lora_dir, *out, "--base", qwen2_dir)  # another width
    with pytest.raises(ValueError, match="changes nothing"):
        export_(adapter_of(base_dir, tmp_path / "untrained", by=0.0), *out)
    with pytest.raises(ValueError, match="Merging .* went wrong: .*differs by up to"):  # one tensor with two meanings
        export_(adapter_of(base_dir, tmp_path / "head", target_modules=["lm_head"]), *out)
    assert not Path("out").exists()
    with pytest.raises(ValueError, match="the merge did nothing.*`dtype: float32` keeps it"):
        export_(adapter_of(base_dir, tmp_path / "faint", by=1e-6), *out)
    assert not Path("out").exists() and (Path(".out.partial") / "config.json").is_file()
    export_(tmp_path / "faint", *out, "--dtype", "float32")


ASK_VLLM = """
import vllm
if __name__ == "__main__":
    llm = vllm.LLM(model="plain", dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=4)
    said = llm.generate([{{"prompt_token_ids": {ids}[0]}}], vllm.SamplingParams(max_tokens=12, temperature=0.0))
    print("said", *said[0].outputs[0].token_ids)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["qwen2", "qwen2_moe"])
def test_vllm_serves_what_was_exported_as_a_stock_model_without_the_suite(tokenizer_dir, tmp_path, form):
    import torch
    from transformers import AutoModelForCausalLM

    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    vllm = pytest.importorskip("vllm")
    if not vllm.platforms.current_platform.is_cpu():
        pytest.skip("vLLM here is not the CPU's; this test is about that one")
    shape = HEADS_OF_32 | ({"num_experts": 4} if form == "qwen2_moe" else {})
    mini = save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, tmp_path / "mini", **shape)
    export_(mini, "--output_dir", "plain", "--as", form)
    model = AutoModelForCausalLM.from_pretrained(mini)
    expected = model.generate(torch.tensor(IDS), max_new_tokens=12, do_sample=False)[0, len(IDS[0]) :].tolist()
    how = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    said = in_a_process_without_suite(ASK_VLLM.format(ids=IDS), tmp_path, **how).splitlines()
    assert next(line for line in said if line.startswith("said")).split()[1:] == [str(i) for i in expected]
