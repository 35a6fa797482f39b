"""The tokenizer that miniqwen trains for itself is Qwen2's in everything but its merges."""

import json
import random
import re

import pytest
from transformers import AutoTokenizer

from suite import reasoning
from suite.data.words import LONGEST, Words, thinned
from suite.train import tokenizer as stage
from tests.benchmarks.interleaved import process
from tests.benchmarks.tokenizer import write_corpus
from tests.conftest import write_yaml
from tests.rows import write_rows

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


def counted(texts, max_words=10**6, max_bytes=10**9, seed=0) -> Words:
    words = Words(r"\s?\w+|\s|[^\w\s]+", max_words, max_bytes, seed)
    words.count(texts)
    return words


def test_counted_words_give_what_the_library_learns_from_the_text_itself():
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    texts = [
        "Naïve cafés aren't 12% cheaper.\n\n  Are they?",
        "你好，世界！你好吗？",
        "def f(x):\n    return x[0]",
        "",
    ] * 5
    theirs = Tokenizer(models.BPE())
    theirs.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    theirs.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=313, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    theirs.train_from_iterator(texts, trainer)
    ours = stage.train(iter(texts), 320, 2)
    assert json.loads(ours.to_str())["model"] == json.loads(theirs.to_str())["model"]
    assert len(json.loads(ours.to_str())["model"]["merges"]) > 40


def test_of_rare_words_the_halves_are_counted_so_that_the_table_stays_small_and_no_text_is_lost():
    draw = random.Random(0)
    texts = [" ".join("".join(draw.choices("abcdefgh", k=8)) for _ in range(50)) + " often" * 50 for _ in range(200)]
    words = counted(texts, max_words=1000)
    assert words.cuts > 0 and len(words.counts) <= 1000
    assert sum(len(word) * n for word, n in words.counts.items()) == sum(map(len, texts))
    assert words.counts[" often"] == 50 * 200, "what is frequent stays whole"


def test_a_long_word_is_counted_in_pieces():
    words = counted(["x" * 100 + " " + "字" * 50 + " " + "ж" * 40])
    assert max(len(word.encode()) for word in words.counts) <= LONGEST
    assert words.counts["字" * 8] == 5 and sum(len(word) * n for word, n in words.counts.items()) == 192


def test_of_a_corpus_beyond_the_bound_a_sample_drawn_by_the_seed_is_counted():
    texts = [f"row{n % 100} word" for n in range(10_000)]
    one, again, other = (counted(texts, max_bytes=20_000, seed=seed) for seed in (1, 1, 2))
    assert one.share < 1 and one.bytes <= 20_000 and one.counts == again.counts != other.counts
    assert abs(one.counts[" word"] / (10_000 * one.share) - 1) < 0.2, "a sample of all of it"


def test_counts_are_thinned_without_bias():
    counts = {f"w{n}": n % 7 + 1 for n in range(1000)}
    less = dict(thinned(counts, 0.3))
    assert sum(less.values()) == pytest.approx(0.3 * sum(counts.values()), abs=1)


def test_half_a_character_does_no_harm():
    assert stage.train(iter(["ab \ud83d ab"] * 3), 280, 2).encode("ab").tokens


def test_bounds_that_leave_nothing_are_refused():
    for key in ("max_words", "max_bytes", "min_frequency"):
        with pytest.raises(ValueError, match=f"{key}: 0 must be at least"):
            stage.TokenizerArguments(**{key: 0})
    with pytest.raises(ValueError, match="no text to learn from"):
        stage.train(iter([""]), 280, 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", 5_000_000)


@pytest.mark.slow
def test_the_same_corpus_gives_the_same_bytes_within_its_bounds_whatever_the_threads(corpus, tmp_path):
    config = write_yaml(tmp_path / "t.yaml", dataset_name=str(corpus), vocab_size=1000, max_words=20_000)
    # What the kernel says of a child's memory begins with that of whoever started it, here all tests before this one.
    tells = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    code = f"import sys; from suite.train import tokenizer; tokenizer.main(sys.argv[1:]); {tells}"
    words = ["-c", code, "--config", str(config), "--output_dir"]
    one = process(*words, str(tmp_path / "one"), env={"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "1"})
    process(*words, str(tmp_path / "two"), env={"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "2"})
    written = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1] and "times the rare ones were halved" in one.printed
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", one.printed)[1]) / 1024
    assert peak < 1200, "MiB, of which the imports take the half"
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["finished"] and record["counted"]["words"] <= 20_000 and record["counted"]["bytes"] > 4_500_000


@pytest.mark.slow
def test_the_stage_says_its_bytes_a_token_beside_another_tokenizers(tmp_path, capsys, tokenizer_dir, shared_data):
    rows = [json.loads(line) for line in open(shared_data / "chat-demo" / "c4_demo.jsonl", encoding="utf-8")]
    write_rows(tmp_path / "c4.jsonl", rows)
    config = write_yaml(tmp_path / "t.yaml", dataset_name=str(tmp_path / "c4.jsonl"), vocab_size=2000)
    other = str(shared_data / "qwen2.5-tokenizer")
    stage.main(["--config", str(config), "--output_dir", str(tmp_path / "t"), "--compare_with", other])
    said = capsys.readouterr().out
    measured = json.loads((tmp_path / "t" / "run.json").read_text())["bytes_per_token"]
    assert list(measured) == ["english", "chinese", "code", "digits", "held-out rows"]
    assert 2.5 < measured["english"]["here"] < measured["english"]["other"] < 5
    assert 1 <= measured["digits"]["here"] <= measured["digits"]["other"] < 1.2, "one by one in both"
    assert all(kind in said for kind in measured) and other in said


@pytest.mark.parametrize(("more", "streams"), [({}, True), ({"test_split_size": 0.5}, False)])
def test_the_parts_of_a_mixture_are_read_as_a_stream_where_none_is_set_aside(more, streams, monkeypatch, tmp_path):
    write_rows(tmp_path / "some" / "train.parquet", [{"text": "Words."}] * 4)
    made = []
    monkeypatch.setattr(stage, "_make", lambda rows, *how: made.append(rows))
    monkeypatch.setattr(stage.card, "write", lambda directory: None)
    config = write_yaml(tmp_path / "t.yaml", datasets=[{"path": str(tmp_path / "some")}], **more)
    stage.main(["--config", str(config), "--output_dir", str(tmp_path / "t")])
    assert hasattr(made[0], "__len__") != streams


def test_a_part_of_a_mixture_that_breaks_off_is_told_of_by_its_name(tmp_path):
    """As a stream it may do so behind rows that were read, and what reads it then knows no file."""
    some, other = write_rows(tmp_path / "some" / "train.parquet", [{"text": "Words."}] * 4), tmp_path / "other"
    other.mkdir()
    config = write_yaml(tmp_path / "t.yaml", datasets=[{"path": str(part)} for part in (some.parent, other)])
    row = b'{"text": "words"}\n'
    for name, content, message in (
        ("train.jsonl", row + b'{"text"\n', f"cannot read '{other}': JSON parse error.*suite prepare files"),
        ("train.jsonl", row + '{"text": "你好"}\n'.encode("gbk"), f"behind row 5 .*{other}: 'utf-8' codec"),
        ("train.parquet", some.read_bytes()[:-9], f"cannot read '{other}': Parquet magic bytes"),
    ):
        for path in other.iterdir():
            path.unlink()
        (other / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"`datasets`: .*{message}"):
            stage.main(["--config", str(config), "--output_dir", str(tmp_path / f"to {len(message)}")])


def test_plain_prompts_conversations_and_rows_without_words_are_all_read():
    turn = {"role": "user", "content": "seven"}
    rows = [{"prompt": "one", "completion": "two"}, {"prompt": [turn], "completion": None}, {"text": None}]
    assert list(stage.corpus(rows)) == ["one\ntwo", "user\nseven\n", ""]
