"""Numbers with intervals: known values, and the shapes that evaluate and report rely on."""

import itertools
import random

import pytest

from suite import engine, judging, metrics


def test_wilson_gives_the_textbook_interval():
    low, high = metrics.wilson(15, 50)  # Newcombe 1998, table I: 0.30 of 50
    assert (round(low, 4), round(high, 4)) == (0.1910, 0.4375)
    assert metrics.wilson(0, 20)[0] == 0.0 and metrics.wilson(20, 20)[1] == 1.0


def test_wilson_covers_the_true_rate_about_19_times_in_20():
    rng = random.Random(0)
    for true in (0.02, 0.5, 0.9):
        hits = 0
        for _ in range(2000):
            low, high = metrics.wilson(sum(rng.random() < true for _ in range(200)), 200)
            hits += low <= true <= high
        assert 0.92 < hits / 2000 < 0.985


def test_what_was_measured_of_one_row_is_a_number_without_an_interval():
    for one in (metrics.mean([3.0]), metrics.ratio([6.0], [2]), metrics.ratio([6.0, 0.0], [2, 0])):
        assert one["value"] == 3 and one["ci95"] == [None, None]
    for two in (metrics.mean([3.0, 4.0]), metrics.ratio([6.0, 1.0], [2, 1])):
        low, high = two["ci95"]
        assert low < two["value"] < high


def test_a_ratio_weighs_rows_by_their_size_and_its_interval_covers_19_times_in_20():
    assert metrics.ratio([8.0, 1.0], [4, 1])["value"] == 9 / 5
    assert metrics.ratio([0.0], [0])["value"] is None
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        sizes = [rng.randrange(5, 50) for _ in range(100)]
        low, high = metrics.ratio([n * rng.gauss(2, 0.5) for n in sizes], sizes)["ci95"]
        hits += low <= 2 <= high
    assert 0.92 < hits / 2000 < 0.97


@pytest.mark.parametrize(("problems", "draws"), [(200, 4), (500, 1), (100, 16)])
@pytest.mark.parametrize("hardness", [(1, 1), (0.5, 1.5), (6, 2)], ids=["even", "hard", "easy"])
def test_the_interval_of_samples_covers_the_models_true_accuracy_19_times_in_20(problems, draws, hardness):
    """A model's chance of solving a problem differs from problem to problem; its accuracy is the mean of them."""
    import numpy

    rng, true = numpy.random.default_rng(0), hardness[0] / sum(hardness)
    chances = rng.beta(*hardness, size=(2000, problems))
    shares = rng.binomial(draws, chances) / draws
    ends = [metrics.share(run, draws)["ci95"] for run in shares.tolist()]
    assert 0.93 <= sum(low <= true <= high for low, high in ends) / 2000 <= 0.97


def test_an_interval_of_samples_has_a_width_where_all_is_solved_and_stays_between_0_and_1():
    assert metrics.share([1.0] * 50, 4)["ci95"] == metrics.wilson(50, 50)
    assert metrics.share([0.0, 0.0], 4)["ci95"] == metrics.wilson(0, 2)
    assert metrics.share([0.5] * 10, 4)["ci95"] == pytest.approx(metrics.wilson(20, 40))
    assert metrics.share([0.0, 1.0] * 10, 4)["ci95"] == pytest.approx(metrics.wilson(10, 20))
    assert metrics.share([])["value"] is None


def majority(votes, right) -> float:
    counts = {vote: votes.count(vote) for vote in votes if vote is not None}
    first = [vote for vote, n in counts.items() if n == max(counts.values())]
    return sum(vote in right for vote in first) / len(first) if first else 0.0


def test_maj_at_k_is_the_mean_over_all_draws_of_k():
    rng = random.Random(0)
    for _ in range(400):
        votes = rng.choices([None, "a", "b", "c", "d"], [2, 5, 3, 1, 1], k=rng.randint(1, 9))
        right, k = rng.sample("abcd", rng.randint(0, 2)), rng.randint(1, len(votes))
        draws = [majority(draw, right) for draw in itertools.combinations(votes, k)]
        assert metrics.maj_at(k, votes, right) == pytest.approx(sum(draws) / len(draws))
    assert metrics.maj_at(3, [None] * 4, ["a"]) == 0.0


@pytest.mark.parametrize(("n", "right", "k"), [(4, 0, 2), (4, 1, 2), (5, 3, 2), (6, 6, 3), (8, 2, 4)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n, right, k):
    draws = list(itertools.combinations([1] * right + [0] * (n - right), k))
    assert metrics.pass_at(k, n, right) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_what_cannot_be_judged_does_not_count():
    assert metrics.rate([1.0, None, 0.0]) == {"value": 0.5, "ci95": metrics.wilson(1, 2), "n": 2}
    assert metrics.rate([None])["value"] is None


def test_completions_are_scored_by_every_reading():
    rows = [{"prompt": [{"role": "user", "content": "6*7"}], "solution": "42"}] * 2
    said = [
        [engine.Completion("<think>a</think><answer>42</answer>", 9, True)],
        [engine.Completion("it must be 42", 30, False)],
    ]
    scored = judging.score(rows, said, "greedy")
    assert [row["accuracy"] for row in scored] == [1.0, 0.0]
    measured = judging.summarize(scored, 0)
    values = {name: m["value"] for name, m in measured.items()}
    assert values == {"accuracy": 0.5, "strict": 0.5, "lenient": 1.0, "format": 0.5, "unjudged": 0.0, "truncated": 0.5,
                      "tokens": 19.5}  # fmt: skip
    assert all(m["n"] == 2 and len(m["ci95"]) == 2 for m in measured.values())


def test_pass_at_k_counts_problems_and_not_samples():
    rows = [{"prompt": "p", "solution": "1"}] * 3
    said = [[engine.Completion(f"<answer>{a}</answer>", 3, True) for a in group] for group in ("12", "22", "11")]
    measured = judging.summarize(judging.score(rows, said, "sampled"), 2)
    assert measured["pass@2"]["value"] == pytest.approx(2 / 3) and measured["pass@2"]["n"] == 3
    assert measured["sampled"]["value"] == pytest.approx(0.5)
