"""`suite chat`: words as they come, thinking folded, commands, two models side by side, Ctrl-C."""

import json
import shutil

import pytest

from suite import chat, engine, talk
from tests.conftest import run_suite
from tests.stand_in import MODEL, serving


class Said(talk.Talker):
    """Answers with given pieces; an exception among them is raised."""

    def __init__(self, *pieces, name: str = "one"):
        self.pieces, self.name, self.heard = pieces, name, []

    def answer(self, messages, sampling):
        self.heard.append([dict(turn) for turn in messages])
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield piece


THOUGHTFUL = ("<th", "ink>\ntwo and", " two</thi", "nk>\n<answer>", "4</answer>")


def talked(*lines: str, talkers=None, **how) -> chat.Chat:
    said_to = [talk.Conversation(model, how.get("system")) for model in talkers or [Said(*THOUGHTFUL)]]
    there = chat.Chat(said_to, engine.Sampling(), how["show_thinking"])
    for line in lines:
        assert there.take(line)
    return there


def test_thinking_is_folded_until_it_is_asked_for(capsys):
    talked("2+2?", "/thought", show_thinking=False)
    told = capsys.readouterr().out
    assert "[thinking ..." in told and "<answer>4</answer>" in told
    assert told.index("<answer>") < told.index("two and two")  # only by /thought
    talked("2+2?", show_thinking=True)
    told = capsys.readouterr().out
    assert told.index("two and two") < told.index("<answer>4</answer>") and "<think>" not in told


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_tag_is_found_in_whatever_pieces_it_comes(size):
    text = "a < b <think>x < y</think>c <answer>4</answer> <thin"
    folded = talk.Folded()
    shown = "".join(folded.feed(text[i : i + size]) for i in range(0, len(text), size)) + folded.rest()
    assert (shown, folded.thought) == ("a < b c <answer>4</answer> <thin", "x < y")


def test_a_conversation_goes_on_is_reset_and_saved_as_rows(capsys, tmp_path):
    model = Said("Four.")
    there = talked("2+2?", "and 3+3?", talkers=[model], show_thinking=False, system="suite")
    assert [turn["role"] for turn in model.heard[1]] == ["system", "user", "assistant", "user"]
    there.take("/save chats.jsonl")
    assert len(json.loads((tmp_path / "chats.jsonl").read_text())["messages"]) == 5
    there.take("/system Be brief.")
    there.take("hello")
    assert model.heard[2] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    there.take("/reset")
    there.take("again")
    assert len(model.heard[3]) == 2
    for line, answer in (
        ("/save", "needs a file"),
        ("/save /nowhere/x", "cannot be written"),
        ("/ex", "There is no /ex"),
    ):
        there.take(line)
        assert answer in capsys.readouterr().out
    assert there.take("/exit") is False


def test_ctrl_c_ends_the_answer_and_what_was_said_of_it_counts(capsys):
    there = talked("2+2?", talkers=[Said("Fo", KeyboardInterrupt())], show_thinking=False)
    assert there.conversations[0].turns[-1] == {"role": "assistant", "content": "Fo"}
    assert "[stopped]" in capsys.readouterr().out
    there = talked("2+2?", talkers=[Said(ValueError("the server is gone"))], show_thinking=False)
    assert there.conversations[0].turns == [] and "the server is gone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("CUDA error:\nillegal access"), "RuntimeError: CUDA error: illegal access"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_answer_that_fails_in_whatever_way_is_one_line_and_the_conversation_goes_on(error, told, capsys):
    model = Said("Four.")
    there = talked("2+2?", talkers=[model], show_thinking=False)
    model.pieces = ["It", error]
    capsys.readouterr()
    assert there.take("3+3?") and capsys.readouterr().out == f"It\n{told}\n\n"
    model.pieces = ["Six."]
    there.take("again")
    assert [turn["content"] for turn in model.heard[-1]] == ["2+2?", "Four.", "3+3?", "It", "again"]


def test_two_models_answer_side_by_side_and_each_has_its_own_conversation(capsys, monkeypatch):
    for width, apart in (("100", " | "), ("40", "-- two")):
        monkeypatch.setenv("COLUMNS", width)
        there = talked("2+2?", talkers=[Said("four"), Said("five " * 30, name="two")], show_thinking=False)
        told = capsys.readouterr().out
        assert "four" in told and "five" in told and apart in told
        assert all(len(line) <= 100 for line in told.splitlines()) or width == "40"
    assert [said.turns[-1]["content"][:4] for said in there.conversations] == ["four", "five"]


def events(*deltas: dict) -> str:
    chunks = [json.dumps({"choices": [{"delta": delta}]}) for delta in deltas]
    return "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"])


def test_an_endpoint_is_streamed_and_its_thinking_put_back_into_tags():
    deltas = [{"role": "assistant"}, {"reasoning_content": "two "}, {"reasoning_content": "two"}, {"content": "4"}]
    with serving(lambda body: (200, events(*deltas))) as there:
        with pytest.raises(ValueError, match="serves 2 models; name one by `--model`. There are: teacher, other"):
            talk.Endpoint(there.url, None)
        model = talk.Endpoint(there.url, MODEL)
        pieces = list(model.answer([{"role": "user", "content": "2+2?"}], engine.Sampling(temperature=0.5)))
        assert "".join(pieces) == "<think>two two</think>4" and len(pieces) == 3
        assert there.asked[0]["stream"] is True and there.asked[0]["temperature"] == 0.5
        with pytest.raises(ValueError, match="refuses .404.*does not exist"):
            list(talk.Endpoint(there.url, "nobody").answer([], engine.Sampling()))


def test_what_only_looks_like_the_end_of_a_line_does_not_cut_an_event():
    """vLLM writes JSON as the text is, and a model may say any of these, as web pages do."""
    text = "a\u2028b\u2029c\u0085d\x0b\x0c\x1ce"
    event = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)
    with serving(lambda body: (200, f"data: {event}\r\n\r\ndata: {event}\n\ndata: [DONE]")) as there:
        assert "".join(talk.Endpoint(there.url, MODEL).answer([], engine.Sampling())) == text * 2
    assert list(talk._lines(iter(["da", "ta: 1\n", "\ndata", ": 2"]))) == ["data: 1", "", "data: 2"]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ('{"error": {"message": "out of memory", "code": 500}}', "broke off: out of memory"),
        ('{"error": "out of memory"}', "broke off: out of memory"),
        ("<html>", "broke off: it sent '<html>', which is no event of a completion"),
        ('{"choices": 1}', "broke off: it sent '{\"choices\": 1}', which is no event of a completion"),
    ],
)
def test_an_answer_that_an_endpoint_breaks_off_is_told_as_such(event, told, capsys):
    broken = events({"content": "it is "}).replace("[DONE]", event)
    with serving(lambda body: (200, broken)) as there:
        talked("2+2?", talkers=[talk.Endpoint(there.url, MODEL)], show_thinking=False)
    assert capsys.readouterr().out.startswith(f"it is \n{there.url} {told}.\n")


@pytest.mark.slow
def test_a_checkpoint_streams_what_it_generates_at_once_and_stops_when_told(miniqwen_dir, monkeypatch):
    model = talk.Checkpoint(str(miniqwen_dir))
    asked, greedy = [{"role": "user", "content": "1+2"}], engine.Sampling(max_new_tokens=40)
    whole = "".join(model.answer(asked, greedy))
    assert whole == model.engine.complete([asked], greedy)[0][0].text
    pieces = model.answer(asked, engine.Sampling(max_new_tokens=100_000, temperature=1.0))
    next(pieces)
    pieces.close()  # as Ctrl-C does: the thread ends with the next token, else this would not return

    def generate(**how):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(model.engine.model, "generate", generate)
    with pytest.raises(ValueError, match="Out of memory with the [0-9]+ tokens of this conv.* up to 40 of .*`/reset`"):
        list(model.answer(asked, greedy))
    model.engine.positions = 64
    with pytest.raises(ValueError, match="tokens, and the model 64 positions: `/reset`"):
        list(model.answer([{"role": "user", "content": "1+2" * 64}], greedy))


ADDRESS = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["runs/none"], "no checkpoint directory 'runs/none'"),
        (["MODEL", "--compare", "runs/none"], "no checkpoint directory 'runs/none'"),
        (["MODEL", "--compare", "me/grpo-typo"], "me/grpo-typo"),
        (["MODEL", "--temperature", "nan"], "temperature: nan must be at least 0"),
        (["MODEL", "--temperature", "inf"], "temperature: inf must .* finite"),
        (["MODEL", "--top_p", "0"], "top_p: 0.0 must be above 0 and at most 1"),
        (["MODEL", "--max_new_tokens", "0"], "max_new_tokens: 0 must be at least 1"),
        (["MODEL", "--model", "mine"], "model goes with an address"),
        (["MODEL", "--api_key_env", "sk-secret"], "api_key_env goes with an address, .*v1. Remove it"),
        ([ADDRESS, "--dtype", "float32"], "dtype goes with a checkpoint"),
        (["htp://localhost:8000/v1"], "'htp://localhost:8000/v1' is no model, and no address either"),
        (["localhost:8000"], "'localhost:8000' is no model, and no address either"),
        ([], "'model_name_or_path' is missing. A checkpoint"),
    ],
)
def test_what_cannot_be_meant_is_told_before_a_model_is_loaded(words, match, miniqwen_dir, monkeypatch):
    monkeypatch.setattr(talk, "Checkpoint", None)  # nobody is to be made
    with pytest.raises(ValueError, match=match) as caught:
        chat.main([str(miniqwen_dir) if word == "MODEL" else word for word in words])
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("words", [["BARE"], ["MODEL", "--compare", "BARE"]])
def test_a_checkpoint_without_a_chat_template_is_told_before_any_is_loaded(words, miniqwen_dir, tmp_path, monkeypatch):
    bare = shutil.copytree(miniqwen_dir, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    monkeypatch.setattr(talk, "Checkpoint", None)
    with pytest.raises(ValueError, match="bare' has no chat template, so nobody can talk with it; `suite sft` adds"):
        chat.main([{"BARE": str(bare), "MODEL": str(miniqwen_dir)}.get(word, word) for word in words])


def test_keys_that_one_of_two_models_reads_are_let_through(miniqwen_dir, tmp_path):
    both = [str(miniqwen_dir), ADDRESS]
    chat._check_names(both, {"model": "mine", "api_key_env": "KEY", "dtype": "float32"})
    chat._check_names([ADDRESS, "Qwen/Qwen2.5-0.5B-Instruct@main"], {"dtype": "auto"})


@pytest.mark.slow
def test_chat_is_a_command_that_reads_lines_and_names_what_is_wrong(miniqwen_dir):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "suite.cli", "chat", str(miniqwen_dir), "--max_new_tokens", "4"],
        input="1+2\n/help\n", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and "forget the conversation" in done.stdout, done.stderr
    wrong = run_suite("chat", "http://127.0.0.1:9/v1")
    assert wrong.returncode == 2 and "Cannot connect" in wrong.stderr and "Traceback" not in wrong.stderr
