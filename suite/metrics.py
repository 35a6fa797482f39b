"""Scored completions to numbers: rates with 95 % intervals, pass@k, maj@k, lengths."""

import functools
import math
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

Z95 = 1.959963984540054


def wilson(successes: float, n: float) -> list[float]:
    """95 % interval of a rate, [low, high], in shares of 1. https://doi.org/10.1080/01621459.1927.10502953"""
    if n == 0:
        return [0.0, 1.0]
    rate = successes / n
    center = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    return [max(0.0, center - half), min(1.0, center + half)]


def rate(values: Sequence[float | None]) -> dict:
    """A share of successes (each 0 to 1): value, ci95 and n. What could not be judged (None) does not count."""
    judged = [v for v in values if v is not None]
    total = sum(judged)
    return {"value": total / len(judged) if judged else None, "ci95": wilson(total, len(judged)), "n": len(judged)}


def share(values: Sequence[float], draws: int = 1) -> dict:
    """A mean over problems of shares, each 0 to 1 and itself of `draws` samples: value, ci95 and n.

    The interval is Wilson's, for as many independent answers as would spread like that: at least one a problem, which
    it is where all answers to a problem are alike, and at most `draws`. Unlike the normal approximation it has a width
    where every problem is solved, and does not reach beyond 0 and 1.
    E. L. Korn, B. I. Graubard, Survey Methodology 24 (1998) 193-201 (the number of answers).
    """
    n = len(values)
    if n == 0:
        return {"value": None, "ci95": [0.0, 1.0], "n": 0}
    center = statistics.fmean(values)
    spread = statistics.variance(values, center) if n > 1 else 0.0
    alone = center * (1 - center)  # the spread of single answers
    each = 1.0 if alone == 0 else min(draws, max(1.0, alone / spread if spread else draws))
    return {"value": center, "ci95": wilson(center * n * each, n * each), "n": n}


def mean(values: Sequence[float]) -> dict:
    """A mean over problems: value, ci95 by the normal approximation, and n. One problem has no spread to tell it by."""
    if not values:
        return {"value": None, "ci95": [None, None], "n": 0}
    center = statistics.fmean(values)
    if len(values) == 1:
        return {"value": center, "ci95": [None, None], "n": 1}
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": center, "ci95": [center - half, center + half], "n": len(values)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict:
    """A quotient of two sums over rows: value, ci95 and n. A row counts by its denominator. Where only one has any,
    nothing spreads: no interval.

    The interval is that of the linearized quotient, from the spread of n_i - R d_i over the rows:
    W. G. Cochran, Sampling Techniques, 3rd ed., section 6.4.
    """
    total, n = sum(denominators), len(denominators)
    if not total:
        return {"value": None, "ci95": [None, None], "n": n}
    value = sum(numerators) / total
    if sum(d > 0 for d in denominators) == 1:
        return {"value": value, "ci95": [None, None], "n": n}
    spread = sum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    half = Z95 * math.sqrt(n / (n - 1) * spread) / total
    return {"value": value, "ci95": [value - half, value + half], "n": n}


def pass_at(k: int, n: int, right: int) -> float:
    """Chance that at least one of k samples drawn from n, of which `right` are right, is right.

    1 - C(n-right, k) / C(n, k), equation 1 of https://arxiv.org/abs/2107.03374
    """
    assert 0 < k <= n and 0 <= right <= n, (k, n, right)
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def maj_at(k: int, votes: Sequence[Hashable | None], right: Iterable[Hashable]) -> float:
    """Chance that the answer which most of k samples give is right, the samples being drawn from those that voted so.

    `votes` holds what each sample answers, None where it gives no answer, which is no vote; `right` the answers that
    are right. Where several have the most votes, one of them is drawn; where nobody votes, the answer is wrong. The
    mean over all C(n, k) draws, and so unbiased; at k = n it is the one vote there is.
    """
    assert 0 < k <= len(votes), (k, len(votes))
    counts = Counter(vote for vote in votes if vote is not None)
    silent = len(votes) - counts.total()
    won = 0.0
    for answer in set(right) & counts.keys():
        others = tuple(sorted(n for other, n in counts.items() if other != answer))
        won += _wins(counts[answer], others, silent, k)
    return won / math.comb(len(votes), k)


@functools.lru_cache(maxsize=10_000)
def _wins(own: int, others: tuple[int, ...], silent: int, k: int) -> float:
    """In how many draws of k samples an answer that `own` of them give has the most votes; a tie of t counts 1 / t."""
    won = 0.0
    for votes in range(1, min(own, k) + 1):
        # (samples drawn, other answers with as many votes) -> in how many ways
        ways = Counter({(0, 0): math.comb(own, votes)})
        for there in others:
            further: Counter = Counter()
            for (drawn, tied), n in ways.items():
                for taken in range(min(there, votes, k - votes - drawn) + 1):
                    further[drawn + taken, tied + (taken == votes)] += n * math.comb(there, taken)
            ways = further
        for (drawn, tied), n in ways.items():
            won += n * math.comb(silent, k - votes - drawn) / (1 + tied)
    return won
