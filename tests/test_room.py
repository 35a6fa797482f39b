"""Prompts, answers and the positions of a model: who has no room, and that looking costs next to nothing."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest

from suite import room


@pytest.fixture(scope="module")
def tokenizer(miniqwen_dir):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(miniqwen_dir)


def check(tokenizer, longest: int, prompts, *, streams: bool = False, positions: int = 512, **keys) -> None:
    """`prompts` are a list, or rows with such a column."""
    from datasets import Dataset

    rows = Dataset.from_dict({"prompt": prompts}) if isinstance(prompts, list) else prompts
    config = SimpleNamespace(
        **{"max_completion_length": longest, "use_vllm": False, "vllm_mode": "colocate", "vllm_max_model_length": None},
        **{"trust_remote_code": False, "model_init_kwargs": {"max_position_embeddings": positions}},
    )
    vars(config).update(keys)
    model = SimpleNamespace(model_name_or_path=tokenizer.name_or_path)
    room.check_sampled(model, config, tokenizer, rows.to_iterable_dataset() if streams else rows)


@pytest.mark.parametrize("use_vllm", [False, True])
@pytest.mark.parametrize("streams", [False, True])
def test_completions_beyond_the_models_positions_are_refused_where_nothing_ends_them(
    use_vllm, streams, tokenizer, capsys
):
    """By transformers they would be sampled there; vLLM ends them."""
    how = {"streams": streams, "use_vllm": use_vllm}
    check(tokenizer, 412, ["x", "x" * 100], **how)
    assert capsys.readouterr().out == ""
    if use_vllm:
        check(tokenizer, 413, ["x", "x" * 100], **how)
        assert "1 of 2 prompts and `max_completion_length` 413 are together more" in capsys.readouterr().out
        check(tokenizer, 12, ["x", "x" * 100], vllm_max_model_length=-1, **how)
        with pytest.raises(ValueError, match="1 of 2 .* one of its answer .* more than the 100 positions"):
            check(tokenizer, 12, ["x", "x" * 100], vllm_max_model_length=100, **how)
    else:
        with pytest.raises(ValueError, match="1 of 2 .* 100 tokens, and with 413 of its .* 512 .* at most 412, leave"):
            check(tokenizer, 413, ["x", "x" * 100], **how)
    with pytest.raises(ValueError, match="1 of 2 prompts do not fit: the longest has 512 tokens.* Leave such rows out"):
        check(tokenizer, 413, ["x", "x" * 512], **how)


def asked(text: str, **more) -> list[dict]:
    return [{"role": "system", "content": "12"}, {"role": "user", "content": text, **more}]


@pytest.mark.parametrize(
    "prompts",
    [
        ["", "12+34", "码" * 40, "\U0001d160" * 9, "<|im_end|>" * 3],
        [asked(""), asked("12+34"), [*asked("码" * 40), *asked("")], asked("\U0001d160" * 9)],  # NFC makes three of one
        [asked("1", tool_calls=["12"]), asked("2", tool_calls=None), [*asked("x" * 40)] * 9],
    ],
)
def test_no_prompt_has_more_tokens_than_its_bytes_allow(prompts, tokenizer):
    """Whoever is passed over by its bytes fits: every prompt is found at one position less than it needs."""
    for prompt in prompts:
        (needed,) = room._tokens(tokenizer, [prompt], {})
        check(tokenizer, 7, [prompt, prompt], positions=needed + 7)
        with pytest.raises(ValueError, match=f"of 2 .* the longest has {needed} tokens"):
            check(tokenizer, 7, [prompt, prompt], positions=needed + 6)


def test_what_the_template_is_told_counts(tokenizer):
    import copy

    wordy = copy.deepcopy(tokenizer)
    wordy.chat_template = "{% if wordy %}" + "12" * 50 + "{% endif %}{{ messages[-1].content }}"
    (needed,) = room._tokens(wordy, [asked("1")], {"wordy": True})
    assert needed > 100
    check(wordy, 7, [asked("1")] * 3, positions=needed + 7, chat_template_kwargs={"wordy": True})
    check(wordy, 7, [asked("1")] * 3, positions=needed + 6)
    with pytest.raises(ValueError, match=f"3 of 3 .* {needed} tokens"):
        check(wordy, 7, [asked("1")] * 3, positions=needed + 6, chat_template_kwargs={"wordy": True})


def test_short_prompts_are_not_tokenized_and_a_long_one_among_many_is_found(tokenizer, monkeypatch):
    seen, tokens = [], room._tokens

    def counted(tokenizer, prompts, template_kwargs):
        seen.append(len(prompts))
        return tokens(tokenizer, prompts, template_kwargs)

    monkeypatch.setattr(room, "_tokens", counted)
    prompts = [asked(f"{i}+{i}") for i in range(30_000)]
    begun = time.monotonic()
    check(tokenizer, 200, prompts)
    assert time.monotonic() - begun < 10  # a row at a time it was several times that
    assert set(seen) == {1}  # the empty prompt
    prompts[25_000] = asked("12+" * 200)
    with pytest.raises(ValueError, match="1 of 30000 prompts do not fit"):
        check(tokenizer, 200, prompts)


def test_positions_are_read_as_the_model_is_going_to_be_loaded(miniqwen_dir, tmp_path):
    config = SimpleNamespace(trust_remote_code=False)
    how = {"revision": "main", "attn_implementation": None, "dtype": "float32", "max_position_embeddings": 64}
    assert room.positions_before_loading(str(miniqwen_dir), config, None) == 512
    assert room.positions_before_loading(str(miniqwen_dir), config, how) == 64
    there = shutil.copytree(miniqwen_dir, tmp_path / "alone")
    (there / "model.safetensors").unlink()  # no weights are asked for
    found = json.loads((there / "config.json").read_text())
    (there / "config.json").write_text(json.dumps({**found, "max_position_embeddings": 128}))
    assert room.positions_before_loading(str(there), config, {}) == 128


def test_the_code_of_a_model_may_be_trusted_where_its_keys_are_written(miniqwen_dir):
    """There it would be given twice, and what is written there wins, as it does where TRL loads."""
    config = SimpleNamespace(trust_remote_code=False)
    assert room.positions_before_loading(str(miniqwen_dir), config, {"trust_remote_code": True}) == 512


def test_rows_that_stream_may_hold_arguments_of_several_types(tokenizer):
    from datasets import IterableDataset

    calls = [[{"function": {"name": "f", "arguments": {"x": x}}}] for x in (1, "s", [1], None)]
    prompts = [asked("12", tool_calls=call) for call in calls]
    rows = IterableDataset.from_generator(lambda: ({"prompt": prompt} for prompt in prompts))
    check(tokenizer, 7, rows)
    prompts[2] = asked("12" * 300, tool_calls=calls[2])
    with pytest.raises(ValueError, match="1 of 4 prompts do not fit"):
        check(tokenizer, 7, rows)


@pytest.fixture
def reads_parts(tokenizer):
    """A tokenizer whose template takes a turn's text, or its parts."""
    import copy

    reads = copy.deepcopy(tokenizer)
    part = "{% for part in turn.content %}{{ part.text }}{% endfor %}"
    text = "{% if turn.content is string %}{{ turn.content }}{% else %}" + part + "{% endif %}"
    reads.chat_template = "{% for turn in messages %}" + text + "<|im_end|>{% endfor %}"
    return reads


@pytest.mark.parametrize("long", ["x" * 2000, [{"type": "text", "text": "x" * 2000}]])
def test_prompts_that_are_kept_as_json_are_counted_and_read_as_they_were_written(long, reads_parts, tmp_path):
    from datasets import load_dataset

    contents = ["x", [{"type": "text", "text": "12"}], long]
    lines = [json.dumps({"prompt": [{"role": "user", "content": content}]}) for content in contents]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    assert "Json" in str(rows.features)
    (needed,) = room._tokens(reads_parts, [[{"role": "user", "content": long}]], {})
    with pytest.raises(ValueError, match=f"1 of 3 .* the longest has {needed} tokens"):
        check(reads_parts, 7, rows)
    check(reads_parts, 7, rows, positions=needed + 7)
    with pytest.raises(ValueError, match="3 of 3 "):  # text and turns beside each other
        check(reads_parts, 7, rows, positions=8)


@pytest.mark.parametrize(("text", "turns"), [("string", 2), ("string_view", -1)])
def test_lists_of_one_length_and_types_that_are_not_known_are_looked_at(text, turns, tokenizer):
    from datasets import Dataset, Features, List, Value

    kind = List({"role": Value("string"), "content": Value(text)}, length=turns)
    rows = Dataset.from_dict({"prompt": [asked("12"), asked("x" * 2000)]}, features=Features({"prompt": kind}))
    with pytest.raises(ValueError, match="1 of 2 prompts do not fit: the longest has 20.. tokens"):
        check(tokenizer, 7, rows)


def test_what_a_call_names_counts(tokenizer):
    """A template writes the names of its arguments too, those that only other rows have among them."""
    import copy

    writes = copy.deepcopy(tokenizer)
    writes.chat_template = "{{ messages[-1].arguments | default({}) | tojson }}"
    prompts = [asked("1", arguments={f"argument_{i}_{'x' * 50}": "1"}) for i in range(10)]
    with pytest.raises(ValueError, match="10 of 10 prompts do not fit"):
        check(writes, 7, prompts)


def test_prompts_that_a_model_is_asked_are_refused_as_it_would_refuse_them_itself(tokenizer, reads_parts):
    from suite import engine
    from suite.engine.positions import require_room

    for long in ("x" * 100, asked("x" * 100), asked([{"type": "text", "text": "x" * 100}])):
        prompts = [asked("1") if isinstance(long, list) else "1", long]
        reads = reads_parts if isinstance(long, list) else tokenizer
        ids = engine.rendered(reads, prompts)
        for check in (lambda most, ids=ids: require_room(ids, most),
                      lambda most, prompts=prompts, reads=reads: room.check_asked(prompts, reads, most)):  # fmt: skip
            check(None)
            check(len(ids[1]) + 1)
            with pytest.raises(ValueError, match=f"1 of 2 prompts do not fit: the longest has {len(ids[1])} tokens"):
                check(len(ids[1]))


def test_who_does_not_fit_is_said_with_the_split(tokenizer):
    from datasets import Dataset

    config = SimpleNamespace(max_completion_length=7)
    rows = Dataset.from_dict({"prompt": ["x" * 2000]})
    with pytest.raises(ValueError, match="test rows: 1 of 1 prompts"):
        room.check_answers("test", rows, tokenizer, config, 512, ends=False)
    with pytest.raises(ValueError, match="train rows: 1 of 1 prompts"):
        check(tokenizer, 7, rows)
