"""An OpenAI-compatible endpoint, on loopback: what is sent, what is read, patience, and one line for each mistake."""

import threading

import pytest

from suite import endpoint
from suite.endpoint import EndpointArguments, EndpointEngine
from suite.engine import Completion, Sampling
from tests.stand_in import MODEL, refusal, reply, serving

KEY = "sk-very-secret-0123456789"
PROMPTS = [[{"role": "user", "content": f"{i}+{i}"}] for i in range(6)]


@pytest.fixture(autouse=True)
def _without_a_key_and_without_waiting(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(endpoint, "ATTEMPTS", 4)


def engine_for(there, name=MODEL, **keys):
    return EndpointEngine(name, EndpointArguments(base_url=there.url, **keys))


def asked_about(body) -> str:
    return body["messages"][-1]["content"]


def test_what_is_sent_is_the_conversation_and_how_to_sample(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")
    with serving(lambda body: reply("x")) as there:
        there.key = KEY
        prompts = [[{"role": "system", "content": "s", "name": None}, {"role": "user", "content": "u"}], "plain"]
        sampling = Sampling(max_new_tokens=9, temperature=0.7, top_p=0.9, seed=4)
        knobs = {"top_k": 20, "top_p": None}
        model = engine_for(there, api_key_env="TEACHER_KEY", concurrency=1, request_kwargs=knobs)
        dict(model.stream(prompts, sampling))
    first, second = there.asked
    assert first["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert second["messages"] == [{"role": "user", "content": "plain"}]
    assert {k: first[k] for k in ("model", "max_tokens", "temperature", "top_k")} == {
        "model": MODEL, "max_tokens": 9, "temperature": 0.7, "top_k": 20,
    }  # fmt: skip
    assert "top_p" not in first and first["seed"] != second["seed"]
    assert there.authorized == [f"Bearer {KEY}"] * 2


def test_a_prompt_with_tool_calls_is_refused_before_anything_is_asked():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    calls, results = {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "2"}
    for turn, last in ((calls, r"1\+1"), (results, "2")):
        with serving(lambda body: reply("x")) as there:
            model, prompts = engine_for(there), [PROMPTS[0], [*PROMPTS[1], turn]]
            with pytest.raises(ValueError, match=f"last text is '{last}' holds tool calls or.*without base_url"):
                dict(model.stream(prompts, Sampling()))
            assert not there.asked
            assert dict(model.stream(prompts, Sampling(), {1})).keys() == {0}, "what is there is not asked"


def test_answers_keep_their_prompts_whatever_the_order_and_no_more_are_in_flight_than_told():
    with serving(lambda body: reply(asked_about(body))) as there:
        there.delay = 0.05
        found = engine_for(there, concurrency=3).complete(PROMPTS, Sampling(n=2, temperature=1.0))
    assert [[c.text for c in group] for group in found] == [[f"{i}+{i}"] * 2 for i in range(6)]
    assert len(there.asked) == 12 == len({body["seed"] for body in there.asked})
    assert there.most_at_once == 3


def test_what_is_done_is_not_asked_and_the_rest_keeps_its_seeds():
    with serving(lambda body: reply(f"{asked_about(body)} {body['seed']}")) as there:
        model, sampling = engine_for(there), Sampling(temperature=1.0)
        straight = dict(model.stream(PROMPTS, sampling))
        there.asked.clear()
        assert dict(model.stream(PROMPTS, sampling, {0, 3})) == {n: straight[n] for n in (1, 2, 4, 5)}
        assert len(there.asked) == 4


@pytest.mark.parametrize(
    ("said", "completion"),
    [
        (reply("4", tokens=5), Completion("4", 5, True)),
        (reply("4", finish_reason="length"), Completion("4", 7, False)),
        (reply("4", finish_reason="content_filter"), Completion("4", 7, False)),
        (reply("\n4", reasoning_content=" two and two\n"), Completion("<think>\ntwo and two\n</think>\n4", 7, True)),
        (reply("4", reasoning="t"), Completion("<think>\nt\n</think>\n4", 7, True)),
        (reply(None, reasoning_content="t", finish_reason="length"), Completion("<think>\nt", 7, False)),
        (reply("t\n</think>\n4"), Completion("<think>\nt\n</think>\n4", 7, True)),
        (reply("half \ud83d"), Completion("half ?", 7, True)),
        ((200, {"choices": reply("two words")[1]["choices"]}), Completion("two words", 3, True)),
    ],
)
def test_what_a_reply_is_read_as(said, completion):
    with serving(lambda body: said) as there:
        assert engine_for(there).complete(PROMPTS[:1], Sampling()) == [[completion]]


@pytest.mark.parametrize("trouble", [refusal(429, "slow down"), (503, "<html>loading</html>"), refusal(500, "oops")])
def test_what_may_pass_is_asked_again(trouble):
    turn = iter([trouble, trouble, reply("4")])
    with serving(lambda body: next(turn)) as there:
        there.headers = {"Retry-After": "0.02"}
        assert engine_for(there).complete(PROMPTS[:1], Sampling()) == [[Completion("4", 7, True)]]
        assert len(there.asked) == 3 and there.asked[0] == there.asked[2]


def test_patience_ends_and_says_how_it_was():
    with serving(lambda body: refusal(503, "overloaded")) as there:
        with pytest.raises(ValueError, match="did not answer a request that was sent 4 times.*503 overloaded"):
            engine_for(there).complete(PROMPTS[:1], Sampling())


def test_a_server_that_is_too_slow_is_left():
    with serving(lambda body: reply("4")) as there:
        there.delay = 10  # which nobody waits for
        with pytest.raises(ValueError, match="sent 4 times.*ReadTimeout"):
            engine_for(there, request_timeout=0.05).complete(PROMPTS[:1], Sampling())


def test_one_refused_prompt_costs_itself_only(capsys):
    def answer(body):
        return refusal(400, "This prompt is too long.") if asked_about(body) == "3+3" else reply("ok")

    with serving(answer) as there:
        found = engine_for(there).complete(PROMPTS, Sampling())
    assert [group[0].tokens for group in found] == [7, 7, 7, 0, 7, 7]
    assert capsys.readouterr().out.count("400 This prompt is too long") == 1


def test_where_every_prompt_is_refused_asking_ends():
    with serving(lambda body: refusal(400, "seed is not supported")) as there:
        with pytest.raises(ValueError, match="refuses every request: 400 seed is not supported"):
            engine_for(there, concurrency=2).complete(PROMPTS * 10, Sampling())
        assert len(there.asked) < 10


def test_an_account_out_of_credit_ends_the_asking():
    def answer(body):
        return refusal(402, "Insufficient credits") if asked_about(body) == "1+1" else reply("ok")

    with serving(answer) as there:
        answers = engine_for(there, concurrency=1).stream(PROMPTS, Sampling())
        assert next(answers)[0] == 0
        with pytest.raises(ValueError, match="wants to be paid before it answers more: 402 Insufficient credits"):
            next(answers)
        assert len(there.asked) == 2


@pytest.mark.parametrize(
    "said", [(200, "<html>hello</html>"), (200, {"choices": []}), (200, {"error": {"message": "no"}})]
)
def test_a_reply_that_is_none_of_this_api(said):
    with serving(lambda body: said) as there:
        with pytest.raises(ValueError, match="does not answer as an OpenAI-compatible endpoint does: no completion"):
            engine_for(there).complete(PROMPTS, Sampling())


def test_a_model_that_is_not_served():
    with serving(lambda body: reply("4")) as there:
        with pytest.raises(ValueError, match="knows no model 'techer'.*does not exist. There are: teacher, other."):
            engine_for(there, name="techer").complete(PROMPTS, Sampling())
        with pytest.raises(ValueError, match="most addresses end in /v1"):
            there.url = there.url.removesuffix("/v1")
            engine_for(there).complete(PROMPTS, Sampling())


def test_nobody_at_the_address():
    with serving(lambda body: reply("4")) as there:
        pass
    with pytest.raises(ValueError, match=f"Cannot connect to base_url {there.url}.*Is the server running"):
        engine_for(there)


def test_a_missing_and_a_wrong_key_are_told_apart_and_the_key_is_not_told(monkeypatch):
    with serving(lambda body: reply("4")) as there:
        there.key = KEY
        with pytest.raises(ValueError, match="wants an API key.* environment variable OPENAI_API_KEY is not set"):
            engine_for(there)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-one")
        with pytest.raises(ValueError, match="OPENAI_API_KEY holds the wrong key") as raised:
            engine_for(there)
        assert "sk-wrong-one" not in str(raised.value) and "***" in str(raised.value)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-with\nnewline")
        with pytest.raises(ValueError, match="OPENAI_API_KEY holds something that is no API key") as raised:
            engine_for(there)
        assert "newline" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"api_key_env": KEY}, "must be the name of an environment variable"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "base_url must hold no name or key"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "must be an address without a query"),
        ({"base_url": "localhost:8000"}, "base_url: 'localhost:8000' must be an address"),
        ({"concurrency": 0}, "concurrency: 0"),
        ({"request_kwargs": "[1]"}, "request_kwargs must be a mapping"),
    ],
)
def test_keys_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message) as raised:
        EndpointArguments(**keys)
    assert KEY not in str(raised.value)


def test_who_stops_listening_leaves_nothing_running():
    with serving(lambda body: reply("4")) as there:
        there.delay = 0.05
        answers = engine_for(there, concurrency=2).stream(PROMPTS * 20, Sampling())
        next(answers)
        before = threading.active_count()
        answers.close()
        asked = len(there.asked)
        there.delay = 0.0
    assert asked < 60 and threading.active_count() <= before
