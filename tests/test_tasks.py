"""Benchmarks: what each file makes of rows in their published layout, how their answers are judged, and with what
examples before them they are asked."""

import json
import random
import textwrap
from pathlib import Path

import pytest

from suite import columns, data, engine, judging, prepare, reasoning, rewards, score, shots, source
from tests.rows import read_rows, write_rows

BENCHMARKS = [name for name in data.names() if data.is_benchmark(name)]


def math500(n: int) -> dict:
    return {
        "problem": f"What is $2+{n}$?",
        "solution": f"We add, and get $\\boxed{{{n + 2}}}$.",
        "answer": str(n + 2),
        "subject": ("Algebra", "Number Theory")[n % 2],
        "level": 1 + n % 5,
        "unique_id": f"test/algebra/{n}.json",
    }


def aime(n: int) -> dict:
    url = f"https://artofproblemsolving.com/wiki/index.php/{2022 + n % 3}_AIME_I_Problems/Problem_{n}"
    return {"id": n, "problem": f"Find $2+{n}$.", "solution": "We add.", "answer": f"{n + 2:03}", "url": url}


def mmlu(n: int) -> dict:
    choices = [str(n + 2), str(n + 3), "neither", str(n)]
    subject = ("anatomy", "virology")[n % 2]
    return {"question": f"How much is two and {n}?", "subject": subject, "choices": choices, "answer": 0}


def mmlu_pro(n: int) -> dict:
    worked = f"A: Let's think step by step. Two and {n} is {n + 2}. The answer is (B)."
    return {
        "question_id": n,
        "question": f"How much is two and {n}?",
        "options": [str(n), str(n + 2), "more", "N/A"],
        "answer": "B",
        "answer_index": 1,
        "cot_content": worked if n < 3 else "",
        "category": ("math", "law")[n % 2],
        "src": "ori_mmlu-abstract_algebra",
    }


def humaneval(n: int) -> dict:
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": "import math\n\n\ndef helper(x):\n    return x + 1\n\n\n"
        f'def add_{n}(x: int) -> int:\n    """ Add {n + 1} to x.\n    """\n',
        "canonical_solution": f"    for _ in range({n + 1}):\n        x = helper(x)\n    return math.floor(x)\n",
        "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate(1) == {n + 2}\n",
        "entry_point": f"add_{n}",
    }


MAKE = {make.__name__: make for make in (math500, aime, mmlu, mmlu_pro, humaneval)}
EXAMPLES = {"mmlu": "dev", "mmlu_pro": "validation"}


def prepared(name: str, tmp_path: Path, *words: str) -> dict[str, list[dict]]:
    """Split -> rows, of ten toy rows of a benchmark, and three to show where it has such, as `suite prepare` leaves
    them."""
    write_rows(tmp_path / "raw/test-00000-of-00001.parquet", [MAKE[name](n) for n in range(10)])
    if name in EXAMPLES:
        write_rows(tmp_path / f"raw/{EXAMPLES[name]}.parquet", [MAKE[name](n) for n in range(20, 24)])
        write_rows(tmp_path / "raw/auxiliary_train.parquet", [MAKE[name](n) for n in range(30, 33)])
    prepare.main([name, "--source", str(tmp_path / "raw"), *words])
    return {path.stem: read_rows(path) for path in Path("data", name).glob("*.parquet")}


def test_every_benchmark_is_tried_here():
    assert set(BENCHMARKS) == set(MAKE)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_in_its_published_layout_is_asked_whole_and_every_gold_proves_itself(name, tmp_path, capsys):
    splits = prepared(name, tmp_path)
    assert {split: len(rows) for split, rows in splits.items()} == {"test": 10} | (
        {"train": 4} if name in EXAMPLES else {}
    )
    for row in splits["test"]:
        assert columns.shape_of(row, ("prompt+solution",)) and "completion" not in row
        assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
        assert "N/A" not in row["prompt"][1]["content"]
    capsys.readouterr()
    prepare.main([name, "--source", str(tmp_path / "raw")])
    assert "holds these very rows already" in capsys.readouterr().out
    told = json.loads(Path("data", name, "prepare.json").read_text())["splits"]
    assert {split: count["rows"] for split, count in told.items()} == {s: len(rows) for s, rows in splits.items()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_one_file_of_a_benchmark_is_all_of_its_test_set(name, tmp_path):
    path = write_rows(tmp_path / "some-name.jsonl", [MAKE[name](n) for n in range(4)])
    prepare.main([name, "--source", str(path)])
    assert len(read_rows(f"data/{name}/test.parquet")) == 4 and not Path(f"data/{name}/train.parquet").exists()


@pytest.mark.parametrize(("name", "reward"), [("math500", "accuracy"), ("humaneval", "code")])
def test_rewards_prove_themselves_on_a_benchmark_without_training_rows(name, reward, tmp_path, capsys):
    prepared(name, tmp_path)
    score.main(["--prove", f"data/{name}", "--reward_funcs", reward, "format"])
    assert "Proven on 10 rows" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_may_lack_a_column_that_another_has(streaming, tmp_path):
    """Each is read on its own, and a broken one only where it is wanted."""
    from trl import DatasetMixtureConfig, ScriptArguments

    write_rows(tmp_path / "raw/test.parquet", [mmlu_pro(n) for n in range(10, 20)])
    write_rows(tmp_path / "raw/validation.parquet", [mmlu_pro(n) for n in range(1, 3)])
    prepare.main(["mmlu_pro", "--source", str(tmp_path / "raw")])
    train, test = (read_rows(f"data/mmlu_pro/{split}.parquet") for split in ("train", "test"))
    assert "completion" in train[0] and "completion" not in test[0]
    script = ScriptArguments("data/mmlu_pro", dataset_streaming=streaming)
    found = source.rows(script, DatasetMixtureConfig(), ("prompt+solution",), with_test=True, every_column=True)
    assert [list(rows) for rows in found] == [train, test]
    Path("data/mmlu_pro/train.parquet").write_bytes(b"PAR1")
    script.dataset_train_split = "test"
    assert list(source.rows(script, DatasetMixtureConfig(), ("prompt+solution",), every_column=True)[0]) == test


def test_only_a_benchmark_may_be_without_training_rows(tmp_path):
    path = write_rows(tmp_path / "one.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    with pytest.raises(ValueError, match="too few to divide it"):
        prepare.main(["gsm8k", "--source", str(path)])
    with pytest.raises(ValueError, match="has no rows"):
        prepare.main(["arithmetic", "--size", "0"])


def test_a_benchmark_without_a_split_to_ask_is_refused(tmp_path):
    for name in ("dev", "other"):
        write_rows(tmp_path / f"raw/{name}.jsonl", [mmlu(1)])
    with pytest.raises(ValueError, match="neither a split 'test' nor just one. There are: dev, other"):
        prepare.main(["mmlu", "--source", str(tmp_path / "raw")])


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("math500", {"problem": "1?", "answer": "1", "level": 1}, "no column `subject`"),
        ("mmlu", {**mmlu(1), "answer": 4}, "`answer` must be one of A, B, C, D, or its number from 0, and is '4'"),
        ("mmlu", {**mmlu(1), "choices": "1, 2"}, "`choices` must list 2 to 10 options, and is 1, 2"),
        ("mmlu_pro", {**mmlu_pro(1), "answer": "D"}, "`answer` must be one of A, B, C"),  # the filler is no option
        ("mmlu_pro", {**mmlu_pro(1), "options": ["N/A"] * 3}, "`answer` must be one of "),
        ("humaneval", {"prompt": "def f(): ..."}, "no column `test`"),
    ],
)
def test_a_row_in_another_layout_is_named_by_its_place(name, row, message, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=f"rows.jsonl, line 1: .*{message}"):
        list(data.load(name)("test", source=str(path)))


def test_a_subject_may_be_without_examples(tmp_path):
    write_rows(tmp_path / "raw/test.jsonl", [mmlu(0), mmlu(1)])
    write_rows(tmp_path / "raw/dev.jsonl", [mmlu(2)])
    prepare.main(["mmlu", "--source", str(tmp_path / "raw"), "--subset", "virology"])
    assert len(read_rows("data/mmlu/test.parquet")) == 1 and not Path("data/mmlu/train.parquet").exists()


def test_letters_are_asked_for_and_the_text_of_an_option_is_as_good(tmp_path):
    row = prepared("mmlu", tmp_path)["test"][1]
    assert row["prompt"][1]["content"] == "How much is two and 1?\nA. 3\nB. 4\nC. neither\nD. 1"
    said = [f"<answer>{answer}</answer>" for answer in ("A", "(A)", "A. 3", "3", "B", "4", "neither")]
    given = {name: [row[name]] * len(said) for name in ("solution", "choices")}
    assert rewards.load("accuracy")(said, **given) == [1.0] * 4 + [0.0] * 3


def test_one_subject_may_be_asked_alone(tmp_path):
    assert {row["subject"] for row in prepared("mmlu", tmp_path, "--subset", "anatomy")["test"]} == {"anatomy"}
    with pytest.raises(ValueError, match="no question is about 'astrology'. There are: all, law, math"):
        prepared("mmlu_pro", tmp_path / "pro", "--subset", "astrology")


def test_a_year_of_aime_is_found_in_its_column_or_its_address(tmp_path):
    rows = prepared("aime", tmp_path, "--year", "2023")["test"]
    assert [row["solution"] for row in rows] == ["003", "006", "009"] and {row["year"] for row in rows} == {2023}
    path = write_rows(
        tmp_path / "2024.jsonl", [{"problem": "1?", "answer": 1, "year": 2024}, {"question": "2?", "answer": 2}]
    )
    load = data.load("aime")
    assert [row["solution"] for row in load("test", source=str(path))] == ["1", "2"]
    with pytest.raises(ValueError, match="line 2: it names no year"):
        list(load("test", source=str(path), year=2024))
    with pytest.raises(ValueError, match="year: no problem is of 2030. There are: 2022, 2023, 2024"):
        prepared("aime", tmp_path, "--year", "2030")


def test_worked_examples_of_mmlu_pro_think_and_answer(tmp_path):
    write_rows(tmp_path / "raw/validation.jsonl", [mmlu_pro(1), mmlu_pro(9)])
    write_rows(tmp_path / "raw/test.jsonl", [mmlu_pro(4)])
    worked, bare = data.load("mmlu_pro")("train", source=str(tmp_path / "raw"))
    said = worked["completion"][0]["content"]
    assert (
        reasoning.is_well_formed(said) and "Two and 1 is 3. The answer is (B)." in said and "step by step" not in said
    )
    assert "completion" not in bare and (worked["solution"], worked["subject"]) == ("B", "law")
    prepare.main(["mmlu_pro", "--source", str(tmp_path / "raw")])
    assert [bool(row["completion"]) for row in read_rows("data/mmlu_pro/train.parquet")] == [True, False]


# -- programs


def a_program(n: int = 0) -> dict:
    (row,) = _rows(humaneval(n))
    return row


def _rows(*raw: dict) -> list[dict]:
    path = write_rows(Path("rows.jsonl"), list(raw))
    return list(data.load("humaneval")("test", source=str(path)))


def judged(row: dict, *said: str) -> list[dict]:
    completions = [[engine.Completion(text, 9, True) for text in said]]
    return judging.score([row], completions, "greedy")


def test_a_program_may_be_whole_or_go_on_where_the_prompt_ends_and_be_said_in_any_usual_way():
    row = a_program()
    body = humaneval(0)["canonical_solution"]
    alone = "import math\n\ndef add_0(x):\n    return helper(x)"  # the helper is the prompt's
    wrong = "def add_0(x):\n    return x"
    usage = "Try it:\n```python\nprint(add_0(1))\n```"
    right = [
        f"<think>\nadd\n</think>\n<answer>\n```python\n{row['solution']}```\n</answer>",
        f"<answer>{alone}</answer>",
        f"<answer>{body}</answer>",  # whose first line loses its indentation
        f"```python\n{body}```",
        f"```\n{textwrap.dedent(body)}```",
        f"<answer>{textwrap.dedent(body)}</answer>",
        f"Here it is:\n```python\n{alone}\n```\n{usage}",
        f"First thought:\n```python\n{wrong}\n```\nBetter:\n```python\n{alone}\n```",
        body,  # of a model that only goes on with texts
        f"```python\nfrom __future__ import annotations\n{alone.replace('helper(x)', 'x + 1')}\n```",
    ]
    bad = ["I cannot.", "", f"```python\n{wrong}\n```", usage, f"<think>{alone}", "```python\nadd_0 = (\n```"]
    assert [r["accuracy"] for r in judged(row, *right)] == [1.0] * len(right)
    assert [r["accuracy"] for r in judged(row, *bad)] == [0.0] * len(bad)


def test_strict_a_program_counts_inside_the_tags_only_and_what_decided_is_told():
    row = a_program()
    block = f"```python\n{row['solution']}\n```"
    tagged, untagged, none = judged(row, f"<answer>{block}</answer>", block, "")
    assert [(r["strict"], r["accuracy"], r["lenient"]) for r in (tagged, untagged)] == [(1, 1, 1), (0, 1, 1)]
    assert (tagged["judged_by"], none["judged_by"]) == ("tests", "no answer") and "def add_0" in tagged["answer"]
    (unreadable,) = judged({**row, "tests": "1 +"}, block)
    assert (unreadable["accuracy"], unreadable["strict"], unreadable["judged_by"]) == (None, None, "unreadable gold")
    measured = judging.summarize([tagged, untagged, none, unreadable], 0)
    assert (measured["accuracy"]["value"], measured["accuracy"]["n"], measured["unjudged"]["value"]) == (2 / 3, 3, 0.25)


@pytest.mark.slow
def test_a_program_that_means_harm_costs_its_own_answer_and_nothing_else(tmp_path):
    outside = tmp_path / "outside"
    harms = {
        "while True:\n    pass": "timeout",
        "held = [bytearray(1 << 28) for _ in range(1000)]": "tests",
        "import os\nwhile True:\n    os.fork()": "tests",
        f"open({str(outside)!r}, 'w').write('here')": "tests",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)": "tests",
        "import os\nos.abort()": "crash",
    }
    row = a_program()
    good = f"```python\n{row['solution']}\n```"
    # What is refused raises, and then the tests have nothing to pass.
    said = [text for harm in harms for text in (f"```python\n{harm}\ndef add_0(x):\n    return x + 1\n```", good)]
    found = judged(row, *said)
    assert [r["accuracy"] for r in found[1::2]] == [1.0] * len(harms)
    assert [r["accuracy"] for r in found[0::2]] == [0.0] * len(harms)
    assert {harm: r["judged_by"] for harm, r in zip(harms, found[0::2], strict=True)} == harms
    assert judging.summarize(found, 0)["unjudged"]["value"] == 0.0  # a loop without end is a wrong program
    assert not outside.exists()


def wrongly(row: dict) -> str:
    """The right function with its result changed: whatever it returns, no test should take it."""
    name = row["tests"].rpartition("check(")[2].partition(")")[0]
    return row["solution"] + textwrap.dedent(f"""
        _right = {name}
        def {name}(*given):
            found = _right(*given)
            if found is None or isinstance(found, bool):
                return not found
            changed = {{str: "x", list: [0], tuple: (0,), dict: {{0: 0}}}}.get(type(found), 1)
            return {{**found, **changed}} if isinstance(found, dict) else found + changed
        """)


@pytest.mark.slow
def test_the_164_reference_solutions_of_humaneval_pass_and_164_broken_ones_fail(shared_data):
    path = shared_data / "humaneval" / "HumanEval.jsonl.gz"
    prepare.main(["humaneval", "--source", str(path)])  # proves each by the same judge
    rows = read_rows("data/humaneval/test.parquet")
    assert len(rows) == 164
    said = [
        [engine.Completion(f"```python\n{text}\n```", 9, True)]
        for row in rows
        for text in (row["solution"], wrongly(row))
    ]
    found = judging.score([row for row in rows for _ in range(2)], said, "greedy")
    assert {r["prompt"] for r in found[0::2] if r["accuracy"] != 1.0} == set()
    assert {r["prompt"] for r in found[1::2] if r["accuracy"] != 0.0} == set()
    bodies = [[engine.Completion(row["solution"].removeprefix(row["starter_code"]), 9, True)] for row in rows]
    assert {r["accuracy"] for r in judging.score(rows, bodies, "greedy")} == {1.0}


# -- examples and system messages


def asked(n: int, subject: str | None = None, **more) -> dict:
    row = {"prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": f"{n} + {n}?"}]}
    return {**row, "solution": str(2 * n), **({"subject": subject} if subject else {}), **more}


def test_examples_stand_before_the_problem_as_turns_and_worked_where_they_can():
    worked = asked(7, completion=[{"role": "assistant", "content": reasoning.write("7 and 7", "14")}])
    examples = {None: [asked(3), worked, {**asked(4), "solution": "def f(): ...", "tests": "assert f"}]}
    (prompt,) = shots.prompts([asked(1)], examples)
    assert [turn["role"] for turn in prompt] == ["system", *["user", "assistant"] * 3, "user"]
    said = [turn["content"] for turn in prompt]
    assert said[0] == "Think." and said[1:3] == ["3 + 3?", "<answer>6</answer>"] and said[-1] == "1 + 1?"
    assert reasoning.is_well_formed(said[4])
    assert said[6] == "<answer>```python\ndef f(): ...\n```</answer>"
    plain = [{"prompt": f"{n}+{n}=", "solution": str(2 * n)} for n in (1, 2)]
    assert shots.prompts(plain[:1], {None: plain[1:]}) == ["2+2=<answer>4</answer>\n\n1+1="]


def test_a_system_prompt_takes_the_place_of_the_rows_own():
    rows = [asked(1)]
    assert shots.prompts(rows, {}) == [rows[0]["prompt"]]
    assert shots.prompts(rows, {}, "none") == [rows[0]["prompt"][1:]]
    assert [turn["content"] for turn in shots.prompts(rows, {}, "Answer.")[0]] == ["Answer.", "1 + 1?"]
    with pytest.raises(ValueError, match="plain texts, which have no system message"):
        shots.prompts([{"prompt": "1+1=", "solution": "2"}], {}, "Answer.")


def test_no_example_is_a_test_row_and_one_seed_draws_the_same():
    rng = random.Random(0)
    tests = [asked(n) for n in range(20)]
    train = [asked(n) for n in range(40)]
    rng.shuffle(train)
    train[0]["prompt"][1]["content"] = "  5 +  5? "  # a test row, spaced otherwise
    drawn = shots.draw(iter(train), tests, 5, seed=1)[None]
    assert drawn == shots.draw(train, tests, 5, seed=1)[None] != shots.draw(train, tests, 5, seed=2)[None]
    for seed in range(200):
        found = [int(row["solution"]) // 2 for row in shots.draw(train, tests, 5, seed)[None]]
        assert len(set(found)) == 5 and min(found) >= 20
    with pytest.raises(ValueError, match="num_fewshot: 21 examples .* have 19|num_fewshot: 21 examples .* have 20"):
        shots.draw(train, tests, 21, seed=0)


def test_examples_are_of_the_problems_own_subject():
    train = [asked(n, ("law", "art")[n % 2]) for n in range(100, 110)]
    tests = [asked(1, "art"), asked(2, "law")]
    drawn = shots.draw(train, tests, 5, seed=0)
    prompts = shots.prompts(tests, drawn)
    numbers = [{int(turn["content"].partition(" ")[0]) for turn in p[1:-1] if turn["role"] == "user"} for p in prompts]
    assert numbers == [{101, 103, 105, 107, 109}, {100, 102, 104, 106, 108}]


def test_a_subject_with_too_few_examples_is_named_with_how_many_there_are_and_what_to_do():
    train = [asked(n, "law") for n in range(100, 103)]
    with pytest.raises(
        ValueError, match="num_fewshot: 1 examples .* have 0 about 'music' .* Set it to 0 at most.*subset"
    ):
        shots.draw(train, [asked(3, "music"), asked(4, "law")], 1, seed=0)
    with pytest.raises(ValueError, match="0 about 'music' that are no test rows; 2 subjects have too few. Set it to 0"):
        shots.draw(train, [asked(4, "law"), asked(3, "music")], 5, seed=0)
    with pytest.raises(ValueError, match="have 3 that are no test rows. Set it to 3 at most, where 0 shows none.$"):
        shots.draw([asked(n) for n in range(3)], [asked(9)], 5, seed=0)


# -- votes


def sampled(row: int, *said: str, solution: str = "1/2") -> list[dict]:
    rows = [{"prompt": "p", "solution": solution}]
    completions = [[engine.Completion(f"<answer>{text}</answer>", 3, True) for text in said]]
    return [{**r, "row": row} for r in judging.score(rows, completions, "sampled")]


def test_answers_that_mean_the_same_are_one_vote_and_silence_is_none():
    # The gold in three spellings, a wrong number in two, a word in two, and nothing.
    said = sampled(0, "0.5", r"\frac{1}{2}", "$1/2$", "3", "3.0", "No", "no", "")
    votes = [judging.vote(row) for row in said]
    assert len({*votes[:3]}) == len({*votes[3:5]}) == len({*votes[5:7]}) == 1 and votes[7] is None
    assert len(set(votes)) == 4
    assert judging.vote(sampled(0, "the gold answer")[0]) != votes[0]
    measured = judging.summarize(_greedy() + said, 8)
    assert measured["maj@8"] == {"value": 1.0, "ci95": measured["maj@8"]["ci95"], "n": 1}
    assert measured["pass@1"]["value"] == measured["sampled"]["value"] == pytest.approx(3 / 8)
    assert set(measured) >= {"pass@1", "pass@2", "pass@4", "pass@8", "maj@4", "maj@8"} and "maj@2" not in measured


def _greedy() -> list[dict]:
    return [{**row, "kind": "greedy"} for row in sampled(0, "1/2")]


def test_a_tie_is_drawn_by_lot_and_a_problem_without_a_verdict_does_not_count():
    tie = sampled(0, "1/2", "3", "3", "1/2")
    unreadable = [{**row, "accuracy": None} for row in sampled(1, "1", "2", "3", "4")]
    measured = judging.summarize(_greedy() + tie + unreadable, 4)
    assert (measured["maj@4"]["value"], measured["maj@4"]["n"]) == (0.5, 1)
    assert measured["pass@4"]["value"] == 1.0 and 0 < measured["pass@4"]["ci95"][0] < 1


def test_programs_do_not_vote():
    row = a_program()
    said = judging.score([row], [[engine.Completion(row["solution"], 9, True)] * 4], "sampled")
    measured = judging.summarize([{**r, "kind": "greedy"} for r in said[:1]] + said, 4)
    assert measured["pass@4"]["value"] == 1.0 and not [name for name in measured if name.startswith("maj@")]
    silent = judging.score([row], [[engine.Completion("", 9, True)] * 4], "sampled")  # nor do models that write none
    measured = judging.summarize([{**silent[0], "kind": "greedy"}, *silent], 4)
    assert measured["pass@4"]["value"] == 0.0 and not [name for name in measured if name.startswith("maj@")]


def test_accuracy_is_told_by_subject_and_level_where_rows_have_them():
    rows = [
        {"prompt": "p", "solution": "1", "subject": s, "level": n, "year": n} for n, s in enumerate(("a", "b", "a"))
    ]
    said = judging.score(rows, [[engine.Completion(f"<answer>{a}</answer>", 3, True)] for a in "112"], "greedy")
    found = judging.by_group(said, rows)
    assert list(found) == ["subject", "level"] and list(found["level"]) == ["0", "1", "2"]
    assert {subject: (m["value"], m["n"]) for subject, m in found["subject"].items()} == {"a": (0.5, 2), "b": (1.0, 1)}
    assert judging.by_group(said, [{**row, "subject": "one", "level": None} for row in rows]) == {}
