"""Raw data to parquet: disjoint splits, proven golds, whole or not at all."""

import itertools
import json
import random

import pyarrow.parquet
import pytest

from suite import data, prepare, rewards
from suite.data import arithmetic


def rows_of(path) -> list[dict]:
    return pyarrow.parquet.read_table(path).to_pylist()


def prepared(tmp_path, *words) -> tuple[list[dict], list[dict]]:
    target = tmp_path / "out"
    prepare.main([*words, "--output_dir", str(target)])
    return rows_of(target / "train.parquet"), rows_of(target / "test.parquet")


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


def test_a_gold_that_does_not_prove_itself_is_named_and_may_be_dropped(tmp_path, monkeypatch):
    def load(split, *, size: int = 3):
        """One gold answer that nobody can read."""
        for n in range(size):
            yield {"prompt": [{"role": "user", "content": f"q{n}"}], "solution": "" if n == 1 else str(n)}

    monkeypatch.setattr(data, "load", lambda name: load)
    with pytest.raises(
        ValueError, match=r"\(train\): 1 of 3 gold answers .* row 2: solution '' earns None.*drop_unproven 1"
    ):
        prepare.main(["broken", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    prepare.main(["broken", "--output_dir", str(tmp_path / "out"), "--drop_unproven", "2"])
    assert len(rows_of(tmp_path / "out" / "train.parquet")) == 2


def test_the_same_rows_are_reused_and_other_rows_replace_them(tmp_path, capsys):
    prepared(tmp_path, "arithmetic", "--size", "30", "--test_size", "10")
    prepared(tmp_path, "arithmetic", "--size", "30", "--test_size", "10")
    assert "reusing" in capsys.readouterr().out
    train, _ = prepared(tmp_path, "arithmetic", "--size", "31", "--test_size", "10")
    assert len(train) == 31


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
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        prepare.main(words)


def test_a_broken_line_is_named(tmp_path):
    path = write_gsm8k(tmp_path / "train.jsonl", 5)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(ValueError, match="line 6: not JSON"):
        prepare.main(["gsm8k", "--source", str(path), "--test_size", "2"])


def test_a_directory_that_prepare_did_not_write_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="did not write"):
        prepare.main(["arithmetic", "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_all_of_gsm8k_proves_itself(shared_data, tmp_path):
    train, test = prepared(tmp_path, "gsm8k", "--source", str(shared_data / "gsm8k" / "train.jsonl"))
    assert len(train) + len(test) == 7473


def test_gsm8k_golds_are_not_mistaken_for_one_another(shared_data, tmp_path):
    train, _ = prepared(tmp_path, "gsm8k", "--source", str(shared_data / "gsm8k" / "train.jsonl"))
    rng, accuracy = random.Random(0), rewards.load("accuracy")
    for a, b in (rng.sample(train, 2) for _ in range(300)):
        if a["solution"].replace(",", "") != b["solution"].replace(",", ""):
            assert accuracy([a["completion"]], solution=[b["solution"]]) == [0.0]
