"""A teacher answers, the rewards sift, and SFT learns from what is kept; nothing is asked twice."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from suite import endpoint, engine, sample
from suite.answers import Answers
from suite.engine import Completion
from suite.rewards import scoring
from suite.values import as_mapping
from tests.conftest import run_suite, write_yaml
from tests.rows import a_tool
from tests.stand_in import MODEL, refusal, reply, serving

KEY = "sk-very-secret-0123456789"


def right(answer, thought="t") -> str:
    return f"<think>\n{thought}\n</think>\n<answer>{answer}</answer>"


def write_rows(directory: Path, rows: list[dict]) -> Path:
    directory.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / "train.parquet")
    return directory


def sums(count: int) -> list[dict]:
    return [{"prompt": [{"role": "user", "content": f"{i}+1"}], "solution": str(i + 1), "id": i} for i in range(count)]


def kept(directory="out") -> list[dict]:
    return pyarrow.parquet.read_table(Path(directory) / "train.parquet").to_pylist()


def record(directory="out") -> dict:
    return json.loads((Path(directory) / "sample.json").read_text())


@pytest.fixture
def teach(tmp_path, monkeypatch):
    """`suite sample` on rows, answered by a script: question -> its answers, in the order of asking."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)

    def run(rows: list[dict], script, *words, **keys):
        if not Path("rows").exists():
            write_rows(Path("rows"), rows)
        asked = defaultdict(int)

        def answer(body):
            question = body["messages"][-1]["content"]
            asked[question] += 1
            said = script(question, asked[question]) if callable(script) else script[question][asked[question] - 1]
            return said if isinstance(said, tuple) else reply(said)

        keys = {"output_dir": "out", "concurrency": 1, **keys}
        with serving(answer) as there:
            there.key = keys.pop("key", None)
            try:
                keys = {"model_name_or_path": MODEL, "base_url": there.url, "dataset_name": "rows", **keys}
                sample.main([*(str(word) for key, value in keys.items() for word in (f"--{key}", value)), *words])
            finally:
                run.asked = there.asked
        return run.asked

    return run


def test_what_is_kept_is_a_row_for_sft_and_every_other_answer_has_its_reason(teach, capsys):
    script = {
        "0+1": [right(1), right(1), right(1, "other"), right(2)],
        "1+1": [right(2), reply(right(2)[:9], finish_reason="length", tokens=50), "<answer>2</answer>", ""],
        "2+1": [right(0), right(1), right(2), "no idea"],
    }
    teach(sums(3), script, num_generations=4)
    rows = kept()
    assert [(row["id"], row["solution"], row["completion"]) for row in rows] == [
        (0, "1", [{"role": "assistant", "content": right(1)}]),
        (0, "1", [{"role": "assistant", "content": right(1, "other")}]),
        (1, "2", [{"role": "assistant", "content": right(2)}]),
    ]
    assert rows[0]["prompt"] == sums(1)[0]["prompt"] and "completion_ids" not in rows[0]
    found = record()
    assert found["answers"] == {"kept": 3, "accuracy < 1": 5, "duplicate": 1, "cut off": 1, "format < 1": 1, "empty": 1}
    assert found["prompts_with_kept"] == 2 and found["rows"] == 3 and found["tokens"] == 11 * 7 + 50
    said = capsys.readouterr().out
    assert re.search(r"3 +25.0% +kept", said) and "2 of 3 prompts" in said and "ms a completion" in said


def test_what_cannot_be_judged_is_not_kept_and_counted(teach):
    rows = [{**row, "solution": gold} for row, gold in zip(sums(2), ["1", None], strict=True)]
    teach(rows, lambda question, number: right(1), num_generations=1)
    assert record()["answers"] == {"kept": 1, "not judged": 1}


def test_a_reward_without_a_minimum_only_ranks_and_of_equals_the_earlier_stays(teach):
    script = {"0+1": [right(1, "a"), right(1, "b c d"), "<answer>1</answer>", right(2)]}
    words = ["--reward_funcs", "accuracy", "format", "--min_reward", '{"accuracy": 1}', "--max_per_prompt", "2"]
    teach(sums(1), script, *words, num_generations=4)
    assert [row["completion"][0]["content"] for row in kept()] == [right(1, "a"), right(1, "b c d")]
    assert record()["answers"] == {"kept": 2, "over max_per_prompt": 1, "accuracy < 1": 1}
    teach(sums(1), script, *words, "--reward_weights", "1", "-1", num_generations=4)
    assert [row["completion"][0]["content"] for row in kept()] == [right(1, "a"), "<answer>1</answer>"]


def test_rewards_that_compare_a_prompts_answers_see_their_lengths(teach):
    script = {"0+1": [reply(right(1, thought), tokens=n) for thought, n in (("a", 10), ("b", 20), ("c", 30))]}
    words = ["--reward_funcs", "accuracy", "length", "--min_reward", '{"accuracy": 1, "length": 0}']
    teach(sums(1), script, *words, num_generations=3)
    assert [row["completion"][0]["content"] for row in kept()] == [right(1, "a"), right(1, "b")]


def test_plain_prompts_get_plain_completions_and_a_repeated_prompt_is_asked_once(teach):
    rows = [{"prompt": "1+1=", "solution": "2"}] * 2 + [{"prompt": "2+1=", "solution": "3"}]
    asked = teach(rows, lambda question, number: right({"1+1=": 2, "2+1=": 3}[question]), num_generations=1)
    assert [(row["prompt"], row["completion"]) for row in kept()] == [("1+1=", right(2)), ("2+1=", right(3))]
    assert len(asked) == 2 and record()["repeated_prompts"] == 1


def test_what_the_teacher_was_not_told_is_not_written_for_the_student(teach, capsys):
    """SFT would give it to the chat template."""
    rows = [{**row, "tools": "", "chat_template_kwargs": '{"enable_thinking": false}'} for row in sums(3)]
    rows[2]["tools"] = json.dumps([a_tool("add")])
    teach(rows, lambda question, number: right(int(question[0]) + 1), num_generations=1)
    assert kept()[2].keys() == {"prompt", "completion", "solution", "id"}
    told = capsys.readouterr().out
    assert "without `chat_template_kwargs` and `tools` of the rows, which will not be written" in told
    assert told.count("note:") == 1 and "the `request_kwargs` to" in told and "GRPO" not in told
    asked = {"chat_template_kwargs": {"enable_thinking": False}}
    words = ["--output_dir", "alike", "--request_kwargs", json.dumps(asked)]
    bodies = teach(rows, lambda question, number: right(int(question[0]) + 1), *words, num_generations=1)
    assert [row["chat_template_kwargs"] for row in kept("alike")] == ['{"enable_thinking": false}'] * 3
    assert "tools" not in kept("alike")[0] and len(bodies) == 3
    told = capsys.readouterr().out
    assert "without `tools` of the rows, which will not be written" in told and "request_kwargs" not in told


def test_only_what_is_new_is_asked(teach, capsys):
    thoughts = itertools.count()

    def script(question, number):
        return right(int(question[0]) + 1, f"thought {next(thoughts)}")

    assert len(teach(sums(4), script, max_rows=2, num_generations=2)) == 4
    assert len(teach(sums(4), script, max_rows=2, num_generations=2)) == 0
    assert "holds these very answers already" in capsys.readouterr().out
    assert len(teach(sums(4), script, max_rows=3, num_generations=2)) == 2
    assert len(teach(sums(4), script, max_rows=3, num_generations=3)) == 3
    assert len(kept()) == 9
    assert len(teach(sums(4), script, "--reward_funcs", "format", max_rows=3, num_generations=1)) == 0
    assert len(kept()) == 3
    before = kept()
    with pytest.raises(ValueError, match="asked in another way: temperature was 1.0, is now 0.5"):
        teach(sums(4), script, temperature=0.5)
    assert kept() == before


def test_an_own_reward_that_was_edited_sifts_again(teach, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "def taste_reward(completions, **columns):\n    return [float('{}' in c[0]['content']) for c in completions]"
    for taste, answers in (("a", 1), ("b", 2)):
        Path("taste.py").write_text(code.format(taste))
        sys.modules.pop("taste", None)
        shutil.rmtree("__pycache__", ignore_errors=True)
        script = {"0+1": ["a b", "b", "c"]}
        teach(sums(1), script, "--reward_funcs", "taste.taste_reward", num_generations=3)
        assert len(kept()) == answers


def halting_reward(completions, **columns):
    """Ends as Ctrl-C does, when it is called for the second time."""
    halting_reward.calls += 1
    if halting_reward.calls == 2:
        raise KeyboardInterrupt
    return [1.0 for _ in completions]


def test_what_is_judged_is_not_judged_again(teach, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    halting_reward.calls, words = 0, ["--reward_funcs", "tests.test_sample.halting_reward"]
    with pytest.raises(KeyboardInterrupt, match="3 answers are kept: the same command goes on."):
        teach(sums(3), lambda question, number: right(int(question[0]) + 1), *words, num_generations=1)
    assert not Path("out").exists()
    assert not teach(sums(3), None, *words, num_generations=1) and len(kept()) == 3
    assert halting_reward.calls == 3, "of two chunks the first was judged, the second broke off and was judged again"
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def test_a_refused_request_is_counted_and_asked_again_another_day(teach, capsys):
    def refusing(question, number):
        return refusal(400, "filtered") if question == "1+1" else right(int(question[0]) + 1)

    teach(sums(3), refusing, num_generations=1)
    assert record()["answers"] == {"kept": 2, "refused by the endpoint": 1}
    before = Path("out/sample.json").stat().st_mtime_ns
    assert len(teach(sums(3), refusing, num_generations=1)) == 1
    said = capsys.readouterr().out
    assert said.count("400 filtered") == 2 and "holds these very answers already" in said
    assert Path("out/sample.json").stat().st_mtime_ns == before, (
        "nothing new came, and nothing is judged or written again"
    )
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []
    assert len(teach(sums(3), {"1+1": [right(2)]}, num_generations=1)) == 1
    assert len(kept()) == 3 and record()["answers"] == {"kept": 3}
    assert len(teach(sums(3), None, num_generations=1)) == 0


def test_other_rewards_are_tried_though_what_was_refused_is_refused_again(teach):
    def refusing(question, number):
        return refusal(400, "filtered") if question == "1+1" else "?"

    with pytest.raises(ValueError, match="Not one answer was kept"):
        teach(sums(3), refusing, num_generations=1)
    for least in (0.0, -1.0):  # on answers that are not published yet, and on those that are
        assert len(teach(sums(3), refusing, "--min_reward", f'{{"accuracy": {least}}}', num_generations=1)) == 1
        assert record()["answers"] == {"kept": 2, "refused by the endpoint": 1}


def test_an_endpoint_that_is_gone_leaves_answers_of_which_some_were_refused_as_they_are(teach, capsys):
    teach(sums(2), {"0+1": [right(1)], "1+1": [refusal(400, "filtered")]}, num_generations=1)
    teach(sums(2), None, "--base_url", "http://127.0.0.1:9/v1", num_generations=1)
    said = capsys.readouterr().out
    assert "cannot be had now either: Cannot connect" in said and "holds these very answers already" in said
    assert len(kept()) == 1


def test_an_endpoint_out_of_credit_costs_what_is_missing(teach):
    """Its refusals are not those of a prompt: nothing is written as if they were, and the rest is asked for."""
    paid = itertools.count()

    def short_of_money(question, number):
        return right(int(question[0]) + 1) if next(paid) < 2 else refusal(402, "Insufficient credits")

    with pytest.raises(ValueError, match="402 Insufficient credits.*2 answers are kept: the same command asks for"):
        teach(sums(9), short_of_money, num_generations=1)
    assert not Path("out").exists()
    assert len(teach(sums(9), lambda question, number: right(int(question[0]) + 1), num_generations=1)) == 7
    assert len(kept()) == 9


def test_where_nothing_is_kept_nothing_is_written_but_the_answers_stay(teach):
    with pytest.raises(ValueError, match="Not one answer was kept.*nothing is asked again"):
        teach(sums(2), lambda question, number: "?", num_generations=1)
    assert not Path("out").exists()
    asked = teach(sums(2), None, "--min_reward", '{"accuracy": 0}', num_generations=1)
    assert not asked and len(kept()) == 2
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def test_an_endpoint_that_gives_up_half_way_costs_what_is_missing(teach, monkeypatch):
    monkeypatch.setattr(endpoint, "ATTEMPTS", 2)

    def tired(question, number):
        return refusal(503, "tired") if question == "2+1" else right(int(question[0]) + 1)

    with pytest.raises(ValueError, match="503 tired. 2 answers are kept: the same command asks for the rest."):
        teach(sums(4), tired, num_generations=1)
    assert not Path("out").exists()
    assert len(teach(sums(4), lambda question, number: right(int(question[0]) + 1), num_generations=1)) == 2
    assert len(kept()) == 4


def test_the_key_is_told_to_the_endpoint_only(teach, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    teach(sums(1), lambda question, number: right(1), key=KEY, num_generations=1)
    with pytest.raises(ValueError, match="holds the wrong key") as raised:
        teach(sums(1), None, key="another", output_dir="other")
    assert KEY not in str(raised.value) and not Path("other").exists()
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    assert not [p for p in Path().rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min_reward", '{"acuracy": 1}'], "min_reward.*does not name 'acuracy'.*Did you mean 'accuracy'"),
        (["--min_reward", '{"accuracy": "x"}'], "min_reward.accuracy: 'x' is a str"),
        (["--reward_funcs", "acuracy"], "no reward 'acuracy'"),
        (["--reward_funcs", "steps", "tests.nowhere"], "cannot import 'tests.nowhere'"),
        (["--reward_schedule", "{}"], "Unknown key 'reward_schedule' in .* It is a key of `suite grpo`"),
        (["--dataset_train_split", "validation"], "has no split 'validation'"),
        (["--temperature", "0"], "temperature: 0 gives the same answer 4 times"),
        (["--temperature", "nan"], "temperature: nan must be at least 0 .greedy., and finite"),
        (["--top_p", "1.5"], "top_p: 1.5 must be above 0 and at most 1"),
        (["--use_vllm", "true"], "base_url names one elsewhere"),
        (["--dtype", "float32", "--vllm_max_model_length", "64"], "dtype, vllm_max_model_length: .*is loaded here"),
        (["--dataset_config", "main"], "dataset_config: this has no effect, for 'rows' is a path here and no name"),
        (["--output_dir", "rows"], "rows holds something that `suite sample` did not write"),
        (["--output_dir", "rows/train.parquet/x"], "Cannot write rows/train.parquet/x: .*Not a directory"),
        (["--api_key", KEY], "Unknown key 'api_key'"),
    ],
)
def test_a_mistake_is_one_line_and_nobody_is_asked(teach, words, message):
    with pytest.raises(ValueError, match=message) as raised:
        teach(sums(2), None, *words)
    assert not teach.asked and KEY not in str(raised.value)
    assert [path.name for path in Path().iterdir()] == ["rows"]


def test_rows_without_a_solution_are_refused(teach):
    with pytest.raises(ValueError, match="has the columns answer, question, and this stage needs.*prompt, solution"):
        teach([{"question": "1+1", "answer": "2"}], None)


def test_a_local_teacher_must_be_whole(tmp_path):
    write_rows(Path("rows"), sums(1))
    words = ["--dataset_name", "rows", "--output_dir", "out"]
    with pytest.raises(ValueError, match="no checkpoint directory 'runs/nowhere'"):
        sample.main(["--model_name_or_path", "runs/nowhere", *words])
    with pytest.raises(ValueError, match="request_kwargs are for requests to a base_url"):
        sample.main(["--model_name_or_path", "runs/nowhere", "--request_kwargs", '{"top_k": 1}', *words])


def test_a_local_teacher_that_cannot_be_asked_these_prompts_is_not_loaded(miniqwen_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "load_as_asked", None)
    bare = shutil.copytree(miniqwen_dir, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    write_rows(Path("rows"), sums(2))
    write_rows(Path("long"), [{"prompt": "1" * 600, "solution": "1"}])
    for rows, message in (("rows", "bare' has no chat template"), ("long", "1 of 1 prompts .* the 512 positions")):
        with pytest.raises(ValueError, match=message):
            sample.main(["--model_name_or_path", str(bare), "--dataset_name", rows, "--output_dir", "out"])
    assert {path.name for path in Path().iterdir()} == {"bare", "rows", "long"}


def test_a_local_teacher_whose_template_opens_thinking_gives_whole_traces(miniqwen_dir, tmp_path):
    teacher = shutil.copytree(miniqwen_dir, tmp_path / "teacher")
    template = (teacher / "chat_template.jinja").read_text()
    (teacher / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<think>\n{% endif %}")
    write_rows(Path("rows"), sums(2))
    words = ["--model_name_or_path", teacher, "--dataset_name", "rows", "--output_dir", "out", "--dtype", "float32"]
    words += ["--num_generations", 16, "--max_completion_length", 48, "--min_reward", "{}"]
    sample.main([str(word) for word in words])
    said = [row["completion"][0]["content"] for row in kept()]
    assert said and all(text.startswith("<think>\n") and "<|im_end|>" not in text for text in said)
    counted = record()["answers"]
    assert counted["cut off"] > 0 and sum(counted.values()) == 32 and record()["answered_by"] == "transformers"


def test_a_journal_that_was_cut_off_loses_one_line_and_a_broken_one_is_named(tmp_path):
    answers = Answers(tmp_path / "out", {"model": "m"})
    for number in range(3):
        answers.add("p", number, Completion(f"text {number}", 3, True))
    with pytest.raises(ValueError, match="Another process is writing"):
        Answers(tmp_path / "out", {"model": "m"})
    answers.close()
    journal = tmp_path / ".out.partial" / "answers.jsonl"
    journal.write_bytes(journal.read_bytes()[:-10])
    again = Answers(tmp_path / "out", {"model": "m"})
    assert len(again) == 2 and again.get("p", 1) == Completion("text 1", 3, True)
    again.add("p", 2, Completion("new", 1, True))
    again.close()
    assert len(journal.read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="out.partial holds answers that were asked in another way: model was 'm'"):
        Answers(tmp_path / "out", {"model": "other"})
    lines = journal.read_text()
    for broken, told in (("broken\n", "line 1: not JSON"), ('{"prompt": "p"}\n', "line 1: no answer")):
        journal.write_text(broken + lines)
        with pytest.raises(ValueError, match=f"answers.jsonl, {told}. Remove that line"):
            Answers(tmp_path / "out", {"model": "m"})
    journal.write_text(lines)
    for name in (".out.partial/sample.json", "out/sample.json"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"model"')
        with pytest.raises(ValueError, match=f"{name} is cut off or broken. Choose another output_dir"):
            Answers(tmp_path / "out", {"model": "m"})


@pytest.mark.parametrize(
    ("keys", "name"), [(sample.SampleArguments, "min_reward"), (endpoint.EndpointArguments, "request_kwargs")]
)
def test_a_mapping_in_the_help_can_be_typed(keys, name):
    (told,) = (key.metadata["help"] for key in fields(keys) if key.name == name)
    assert as_mapping(name, re.search(r"\{.*\}", told)[0])


@pytest.mark.slow
def test_rft_is_one_command_that_outlives_a_kill(miniqwen_dir, tmp_path):
    """`suite run rft`: sample, filter, SFT. Killed while it asks, it goes on; run again, it reuses everything."""
    write_rows(Path("rows"), sums(30))
    Path("rft").mkdir()
    journal = Path("data/.rft.partial/answers.jsonl")

    held, goes_on = [], threading.Event()  # it is killed half-way, when all that it may ask at a time is held here

    def answer(body):
        question = body["messages"][-1]["content"]
        if len(there.asked) > 30:
            held.append(body)
            goes_on.wait(300)
        return reply(right(int(question.split("+")[0]) + body["seed"] % 2, str(body["seed"])))

    with serving(answer) as there:
        teacher = {"model_name_or_path": MODEL, "base_url": there.url, "concurrency": 4}
        sifting = {"dataset_name": "rows", "num_generations": 4, "max_per_prompt": 1, "output_dir": "data/rft"}
        write_yaml(Path("rft/1-sample.yaml"), **teacher, **sifting)
        student = {"model_name_or_path": str(miniqwen_dir), "dataset_name": "data/rft", "output_dir": "runs/rft"}
        how = {"max_steps": 2, "resume_from_checkpoint": True, "use_cpu": True, "bf16": False, "report_to": "none"}
        write_yaml(Path("rft/2-sft.yaml"), **student, **how)

        process = subprocess.Popen([sys.executable, "-m", "suite.cli", "run", "rft"], env=os.environ)
        patience = time.monotonic() + 300
        while len(held) < 4 or journal.read_bytes().count(b"\n") < len(there.asked) - 4:
            assert process.poll() is None and time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        goes_on.set()
        there_already, asked = journal.read_bytes().count(b"\n"), len(there.asked)
        assert 20 <= there_already < 120 and asked - there_already == 4
        assert not Path("data/rft").exists()

        done = run_suite("run", "rft")
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{there_already} of 120 answers are there; asking for {120 - there_already}." in done.stdout
        assert len(there.asked) - asked == 120 - there_already
        # Only what was in flight is asked again, and just as it was asked before.
        seeds = [[body["seed"] for body in part] for part in (there.asked[asked:], there.asked[:asked])]
        assert len(set(seeds[0]) & set(seeds[1])) == asked - there_already
        assert {path.name for path in Path("data/rft").iterdir()} == {"train.parquet", "sample.json", "answers.jsonl"}
        assert 20 < len(kept("data/rft")) <= 30 and not journal.exists()
        run = json.loads(Path("runs/rft/run.json").read_text())
        assert run["finished"] and run["steps"] == 2 and "data/rft" in run["inputs"]

        asked = len(there.asked)
        done = run_suite("run", "rft")
        assert done.returncode == 0, done.stderr[-3000:]
        assert "holds these very answers already" in done.stdout and "holds this very run, complete" in done.stdout
        assert len(there.asked) == asked
