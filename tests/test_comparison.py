"""Two models on the same problems: the test against scipy's, the interval against simulation, and what is said."""

import json
import random

import pytest

from suite import checkpoint, comparison, evaluate
from suite.comparison import Comparison


def test_mcnemars_p_is_scipys():
    from scipy.stats import binomtest

    rng = random.Random(0)
    for _ in range(300):
        first, second = rng.randrange(60), rng.randrange(60)
        expected = binomtest(first, first + second).pvalue if first + second else 1.0
        assert abs(Comparison(9, first, second, 9).p - expected) < 1e-9
    assert abs(Comparison(0, 900, 1100, 0).p - binomtest(900, 2000).pvalue) < 1e-9


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


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    evaluated(tmp_path, sft=[1.0, 0.0], grpo=[1.0] * 6, other=[None])
    evaluate.main(["--compare", "sft", "grpo", "--output_dir", str(tmp_path)])
    assert "warning: they were not evaluated alike" in capsys.readouterr().out
    for names, message in (
        (["sft", "dpo"], "0 evaluations of 'dpo'. There are: sft, grpo, other"),
        (["sft", "other"], "no judged problem in common"),
        (["sft"], "takes two names"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.main(["--compare", *names, "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="Name `checkpoints` to evaluate, or two"):
        evaluate.main(["--output_dir", str(tmp_path)])
    assert comparison.compare([({"accuracy": 1.0}, {"accuracy": 0.5})]) == Comparison(0, 1, 0, 0)
