"""Two models on the same problems: the test against scipy's, the interval against simulation, and what is said."""

import json
import random
import subprocess

import pytest

from suite import checkpoint, comparison, conditions, engine, evaluate
from suite.comparison import Comparison
from suite.results import told_apart
from tests.conftest import LM_EVAL


def test_mcnemars_p_is_scipys():
    rng = random.Random(0)
    pairs = [(rng.randrange(60), rng.randrange(60)) for _ in range(300)]
    told = [pair for pair in pairs if sum(pair)] + [(900, 1100)]
    asked = (
        "import json, sys; from scipy.stats import binomtest\n"
        "print(json.dumps([binomtest(a, a + b).pvalue for a, b in json.loads(sys.argv[1])]))"
    )
    expected = json.loads(subprocess.check_output([LM_EVAL / "python", "-c", asked, json.dumps(told)], text=True))
    for (first, second), p in zip(told, expected, strict=True):
        assert abs(Comparison(9, first, second, 9).p - p) < 1e-9
    assert len(told) > 290 and Comparison(9, 0, 0, 9).p == 1


def test_the_interval_of_a_difference_is_newcombes():
    found = Comparison(36, 12, 2, 0)  # Newcombe 1998, table II, case (a), method 10
    assert [round(-end, 4) for end in reversed(found.ci95)] == [0.0569, 0.3404]
    assert Comparison(54, 0, 0, 0).ci95 == pytest.approx([-0.0664, 0.0664], abs=1e-4)


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.15, 0.25), (0.1, 0.02, 0.08, 0.8), (0.85, 0.05, 0.05, 0.05)])
def test_the_interval_covers_the_true_difference_19_times_in_20(shares):
    rng, hits, runs = random.Random(0), 0, 2000
    for _ in range(runs):
        drawn = rng.choices(range(4), shares, k=200)
        low, high = Comparison(*(drawn.count(i) for i in range(4))).ci95
        hits += low <= shares[2] - shares[1] <= high
    assert 0.93 <= hits / runs <= 0.97


def evaluated(directory, **stages: list) -> None:
    """results.json and rows.jsonl of stages that were right where their list says 1; None could not be judged."""
    results, lines = [], []
    for name, right in stages.items():
        about = {"checkpoint": f"runs/{name}", "stage": name, "identity": name}
        results.append({**about, "accuracy": 0.5, "conditions": "alike" if len(right) < 6 else "other"})
        for number, score in enumerate(right):
            row = {"row": number, "kind": "greedy", "prompt": f"{number}+1", "solution": str(number + 1)}
            lines.append(json.dumps({**about, **row, "accuracy": score, "answer": f"{name}'s"}))
            lines.append(json.dumps({**about, **row, "kind": "sampled", "accuracy": 1.0, "answer": "x"}))
    checkpoint.write_json(directory / "results.json", results)
    (directory / "rows.jsonl").write_text("".join(line + "\n" for line in lines))


def test_evaluate_compares_two_by_their_stages_and_names_what_flipped(tmp_path, capsys):
    evaluated(tmp_path, sft=[1.0, 0.0, 0.0, 1.0, None], grpo=[1.0, 1.0, 1.0, 0.0, 1.0])
    evaluate.main(["--compare", "sft", "runs/grpo", "--output_dir", str(tmp_path), "--max_flips", "1"])
    told = capsys.readouterr().out
    assert "sft: 50.0 %   runs/grpo: 75.0 %   on 4 problems" in told and "difference +25.0 points [" in told
    assert "2 problems gained, 1 lost, 1 right in both, 0 in neither" in told and "p = 1" in told
    assert "gained: 1+1  (gold 2): sft's -> grpo's" in told and "1 more that were gained" in told
    assert "lost: 3+1" in told and "warning" not in told
    assert "1 more that both answered could not be judged" in told


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    evaluated(tmp_path, sft=[1.0, 0.0], grpo=[1.0] * 6, other=[None])
    evaluate.main(["--compare", "sft", "grpo", "--output_dir", str(tmp_path)])
    assert "warning: they were not evaluated alike" in capsys.readouterr().out
    for names, message in (
        (["sft", "dpo"], "no evaluation of 'dpo'. There are: sft, grpo, other"),
        (["sft", "other"], "no judged problem in common"),
        (["sft"], "takes two names"),
        (["sft", "runs/sft"], "sft and runs/sft are the same evaluation"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.main(["--compare", *names, "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="holds no evaluation. Run one first: `suite evaluate --checkpoints"):
        evaluate.main(["--compare", "a", "b", "--output_dir", str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="Name `checkpoints` to evaluate, or two"):
        evaluate.main(["--output_dir", str(tmp_path)])
    assert comparison.compare([({"accuracy": 1.0}, {"accuracy": 0.5})]) == Comparison(0, 1, 0, 0)


def how(**changes: dict) -> dict:
    """How a checkpoint was asked, but for some keys of some parts."""
    asked = conditions.of(
        "data/sums",
        [{"prompt": "1+1", "solution": "2"}],
        changes.pop("prompts", ["1+1"]),
        {"system_prompt": None, "num_fewshot": 0},
        {"temperature": 1.0, "seed": 0},
        engine.EngineArguments(),
    )
    return {**asked, **{part: {**asked[part], **keys} for part, keys in changes.items()}}


def test_what_two_evaluations_differ_in_is_named_with_both_values():
    same = how()
    assert conditions.differences(same, how(data={"name": "./data/sums"})) == []  # the same rows by another name
    assert conditions.identity(same) == conditions.identity(how(versions={"torch": "9"}, data={"name": "elsewhere"}))
    for part, key, value in (
        ("sampler", "temperature", 0.7),
        ("engine", "dtype", "float32"),
        ("versions", "torch", "9"),
    ):
        other = how(**{part: {key: value}})
        assert conditions.differences(same, other) == [f"{part}.{key}: {same[part][key]}, and {value}"]
        assert (conditions.identity(same) == conditions.identity(other)) is (part == "versions")
    shown = how(prompts=["3+3=6 1+1"], prompt={"num_fewshot": 1})
    hashes = [asked["prompt"]["hash"] for asked in (same, shown)]
    assert conditions.differences(same, shown) == [
        f"prompt.hash: {hashes[0]}, and {hashes[1]}",
        "prompt.num_fewshot: 0, and 1",
    ]
    other_engine = conditions.differences(same, how(engine={"name": "vllm"}))
    assert other_engine == ["engine.name: transformers, and vllm"]


def test_evaluations_in_two_directories_are_compared_and_what_sets_them_apart_is_told(tmp_path, capsys):
    for directory, stages in (("a", {"sft": [1.0, 0.0]}), ("b", {"sft": [1.0, 1.0], "grpo": [0.0, 1.0]})):
        (tmp_path / directory).mkdir()
        evaluated(tmp_path / directory, **stages)
        results = json.loads((tmp_path / directory / "results.json").read_text())
        asked = how() if directory == "a" else how(prompts=["Think. 1+1"], prompt={"system_prompt": "Think."})
        checkpoint.write_json(tmp_path / directory / "results.json", [{**r, "asked": asked} for r in results])
    a, b = tmp_path / "a", tmp_path / "b"
    evaluate.main(["--compare", str(a / "sft"), str(b / "sft"), "--output_dir", str(tmp_path)])
    told = capsys.readouterr().out
    assert "50.0 %" in told and "100.0 %" in told and "1 problems gained, 0 lost" in told
    assert (
        "not evaluated alike" in told and "prompt.hash: " in told and "prompt.system_prompt: None, and Think." in told
    )
    evaluate.main(["--compare", "sft", "grpo", "--output_dir", str(b)])
    assert "not evaluated alike" not in capsys.readouterr().out
    evaluate.main(["--compare", str(a), "grpo", "--output_dir", str(b)])  # a directory with one evaluation
    assert "0.0 %" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has 2 evaluations of .*There are: runs/sft, runs/grpo"):
        evaluate.main(["--compare", str(a), str(b), "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="has no evaluation of '.*other'.*name it with its directory"):
        evaluate.main(["--compare", str(a / "other"), "grpo", "--output_dir", str(b)])


def test_two_runs_of_one_name_are_told_apart_by_the_ends_of_their_paths_and_named_by_them():
    def called(*checkpoints: str) -> list[str]:
        told = told_apart([{"checkpoint": name, "stage": evaluate._stage(name)} for name in checkpoints])
        return [each["stage"] for each in told]

    assert called("runs/a/sft", "runs/b/sft", "runs/a/grpo") == ["a/sft", "b/sft", "grpo"]
    assert called("a/x/sft", "b/x/sft", "b/y/sft") == ["a/x/sft", "b/x/sft", "y/sft"]
    assert called("runs/a/sft/checkpoint-2", "runs/b/sft") == ["a/sft/checkpoint-2", "b/sft"]
    assert called("runs/sft/checkpoint-2", "runs/sft/checkpoint-4") == ["sft/checkpoint-2", "sft/checkpoint-4"]
    assert called("runs/sft", "sft", "/runs/sft") == ["runs/sft", "sft", "/runs/sft"]
    assert called("Qwen/Qwen2.5-0.5B", "runs/Qwen2.5-0.5B@x", "mine/Qwen2.5-0.5B") == [
        "Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B@x", "mine/Qwen2.5-0.5B"
    ]  # fmt: skip


def test_of_two_stages_of_one_name_either_can_be_compared_by_what_the_table_calls_it(tmp_path, capsys):
    evaluated(tmp_path, **{"a/sft": [1.0, 0.0], "b/sft": [1.0, 1.0]})
    path = tmp_path / "results.json"
    checkpoint.write_json(path, [{**r, "stage": "sft"} for r in json.loads(path.read_text())])
    evaluate.main(["--compare", "a/sft", "b/sft", "--output_dir", str(tmp_path)])
    assert "a/sft: 50.0 %   b/sft: 100.0 %" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has 2 evaluations of 'sft'. There are: runs/a/sft, runs/b/sft"):
        evaluate.main(["--compare", "sft", "b/sft", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="has no evaluation of 'grpo'. There are: a/sft, b/sft"):
        evaluate.main(["--compare", "grpo", "b/sft", "--output_dir", str(tmp_path)])


def test_what_flipped_stands_on_a_line_however_long_a_program_is():
    long = "def f(x):\n" + "    x += 1\n" * 50
    pair = [({"prompt": "p", "solution": long, "answer": long, "accuracy": a}, {"answer": "y", "accuracy": 1 - a})
            for a in (1.0, 0.0)]  # fmt: skip
    lines = comparison.told(("a", "b"), pair, 5).split("\n")
    assert len(lines) == 5 and max(map(len, lines)) < 260 and "def f(x): x += 1" in lines[-1]
