"""Files of one's own: layouts, places in errors, and where a source comes from."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from suite import cleaning, columns, data, prepare, reasoning, source
from suite.data import files, lines, reading
from suite.data.reading import Dropped
from tests.rows import a_tool, write_rows

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
        # MiniMind's dpo.jsonl, UltraFeedback and SpongeBob's pairs: the prompt within, before or beside both answers
        (
            {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "Go."}]},
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "Go."}]},
        ),
        (
            {
                "prompt": "Hello?",
                "chosen": [USER, ASSISTANT],
                "rejected": [USER, {"role": "assistant", "content": "?"}],
            },
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "?"}]},
        ),
        (
            {"prompt": "Hello?", "chosen": "Hello!", "rejected": "Go."},
            {"prompt": "Hello?", "chosen": "Hello!", "rejected": "Go."},
        ),
        # R1 traces, the thinking in the answer or beside it; and turns that do not say who speaks
        (
            {"conversations": [USER, {"role": "assistant", "content": "<think>\n1\n</think>\n<answer>\n2\n</answer>"}]},
            {"messages": [USER, {"role": "assistant", "content": "<think>\n1\n</think>\n<answer>\n2\n</answer>"}]},
        ),
        (
            {"conversations": [USER, {"role": "assistant", "content": "2", "reasoning_content": "1"}]},
            {"messages": [USER, {"role": "assistant", "content": reasoning.write("1", "2")}]},
        ),
        ({"conversations": [{"content": "Hello?"}, {"content": "Hello!"}]}, {"messages": [USER, ASSISTANT]}),
        ({"text": "Once upon a time.\n"}, {"text": "Once upon a time."}),
        ({"text": "<s>Once upon</s> <s>a time.</s>"}, {"text": "Once upon\na time."}),
        ({"text": "A <s>struck</s> word."}, {"text": "A <s>struck</s> word."}),
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
    pair = {"prompt": "Hello?", "chosen": "Hello!", "rejected": "Go."}
    assert load(tmp_path, pair, layout="preference")[0]["prompt"] == [USER]


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
        ({"conversations": [USER, {**ASSISTANT, "tool_calls": [{"name": "add"}]}, ASSISTANT]}, "tool calls"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER]}, "no answer at the end"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "chosen is rejected"),
    ],
)
def test_a_row_that_is_no_example_is_left_out(row, reason, tmp_path):
    (dropped,) = load(tmp_path, row)
    assert isinstance(dropped, Dropped) and dropped.reason == reason and dropped.where.endswith("train.jsonl, line 1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "x"},\n {"text"}]', "a.json, line 2: not JSON"),
        ("a.jsonl", "{broken\n[1]\n", "a.jsonl, line 1, column 2: not JSON, and so it is with every row"),
        (
            "a.jsonl",
            '{"input": "x", "reply": "y"}\n{"input": "z", "reply": "y"}',
            "no layout has the columns input, reply. There are",
        ),
        ("a.csv", "text\nx", "a.csv' is no kind of file that can be read here. There are: .jsonl"),
        ("a.parquet", "PAR1", "a.parquet is cut off or broken"),
        (
            "a.parquet.gz",
            gzip.compress(b"PAR1", mtime=0),
            "compressed inside, and is not read where it is .gz.* gunzip '.*gz'",
        ),
        ("a.parquet.zst", "", "compressed inside, and is not read where it is .zst, too. Unpack it: unzstd '.*zst'"),
        ("a.jsonl", "", "of 0 different questions: too few to divide"),
        ("a.jsonl", '{"text": "x"}', "of 1 different questions: too few to divide"),
        ("a.jsonl", '{"text": "你好"}'.encode("gbk"), "a.jsonl, line 1: not UTF-8.*Convert it: iconv -f GB18030"),
        ("a.json", '[{"text": "你好"}]'.encode("gbk"), "a.json is not UTF-8"),
        ("a.jsonl.gz", b'{"text": "x"}', "a.jsonl.gz is no gzip file"),
        ("a.json.gz", gzip.compress(b'[{"text": "x"}]', mtime=0)[:-9], "a.json.gz is .* cut off"),
        ("a.jsonl.zst", b'{"text": "x"}', "a.jsonl.zst is no Zstandard file"),
        ("a.json", '{\n "data": [\n', "a.json, line 1.*not JSON, and so it is.*may be one list of objects, too"),
        ("a.jsonl", "[1]", "a.jsonl, line 1: no JSON object.*A row is a JSON object in a line of its own"),
        ("a.json", '[{"n": ' + "9" * 5000 + "}]", "a.json: not JSON .Exceeds the limit"),
        ("a.zip", "PK", "a.zip' is no kind of file that can be read here.*Unpack it: unzip 'a.zip'|unzip '/"),
        ("a.jsonl", '{"text": "x"}\n{"text": "y"}', "test_size: 100 must lie between 1 and 1.*2 different questions"),
    ],
)
def test_an_error_names_the_place(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    knobs = {} if "test_size" in message else {"test_size": 1}
    with pytest.raises(ValueError, match=message):
        for split in ("test", "train"):
            list(data.load("files")(split, source=str(tmp_path / name), **knobs))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "marked utf-16-be"])
def test_utf_16_is_refused_with_the_way_out(encoding, kind, packed, tmp_path):
    rows = [{"text": f"Line {number}."} for number in range(9)]
    text = "".join((row["text"] if kind == ".txt" else json.dumps(row)) + "\n" for row in rows)
    text = "\ufeff" * encoding.startswith("marked") + (json.dumps(rows) if kind == ".json" else text)
    content = text.encode(encoding.removeprefix("marked "))
    path = tmp_path / f"a{kind}{packed}"
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    way = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(encoding, "UTF-16") + " -t UTF-8"
    for read in (
        lambda: list(data.load("files")("train", source=str(path), test_size=1)),
        lambda: files.splits(str(path), "train", "test", streaming=True),
        lambda: list(files.stream([str(path)], "text")),
    ):
        with pytest.raises(ValueError, match=rf"a\{kind}.*Convert it: iconv -f {way}"):
            read()


CHINESE = "人工智能正在改变世界，上海的学生们在学习模型的训练方法。\n"


@pytest.mark.parametrize("text", ["你好\n上海\n", "你好\n", CHINESE * 9, CHINESE * 5000])
@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE"])
def test_chinese_utf_16_is_known_by_the_ends_of_its_lines(text, encoding, tmp_path):
    """Few of its bytes are NUL, and a short line of it may read as UTF-8."""
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=f"a.txt is {encoding}. Convert it: iconv -f {encoding} -t UTF-8"):
        list(lines.read(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("encoding", "text", "way"),
    [
        ("gb18030", "茅台\n" + CHINESE * 9, "GB18030"),  # whose two characters are two letters of UTF-8, too
        ("gb18030", CHINESE * 3 + "A line in English.\n" * 6, "GB18030"),
        ("latin-1", "La vie était belle à Paris.\n" * 3 + "Hello.\n" * 3, "WINDOWS-1252"),
    ],
)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json"])
def test_a_file_in_another_encoding_is_refused_though_some_lines_are_plain_ascii(encoding, text, way, kind, tmp_path):
    rows = [{"text": line} for line in text.splitlines()]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = json.dumps(rows, ensure_ascii=False, indent=0) if kind == ".json" else content
    path = tmp_path / f"a{kind}"
    path.write_bytes((text if kind == ".txt" else content).encode(encoding))
    with pytest.raises(
        ValueError, match=f"a{kind} is not UTF-8: of its first.* lines, [39] cannot.*iconv -f {way} -t UTF-8"
    ):
        files.splits(str(path), "train", "test", streaming=True)
    path.write_bytes((text if kind == ".txt" else content).encode())
    assert len(list(lines.read(path))) == len(rows)


def test_lines_of_another_encoding_among_many_are_left_out(tmp_path, capsys):
    path = tmp_path / "a.txt"
    for others in (["Hello."] * 40, ["Grüße."]):
        path.write_bytes(b"\n".join([*(line.encode() for line in others), *["été".encode("latin-1")] * 3, b""]))
        assert [row["text"] for row in files.stream([str(path)], "text")] == others
        assert "not UTF-8" in capsys.readouterr().out
        lines._said.clear()


@pytest.mark.parametrize(
    "content",
    [
        "caf\xe9\n".encode("latin-1") * 3 + (b"A" * 70_000 + b"\n") * 5 + CHINESE.encode() * 1000,
        "caf\xe9\n".encode("latin-1") * 3 + (b"A" * 700_000 + b"\n") * 5 + CHINESE.encode() * 1000,
        (b"It is. " * 400 + b"\n") * 12 + b"It\x92s.\n" * 3,
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_three_lines_do_not_decide_about_a_file_of_long_ones(content, packed, tmp_path, capsys):
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    rows = list(files.stream([str(path)], "text"))
    assert len(rows) == content.count(b"\n") - 3
    assert capsys.readouterr().out.count("not UTF-8") == 3


def test_gb18030_is_named_for_chinese_alone(tmp_path):
    """Almost all that is Western can be read as GB18030: "ü" and the letter behind it are a rare character."""
    path = tmp_path / "a.txt"
    path.write_bytes("Müller\nFräulein\nGrößer als Köln\n".encode("latin-1"))
    path.read_bytes().decode("gb18030")
    with pytest.raises(ValueError, match="a.txt is not UTF-8.*iconv -f WINDOWS-1252 -t UTF-8"):
        list(lines.read(path))
    path.write_bytes(("x" * (1 << 18) + "\n" + CHINESE * 99).encode("gb18030"))
    assert sum(isinstance(row, Dropped) for _, row in lines.read(path)) == 99  # behind what is looked at


@pytest.mark.parametrize("text", [b'{"text":"a"}\n\0\n', b'{"text":"ab"}\n\0\n', b'{"text":"a"}\n' + bytes(4096)])
def test_nuls_behind_the_rows_do_not_make_utf_16_of_utf_8(text, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(text)
    (_, row), (_, dropped) = lines.read(tmp_path / "a.jsonl")
    assert row["text"].startswith("a") and dropped.reason == "NUL bytes"


def test_half_a_character_in_a_list_is_left_out_and_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "\\ud83d"}, {"text": "\\ud83d\\ude00"}]')
    (_, dropped), (_, row) = lines.read(tmp_path / "a.json")
    assert dropped == Dropped("half a character", f"{tmp_path / 'a.json'}, row 1") and row == {"text": "😀"}


def test_a_line_of_text_with_nul_bytes_is_left_out_and_named(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x\nb\0roken" + bytes(99) + b"\ny\n")
    assert list(files.stream([str(path)], "text")) == [{"text": "x"}, {"text": "y"}]
    assert f"{path}, line 2: NUL bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("whole", "broken", "reason", "detail"),
    [
        ('{"text": "x"}', b"{broken", "not JSON", "column 2"),
        ('{"text": "x"}', b"[1]", "no JSON object", ""),
        ('{"text": "x"}', b'{"n": ' + b"9" * 5000 + b"}", "not JSON", ""),
        ('{"text": "x"}', '{"text": "你好"}'.encode("gbk"), "not UTF-8", ""),
        ('{"text": "x"}', b'{"text": "\\ud83d"}', "half a character", ""),
        ('{"text": "x"}', b'{"txt": 1}', "not of this layout", "no column `text`, only txt"),
        (
            '{"instruction": "x", "output": "y"}',
            b'{"instruction": "x", "output": "y", "history": ["z"]}',
            "not of this layout",
            "`history` must be pairs",
        ),
        (
            '{"instruction": "x", "output": "y"}',
            b'{"instruction": "x", "output": "y", "history": [["z", 1]]}',
            "not of this layout",
            "`history` must be pairs of texts",
        ),
        (
            '{"instruction": "x", "output": "y"}',
            b'{"instruction": "x", "output": "y", "input": ["z"]}',
            "not of this layout",
            "`input` must be text",
        ),
        (
            '{"prompt": "x", "completion": "y"}',
            b'{"prompt": [{"from": "user", "value": "x"}], "completion": "y"}',
            "not of this layout",
            "`prompt` must be text, or turns of role and content",
        ),
        (
            '{"prompt": "x", "chosen": "y", "rejected": "z"}',
            b'{"prompt": "x", "chosen": "y", "rejected": "y"}',
            "chosen is rejected",
            "",
        ),
    ],
)
def test_a_broken_line_is_left_out_and_named(whole, broken, reason, detail, tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join([whole.encode(), broken, whole.encode(), b"", b""]))
    (tmp_path / "test.jsonl").write_text(whole)
    first, dropped, last = data.load("files")("train", source=str(tmp_path))
    assert first == last and dropped.reason == reason
    assert "train.jsonl, line 2" in dropped.where and detail in dropped.where
    assert len(list(files.stream([str(path)], files.layout_of([path])))) == 2
    said = capsys.readouterr().out
    assert f"{dropped.where}: {reason}" in said and said.count("left out") == 1
    list(files.stream([str(path)], files.layout_of([path])))
    assert not capsys.readouterr().out, "told once"


def test_of_many_broken_lines_the_first_are_named_and_the_rest_counted(tmp_path, capsys):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' + b"{broken\n" * 5 + b"7\n", mtime=0))
    assert list(files.stream([str(path)], "text")) == [{"text": "x"}]
    said = capsys.readouterr().out
    assert said.count("column 2: not JSON") == 3
    assert f"left out in all of {path}: 5 (not JSON), 1 (no JSON object)" in said
    path.write_bytes(gzip.compress(b'{"conversations": []}\n', mtime=0))
    with pytest.raises(ValueError, match="no row can be used. The first is .*line 1: no answer at the end"):
        list(files.stream([str(path)], "conversations"))


def test_a_stream_leaves_out_what_has_nothing_to_say_as_prepare_does(tmp_path, capsys):
    silent, unasked = {"role": "assistant", "content": " "}, {"role": "user", "content": "\n"}
    for layout, row, empty in (
        ("text", {"text": "x"}, {"text": None}),
        ("conversations", {"messages": [USER, ASSISTANT]}, {"messages": [USER, silent]}),
        ("conversations", {"messages": [USER, ASSISTANT]}, {"messages": [USER, silent, USER, ASSISTANT]}),
        ("conversations", {"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT, unasked, ASSISTANT]}),
        ("alpaca", {"instruction": "x", "output": "y", "system": ""}, {"instruction": " ", "output": "y"}),
        ("trl", {"prompt": "x", "completion": "y"}, {"prompt": " ", "completion": "y"}),
        ("trl", {"prompt": [USER], "solution": "1"}, {"prompt": [unasked], "solution": "1"}),
        ("trl", {"prompt": "x", "completion": "y"}, {"prompt": "x", "completion": None}),
        ("preference", {"chosen": [USER, ASSISTANT], "rejected": [USER, {**GPT, "value": "Go."}]}, None),
    ):
        empty = empty or {"chosen": [USER, ASSISTANT], "rejected": [USER, silent]}
        path = write_rows(tmp_path / f"{layout}.jsonl", [row, empty])
        assert len(list(files.stream([str(path)], layout))) == 1
        assert f"{path}, line 2: empty" in capsys.readouterr().out
        kept, left_out = cleaning.empty([files._example(layout, found, "") for found in (row, empty)])
        assert kept is None and left_out.name == "empty"
        lines._said.clear()
    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}]
    path = write_rows(tmp_path / "calls.jsonl", [{"prompt": [USER], "completion": call}])
    assert len(list(files.stream([str(path)], "trl"))) == 1
    for beside in (5, ["a"], [5], None, ""):
        path = write_rows(tmp_path / "beside.jsonl", [{"prompt": "x", "completion": "y", "text": beside}])
        assert len(list(files.stream([str(path)], "trl"))) == 1, "a column of another shape, of whatever kind"
    path = write_rows(tmp_path / "later.jsonl", [{"prompt": "x", "completion": "y"}, {"text": 5}])
    assert len(list(files.stream([str(path)], "trl"))) == 1
    assert "later.jsonl, line 2: `text` must be text, or turns of role and content, and is 5" in capsys.readouterr().out


def test_a_header_before_the_rows_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"version": 1}\n' + '{"text": "x"}\n{"text": "y"}\n{"text": "z"}\n')
    rows = list(data.load("files")("train", source=str(tmp_path / "a.jsonl"), test_size=1))
    assert [row.reason for row in rows if isinstance(row, Dropped)] in (["no known layout"], [])
    assert files.layout_of([tmp_path / "a.jsonl"]) == "text"


def test_published_files_are_rows_without_preparation(tmp_path):
    """A file, or a directory of files, as a stage's `dataset_name`: as a stream and copied, the same rows."""
    for part in range(2):
        rows = [{"text": f"Text {part}{n}."} for n in range(2)]
        write_rows(tmp_path / "mine" / f"part-{part}.jsonl", rows)
    write_rows(tmp_path / "mine" / "test.jsonl", [{"text": "Test."}])
    for streaming in (True, False):
        found = files.splits(str(tmp_path / "mine"), "train", "test", streaming=streaming)
        assert [row["text"] for row in found["train"]] == ["Text 00.", "Text 01.", "Text 10.", "Text 11."]
        assert [row["text"] for row in found["test"]] == ["Test."]
        assert list(files.splits(str(tmp_path / "mine" / "test.jsonl"), "train", "test", streaming=streaming)) == [
            "train"
        ]
    write_rows(tmp_path / "mine" / "part-1.jsonl", [{"text": "New."}])
    found = files.splits(str(tmp_path / "mine"), "train", "test", streaming=False)
    assert found["train"][-1]["text"] == "New.", "no old copy"
    write_rows(tmp_path / "mine" / "chats.jsonl", [{"conversations": [USER, ASSISTANT]}])
    assert list(files.splits(str(tmp_path / "mine"), "chats", "none", streaming=False)) == ["chats"], (
        "and no other copy"
    )
    with pytest.raises(ValueError, match="mine has no split 'trian'. There are: chats, part-0, part-1, test"):
        files.splits(str(tmp_path / "mine"), "trian", "test", streaming=True)
    with pytest.raises(ValueError, match="different layouts: .*chats.jsonl .conversations.,.*part-0.jsonl .text."):
        files.splits(str(tmp_path / "mine"), "train", "test", streaming=True)
    (tmp_path / "notes.pdf").write_text("")
    with pytest.raises(ValueError, match="notes.pdf' is no kind of file that can be read here"):
        files.splits(str(tmp_path / "notes.pdf"), "train", "test", streaming=True)


@pytest.mark.parametrize("tests", ["test", "dev"])
def test_prepare_reads_the_files_of_a_directory_that_a_stage_reads(tests, tmp_path):
    """A test split that is called so is the test set; else rows of the others are, and none that are held out."""
    for part in range(2):
        write_rows(tmp_path / "mine" / f"part-{part}.jsonl", [{"text": f"Text {part}{n}."} for n in range(3)])
    write_rows(tmp_path / "mine" / f"{tests}.jsonl", [{"text": "Held out."}])
    stage = files.splits(str(tmp_path / "mine"), "train", "test", streaming=True)
    make = data.load("files")
    train, test = (list(make(split, source=str(tmp_path / "mine"), test_size=2)) for split in ("train", "test"))
    if tests == "test":
        assert train == list(stage["train"]) and test == list(stage["test"]) == [{"text": "Held out."}]
    else:
        assert sorted([*train, *test], key=str) == list(stage["train"]) and len(test) == 2


def test_what_is_not_read_of_a_directory_is_told(tmp_path, capsys):
    from trl import DatasetMixtureConfig, ScriptArguments

    mine = tmp_path / "mine"
    for name in ("a.jsonl", "b.JSONL", "data/c.jsonl", "sub/d.jsonl", "part-0.parquet/e.jsonl"):
        write_rows(mine / name, [{"text": name}, {"text": f"{name} again"}])
    for name in ("f.csv", "README.md", ".hidden", ".cache/g.jsonl"):
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_text("")
    read = ["a.jsonl", "a.jsonl again", "b.JSONL", "b.JSONL again", "data/c.jsonl", "data/c.jsonl again"]
    for streaming in (True, False):
        rows = source.rows(ScriptArguments(str(mine), dataset_streaming=streaming), DatasetMixtureConfig(), ("text",))[
            0
        ]
        assert [row["text"] for row in rows] == read
    assert len(told := capsys.readouterr().out.splitlines()) == 1
    assert told[0].startswith(f"note: files in '{mine}' that are not read: 3, such as {mine / 'f.csv'}. They are in a")
    write_rows(mine / "train.jsonl", [{"text": "x"}, {"text": "y"}])
    assert len(list(data.load("files")("train", source=str(mine), test_size=1))) == 1
    assert f"not read: 6, such as {mine / 'a.jsonl'}." in capsys.readouterr().out
    write_rows(mine / "train.parquet", [{"text": "x"}])
    assert len(source.rows(ScriptArguments(str(mine)), DatasetMixtureConfig(), ("text",))[0]) == 1
    assert "not read: 7," in capsys.readouterr().out


def test_a_parquet_that_is_cut_off_or_broken_in_the_middle_is_named(tmp_path):
    from trl import DatasetMixtureConfig, ScriptArguments

    path = write_rows(tmp_path / "mine" / "train.parquet", [{"text": str(number)} for number in range(999)])
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes(100) + whole[150:])
    with pytest.raises(ValueError, match="train.parquet is broken behind row 0"):
        list(lines.read(path))
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="train.parquet is cut off or broken"):
        source.rows(ScriptArguments(str(path.parent)), DatasetMixtureConfig(), ("text",))


@pytest.mark.parametrize("name", ["my [data]", "数据 (1)", "a*b"])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_directory_may_be_called_as_no_pattern_should(name, streaming, tmp_path):
    from trl import DatasetMixtureConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    write_rows(tmp_path / "a to b" / "train.parquet", [{"text": "another"}])
    write_rows(tmp_path / name / "train.parquet", [{"text": "x"}])
    script = ScriptArguments(str(tmp_path / name), dataset_streaming=streaming)
    assert list(source.rows(script, DatasetMixtureConfig(), ("text",))[0]) == [{"text": "x"}]
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=str(tmp_path / name))], streaming=streaming)
    assert list(source.rows(ScriptArguments(), mixture, ("text",))[0]) == [{"text": "x"}]


def test_parquet_among_other_files_is_read_with_them(tmp_path):
    """Only where a parquet is called as a split is, it is what `suite prepare` writes."""
    from trl import DatasetMixtureConfig, ScriptArguments

    for name in ("a.txt", "b.jsonl", "c.parquet", "d.jsonl"):
        write_rows(tmp_path / name, [{"text": name}])
    (tmp_path / "a.txt").write_text("a.txt\n")
    for note in ("dataset_infos.json", "prepare.json"):
        (tmp_path / note).write_text('{"default": {"text": "x"}}')
    rows = source.rows(ScriptArguments(str(tmp_path)), DatasetMixtureConfig(), ("text",))[0]
    assert [row["text"] for row in rows] == ["a.txt", "b.jsonl", "c.parquet", "d.jsonl"]
    for left in ("a.txt", "b.jsonl", "d.jsonl"):
        (tmp_path / left).unlink()
    (tmp_path / "c.parquet").rename(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="has no split 'train'. There are: test[.]"):
        source.rows(ScriptArguments(str(tmp_path)), DatasetMixtureConfig(), ("text",))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_held_out_are_not_trained_on_where_nothing_is_called_train(kind, tmp_path):
    for name in ("Validation", "test"):
        write_rows(tmp_path / f"{name}.{kind}", [{"text": "held out"}])
    with pytest.raises(ValueError, match="has no split 'train'. There are: Validation, test[.]"):
        files.splits(str(tmp_path), "train", "test", streaming=False)
    assert files.splits(str(tmp_path), "Validation", "test", streaming=False).keys() == {"Validation", "test"}


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        (
            ["a.txt", "b.jsonl"],
            b'{"text": "x"}\n',
            "holds files of several kinds .[.]jsonl, [.]txt., of which one would",
        ),
        (["a.jsonl"], b'{"text": "x"}\n{"text"\n', "cannot read '.*mine': JSON parse error.*suite prepare files"),
        (["a.jsonl"], '{"text": "你好"}'.encode("gbk"), "cannot read '.*mine': 'utf-8' codec.*suite prepare files"),
        ([], b"", "cannot read '.*mine': The directory at .*data files"),
    ],
)
def test_a_part_of_a_mixture_that_would_be_read_in_part_or_not_at_all_is_refused(names, content, message, tmp_path):
    from trl import DatasetMixtureConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    (tmp_path / "mine").mkdir()
    for name in names:
        (tmp_path / "mine" / name).write_bytes(content)
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=str(tmp_path / "mine"))])
    with pytest.raises(ValueError, match=f"`datasets`: .*{message}"):
        source.rows(ScriptArguments(), mixture, ("text",))


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        (["train.jsonl"], ["LICENSE.txt", "README.txt"]),
        (["train.parquet"], ["metadata.json"]),
        (["train.jsonl"], ["test.json", "notes.txt"]),
        (["a.jsonl", "b.json"], ["README.txt"]),
        (["corpus.jsonl"], ["README.txt"]),
    ],
)
def test_what_lies_beside_the_rows_of_a_mixture_is_no_kind_of_its_own(rows, notes, tmp_path):
    from trl import DatasetMixtureConfig
    from trl.scripts.utils import DatasetConfig, ScriptArguments

    for name in rows:
        write_rows(tmp_path / "mine" / name, [{"text": name}])
    for name in notes:
        (tmp_path / "mine" / name).write_text('{"text": "none of the rows"}\n')
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=str(tmp_path / "mine"))])
    assert [row["text"] for row in source.rows(ScriptArguments(), mixture, ("text",))[0]] == rows


def test_more_notes_than_files_of_rows_are_refused_with_a_way_out_that_works(tmp_path):
    from trl import DatasetMixtureConfig
    from trl.scripts.utils import DatasetConfig, ScriptArguments

    write_rows(tmp_path / "mine" / "corpus.jsonl", [{"text": str(number)} for number in range(9)])
    for name in ("README.txt", "License.txt"):
        (tmp_path / "mine" / name).write_text("About these rows.\n")
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=str(tmp_path / "mine"))])
    with pytest.raises(ValueError, match="several kinds .*suite prepare files --source DIRECTORY"):
        source.rows(ScriptArguments(), mixture, ("text",))
    assert len(list(data.load("files")("train", source=str(tmp_path / "mine"), test_size=1))) == 8


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_of_text_and_of_turns_do_not_stand_in_one_data_set(streaming, tmp_path):
    turns = {"prompt": [USER], "completion": [ASSISTANT]}
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "x", "completion": "y"}, turns, turns])
    with pytest.raises(
        ValueError,
        match="a.jsonl, line 2: this row is of turns, and the first is of text; so are 2 of the first 3 rows",
    ):
        list(files.splits(str(path), "train", "test", streaming=streaming)["train"])
    path = write_rows(tmp_path / "b.jsonl", [{"prompt": "x", "completion": "y"}, {**turns, "prompt": "x"}])
    assert list(files.splits(str(path), "train", "test", streaming=streaming)["train"]) == [
        {"prompt": "x", "completion": "y"}
    ]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_stray_row_of_turns_among_texts_is_left_out_and_counted(streaming, tmp_path, capsys):
    rows = [{"prompt": "x", "completion": str(number)} for number in range(3)]
    path = write_rows(tmp_path / "a.jsonl", [*rows, {"prompt": [USER], "completion": [ASSISTANT]}, *rows])
    assert list(files.splits(str(path), "train", "test", streaming=streaming)["train"]) == rows * 2
    assert f"left out: {path}, line 4: not of the first row's kind" in capsys.readouterr().out
    assert list(files.stream([str(path)], "trl")) == rows * 2  # where nobody has looked before


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"prompt": "x", "completion": "y", "chosen": None, "rejected": None}, True),
        ({"prompt": "x", "solution": "1", "chosen": "y", "rejected": "y"}, True),
        ({"prompt": "x", "chosen": None, "rejected": None}, True),
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, False),
    ],
)
def test_a_pair_is_no_choice_only_where_it_is_one_and_all_there_is(row, kept, tmp_path):
    """What is empty is left out later, by a name and a key of its own."""
    (found,) = load(tmp_path, row)
    assert found == row if kept else found.reason == "chosen is rejected"


def test_a_turn_before_that_was_not_answered_is_empty(tmp_path):
    row = {"instruction": "Hello?", "output": "Hello!", "history": [["a", None], ["b", "c"]]}
    (found,) = load(tmp_path, row)
    assert [turn["content"] for turn in found["prompt"]] == ["a", "", "b", "c", "Hello?"]


@pytest.mark.parametrize(("usual", "strange"), [(1, 10**30), (1, "x"), (None, [1])])
def test_a_column_of_no_one_type_is_told_with_its_file(usual, strange, tmp_path):
    rows = [{"prompt": "x", "completion": "y", "id": strange if n == 3000 else usual} for n in range(3001)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match="a.jsonl: a column holds what cannot be in one table.*suite prepare files"):
        files.splits(str(path), "train", "test", streaming=False)


def test_a_csv_is_refused_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffinstruction,output\n"two\nlines",007\nNA,\n', encoding="utf-8")
    with pytest.raises(ValueError, match="a.csv' is no kind of file.*Convert it: python -c") as caught:
        files.splits(str(path), "train", "test", streaming=True)
    subprocess.run(["bash", "-c", str(caught.value).partition("Convert it: ")[2].replace("python", sys.executable)])
    assert [row for _, row in lines.read(tmp_path / "a.jsonl")] == [
        {"instruction": "two\nlines", "output": "007"},
        {"instruction": "NA", "output": ""},
    ]


def test_a_reader_that_has_changed_finds_no_old_copy(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "x"}])

    def first() -> str:
        return files.splits(str(path), "train", "test", streaming=False)["train"][0]["text"]

    assert first() == "x"
    monkeypatch.setitem(files._READERS, "text", lambda row, place: {"text": row["text"] * 2})
    assert first() == "x", "a copy, for the code is the same"
    (tmp_path / "lines.py").write_text(f"{Path(lines.__file__).read_text()}\nMOST = 3\n")
    monkeypatch.setattr(lines, "__file__", str(tmp_path / "lines.py"))
    assert first() == "xx"


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"text": "Once."}, "text"),
        ({"conversations": [USER, ASSISTANT]}, "messages"),
        ({"conversations": [HUMAN, GPT], "id": 7}, "messages"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "Go."}]}, "prompt+chosen+rejected"),
        ({"instruction": "Add.", "input": "", "output": "2"}, "prompt+completion"),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_a_stage_is_given_the_shape_it_asks_for(row, shape, streaming, tmp_path):
    from trl import DatasetMixtureConfig, ScriptArguments

    name = str(write_rows(tmp_path / "published.jsonl", [row, row]))
    script = ScriptArguments(dataset_name=name, dataset_streaming=streaming)
    rows, _ = source.rows(script, DatasetMixtureConfig(), (shape,))
    assert [sorted(found) for found in rows] == [sorted(columns.SHAPES[shape])] * 2
    with pytest.raises(ValueError, match="needs the shape"):
        source.rows(script, DatasetMixtureConfig(), ("prompt+solution",))


@pytest.mark.parametrize("streaming", [True, False])
def test_test_files_that_nobody_wants_are_not_read(streaming, tmp_path):
    from trl import DatasetMixtureConfig, ScriptArguments

    where = write_rows(tmp_path / "mine" / "train.jsonl", [{"messages": [USER, ASSISTANT]}]).parent
    (where / "test.jsonl").write_text("broken\n")
    script = ScriptArguments(str(where), dataset_streaming=streaming)
    assert len(list(source.rows(script, DatasetMixtureConfig(), ("messages",))[0])) == 1
    with pytest.raises(ValueError, match="test.jsonl, line 1.*: not JSON"):
        source.rows(script, DatasetMixtureConfig(), ("messages",), with_test=True)


@pytest.mark.parametrize("streaming", [True, False])
def test_tools_of_some_rows_are_kept_whatever_the_first_one_has(streaming, tmp_path, capsys):
    """`datasets` would leave the column away."""
    chat, tools = {"messages": [USER, ASSISTANT]}, [a_tool("stop"), a_tool("say", words="string")]
    path = write_rows(tmp_path / "a.jsonl", [chat, {**chat, "tools": tools}, {**chat, "tools": json.dumps(tools)}])
    rows = list(files.splits(str(path), "train", "test", streaming=streaming)["train"])
    assert [json.loads(row["tools"] or "null") for row in rows] == [None, tools, tools]
    behind = write_rows(tmp_path / "two" / "train-2.jsonl", [{**chat, "tools": tools}])
    write_rows(behind.with_name("train-1.jsonl"), [{**chat, "tools": None}] * 1200)
    rows = list(files.splits(str(behind.parent), "train", "test", streaming=streaming)["train"])
    assert len(rows) == 1201 and json.loads(rows[-1]["tools"]) == tools
    late = write_rows(tmp_path / "b.jsonl", [chat] * 120 + [{**chat, "tools": tools}])
    assert len(list(files.splits(str(late), "train", "test", streaming=streaming)["train"])) == 120
    assert "tools, which no row has at the beginning" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["a file", "a stream", "prepared", "parquet of others", "a mixture", "its stream"])
def test_a_row_is_told_what_it_says_itself_and_nothing_of_what_others_say(way, tmp_path):
    """One struct for all rows would have the keys of each, as None, and a template may ask whether they are there."""
    from trl import DatasetMixtureConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    chats = [{"messages": [{**USER, "content": f"{n}?"}, ASSISTANT]} for n in range(4)]
    told = [{}, {"enable_thinking": False}, {"hint": "a", "of": {"b": 1}}, {"of": {"c": [2]}}]
    tools = [None, [a_tool("stop")], [a_tool("say", words="string"), a_tool("stop")], None]
    rows = [
        {**chat, "chat_template_kwargs": more, "tools": held or ""}
        for chat, more, held in zip(chats, told, tools, strict=True)
    ]
    where, mixture = write_rows(tmp_path / "rows.jsonl", rows), DatasetMixtureConfig()
    if way == "parquet of others":
        rows = [{**row, "tools": row["tools"] or None} for row in rows]
        where = write_rows(tmp_path / "theirs" / "train.parquet", rows).parent
    elif way not in ("a file", "a stream"):
        made = ["--output_dir", str(tmp_path / "made"), "--test_size", "1", "--system_prompt", "none"]
        prepare.main(["files", "--source", str(where), *made])
        where = tmp_path / "made"
    script = ScriptArguments(str(where), dataset_streaming=way == "a stream")
    if way in ("a mixture", "its stream"):
        write_rows(tmp_path / "plain" / "train.parquet", [chats[0]])
        paths = [DatasetConfig(path=str(tmp_path / "plain")), DatasetConfig(path=str(where))]
        script, mixture = ScriptArguments(), DatasetMixtureConfig(datasets=paths, streaming=way == "its stream")
    found = list(source.rows(script, mixture, ("messages",))[0])
    assert len(found) == {"a file": 4, "a stream": 4, "parquet of others": 4, "prepared": 3}.get(way, 4)
    for row in found:
        n = [chat["messages"][0]["content"] for chat in chats].index(row["messages"][0]["content"])
        assert row["chat_template_kwargs"] == told[n] and columns.template_kwargs(row) == {"tools": tools[n], **told[n]}
        assert row["tools"] is None or json.loads(row["tools"]) == tools[n], "as TRL reads it"


@pytest.mark.parametrize("way", ["a file", "a stream", "prepared", "prepared, streaming", "a mixture", "its stream"])
def test_a_call_has_its_own_arguments_and_none_of_other_calls(way, tmp_path):
    """As above: a chat template writes the arguments as JSON, null and all, and the model would learn to."""
    from trl import DatasetMixtureConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    given = [{"a": 1, "b": [2]}, {"words": "w"}, {}, {"of": {"c": 1}}, {"of": {"d": "e"}}]
    said = [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": one}}]}
        for one in given
    ]
    rows = [{"prompt": [{**USER, "content": f"{n}?"}], "completion": [call]} for n, call in enumerate(said)]
    rows += [{"prompt": [USER, said[1], {"role": "tool", "content": "5"}], "completion": [ASSISTANT]}]
    where, mixture = write_rows(tmp_path / "theirs" / "rows.parquet", rows), DatasetMixtureConfig()
    script = ScriptArguments(str(where), dataset_streaming="stream" in way)
    if "prepared" in way:
        test = write_rows(tmp_path / "theirs" / "test.jsonl", [rows[-1]])
        made = ["--output_dir", str(tmp_path / "made"), "--overlap_ngram", "0"]
        prepare.main(["files", "--source", str(test.parent), *made])
        script.dataset_name = str(tmp_path / "made")
    elif "a file" != way != "a stream":
        entry = DatasetConfig(path=str(where.parent))
        script, mixture = ScriptArguments(), DatasetMixtureConfig(datasets=[entry], streaming=way == "its stream")
    found = list(source.rows(script, mixture, ("prompt+completion",))[0])
    calls = [
        turn["tool_calls"] for row in found for turn in row["prompt"] + row["completion"] if turn.get("tool_calls")
    ]
    assert [call["function"]["arguments"] for (call,) in calls] == [*given, given[1]]
    assert [row["completion"][0]["content"] for row in found] == [None] * 5 + ["Hello!"]


@pytest.mark.parametrize("second", [{"a": "w", "b": 1}, {"a": 2, "of": {"b": 1, "c": None}}])
def test_a_null_among_the_arguments_of_a_call_is_left_out_however_lines_are_read(second, tmp_path):
    """It may be an honest one: once read, nobody can tell it from those of a column of parquet. Arguments that are not
    alike `datasets` keeps as JSON."""
    from trl import DatasetMixtureConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    calls = [[{"function": {"name": "f", "arguments": one}}] for one in ({"a": "w", "b": None}, second)]
    turns = [{"role": "assistant", "content": None, "tool_calls": call} for call in calls]
    where = tmp_path / "theirs" / "train.jsonl"
    write_rows(where, [{"prompt": [USER], "completion": [turn]} for turn in turns])
    for way in ("a file", "a stream", "a mixture", "its stream"):
        script = ScriptArguments(str(where), dataset_streaming=way == "a stream")
        mixture = DatasetMixtureConfig()
        if "a file" != way != "a stream":
            entry = DatasetConfig(path=str(where.parent))
            script, mixture = ScriptArguments(), DatasetMixtureConfig(datasets=[entry], streaming=way == "its stream")
        found = list(source.rows(script, mixture, ("prompt+completion",))[0])
        read = [row["completion"][0]["tool_calls"][0]["function"]["arguments"] for row in found]
        assert read == [{"a": "w"}, second if "b" in second else {"a": 2, "of": {"b": 1}}], way
        assert found[0]["completion"][0]["content"] is None


def test_test_rows_are_set_aside_of_a_mixture_that_has_nothing_but_turns_that_call(tmp_path):
    """As indices of one table, which a data set without columns cannot be laid beside."""
    from trl import DatasetMixtureConfig, ScriptArguments
    from trl.scripts.utils import DatasetConfig

    def says(n, **arguments):
        call = {"function": {"name": "f", "arguments": arguments}}
        return [{**USER, "content": f"{n}?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]

    given = [{"a": 1}, {"words": "w"}, {}, {"of": {"c": 1}}, {"of": {"d": "e"}}, {"b": [2]}]
    rows = [{"messages": says(n, **one)} for n, one in enumerate(given)]
    path = write_rows(tmp_path / "theirs" / "train.parquet", rows).parent
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path=str(path))], test_split_size=2)
    train, test = source.rows(ScriptArguments(), mixture, ("messages",), with_test=True)
    said = sorted([*train, *test], key=lambda row: row["messages"][0]["content"])
    calls = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in said]
    assert calls == given and (len(train), len(test)) == (4, 2)


@pytest.mark.parametrize("streaming", [True, False])
def test_what_cannot_be_read_beside_the_turns_of_any_row_is_told_with_its_number(streaming, tmp_path, capsys):
    from trl import DatasetMixtureConfig, ScriptArguments

    chat = {"messages": [USER, ASSISTANT]}
    rows = [{**chat, "tools": "", "chat_template_kwargs": None}] * 150
    for name, cell, needed in (
        ("tools", "[{", "a list of functions"),
        ("tools", '["add"]', "a list of functions"),
        ("chat_template_kwargs", "[1]", "keys and their values"),
    ):
        odd = [{**row, "chat_template_kwargs": "{}"} for row in rows] + [{**rows[0], name: cell}]
        script = ScriptArguments(str(write_rows(tmp_path / "odd" / "train.parquet", odd).parent))
        script.dataset_streaming = streaming
        with pytest.raises(ValueError, match=f"row 151: `{name}` must be {needed}.*Write it so, or leave the column"):
            list(source.rows(script, DatasetMixtureConfig(), ("messages",))[0])
        assert len(list(source.rows(script, DatasetMixtureConfig(), ("messages",), beside_turns=False)[0])) == 151
        script.dataset_name = str(write_rows(tmp_path / "odd.jsonl", odd))
        assert len(list(source.rows(script, DatasetMixtureConfig(), ("messages",))[0])) == 150
        assert "tools or chat_template_kwargs that cannot be read" in capsys.readouterr().out


def test_prompts_that_are_asked_without_their_tools_are_told_of(tmp_path, capsys):
    from trl import DatasetMixtureConfig, ScriptArguments

    row = {"prompt": [USER], "solution": "4", "tools": json.dumps([a_tool("add")]), "chat_template_kwargs": {"a": 1}}
    script = ScriptArguments(str(write_rows(tmp_path / "some" / "train.parquet", [row]).parent))
    source.rows(script, DatasetMixtureConfig(), ("prompt+solution",), asked_with={"a": 2})
    told = capsys.readouterr().out
    assert "without `tools` and `chat_template_kwargs`; SFT" in told and "key `chat_template_kwargs` of GRPO" in told
    rows = source.rows(script, DatasetMixtureConfig(), ("prompt+solution",), asked_with={"a": 1, "b": 2})[0]
    assert "the prompts are asked without `tools`; SFT and DPO alone" in capsys.readouterr().out
    assert "tools" in rows.column_names, "a reward may want to read them"


def test_reading_holds_one_row_at_a_time(tmp_path):
    import tracemalloc

    with gzip.open(tmp_path / "a.jsonl.gz", "wt", compresslevel=1) as file:
        for n in range(6000):
            file.write(json.dumps({"text": f"{n} " * 100}) + "\n")
    rows = files.splits(str(tmp_path / "a.jsonl.gz"), "train", "test", streaming=True)["train"]
    tracemalloc.start()
    assert sum(1 for _ in rows) == 6000
    assert tracemalloc.get_traced_memory()[1] < 2_000_000, "bytes, of the three millions that went by"
    tracemalloc.stop()


def test_a_stream_goes_on_where_it_was(tmp_path):
    paths = [str(write_rows(tmp_path / f"{part}.jsonl", [{"text": f"{part}{n}"} for n in range(3)])) for part in "ab"]
    rows = files.splits(str(tmp_path), "train", "test", streaming=True)["train"]
    assert rows.num_shards == len(paths)
    first = iter(rows)
    seen = [next(first)["text"] for _ in range(4)]
    state = rows.state_dict()
    rows.load_state_dict(state)
    assert seen + [row["text"] for row in rows] == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_files_of_every_kind_hold_the_same_rows(tmp_path):
    rows = [{"text": f"Text {n}."} for n in range(4)]
    written = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(written)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(written)
    (tmp_path / "d.txt").write_text("".join(f"{row['text']}\n\n" for row in rows))
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(written.encode()))
    (tmp_path / "f.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    (tmp_path / "h.jsonl").write_text(written, encoding="utf-8-sig")
    (tmp_path / "j.jsonl.zst").write_bytes(pyarrow.compress(written.encode(), "zstd", asbytes=True))
    (tmp_path / "i.txt").write_text((tmp_path / "d.txt").read_text(), encoding="utf-8-sig")
    write_rows(tmp_path / "g.parquet", rows)
    for path in sorted(tmp_path.iterdir()):
        make = data.load("files")
        found = [row for split in ("train", "test") for row in make(split, source=str(path), test_size=2)]
        assert sorted(found, key=str) == rows, path


def turns(n: int, answer: str) -> list[dict]:
    return [{"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    ("row", "becomes"),
    [
        (
            lambda n: {"conversations": [{"from": "human", "value": f"And {n}?"}, GPT]},
            lambda n: {"messages": turns(n, "Hello!")},
        ),
        (
            lambda n: {"chosen": turns(n, "Hello!"), "rejected": turns(n, "Go.")},
            lambda n: {"prompt": turns(n, "")[:1], "chosen": [ASSISTANT], "rejected": turns(n, "Go.")[1:]},
        ),
        (
            lambda n: {"conversations": turns(n, f"<think>\n{n}, 一\n</think>\n<answer>\n二 {n}\n</answer>")},
            lambda n: {"messages": turns(n, f"<think>\n{n}, 一\n</think>\n<answer>\n二 {n}\n</answer>")},
        ),
    ],
    ids=["a chat", "a pair", "a trace"],
)
def test_turns_are_the_same_from_files_of_every_kind_prepared_or_as_published(row, becomes, tmp_path):
    rows = [row(n) for n in range(4)]
    written = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(written)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(written))
    (tmp_path / "d.jsonl.zst").write_bytes(pyarrow.compress(written, "zstd", asbytes=True))
    write_rows(tmp_path / "e.parquet", rows)
    for path in sorted(tmp_path.iterdir()):
        make = data.load("files")
        found = [each for split in ("train", "test") for each in make(split, source=str(path), test_size=2)]
        assert sorted(found, key=str) == [becomes(n) for n in range(4)], path
        published = files.splits(str(path), "train", "test", streaming=True)["train"]
        assert list(published) == [becomes(n) for n in range(4)], path


def test_the_shards_of_a_directory_are_one_split_in_their_order(tmp_path):
    for part in range(3):
        write_rows(tmp_path / f"train-0000{part}-of-00003.parquet", [{"text": str(10 * part + n)} for n in range(2)])
    write_rows(tmp_path / "test-00000-of-00001.parquet", [{"text": "99"}])
    rows = [row["text"] for _, row in reading.rows("train", str(tmp_path), by=("text",))]
    assert rows == ["0", "1", "10", "11", "20", "21"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("deep", "'deep' holds no file .* not read, such as deep/train/a.jsonl. Name a folder, or a file"),
        ("", "Which files.*--source PATH"),
        ("./nowhere", "no file or directory './nowhere'"),
        ("nowhere.jsonl", "no file or directory 'nowhere.jsonl'"),
        ("empty", "'empty' holds no file that can be read here. There are: .jsonl"),
        ("two", "neither a split 'train' nor just one. There are: dev, test.*call the files train-00000-of-00002"),
    ],
)
def test_a_source_that_is_not_there_is_refused(source, message, tmp_path):
    (tmp_path / "empty").mkdir()
    write_rows(tmp_path / "deep" / "train" / "a.jsonl", [{"text": "x"}])
    for name in ("dev", "test"):
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
