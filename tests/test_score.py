"""Rewards tried without a model: on rows with completions, and on completions made up from gold answers."""

import asyncio
import functools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from suite import rewards, score
from suite.rewards import proof, scoring
from tests.conftest import ON_CPU, run_suite, write_yaml

GOOD = "<think>a</think><answer>42</answer>"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_rows_come_back_with_a_column_per_reward(tmp_path, capsys):
    rows = [
        {"completion": GOOD, "solution": "42", "id": 1},
        {"completion": [{"role": "assistant", "content": "41"}], "solution": "42", "id": 2},
        {"completion": r"\boxed{7}", "solution": None, "id": 3},
    ]
    score.main([str(write_rows(tmp_path / "rows.jsonl", rows)), "--reward_funcs", "accuracy", "format"])
    scored = read(tmp_path / "rows.scored.jsonl")
    assert [row["accuracy"] for row in scored] == [1.0, 0.0, None]
    assert [row["format"] for row in scored] == [1.0, 0.0, 0.0]
    assert [{k: row[k] for k in ("completion", "solution", "id")} for row in scored] == rows
    said = capsys.readouterr().out
    assert "mean" in said and "timeouts" in said and "33.3%" in said and "accuracy: verify/unreadable_golds 1" in said


def test_parquet_in_and_out(tmp_path):
    rows = [{"completion": GOOD, "solution": "42"}, {"completion": "", "solution": "42"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    score.main([str(tmp_path / "rows.parquet"), "--reward_funcs", "accuracy"])
    scored = pyarrow.parquet.read_table(tmp_path / "rows.scored.parquet").to_pylist()
    assert [row["accuracy"] for row in scored] == [1.0, 0.0]


def test_completions_of_one_prompt_are_scored_together_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    rows = [
        {"prompt": f"p{i % 3}", "completion": GOOD, "solution": "42", "completion_ids": [0] * (10 + i)}
        for i in range(6)
    ]
    scored = scoring.score_rows(rows, {"length": rewards.load("length")})["length"].values
    assert scored == [0.5, 0.5, 0.5, -0.5, -0.5, -0.5]


def test_lengths_without_a_tokenizer_are_words_and_it_says_so(tmp_path, capsys):
    rows = [{"completion": "a b c d", "solution": "42"}]
    words = [
        "--reward_funcs",
        "overlong",
        "--reward_kwargs",
        '{"overlong": {"max_completion_len": 6, "soft_punish_cache": 4}}',
    ]
    score.main([str(write_rows(tmp_path / "rows.jsonl", rows)), *words])
    assert "counted in words" in capsys.readouterr().out
    assert read(tmp_path / "rows.scored.jsonl")[0]["overlong"] == -0.5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"completion": "a", "solution": "1"}', "", '{"completion": '], "line 3: not JSON"),
        (['{"completion": "a", "solution": "1"}', "[1]"], "line 2: a row must be a JSON object"),
        (['{"completion": "a", "solution": "1"}', '{"solution": "1"}'], "line 2: needs a `completion`"),
        (['{"completion": 7, "solution": "1"}'], "line 1: needs a `completion`.*has 7 there"),
        (['{"completion": "a", "gold": "1"}'], "'accuracy' needs a column `solution`"),
        (
            ['{"completion": "a", "solution": "1"}', '{"completion": "a"}'],
            "row 2: the reward 'accuracy' needs a column",
        ),
        (['{"completion": "a", "solution": "1", "tolerance": 1}'], "column `tolerance` has the name of a knob"),
        (['{"completion": "a", "solution": "1", "completions": 1}'], "row 1: the column `completions` has a name that"),
        ([""], "has no rows"),
    ],
)
def test_a_broken_row_is_named_and_nothing_is_written(tmp_path, lines, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        score.main([str(path), "--reward_funcs", "accuracy"])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Say what to score"),
        (["nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["rows.csv"], "must end in .jsonl or .parquet"),
        (["rows.jsonl", "--prove", "data/x"], "Say what to score"),
        (["rows.jsonl", "--reward_funcs", "acuracy"], "Did you mean 'accuracy'"),
        (["rows.jsonl", "--reward_funcs", "accuracy", "format", "--reward_weights", "1"], "1 numbers for 2 rewards"),
        (["rows.jsonl", "--reward_fncs", "accuracy"], "Unknown key 'reward_fncs'"),
        (["rows.jsonl", "--reward_funcs", "cosine"], "cosine needs .*max_len"),
        (["rows.jsonl", "--max_rows", "0"], "max_rows: 0"),
        (["rows.jsonl", "--output_file", "x.txt"], "must end in .jsonl or .parquet"),
        (["--prove", "data/nowhere"], "no 'data/nowhere/train.parquet'"),
        (
            ["rows.jsonl", "--reward_funcs", "tests.test_score.broken_reward"],
            r"gave \[inf\] \(list of 1\), whose entry 1 is inf",
        ),
        (["rows.jsonl", "--reward_funcs", "./no-model"], "no checkpoint directory 'no-model'"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, words, message):
    write_rows(tmp_path / "rows.jsonl", [{"completion": GOOD, "solution": "42"}])
    (tmp_path / "rows.csv").write_text("completion\n1\n")
    with pytest.raises(ValueError, match=message):
        score.main(words)
    assert {p.name for p in tmp_path.iterdir()} == {"rows.jsonl", "rows.csv"}


def test_an_output_that_exists_is_not_overwritten(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"completion": GOOD, "solution": "42"}])
    score.main([str(path), "--reward_funcs", "format"])
    with pytest.raises(ValueError, match="exists. Name another place"):
        score.main([str(path), "--reward_funcs", "format"])


def broken_reward(completions, **columns):
    return [float("inf")] * len(completions)


def generous_reward(completions, solution, **columns):
    """Judges nothing: 1 for whatever was said."""
    return [1.0 for _ in completions]


def shy_reward(completions, solution, **columns):
    """Right answers are right, and about all others it says nothing."""
    return [v or None for v in rewards.load("accuracy")(completions, solution)]


def silent_reward(completions, solution, **columns):
    return [0.0 for _ in completions]


def verbose_reward(completions, **columns):
    """More for more: at a high weight the doubled completion beats the right one."""
    return [float(len(said[0]["content"])) for said in completions]  # a conversation, as GRPO has it


def test_the_rewards_of_a_run_prove_themselves(arithmetic_dir, capsys):
    words = ["--prove", str(arithmetic_dir), "--reward_funcs", "accuracy", "format", "partial", "tags"]
    score.main([*words, "--reward_weights", "1", "0.2", "0.5", "0.1"])
    said = capsys.readouterr().out
    row = next(line.split() for line in said.splitlines() if line.startswith("accuracy"))
    assert row[1:7] == ["1.000", "0.000", "0.000", "0.000", "0.000", "0.000"] and float(row[7]) > 0.3
    assert "Proven on 200 rows" in said


@pytest.mark.parametrize(
    ("reward", "weights", "message"),
    [
        ("generous", ["1"], "generous_reward gives no less than gold to 'other' 1 in row 1 and 199 more"),
        ("shy", ["1"], "shy_reward gives no less than gold to 'other' None in row 1 and 199 more, 'empty' None"),
        ("silent", ["1"], "silent_reward gives 0 and not 1 to the gold answer of row 1"),
        ("accuracy verbose", ["1", "1"], "weighted sum gives no less than gold to .*'doubled'"),
    ],
)
def test_a_reward_that_cannot_be_trusted_is_found_out(arithmetic_dir, reward, weights, message):
    names = [n if n == "accuracy" else f"tests.test_score.{n}_reward" for n in reward.split()]
    with pytest.raises(ValueError, match=message):
        score.main(["--prove", str(arithmetic_dir), "--reward_funcs", *names, "--reward_weights", *weights])


def test_a_schedule_is_proven_at_both_ends(arithmetic_dir):
    words = ["--prove", str(arithmetic_dir), "--reward_funcs", "accuracy", "format", "--reward_weights", "1", "0"]
    schedule = {"accuracy": {"from": 1.0, "to": 0.0, "start": 0, "end": 10}}
    with pytest.raises(ValueError, match=r"weighted sum \(end\) gives no less than gold to 'other' 0"):
        score.main([*words, "--reward_schedule", json.dumps(schedule)])


def test_an_unreadable_gold_is_found_before_a_gpu_is_spent(tmp_path):
    rows = [{"prompt": f"{n}", "solution": s} for n, s in enumerate(["1", "2", "", "4"])]
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data/train.parquet")
    with pytest.raises(ValueError, match="accuracy gives None to the gold answer of row 3"):
        score.main(["--prove", "data", "--reward_funcs", "accuracy"])


def test_every_case_is_what_its_name_says():
    rows = [{"solution": "#### 7"}, {"solution": r"so \boxed{\frac{1}{2}}"}, {"solution": "0.5"}]
    for row, cases in zip(rows, proof.completions(rows), strict=True):
        verdicts = rewards.load("accuracy")(list(cases.values()), solution=[row["solution"]] * len(cases))
        assert verdicts == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0] and list(cases) == list(proof.CASES)


def test_golds_that_are_all_alike_prove_nothing():
    with pytest.raises(ValueError, match="no other row with another gold"):
        proof.completions([{"solution": "1/2"}, {"solution": "0.5"}])


@pytest.mark.slow
def test_the_config_of_a_grpo_run_is_scored_as_it_will_be_trained(arithmetic_dir, miniqwen_dir, tmp_path):
    config = write_yaml(
        tmp_path / "grpo.yaml",
        model_name_or_path=str(miniqwen_dir),
        dataset_name=str(arithmetic_dir),
        reward_funcs=["accuracy", "format", "overlong"],
        reward_weights=[1.0, 0.1, 0.1],
        reward_kwargs={"overlong": {"max_completion_len": 200, "soft_punish_cache": 20}},
        bf16=True,
        output_dir="runs/x",
        learning_rate="1e-6",
    )
    done = run_suite("score", "--prove", arithmetic_dir, "--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "gold comes first everywhere" in done.stdout and "counted in words" not in done.stdout
    config.write_text(config.read_text().replace("reward_weights", "reward_weigths"))
    done = run_suite("score", "--prove", arithmetic_dir, "--config", config, cwd=tmp_path)
    assert done.returncode == 2 and "Did you mean 'reward_weights'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr  # libraries may warn of what they lack, ahead of our one line


@pytest.mark.slow
def test_a_reward_model_scores_as_it_does_inside_grpo(tokenizer_dir, miniqwen_dir, arithmetic_dir, tmp_path):
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

    from suite.engine.reward_model import RewardModel
    from tests.conftest import TINY

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **TINY)
    model = Qwen2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    prompts = [[{"role": "user", "content": "1+1"}], [{"role": "user", "content": "12+34 is"}]]
    said = [[{"role": "assistant", "content": "2"}], [{"role": "assistant", "content": "46"}]]
    values = RewardModel(str(tmp_path / "judge"))(prompts=prompts, completions=said)
    for prompt, completion, value in zip(prompts, said, values, strict=True):
        ids = tokenizer(tokenizer.apply_chat_template(prompt + completion, tokenize=False), return_tensors="pt")
        assert value == pytest.approx(model(**ids).logits[0, 0].item(), abs=1e-5)
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, said, strict=True)]
    write_rows(tmp_path / "rows.jsonl", rows)
    score.main([str(tmp_path / "rows.jsonl"), "--reward_funcs", str(tmp_path / "judge")])
    assert [row[str(tmp_path / "judge")] for row in read(tmp_path / "rows.scored.jsonl")] == pytest.approx(values)
    run = {"model_name_or_path": miniqwen_dir, "dataset_name": arithmetic_dir, "output_dir": "run", "max_steps": 1,
           "num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 8, "logging_steps": 1,
           "reward_funcs": ["accuracy", "./judge"]}  # fmt: skip
    config = write_yaml(tmp_path / "grpo.yaml", **{k: str(v) if isinstance(v, Path) else v for k, v in run.items()})
    done = run_suite("grpo", "--config", config, *ON_CPU, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"][0]
    assert logged["reward"] == pytest.approx(
        logged["rewards/accuracy_reward/mean"] + logged["rewards/judge/mean"], abs=1e-5
    )


R1_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)


@pytest.fixture
def opening_tokenizer(tokenizer_dir, tmp_path) -> Path:
    """A tokenizer whose template opens <think> behind every prompt, as R1-Distill's does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokenizer.chat_template = R1_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "r1")
    return tmp_path / "r1"


def test_a_template_that_opens_think_is_proven_and_scored_as_such(opening_tokenizer, arithmetic_dir, tmp_path, capsys):
    words = ["--reward_funcs", "accuracy", "format", "--model_name_or_path", str(opening_tokenizer)]
    score.main(["--prove", str(arithmetic_dir), *words])
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("format"))
    assert row[1:3] == ["1.000", "1.000"]
    inside = "6*7=42</think><answer>42</answer>"
    talk = [{"role": "user", "content": "6*7"}]
    rows = [{"prompt": p, "completion": c, "solution": "42"} for p, c in ((talk, inside), (talk, GOOD))]
    score.main([str(write_rows(tmp_path / "rows.jsonl", rows)), *words])
    assert [row["format"] for row in read(tmp_path / "rows.scored.jsonl")] == [1.0, 0.0]


def test_a_plain_prompt_goes_through_no_template(opening_tokenizer, tmp_path):
    rows = [{"prompt": "6*7=", "completion": GOOD, "solution": "42"}]
    words = ["--reward_funcs", "format", "--model_name_or_path", str(opening_tokenizer)]
    score.main([str(write_rows(tmp_path / "rows.jsonl", rows)), *words])
    assert read(tmp_path / "rows.scored.jsonl")[0]["format"] == 1.0


def test_a_prompt_that_ends_in_think_is_proven_as_such(tmp_path, capsys):
    rows = [{"prompt": f"{n}+1=\n<think>\n", "solution": str(n + 1)} for n in range(4)]
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data/train.parquet")
    score.main(["--prove", "data", "--reward_funcs", "accuracy", "format"])
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("format"))
    assert row[1] == "1.000"


def test_golds_that_are_mostly_alike_still_find_another(tmp_path, capsys):
    rows = [{"prompt": f"{n}", "solution": "no" if n == 37 else "yes"} for n in range(40)]
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data/train.parquet")
    score.main(["--prove", "data", "--reward_funcs", "accuracy"])
    assert "gold comes first everywhere" in capsys.readouterr().out


def test_a_run_has_one_verdict():
    kwargs = {"accuracy": {"tolerance": 0.01}, "cosine": {"max_len": 10}}
    funcs = rewards.load_all(["accuracy", "partial", "cosine"], kwargs)
    given = {"solution": ["3.1416"], "completion_ids": [[]], "prompts": ["p"]}
    assert [func(["<answer>3.14</answer>"], **given)[0] for func in funcs] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("overlong", {"max_completion_len": 16, "soft_punish_cache": 64}, "overlong.soft_punish_cache: 64"),
        ("cosine", {"max_len": -4}, "cosine.max_len: -4"),
        ("accuracy", {"seconds": 0}, "accuracy.seconds: 0"),
        ("partial", {"right": 0.0}, "partial.right: 0.0"),
    ],
)
def test_a_knob_out_of_range_is_found_when_the_reward_is_loaded(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        rewards.load(name, knobs)


@pytest.mark.parametrize("name", ["math.pi", ".x", "collections.OrderedDict", "tests.test_score.read"])
def test_a_dotted_path_to_something_else_is_refused(name, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"completion": GOOD, "solution": "42"}])
    with pytest.raises(ValueError, match="reward"):
        score.main(["rows.jsonl", "--reward_funcs", name])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"completion": "a", "prompt": None}], "line 1: needs a `prompt`"),
        ([{"completion": "a", "prompt": "p"}, {"completion": "a"}], "line 2: some rows have a `prompt`"),
        ([{"completion": "a", "log_metric": 1}], "column `log_metric` has a name that TRL passes"),
    ],
)
def test_odd_rows_are_refused_in_one_line(tmp_path, rows, message):
    path = write_rows(tmp_path / "rows.jsonl", [{"solution": "1", **row} for row in rows])
    with pytest.raises(ValueError, match=message):
        score.main([str(path), "--reward_funcs", "accuracy"])


def test_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"completion": GOOD, "solution": "42"}])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Cannot write file/x.jsonl: .*exists: 'file'"):
        score.main([str(path), "--reward_funcs", "tests.test_score.never_reward", "--output_file", "file/x.jsonl"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["rows.csv"], "must end in .jsonl or .parquet"),
        (["rows.jsonl", "--output_file", "rows.csv"], "must end in .jsonl or .parquet"),
        (["rows.jsonl", "--output_file", "rows.jsonl"], "exists. Name another place"),
        (["rows.jsonl", "--output_file", "rows.csv/x.jsonl"], "Cannot write rows.csv/x.jsonl"),
        (["--prove", "nowhere"], "no 'nowhere/train.parquet'"),
    ],
)
def test_a_reward_model_is_loaded_behind_what_is_told_without_it(words, message, tmp_path, monkeypatch):
    import numpy
    from safetensors.numpy import save_file

    from suite.engine import reward_model

    monkeypatch.setattr(reward_model, "RewardModel", None)  # nobody is to be made
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text('{"architectures": ["Qwen2ForSequenceClassification"]}')
    save_file({"score.weight": numpy.zeros(1)}, tmp_path / "judge" / "model.safetensors")
    write_rows(tmp_path / "rows.jsonl", [{"completion": GOOD, "solution": "42"}])
    (tmp_path / "rows.csv").write_text("completion\n1\n")
    with pytest.raises(ValueError, match=message):
        score.main([*words, "--reward_funcs", "./judge"])


def never_reward(completions, **columns):
    raise AssertionError("scored before the output was known to be writable")


def test_what_does_not_fit_into_parquet_says_so_and_leaves_nothing(tmp_path):
    rows = [{"completion": GOOD, "solution": "42", "x": 1}, {"completion": GOOD, "solution": "42", "x": "one"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="do not fit into parquet"):
        score.main([str(path), "--reward_funcs", "accuracy", "--output_file", "out.parquet"])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_half_a_character_survives_scoring(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completion": "cut \\ud83d", "solution": "42"}\n{"completion": "中文", "solution": "42"}\n')
    score.main([str(path), "--reward_funcs", "accuracy"])
    assert [row["completion"] for row in read(tmp_path / "rows.scored.jsonl")] == ["cut \ud83d", "中文"]


def halting_reward(completions, solution, **columns):
    """Ends as Ctrl-C does, at the third chunk."""
    halting_reward.calls += 1
    if halting_reward.calls == halting_reward.until:
        raise KeyboardInterrupt
    return [float(len(said)) for said in completions]


def test_what_is_scored_is_not_scored_again_and_the_file_is_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    words = [str(write_rows(tmp_path / "rows.jsonl", [{"completion": "x" * n, "solution": "1"} for n in range(8)]))]
    words += ["--reward_funcs", "tests.test_score.halting_reward", "accuracy", "--output_file", "out/scored.jsonl"]
    halting_reward.calls, halting_reward.until = 0, 3
    with pytest.raises(KeyboardInterrupt, match="What is done is kept: the same command goes on."):
        score.main(words)
    assert [path.name for path in Path("out").iterdir()] == [".scored.jsonl.journal"]
    halting_reward.calls, halting_reward.until = 0, None
    score.main(words)
    assert halting_reward.calls == 2 and "Going on from an earlier attempt" in capsys.readouterr().out
    assert [path.name for path in Path("out").iterdir()] == ["scored.jsonl"]
    score.main([*words[:-1], "straight.jsonl"])
    assert halting_reward.calls == 6
    assert Path("straight.jsonl").read_bytes() == Path("out/scored.jsonl").read_bytes()
    assert "Going on" not in capsys.readouterr().out


def test_scores_of_other_rows_or_other_rewards_are_not_taken_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    rows = [{"completion": "x" * n, "solution": "1"} for n in range(8)]
    name = "tests.test_score.halting_reward"
    for changed in ([str(write_rows(tmp_path / "b.jsonl", rows[1:])), "--reward_funcs", name],
                    [str(tmp_path / "a.jsonl"), "--reward_funcs", name, "accuracy"]):  # fmt: skip
        write_rows(tmp_path / "a.jsonl", rows)
        halting_reward.calls, halting_reward.until = 0, 3
        with pytest.raises(KeyboardInterrupt):
            score.main([str(tmp_path / "a.jsonl"), "--reward_funcs", name, "--output_file", "out.jsonl"])
        halting_reward.until = None
        score.main([*changed, "--output_file", "out.jsonl"])
        assert "Going on" not in capsys.readouterr().out
        Path("out.jsonl").unlink()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, r"gave None \(NoneType\)\. It must give a list of 3, as many as there were completions: for each a fin"),
        (0.5, r"gave 0\.5 \(float\)"),
        ([1.0, 2.0], r"gave \[1\.0, 2\.0\] \(list of 2\)\."),
        ([1, 2, 3, 4], r"\(list of 4\)"),
        (["1", "2", "3"], r"\(list of 3\), whose entry 1 is '1'\."),
        ("123", r"gave '123' \(str\)"),
        ([1, None, float("inf")], r"whose entry 3 is inf"),
        ([1, [2], 3], r"whose entry 2 is \[2\]"),
        ({0: 1, 1: 1, 2: 1}, r"\(dict\)"),
    ],
)
def test_what_is_no_list_of_numbers_is_told_with_the_name_of_the_reward(given, told):
    def own(completions, *, knob=1, **columns):
        return given

    async def own_later(completions, **columns):
        return given

    batch = {"completions": ["a", "b", "c"]}
    told = f"The reward 'my.own' {told}" if told.startswith("gave") else f"The reward 'my.own' gave .*{told}"
    with pytest.raises(ValueError, match=told):
        scoring.call("my.own", own, batch, {})
    for func in (own, functools.partial(own, knob=2)):
        with pytest.raises(ValueError, match=told):
            scoring.watched("my.own", func)(prompts=[], **batch)
    with pytest.raises(ValueError, match=told):
        asyncio.run(scoring.watched("my.own", own_later)(prompts=[], **batch))


def test_a_reward_that_is_watched_gives_what_it_gave_and_is_to_trl_what_it_was():
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    from trl.trainer.utils import get_callable_name, is_async_callable

    async def later(completions, *, knob=1, **columns):
        return [knob, None, True]

    def own(completions, *, form=list, **columns):
        return form([1, 0, 0.5])

    for func in (later, functools.partial(later, knob=1), own, functools.partial(own, form=tuple)):
        watched = scoring.watched("my.own", func)
        assert get_callable_name(watched) == get_callable_name(func)
        assert is_async_callable(watched) == is_async_callable(func)
    assert asyncio.run(scoring.watched("my.later", later)(completions="abc", prompts="abc")) == [1.0, None, 1.0]
    for form in (list, tuple, iter, numpy.array, torch.tensor):
        watched = scoring.watched("my.own", functools.partial(own, form=form))
        assert watched(completions="abc", prompts="abc", extra=[1]) == [1.0, 0.0, 0.5]
    assert scoring.watched("./judge", "./judge") == "./judge"


def test_rewards_of_one_name_are_told_apart_in_the_logs():
    names = ["accuracy", "format", "mine.accuracy_reward", "other.accuracy", "owner/judge", "./runs/judge", "a.brevity"]
    logged = ["accuracy_reward", "format_reward", "accuracy_reward", "accuracy", "judge", "judge", "brevity"]
    found = ["accuracy_reward", "format_reward", *names[2:6], "brevity"]
    assert scoring.told_apart(names, logged) == found


def test_a_reward_called_as_a_column_of_the_table_of_completions_is_logged_in_full():
    """Not as the column whose place its numbers would take, in silence, or that would take theirs."""
    taken = [f"mine.{column}" for column in scoring.TABLE] + ["mine.step_reward", "owner/answer"]
    logged = [name.replace("/", ".").rpartition(".")[2] for name in taken]
    assert scoring.told_apart(["accuracy", *taken], ["accuracy_reward", *logged]) == ["accuracy_reward", *taken]
