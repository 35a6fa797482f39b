"""The tokenizer that miniqwen trains for itself is Qwen2's in everything but its merges."""

import pytest
from transformers import AutoTokenizer

from suite import reasoning
from suite.train import tokenizer as stage

TALK = [{"role": "user", "content": "12+3?"}, {"role": "assistant", "content": reasoning.write("2+3=5", "15")}]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.mark.parametrize(
    "text", ["1234 + 5.6", "Hello,\n\n  world!\t", "你好，世界", "naïve café", "def f(x):\n    return x"]
)
def test_decode_gives_back_what_was_encoded(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_split_one_by_one(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer("2024")["input_ids"]] == list("2024")


def test_each_tag_is_one_token_and_survives_decoding_without_special_tokens(tokenizer):
    ids = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    words = [tokenizer.decode([i]) for i in ids]
    assert all(words.count(tag) == 1 for tag in reasoning.TAGS)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert TALK[1]["content"] in text and "<|im_end|>" not in text


def test_the_template_marks_what_the_assistant_has_to_learn_its_stop_included(tokenizer):
    out = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(learnt) == TALK[1]["content"] + "<|im_end|>"


def test_a_prompt_is_a_prefix_of_the_whole_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, tokenize=False)
    assert tokenizer.apply_chat_template(TALK, tokenize=False).startswith(prompt)


def test_trl_finds_the_stop_token_trained(tokenizer):
    from trl.chat_template_utils import is_chat_template_stop_token_trained

    assert is_chat_template_stop_token_trained(tokenizer)


def test_the_pattern_and_ids_agree_with_the_class_that_loads_them(tokenizer, tokenizer_dir):
    from tokenizers import Tokenizer

    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    raw = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    text = "user\n12+34 The answer isn't 7.\n"
    assert raw.encode(text).ids == tokenizer(text)["input_ids"]


def test_the_same_stream_gives_the_same_tokenizer():
    texts = ["the cat sat on the mat", "the dog sat on the log"] * 10
    assert stage.train(iter(texts), 280, 2).to_str() == stage.train(iter(texts), 280, 2).to_str()


def test_the_vocabulary_size_is_kept_or_refused():
    texts = ["abc abd abe " * 20] * 5
    assert stage.train(iter(texts), 270, 2).get_vocab_size() <= 270
    with pytest.raises(ValueError, match="vocab_size: 100 is too small"):
        stage.TokenizerArguments(vocab_size=100)
