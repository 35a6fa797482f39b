"""What many tests need: a tiny tokenizer, tiny models of both kinds, prepared rows, and the command line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LM_EVAL = Path(sys.prefix) / "lm-eval/bin"  # `make lm-eval` makes it; lm-eval, scikit-learn and scipy are there only
SHARED = ROOT.parent / "shared" / "data"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # random logits far enough apart that greedy choices do not hang on rounding
}
# What every training config needs on a machine without a GPU.
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false", "--report_to", "none"]


# Minutes each: begun last, one of them would keep one worker busy and leave the others without work.
LONGEST = ("test_vllm.py", "test_engines.py", "test_crashes.py", "test_notebooks.py", "test_serve.py", "test_life.py",
           "test_colocated.py", "test_resume_engines.py", "test_answering.py", "test_outputs.py",
           "test_smoke.py")  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files are begun first, then others with slow tests; those of seconds fill up the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path not in slow))


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hears_signals():
    """Behind nohup a run of tests ignores SIGHUP, in a script's background SIGINT, and every process that it starts
    would, too."""
    heard = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, how) for number, how in heard.items()}
    yield
    for number, how in before.items():
        signal.signal(number, how)


@pytest.fixture(scope="session")
def arithmetic_dir(tmp_path_factory) -> Path:
    """data/arithmetic as `suite prepare` writes it: 400 training and 100 test rows."""
    from suite import prepare

    target = tmp_path_factory.mktemp("data") / "arithmetic"
    words = ["arithmetic", "--output_dir", str(target), "--size", "400", "--test_size", "100"]
    prepare.main([*words, "--system_prompt", "none"])
    return target


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """A miniqwen tokenizer of 300 tokens."""
    from suite.train import tokenizer as stage

    target = tmp_path_factory.mktemp("tokenizer")
    texts = ["user\n12+34\nassistant\n2+4=6\n1+3=4\n46 The answer to the problem is a number."] * 20
    stage.save(stage.train(iter(texts), 300, 2), stage.TokenizerArguments(output_dir=str(target)))
    return target


def save_model(
    model_class, config_class, tokenizer_dir: Path, target: Path, eos_token: str = "<|im_end|>", **shape
) -> Path:
    """A random model of the tiny shape, complete with tokenizer and stop tokens, as a checkpoint directory."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.eos_token = eos_token
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**TINY, **shape},
    )
    model_class(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


@pytest.fixture(scope="session")
def miniqwen_dir(tokenizer_dir, tmp_path_factory) -> Path:
    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    return save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, tmp_path_factory.mktemp("miniqwen"))


@pytest.fixture(scope="session")
def qwen2_dir(tokenizer_dir, tmp_path_factory) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return save_model(Qwen2ForCausalLM, Qwen2Config, tokenizer_dir, tmp_path_factory.mktemp("qwen2"))


# vLLM's attention on the CPU has no kernel for heads of 16, the tiny shape's.
HEADS_OF_32 = {"hidden_size": 32 * TINY["num_attention_heads"]}


def base_flavoured(tokenizer_dir: Path, target: Path) -> Path:
    """A random Qwen2 as Qwen2.5's base models come: it ends texts, and its chat template ends turns."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return save_model(Qwen2ForCausalLM, Qwen2Config, tokenizer_dir, target, "<|endoftext|>", **HEADS_OF_32)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout, where there is any."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


def run_suite(*words, cwd=None, env=None, timeout=600) -> subprocess.CompletedProcess:
    """`suite WORDS...` as a process of its own, with its output as text."""
    return subprocess.run(
        [sys.executable, "-m", "suite.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def write_yaml(path: Path, **keys) -> Path:
    import yaml

    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return path


class Built(Exception):
    """Ends a stage where its training would begin; holds the trainer."""

    def __init__(self, trainer):
        self.trainer = trainer


def built_by(main, words, monkeypatch):
    """The trainer that a stage's `main` builds, at the moment when it would begin to train."""
    from transformers import Trainer

    def stop(trainer, *args, **kwargs):
        raise Built(trainer)

    monkeypatch.setattr(Trainer, "train", stop)
    with pytest.raises(Built) as caught:
        main([str(word) for word in words])
    return caught.value.trainer


def shaken(model, by: float = 0.02) -> None:
    """Move every weight a little, as training does, but the same way each time."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
