"""Raw data to parquet: disjoint splits, proven golds, whole or not at all."""

import importlib.util
import itertools
import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from suite import cleaning, columns, prepare, reasoning, rewards
from suite.data import arithmetic, files, lines, reading
from tests.rows import read_rows, write_rows


def prepared(tmp_path, *words) -> tuple[list[dict], list[dict]]:
    target = tmp_path / "out"
    prepare.main([*words, "--output_dir", str(target)])
    return read_rows(target / "train.parquet"), read_rows(target / "test.parquet")


def write_gsm8k(path, count: int):
    lines = [
        json.dumps(
            {"question": f"How much is {n} and 1?", "answer": f"It is {n}+1=<<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
        )
        for n in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_arithmetic_train_and_test_share_no_problem_whatever_the_seed():
    train = {r["prompt"][0]["content"] for s in range(3) for r in arithmetic.load("train", size=2000, seed=s)}
    test = {r["prompt"][0]["content"] for s in range(3) for r in arithmetic.load("test", test_size=500, seed=s)}
    assert train and test and not train & test


def test_every_arithmetic_problem_belongs_to_exactly_one_split_and_its_steps_are_true():
    for a, b in itertools.product(range(10, 100, 7), repeat=2):
        for sign in "+-":
            x, y = (a, b) if sign == "+" else (max(a, b), min(a, b))
            steps, result = arithmetic.work_out(x, sign, y)
            assert arithmetic.split_of(x, sign, y) in ("train", "test")
            assert result == (x + y if sign == "+" else x - y)
            for step in steps.splitlines():
                left, right = step.split("=")
                total = sum(int(t) for t in left.replace("-", "+-").split("+") if t)
                assert total == int(right), step


def test_of_a_pair_the_chosen_answer_is_right_and_the_rejected_one_never_and_a_chat_shows_no_work():
    for row in arithmetic.load("train", size=300, operations="+-", pairs=True, forgets=0.5):
        said = {name: row[name][0]["content"] for name in ("completion", "chosen", "rejected")}
        answers = {name: reasoning.final_answer(text) for name, text in said.items()}
        assert answers["chosen"] == row["solution"] != answers["rejected"]
        assert all(reasoning.thinking(text).count("\n") == 1 for text in said.values())  # two digits, two steps
    for row in arithmetic.load("train", size=20, at_once=True):
        said = row["completion"][0]["content"]
        assert reasoning.thinking(said) == arithmetic.AT_ONCE and reasoning.final_answer(said) == row["solution"]
    with pytest.raises(ValueError, match="digits: 1 must be at least 2 for pairs"):
        next(arithmetic.load("train", digits=1, pairs=True))


def test_of_a_longer_conversation_the_last_sum_counts_and_those_before_it_are_of_the_training_split():
    plain = [row["prompt"][-1] for row in arithmetic.load("test", test_size=50)]
    rows = list(arithmetic.load("test", test_size=50, turns=4, forgets=1.0))
    assert [row["prompt"][-1] for row in rows] == plain
    for row in rows:
        asked, said = row["prompt"][0:-1:2], row["prompt"][1::2]
        assert len(asked) == len(said) == 3
        for question, answer in zip(asked, said, strict=True):
            a, b = map(int, question["content"].split("+"))
            assert arithmetic.split_of(a, "+", b) == "train"
            assert reasoning.final_answer(answer["content"]) == str(a + b)
    with pytest.raises(ValueError, match="turns: 0 must be at least 1"):
        next(arithmetic.load("train", turns=0))


def test_arithmetic_is_endless_and_seeded():
    first = list(itertools.islice(arithmetic.problems("train", 0, 2, "+"), 20_000))
    assert len(first) == 20_000 and first[:50] == list(itertools.islice(arithmetic.problems("train", 0, 2, "+"), 50))
    assert first[:50] != list(itertools.islice(arithmetic.problems("train", 1, 2, "+"), 50))


def test_a_gsm8k_file_is_split_by_question_and_its_calculator_marks_are_gone(tmp_path):
    source = write_gsm8k(tmp_path / "train.jsonl", 50)
    train, test = prepared(tmp_path, "gsm8k", "--source", str(source), "--test_size", "10")
    assert (len(train), len(test)) == (40, 10)
    assert not {r["prompt"][1]["content"] for r in train} & {r["prompt"][1]["content"] for r in test}
    assert "<<" not in train[0]["completion"][0]["content"]
    assert train[0]["prompt"][0]["role"] == "system"
    score = rewards.load("accuracy")([r["completion"] for r in train], solution=[r["solution"] for r in train])
    assert set(score) == {1.0}


def test_a_reasoning_gym_task_is_scored_by_its_own_scorer(tmp_path):
    train, test = prepared(tmp_path, "reasoning_gym", "--task", "countdown", "--size", "20", "--test_size", "5")
    row = train[0]
    accuracy = rewards.load("accuracy")
    completions = [f"<answer>{row['solution']}</answer>", "<answer>1</answer>", "no answer"]
    scores = accuracy(completions, solution=[row["solution"]] * 3, task=[row["task"]] * 3)
    assert scores == [1.0, 0.0, 0.0]
    # Only the library's scorer knows that the same sum in other words is right, too.
    assert accuracy([f"<answer>({row['solution']})</answer>"], solution=["0"], task=[row["task"]]) == [1.0]
    assert len(train) == 20 and len(test) == 5


def test_a_gold_that_does_not_prove_itself_is_named_and_may_be_dropped(tmp_path):
    for split, golds in (("train", ["0", "", "2"]), ("test", ["0"])):
        asked = [[{"role": "user", "content": f"{split} question {n}"}] for n in range(len(golds))]
        rows = [{"prompt": q, "solution": gold} for q, gold in zip(asked, golds, strict=True)]
        write_rows(tmp_path / "raw" / f"{split}.jsonl", rows)
    words = ["files", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(
        ValueError, match=r"\(train\): 1 of 3 gold answers .* row 2, .*: solution '' earns None.*drop_unproven 1"
    ):
        prepare.main(words)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()
    prepare.main([*words, "--drop_unproven", "2"])
    assert len(read_rows(tmp_path / "out" / "train.parquet")) == 2


def chats(tmp_path, rows: list[dict], test: list[dict]) -> list[str]:
    """The words that prepare these two splits."""
    write_rows(tmp_path / "raw" / "train.jsonl", rows)
    write_rows(tmp_path / "raw" / "test.jsonl", test)
    return ["files", "--source", str(tmp_path / "raw"), "--output_dir", str(tmp_path / "out")]


def chat(question: str, answer: str) -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_what_was_left_out_is_told_in_a_table_and_in_prepare_json(tmp_path, capsys, tokenizer_dir):
    rows = [chat(f"Train question {n}", "12") for n in range(5)] + [
        chat("Train question 0", "12"),
        chat("Train question 5", "  "),
        chat("Train question 6", "<think>\nand on"),
        chat("Train question 7", "12 " * 200),
        chat("test   question, 1!", "12"),
        {"conversations": [{"from": "bing", "value": "?"}]},
    ]
    test = [chat("Test question 1", "12"), chat("Test question 1", "12"), chat("Train question 1", "an overlap")]
    words = [*chats(tmp_path, rows, test), "--tokenizer_name_or_path", str(tokenizer_dir), "--max_length", "100"]
    prepare.main(words)
    table = capsys.readouterr().out
    told = {line.split("  ")[0].strip() or line.split()[0]: line.split()[-2:] for line in table.splitlines()}
    assert told["read"] == ["11", "3"] and told["kept"] == ["4", "2"]
    assert "first too long in train: row 9, 'Train question 7': " in table and "100 are allowed" in table
    assert "first role 'bing' in train: " in table and "train.jsonl, line 11" in table
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())["splits"]
    assert record["train"]["rows"] == len(read_rows(tmp_path / "out" / "train.parquet")) == 4
    assert record["train"]["dropped"] == {
        "role 'bing'": 1,
        "empty": 1,
        "duplicate": 1,
        "unclosed think": 1,
        "too long": 1,
        "overlap with test": 2,
    }
    assert record["test"]["dropped"] == {"duplicate": 1}, "a test row never goes for what the training set holds"


def test_every_check_may_be_turned_off(tmp_path):
    rows = [chat("a", " "), chat("a", " "), chat("b", "<think>"), chat("c", "4")]
    words = chats(tmp_path, rows, [chat("c", "4")])
    off = ["--drop_empty", "--drop_duplicates", "--drop_unclosed_think"]
    prepare.main([*words, *(part for key in off for part in (key, "false")), "--overlap_ngram", "0"])
    assert len(read_rows(tmp_path / "out" / "train.parquet")) == 4


def test_a_split_that_loses_all_its_rows_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"files \(train\) has no rows left of 1: 1 overlap with test \(first: row 1"):
        prepare.main(chats(tmp_path, [chat("a", "4")], [chat("a", "4")]))
    assert not (tmp_path / "out").exists()


def test_a_row_of_another_shape_than_the_first_is_named(tmp_path):
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "1+2=", "completion": "3"}, {"prompt": "1+3="}]
    with pytest.raises(ValueError, match=r"files \(train\), row 3, has the columns prompt.*'prompt\+completion'"):
        prepare.main(chats(tmp_path, rows, [{"prompt": "5+5=", "completion": "10"}]))


def test_only_the_first_training_rows_are_kept_where_asked_for(tmp_path):
    rows = [chat("", "4"), *(chat(str(n), "4") for n in range(6))]
    prepare.main([*chats(tmp_path, rows, [chat(f"test {n}", "4") for n in range(5)]), "--max_rows", "3"])
    kept = [row["messages"][0]["content"] for row in read_rows(tmp_path / "out" / "train.parquet")]
    assert kept == ["0", "1", "2"] and len(read_rows(tmp_path / "out" / "test.parquet")) == 5


def test_a_column_may_show_its_type_in_a_later_batch_only(tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning, "BATCH", 2)
    rows = [{"prompt": f"{n}+0=", "completion": str(n), "hint": None if n < 4 else ["none"]} for n in range(6)]
    rows += [{"prompt": f"{n}+0=", "completion": str(n)} for n in range(6, 8)]
    prepare.main(chats(tmp_path, rows, [{"prompt": "x", "completion": "y"}]))
    assert [row["hint"] for row in read_rows(tmp_path / "out" / "train.parquet")] == [None] * 4 + [["none"]] * 2 + [
        None
    ] * 2


def test_the_system_prompt_goes_where_the_format_is_asked_for(tmp_path):
    words = chats(tmp_path, [chat("a", "4")], [chat("b", "4")])
    prepare.main(words)
    assert read_rows(tmp_path / "out" / "train.parquet")[0]["messages"][0]["role"] == "user"
    prepare.main([*words, "--system_prompt", "Be kind."])
    assert read_rows(tmp_path / "out" / "train.parquet")[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    for name, default in (("files", "none"), ("ultrafeedback", "none"), ("gsm8k", reasoning.SYSTEM_PROMPT)):
        assert prepare.arguments(name)[0](name=name).system_prompt == default


def test_the_same_rows_are_reused_and_other_rows_replace_them(tmp_path, capsys):
    prepared(tmp_path, "arithmetic", "--size", "30", "--test_size", "10")
    prepared(tmp_path, "arithmetic", "--size", "30", "--test_size", "10")
    assert "reusing" in capsys.readouterr().out
    train, _ = prepared(tmp_path, "arithmetic", "--size", "31", "--test_size", "10")
    assert len(train) == 31


def test_another_comment_in_the_file_of_a_data_set_makes_no_other_rows_and_another_constant_does(tmp_path, capsys):
    source = tmp_path / "sums.py"

    def reused(text: str) -> bool:
        source.write_text(text)
        spec = importlib.util.spec_from_file_location("sums", source)
        sys.modules["sums"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        prepare.write(prepare.PrepareArguments(name="arithmetic", output_dir=str(tmp_path / "out")), module.load, {})
        return "reusing them" in capsys.readouterr().out

    text = "def load(split):\n    yield {'text': f'{split} has 1 row'}\n"
    try:
        assert [reused(text), reused(text)] == [False, True]
        assert reused("# Some rows.\n" + text.replace("yield", '"""Rows."""\n\n    yield'))
        assert not reused(text.replace("1 row", "one row"))
        assert read_rows(tmp_path / "out" / "train.parquet") == [{"text": "train has one row"}]
    finally:
        sys.modules.pop("sums", None)


@pytest.mark.parametrize("module", [files, reading, lines, columns, cleaning])
def test_a_reader_or_a_check_that_has_changed_makes_the_rows_anew(module, tmp_path, monkeypatch, capsys):
    write_rows(tmp_path / "mine.jsonl", [{"text": str(n)} for n in range(5)])
    words = ["files", "--source", str(tmp_path / "mine.jsonl"), "--test_size", "2"]
    source = Path(module.__file__).read_text()

    def reused(text: str, name: str) -> bool:
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(module, "__file__", str(tmp_path / name))
        prepared(tmp_path, *words)
        return "reusing them" in capsys.readouterr().out

    assert [reused(source, "a.py"), reused(f"# A comment.\n{source}", "b.py")] == [False, True]
    assert not reused(f"{source}\nMOST = 3\n", "c.py")


def test_a_local_tokenizer_that_has_changed_counts_anew_and_weights_beside_it_do_not(tmp_path, tokenizer_dir, capsys):
    there = shutil.copytree(tokenizer_dir, tmp_path / "model")
    words = ["arithmetic", "--size", "20", "--test_size", "10", "--tokenizer_name_or_path", str(there)]
    limited = [*words, "--max_length", "1000"]

    def reused(*words) -> bool:
        prepared(tmp_path, *words)
        return "reusing them" in capsys.readouterr().out

    assert [reused(*limited), reused(*limited)] == [False, True]
    (there / "model.safetensors").write_bytes(b"trained on")
    assert reused(*limited)
    content = (there / "tokenizer.json").read_text()
    size = (there / "tokenizer.json").stat().st_size
    (there / "tokenizer.json").write_text(content.replace('"<|im_start|>"', '"<|im_begin|>"'))
    assert (there / "tokenizer.json").stat().st_size == size and not reused(*limited) and reused(*limited)
    template = there / "chat_template.jinja"
    template.write_text(template.read_text() + "{{ '.' }}")
    assert not reused(*limited) and reused(*limited)
    assert [reused(*words), reused(*words)] == [False, True]
    template.write_text(template.read_text() + "{{ '.' }}")
    assert reused(*words)  # nothing is counted


def test_what_an_earlier_attempt_has_proven_is_not_proven_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cleaning, "BATCH", 2)
    source = write_gsm8k(tmp_path / "train.jsonl", 12)
    good = source.read_text()
    words = ["gsm8k", "--source", str(source), "--test_size", "2", "--output_dir", "out"]
    journal = tmp_path / ".out.journal"
    prepare.main([*words[:-1], "straight"])
    last = read_rows(tmp_path / "straight" / "train.parquet")[-1]["solution"]
    source.write_text(good.replace(f'#### {last}"', '#### "'))
    with pytest.raises(ValueError, match="gold answers could not be verified"):
        prepare.main(words)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [journal.name]
    source.write_text(good)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) == 1 + 1 + 5, "what decides them, a batch of the test set, five of the training set"
    lines[2][1] = [[0, ["told by the journal", "so it was read"]]]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare.main(words)
    said = capsys.readouterr().out
    assert "which has checked 6 batches" in said and "first told by the journal in train: row 1, " in said
    assert not journal.exists()
    ours, straight = (read_rows(tmp_path / name / "train.parquet") for name in ("out", "straight"))
    assert ours == straight[1:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Which data set"),
        (["arithmetik"], "no data set 'arithmetik'.*Did you mean 'arithmetic'"),
        (["arithmetic", "--sise", "3"], "Unknown key 'sise'.*Did you mean 'size'"),
        (["arithmetic", "--operations", "*"], "operations: '\\*'"),
        (["arithmetic", "--digits", "1", "--test_size", "900"], "only about"),
        (["gsm8k", "--source", "./nowhere.jsonl"], "no file or directory './nowhere.jsonl'"),
        (["reasoning_gym", "--task", "countdwn"], "no reasoning-gym task 'countdwn'"),
        (["arithmetic", "--size", "0"], "has no rows"),
        (["arithmetic", "--size", "-1"], "neither size: -1 nor"),
        (["--name"], "Which data set"),
        (["arithmetic", "--max_length", "100"], "count tokens. Whose\\? Set tokenizer_name_or_path"),
        (["arithmetic", "--overlap_ngram", "-1"], "overlap_ngram: -1 must be at least 0"),
        (["arithmetic", "--max_rows", "0"], "max_rows: 0 must be at least 1"),
        (["arithmetic", "--max_prompt_length", "100"], "max_prompt_length.* no longer exists"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        prepare.main(words)


def test_a_broken_line_is_named(tmp_path, capsys):
    path = write_gsm8k(tmp_path / "train.jsonl", 5)
    path.write_text(path.read_text() + "{broken\n")
    prepare.main(["gsm8k", "--source", str(path), "--test_size", "2"])
    assert f"left out: {path}, line 6, column 2: not JSON" in capsys.readouterr().out


def test_a_broken_line_of_ones_own_files_is_counted(tmp_path):
    rows = "".join(f'{{"text": "{n}"}}\n' for n in range(5))
    (tmp_path / "mine.jsonl").write_text(rows + "{broken\n")
    words = ["--source", str(tmp_path / "mine.jsonl"), "--test_size", "2"]
    prepared(tmp_path, "files", *words)
    told = json.loads((tmp_path / "out" / "prepare.json").read_text())["splits"]["train"]
    assert told["read"] == 4 and told["rows"] == 3 and told["dropped"] == {"not JSON": 1}
    assert told["first"]["not JSON"].endswith("mine.jsonl, line 6, column 2")


def test_a_directory_that_prepare_did_not_write_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="did not write"):
        prepare.main(["arithmetic", "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    (tmp_path / "out" / "prepare.json").write_text("[]")  # somebody else's, too
    for taken in ("out", "out/thesis.txt"):
        with pytest.raises(ValueError, match="did not write"):
            prepare.main(["arithmetic", "--output_dir", str(tmp_path / taken)])
    with pytest.raises(ValueError, match="Cannot write .*thesis.txt/x"):
        prepare.main(["arithmetic", "--output_dir", str(tmp_path / "out" / "thesis.txt" / "x")])


@pytest.mark.parametrize("batch", [1000, 1])
@pytest.mark.parametrize("strange", ["a", 10**30, [1], {"x": {}}])
def test_what_cannot_be_in_one_table_is_told(strange, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(cleaning, "BATCH", batch)
    rows = [{"prompt": f"{n}?", "solution": "1", "id": strange if n == 3 else n} for n in range(5)]
    path = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(ValueError, match="train: .*column.*holds what cannot be in one table: .*one type in all rows"):
        prepare.main(["files", "--source", str(path), "--test_size", "1", "--output_dir", str(tmp_path / "out")])


def test_an_object_without_keys_is_nothing(tmp_path):
    rows = [{"prompt": f"{n}?", "solution": "1", "meta": {}} for n in range(5)]
    train, _ = prepared(tmp_path, "files", "--source", str(write_rows(tmp_path / "a.jsonl", rows)), "--test_size", "1")
    assert [row["meta"] for row in train] == [None] * 4


def test_all_of_gsm8k_proves_itself(shared_data, tmp_path):
    source = str(shared_data / "gsm8k" / "train.jsonl")
    train, test = prepared(tmp_path, "gsm8k", "--source", source, "--overlap_ngram", "0")
    assert len(train) + len(test) == 7473


def test_gsm8k_questions_that_differ_in_their_numbers_only_are_not_in_both_splits(shared_data, tmp_path):
    train, test = prepared(tmp_path, "gsm8k", "--source", str(shared_data / "gsm8k" / "train.jsonl"))
    assert len(test) == 500 and 6960 <= len(train) < 6973, "few, for most questions are their own"


def test_gsm8k_golds_are_not_mistaken_for_one_another(shared_data, tmp_path):
    train, _ = prepared(tmp_path, "gsm8k", "--source", str(shared_data / "gsm8k" / "train.jsonl"))
    rng, accuracy = random.Random(0), rewards.load("accuracy")
    for a, b in (rng.sample(train, 2) for _ in range(300)):
        if a["solution"].replace(",", "") != b["solution"].replace(",", ""):
            assert accuracy([a["completion"]], solution=[b["solution"]]) == [0.0]
