"""Rewards by name, and accuracy and format on the rows where other suites misjudge."""

import subprocess
import sys

import pytest

from suite import rewards
from suite.rewards.scoring import TABLE

REFERENCE_TABLE = [  # completion, gold: right in every row, and 0 in at least one public suite
    ("<answer>42</answer>", "42"),
    ("<answer>42</answer>", "$42$"),
    (r"<answer>\boxed{42}</answer>", "42"),
    ("<answer>$42$</answer>", "42"),
    ("<answer>42.0</answer>", "42"),
]
RIGHT = [
    ("<answer>1,234</answer>", "1234"),
    ("<answer>+7</answer>", "7"),
    ("<answer>1e3</answer>", "1000"),
    (r"<answer>\frac{1}{2}</answer>", "0.5"),
    ("<answer>1/2</answer>", r"$\frac{1}{2}$"),
    (r"<answer>$\$18$</answer>", "18"),
    ("<answer>18.</answer>", "She has 3 * 6 = 18 apples.\n#### 18"),
    (r"<answer>\frac{\sqrt{3}}{2}</answer>", r"\frac{\sqrt{3}}{2}"),
    (r"\boxed{42}", "42"),
    ("<answer>Paris</answer>", "paris"),
]
WRONG = [
    ("<answer>47+38</answer>", "85"),
    ("<answer>41=42</answer>", "42"),
    (r"<answer>6 \times 7</answer>", "42"),
    ("<answer>41</answer>", "42"),
    ("<answer>0.333</answer>", "1/3"),
    ("<answer>4 2</answer>", "42"),
    ("<answer>-42</answer>", "42"),
    ("42", "42"),
    ("", "42"),
    ("<think>42</think>", "42"),
    ("<answer>42</answer><answer>41</answer>", "42"),
    (r"<answer>\frac{\sqrt{2}}{2}</answer>", r"\frac{\sqrt{3}}{2}"),
]


@pytest.mark.parametrize(("completion", "gold"), REFERENCE_TABLE + RIGHT)
def test_right_answers_earn_1(completion, gold):
    assert rewards.load("accuracy")([completion], solution=[gold]) == [1.0]


@pytest.mark.parametrize(("completion", "gold"), WRONG)
def test_wrong_answers_earn_0(completion, gold):
    assert rewards.load("accuracy")([completion], solution=[gold]) == [0.0]


@pytest.mark.parametrize("gold", ["", "  ", None, "#### "])
def test_an_unreadable_gold_is_no_verdict(gold):
    assert rewards.load("accuracy")(["<answer>42</answer>"], solution=[gold]) == [None]


def test_strict_and_lenient_readings():
    said, gold = ["The answer is 42", r"\boxed{42}", "<answer>42</answer>"], ["42"] * 3
    assert rewards.load("accuracy")(said, solution=gold) == [0.0, 1.0, 1.0]
    assert rewards.load("accuracy", {"reading": "tags"})(said, solution=gold) == [0.0, 0.0, 1.0]
    assert rewards.load("accuracy", {"reading": "lenient"})(said, solution=gold) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "gold", "reward"),
    [
        (r"Therefore $x = \sqrt{2}$.", r"\sqrt{2}", 1.0),
        ("So it is\n\\[\n\\frac{1}{2}\n\\]", "1/2", 1.0),
        (r"So it is $\frac{1}{2}$.", "2", 0.0),
        (r"For $n = 2$ that makes 5 $\text{cm}$.", "5", 1.0),
        ("She earns $18 and spends $5.", "5", 1.0),
        (r"Since $a + b = 42$, we are done.", "42", 1.0),
        ("**Answer:** 42", "42", 1.0),
        ("3 > 2，所以答案是B。", "B", 1.0),
        (r"<think>$x=\sqrt{2}$</think>", r"\sqrt{2}", 0.0),
    ],
)
def test_a_lenient_reading_takes_the_last_expression(completion, gold, reward):
    assert rewards.load("accuracy", {"reading": "lenient"})([completion], solution=[gold]) == [reward]


def test_a_box_needs_no_braces():
    assert rewards.load("accuracy")([r"So $x=\boxed 5$.", r"\boxed12"], solution=[r"That is \boxed 5.", "12"]) == [1, 1]


def test_conversational_completions_are_read_like_plain_ones():
    said = [[{"role": "assistant", "content": "<think>a</think><answer>42</answer>"}]]
    assert rewards.load("accuracy")(said, solution=["42"]) == rewards.load("format")(said) == [1.0]


def test_format_is_strict_and_reads_over_line_ends():
    said = ["<think>a\nb</think>\n<answer>c</answer>", "<think>a</think><answer>c</answer>\njunk", "<answer>c</answer>"]
    assert rewards.load("format")(said, solution=[None] * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        (r"<answer>\boxed{9^{9^{9^{9}}}}</answer>", r"\frac{1}{2}"),
        (r"<answer>10000000000!</answer>", r"\sqrt{2}"),
        ("<answer>" + "{" * 5000 + "}" * 5000 + "</answer>", r"\sqrt{2}"),
        (r"<answer>\int_0^1 e^{e^x} dx</answer>", r"\sqrt{2}"),
        ("<answer>" + "9" * 100_000 + "</answer>", "7"),
        ("<answer>1/" + "9" * 5000 + "</answer>", "7"),
        (r"<answer>\frac{" + "9" * 5000 + "}{3}</answer>", "7"),
        ("<think>" * 20_000, "7"),
        ("<answer>" * 20_000, "7"),
        (r"\boxed{" * 20_000, "7"),
        ("answer is" + " " * 20_000 + "x\ty" * 5000, "7"),
        ("<think>a" + "</think><answer>" * 3000 + "x" + "</answer>" * 3000 + "junk", "7"),
    ],
)
def test_hostile_answers_are_simply_wrong(completion, gold):
    for reading in ("tags", "tags or box", "lenient"):
        assert rewards.load("accuracy", {"reading": reading})([completion], solution=[gold]) == [0.0]
    assert rewards.load("format")([completion]) == [0.0]


INSIDE = "so it is 42\n</think>\n<answer>42</answer>"  # what R1-Distill says behind a prompt that ends in <think>
UNFINISHED = "maybe <answer>42</answer>? No, let me"


@pytest.mark.parametrize(
    ("how", "prompts"),
    [
        ({"think_opened": True}, [[{"role": "user", "content": "6*7"}]] * 2),
        ({}, ["<|User|>6*7<|Assistant|><think>\n"] * 2),
    ],
)
def test_a_prompt_that_opens_think_is_part_of_the_completion(how, prompts):
    said = [INSIDE, UNFINISHED]
    assert rewards.load("format", how)(said, prompts=prompts) == [1.0, 0.0]
    assert rewards.load("accuracy", how)(said, solution=["42"] * 2, prompts=prompts) == [1.0, 0.0]
    assert rewards.load("tags", how)(said, prompts=prompts) == [1.0, 0.75]


def test_without_such_a_prompt_the_same_words_are_not_well_formed():
    prompts = [[{"role": "user", "content": "6*7"}]]
    assert rewards.load("format")([INSIDE], prompts=prompts) == [0.0]


def test_a_chat_template_that_opens_think_is_recognized(tokenizer_dir):
    from suite import run

    tokenizer = run.tokenizer(str(tokenizer_dir))
    assert not run.opens_thinking(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<|Assistant|><think>\n"
    assert run.opens_thinking(tokenizer)
    loaded = rewards.load_all(["accuracy", "format"], {}, think_opened=run.opens_thinking(tokenizer))
    assert [func.keywords for func in loaded] == [{"think_opened": True}] * 2


def test_soft_format_lets_text_stand_around_the_blocks():
    said = [
        "Sure.\n<think>a</think> so <answer>b</answer> bye",
        "<answer>b</answer><think>a</think>",
        "<think>a</think>",
    ]
    assert rewards.load("format", {"soft": True})(said) == [1.0, 0.0, 0.0]


def test_a_tolerance_is_relative_and_only_on_demand():
    said, gold = ["<answer>3.14</answer>", "<answer>3.2</answer>"], ["3.1416", "3.1416"]
    assert rewards.load("accuracy")(said, solution=gold) == [0.0, 0.0]
    assert rewards.load("accuracy", {"tolerance": 0.01})(said, solution=gold) == [1.0, 0.0]
    with pytest.raises(ValueError, match="accuracy.tolerance: -1.0"):
        rewards.load("accuracy", {"tolerance": -1})(said, solution=gold)


def test_options_of_a_row_stand_behind_its_letter():
    said = ["<answer>(B)</answer>", "<answer>seven</answer>", "<answer>A. five</answer>", "<answer>7</answer>"]
    given = {"solution": ["B"] * 4, "choices": [["five", "seven"]] * 3 + [{"label": ["A", "B"], "text": ["5", "7"]}]}
    assert rewards.load("accuracy")(said, **given) == [1.0, 1.0, 0.0, 1.0]


def test_a_required_knob_that_is_missing_is_named():
    with pytest.raises(ValueError, match="cosine needs .*max_len"):
        rewards.load("cosine")


def test_a_reward_model_keeps_its_name_and_has_no_knobs():
    assert rewards.load("owner/model") == "owner/model"
    with pytest.raises(ValueError, match="'owner/model' has no knobs, and is given soft"):
        rewards.load("owner/model", {"soft": True})


def test_a_file_that_is_no_reward_is_not_taken_for_one():
    with pytest.raises(ValueError, match="There is no reward 'verify'"):
        rewards.load("verify")


def test_a_task_column_of_another_kind_is_no_reasoning_gym_task():
    assert rewards.load("accuracy")(["<answer>3</answer>"], solution=["3"], task=["math"]) == [1.0]


def test_an_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="accuracy.reading: 'lenint'.*one of tags, tags or box, lenient"):
        rewards.load("accuracy", {"reading": "lenint"})


def test_an_unknown_reward_names_the_nearest():
    with pytest.raises(ValueError, match="no reward 'acuracy'. There are: accuracy, .*format.*Did you mean 'accuracy'"):
        rewards.load("acuracy")


@pytest.mark.parametrize("name", TABLE)
def test_a_reward_in_the_folder_is_not_called_as_a_column_of_the_logged_completions(name, tmp_path, monkeypatch):
    """It has no longer name by which it could be logged beside that column."""
    (tmp_path / f"{name}.py").write_text(f"def {name}_reward(completions, **columns):\n    return [1.0]\n")
    monkeypatch.setattr(rewards, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(rewards, "__path__", [str(tmp_path)])
    try:
        with pytest.raises(ValueError, match=f"a column `{name}`, .*Rename suite/rewards/{name}.py and its function"):
            rewards.load(name)
    finally:
        del sys.modules[f"suite.rewards.{name}"]
        delattr(rewards, name)


def test_a_misspelt_knob_is_refused():
    with pytest.raises(ValueError, match="accuracy has no knob 'readin'. There are: reading"):
        rewards.load("accuracy", {"readin": "tags"})


def test_a_dotted_path_works_and_a_wrong_one_says_so():
    assert rewards.load("suite.rewards.format.format_reward")(["x"]) == [0.0]
    with pytest.raises(ValueError, match="cannot import 'nowhere.at_all'"):
        rewards.load("nowhere.at_all")


def test_loading_accuracy_imports_neither_torch_nor_sympy():
    code = (
        "import sys; from suite import rewards; "
        "assert rewards.load('accuracy')(['<answer>4</answer>'], solution=['4']) == [1.0]; "
        "assert not {'torch', 'transformers', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
