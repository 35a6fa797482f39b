"""Files of one's own: layouts, places in errors, and where a source comes from."""

import gzip
import json

import pyarrow.parquet
import pytest

from suite import data, prepare
from suite.data import reading
from suite.data.reading import Dropped
from tests.rows import write_rows

HUMAN, GPT = {"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello!"}
USER, ASSISTANT = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello!"}


def load(tmp_path, *rows, **knobs) -> list:
    write_rows(tmp_path / "mine" / "train.jsonl", list(rows))
    write_rows(tmp_path / "mine" / "test.jsonl", list(rows))
    return list(data.load("files")("train", source=str(tmp_path / "mine"), **knobs))


@pytest.mark.parametrize(
    ("row", "becomes"),
    [
        ({"conversations": [HUMAN, GPT]}, {"messages": [USER, ASSISTANT]}),
        ({"conversations": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}),
        ({"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}),
        (
            {"system": "Be kind.", "conversations": [HUMAN, GPT, {"from": "observation", "value": "42"}, GPT]},
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    USER,
                    ASSISTANT,
                    {"role": "tool", "content": "42"},
                    ASSISTANT,
                ]
            },
        ),
        (
            {"instruction": "Add.", "input": "1 and 1", "output": "2"},
            {
                "prompt": [{"role": "user", "content": "Add.\n1 and 1"}],
                "completion": [{"role": "assistant", "content": "2"}],
            },
        ),
        (
            {"instruction": "And?", "input": "", "output": "2", "system": "Count.", "history": [["Hello?", "Hello!"]]},
            {
                "prompt": [
                    {"role": "system", "content": "Count."},
                    USER,
                    ASSISTANT,
                    {"role": "user", "content": "And?"},
                ],
                "completion": [{"role": "assistant", "content": "2"}],
            },
        ),
        (
            {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "Go."}},
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "Go."}]},
        ),
        (
            {"instruction": "Hello?", "chosen": "Hello!", "rejected": "Go."},
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "Go."}]},
        ),
        ({"text": "Once upon a time.\n"}, {"text": "Once upon a time."}),
        (
            {"prompt": "2+2=", "completion": "4", "solution": "4"},
            {"prompt": "2+2=", "completion": "4", "solution": "4"},
        ),
    ],
)
def test_the_layout_shows_in_the_first_row(row, becomes, tmp_path):
    assert load(tmp_path, row) == [becomes]


def test_a_layout_may_be_named_where_rows_would_fit_two(tmp_path):
    row = {"text": "A book.", "instruction": "Add.", "output": "2"}
    assert "completion" in load(tmp_path, row)[0]
    assert load(tmp_path, row, layout="text") == [{"text": "A book."}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": [HUMAN, {"from": "bing", "value": "Hi."}]}, "role 'bing'"),
        ({"conversations": [HUMAN, GPT, HUMAN]}, "no answer at the end"),
        ({"conversations": []}, "no answer at the end"),
        ({"conversations": [HUMAN, GPT], "chosen": GPT, "rejected": HUMAN}, "no question at the end"),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, "chosen is rejected"),
        ({"conversations": [HUMAN], "chosen": None, "rejected": GPT}, "turns that are none"),
        ({"conversations": {"from": "human", "value": "Hello?"}}, "turns that are none"),
        ({"conversations": ["Hello?", "Hello!"]}, "turns that are none"),
        ({"conversations": [{"from": "human", "value": [{"type": "image"}]}, GPT]}, "a turn that is more than text"),
    ],
)
def test_a_row_that_is_no_example_is_left_out(row, reason, tmp_path):
    (dropped,) = load(tmp_path, row)
    assert isinstance(dropped, Dropped) and dropped.reason == reason and dropped.where.endswith("train.jsonl, line 1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"text": "x"}\n{"txt": 1}\n{"text": "y"}',
            "a.jsonl, line 2: there is no column .*`text`, only txt",
        ),
        ("a.jsonl", '{"text": "x"}\n\n[1]', "a.jsonl, line 3: a row must be a JSON object"),
        ("a.json", '[{"text": "x"},\n {"text"}]', "a.json, line 2: not JSON"),
        ("a.json", '[{"text": "x"}, 7]', "a.json, row 2: a row must be a JSON object"),
        ("a.json", '{"text": "x"}\n{"text"\n', "a.json, line 2: not JSON"),
        (
            "a.jsonl",
            '{"input": "x", "reply": "y"}\n{"input": "z", "reply": "y"}',
            "no layout has the columns input, reply. There are",
        ),
        ("a.csv", "text\nx", "a.csv' is no kind of file that can be read here. There are: .jsonl"),
        ("a.parquet", "PAR1", "a.parquet is cut off or broken"),
        ("a.jsonl", "", "of 0 different questions: too few to divide"),
        ("a.jsonl", '{"text": "x"}', "of 1 different questions: too few to divide"),
        ("a.jsonl", '{"text": "你好"}'.encode("gbk"), "a.jsonl is not UTF-8"),
        ("a.json", '[{"text": "你好"}]'.encode("utf-16"), "a.json is not UTF-8"),
        ("a.jsonl.gz", b'{"text": "x"}', "a.jsonl.gz is no gzip file"),
        ("a.json.gz", gzip.compress(b'[{"text": "x"}]')[:-9], "a.json.gz is .* cut off"),
        (
            "a.jsonl",
            '{"instruction": "x", "output": "y", "history": ["z"]}\n{"instruction": "z", "output": "y"}',
            "a.jsonl, line 1: `history` must be pairs",
        ),
        (
            "a.jsonl",
            '{"prompt": [{"from": "user", "value": "x"}], "completion": "y"}\n{"prompt": "z", "completion": "y"}',
            "a.jsonl, line 1: `prompt` must be text, or turns of role and content",
        ),
        ("a.jsonl", '{"text": "x"}\n{"text": "y"}', "test_size: 100 must lie between 1 and 1.*2 different questions"),
    ],
)
def test_an_error_names_the_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    knobs = {} if "test_size" in message else {"test_size": 1}
    with pytest.raises(ValueError, match=message):
        for split in ("test", "train"):
            list(data.load("files")(split, source=str(tmp_path / name), **knobs))


def test_files_of_every_kind_hold_the_same_rows(tmp_path):
    rows = [{"text": f"Text {n}."} for n in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(lines)
    (tmp_path / "d.txt").write_text("".join(f"{row['text']}\n\n" for row in rows))
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "f.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "h.jsonl").write_text(lines, encoding="utf-8-sig")
    (tmp_path / "i.txt").write_text((tmp_path / "d.txt").read_text(), encoding="utf-8-sig")
    write_rows(tmp_path / "g.parquet", rows)
    for path in sorted(tmp_path.iterdir()):
        make = data.load("files")
        found = [row for split in ("train", "test") for row in make(split, source=str(path), test_size=2)]
        assert sorted(found, key=str) == rows, path


def test_the_shards_of_a_directory_are_one_split_in_their_order(tmp_path):
    for part in range(3):
        write_rows(tmp_path / f"train-0000{part}-of-00003.parquet", [{"text": str(10 * part + n)} for n in range(2)])
    write_rows(tmp_path / "test-00000-of-00001.parquet", [{"text": "99"}])
    rows = [row["text"] for _, row in reading.rows("train", str(tmp_path), by=("text",))]
    assert rows == ["0", "1", "10", "11", "20", "21"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "Which files.*--source PATH"),
        ("./nowhere", "no file or directory './nowhere'"),
        ("nowhere.jsonl", "no file or directory 'nowhere.jsonl'"),
        ("empty", "'empty' holds no .jsonl"),
        ("two", "neither a split 'train' nor just one. There are: default, extended"),
    ],
)
def test_a_source_that_is_not_there_is_refused(source, message, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("default", "extended"):
        write_rows(tmp_path / "two" / f"{name}.jsonl", [{"text": "x"}])
    with pytest.raises(ValueError, match=message):
        list(data.load("files")("train", source=source))


@pytest.mark.parametrize(
    ("file", "shape", "rows"),
    [
        ("alpaca_en_demo.json", ["prompt", "completion"], 999),
        ("alpaca_zh_demo.json", ["prompt", "completion"], 1000),
        ("dpo_en_demo.json", ["prompt", "chosen", "rejected"], 300),
        ("dpo_zh_demo.json", ["prompt", "chosen", "rejected"], 300),
        ("c4_demo.jsonl", ["text"], 300),
        ("wiki_demo.txt", ["text"], 30),
    ],
)
def test_real_files_are_read_to_the_last_row(file, shape, rows, shared_data):
    source = str(shared_data / "chat-demo" / file)
    prepare.main(["files", "--source", source, "--output_dir", "data/real", "--test_size", "20"])
    told = json.loads(open("data/real/prepare.json", encoding="utf-8").read())["splits"]
    assert sum(split["read"] for split in told.values()) == rows
    for split, count in told.items():
        table = pyarrow.parquet.read_table(f"data/real/{split}.parquet")
        assert table.schema.names == shape and table.num_rows == count["rows"]
        assert count["read"] - count["rows"] == sum(count["dropped"].values())
        assert count["rows"] >= 0.9 * count["read"], "no more than a tenth of a real set should go"
