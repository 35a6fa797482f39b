"""What evaluation measures follows from the rows, and each stage is told by its goal."""

import json
import shutil
from pathlib import Path

import pytest

from suite import cli, evaluate, privacy, report, results
from tests.conftest import shaken, write_yaml
from tests.rows import write_rows


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    """Rows that can be asked everything: text, prompt, completion, chosen, rejected, solution."""
    from suite import prepare

    target = tmp_path_factory.mktemp("data") / "sums"
    words = ["arithmetic", "--output_dir", target, "--size", 20, "--test_size", 12, "--pairs", "true"]
    prepare.main([*map(str, words), "--system_prompt", "none"])
    return target


@pytest.fixture
def line(miniqwen_dir) -> tuple[str, str]:
    """(a model from nothing, one that was made from it) as runs leave them."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(miniqwen_dir, "runs/first")
    shutil.copytree(miniqwen_dir, "runs/second")
    model = AutoModelForCausalLM.from_pretrained("runs/second")
    shaken(model)
    model.save_pretrained("runs/second")
    for name, config in (("first", {}), ("second", {"model_name_or_path": "runs/first"})):
        made = {"stage": "sft", "config": config, "inputs": {}, "processes": 1, "versions": {}, "pins": [],
                "finished": True, "seconds": 1.0, "steps": 1}  # fmt: skip
        Path("runs", name, "run.json").write_text(json.dumps(made))
        Path("runs", name, "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 1.0}]}')
    return "runs/first", "runs/second"


def measured(*checkpoints: str, **keys) -> list[dict]:
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    evaluate.main(["--checkpoints", *checkpoints, "--output_dir", "runs", *words])
    return json.loads(Path("runs/results.json").read_text())


def test_each_stage_is_told_by_what_it_is_there_for_before_and_after(sums, line, capsys):
    purposes = json.dumps({"first": "bits_per_byte", "second": "preferred"})
    how = {"dataset_name": sums, "max_completion_length": 4, "num_generations": 0, "metrics": purposes}
    measured(line[1], **how)  # before what it was made from: its `before` comes later
    first, second = sorted(measured(*line, **how), key=lambda r: r["stage"])
    assert (first["metric"], second["metric"]) == ("bits_per_byte", "preferred")
    for result in (first, second):
        value = result["metrics"][result["metric"]]
        assert (result["after"], result["ci95"], result["n"]) == (value["value"], value["ci95"], 12)
        assert {"accuracy", "format", "thinking", "preferred", "bits_per_byte"} <= result["metrics"].keys()
    assert first["before"] == first["guessing"] > first["after"] * 0.5
    assert second["before"] == first["metrics"]["preferred"]["value"]
    assert measured(*line, **how) == [second, first]  # nothing is measured twice
    report.main(["runs"])
    page, said = Path("runs/report.html").read_text(), capsys.readouterr().out
    assert "goal" in page and "bits per byte" in said and "preferred, %" in said
    assert "report/before-after.png" in Path("runs/report.md").read_text()


def test_rows_of_text_alone_are_read_and_nobody_answers(sums, line, tmp_path):
    rows = [json.dumps({"text": "12+34=46"}), json.dumps({"text": "the number"})]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (result,) = measured(line[0], dataset_name=tmp_path)
    assert result["metrics"].keys() == {"bits_per_byte"} and result["metric"] == "bits_per_byte"
    assert not Path("runs/rows.jsonl").read_text()
    report.main(["runs"])


def test_a_before_is_found_however_the_start_is_written():
    Path("runs").mkdir()
    first = {"checkpoint": "runs/first", "stage": "first", "identity": "1", "started_from": None, "conditions": "alike",
             "metric": "accuracy", "metrics": {"accuracy": {"value": 0.5}}}  # fmt: skip
    second = {
        **first,
        "checkpoint": str(Path("runs/second").resolve()),
        "identity": "2",
        "started_from": "./runs/first/",
    }
    third = {**first, "checkpoint": "runs/third", "identity": "3", "started_from": str(Path("runs/second").resolve())}
    for result in (first, second, third):
        results.collect(Path("runs"), result, [])
    assert [result["before"] for result in results.results_of(Path("runs"))] == [None, 0.5, 0.5]
    for name in ("runs/first/", "./runs/first", "runs/../runs/first", str(Path("runs/first").resolve())):
        results.collect(Path("runs"), {**first, "checkpoint": name}, [])  # takes the place of runs/first
        assert len(results.results_of(Path("runs"))) == 3


def test_an_evaluation_is_reused_resumed_and_found_however_its_checkpoint_is_written(sums, line, capsys):
    how = {"dataset_name": sums, "max_completion_length": 4, "num_generations": 0}
    there = measured(line[1], **how)
    for name in (f"./{line[1]}", f"{line[1]}/", str(Path(line[1]).resolve())):
        assert measured(name, **how) == there
        assert "runs/second was already evaluated this way" in capsys.readouterr().out
        assert results.find(Path("runs"), name) == (Path("runs"), there[0])
    (changed,) = measured(str(Path(line[1]).resolve()), **{**how, "max_completion_length": 5})
    rows = Path("runs/rows.jsonl").read_text().splitlines()
    assert len(rows) == 12 and {json.loads(row)["identity"] for row in rows} == {changed["identity"]}
    assert "| | second | n |" in Path("runs/second/README.md").read_text().replace("  ", " ")
    Path("runs/.0.journal").write_text('{"checkpoint": "./runs/first"}\n')  # what a kill left
    assert results.called(Path("runs"), str(Path("runs/first").resolve())) == "./runs/first"
    for broken in ("7\n", '["x"]\n', "{}\n", "{"):  # another's, which is no reason to stop
        Path("runs/.1.journal").write_text(broken)
        assert results.called(Path("runs"), "runs/third") == "runs/third"
    assert not results.is_same("me/model", str(Path("me/model").resolve()))  # on the Hub, and a directory that is gone
    Path("loop").symlink_to("loop")
    assert not results.is_same("loop", "runs/first")


def test_what_was_asked_other_rows_stands_in_no_table_with_the_others(sums, line, capsys):
    how = {"dataset_name": sums, "num_generations": 0}
    measured(line[0], **how, max_completion_length=4)
    assert "Asked in different ways" not in capsys.readouterr().out
    measured(line[1], **how, max_completion_length=5, max_rows=3, dataset_test_split="train")
    report.main(["runs"])
    sums = privacy.shown(sums)
    first = f"{sums}, 12 rows, max_completion_length 4"
    second = f"{sums} (split train), 3 rows, max_completion_length 5"
    table, _ = capsys.readouterr().out.split("\n(Shares")
    told = table[table.rindex("Asked in different ways") :].split(f"{second}:")
    assert f"{first}:" in told[0] and "second" not in told[0].replace(first, "") and "\nfirst " not in told[1]
    page, short = Path("runs/report.html").read_text(), Path("runs/report.md").read_text()
    assert page.count(f"<h3>{first}</h3>") == page.count(f"<h3>{second}</h3>") == 2
    assert short.count("numbers are comparable only below the same heading") == 2


def test_a_directory_has_one_name_however_it_is_written():
    assert evaluate.EvaluateArguments(checkpoints=["runs/first/"]).checkpoints == ["runs/first"]
    assert evaluate.EvaluateArguments(checkpoints=["runs/first", "runs/first/"]).checkpoints == ["runs/first"]
    assert evaluate._stage(".") == Path.cwd().name and evaluate._stage("runs/..") == Path.cwd().name


def test_a_link_among_the_checkpoints_of_a_run_is_taken_for_what_it_points_to(capsys):
    for name in ("checkpoint-10", "checkpoint-20"):
        Path("run", name).mkdir(parents=True)
    Path("run/best").symlink_to("checkpoint-20")
    names = sorted(str(path) for path in Path("run").iterdir())  # run/*, as a shell writes it
    found = evaluate.EvaluateArguments(checkpoints=names).checkpoints
    assert found == ["run/checkpoint-10", "run/checkpoint-20"]
    assert capsys.readouterr().out == "run/best is run/checkpoint-20, which is evaluated once.\n"


def test_a_metric_the_rows_cannot_be_asked_is_refused(arithmetic_dir, line):
    with pytest.raises(ValueError, match="the goal of first is preferred, which these rows cannot"):
        measured(line[0], dataset_name=arithmetic_dir, metrics='{"first": "preferred"}')
    with pytest.raises(ValueError, match="no metric .* 'prefered'.* Did you mean 'preferred'"):
        measured(line[0], dataset_name=arithmetic_dir, metrics='{"first": "prefered"}')


def test_the_evaluation_of_a_chapter_is_the_nearest_there_is(tmp_path):
    for name in ("evaluate", "evaluate-dpo", "evaluate-sft-long"):
        write_yaml(tmp_path / f"{name}.yaml")
    found = {
        chapter: cli._evaluation_of(tmp_path / f"{chapter}.yaml", chapter.split("-")[1]).stem
        for chapter in ("3-sft-long", "4-dpo", "5-dpo-again", "6-sft", "7-grpo")
    }
    assert found == {"3-sft-long": "evaluate-sft-long", "4-dpo": "evaluate-dpo", "5-dpo-again": "evaluate-dpo",
                     "6-sft": "evaluate", "7-grpo": "evaluate"}  # fmt: skip


def test_an_evaluation_of_one_chapter_looks_at_what_it_started_from_too(tmp_path, line):
    chapter = write_yaml(tmp_path / "4-dpo.yaml", model_name_or_path=line[0])
    assert cli._looked_at(chapter, Path(line[1]), Path("evaluate-dpo.yaml")) == [*line]
    assert cli._looked_at(chapter, Path(line[1]), Path("evaluate.yaml")) == [line[1]]


def tasks(target: Path) -> Path:
    """Rows of two subjects, six to ask and two of each to show, in the manner of a benchmark."""
    rows = [
        {"prompt": [{"role": "user", "content": f"{n}+1"}], "solution": str(n + 1), "subject": ("one", "two")[n % 2]}
        for n in range(10)
    ]
    write_rows(target / "test.parquet", rows[:6])
    write_rows(target / "train.parquet", rows[6:])
    return target


def test_the_same_seed_says_the_same_with_examples_and_another_prompt_says_what_differs(tmp_path, line, capsys):
    words = ["--checkpoints", line[1], "--dataset_name", str(tasks(tmp_path / "tasks"))]
    words += ["--max_completion_length", "6", "--num_generations", "4", "--num_fewshot", "2"]
    found = {}
    for place, more in (("first", []), ("again", []), ("other", ["--system_prompt", "The number."])):
        evaluate.main([*words, *more, "--output_dir", place])
        (found[place],) = json.loads(Path(place, "results.json").read_text())
    assert "accuracy by subject" in capsys.readouterr().out
    assert Path("first/rows.jsonl").read_bytes() == Path("again/rows.jsonl").read_bytes()
    assert {**found["first"], "seconds": 0} == {**found["again"], "seconds": 0}
    assert found["first"]["asked"]["prompt"]["num_fewshot"] == 2
    assert found["first"]["asked"]["versions"].keys() == {"suite", "torch", "transformers"}
    assert {"pass@1", "pass@4", "maj@4"} <= found["first"]["metrics"].keys()
    assert {subject: m["n"] for subject, m in found["first"]["by"]["subject"].items()} == {"one": 3, "two": 3}
    assert [json.loads(row)["prompt"] for row in Path("first/rows.jsonl").read_text().splitlines()][:2] == [
        "0+1",
        "1+1",
    ]
    evaluate.main(["--compare", "first", "other"])
    told = capsys.readouterr().out
    assert "prompt.hash: " in told and "prompt.system_prompt: None, and The number." in told and "sampler" not in told


def without_template(name: str) -> str:
    bare = shutil.copytree(name, f"{name}-bare")
    Path(bare, "chat_template.jinja").unlink()
    return bare


@pytest.mark.parametrize(
    ("prompt", "keys", "message"),
    [
        ([{"role": "user", "content": "1+1"}], {}, "bare' has no chat template, and a prompt is a conversation"),
        (
            "1+1" * 400,
            {},
            "1 of 2 prompts do not fit: the longest has 1200 tokens, .* the 512 positions .*[.] Leave such",
        ),
        (
            "1+1",
            {"num_fewshot": 1, "use_vllm": True, "vllm_max_model_length": 8},
            "2 of 2 prompts do not fit.* the 8 positions .*[.] Show fewer examples",
        ),
    ],
)
def test_what_a_checkpoint_cannot_be_asked_is_told_before_any_is_loaded(prompt, keys, message, line, monkeypatch):
    from suite import engine

    monkeypatch.setattr(engine, "load", None)  # nobody is to be loaded
    monkeypatch.setattr(engine, "require_asked", lambda *asked: None)  # which looks for vLLM
    short = "1" if isinstance(prompt, str) else prompt
    rows = [{"prompt": short, "solution": "1"}, {"prompt": prompt, "solution": "2"}]
    write_rows(Path("data/train.parquet"), [{"prompt": "3+3", "solution": "6"}])
    write_rows(Path("data/test.parquet"), rows)
    with pytest.raises(ValueError, match=message):
        measured(line[0], without_template(line[1]), dataset_name="data", **keys)
    assert not Path("runs/results.json").exists()


def test_examples_need_training_rows(tmp_path, line):
    (tasks(tmp_path / "tasks") / "train.parquet").unlink()
    with pytest.raises(ValueError, match="num_fewshot takes its examples from the training rows. .* no split 'train'"):
        measured(line[0], dataset_name=tmp_path / "tasks", num_fewshot=1)
    with pytest.raises(ValueError, match="top_p: 2.* must be above 0 and at most 1"):
        measured(line[0], dataset_name=tmp_path / "tasks", top_p=2)
    with pytest.raises(ValueError, match="num_fewshot: -1 must be at least 0"):
        measured(line[0], dataset_name=tmp_path / "tasks", num_fewshot=-1)


def test_rows_with_tests_are_judged_by_running_what_was_said(tmp_path, line):
    row = {
        "prompt": [{"role": "user", "content": "def one():\n"}],
        "solution": "def one():\n    return 1",
        "tests": "assert one() == 1",
        "starter_code": "def one():\n    ''",
    }
    write_rows(tmp_path / "programs/test.parquet", [row] * 3)
    (result,) = measured(line[0], dataset_name=tmp_path / "programs", max_completion_length=4, num_generations=0)
    assert (result["metrics"]["accuracy"]["value"], result["metrics"]["accuracy"]["n"]) == (0.0, 3)
    said = [json.loads(text) for text in Path("runs/rows.jsonl").read_text().splitlines()]
    assert {row["judged_by"] for row in said} <= {"tests", "no answer"}


def test_thinking_is_counted_from_where_the_prompt_opens_it_and_without_the_tokens_around_a_text(tokenizer_dir):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    begin = ("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    chat = [{"role": "user", "content": "1+1"}]
    asked = ["1+1=", "1+1=\n<think>", chat, [*chat, {"role": "assistant", "content": "<think>"}]]
    for kind in ("greedy", "sampled"):  # which are told of the greedy ones
        said = [{"row": n, "kind": kind, "completion": "12</think><answer>2</answer>"} for n in range(4)]
        for opened, lengths in ((False, [0, 2, 0, 2]), (True, [0, 2, 2, 2])):
            found = evaluate._thinking_tokens(said, [{"prompt": p} for p in asked], tokenizer, opened)
            assert found == (lengths if kind == "greedy" else [])
