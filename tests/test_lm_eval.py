"""docs/lm-eval.md is what happens: its commands run as they stand there, and lm-eval measures what the suite does."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from suite import engine, measures, reasoning
from tests.conftest import LM_EVAL, ROOT, save_model
from tests.rows import write_rows

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs/lm-eval.md"
QUESTIONS = [f"{'What is ' * (i % 3)}{i}+{7 * i % 83}" for i in range(24)]


def commands() -> list[list[str]]:
    """The words of each command on the page that is not marked as untried."""
    tried = PAGE.read_text(encoding="utf-8").partition("## Untried")[0]
    return [shlex.split(line) for line in re.findall(r"^    ((?:suite|lm-eval) .*)$", tried, re.MULTILINE)]


def task_files() -> dict[str, str]:
    """Name -> content of the two task files on the page."""
    found = re.findall(r"`tasks/([\w-]+\.yaml)`.*?```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 2
    return dict(found)


def rows(directory: Path, pattern: str) -> list[dict]:
    """Questions, half of which a random model answers right: as their solution counts the last number that it says."""
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    said = engine.load(str(directory)).complete(prompts, engine.Sampling(max_new_tokens=32))
    found = []
    for number, (prompt, (completion,)) in enumerate(zip(prompts, said, strict=True)):
        plain = not any(tag in completion.text for tag in reasoning.TAGS)  # the suite reads no answer in a thought
        numbers = re.findall(pattern, completion.text) if plain and number % 2 else []
        solution = numbers[-1] if numbers and numbers[-1].isdigit() else f"{1000 + number}"
        options = [solution, "7", "12", "9+1"]
        at = number % 4
        found.append({"prompt": prompt, "solution": solution, "options": options[at:] + options[:at]})
    return found


def talks_of_numbers(tokenizer_dir: Path, target: Path) -> Path:
    """A random miniqwen that says something else to each question, and more digits than chance would have it."""
    import torch

    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, target, initializer_range=0.2)
    with torch.no_grad():
        loaded = engine.load(str(target))
        loaded.model.get_input_embeddings().weight[loaded.tokenizer.convert_tokens_to_ids(list("0123456789"))] *= 1.5
    loaded.model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def home(tokenizer_dir, tmp_path_factory) -> Path:
    """A directory in which all commands of the page have been run."""
    home = tmp_path_factory.mktemp("lm-eval")
    checkpoint = talks_of_numbers(tokenizer_dir, home / "runs/grpo")
    (home / "tasks").mkdir()
    for name, content in task_files().items():
        (home / "tasks" / name).write_text(content, encoding="utf-8")
    (pattern,) = re.findall(r"regex_pattern: '(.*?)'", task_files()["sums.yaml"])
    for split in ("train", "test"):
        write_rows(home / f"data/sums/{split}.parquet", rows(checkpoint, pattern))
    path = os.pathsep.join([str(LM_EVAL), str(Path(sys.executable).parent), os.environ["PATH"]])
    caches = {name: str(home / "cache") for name in ("HF_MODULES_CACHE", "HF_DATASETS_CACHE")}
    for words in commands():
        done = subprocess.run(
            words,
            cwd=home,
            env={**os.environ, **caches, "PATH": path, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return home


def samples(home: Path, kind: str, task: str) -> list[dict]:
    """What lm-eval has written of each row, in the order of the rows."""
    (path,) = (home / "results" / kind).glob(f"**/samples_{task}_*.jsonl")
    return sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda each: each["doc_id"])


def measured(home: Path, kind: str) -> dict:
    (path,) = (home / "results" / kind).glob("**/results_*.json")
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def test_the_page_shows_what_it_says():
    programs = [words[:2] for words in commands()]
    assert programs == [["lm-eval", "run"], ["suite", "export"], ["lm-eval", "run"], ["suite", "evaluate"]]


def test_lm_eval_hears_what_the_suite_hears(home):
    lines = (home / "results/suite/rows.jsonl").read_text(encoding="utf-8").splitlines()
    ours = [row["completion"] for row in map(json.loads, lines)]
    assert len(set(ours)) > len(QUESTIONS) / 2
    for kind in ("miniqwen", "qwen2"):
        assert [each["resps"][0][0] for each in samples(home, kind, "sums")] == ours, kind


def test_exact_match_is_the_lenient_accuracy(home):
    (result,) = json.loads((home / "results/suite/results.json").read_text(encoding="utf-8"))
    lenient = result["metrics"]["lenient"]
    assert lenient["n"] == len(QUESTIONS) and 0.2 < lenient["value"] < 0.8
    for kind in ("miniqwen", "qwen2"):
        assert measured(home, kind)["sums"]["exact_match,last-number"] == pytest.approx(lenient["value"], abs=1e-9)


def test_log_likelihoods_are_those_of_our_measures(home):
    model, tokenizer = measures._load(str(home / "runs/grpo"), "float32")
    found = samples(home, "miniqwen", "sums-choice")
    asked = [list(each.values()) for row in found for each in row["arguments"].values()]
    # lm-eval counts the space at the end of a context, here a template's last newline, to what is said.
    contexts = [len(tokenizer(context.rstrip())["input_ids"]) for context, _ in asked]
    whole = [tokenizer(context + said)["input_ids"] for context, said in asked]
    expected = [sum(logs[start - 1 :]) for logs, start in zip(measures.log_probs(model, whole), contexts, strict=True)]
    theirs = [float(log) for row in found for ((log, _),) in row["resps"]]
    assert len(theirs) == 4 * len(QUESTIONS) and max(theirs) < 0
    assert theirs == pytest.approx(expected, abs=1e-3)
    assert measured(home, "miniqwen")["sums-choice"]["acc,none"] == measured(home, "qwen2")["sums-choice"]["acc,none"]
