"""What a report draws of checkpoints on the way: each run a line, by its steps and by its seconds."""

import json
from pathlib import Path

import pytest
from PIL import Image

from suite import comparison, evaluate, plots, report, tables
from suite.results import results_of, told_apart
from suite.whole import NoRoomError
from tests.disk import full_disk


def lay(name: str, **told) -> str:
    Path(name).mkdir(parents=True, exist_ok=True)
    (Path(name) / "run.json").write_text(json.dumps(told))
    return name


def result(name: str, value: float, metric: str = "bits_per_byte") -> dict:
    measured = {"value": value, "ci95": [value - 0.1, value + 0.1], "n": 9}
    about = {"stage": evaluate._stage(name), "checkpoint": name, "metric": metric, "before": None, "identity": name}
    return {**about, "after": value, "ci95": measured["ci95"], "n": 9, "seconds": 1.0, "metrics": {metric: measured}}


def test_checkpoints_of_a_run_are_a_curve_over_steps_and_seconds_and_what_stands_alone_is_none():
    results = [
        result(lay("runs/dense/checkpoint-20", step=20, spent=4.0), 2.0),
        result(lay("runs/dense", steps=40, seconds=9.0), 1.5),
        result(lay("runs/dense/checkpoint-10", step=10, spent=2.0), 3.0),
        result(lay("runs/alone", steps=40, seconds=9.0), 1.0),
        result("hub/model", 1.0),  # of which nobody knows the steps
        result(lay("runs/other/checkpoint-10", step=10, spent=3.0), 0.5, "accuracy"),
    ]
    found = report.progress(results)
    assert found.keys() == {"bits_per_byte"} and found["bits_per_byte"].keys() == {"dense"}
    points = [(p["step"], p["seconds"], p["value"]) for p in found["bits_per_byte"]["dense"]]
    assert points == [(10, 2.0, 3.0), (20, 4.0, 2.0), (40, 9.0, 1.5)]
    Path("runs/results.json").write_text(json.dumps(results))
    report.main(["runs"])
    assert "report/progress-bits-per-byte.png" in Path("runs/report.md").read_text()
    assert Path("runs/report/progress-bits-per-byte.png").stat().st_size > 5000


def test_one_row_has_no_interval_and_is_told_and_drawn_without():
    results = []
    for step, value, ci95 in ((10, 3.0, [None, None]), (20, 2.0, [1.9, 2.1])):
        told = result(lay(f"runs/dense/checkpoint-{step}", step=step, spent=4.0), value)
        told["metrics"] |= {"thinking": {"value": 12.0, "ci95": [None, None], "n": 1}}
        told["metrics"]["bits_per_byte"]["ci95"] = ci95
        results.append({**told, "ci95": ci95})
    Path("runs/results.json").write_text(json.dumps(results))
    report.main(["runs"])
    assert "bits per byte 3.00 [-, -], n = 9" in tables.one_line(results[0])
    assert Path("runs/report/progress-bits-per-byte.png").stat().st_size > 5000
    _, rows = tables.before_after(results)
    assert [row[1:3] for row in rows] == [["3.00 [-, -]", "2.00 [1.90, 2.10]"], ["12.0 [-, -]", "12.0 [-, -]"]]
    plots.draw_results(results, Path("bars.png"))
    assert Path("bars.png").stat().st_size > 5000


def test_checkpoints_that_were_asked_in_different_ways_share_no_curve_and_no_bars():
    asked = {"sampler": {"seed": 0}, "engine": {"name": "vllm"}, "data": {"name": "sums", "rows": 9}}
    results = []
    for way, kept in (
        ("1", asked),
        ("2", {**asked, "sampler": {"seed": r"$\boxed{}$"}}),
        ("3", {**asked, "judge": "other"}),
    ):
        for step in (10, 20):
            name = lay(f"runs/dense-{way}/checkpoint-{step}", step=step, spent=4.0)
            results.append({**result(name, 0.5, "accuracy"), "dataset": "sums", "conditions": way, "asked": kept})
    ways = comparison.asked_alike(results)
    assert [how for how, _ in ways] == [
        "sums, 9 rows, seed 0 (1)",
        r"sums, 9 rows, seed $\boxed{}$",
        "sums, 9 rows, seed 0 (3)",
    ]
    assert [alike for _, alike in ways] == [results[:2], results[2:4], results[4:]]
    assert comparison.asked_alike(results[:2]) == [("", results[:2])]
    assert comparison.asked_alike([result("a", 0.5), *results[:1]])[0][0] == "an older evaluation, 9 rows"
    Path("runs/results.json").write_text(json.dumps(results))
    report.main(["runs"])
    drawn = sorted(path.name for path in Path("runs/report").glob("progress-*"))
    assert drawn == ["progress-accuracy-2.png", "progress-accuracy-3.png", "progress-accuracy.png"]
    told = Path("runs/report.md").read_text()
    assert all(f"report/{name}" in told for name in drawn) and "accuracy, sums, 9 rows, seed 0 (3)\n\n![" in told
    plots.draw_results(results, Path("bars.png"))
    plots.draw_results(results[:2], Path("alike.png"))
    bars, alike = (Image.open(name).height for name in ("bars.png", "alike.png"))
    assert bars == 3 * alike


def test_two_runs_of_one_name_have_lines_columns_and_answers_of_their_own():
    names = [lay(f"runs/{run}/sft", steps=40, seconds=9.0) for run in "ab"]
    results = [{**result(name, 0.5, "accuracy"), "dataset": "x"} for name in names]
    results += [result(lay(f"{name}/checkpoint-9", step=9, spent=3.0), 0.4, "accuracy") for name in names]
    rows = [{"checkpoint": name, "stage": "sft", "identity": name, "row": 0, "kind": "greedy", "prompt": "1+1",
             "solution": "2", "completion": "2", "accuracy": 1.0} for name in names]  # fmt: skip
    Path("runs/results.json").write_text(json.dumps(results))
    Path("runs/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report.progress(told_apart(results))["accuracy"].keys() == {"a/sft", "b/sft"}
    report.main(["runs"])
    told = Path("runs/report.md").read_text()
    assert all(line in told for line in ("| a/sft | accuracy", "| b/sft/checkpoint-9 | accuracy", "b/sft, right:"))
    assert "| sft" not in told and json.loads(Path("runs/results.json").read_text()) == results


def test_a_page_shows_no_answer_under_another_question_and_reads_as_it_should():
    names = [lay(f"runs/my {run}", stage=run, finished=True, steps=40, seconds=9.0) for run in ("sft", "grpo")]
    for name in names:
        (Path(name) / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 1.0}]}')
    rows = [{"checkpoint": name, "stage": Path(name).name, "identity": name, "row": 0, "kind": "greedy",
             "prompt": asked, "solution": "2", "completion": f"```\n{asked}\n```", "accuracy": 1.0}
            for name, asked in zip(names, ("1+1\n= ?", "Who\nwrote Faust?"), strict=True)]  # fmt: skip
    Path("runs/results.json").write_text(json.dumps([result(name, 0.5, "accuracy") for name in names]))
    Path("runs/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.main([str(Path("runs").resolve())])
    told = Path("runs/report.md").read_text()
    assert "sft, 40 steps in 9 s; my sft: accuracy, % 50.0" in told
    assert "## 1+1 = ? (gold: 2)\n\nmy sft, right:\n\n````text\n```\n1+1\n= ?\n```\n````" in told
    assert "## Who wrote Faust? (gold: 2)\n\nmy grpo, right:" in told and "](report/my%20sft-loss.png)" in told


def test_what_the_reward_could_not_judge_is_not_told_as_wrong(capsys):
    name = lay("runs/sft", stage="sft", finished=True, steps=40, seconds=9.0)
    row = {"checkpoint": name, "stage": "sft", "identity": name, "row": 0, "kind": "greedy", "prompt": "1+1",
           "solution": "2", "completion": "2", "accuracy": None}  # fmt: skip
    Path("runs/results.json").write_text(json.dumps([result(name, 0.5, "accuracy")]))
    Path("runs/rows.jsonl").write_text(json.dumps(row) + "\n")
    report.main(["runs"])
    assert "sft, not judged:" in Path("runs/report.md").read_text()
    assert "<b>sft</b>, not judged" in Path("runs/report.html").read_text()
    assert "not judged  2" in capsys.readouterr().out


def test_what_was_measured_on_other_rows_below_a_directory_is_on_its_page_and_told_by_where():
    """As in configs/miniqwen-26m: sums in the directory itself, the text and the pairs each in one below it."""
    dpo, pretrain = (lay(f"runs/life/{name}", steps=40, seconds=9.0) for name in ("dpo", "pretrain"))
    sums = {**result(dpo, 0.5, "accuracy"), "dataset": "sums"}
    below = {
        "pairs": [{**result(dpo, 0.75, "preferred"), "identity": "pairs"}],
        "text": [{**result(pretrain, 1.25), "identity": "text"}],
        "dpo": [sums],  # the same evaluation once more
        ".dpo": [result(dpo, 0.1, "format")],  # what a kill left
    }
    for name, results in {"": [sums], **below}.items():
        Path("runs/life", name).mkdir(exist_ok=True)
        Path("runs/life", name, "results.json").write_text(json.dumps(results))
    report.main(["runs/life"])
    table = Path("runs/life/report.md").read_text().split("\n\n")[1].splitlines()[2:]
    assert [line.split(" | ")[:4] for line in table] == [
        ["| dpo", "accuracy, %", "-", "50.0"],
        ["| pairs/dpo", "preferred, %", "-", "75.0"],
        ["| text/pretrain", "bits per byte", "-", "1.25"],
    ]


def test_a_checkpoint_on_the_way_is_called_by_its_run_whose_purpose_is_its_own():
    assert evaluate._stage("runs/sft/checkpoint-40") == "sft/checkpoint-40" and evaluate._stage("runs/sft") == "sft"
    keys = evaluate.EvaluateArguments(checkpoints=["runs/sft/checkpoint-40"], metrics={"sft": "format"})
    rows = [{"prompt": "1+1", "solution": "2"}]
    assert evaluate._purpose("runs/sft/checkpoint-40", rows, keys)["metric"] == "format"
    assert evaluate._purpose("runs/other/checkpoint-40", rows, keys)["metric"] == "accuracy"


def test_a_picture_is_drawn_again_only_where_it_would_show_something_else(tmp_path):
    path = tmp_path / "curves.png"
    one = {"loss": {"loss": ([1, 2], [3.0, 2.0])}}
    other = {"loss": {"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}}

    def drawn(shown: dict) -> bool:
        before = path.stat().st_mtime_ns if path.exists() else None
        plots.drawn_once(plots.draw_all_curves, shown, path)
        return path.stat().st_mtime_ns != before

    assert [drawn(shown) for shown in (one, one, other, one)] == [True, False, True, True]
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])  # cut off by a kill
    assert drawn(one) and path.read_bytes() == whole
    with full_disk(len(whole) - 1), pytest.raises(NoRoomError, match="Cannot write .*curves.png: .*Make room there"):
        drawn(other)
    assert path.read_bytes() == whole and [left.name for left in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', '[{"accuracy": 1}]', "[{"])
def test_results_that_are_nobodys_are_named(content):
    Path("results.json").write_text(content)
    with pytest.raises(ValueError, match="results.json is (not of `suite evaluate`|cut off or broken)"):
        results_of(Path())


def test_a_page_of_a_run_whose_record_is_cut_off_names_it():
    with pytest.raises(ValueError, match="completions: -1 must be at least 0"):
        report.main([".", "--completions", "-1"])
    run = Path("runs/sft")
    run.mkdir(parents=True)
    (run / "trainer_state.json").write_text('{"log_history": ')
    with pytest.raises(ValueError, match="'runs/sft/trainer_state.json' is cut off or broken"):
        report.main(["runs"])
