"""The grammar of an answer."""

import pytest

from suite import reasoning

GOOD = "<think>\n1+1=2\n</think>\n<answer>2</answer>"


@pytest.mark.parametrize(
    ("completion", "good"),
    [
        (GOOD, True),
        ("<think>a</think><answer>b</answer>", True),
        (f"\n{GOOD}\n", True),
        ("<think>two\n\nparagraphs</think>\n\n<answer>b\nc</answer>", True),
        (f"Sure! {GOOD}", False),
        (f"{GOOD}\nHope this helps.", False),
        ("<think> </think><answer>b</answer>", False),
        ("<think>a</think><answer>\n</answer>", False),
        ("<think>a</think>b<answer>c</answer>", False),
        ("<think>a</think><think>b</think><answer>c</answer>", False),
        ("<think>a<think>b</think><answer>c</answer>", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think><answer>b", False),
        ("<think>a<answer>b</answer>", False),
        ("<THINK>a</THINK><ANSWER>b</ANSWER>", False),
        ("", False),
    ],
)
def test_well_formed(completion, good):
    assert reasoning.is_well_formed(completion) is good


@pytest.mark.parametrize(
    ("completion", "tags", "tags_or_box", "lenient"),
    [
        (GOOD, "2", "2", "2"),
        ("<answer>1</answer> no, <answer>2</answer>", "2", "2", "2"),
        (r"so \boxed{7}", None, "7", "7"),
        (r"\boxed{\frac{1}{2}} and then \boxed{\sqrt{3}}", None, r"\sqrt{3}", r"\sqrt{3}"),
        ("The answer is 12.", None, None, "12"),
        ("12 apples and 30 pears make 42 of them", None, None, "42"),
        (r"<think>\boxed{9} <answer>9</answer>", None, None, None),
        (r"<think>maybe 9</think> it is \boxed{8}", None, "8", "8"),
        ("first 5 <think>then 9", None, None, "5"),
        ("1+1=2 so\n</think>\n<answer>2</answer>", "2", "2", "2"),
        (r"\boxed{7", None, None, "7"),
        ("<answer></answer>", None, None, None),
        ("", None, None, None),
    ],
)
def test_final_answer(completion, tags, tags_or_box, lenient):
    assert reasoning.final_answer(completion, "tags") == tags
    assert reasoning.final_answer(completion) == tags_or_box
    assert reasoning.final_answer(completion, "lenient") == lenient


def test_what_write_writes_is_well_formed():
    completion = reasoning.write("step", "4")
    assert reasoning.is_well_formed(completion) and reasoning.final_answer(completion) == "4"
