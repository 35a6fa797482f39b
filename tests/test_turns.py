"""One place decides where a turn ends, and says so before a model is loaded where it cannot."""

import pytest

from suite import turns

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tokenizer_dir):
    """Base-flavoured: it ends texts, and its template ends turns."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert found.eos_token == "<|endoftext|>"
    return found


def test_the_template_says_what_ends_a_turn(tokenizer):
    assert turns.end_of_turn(tokenizer) == "<|im_end|>"
    assert turns.end_of_turn(tokenizer, "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}") == (
        "<|endoftext|>"
    )
    assert turns.end_of_turn(tokenizer, "{% for m in messages %}{{ m.content }}\n{% endfor %}") is None


def test_conversations_make_the_end_of_a_turn_the_eos_and_plain_text_leaves_it(tokenizer):
    assert turns.settle(tokenizer, conversational=False) == tokenizer.eos_token == "<|endoftext|>"
    assert turns.settle(tokenizer, conversational=True) == tokenizer.eos_token == "<|im_end|>"


def test_plain_text_may_choose_its_eos(tokenizer):
    assert turns.settle(tokenizer, conversational=False, eos_token="<|im_end|>") == tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eos_token": "<|endoftext|>"}, "the chat template writes '<|im_end|>' there.*run on past it"),
        ({"eos_token": "<|im_fin|>"}, "'<|im_fin|>' is not a token of this tokenizer"),
        ({"chat_template_path": "mine.jinja"}, "there is no file 'mine.jinja'"),
        ({"chat_template_path": "./nowhere"}, "neither a .jinja file nor a directory with a tokenizer"),
    ],
)
def test_an_end_that_no_template_agrees_with_is_refused(tokenizer, given, message):
    import re

    with pytest.raises(ValueError, match=message.replace("|", re.escape("|"))):
        turns.settle(tokenizer, conversational=True, **given)


def test_a_template_from_a_file_decides_in_the_place_of_the_tokenizers_own(tokenizer, tmp_path):
    (tmp_path / "text.jinja").write_text("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}")
    settled = turns.settle(tokenizer, conversational=True, chat_template_path=str(tmp_path / "text.jinja"))
    assert settled == tokenizer.eos_token == "<|endoftext|>"
    (tmp_path / "endless.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(ValueError, match="cannot learn to stop"):
        turns.settle(tokenizer, conversational=True, chat_template_path=str(tmp_path / "endless.jinja"))


def test_a_template_of_another_family_whose_end_is_no_token_here_is_refused(tokenizer, tokenizer_dir, tmp_path):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tokenizer_dir)
    other.add_tokens(["<|eot|>"], special_tokens=True)
    other.chat_template = other.chat_template.replace("<|im_end|>", "<|eot|>")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="'<.eot.>', which is not a token of this model"):
        turns.settle(tokenizer, conversational=True, chat_template_path=str(tmp_path / "other"))


def test_vllm_is_told_where_a_turn_ends_beside_what_the_user_says(tokenizer):
    turns.settle(tokenizer, conversational=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turns.told_to_vllm(tokenizer, None) == {"stop_token_ids": [end]}
    assert turns.told_to_vllm(tokenizer, {"stop_token_ids": [3], "n": 1}) == {"stop_token_ids": [3, end], "n": 1}


ASKED = {"role": "user", "content": "2+2"}
SAID = {"role": "assistant", "content": "4"}


def test_a_template_that_cuts_thoughts_away_is_refused_for_rows_that_have_them(tokenizer):
    thought = {"role": "assistant", "content": "<think>two and two</think>\n\n4"}
    rows = [
        {"messages": [ASKED, SAID]},
        {"messages": [ASKED, thought]},
        {"prompt": [ASKED], "completion": [thought]},
        {"prompt": [ASKED], "chosen": [thought], "rejected": [SAID]},
        {"prompt": [ASKED], "solution": "4"},
    ]
    turns.check_said(rows, tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content.split('</think>')[-1] | trim }}<|im_end|>{% endfor %}"
    )
    turns.check_said([rows[0], rows[4], {"messages": [ASKED, thought, ASKED, SAID]}], tokenizer)
    for row in rows[1:4]:
        with pytest.raises(ValueError, match="leaves out part of what the assistant says in row 1"):
            turns.check_said([row], tokenizer)


@pytest.mark.parametrize(
    ("template", "message"),
    [("{% for m in messages %}{{ m.content", "roles user, assistant: unexpected end of template"),
     (CHATML + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
      "roles system, user: no system")],
)  # fmt: skip
def test_a_broken_template_and_one_that_refuses_a_role_are_told_in_a_line(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        turns.settle(tokenizer, conversational=True)
        turns.check_said([{"prompt": [{"role": "system", "content": "Sum."}, ASKED], "solution": "4"}], tokenizer)


def test_masks_are_checked_row_by_row_and_the_template_once(tokenizer):
    good = {"messages": [ASKED, SAID]}
    turns.check_masks([good, {"prompt": [ASKED], "completion": [SAID]}], tokenizer)
    with pytest.raises(ValueError, match="row 2 has no assistant turn"):
        turns.check_masks([good, {"messages": [ASKED]}], tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("message.content + '<|im_end|>'", "message.content")
    tokenizer.chat_template = tokenizer.chat_template.replace("{%- endgeneration %}", "{%- endgeneration %}<|im_end|>")
    with pytest.raises(ValueError, match="leaves the end of the assistant's turn out of the loss"):
        turns.check_masks([good], tokenizer)


def test_plain_text_has_no_turns_to_mask(tokenizer):
    with pytest.raises(ValueError, match="the rows are plain text"):
        turns.check_masks([{"prompt": "2+2=", "completion": "4"}], tokenizer)


def test_an_unknown_template_without_marks_is_refused_for_assistant_only_loss(tokenizer):
    tokenizer.chat_template = CHATML.replace("\n", "\n\n")
    with pytest.raises(ValueError, match="template"):
        turns.check_masks([{"messages": [ASKED, SAID]}], tokenizer)


def test_rows_that_never_train_the_end_are_refused_and_some_that_do_not_are_counted():
    assert turns.check_trained([{"labels": [-100, 5, 9]}] * 3, "<|im_end|>", 9) is None
    packed = {"labels": [-100, 5, 9, -100, 6, 9, 2], "seq_lengths": [3, 4]}
    assert turns.check_trained([packed], "<|im_end|>", 9) is None
    told = turns.check_trained([{"labels": [-100, 5, 9]}, {"labels": [-100, 5, 6]}], "<|im_end|>", 9)
    assert "1 of the first 2 rows are cut off" in told
    with pytest.raises(ValueError, match="None of the first 2 rows ends with the end of a turn"):
        turns.check_trained([{"labels": [-100, 5]}] * 2, "<|im_end|>", 9)
    with pytest.raises(ValueError, match="None of the first 1 rows"):  # the user's turn ends, the assistant's does not
        turns.check_trained([{"labels": [4, 9, 3, 5, 6, 7]}], "<|im_end|>", 9)
    with pytest.raises(ValueError, match="1 of the first 2 rows have no token in the loss"):
        turns.check_trained([{"labels": [-100, -100]}, {"labels": [9]}], "<|im_end|>", 9)
    with pytest.raises(ValueError, match="All rows have no token in the loss"):
        turns.check_trained([], "<|im_end|>", 9)


def test_where_packing_splits_documents_a_piece_need_not_end_nor_train():
    pieces = [{"labels": [-100, -100], "seq_lengths": [2]}, {"labels": [5, 9, 3]}, {"labels": [-100, 5, 6]}]
    assert turns.check_trained(pieces, "<|im_end|>", 9, split=True) is None
    with pytest.raises(ValueError, match="no token in the loss"):
        turns.check_trained(pieces[:1], "<|im_end|>", 9, split=True)
    with pytest.raises(ValueError, match="ends with the end of a turn"):
        turns.check_trained(pieces[2:], "<|im_end|>", 9, split=True)


def test_qwens_own_template_ends_turns_where_its_base_tokenizer_does_not(shared_data):
    from transformers import AutoTokenizer

    qwen = AutoTokenizer.from_pretrained(shared_data / "qwen2.5-tokenizer")
    assert qwen.eos_token == "<|endoftext|>" and turns.settle(qwen, conversational=True) == "<|im_end|>"
    turns.check_masks([{"messages": [ASKED, SAID, ASKED, SAID]}], qwen)
