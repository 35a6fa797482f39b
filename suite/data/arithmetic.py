"""Whole-number sums and differences, endless and seeded, each with its worked solution digit by digit."""

import hashlib
import itertools
import random
from collections.abc import Iterator

from suite import reasoning

TEST_SHARE = 5  # one problem in five is kept for testing, whatever the seed


def split_of(a: int, operation: str, b: int) -> str:
    """The split a problem belongs to. It depends on the problem alone, so no seed and no size can mix the two."""
    digest = hashlib.sha256(f"{a}{operation}{b}".encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def work_out(a: int, operation: str, b: int) -> tuple[str, int]:
    """(the steps from the last digit to the first, the result). Needs a >= b for '-'."""
    sign = 1 if operation == "+" else -1
    steps, carry, result = [], 0, a + sign * b
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        carried = f"{operation}1" if carry else ""
        value = x + sign * (y + carry)
        if operation == "-" and value < 0:
            steps.append(f"1{x}-{y}{carried}={value + 10}")
        else:
            steps.append(f"{x}{operation}{y}{carried}={value}")
        carry = int(value > 9) if sign > 0 else int(value < 0)
    return "\n".join(steps), result


def problems(split: str, seed: int, digits: int, operations: str) -> Iterator[tuple[int, str, int]]:
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
    split: str, *, size: int = 5000, test_size: int = 500, digits: int = 2, operations: str = "+", seed: int = 0
) -> Iterator[dict]:
    """`size` training or `test_size` test rows with the columns text, prompt, completion and solution.

    Numbers have `digits` digits, the first not 0. Test problems do not repeat. Raises `ValueError` where there are fewer
    problems than asked for, or for an operation other than + and -.
    """
    if not operations or set(operations) - set("+-"):
        raise ValueError(f"arithmetic.operations: '{operations}' must be made of '+' and '-'.")
    wanted = size if split == "train" else test_size
    if digits < 1:
        raise ValueError(f"arithmetic.digits: {digits} must be at least 1.")
    # About: the split goes by a hash, and a - b and b - a are one problem.
    different = (9 * 10 ** (digits - 1)) ** 2 * len(set(operations)) // TEST_SHARE
    if split == "test" and wanted > different // 2:
        raise ValueError(f"arithmetic.test_size: there are only about {different} problems with {digits} digits.")
    stream = problems(split, seed, digits, operations)
    if split == "test":
        seen: set = set()
        stream = (p for p in stream if not (p in seen or seen.add(p)))
    for a, operation, b in itertools.islice(stream, wanted):
        steps, result = work_out(a, operation, b)
        yield {
            "text": f"{a}{operation}{b}\n{steps}\n{result}",
            "prompt": [{"role": "user", "content": f"{a}{operation}{b}"}],
            "completion": [{"role": "assistant", "content": reasoning.write(steps, str(result))}],
            "solution": str(result),
        }
