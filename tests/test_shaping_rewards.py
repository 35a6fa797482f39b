"""The rewards that shape: tables worked by hand, what TRL computes, and what must hold for any text."""

import functools
import json
import math
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suite import rewards
from suite.reasoning import TAGS
from suite.rewards.groups import by_prompt
from tests.conftest import ROOT

KNOBS = {
    "tags": {},
    "partial": {},
    "steps": {},
    "length": {},
    "cosine": {"max_len": 8},
    "repetition": {"ngram_size": 2},
    "overlong": {"max_completion_len": 8, "soft_punish_cache": 4},
    "language": {},
}


@functools.cache
def loaded(name: str):
    return rewards.load(name, KNOBS[name])  # reads the whole folder, every time


def one(name: str, completion, /, tokens: int = 0, solution=None, prompt="", **knobs):
    """What a reward gives to a single completion."""
    reward = rewards.load(name, {**KNOBS[name], **knobs}) if knobs else loaded(name)
    return reward([completion], solution=[solution], completion_ids=[[0] * tokens], prompts=[prompt])[0]


@pytest.mark.parametrize(
    ("completion", "wanted"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("", 0.0),
        ("<think>", 0.25),
        ("<think></think>", 0.5),
        ("</think><think>", 0.25),
        ("<answer>b</answer>", 0.5),
        ("<answer>b</answer><think>a</think>", 0.5),
        ("<think><think></think><answer></answer>", 0.75),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.5),
        ("<think>a</think><answer>b</answer></answer>", 0.75),
        ("<THINK>a</THINK>", 0.0),
    ],
)
def test_each_tag_in_its_place_earns_a_quarter(completion, wanted):
    assert one("tags", completion) == wanted


def test_a_think_tag_that_the_prompt_has_opened_counts():
    assert one("tags", "a</think><answer>b</answer>", prompt="Q\n<think>\n") == 1.0
    assert one("tags", "a</think><answer>b</answer>", prompt=[{"role": "user", "content": "Q"}], think_opened=True) == 1
    assert one("tags", "a</think><answer>b</answer>") == 0.75


RIGHT, SAID, FORMED, NOTHING = 1.0, 0.5, 0.01, 0.0


@pytest.mark.parametrize(
    ("completion", "gold", "wanted"),
    [
        ("<think>a</think><answer>42</answer>", "42", RIGHT),
        ("<answer>42</answer>", "#### 42", RIGHT),
        ("<think>a</think><answer>41 or 42</answer>", "42", SAID),
        ("It is 42, I think.", "42", SAID),
        ("It is 42.", "42", SAID),
        ("It is 42.0, I think", "42", SAID),
        ("It is $1,234$ now", "1234", SAID),
        ("It is 1234 now", "$1{,}234$", SAID),
        ("50-42 is what to do", "42", SAID),
        ("结果是42元", "42", SAID),
        ("84/2 of them", "42", SAID),
        (r"so \frac{1}{2} of it", "0.5", SAID),
        (r"so -\frac{1}{2} of it", r"$-\frac{1}{2}$", SAID),
        ("about 50% of it", r"50\%", SAID),
        ("x = -42 or so", "-42", SAID),
        ("x = −42 or so", "-42", SAID),
        ("It is 142, I think", "42", NOTHING),
        ("It is 42.5, I think", "42", NOTHING),
        ("It is 1,42, I think", "42", NOTHING),
        ("It is -42, I think", "42", NOTHING),
        ("It is 42, I think", "-42", NOTHING),
        ("It is 42/7, I think", "42", NOTHING),
        ("It is 1/42, I think", "42", NOTHING),
        ("It is 1.2.42, I think", "42", NOTHING),
        ("It is x42 or 42km", "42", NOTHING),
        ("It is 4 2", "42", NOTHING),
        (r"so 3\frac{1}{2} of it", "31/2", NOTHING),
        ("<think>42</think>So it is", "42", NOTHING),
        ("<think>42", "42", NOTHING),
        ("<think>42</think><answer>7</answer>", "42", FORMED),
        ("I would say PARIS, of course", "Paris", SAID),
        ("I would say Parisian", "Paris", NOTHING),
        ("New\nYork it is, I say", "new york", SAID),
        ("我觉得是北京市吧", "北京", SAID),
        ("It is B, no, C", "B", SAID),
        ("It is a b, no, c", "B", NOTHING),
        ("There are 18 dollars and cents", "18 dollars", SAID),
        ("There are 118 dollars and cents", "18 dollars", NOTHING),
        ("It is (3,4) or not", "(3, 4)", SAID),
        ("It is x^2 + 1 or not", "$x^2+1$", SAID),
        ("It is 2x^2+1 or not", "x^2+1", NOTHING),
        ("It is a newyork", "new york", NOTHING),
        ("", "42", NOTHING),
    ],
)
def test_partial_gives_the_highest_tier_reached(completion, gold, wanted):
    assert one("partial", completion, solution=gold) == wanted


def test_partial_has_no_verdict_where_accuracy_has_none():
    assert one("partial", "<think>a</think><answer>42</answer>", solution="") is None


def test_partial_takes_its_tiers_from_its_knobs_and_reads_an_opened_prompt():
    tiers = {"right": 4.0, "contains": 3.0, "well_formed": 2.0, "none": 1.0}
    said = ["a</think><answer>7</answer>", "a</think><answer>8</answer>", "7", "a</think>7"]
    given = {"solution": ["7"] * 4, "prompts": ["Q<think>"] * 4}
    assert rewards.load("partial", tiers)(said, **given) == [4.0, 2.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("completion", "wanted"),
    [
        ("<think>Step 1: add\nStep 2: carry\nStep 3: write</think>", 1.0),
        ("<think>1. add\n2. carry</think><answer>1. x\n2. y</answer>", 2 / 3),
        ("1) add\n2) carry\n\n(3) write\n4) rest", 1.0),
        ("- add\n* carry", 2 / 3),
        ("First, add. Then carry. Finally, write.", 1.0),
        ("First of all add.\nNext, carry.", 2 / 3),
        ("- **First**, add\n- **Second**: carry", 2 / 3),
        ("## Step 1\n**Step 2:** carry", 1 / 3),
        ("1. First, add", 1 / 3),
        ("Step 1: First, add", 1 / 3),
        ("第一步，相加。第二步：进位。", 2 / 3),
        ("首先相加，然后进位，最后写下。", 1.0),
        ("首先相加。 其次进位", 2 / 3),
        ("1、相加\n2、进位", 2 / 3),
        ("<think>So 3.5 and 7 - 2\n3.5 is it; what came first? -5</think>", 0.0),
        ("<think>we do it</think>1. a\n2. b\n3. c", 0.0),
        ("1. add\n2. carry</think>3. write", 2 / 3),
        ("<think>1. add\n2. car", 2 / 3),
        ("1.\n2.\n3.", 0.0),
        ("", 0.0),
    ],
)
def test_steps_are_counted_once_each_up_to_those_wanted(completion, wanted):
    assert one("steps", completion) == pytest.approx(wanted)


def test_steps_knows_how_many_are_wanted():
    assert one("steps", "1. a\n2. b", wanted=4) == 0.5
    assert one("steps", "1. a</think>\n2. b", wanted=4, prompt="<think>\n") == 0.25


def shaped(name: str, lengths, answers, prompts=None, knobs=None, gold="4"):
    """A reward over rows that differ in length, answer and prompt."""
    return rewards.load(name, knobs)(
        completions=[f"<answer>{answer}</answer>" for answer in answers],
        solution=[gold] * len(answers),
        completion_ids=[[0] * n for n in lengths],
        prompts=["p"] * len(answers) if prompts is None else prompts,
    )


@pytest.mark.parametrize(
    ("lengths", "answers", "wanted"),
    [
        ([10, 20, 30], "444", [0.5, 0.0, -0.5]),
        ([10, 20, 30], "555", [0.0, 0.0, -0.5]),
        ([10, 15, 30], "545", [0.0, 0.25, -0.5]),
        ([7, 7, 7], "454", [0.0, 0.0, 0.0]),
        ([7], "4", [0.0]),
        ([0, 4], "44", [0.5, -0.5]),
        ([], "", []),
    ],
)
def test_length_is_kimis_formula(lengths, answers, wanted):
    assert shaped("length", lengths, answers) == wanted


def test_length_compares_the_completions_of_one_prompt_only():
    lengths, prompts = [10, 100, 30, 100, 20], ["p", "q", "p", "q", "p"]
    assert shaped("length", lengths, "44444", prompts) == [0.5, 0.0, -0.5, 0.0, 0.0]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert shaped("length", lengths, "44444", chats) == [0.5, 0.0, -0.5, 0.0, 0.0]


def test_length_and_cosine_have_no_verdict_where_accuracy_has_none():
    assert shaped("length", [1, 2], "44", gold="") == [None, None]
    assert shaped("cosine", [1, 2], "44", gold="", knobs={"max_len": 2}) == [None, None]


def test_length_without_prompts_is_refused():
    with pytest.raises(ValueError, match="'length' needs a column `prompts`"):
        rewards.check_columns({"length": rewards.load("length")}, ["solution"], "The rows")


@pytest.mark.parametrize(("name", "given"), [("partial", {}), ("cosine", {"max_len": 9}), ("length", {})])
def test_a_column_may_not_turn_a_knob_of_accuracy_through_a_reward_that_asks_it(name, given):
    kwargs = {name: given, "accuracy": {"tolerance": 0.1}}
    for funcs in ([name], ["accuracy", name]):
        (*_, reward) = rewards.load_all(funcs, {key: kwargs[key] for key in funcs})
        rewards.check_columns({name: reward}, ["prompt", "solution", "choices"], "The rows")
        for knob in ("tolerance", "seconds", "reading"):
            with pytest.raises(ValueError, match=f"The rows: the column `{knob}` has the name of a knob of '{name}'"):
                rewards.check_columns({name: reward}, ["prompt", "solution", knob], "The rows")


def test_the_columns_that_a_reward_gets_are_those_that_trl_passes():
    def own(completions, prompt, **columns):
        return [0.0] * len(completions)

    with pytest.raises(ValueError, match="'own' needs a column `prompt`; there are: prompts, solution"):
        rewards.check_columns({"own": own}, ["prompt", "solution"], "The rows")
    rewards.check_columns({"format": rewards.load("format")}, ["prompt", "completion", "completion_ids"], "The rows")


def test_a_reward_that_reads_only_what_trl_keeps_may_have_the_other_columns_taken_away():
    rewards.check_kept({name: rewards.load(name, given) for name, given in (("format", {"soft": True}), ("tags", {}))})
    with pytest.raises(ValueError, match="takes away the column `solution`, which the reward 'length' reads"):
        rewards.check_kept({"format": rewards.load("format"), "length": rewards.load("length")})


@pytest.mark.parametrize(
    ("tokens", "right", "wrong"),
    [(0, 1.0, -1.0), (50, 0.75, -0.75), (100, 0.5, -0.5), (101, 0.5, -0.5), (200, 0.5, -0.5)],
)
def test_cosine_falls_for_right_and_rises_for_wrong_answers_until_max_len(tokens, right, wrong):
    assert shaped("cosine", [tokens] * 2, "45", knobs={"max_len": 100}) == pytest.approx([right, wrong])


def test_cosine_gives_trls_numbers_where_both_judge_alike():
    from trl.rewards import get_cosine_scaled_reward

    knobs = {"max_len": 37, "min_value_wrong": -2.0, "max_value_wrong": -0.1, "min_value_correct": 0.2}
    rows = [(rf"\boxed{{{answer}}}", length) for answer in (4, 5) for length in (0, 1, 9, 18, 36, 37, 38, 99)]
    given = {
        "completions": [[{"role": "assistant", "content": said}] for said, _ in rows],
        "solution": ["$4$"] * len(rows),
        "completion_ids": [[0] * length for _, length in rows],
    }
    assert rewards.load("cosine", knobs)(**given) == pytest.approx(get_cosine_scaled_reward(**knobs)(**given))


@pytest.mark.parametrize("name", ["length", "cosine", "partial"])
def test_only_accuracy_itself_logs_extra_columns(name):
    logged, measured = [], []
    rewards.load(name, KNOBS[name])(
        ["<answer>4</answer>"],
        solution=["4"],
        completion_ids=[[1]],
        prompts=["p"],
        log_extra=lambda column, values: logged.append(column),
        log_metric=lambda metric, value: measured.append(metric),
    )
    assert not logged


@pytest.mark.parametrize("name", ["length", "cosine", "partial"])
def test_a_share_of_a_task_is_not_right(name, monkeypatch):
    reward = loaded(name)
    monkeypatch.setattr(f"suite.rewards.{name}.accuracy_reward", lambda *given, **columns: [0.9, 1.0])
    given = {"solution": ["x", "x"], "completion_ids": [[1], [1, 1]], "prompts": ["p", "q"]}
    share, whole = reward(["", ""], **given)
    assert share <= 0.0 <= whole


@pytest.mark.parametrize(
    ("completion", "n", "wanted"),
    [
        ("the cat saw the cat", 2, -1 / 4),  # the-cat, cat-saw, saw-the, the-cat
        ("The cat, the CAT. The cat!", 2, -3 / 5),
        ("one two three four", 3, 0.0),
        ("one two", 3, 0.0),
        ("", 1, 0.0),
        ("a a a a a", 1, -4 / 5),
        ("好好好好好", 2, -3 / 4),
        ("我爱北京，你爱北京", 2, -2 / 7),  # 爱北 and 北京 again, of seven pairs
        ("用 the cat 用 the cat", 2, -2 / 5),
        ("... !!! ???", 1, 0.0),
    ],
)
def test_repetition_is_the_share_of_repeated_ngrams_of_words(completion, n, wanted):
    assert one("repetition", completion, ngram_size=n) == pytest.approx(wanted)
    assert one("repetition", completion, ngram_size=n, max_penalty=-0.5) == pytest.approx(wanted / 2)


@pytest.mark.parametrize(("tokens", "wanted"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (101, -1.0)])
def test_overlong_is_dapos_formula(tokens, wanted):
    assert one("overlong", "x", tokens, max_completion_len=100, soft_punish_cache=20) == wanted


@pytest.mark.parametrize(("tokens", "wanted"), [(100, 0.0), (101, -1.0)])
def test_overlong_without_a_cache_is_a_step(tokens, wanted):
    assert one("overlong", "x", tokens, max_completion_len=100, soft_punish_cache=0) == wanted


@pytest.mark.parametrize(
    ("completion", "language", "wanted"),
    [
        ("Hello, world! 123", "en", 1.0),
        ("Déjà vu", "en", 1.0),
        ("你好 ab", "zh", 0.5),
        ("你好 ab", "en", 0.5),
        ("ab你好привет", "ru", 0.6),
        ("ひらがなカタカナ漢字", "ja", 1.0),
        ("ひらがな漢字", "zh", 2 / 6),
        ("한국어 abc", "ko", 0.5),
        ("مرحبا", "ar", 1.0),
        ("<think>你好</think><answer>你好</answer>", "zh", 1.0),
        (r"设 $x+y=abc$，则 \(a\) 与 \[ b \frac{c}{d} \] 及 $$e$$", "zh", 1.0),
        (r"\alpha 你 \beta", "zh", 1.0),
        ("```python\n打印\n```", "zh", 1.0),
        ("```\nab\n```\n你好", "zh", 0.5),
        ("它要 $5 dollars 或 $6", "zh", 3 / 10),
        ("你好² ½ ①", "zh", 1.0),
        ("", "en", 0.0),
        ("42", "en", 0.0),
        ("$x$", "en", 0.0),
        ("<think></think>", "en", 0.0),
    ],
)
def test_language_is_the_share_of_letters_in_its_script(completion, language, wanted):
    assert one("language", completion, language=language) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("name", "knobs", "complaint"),
    [
        ("cosine", {"max_len": 0}, "cosine.max_len: 0 must be at least 1"),
        ("cosine", {"max_len": 1, "min_value_wrong": 1.0}, "cosine.min_value_wrong: 1.0 .* -0.5"),
        ("cosine", {"max_len": 1, "max_value_correct": 0.0}, "cosine.min_value_correct: 0.5 .* 0.0"),
        ("cosine", {"max_len": 1, "max_value_correct": math.inf}, "cosine.max_value_correct: inf"),
        ("overlong", {"max_completion_len": 0, "soft_punish_cache": 0}, "overlong.max_completion_len: 0"),
        ("overlong", {"max_completion_len": 10, "soft_punish_cache": 11}, "overlong.soft_punish_cache: 11 .* is 10"),
        ("overlong", {"max_completion_len": 10, "soft_punish_cache": -1}, "overlong.soft_punish_cache: -1"),
        ("repetition", {"ngram_size": 0}, "repetition.ngram_size: 0 must be at least 1"),
        ("repetition", {"max_penalty": 0.5}, "repetition.max_penalty: 0.5"),
        ("repetition", {"max_penalty": math.nan}, "repetition.max_penalty: nan"),
        ("steps", {"wanted": 0}, "steps.wanted: 0 must be at least 1"),
        ("partial", {"contains": 2.0}, "partial.right: 1.0, partial.contains: 2.0, .*right >= contains"),
        ("partial", {"none": 0.1}, "partial.well_formed: 0.01, partial.none: 0.1"),
        ("partial", {"none": -math.inf}, "partial.none: -inf"),
    ],
)
def test_knobs_out_of_range_are_refused_by_name(name, knobs, complaint):
    with pytest.raises(ValueError, match=complaint):
        one(name, "x", tokens=1, solution="4", **knobs)


def test_a_language_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="language.language: 'fr'.*en, zh, ja, ko, ru, ar"):
        one("language", "x", language="fr")


FRAGMENTS = [*TAGS, "4", "-4.0", "1,4", "\n1. ", "Step 2: ", "First, ", "首先", "é", "\ud800", "$", "\\[", "```a\n"]
SAYINGS = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(), max_size=5), max_size=8).map("".join)
ROWS = st.lists(
    st.tuples(
        SAYINGS | st.none(), st.sampled_from(["4", "", None]), st.integers(0, 12), st.sampled_from(["p", "q<think>"])
    ),
    max_size=5,
)


def of_rows(reward, rows) -> list:
    """What a reward gives to (completion, solution, tokens, prompt) rows in conversational form."""
    return reward(
        completions=[[{"role": "assistant", "content": said}] for said, *_ in rows],
        solution=[gold for _, gold, *_ in rows],
        completion_ids=[[0] * tokens for *_, tokens, _ in rows],
        prompts=[prompt for *_, prompt in rows],
    )


@pytest.mark.parametrize("name", KNOBS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, order=st.randoms())
def test_any_batch_gives_finite_numbers_or_none_in_its_own_order(name, rows, order):
    reward = loaded(name)
    values = of_rows(reward, rows)
    assert len(values) == len(rows)
    assert all(value is None or (isinstance(value, float) and math.isfinite(value)) for value in values)
    mixed = order.sample(range(len(rows)), len(rows))
    assert of_rows(reward, [rows[i] for i in mixed]) == [values[i] for i in mixed]


HOSTILE = [
    "<think>", "</think>", "<answer>", "\n", " ", "a", "字", "\ud800", "1", "1,", "1.", "1/", "-1", "1e-", "- ", "* ",
    "*", "First ", "Then. ", "然后，", "\n1. ", "$", "$$", "$a", "\\[", "\\(", "\\(\\)", "```", "\n```", "\\frac{", "_",
    "\\frac{1}{", "a ", "1a", "Step ", ". Step 1 ", "{", "\\", "\u0301", "１", "ab,", "#", ">", ": ",
]  # fmt: skip


@pytest.mark.parametrize("name", KNOBS)
def test_100k_hostile_characters_are_read_in_linear_time(name):
    """Half a second each is generous for one pass, and nothing to what a quadratic one takes."""
    reward = loaded(name)
    reward([""], solution=["1"], completion_ids=[[]], prompts=["p"])  # imports what it needs
    for piece in HOSTILE:
        text = piece * (100_000 // len(piece))
        part = text[:33_333]
        for said, gold in ((text + "x", "1"), (f"<think>{part}</think>{part}<answer>{part}</answer>", "aa")):
            before = time.thread_time()
            value = reward([said], solution=[gold], completion_ids=[[0] * 3], prompts=["p"])[0]
            assert value is None or math.isfinite(value)
            assert time.thread_time() - before < 0.5, (piece, gold)


def test_no_shaping_reward_imports_torch_before_it_must():
    code = (
        "import sys; from suite import rewards; given = dict(solution=['4'], completion_ids=[[1]], prompts=['p'])\n"
        f"for name, knobs in {KNOBS!r}.items():\n"
        "    reward = rewards.load(name, knobs)\n"
        "    name == 'overlong' or reward(['<answer>4</answer>'], **given)\n"
        "assert not {'torch', 'transformers', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_values_are_grouped_by_the_text_of_the_prompt():
    assert by_prompt(["p", "q", "p"], [1, 2, 3]) == [[1, 3], [2], [1, 3]]
    assert by_prompt([[{"role": "user", "content": "p"}], "p"], [1, 2]) == [[1, 2], [1, 2]]
    assert by_prompt([], []) == []


RANK = """
import json, sys
import torch.distributed as dist
from suite import rewards
from suite.rewards.groups import by_prompt

store, rank, batches, target = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
reward = rewards.load("length")
found = []
for batch in batches:
    rows = batch[rank]
    found.append(reward(
        [f"<answer>{answer}</answer>" for _, answer, _, _ in rows],
        solution=[gold for *_, gold in rows],
        completion_ids=[[0] * tokens for _, _, tokens, _ in rows],
        prompts=[prompt for prompt, *_ in rows],
    ))
json.dump(found, open(target, "w"))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_group_that_lies_on_two_ranks_is_compared_as_one(tmp_path):
    """Two processes over gloo get what one gets; also where one has no rows, or none that can be judged."""
    rows = [["p", "4", 10, "4"], ["p", "5", 20, "4"], ["p", "4", 30, "4"], ["q", "4", 5, "4"], ["q", "4", 9, "4"]]
    unjudged = [["p", "4", 1, ""], ["p", "4", 2, ""]]
    batches = [[rows[:2], rows[2:]], [rows, []], [[], rows], [unjudged, rows], [rows[:4], rows[4:]]]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, tmp_path / "store", str(rank), json.dumps(batches), tmp_path / f"{rank}.json"],
            cwd=ROOT,
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for batch, here, there in zip(batches, first, second, strict=True):
        whole = [(f"<answer>{answer}</answer>", gold, n, prompt) for prompt, answer, n, gold in batch[0] + batch[1]]
        assert here + there == of_rows(loaded("length"), whole)
    assert first[0] + second[0] == [0.5, 0.0, -0.5, 0.5, -0.5]
