"""Which results are comparable; and two models on the same problems: who gained, who lost, and whether that may be
chance."""

import math
from dataclasses import dataclass

from suite import privacy
from suite.metrics import wilson

# Of how a checkpoint was asked, what a reader makes nothing of, or is told anyway.
_UNTOLD = ("data", "judge", "versions", "template")


def asked_alike(results: list[dict]) -> list[tuple[str, list[dict]]]:
    """(how they were asked, the results that were asked so), a pair for each way: only within one are numbers
    comparable. Where there is but one way, it is not told: ""."""
    ways: dict[str | None, list[dict]] = {}
    for result in results:
        ways.setdefault(result.get("conditions"), []).append(result)
    if len(ways) < 2:
        return [("", results)]
    keys = [_keys(there[0].get("asked", {})) for there in ways.values()]
    noted = [each for each in keys if each]  # an older result tells nothing
    apart = [key for key in dict.fromkeys(k for each in noted for k in each) if len({e.get(key) for e in noted}) > 1]
    told = []
    for there, each in zip(ways.values(), keys, strict=True):
        rows = there[0].get("asked", {}).get("data", {}).get("rows", there[0]["n"])
        more = "".join(f", {key} {each[key]}" for key in apart if key in each)
        told.append(f"{privacy.shown(there[0].get('dataset', 'an older evaluation'))}, {rows} rows{more}")
    # Where that is the same, the texts of the rows or the code that judges were others.
    unique = [how if told.count(how) == 1 else f"{how} ({way})" for how, way in zip(told, ways, strict=True)]
    return list(zip(unique, ways.values(), strict=True))


def _keys(asked: dict) -> dict[str, str]:
    """Key -> value, on one line, of how a checkpoint was asked, but for where the rows are from and for hashes."""
    named = [(part, *item) for part, held in asked.items() if part not in _UNTOLD for item in held.items()]
    return {part if key == "name" else key: _short(value, 60) for part, key, value in named if key != "hash"}


@dataclass(frozen=True)
class Comparison:
    """Problems that both got right, only the first, only the second, or neither."""

    both: int
    first: int
    second: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.first + self.second + self.neither

    @property
    def rates(self) -> tuple[float, float]:
        return (self.both + self.first) / self.n, (self.both + self.second) / self.n

    @property
    def difference(self) -> float:
        """Second minus first, in shares of 1."""
        return (self.second - self.first) / self.n

    @property
    def p(self) -> float:
        """McNemar's test, exact: could the flips as well have gone the other way? https://doi.org/10.1007/BF02295996"""
        flips = self.first + self.second
        tail = sum(math.comb(flips, i) for i in range(min(self.first, self.second) + 1))
        return min(1.0, 2 * tail / 2**flips)

    @property
    def ci95(self) -> list[float]:
        """Of the difference: method 10 of R. G. Newcombe, Statistics in Medicine 17 (1998) 2635-2650, which puts the
        two Wilson intervals together by the correlation of the answers."""
        one, two = self.rates
        (low_1, high_1), (low_2, high_2) = (wilson(rate * self.n, self.n) for rate in self.rates)
        phi = self._correlation()
        below = (two - low_2) ** 2 - 2 * phi * (two - low_2) * (high_1 - one) + (high_1 - one) ** 2
        above = (high_2 - two) ** 2 - 2 * phi * (high_2 - two) * (one - low_1) + (one - low_1) ** 2
        return [self.difference - math.sqrt(max(0.0, below)), self.difference + math.sqrt(max(0.0, above))]

    def _correlation(self) -> float:
        product = self.both * self.neither - self.first * self.second
        if product > 0:
            product = max(0.0, product - self.n / 2)
        margins = (self.both + self.first) * (self.second + self.neither)
        margins *= (self.both + self.second) * (self.first + self.neither)
        return product / math.sqrt(margins) if margins else 0.0


def pair(first: list[dict], second: list[dict]) -> list[tuple[dict, dict]]:
    """The greedy rows of rows.jsonl that both models answered and that could be judged, by problem.

    Raises `ValueError` where they have no problem in common.
    """
    of_second = {_problem(row): row for row in second if _counts(row)}
    pairs = [(row, of_second[_problem(row)]) for row in first if _counts(row) and _problem(row) in of_second]
    if not pairs:
        raise ValueError("The two have no judged problem in common: they were evaluated on other rows.")
    return pairs


def unjudged(first: list[dict], second: list[dict]) -> int:
    """How many problems both models answered greedily of which one answer, or both, could not be judged."""
    answers = [{_problem(row): _counts(row) for row in said if row["kind"] == "greedy"} for said in (first, second)]
    return sum(not (answers[0][problem] and answers[1][problem]) for problem in answers[0].keys() & answers[1].keys())


def _counts(row: dict) -> bool:
    return row["kind"] == "greedy" and row["accuracy"] is not None


def _problem(row: dict) -> tuple:
    return row["row"], row["prompt"], str(row["solution"])


def compare(pairs: list[tuple[dict, dict]]) -> Comparison:
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for one, two in pairs:
        counts[one["accuracy"] >= 1.0, two["accuracy"] >= 1.0] += 1
    return Comparison(counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def told(names: tuple[str, str], pairs: list[tuple[dict, dict]], problems: int) -> str:
    """The comparison for people, with the first few problems that flipped each way."""
    found = compare(pairs)
    one, two = found.rates
    low, high = (100 * end for end in found.ci95)
    lines = [
        f"{names[0]}: {100 * one:.1f} %   {names[1]}: {100 * two:.1f} %   on {found.n} problems that both answered",
        f"difference {100 * found.difference:+.1f} points [{low:+.1f}, {high:+.1f}], McNemar's exact p = {found.p:.3g}",
        f"{found.second} problems gained, {found.first} lost, {found.both} right in both, {found.neither} in neither",
    ]
    for what, which in (("gained", (False, True)), ("lost", (True, False))):
        flipped = [p for p in pairs if tuple(row["accuracy"] >= 1.0 for row in p) == which]
        for first, second in flipped[:problems]:
            gold, *said = (_short(text, 60) for text in (first["solution"], first["answer"], second["answer"]))
            lines.append(f"  {what}: {_short(first['prompt'], 100)}  (gold {gold}): {' -> '.join(said)}")
        if len(flipped) > problems > 0:
            lines.append(f"  ... and {len(flipped) - problems} more that were {what}")
    return "\n".join(lines)


def _short(text, length: int) -> str:
    """Text on one line; of a program, say, its beginning."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
