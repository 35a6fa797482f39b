"""How long the front door takes to open: `suite --help` against a bare interpreter."""

from tests.benchmarks.interleaved import process, rounds, told

GOAL = 0.25  # seconds above the bare interpreter


def main(n: int = 9) -> None:
    measured = rounds(lambda: process("-m", "suite.cli", "--help")[0], lambda: process("-c", "pass")[0], n)
    print(f"seconds: suite --help {measured.ours}, python -c pass {measured.theirs}")
    told("suite --help above python -c pass, seconds", measured.above, f"<= {GOAL}", measured.above.median <= GOAL)
