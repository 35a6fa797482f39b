"""Each check on rows made for it, and the count of what went."""

import json

import pytest

from suite import cleaning
from suite.cleaning import Count, Overlap, sift
from suite.data.reading import Dropped
from tests.rows import a_tool, with_tools


def asked(text: str, **more) -> dict:
    return {"prompt": [{"role": "user", "content": text}], **more}


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def names(reasons) -> list[str | None]:
    return [reason and reason.name for reason in reasons]


@pytest.mark.parametrize(
    ("row", "is_empty"),
    [
        (asked("2+2?", completion=said("4")), False),
        (asked("2+2?", completion=said(" \n")), True),
        (asked("", completion=said("4")), True),
        (asked("2+2?", completion=[]), True),
        (asked("2+2?", chosen=said("4"), rejected=said("")), True),
        ({"prompt": [{"role": "system", "content": ""}, *asked("2+2?")["prompt"]], "completion": said("4")}, False),
        ({"prompt": "2+2=", "completion": ""}, True),
        ({"text": "  "}, True),
        ({"messages": []}, True),
        ({"messages": [*asked("2+2?")["prompt"], {"role": "assistant", "content": None, "tool_calls": [{}]}]}, False),
        (asked("2+2?", solution=""), False),  # a gold that cannot be read is another reason's business
    ],
)
def test_empty_is_a_turn_without_words(row, is_empty):
    assert names(cleaning.empty([row])) == ["empty" if is_empty else None]


@pytest.mark.parametrize(
    ("row", "is_unclosed"),
    [
        (asked("?", completion=said("<think>\nhm\n</think>\n4")), False),
        (asked("?", completion=said("<think>\nhm")), True),
        (asked("?", completion=said("hm</think>4")), False),
        (asked("?", completion=said("<think>a</think> <think>b")), True),
        ({"prompt": "2+2=<think>\n", "completion": "hm"}, True),
        ({"prompt": "2+2=<think>\n", "completion": "hm</think>4"}, False),
        ({"messages": [*asked("What is <think>?")["prompt"], *said("A tag.")]}, False),
        ({"messages": [*asked("?")["prompt"], *said("<think>a"), *asked("?")["prompt"], *said("4")]}, True),
        (asked("?", chosen=said("<think>a"), rejected=said("b")), True),
        (asked("?", chosen=said("b"), rejected=said("<think>a")), False),
        ({"text": "In HTML there is no <think>."}, False),
    ],
)
def test_thinking_that_is_opened_must_be_closed_in_what_is_learnt(row, is_unclosed):
    assert names(cleaning.unclosed_think([row])) == ["unclosed think" if is_unclosed else None]


def test_a_duplicate_is_the_same_in_every_column():
    check = cleaning.duplicates()
    first, other = asked("?", completion=said("4")), asked("?", completion=said("5"))
    assert names(check([first, other, dict(reversed(first.items()))])) == [None, None, "duplicate"]
    assert names(check([other, asked("!")])) == ["duplicate", None], "batches are remembered"


def overlapping(test: list[str], train: list[str], size: int = 5) -> list[bool]:
    overlap = Overlap(size)
    overlap.add([asked(text) for text in test])
    return [bool(reason) for reason in overlap.check([asked(text) for text in train])]


def test_a_row_that_shares_enough_words_in_a_row_with_a_test_question_overlaps():
    test = ["Natalia sold clips to 48 of her friends in April."]
    near = "Last year NATALIA sold  clips, to 48 boys."
    far = "Natalia sold clips to 40 of her friends."
    assert overlapping(test, [near, far]) == [True, False]
    assert overlapping(test, [near], size=6) == [False], "five words are shared, and no more"


def test_a_short_question_is_compared_as_a_whole_with_its_signs():
    assert overlapping(["12+34", "What is 2?"], ["12 + 34", "12-34", "what is 2", "What is 2 and 3?"]) == [
        True,
        False,
        True,
        False,
    ]


def test_chinese_is_compared_by_characters():
    assert overlapping(["小明有三个苹果，他吃了一个。"], ["昨天小明有三个梨。", "昨天小红有三个梨。"]) == [True, False]
    assert overlapping(["用 GPT 小明有"], ["我用gpt小明有梨"]) == [True]


def test_a_turn_of_phrase_that_test_questions_share_proves_nothing():
    phrase = "Give the answer as a common fraction."
    test = [f"{phrase} One half of seven.", f"{phrase} A third of eleven plus two."]
    assert overlapping(test, [f"{phrase} Something else.", f"{phrase} One half of seven."]) == [False, True]
    assert overlapping(test[:1] * 2, [f"{phrase} Something else."]) == [True], "one question twice is one question"


def test_only_what_was_asked_counts_not_the_system_prompt_nor_the_answer():
    overlap = Overlap(3)
    system = {"role": "system", "content": "You are a kind and helpful assistant."}
    overlap.add([{"messages": [system, *asked("Who are you?")["prompt"], *said("I am a cat of the house.")]}])
    rows = [
        {"messages": [system, *asked("What now?")["prompt"], *said("I am a cat of the house.")]},
        {"text": "who are you"},
    ]
    assert names(overlap.check(rows)) == [None, "overlap with test"]


def test_golds_and_completions_are_judged_by_the_reward_that_trains():
    rows = [
        asked("2+2?", solution="4", completion=said("<think>a</think><answer>4.0</answer>")),
        asked("2+2?", solution="4", completion=said("<think>a</think><answer>5</answer>")),
        asked("2+2?", solution="", completion=said("<think>a</think><answer>5</answer>")),
        asked("2+2?"),
    ]
    assert names(cleaning.unproven(rows)) == [None, None, "unreadable gold", None]
    assert names(cleaning.wrong_completion(rows)) == [None, "wrong completion", "wrong completion", None]
    program = {**asked("Double."), "solution": "def f(x):\n    return 3 * x", "tests": ["assert f(1) == 2"]}
    assert names(cleaning.unproven([program])) == ["gold does not earn 1"]


def test_length_is_counted_as_the_chat_template_writes_it(tokenizer_dir):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    row = asked("12+34", completion=said("46"))
    whole = len(tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=True)["input_ids"])
    asks = len(tokenizer.apply_chat_template(row["prompt"], tokenize=True, add_generation_prompt=True)["input_ids"])
    for limit, reason in ((whole, None), (whole - 1, "too long")):
        assert names(cleaning.too_long(str(tokenizer_dir), limit, None)([row])) == [reason]
    for limit, reason in ((asks, None), (asks - 1, "prompt too long")):
        assert names(cleaning.too_long(str(tokenizer_dir), None, limit)([row])) == [reason]
        assert names(cleaning.too_long(str(tokenizer_dir), limit, None)([asked("12+34")])) == [reason and "too long"]
    pair = asked("12+34", chosen=said("46"), rejected=said("4 6 4 6 4 6"))
    assert names(cleaning.too_long(str(tokenizer_dir), whole, None)([pair])) == ["too long"]
    texts = [{"text": "1 2 3 4 5"}, {"text": "1"}]
    assert names(cleaning.too_long(str(tokenizer_dir), 2, 1)(texts)) == ["too long", None]


def test_what_a_template_is_told_beside_the_turns_is_counted_too_and_read_for_a_teacher(miniqwen_dir, tmp_path):
    from transformers import AutoTokenizer

    from suite.trainers.distillation import trained_tokens

    model = with_tools(miniqwen_dir, tmp_path / "model")
    tokenizer, tools = AutoTokenizer.from_pretrained(model), [a_tool("add", a="integer")]
    beside = {"tools": tools, "hint": "Add."}
    told = {"tools": json.dumps(tools), "chat_template_kwargs": {"hint": "Add."}}
    row = asked("12+34", completion=said("46"), **told)
    whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=True, **beside)["input_ids"]
    for limit, reason in ((len(whole), None), (len(whole) - 1, "too long")):
        assert names(cleaning.too_long(str(model), limit, None)([row])) == [reason]
    asks = tokenizer.apply_chat_template(row["prompt"], tokenize=True, add_generation_prompt=True)["input_ids"]
    assert names(cleaning.too_long(str(model), None, len(asks))([row, asked("12+34", **told)])) == [
        "prompt too long",
        None,
    ], "where nothing answers yet the prompt is asked alone"
    for given in (row, {"messages": [*row["prompt"], *row["completion"]], **told}):
        ids, trained = trained_tokens(given, tokenizer, tokenizer.chat_template, {"hint": "of the run"})
        assert ids == whole and 0 < sum(trained) < 12


def test_a_row_goes_for_its_first_reason_and_the_first_of_each_is_told(monkeypatch):
    monkeypatch.setattr(cleaning, "BATCH", 2)
    rows = [asked("a"), Dropped("no box", "a.jsonl, line 7"), asked(""), asked("a"), asked("b"), asked("a"), asked("")]
    count = Count()
    kept = [row for batch in sift(rows, [cleaning.empty, cleaning.duplicates()], count) for row in batch]
    assert kept == [asked("a"), asked("b")]
    assert (count.read, count.kept) == (7, 2) and dict(count.dropped) == {"no box": 1, "empty": 2, "duplicate": 2}
    assert count.first == {
        "no box": "a.jsonl, line 7",
        "empty": "row 3, '': in `prompt`",
        "duplicate": "row 4, 'a'",
    }


def test_no_more_rows_are_read_than_are_wanted(monkeypatch):
    monkeypatch.setattr(cleaning, "BATCH", 4)
    left = iter([asked(str(n)) for n in range(20)])
    count = Count()
    assert sum(len(batch) for batch in sift(left, [], count, at_most=6)) == count.kept == 6
    assert len(list(left)) == 12
