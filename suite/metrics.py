"""Scored completions to numbers: rates with 95 % intervals, pass@k, lengths."""

import math
import statistics
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson(successes: float, n: int) -> list[float]:
    """95 % interval of a rate, [low, high], in shares of 1. https://doi.org/10.1080/01621459.1927.10502953"""
    if n == 0:
        return [0.0, 1.0]
    rate = successes / n
    centre = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def rate(values: Sequence[float | None]) -> dict:
    """A share of successes (each 0 to 1): value, ci95 and n. What could not be judged (None) does not count."""
    judged = [v for v in values if v is not None]
    total = sum(judged)
    return {"value": total / len(judged) if judged else None, "ci95": wilson(total, len(judged)), "n": len(judged)}


def mean(values: Sequence[float]) -> dict:
    """A mean over problems: value, ci95 by the normal approximation, and n."""
    if not values:
        return {"value": None, "ci95": [None, None], "n": 0}
    centre = statistics.fmean(values)
    half = Z95 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"value": centre, "ci95": [centre - half, centre + half], "n": len(values)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict:
    """A quotient of two sums over rows: value, ci95 and n. A row counts by its denominator.

    The interval is that of the linearised quotient, from the spread of n_i - R d_i over the rows:
    W. G. Cochran, Sampling Techniques, 3rd ed., section 6.4.
    """
    total, n = sum(denominators), len(denominators)
    if not total:
        return {"value": None, "ci95": [None, None], "n": n}
    value = sum(numerators) / total
    spread = sum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    half = Z95 * math.sqrt(n / (n - 1) * spread) / total if n > 1 else 0.0
    return {"value": value, "ci95": [value - half, value + half], "n": n}


def pass_at(k: int, n: int, right: int) -> float:
    """Chance that at least one of k samples drawn from n, of which `right` are right, is right.

    1 - C(n-right, k) / C(n, k), equation 1 of https://arxiv.org/abs/2107.03374
    """
    assert 0 < k <= n and 0 <= right <= n, (k, n, right)
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)
