"""Problems a second that `suite evaluate` has answered, against a plain transformers loop and against lm-eval.

One checkpoint of the 26 M shape with random weights, as a miniqwen and as a Qwen2 with equal ones, and questions of
GSM8K (made ones of like lengths where it does not lie beside the checkout). All answer the same rows greedily with
equally many tokens: nothing ends an answer, so what the engine gains where some are short is not in these numbers.

loop          one prompt at a time: chat template, `generate`, decode, as the model's page on the Hub shows it
file order    batches as the rows come, padded on the left
lm-eval       its `hf` model with the same batch size, which sorts by length, too; `generate_until`, stopped by no more
              than the end of a turn. Loading, filters and metrics are not in it, nor are they in ours
suite         the transformers engine; vLLM where it is installed
"""

import os
import site
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from suite import engine
from suite.engine.transformers_engine import TransformersEngine
from tests.benchmarks import runs
from tests.benchmarks.interleaved import Rounds, Series, told
from tests.conftest import LM_EVAL

ROWS, BATCH, NEW = 32, 16, 48
VOCABULARY = 6400
GOALS = {"loop": 2.0, "lm-eval": 1.0}  # the suite's problems a second / theirs


def main(n: int = 5, kinds: tuple[str, ...] = ("miniqwen", "qwen2")) -> None:
    import torch

    torch.set_grad_enabled(False)
    prompts = [row["prompt"] for row in runs.gsm8k_rows(ROWS)]
    print(f"{ROWS} problems, batches of {BATCH}, {NEW} new tokens each, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as home:
        for kind, directory in build(Path(home)).items():
            if kind in kinds:
                measure(kind, str(directory), prompts, n)


def build(home: Path) -> dict[str, Path]:
    """Both checkpoints. The rows of the special tokens in the embedding, which is the head as well, are 0: a token that
    is the best of thousands is always another one."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    found = {kind: home / kind for kind in ("miniqwen", "qwen2")}
    for target in found.values():
        tokenizer = runs.save_tokenizer(runs.texts(runs.gsm8k_rows(2000)), VOCABULARY, target)
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    ours = MiniQwenForCausalLM(MiniQwenConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **ends))
    ours.get_input_embeddings().weight[tokenizer.all_special_ids] = 0
    shape = {key: value for key, value in ours.config.to_dict().items() if key in Qwen2Config().to_dict()}
    theirs = Qwen2ForCausalLM(Qwen2Config(**{**shape, "model_type": "qwen2", "architectures": None}))
    theirs.load_state_dict(ours.state_dict())
    for kind, model in (("miniqwen", ours), ("qwen2", theirs)):
        model.save_pretrained(found[kind])
    return found


def measure(kind: str, directory: str, prompts: list, n: int) -> None:
    """All roads in turns: the first turn warms up, and shows that they give the same answers."""
    with closing(engine.load(directory, batch_size=BATCH, dtype="float32")) as loaded:
        roads = {"loop": loop(loaded, prompts), "file order": file_order(loaded, prompts)}
        roads |= {"lm-eval": lm_eval_road(directory, loaded.tokenizer, prompts), "suite": suite_road(loaded, prompts)}
        said, seconds = in_turns(roads, n)
    if find_spec("vllm"):  # behind the others, for its processes keep a core busy while they wait
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        with closing(engine.load(directory, use_vllm=True, dtype="float32", max_model_len=1024)) as loaded:
            more = in_turns({"suite, vLLM": suite_road(loaded, prompts)}, n)
            said, seconds = said | more[0], seconds | more[1]
    for name, texts in said.items():
        same = sum(a == b for a, b in zip(texts, said["loop"], strict=True))  # of random weights, two tokens may tie
        assert same >= 0.9 * ROWS, f"{name} answers something else: {same} of {ROWS} are equal"
    report(kind, seconds)


def in_turns(roads: dict[str, Callable], n: int) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """(what each says, the seconds of each of its turns)."""
    said = {name: road() for name, road in roads.items()}
    seconds: dict[str, list[float]] = {name: [] for name in roads}
    for turn in range(n):
        for name in sorted(roads, reverse=turn % 2 == 1):  # what a neighbour begins hits all alike
            begun = time.perf_counter()
            roads[name]()
            seconds[name].append(time.perf_counter() - begun)
    return said, seconds


def report(kind: str, seconds: dict[str, list[float]]) -> None:
    for name, values in seconds.items():
        told(f"{kind}, {name}, problems a second", Series([ROWS / each for each in values]))
    for name, goal in GOALS.items():
        speed = Rounds.of(seconds["suite"], seconds[name]).speed
        told(f"{kind}, suite / {name}", speed, f">= {goal}", speed.median >= goal)


def suite_road(loaded: engine.Engine, prompts: list) -> Callable[[], list[str]]:
    sampling = engine.Sampling(max_new_tokens=NEW)
    return lambda: [said.text for (said,) in loaded.complete(prompts, sampling)]


def loop(loaded: TransformersEngine, prompts: list) -> Callable[[], list[str]]:
    model, tokenizer = loaded.model, loaded.tokenizer

    def run() -> list[str]:
        said = []
        for prompt in prompts:
            how = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
            inputs = tokenizer.apply_chat_template(prompt, **how).to(model.device)
            out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            said.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        return said

    return run


def file_order(loaded: TransformersEngine, prompts: list) -> Callable[[], list[str]]:
    model, tokenizer = loaded.model, loaded.tokenizer

    def run() -> list[str]:
        said = []
        for first in range(0, len(prompts), BATCH):
            texts = asked(tokenizer, prompts[first : first + BATCH])
            inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
            out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            said += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return said

    return run


def lm_eval_road(directory: str, tokenizer, prompts: list) -> Callable[[], list[str]]:
    import torch

    # It is in an environment of its own, and as of now found here, too.
    site.addsitedir(str(LM_EVAL.parent / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)))
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = HFLM(pretrained=directory, batch_size=BATCH, device=device, dtype="float32", trust_remote_code=True)
    kwargs = {"until": [], "max_gen_toks": NEW, "do_sample": False}

    def run() -> list[str]:
        texts = asked(tokenizer, prompts)
        requests = [Instance("generate_until", {}, (text, dict(kwargs)), number) for number, text in enumerate(texts)]
        return model.generate_until(requests, disable_tqdm=True)

    return run


def asked(tokenizer, prompts: list) -> list[str]:
    """The prompts as text, by the chat template."""
    return [tokenizer.apply_chat_template(each, add_generation_prompt=True, tokenize=False) for each in prompts]
