"""What a model finds likely, against numbers worked out by hand."""

import math
from functools import partial

import pytest

from suite import measures
from tests.conftest import TINY


@pytest.fixture(scope="module")
def loaded(miniqwen_dir):
    return measures._load(str(miniqwen_dir), "float32")


def by_hand(model, ids: list[int]) -> list[float]:
    """log p(token | tokens before it), one forward pass and one softmax a token."""
    import torch

    found = []
    for at in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:at]])).logits[0, -1].double()
        found.append((logits[ids[at]] - logits.logsumexp(0)).item())
    return found


def test_bits_per_byte_are_those_worked_out_by_hand(loaded, miniqwen_dir):
    model, tokenizer = loaded
    texts = ["12+34\n2+4=6\n46", "the number", "7 is a number"]
    bits, size = 0.0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        bits -= sum(by_hand(model, ids)) / math.log(2)
        size += len(text.encode()) - len(tokenizer.decode(ids[0]).encode())
    measured = measures.of_rows(str(miniqwen_dir), [{"text": text} for text in texts])
    assert measured.keys() == {"bits_per_byte"}
    assert measured["bits_per_byte"]["value"] == pytest.approx(bits / size, abs=1e-5)
    low, high = measured["bits_per_byte"]["ci95"]
    assert low < bits / size < high and measured["bits_per_byte"]["n"] == 3


def test_a_text_longer_than_the_window_is_read_in_windows_and_no_token_is_lost(loaded):
    model, tokenizer = loaded
    window = model.config.max_position_embeddings
    text = "12+34=46 " * window
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 2 * window
    bits = 0.0
    for start in range(0, len(ids) - 1, window - 1):
        logs = measures.log_probs(model, [ids[start : start + window]])[0]
        bits -= sum(logs) / math.log(2)
    assert measures.bits_and_bytes(model, tokenizer, [text])[0][0] == pytest.approx(bits, rel=1e-6)
    pieces = [len(ids[start : start + window]) - 1 for start in range(0, len(ids) - 1, window - 1)]
    assert sum(pieces) == len(ids) - 1


def test_a_window_is_as_long_as_a_stretched_model_reads_and_one_without_positions_has_windows_too(loaded, monkeypatch):
    _, tokenizer = loaded
    ids = tokenizer("12+34=46 " * 20)["input_ids"]
    stretched = tiny("qwen2", **{**TINY, "max_position_embeddings": 64},
                     rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})  # fmt: skip
    mamba = tiny("mamba", hidden_size=32, state_size=4, num_hidden_layers=1, initializer_range=0.3)
    monkeypatch.setattr(measures, "_TOKENS", 256)
    assert 64 < len(ids) < 256
    for model in (stretched, mamba):
        bits = -sum(measures.log_probs(model, [ids])[0]) / math.log(2)
        assert measures.bits_and_bytes(model, tokenizer, ["12+34=46 " * 20])[0][0] == pytest.approx(bits, rel=1e-6)
    assert len(measures.bits_and_bytes(mamba, tokenizer, ["12+34=46 " * 50])) == 1


def test_the_bytes_of_a_character_cut_in_two_by_the_vocabulary_are_counted_once(loaded):
    _, tokenizer = loaded
    ids = tokenizer("码 12")["input_ids"]
    assert tokenizer.decode(ids[:1]) == "\ufffd"  # one byte of three
    assert measures._bytes_behind_first(tokenizer, "码 12", ids) == len("码 12".encode()) - 1


def test_the_preferred_answer_is_the_one_whose_whole_probability_is_higher(loaded, miniqwen_dir):
    model, tokenizer = loaded
    answers = ["46", "a number", "12+34", "6 the answer to the problem"]
    prompt = [{"role": "user", "content": "12+34"}]
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    told = {}
    for answer in answers:
        said = [{"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template([*prompt, *said], return_dict=True)["input_ids"]
        told[answer] = sum(by_hand(model, whole)[len(start) - 1 :])
    rows = [
        {"prompt": prompt, **{n: [{"role": "assistant", "content": a}] for n, a in (("chosen", x), ("rejected", y))}}
        for x in answers
        for y in answers
        if x != y
    ]
    margins = measures.margins(model, tokenizer, rows)
    wanted = [told[r["chosen"][0]["content"]] - told[r["rejected"][0]["content"]] for r in rows]
    assert margins == pytest.approx(wanted, abs=1e-4)
    assert len({round(w, 3) for w in wanted}) == len(wanted)
    measured = measures.of_rows(str(miniqwen_dir), rows[:5])["preferred"]
    assert measured["value"] == sum(w > 0 for w in wanted[:5]) / 5 and measured["n"] == 5
    assert measured["ci95"][0] < measured["value"] < measured["ci95"][1] or measured["value"] in (0, 1)


def test_pairs_beyond_the_models_positions_are_left_out_and_counted(loaded, capsys):
    model, tokenizer = loaded
    positions = model.config.max_position_embeddings
    short, long = "46", "46" * positions
    rows = [{"prompt": "12+34", "chosen": x, "rejected": y} for x, y in ((short, "4"), (short, long), (long, short))]
    assert measures.margins(model, tokenizer, rows) == pytest.approx(measures.margins(model, tokenizer, rows[:1]))
    assert f"2 of 3 pairs have more tokens than the {positions} positions" in capsys.readouterr().out
    with pytest.raises(ValueError, match="2 of 2 pairs .* none is left to measure"):
        measures.margins(model, tokenizer, rows[1:])


def test_padding_and_batches_move_nothing(loaded, monkeypatch):
    model, tokenizer = loaded
    sequences = [tokenizer("1" * n)["input_ids"] for n in (3, 40, 1, 7, 40)]
    together = measures.log_probs(model, sequences)
    assert list(map(len, together)) == [2, 39, 0, 6, 39]
    monkeypatch.setattr(measures, "_TOKENS", 1)  # a batch of its own for each
    monkeypatch.setattr(measures, "_POSITIONS", 5)
    alone = measures.log_probs(model, sequences)
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def tiny(model_type: str, **shape):
    """A random model of another architecture, whose logits are far enough apart to tell."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=300, **ends, **shape)).eval()


@pytest.mark.parametrize(
    ("model_type", "bends"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.0625}),
        ("gemma2", {"final_logit_softcapping": 2.0, "head_dim": 16}),
        ("qwen2", {}),
    ],
)
def test_what_a_model_does_to_its_logits_behind_its_head_counts(model_type, bends, monkeypatch):
    model = tiny(model_type, **{**TINY, "initializer_range": 0.3, **bends})
    monkeypatch.setattr(measures, "_POSITIONS", 16)  # of several sequences, and less than the longest has
    sequences = [[5, 6, 7], list(range(9, 30)), [8], list(range(40, 60)), [50, 70, 60, 80]]
    for logs, ids in zip(measures.log_probs(model, sequences), sequences, strict=True):
        assert logs == pytest.approx(by_hand(model, ids), abs=1e-4)
    # A vocabulary may be large: where the head is all there is, no batch's logits are in memory at once.
    assert measures._ends_in_its_head(model, sequences[0]) is (not bends)


def test_batches_hold_each_sequence_once_and_no_more_tokens_than_allowed():
    lengths = [60, 10, 50, 10, 200, 30]
    batches = list(measures._batches(lengths, 100))
    assert sorted(n for batch in batches for n in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[n] for n in b) <= 100 for b in batches)
    assert any(len(b) > 1 for b in batches)


def test_who_guesses_spends_the_same_bits_on_every_token(loaded):
    _, tokenizer = loaded
    text = "12+34"  # five digits and a sign, each a token and a byte
    assert measures.guessing(tokenizer, [text]) == pytest.approx(math.log2(len(tokenizer)))


def test_rows_of_neither_kind_are_not_measured_and_an_empty_text_is_refused(miniqwen_dir):
    assert measures.of_rows("no-such-checkpoint", [{"prompt": "1", "solution": "1"}]) == {}
    with pytest.raises(ValueError, match="empty `text`"):
        measures.of_rows(str(miniqwen_dir), [{"text": ""}])


def test_texts_of_one_token_are_refused_where_there_is_nothing_else_to_measure(loaded):
    model, tokenizer = loaded
    for measure in (
        lambda texts: measures.guessing(tokenizer, texts),
        partial(measures.bits_and_bytes, model, tokenizer),
    ):
        with pytest.raises(ValueError, match="Every `text` of 2 is one token"):
            measure(["1", "2"])
        measure(["1", "2", "12"])
