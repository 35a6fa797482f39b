"""Whole-number sums and differences, endless and seeded, each with its worked solution digit by digit."""

import hashlib
import itertools
import random
from collections.abc import Iterator

from suite import reasoning

# Problems come again when none is left, and the test set shares none by construction.
DEFAULTS = {"drop_duplicates": False, "overlap_ngram": 0}
AT_ONCE = "hm"  # all that a chat thinks in which the result is said at once
TEST_SHARE = 5  # one problem in five is kept for testing, whatever the seed


def split_of(a: int, operation: str, b: int) -> str:
    """The split a problem belongs to. It depends on the problem alone, so no seed and no size can mix the two."""
    digest = hashlib.sha256(f"{a}{operation}{b}".encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def work_out(a: int, operation: str, b: int, forgets: bool = False, slips: bool = False) -> tuple[str, int]:
    """(the steps from the last digit to the first, the result). Needs a >= b for '-'.

    A solver who `forgets` drops every carry, and so gets another result wherever there was one. One who `slips` also
    carries where there is nothing to carry, and with more than one digit is never right.
    """
    steps, digits, carry = [], [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        if operation == "+":
            value = carry + x + y
            steps.append(f"{'1+' if carry else ''}{x}+{y}={value}")
            carries = int(value > 9)
        else:
            carries = int(x < y + carry)
            value = 10 * carries - carry + x - y
            steps.append(f"{'-1+' if carry else ''}{10 * carries + x}-{y}={value}")
        digits.append(str(value % 10))
        carry = 1 - carries if slips else 0 if forgets else carries
    leading = "1" if carries and operation == "+" else ""
    return "\n".join(steps), int(leading + "".join(reversed(digits)))


def problems(split: str, seed: int | str, digits: int, operations: str) -> Iterator[tuple[int, str, int]]:
    """Problems of one split without end, in an order the seed decides; they come again when none is left."""
    rng = random.Random(f"{seed}/{split}")
    while True:
        a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        operation = rng.choice(operations)
        if operation == "-" and a < b:
            a, b = b, a
        if split_of(a, operation, b) == split:
            yield a, operation, b


def load(
    split: str,
    *,
    size: int = 5000,
    test_size: int = 500,
    digits: int = 2,
    operations: str = "+",
    forgets: float = 0.0,
    at_once: bool = False,
    pairs: bool = False,
    turns: int = 1,
    seed: int = 0,
) -> Iterator[dict]:
    """`size` training or `test_size` test rows with the columns text, prompt, completion and solution.

    Numbers have `digits` digits, the first not 0; `operations` are the signs between them: +, - or +-. Test problems do
    not repeat; `seed` draws them all. `forgets` is the share of completions, from 0 to 1, whose author drops the
    carries: demonstrations as they come from a hasty teacher, while `text` and `solution` are always right. With
    `at_once` a completion says the result without working it out: a chat. With `pairs` there are also `chosen`, worked
    out right, and `rejected`, with every carry wrong. With more `turns` than one a prompt is a conversation: sums of
    the training split, asked and answered rightly, before the one that counts. Raises `ValueError` for bad knobs.
    """
    if not operations or set(operations) - set("+-"):
        raise ValueError(f"arithmetic.operations: '{operations}' must be made of '+' and '-'.")
    if digits < 1 + pairs:
        raise ValueError(f"arithmetic.digits: {digits} must be at least {1 + pairs}{' for pairs' * pairs}.")
    if not 0 <= forgets <= 1:
        raise ValueError(f"arithmetic.forgets: {forgets} is a share, from 0 to 1.")
    if min(size, test_size) < 0:
        raise ValueError(f"arithmetic: neither size: {size} nor test_size: {test_size} may be below 0.")
    if turns < 1:
        raise ValueError(f"arithmetic.turns: {turns} must be at least 1, which is the question itself.")
    # About: the split goes by a hash, and a - b and b - a are one problem.
    different = (9 * 10 ** (digits - 1)) ** 2 * len(set(operations)) // TEST_SHARE
    stream = problems(split, seed, digits, operations)
    if split == "test":
        if test_size > different // 2:
            raise ValueError(f"arithmetic.test_size: there are only about {different} problems with {digits} digits.")
        seen: set = set()
        stream = (p for p in stream if not (p in seen or seen.add(p)))
    earlier = problems("train", f"{seed}/{split}/earlier", digits, operations)
    moods = random.Random(f"{seed}/{split}/moods")

    def answer(steps: str, result: int, at_once: bool = at_once) -> list[dict]:
        return [{"role": "assistant", "content": reasoning.write(AT_ONCE if at_once else steps, str(result))}]

    for a, operation, b in itertools.islice(stream, size if split == "train" else test_size):
        before = [m for p in itertools.islice(earlier, turns - 1) for m in (ask(*p), *answer(*work_out(*p)))]
        book_steps, right = work_out(a, operation, b)
        said = {"completion": answer(*work_out(a, operation, b, forgets=moods.random() < forgets))}
        if pairs:
            said["chosen"] = answer(book_steps, right, at_once=False)
            said["rejected"] = answer(*work_out(a, operation, b, slips=True), at_once=False)
        yield {
            "text": f"{a}{operation}{b}\n{book_steps}\n{right}",
            "prompt": [*before, ask(a, operation, b)],
            **said,
            "solution": str(right),
        }


def ask(a: int, operation: str, b: int) -> dict:
    return {"role": "user", "content": f"{a}{operation}{b}"}
