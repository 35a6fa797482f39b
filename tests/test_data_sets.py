"""Every data set from the Hub on rows of its true schema: what its file makes of them, and what it leaves out."""

import inspect
from dataclasses import fields

import pytest

from suite import columns, data, prepare, reasoning, rewards
from suite.data.reading import Dropped
from suite.values import knobs
from tests.rows import read_rows, write_rows

TRACE = "<think>\nTwo and {n} make {m}. Wait, again: yes.\n</think>\n\nWe add.\n\n**Answer:** $\\boxed{{{m}}}$"


def trace(n: int, m: int | None = None) -> str:
    return TRACE.format(n=n, m=n + 2 if m is None else m)


def gsm8k_chinese(n: int) -> dict:
    return {
        "question": f"What is 2 and {n}?",
        "answer": f"2+{n}=<<2+{n}={n + 2}>>{n + 2}\n#### {n + 2}",
        "question_zh-cn": f"2 加 {n} 等于多少？",
        "answer_only": n + 2,
    }


def numina_math_cot(n: int) -> dict:
    question, solution = f"Find $2+{n}$.", f"We add: $2+{n}=\\boxed{{{n + 2}}}$."
    turns = [{"content": question, "role": "user"}, {"content": solution, "role": "assistant"}]
    return {"source": "cn_k12", "problem": question, "solution": solution, "messages": turns}


def mmlu_pro_cot(n: int) -> dict:
    letter = "ABC"[n % 3]
    return {
        "id": str(n),
        "cot_id": 0,
        "question": f"How much is two and {n}?\n" + "\n".join(f"{c}. {n + 2 + 'ABC'.index(c) - n % 3}" for c in "ABC"),
        "answer": letter,
        "category": "math",
        "src": "ori_mmlu",
        "chain_of_thoughts": str([f"Step 1: two and {n} is {n + 2}.", f"Step 2: The answer is ({letter})."]),
        "labels": "[1, 1]",
        "parsed_answer_correctness": True,
        "system": "You think aloud.",
    }


def numina_math_r1_cot(n: int) -> dict:
    return {
        "id": str(n),
        "problem": f"Find $2+{n}$.",
        "reannotated_assistant_content": trace(n),
        "source": "olympiads",
        "solution": f"It is $\\boxed{{{n + 2}}}$.",
        "verified": None,
        "quality_metrics": None,
        "system": "Put your final answer within \\boxed{}.",
    }


def openr1_math(n: int) -> dict:
    return {
        "problem": f"Find $2+{n}$.",
        "solution": "We add.",
        "answer": str(n + 2),
        "problem_type": "Algebra",
        "question_type": "math-word-problem",
        "source": "olympiads",
        "uuid": str(n),
        "is_reasoning_complete": [True, True, True],
        "generations": [trace(n, 0), trace(n), trace(n).replace("Wait", "Hm")],
        "correctness_math_verify": [False, True, True],
        "correctness_llama": None,
        "finish_reasons": ["stop", "stop", "stop"],
        "correctness_count": 2,
        "messages": [{"role": "user", "content": f"Find $2+{n}$."}, {"role": "assistant", "content": trace(n)}],
    }


def omni_math(n: int) -> dict:
    return {
        "domain": ["Mathematics -> Algebra"],
        "difficulty": 1.0 + n,
        "problem": f"Find $2+{n}$.",
        "solution": "We add the two numbers.",
        "answer": str(n + 2),
        "source": "imo_shortlist",
    }


def still3(n: int) -> dict:
    return {"question": f"Find $2+{n}$.", "answer": str(n + 2)}


def ultrafeedback(n: int) -> dict:
    asked = {"content": f"Say {n}.", "role": "user"}
    return {
        "prompt": asked["content"],
        "prompt_id": str(n),
        "chosen": [asked, {"content": f"{n}, with pleasure.", "role": "assistant"}],
        "rejected": [asked, {"content": "No.", "role": "assistant"}],
        "messages": [asked, {"content": f"{n}, with pleasure.", "role": "assistant"}],
        "score_chosen": 8.0,
        "score_rejected": 7.5,
    }


ROWS = {
    make.__name__: make
    for make in (
        gsm8k_chinese,
        numina_math_cot,
        mmlu_pro_cot,
        numina_math_r1_cot,
        openr1_math,
        omni_math,
        still3,
        ultrafeedback,
    )
}


def load(name: str, rows: list[dict], tmp_path, **knobs) -> list:
    """What the data set makes of these rows, as a training split; its test split is of no interest."""
    splits = ("train_prefs", "test_prefs") if name == "ultrafeedback" else ("train", "test")
    write_rows(tmp_path / name / "data" / f"{splits[0]}-00000-of-00001.parquet", rows)
    write_rows(tmp_path / name / "data" / f"{splits[1]}-00000-of-00001.parquet", [ROWS[name](9)])
    return list(data.load(name)("train", source=str(tmp_path / name), **knobs))


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_true_schema_become_rows_that_a_stage_reads_and_golds_that_prove_themselves(name, tmp_path):
    splits = ("train_prefs", "test_prefs") if name == "ultrafeedback" else ("train", "test")
    write_rows(tmp_path / "raw" / f"{splits[0]}.parquet", [ROWS[name](n) for n in range(6)])
    write_rows(tmp_path / "raw" / f"{splits[1]}.parquet", [ROWS[name](n) for n in range(6, 9)])
    prepare.main([name, "--source", str(tmp_path / "raw"), "--drop_wrong_completions", "true"])
    for split, count in (("train", 6), ("test", 3)):
        rows = read_rows(f"data/{name}/{split}.parquet")
        assert len(rows) == count
        assert columns.shape_of(rows[0], columns.SHAPES) is not None
        for row in rows:
            if "completion" in row:
                assert reasoning.is_well_formed(row["completion"][0]["content"])
                assert rewards.load("accuracy")([row["completion"]], solution=[row["solution"]]) == [1.0]


@pytest.mark.parametrize("name", sorted(set(ROWS) - {"ultrafeedback"}))
def test_a_source_with_one_split_is_divided_by_question(name, tmp_path):
    path = write_rows(tmp_path / "only.jsonl", [ROWS[name](n % 8) for n in range(16)])  # every question twice
    make = data.load(name)
    test, train = (list(make(split, source=str(path), test_size=3, seed=1)) for split in ("test", "train"))
    assert len(test) == 6 and len(train) == 10
    assert not {r["prompt"][0]["content"] for r in test} & {r["prompt"][0]["content"] for r in train}
    assert test != list(make("test", source=str(path), test_size=3, seed=2))


@pytest.mark.parametrize(("name", "column"), [(n, c) for n, c in {
    "gsm8k_chinese": "question_zh-cn", "numina_math_cot": "solution", "mmlu_pro_cot": "chain_of_thoughts",
    "numina_math_r1_cot": "reannotated_assistant_content", "openr1_math": "generations", "omni_math": "difficulty",
    "still3": "answer", "ultrafeedback": "rejected"}.items()])  # fmt: skip
def test_a_source_with_another_schema_is_refused_by_its_place_and_columns(name, column, tmp_path):
    row = {key: held for key, held in ROWS[name](1).items() if key != column}
    with pytest.raises(
        ValueError, match=rf"00000-of-00001.parquet, row 1: there is no column `{column}`.*, only {next(iter(row))}"
    ):
        load(name, [row], tmp_path)


def test_no_knob_of_a_data_set_has_the_name_of_a_key_that_all_have():
    ours = {f.name for f in fields(prepare.PrepareArguments)}
    for name in data.names():
        assert not ours & set(knobs(data.load(name))), name
        assert set(data.defaults(name)) <= ours, name


def test_every_load_says_which_columns_it_gives():
    for name in data.names():
        told = inspect.getdoc(data.load(name))
        assert "column" in told or "->" in told, name


def test_chinese_gsm8k_asks_in_chinese_for_the_number(tmp_path):
    rows = load("gsm8k_chinese", [gsm8k_chinese(1)], tmp_path)
    assert rows == [{"prompt": [{"role": "user", "content": "2 加 1 等于多少？"}], "solution": "3"}]
    assert "用中文" in data.defaults("gsm8k_chinese")["system_prompt"]
    assert all(tag in data.defaults("gsm8k_chinese")["system_prompt"] for tag in reasoning.TAGS)


def test_a_worked_solution_without_a_box_has_no_final_answer(tmp_path):
    proof = {**numina_math_cot(1), "solution": "It is obvious."}
    (dropped,) = load("numina_math_cot", [proof], tmp_path)
    assert isinstance(dropped, Dropped) and dropped.reason == "no final answer" and "row 1" in dropped.where


@pytest.mark.parametrize(
    ("cot", "kept"),
    [
        (["Step 1: it is one.", "Step 2: The answer is (B)."], "Step 1: it is one.\nStep 2: The answer is (B)."),
        ("Plainly, the answer is **B**", "Plainly, the answer is **B**"),
        ("[1] says so.\nAnswer: B. Three", "[1] says so.\nAnswer: B. Three"),
        ("No letter is named here.", "No letter is named here."),
    ],
)
def test_a_chain_of_thoughts_may_be_a_list_its_spelling_or_a_text(cot, kept, tmp_path):
    for form in (cot, str(cot)):
        (row,) = load("mmlu_pro_cot", [{**mmlu_pro_cot(1), "chain_of_thoughts": form}], tmp_path)
        assert row["completion"][0]["content"] == reasoning.write(kept, "B") and row["solution"] == "B"


def test_a_chain_of_thoughts_that_ends_wrong_is_left_out_and_one_without_an_answer_column_names_its_own(tmp_path):
    wrong, marked = {**mmlu_pro_cot(1), "answer": "A"}, {**mmlu_pro_cot(1), "parsed_answer_correctness": False}
    assert [d.reason for d in load("mmlu_pro_cot", [wrong, marked], tmp_path)] == ["wrong answer"] * 2
    bare = {key: mmlu_pro_cot(1)[key] for key in ("question", "chain_of_thoughts", "system")}
    (row,) = load("mmlu_pro_cot", [bare], tmp_path)
    assert row["solution"] == "B"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("<think>\nand on and on", "unclosed think"),
        ("It is \\boxed{3}.", "no think"),
        ("<think>\n\n</think>\n\\boxed{3}", "no think"),
        ("<think></think>\n\\boxed{3}", "no think"),
        ("<think>\nhm\n</think>\nWho knows.", "no final answer"),
        ("<think>\nI write <answer>4</answer>\n</think>\n\\boxed{3}", "tags inside the thinking"),
    ],
)
def test_a_trace_that_does_not_fit_the_format_is_left_out(said, reason, tmp_path):
    row = {**numina_math_r1_cot(1), "reannotated_assistant_content": said}
    assert [d.reason for d in load("numina_math_r1_cot", [row], tmp_path)] == [reason]


def test_a_trace_keeps_its_own_thinking_and_its_answer_goes_into_the_tags(tmp_path):
    rows = load(
        "numina_math_r1_cot", [numina_math_r1_cot(1), {**numina_math_r1_cot(2), "solution": "Obvious."}], tmp_path
    )
    assert rows[0]["completion"][0]["content"] == (
        "<think>\nTwo and 1 make 3. Wait, again: yes.\n</think>\n<answer>3</answer>"
    )
    assert [row["solution"] for row in rows] == ["3", "4"]


def test_wrong_traces_go_where_asked_for(tmp_path, capsys):
    rows = [numina_math_r1_cot(n) for n in range(1, 9)]
    rows[4]["reannotated_assistant_content"] = trace(5, 77)
    path = write_rows(tmp_path / "r1.jsonl", rows)
    words = ["numina_math_r1_cot", "--source", str(path), "--test_size", "2", "--output_dir", "out"]
    prepare.main(words)
    assert "wrong completion" not in capsys.readouterr().out
    prepare.main([*words, "--drop_wrong_completions", "true"])
    assert "-1" in next(line for line in capsys.readouterr().out.splitlines() if "wrong completion" in line)


def test_openr1_gives_the_first_right_traces_of_a_problem(tmp_path):
    (row,) = load("openr1_math", [openr1_math(1)], tmp_path)
    assert "Wait" in row["completion"][0]["content"] and row["solution"] == "3"
    rows = load("openr1_math", [openr1_math(1)], tmp_path, traces_per_problem=4)
    assert len(rows) == 2
    judged = {**openr1_math(1), "correctness_math_verify": None, "correctness_llama": [False, False, True]}
    (row,) = load("openr1_math", [judged], tmp_path)
    assert "Hm" in row["completion"][0]["content"]
    none = {**openr1_math(1), "is_reasoning_complete": [True, False, False]}
    assert [d.reason for d in load("openr1_math", [none], tmp_path)] == ["no right trace"]
    missing = {**openr1_math(1), "generations": [None, None, trace(1)]}
    (row,) = load("openr1_math", [missing], tmp_path)
    assert row["solution"] == "3"
    with pytest.raises(ValueError, match="row 1: 3 generations, 3 marks of an end, 1 of right"):
        load("openr1_math", [{**openr1_math(1), "correctness_math_verify": [True]}], tmp_path)


def test_omni_math_can_be_cut_by_difficulty(tmp_path):
    found = load("omni_math", [omni_math(n) for n in range(5)], tmp_path, min_difficulty=2, max_difficulty=4)
    assert [isinstance(row, Dropped) for row in found] == [True, False, False, False, True]
    found = load("omni_math", [omni_math(1), {**omni_math(2), "difficulty": None}], tmp_path)
    assert [isinstance(row, Dropped) for row in found] == [False, True]
    with pytest.raises(ValueError, match="row 1: `difficulty` must be a number, and is 'hard'"):
        load("omni_math", [{**omni_math(1), "difficulty": "hard"}], tmp_path)


def test_ultrafeedback_pairs_share_their_prompt_and_differ(tmp_path):
    good, margin = ultrafeedback(1), {**ultrafeedback(2), "score_chosen": 7.5}
    same, apart = ultrafeedback(3), ultrafeedback(4)
    same["rejected"], apart["rejected"] = same["chosen"], ultrafeedback(5)["rejected"]
    unmarked = {**ultrafeedback(6), "score_chosen": None}
    found = load("ultrafeedback", [good, margin, same, apart, unmarked], tmp_path, min_margin=0.5)
    assert found[0] == {"prompt": good["chosen"][:1], "chosen": good["chosen"][1:], "rejected": good["rejected"][1:]}
    assert [d.reason for d in found[1:]] == [
        "margin",
        "chosen is rejected",
        "the answers have different prompts",
        "margin",
    ]
