"""How fast `accuracy` judges, against TRL's accuracy_reward on the same completions, and what hostile ones cost."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator

from tests.benchmarks.interleaved import Series, process, rounds, told

PROMPTS, GROUP = 32, 8
HOSTILE_SECONDS = 10
LOAD_SECONDS = 0.3
LOAD = "from suite import rewards; rewards.load('accuracy')(['<answer>42</answer>'], solution=['42'])"


def gsm8k_rows(rng: random.Random) -> Iterator[tuple[str, str]]:
    """(gold, what the model boxes): whole numbers, half of the answers right."""
    gold = str(rng.randrange(10_000))
    for _ in range(GROUP):
        yield gold, gold if rng.random() < 0.5 else str(rng.randrange(10_000))


def latex_rows(rng: random.Random) -> Iterator[tuple[str, str]]:
    """(gold, what the model boxes): roots, fractions of them, products and sets, right ones written otherwise."""
    a, b, c = rng.randrange(2, 60), rng.randrange(2, 60), rng.randrange(2, 30)
    gold, ways = rng.choice(
        [
            (rf"{c}\sqrt{{{a}}}", [rf"\sqrt{{{a}}}\cdot {c}", rf"\sqrt{{{a * c * c}}}"]),
            (rf"\frac{{{a}\pi}}{{{b}}}", [rf"\frac{{{2 * a}\pi}}{{{2 * b}}}", rf"{a}\pi/{b}"]),
            (rf"(x+{a})(x-{b})", [rf"x^2+{a}x-{b}x-{a * b}", rf"(x-{b})(x+{a})"]),
            (rf"\frac{{{a}+\sqrt{{{b}}}}}{{{c}}}", [rf"\frac{{\sqrt{{{b}}}+{a}}}{{{c}}}"]),
            (rf"y={a}x+{b}", [rf"y-{a}x={b}"]),
        ]
    )
    for i in range(GROUP):
        yield gold, rng.choice(ways) if rng.random() < 0.5 else rng.choice(ways).replace(str(a), str(a + 1 + i))


def batch(rows: Callable, seed: int) -> tuple[list, list[str]]:
    """(completions as conversations, golds): new ones for each seed, so that nothing is remembered from before."""
    rng = random.Random(seed)
    pairs = list(itertools.chain.from_iterable(rows(rng) for _ in range(PROMPTS)))
    said = [f"<think>\nLet me see.\n</think>\nThe answer is $\\boxed{{{answer}}}$" for _, answer in pairs]
    return [[{"role": "assistant", "content": text}] for text in said], [f"${gold}$" for gold, _ in pairs]


def timed(reward: Callable, rows: Callable) -> Callable[[], float]:
    seeds = itertools.count()

    def once() -> float:
        completions, golds = batch(rows, next(seeds))
        start = time.perf_counter()
        reward(completions, solution=golds)
        return time.perf_counter() - start

    return once


def hostile(n: int) -> Series:
    """Seconds for a batch with the 64 worst completions and 16 innocent ones, in the main thread and in another."""
    from suite.rewards import pool
    from suite.rewards.accuracy import accuracy_reward
    from tests.tables.hostile import WORST

    said = [f"<answer>{text}</answer>" for text in WORST] + [r"<answer>\sqrt{12}/4</answer>", r"\boxed{0.5\sqrt3}"] * 8
    golds = [r"$\frac{\sqrt{3}}{2}$"] * len(said)
    seconds = []

    def once() -> None:
        pool._known.clear(), pool._late.clear()
        start = time.perf_counter()
        values = accuracy_reward(said, golds)
        seconds.append(time.perf_counter() - start)
        assert values[len(WORST) :] == [1.0] * 16, "an innocent completion was misjudged"

    for _ in range(max(1, n // 3)):
        once()
        thread = threading.Thread(target=once)
        thread.start()
        thread.join()
    return Series(seconds)


def main(n: int = 9) -> None:
    from trl.rewards import accuracy_reward as theirs

    from suite.rewards.accuracy import accuracy_reward as ours

    loaded = rounds(lambda: process("-c", LOAD)[0], lambda: process("-c", "pass")[0], n)
    told("accuracy loaded, above bare python, seconds", loaded.above, f"<= {LOAD_SECONDS}",
         loaded.above.median <= LOAD_SECONDS)  # fmt: skip
    for what, rows, goal in (("boxed whole numbers", gsm8k_rows, 5.0), ("LaTeX", latex_rows, 1.5)):
        measured = rounds(timed(ours, rows), timed(theirs, rows), n)
        count = PROMPTS * GROUP
        print(f"{what}, completions a second: ours {count / measured.ours.median:.0f}", end="")
        print(f", TRL's {count / measured.theirs.median:.0f}")
        told(f"accuracy, TRL's seconds / ours, {what}", measured.speed, f">= {goal}", measured.speed.median >= goal)
    spent = hostile(n)
    told(
        "64 hostile + 16 innocent completions, seconds",
        spent,
        f"<= {HOSTILE_SECONDS}",
        max(spent.values) <= HOSTILE_SECONDS,
    )
